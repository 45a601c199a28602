"""What a player shows beside the sound: WebVTT captions with word times, and chapters.

A sentence is broken into cues of one phrase: at most two lines of 42 characters, or of 18 where
the script is Chinese, Japanese or Korean, so that a cue fits a phone. Inside a cue every word that
the engine timed carries its time, and players that know karaoke style highlight along.
"""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LINE_COLUMNS = 42.0
"""Width of a line; a wide character takes 42/18 of a narrow one."""

_LINES = 2
_PAUSES = (",", ";", ":", "，", "；", "：", "、", "—")

_WIDE = (
    r"\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6"
)
_WIDE += r"\U0001f300-\U0001faff\U00020000-\U0003fffd"
_OPENING = "「『《〈【（［“"
_CLOSING = "、。，．：；？！」』》〉】）］”…—～·・ー"
# What a line is not broken in: a run of narrow characters, or one wide character, with the
# punctuation that belongs to it.
_UNBROKEN = re.compile(
    rf"[{_OPENING}]*(?:[^\s{_WIDE}{_OPENING}{_CLOSING}]+|[{_WIDE}])?[{_CLOSING}]*\s*"
)

TimedWord = tuple[str, int, int]
"""(text, start_ms, end_ms) on the recording's timeline."""

Span = tuple[int, int]
"""Characters `start` to `end` of a sentence."""


@dataclass(frozen=True, slots=True)
class Cue:
    """A sentence and when it is heard, in ms on the recording's timeline.

    Attributes:
        text: as a caption shows it.
        words: ascending, as they occur in `text`; may be empty or incomplete.
    """

    start_ms: int
    end_ms: int
    text: str
    words: Sequence[TimedWord] = ()


@dataclass(frozen=True, slots=True)
class ChapterMark:
    """A chapter, in ms on the recording's timeline."""

    start_ms: int
    end_ms: int
    title: str


def webvtt(
    cues: Sequence[Cue], *, lang: str = "", title: str = "", voice: str = "", model: str = ""
) -> str:
    """A WebVTT file (W3C WebVTT, section 4).

    Args:
        cues: sentences, ascending, not overlapping.
        lang, title, voice, model: named in a NOTE where not empty.
    """
    blocks = ["WEBVTT"]
    facts = {"Title": title, "Language": lang, "Voice": voice, "Model": model}
    note = [f"{name}: {_note(fact)}" for name, fact in facts.items() if fact]
    if note:
        blocks.append("\n".join(["NOTE", *note]))
    for cue in cues:
        blocks += _blocks(cue)
    return "\n\n".join(blocks) + "\n"


def chapters_json(marks: Sequence[ChapterMark]) -> str:
    """JSON chapters as podcast players read them (podcast namespace, version 1.2.0)."""
    chapters = [
        {"startTime": mark.start_ms / 1000, "endTime": mark.end_ms / 1000, "title": mark.title}
        for mark in marks
    ]
    return json.dumps({"version": "1.2.0", "chapters": chapters}, ensure_ascii=False)


def _blocks(cue: Cue) -> Iterator[str]:
    """A sentence as one cue block for each phrase."""
    text = " ".join(cue.text.split())
    stamps = _stamps(cue, text)
    start_ms = cue.start_ms
    for phrase in _phrases(text):
        end_ms = _time_at(phrase[-1][1], cue, text, stamps)
        if end_ms > start_ms:
            lines = _payload(text, phrase, stamps, start_ms, end_ms)
            yield f"{timestamp(start_ms)} --> {timestamp(end_ms)}\n{lines}"
        start_ms = max(start_ms, end_ms)


def _stamps(cue: Cue, text: str) -> dict[int, int]:
    """When the characters at which words begin are heard; strictly ascending, inside the cue."""
    stamps: dict[int, int] = {}
    at, last_ms = 0, cue.start_ms
    for word, start_ms, _ in cue.words:
        found = text.find(word, at) if word else -1
        if found < 0:
            continue
        at = found + len(word)
        if last_ms < start_ms < cue.end_ms:
            stamps[found] = last_ms = start_ms
    return stamps


def _time_at(position: int, cue: Cue, text: str, stamps: dict[int, int]) -> int:
    """When a character is heard: by the words around it, evenly between them."""
    places = [0, *(place for place in stamps if place), len(text)]
    times = [cue.start_ms, *(ms for place, ms in stamps.items() if place), cue.end_ms]
    left = min(bisect_right(places, position), len(places) - 1) - 1
    share = (position - places[left]) / max(places[left + 1] - places[left], 1)
    return times[left] + int((times[left + 1] - times[left]) * share)


def _phrases(text: str) -> Iterator[list[Span]]:
    """The unbroken pieces of a sentence, as many in each phrase as two lines hold.

    A phrase ends early behind a comma in its second half, where a speaker takes breath.
    """
    phrase: list[Span] = []
    for piece in _unbroken(text):
        if len(_lines(text, [*phrase, piece])) > _LINES:
            ends = range(len(phrase), len(phrase) // 2, -1)
            breaths = (end for end in ends if _shown(text, phrase[end - 1]).endswith(_PAUSES))
            cut = next(breaths, len(phrase))
            yield phrase[:cut]
            phrase = phrase[cut:]
        phrase.append(piece)
    if phrase:
        yield phrase


def _lines(text: str, pieces: Sequence[Span]) -> list[Span]:
    """Pieces in lines, each as full as it gets."""
    lines: list[Span] = []
    for start, end in pieces:
        if lines and _columns(_shown(text, (lines[-1][0], end))) <= LINE_COLUMNS:
            lines[-1] = (lines[-1][0], end)
        else:
            lines.append((start, end))
    return lines


def _unbroken(text: str) -> Iterator[Span]:
    """Pieces a line break may not enter, unless one alone is wider than a line."""
    for match in _UNBROKEN.finditer(text):
        start, end = match.span()
        while _columns(_shown(text, (start, end))) > LINE_COLUMNS:
            yield start, start + int(LINE_COLUMNS // 3)
            start += int(LINE_COLUMNS // 3)
        if end > start:
            yield start, end


def _payload(
    text: str, phrase: Sequence[Span], stamps: dict[int, int], start_ms: int, end_ms: int
) -> str:
    """The text of a cue; before each word its time, which must lie inside the cue."""
    lines = []
    for start, end in _lines(text, phrase):
        out = ""
        for position in range(start, end):
            at = stamps.get(position)
            if at is not None and start_ms < at < end_ms:
                out += f"<{timestamp(at)}>"
            out += _ESCAPES.get(text[position], text[position])
        lines.append(out.strip())
    return "\n".join(lines)


_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def _shown(text: str, span: Span) -> str:
    return text[span[0] : span[1]].strip()


def _columns(text: str) -> float:
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    narrow = len(text) - wide - sum(map(bool, map(unicodedata.combining, text)))
    return wide * LINE_COLUMNS / 18 + narrow


def timestamp(ms: int) -> str:
    """`00:01:02.345`."""
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}.{ms:03}"


def _note(text: str) -> str:
    """A comment ends at an empty line and may hold no arrow."""
    return " ".join(text.split()).replace("-->", "->")
