"""IndexTTS-2 as an engine backend: cloned voices, emotion, exact length, many live streams."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.backends.indextts2 import emotion, planning, release
from engine.backends.indextts2.cfm import STEPS
from engine.backends.indextts2.config import SAMPLE_RATE_HZ as MODEL_RATE_HZ
from engine.backends.indextts2.decode import slot_bytes
from engine.backends.indextts2.errors import UnsupportedModel
from engine.backends.indextts2.library import ClonedVoice, VoiceLibrary
from engine.backends.indextts2.model import Model, Placement
from engine.backends.indextts2.normalise import Normaliser, Verbaliser, WeText, read_glossary
from engine.backends.indextts2.render import Plan as RenderPlan
from engine.backends.indextts2.sampling import Sampling
from engine.backends.indextts2.serve import Sound, Stream, Synthesiser, Task
from engine.backends.indextts2.tokenizer import Tokenizer
from engine.backends.indextts2.voice import VoiceCache, VoiceFeatures
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
from engine.errors import BadRequest, EngineError, UnknownVoice
from engine.resample import StreamResampler, to_pcm
from engine.utterance import Utterance

log = logging.getLogger(__name__)

_RECIPE = "2"  # part of `build`: change it when the same weights sound different
_CANDIDATES = 3  # readings to choose from for a wanted length, when nobody waits
_MOST_EMOTIONS = 256
_SLOTS_ON_CPU, _SLOTS_ON_GPU = 8, 64


@dataclass(eq=False)
class _Spoken:
    """What the backend keeps for an utterance."""

    stream: Stream
    next_seg: int
    begun: dict[int, Sentence] = field(default_factory=dict)  # as planned when decoding began
    resampler: StreamResampler = field(default_factory=lambda: StreamResampler(MODEL_RATE_HZ))
    error: EngineError | None = None


class IndexTTS2(Backend):
    """The voice of a release.

    Args:
        model_dir: the release's files (docs/indextts2.md).
        voices_dir: the library of cloned voices; `voices` in the model directory by default.
        cache_dir: where features of voices are kept; `.features` in the voices folder by default.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        slots: requests in flight; None for 8 on a CPU, and on a GPU for up to 64 in half of the
            memory that the model leaves free.
        steps: Euler steps of flow matching; fewer is faster and rougher.
        adaptive: let chunk sizes follow the listener's runway; by default on a GPU only.
        sampling: how codes are drawn.
        beams: for requests nobody listens to live; 3 is the reference's setting and takes three
            times the decoding.
        threads: of a CPU; None leaves torch's setting. More than there are free cores is far slower
            than one.
        verbalise: says numbers and units; wetext by default.

    Raises:
        ModelUnusable: the directory is incomplete or not version 2.0; the message says what to
            mend.
    """

    def __init__(
        self,
        model_dir: Path | str,
        *,
        voices_dir: Path | str | None = None,
        cache_dir: Path | str | None = None,
        device: str = "auto",
        slots: int | None = None,
        steps: int = STEPS,
        adaptive: bool | None = None,
        sampling: Sampling | None = None,
        beams: int = 1,
        threads: int | None = None,
        verbalise: Verbaliser | None = None,
    ) -> None:
        if (slots is not None and slots < 1) or not (1 <= steps <= 100 and 1 <= beams <= 8):
            raise BadRequest(
                "slots goes from 1, steps from 1 to 100, beams from 1 to 8", field="engine"
            )
        if threads is not None:
            torch.set_num_threads(max(1, threads))
        folder = Path(model_dir)
        self._model = Model(folder, _placement(device))
        config = self._model.config
        if config.s2mel.latent_dim != config.gpt.width:
            raise UnsupportedModel(f"{folder}: a parity release cannot speak (latent_dim)")
        slots = slots or _slots_that_fit(self._model)
        self._library = VoiceLibrary(Path(voices_dir) if voices_dir else folder / "voices")
        features = Path(cache_dir) if cache_dir else self._library.folder / ".features"
        self._cache = VoiceCache(self._model, features)
        self._emotions: dict[tuple[str, emotion.Emotion], Tensor] = {}
        self._describer: emotion.Describer | None = None
        self._synthesiser = Synthesiser(self._model, slots=slots, adaptive=adaptive)
        self._sampling = sampling or Sampling()
        self._steps, self._beams = steps, beams
        tokenizer = Tokenizer(release.find(folder, "bpe"), config.gpt)
        glossary = release.find_optional(folder, "glossary")
        self._planner = planning.Planner(
            Normaliser(
                verbalise or WeText(),
                glossary=read_glossary(glossary) if glossary else None,
                is_known=tokenizer.has,
            ),
            tokenizer,
            most_pieces=config.gpt.max_text,
            voice_for=self._voice_for,
            is_voice=self._is_voice,
            can_describe=self._can_describe,
        )
        build = f"{self._model.digest}-{_RECIPE}-{steps}-{beams}"
        self._info = BackendInfo("indextts2", build, slots=slots, batch=slots)

    def info(self) -> BackendInfo:
        return self._info

    def voices(self) -> list[Voice]:
        return [cloned.voice for cloned in self._library.all()]

    def default_voice(self, lang: str) -> str:
        """The first voice of the language, else the first of all: a clone speaks both languages."""
        voices = self.voices()
        same = [v.id for v in voices if v.lang == lang]
        return (same or [v.id for v in voices] or [""])[0]

    def plan(self, request: SpeechRequest) -> Plan:
        return self._planner(request)

    def warm(self, langs: Sequence[str] = ()) -> None:
        """Learn every voice of the library that is not in the cache yet; record static calls."""
        del langs  # one model for all
        for cloned in self._library.all():
            self._cache.of_file(cloned.clip)
        self._synthesiser.warm()

    def step(self, batch: Sequence[Utterance]) -> None:
        spoken = [self._spoken(utterance) for utterance in batch]
        self._synthesiser.tick([s.stream for s in spoken if s.error is None])
        for utterance, state in zip(batch, spoken, strict=True):
            while state.stream.out:
                self._emit(utterance, state, state.stream.out.popleft())
            if state.error is not None:
                self._synthesiser.cancel(state.stream)
                utterance.finish(state.error)
            elif state.stream.is_done:
                utterance.finish()

    def forget(self, utterance: Utterance) -> None:
        if isinstance(utterance.state, _Spoken):
            self._synthesiser.cancel(utterance.state.stream)
            utterance.state = None

    # from utterances to tasks -----------------------------------------------------------------

    def _spoken(self, utterance: Utterance) -> _Spoken:
        if isinstance(utterance.state, _Spoken):
            return utterance.state
        request = utterance.request

        def next_task() -> Task | None:
            # read sentence by sentence: a caller who replaces the plan is heard from the next on
            if state.next_seg >= len(utterance.plan.sentences):
                return None
            sentence = utterance.plan.sentences[state.next_seg]
            try:
                task = self._task(sentence, request)
            except EngineError as error:
                state.error = error
                return None
            state.begun[state.next_seg] = sentence
            state.next_seg += 1
            return task

        stream = Stream(next_task, seed=request.seed, live=request.live)
        state = _Spoken(stream, utterance.next_seg)
        utterance.state = state
        return state

    def _task(self, sentence: Sentence, request: SpeechRequest) -> Task:
        detail = sentence.detail
        assert isinstance(detail, planning.Detail)
        cloned = self._library.get(sentence.voice)
        features = self._cache.of_file(cloned.clip)
        is_live = request.live and detail.frames is None
        return Task(
            number=sentence.seg,
            ids=detail.ids,
            voice=features,
            emotion=self._emotion(cloned, features, detail.emotion),
            plan=RenderPlan(
                live=is_live,
                ratio=detail.ratio,
                frames=detail.frames,
                steps=self._steps,
                first_steps=max(1, self._steps // 2) if is_live else self._steps,
            ),
            sampling=self._sampling,
            candidates=1 if request.live else _CANDIDATES,
            beams=1 if request.live else self._beams,
        )

    @torch.inference_mode()
    def _emotion(
        self, cloned: ClonedVoice, features: VoiceFeatures, asked: emotion.Emotion
    ) -> Tensor:
        key = (cloned.digest, asked)
        if key not in self._emotions:
            if len(self._emotions) >= _MOST_EMOTIONS:
                self._emotions.clear()
            self._emotions[key] = self._new_emotion(features, asked)
        return self._emotions[key]

    def _new_emotion(self, features: VoiceFeatures, asked: emotion.Emotion) -> Tensor:
        if asked.vector is not None:
            return emotion.apply(self._model, features, asked.vector)
        if asked.voice:
            other = self._cache.of_file(self._library.get(asked.voice).clip)
            return emotion.merge(features.base_emotion, other.own_emotion, asked.strength)
        if asked.text:
            if self._describer is None:
                self._describer = emotion.Describer(
                    self._qwen_dir(), self._model.placement.voice_device
                )
            return emotion.apply(
                self._model,
                features,
                emotion.weaken(emotion.limit(self._describer(asked.text)), asked.strength),
            )
        return features.own_emotion

    # from sound to chunks ---------------------------------------------------------------------

    def _emit(self, utterance: Utterance, state: _Spoken, sound: Sound) -> None:
        sentence = state.begun[sound.number]
        detail = sentence.detail
        assert isinstance(detail, planning.Detail)
        if sound.first:
            state.resampler = StreamResampler(MODEL_RATE_HZ)
        pcm = to_pcm(state.resampler.push(sound.wave * detail.gain, last=sound.last))
        pause_ms = sentence.pause_before_ms if sound.first else 0
        length_ms = sentence.estimated_ms
        if sound.first and sound.last:
            length_ms = len(pcm) * 1000 // SAMPLE_RATE_HZ
        if pause_ms:
            silence = np.zeros(pause_ms * SAMPLE_RATE_HZ // 1000, np.int16)
            pcm = np.concatenate([silence, pcm])
        remarks: tuple[str, ...] = ()
        if sound.last:
            remarks = planning.remarks(sentence, codes=sound.codes, ended=sound.ended)
        utterance.emit(
            AudioChunk(
                seg=sound.number,
                pcm=pcm,
                first=sound.first,
                last=sound.last,
                pause_ms=pause_ms,
                words=planning.words(sentence, length_ms) if sound.first else (),
                quality="estimate",
                remarks=remarks,
            )
        )
        if sound.last:
            del state.begun[sound.number]
            utterance.next_seg = sound.number + 1
            if remarks:
                log.warning(
                    "sentence not as wished",
                    extra={"seg": sound.number, "codes": sound.codes, "ended": sound.ended},
                )

    # what plans ask ---------------------------------------------------------------------------

    def _voice_for(self, name: str, lang: str) -> str:
        planning.check_voice_name(name)
        return self._library.get(name or self.default_voice(lang)).voice.id

    def _is_voice(self, name: str) -> bool:
        try:
            self._library.get(name)
        except UnknownVoice:
            return False
        return True

    def _qwen_dir(self) -> Path:
        return self._model.dir / self._model.config.files["qwen_emo_path"]

    def _can_describe(self) -> None:
        emotion.Describer.check(self._qwen_dir())


def _slots_that_fit(model: Model) -> int:
    if model.device.type != "cuda":
        return _SLOTS_ON_CPU
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, min(_SLOTS_ON_GPU, free // 2 // slot_bytes(model)))


def _placement(device: str) -> Placement:
    if device == "auto":
        return Placement.best()
    if device == "cpu":
        return Placement()
    if not device.startswith("cuda"):
        raise BadRequest(f"device '{device}' is none of auto, cpu, cuda, cuda:N", field="device")
    if not torch.cuda.is_available():
        raise BadRequest(
            f"device '{device}': this machine (or this build of torch) has no CUDA GPU",
            field="device",
        )
    best = Placement.best()
    return Placement(device=device, voice_device=device, gpt_dtype=best.gpt_dtype)
