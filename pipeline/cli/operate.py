"""Episodes, batch runs, schedules, reports, API keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.shell import (
    AsJson,
    Data,
    actor,
    console,
    opened,
    show_result,
    show_rows,
    show_table,
)

app = typer.Typer()


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

    with opened(data) as services:
        found = newest(services, limit=limit, status=status)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    show_table("Episodes", ("id", "status", "title", "seconds", "tries", "reason"), [
        (
            one["id"], one["status"], one["title"], one.get("duration_s", ""), one["tries"],
            (one["error"] or {}).get("message") or "",
        )
        for one in found
    ])  # fmt: skip


@episodes_app.command("show")
def episodes_show(key: str, data: Data = None, as_json: AsJson = False) -> None:
    """Show one episode with its history."""
    from pipeline import chapters, reports
    from pipeline.episode_view import show

    with opened(data) as services:
        found = show(services, key)
        found["offered"] = chapters.offered(services, found["id"])
        path = reports.episode_path(services.database, key)
    if as_json:
        print(json.dumps(found | {"path": path}, ensure_ascii=False))
        return
    console.print_json(json.dumps(found, ensure_ascii=False))
    show_table("Path", ("ms", "what", "detail"), [tuple(row.values()) for row in path])


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

    with opened(data) as services:
        revive(services, key, actor=actor(), new_take=new_take)
    console.print(f"episode {key} is queued again", highlight=False)


@episodes_app.command("cancel")
def episodes_cancel(key: str, data: Data = None) -> None:
    """Stop an episode; its listeners are told."""
    from pipeline.operate import stop_episode

    with opened(data) as services:
        ended = stop_episode(services, key, actor=actor())
    console.print("stopped" if ended else "it had ended already", highlight=False)


@episodes_app.command("pause")
def episodes_pause(key: str, data: Data = None) -> None:
    """Pause an episode after the sentence that is being spoken."""
    _order(key, "pause", data, done="it pauses after this sentence")


@episodes_app.command("resume")
def episodes_resume(key: str, data: Data = None) -> None:
    """Go on with a paused episode."""
    _order(key, "resume", data, done="it goes on")


def _order(key: str, op: Literal["pause", "resume"], data: Path | None, *, done: str) -> None:
    from pipeline.operate import give_order
    from streaming.orders import Wish

    with opened(data) as services:
        is_open = give_order(services, key, Wish(op), actor=actor())
    console.print(done if is_open else "it had ended already", highlight=False)


@episodes_app.command("links")
def episodes_links(key: str, data: Data = None, as_json: AsJson = False) -> None:
    """Show an episode's links: the listeners', and its owner's, who may pause and change it."""
    from pipeline.episode_view import show
    from pipeline.links import owner_url

    with opened(data) as services:
        found = show(services, key)
        owner = owner_url(services.database, services.links, found["id"])
    rows = [{"role": "listener", "url": found["listen_url"]}, {"role": "owner", "url": owner}]
    show_rows("Links", rows, as_json)


runs_app = typer.Typer(help="Batch runs.", no_args_is_help=True)
app.add_typer(runs_app, name="runs", rich_help_panel="Operate")


@runs_app.command("list")
def runs_list(data: Data = None, as_json: AsJson = False) -> None:
    """List the newest batch runs."""
    from pipeline import schedule

    with opened(data) as services:
        show_rows("Runs", schedule.list_runs(services.database), as_json)


@runs_app.command("show")
def runs_show(run: str, data: Data = None, as_json: AsJson = False) -> None:
    """Show one batch run and its progress."""
    from pipeline import schedule

    with opened(data) as services:
        show_rows("Run", [schedule.show_run(services.database, run)], as_json)


schedules_app = typer.Typer(help="Batch runs by the clock.", no_args_is_help=True)
app.add_typer(schedules_app, name="schedules", rich_help_panel="Operate")


@schedules_app.command("list")
def schedules_list(data: Data = None, as_json: AsJson = False) -> None:
    """List schedules with their next fire time."""
    from pipeline import schedule

    with opened(data) as services:
        show_rows("Schedules", schedule.list_schedules(services.database), as_json)


@schedules_app.command("run")
def schedules_run(
    name: str,
    data: Data = None,
    wait: Annotated[bool, typer.Option(help="Show progress until the run has ended.")] = True,
) -> None:
    """Fire a schedule now, beside its fire times."""
    from pipeline.operate import run_schedule

    with opened(data) as services:
        ok = run_schedule(services, name, console=console, wait=wait)
    raise typer.Exit(0 if ok else 1)


@app.command(rich_help_panel="Operate")
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT; see the v_* views.")],
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Ask the database, read-only; at most 10,000 rows and 10 seconds."""
    from pipeline import reports

    with opened(data) as services:
        result = reports.run_sql(services.database, query, actor=actor())
    show_result(result, csv=csv, as_json=as_json)


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

    with opened(data) as services:
        result = reports.report(services.database, name, day=day, actor=actor())
    show_result(result, csv=csv, as_json=as_json)


keys_app = typer.Typer(help="API keys for /v1.", no_args_is_help=True)
app.add_typer(keys_app, name="keys", rich_help_panel="Operate")


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    scope: Annotated[
        Literal["episodes", "admin"],
        typer.Option(help="episodes: /v1; admin: /admin and /metrics as well."),
    ] = "episodes",
    data: Data = None,
) -> None:
    """Make a key; it is shown once."""
    from pipeline.up import new_key

    with opened(data) as services:
        print(new_key(services, name=name, scopes=(scope,)))


@keys_app.command("list")
def keys_list(data: Data = None, as_json: AsJson = False) -> None:
    """List keys by their first characters."""
    from pipeline.operate import list_keys

    with opened(data) as services:
        show_rows("API keys", list_keys(services.database), as_json)


@keys_app.command("revoke")
def keys_revoke(prefix: str, data: Data = None) -> None:
    """Revoke the key that begins so; takes effect within 5 seconds."""
    from pipeline.intake import revoke_api_key

    with opened(data) as services:
        count = revoke_api_key(services.database, prefix)
    console.print(f"{count} revoked")
    raise typer.Exit(0 if count else 1)
