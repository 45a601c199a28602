"""Subtitle files (WebVTT, SubRip) as lines of a transcript: `Alice: what she said`.

Zoom writes the name before the words, Teams writes a voice tag (`<v Alice>`); cues that one person
says one after the other are joined, so that a sentence is not cut where a line on a screen ended.
Times and numbers of cues go to `skipped`.

Source: W3C WebVTT, sections 4.1 and 6.4; SubRip as written by Zoom and players.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.script.clean import Cleaner
from pipeline.script.words import glue

_TIMES = re.compile(
    r"\s*(?:\d{1,3}:)?\d{1,2}:\d{2}[.,]\d{1,3}\s*-->\s*(?:\d{1,3}:)?\d{1,2}:\d{2}[.,]\d{1,3}(?:\s.*)?"
)
_BLOCKS = ("NOTE", "STYLE", "REGION")
_VOICE = re.compile(r"<(?P<mark>v(?:\.[^\s<>]{0,60})?)\s+(?P<name>[^<>]{1,80})>")
_VOICE_END = "</v>"
_NAMED = re.compile(r"(?P<name>[^\W\d_][\w .·'’()-]{0,38}?)\s*[:：]\s*(?P<said>.+)", re.DOTALL)
_MAX_TURN_CHARACTERS = 1_000
_MAX_NAME_CHARACTERS = 20
_LOOK_LINES = 12


@dataclass(frozen=True, slots=True)
class Transcript:
    """The lines, and who surely speaks in them: named by a tag, or twice."""

    lines: list[str]
    speakers: frozenset[str]


@dataclass(slots=True)
class _Turn:
    speaker: str
    said: str

    def joins(self, other: _Turn) -> bool:
        return self.speaker == other.speaker and len(self.said) < _MAX_TURN_CHARACTERS

    def line(self) -> str:
        return f"{self.speaker}: {self.said}" if self.speaker else self.said


def read_subtitles(text: str, cleaner: Cleaner) -> Transcript | None:
    """The transcript in a subtitle file; None for a text that is not one.

    Args:
        cleaner: is told what is left out.
    """
    if not _is_subtitles(text):
        return None
    turns: list[_Turn] = []
    seen: Counter[str] = Counter()
    for cue in _cues(text, cleaner):
        for turn in _turns(cue, seen, cleaner):
            if turns and turns[-1].said == turn.said and turns[-1].speaker == turn.speaker:
                cleaner.skip(turn.line(), "repeated caption")
            elif turns and turns[-1].joins(turn):
                turns[-1].said += glue(turns[-1].said, turn.said) + turn.said
                cleaner.skip(turn.speaker, "speaker label")
            else:
                turns.append(turn)
    speakers = {name for name, times in seen.items() if times > 1}
    return Transcript([turn.line() for turn in turns], frozenset(speakers))


def _is_subtitles(text: str) -> bool:
    head = text.lstrip("\ufeff \t\r\n")[:2_000].splitlines()[:_LOOK_LINES]
    return any(_TIMES.fullmatch(line) for line in head)


def _cues(text: str, cleaner: Cleaner) -> Iterator[str]:
    """The words of each cue; headers, notes, styles, cue names and times are skipped."""
    lines = text.lstrip("\ufeff").splitlines()
    at = 0
    while at < len(lines):
        end = at
        while end < len(lines) and lines[end].strip():
            end += 1
        block = lines[at:end]
        times = next((n for n, line in enumerate(block[:2]) if _TIMES.fullmatch(line)), None)
        if times is not None:
            cleaner.skip(" ".join(block[: times + 1]), "timestamp")
            if words := "\n".join(block[times + 1 :]).strip():
                yield words
        elif block and (block[0].startswith(_BLOCKS) or (at == 0 and "WEBVTT" in block[0])):
            cleaner.skip(" ".join(block), "subtitle header")
        elif block:  # words without a time: say them rather than lose them
            yield "\n".join(block)
        at = end + 1


def _turns(cue: str, seen: Counter[str], cleaner: Cleaner) -> Iterator[_Turn]:
    """Who says what in one cue: by voice tags, else by a name and a colon; counts the names."""
    tags = list(_VOICE.finditer(cue))
    if before := _spaced(cue[: tags[0].start()] if tags else cue):
        named = _NAMED.fullmatch(before)
        if named:
            name = _short_name(named["name"], cleaner)
            seen[name] += 1
            yield _Turn(name, named["said"])
        else:
            yield _Turn("", before)
    ends = [*(tag.start() for tag in tags[1:]), len(cue)]
    for tag, end in zip(tags, ends, strict=False):  # without a tag there is nothing to end
        cleaner.skip(tag["mark"], "markup")
        name = _short_name(cleaner.clean(tag["name"]), cleaner)
        seen[name] += 2  # a tag names a person for certain
        if said := _spaced(cue[tag.end() : end].removesuffix(_VOICE_END)):
            yield _Turn(name, said)
        else:
            cleaner.skip(name, "speaker label")
        if cue[tag.end() : end].endswith(_VOICE_END):
            cleaner.skip(_VOICE_END, "markup")


def _short_name(name: str, cleaner: Cleaner) -> str:
    """A name as it can stand before a colon: without `(Guest)`, in at most 20 characters."""
    short, bracket, rest = name.partition("(")
    words = short.split()
    while len(words) > 1 and len(" ".join(words)) > _MAX_NAME_CHARACTERS:
        rest = f"{words.pop()} {rest}"
    cleaner.skip(bracket + rest, "speaker label")
    kept = " ".join(words)
    cleaner.skip(kept[_MAX_NAME_CHARACTERS:], "speaker label")
    return kept[:_MAX_NAME_CHARACTERS]


def _spaced(text: str) -> str:
    """One line; what else is markup in it, the reader takes out of every line."""
    return " ".join(text.split())
