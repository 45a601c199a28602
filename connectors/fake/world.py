"""The tables and messages behind the fake tools, in words of no tool in particular.

A cell is text, a number, a truth value, a list of names, a `Link` or a list of `File`s; None is an
empty cell. Each tool's file translates to and from its own shapes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["text", "select", "link", "files", "number", "date", "checkbox", "people", "formula"]
Action = Literal["added", "edited", "deleted"]


@dataclass(frozen=True, slots=True)
class Link:
    """A link with its words."""

    text: str
    url: str


@dataclass(frozen=True, slots=True)
class File:
    """An uploaded file; `container` is where it may be used."""

    token: str
    name: str
    content: bytes = field(repr=False)
    container: str = ""


Value = str | float | bool | Link | tuple[str, ...] | tuple[File, ...] | None
"""A cell: a `date` is milliseconds since 1970, a `people` cell is names."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `id` stays when it is renamed."""

    id: str
    name: str
    kind: Kind = "text"
    options: tuple[str, ...] = ()


@dataclass(slots=True)
class Row:
    """A row; `cells` by column id, empty ones left out."""

    id: str
    cells: dict[str, Value]
    created_ms: int
    modified_ms: int


@dataclass(slots=True)
class Table:
    """A table of a tool; the tool's own words for `container` are base, spreadsheet, database."""

    tool: str
    container: str
    id: str
    name: str
    columns: list[Column]
    rows: dict[str, Row] = field(default_factory=dict)
    revision: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.tool, self.container, self.id)

    def column(self, name_or_id: str) -> Column | None:
        """By id, then by name."""
        by_id = (column for column in self.columns if column.id == name_or_id)
        by_name = (column for column in self.columns if column.name == name_or_id)
        return next(by_id, None) or next(by_name, None)


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a row.

    Attributes:
        before: the old values of the columns that changed, by id.
        after: the new ones.
        by: `person` for the page and tests, `api` for calls to the tool.
    """

    table: Table
    row_id: str
    action: Action
    before: Mapping[str, Value]
    after: Mapping[str, Value]
    by: Literal["person", "api"]
    revision: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Message:
    """What a robot or a bot posted to a group."""

    tool: str
    group: str
    title: str
    text: str
    link: str = ""
    button: str = ""
    at_ms: int = 0


class World:
    """All tables and messages; safe to use from several threads.

    Observers are called after each change, in order, under the lock: they only take note of it.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.tables: dict[tuple[str, str, str], Table] = {}
        self.messages: list[Message] = []
        self.observers: list[Callable[[Change | Message], None]] = []
        self.lock = threading.RLock()

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return round(self.clock() * 1000)

    def add_table(
        self, tool: str, container: str, table_id: str, name: str, columns: Iterable[Column]
    ) -> Table:
        """Add an empty table."""
        table = Table(tool, container, table_id, name, list(columns))
        with self.lock:
            self.tables[table.key] = table
        return table

    def add_row(
        self,
        table: Table,
        row_id: str,
        cells: Mapping[str, Value],
        *,
        by: Literal["person", "api"] = "person",
    ) -> Change:
        """Add a row; cells by column name or id."""
        with self.lock:
            now = self.now_ms()
            after = self._by_id(table, cells)
            table.rows[row_id] = Row(row_id, _filled(after), now, now)
            return self._change(table, row_id, "added", {}, after, by)

    def edit(
        self,
        table: Table,
        row_id: str,
        cells: Mapping[str, Value],
        *,
        by: Literal["person", "api"] = "person",
    ) -> Change | None:
        """Set cells by column name or id; None if nothing changed.

        Raises:
            KeyError: no such row or column.
        """
        with self.lock:
            row = table.rows[row_id]
            after = {
                column: value
                for column, value in self._by_id(table, cells).items()
                if row.cells.get(column) != value
            }
            if not after:
                return None
            before = {column: row.cells.get(column) for column in after}
            row.cells = _filled({**row.cells, **after})
            row.modified_ms = max(self.now_ms(), row.modified_ms)
            return self._change(table, row_id, "edited", before, after, by)

    def delete(self, table: Table, row_id: str) -> Change:
        """Delete a row.

        Raises:
            KeyError: no such row.
        """
        with self.lock:
            row = table.rows.pop(row_id)
            return self._change(table, row_id, "deleted", row.cells, {}, "person")

    def post(self, message: Message) -> None:
        """Add a message to a group."""
        with self.lock:
            self.messages.append(message)
            self._tell(message)

    def _change(
        self,
        table: Table,
        row_id: str,
        action: Action,
        before: Mapping[str, Value],
        after: Mapping[str, Value],
        by: Literal["person", "api"],
    ) -> Change:
        table.revision += 1
        revision, at_ms = table.revision, self.now_ms()
        change = Change(table, row_id, action, dict(before), dict(after), by, revision, at_ms)
        self._tell(change)
        return change

    def _tell(self, event: Change | Message) -> None:
        for observer in tuple(self.observers):
            observer(event)

    @staticmethod
    def _by_id(table: Table, cells: Mapping[str, Value]) -> dict[str, Value]:
        found = {}
        for name, value in cells.items():
            column = table.column(name)
            if column is None:
                raise KeyError(name)
            found[column.id] = value
        return found


def _filled(cells: Mapping[str, Value]) -> dict[str, Value]:
    return {column: value for column, value in cells.items() if value not in (None, "", ())}
