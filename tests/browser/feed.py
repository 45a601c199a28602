"""Sessions with a known signal: a swept tone per word, spoken on a schedule by a writer thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import av
import numpy as np
import numpy.typing as npt

from streaming.session import LiveSession, Quality

RATE_HZ = 24_000
PACKET_SAMPLES = 480  # 20 ms
CHUNK_PACKETS = 10
CHUNK_MS = 200
CHUNK_TICKS = 9_600

ENGLISH = (
    "The release moved to Thursday.",
    "Mei finishes the import today.",
    "Everyone reviews the open questions.",
    "We meet again on Monday morning.",
)
CHINESE = ("发布改到周四上午。", "小梅今天完成导入。", "大家一起看待定问题。", "周一早上再开会。")


class Encoder:
    """24 kHz samples to 20 ms Opus packets."""

    def __init__(self) -> None:
        self._codec = av.CodecContext.create("libopus", "w")
        self._codec.sample_rate = RATE_HZ
        self._codec.layout = "mono"
        self._codec.format = "s16"
        self._codec.bit_rate = 24_000
        self._codec.options = {"application": "voip", "frame_duration": "20"}

    def packets(self, samples: npt.NDArray[np.int16]) -> list[bytes]:
        """Encode a whole number of 20 ms frames."""
        packets = []
        for block in samples.reshape(-1, PACKET_SAMPLES):
            frame = av.AudioFrame.from_ndarray(block[None], format="s16", layout="mono")
            frame.sample_rate = RATE_HZ
            packets += [bytes(packet) for packet in self._codec.encode(frame)]
        return packets


def tone(first_chunk: int, chunks: int) -> npt.NDArray[np.int16]:
    """(chunks * 4800,) a pitch that tells the place: it rises with each chunk, and never rests."""
    n = np.arange(first_chunk * 4800, (first_chunk + chunks) * 4800)
    hz = 180 + 20 * (n // 4800 % 24)
    return (9000 * np.sin(2 * np.pi * hz * n / RATE_HZ)).astype(np.int16)


@dataclass(frozen=True)
class Sentence:
    """Text and how many 200 ms chunks it takes; its words share the time evenly."""

    text: str
    chunks: int

    def words(self, start_ms: int) -> list[tuple[str, int, int]]:
        spaced = self.text.split()
        words = spaced if len(spaced) > 1 else list(self.text.rstrip("。"))
        each = self.chunks * CHUNK_MS / len(words)
        return [
            (word, round(start_ms + i * each), round(start_ms + (i + 1) * each))
            for i, word in enumerate(words)
        ]


def sentences(texts: Sequence[str] = ENGLISH, *, chunks: int = 8) -> list[Sentence]:
    return [Sentence(text, chunks) for text in texts]


class Writer:
    """Speaks sentences into a session: chunk n is due `n * CHUNK_MS * pace` after the start.

    A sentence whose text is in `sounds` sounds like that, all others like `tone`.
    """

    def __init__(
        self,
        session: LiveSession,
        *,
        pcm: bool = False,
        quality: Quality = "model",
        sounds: Mapping[str, npt.NDArray[np.int16]] | None = None,
    ) -> None:
        self.session = session
        self._sounds = sounds or {}
        self._quality = quality
        self._encoder = Encoder()
        self._pcm = pcm

    def chunks(self, seg: int, sentence: Sentence) -> Iterator[Callable[[], int]]:
        """Yield one call per chunk of `sentence`; the first brings its text, the last its words."""
        start_ms = self.session.dur_ms
        self.session.sentence(seg, sentence.text)
        samples = self._sounds.get(sentence.text)
        if samples is None:
            samples = tone(start_ms // CHUNK_MS, sentence.chunks)
        for i, block in enumerate(samples.reshape(sentence.chunks, -1)):
            packets = self._encoder.packets(block)
            pcm = block.astype("<i2").tobytes() if self._pcm else b""
            first, last = i == 0, i == sentence.chunks - 1
            audio = self.session.audio
            yield partial(audio, seg, CHUNK_TICKS, packets, pcm, first=first, last=last)
            if first:
                self.session.words(seg, sentence.words(start_ms), self._quality)

    def speak(
        self,
        script: Sequence[Sentence],
        *,
        from_seg: int = 0,
        pace: float = 0.5,
        stall: tuple[int, float] | None = None,
        end: bool = True,
    ) -> None:
        """Speak `script`; before chunk `stall[0]` nothing comes for `stall[1]` seconds."""
        due = time.monotonic()
        spoken = 0
        for seg, sentence in enumerate(script, from_seg):
            for chunk in self.chunks(seg, sentence):
                if stall and spoken == stall[0]:
                    due += stall[1]
                time.sleep(max(0.0, due - time.monotonic()))
                chunk()
                spoken += 1
                due += pace * CHUNK_MS / 1000
        if end:
            self.session.end("done")


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
