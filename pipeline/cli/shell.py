"""What all commands share: options, the two consoles, services, tables."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.errors import Misconfigured
from pipeline.settings import load_settings

if TYPE_CHECKING:
    from pipeline.services import Services

console = Console()
errors = Console(stderr=True)

Data = Annotated[
    Path | None, typer.Option("--data", help="Directory of everything this install keeps.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Parent = Annotated[int, typer.Option("--parent", hidden=True)]
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[
    int | None, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
]
EngineChoice = Annotated[
    str | None,
    typer.Option("--engine", help="The voice: kokoro, indextts2, remote, or tone (for drills)."),
]
ModelDir = Annotated[
    Path | None, typer.Option("--model-dir", help="indextts2: the files of the release.")
]
Connectors = Annotated[
    Path | None, typer.Option("--connectors", help="connectors.toml: who may send notes.")
]
Db = Annotated[
    Literal["sqlite", "postgres"], typer.Option("--db", help="sqlite, or an embedded PostgreSQL.")
]
S3 = Annotated[
    str, typer.Option("--s3", help="folder, embedded (SeaweedFS), or s3://BUCKET?endpoint=URL.")
]


class opened:
    """Services of a command, with a database that must be there."""

    def __init__(self, data: Path | None, *, check: bool = True) -> None:
        from pipeline.services import Services
        from pipeline.up import running_settings

        settings = running_settings(load_settings(data=data).data)
        database = settings.data / "notecast.db"
        if check and not settings.database_url and not database.exists():
            raise Misconfigured(
                f"there is no database in {settings.data}; run notecast up first, or give --data"
            )
        self._services = Services(settings)

    def __enter__(self) -> Services:
        return self._services

    def __exit__(self, *_: object) -> None:
        self._services.close()


def actor() -> str:
    """Who acts, for the audit."""
    return f"cli:{getpass.getuser()}"


def print_json(value: Any) -> None:
    """Print JSON for programs."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def show_rows(title: str, found: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as a table, or as JSON for programs."""
    if as_json:
        print(json.dumps(found, ensure_ascii=False, default=str))
        return
    columns = list(found[0]) if found else ["nothing"]
    show_table(title, columns, [tuple(row.values()) for row in found])


def show_result(result: Any, *, csv: bool, as_json: bool) -> None:
    """Print a report as a table, CSV or JSON."""
    from pipeline import reports

    if as_json:
        print(reports.to_json(result))
    elif csv:
        print(reports.to_csv(result), end="")
    else:
        console.print(reports.to_table(result))


def show_table(title: str, columns: Any, found: Any) -> None:
    """Print a table; None is an empty cell."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(str(column), overflow="fold")
    for row in found:
        table.add_row(*("" if value is None else escape(str(value)) for value in row))
    console.print(table)
