"""The embedded voice as an engine backend: a sentence, or a window of one, a step.

A request somebody listens to begins in windows: the first sound comes after the text, the durations
and 0.8 s of decoding instead of after a whole sentence. Sentences go on in windows as long as the
listener's lead is shorter than a whole decode would take; then whole sentences follow. What was
given out in windows is decoded again, whole, for the recording, as soon as the lead allows, at the
latest at the end. So what listeners hear depends on the clock in this one respect; a recording
never does.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.backends.kokoro import planner, sound, windows
from engine.backends.kokoro.durations import (
    HIBARI_LEAD_FRAMES,
    KOKORO_LEAD_FRAMES,
    begun_soon,
    check_ratio,
    exact_frames,
    natural_frames,
    share_out,
    word_times,
)
from engine.backends.kokoro.hibari import LOUDNESS_LUFS, HibariVoice
from engine.backends.kokoro.job import Job, Mark, Share, Take, prepared
from engine.backends.kokoro.model import FRAME_SAMPLES, MODEL_SHA256
from engine.backends.kokoro.planner import Prepared, Speaker
from engine.backends.kokoro.prepare import RECIPE, prepared_graphs, probe_tokens
from engine.backends.kokoro.stages import Draft, Stages, Stop, Stopped
from engine.backends.kokoro.voices import DEFAULTS, HIBARI, VoicePack
from engine.base import (
    SAMPLE_RATE_HZ,
    AudioChunk,
    Backend,
    BackendInfo,
    Plan,
    Sentence,
    SpeechRequest,
    Voice,
)
from engine.errors import BadRequest
from engine.utterance import Utterance

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Frames = npt.NDArray[np.int64]

SOUND_RECIPE = 1
"""Counts up whenever the same request would sound different for another reason than the graphs."""

SLOTS = 8
MEASURED_PER_STEP = 4  # sentences whose durations one step predicts, 10 to 50 ms each
MARGIN = 1.5  # whole decoding waits until the lead is this many times its expected cost
FIRST_GUESS_RTF = 0.35  # before anything was decoded on this machine
NEWEST_RTF_WEIGHT = 0.3

FOR_THE_RECORDING = Mark(live=False)


class Kokoro(Backend):
    """hibari for plain English, Kokoro-82M for everything else; CPU only, offline.

    Args:
        cache_dir: where the prepared graphs are kept (92 MB); None for `~/.cache/notecast`.
        threads: per decode; more than the cores there are gains nothing.
        voices_dir: tables of the user's own, `.npy` or `.bin`, float32 [510, 256].
    """

    def __init__(
        self, *, cache_dir: Path | None = None, threads: int = 2, voices_dir: Path | None = None
    ) -> None:
        if threads < 1:
            raise BadRequest(f"threads is {threads}; it goes from 1", field="threads")
        self._cache_dir = cache_dir or Path.home() / ".cache" / "notecast"
        self._threads = threads
        self._pack = VoicePack(voices_dir)
        self._info = BackendInfo("kokoro", _build(self._pack), slots=SLOTS, batch=1)
        self._own_loudness: dict[str, float] = {}
        self._rtf = FIRST_GUESS_RTF

    def info(self) -> BackendInfo:
        return self._info

    def voices(self) -> list[Voice]:
        return [Voice(HIBARI, "Heart (hibari)", "en", "female"), *self._pack.voices()]

    def default_voice(self, lang: str) -> str:
        """hibari's for English, else the best of Kokoro's."""
        return HIBARI if lang == "en" else DEFAULTS.get(lang, "")

    def plan(self, request: SpeechRequest) -> Plan:
        return planner.plan(request, self._pack)

    def warm(self, langs: Sequence[str] = ()) -> None:
        """Load front ends and models for these languages; for English if none is named.

        Raises:
            UnsupportedLanguage: one of them is not spoken here.
        """
        for lang in langs or ("en",):
            planner.warm(lang)
            # A first run allocates; let it happen before somebody waits.
            tokens = probe_tokens()
            if lang == "en":
                raw = self._hibari.plan(tokens)
                self._hibari.voice(tokens, natural_frames(raw), seed=0)
            else:
                draft = self._stages.plan(tokens, self._pack.style(DEFAULTS[lang], len(tokens)))
                self._stages.voice(self._stages.score(draft, natural_frames(draft.raw)))

    def forget(self, utterance: Utterance) -> None:
        utterance.state = None

    def close(self) -> None:
        for loaded in ("_hibari", "_stages"):
            self.__dict__.pop(loaded, None)

    # one step -----------------------------------------------------------------------------------

    def step(self, batch: Sequence[Utterance]) -> None:
        utterance = batch[0]
        job = utterance.state if isinstance(utterance.state, Job) else Job()
        utterance.state = job
        try:
            self._advance(utterance, job)
        except BadRequest as error:  # a length or a voice table that turned out to be impossible
            utterance.finish(error)
            return
        except Stopped:
            return
        spoken = utterance.next_seg >= len(utterance.plan.sentences)
        if spoken and not job.owed and job.on_air is None:
            utterance.finish()

    def _advance(self, utterance: Utterance, job: Job) -> None:
        sentences = utterance.plan.sentences
        if utterance.request.target_s is not None and not job.shares:
            self._measure(utterance, job, utterance.request.target_s)
        elif job.on_air is not None:
            self._next_window(utterance, job, job.on_air)
        elif utterance.next_seg < len(sentences):
            sentence = sentences[utterance.next_seg]
            if job.owed and self._can_wait(job, job.owed[0].sentence, sentence):
                self._settle(utterance, job)
            else:
                self._speak(utterance, job, sentence)
        elif job.owed:
            self._settle(utterance, job)

    def _speak(self, utterance: Utterance, job: Job, sentence: Sentence) -> None:
        """Give out a sentence, or its first window."""
        take = self._take(job, sentence)
        if utterance.request.live and take.scores and not self._can_wait(job, sentence):
            parts = sum(len(windows.boundaries(score)) - 1 for score in take.scores)
            if parts > 1:
                job.on_air = take
                self._next_window(utterance, job, take)
                return
        self._emit(utterance, job, take, self._whole(utterance, take), Mark())
        utterance.next_seg += 1

    def _next_window(self, utterance: Utterance, job: Job, take: Take) -> None:
        first = take.given == 0
        with self._stoppable(utterance):
            audio = next(take.windows)[: take.share.speech - take.given]
        take.given += len(audio)
        last = take.given == take.share.speech
        self._emit(utterance, job, take, audio, Mark(first, last, kept=False))
        if last:
            job.on_air = None
            job.owed.append(take)
            utterance.next_seg += 1

    def _settle(self, utterance: Utterance, job: Job) -> None:
        """Decode whole, for the recording, a sentence that was given out in windows."""
        take = job.owed.popleft()
        self._emit(utterance, job, take, self._whole(utterance, take), FOR_THE_RECORDING)

    def _can_wait(self, job: Job, *work: Sentence) -> bool:
        """Has the listener enough ahead for this much whole decoding?"""
        cost_s = sum(sentence.estimated_ms for sentence in work) / 1000 * self._rtf
        return job.lead_s(time.monotonic()) > MARGIN * cost_s

    # sound --------------------------------------------------------------------------------------

    def _whole(self, utterance: Utterance, take: Take) -> Floats:
        """(take.share.speech,) samples of a sentence."""
        if take.scores:
            started = time.perf_counter()
            with self._stoppable(utterance):
                parts = [self._stages.voice(score) for score in take.scores]
            rtf = (time.perf_counter() - started) * SAMPLE_RATE_HZ / sum(map(len, parts))
            self._rtf += NEWEST_RTF_WEIGHT * (rtf - self._rtf)
        else:
            seed = _seed(utterance.request.seed, take.sentence.seg)
            lines = prepared(take.sentence).lines
            parts = [
                self._hibari.voice(line.tokens, frames, seed=seed)
                for line, frames in zip(lines, take.frames, strict=True)
            ]
        return np.concatenate(parts)[: take.share.speech]

    @contextlib.contextmanager
    def _stoppable(self, utterance: Utterance) -> Iterator[None]:
        """Let a cancel break off what is decoded: nobody need wait a second for the next step."""
        stop = self._stages.stop = Stop()
        utterance.when_cancelled(stop)
        try:
            yield
        finally:
            utterance.when_cancelled(None)
            self._stages.stop = None

    def _emit(self, utterance: Utterance, job: Job, take: Take, audio: Floats, mark: Mark) -> None:
        sentence, ready = take.sentence, prepared(take.sentence)
        levelled = sound.level(audio, self._gain_db(ready.speaker))
        pcm = sound.to_pcm(sound.fade(levelled, start=mark.first, end=mark.last))
        pause = take.share.pause if mark.first else 0
        chunk = AudioChunk(
            seg=sentence.seg,
            pcm=np.concatenate([np.zeros(pause, np.int16), pcm]),
            pause_ms=pause * 1000 // SAMPLE_RATE_HZ,
            words=word_times(
                utterance.request.turns[sentence.turn].text,
                list(zip(ready.lines, take.frames, strict=True)),
            )
            if mark.first
            else (),
            **mark._asdict(),
        )
        if mark.live:
            job.began = time.monotonic() if job.began is None else job.began
            job.sound += len(chunk.pcm)
        utterance.emit(chunk)

    def _gain_db(self, speaker: Speaker) -> float:
        loudness = LOUDNESS_LUFS if speaker.engine == "hibari" else self._loudness_lufs(speaker)
        return sound.TARGET_LUFS - loudness + speaker.manner.gain_db

    def _loudness_lufs(self, speaker: Speaker) -> float:
        """From the catalogue; a voice of the user's own is measured once, by letting it speak."""
        known = self._pack.loudness_lufs(speaker.mix)
        if known is not None:
            return known
        if speaker.id not in self._own_loudness:
            tokens = probe_tokens()
            draft = self._stages.plan(tokens, self._pack.row(speaker.mix, len(tokens)))
            audio = self._stages.voice(self._stages.score(draft, natural_frames(draft.raw)))
            self._own_loudness[speaker.id] = sound.loudness_lufs(audio)
        return self._own_loudness[speaker.id]

    # durations ----------------------------------------------------------------------------------

    def _take(self, job: Job, sentence: Sentence) -> Take:
        ready = prepared(sentence)
        if ready.speaker.engine == "hibari":
            frames = self._frames(job, sentence, self._raw(ready))
            return Take(sentence, frames, [], self._share(job, sentence, frames), iter(()))
        drafts = self._drafts(ready)
        frames = self._frames(job, sentence, [draft.raw for draft in drafts])
        manner = ready.speaker.manner
        scores = [
            self._stages.score(draft, own, pitch=manner.pitch, span=manner.span)
            for draft, own in zip(drafts, frames, strict=True)
        ]
        sound_of = functools.partial(windows.decode, self._stages)
        pieces = itertools.chain.from_iterable(map(sound_of, scores))
        return Take(sentence, frames, scores, self._share(job, sentence, frames), pieces)

    def _drafts(self, ready: Prepared) -> list[Draft]:
        speaker = ready.speaker
        drafts = [
            self._stages.plan(
                line.tokens, self._pack.style(speaker.id, len(line.tokens), speaker.manner.voice)
            )
            for line in ready.lines
        ]
        return [replace(draft, raw=begun_soon(draft.raw, KOKORO_LEAD_FRAMES)) for draft in drafts]

    def _raw(self, ready: Prepared) -> list[Floats]:
        """Natural durations of each line, in frames a token."""
        if ready.speaker.engine == "hibari":
            natural = (self._hibari.plan(line.tokens) for line in ready.lines)
            return [begun_soon(raw, HIBARI_LEAD_FRAMES) for raw in natural]
        return [draft.raw for draft in self._drafts(ready)]

    def _frames(self, job: Job, sentence: Sentence, raw: Sequence[Floats]) -> list[Frames]:
        """Whole frames per token, for each line."""
        if not job.shares:
            return [natural_frames(own, prepared(sentence).speaker.manner.rate) for own in raw]
        total = -(-job.shares[sentence.seg].speech // FRAME_SAMPLES)
        together = exact_frames(np.concatenate(raw), total)
        return np.split(together, np.cumsum([len(own) for own in raw])[:-1])

    def _share(self, job: Job, sentence: Sentence, frames: Sequence[Frames]) -> Share:
        if job.shares:
            return job.shares[sentence.seg]
        speech = FRAME_SAMPLES * int(sum(own.sum() for own in frames))
        return Share(speech, _samples(sentence.pause_before_ms))

    def _measure(self, utterance: Utterance, job: Job, target_s: float) -> None:
        """Predict the length of a few sentences; once all are known, share out the wanted one.

        Sentences before `first_seg` count too, so that each has the same share in every attempt.
        """
        sentences = utterance.plan.sentences
        due = sentences[len(job.raw) : len(job.raw) + MEASURED_PER_STEP]
        job.raw += [self._raw(prepared(sentence)) for sentence in due]
        if len(job.raw) < len(sentences):
            return
        natural = [
            FRAME_SAMPLES * int(sum(own.sum() for own in self._frames(job, sentence, raw)))
            for sentence, raw in zip(sentences, job.raw, strict=True)
        ]
        pauses = [_samples(sentence.pause_before_ms) for sentence in sentences]
        speech, pauses, ratio = share_out(natural, pauses, round(target_s * SAMPLE_RATE_HZ))
        check_ratio(ratio, target_s, force=utterance.request.force)
        log.info("length shared out", extra={"ratio": round(ratio, 3), "seconds": target_s})
        job.shares = [Share(*share) for share in zip(speech, pauses, strict=True)]
        job.raw.clear()

    # models, loaded when first needed -----------------------------------------------------------

    @functools.cached_property
    def _stages(self) -> Stages:
        folder = prepared_graphs(self._cache_dir, threads=self._threads)
        return Stages(folder, threads=self._threads)

    @functools.cached_property
    def _hibari(self) -> HibariVoice:
        return HibariVoice(threads=self._threads)


def _samples(milliseconds: int) -> int:
    return milliseconds * SAMPLE_RATE_HZ // 1000


def _seed(request: int, seg: int) -> int:
    """Another noise for each sentence, the same in every attempt."""
    return int.from_bytes(hashlib.sha256(f"{request}/{seg}".encode()).digest()[:8])


def _build(pack: VoicePack) -> str:
    recipes = f"{RECIPE}/{SOUND_RECIPE}"
    hibari = importlib.metadata.version("hibari-tts")
    parts = (MODEL_SHA256, recipes, pack.digest(), hibari)
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]
