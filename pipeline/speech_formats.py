"""Samples into the formats of `POST /v1/audio/speech`, piece by piece, with nothing to seek in."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import av
import numpy as np

from engine.base import SAMPLE_RATE_HZ
from streaming.renditions import wav_header

SpeechFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]

MEDIA_TYPES: dict[SpeechFormat, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": f"audio/pcm;rate={SAMPLE_RATE_HZ};channels=1",
}

_SHAPES: dict[SpeechFormat, tuple[str, str, int, dict[str, str]]] = {
    # container, codec, bit rate, options of the container
    "mp3": ("mp3", "libmp3lame", 96_000, {"write_xing": "0", "id3v2_version": "0"}),
    "opus": ("ogg", "libopus", 48_000, {"page_duration": "200000"}),
    "aac": ("adts", "aac", 96_000, {}),
    "flac": ("flac", "flac", 0, {}),
}


class Writer(Protocol):
    """Takes samples and gives the bytes that they complete."""

    def add(self, pcm: bytes) -> bytes:
        """Take s16le samples at 24 kHz, mono."""

    def end(self) -> bytes:
        """Give what is left; nothing is added after it."""


def make_writer(form: SpeechFormat) -> Writer:
    """A writer of one file of that format."""
    if form == "pcm":
        return _Plain(b"")
    if form == "wav":
        return _Plain(wav_header(None))
    return _Encoded(*_SHAPES[form])


class _Plain:
    """Samples as they are, after a head."""

    def __init__(self, head: bytes) -> None:
        self._head = head

    def add(self, pcm: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + pcm

    def end(self) -> bytes:
        return self.add(b"")


class _Encoded:
    def __init__(self, container: str, codec: str, bit_rate: int, options: dict[str, str]) -> None:
        self._sink = _Sink()
        options = {"flush_packets": "1", **options}
        self._container: Any = av.open(self._sink, "w", format=container, options=options)
        stream: Any = self._container.add_stream(codec, rate=SAMPLE_RATE_HZ, layout="mono")
        self._stream = stream
        if bit_rate:
            stream.bit_rate = bit_rate
        self._samples = 0

    def add(self, pcm: bytes) -> bytes:
        frame: Any = av.AudioFrame.from_ndarray(
            np.frombuffer(pcm, "<i2")[None, :], format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, self._samples
        self._samples += len(pcm) // 2
        self._container.mux(self._stream.encode(frame))
        return self._sink.take()

    def end(self) -> bytes:
        if self._samples:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take()


class _Sink:
    """A file that can only be written, so that no muxer plans to come back."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, part: bytes) -> int:
        """Called by the muxer."""
        self._parts.append(bytes(part))
        return len(part)

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken
