"""Live listening with the pipeline's knowledge: links from SQL, and what waits in the queue."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time

import sqlalchemy as sa

from pipeline import links
from pipeline.desk import KEY_LINK, LiveDesk, account, key_status
from pipeline.episode_view import queue_position
from pipeline.errors import DatabaseUnavailable
from pipeline.intake import status_of
from pipeline.models import episode
from pipeline.services import Services
from pipeline.settings import Settings
from streaming.gateway import Gateway, SessionInfo
from streaming.limits import Limits, Rate
from streaming.links import LinkBook, LinkStatus
from streaming.redis_limits import RedisLedger
from streaming.tokens import Grant


def make_gateway(services: Services) -> Gateway:
    """The gateway of one process; `services` must outlive it."""

    def status(link: str) -> LinkStatus | None:
        look = key_status if link.startswith(KEY_LINK) else links.status
        return look(services.database, link)

    def account_of(key: str) -> Grant:
        return account(services.database, hashlib.sha256(key.encode()).hexdigest())

    book = LinkBook(services.links.ring, status, accounts=account_of)

    async def session_info(key: str) -> SessionInfo | None:
        return await asyncio.to_thread(_session_info, services, key)

    return Gateway(
        services.chunks,
        book,
        session_info=session_info,
        origins=services.settings.allowed_origins,
        desk=LiveDesk(services),
        offer_after_s=services.settings.say_offer_s,
        goaway_ms=math.ceil(services.settings.goaway_spread_s * 1000),
        limits=limits_of(services.settings),
        ledger=RedisLedger(services.redis_url),
        trusted_proxies=services.settings.trusted_proxies,
        on_security=services.security_log.note,
    )


def limits_of(settings: Settings) -> Limits:
    """What the settings allow one listener."""
    return Limits(
        per_user=settings.connections_per_user,
        per_link=settings.connections_per_link,
        per_address=settings.connections_per_address,
        connections=settings.connections_per_process,
        streams=settings.sessions_per_connection,
        messages=Rate(settings.messages_per_s, settings.message_burst),
        controls=Rate(settings.connection_orders_per_s, settings.connection_orders_per_s),
        session_controls=Rate(settings.orders_per_s, settings.order_burst),
        egress=Rate(settings.listener_bytes_per_s, settings.listener_burst_bytes),
        user_egress=Rate(settings.user_bytes_per_s, settings.user_bytes_per_s),
        hello_s=settings.hello_timeout_s,
        idle_s=settings.idle_timeout_s,
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
