"""What is said: a script of chapters of segments; plain values, JSON and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pipeline.errors import ScriptError

Kind = Literal["title", "heading", "decision", "todo", "speech", "prose", "quote"]

MAX_CHARACTERS = 200_000
MAX_CHAPTERS = 200
MAX_SPEAKERS = 40
NARRATOR = ""

PAUSE_MS: Mapping[Kind, int] = {
    "title": 0,
    "heading": 700,
    "decision": 500,
    "todo": 300,
    "speech": 250,
    "prose": 0,
    "quote": 250,
}


class TooLong(ScriptError):
    """More characters, chapters or speakers than one episode may have."""

    code = "too_long"


class Unspeakable(ScriptError):
    """Nothing is left to say once links, code and symbols are taken out."""

    code = "unspeakable"


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch said by one speaker.

    Attributes:
        speaker: a name, or `NARRATOR`.
        emotion: a name or free text; empty is calm.
        pause_ms: silence before it.
    """

    kind: Kind
    speaker: str
    text: str
    emotion: str = ""
    pause_ms: int = 0


@dataclass(frozen=True, slots=True)
class Chapter:
    """A place to jump to; `title` is for the chapter list, a heading segment says it aloud."""

    title: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A part of the note that is not said, and why."""

    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Script:
    """What is said, in order.

    Attributes:
        lang: main language, ISO 639-1.
        skipped: what of the note is not said.
        offered: chapters the short form leaves out; each is spoken when somebody opens it.
    """

    title: str
    lang: str
    chapters: tuple[Chapter, ...]
    skipped: tuple[Skipped, ...] = ()
    offered: tuple[Chapter, ...] = ()

    def segments(self) -> Iterator[Segment]:
        """All segments in speaking order; their index is the index of the turn."""
        for chapter in self.chapters:
            yield from chapter.segments

    def digest(self) -> str:
        """SHA-256 over what is heard; titles that are not spoken do not change it."""
        heard = [self.lang, *(list(asdict(segment).values()) for segment in self.segments())]
        return hashlib.sha256(json.dumps(heard, ensure_ascii=False).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them."""
        return asdict(self)

    def kept(self, *, degraded: Sequence[str] = (), warnings: Sequence[str] = ()) -> dict[str, Any]:
        """The script as an episode keeps it, with what people should know about its speech.

        Args:
            degraded: what the voice does in another way than it was wished.
            warnings: of the engine.
        """
        skipped = [asdict(one) for one in self.skipped]
        remarks = {"degraded": [*degraded], "warnings": [*warnings], "skipped": skipped}
        return self.to_dict() | {"remarks": remarks}

    def whole(self) -> Script:
        """The script with the chapters it offers at its end."""
        return replace(self, chapters=self.chapters + self.offered, offered=())

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Script:
        """The inverse of `to_dict`, also after a trip through JSON."""
        return cls(
            title=value["title"],
            lang=value["lang"],
            chapters=_chapters(value["chapters"]),
            skipped=tuple(Skipped(**item) for item in value["skipped"]),
            offered=_chapters(value.get("offered", ())),
        )

    def opened(self, number: int) -> Script:
        """The script of one offered chapter, `number` from 0.

        Raises:
            Unspeakable: there is no such chapter.
        """
        if not 0 <= number < len(self.offered):
            raise Unspeakable(f"chapter {number} is not offered; there are {len(self.offered)}")
        chapter = self.offered[number]
        return Script(chapter.title or self.title, self.lang, (chapter,))


def _chapters(values: Iterable[Mapping[str, Any]]) -> tuple[Chapter, ...]:
    return tuple(
        Chapter(item["title"], tuple(Segment(**segment) for segment in item["segments"]))
        for item in values
    )
