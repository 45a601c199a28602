"""What every benchmark prints and keeps: the machine, one table, one JSON file.

A row holds one value per pass and shows their minimum, median and maximum, because one number from
a shared machine says little. Ratios are the first rows: neighbours slow both sides of them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sqlite3
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.demo import machine

OUT = Path(__file__).parent / "out"


@dataclass(frozen=True)
class Row:
    """One measured quantity.

    Attributes:
        values: one for each pass; empty if it could not be measured here.
        bar: what we aim at, as text.
        holds: whether the median meets the bar; None without bar or values.
    """

    label: str
    unit: str
    values: tuple[float, ...]
    bar: str = ""
    holds: bool | None = None


class Report:
    """Collects rows, then prints the table and writes `bench/out/NAME.json`.

    Args:
        name: of the file.
        title: stands above the table.
        method: one or two sentences on what was done; stands below it.
        packages: distributions whose versions matter.
    """

    def __init__(
        self, name: str, title: str, *, method: str = "", packages: Sequence[str] = ()
    ) -> None:
        self._name = name
        self._title = title
        self._method = method
        self._rows: list[Row] = []
        self._load_before = os.getloadavg()[0]
        self._versions = {one: importlib.metadata.version(one) for one in packages}

    def add(
        self,
        label: str,
        values: Sequence[float],
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Add a row; a bar is compared with the median."""
        bar, holds = "", None
        middle = statistics.median(values) if values else None
        if at_least is not None:
            bar = f"≥ {at_least:g}"
            holds = None if middle is None else middle >= at_least
        elif at_most is not None:
            bar = f"≤ {at_most:g}"
            holds = None if middle is None else middle <= at_most
        self._rows.append(Row(label, unit, tuple(values), bar, holds))

    def finish(self, **more: Any) -> None:
        """Print and write; `more` goes into the file."""
        facts = {
            **machine(),
            "load_before": round(self._load_before, 2),
            "sqlite": sqlite3.sqlite_version,
            **self._versions,
        }
        console = Console()
        console.print(self._table())
        if self._method:
            console.print(self._method, style="dim", highlight=False)
        console.print(machine_line(facts), style="dim", highlight=False)
        document = {
            "title": self._title,
            "method": self._method,
            "machine": facts,
            "rows": [asdict(row) for row in self._rows],
            **more,
        }
        OUT.mkdir(exist_ok=True)
        path = OUT / f"{self._name}.json"
        path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n")

    def _table(self) -> Table:
        table = Table(title=self._title, title_justify="left")
        table.add_column("")
        for heading in ("min", "median", "max"):
            table.add_column(heading, justify="right")
        table.add_column("unit")
        table.add_column("bar")
        for row in self._rows:
            mark = {None: "", True: " [green]met[/]", False: " [red]missed[/]"}[row.holds]
            table.add_row(row.label, *_spread(row.values), row.unit, row.bar + mark)
        return table


def machine_line(facts: dict[str, Any]) -> str:
    """The facts of a machine in one line."""
    known = ("cores", "processor", "load", "load_before", "platform")
    versions = ", ".join(f"{k} {v}" for k, v in facts.items() if k not in known)
    load = f"load {facts['load_before']} before, {facts['load']} after"
    return f"{facts['cores']} cores of {facts['processor']}; {load}; {versions}"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed: nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _spread(values: Sequence[float]) -> tuple[str, str, str]:
    if not values:
        return ("", "N/A", "")
    if len(values) == 1:
        return ("", _short(values[0]), "")
    return (_short(min(values)), _short(statistics.median(values)), _short(max(values)))


def _short(value: float) -> str:
    """Three digits, more before the point if need be."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
