"""The whole contract between whoever wants speech and whoever makes it.

A caller hands a `SpeechRequest` (turns of text, each with a voice) to `engine.engine.Engine` and
iterates over `AudioChunk`s. A `Backend` cuts the request into sentences once (`plan`), then
advances utterances step by step. The sentence is the unit of work, of retry and of storage: chunk
`seg` n always belongs to the n-th sentence of the plan, on every machine and in every attempt, so a
caller can go on at sentence n.

Units: audio is mono int16 at `SAMPLE_RATE_HZ`; times are milliseconds unless a name says otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from engine.utterance import Utterance

SAMPLE_RATE_HZ = 24_000

Pcm = npt.NDArray[np.int16]
"""(samples,) mono at SAMPLE_RATE_HZ."""

TimingQuality = Literal["model", "align", "estimate"]


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice a caller can ask for by `id`.

    Attributes:
        id: `af_heart`, `zf_xiaoxiao`, ...; unique within one engine.
        name: for people.
        lang: primary language, ISO 639-1 (`en`, `zh`, `ja`, ...).
        gender: `female`, `male` or empty.
        grade: quality grade as its makers publish it (`A` ... `F+`), or empty.
    """

    id: str
    name: str
    lang: str
    gender: str = ""
    grade: str = ""


@dataclass(frozen=True, slots=True)
class Controls:
    """How something is said. The neutral value of each field changes nothing.

    Attributes:
        rate: 0.5 to 2.0, times the natural pace. pitch: 0.75 to 1.33, times the natural fundamental
        frequency. range: 0.5 to 1.5, pitch movement around its mean. gain_db: -12 to 12. manner: a
        preset (`neutral`, `calm`, `serious`, `lively`, `urgent`, `sad`) or a voice id whose prosody
        is borrowed. emotion: free text or a name, for engines that model emotion; others answer
        with the nearest
            manner and report it in `Plan.degraded`.
    """

    rate: float = 1.0
    pitch: float = 1.0
    range: float = 1.0
    gain_db: float = 0.0
    manner: str = "neutral"
    emotion: str = ""


NEUTRAL = Controls()


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of text in one voice.

    Attributes:
        text: what is spoken; may hold several sentences. Inline readings: `字[pin1yin1]`,
        `[word](/phonemes/)`. voice: a voice id, a blend (`af_heart:0.6,af_bella:0.4`), or empty for
        the default of `lang`. lang: `en`, `zh`, `ja`, ..., or `auto`. pause_before_ms: silence
        before the first sentence of the turn. controls: how it is said.
    """

    text: str
    voice: str = ""
    lang: str = "auto"
    pause_before_ms: int = 0
    controls: Controls = NEUTRAL


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """Everything that decides the sound.

    Attributes:
        turns: in speaking order. live: somebody listens while it is spoken, so the first sound
        should come early. first_seg: sentence to begin at (0 for the whole request); earlier ones
        are planned, not spoken. target_s: wanted length in seconds of the whole request, or None
        for the natural one. seed: for engines that sample; same request and seed, same sound.
        force: accept a duration ratio outside the sensible range.
    """

    turns: tuple[Turn, ...]
    live: bool = False
    first_seg: int = 0
    target_s: float | None = None
    seed: int = 0
    force: bool = False


@dataclass(frozen=True, slots=True)
class Sentence:
    """One planned sentence.

    Attributes:
        seg: its number, from 0.
        turn: index of its turn in the request.
        text: as a caption shows it (the source's own words).
        span: (start, end) character offsets into the turn's text.
        voice: resolved voice id or blend.
        lang: resolved language, never `auto`.
        pause_before_ms: silence before it.
        estimated_ms: guess of its length, for queues and progress.
        detail: the backend's own preparation (phonemes, tokens); opaque to callers.
    """

    seg: int
    turn: int
    text: str
    span: tuple[int, int]
    voice: str
    lang: str
    pause_before_ms: int
    estimated_ms: int
    detail: object = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A request, cut. Deterministic: same request, same plan.

    Attributes:
        sentences: numbered from 0 without gaps, `first_seg` included. degraded: what was asked for
        and could not be given exactly (`emotion`, ...). warnings: sentences for people (characters
        no voice can read, pinyin notes nobody understood).
    """

    sentences: tuple[Sentence, ...]
    degraded: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WordTiming:
    """When a word is heard, from the start of its sentence's speech (its `pause_before_ms`
    excluded).

    Attributes:
        text: the source's own characters.
        start_ms, end_ms: 0 <= start <= end.
        span: character offsets into the turn's text.
    """

    text: str
    start_ms: int
    end_ms: int
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """Sound of one sentence, or a part of it.

    Chunks of one sentence come in order; `first` and `last` mark its ends for listeners. The pause
    before a sentence is part of its first chunk's `pcm` (`pause_ms` says how much of it).

    A sentence that was decoded in windows for early sound comes twice: as `live` chunks that are
    not `kept`, and once whole as a `kept` chunk that is not `live`. All others are both. For a
    recording, join the kept chunks in order of `seg`.

    Attributes:
        seg: number of the sentence in the plan.
        pcm: (samples,) int16 mono at SAMPLE_RATE_HZ; never empty except on a bare `last` mark.
        first, last: first and last live chunk of the sentence (for kept-only chunks: both True).
        live: for listeners.
        kept: for the recording.
        pause_ms: leading silence inside `pcm`.
        words: timings of the whole sentence, on its first live chunk where the engine knows them.
        quality: where the timings come from.
        remarks: for people, how this sentence came out when that is not as wished (cut off, far
            from its natural length); on its last chunk.
    """

    seg: int
    pcm: Pcm
    first: bool
    last: bool
    live: bool = True
    kept: bool = True
    pause_ms: int = 0
    words: tuple[WordTiming, ...] = ()
    quality: TimingQuality = "model"
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What an engine is, for `spec_hash`, `config` and metrics.

    Attributes:
        name: `kokoro`, `tone`, `indextts2`, `remote`. build: changes whenever the same request may
        sound different (weights digest, recipe version). slots: utterances that may be in flight at
        once. batch: how many of them one `step` can advance together.
    """

    name: str
    build: str
    slots: int
    batch: int = 1
    extra: Mapping[str, str] = field(default_factory=dict)


class Backend(ABC):
    """A voice. All but `plan`, `voices` and `info` are called from the engine's one thread only."""

    @abstractmethod
    def info(self) -> BackendInfo:
        """Who this is; constant over the life of the object."""

    @abstractmethod
    def voices(self) -> list[Voice]:
        """Every voice that can be asked for."""

    def default_voice(self, lang: str) -> str:
        """Id of the voice that speaks `lang` when none is asked for; empty if there is no such."""
        return next((voice.id for voice in self.voices() if voice.lang == lang), "")

    @abstractmethod
    def plan(self, request: SpeechRequest) -> Plan:
        """Cut a request into sentences; called from any thread, touches no model state.

        Raises:
            BadRequest: unknown voice, language or feature; the message names the cure.
        """

    def warm(self, langs: Sequence[str] = ()) -> None:  # noqa: B027  # most backends need nothing
        """Load what the first request would otherwise wait for."""

    @abstractmethod
    def step(self, batch: Sequence[Utterance]) -> None:
        """Advance utterances: at least the first of `batch`, at most each one once.

        `batch` is in order of urgency and holds at most `info().batch` utterances, none of which is
        finished, cancelled or waiting for its reader. Give sound through `Utterance.emit`; say
        `Utterance.finish` after the last chunk. A step should take well under a second, so that
        cancel and new arrivals are served soon.
        """

    def forget(self, utterance: Utterance) -> None:  # noqa: B027  # most backends keep nothing
        """Release what is held for an utterance that finished, failed or was cancelled."""

    def close(self) -> None:  # noqa: B027
        """Release the model."""
