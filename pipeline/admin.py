"""What an administrator sees at one look: what is spoken, who listens, what waits, what failed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from pipeline import reports
from pipeline.database import now_ms
from pipeline.intake import status_of
from pipeline.models import (
    LEASED,
    OPEN,
    audit,
    endpoint,
    episode,
    listen_link,
    usage_day,
    worker,
)
from pipeline.services import Services

_SHOWN = 100
_GONE_AFTER_MS = 60_000


def overview(services: Services) -> dict[str, Any]:
    """Everything of the admin page that the database knows, as plain JSON values."""
    with services.database.read() as connection:
        now = int(connection.execute(sa.select(now_ms())).scalar_one())
        spoken = _episodes(connection, episode.c.state.in_(LEASED), now)
        waiting = _episodes(
            connection, sa.and_(episode.c.state.in_(OPEN), episode.c.state.not_in(LEASED)), now
        )
        return {
            "now_ms": now,
            "totals": _totals(connection, now),
            "live": spoken,
            "queue": waiting,
            "workers": _workers(connection, now),
            "failures": _rows(connection, "dead"),
            "stuck": _rows(connection, "stuck"),
            "audit": _audit(connection, now),
        }


def link_ids(connection: sa.Connection, key: str) -> list[str]:
    """The links of an episode that still work."""
    return list(
        connection.execute(
            sa.select(listen_link.c.id)
            .join(episode, episode.c.id == listen_link.c.episode_id)
            .where(episode.c.key == key, listen_link.c.revoked_ms.is_(None))
        ).scalars()
    )


def _episodes(
    connection: sa.Connection, which: sa.ColumnElement[bool], now: int
) -> list[dict[str, Any]]:
    found = connection.execute(
        sa.select(
            episode.c.key,
            episode.c.title,
            episode.c.state,
            episode.c.wanted,
            episode.c.queue,
            episode.c.priority,
            episode.c.segments_done,
            episode.c.segments_total,
            episode.c.tries,
            episode.c.created_ms,
            episode.c.state_ms,
            episode.c.lease_owner,
            episode.c.next_ms,
            episode.c.error,
            endpoint.c.name.label("endpoint"),
        )
        .join(endpoint, endpoint.c.id == episode.c.endpoint_id)
        .where(which)
        .order_by(episode.c.priority, episode.c.fair_at_ms, episode.c.id)
        .limit(_SHOWN)
    ).mappings()
    return [
        {
            "id": row["key"],
            "title": row["title"] or "untitled",
            "endpoint": row["endpoint"],
            "status": "paused" if row["wanted"] == "pause" else status_of(row["state"]),
            "state": row["state"],
            "queue": row["queue"],
            "sentences": [row["segments_done"], row["segments_total"]],
            "tries": row["tries"],
            "for_s": round((now - row["state_ms"]) / 1000, 1),
            "age_s": round((now - row["created_ms"]) / 1000, 1),
            "again_in_s": _ahead_s(row["next_ms"], now) if row["state"] == "failed" else None,
            "worker": row["lease_owner"],
            "reason": row["error"],
        }
        for row in found
    ]


def _ahead_s(at_ms: int | None, now: int) -> float | None:
    return None if at_ms is None else round(max(0, at_ms - now) / 1000, 1)


def _totals(connection: sa.Connection, now: int) -> dict[str, Any]:
    counted = connection.execute(
        sa.select(episode.c.state, sa.func.count())
        .where(episode.c.state.in_(OPEN))
        .group_by(episode.c.state)
    )
    states = {state: int(number) for state, number in counted}
    day = datetime.fromtimestamp(now / 1000, UTC).strftime("%Y-%m-%d")
    today = connection.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(usage_day.c.episodes), 0),
            sa.func.coalesce(sa.func.sum(usage_day.c.audio_ms), 0),
        ).where(usage_day.c.day == day)
    ).one()
    slots = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(worker.c.slots), 0)).where(
            worker.c.state == "ready", worker.c.seen_ms > now - _GONE_AFTER_MS
        )
    ).scalar_one()
    speaking = sum(states.get(state, 0) for state in LEASED)
    return {
        "speaking": speaking,
        "waiting": sum(states.values()) - speaking,
        "slots": int(slots),
        "spoken_today": int(today[0]),
        "minutes_today": round(int(today[1]) / 60_000, 1),
    }


def _workers(connection: sa.Connection, now: int) -> list[dict[str, Any]]:
    speaking = (
        sa.select(sa.func.count())
        .where(episode.c.lease_owner == worker.c.id, episode.c.state.in_(LEASED))
        .scalar_subquery()
    )
    found = connection.execute(
        sa.select(worker, speaking.label("speaking"))
        .where(sa.or_(worker.c.state != "gone", worker.c.seen_ms > now - _GONE_AFTER_MS))
        .order_by(worker.c.kind, worker.c.started_ms.desc())
        .limit(_SHOWN)
    ).mappings()
    return [
        {
            "id": row["id"],
            "kind": row["kind"],
            "host": row["host"],
            "pid": row["pid"],
            "engine": row["engine"],
            "state": row["state"],
            "speaking": row["speaking"],
            "slots": row["slots"],
            "seen_s_ago": round((now - row["seen_ms"]) / 1000, 1),
            "build": row["build"],
        }
        for row in found
    ]


def _rows(connection: sa.Connection, name: str) -> list[dict[str, Any]]:
    query = reports.REPORTS[name].select(f"v_{name}", {}, _SHOWN)
    return [dict(row) for row in connection.execute(query).mappings()]


def _audit(connection: sa.Connection, now: int) -> list[dict[str, Any]]:
    found = connection.execute(sa.select(audit).order_by(audit.c.id.desc()).limit(20)).mappings()
    return [
        {
            "ago_s": round((now - row["ms"]) / 1000, 1),
            "actor": row["actor"],
            "action": row["action"],
            "about": row["object"],
        }
        for row in found
    ]
