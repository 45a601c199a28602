"""The `notecast` command."""

from __future__ import annotations

import getpass
import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.errors import Misconfigured, PipelineError
from pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipeline.services import Services

app = typer.Typer(
    name="notecast",
    help="Meeting notes in; a voice people can hear while it is still being spoken, out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

Data = Annotated[
    Path | None, typer.Option("--data", help="Directory of everything this install keeps.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Parent = Annotated[int, typer.Option("--parent", hidden=True)]
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on.", min=0, max=65535)]
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


def main() -> None:
    """Run the command line; errors are one sentence with a cause and a cure."""
    from connectors.errors import ConnectorError
    from engine.errors import EngineError
    from pipeline.endpoints import BadEndpoints
    from streaming.errors import StreamingError

    try:
        app()
    except (PipelineError, ConnectorError, EngineError, BadEndpoints, StreamingError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


# running -----------------------------------------------------------------------------------------


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
) -> None:
    """Send signed sample notes, listen while they are spoken, show what became of them.

    Starts its own stack in a directory of its own and stops it again.
    """
    from pipeline.demo import run_demo

    raise typer.Exit(run_demo(out=out, text=text, engine=engine, s3=s3, as_json=as_json))


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


# using -------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Use")
def say(
    text: Annotated[str, typer.Argument(help="What to say; - reads standard input.")],
    out: Annotated[Path, typer.Option("-o", "--out", help=".wav, .mp3, .ogg or .flac file.")],
    voice: Annotated[str, typer.Option(help="See: notecast voices list.")] = "",
    lang: Annotated[str, typer.Option(help="en, zh, ja, ... or auto.")] = "auto",
    speed: Annotated[float, typer.Option(min=0.5, max=2.0, help="Times the natural pace.")] = 1.0,
    duration: Annotated[float | None, typer.Option(help="Exact length in seconds.")] = None,
    emotion: Annotated[str, typer.Option(help="calm, serious, lively, urgent, ...")] = "",
    engine: EngineChoice = None,
    model_dir: ModelDir = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Speak a text into a file, in this process, without any server."""
    from pipeline.say import say_to_file

    spoken = sys.stdin.read() if text == "-" else text
    settings = load_settings(data=data, engine=engine, model_dir=model_dir)
    result = say_to_file(
        settings,
        spoken,
        out,
        voice=voice,
        lang=lang,
        speed=speed,
        target_s=duration,
        emotion=emotion,
        show_progress=not as_json and console.is_terminal,
    )
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    console.print(
        f"{out}: {result['audio_s']:.2f} s in {result['wall_s']:.2f} s "
        f"(real-time factor {result['rtf']:.2f}), voice {', '.join(result['voices'])}",
        highlight=False,
    )
    for line in result["notes"]:
        console.print(f"  [yellow]note:[/] {escape(line)}", highlight=False)


@app.command(rich_help_panel="Use")
def speak(
    text: Annotated[str, typer.Argument(help="What to say; - reads standard input.")],
    title: Annotated[str, typer.Option(help="Title of the episode.")] = "",
    voice: Annotated[str, typer.Option(help="See: notecast voices list.")] = "",
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Send a text to the running notecast up; prints the live link."""
    from pipeline.client import send_text

    spoken = sys.stdin.read() if text == "-" else text
    answer = send_text(load_settings(data=data), spoken, title=title, voice=voice)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        console.print(f"episode {answer['id']} is {answer['status']}", highlight=False)
        console.print(f"listen: {answer['listen_url']}", highlight=False, soft_wrap=True)


@app.command(rich_help_panel="Use")
def listen(
    link: Annotated[str, typer.Argument(help="A live link, http://.../l/...#t=...")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the sound here.")] = None,
) -> None:
    """Follow a live link from a terminal: captions scroll, the sound goes to a file."""
    from pipeline.follow import follow

    raise typer.Exit(follow(link, out, console))


voices_app = typer.Typer(help="The voices that can be asked for.", no_args_is_help=True)
app.add_typer(voices_app, name="voices", rich_help_panel="Use")


@voices_app.command("list")
def voices_list(
    lang: Annotated[str, typer.Option(help="Only this language.")] = "",
    engine: EngineChoice = None,
    model_dir: ModelDir = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """List the engine's voices."""
    from dataclasses import asdict

    from pipeline.voices import list_voices

    settings = load_settings(data=data, engine=engine, model_dir=model_dir)
    found = [one for one in list_voices(settings) if lang in ("", one.lang)]
    if as_json:
        print(json.dumps([asdict(one) for one in found], ensure_ascii=False))
        return
    _table("Voices", ("id", "name", "language", "gender", "grade"), [
        (one.id, one.name, one.lang, one.gender, one.grade) for one in found
    ])  # fmt: skip


@voices_app.command("add")
def voices_add(
    name: Annotated[str, typer.Argument(help="Id of the voice: lower-case letters, digits, - _.")],
    clip: Annotated[Path, typer.Argument(help="3 to 60 s of one speaker, any audio format.")],
    speaker: Annotated[str, typer.Option(help="Whose voice it is.")],
    consent: Annotated[
        Literal["own_voice", "recorded_statement", "signed_document"],
        typer.Option(help="How the speaker agreed to be cloned."),
    ],
    evidence: Annotated[
        str, typer.Option(help="Where the statement or document lies; not for one's own voice.")
    ] = "",
    given_by: Annotated[str, typer.Option(help="Who enters it; you, if not given.")] = "",
    given_on: Annotated[str, typer.Option(help="Date of the consent, 2026-11-22; today.")] = "",
    lang: Annotated[Literal["zh", "en"], typer.Option(help="Language of the clip.")] = "zh",
    gender: Annotated[str, typer.Option(help="female, male or nothing.")] = "",
    engine: EngineChoice = None,
    model_dir: ModelDir = None,
    data: Data = None,
) -> None:
    """Clone a voice from a recording, with its speaker's consent (engine indextts2)."""
    from pipeline.voices import add_voice

    settings = load_settings(data=data, engine=engine, model_dir=model_dir)
    with console.status(f"adding {name} ..."):
        is_ready = add_voice(
            settings,
            name,
            clip,
            speaker=speaker,
            method=consent,
            given_by=given_by or getpass.getuser(),
            given_on=given_on,
            evidence=evidence,
            lang=lang,
            gender=gender,
        )
    when = "it can speak at once" if is_ready else "a worker learns it when it is first asked for"
    console.print(f"voice {name} is added; {when}", highlight=False)


@voices_app.command("remove")
def voices_remove(name: str, engine: EngineChoice = None, data: Data = None) -> None:
    """Delete a cloned voice, its recording and what was computed from it."""
    from pipeline.voices import remove_voice

    remove_voice(load_settings(data=data, engine=engine), name)
    console.print(f"voice {name} is removed", highlight=False)


# operating ---------------------------------------------------------------------------------------

episodes_app = typer.Typer(help="What is being spoken and what was.", no_args_is_help=True)
app.add_typer(episodes_app, name="episodes", rich_help_panel="Operate")
STATUSES = Literal["queued", "live", "done", "failed", "cancelled"]


@episodes_app.command("list")
def episodes_list(
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    status: Annotated[STATUSES | None, typer.Option(help="Only these.")] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """List the newest episodes."""
    from pipeline.episode_view import newest

    with _services(data) as services:
        found = newest(services, limit=limit, status=status)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    _table("Episodes", ("id", "status", "title", "seconds", "tries", "reason"), [
        (
            one["id"], one["status"], one["title"], one.get("duration_s", ""), one["tries"],
            (one["error"] or {}).get("message") or "",
        )
        for one in found
    ])  # fmt: skip


@episodes_app.command("show")
def episodes_show(key: str, data: Data = None, as_json: AsJson = False) -> None:
    """Show one episode with its history."""
    from pipeline import reports
    from pipeline.episode_view import show

    with _services(data) as services:
        found = show(services, key)
        path = reports.episode_path(services.database, key)
    if as_json:
        print(json.dumps(found | {"path": path}, ensure_ascii=False))
        return
    console.print_json(json.dumps(found, ensure_ascii=False))
    _table("Path", ("ms", "what", "detail"), [tuple(row.values()) for row in path])


@episodes_app.command("retry")
def episodes_retry(key: str, data: Data = None) -> None:
    """Try a failed or dead episode again now."""
    _revive(key, data, new_take=False)


@episodes_app.command("revive")
def episodes_revive(
    key: str,
    take: Annotated[bool, typer.Option("--new-take", help="Speak it anew, keep nothing.")] = False,
    data: Data = None,
) -> None:
    """Bring a dead episode back to the queue; with --new-take also a finished one."""
    _revive(key, data, new_take=take)


def _revive(key: str, data: Path | None, *, new_take: bool) -> None:
    from pipeline.operate import revive

    with _services(data) as services:
        revive(services, key, actor=_actor(), new_take=new_take)
    console.print(f"episode {key} is queued again", highlight=False)


@episodes_app.command("cancel")
def episodes_cancel(key: str, data: Data = None) -> None:
    """Stop an episode; its listeners are told."""
    from pipeline.operate import stop_episode

    with _services(data) as services:
        ended = stop_episode(services, key, actor=_actor())
    console.print("stopped" if ended else "it had ended already", highlight=False)


runs_app = typer.Typer(help="Batch runs.", no_args_is_help=True)
app.add_typer(runs_app, name="runs", rich_help_panel="Operate")


@runs_app.command("list")
def runs_list(data: Data = None, as_json: AsJson = False) -> None:
    """List the newest batch runs."""
    from pipeline import schedule

    with _services(data) as services:
        _show_rows("Runs", schedule.list_runs(services.database), as_json)


@runs_app.command("show")
def runs_show(run: str, data: Data = None, as_json: AsJson = False) -> None:
    """Show one batch run and its progress."""
    from pipeline import schedule

    with _services(data) as services:
        _show_rows("Run", [schedule.show_run(services.database, run)], as_json)


schedules_app = typer.Typer(help="Batch runs by the clock.", no_args_is_help=True)
app.add_typer(schedules_app, name="schedules", rich_help_panel="Operate")


@schedules_app.command("list")
def schedules_list(data: Data = None, as_json: AsJson = False) -> None:
    """List schedules with their next fire time."""
    from pipeline import schedule

    with _services(data) as services:
        _show_rows("Schedules", schedule.list_schedules(services.database), as_json)


@schedules_app.command("run")
def schedules_run(
    name: str,
    data: Data = None,
    wait: Annotated[bool, typer.Option(help="Show progress until the run has ended.")] = True,
) -> None:
    """Fire a schedule now, beside its fire times."""
    from pipeline.operate import run_schedule

    with _services(data) as services:
        ok = run_schedule(services, name, console=console, wait=wait)
    raise typer.Exit(0 if ok else 1)


connectors_app = typer.Typer(help="The tools that notes come from.", no_args_is_help=True)
app.add_typer(connectors_app, name="connectors", rich_help_panel="Operate")


@connectors_app.command("list")
def connectors_list(
    connectors: Connectors = None, data: Data = None, as_json: AsJson = False
) -> None:
    """List endpoints, and check that connectors.toml can be used."""
    from pipeline.services import Services, connectors_file

    settings = load_settings(data=data, connectors=connectors)
    found = [
        {"endpoint": one.name, "connector": one.connector.name, "hook": f"/hooks/{one.address}"}
        for one in Services(settings).endpoints.values()
    ]
    _show_rows(f"Endpoints of {connectors_file(settings) or 'no connectors.toml'}", found, as_json)


@app.command(rich_help_panel="Operate")
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT; see the v_* views.")],
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Ask the database, read-only; at most 10,000 rows and 10 seconds."""
    from pipeline import reports

    with _services(data) as services:
        result = reports.run_sql(services.database, query, actor=_actor())
    _show_result(result, csv=csv, as_json=as_json)


@app.command(rich_help_panel="Operate")
def report(
    name: Annotated[str, typer.Argument(help="minutes_day, backlog, stuck, dead, ...")],
    day: Annotated[str | None, typer.Option(help="Only this day, 2026-11-20.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Print a named report."""
    from pipeline import reports

    with _services(data) as services:
        result = reports.report(services.database, name, day=day, actor=_actor())
    _show_result(result, csv=csv, as_json=as_json)


keys_app = typer.Typer(help="API keys for /v1.", no_args_is_help=True)
app.add_typer(keys_app, name="keys", rich_help_panel="Operate")


@keys_app.command("add")
def keys_add(name: str, data: Data = None) -> None:
    """Make a key; it is shown once."""
    from pipeline.up import new_key

    with _services(data) as services:
        print(new_key(services, name=name, scopes=("episodes",)))


@keys_app.command("list")
def keys_list(data: Data = None, as_json: AsJson = False) -> None:
    """List keys by their first characters."""
    from pipeline.operate import list_keys

    with _services(data) as services:
        _show_rows("API keys", list_keys(services.database), as_json)


@keys_app.command("revoke")
def keys_revoke(prefix: str, data: Data = None) -> None:
    """Revoke the key that begins so; takes effect within 5 seconds."""
    from pipeline.intake import revoke_api_key

    with _services(data) as services:
        count = revoke_api_key(services.database, prefix)
    console.print(f"{count} revoked")
    raise typer.Exit(0 if count else 1)


# setting up --------------------------------------------------------------------------------------

db_app = typer.Typer(help="The database's schema.", no_args_is_help=True)
app.add_typer(db_app, name="db", rich_help_panel="Set up")


@db_app.command("upgrade")
def db_upgrade(data: Data = None) -> None:
    """Bring the schema to this version."""
    from pipeline import migrate

    with _services(data, check=False) as services:
        migrate.upgrade(services.database)
        console.print(str(migrate.status(services.database)), highlight=False)


@db_app.command("status")
def db_status(data: Data = None) -> None:
    """Say which version the schema has."""
    from pipeline import migrate

    with _services(data, check=False) as services:
        console.print(str(migrate.status(services.database)), highlight=False)


storage_app = typer.Typer(help="Where recordings lie.", no_args_is_help=True)
app.add_typer(storage_app, name="storage", rich_help_panel="Set up")


@storage_app.command("check")
def storage_check(data: Data = None, as_json: AsJson = False) -> None:
    """Try on the store what notecast relies on."""
    from dataclasses import asdict

    from pipeline.storage import probe

    with _services(data, check=False) as services:
        found = probe(services.storage)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        _table("Storage", ("ability", "found"), [(k, str(v)) for k, v in asdict(found).items()])
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
    _table("Settings", ("name", "value", "meaning"), [
        (name, value, Settings.model_fields[name].description or "")
        for name, value in values.items()
    ])  # fmt: skip


@app.command(rich_help_panel="Set up")
def doctor(data: Data = None) -> None:
    """Check what a good run needs, and say how to get what is missing."""
    from pipeline.operate import examine

    findings = examine(load_settings(data=data))
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


# helpers -----------------------------------------------------------------------------------------


class _services:
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


def _actor() -> str:
    return f"cli:{getpass.getuser()}"


def _show_rows(title: str, found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, ensure_ascii=False, default=str))
        return
    columns = list(found[0]) if found else ["nothing"]
    _table(title, columns, [tuple(row.values()) for row in found])


def _show_result(result: Any, *, csv: bool, as_json: bool) -> None:
    from pipeline import reports

    if as_json:
        print(reports.to_json(result))
    elif csv:
        print(reports.to_csv(result), end="")
    else:
        console.print(reports.to_table(result))


def _table(title: str, columns: Any, found: Any) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(str(column), overflow="fold")
    for row in found:
        table.add_row(*("" if value is None else escape(str(value)) for value in row))
    console.print(table)


if __name__ == "__main__":
    main()
