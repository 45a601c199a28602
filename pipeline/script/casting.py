"""A script to a request for speech: voices, pace, and where the chapters begin."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.base import Controls, SpeechRequest, Turn, Voice
from pipeline.script.model import NARRATOR, Kind, Script
from pipeline.script.words import language_of

CONTROLS: Mapping[Kind, Controls] = {"decision": Controls(rate=0.95, manner="serious")}
"""How a kind is said; kinds that are not here are said plainly."""


_DURATION = re.compile(r"(?P<rule>fixed|max|speed):(?P<value>\d+(?:\.\d+)?)(?P<unit>[sm]?)")
_LIVELY = {"zh": 4.5, "ja": 7.0}  # characters a second at rate 1; others 15


@dataclass(frozen=True, slots=True)
class ChapterStart:
    """A chapter begins with this turn of the request."""

    turn: int
    title: str


def cast(
    script: Script, voices: Sequence[Voice], wanted: Mapping[str, str], default: str
) -> dict[str, str]:
    """Give every speaker a voice, the same one for the same script every time.

    Args:
        voices: what the engine offers.
        wanted: speaker -> voice id; `default` is the narrator's. Names are compared without case.
        default: the narrator's voice where `wanted` has none and it speaks the language.

    Returns:
        speaker -> voice id, `NARRATOR` included. Speakers without a wish get distinct voices of
        their language in order of appearance, women and men in turn.
    """
    wishes = {name.casefold(): voice for name, voice in wanted.items()}
    languages = speaker_languages(script)
    by_lang: dict[str, list[Voice]] = {}
    for voice in sorted(voices, key=by_grade):
        by_lang.setdefault(voice.lang, []).append(voice)
    narrator_voices = by_lang.get(languages[NARRATOR], [])
    narrator = default
    if default not in {voice.id for voice in narrator_voices} and narrator_voices:
        narrator = narrator_voices[0].id
    casting = {NARRATOR: wishes.get("default", narrator)}
    for speaker in languages:
        if speaker.casefold() in wishes:
            casting.setdefault(speaker, wishes[speaker.casefold()])
    genders = {voice.id: voice.gender for voice in voices}
    last_gender = genders.get(casting[NARRATOR], "")
    for speaker, lang in languages.items():
        if speaker not in casting:
            casting[speaker] = _next_voice(by_lang.get(lang, []), casting, last_gender)
        last_gender = genders.get(casting[speaker], "")
    return casting


def to_request(
    script: Script,
    casting: Mapping[str, str],
    *,
    live: bool = False,
    duration: str = "",
    seed: int = 0,
) -> SpeechRequest:
    """One turn per segment.

    Args:
        casting: from `cast`.
        duration: `free`, `fixed:90s`, `max:5m` or `speed:1.1`, as a note has it.
    """
    languages = speaker_languages(script)
    rate, target_s = _pace(duration, script)
    turns = []
    for segment in script.segments():
        plain = CONTROLS.get(segment.kind, Controls())
        pace = min(max(plain.rate * rate, 0.5), 2.0)
        controls = replace(plain, rate=pace, emotion=segment.emotion)
        turn = Turn(
            text=segment.text,
            voice=casting.get(segment.speaker, casting[NARRATOR]),
            lang=languages[segment.speaker],
            pause_before_ms=segment.pause_ms,
            controls=controls,
        )
        turns.append(turn)
    return SpeechRequest(turns=tuple(turns), live=live, target_s=target_s, seed=seed)


def chapter_starts(script: Script) -> tuple[ChapterStart, ...]:
    """Where each chapter begins, for marks in the recording and the player's list."""
    starts, turn = [], 0
    for chapter in script.chapters:
        starts.append(ChapterStart(turn, chapter.title))
        turn += len(chapter.segments)
    return tuple(starts)


def speaker_languages(script: Script) -> dict[str, str]:
    """The language each speaker mostly uses, in order of appearance; the narrator comes first.

    A speaker keeps one voice, so one language; words of another are read by that voice.
    """
    texts: dict[str, list[str]] = {NARRATOR: []}
    for segment in script.segments():
        if not segment.text.endswith((":", "：")):  # a name, in whatever script it is
            texts.setdefault(segment.speaker, []).append(segment.text)
        texts.setdefault(segment.speaker, [])
    return {speaker: language_of(" ".join(said), script.lang) for speaker, said in texts.items()}


def by_grade(voice: Voice) -> tuple[str, int]:
    """Sorts voices: A, A-, B+, B, ...; those without a grade come last."""
    return voice.grade[:1] or "Z", {"+": 0, "-": 2}.get(voice.grade[1:], 1)


def _next_voice(voices: Sequence[Voice], casting: Mapping[str, str], last_gender: str) -> str:
    """A free voice, rather of the other gender; when none is free, the least used."""
    if not voices:
        return casting[NARRATOR]
    uses = Counter(casting.values())
    best = min(voices, key=lambda v: (uses[v.id], bool(v.gender) and v.gender == last_gender))
    return best.id


def _pace(duration: str, script: Script) -> tuple[float, float | None]:
    """(rate, length in seconds or None) that a duration rule asks for."""
    found = _DURATION.fullmatch(duration)
    if not found:
        return 1.0, None
    value = float(found["value"]) * (60.0 if found["unit"] == "m" else 1.0)
    if found["rule"] == "speed":
        return value, None
    if found["rule"] == "max" and estimate_s(script) <= value:
        return 1.0, None
    return 1.0, value


def estimate_s(script: Script) -> float:
    """A guess of the length, for `max:` rules and progress."""
    spoken = sum(
        len(segment.text) / _LIVELY.get(language_of(segment.text, script.lang), 15.0)
        for segment in script.segments()
    )
    return spoken + sum(segment.pause_ms for segment in script.segments()) / 1000.0
