"""Coded beeps instead of speech: the deterministic twin for tests, drills and benchmarks.

Each sentence begins with a code that says which sentence it is, and goes on as a soft tone for as
long as a reader would take. `decode` hears the codes in a finished recording, also after Opus at
24 kb/s or MP3, so a drill can prove that every sentence is there once and in order.

A code is a marker (2600 Hz, 60 ms), 20 ms of silence and six symbols of 40 ms, each a pair of
tones (one of four low, one of four high ones: 4 bits), then 20 ms of silence: 16 bits of code, 8 of
check.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from engine.base import (
    NEUTRAL,
    SAMPLE_RATE_HZ,
    AudioChunk,
    Backend,
    BackendInfo,
    Pcm,
    Plan,
    Sentence,
    SpeechRequest,
    Turn,
    Voice,
    WordTiming,
)
from engine.errors import BadRequest, UnknownVoice
from engine.text import HAN, KANA, detect_lang, split_sentences
from engine.utterance import Utterance

_VOICES_HZ = {"tone_a": 220, "tone_b": 277, "tone_c": 330, "tone_d": 392}
_MARKER_HZ = 2600
_LOW_HZ = (500, 600, 700, 800)
_HIGH_HZ = (1200, 1400, 1600, 1800)
_MARKER, _GAP, _SYMBOL, _SYMBOLS = 1440, 480, 960, 6  # samples, and their number
_CODE = _MARKER + _GAP + _SYMBOLS * _SYMBOL + _GAP
_TAIL = 720  # silence after each sentence, so that codes never touch
_SHORTEST = _CODE + _TAIL
_CHUNK = SAMPLE_RATE_HZ // 5
_LEVEL = 9000.0
_WIDE_MS, _NARROW_MS = 60, 65  # natural length of a wide and a narrow character
_WORD = re.compile(rf"[{HAN}{KANA}]|[^\W{HAN}{KANA}]+(?:['’.,:\-][^\W{HAN}{KANA}]+)*")
_FAULT = re.compile(r"\[\[(crash|hang|fail)\]\]")


def sentence_code(text: str) -> int:
    """0 to 65535, the code of a sentence; white space does not matter."""
    return zlib.crc32("".join(text.split()).encode()) & 0xFFFF


class Tone(Backend):
    """Beeps.

    Args:
        pace: `instant` makes a sentence per step as fast as the CPU can; `paced` takes its time and
            makes 200 ms per step.
        rtf: real-time factor of `paced`, for all utterances of a step together: 0.25 makes four
            seconds of each in one second.
        sentence_ms: length of every sentence at rate 1; None goes by its text.
        faults: obey `[[crash]]` (SIGKILL to this process), `[[hang]]` (until `unhang` is set) and
            `[[fail]]` (an exception) in the text.
        slots: utterances in flight, all of them advanced by each step.
    """

    def __init__(
        self,
        *,
        pace: Literal["instant", "paced"] = "instant",
        rtf: float = 0.25,
        sentence_ms: int | None = None,
        faults: bool = False,
        slots: int = 8,
    ) -> None:
        if pace not in ("instant", "paced"):
            raise BadRequest(f"pace is 'instant' or 'paced', not '{pace}'", field="pace")
        if not 0 <= rtf <= 100 or slots < 1:
            raise BadRequest("rtf goes from 0 to 100, slots from 1", field="engine")
        self.unhang = threading.Event()
        self._chunk = _CHUNK if pace == "paced" else sys.maxsize
        self._rtf = rtf if pace == "paced" else 0.0
        self._sentence_ms = sentence_ms
        self._faults = faults
        self._info = BackendInfo("tone", f"1-{sentence_ms or 'text'}", slots=slots, batch=slots)

    def info(self) -> BackendInfo:
        return self._info

    def voices(self) -> list[Voice]:
        return [Voice(name, f"Tone at {hz} Hz", "en") for name, hz in _VOICES_HZ.items()]

    def plan(self, request: SpeechRequest) -> Plan:
        pauses, lengths, places = [], [], []
        for index, turn in enumerate(request.turns):
            voice = _voice(turn.voice)
            lang = detect_lang(turn.text) if turn.lang in ("", "auto") else turn.lang
            pause_ms = turn.pause_before_ms
            for span in split_sentences(turn.text, lang):
                places.append((index, span, voice, lang))
                pauses.append(pause_ms)
                lengths.append(self._length(span.text, turn.controls.rate))
                pause_ms = 0
        if request.target_s is not None:
            lengths = _fit(lengths, sum(pauses), request.target_s)
        sentences = tuple(
            Sentence(
                seg=seg,
                turn=index,
                text=span.text,
                span=(span.start, span.end),
                voice=voice,
                lang=lang,
                pause_before_ms=pauses[seg],
                estimated_ms=round(lengths[seg] * 1000 / SAMPLE_RATE_HZ),
                detail=lengths[seg],
            )
            for seg, (index, span, voice, lang) in enumerate(places)
        )
        return Plan(sentences, degraded=_degraded(request.turns))

    def step(self, batch: Sequence[Utterance]) -> None:
        if self._faults:
            for utterance in batch:
                self._obey(utterance)
        chunks = [self._next_chunk(utterance) for utterance in batch]
        if self._rtf:
            samples = max(len(chunk.pcm) for chunk in chunks)
            _linger(samples / SAMPLE_RATE_HZ * self._rtf, batch)
        for utterance, chunk in zip(batch, chunks, strict=True):
            utterance.emit(chunk)
            if chunk.last:
                utterance.next_seg += 1
                if utterance.next_seg >= len(utterance.plan.sentences):
                    utterance.finish()

    def _next_chunk(self, utterance: Utterance) -> AudioChunk:
        """The next piece of the sentence that the utterance is at."""
        job = utterance.state
        if not isinstance(job, _Job) or job.sentence.seg != utterance.next_seg:
            job = utterance.state = _Job(utterance.plan.sentences[utterance.next_seg])
        pause = job.sentence.pause_before_ms * SAMPLE_RATE_HZ // 1000
        pcm, at = job.pcm(pause), job.at
        end = min(len(pcm), at + self._chunk + (0 if at else pause))
        job.at = end
        return AudioChunk(
            seg=job.sentence.seg,
            pcm=pcm[at:end],
            first=at == 0,
            last=end == len(pcm),
            pause_ms=0 if at else job.sentence.pause_before_ms,
            words=() if at else _words(job.sentence, len(pcm) - pause),
        )

    def _length(self, text: str, rate: float) -> int:
        """Samples of a sentence."""
        if self._sentence_ms is not None:
            natural_ms: float = self._sentence_ms
        else:
            wide = sum(char >= "\u2e80" for char in text)
            natural_ms = wide * _WIDE_MS + (len(text) - wide) * _NARROW_MS
        return max(_SHORTEST, round(natural_ms / rate * SAMPLE_RATE_HZ / 1000))

    def _obey(self, utterance: Utterance) -> None:
        fault = _FAULT.search(utterance.plan.sentences[utterance.next_seg].text)
        if fault is None:
            return
        if fault[1] == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault[1] == "hang":
            self.unhang.wait()
        if fault[1] == "fail":
            raise RuntimeError("the text asked for a failure")


@dataclass(slots=True)
class _Job:
    """A sentence being spoken, and how far it is."""

    sentence: Sentence
    at: int = 0
    _pcm: Pcm | None = None

    def pcm(self, pause: int) -> Pcm:
        if self._pcm is None:
            length = self.sentence.detail
            assert isinstance(length, int)
            hz = _VOICES_HZ[self.sentence.voice]
            self._pcm = _waveform(sentence_code(self.sentence.text), length, hz, pause)
        return self._pcm


# Planning -------------------------------------------------------------------------------------


def _voice(name: str) -> str:
    name = name or "tone_a"
    if name not in _VOICES_HZ:
        near = get_close_matches(name, _VOICES_HZ, n=3, cutoff=0.0)
        raise UnknownVoice(f"no voice '{name}' here; there are: {', '.join(near)}", field="voice")
    return name


def _degraded(turns: Sequence[Turn]) -> tuple[str, ...]:
    """Controls that beeps do not have."""
    asked = (
        name
        for name in ("pitch", "range", "gain_db", "manner", "emotion")
        if any(getattr(t.controls, name) != getattr(NEUTRAL, name) for t in turns)
    )
    return tuple(asked)


def _fit(lengths: Sequence[int], pauses_ms: int, target_s: float) -> list[int]:
    """Stretch sentences so that all of them and their pauses last `target_s` to the sample."""
    wanted = round(target_s * SAMPLE_RATE_HZ) - pauses_ms * SAMPLE_RATE_HZ // 1000
    spare = wanted - _SHORTEST * len(lengths)
    if spare < 0:
        least_s = target_s - spare / SAMPLE_RATE_HZ
        raise BadRequest(f"too short for this text: at least {least_s:.2f} s", field="target_s")
    edges = np.cumsum([0, *lengths], dtype=np.float64)
    if edges[-1] == 0:
        return []
    shares = np.diff(np.round(edges * (spare / edges[-1]))).astype(int)
    return [_SHORTEST + int(share) for share in shares]


def _words(sentence: Sentence, samples: int) -> tuple[WordTiming, ...]:
    """Words spread evenly by their characters."""
    text, at = sentence.text, sentence.span[0]
    ms = samples * 1000 / SAMPLE_RATE_HZ / max(1, len(text))
    return tuple(
        WordTiming(
            m.group(), int(m.start() * ms), int(m.end() * ms), (at + m.start(), at + m.end())
        )
        for m in _WORD.finditer(text)
    )


def _linger(seconds: float, batch: Sequence[Utterance]) -> None:
    """Take as long as a model would; look up now and then whether anybody still listens."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not all(u.is_done for u in batch):
        time.sleep(min(left, 0.02))


# Sound ----------------------------------------------------------------------------------------


def _tone(samples: int, *frequencies_hz: int, level: float = _LEVEL) -> Pcm:
    """Sines with 4 ms fades."""
    t = np.arange(samples) / SAMPLE_RATE_HZ
    wave = sum((np.sin(2 * np.pi * hz * t) for hz in frequencies_hz), np.zeros(samples))
    fade = min(96, samples // 2)
    ramp = np.linspace(0, 1, fade, endpoint=False)
    wave[:fade] *= ramp
    wave[samples - fade :] *= ramp[::-1]
    return (wave * (level / len(frequencies_hz))).astype(np.int16)


_START = np.concatenate([_tone(_MARKER, _MARKER_HZ), np.zeros(_GAP, np.int16)])
_TONES = [_tone(_SYMBOL, _LOW_HZ[n >> 2], _HIGH_HZ[n & 3]) for n in range(16)]


@lru_cache(maxsize=len(_VOICES_HZ))
def _hum(hz: int) -> Pcm:
    """Twenty seconds of a voice's soft tone; whole periods, so it repeats without a click."""
    t = np.arange(20 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    return (np.sin(2 * np.pi * hz * t) * 0.25 * _LEVEL).astype(np.int16)


@lru_cache(maxsize=256)
def _waveform(code: int, length: int, hz: int, pause: int) -> Pcm:
    """(pause + length,) a sentence: silence, code, hum, silence; read-only because shared."""
    pcm = np.zeros(pause + length, np.int16)
    symbols = (_TONES[nibble] for nibble in _nibbles(code))
    pcm[pause : pause + _CODE - _GAP] = np.concatenate((_START, *symbols))
    body = pcm[pause + _CODE : pause + length - _TAIL]
    hum = _hum(hz)
    body[:] = hum[: len(body)] if len(body) <= len(hum) else np.resize(hum, len(body))
    pcm.flags.writeable = False
    return pcm


def _nibbles(code: int) -> list[int]:
    """The six symbols of a code, its check last."""
    word = code << 8 | zlib.crc32(code.to_bytes(2, "big")) & 0xFF
    return [word >> shift & 15 for shift in range(20, -1, -4)]


# Listening ------------------------------------------------------------------------------------

UNREADABLE = -1

_FRAME, _HOP = 480, 120  # 20 ms: all our frequencies are whole multiples of its 50 Hz
_BLOCK = 60 * SAMPLE_RATE_HZ
_WINDOW = np.hanning(_FRAME + 1)[:-1]
_QUIET = 200.0  # a marker below this amplitude is noise


def decode(pcm: npt.NDArray[np.int16]) -> list[int]:
    """The sentence codes in a recording, in the order heard.

    Args:
        pcm: (samples,) mono at SAMPLE_RATE_HZ.

    Returns:
        Codes as `sentence_code` gives them; UNREADABLE for a marker whose code is torn or damaged.
    """
    sound = np.asarray(pcm, np.float64)
    return [_read_code(sound, centre) for centre in _markers(sound)]


def _markers(sound: npt.NDArray[np.float64]) -> Iterator[int]:
    """Sample positions of marker centres: where nearly all energy is at the marker's frequency."""
    hits: list[int] = []
    for at in range(0, len(sound), _BLOCK):
        block = sound[at : at + _BLOCK + _FRAME - _HOP]
        if len(block) >= _FRAME:
            hits += [at + hit for hit in _marker_frames(block)]
    run: list[int] = []
    for hit in [*hits, len(sound) + 10 * _MARKER]:
        if run and hit - run[-1] > 2 * _HOP:
            if len(run) >= 4:
                yield (run[0] + run[-1] + _FRAME) // 2
            run = []
        run.append(hit)


def _marker_frames(block: npt.NDArray[np.float64]) -> list[int]:
    """Starts of the frames that hold the marker and little else."""
    frames = np.lib.stride_tricks.sliding_window_view(block, _FRAME)[::_HOP]
    squares = np.lib.stride_tricks.sliding_window_view(block**2, _FRAME)[::_HOP]
    turns = np.arange(_FRAME) * (2 * np.pi * _MARKER_HZ / SAMPLE_RATE_HZ)
    marker = (frames @ (_WINDOW * np.cos(turns))) ** 2 + (frames @ (_WINDOW * np.sin(turns))) ** 2
    # For a pure tone under a Hann window the power of its bin is a third of n times the energy.
    share = 3 * marker / (_FRAME * (squares @ _WINDOW**2) + 1)
    loud = marker > (_QUIET * _FRAME / 4) ** 2
    return [int(n) * _HOP for n in np.flatnonzero(loud & (share > 0.7))]


def _read_code(sound: npt.NDArray[np.float64], marker: int) -> int:
    """The code behind a marker."""
    first = marker + _MARKER // 2 + _GAP + (_SYMBOL - _FRAME) // 2
    word = 0
    for n in range(_SYMBOLS):
        frame = sound[first + n * _SYMBOL : first + n * _SYMBOL + _FRAME]
        if len(frame) < _FRAME:
            return UNREADABLE
        power = np.abs(np.fft.rfft(frame * _WINDOW)) ** 2
        word = word << 4 | _loudest(power, _LOW_HZ) << 2 | _loudest(power, _HIGH_HZ)
    code = word >> 8
    return code if _nibbles(code)[-2:] == [word >> 4 & 15, word & 15] else UNREADABLE


def _loudest(power: npt.NDArray[np.float64], frequencies_hz: Sequence[int]) -> int:
    return int(np.argmax([power[hz * _FRAME // SAMPLE_RATE_HZ] for hz in frequencies_hz]))
