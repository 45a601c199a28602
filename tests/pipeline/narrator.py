"""Speaks sessions by hand, so that a test decides when and what."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from engine.backends.tone import Tone, decode, sentence_code
from engine.base import SpeechRequest, Turn
from engine.engine import Engine
from pipeline import audio
from streaming.session import LiveSession
from tests.pipeline.studio import Studio

SENTENCES = [f"This is sentence number {n} of them." for n in range(6)]
CODES = [sentence_code(text) for text in SENTENCES]


class Narrator:
    """The worker of one session of `studio`.

    Attributes:
        sid, token: the session, and what opens it.
    """

    def __init__(self, studio: Studio) -> None:
        self.sid, self.token = studio.accept(" ".join(SENTENCES))
        self._encoder = audio.Encoder()
        self._live = audio.LiveEncoder(self._encoder)
        self.session = LiveSession.create(
            studio.services.chunks, self.sid, 1, meta={"title": "By hand", "lang": "en"}
        )

    def close(self) -> None:
        self._encoder.close()

    def say(self, *segs: int, part: float = 1.0) -> None:
        """Speak sentences; of the last one only a part, if so wanted."""
        for seg in segs:
            is_whole = part == 1.0 or seg != segs[-1]
            frames = self._live.push(sound_of(SENTENCES[seg]), first=True, last=True)
            if not is_whole:
                frames = frames[: int(len(frames) * part)]
            self.session.sentence(seg, SENTENCES[seg])
            for frame in frames:
                self.session.audio(
                    seg,
                    frame.dur_ticks,
                    frame.packets,
                    frame.pcm,
                    first=frame.first,
                    last=frame.last and is_whole,
                )

    def cut(self, seg: int, why: Any = "retry") -> None:
        self._live = audio.LiveEncoder(self._encoder)
        self.session.cut(seg, why)


@lru_cache
def sound_of(text: str) -> audio.Pcm:
    with Engine(Tone()) as engine:
        chunks = list(engine.speak(SpeechRequest(turns=(Turn(text),))))
    return np.concatenate([chunk.pcm for chunk in chunks])


def codes_in(body: bytes) -> list[int]:
    """The sentences that are heard in a file."""
    return decode(audio.decode(body))


def without_echo(codes: list[int]) -> list[int]:
    """Codes as if no sentence had been interrupted, maybe within its code, and said again."""
    whole = [one for one in codes if one >= 0]
    return [one for n, one in enumerate(whole) if whole[n - 1 : n] != [one]]
