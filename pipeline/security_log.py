"""What a gateway refused or ended, as audit rows."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from pipeline.audit import write_audit
from pipeline.database import Database
from pipeline.errors import DatabaseUnavailable
from streaming.admission import SecurityEvent

log = logging.getLogger(__name__)

FLUSH_S = 2.0
MOST_ROWS = 50  # in one commit: who knocks a thousand times must not fill the table


class SecurityLog:
    """Collects events for a moment and commits them beside their sender, equal ones as one row."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._counts: Counter[SecurityEvent] = Counter()
        self._left_out = 0
        self._timer: threading.Timer | None = None

    def note(self, event: SecurityEvent) -> None:
        """Take an event; returns at once."""
        with self._lock:
            if event in self._counts or len(self._counts) < MOST_ROWS:
                self._counts[event] += 1
            else:
                self._left_out += 1
            if self._timer is None:
                self._timer = threading.Timer(FLUSH_S, self._flush)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Commit what is left."""
        with self._lock:
            timer = self._timer
        if timer is not None:
            timer.cancel()
            self._flush()
            timer.join()

    def _flush(self) -> None:
        with self._lock:
            counts, self._counts = self._counts, Counter()
            left_out, self._left_out = self._left_out, 0
            self._timer = None
        if left_out:
            log.warning("%d security events more than can be kept", left_out)
        try:
            with self._database.write() as connection:
                for event, times in counts.items():
                    write_audit(
                        connection,
                        actor=event.address or "unknown address",
                        action=f"live.{event.kind}",
                        about=event.link,
                        detail={"times": times, "why": event.detail},
                    )
        except DatabaseUnavailable as error:
            log.warning("%d security events not kept: %s", counts.total(), error)
