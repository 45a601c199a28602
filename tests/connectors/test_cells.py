"""Any vendor's cell as text, number, list, time and yes-or-no."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.cells import is_checked, is_empty, list_of, number_of, text_of, time_of

SHANGHAI = ZoneInfo("Asia/Shanghai")
NINE_THIRTY = datetime(2026, 11, 20, 1, 30, tzinfo=UTC)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["type", "text", "name", "value", "plain_text", "start", "number"]),
        inner,
    ),
)  # fmt: skip

BITABLE_TEXT = [
    {"type": "text", "text": "李雷 and "},
    {"type": "mention", "mentionType": "User", "text": "@韩梅梅", "name": "韩梅梅"},
    {"type": "url", "text": "the plan", "link": "https://x.example"},
]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""),
        ("plain", "plain"),
        (3, "3"),
        (3.0, "3"),
        (0.25, "0.25"),
        (float("nan"), ""),
        (True, "true"),
        (["A", "B"], "A, B"),
        (BITABLE_TEXT, "李雷 and 韩梅梅the plan"),
        ({"type": 1, "value": BITABLE_TEXT[:1]}, "李雷 and "),
        ({"type": 2, "value": [3.5]}, "3.5"),
        ({"text": "收听", "link": "https://x.example"}, "收听"),
        ([{"id": "ou_1", "name": "李雷"}, {"id": "ou_2", "name": "韩梅梅"}], "李雷, 韩梅梅"),
        ([{"id": "att1", "url": "https://x.example", "filename": "a.mp3"}], "a.mp3"),
        ({"id": "usr1", "email": "a@x.example", "name": "Alice"}, "Alice"),
        ({"state": "generated", "value": "a summary", "isStale": False}, "a summary"),
        ({"error": "#ERROR!"}, ""),
        ({"type": "title", "title": [{"plain_text": "Weekly "}, {"plain_text": "sync"}]},
         "Weekly sync"),
        ({"type": "select", "select": None}, ""),
        ({"type": "status", "status": {"name": "Ready", "color": "blue"}}, "Ready"),
        ({"type": "people", "people": [{"object": "user", "name": "Bob", "type": "person",
          "person": {"email": "b@x.example"}}]}, "Bob"),
        ({"type": "formula", "formula": {"type": "string", "string": "x"}}, "x"),
        ({"type": "date", "date": {"start": "2026-11-20", "end": "2026-11-21"}},
         "2026-11-20 - 2026-11-21"),
        ({"type": "unique_id", "unique_id": {"prefix": "N", "number": 3}}, "N-3"),
        ({"type": "relation", "relation": [{"id": "1"}]}, ""),
    ],
)  # fmt: skip
def test_a_cell_as_a_person_reads_it(cell: Any, text: str) -> None:
    assert text_of(cell) == text
    assert is_empty(cell) == (not text)


@given(JSON)
def test_no_shape_is_an_error(cell: Any) -> None:
    text_of(cell), number_of(cell), list_of(cell), is_checked(cell), time_of(cell, UTC)


@pytest.mark.parametrize(
    ("cell", "number"),
    [(3, 3.0), ("1,234.5", 1234.5), ({"type": 2, "value": [7]}, 7.0), ("many", None), (None, None)],
)
def test_numbers(cell: Any, number: float | None) -> None:
    assert number_of(cell) == number


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        (["A", "B"], ["A", "B"]),
        ("A，B; C", ["A", "B", "C"]),
        ([{"name": "A"}, {"name": "B"}], ["A", "B"]),
        ({"type": "multi_select", "multi_select": [{"name": "A"}]}, ["A"]),
        (BITABLE_TEXT[:1], ["李雷 and"]),
        (None, []),
    ],
)
def test_lists(cell: Any, found: list[str]) -> None:
    assert list_of(cell) == found


@pytest.mark.parametrize("cell", [True, "TRUE", "是", "✓", {"type": "checkbox", "checkbox": True}])
def test_ticked(cell: Any) -> None:
    assert is_checked(cell)


@pytest.mark.parametrize("cell", [False, None, "", "no", "FALSE", {"type": "checkbox"}])
def test_not_ticked(cell: Any) -> None:
    assert not is_checked(cell)


@pytest.mark.parametrize(
    "cell",
    [
        1795138200000,
        1795138200,
        "1795138200000",
        "2026-11-20T01:30:00Z",
        "2026-11-20T09:30:00.000+08:00",
        "2026-11-20 09:30",
        "2026/11/20 9:30",
        "2026年11月20日 9：30",
        {"type": 5, "value": [1795138200000]},
        {"type": "date", "date": {"start": "2026-11-20T09:30:00.000+08:00", "end": None}},
    ],
)
def test_times(cell: Any) -> None:
    assert time_of(cell, SHANGHAI) == NINE_THIRTY


def test_a_spreadsheets_day_number_is_its_wall_clock() -> None:
    wall = datetime(2026, 11, 20, 9, 30, tzinfo=UTC) - datetime(1899, 12, 30, tzinfo=UTC)
    days = wall.total_seconds() / 86_400

    assert time_of(days, SHANGHAI) == NINE_THIRTY


def test_a_time_of_day_is_the_next_one() -> None:
    before = datetime(2026, 11, 20, 1, 0, tzinfo=UTC)
    assert time_of("9:30", SHANGHAI, now=before) == NINE_THIRTY
    after = datetime(2026, 11, 19, 1, 31, tzinfo=UTC)
    assert time_of("09：30", SHANGHAI, now=after) == NINE_THIRTY


@pytest.mark.parametrize(
    "cell", ["soon", "25:00", "2026-02-31", 17, None, True, "2026-11-20T99:00"]
)
def test_what_is_no_time(cell: Any) -> None:
    assert time_of(cell, SHANGHAI) is None
