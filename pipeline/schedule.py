"""Batch runs: which are due, what they hold, how far they are.

[schedule.morning]
endpoint = "board"
cron     = "55 8 * * 1-5"           # minute hour day month weekday
timezone = "Asia/Shanghai"
select   = { column = "Status", in = ["Ready"], since = "last_run" }  # or a length: "24h", "7d"
combine  = "episode"                # one episode with a chapter per note; or "each"
title    = "Morning notes {date}"   # also {time}, {count}, {schedule}; {title} with "each"
voice    = "anna"
notify   = ["board"]                # whose groups get the cards; without it the endpoint's own
jitter   = "90s"                    # begins up to so much later, to keep off the crowded minute
catch_up = "once"                   # fire times missed while down: skip, once, all ...
grace    = "6h"                     # ... when they are no older than this
enabled  = true

sync     file -> schedule rows with next_ms
tick     due rows -> batch_run (state due) + wake-up; UNIQUE (schedule, fire time) keeps it single
walk     the endpoint looks through its rows first, so that none missed while down is left out
expand   due -> selecting, page by page -> running, with its episodes
episode_ended   running -> done, or failed when a note was not read
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from connectors.base import Connector
from connectors.errors import nearest
from connectors.fields import TableConnector
from pipeline import ids, outbox
from pipeline.cron import last_fire, next_fire
from pipeline.database import Database, affected, now_ms, rows
from pipeline.errors import Misconfigured, NotFound, PipelineError
from pipeline.models import batch_item, batch_run, endpoint, episode, note, schedule

if TYPE_CHECKING:
    from pipeline.endpoints import Endpoint

log = logging.getLogger(__name__)

Row = Mapping[str, Any]

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_ON_TIME_MS = 60_000  # a fire time not older than this was not missed
_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_FOR_ALL = ("date", "time", "count", "schedule")
_FOR_EACH = (*_FOR_ALL, "title")
_READ = ("done",)
_UNREAD = ("dead", "cancelled")


def _length_ms(value: object) -> int:
    found = re.fullmatch(r"(\d{1,6})([smhd])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('must be a length like "90s", "30m", "24h" or "7d"')
    return int(found[1]) * _UNITS_MS[found[2]]


def _since_ms(value: object) -> int | None:
    if value == "last_run":
        return None
    try:
        return _length_ms(value)
    except ValueError as error:
        raise ValueError(f'{error}, or "last_run"') from None


class Select(BaseModel):
    """Which notes a run takes.

    Attributes:
        column: the endpoint's trigger column; empty takes whatever the trigger takes.
        values: what it must hold, in the file `in`; some of the trigger's.
        since: milliseconds before the fire time; None is "since the last run".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = Field(default="", max_length=200)
    values: tuple[str, ...] = Field(default=(), alias="in", max_length=50)
    since: Annotated[int | None, BeforeValidator(_since_ms)] = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Select:
        if bool(self.column) != bool(self.values):
            raise ValueError('column and in belong together: { column = "Status", in = ["Ready"] }')
        return self


class ScheduleSpec(BaseModel):
    """One `[schedule.NAME]`.

    Attributes:
        endpoint: whose notes.
        notify: endpoints whose groups get the cards; None is those of `endpoint`.
        jitter: milliseconds; a run begins up to so much later, each time somewhere else.
        grace: milliseconds; a missed fire time older than this is let go.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,79}$")
    endpoint: str
    cron: str = Field(max_length=120)
    timezone: str = Field(max_length=60)
    select: Select = Select()
    combine: Literal["episode", "each"] = "episode"
    title: str = Field("", max_length=200)
    voice: str = Field("", max_length=200)
    notify: list[str] | None = None
    jitter: Annotated[int, BeforeValidator(_length_ms)] = 0
    catch_up: Literal["skip", "once", "all"] = "once"
    grace: Annotated[int, BeforeValidator(_length_ms)] = 6 * 3_600_000
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Order:
    """What an episode of a run is made for; the episode's row must carry `run_id`.

    Attributes:
        voice: the narrator's, a name of `[voices]` or of the engine; empty is the endpoint's own.
    """

    run_id: str
    tenant_id: str
    endpoint_id: str
    endpoint: str
    title: str
    voice: str


CreateEpisode = Callable[[sa.Connection, Sequence[Row], Order], str]
"""Insert an episode over these note rows (in speaking order), its link and wake-up; give its id."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, in notes."""

    state: str
    total: int
    done: int
    failed: int

    @property
    def is_ended(self) -> bool:
        """Nothing more will happen by itself."""
        return self.state in ("done", "failed", "cancelled")


# the file ---------------------------------------------------------------------------------------


def parse_schedules(mapping: Mapping[str, Any]) -> list[ScheduleSpec]:
    """Read the tables under `schedule`.

    Raises:
        Misconfigured: names the key, what is wrong and what would be right.
    """
    return [_parse(name, table) for name, table in mapping.items()]


def _parse(name: str, table: Any) -> ScheduleSpec:
    where = f"schedule.{name}"
    if not isinstance(table, Mapping):
        raise Misconfigured(f"{where}: must be a table: [{where}]")
    known = set(ScheduleSpec.model_fields) - {"name"}
    for key in table:
        if key not in known:
            raise Misconfigured(f"{where}.{key}: unknown key; {nearest(key, known)}")
    try:
        spec = ScheduleSpec(name=name, **table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise Misconfigured(f"{where}.{key}: {_told(first)}") from None
    try:
        next_fire(spec.cron, spec.timezone, datetime.now(UTC))
    except Misconfigured as error:
        raise Misconfigured(f"{where}.{error}") from None
    allowed = _FOR_EACH if spec.combine == "each" else _FOR_ALL
    for placeholder in _PLACEHOLDER.findall(spec.title):
        if placeholder not in allowed:
            listed = ", ".join(f"{{{one}}}" for one in allowed)
            raise Misconfigured(f"{where}.title: no {{{placeholder}}} here; there are {listed}")
    return spec


def _told(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in Select.model_fields.items()]
        return f"unknown key; {nearest(str(error['loc'][-1]), known)}"
    return error["msg"].removeprefix("Value error, ").replace("Field required", "missing")


def check(specs: Sequence[ScheduleSpec], endpoints: Mapping[str, Endpoint]) -> None:
    """Does what schedules select and tell fit the endpoints, by name?

    Raises:
        Misconfigured: names the key, what is wrong and what would be right.
    """
    for spec in specs:
        endpoint = endpoints.get(spec.endpoint)
        if endpoint is not None and spec.select.column:
            _check_select(spec, endpoint.connector)
        for name in spec.notify or ():
            if name in endpoints and not endpoints[name].notify:
                raise Misconfigured(
                    f"schedule.{spec.name}.notify: {name!r} tells nobody; give it an "
                    f"[endpoint.{name}.notify]"
                )


def _check_select(spec: ScheduleSpec, connector: Connector) -> None:
    where = f"schedule.{spec.name}.select"
    if not isinstance(connector, TableConnector):
        raise Misconfigured(f"{where}.column: endpoint {spec.endpoint!r} has no columns")
    trigger = connector.table.trigger
    if spec.select.column != trigger.column:
        raise Misconfigured(
            f"{where}.column: must be the trigger's column of {spec.endpoint!r}, {trigger.column!r}"
        )
    for value in spec.select.values:
        if not trigger.said(value):
            raise Misconfigured(
                f"{where}.in: {value!r} makes no row of {spec.endpoint!r} ready; add it to "
                f"endpoint.{spec.endpoint}.trigger.equals"
            )


def sync(database: Database, specs: Sequence[ScheduleSpec]) -> None:
    """Make the rows what the file says; call it after the endpoints have their rows.

    `next_ms` is computed anew when cron, zone or `enabled` changed, so a schedule that was off is
    not caught up with. Schedules that left the file are switched off; their runs stay.

    Raises:
        Misconfigured: an endpoint that does not exist.
    """
    with database.write() as connection:
        endpoints = {
            row["name"]: row
            for row in rows(connection, sa.select(endpoint).order_by(endpoint.c.id))
        }
        known = {row["name"]: row for row in rows(connection, sa.select(schedule))}
        now = _now(connection)
        for spec in specs:
            if spec.endpoint not in endpoints:
                raise Misconfigured(
                    f"schedule.{spec.name}.endpoint: no endpoint {spec.endpoint!r}; "
                    f"{nearest(spec.endpoint, endpoints)}"
                )
            for name in spec.notify or ():
                if name not in endpoints:
                    raise Misconfigured(
                        f"schedule.{spec.name}.notify: no endpoint {name!r}; "
                        f"{nearest(name, endpoints)}"
                    )
            _keep(database, connection, spec, endpoints[spec.endpoint], known.get(spec.name), now)
        connection.execute(
            schedule.update()
            .where(schedule.c.name.not_in([spec.name for spec in specs]), schedule.c.enabled == 1)
            .values(enabled=0, next_ms=None, changed_ms=now)
        )


def _keep(
    database: Database,
    connection: sa.Connection,
    spec: ScheduleSpec,
    door: Row,
    old: Row | None,
    now: int,
) -> None:
    values = {
        "cron": spec.cron,
        "timezone": spec.timezone,
        "plan": {
            "endpoint": spec.endpoint,
            "endpoint_id": door["id"],
            "combine": spec.combine,
            "since_ms": spec.select.since,
            "column": spec.select.column,
            "in": list(spec.select.values),
            "notify": spec.notify,
            "jitter_ms": spec.jitter,
            "title": spec.title,
            "voice": spec.voice,
        },
        "catch_up": spec.catch_up,
        "grace_ms": spec.grace,
        "enabled": int(spec.enabled),
    }
    if old is not None and all(old[name] == value for name, value in values.items()):
        return
    values["changed_ms"] = now
    timing = ("cron", "timezone", "enabled")
    if old is None or any(old[name] != values[name] for name in timing):
        following = next_fire(spec.cron, spec.timezone, _instant(now))
        values["next_ms"] = _ms(following) if spec.enabled else None
    connection.execute(
        database.insert(schedule)
        .values(id=ids.ulid(), tenant_id=door["tenant_id"], name=spec.name, **values)
        .on_conflict_do_update(index_elements=["tenant_id", "name"], set_=values)
    )


# the clock --------------------------------------------------------------------------------------


def tick(database: Database, *, now_ms: int | None = None) -> int:
    """Make the runs that are due; any number of tickers make each of them once.

    Args:
        now_ms: the instant to judge by; the database's clock if None.

    Returns:
        How many runs were made.
    """
    with database.read() as connection:
        now = _now(connection) if now_ms is None else now_ms
        due = rows(
            connection,
            sa.select(schedule).where(schedule.c.enabled == 1, schedule.c.next_ms <= now),
        )
    made = 0
    for row in due:
        try:
            made += _tick_one(database, row, now)
        except Misconfigured as error:  # v_stuck shows it until somebody mends the file
            log.error("schedule not fired: %s", error, extra={"schedule": row["name"]})
    return made


def _tick_one(database: Database, row: Row, now: int) -> int:
    fires = _to_run(row, now)
    following = _ms(next_fire(row["cron"], row["timezone"], _instant(now)))
    with database.write() as connection:
        moved = affected(
            connection.execute(
                schedule.update()
                .where(schedule.c.id == row["id"], schedule.c.next_ms == row["next_ms"])
                .values(next_ms=following, last_ms=fires[-1] if fires else schedule.c.last_ms)
            )
        )
        if not moved:
            return 0
        runs = [_make_run(database, connection, row, at, forced=False) for at in fires]
    log.info("schedule fired", extra={"schedule": row["name"], "runs": len(runs)})
    return sum(run is not None for run in runs)


def _to_run(row: Row, now: int) -> list[int]:
    """The fire times since `next_ms` that deserve a run, oldest first."""
    cron, zone, catch_up = row["cron"], row["timezone"], row["catch_up"]
    late_ms = _ON_TIME_MS if catch_up == "skip" else max(row["grace_ms"], _ON_TIME_MS)
    oldest = max(row["next_ms"], now - late_ms)
    if catch_up != "all":
        latest = _ms(last_fire(cron, zone, _instant(now + 1)))
        return [latest] if latest >= oldest else []
    found = []
    at = _ms(next_fire(cron, zone, _instant(oldest - 1)))
    while at <= now:
        found.append(at)
        at = _ms(next_fire(cron, zone, _instant(at)))
    return found


def fire(database: Database, name: str) -> str:
    """Make a run now, beside the fire times; gives its id.

    It holds what the next scheduled run would hold so far, and takes nothing away from it.

    Raises:
        NotFound: no schedule of this name.
    """
    with database.write() as connection:
        known = {row["name"]: row for row in rows(connection, sa.select(schedule))}
        if name not in known:
            hint = nearest(name, known) if known else "connectors.toml has no [schedule.NAME]"
            raise NotFound(f"no schedule {name!r}; {hint}")
        now = _now(connection)
        run_id = _make_run(database, connection, known[name], now, forced=True)
        if run_id is None:  # fired twice within a millisecond
            run_id = connection.execute(
                sa.select(batch_run.c.id).where(
                    batch_run.c.schedule_id == known[name]["id"],
                    batch_run.c.fire_ms == now,
                    batch_run.c.forced == 1,
                )
            ).scalar_one()
    return run_id


def _make_run(
    database: Database, connection: sa.Connection, row: Row, fire_ms: int, *, forced: bool
) -> str | None:
    """Insert a run with its wake-up; None when this fire time has one."""
    from_ms = _window_start(connection, row, fire_ms)
    wait_ms = 0 if forced else _jitter_ms(row, fire_ms)
    run_id: str | None = connection.execute(
        database.insert(batch_run)
        .values(
            id=ids.ulid(),
            tenant_id=row["tenant_id"],
            schedule_id=row["id"],
            fire_ms=fire_ms,
            forced=int(forced),
            state="due",
            cursor={
                "from_ms": from_ms,
                "until_ms": fire_ms,
                "after": [from_ms + 1, ""],
                "begin_ms": fire_ms + wait_ms,
            },
            created_ms=now_ms(),
        )
        .on_conflict_do_nothing()
        .returning(batch_run.c.id)
    ).scalar()
    if run_id is not None:
        outbox.put(connection, "expand", after_ms=wait_ms)
    return run_id


def _jitter_ms(row: Row, fire_ms: int) -> int:
    """The same for every ticker, different from time to time and from schedule to schedule."""
    digest = hashlib.sha256(f"{row['id']}/{fire_ms}".encode()).digest()
    most_ms: int = row["plan"]["jitter_ms"]
    return int.from_bytes(digest[:8], "big") % (most_ms + 1)


def _window_start(connection: sa.Connection, row: Row, fire_ms: int) -> int:
    """Notes changed after this instant belong to the run.

    "Since the last run" means the last scheduled one: runs by hand take nothing from their
    successors. Before there was one it means the last time it would have fired.
    """
    since_ms: int | None = row["plan"]["since_ms"]
    if since_ms is not None:
        return fire_ms - since_ms
    last: Row | None = connection.execute(
        sa.select(batch_run.c.cursor)
        .where(
            batch_run.c.schedule_id == row["id"],
            batch_run.c.forced == 0,
            batch_run.c.fire_ms < fire_ms,
            batch_run.c.state != "cancelled",
        )
        .order_by(batch_run.c.fire_ms.desc())
        .limit(1)
    ).scalar()
    if last is None:
        return _ms(last_fire(row["cron"], row["timezone"], _instant(fire_ms)))
    return int(last["until_ms"])


# a run ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """A run whose time has come, and whose rows are to be looked through first."""

    id: str
    endpoint: str
    endpoint_id: str
    begin_ms: int
    waits_ms: int


def ready_runs(database: Database) -> tuple[list[Ready], int | None]:
    """Runs to expand now, oldest first, and the wait in ms until the next one is to begin."""
    query = (
        sa.select(batch_run.c.id, batch_run.c.cursor, schedule.c.plan, now_ms().label("now"))
        .join(schedule, schedule.c.id == batch_run.c.schedule_id)
        .where(batch_run.c.state.in_(("due", "selecting")))
        .order_by(batch_run.c.fire_ms)
    )
    with database.read() as connection:
        found = [
            Ready(
                row.id,
                row.plan["endpoint"],
                row.plan["endpoint_id"],
                row.cursor["begin_ms"],
                row.cursor["begin_ms"] - row.now,
            )
            for row in connection.execute(query)
        ]
    ready = [one for one in found if one.waits_ms <= 0]
    return ready, min((one.waits_ms for one in found if one.waits_ms > 0), default=None)


def walked(database: Database, run_id: str, until_ms: int) -> None:
    """The rows were looked through: what was found until then belongs to this run."""
    with database.write() as connection:
        run = _locked(connection, run_id)
        if run["state"] != "due" or until_ms <= run["cursor"]["until_ms"]:
            return
        connection.execute(
            batch_run.update()
            .where(batch_run.c.id == run_id)
            .values(cursor={**run["cursor"], "until_ms": until_ms})
        )


def expand(
    database: Database, run_id: str, *, create_episode: CreateEpisode, page: int = 200
) -> Progress:
    """Turn a run's notes into items and episodes, `page` notes a commit.

    Goes on where a killed expansion stopped; two at a time take turns. A run that cannot be made
    ends as `failed` with its reason.

    Raises:
        NotFound: no such run.
        DatabaseUnavailable: between two pages; call it again.
    """
    try:
        while _expand_page(database, run_id, create_episode, page):
            pass
    except NotFound:
        raise
    except PipelineError as error:
        if error.retry:
            raise
        _give_up(database, run_id, str(error))
    return progress(database, run_id)


def _expand_page(database: Database, run_id: str, create_episode: CreateEpisode, page: int) -> bool:
    """One commit; False when nothing is left to select."""
    with database.write() as connection:
        run = _locked(connection, run_id)
        if run["state"] not in ("due", "selecting"):
            return False
        notes = _next_notes(connection, run, page)
        if not notes:
            _close_selection(connection, run, create_episode)
            return False
        fresh = _without_items(connection, run_id, notes)
        for position, one in enumerate(fresh, start=run["total"]):
            made = None
            if run["plan"]["combine"] == "each":
                made = create_episode(connection, [one], _order(run, [one]))
            connection.execute(
                batch_item.insert().values(
                    batch_run_id=run_id, note_id=one["id"], position=position, episode_id=made
                )
            )
        after = [notes[-1]["changed_ms"], notes[-1]["id"]]
        connection.execute(
            batch_run.update()
            .where(batch_run.c.id == run_id)
            .values(
                state="selecting",
                started_ms=sa.func.coalesce(batch_run.c.started_ms, now_ms()),
                total=run["total"] + len(fresh),
                cursor={**run["cursor"], "after": after},
            )
        )
    return True


def _locked(connection: sa.Connection, run_id: str) -> Row:
    """The run with its schedule's plan, locked until the commit."""
    run = (
        connection.execute(
            sa.select(batch_run, schedule.c.plan, schedule.c.name, schedule.c.timezone)
            .join(schedule, schedule.c.id == batch_run.c.schedule_id)
            .where(batch_run.c.id == run_id)
            .with_for_update(of=batch_run)
        )
        .mappings()
        .first()
    )
    if run is None:
        raise NotFound(f"no run {run_id}")
    return dict(run)


def _next_notes(connection: sa.Connection, run: Row, page: int) -> Sequence[Row]:
    place = sa.tuple_(note.c.changed_ms, note.c.id)
    which = [
        note.c.endpoint_id == run["plan"]["endpoint_id"],
        note.c.changed_ms <= run["cursor"]["until_ms"],
        note.c.content.is_not(sa.null()),
        place > sa.tuple_(*run["cursor"]["after"]),
    ]
    wanted = run["plan"]["in"]
    if wanted:
        said = sa.func.lower(note.c.content["trigger"].as_string())
        which.append(said.in_([one.lower() for one in wanted]))
    order = (note.c.changed_ms, note.c.id)
    return rows(connection, sa.select(note).where(*which).order_by(*order).limit(page))


def _without_items(connection: sa.Connection, run_id: str, notes: Sequence[Row]) -> list[Row]:
    """A note changed under a clock that was set back may come a second time."""
    taken = set(
        connection.execute(
            sa.select(batch_item.c.note_id).where(
                batch_item.c.batch_run_id == run_id,
                batch_item.c.note_id.in_([one["id"] for one in notes]),
            )
        ).scalars()
    )
    return [one for one in notes if one["id"] not in taken]


def _close_selection(connection: sa.Connection, run: Row, create_episode: CreateEpisode) -> None:
    """All notes are known: make the digest if there is one, and count."""
    if run["total"] and run["plan"]["combine"] == "episode":
        notes = rows(
            connection,
            sa.select(note)
            .join(batch_item, batch_item.c.note_id == note.c.id)
            .where(batch_item.c.batch_run_id == run["id"])
            .order_by(batch_item.c.position),
        )
        made = create_episode(connection, notes, _order(run, notes))
        connection.execute(
            batch_item.update()
            .where(batch_item.c.batch_run_id == run["id"])
            .values(episode_id=made)
        )
    connection.execute(
        batch_run.update()
        .where(batch_run.c.id == run["id"])
        .values(state="running", started_ms=sa.func.coalesce(batch_run.c.started_ms, now_ms()))
    )
    _count(connection, run["id"])


def _order(run: Row, notes: Sequence[Row]) -> Order:
    plan = run["plan"]
    return Order(
        run_id=run["id"],
        tenant_id=run["tenant_id"],
        endpoint_id=plan["endpoint_id"],
        endpoint=plan["endpoint"],
        title=_title(run, notes),
        voice=plan["voice"],
    )


def _title(run: Row, notes: Sequence[Row]) -> str:
    is_digest = run["plan"]["combine"] == "episode"
    template = run["plan"]["title"] or ("{schedule} {date}" if is_digest else "{title}")
    at = _instant(run["fire_ms"]).astimezone(ZoneInfo(run["timezone"]))
    values = {
        "date": at.strftime("%Y-%m-%d"),
        "time": at.strftime("%H:%M"),
        "count": str(len(notes)),
        "schedule": run["name"],
        "title": notes[0]["title"],
    }
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)


def _give_up(database: Database, run_id: str, reason: str) -> None:
    with database.write() as connection:
        connection.execute(
            batch_run.update()
            .where(batch_run.c.id == run_id, batch_run.c.state.in_(("due", "selecting")))
            .values(state="failed", ended_ms=now_ms(), error=reason[:500])
        )
    log.warning("run not expanded: %s", reason, extra={"run": run_id})


def notified(connection: sa.Connection, run_id: str) -> list[str] | None:
    """Endpoints whose groups hear of a run's episodes; None is the run's own."""
    plan: Row = connection.execute(
        sa.select(schedule.c.plan)
        .join(batch_run, batch_run.c.schedule_id == schedule.c.id)
        .where(batch_run.c.id == run_id)
    ).scalar_one()
    names: list[str] | None = plan["notify"]
    return names


def episode_ended(connection: sa.Connection, row: sa.Row[Any] | Row) -> None:
    """Bring the run of an episode up to date, in the commit that ends or revives the episode.

    Counts the episodes as they are instead of adding one, so twice is as good as once.

    Args:
        row: the episode, with `batch_run_id`.
    """
    run_id = row._mapping["batch_run_id"] if isinstance(row, sa.Row) else row["batch_run_id"]
    if run_id is not None:
        _count(connection, run_id)


def _count(connection: sa.Connection, run_id: str) -> None:
    run = _locked(connection, run_id)  # first: PostgreSQL then shows us what others committed
    if run["state"] == "cancelled" or run["error"] is not None:
        return
    ended = connection.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(_one_if(_READ)), 0).label("done"),
            sa.func.coalesce(sa.func.sum(_one_if(_UNREAD)), 0).label("failed"),
        )
        .select_from(batch_item)
        .join(episode, episode.c.id == batch_item.c.episode_id)
        .where(batch_item.c.batch_run_id == run_id)
    ).one()
    values: dict[str, Any] = {"done": ended.done, "failed": ended.failed}
    if run["state"] != "selecting":
        is_open = ended.done + ended.failed < run["total"]
        values["state"] = "running" if is_open else ("failed" if ended.failed else "done")
        values["ended_ms"] = None if is_open else now_ms()
    connection.execute(batch_run.update().where(batch_run.c.id == run_id).values(values))


def _one_if(states: Sequence[str]) -> sa.Case[int]:
    return sa.case((episode.c.state.in_(states), 1), else_=0)


# for people -------------------------------------------------------------------------------------


def progress(database: Database, run_id: str) -> Progress:
    """How far a run is.

    Raises:
        NotFound: no such run.
    """
    columns = (batch_run.c.state, batch_run.c.total, batch_run.c.done, batch_run.c.failed)
    with database.read() as connection:
        found = connection.execute(sa.select(*columns).where(batch_run.c.id == run_id)).first()
    if found is None:
        raise NotFound(f"no run {run_id}")
    return Progress(*found)


def list_runs(database: Database, *, limit: int = 50) -> list[dict[str, Any]]:
    """The newest runs first."""
    query = _RUNS.order_by(batch_run.c.fire_ms.desc(), batch_run.c.id.desc()).limit(limit)
    with database.read() as connection:
        return [_readable(row, UTC) for row in rows(connection, query)]


def show_run(database: Database, run_id: str) -> dict[str, Any]:
    """One run, with the start of its window.

    Raises:
        NotFound: no such run.
    """
    query = _RUNS.add_columns(batch_run.c.cursor).where(batch_run.c.id == run_id)
    with database.read() as connection:
        found = rows(connection, query)
    if not found:
        raise NotFound(f"no run {run_id}")
    run = dict(found[0])
    return _readable(run | {"notes_since_ms": run.pop("cursor")["from_ms"]}, UTC)


def list_schedules(database: Database) -> list[dict[str, Any]]:
    """All schedules; `next` and `last` in their own zone."""
    with database.read() as connection:
        found = rows(connection, sa.select(schedule).order_by(schedule.c.name))
    return [
        _readable(
            {
                "schedule": row["name"],
                "endpoint": row["plan"]["endpoint"],
                "cron": row["cron"],
                "timezone": row["timezone"],
                "combine": row["plan"]["combine"],
                "catch_up": row["catch_up"],
                "enabled": bool(row["enabled"]),
                "next_ms": row["next_ms"],
                "last_ms": row["last_ms"],
            },
            ZoneInfo(row["timezone"]),
        )
        for row in found
    ]


_RUNS = sa.select(
    batch_run.c.id.label("run"),
    schedule.c.name.label("schedule"),
    batch_run.c.fire_ms.label("fired_ms"),
    batch_run.c.forced,
    batch_run.c.state,
    batch_run.c.total,
    batch_run.c.done,
    batch_run.c.failed,
    batch_run.c.started_ms,
    batch_run.c.ended_ms,
    batch_run.c.error,
).join(schedule, schedule.c.id == batch_run.c.schedule_id)


def _readable(row: Row, zone: tzinfo) -> dict[str, Any]:
    """Instants (`_ms`) as ISO 8601 of the zone."""
    shown: dict[str, Any] = {}
    for name, value in row.items():
        if name.endswith("_ms"):
            at = _instant(value).astimezone(zone).isoformat("T", "seconds") if value else None
            shown[name.removesuffix("_ms")] = at
        else:
            shown[name] = value
    return shown


def _now(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(now_ms())).scalar_one())


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _ms(instant: datetime) -> int:
    return round(instant.timestamp() * 1000)
