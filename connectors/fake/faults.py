"""What makes a fake tool as unkind as a real one: faults, budgets, and a record of what came."""

from __future__ import annotations

import fnmatch
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that came in.

    Attributes:
        path: as it was sent, still percent-encoded.
        query: names and values in the order they came.
        headers: names in lower case.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    at_s: float = 0.0

    @property
    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@dataclass(slots=True)
class Fault:
    """An answer in place of the tool's own.

    Attributes:
        on: method and path, where `*` stands for anything: `PUT /open-apis/bitable/*`.
        times: how often it comes before it is gone.
        carried_out: the request does its work first and only its answer is lost.
    """

    on: str
    status: int = 500
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1
    carried_out: bool = False


class Window:
    """A budget: at most `limit` calls in any `per_s` seconds, counted for each key."""

    def __init__(
        self, limit: int, per_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.per_s = per_s
        self._clock = clock
        self._calls: dict[Any, deque[float]] = {}
        self._lock = threading.Lock()
        self.refused = 0

    def take(self, key: Any = None) -> float:
        """Count a call; gives 0, or the seconds to wait if it is one too many."""
        with self._lock:
            now = self._clock()
            calls = self._calls.setdefault(key, deque())
            while calls and calls[0] <= now - self.per_s:
                calls.popleft()
            if len(calls) >= self.limit:
                self.refused += 1
                return max(calls[0] + self.per_s - now, 0.001)
            calls.append(now)
            return 0.0


class Recorder:
    """ASGI middleware: writes down each call to a tool, and puts faults in its way.

    Addresses under `own` are the fake's own and left alone.
    """

    def __init__(self, app: ASGIApp, own: str = "/_fake") -> None:
        self._app = app
        self._own = own
        self._lock = threading.Lock()
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/" or scope["path"].startswith(self._own):
            await self._app(scope, receive, send)
            return
        body = await _body(receive)
        seen = _seen(scope, body)
        with self._lock:
            self.seen.append(seen)
            fault = self._fault(seen)
        if fault is None or fault.carried_out:
            out = send if fault is None else _drop
            await self._app(scope, _replay(body), out)
        if fault is not None:
            await _answer(fault, send)

    def _fault(self, seen: Seen) -> Fault | None:
        for fault in self.faults:
            if fnmatch.fnmatchcase(f"{seen.method} {seen.path}", fault.on):
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                return fault
        return None


def _seen(scope: Scope, body: bytes) -> Seen:
    raw_path = scope.get("raw_path") or scope["path"].encode()
    return Seen(
        scope["method"],
        raw_path.decode("ascii", "replace"),
        tuple(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
        {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
        body,
        time.monotonic(),
    )


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body") or len(body) > MAX_BODY_BYTES:
            return bytes(body)


def _replay(body: bytes) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


async def _drop(message: Message) -> None:
    """Where the answer of a carried-out request goes that its sender never hears."""


async def _answer(fault: Fault, send: Send) -> None:
    raw = fault.body if isinstance(fault.body, bytes) else json.dumps(fault.body or {}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(raw))}
    headers |= {name.lower(): value for name, value in fault.headers.items()}
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": fault.status, "headers": pairs})
    await send({"type": "http.response.body", "body": raw})
