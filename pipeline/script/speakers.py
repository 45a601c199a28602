"""Who speaks: labels (`Alice: ...`), stamps (`Alice 00:12:05`), and which of them are people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pipeline.script.model import MAX_SPEAKERS, TooLong
from pipeline.script.words import SectionNames

_TIME = r"[\[(（]?(?:\d{1,2}:)?\d{1,2}:\d{2}(?:[.,]\d{1,3})?[\])）]?"
_NAME = r"\*{0,2}(?P<name>[^\W\d_][\w .·'’-]{0,19}?)\*{0,2}"
LABEL = re.compile(
    rf"\s*(?:[-*•]\s+)?(?P<before>{_TIME}\s+)?{_NAME}(?P<after>\s*{_TIME})?"
    r"\s*[:：](?!//)\*{0,2}(?P<rest>.*)"
)
STAMPED = re.compile(rf"\s*{_NAME}\s+(?P<time>{_TIME})\s*")
_NAME_LIST = re.compile(r"[、,，;；/]|\s{2,}|\band\b|和")


def find_speakers(lines: Sequence[str], roster: set[str], names: SectionNames) -> dict[str, str]:
    """Confirmed speakers, folded name -> name.

    A label is a speaker if the name is on the roster or an attendee, if it comes twice, if it has a
    time, or if it stands next to a line of a confirmed speaker. Anything else is words and a colon.

    Raises:
        TooLong: more than `MAX_SPEAKERS`.
    """
    known = {fold(name): name for name in roster}
    labels = _labels(lines, known, names)
    written = {label.folded: label.name for label in reversed(labels)}
    seen = Counter(label.folded for label in labels if label.folded)
    sure = {*known, *(name for name in seen if seen[name] > 1)}
    sure.update(label.folded for label in labels if label.kind == "timed")
    stamped = {label.folded for label in labels if label.kind == "stamp"}
    if sure & stamped:
        sure |= stamped
    neighbours = [*pairwise(labels), *pairwise(reversed(labels))]
    sure.update(b.folded for a, b in neighbours if b.folded and a.folded in sure)
    speakers = {name: known.get(name, written.get(name, "")) for name in sure - names.not_people}
    if len(seen.keys() & speakers.keys()) > MAX_SPEAKERS:
        raise TooLong(f"the note has more than {MAX_SPEAKERS} speakers; split it")
    return speakers


@dataclass(frozen=True, slots=True)
class _Label:
    """What a line of words begins with; an empty name for lines without a label."""

    folded: str = ""
    name: str = ""
    kind: Literal["", "bare", "timed", "stamp"] = ""


def _labels(lines: Sequence[str], known: dict[str, str], names: SectionNames) -> list[_Label]:
    """One label for each line that is not blank; adds attendees to `known`."""
    labels = []
    for line in filter(str.strip, lines):
        stamp = STAMPED.fullmatch(line) if len(line) < 80 else None
        found = stamp or LABEL.match(line[:200])
        folded = fold(found["name"]) if found else ""
        if found and names.roles.get(folded) == "attendees":
            known.update(_attendees(line.partition(found["name"])[2]))
        if not found or folded in names.not_people:
            labels.append(_Label())
        elif stamp:
            labels.append(_Label(folded, found["name"].strip(), "stamp"))
        else:
            timed = found["before"] or found["after"]
            labels.append(_Label(folded, found["name"].strip(), "timed" if timed else "bare"))
    return labels


def _attendees(text: str) -> dict[str, str]:
    """`：李雷、韩梅梅` -> folded name -> name."""
    people = [person.strip() for person in _NAME_LIST.split(text.strip(" :：*"))]
    return {fold(person): person for person in people if 0 < len(person) <= 20}


def fold(name: str) -> str:
    """A name as it is compared."""
    return name.strip(" *").casefold()


def turn_pattern(speakers: Mapping[str, str]) -> re.Pattern[str] | None:
    """Finds `...。韩梅梅：...`, a turn that begins in the middle of a line."""
    if not speakers:
        return None
    names = "|".join(re.escape(name) for name in sorted(speakers, key=len, reverse=True))
    return re.compile(
        rf"(?<=[。！？!?.;；…])\s*\*{{0,2}}(?P<name>{names})\*{{0,2}}\s*[:：](?!//)", re.I
    )
