"""What is kept for a request while it is spoken."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.backends.kokoro.planner import Prepared
from engine.backends.kokoro.stages import Score
from engine.base import SAMPLE_RATE_HZ, Sentence

Floats = npt.NDArray[np.float32]
Frames = npt.NDArray[np.int64]


class Share(NamedTuple):
    """What one sentence gets of the whole length, in samples."""

    speech: int
    pause: int


class Mark(NamedTuple):
    """Where a chunk belongs; see `engine.base.AudioChunk`."""

    first: bool = True
    last: bool = True
    live: bool = True
    kept: bool = True


@dataclass(slots=True)
class Take:
    """One sentence, ready to be decoded.

    Attributes:
        sentence: which one.
        frames: per token, for each of its lines.
        scores: one a line; empty for hibari, which has no such stage.
        share: its length; audio is cut to it.
        windows: yields float sound while it is given out in windows.
        given: samples given out that way so far.
    """

    sentence: Sentence
    frames: list[Frames]
    scores: list[Score]
    share: Share
    windows: Iterator[Floats]
    given: int = 0


@dataclass(slots=True)
class Job:
    """State of an utterance.

    Attributes:
        on_air: the sentence that is being given out in windows, if any.
        owed: sentences given out in windows whose whole decode is still to be made.
        raw: natural durations of each sentence's lines, collected before a length is shared out.
        shares: of each sentence, once known; empty without a wanted length.
        sound: samples made for listeners so far.
        began: when the first of them was made (monotonic seconds); None before.
    """

    on_air: Take | None = None
    owed: deque[Take] = field(default_factory=deque)
    raw: list[list[Floats]] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    sound: int = 0
    began: float | None = None

    def lead_s(self, now: float) -> float:
        """Sound a listener has ahead who began to listen with the first chunk."""
        if self.began is None:
            return 0.0
        return max(0.0, self.sound / SAMPLE_RATE_HZ - (now - self.began))


def prepared(sentence: Sentence) -> Prepared:
    """The planner's part of a sentence."""
    detail = sentence.detail
    assert isinstance(detail, Prepared)
    return detail
