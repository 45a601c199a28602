"""The lines of a note, read once into drafts of chapters.

Each line is offered to a row of readers (table, heading, section, task, speaker, ...), each of
which declines when it is unsure; prose always succeeds. So Markdown, named sections, transcripts
and plain paragraphs, Chinese and English, may be mixed in one note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from connectors.base import Note
from pipeline.script.clean import Cleaner, has_letters
from pipeline.script.model import NARRATOR, PAUSE_MS, Kind, Segment
from pipeline.script.speakers import LABEL, STAMPED, fold, turn_pattern
from pipeline.script.todos import Todo
from pipeline.script.words import NAMES, NO_PHRASES, PHRASES, SectionNames, glue, plain_name

Role = Literal["front", "summary", "decision", "todo", "other"]

_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+(?P<text>.*)")
_BOLD = re.compile(
    r"\s*(?:\*\*|__)(?P<text>[^*_]{1,60})(?:\*\*|__)\s*[:：]?\s*|\s*【(?P<zh>[^】]{1,30})】\s*"
)
_ZH_NUMBERED = re.compile(
    r"\s*(?P<mark>[一二三四五六七八九十]{1,3}、)\s*(?P<text>[^。！？；：:，,]{1,20})\s*"
)
_SECTION = re.compile(
    r"\s*(?:[-*•#]+\s+)?(?P<mark>[一二三四五六七八九十]{1,3}、|\d{1,2}[.、)）]\s*)?"
    r"(?:\*\*|__|【)?(?P<name>[^\s:：*_【】][^:：*_【】]{0,19})(?:\*\*|__|】)?\s*"
    r"(?:(?P<colon>[:：])(?:\*\*|__)?(?P<rest>.*))?"
)
_TASK = re.compile(
    r"\s*(?:[-*+•]|\d{1,3}[.)])\s+\[(?P<done>[ xX])\]\s+(?P<text>.*)"
    r"|\s*(?P<box>[☐☑✅☒])\s*(?P<words>.*)"
)
_BULLET = re.compile(
    r"\s*(?:[-*+•·▪◦]\s+|(?P<mark>\d{1,3}(?:[.)]\s+|[、．）]\s*)|[（(]\d{1,3}[）)]\s*))(?P<text>.*)"
)
_QUOTE = re.compile(r"\s{0,3}>+\s?(?P<text>.*)")
_RULE = re.compile(r"\s*(?:[-*_=]\s*){3,}")
_KINDS: Mapping[str, Kind] = {"decision": "decision", "todo": "todo"}
_ROLES: Mapping[str, Role] = {"summary": "summary", "decision": "decision", "todo": "todo"}
_ENDS = tuple("。！？.!?…；;：:」”\"'）)")
_TITLE_CHARACTERS = 60
_WRAPPED_CHARACTERS = 40
_WRAPPED_JOIN_CHARACTERS = 2_000


@dataclass(slots=True)
class Draft:
    """A chapter in the making; `title` is its heading as it was written."""

    role: Role
    title: str = ""
    segments: list[Segment] = field(default_factory=list)


@dataclass(slots=True)
class _Open:
    """The section that lines fall into."""

    role: str = "other"
    listed: bool = False  # has had a bullet
    blank: bool = False  # a blank line came after the last bullet
    inline: bool = False  # began and went on in one line: `Decisions: ...`
    fixed: bool = False  # a Markdown heading: only the next heading ends it


class Reader:
    """One pass over the lines; fills `drafts`."""

    def __init__(
        self,
        note: Note,
        lang: str,
        speakers: Mapping[str, str],
        names: SectionNames,
        cleaner: Cleaner,
    ) -> None:
        self.note = note
        self.names = names
        self.lang = lang
        self.phrases = PHRASES.get(lang, NO_PHRASES)
        self.verbatim = note.detail == "verbatim"
        self.cleaner = cleaner
        self.title = ""  # as the first line gives it, where the note has none
        self.front = Draft("front")
        self.home = Draft("other")
        self.drafts: list[Draft] = [self.home]
        self.place = self.home
        self.section = _Open()
        self.speaker = note.speaker
        self.speakers = speakers
        self.introduced: set[str] = set()
        self.wrapped = False  # the last line was cut in the middle of a sentence
        self.stamped = False  # the speaker stands on a line of its own and speaks to the next one
        self._turn = turn_pattern(speakers)

    def read(self, lines: Sequence[str]) -> None:
        at = 0 if self.verbatim or has_letters(self.note.title) else self._opening(lines)
        while at < len(lines):
            at += self._block(lines, at) or self._line(lines[at])

    def _opening(self, lines: Sequence[str]) -> int:
        """Read a title above everything: `主题：周例会`, or a short line over a date or a section.

        Gives the lines used.
        """
        filled = (at for at, line in enumerate(lines) if line.strip())
        at, below = next(filled, -1), next(filled, -1)
        found = _SECTION.fullmatch(lines[at]) if at >= 0 else None
        if (
            found
            and plain_name(found["name"]) in NAMES["title"]
            and has_letters(found["rest"] or "")
        ):
            self.cleaner.skip(f"{found['mark'] or ''}{found['name']}", "label")
            self.title = self.cleaner.clean(found["rest"])
        elif below > 0 and self._is_title(lines[at].strip(), lines[below]):
            self.title = self.cleaner.clean(lines[at])
        return at + 1 if has_letters(self.title) else 0

    def _is_title(self, line: str, below: str) -> bool:
        plain = not (":" in line or "：" in line or "|" in line or line.endswith(_ENDS))
        if not plain or len(line) > _TITLE_CHARACTERS:
            return False
        if any(form.fullmatch(line) for form in (_HEADING, _BOLD, _ZH_NUMBERED, _TASK, _BULLET)):
            return False
        if plain_name(line) in self.names.roles or STAMPED.fullmatch(line):
            return False
        section = _SECTION.fullmatch(below)
        named = section is not None and plain_name(section["name"]) in self.names.roles
        return named or any(form.fullmatch(below) for form in (_HEADING, _ZH_NUMBERED))

    def _block(self, lines: Sequence[str], at: int) -> int:
        """Read a code block or a table; gives the lines used, 0 if there is none."""
        fence = _FENCE.match(lines[at])
        if fence:
            return self._code(lines, at, fence[1])
        below = lines[at + 1] if at + 1 < len(lines) else ""
        if "|" in lines[at] and "|" in below and "-" in below and not below.strip(" \t:|-"):
            return self._table(lines, at)
        return 0

    def _line(self, line: str) -> int:
        """Offer a line to the readers in turn."""
        if not line.strip() or _RULE.fullmatch(line):
            self.section.blank = True
            self.wrapped = False
            if not self.stamped:
                self.speaker = self.note.speaker
            return 1
        if self.section.blank and not self.section.fixed and not _BULLET.fullmatch(line):
            self._leave_list()
        readers = (self._heading, self._named_section, self._task, self._stamp, self._speech)
        if not any(reader(line) for reader in readers):
            self._item(line)
        return 1

    def _heading(self, line: str) -> bool:
        """`# Budget`, `**Budget**`, `【预算】`, `一、预算`."""
        found = _HEADING.fullmatch(line) or _BOLD.fullmatch(line) or _ZH_NUMBERED.fullmatch(line)
        if not found:
            return False
        groups = found.groupdict()
        words = self.cleaner.clean((groups.get("text") or groups.get("zh") or "").rstrip(" \t#"))
        if not has_letters(words):
            return False
        if fold(words.rstrip(":：")) in self.speakers and not line.lstrip().startswith("#"):
            return False
        self.cleaner.skip(groups.get("mark") or "", "list number")
        self._open(words.rstrip(":： "), fixed=line.lstrip().startswith("#"))
        return True

    def _named_section(self, line: str) -> bool:
        """`决议`, `Action items:`, `Decisions: ship on Friday`."""
        found = _SECTION.fullmatch(line)
        role = self.names.roles.get(plain_name(found["name"])) if found else None
        if not found or role is None:
            return False
        rest = (found["rest"] or "").strip()
        if role in ("meta", "attendees"):
            return self._front_line(line) if rest else False
        if fold(found["name"]) in self.speakers:
            return False
        self.cleaner.skip(found["mark"] or "", "list number")
        if not rest:
            self._open(self.cleaner.clean(found["name"]))
            return True
        return self._inline_section(role, found["name"].strip(), rest)

    def _inline_section(self, role: str, name: str, rest: str) -> bool:
        if role == "other":
            return False
        if self.verbatim:
            self._say(_KINDS.get(role, "prose"), self.cleaner.clean(f"{name}: {rest}"))
            return True
        back = self.place if not self.section.inline else self.home
        self._open(name)
        self.home = back
        self.section.inline = True
        self._item(rest)
        return True

    def _front_line(self, line: str) -> bool:
        """Date, place, attendees: said first, as they stand."""
        text = self.cleaner.clean(line.lstrip(" -*•"))
        if not text:
            return False
        draft = self.place if self.verbatim else self.front
        draft.segments.append(Segment("prose", NARRATOR, text, pause_ms=PAUSE_MS["todo"]))
        return True

    def _task(self, line: str) -> bool:
        found = _TASK.fullmatch(line)
        if not found:
            return False
        words = found["text"] if found["done"] else found["words"]
        self.cleaner.skip(found["done"] or "", "check box")
        done = (found["done"] or "").lower() == "x" or found["box"] in ("☑", "✅")
        self.section.listed = True
        self._todo(words or "", done=done)
        return True

    def _stamp(self, line: str) -> bool:
        """`Alice 00:12:05`, her words beneath."""
        found = STAMPED.fullmatch(line) if len(line) < 80 else None
        name = self.speakers.get(fold(found["name"])) if found else None
        if not found or name is None:
            return False
        self.cleaner.skip(found["time"], "timestamp")
        self.cleaner.skip(found["name"], "speaker label")
        self._leave_list()
        self.speaker, self.stamped = name, True
        self.wrapped = False
        return True

    def _speech(self, line: str) -> bool:
        """`Alice: ...`, also several turns in one line."""
        found = LABEL.fullmatch(line) if ":" in line or "：" in line else None
        name = self.speakers.get(fold(found["name"])) if found else None
        if not found or name is None:
            return False
        if self.section.role in ("decision", "todo"):
            if self.section.fixed or not self.section.blank:
                return False  # there a name is an owner
            self._leave_section()
        for part in (found["before"], found["after"]):
            self.cleaner.skip(part or "", "timestamp")
        self._leave_list()
        said, start = found["rest"], 0
        for turn in self._turn.finditer(said) if self._turn else ():
            self._turn_of(name, said[start : turn.start()])
            name, start = self.speakers[fold(turn["name"])], turn.end()
        self._turn_of(name, said[start:])
        return True

    def _turn_of(self, name: str, text: str) -> None:
        said = self.cleaner.clean(text)
        self.speaker, self.stamped = name, False
        if has_letters(said):
            self._say("speech", said, speaker=name)
        else:
            self.cleaner.skip(name, "speaker label")

    def _item(self, line: str) -> None:
        """A bullet, a quoted line or a line of prose, as its section wants it."""
        quote = _QUOTE.fullmatch(line)
        bullet = _BULLET.fullmatch(quote["text"] if quote else line)
        if bullet:
            self.cleaner.skip(bullet["mark"] or "", "list number")
            self.section.listed = True
            self.section.blank = False
            text = bullet["text"]
        else:
            text = quote["text"] if quote else line
        if self.section.role == "todo":
            self._todo(text, done=False)
        elif self.section.role == "decision":
            self._say("decision", self.cleaner.clean(text))
        else:
            self._prose(text, kind="quote" if quote else "prose", alone=bool(bullet))
        if self.section.inline and not bullet:
            self.section.blank = not self.wrapped

    def _prose(self, line: str, *, kind: Kind, alone: bool) -> None:
        text = self.cleaner.clean(line)
        speaker = self.speaker
        if speaker and speaker != self.note.speaker and kind == "prose":
            kind = "speech"
        segments = self.place.segments
        last = segments[-1] if segments and self.wrapped and not alone else None
        if last and last.kind == kind and len(last.text) < _WRAPPED_JOIN_CHARACTERS:
            segments[-1] = replace(last, text=f"{last.text}{glue(last.text, text)}{text}")
        else:
            self._say(kind, text, speaker=speaker)
        # A long line without a full stop was broken by a mail program, not by its author.
        self.wrapped = len(text) >= _WRAPPED_CHARACTERS and not text.endswith(_ENDS)

    def _todo(self, line: str, *, done: bool) -> None:
        text = self.cleaner.clean(line)
        if done or self.verbatim:
            self._say("todo", self.phrases.done.format(text=text) if done else text)
            return
        task = Todo.read(text, self.speakers, self.cleaner)
        if has_letters(task.task):
            self._say("todo", task.said(self.lang))

    def _code(self, lines: Sequence[str], at: int, fence: str) -> int:
        end = at + 1
        while end < len(lines) and not lines[end].lstrip().startswith(fence):
            end += 1
        if end == len(lines):  # never closed: rather say too much than nothing
            return 0
        self.cleaner.skip("\n".join(lines[at : end + 1]), "code")
        self._say("prose", self.phrases.code)
        return end + 1 - at

    def _table(self, lines: Sequence[str], at: int) -> int:
        """Rows as `column value` pairs; a table of tasks as to-dos."""
        header = [self.cleaner.clean(cell) for cell in _cells(lines[at])]
        used = [False] * len(header)
        end = at + 2
        while end < len(lines) and "|" in lines[end]:
            self._row(header, [self.cleaner.clean(cell) for cell in _cells(lines[end])], used)
            end += 1
        for name, spoken in zip(header, used, strict=True):
            if not spoken:
                self.cleaner.skip(name, "column name")
        return end - at

    def _row(self, header: Sequence[str], row: Sequence[str], used: list[bool]) -> None:
        columns = {_column(name): at for at, name in enumerate(header)}
        if {"task"} < columns.keys() and len(row) <= len(header):
            values = {kind: row[at] for kind, at in columns.items() if at < len(row)}
            others = sum(bool(has_letters(cell)) for cell in row)
            known = sum(
                bool(has_letters(values.get(kind, ""))) for kind in ("task", "owner", "due")
            )
            if known == others and has_letters(values.get("task", "")):
                task = Todo(values["task"], values.get("owner", ""), values.get("due", ""))
                self._say("todo", task.said(self.lang))
                return
        comma, pairs = ("，" if self.lang == "zh" else ", "), []
        for at, cell in enumerate(row):
            name = header[at] if at < len(header) else ""
            if has_letters(cell):
                pairs.append(f"{name} {cell}".strip())
                if name:
                    used[at] = True
        kind: Kind = "decision" if self.section.role == "decision" else "prose"
        self._say(kind, comma.join(pairs))

    def _open(self, words: str, *, fixed: bool = False) -> None:
        """Begin a chapter."""
        role = self.names.roles.get(plain_name(words), "other")
        self.section = _Open(role=role, fixed=fixed)
        self.speaker, self.stamped = self.note.speaker, False
        self.wrapped = False
        self.place = Draft(_ROLES.get(role, "other"), words)
        self.home = self.place
        self.drafts.append(self.place)

    def _leave_list(self) -> None:
        """The lines after a list under a bare label belong to the chapter before it again."""
        if self.section.inline:
            self.place = self.home
            self.section = _Open()
        elif self.section.listed and self.section.blank and not self.section.fixed:
            self._leave_section()

    def _leave_section(self) -> None:
        self.section = _Open()
        if self.place.role != "other":
            self.place = self.home = Draft("other")
            self.drafts.append(self.place)

    def _say(self, kind: Kind, text: str, *, speaker: str = NARRATOR) -> None:
        if not has_letters(text):
            return
        segments = self.place.segments
        emotion = self.note.emotion if kind in ("speech", "prose", "quote") else ""
        if kind == "speech" and speaker not in self.introduced:
            self.introduced.add(speaker)
            name = f"{speaker}{self.phrases.colon}"
            segments.append(Segment("prose", NARRATOR, name, pause_ms=PAUSE_MS["speech"]))
        segments.append(Segment(kind, speaker, text, emotion, PAUSE_MS[kind]))


def _cells(line: str) -> list[str]:
    return line.strip().removeprefix("|").removesuffix("|").split("|")


def _column(name: str) -> str:
    plain = plain_name(name)
    return next((kind for kind in ("task", "owner", "due") if plain in NAMES[kind]), plain)
