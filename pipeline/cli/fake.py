"""`notecast connectors fake`: the tools themselves, on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.cli.shell import console
from pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from connectors.fake.endpoints import Endpoint


def connectors_fake(
    port: Annotated[int, typer.Option(help="Port of the fake.", min=1, max=65535)] = 8090,
    hook: Annotated[
        str, typer.Option(help="Where the running Notecast is, to be told of changes.")
    ] = "http://localhost:8080",
    write: Annotated[
        Path | None,
        typer.Option(help="Write connectors.toml for `notecast up --connectors` into this folder."),
    ] = None,
) -> None:
    """Serve fake tools with a page of their tables: try out endpoints without any account."""
    from connectors.fake.server import Fake
    from connectors.fake.tools import TOOLS

    fake = Fake(TOOLS)
    endpoints = fake.add_samples(f"http://127.0.0.1:{port}", hook.rstrip("/"))
    with _listening(port) as listening:
        if write is not None:
            path = _written(endpoints, write)
            console.print(f"next:   notecast up --connectors {escape(str(path))}", highlight=False)
        console.print(f"tables: http://127.0.0.1:{port}", highlight=False)
        console.print("        set a status there and watch the row; Ctrl-C ends", highlight=False)
        fake.serve(listening)


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise Misconfigured(
            f"port {port} cannot be used ({reason}); give another with --port"
        ) from None


def _written(endpoints: Sequence[Endpoint], folder: Path) -> Path:
    from connectors.fake.endpoints import write_endpoints

    try:
        return write_endpoints(endpoints, folder)
    except FileExistsError:
        raise Misconfigured(
            f"{folder / 'connectors.toml'} is there already; give an empty folder"
        ) from None
    except OSError as error:
        raise Misconfigured(f"{folder} cannot be written: {error.strerror}") from None
