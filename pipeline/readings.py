"""Rows that thin events named: read from their tool, many in one call, and spoken if they are due.

A burst of edits is one reading. What only we wrote is not even read (echo), what is not ready makes
nothing, what says the same as before is not spoken again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from connectors.base import Note, NoteRef
from connectors.errors import ToolUnavailable
from pipeline import alarms, budgets, intake, retry
from pipeline.database import affected, now_ms
from pipeline.door import terms_of
from pipeline.models import endpoint as endpoint_table
from pipeline.models import reading

if TYPE_CHECKING:
    from pipeline.endpoints import Endpoint
    from pipeline.services import Services

log = logging.getLogger(__name__)

LEASE_MS = 120_000
_A_COMMIT = 25  # rows; a longer transaction would keep the doors waiting

_DUE = sa.and_(reading.c.next_ms <= now_ms(), reading.c.lease_until_ms <= now_ms())
_NAMES = (
    sa.select(endpoint_table.c.name)
    .join(reading, reading.c.endpoint_id == endpoint_table.c.id)
    .where(_DUE)
    .distinct()
)


def due_endpoints(services: Services) -> list[str]:
    """Names of the endpoints that have rows to read."""
    with services.database.read() as connection:
        return list(connection.execute(_NAMES).scalars())


def read_due(services: Services, name: str) -> tuple[int, int | None]:
    """Read what is due of one endpoint, with one call of its tool.

    Returns:
        How many rows were dealt with, and the wait in ms if the tool's budget is spent.
    """
    endpoint = services.endpoint_or_none(name)
    if endpoint is None:
        _give_up(services, name)
        return 0, None
    found, wait_ms = _claim(services, endpoint)
    if found:
        _read(services, endpoint, found)
    return len(found), wait_ms or None


def _claim(services: Services, endpoint: Endpoint) -> tuple[Sequence[Any], int]:
    """Rows of one endpoint for one call of `read`; the wait in ms if its budget is spent."""
    database, connector = services.database, endpoint.connector
    endpoint_id = services.doors[endpoint.name].endpoint_id
    with database.write() as connection:
        chosen = database.skip_locked(
            sa.select(reading.c.id)
            .where(_DUE, reading.c.endpoint_id == endpoint_id)
            .order_by(reading.c.id)
            .limit(connector.read_size)
        )
        found = connection.execute(
            reading.update()
            .where(reading.c.id.in_(chosen))
            .values(lease_until_ms=now_ms() + LEASE_MS)
            .returning(reading, (now_ms() - reading.c.created_ms).label("age_ms"))
        ).all()
        wanted = connector.bucket(None, "read")
        if found and wanted is not None:
            name = budgets.name_of(connector, wanted)
            wait_ms = budgets.take(database, connection, name, wanted)
            if wait_ms:
                _free(connection, found)
                return (), wait_ms
    return sorted(found, key=lambda row: row.id), 0


def _free(connection: sa.Connection, rows: Sequence[Any]) -> None:
    connection.execute(
        reading.update().where(reading.c.id.in_([row.id for row in rows])).values(lease_until_ms=0)
    )


def _read(services: Services, endpoint: Endpoint, rows: Sequence[Any]) -> None:
    connector = endpoint.connector
    try:
        echoes = {
            row.id for row in rows if row.changed and connector.is_echo(frozenset(row.changed))
        }
        real = [row for row in rows if row.id not in echoes]
        refs = {_ref(endpoint, row): row for row in real}
        notes = {note.ref: note for note in connector.read(list(refs))} if refs else {}
    except Exception as error:
        _failed(services, endpoint, rows, error)
        return
    if echoes:
        _forget(services, [row for row in rows if row.id in echoes])
    for at in range(0, len(real), _A_COMMIT):
        some = real[at : at + _A_COMMIT]
        _keep(services, endpoint, [(row, notes.get(_ref(endpoint, row))) for row in some])


def _ref(endpoint: Endpoint, row: Any) -> NoteRef:
    return NoteRef(endpoint.name, row.ref_container, row.ref_table, row.ref_key)


def _keep(services: Services, endpoint: Endpoint, read: Sequence[tuple[Any, Note | None]]) -> None:
    """One commit: the rows are read, and what follows from it."""
    door, terms = services.doors[endpoint.name], terms_of(services, endpoint)
    wake_ups: list[tuple[int, str]] = []
    cancelled: list[tuple[str, int]] = []
    with services.database.write() as connection:
        for row, note in read:
            if note is None:
                gone = intake.row_gone(connection, door, _ref(endpoint, row))
                cancelled += gone
            else:
                note = endpoint.complete(note)
                taken = intake.take_note(
                    services.database,
                    connection,
                    services.links,
                    door,
                    replace(note, ref=_ref(endpoint, row)),
                    casting=endpoint.casting(note),
                    terms=terms,
                )
                wake_ups += taken.wake_ups
                cancelled += taken.cancelled
            _done(connection, row)
    services.sender.committed(wake_ups)
    for key, fence in cancelled:
        services.end_live(key, fence)


def _done(connection: sa.Connection, row: Any) -> None:
    """Dealt with; an event that came in the meantime has it read once more."""
    same = reading.c.id == row.id
    gone = connection.execute(reading.delete().where(same, reading.c.wanted == row.wanted))
    if not affected(gone):
        connection.execute(
            reading.update().where(same).values(lease_until_ms=0, next_ms=now_ms(), tries=0)
        )


def _forget(services: Services, rows: Sequence[Any]) -> None:
    with services.database.write() as connection:
        for row in rows:
            _done(connection, row)


def _failed(services: Services, endpoint: Endpoint, rows: Sequence[Any], error: Exception) -> None:
    """Again later; when nobody tries any more, the rows stay there and an alarm rings."""
    log.warning("rows not read: %s", error, extra={"endpoint": endpoint.name, "rows": len(rows)})
    door = services.doors[endpoint.name]
    with services.database.write() as connection:
        for row in rows:
            verdict = retry.decide(error, tries=row.tries + 1, age_ms=row.age_ms)
            dead = verdict.after_ms is None
            connection.execute(
                reading.update()
                .where(reading.c.id == row.id)
                .values(
                    tries=reading.c.tries + 1,
                    lease_until_ms=0,
                    next_ms=None if dead else now_ms() + verdict.after_ms,
                    error_code=verdict.code,
                    error=verdict.message,
                )
            )
            if dead:
                alarms.ring(
                    services.database,
                    connection,
                    door.endpoint_id,
                    "columns",
                    f"rows cannot be read: {verdict.message}",
                )
        wanted = endpoint.connector.bucket(None, "read")
        if wanted is not None and isinstance(error, ToolUnavailable) and error.after_s:
            name = budgets.name_of(endpoint.connector, wanted)
            budgets.hold(services.database, connection, name, int(error.after_s * 1_000))


def _give_up(services: Services, name: str) -> None:
    """The endpoint was taken out of the file: its rows wait for it to come back."""
    of_name = sa.select(endpoint_table.c.id).where(endpoint_table.c.name == name)
    with services.database.write() as connection:
        connection.execute(
            reading.update()
            .where(reading.c.endpoint_id.in_(of_name), reading.c.next_ms.is_not(None))
            .values(
                next_ms=None, error_code="not_found", error="connectors.toml has no such endpoint"
            )
        )


def revive(connection: sa.Connection, endpoint_id: str) -> int:
    """Read again what could not be read; gives how many rows there are."""
    return affected(
        connection.execute(
            reading.update()
            .where(reading.c.endpoint_id == endpoint_id, reading.c.next_ms.is_(None))
            .values(next_ms=now_ms(), created_ms=now_ms(), tries=0)
        )
    )
