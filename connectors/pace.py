"""Calls of one process to one tool, kept below the tool's limit.

The pipeline's budget counts rows, over all processes; a row may take several calls, a walk or an
upkeep many. This counts calls, so that a burst of them never meets a closed door.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from connectors.http import Answer, Api

_paces: dict[str, Pace] = {}
_making = threading.Lock()


class Pace:
    """At most `limit` calls begin in any `per_s` seconds; threads take turns."""

    def __init__(
        self,
        limit: int,
        per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._per_s = per_s
        self._clock = clock
        self._sleep = sleep
        self._begun: deque[float] = deque(maxlen=limit)
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when a call may begin."""
        with self._lock:
            if len(self._begun) == self._begun.maxlen:
                wait_s = self._begun[0] + self._per_s - self._clock()
                if wait_s > 0:
                    self._sleep(wait_s)
            self._begun.append(self._clock())


def pace_of(name: str, limit: int, per_s: float) -> Pace:
    """The pace of everybody in this process who counts under `name`: a base, a token."""
    with _making:
        return _paces.setdefault(name, Pace(limit, per_s))


class PacedApi(Api):
    """An `Api` whose calls keep to a pace."""

    def __init__(self, base_url: str, *, pace: Pace, **options: Any) -> None:
        super().__init__(base_url, **options)
        self._pace = pace

    def request(self, method: str, path: str, **options: Any) -> Answer:
        """See `Api.request`."""
        self._pace.wait()
        return super().request(method, path, **options)
