"""Sound as bytes: Opus frames for listeners, finished recordings, FLAC for what must not be lost.

All PCM is mono int16 at 24 kHz. A sentence is padded to a whole number of 20 ms packets
(`pad_to_packet`), both on its way to listeners and into the recording, so the two timelines agree.

Same PCM and same `spec_hash`, same bytes: an attempt that goes on after a crash, or a second worker
that finishes the same episode, makes the very objects that are there already. Hence bit-exact
flags, an Ogg serial drawn from the hash, no dates in tags, and the library's version in
`AUDIO_PROFILE`, which is part of the hash.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, ParamSpec, TypeVar, cast

import av
import numpy as np
from av.audio.stream import AudioStream

from engine.base import SAMPLE_RATE_HZ, Pcm
from pipeline.captions import ChapterMark, timestamp
from pipeline.errors import PipelineError

P = ParamSpec("P")
R = TypeVar("R")

Format = Literal["opus", "mp3", "wav"]

PACKET_SAMPLES = SAMPLE_RATE_HZ // 50
"""20 ms."""

FRAME_SAMPLES = SAMPLE_RATE_HZ // 5
"""200 ms: what one live frame holds."""

FIRST_FRAME_SAMPLES = SAMPLE_RATE_HZ * 8 // 100
"""80 ms: what the first frame of a stream holds at least, unless its sentence is shorter."""

TICKS_PER_SAMPLE = 48_000 // SAMPLE_RATE_HZ

CONTENT_TYPES: dict[Format, str] = {"opus": "audio/ogg", "mp3": "audio/mpeg", "wav": "audio/wav"}

AUDIO_PROFILE = {
    "opus": "libopus audio vbr 48 kb/s 24 kHz mono",
    "mp3": "libmp3lame cbr 128 kb/s 24 kHz mono",
    "wav": "s16le 24 kHz mono",
    "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
}
"""What decides the bytes of a recording besides its PCM; part of `spec_hash`."""

_LIVE_BIT_RATE = 24_000
_TOLERANCE_MS = 50
_ISO_639_2 = {
    "de": "deu",
    "en": "eng",
    "es": "spa",
    "fr": "fra",
    "hi": "hin",
    "it": "ita",
    "ja": "jpn",
    "pt": "por",
    "zh": "zho",
}


class AudioBroken(PipelineError):
    """Sound cannot be encoded or decoded, or a finished file is not what went in."""


# --- threads


class Encoder:
    """Two threads: live frames are encoded on one, recordings and their checks on the other.

    However long a recording, a live frame never waits behind it; however many episodes, encoding
    takes no more than two cores, and where the system lets us, recordings yield to the voice.
    """

    def __init__(self) -> None:
        self._live = ThreadPoolExecutor(1, thread_name_prefix="encode-live")
        self._file = ThreadPoolExecutor(
            1, thread_name_prefix="encode-file", initializer=_yield_to_others
        )

    def live(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Do it next to other live frames, in the order of calls."""
        return self._live.submit(work, *args, **kwargs)

    def file(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Do it next to other recordings, in the order of calls."""
        return self._file.submit(work, *args, **kwargs)

    def close(self) -> None:
        """Finish what was asked for and end the threads."""
        self._live.shutdown()
        self._file.shutdown()


def _yield_to_others() -> None:
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


# --- live


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """About 200 ms of one sentence, as it goes to listeners.

    Attributes:
        packets: Opus, 20 ms each.
        pcm: the same sound, s16le.
        dur_ticks: length in 1/48000 s.
        first, last: whether the sentence begins or ends here.
    """

    packets: tuple[bytes, ...]
    pcm: bytes
    dur_ticks: int
    first: bool
    last: bool


class LiveEncoder:
    """One stream of Opus; its state runs on over sentences. A new epoch takes a new object.

    libopus answers each 20 ms with one packet at once, so packet k is the k-th 20 ms, decoded
    `skip` samples (of 48 kHz) late: a player drops that many at the start.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._codec: Any = av.CodecContext.create("libopus", "w")
        self._codec.sample_rate = SAMPLE_RATE_HZ
        self._codec.layout = "mono"
        self._codec.format = "s16"
        self._codec.bit_rate = _LIVE_BIT_RATE
        self._codec.options = {"application": "voip", "frame_duration": "20", "vbr": "on"}
        self._codec.open()
        head = self._codec.extradata or b""  # OpusHead, RFC 7845 section 5.1
        self.skip = int.from_bytes(head[10:12], "little")
        self._waiting = np.empty(0, np.int16)
        self._is_new_sentence = True
        self._is_new_stream = True

    def push(self, pcm: Pcm, *, first: bool, last: bool) -> list[LiveFrame]:
        """Take the next chunk of a sentence, give the frames that are full.

        Up to 200 ms wait for the next chunk, at least one sample until `last`, which flushes the
        rest, padded with zeros to a whole packet. The first frame of a stream leaves as soon as
        80 ms are there.

        Args:
            pcm: (samples,) int16 at 24 kHz; may be empty on a bare `last`.
            first: a new sentence begins; what an unfinished one left waiting is dropped.
            last: the sentence ends with this chunk.
        """
        if first:
            self._waiting = np.empty(0, np.int16)
            self._is_new_sentence = True
        self._waiting = np.concatenate([self._waiting, pcm])
        if last:
            self._waiting = pad_to_packet(self._waiting)
        frames = []
        while samples := self._due(last=last):
            piece, self._waiting = self._waiting[:samples], self._waiting[samples:]
            frames.append(self._frame(piece, last=last and not len(self._waiting)))
        return frames

    def _due(self, *, last: bool) -> int:
        """Samples of the next frame, or 0."""
        waiting = len(self._waiting)
        if last:
            return min(waiting, FRAME_SAMPLES)
        enough = FIRST_FRAME_SAMPLES if self._is_new_stream else FRAME_SAMPLES
        if waiting <= enough:  # one sample stays: a bare `last` may follow and needs a frame
            return 0
        return min((waiting - 1) // PACKET_SAMPLES * PACKET_SAMPLES, FRAME_SAMPLES)

    def _frame(self, pcm: Pcm, *, last: bool) -> LiveFrame:
        packets = self._encoder.live(self._encode, pcm).result()
        frame = LiveFrame(
            packets=packets,
            pcm=pcm.astype("<i2").tobytes(),
            dur_ticks=len(pcm) * TICKS_PER_SAMPLE,
            first=self._is_new_sentence,
            last=last,
        )
        self._is_new_sentence = self._is_new_stream = False
        return frame

    def _encode(self, pcm: Pcm) -> tuple[bytes, ...]:
        packets = tuple(bytes(packet) for packet in self._codec.encode(_audio_frame(pcm)))
        assert len(packets) * PACKET_SAMPLES == len(pcm), "libopus held a packet back"
        return packets


def pad_to_packet(pcm: Pcm) -> Pcm:
    """A sentence with zeros at its end, up to a whole number of 20 ms."""
    missing = -len(pcm) % PACKET_SAMPLES
    return np.pad(pcm, (0, missing)) if missing else pcm


# --- recordings


@dataclass(frozen=True, slots=True)
class EncodedRecording:
    """One finished file.

    Attributes:
        format: of the file.
        body: the file.
        duration_ms: of the PCM that went in.
    """

    format: Format
    body: bytes
    duration_ms: int

    @property
    def content_type(self) -> str:
        """Media type of the file."""
        return CONTENT_TYPES[self.format]

    @property
    def size_bytes(self) -> int:
        """Length of the file."""
        return len(self.body)

    @property
    def digest(self) -> str:
        """SHA-256 of the file, hex."""
        return hashlib.sha256(self.body).hexdigest()


class Recording:
    """An episode's sound, encoded while it is spoken, so that the files are ready when it ends.

    Packets are kept and written into their containers at the end, because chapters stand at the
    beginning of a file and are known last; an hour of MP3 takes 58 MB.

    Args:
        encoder: does the work.
        formats: which files to make.
        spec_hash: hex; decides what is random elsewhere.
        title, artist: for players' displays; may be empty.
        lang: ISO 639-1, or empty.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        formats: Sequence[Format] = ("opus", "mp3"),
        spec_hash: str,
        title: str = "",
        artist: str = "",
        lang: str = "",
    ) -> None:
        tags = {"title": title, "artist": artist}
        self._encoder = encoder
        self._samples = 0
        self._work: list[Future[None]] = []
        self._tracks: dict[Format, _Track | _WavTrack] = {}
        for one in formats:
            if one == "opus":
                serial = str(int(spec_hash[:7], 16))
                options = {"fflags": "+bitexact", "serial_offset": serial}
                track = _Track("ogg", "libopus", 48_000, options, {**tags, "language": lang})
                self._tracks[one] = track
            elif one == "mp3":
                options = {"fflags": "+bitexact", "id3v2_version": "3"}
                tags_id3 = {**tags, "language": _ISO_639_2.get(lang, "")}
                self._tracks[one] = _Track("mp3", "libmp3lame", 128_000, options, tags_id3)
            else:
                self._tracks[one] = _WavTrack()

    def add(self, pcm: Pcm) -> None:
        """Append a sentence, padded by `pad_to_packet`; returns before it is encoded."""
        pcm = pcm.copy()
        for track in self._tracks.values():
            self._work.append(self._encoder.file(track.add, pcm, self._samples))
        self._work = [work for work in self._work if not work.done() or work.exception()]
        self._samples += len(pcm)

    def finish(self, chapters: Sequence[ChapterMark] = ()) -> list[EncodedRecording]:
        """Write the files, and read each again to see that it holds what went in.

        Raises:
            AudioBroken: nothing was added, or a file is not whole.
        """
        if not self._samples:
            raise AudioBroken("there is no sound to make a recording of")
        for work in self._work:
            work.result()
        length_ms = self._samples * 1000 // SAMPLE_RATE_HZ
        made = []
        for one, track in self._tracks.items():
            body = self._encoder.file(track.finish, chapters).result()
            self._encoder.file(_check, one, body, track.digest.digest(), length_ms).result()
            made.append(EncodedRecording(one, body, length_ms))
        return made


def _check(name: Format, body: bytes, digest: bytes, length_ms: int) -> None:
    """A file has the length of its PCM and the very packets that were encoded.

    Decoding it would say no more about the file and take a second for each five minutes, which a
    listener who waits for the recording would notice.
    """
    found = hashlib.sha256()
    with _readable(), av.open(io.BytesIO(body), "r") as container:
        found_ms = (container.duration or 0) // 1000
        for packet in container.demux():
            found.update(bytes(packet))
    if abs(found_ms - length_ms) > _TOLERANCE_MS:
        raise AudioBroken(f"{name}: {found_ms} ms of {length_ms} ms arrived in the file")
    if found.digest() != digest:
        raise AudioBroken(f"{name}: the file does not hold what was encoded")


class _Track:
    """One encoder and the packets it gave; `digest` is of their bytes."""

    def __init__(
        self,
        container: str,
        codec: str,
        bit_rate: int,
        options: dict[str, str],
        tags: dict[str, str],
    ) -> None:
        self._file = io.BytesIO()
        self._container: Any = av.open(self._file, "w", format=container, options=options)
        stream = self._container.add_stream(codec, rate=SAMPLE_RATE_HZ, layout="mono")
        self._stream = cast(AudioStream, stream)
        self._stream.bit_rate = bit_rate
        if codec == "libopus":
            self._stream.codec_context.options = {"application": "audio"}
        self._container.metadata.update({key: value for key, value in tags.items() if value})
        self._packets: list[Any] = []
        self.digest = hashlib.sha256()

    def add(self, pcm: Pcm, start: int) -> None:
        self._keep(_audio_frame(pcm, start))

    def finish(self, chapters: Sequence[ChapterMark]) -> bytes:
        self._keep(None)
        if self._container.format.name == "ogg":
            # libavformat writes these itself, but with whole seconds rounded where they should
            # be cut: 0.7 s becomes 00:00:01.700.
            for number, mark in enumerate(chapters):
                name = f"CHAPTER{number:03}"
                self._container.metadata[name] = timestamp(mark.start_ms)
                self._container.metadata[f"{name}NAME"] = mark.title
        elif chapters:
            self._container.set_chapters(
                [
                    {
                        "id": number,
                        "start": mark.start_ms,
                        "end": mark.end_ms,
                        "time_base": Fraction(1, 1000),
                        "metadata": {"title": mark.title},
                    }
                    for number, mark in enumerate(chapters)
                ]
            )
        for packet in self._packets:
            self._container.mux(packet)
        self._packets.clear()
        self._container.close()
        return self._file.getvalue()

    def _keep(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self.digest.update(bytes(packet))
            self._packets.append(packet)


class _WavTrack:
    """The PCM as it came; WAV has no chapters that players show."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.digest = hashlib.sha256()

    def add(self, pcm: Pcm, start: int) -> None:
        self._pieces.append(pcm.astype("<i2").tobytes())
        self.digest.update(self._pieces[-1])

    def finish(self, chapters: Sequence[ChapterMark]) -> bytes:
        return _wav(b"".join(self._pieces))


def _wav(samples: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE_HZ)
        out.writeframes(samples)
    return file.getvalue()


# --- whole pieces


def to_flac(pcm: Pcm) -> bytes:
    """Lossless, about half the size; for sentences that are stored while an episode is spoken."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono")
        for packet in [*stream.encode(_audio_frame(pcm)), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


def from_flac(body: bytes) -> Pcm:
    """What `to_flac` was given.

    Raises:
        AudioBroken: the bytes are no FLAC of ours, or damaged.
    """
    pcm, rate_hz = _decoded(body, rate_hz=None, only="flac")
    if rate_hz != SAMPLE_RATE_HZ:
        raise AudioBroken(f"FLAC of {rate_hz} Hz, expected {SAMPLE_RATE_HZ}")
    return pcm


def decode(body: bytes) -> Pcm:
    """Any audio file as mono int16 at 24 kHz.

    Raises:
        AudioBroken: there is no sound in it, or it is damaged.
    """
    return _decoded(body, rate_hz=SAMPLE_RATE_HZ)[0]


def duration_ms(body: bytes) -> int:
    """Length of an audio file as a player hears it, found by decoding all of it.

    Raises:
        AudioBroken: there is no sound in it, or it is damaged.
    """
    pcm, rate_hz = _decoded(body, rate_hz=None)
    return round(len(pcm) * 1000 / rate_hz)


def _decoded(body: bytes, *, rate_hz: int | None, only: str | None = None) -> tuple[Pcm, int]:
    """Mono PCM and its rate; `rate_hz` None keeps the file's own."""
    pieces = []
    with _readable(), av.open(io.BytesIO(body), "r", format=only) as container:
        if not container.streams.audio:
            raise AudioBroken("there is no sound in this file")
        stream: Any = container.streams.audio[0]
        rate_hz = rate_hz or stream.codec_context.sample_rate
        resampler: Any = av.AudioResampler(format="s16", layout="mono", rate=rate_hz)
        for frame in container.decode(stream):
            pieces += [out.to_ndarray()[0] for out in resampler.resample(frame)]
        pieces += [out.to_ndarray()[0] for out in resampler.resample(None)]
    if not pieces:
        raise AudioBroken("there is no sound in this file")
    return np.concatenate(pieces), rate_hz


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise AudioBroken(f"this is no sound we can read: {error.strerror}") from error


def _audio_frame(pcm: Pcm, start: int = 0) -> Any:
    frame: Any = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
    frame.sample_rate = SAMPLE_RATE_HZ
    frame.pts = start
    return frame
