"""How often tools may be called: one bucket for all workers, kept in SQL.

The bucket is a single instant, the one at which it would be full again (GCRA: each call moves it by
the time one call is refilled in). A tool that asks us to wait closes its bucket until then, so that
one answer of 429 stops everybody who would get the next one.
"""

from __future__ import annotations

import sqlalchemy as sa

from connectors.base import Budget, Connector
from pipeline.database import Database, now_ms
from pipeline.models import budget


def name_of(connector: Connector, wanted: Budget) -> str:
    """The row of a connector's bucket; endpoints that share what the tool counts by share it."""
    return f"{connector.name}/{wanted.name}"[:300]


def take(database: Database, connection: sa.Connection, name: str, wanted: Budget) -> int:
    """Take one call out of a bucket, in the open transaction.

    Returns:
        0 if it was taken; else the wait in ms after which it is worth asking again.
    """
    interval_us = max(1, round(wanted.interval_ms * 1_000))
    tolerance_us = (max(wanted.burst, 1) - 1) * interval_us
    taken = connection.execute(
        database.once(_take),
        {"of": name, "interval_us": interval_us, "tolerance_us": tolerance_us},
    ).first()
    if taken is not None:
        return 0
    inserted = connection.execute(
        database.once(_first), {"name": name, "interval_us": interval_us}
    ).first()
    if inserted is not None:
        return 0
    row = connection.execute(_LOOK, {"of": name}).one()
    full_ms = (row.next_us - tolerance_us) // 1_000
    return int(max(full_ms - row.now, row.hold_ms - row.now, 1))


def hold(database: Database, connection: sa.Connection, name: str, after_ms: int) -> None:
    """Close a bucket for a while, because its tool wants it."""
    insert = database.insert(budget).values(name=name, next_us=0, hold_ms=now_ms() + after_ms)
    later = sa.case(
        (budget.c.hold_ms > insert.excluded.hold_ms, budget.c.hold_ms),
        else_=insert.excluded.hold_ms,
    )
    connection.execute(
        insert.on_conflict_do_update(index_elements=["name"], set_={"hold_ms": later})
    )


_NOW_US = now_ms() * 1_000
_FROM_US = sa.case((budget.c.next_us > _NOW_US, budget.c.next_us), else_=_NOW_US)
_LOOK = sa.select(budget.c.next_us, budget.c.hold_ms, now_ms().label("now")).where(
    budget.c.name == sa.bindparam("of")
)


def _take(_database: Database) -> sa.Executable:
    return (
        budget.update()
        .where(
            budget.c.name == sa.bindparam("of"),
            budget.c.hold_ms <= now_ms(),
            budget.c.next_us - _NOW_US <= sa.bindparam("tolerance_us", type_=sa.BigInteger),
        )
        .values(next_us=_FROM_US + sa.bindparam("interval_us", type_=sa.BigInteger))
        .returning(budget.c.name)
    )


def _first(database: Database) -> sa.Executable:
    insert = database.insert(budget).values(
        name=sa.bindparam("name"),
        next_us=_NOW_US + sa.bindparam("interval_us", type_=sa.BigInteger),
    )
    return insert.on_conflict_do_nothing().returning(budget.c.name)
