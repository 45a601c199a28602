"""Build the four graphs once per machine and keep them in a cache folder.

The folder's name holds the model's hash, the recipe and the runtime's version, so a change of any
of them builds anew, and a finished folder is never touched again. Whether the rewritten graph or
the shipped one is kept is measured here, not guessed from the CPU's name.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.backends.kokoro import model as names
from engine.backends.kokoro.durations import natural_frames
from engine.backends.kokoro.stages import STAGE_NAMES, Floats, Stages, open_session
from engine.backends.kokoro.voices import VoicePack
from engine.errors import EngineFailed

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

RECIPE = 1
"""Counts up whenever the graphs we make change; part of the cache folder's name."""

PROBE = "ðə wˈikli sˈɪŋk stˈɑɹtᵻd ɔn tˈIm."
"""What is spoken to compare two graphs: about two seconds."""

LEVEL_TOLERANCE_DB = 0.5
SPEED_RUNS = 2


def prepared_graphs(cache_dir: Path, *, threads: int) -> Path:
    """The folder with the four graphs, built if it is not there yet. Safe to call from many
    processes.

    Raises:
        EngineFailed: the model is damaged, or `cache_dir` cannot be written.
    """
    import onnxruntime

    runtime = ".".join(onnxruntime.__version__.split(".")[:2])
    folder = cache_dir / f"kokoro-{names.MODEL_SHA256[:12]}-recipe{RECIPE}-ort{runtime}"
    if folder.is_dir():
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f"{folder.name}.lock"):
            if not folder.is_dir():  # else another process built it while we waited
                _build(folder, threads=threads)
    except OSError as error:
        raise EngineFailed(
            f"the voice's graphs cannot be kept in {cache_dir} ({error}); "
            "they need about 100 MB in a folder that can be written"
        ) from error
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # falls with the process, so none is ever stale
        yield


def _build(folder: Path, *, threads: int) -> None:
    started = time.monotonic()
    log.info("voice preparation started", extra={"folder": str(folder)})
    import onnx

    from engine.backends.kokoro.graph import add_outputs
    from engine.backends.kokoro.rewrite import rewrite

    shipped = onnx.load_from_string(names.model_bytes())
    faster = onnx.ModelProto()
    faster.CopyFrom(shipped)
    done = rewrite(faster)
    log.info("voice graph rewritten", extra={"places": dict(done)})
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        _cut_into(temporary, faster)
        add_outputs(shipped, [names.DURATIONS])
        verdict = _compare(temporary, shipped, threads=threads)
        if verdict["graph"] == "shipped":
            _cut_into(temporary, shipped)
        _write(temporary / "verdict.json", json.dumps(verdict, indent=1).encode())
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already if it was renamed
    log.info(
        "voice prepared",
        extra={"seconds": round(time.monotonic() - started, 1), **verdict},
    )


def _cut_into(folder: Path, model: onnx.ModelProto) -> None:
    from engine.backends.kokoro.graph import cut

    token_features: Mapping[str, list[int | None] | None] = {
        names.DURATIONS: [1, None],
        names.TOKEN_PROSODY: None,
        names.TOKEN_SOUND: None,
    }
    frame_features: Mapping[str, list[int | None] | None] = {
        names.FRAME_SOUND: [1, 512, None],
        names.F0: [1, 1, None],
        names.ENERGY: [1, 1, None],
        names.SOURCE: [1, 22, None],
    }
    plan_outputs = [names.RAW_DURATIONS, names.DURATIONS, names.TOKEN_PROSODY, names.TOKEN_SOUND]
    parts = {
        "plan": cut(model, {}, plan_outputs),
        "prosody": cut(model, token_features, [names.F0, names.ENERGY, names.FRAME_SOUND]),
        "source": cut(model, {names.F0: [1, 1, None]}, [names.SOURCE]),
        "voice": cut(model, frame_features, [names.AUDIO]),
    }
    for name in STAGE_NAMES:
        _write(folder / f"{name}.onnx", parts[name].SerializeToString())


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _compare(folder: Path, shipped: onnx.ModelProto, *, threads: int) -> dict[str, Any]:
    """Is the rewritten graph right, and is it the faster one here?"""
    tokens = probe_tokens()
    style = VoicePack().style("af_heart", len(tokens))
    stages = Stages(folder, threads=threads)
    whole = open_session(shipped.SerializeToString(), threads=threads)
    feeds = {
        "tokens": np.array([[0, *tokens, 0]], np.int64),
        "style": style,
        "speed": np.ones(1, np.float32),
    }

    def new() -> tuple[Floats, Floats]:
        draft = stages.plan(tokens, style)
        frames = natural_frames(draft.raw)
        return stages.voice(stages.score(draft, frames)), frames.astype(np.float32)

    def old() -> tuple[Floats, Floats]:
        audio, frames = whole.run([names.AUDIO, names.DURATIONS], feeds)
        return audio, frames.ravel()

    audio_new, frames_new = new()
    audio_old, frames_old = old()
    new_s = old_s = float("inf")
    for _ in range(SPEED_RUNS):  # alternating, so that a busy moment hits both
        new_s, old_s = min(new_s, _seconds(new)), min(old_s, _seconds(old))
    off_db = abs(_level_db(audio_new) - _level_db(audio_old))
    right = bool(np.array_equal(frames_new, frames_old)) and off_db <= LEVEL_TOLERANCE_DB
    if not right:
        log.warning("rewritten voice graph differs from the shipped one, which is used instead")
    return {
        "graph": "rewritten" if right and new_s <= old_s else "shipped",
        "right": right,
        "rewritten_s": round(new_s, 3),
        "shipped_s": round(old_s, 3),
    }


def probe_tokens() -> list[int]:
    """Ids of PROBE."""
    return [names.vocabulary()[char] for char in PROBE]


def _seconds(run: Any) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _level_db(audio: Floats) -> float:
    """RMS in dBFS; NaN or infinity if any sample is."""
    return float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-12))
