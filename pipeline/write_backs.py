"""What the end of an episode orders for the rows its notes came from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from connectors.base import Connector, NotePatch, NoteRef
from pipeline import effects, leases, schedule
from pipeline.models import endpoint, episode, episode_note, listen_link, note

if TYPE_CHECKING:
    from pipeline.services import Services


def buried(services: Services, connection: sa.Connection, episode_id: str) -> list[tuple[int, str]]:
    """What a death causes, in the same commit: the row shows why, a batch run counts it."""
    query = sa.select(episode).where(episode.c.id == episode_id)
    row = dict(connection.execute(query).mappings().one())
    refs = connection.execute(
        sa.select(endpoint.c.name, note.c.ref_container, note.c.ref_table, note.c.ref_key)
        .join(note, note.c.endpoint_id == endpoint.c.id)
        .join(episode_note, episode_note.c.note_id == note.c.id)
        .where(episode_note.c.episode_id == episode_id, note.c.ref_key.is_not(None))
        .order_by(episode_note.c.position)
    ).all()
    schedule.episode_ended(connection, row)
    if not refs:
        return []
    return order_write_backs(
        services,
        connection,
        row,
        refs[0].name,
        tuple(NoteRef(*ref) for ref in refs),
        status="failed",
        error=row["error_code"],
    )


def tell_dead(services: Services, freed: Sequence[leases.Freed]) -> None:
    """Those who listen to an episode that died with its worker hear why it ends."""
    for one in freed:
        if one.state == "dead":
            services.end_live(one.key, one.fence, failure=one.error)


def order_write_backs(
    services: Services,
    connection: sa.Connection,
    row: Mapping[str, Any],
    door: str,
    refs: tuple[NoteRef, ...],
    *,
    status: Any,
    error: str | None = None,
    duration_s: float | None = None,
) -> list[tuple[int, str]]:
    """One effect per source row whose tool can be written to."""
    connector = services.connector_or_none(door)
    if connector is None or type(connector).write_back is Connector.write_back:
        return []
    link = connection.execute(
        sa.select(listen_link)
        .where(listen_link.c.episode_id == row["id"], listen_link.c.role == "listener")
        .limit(1)
    ).first()
    url = services.links.url(link, row["key"]) if link is not None else None
    effects.supersede(connection, row["id"])
    audio = services.links.file_url(
        row["key"], "mp3", now_s=time.time(), hours=services.settings.link_days * 24
    )
    return [
        effects.order_write_back(
            connection,
            tenant_id=row["tenant_id"],
            episode_id=row["id"],
            endpoint=door,
            ref=ref,
            patch=NotePatch(
                key=f"{row['id']}:{status}:{row['fence']}:{n}",
                status=status,
                link=url,
                audio_ref=audio if status == "done" else None,
                error=error,
                duration_s=duration_s,
            ),
        )
        for n, ref in enumerate(refs)
    ]
