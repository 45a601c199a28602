"""What an endpoint does without being asked: walks over its rows, and its subscription's upkeep.

A walk finds rows that were set to ready while nobody listened. The same walk runs for a ping, every
`walk_s`, and at start-up; it goes on where the last one ended. The events of a page and the cursor
behind it are committed together, events first, so a walk that dies finds some of them twice and
none of them never.

Both are rows of `duty` with lease and fence, so any number of workers may look for them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from connectors.base import Connector, Cursor, NoteEvent, Page
from connectors.errors import ToolUnavailable
from pipeline import alarms, budgets, intake, retry, vault
from pipeline.audit import write_audit
from pipeline.database import affected, now_ms
from pipeline.door import completed, terms_of
from pipeline.errors import LostLease, Refused
from pipeline.models import delivery, duty, reading

if TYPE_CHECKING:
    from pipeline.endpoints import Endpoint
    from pipeline.services import Services

log = logging.getLogger(__name__)

Kind = Literal["walk", "upkeep"]

LEASE_MS = 180_000
_A_COMMIT = 25  # events; a longer transaction would keep the doors waiting
_SHORT_WAIT_MS = 5_000  # a budget that is full again so soon is waited for
_PATIENCE = 3  # failures of a tool that is away before an alarm rings
_LONGEST_MS = 3_600_000
_RUN_WAITS_MS = 600_000  # a batch run waits so long for a walk before it begins without
# Rows that we write to leave the set a walk looks through, so others may slip from page to page: a
# walk over several pages that found something looks again at once, until a pass finds nothing new.
# Even one page may come from an index of the tool that lags behind, so that one looks again soon.
_AGAIN_MS = 60_000


def _again(pages: int) -> sa.Case[int]:
    at = now_ms() if pages > 1 else now_ms() + _AGAIN_MS
    return sa.case((duty.c.next_ms > at, at), else_=duty.c.next_ms)


@dataclass(frozen=True, slots=True)
class Turn:
    """A duty this worker has claimed."""

    endpoint_id: str
    endpoint: str
    kind: Kind
    state: Mapping[str, Any] | None
    fence: int
    tries: int


def walks(connector: Connector) -> bool:
    """Does this connector find rows by itself?"""
    return connector.walks and type(connector).backfill is not Connector.backfill


def keeps_up(connector: Connector) -> bool:
    """Has this connector a subscription?"""
    return type(connector).upkeep is not Connector.upkeep


def sync(services: Services) -> None:
    """Make the duties what connectors.toml says, all of them due now: call it at start-up.

    An endpoint that was pointed at another table begins its walk anew.
    """
    database = services.database
    wanted: dict[tuple[str, str], str] = {}
    for endpoint in services.endpoints.values():
        door = services.doors[endpoint.name]
        digest = _config_digest(endpoint.connector)
        if walks(endpoint.connector):
            wanted[door.endpoint_id, "walk"] = digest
        if keeps_up(endpoint.connector):
            wanted[door.endpoint_id, "upkeep"] = digest
    with database.write() as connection:
        known = {
            (row.endpoint_id, row.kind): row.config_digest
            for row in connection.execute(
                sa.select(duty.c.endpoint_id, duty.c.kind, duty.c.config_digest)
            )
        }
        for (endpoint_id, kind), digest in wanted.items():
            insert = database.insert(duty).values(
                endpoint_id=endpoint_id, kind=kind, config_digest=digest, next_ms=now_ms()
            )
            anew: dict[str, Any] = {"next_ms": now_ms(), "config_digest": digest, "tries": 0}
            if kind == "walk" and known.get((endpoint_id, kind), digest) != digest:
                anew["state"] = sa.null()
            connection.execute(
                insert.on_conflict_do_update(index_elements=["endpoint_id", "kind"], set_=anew)
            )
        for endpoint_id, kind in known.keys() - wanted.keys():  # left the file
            connection.execute(
                duty.delete().where(duty.c.endpoint_id == endpoint_id, duty.c.kind == kind)
            )


def _config_digest(connector: Connector) -> str:
    config = connector.config
    shown = config.model_dump(mode="json") if hasattr(config, "model_dump") else {}
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def claim(services: Services, only: str = "") -> list[Turn]:
    """Take every duty that is due and that nobody else has.

    Args:
        only: the walk of this endpoint and nothing else.
    """
    names = {
        services.doors[one.name].endpoint_id: one.name
        for one in services.endpoints.values()
        if only in ("", one.name)
    }
    due = sa.and_(
        duty.c.kind == "walk" if only else sa.true(),
        duty.c.next_ms <= now_ms(),
        duty.c.lease_until_ms <= now_ms(),
        duty.c.endpoint_id.in_(list(names)),
    )
    with services.database.read() as connection:
        if connection.execute(sa.select(duty.c.kind).where(due).limit(1)).first() is None:
            return []
    every_ms = int(services.settings.walk_s * 1_000)
    with services.database.write() as connection:
        taken = connection.execute(
            duty.update()
            .where(due)
            .values(
                lease_until_ms=now_ms() + LEASE_MS,
                fence=duty.c.fence + 1,
                begun_ms=now_ms(),
                # set now, so that a ping that comes in the middle of the walk asks for another one
                next_ms=sa.case((duty.c.kind == "walk", now_ms() + every_ms), else_=duty.c.next_ms),
            )
            .returning(duty.c.endpoint_id, duty.c.kind, duty.c.state, duty.c.fence, duty.c.tries)
        ).all()
    return [
        Turn(row.endpoint_id, names[row.endpoint_id], row.kind, row.state, row.fence, row.tries)
        for row in taken
    ]


def run(services: Services, turn: Turn, *, now: datetime | None = None) -> None:
    """Do a claimed duty; whatever goes wrong is kept with it, and it is done again later."""
    endpoint = services.named_endpoint(turn.endpoint)
    try:
        if turn.kind == "walk":
            _walk(services, endpoint, turn)
        else:
            _keep_up(services, endpoint, turn, now or datetime.now(UTC))
    except LostLease:
        log.info("duty left to its new owner", extra={"endpoint": turn.endpoint})
    except Exception as error:
        _failed(services, turn, error)


# walking ----------------------------------------------------------------------------------------


def _walk(services: Services, endpoint: Endpoint, turn: Turn) -> None:
    found = pages = 0
    for page in _pages(services, endpoint, turn):
        if page is None:
            return  # the budget is spent for long; the cursor stays, the walk goes on later
        pages += 1
        found += _keep(services, endpoint, turn, page)
        if page.is_last:
            break
    with services.database.write() as connection:
        _guarded(
            connection,
            turn,
            lease_until_ms=0,
            done_ms=now_ms(),
            found=found,
            tries=0,
            error=None,
            **({"next_ms": _again(pages)} if found else {}),
        )
        alarms.clear(connection, turn.endpoint_id, "walk")
    log.info("walk done", extra={"endpoint": turn.endpoint, "found": found})


def _pages(services: Services, endpoint: Endpoint, turn: Turn) -> Iterator[Page | None]:
    """The pages since the last walk, each within the tool's budget; None when it is spent."""
    pages = endpoint.connector.backfill(_cursor(turn.state))
    while True:
        wait_ms = _take_budget(services, endpoint)
        while 0 < wait_ms <= _SHORT_WAIT_MS:
            time.sleep(wait_ms / 1_000)
            wait_ms = _take_budget(services, endpoint)
        if wait_ms:
            with services.database.write() as connection:
                _guarded(connection, turn, lease_until_ms=0, next_ms=now_ms() + wait_ms)
            yield None
            return
        page = next(pages, None)
        if page is None:
            return
        yield page


def _cursor(state: Mapping[str, Any] | None) -> Cursor:
    return Cursor(state["value"], state["overlap_s"]) if state else Cursor()


def _take_budget(services: Services, endpoint: Endpoint) -> int:
    wanted = endpoint.connector.bucket(None, "read")
    if wanted is None:
        return 0
    name = budgets.name_of(endpoint.connector, wanted)
    with services.database.write() as connection:
        return budgets.take(services.database, connection, name, wanted)


def _keep(services: Services, endpoint: Endpoint, turn: Turn, page: Page) -> int:
    """Store a page's events and then its cursor; gives how many were new."""
    events = _unknown(services, endpoint, page)
    parts = [events[at : at + _A_COMMIT] for at in range(0, len(events), _A_COMMIT)] or [[]]
    door, terms = services.doors[endpoint.name], terms_of(services, endpoint)
    found = 0
    for n, part in enumerate(parts):
        taken = []
        with services.database.write() as connection:
            values: dict[str, Any] = {"lease_until_ms": now_ms() + LEASE_MS}
            if n == len(parts) - 1:
                values["state"] = {"value": page.cursor.value, "overlap_s": page.cursor.overlap_s}
            _guarded(connection, turn, **values)
            for event in part:
                event, casting = completed(endpoint, event)
                taken.append(
                    intake.take_event(
                        services.database,
                        connection,
                        services.links,
                        door,
                        event,
                        body_digest="",
                        casting=casting,
                        terms=terms,
                    )
                )
        found += sum(not one.accepted.duplicate for one in taken)
        for one in taken:
            services.sender.committed(one.wake_ups)
            for key, fence in one.cancelled:
                services.end_live(key, fence)
    return found


def _unknown(services: Services, endpoint: Endpoint, page: Page) -> list[NoteEvent]:
    """What no walk has met before: rows that wait to be written to are met by each, for nothing."""
    ready = [one for one in page.events if one.note is None or one.note.ready]
    door = services.doors[endpoint.name]
    with services.database.read() as connection:
        known = set(
            connection.execute(
                sa.select(delivery.c.delivery_key).where(
                    delivery.c.endpoint_id == door.endpoint_id,
                    delivery.c.delivery_key.in_([one.delivery_key for one in ready]),
                )
            ).scalars()
        )
    return [one for one in ready if one.delivery_key not in known]


def preview(endpoint: Endpoint, state: Mapping[str, Any] | None) -> Iterator[NoteEvent]:
    """What a walk would find from here on, without storing anything."""
    for page in endpoint.connector.backfill(_cursor(state)):
        yield from page.events
        if page.is_last:
            return


def order_walk(services: Services, name: str, *, actor: str, from_start: bool = False) -> None:
    """Let an endpoint walk now; from the beginning of its table if wanted.

    Rows whose words were heard already are not spoken again.
    """
    endpoint = services.named_endpoint(name)
    if not walks(endpoint.connector):
        raise Refused(
            f"{endpoint.connector.name} cannot look for rows by itself: its sender has to send them"
        )
    sync(services)
    endpoint_id = services.doors[name].endpoint_id
    anew: dict[str, Any] = {"next_ms": now_ms()}
    if from_start:  # whoever walks now loses it
        anew |= {"state": sa.null(), "fence": duty.c.fence + 1, "lease_until_ms": 0}
    with services.database.write() as connection:
        connection.execute(
            duty.update()
            .where(duty.c.endpoint_id == endpoint_id, duty.c.kind == "walk")
            .values(anew)
        )
        write_audit(
            connection, actor=actor, action="backfill", about=name, detail={"all": from_start}
        )


def before_run(services: Services, name: str, begin_ms: int) -> int | None:
    """Has an endpoint looked through its rows since a batch run was due?

    Returns:
        The instant until which it has, 0 if it cannot look or its tool is away for too long; None
        while it looks: ask again soon.
    """
    endpoint = services.endpoint_or_none(name)
    if endpoint is None or not walks(endpoint.connector):
        return 0
    door = services.doors[name]
    of_walk = sa.and_(duty.c.endpoint_id == door.endpoint_id, duty.c.kind == "walk")
    unread = sa.exists().where(
        reading.c.endpoint_id == door.endpoint_id, reading.c.next_ms.is_not(None)
    )
    query = sa.select(
        sa.func.coalesce(duty.c.begun_ms, 0).label("begun_ms"),
        sa.func.coalesce(duty.c.done_ms, 0).label("done_ms"),
        unread.label("unread"),
        now_ms().label("now"),
    ).where(of_walk)
    with services.database.read() as connection:
        row = connection.execute(query).first()
    if row is None:
        return 0
    if begin_ms <= row.begun_ms <= row.done_ms and not row.unread:
        return int(row.now)
    if row.now - begin_ms > _RUN_WAITS_MS:
        log.warning("batch run begins without a walk", extra={"endpoint": name})
        return 0
    if row.begun_ms < begin_ms:
        with services.database.write() as connection:
            connection.execute(
                duty.update().where(of_walk, duty.c.next_ms > now_ms()).values(next_ms=now_ms())
            )
    return None


# upkeep -----------------------------------------------------------------------------------------


def _keep_up(services: Services, endpoint: Endpoint, turn: Turn, now: datetime) -> None:
    connector = endpoint.connector
    address = f"{services.settings.effective_public_url}/hooks/{endpoint.address}"
    before = services.vault.open_state(turn.state, turn.endpoint_id)
    after = connector.upkeep(before, now=now, address=address)
    next_s = min(connector.upkeep_s, _until(after, now))
    with services.database.write() as connection:
        _guarded(
            connection,
            turn,
            state=services.vault.seal_state(after, turn.endpoint_id),
            lease_until_ms=0,
            next_ms=now_ms() + int(next_s * 1_000),
            done_ms=now_ms(),
            tries=0,
            error=None,
        )
        alarms.clear(connection, turn.endpoint_id, "upkeep")
        connector.state = vault.states(connection, services.vault).get(turn.endpoint_id, {})
    log.info("upkeep done", extra={"endpoint": turn.endpoint})


def _until(state: Mapping[str, Any], now: datetime) -> float:
    """Seconds until the state wants to be looked after again; at least a minute."""
    at = state.get("next_upkeep")
    if not isinstance(at, (int, float)):
        return float("inf")
    return max(60.0, float(at) - now.timestamp())


# both -------------------------------------------------------------------------------------------


def _guarded(connection: sa.Connection, turn: Turn, **values: Any) -> None:
    changed = connection.execute(
        duty.update()
        .where(
            duty.c.endpoint_id == turn.endpoint_id,
            duty.c.kind == turn.kind,
            duty.c.fence == turn.fence,
        )
        .values(values)
    )
    if not affected(changed):
        raise LostLease(f"the {turn.kind} of {turn.endpoint} has another owner")


def _failed(services: Services, turn: Turn, error: Exception) -> None:
    tries = turn.tries + 1
    verdict = retry.decide(error, tries=tries, age_ms=0)
    wait_ms = min(verdict.after_ms if verdict.after_ms is not None else _LONGEST_MS, _LONGEST_MS)
    if verdict.message.startswith("unexpected"):
        log.exception("duty failed", exc_info=error, extra={"endpoint": turn.endpoint})
    is_away = isinstance(error, ToolUnavailable)
    # a subscription that lapses is noticed by nobody, so its alarm rings at once
    is_alarming = turn.kind == "upkeep" or not is_away or tries >= _PATIENCE
    level = logging.ERROR if is_alarming else logging.WARNING
    log.log(level, "%s failed: %s", turn.kind, verdict.message, extra={"endpoint": turn.endpoint})
    try:
        with services.database.write() as connection:
            _guarded(
                connection,
                turn,
                lease_until_ms=0,
                next_ms=now_ms() + max(wait_ms, 1_000),
                tries=tries,
                error=verdict.message,
            )
            if is_alarming:
                alarms.ring(
                    services.database, connection, turn.endpoint_id, turn.kind, verdict.message
                )
    except LostLease:
        log.info("duty left to its new owner", extra={"endpoint": turn.endpoint})
