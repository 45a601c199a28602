"""Rows of a tab by key, and what mends a write that met another row."""

from __future__ import annotations

import pytest

from connectors.errors import ToolRefused
from connectors.sheet_view import Stray, View

AT = {"id": 7, "Status": 2, "Listen": 3}


def view(*rows: tuple[str, str, str]) -> View:
    """Columns as the API gives them: blank cells are missing, the end is cut off."""
    columns = [[["id"]], [["Status"]], [["Listen"]]]
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            column.append([cell] if cell else [])
    for column in columns:
        while not column[-1]:
            column.pop()
    return View.of("id", ["Title", "Notes", "Status", "Listen"], AT, columns)


def test_ragged_columns_are_put_side_by_side():
    seen = view(("k-1", "Ready", ""), ("", "", ""), ("k-3", "", "url"))

    assert [(row.number, row.key) for row in seen.all] == [(2, "k-1"), (4, "k-3")]
    assert seen.rows["k-1"].cells == {"id": "k-1", "Status": "Ready", "Listen": ""}
    assert seen.number("k-3") == 4
    assert seen.find("k-9") is None


def test_empty_tab_has_no_rows():
    assert view().all == []


def test_key_of_two_rows_is_refused():
    seen = view(("k-1", "Ready", ""), ("k-1", "Done", ""))

    assert seen.rows["k-1"].number == 2
    with pytest.raises(ToolRefused, match="one is a copy"):
        seen.find("k-1")


WROTE = {"Status": "Queued", "Listen": "url"}


@pytest.mark.parametrize(
    ("hit", "now", "repairs"),
    [
        ("k-2", [("k-1", "Ready", ""), ("k-2", "Queued", "url")], [(3, 2, "Done"), (3, 3, "old")]),
        ("k-2", [("k-2", "Failed", "url"), ("k-1", "", "")], [(2, 3, "old")]),
        ("k-2", [("k-1", "Ready", "")], []),
        ("", [("", "Queued", "url"), ("k-1", "Ready", "")], [(2, 2, ""), (2, 3, "")]),
        ("", [("", "Queued", "other"), ("k-1", "Ready", "")], []),
        ("k-9", [("k-9", "Queued", "url")], [(2, 2, ""), (2, 3, "")]),
    ],
    ids=[
        "what it held comes back",
        "not where somebody has written since",
        "nor if it is gone",
        "a row without a key is cleared",
        "but only if it shows what we wrote",
        "a row that was not there before is cleared",
    ],
)
def test_row_that_was_hit_is_put_right(hit: str, now: list[tuple[str, str, str]], repairs: list):
    before = view(("k-1", "Ready", ""), ("k-2", "Done", "old"))

    assert Stray(hit, WROTE, before).repairs(view(*now)) == repairs
