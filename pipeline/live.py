"""Live listening with the pipeline's knowledge: links from SQL, and what waits in the queue."""

from __future__ import annotations

import asyncio
import time

import sqlalchemy as sa

from pipeline import links
from pipeline.episode_view import queue_position
from pipeline.errors import DatabaseUnavailable
from pipeline.intake import status_of
from pipeline.models import episode
from pipeline.services import Services
from streaming.links import LinkBook
from streaming.server import Gateway, SessionInfo


def make_gateway(services: Services) -> Gateway:
    """The gateway of one process; `services` must outlive it."""
    book = LinkBook(services.links.ring, lambda link_id: links.status(services.database, link_id))

    async def session_info(key: str) -> SessionInfo | None:
        return await asyncio.to_thread(_session_info, services, key)

    return Gateway(
        services.chunks,
        book,
        session_info=session_info,
        origins=services.settings.allowed_origins,
    )


def _session_info(services: Services, key: str) -> SessionInfo | None:
    """What is known about a session that has no log: it waits, or only its recording is left."""
    try:
        with services.database.read() as connection:
            row = connection.execute(sa.select(episode).where(episode.c.key == key)).first()
            if row is None:
                return None
            status = status_of(row.state)
            if status == "queued":
                position, eta_ms = queue_position(connection, row)
                return SessionInfo("queued", row.title, row.lang, position, eta_ms)
    except DatabaseUnavailable:
        # the listener waits; the gateway asks again in a second
        return SessionInfo("queued")
    if status == "done":
        url, vtt, chapters = (
            services.links.file_url(key, extension, now_s=time.time())
            for extension in ("mp3", "vtt", "chapters.json")
        )
        return SessionInfo("done", row.title, row.lang, url=url, vtt=vtt, chapters=chapters)
    if status == "live":
        return SessionInfo("live", row.title, row.lang)
    return SessionInfo("failed", row.title, row.lang)
