"""`notecast up`, `demo`, and one command for each role."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from pipeline.cli.shell import (
    S3,
    AsJson,
    Connectors,
    Data,
    Db,
    EngineChoice,
    Host,
    ModelDir,
    Parent,
    Port,
    console,
)
from pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipeline.services import Services

app = typer.Typer()


@app.command(rich_help_panel="Run")
def up(
    data: Data = None,
    host: Host = None,
    port: Port = None,
    engine: EngineChoice = None,
    model_dir: ModelDir = None,
    connectors: Connectors = None,
    db: Db = "sqlite",
    s3: S3 = "folder",
    public_url: Annotated[str | None, typer.Option(help="How others reach this machine.")] = None,
) -> None:
    """Run everything in one supervised process tree on one port, until Ctrl-C.

    Nothing needs to be installed beside it: SQLite, Valkey and the voice come with the package.
    """
    from pipeline.up import run_up

    settings = load_settings(
        data=data,
        host=host,
        port=port,
        engine=engine,
        model_dir=model_dir,
        connectors=connectors,
        public_url=public_url,
    )
    began = time.monotonic()
    console.print(f"starting in [bold]{settings.data}[/] ...", highlight=False)

    def on_ready(services: Services, key: str | None) -> None:
        _greet(services, key, time.monotonic() - began)

    run_up(settings, db=db, s3=s3, tell=_tell, on_ready=on_ready)
    console.print("stopped; nothing accepted is lost, the next [bold]notecast up[/] goes on")


def _tell(line: str) -> None:
    console.print(f"[yellow]{time.strftime('%H:%M:%S')}[/] {escape(line)}", highlight=False)


def _greet(services: Services, key: str | None, seconds: float) -> None:
    settings = services.settings
    console.print(f"[bold green]ready[/] after {seconds:.1f} s at {settings.effective_public_url}")
    console.print(f"  logs      {settings.data / 'logs'}", highlight=False)
    names = sorted(services.endpoints)
    hooks = ", ".join(f"POST /hooks/{name}" for name in names) or "none yet: see connectors.toml"
    console.print(f"  hooks     {hooks}", highlight=False)
    if key is not None:
        console.print(f"  API key   [bold]{key}[/]  (shown once; also in {settings.data}/api-key)")
    console.print(f"  admin     {settings.effective_public_url}/admin", highlight=False)
    console.print("  try       notecast speak 'Good morning. 大家早上好。'", highlight=False)


@app.command(rich_help_panel="Run")
def demo(
    as_json: AsJson = False,
    out: Annotated[Path, typer.Option("--out", help="Where the results go.")] = Path("demo"),
    text: Annotated[
        Path | None, typer.Option("--text", help="Speak this text file instead of the samples.")
    ] = None,
    engine: EngineChoice = None,
    s3: S3 = "embedded",
    with_tool: Annotated[
        Literal["feishu"] | None,
        typer.Option("--with", help="Set a row of a faked table ready, and watch it change."),
    ] = None,
) -> None:
    """Send signed sample notes, listen while they are spoken, show what became of them.

    Starts its own stack in a directory of its own and stops it again.
    """
    from pipeline.demo import run_demo

    raise typer.Exit(
        run_demo(out=out, text=text, engine=engine, s3=s3, as_json=as_json, with_tool=with_tool)
    )


@app.command(rich_help_panel="Run one part")
def web(data: Data = None, host: Host = None, port: Port = None, parent: Parent = 0) -> None:
    """Run the HTTP door and live listening."""
    from pipeline.roles import run_web

    run_web(_start_role("web", parent, data=data, host=host, port=port))


@app.command(rich_help_panel="Run one part")
def stream(
    data: Data = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8081,
    parent: Parent = 0,
) -> None:
    """Run live listening only; several processes may share the port."""
    from pipeline.roles import run_stream

    run_stream(_start_role("stream", parent, data=data), host=host, port=port)


@app.command(rich_help_panel="Run one part")
def relay(data: Data = None, parent: Parent = 0) -> None:
    """Run the relay: outbox, reaper, retries, schedules."""
    from pipeline.roles import run_relay

    run_relay(_start_role("relay", parent, data=data))


@app.command(rich_help_panel="Run one part")
def worker(
    kind: Annotated[Literal["gpu", "io"], typer.Argument(help="gpu speaks, io talks to tools.")],
    data: Data = None,
    engine: EngineChoice = None,
    model_dir: ModelDir = None,
    parent: Parent = 0,
) -> None:
    """Run a worker."""
    from pipeline.roles import run_errands, run_speaker

    settings = _start_role(f"worker.{kind}", parent, data=data, engine=engine, model_dir=model_dir)
    (run_speaker if kind == "gpu" else run_errands)(settings)


def _start_role(name: str, parent: int, **overrides: Any) -> Settings:
    from pipeline.log import set_up_logging
    from pipeline.servers import die_with_parent

    if parent:
        die_with_parent(parent, signal.SIGTERM)
    settings = load_settings(**overrides)
    set_up_logging(name, settings.log_level)
    return settings
