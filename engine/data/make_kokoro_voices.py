"""Make `kokoro_voices.npz` and `kokoro_voices.json` from the npm package that carries all 54
voices.

    npm pack kokoro-js@1.2.1
    python -m engine.data.make_kokoro_voices kokoro-js-1.2.1.tgz

Needed only when the pack changes; the result is committed. Each table [510, 256] becomes its mean
row and a rank-8 factor pair in 16-bit fixed point; every entry stays within 0.0003 of the original.
Loudness is measured by speaking one sentence with each voice (about two minutes).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.backends.kokoro.voices import ROWS, WIDTH

TARBALL_SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
RANK = 8
LARGEST_ERROR = 3e-4
SPOKEN = "ðə wˈikli sˈɪŋk stˈɑɹtᵻd ɔn tˈIm, wɪð twˈɛlv pˈipᵊl ɪn ðə ɹˈum."
HERE = Path(__file__).parent

LANGS = {
    "a": "en",
    "b": "en",
    "e": "es",
    "f": "fr",
    "h": "hi",
    "i": "it",
    "j": "ja",
    "p": "pt",
    "z": "zh",
}

# Grades as upstream's voice list gives them; Spanish and Portuguese have none.
GRADES = {
    "af_heart": "A", "af_alloy": "C", "af_aoede": "C+", "af_bella": "A-", "af_jessica": "D",
    "af_kore": "C+", "af_nicole": "B-", "af_nova": "C", "af_river": "D", "af_sarah": "C+",
    "af_sky": "C-", "am_adam": "F+", "am_echo": "D", "am_eric": "D", "am_fenrir": "C+",
    "am_liam": "D", "am_michael": "C+", "am_onyx": "D", "am_puck": "C+", "am_santa": "D-",
    "bf_alice": "D", "bf_emma": "B-", "bf_isabella": "C", "bf_lily": "D", "bm_daniel": "D",
    "bm_fable": "C", "bm_george": "C", "bm_lewis": "D+", "ff_siwis": "B-", "hf_alpha": "C",
    "hf_beta": "C", "hm_omega": "C", "hm_psi": "C", "if_sara": "C", "im_nicola": "C",
    "jf_alpha": "C+", "jf_gongitsune": "C", "jf_nezumi": "C-", "jf_tebukuro": "C", "jm_kumo": "C-",
    "zf_xiaobei": "D", "zf_xiaoni": "D", "zf_xiaoxiao": "D", "zf_xiaoyi": "D", "zm_yunjian": "D",
    "zm_yunxi": "D", "zm_yunxia": "D", "zm_yunyang": "D",
}  # fmt: skip

Floats = npt.NDArray[np.float32]


def main() -> None:
    """Read the tarball named on the command line, write both files beside this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tarball", type=Path)
    tables = read_tables(parser.parse_args().tarball)
    write_pack(tables, HERE / "kokoro_voices.npz")
    rows = [catalogue_row(name) for name in tables]
    write_catalogue(rows)
    loudness = measure(list(tables))
    write_catalogue([{**row, "loudness_lufs": loudness[str(row["id"])]} for row in rows])


def read_tables(tarball: Path) -> dict[str, Floats]:
    """Voice id -> (510, 256), in order of name."""
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if digest != TARBALL_SHA256:
        raise SystemExit(f"{tarball}: sha256 {digest}, not {TARBALL_SHA256}")
    tables = {}
    with tarfile.open(tarball) as archive:
        for member in sorted(archive.getmembers(), key=lambda entry: entry.name):
            file = archive.extractfile(member)
            if file is not None and member.name.startswith("package/voices/"):
                tables[Path(member.name).stem] = np.frombuffer(file.read(), "<f4").reshape(
                    ROWS, WIDTH
                )
    return tables


def write_pack(tables: dict[str, Floats], path: Path) -> None:
    """Factor every table and keep the factors, stacked in order of name."""
    means, lefts, rights, scales = [], [], [], []
    for name, table in tables.items():
        mean = table.mean(0)
        u, s, v = np.linalg.svd(table - mean, full_matrices=False)
        left, left_scale = fixed_point(u[:, :RANK])
        right, right_scale = fixed_point((s[:RANK, None] * v[:RANK]).T)
        scale = left_scale * right_scale
        error = np.abs((left * scale) @ right.T + mean - table).max()
        if error > LARGEST_ERROR:
            raise SystemExit(f"{name}: an entry is off by {error:.5f}")
        means.append(mean)
        lefts.append(left)
        rights.append(right.T)
        scales.append(scale)
    np.savez_compressed(
        path,
        ids=np.array(list(tables)),
        mean=np.stack(means).astype("<f4"),
        left=np.stack(lefts),
        right=np.stack(rights),
        scale=np.stack(scales).astype("<f4"),
    )


def fixed_point(
    columns: npt.NDArray[np.floating],
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.floating]]:
    """16 bits of each column's own range: five more than half precision would keep."""
    scale = np.abs(columns).max(axis=0) / 32767
    return np.round(columns / scale).astype("<i2"), scale


def catalogue_row(name: str) -> dict[str, str | float]:
    """What a caller is told about a voice."""
    return {
        "id": name,
        "name": name[3:].title(),
        "lang": LANGS[name[0]],
        "gender": {"f": "female", "m": "male"}[name[1]],
        "grade": GRADES.get(name, ""),
        "loudness_lufs": 0.0,
    }


def write_catalogue(rows: list[dict[str, str | float]]) -> None:
    """One voice a line, so that a change of one shows as one."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    (HERE / "kokoro_voices.json").write_text(f"[\n{lines}\n]\n", "utf-8")


def measure(names: list[str]) -> dict[str, float]:
    """Loudness of each voice speaking the probe sentence."""
    from engine.backends.kokoro.durations import natural_frames
    from engine.backends.kokoro.model import vocabulary
    from engine.backends.kokoro.prepare import prepared_graphs
    from engine.backends.kokoro.sound import loudness_lufs
    from engine.backends.kokoro.stages import Stages
    from engine.backends.kokoro.voices import VoicePack

    tokens = [vocabulary()[char] for char in SPOKEN]
    pack = VoicePack()
    loudness = {}
    with tempfile.TemporaryDirectory() as cache:
        stages = Stages(prepared_graphs(Path(cache), threads=2), threads=2)
        for name in names:
            draft = stages.plan(tokens, pack.style(name, len(tokens)))
            audio = stages.voice(stages.score(draft, natural_frames(draft.raw)))
            loudness[name] = round(loudness_lufs(audio), 1)
    return loudness


if __name__ == "__main__":
    main()
