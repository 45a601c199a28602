"""Which column means what: the part of an endpoint's table that all row tools share.

    [endpoint.board]
    timezone = "Asia/Shanghai"

    [endpoint.board.trigger]
    column = "播报状态"
    equals = "待播报"               # or a list; true for a ticked box

    [endpoint.board.fields]
    title    = "会议主题"
    text     = ["会议纪要", "决议"]   # joined; names become chapter titles
    schedule = "播报时间"
    lang     = { const = "zh" }

    [endpoint.board.output]
    status = "播报状态"
    link   = "收听链接"
    labels = { queued = "排队中", live = "播报中", done = "已完成", failed = "失败" }

Columns are named as people see them, or by the tool's id. `note_from` reads a row, `output_cells`
says what to write; both are pure and know no vendor. A vendor turns `Text`, `Link`, `Audio` and
`Seconds` into its own shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import cached_property
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from connectors.base import (
    AudioFile,
    Column,
    ColumnKind,
    Connector,
    Detail,
    EpisodeState,
    Note,
    NotePatch,
    NoteRef,
)
from connectors.cells import Cell, is_checked, is_empty, list_of, text_of, time_of
from connectors.errors import nearest
from connectors.payload import DURATION_RULE, Name
from connectors.reasons import reason

DETAILS: Mapping[str, Detail] = {
    "brief": "brief", "summary": "brief", "简报": "brief", "摘要": "brief", "简要": "brief",
    "full": "full", "全文": "full", "完整": "full",
    "verbatim": "verbatim", "逐字": "verbatim", "逐字稿": "verbatim",
}  # fmt: skip
EMOTIONS: Mapping[str, str] = {
    "calm": "calm", "平静": "calm", "neutral": "calm",
    "happy": "happy", "高兴": "happy", "开心": "happy",
    "serious": "serious", "严肃": "serious",
    "excited": "excited", "激动": "excited", "兴奋": "excited",
    "sad": "sad", "悲伤": "sad",
}  # fmt: skip
LANGS: Mapping[str, str] = {
    "zh": "zh", "chinese": "zh", "中文": "zh", "en": "en", "english": "en", "英文": "en",
    "英语": "en", "mixed": "mixed", "中英": "mixed", "中英混合": "mixed", "auto": "auto",
    "自动": "auto",
}  # fmt: skip
LABELS: Mapping[str, Mapping[EpisodeState, str]] = {
    "zh": {"queued": "排队中", "live": "播报中", "done": "已完成", "failed": "失败"},
    "en": {"queued": "Queued", "live": "Live", "done": "Done", "failed": "Failed"},
}
LINK_TEXT: Mapping[str, str] = {"zh": "收听", "en": "Listen"}

_HANZI = re.compile("[\u4e00-\u9fff]")
_CODE = re.compile("[a-z]{2}")
_WEIGHTS = re.compile(
    r"[\w ]{1,20}:\s*(0(\.\d+)?|1(\.0+)?)(\s*,\s*[\w ]{1,20}:\s*(0(\.\d+)?|1(\.0+)?))*"
)
_ADDRESS = re.compile(r"[/\\]|\.\.|[A-Za-z][A-Za-z0-9+.-]+:(?![\d.])")  # a share may follow a colon
_TEXTUAL: tuple[ColumnKind, ...] = ("text", "other")
_WRITES: Mapping[str, tuple[ColumnKind, ...]] = {
    "status": (*_TEXTUAL, "select"),
    "link": (*_TEXTUAL, "url"),
    "audio": (*_TEXTUAL, "url", "attachment"),
    "error": _TEXTUAL,
    "duration": (*_TEXTUAL, "number"),
}


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Trigger(_Table):
    """A row is ready when this column holds this value; not on any edit."""

    column: Name = Field(min_length=1)
    equals: bool | Name | list[Name]

    def fits(self, cell: Cell) -> bool:
        """Does a cell say: speak?"""
        if isinstance(self.equals, bool):
            return is_checked(cell) == self.equals
        wanted = {self.equals} if isinstance(self.equals, str) else set(self.equals)
        said = {text_of(cell).strip(), *list_of(cell)}
        return bool({one.casefold() for one in wanted} & {one.casefold() for one in said})

    def said(self, cell: Cell) -> str:
        """Which of the values the cell holds, as the configuration writes it; empty if none."""
        if isinstance(self.equals, bool):
            return ""
        wanted = [self.equals] if isinstance(self.equals, str) else self.equals
        said = {one.casefold() for one in (text_of(cell).strip(), *list_of(cell))}
        return next((one for one in wanted if one.casefold() in said), "")


class Source(_Table):
    """Where a value comes from: a column, several that are joined, or a constant."""

    columns: tuple[Name, ...] = ()
    const: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _written(cls, value: Any) -> Any:
        if isinstance(value, Source):
            return value
        if isinstance(value, str) and value.strip():
            return {"columns": (value,)}
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            return {"columns": tuple(value)}
        if isinstance(value, dict) and list(value) == ["const"] and isinstance(value["const"], str):
            return value
        raise ValueError('must be a column, a list of columns, or { const = "..." }')


class Fields(_Table):
    """`[endpoint.x.fields]`: what of a row is heard, and how."""

    title: Source | None = None
    text: Source
    speaker: Source | None = None
    voice: Source | None = None
    emotion: Source | None = None
    duration: Source | None = None
    lang: Source | None = None
    schedule: Source | None = None
    detail: Source | None = None

    @field_validator("text")
    @classmethod
    def _is_read(cls, text: Source) -> Source:
        if not text.columns:
            raise ValueError("must be a column or a list of columns: it is what is spoken")
        return text

    def sources(self) -> Iterable[tuple[str, Source]]:
        """Name of the field and where it comes from, for those that are set."""
        return [(name, source) for name, source in self if source is not None]


class Output(_Table):
    """`[endpoint.x.output]`: columns that we write; one that is not named is not written."""

    status: Name = ""
    link: Name = ""
    audio: Name = ""
    error: Name = ""
    duration: Name = ""
    labels: dict[EpisodeState, Name] = Field(default_factory=dict)

    def columns(self) -> dict[str, str]:
        """What is written -> its column."""
        named = {name: getattr(self, name) for name in _WRITES}
        return {name: column for name, column in named.items() if column}


class TableConfig(Connector.Config):
    """What the configuration of every row tool begins with."""

    trigger: Trigger
    fields: Fields
    output: Output = Output()
    timezone: str = "UTC"

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f'no zone {name!r}; write an IANA name, like "Europe/Berlin"'
            ) from None
        return name

    @model_validator(mode="after")
    def _labels_do_not_trigger(self) -> TableConfig:
        if self.output.status == self.trigger.column:
            for state, label in self.labels.items():
                if self.trigger.fits(label):
                    raise ValueError(
                        f"output.labels.{state} is {label!r}, which is what makes a row ready: "
                        "the row would be spoken again and again; choose another word"
                    )
        return self

    @property
    def zone(self) -> tzinfo:
        """Of times that name none."""
        return ZoneInfo(self.timezone)

    @cached_property
    def lang(self) -> str:
        """`zh` or `en`: the language of what we write into the table, after its own words."""
        equals = self.trigger.equals
        words = [*self.output.labels.values(), *self.output.columns().values()]
        words += [equals] if isinstance(equals, str) else equals if equals.__class__ is list else []
        return "zh" if any(_HANZI.search(word) for word in words) else "en"

    @property
    def labels(self) -> dict[EpisodeState, str]:
        """What the status column says for each state."""
        return {**LABELS[self.lang], **self.output.labels}


# reading ----------------------------------------------------------------------------------------


def note_from(
    config: TableConfig,
    ref: NoteRef,
    row: Mapping[str, Cell],
    modified_at: datetime | None = None,
    *,
    columns: Sequence[Column] = (),
    now: datetime | None = None,
) -> Note:
    """Read a row.

    Args:
        row: column (name or id) -> raw cell; a column that is absent is empty.
        columns: the table's columns, needed only where the configuration names columns by id and
            the row by name, or the other way round.
        now: what a `schedule` of `9:30` is later than.

    Returns:
        The note; `ready` as the trigger says and never for a row without text. Cells that cannot be
        used are left out, with a sentence in `warnings`.
    """
    reader = _Reader(config, row, columns)
    text = reader.joined(config.fields.text)
    schedule = reader.cell(config.fields.schedule)
    at = time_of(schedule, config.zone, now=now)
    if at is None and not is_empty(schedule):
        reader.warn("schedule", text_of(schedule), "is no time; spoken at once")
    return Note(
        ref=ref,
        text=text,
        title=" ".join(reader.text("title").split())[:500],
        speaker=reader.text("speaker")[:100],
        voice=reader.voice(),
        emotion=reader.emotion(),
        duration=reader.duration(),
        lang=reader.lang(),
        schedule=at,
        detail=reader.detail(),
        modified_at=modified_at,
        ready=bool(text.strip()) and config.trigger.fits(reader.named(config.trigger.column)),
        trigger=config.trigger.said(reader.named(config.trigger.column)),
        warnings=tuple(reader.warnings),
    )


@dataclass(slots=True)
class _Reader:
    config: TableConfig
    row: Mapping[str, Cell]
    columns: Sequence[Column]
    warnings: list[str] = field(default_factory=list)

    def named(self, column: str) -> Cell:
        """A cell by the column's name or id."""
        if column in self.row:
            return self.row[column]
        for known in self.columns:
            if column in (known.id, known.name):
                return self.row.get(known.id, self.row.get(known.name))
        return None

    def cell(self, source: Source | None) -> Cell:
        if source is None:
            return None
        if source.const is not None:
            return source.const
        cells = (self.named(column) for column in source.columns)
        return next((cell for cell in cells if not is_empty(cell)), None)

    def text(self, name: str) -> str:
        return text_of(self.cell(getattr(self.config.fields, name))).strip()

    def joined(self, source: Source) -> str:
        """One column as it is; several with their names as headings, empty ones left out."""
        parts = [(column, text_of(self.named(column)).strip()) for column in source.columns]
        if len(parts) == 1:
            return parts[0][1]
        titles = {known.id: known.name for known in self.columns}
        return "\n\n".join(f"## {titles.get(name, name)}\n\n{text}" for name, text in parts if text)

    def voice(self) -> str:
        text = self.text("voice")
        if _ADDRESS.search(text):
            self.warn("voice", text, "is an address or a path; a voice is a name of [voices]")
            return ""
        return text[:100]

    def emotion(self) -> str:
        text = self.text("emotion").replace("：", ":").replace("，", ",")
        if not text or _WEIGHTS.fullmatch(text):
            return text
        known = EMOTIONS.get(text.casefold())
        if known is None:
            self.warn("emotion", text, f"is unknown, spoken calmly; {nearest(text, EMOTIONS)}")
        return known or "calm"

    def duration(self) -> str:
        text = self.text("duration").replace("：", ":").replace(" ", "").casefold()
        if text and not DURATION_RULE.fullmatch(text):
            self.warn("duration", text, "is no rule; known: free, fixed:90s, max:5m, speed:1.1")
            return ""
        return text

    def lang(self) -> str:
        text = self.text("lang").casefold()
        found = LANGS.get(text) or (text if not text or _CODE.fullmatch(text) else None)
        if found is None:
            self.warn("lang", text, "is unknown, the text decides; known: zh, en, mixed, auto")
        return found or ""

    def detail(self) -> Detail | Literal[""]:
        text = self.text("detail").casefold()
        if text and text not in DETAILS:
            self.warn("detail", text, f"is unknown; {nearest(text, get_args(Detail))}")
        return DETAILS.get(text, "")

    def warn(self, name: str, text: str, what: str) -> None:
        self.warnings.append(f"{name}: {text[:40]!r} {what}")


# writing ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, also an option of a select; empty clears the cell."""

    text: str


@dataclass(frozen=True, slots=True)
class Link:
    """An address with the text that stands for it."""

    url: str
    text: str


@dataclass(frozen=True, slots=True)
class Audio:
    """The finished recording: an address, and the file for columns that hold files.

    Attributes:
        text: what stands for the address where a cell can say so.
    """

    url: str
    text: str
    file: AudioFile | None = None


@dataclass(frozen=True, slots=True)
class Seconds:
    """A length."""

    seconds: float

    @property
    def clock(self) -> str:
        """`3:25`, `1:02:07`: for text columns."""
        minutes, seconds = divmod(round(self.seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


OutputCell = Text | Link | Audio | Seconds


def output_cells(config: TableConfig, patch: NotePatch) -> dict[str, OutputCell]:
    """What to write for a patch: column as configured -> cell.

    A state that is not `failed` clears the error of an earlier try; what the patch does not name
    stays as it is.
    """
    output, cells = config.output, {}
    values: dict[str, OutputCell | None] = {
        "status": Text(config.labels[patch.status]) if patch.status else None,
        "link": Link(patch.link, LINK_TEXT[config.lang]) if patch.link else None,
        "audio": _audio(config, patch),
        "error": Text(reason(patch.error, config.lang) if patch.error else "")
        if patch.status or patch.error
        else None,
        "duration": Seconds(patch.duration_s) if patch.duration_s is not None else None,
    }
    for name, column in output.columns().items():
        value = values[name]
        if value is not None:
            cells[column] = value
    return cells


def _audio(config: TableConfig, patch: NotePatch) -> Audio | None:
    if not patch.audio_ref:
        return None
    return Audio(patch.audio_ref, LINK_TEXT[config.lang], patch.audio_file)


def is_echo(config: TableConfig, changed: Iterable[str], columns: Sequence[Column] = ()) -> bool:
    """Have only columns changed that we write and nobody triggers with?

    A change of the trigger column is never an echo, even where it is the status column too: its new
    value decides, and our labels are not what makes a row ready.

    Args:
        changed: columns by name or id.
        columns: the table's columns, if changes and configuration name them differently.
    """
    ids = {known.name: known.id for known in columns}
    ours = {ids.get(one, one) for one in config.output.columns().values()}
    ours.discard(ids.get(config.trigger.column, config.trigger.column))
    found = {ids.get(one, one) for one in changed}
    return bool(found) and found <= ours


# checking ---------------------------------------------------------------------------------------


def problems(config: TableConfig, columns: Sequence[Column]) -> list[str]:
    """What of the mapping does not fit the table: one sentence each, naming the nearest column."""
    known = {name: column for column in columns for name in (column.id, column.name)}
    named = [("trigger.column", config.trigger.column)]
    named += [(f"fields.{name}", c) for name, s in config.fields.sources() for c in s.columns]
    named += [(f"output.{name}", column) for name, column in config.output.columns().items()]
    names = [column.name for column in columns]
    found = [
        f"{where}: the table has no column {column!r}; {nearest(column, names)}"
        for where, column in named
        if column not in known
    ]
    trigger = known.get(config.trigger.column)
    if trigger is not None and trigger.kind == "computed":
        found.append(
            f"trigger.column: {trigger.name!r} is computed, and nobody is told when it changes; "
            "use a column that people set"
        )
    read = {known[c].id for _, s in config.fields.sources() for c in s.columns if c in known}
    for name, column in config.output.columns().items():
        if column in known:
            found += _output_problems(config, name, known[column], read)
    return found


def _output_problems(
    config: TableConfig, name: str, target: Column, read: set[str]
) -> Iterable[str]:
    shares_trigger = name == "status" and config.trigger.column in (target.id, target.name)
    if target.kind == "computed":
        yield f"output.{name}: {target.name!r} is computed and cannot be written"
    elif target.kind not in _WRITES[name] and not shares_trigger:
        fitting = " or ".join(one for one in _WRITES[name] if one != "other")
        yield f"output.{name}: {target.name!r} holds {target.kind}; it must be {fitting}"
    if target.id in read:
        yield (
            f"output.{name}: {target.name!r} is read by [fields] too; "
            "what we write there would be spoken"
        )


class TableConnector(Connector):
    """What all row tools do alike: the live schema is asked once and kept.

    A vendor writes `columns`, `read`, `write_back`, `backfill` and, where there is one, the door.
    """

    reads = True
    walks = True

    class Config(TableConfig):
        """The mapping; a vendor adds its own keys."""

    def __init__(self, endpoint: str, config: TableConfig) -> None:
        super().__init__(endpoint, config)
        self.table: TableConfig = config
        self._schema: Sequence[Column] = ()

    def schema(self, *, fresh: bool = False) -> Sequence[Column]:
        """The table's columns, asked once; `fresh` asks again."""
        if fresh or not self._schema:
            self._schema = self.columns()
        return self._schema

    def is_echo(self, changed: frozenset[str]) -> bool:
        """See `is_echo`; columns nobody has heard of make it look at the schema again."""
        known = {name for column in self._schema for name in (column.id, column.name)}
        return is_echo(self.table, changed, self.schema(fresh=not changed <= known))

    def problems(self) -> list[str]:
        """See `problems`; always of the table as it is now."""
        return problems(self.table, self.schema(fresh=True))
