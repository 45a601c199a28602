"""Wake-ups that must not be forgotten: rows first, messages after.

`put` adds a row to the open transaction. After the commit the process that wrote it hands the row
to its `Sender`, which publishes at once and deletes the row; whatever a Sender could not do (the
process died, the broker was away) the relay repeats. A message carries nothing: workers look for
the best work in SQL, so a lost, doubled or late message changes only when, never what.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from pipeline.database import Database, now_ms
from pipeline.errors import DatabaseUnavailable
from pipeline.models import outbox

log = logging.getLogger(__name__)

Send = Callable[[str], None]
"""Publish one wake-up of a topic; raises when the broker is away."""

_GRACE_MS = 1_000  # the writer's own Sender is faster than that; after it the relay takes over
_CLAIM_MS = 5_000
_SPACING_S = 0.02  # under load the next hooks share a wake-up; after a silence nobody waits
# One wake-up makes a worker claim until nothing is due or it is full; a few reach several workers.
_ROWS_PER_WAKE_UP, _MOST_WAKE_UPS = 4, 4


_PUT = (
    outbox.insert()
    .values(created_ms=now_ms(), due_ms=now_ms() + sa.bindparam("wait_ms", type_=sa.BigInteger))
    .returning(outbox.c.id)
)


def put(connection: sa.Connection, topic: str, *, after_ms: int = 0) -> int:
    """Order a wake-up in this transaction; after the commit hand the id to a `Sender`."""
    row = connection.execute(_PUT, {"topic": topic, "wait_ms": after_ms + _GRACE_MS})
    return int(row.scalar_one())


class Sender:
    """Publishes fresh rows from a thread of its own, many in one go, and deletes them.

    Closing does not wait for the broker: what is left is the relay's.
    """

    def __init__(self, database: Database, send: Send) -> None:
        self._database = database
        self._send = send
        self._fresh: list[tuple[int, str]] = []
        self._wake = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="outbox-sender", daemon=True)
        self._thread.start()

    def committed(self, rows: Sequence[tuple[int, str]]) -> None:
        """These (id, topic) rows are committed: send them now. Returns at once."""
        if not rows:
            return
        with self._wake:
            self._fresh.extend(rows)
            self._wake.notify()

    def close(self) -> None:
        """Stop the thread; rows not sent yet stay for the relay."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        sent: list[int] = []
        while True:
            with self._wake:
                while not self._fresh and not self._is_closed:
                    # deleting can wait a little: one commit for many rows
                    if not self._wake.wait(timeout=0.2 if sent else None) and sent:
                        break
                if self._is_closed:
                    return
                fresh, self._fresh = self._fresh, []
            sent += publish(fresh, self._send)
            if fresh:
                time.sleep(_SPACING_S)
            if sent and (not fresh or len(sent) >= 200):
                sent = self._delete(sent)

    def _delete(self, sent: list[int]) -> list[int]:
        try:
            with self._database.write() as connection:
                connection.execute(outbox.delete().where(outbox.c.id.in_(sent)))
        except DatabaseUnavailable:
            log.info("outbox rows not deleted, the relay will repeat them")
        return []


def publish(rows: Sequence[tuple[int, str]], send: Send) -> list[int]:
    """Send a few wake-ups for each topic among the rows; returns the ids that are dealt with."""
    done: list[int] = []
    for topic, count in Counter(topic for _id, topic in rows).items():
        try:
            for _ in range(min(-(-count // _ROWS_PER_WAKE_UP), _MOST_WAKE_UPS)):
                send(topic)
        except Exception as error:
            # whatever the broker's client raises, the rows stay and the relay repeats them
            log.debug("wake-up not sent", extra={"topic": topic, "error": str(error)})
            continue
        done += [row_id for row_id, row_topic in rows if row_topic == topic]
    return done


def relay(database: Database, send: Send, *, limit: int = 200) -> int:
    """Send what is due and was not sent by its writer; returns how many rows were handed on.

    Claims with a short lease of its own, because publishing inside the transaction would hold
    SQLite's only write lock. Rows are selected by being there, never by a cursor over ids: commit
    order is not id order.
    """
    with database.read() as connection:
        due = sa.and_(outbox.c.due_ms <= now_ms(), outbox.c.claimed_until_ms <= now_ms())
        if connection.execute(sa.select(outbox.c.id).where(due).limit(1)).first() is None:
            return 0
    with database.write() as connection:
        chosen = database.skip_locked(
            sa.select(outbox.c.id).where(due).order_by(outbox.c.due_ms, outbox.c.id).limit(limit)
        )
        claimed = connection.execute(
            outbox.update()
            .where(outbox.c.id.in_(chosen))
            .values(claimed_until_ms=now_ms() + _CLAIM_MS)
            .returning(outbox.c.id, outbox.c.topic)
        ).all()
    done = publish([(row.id, row.topic) for row in claimed], send)
    if done:
        with database.write() as connection:
            connection.execute(outbox.delete().where(outbox.c.id.in_(done)))
    return len(done)
