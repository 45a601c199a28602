"""A table tool in memory: a real connector over rows that people and the connector change."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from connectors.base import (
    Budget,
    Call,
    Card,
    Column,
    Cursor,
    Hook,
    Note,
    NoteEvent,
    NotePatch,
    NoteRef,
    Page,
    Reply,
)
from connectors.fields import Link, Seconds, TableConnector, Text, note_from, output_cells
from pipeline import intake
from pipeline.endpoints import Endpoint
from tests.pipeline.house import House

COLUMNS = (
    Column("f1", "Title", "text"),
    Column("f2", "Notes", "text"),
    Column("f3", "Status", "select"),
    Column("f4", "Listen", "url"),
    Column("f5", "Error", "text"),
    Column("f6", "Length", "number"),
    Column("f7", "When", "time"),
)
CONFIG: dict[str, Any] = {
    "trigger": {"column": "Status", "equals": "Ready"},
    "fields": {"title": "Title", "text": "Notes", "schedule": "When"},
    "output": {"status": "Status", "link": "Listen", "error": "Error", "duration": "Length"},
}


@dataclass
class Row:
    cells: dict[str, Any]
    changed: int


@dataclass
class World:
    """The tool's side: rows, who wrote what, and faults that it was told to make."""

    rows: dict[str, Row] = field(default_factory=dict)
    written: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    reads: list[list[str]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    on_write: Callable[[str], None] = lambda _key: None
    clock: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, key: str, **cells: Any) -> int:
        """A person changes a row; gives its revision."""
        with self.lock:
            row = self.rows.setdefault(key, Row({}, 0))
            row.cells |= cells
            row.changed = next(self.clock)
            return row.changed

    def fail(self) -> None:
        with self.lock:
            if self.errors:
                raise self.errors.pop(0)

    def statuses(self, key: str) -> list[str]:
        """What the status column of a row showed, in order."""
        return [cells["Status"] for row, cells in self.written if row == key and "Status" in cells]


class Table(TableConnector):
    """Reads, walks and writes a `World`."""

    name: ClassVar[str] = "table"
    read_size = 10

    def __init__(self, world: World, **config: Any) -> None:
        super().__init__("table", TableConnector.Config.model_validate({**CONFIG, **config}))
        self.world = world
        self.budget: Budget | None = None

    def columns(self) -> Sequence[Column]:
        return COLUMNS

    def verify(self, hook: Hook, *, now: datetime) -> bytes | Reply:
        return hook.body

    def _note(self, key: str) -> Note:
        cells = self.world.rows[key].cells
        ref = NoteRef("table", "base", "notes", key)
        return note_from(self.table, ref, cells, columns=COLUMNS)

    def read(self, refs: list[NoteRef]) -> Iterator[Note]:
        self.world.reads.append([ref.key for ref in refs])
        self.world.fail()
        return iter([self._note(ref.key) for ref in refs if ref.key in self.world.rows])

    def backfill(self, cursor: Cursor) -> Iterator[Page]:
        since = cursor.value or 0
        self.world.fail()
        found = sorted(
            (row.changed, key) for key, row in self.world.rows.items() if row.changed > since
        )
        for at in range(0, max(len(found), 1), 20):
            some = found[at : at + 20]
            events = tuple(
                NoteEvent(f"walk/{key}/{changed}", self._note(key).ref, note=self._note(key))
                for changed, key in some
            )
            last = some[-1][0] if some else since
            yield Page(events, Cursor(last), is_last=at + 20 >= len(found))

    def write_back(self, ref: NoteRef, patch: NotePatch) -> None:
        self.world.on_write(ref.key)
        self.world.fail()
        cells: dict[str, Any] = {}
        for column, cell in output_cells(self.table, patch).items():
            match cell:
                case Text(text):
                    cells[column] = text
                case Link(url, text):
                    cells[column] = {"text": text, "link": url}
                case Seconds(seconds):
                    cells[column] = seconds
        self.world.set(ref.key, **cells)
        self.world.written.append((ref.key, cells))

    def notify(self, card: Card) -> None:
        self.world.on_write("card")
        self.world.fail()
        self.world.cards.append(card)

    def bucket(self, ref: NoteRef | None, call: Call = "write") -> Budget | None:
        return self.budget if call in ("write", "notify") else None


def install(house: House, table: Table, **options: Any) -> Endpoint:
    """Make the table an endpoint of the house."""
    services = house.services
    endpoint = Endpoint("table", "table", table, **options)
    services.endpoints["table"] = endpoint
    services.doors.update(intake.open_doors(services.database, {"table": "table"}))
    return endpoint


def changed(
    house: House, key: str, *, columns: Sequence[str] = (), delivery: str = ""
) -> intake.Taken:
    """What the door does when the tool says that a row changed."""
    from pipeline.door import terms_of

    services = house.services
    endpoint = services.endpoints["table"]
    event = NoteEvent(
        delivery or f"{key}/{next(_deliveries)}",
        NoteRef("table", "base", "notes", key),
        changed=frozenset(columns) if columns else None,
        occurred_at=datetime.now(UTC),
    )
    return intake.accept(
        services.database,
        services.links,
        services.doors["table"],
        event,
        body_digest="0" * 64,
        casting={},
        terms=terms_of(services, endpoint),
    )


_deliveries = itertools.count()
