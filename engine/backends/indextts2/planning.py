"""A request -> sentences with everything decided: pieces, pauses, emotion, length."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from engine.backends.indextts2 import duration, emotion
from engine.backends.indextts2.decode import End
from engine.backends.indextts2.normalise import Lang, Normalised, Normaliser
from engine.backends.indextts2.segment import LIMIT, natural
from engine.backends.indextts2.tokenizer import Tokenizer, Tokens
from engine.base import NEUTRAL, Plan, Sentence, SpeechRequest, Turn, WordTiming
from engine.errors import BadRequest, UnsupportedFeature, UnsupportedLanguage

SENTENCE_GAP_MS, LINE_GAP_MS, CLAUSE_GAP_MS = 200, 400, 80
_PAUSE = re.compile(r"\[pause\s+(\d+(?:\.\d+)?)\s*(ms|s)\]", re.IGNORECASE)
_LONGEST_PAUSE_MS = 10_000
_WORD = re.compile("[\u3400-\u9fff]|[^\\W\u3400-\u9fff](?:[^\\W\u3400-\u9fff]|['’-](?=\\w))*")
_LANGS = ("zh", "en")
_CUT_OFF: Mapping[End | None, str] = {
    "limit": "the voice found no end",
    "loop": "the voice repeated itself",
}


@dataclass(frozen=True, slots=True)
class Detail:
    """What the backend prepared for a sentence.

    Attributes:
        ids: text pieces.
        emotion: road and values.
        ratio: length against the natural one.
        frames: exact length in mel frames, or None.
        gain: factor on samples.
    """

    ids: tuple[int, ...]
    emotion: emotion.Emotion
    ratio: float
    frames: int | None
    gain: float


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Text between pause marks, and the silence before it."""

    text: str
    start: int
    pause_ms: int


class Planner:
    """Cuts requests.

    Args:
        normalise, tokenizer: of the release.
        most_pieces: that the model has positions for.
        voice_for: resolves a voice id (or empty) and a language, or raises UnknownVoice.
        is_voice: whether a name is a voice.
        can_describe: raises UnsupportedFeature when emotion descriptions cannot be read.
    """

    def __init__(
        self,
        normalise: Normaliser,
        tokenizer: Tokenizer,
        *,
        most_pieces: int,
        voice_for: Callable[[str, str], str],
        is_voice: Callable[[str], bool],
        can_describe: Callable[[], None],
    ) -> None:
        self._limit = min(LIMIT, most_pieces)
        self._voice_for, self._is_voice, self._can_describe = voice_for, is_voice, can_describe

        @lru_cache(maxsize=4096)
        def read(text: str, lang: Lang | None) -> tuple[Normalised, Tokens]:
            normalised = normalise(text, lang)
            return normalised, tokenizer.encode(normalised.text)

        self._read = read

    def __call__(self, request: SpeechRequest) -> Plan:
        """Plan a request.

        Raises:
            BadRequest: what is asked for cannot be spoken; the message names the cure.
        """
        warnings: dict[str, None] = {}  # in order, each once
        sentences: list[Sentence] = []
        for number, turn in enumerate(request.turns):
            sentences.extend(self._turn(number, turn, warnings))
        sentences = [replace(s, seg=seg) for seg, s in enumerate(sentences)]
        if request.target_s is not None and sentences:
            sentences = _fitted(sentences, request.target_s, request.force, warnings)
        return Plan(tuple(sentences), _degraded(request.turns), tuple(warnings))

    def _turn(self, number: int, turn: Turn, warnings: dict[str, None]) -> Iterator[Sentence]:
        lang = _lang(turn.lang)
        feeling = emotion.parse(turn.controls.emotion, turn.controls.manner, self._is_voice)
        if feeling.text:
            self._can_describe()
        voice = self._voice_for(turn.voice, turn.lang if lang else "")
        if not duration.is_sensible(1 / turn.controls.rate):
            warnings[f"at {turn.controls.rate:g} times the pace speech may sound unnatural"] = None
        pause_ms = turn.pause_before_ms
        for stretch in _stretches(turn.text):
            pause_ms = max(pause_ms, stretch.pause_ms)
            for span in natural(
                stretch.text, lambda t: len(self._read(t, lang)[1].ids), self._limit
            ):
                normalised, tokens = self._read(span.text, lang)
                warnings.update(dict.fromkeys(normalised.warnings))
                lost = sorted({p.strip("\u2581") for p in tokens.unknown} - {""})
                if lost:
                    warnings[f"the voice cannot read: {' '.join(lost)}"] = None
                if not tokens.ids:
                    continue
                start = stretch.start + span.start
                yield Sentence(
                    seg=0,
                    turn=number,
                    text=span.text,
                    span=(start, start + len(span.text)),
                    voice=voice,
                    lang=normalised.lang,
                    pause_before_ms=pause_ms,
                    estimated_ms=round(duration.natural_ms(tokens.pieces) / turn.controls.rate),
                    detail=Detail(
                        ids=tokens.ids,
                        emotion=feeling,
                        ratio=1 / turn.controls.rate,
                        frames=None,
                        gain=10 ** (turn.controls.gain_db / 20),
                    ),
                )
                pause_ms = _gap_ms(stretch.text, span.end)


def _lang(lang: str) -> Lang | None:
    if lang in ("", "auto"):
        return None
    short = lang.lower().partition("-")[0]
    if short not in _LANGS:
        raise UnsupportedLanguage(
            f"IndexTTS-2 reads Chinese and English, not '{lang}'; the engine kokoro reads more",
            field="lang",
        )
    return "zh" if short == "zh" else "en"


def _stretches(text: str) -> Iterator[_Stretch]:
    at, pause_ms = 0, 0
    for mark in _PAUSE.finditer(text):
        if text[at : mark.start()].strip():
            yield _Stretch(text[at : mark.start()], at, pause_ms)
            pause_ms = 0
        by = 1000 if mark[2].lower() == "s" else 1
        pause_ms = min(_LONGEST_PAUSE_MS, pause_ms + round(float(mark[1]) * by))
        at = mark.end()
    if text[at:].strip():
        yield _Stretch(text[at:], at, pause_ms)


def _gap_ms(text: str, end: int) -> int:
    """Silence after a sentence that ends at `end`, by what stands there."""
    after = text[end : end + 2]
    if "\n" in after:
        return LINE_GAP_MS
    before = text[:end].rstrip("”\"'’」』）)】》 ")[-1:]
    return SENTENCE_GAP_MS if before in "。！？.!?…" else CLAUSE_GAP_MS


def _fitted(
    sentences: Sequence[Sentence], target_s: float, force: bool, warnings: dict[str, None]
) -> list[Sentence]:
    """Give every sentence its share of a wanted length; pauses stay as they are."""
    pauses_s = sum(s.pause_before_ms for s in sentences) / 1000
    natural_s = sum(s.estimated_ms for s in sentences) / 1000
    speech_s = target_s - pauses_s
    ratio = speech_s / natural_s
    low, high = duration.ACCEPTED
    if speech_s <= 0 or not (force or low <= ratio <= high):
        raise BadRequest(
            f"{target_s:.1f} s is {ratio:.2f} times the natural length of this text; "
            f"{low} to {high} times can be spoken "
            f"({pauses_s + low * natural_s:.1f} to {pauses_s + high * natural_s:.1f} s), "
            "others only with force",
            field="target_s",
        )
    if not duration.is_sensible(ratio):
        warnings[
            f"the wanted length is about {ratio:.2f} times the natural one; it may sound unnatural"
        ] = None
    shares = duration.share_frames([s.estimated_ms for s in sentences], speech_s)
    fitted = []
    for sentence, frames in zip(sentences, shares, strict=True):
        assert isinstance(sentence.detail, Detail)
        fitted.append(
            replace(
                sentence,
                detail=replace(sentence.detail, frames=frames),
                estimated_ms=round(frames * 256 / 22.05),
            )
        )
    return fitted


def _degraded(turns: Sequence[Turn]) -> tuple[str, ...]:
    """Controls the model does not have."""
    return tuple(
        name
        for name in ("pitch", "range")
        if any(getattr(t.controls, name) != getattr(NEUTRAL, name) for t in turns)
    )


def remarks(sentence: Sentence, *, codes: int, ended: End | None) -> tuple[str, ...]:
    """What people should know about a sentence that was spoken.

    Args:
        sentence: as planned.
        codes: of its reading.
        ended: see `Reading`.
    """
    detail = sentence.detail
    assert isinstance(detail, Detail)
    found = []
    if ended in _CUT_OFF:
        found.append(f"sentence {sentence.seg + 1} may be cut off: {_CUT_OFF[ended]}")
    if detail.frames is not None:
        ratio = duration.stretch(detail.frames, codes)
        if not duration.is_sensible(ratio):
            found.append(
                f"sentence {sentence.seg + 1} was brought to {ratio:.2f} times the length "
                "it was read in; it may sound unnatural"
            )
    return tuple(found)


def check_voice_name(name: str) -> None:
    """Refuse what is no single voice.

    Raises:
        UnsupportedFeature: a blend; names the engine that has them.
    """
    if ":" in name or "," in name:
        raise UnsupportedFeature(
            f"'{name}' is a blend; IndexTTS-2 speaks in one voice (the engine kokoro blends)",
            field="voice",
        )


def words(sentence: Sentence, length_ms: int) -> tuple[WordTiming, ...]:
    """Words spread over a sentence by what they weigh: an ideograph as much as three letters."""
    found = list(_WORD.finditer(sentence.text))
    weights = [3 if "\u3400" <= m[0] <= "\u9fff" else max(2, len(m[0])) for m in found]
    total = sum(weights) or 1
    timings, done = [], 0
    for match, weight in zip(found, weights, strict=True):
        start, done = done, done + weight
        at = sentence.span[0]
        timings.append(
            WordTiming(
                match[0],
                start * length_ms // total,
                done * length_ms // total,
                (at + match.start(), at + match.end()),
            )
        )
    return tuple(timings)
