"""hibari: one English voice, a hundred times faster than speech on one core.

Its graph is used in two parts, so that durations can be set: `plan` ends at the durations, `voice`
takes them as an input. Phonemes, token ids and the 25 ms frame are the same as Kokoro's.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.backends.kokoro.model import FRAME_SAMPLES
from engine.backends.kokoro.stages import open_session

Floats = npt.NDArray[np.float32]
Frames = npt.NDArray[np.int64]

LOUDNESS_LUFS = -26.9

RAW_DURATIONS = "/Div_40_output_0"  # (T,) at speed 1
DURATIONS = "/Clip_output_0"  # (T,) whole frames, at least 1
SPECTRUM = ("lh", "theta", "ln", "lr", "phi", "f0")  # what its signal processing takes, in order


class HibariVoice:
    """The two sessions."""

    def __init__(self, *, threads: int) -> None:
        import onnx

        from engine.backends.kokoro.graph import cut

        path = importlib.resources.files("hibari") / "assets" / "hibari.onnx"
        model = onnx.load_from_string(path.read_bytes())
        plan = cut(model, {}, [RAW_DURATIONS])
        voice = cut(model, {DURATIONS: None}, SPECTRUM)
        self._plan = open_session(plan.SerializeToString(), threads=threads)
        self._voice = open_session(voice.SerializeToString(), threads=threads)

    def plan(self, tokens: Sequence[int]) -> Floats:
        """Raw frames per token, pads included: (T,)."""
        feeds = {"ids": _padded(tokens), "speed": np.ones(1, np.float32)}
        (raw,) = self._plan.run([RAW_DURATIONS], feeds)
        return np.asarray(raw, np.float32).ravel()

    def voice(self, tokens: Sequence[int], frames: Frames, *, seed: int) -> Floats:
        """(600 * sum(frames),) samples; `seed` fixes the breath noise."""
        from hibari import dsp

        feeds = {"ids": _padded(tokens), DURATIONS: frames.astype(np.float32)}
        spectrum = [part[0] for part in self._voice.run(list(SPECTRUM), feeds)]
        audio: Floats = dsp.synth(*spectrum, np.random.default_rng(seed))
        assert len(audio) == FRAME_SAMPLES * int(frames.sum())
        return audio


def _padded(tokens: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array([[0, *tokens, 0]], np.int64)
