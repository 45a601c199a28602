"""A session in other codecs: WAV samples and MP3 frames, made chunk by chunk when asked for.

The bytes of a chunk are a pure function of the log: decoder and encoder start anew before every
chunk, a little earlier than it, on what precedes it there. So any process makes the same bytes, a
player may begin anywhere, what a cut voids can be left out anywhere, and whoever listens to the
same session shares the work. MP3 frames stand on a grid of the session's timeline and use no bit
reservoir; frames of neighbouring chunks fit together like those of one encoder.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt

from streaming.channel import Channel, Slot
from streaming.frames import PCM_RATE_HZ, unpack_packets
from streaming.ogg import PACKET_TICKS, SILENCE
from streaming.tap import body_of, run_up

Samples = npt.NDArray[np.int16]
"""(samples,) mono at 24 kHz."""

Kind = Literal["mp3", "mp3_tail", "wav"]

MP3_BIT_RATE = 64_000
MP3_FRAME = 576  # samples: MPEG-2 layer III
MP3_FRAME_S = MP3_FRAME / PCM_RATE_HZ
CACHE_BYTES = 32 << 20  # an hour of MP3
TICKS_PER_SAMPLE = 2

_MP3_RUN_UP = 4  # frames until the encoder has forgotten how it began
_MP3_TAIL = 4  # frames from the last complete one to the last sound
_MP3_AHEAD = 2 * MP3_FRAME  # samples after the start of a frame that the encoder wants to see first
HALVE_TICKS = 31  # delay of the filter from 48 to 24 kHz


class Renditions:
    """Makes and keeps the bytes of chunks for all HTTP listeners of a process.

    Args:
        cache_bytes: what is kept; what was not asked for the longest goes first.
    """

    def __init__(self, *, cache_bytes: int = CACHE_BYTES) -> None:
        self.made = 0  # chunks, for tests and metrics
        self._cache_bytes = cache_bytes
        self._size_bytes = 0
        self._kept: OrderedDict[tuple[str, int, Kind], bytes] = OrderedDict()
        self._making: dict[tuple[str, int, Kind], asyncio.Future[bytes]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rendition")

    async def of(self, channel: Channel, index: int, kind: Kind) -> bytes:
        """The chunk in slot `index` as MP3 frames, or as s16le samples at 24 kHz.

        `mp3_tail` is what is to follow a chunk after which the sound does not go on.
        """
        key = (channel.sid, channel.slots[index].seq, kind)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        making = self._making.get(key)
        if making is None:
            slot, before = channel.slots[index], run_up(channel, index)
            loop = asyncio.get_running_loop()
            making = loop.run_in_executor(self._thread, _MAKE[kind], slot, before)
            self._making[key] = making
            making.add_done_callback(lambda done: self._keep(key, done))
        # whoever leaves must not take the work from the others
        return await asyncio.shield(making)

    def close(self) -> None:
        """End the thread; what is being made is finished."""
        self._thread.shutdown(cancel_futures=True)

    def _keep(self, key: tuple[str, int, Kind], done: asyncio.Future[bytes]) -> None:
        del self._making[key]
        if done.cancelled() or done.exception():
            return
        self.made += 1
        self._kept[key] = done.result()
        self._size_bytes += len(done.result())
        while self._size_bytes > self._cache_bytes:
            self._size_bytes -= len(self._kept.popitem(last=False)[1])


def wav_samples(slot: Slot, before: Sequence[Slot]) -> bytes:
    """The sound of a chunk as s16le at 24 kHz, exactly as long as the chunk.

    Args:
        before: from `run_up`.
    """
    return _samples(slot, before)[-_length(slot) :].astype("<i2").tobytes()


def mp3_frames(slot: Slot, before: Sequence[Slot]) -> bytes:
    """The MP3 frames that the sound up to the end of a chunk completes.

    Frame k begins with sample k * 576 of the timeline; which frames are a chunk's follows from the
    timeline alone (`frame_span`).

    Args:
        before: from `run_up`.
    """
    return _frames(slot, before, *frame_span(slot))


def mp3_tail(slot: Slot, before: Sequence[Slot]) -> bytes:
    """The MP3 frames that bring out the rest of a chunk after which the sound does not go on."""
    last = frame_span(slot)[1]
    return _frames(slot, before, last, last + _MP3_TAIL)


def frame_span(slot: Slot) -> tuple[int, int]:
    """The MP3 frames of a chunk: from the first up to, and without, the second number.

    An encoder wants to see beyond a frame before it writes it, so these are those whose sound is
    known by the end of the chunk; a chunk's last 48 ms come with the next one.
    """
    begin, end = slot.begin // TICKS_PER_SAMPLE, slot.end // TICKS_PER_SAMPLE
    return _first_frame(begin), _first_frame(end)


def _first_frame(sample: int) -> int:
    """The first frame that is not known when the timeline has come to `sample`."""
    return (sample - _MP3_AHEAD) // MP3_FRAME + 1


def wav_header(size_bytes: int | None) -> bytes:
    """The 44 bytes before `size_bytes` of s16le samples at 24 kHz, mono."""
    riff = 0xFFFF_FFFF if size_bytes is None else size_bytes + 36
    data = 0xFFFF_FFFF if size_bytes is None else size_bytes
    form = struct.pack("<IHHIIHH", 16, 1, 1, PCM_RATE_HZ, 2 * PCM_RATE_HZ, 2, 16)
    return (
        struct.pack("<4sI8s", b"RIFF", riff, b"WAVEfmt ")
        + form
        + struct.pack("<4sI", b"data", data)
    )


def packets_of(slot: Slot) -> list[bytes]:
    """The Opus packets of a chunk; silence has none, so it gets some."""
    if body := body_of(slot):
        return unpack_packets(body)
    return [SILENCE] * max(1, math.ceil((slot.end - slot.begin) / PACKET_TICKS))


def decode(packets: Iterable[bytes]) -> npt.NDArray[np.int16]:
    """What a new decoder makes of Opus packets: mono at 48 kHz, late by `OPUS_SKIP` samples."""
    decoder: Any = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = 48_000, "mono"  # an OpusHead would say so
    frames = [frame for packet in packets for frame in decoder.decode(av.Packet(packet))]
    parts = [frame.to_ndarray().reshape(-1) for frame in frames]
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)


def halve(sound: npt.NDArray[np.int16]) -> Samples:
    """48 kHz to 24 kHz: sample n of the result is that of `sound` at 2 n, `HALVE_TICKS` late."""
    before = np.zeros(2 * HALVE_TICKS, np.int16)
    low = np.convolve(np.concatenate([before, sound]).astype(np.float32), _filter(), "valid")
    return np.clip(np.round(low[::2]), -32768, 32767).astype(np.int16)


def _samples(slot: Slot, before: Sequence[Slot]) -> Samples:
    """The sound of `before` and `slot`, from a decoder that began with the first of them."""
    slots = [*before, slot]
    sound = decode(packet for one in slots for packet in packets_of(one))
    ticks = sum(one.end - one.begin for one in slots)
    return halve(np.pad(sound[:ticks], (0, max(0, ticks - len(sound)))))


def _length(slot: Slot) -> int:
    return (slot.end - slot.begin) // TICKS_PER_SAMPLE


def _filter() -> npt.NDArray[np.float32]:
    """A half-band low-pass."""
    at = np.arange(-HALVE_TICKS, HALVE_TICKS + 1)
    return (np.sinc(at / 2) / 2 * np.kaiser(len(at), 8.0)).astype(np.float32)


def _frames(slot: Slot, before: Sequence[Slot], first: int, last: int) -> bytes:
    """Frames `first` up to `last`, with silence where there is no sound."""
    samples = _samples(slot, before)
    begin = slot.end // TICKS_PER_SAMPLE - len(samples)
    start = (first - _MP3_RUN_UP) * MP3_FRAME
    missing = max(0, begin - start)
    samples = np.pad(samples[max(0, start - begin) :], (missing, _MP3_TAIL * MP3_FRAME))
    return b"".join(_encode_mp3(samples)[_MP3_RUN_UP : _MP3_RUN_UP + last - first])


def _encode_mp3(samples: Samples) -> list[bytes]:
    """All frames of a new encoder, in order."""
    codec: Any = av.CodecContext.create("libmp3lame", "w")
    codec.sample_rate, codec.layout, codec.format = PCM_RATE_HZ, "mono", "s16p"
    codec.bit_rate = MP3_BIT_RATE
    codec.options = {"reservoir": "0"}  # each frame stands alone
    codec.open()
    frames: list[bytes] = []
    for start in range(0, len(samples), MP3_FRAME):
        frame: Any = av.AudioFrame.from_ndarray(
            samples[None, start : start + MP3_FRAME], format="s16p", layout="mono"
        )
        frame.sample_rate, frame.pts = PCM_RATE_HZ, start
        frames += [bytes(packet) for packet in codec.encode(frame)]
    return frames + [bytes(packet) for packet in codec.encode(None)]


_MAKE: dict[Kind, Callable[[Slot, Sequence[Slot]], bytes]] = {
    "mp3": mp3_frames,
    "mp3_tail": mp3_tail,
    "wav": wav_samples,
}
