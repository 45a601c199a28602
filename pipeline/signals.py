"""Hints between processes: something changed, look into SQL now.

A signal carries nothing that SQL does not hold, so a lost one costs time only. Publishing never
raises and never waits long; whoever listens is called on a thread of the signals' own.
"""

from __future__ import annotations

import json
import logging
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

Hear = Callable[[dict[str, Any]], None]
ORDERS, EFFECTS, WAKE = "orders", "effects", "wake"
"""An order was stored; an order took effect (or did not); an episode is due."""

_AGAIN_S = 0.5
_POLL_S = 1.0


class Signals(ABC):
    """Topics that any process may publish to and listen to."""

    @abstractmethod
    def publish(self, topic: str, **fields: Any) -> None:
        """Tell everybody who listens now; nobody may."""

    @abstractmethod
    def listen(self, topic: str, hear: Hear) -> None:
        """Call `hear` for each signal from now on, until `close`."""

    def close(self) -> None:  # noqa: B027  # the local ones hold nothing
        """Stop listening."""


class LocalSignals(Signals):
    """Within one process; `hear` is called by whoever publishes."""

    def __init__(self) -> None:
        self._heard: dict[str, list[Hear]] = defaultdict(list)

    def publish(self, topic: str, **fields: Any) -> None:
        """See `Signals.publish`."""
        for hear in list(self._heard[topic]):
            hear(fields)

    def listen(self, topic: str, hear: Hear) -> None:
        """See `Signals.listen`."""
        self._heard[topic].append(hear)


class RedisSignals(Signals):
    """Over the pub/sub of the server at `url` (Valkey or Redis)."""

    def __init__(self, url: str) -> None:
        self._redis: Any = redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0)
        self._listener: Any = redis.Redis.from_url(url, socket_connect_timeout=2.0)
        self._heard: dict[str, list[Hear]] = defaultdict(list)
        self._thread: threading.Thread | None = None
        self._changed = threading.Event()
        self._is_closed = threading.Event()

    def publish(self, topic: str, **fields: Any) -> None:
        """See `Signals.publish`."""
        try:
            self._redis.publish(_channel(topic), json.dumps(fields))
        except (RedisError, OSError) as error:
            log.debug("signal not sent", extra={"topic": topic, "error": str(error)})

    def listen(self, topic: str, hear: Hear) -> None:
        """See `Signals.listen`."""
        self._heard[topic].append(hear)
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """See `Signals.close`."""
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join(timeout=_POLL_S + 2)
        self._redis.close()
        self._listener.close()

    def _run(self) -> None:
        while not self._is_closed.is_set():
            try:
                with self._listener.pubsub(ignore_subscribe_messages=True) as pubsub:
                    self._changed.set()
                    self._hear_out(pubsub)
            except (RedisError, OSError) as error:
                log.debug("signals are away", extra={"error": str(error)})
                self._is_closed.wait(_AGAIN_S)

    def _hear_out(self, pubsub: Any) -> None:
        while not self._is_closed.is_set():
            if self._changed.is_set():
                self._changed.clear()
                pubsub.subscribe(*(_channel(topic) for topic in list(self._heard)))
            message = pubsub.get_message(timeout=_POLL_S)
            if message is not None:
                self._deliver(message["channel"].decode(), message["data"])

    def _deliver(self, channel: str, data: bytes) -> None:
        for topic, heard in list(self._heard.items()):
            if _channel(topic) == channel:
                fields = json.loads(data)
                for hear in list(heard):
                    _call(hear, fields)


def _call(hear: Hear, fields: dict[str, Any]) -> None:
    try:
        hear(fields)
    except Exception:
        log.exception("a signal could not be followed")


def _channel(topic: str) -> str:
    return f"nc:{topic}"
