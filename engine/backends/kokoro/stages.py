"""Kokoro in four graphs, so that durations and pitch can be edited between them.

    tokens, style -> plan -> durations -> prosody -> F0 -> source -> voice -> audio

`voice` may be fed a stretch of frames; the other three see the whole sentence. There is no random
node
in any of them: the same input gives the same bits, whatever the number of threads.

Shapes: T tokens with pads, F frames of 25 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.backends.kokoro.model import (
    AUDIO,
    DURATIONS,
    ENERGY,
    F0,
    FRAME_SAMPLES,
    FRAME_SOUND,
    RAW_DURATIONS,
    SOURCE,
    TOKEN_PROSODY,
    TOKEN_SOUND,
)

if TYPE_CHECKING:
    import onnxruntime

Floats = npt.NDArray[np.float32]
Frames = npt.NDArray[np.int64]

STAGE_NAMES = ("plan", "prosody", "source", "voice")
VOICED_HZ = 40.0  # below this the F0 curve means "unvoiced"
SOURCE_PER_FRAME = 120


@dataclass(frozen=True, slots=True)
class Draft:
    """A sentence after `plan`.

    Attributes:
        style: (1, 256).
        raw: (T,) frames per token at the natural pace, not rounded.
        prosody, sound: features per token, for the next stage.
    """

    style: Floats
    raw: Floats
    prosody: Floats
    sound: Floats


@dataclass(frozen=True, slots=True)
class Score:
    """A sentence ready to be sung: everything `voice` needs.

    Attributes:
        style: (1, 256).
        frames: (T,) frames per token.
        sound: (1, 512, F).
        f0, energy: (1, 1, 2F).
        source: (1, 22, 120F + 1).
    """

    style: Floats
    frames: Frames
    sound: Floats
    f0: Floats
    energy: Floats
    source: Floats

    @property
    def length(self) -> int:
        """F."""
        return int(self.sound.shape[2])


class Stages:
    """The four sessions. Calls release the GIL while they compute.

    Attributes:
        stop: breaks off what runs from now on; None: nothing does.
    """

    def __init__(self, folder: Path, *, threads: int) -> None:
        self.stop: Stop | None = None
        self._sessions = {
            name: open_session(str(folder / f"{name}.onnx"), threads=threads)
            for name in STAGE_NAMES
        }

    def plan(self, tokens: Sequence[int], style: Floats) -> Draft:
        """Durations and features of a sentence; `tokens` without the pads."""
        raw, prosody, sound = self._run(
            "plan",
            [RAW_DURATIONS, TOKEN_PROSODY, TOKEN_SOUND],
            tokens=np.array([[0, *tokens, 0]], np.int64),
            style=style,
            speed=np.ones(1, np.float32),
        )
        return Draft(style=style, raw=raw.ravel(), prosody=prosody, sound=sound)

    def score(
        self, draft: Draft, frames: Frames, *, pitch: float = 1.0, span: float = 1.0
    ) -> Score:
        """Stretch the tokens to `frames` and draw pitch, energy and the harmonic source.

        Args:
            draft: from `plan`.
            frames: (T,) at least 1 each.
            pitch: multiplies F0.
            span: multiplies F0's distance from its mean over the voiced frames.
        """
        feeds = {
            DURATIONS: frames.astype(np.float32)[None],
            TOKEN_PROSODY: draft.prosody,
            TOKEN_SOUND: draft.sound,
            "style": draft.style,
        }
        f0, energy, sound = self._run("prosody", [F0, ENERGY, FRAME_SOUND], **feeds)
        f0 = _bend(f0, pitch, span)
        (source,) = self._run("source", [SOURCE], **{F0: f0})
        return Score(draft.style, frames, sound, f0, energy, source)

    def voice(self, score: Score, start: int = 0, end: int | None = None) -> Floats:
        """Decode frames `start` to `end`: (600 * (end - start),) samples, full scale 1.

        Raises:
            Stopped: `stop` was called meanwhile.
        """
        last = score.length if end is None else end
        (audio,) = self._run(
            "voice",
            [AUDIO],
            **{
                FRAME_SOUND: score.sound[:, :, start:last],
                F0: score.f0[:, :, 2 * start : 2 * last],
                ENERGY: score.energy[:, :, 2 * start : 2 * last],
                SOURCE: score.source[:, :, SOURCE_PER_FRAME * start : SOURCE_PER_FRAME * last + 1],
                "style": score.style,
            },
        )
        assert len(audio) == FRAME_SAMPLES * (last - start)
        return audio

    def _run(self, stage: str, outputs: list[str], **feeds: Any) -> list[Floats]:
        stop = self.stop
        options = None if stop is None else stop.options
        try:
            results: list[Floats] = self._sessions[stage].run(outputs, feeds, options)
        except Exception:  # the runtime has its own for each kind of fault
            if stop is not None and stop.options.terminate:
                raise Stopped from None
            raise
        return results


class Stopped(Exception):
    """What was computed is not wanted any more."""


class Stop:
    """Breaks off the stage that runs with it, and all that would run with it; for any thread."""

    def __init__(self) -> None:
        import onnxruntime

        self.options = onnxruntime.RunOptions()
        self.options.log_severity_level = 4  # to the runtime a stop is an error

    def __call__(self) -> None:
        self.options.terminate = True


def open_session(model: str | bytes, *, threads: int) -> onnxruntime.InferenceSession:
    """A CPU session that leaves the cores alone while it waits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning pool starves its neighbours on a shared machine, and then itself.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _bend(f0: Floats, pitch: float, span: float) -> Floats:
    if pitch == span == 1.0:
        return f0
    voiced = f0 > VOICED_HZ
    if not voiced.any():
        return f0
    mean = f0[voiced].mean()
    # Never below the threshold: a bent frame must stay voiced.
    bent = np.maximum((mean + (f0 - mean) * span) * pitch, VOICED_HZ + 1.0)
    return np.where(voiced, bent, f0).astype(np.float32)
