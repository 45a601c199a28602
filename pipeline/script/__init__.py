"""Meeting notes to what is said: `Note` -> `Script` -> `SpeechRequest`."""

from pipeline.errors import ScriptError
from pipeline.script.casting import (
    ChapterStart,
    cast,
    chapter_starts,
    estimate_s,
    speaker_languages,
    to_request,
)
from pipeline.script.composer import compose, merge
from pipeline.script.model import (
    NARRATOR,
    Chapter,
    Script,
    Segment,
    Skipped,
    TooLong,
    Unspeakable,
)
from pipeline.script.words import SECTION_NAMES, SectionNames

__all__ = [
    "NARRATOR",
    "SECTION_NAMES",
    "Chapter",
    "ChapterStart",
    "Script",
    "ScriptError",
    "SectionNames",
    "Segment",
    "Skipped",
    "TooLong",
    "Unspeakable",
    "cast",
    "chapter_starts",
    "compose",
    "estimate_s",
    "merge",
    "speaker_languages",
    "to_request",
]
