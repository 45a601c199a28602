"""A tab of a sheet at one moment: rows found by key, and what to mend when a write met another row.

Pure; the calls are those of `google_sheets`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.cells import is_empty, text_of
from connectors.errors import ToolRefused


@dataclass(frozen=True, slots=True)
class Row:
    """A row below the header; `number` counts from 1 as the sheet shows it."""

    number: int
    key: str
    cells: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """Some columns of a tab at one moment.

    Attributes:
        header: the first row.
        at: column name -> index from 0.
        all: every row below the header that is not blank in these columns.
        rows: by key; of two rows with one key the upper one.
        doubled: keys that more than one row has.
    """

    header: Sequence[str]
    at: Mapping[str, int]
    all: Sequence[Row]
    rows: Mapping[str, Row]
    doubled: frozenset[str]

    @classmethod
    def of(
        cls,
        key: str,
        header: Sequence[str],
        at: Mapping[str, int],
        columns: Sequence[Sequence[Sequence[Any]]],
    ) -> View:
        """Put columns, each ragged and cut at its last filled cell, side by side."""
        found = []
        for n in range(1, max((len(column) for column in columns), default=0)):
            cells = {
                name: column[n][0] if n < len(column) and column[n] else ""
                for name, column in zip(at, columns, strict=True)
            }
            if not all(is_empty(cell) for cell in cells.values()):
                found.append(Row(n + 1, text_of(cells[key]).strip(), cells))
        rows: dict[str, Row] = {}
        doubled = set()
        for row in found:
            if row.key and rows.setdefault(row.key, row) is not row:
                doubled.add(row.key)
        return cls(header, at, found, rows, frozenset(doubled))

    def number(self, key: str) -> int:
        """The number of a row in the sheet."""
        return self.rows[key].number

    def find(self, key: str) -> Row | None:
        """The row to write to.

        Raises:
            ToolRefused: two rows have the key.
        """
        if key in self.doubled:
            raise ToolRefused(
                "Google Sheets: two rows have the same key, one is a copy; clear the copy's key",
                code="key_doubled",
            )
        return self.rows.get(key)


@dataclass(frozen=True, slots=True)
class Stray:
    """A write that hit another row, because rows moved between look and write.

    Attributes:
        key: of the row that was hit; empty for one without a key.
        wrote: column -> text.
        before: the view the write was based on; it knows what the row held.
    """

    key: str
    wrote: Mapping[str, str]
    before: View

    def repairs(self, view: View) -> list[tuple[int, int, str]]:
        """Cells that put the row right again, wherever it is now."""
        if self.key:
            row, old = view.rows.get(self.key), self.before.rows.get(self.key)
        else:
            hit = (row for row in view.all if not row.key and self._shows(row))
            row, old = next(hit, None), None
        if row is None:
            return []
        return [
            (row.number, view.at[column], text_of(old.cells.get(column)) if old else "")
            for column, wrote in self.wrote.items()
            if text_of(row.cells.get(column)) == wrote
        ]

    def _shows(self, row: Row) -> bool:
        return all(text_of(row.cells.get(column)) == text for column, text in self.wrote.items())
