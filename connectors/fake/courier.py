"""Carries a fake tool's events to the hook that asked for them, with retries like a real tool's."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import requests

log = logging.getLogger(__name__)

RETRY_S = (1.0, 5.0, 15.0, 60.0)
TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One POST to a hook; `name` says what it tells, for logs."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    name: str = ""


class Outcome(NamedTuple):
    """A try to deliver; status 0 is no answer at all."""

    delivery: Delivery
    status: int
    answer: bytes


class Courier:
    """One thread that delivers in order and tries again later what was not answered with 2xx.

    Attributes:
        is_open: False loses everything that is sent, as a tool's outage would.
        outcomes: every try.
    """

    def __init__(self, retry_s: Sequence[float] = RETRY_S) -> None:
        self.is_open = True
        self.outcomes: list[Outcome] = []
        self._retry_s = tuple(retry_s)
        self._due: list[tuple[float, int, int, Delivery]] = []
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._is_busy = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="fake-courier", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def close(self) -> None:
        """Stop; what was not delivered is lost."""
        with self._wake:
            self._is_closed = True
            self._wake.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def send(self, delivery: Delivery) -> None:
        """Deliver as soon as possible."""
        if self.is_open:
            self._put(delivery, at=time.monotonic(), tries=0)

    def settle(self, timeout_s: float = 10.0) -> bool:
        """Wait until nothing is left to deliver now; retries that lie ahead do not count."""
        deadline = time.monotonic() + timeout_s
        with self._wake:
            while self._is_busy or (self._due and self._due[0][0] <= time.monotonic()):
                if time.monotonic() >= deadline:
                    return False
                self._wake.wait(min(0.1, max(deadline - time.monotonic(), 0.0)))
        return True

    def _put(self, delivery: Delivery, *, at: float, tries: int) -> None:
        with self._wake:
            heapq.heappush(self._due, (at, next(self._order), tries, delivery))
            self._wake.notify_all()

    def _run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while (due := self._next()) is not None:
                tries, delivery = due
                outcome = _post(session, delivery)
                self.outcomes.append(outcome)
                if not 200 <= outcome.status < 300 and tries < len(self._retry_s):
                    self._put(delivery, at=time.monotonic() + self._retry_s[tries], tries=tries + 1)
                with self._wake:
                    self._is_busy = False
                    self._wake.notify_all()

    def _next(self) -> tuple[int, Delivery] | None:
        with self._wake:
            while not self._is_closed:
                wait_s = self._due[0][0] - time.monotonic() if self._due else None
                if wait_s is not None and wait_s <= 0:
                    _, _, tries, delivery = heapq.heappop(self._due)
                    self._is_busy = True
                    return tries, delivery
                self._wake.wait(wait_s)
        return None


def _post(session: requests.Session, delivery: Delivery) -> Outcome:
    try:
        answer = session.post(
            delivery.url, data=delivery.body, headers=dict(delivery.headers), timeout=TIMEOUT_S,
            allow_redirects=False,
        )  # fmt: skip
    except requests.RequestException as error:
        log.info("hook not reached: %s", type(error).__name__, extra={"event": delivery.name})
        return Outcome(delivery, 0, b"")
    return Outcome(delivery, answer.status_code, answer.content)
