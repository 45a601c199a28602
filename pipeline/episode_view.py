"""What the outside sees of an episode: for the API, for listeners who wait, for players."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from pipeline.database import Database, now_ms
from pipeline.errors import NotFound
from pipeline.intake import status_of
from pipeline.models import EPISODE_STATES, episode, episode_recording, listen_link, recording
from pipeline.services import Services

_FORMAT = {"ogg": "opus", "mp3": "mp3", "wav": "wav", "vtt": "vtt", "chapters.json": "chapters"}


@dataclass(frozen=True, slots=True)
class File:
    """One finished file of an episode."""

    object_key: str
    size_bytes: int
    format: str
    title: str


def show(services: Services, key_or_id: str) -> dict[str, Any]:
    """An episode as the API shows it.

    Raises:
        NotFound: there is no such episode.
    """
    with services.database.read() as connection:
        row = _find(connection, key_or_id)
        return _view(services, connection, row)


def newest(services: Services, *, limit: int, status: str | None = None) -> list[dict[str, Any]]:
    """The newest episodes first."""
    query = sa.select(episode).order_by(episode.c.id.desc()).limit(limit)
    if status is not None:
        states = [state for state in EPISODE_STATES if status_of(state) == status]
        query = query.where(episode.c.state.in_(states))
    with services.database.read() as connection:
        found = connection.execute(query).all()
        return [_view(services, connection, row) for row in found]


def file_of(database: Database, key: str, extension: str) -> File:
    """Where a finished file lies.

    Raises:
        NotFound: no such episode, not finished yet, or not recorded in this format.
    """
    wanted = _FORMAT.get(extension)
    with database.read() as connection:
        row = connection.execute(
            sa.select(
                recording.c.object_key, recording.c.size_bytes, recording.c.format, episode.c.title
            )
            .join(episode_recording, episode_recording.c.recording_id == recording.c.id)
            .join(episode, episode.c.id == episode_recording.c.episode_id)
            .where(episode.c.key == key, recording.c.format == wanted)
            .order_by(recording.c.take.desc())
        ).first()
    if row is None:
        raise NotFound(f"episode {key} has no {extension} file (yet)")
    return File(row.object_key, row.size_bytes, row.format, row.title)


def queue_position(connection: sa.Connection, row: Any) -> tuple[int, int]:
    """How many episodes are before this one, and a guess of the wait in ms."""
    ahead = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(episode.c.estimated_ms), 0)).where(
            episode.c.state == "queued",
            episode.c.wanted == "run",
            episode.c.queue == row.queue,
            sa.tuple_(episode.c.priority, episode.c.fair_at_ms, episode.c.id)
            < sa.tuple_(sa.literal(row.priority), sa.literal(row.fair_at_ms), sa.literal(row.id)),
        )
    ).one()
    # a sentence is spoken some four times faster than it is heard
    return int(ahead[0]) + 1, int(ahead[1]) // 4


def place_of(database: Database, key: str) -> tuple[int, int]:
    """An episode's place in the queue and its wait in ms; (0, 0) once somebody speaks it."""
    with database.read() as connection:
        row = _find(connection, key)
        return queue_position(connection, row) if row.state == "queued" else (0, 0)


def _find(connection: sa.Connection, key_or_id: str) -> Any:
    row = connection.execute(
        sa.select(episode, now_ms().label("now")).where(
            sa.or_(episode.c.key == key_or_id, episode.c.id == key_or_id)
        )
    ).first()
    if row is None:
        raise NotFound(f"there is no episode {key_or_id}")
    return row


def _view(services: Services, connection: sa.Connection, row: Any) -> dict[str, Any]:
    link = connection.execute(
        sa.select(listen_link)
        .where(listen_link.c.episode_id == row.id, listen_link.c.role == "listener")
        .limit(1)
    ).first()
    view: dict[str, Any] = {
        "id": row.key,
        "title": row.title,
        "lang": row.lang,
        "status": status_of(row.state),
        "state": row.state,
        "paused": row.wanted == "pause",
        "listen_url": services.links.url(link, row.key) if link is not None else None,
        "created_ms": row.created_ms,
        "started_ms": row.started_ms,
        "first_audio_ms": row.first_audio_ms,
        "stored_ms": row.stored_ms,
        "segments_done": row.segments_done,
        "segments_total": row.segments_total,
        "tries": row.tries,
        # what is not said, or not as wished, and why
        "remarks": row.script["remarks"] if row.script else None,
        "error": {"code": row.error_code, "message": row.error} if row.error_code else None,
    }
    if row.state == "queued":
        view["queue"] = dict(zip(("pos", "eta_ms"), queue_position(connection, row), strict=True))
    files = connection.execute(
        sa.select(recording)
        .join(episode_recording, episode_recording.c.recording_id == recording.c.id)
        .where(episode_recording.c.episode_id == row.id, recording.c.take == row.take)
    ).all()
    if files:
        view["duration_s"] = max(one.duration_ms for one in files) / 1000
        view["recordings"] = {
            one.format: {"object": one.object_key, "bytes": one.size_bytes, "sha256": one.digest}
            for one in files
        }
    return view
