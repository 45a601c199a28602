"""The database, the store, settings, `notecast doctor`."""

from __future__ import annotations

import json

import typer
from rich.markup import escape

from pipeline.cli.shell import AsJson, Data, EngineChoice, ModelDir, console, opened, show_table
from pipeline.settings import Settings, load_settings

app = typer.Typer()


db_app = typer.Typer(help="The database's schema.", no_args_is_help=True)
app.add_typer(db_app, name="db", rich_help_panel="Set up")


@db_app.command("upgrade")
def db_upgrade(data: Data = None) -> None:
    """Bring the schema to this version."""
    from pipeline import migrate

    with opened(data, check=False) as services:
        migrate.upgrade(services.database)
        console.print(str(migrate.status(services.database)), highlight=False)


@db_app.command("status")
def db_status(data: Data = None) -> None:
    """Say which version the schema has."""
    from pipeline import migrate

    with opened(data, check=False) as services:
        console.print(str(migrate.status(services.database)), highlight=False)


storage_app = typer.Typer(help="Where recordings lie.", no_args_is_help=True)
app.add_typer(storage_app, name="storage", rich_help_panel="Set up")


@storage_app.command("check")
def storage_check(data: Data = None, as_json: AsJson = False) -> None:
    """Try on the store what notecast relies on."""
    from dataclasses import asdict

    from pipeline.storage import probe

    with opened(data, check=False) as services:
        found = probe(services.storage)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        show_table("Storage", ("ability", "found"), [(k, str(v)) for k, v in asdict(found).items()])
        for problem in found.problems:
            console.print(f"[yellow]{escape(problem)}[/]", highlight=False)
    raise typer.Exit(1 if found.problems else 0)


@app.command(rich_help_panel="Set up")
def config(data: Data = None, as_json: AsJson = False) -> None:
    """Print the settings in effect, secrets masked."""
    settings = load_settings(data=data)
    values = {name: str(getattr(settings, name)) for name in Settings.model_fields}
    if as_json:
        print(json.dumps(values))
        return
    show_table("Settings", ("name", "value", "meaning"), [
        (name, value, Settings.model_fields[name].description or "")
        for name, value in values.items()
    ])  # fmt: skip


@app.command(rich_help_panel="Set up")
def doctor(data: Data = None, engine: EngineChoice = None, model_dir: ModelDir = None) -> None:
    """Check what a good run needs, and say how to get what is missing."""
    from pipeline.operate import examine

    findings = examine(load_settings(data=data, engine=engine, model_dir=model_dir))
    for is_good, text in findings:
        mark = "[green]ok[/]     " if is_good else "[red]missing[/]"
        console.print(f"{mark} {escape(text)}", highlight=False)
    raise typer.Exit(0 if all(is_good for is_good, _ in findings) else 1)


engine_app = typer.Typer(help="The voice on this machine.", no_args_is_help=True)
app.add_typer(engine_app, name="engine", rich_help_panel="Set up")


@engine_app.command("prepare")
def engine_prepare(engine: EngineChoice = None, data: Data = None) -> None:
    """Build what the first start would build, so that it is quick."""
    from pipeline.services import make_engine

    settings = load_settings(data=data, engine=engine)
    with console.status("preparing the voice ..."), make_engine(settings) as voice:
        voice.warm(settings.warm)
    console.print("[green]ready[/]")
