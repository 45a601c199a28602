"""Where each file of a release lies under the operator's model directory, and who publishes it.

Nothing is downloaded, here or anywhere in this package: the weights have their own licences, which
the operator accepts when fetching them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from engine.backends.indextts2.errors import FilesMissing


@dataclass(frozen=True, slots=True)
class ReleaseFile:
    """One file of a release.

    Attributes:
        name: how the code asks for it.
        paths: where it may lie under the model directory; the first is the documented place.
        publisher: repository it is published in.
        optional: what is lost without it; empty when nothing works without it.
    """

    name: str
    paths: tuple[str, ...]
    publisher: str
    optional: str = ""


_INDEX = "IndexTeam/IndexTTS-2 (Hugging Face, ModelScope)"
_W2V = "facebook/w2v-bert-2.0 (Hugging Face)"
_BIGVGAN = "nvidia/bigvgan_v2_22khz_80band_256x (Hugging Face)"


def _aux(name: str, folders: tuple[str, ...], file: str, publisher: str) -> ReleaseFile:
    return ReleaseFile(name, tuple(f"{f}/{file}" if f else file for f in folders), publisher)


_W2V_DIRS = ("w2v-bert-2.0", "facebook/w2v-bert-2.0")
_BIGVGAN_DIRS = (
    "bigvgan_v2_22khz_80band_256x",
    "nvidia/bigvgan_v2_22khz_80band_256x",
    "bigvgan",
)

RELEASE = (
    ReleaseFile("config", ("config.yaml",), _INDEX),
    ReleaseFile("gpt", ("gpt.pth",), _INDEX),
    ReleaseFile("s2mel", ("s2mel.pth",), _INDEX),
    ReleaseFile("bpe", ("bpe.model",), _INDEX),
    ReleaseFile("stats", ("wav2vec2bert_stats.pt",), _INDEX),
    ReleaseFile("speaker_rows", ("feat1.pt",), _INDEX),
    ReleaseFile("emotion_rows", ("feat2.pt",), _INDEX),
    _aux("w2v_config", _W2V_DIRS, "config.json", _W2V),
    _aux("w2v_features", _W2V_DIRS, "preprocessor_config.json", _W2V),
    _aux("w2v", _W2V_DIRS, "model.safetensors", _W2V),
    _aux(
        "codec",
        ("semantic_codec", "MaskGCT/semantic_codec", "amphion/MaskGCT/semantic_codec"),
        "model.safetensors",
        "amphion/MaskGCT, folder semantic_codec (Hugging Face)",
    ),
    _aux(
        "campplus",
        ("", "campplus", "funasr/campplus"),
        "campplus_cn_common.bin",
        "funasr/campplus (Hugging Face)",
    ),
    _aux("vocoder_config", _BIGVGAN_DIRS, "config.json", _BIGVGAN),
    _aux("vocoder", _BIGVGAN_DIRS, "bigvgan_generator.pt", _BIGVGAN),
    ReleaseFile(
        "qwen",
        ("qwen0.6bemo4-merge/config.json",),
        _INDEX,
        optional="emotion from a text description",
    ),
    ReleaseFile(
        "glossary", ("glossary.yaml",), "your own", optional="fixed readings of your terms"
    ),
)
_BY_NAME = {file.name: file for file in RELEASE}


def find(model_dir: Path, name: str) -> Path:
    """The file called `name` in `RELEASE`.

    Raises:
        FilesMissing: it lies at none of its places.
    """
    path = find_optional(model_dir, name)
    if path is None:
        raise FilesMissing(_sentence(model_dir, [_BY_NAME[name]]))
    return path


def find_optional(model_dir: Path, name: str) -> Path | None:
    """As `find`, None when it is not there."""
    for relative in _BY_NAME[name].paths:
        if (model_dir / relative).is_file():
            return model_dir / relative
    return None


def missing_files(model_dir: Path, *, optional: bool = False) -> list[ReleaseFile]:
    """Files that are not there; with `optional`, those that only switch a feature off."""
    return [
        file
        for file in RELEASE
        if bool(file.optional) is optional and find_optional(model_dir, file.name) is None
    ]


def check_files(model_dir: Path) -> None:
    """Raise FilesMissing, naming files and publishers, unless the release is complete."""
    if not model_dir.is_dir():
        raise FilesMissing(f"--model-dir {model_dir} is not a folder")
    missing = missing_files(model_dir)
    if missing:
        raise FilesMissing(_sentence(model_dir, missing))


def digest(model_dir: Path) -> str:
    """Changes when a file is exchanged (name, size, first and last 64 KiB of each count)."""
    sums = hashlib.sha256()
    for file in RELEASE:
        path = find_optional(model_dir, file.name)
        if path is not None:
            sums.update(f"{file.name}:{path.stat().st_size}:".encode() + _ends(path))
    return sums.hexdigest()[:16]


def _ends(path: Path, size_bytes: int = 65_536) -> bytes:
    with path.open("rb") as file:
        head = file.read(size_bytes)
        file.seek(max(0, path.stat().st_size - size_bytes))
        return head + file.read(size_bytes)


def _sentence(model_dir: Path, missing: list[ReleaseFile]) -> str:
    lines = [f"  {file.paths[0]}: published in {file.publisher}" for file in missing]
    return f"{model_dir} lacks {len(missing)} file(s) of IndexTTS-2 2.0:\n" + "\n".join(lines)
