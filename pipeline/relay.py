"""The relay: hands on outbox rows nobody sent, and repairs what died.

A loop, not a task: a sweeper that must be delivered by what it repairs can stall. Running two of
them is harmless; every step is one guarded statement.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import partial

import sqlalchemy as sa

from pipeline import effects, leases, outbox, schedule
from pipeline.database import affected, now_ms
from pipeline.errors import DatabaseUnavailable
from pipeline.models import episode, segment, worker
from pipeline.services import Services
from pipeline.storage import StorageError
from pipeline.write_backs import buried, tell_dead

log = logging.getLogger(__name__)

_BUSY_S, _IDLE_S, _AWAY_S = 0.005, 0.5, 2.0  # what is due was left over for a second already
_SWEEP_S = 1.0
_TIDY_S = 600.0
_GONE_MS = 30_000


def run_relay(services: Services, stop: threading.Event) -> None:
    """Relay and sweep until `stop` is set."""
    wait_s, swept_at, tidied_at = _IDLE_S, 0.0, time.monotonic()
    services.sync_schedules()
    while not stop.wait(wait_s):
        try:
            sent = outbox.relay(services.database, services.send)
            now = time.monotonic()
            if now - swept_at >= _SWEEP_S:
                swept_at = now
                sweep(services)
            if now - tidied_at >= _TIDY_S:
                tidied_at = now
                tidy(services)
            wait_s = _BUSY_S if sent else min(_IDLE_S, wait_s * 2)
        except DatabaseUnavailable as error:
            log.warning("relay waits: %s", error)
            wait_s = _AWAY_S


def sweep(services: Services) -> None:
    """Everything that is overdue: leases, effects, retries, schedules, workers."""
    database = services.database
    tell_dead(services, leases.reap(database, on_dead=partial(buried, services)))
    effects.reap(database)
    retry_failed(services)
    schedule.tick(database)
    with database.read() as connection:
        silent = sa.and_(worker.c.state != "gone", worker.c.seen_ms < now_ms() - _GONE_MS)
        if connection.execute(sa.select(worker.c.id).where(silent).limit(1)).first() is None:
            return
    with database.write() as connection:
        connection.execute(worker.update().where(silent).values(state="gone"))


def retry_failed(services: Services) -> int:
    """Queue episodes whose time has come: of another try, or the one their row names."""
    due = sa.and_(episode.c.state.in_(("failed", "waiting")), episode.c.next_ms <= now_ms())
    with services.database.read() as connection:
        if connection.execute(sa.select(episode.c.id).where(due).limit(1)).first() is None:
            return 0
    with services.database.write() as connection:
        queued = connection.execute(
            episode.update()
            .where(due)
            .values(state="queued", state_ms=now_ms(), queued_ms=now_ms(), next_ms=None)
            .returning(episode.c.id, episode.c.fence, episode.c.queue)
        ).all()
        leases.log_states(
            connection,
            [(row.id, row.fence) for row in queued],
            "queued",
            actor="relay",
            reason="again",
        )
        wake_ups = [
            (outbox.put(connection, queue), queue) for queue in {row.queue for row in queued}
        ]
    services.sender.committed(wake_ups)
    return len(queued)


def tidy(services: Services) -> int:
    """Remove stored sentences of episodes that ended long enough ago; objects first, then rows."""
    keep_ms = int(services.settings.keep_segments_h * 3_600_000)
    ended = sa.select(episode.c.id).where(
        episode.c.state.in_(("done", "cancelled")), episode.c.ended_ms < now_ms() - keep_ms
    )
    with services.database.read() as connection:
        old = connection.execute(
            sa.select(segment.c.episode_id, segment.c.n, segment.c.object_key)
            .where(segment.c.episode_id.in_(ended))
            .limit(500)
        ).all()
    removed = 0
    for row in old:
        try:
            services.storage.delete(row.object_key)
        except StorageError as error:
            log.warning("sentence not removed: %s", error)
            break
        with services.database.write() as connection:
            removed += affected(
                connection.execute(
                    segment.delete().where(
                        segment.c.episode_id == row.episode_id, segment.c.n == row.n
                    )
                )
            )
    return removed
