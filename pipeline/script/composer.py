"""Meeting notes to a script: read the lines, put the chapters into the order of listening.

No model and no guess that a reader of the notes could not follow: the same note gives the same
script. Nothing is lost in silence: every letter and digit of the note is in a segment, in a title,
or in `Script.skipped` with the reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from connectors.base import Note
from pipeline.script.clean import Cleaner, has_letters
from pipeline.script.model import (
    MAX_CHAPTERS,
    MAX_CHARACTERS,
    NARRATOR,
    PAUSE_MS,
    Chapter,
    Script,
    Segment,
    TooLong,
    Unspeakable,
)
from pipeline.script.reader import Draft, Reader, Role
from pipeline.script.speakers import find_speakers, fold
from pipeline.script.subtitles import read_subtitles
from pipeline.script.words import (
    NO_PHRASES,
    PHRASES,
    SECTION_NAMES,
    Phrases,
    SectionNames,
    language_of,
    number_word,
)

LONG_TRANSCRIPT_CHARACTERS = 20_000  # about an hour: beyond it, notes that have a short form use it
AFTER_HEADING_MS = 350

_CODE = re.compile(r"[a-z]{2}")
_RANK: Mapping[Role, int] = {"front": 0, "summary": 1, "decision": 2, "todo": 3, "other": 4}


def compose(
    note: Note, *, roster: Iterable[str] = (), names: SectionNames = SECTION_NAMES
) -> Script:
    """Turn a note into a script.

    Args:
        note: complete, that is with the endpoint's defaults filled in.
        roster: names known to be speakers, beside those the note itself lists.
        names: what sections are called.

    Raises:
        TooLong: above `MAX_CHARACTERS`, `MAX_CHAPTERS` or `MAX_SPEAKERS`.
        Unspeakable: nothing to say.
    """
    size = len(note.title) + len(note.text)
    if size > MAX_CHARACTERS:
        raise TooLong(f"the note has {size} characters, {MAX_CHARACTERS} fit; split it")
    lang = _note_language(note)
    text = note.text.replace("\r\n", "\n").replace("\r", "\n")
    cleaner = Cleaner(PHRASES.get(lang, NO_PHRASES))
    subtitles = read_subtitles(text, cleaner)
    lines = subtitles.lines if subtitles else text.split("\n")
    known = {*roster, *note.speakers, note.speaker} | (subtitles.speakers if subtitles else set())
    speakers = find_speakers(lines, known - {"", "default"}, names)
    reader = Reader(note, lang, speakers, names, cleaner)
    reader.read(lines)
    script = _arrange(reader, note, lang)
    if not any(has_letters(segment.text) for segment in script.segments()):
        raise Unspeakable("the note holds nothing that can be spoken, only links, code or symbols")
    _check_size(script, size)
    return script


def merge(title: str, scripts: Sequence[Script]) -> Script:
    """Several notes as one episode: its title, then each note's chapters under the note's name.

    Raises:
        TooLong: together more than `MAX_CHAPTERS` chapters or `MAX_CHARACTERS` characters.
        Unspeakable: no scripts.
    """
    if not scripts:
        raise Unspeakable("there is no note left to speak")
    chapters = [Chapter(title, (Segment("title", NARRATOR, title),))] if has_letters(title) else []
    for script in scripts:
        first, *others = script.chapters
        segments = tuple(_as_heading(segment) for segment in first.segments)
        chapters += [Chapter(first.title or script.title, segments), *others]
    lang = Counter(script.lang for script in scripts).most_common(1)[0][0]
    skipped = tuple(part for script in scripts for part in script.skipped)
    offered = tuple(chapter for script in scripts for chapter in script.offered)
    merged = Script(title, lang, tuple(chapters), skipped, offered)
    _check_size(merged, sum(len(segment.text) for segment in merged.segments()))
    return merged


def _as_heading(segment: Segment) -> Segment:
    if segment.kind != "title":
        return segment
    return replace(segment, kind="heading", pause_ms=PAUSE_MS["heading"])


def _check_size(script: Script, characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise TooLong(f"{characters} characters, {MAX_CHARACTERS} fit in one episode; split it")
    if len(script.chapters) > MAX_CHAPTERS:
        count = len(script.chapters)
        raise TooLong(f"{count} chapters, {MAX_CHAPTERS} fit in one episode; split it")


def _arrange(reader: Reader, note: Note, lang: str) -> Script:
    """Title and date, summary, decisions, to-dos, then the rest in its own order."""
    cleaner, phrases = reader.cleaner, reader.phrases
    title = cleaner.clean(" ".join(note.title.split())) or reader.title
    drafts = [draft for draft in reader.drafts if draft.segments or draft.title]
    offered: list[Draft] = []
    title = _take_title(title, drafts, cleaner)
    if not reader.verbatim:
        drafts.sort(key=lambda draft: _RANK[draft.role])
        drafts = _join_same(drafts, cleaner)
        drafts, offered = _shorten(drafts, note)
        _number_decisions(drafts, lang, phrases)
    front = reader.front
    if has_letters(title):
        front.segments.insert(0, Segment("title", NARRATOR, title))
    if front.segments and drafts and not drafts[0].title:
        front.segments += drafts.pop(0).segments
    if front.segments:
        drafts.insert(0, front)
    elif drafts and not drafts[0].title and drafts[0].role == "other":
        drafts[0].role = "front"
    chapters = [_chapter(draft, title, phrases) for draft in drafts]
    shown = title or _first_words(chapters)
    others = tuple(_chapter(draft, title, phrases) for draft in offered)
    return Script(shown, lang, tuple(chapters), tuple(cleaner.skipped), others)


def _take_title(title: str, drafts: list[Draft], cleaner: Cleaner) -> str:
    """The first heading is the title, if the note has none or the same one."""
    opening = drafts[0] if drafts else None
    if opening is None or not opening.title or opening.role != "other":
        return title
    if not has_letters(title) or fold(opening.title) == fold(title):
        if has_letters(title):
            cleaner.skip(opening.title, "repeats the title")
        title, opening.title = opening.title, ""
        if not opening.segments:
            drafts.pop(0)
    return title


def _join_same(drafts: list[Draft], cleaner: Cleaner) -> list[Draft]:
    """Sections of one role and name, scattered over the note, become one chapter."""
    joined: list[Draft] = []
    for draft in drafts:
        last = joined[-1] if joined else None
        same = last and last.role == draft.role and fold(last.title) == fold(draft.title)
        if last and same and (draft.role != "other" or not draft.title):
            last.segments += draft.segments
            cleaner.skip(draft.title, "repeated heading")
        else:
            joined.append(draft)
    return joined


def _shorten(drafts: list[Draft], note: Note) -> tuple[list[Draft], list[Draft]]:
    """What is said and what is offered.

    `brief` says summary, decisions and to-dos, if the note has any, and offers the rest; `full`
    says everything.
    """
    speech = sum(len(s.text) for draft in drafts for s in draft.segments if s.kind == "speech")
    brief = note.detail == "brief" or (not note.detail and speech > LONG_TRANSCRIPT_CHARACTERS)
    said = [draft for draft in drafts if draft.role != "other"]
    rest = [draft for draft in drafts if draft.role == "other"]
    todos = [segment for draft in rest for segment in draft.segments if segment.kind == "todo"]
    if todos:
        said.append(Draft("todo", segments=todos))
    if not brief or not any(draft.segments for draft in said):
        return drafts, []
    for draft in rest:
        draft.segments = [segment for segment in draft.segments if segment.kind != "todo"]
    return said, [draft for draft in rest if draft.segments or draft.title]


def _number_decisions(drafts: list[Draft], lang: str, phrases: Phrases) -> None:
    total = sum(s.kind == "decision" for draft in drafts for s in draft.segments)
    count = 0
    for draft in drafts:
        for at, segment in enumerate(draft.segments):
            if segment.kind == "decision":
                count += 1
                form = phrases.numbered_decision if total > 1 else phrases.decision
                said = form.format(number=number_word(count, lang), text=segment.text)
                draft.segments[at] = replace(segment, text=said)


def _chapter(draft: Draft, title: str, phrases: Phrases) -> Chapter:
    """Freeze a draft; its title is spoken, unless it is the front."""
    names = {"decision": phrases.decisions, "todo": phrases.todos, "other": phrases.discussion}
    name = draft.title or (title if draft.role == "front" else names.get(draft.role, ""))
    segments = list(draft.segments)
    if draft.role != "front" and has_letters(name):
        segments.insert(0, Segment("heading", NARRATOR, name, pause_ms=PAUSE_MS["heading"]))
    for at in range(1, len(segments)):
        if segments[at - 1].kind in ("title", "heading"):
            pause_ms = max(segments[at].pause_ms, AFTER_HEADING_MS)
            segments[at] = replace(segments[at], pause_ms=pause_ms)
    return Chapter(name, tuple(segments))


def _first_words(chapters: Sequence[Chapter]) -> str:
    """A title for lists, where the note has none."""
    segments = [segment for chapter in chapters for segment in chapter.segments]
    own = (segment.text for segment in segments if not segment.text.endswith((":", "：")))
    text = next(own, segments[0].text if segments else "")
    return text if len(text) <= 40 else text[:39].rstrip() + "…"


def _note_language(note: Note) -> str:
    if _CODE.fullmatch(note.lang):
        return note.lang
    return language_of(f"{note.title}\n{note.text}", "")
