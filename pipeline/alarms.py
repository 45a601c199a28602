"""What of an endpoint needs a person: a row that stays until the thing works again."""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa

from pipeline.database import Database, affected, now_ms
from pipeline.models import alarm

Kind = Literal["walk", "upkeep", "events", "columns"]


def ring(
    database: Database,
    connection: sa.Connection,
    endpoint_id: str,
    kind: Kind,
    message: str,
    *,
    about: str = "",
) -> None:
    """Raise an alarm, or count it once more."""
    insert = database.insert(alarm).values(
        endpoint_id=endpoint_id,
        kind=kind,
        about=about,
        message=message[:500],
        first_ms=now_ms(),
        last_ms=now_ms(),
    )
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["endpoint_id", "kind", "about"],
            set_={
                "message": insert.excluded.message,
                "last_ms": now_ms(),
                "times": alarm.c.times + 1,
            },
        )
    )


def clear(connection: sa.Connection, endpoint_id: str, kind: Kind) -> bool:
    """It works again; True if it did not before."""
    return bool(
        affected(
            connection.execute(
                alarm.delete().where(alarm.c.endpoint_id == endpoint_id, alarm.c.kind == kind)
            )
        )
    )
