"""Any vendor's cell as plain text, number, list, time or yes-and-no; pure.

A cell is what a tool's API answers for one column of one row:

    plain      str, int, float, bool, None, lists of them (Google Sheets, Airtable, Bitable selects)
    pieces     [{type: text | mention | url, text, ...}] (Bitable), [{plain_text, ...}] (Notion)
    wrapped    {type, value: [...]} (Bitable formulas and look-ups), {type: "x", "x": ...} (Notion)
    people, files, options, links   objects with a name, a file name, a text or an address

An absent column, None and "" mean the same: empty. A shape nobody knows is empty too, never an
error: a table with an exotic column must still be readable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

Cell = Any
"""A raw cell: JSON values of any shape."""

_INLINE = ("text", "mention", "url")
_NAMES = ("text", "filename", "label", "title", "content", "full_address", "email", "link", "url")
_SEPARATORS = re.compile(r"[,;，；、\n]")
_YES = frozenset({"true", "yes", "y", "1", "x", "on", "checked", "✓", "✔", "☑", "✅", "是", "对"})
_CLOCK = re.compile(r"(\d{1,2})[:：](\d{2})")
_DATE = re.compile(
    r"(?P<y>\d{4})[-/.年](?P<m>\d{1,2})[-/.月](?P<d>\d{1,2})日?"
    r"(?:[T\s]+(?P<H>\d{1,2})[:：](?P<M>\d{2})(?:[:：](?P<S>\d{2})(?:\.\d+)?)?)?"
    r"\s*(?P<zone>Z|[+-]\d{2}:?\d{2})?"
)
_SHEETS_EPOCH = datetime(1899, 12, 30)  # noqa: DTZ001 - day 0 of a spreadsheet's wall clock


def text_of(cell: Cell) -> str:
    """The cell as a person reads it; links show their text, lists are joined with a comma."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        return _number_text(cell)
    if isinstance(cell, (str, int)):
        return str(cell)
    if isinstance(cell, Mapping):
        return _object_text(cell)
    if isinstance(cell, (list, tuple)):
        parts = [text_of(one) for one in cell]
        if any(_is_inline(one) for one in cell):
            return "".join(parts)
        return ", ".join(part for part in parts if part)
    return ""


def number_of(cell: Cell) -> float | None:
    """The cell as a number; None when it is empty or says something else."""
    bare = _unwrap(cell)
    if isinstance(bare, bool):
        return float(bare)
    if isinstance(bare, (int, float)):
        return float(bare) if math.isfinite(bare) else None
    try:
        number = float(text_of(bare).strip().replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def list_of(cell: Cell) -> list[str]:
    """The cell's options, people or names; a plain text is cut at commas, semicolons and lines."""
    inner = cell
    while isinstance(inner, Mapping) and (step := _inner(inner)) is not None:
        inner = step
    if isinstance(inner, (list, tuple)) and not any(_is_inline(one) for one in inner):
        parts = [text_of(one) for one in inner]
    else:
        parts = _SEPARATORS.split(text_of(inner))
    return [part.strip() for part in parts if part.strip()]


def time_of(cell: Cell, zone: tzinfo, *, now: datetime | None = None) -> datetime | None:
    """The cell as an instant; None when it is empty or no time.

    Args:
        cell: epoch milliseconds or seconds, a spreadsheet's day number, `2026-11-20T09:30` or
            `2026/11/20 9:30` with or without a zone, a Notion date, or `9:30`: when a clock shows
            that next.
        zone: of texts that name none, and of day numbers.
        now: what `9:30` is later than; the clock's time if None.
    """
    bare = _unwrap(cell)
    if isinstance(bare, Mapping):
        bare = bare.get("start")
    if isinstance(bare, (int, float)) and not isinstance(bare, bool):
        return _numbered_time(bare, zone)
    text = text_of(bare).strip()
    if clock := _CLOCK.fullmatch(text):
        return _next(int(clock[1]), int(clock[2]), zone, now or datetime.now(UTC))
    if found := _DATE.fullmatch(text):
        return _written_time(found, zone)
    return _numbered_time(int(text), zone) if re.fullmatch(r"\d{10,13}", text) else None


def is_checked(cell: Cell) -> bool:
    """Is the box ticked? A text counts when it says yes."""
    bare = _unwrap(cell)
    if isinstance(bare, bool):
        return bare
    return text_of(bare).strip().casefold() in _YES


def is_empty(cell: Cell) -> bool:
    """Does the cell say nothing?"""
    return not text_of(cell).strip()


def _object_text(cell: Mapping[str, Any]) -> str:
    for name in ("plain_text", "name"):  # a Notion piece, a person, an option, a file
        if isinstance(cell.get(name), str):
            return (
                str(cell[name]).removeprefix("@") if cell.get("type") == "mention" else cell[name]
            )
    inner = _inner(cell)
    if inner is not None:
        return text_of(inner)
    if "start" in cell:
        return " - ".join(str(cell[name]) for name in ("start", "end") if cell.get(name))
    if "number" in cell:  # Notion's unique id
        return "-".join(text_of(cell[n]) for n in ("prefix", "number") if cell.get(n) is not None)
    found = (cell[name] for name in _NAMES if isinstance(cell.get(name), str) and cell[name])
    return next(found, "")


def _inner(cell: Mapping[str, Any]) -> Cell:
    """What a wrapper wraps, None for an object that is none."""
    kind = cell.get("type")
    if "plain_text" in cell or "name" in cell:
        return None
    if isinstance(kind, str) and kind in cell and cell[kind] is not cell.get("text"):
        return cell[kind] if cell[kind] is not None else ""
    if "value" in cell:
        return cell["value"] if cell["value"] is not None else ""
    return None


def _unwrap(cell: Cell) -> Cell:
    """The one value inside wrappers and lists of one."""
    while True:
        if isinstance(cell, (list, tuple)) and len(cell) == 1:
            cell = cell[0]
        elif isinstance(cell, Mapping) and (inner := _inner(cell)) is not None:
            cell = inner
        else:
            return cell


def _is_inline(piece: Cell) -> bool:
    if not isinstance(piece, Mapping):
        return False
    return "plain_text" in piece or (
        piece.get("type") in _INLINE and isinstance(piece.get("text"), str)
    )


def _number_text(number: float) -> str:
    if not math.isfinite(number):
        return ""
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def _numbered_time(number: float, zone: tzinfo) -> datetime | None:
    """Milliseconds, seconds or days: their ranges do not meet between 1973 and 2100."""
    if not math.isfinite(number):
        return None
    if 1e11 <= number < 4.2e12:
        return datetime.fromtimestamp(number / 1000, UTC)
    if 1e8 <= number < 4.2e9:
        return datetime.fromtimestamp(number, UTC)
    if 20_000 <= number < 80_000:
        wall = _SHEETS_EPOCH + timedelta(seconds=round(number * 86_400))
        return wall.replace(tzinfo=zone)
    return None


def _written_time(found: re.Match[str], zone: tzinfo) -> datetime | None:
    y, m, d, hour, minute, second = (int(found[n] or 0) for n in ("y", "m", "d", "H", "M", "S"))
    try:
        wall = datetime(y, m, d, hour, minute, second, tzinfo=zone)
        if not found["zone"]:
            return wall
        offset = found["zone"].replace("Z", "+00:00")
        return datetime.fromisoformat(f"{wall:%Y-%m-%dT%H:%M:%S}{offset}")
    except ValueError:
        return None


def _next(hour: int, minute: int, zone: tzinfo, now: datetime) -> datetime | None:
    if hour > 23 or minute > 59:
        return None
    today = now.astimezone(zone).replace(hour=hour, minute=minute, second=0, microsecond=0)
    return today if today > now else today + timedelta(days=1)
