"""A listener in Python: follows a session, over as many connections as it takes.

    async with Listening("https://host/l/weekly#t=nc1...") as listening:
        async for item in listening:
            ...  # Audio, or an event of the protocol as a dict

What a `cut` makes void has been yielded already; the `cut` event says from which sentence on it is
to be dropped. At `end` the digest of everything that counts is compared with the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
)
from websockets.typing import Subprotocol

from streaming.chunk_log import Position
from streaming.errors import BadFrame, BadToken, ListenError
from streaming.frames import TICKS_PER_MS, Codec, Header, Kind, parse
from streaming.links import socket_url
from streaming.listener import SUBPROTOCOL
from streaming.tokens import token_sid

ACK_S = 5.0
SILENT_S = 25.0  # without any frame the connection is taken for dead
BASE_S, MOST_S = 0.25, 10.0
GOOD_S = 30.0  # a connection that lasted as long starts the waits anew
FATAL_CLOSES = {4400, 4401, 4403, 4404, 4409, 4410, 4413, 4426}
FATAL_ERRORS = {
    "bad_message",
    "unauthenticated",
    "token_expired",
    "forbidden",
    "not_found",
    "gone",
    "unsupported_codec",
    "engine_failed",
}
Event = dict[str, Any]


class Audio(NamedTuple):
    """One chunk: its header, and Opus packets (see `frames.unpack_packets`) or s16le samples."""

    header: Header
    payload: bytes


class _Mark(NamedTuple):
    """The digest before a sentence, to go back to when a cut makes it void."""

    seg: int
    digest: hashlib._Hash
    chunks: int


class Listening:
    """One session, listened to until its end.

    Args:
        address: a listen link, or the WebSocket's URL together with `token`.
        sid: the session; found in the token unless that is good for several.
        codec: "opus" or "pcm".
        start: the `from` of the protocol; by default everything from the start.
        give_up_s: how long to try without receiving anything; None tries for ever.

    Iterating raises `ListenError` when trying again would not help: its `code` and text say why.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        sid: str | None = None,
        codec: str = "opus",
        start: Event | None = None,
        give_up_s: float | None = 60.0,
    ) -> None:
        self._url, self._token = (address, token) if token else socket_url(address)
        if urlsplit(self._url).scheme not in ("ws", "wss"):
            raise ListenError("link", "with a token the address begins with ws:// or wss://")
        try:
            self.sid = sid or token_sid(self._token)
        except BadToken as error:
            raise ListenError("link", str(error)) from error
        self.position: Position | None = None  # of the last thing received
        self.chunks = 0  # that count, so far
        self.resumes = 0
        self.exact = start is None and codec == "opus"  # the digest can be compared
        self._codec = codec
        self._start = start or {"at": "start"}
        self._give_up_s = give_up_s
        self._digest = hashlib.sha256()
        self._marks: list[_Mark] = []
        self._ws: ClientConnection | None = None
        self._acks: asyncio.Task[None] | None = None
        self._stream: int | None = None
        self._played_ms = 0
        self._finished = False
        self._failures = 0
        self._connected_at = 0.0
        self._heard_at = time.monotonic()
        self._retry_s: float | None = None
        self._orders: dict[str, asyncio.Future[Event]] = {}

    @property
    def digest(self) -> str:
        """SHA-256 of all Opus payloads that count so far."""
        return self._digest.hexdigest()

    async def __aenter__(self) -> Self:
        """Connect at the first item, not here."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        await self.aclose()

    def __aiter__(self) -> Self:
        """Iterate over what comes."""
        return self

    async def __anext__(self) -> Audio | Event:
        """Return the next chunk or event, over a new connection if need be."""
        while not self._finished:
            try:
                item = self._take(await self._receive())
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake) as error:
                await self._recover(error)
                continue
            if item is not None:
                return item
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection; safe to repeat."""
        self._finished = True
        await self._hang_up()

    async def control(
        self, op: str, value: Any = None, *, at: str = "next", play_ms: int | None = None
    ) -> Event:
        """Give an order as the session's owner and return the `ctl` answer.

        Somebody must iterate meanwhile: the answer comes among the items.

        Args:
            op: pause, resume, speed, emotion, voice, skip or stop.
            at: where it begins; `playhead` and `now` go with `play_ms`.

        Raises:
            ListenError: it was refused (`code` says why), or the connection broke before the
                answer; the order may stand all the same.
        """
        if self._ws is None:
            raise ListenError("connection", "not connected; orders need somebody who listens")
        req = f"order-{len(self._orders)}-{random.getrandbits(32):08x}"
        answer: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._orders[req] = answer
        order: Event = {"t": "control", "req": req, "sid": self.sid, "op": op, "at": at}
        order |= {"value": value} if value is not None else {}
        order |= {"play_ms": play_ms} if play_ms is not None else {}
        try:
            await self._ws.send(json.dumps(order))
            return await answer
        except ConnectionClosed as error:
            raise ListenError("connection", "the connection broke") from error
        finally:
            del self._orders[req]

    async def _receive(self) -> str | bytes:
        if self._ws is None:
            self._ws = await self._connect()
        async with asyncio.timeout(SILENT_S):
            return await self._ws.recv()

    async def _connect(self) -> ClientConnection:
        self._retry_s = self._stream = None
        try:
            ws = await connect(
                self._url,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                max_size=1 << 20,
                open_timeout=10,
                close_timeout=2,
            )
        except InvalidURI as error:
            raise ListenError("link", f"the address cannot be used: {error}") from error
        self._connected_at = time.monotonic()
        where: Event = self._start
        if self.position is not None:
            self.resumes += 1
            where = {"seq": self.position[0], "k": self.position[1]}
        codecs = [self._codec, *({"opus", "pcm"} - {self._codec})]
        client = {"name": "notecast-python", "ver": "1"}
        hello = {"t": "hello", "v": 1, "token": self._token, "codecs": codecs, "client": client}
        wish = {"t": "open", "req": 1, "sid": self.sid, "codec": self._codec, "from": where}
        try:
            await ws.send(json.dumps(hello))
            await ws.send(json.dumps(wish))
        except ConnectionClosed:
            await ws.close()
            raise
        self._acks = asyncio.create_task(self._acknowledge(ws))
        return ws

    async def _acknowledge(self, ws: ClientConnection) -> None:
        """Say what has come; it is played as far as we know."""
        while True:
            await asyncio.sleep(ACK_S)
            now = int(time.time() * 1000)
            ack: Event = {"t": "ping", "ts": now}
            if self._stream is not None and self.position is not None:
                ack |= {"t": "ack", "sid": self.sid, "seq": max(0, self.position[0])}
                ack |= {"play_ms": self._played_ms, "buf_ms": 0}
            with contextlib.suppress(ConnectionClosed):
                await ws.send(json.dumps(ack))

    async def _hang_up(self) -> None:
        for answer in self._orders.values():
            if not answer.done():
                answer.set_exception(ListenError("connection", "the connection broke"))
        if self._acks:
            self._acks.cancel()
            await asyncio.gather(self._acks, return_exceptions=True)
            self._acks = None
        if self._ws:
            await self._ws.close()
            self._ws = None

    async def _recover(self, error: Exception) -> None:
        """Wait before the next connection, or raise if there should be none."""
        await self._hang_up()
        reason = _reason(error)
        _raise_if_final(error, reason)
        now = time.monotonic()
        if self._give_up_s is not None and now > self._heard_at + self._give_up_s:
            text = f"no answer for {self._give_up_s:.0f} s: {error or type(error).__name__}"
            raise ListenError("connection", text) from error
        if self._connected_at and now > self._connected_at + GOOD_S:
            self._failures = 0
        most = min(MOST_S, BASE_S * 2**self._failures)
        self._failures += 1
        wait_s = random.uniform(0, most)  # noqa: S311  # full jitter, no secret
        if self._retry_s is None and isinstance(reason.get("retry_ms"), int | float):
            self._retry_s = reason["retry_ms"] / 1000
        await asyncio.sleep(wait_s if self._retry_s is None else self._retry_s)

    def _take(self, data: str | bytes) -> Audio | Event | None:
        """Return what is for the caller; None if the message was for this class."""
        if isinstance(data, bytes):
            item: Audio | Event | None = self._take_frame(data)
        else:
            item = self._take_event(json.loads(data))
        self._heard_at = time.monotonic()
        return item

    def _take_frame(self, data: bytes) -> Audio | None:
        try:
            header, payload = parse(data)
        except BadFrame as error:
            raise ListenError("bad_message", f"the server sent a broken frame: {error}") from error
        if header.stream != self._stream or not self._is_new((header.seq, 0)):
            return None
        if header.kind is Kind.END:
            return None
        if not self._marks or self._marks[-1].seg != header.seg:
            self._marks.append(_Mark(header.seg, self._digest.copy(), self.chunks))
        self.exact = self.exact and header.codec is not Codec.PCM
        self._digest.update(payload)
        self.chunks += 1
        self._played_ms = (header.pts + header.dur) // TICKS_PER_MS
        return Audio(header, payload)

    def _take_event(self, event: Event) -> Event | None:
        if answer := self._orders.get(str(event.get("req"))):
            settle(answer, event)
            return None
        if event["t"] == "error":
            self._take_error(event)
            return None
        if event["t"] == "goaway":
            self._retry_s = event["retry_ms"] / 1000
            return None
        if event["t"] in ("welcome", "pong") or event.get("sid") != self.sid:
            return None
        if "p" in event and not self._is_new((event["p"][0], event["p"][1])):
            return None
        if event["t"] == "opened":
            self._stream = event["stream"]
            self._played_ms = event["from"]["ms"]
        elif event["t"] == "cut":
            self._cut(event["from_seg"])
        elif event["t"] == "gap":
            self.exact = False
        elif event["t"] == "end":
            self._finished = True
            self._compare(event)
        return event

    def _take_error(self, event: Event) -> None:
        if event["code"] in FATAL_ERRORS:
            self._finished = True
            raise ListenError(event["code"], event["message"], url=event.get("url"))
        if event.get("retry_ms") is not None:
            self._retry_s = event["retry_ms"] / 1000
        raise ConnectionError(event["message"])

    def _is_new(self, position: Position) -> bool:
        if self.position is not None and position <= self.position:
            return False
        self.position = position
        return True

    def _cut(self, from_seg: int) -> None:
        while self._marks and self._marks[-1].seg >= from_seg:
            mark = self._marks.pop()
            self._digest, self.chunks = mark.digest, mark.chunks

    def _compare(self, end: Event) -> None:
        if self.exact and (self.digest, self.chunks) != (end["sha256"], end["chunks"]):
            text = f"heard {self.chunks} chunks, the server spoke {end['chunks']} or others"
            raise ListenError("checksum", text)


def settle(answer: asyncio.Future[Event], event: Event) -> None:
    """Give an answer of the server to whoever waits for it; an `error` is raised there."""
    if answer.done():
        return
    if event["t"] == "error":
        answer.set_exception(ListenError(event["code"], event["message"]))
    else:
        answer.set_result(event)


def listen(address: str, **options: Any) -> Iterator[Audio | Event]:
    """Iterate over a session from code without an event loop; options as for `Listening`."""
    with asyncio.Runner() as runner:
        listening = Listening(address, **options)

        async def step() -> Audio | Event | None:
            return await anext(listening, None)

        try:
            while (item := runner.run(step())) is not None:
                yield item
        finally:
            runner.run(listening.aclose())


def _reason(error: Exception) -> Event:
    """The JSON reason of a close frame, empty if there is none."""
    text = error.rcvd.reason if isinstance(error, ConnectionClosed) and error.rcvd else ""
    with contextlib.suppress(ValueError):
        if isinstance(reason := json.loads(text), dict):
            return reason
    return {}


def _raise_if_final(error: Exception, reason: Event) -> None:
    if isinstance(error, ConnectionClosed) and error.rcvd and error.rcvd.code in FATAL_CLOSES:
        code = str(reason.get("code", "bad_message"))
        raise ListenError(code, f"the server closed the connection: {code}") from error
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        if status < 500 and status != 429:
            text = f"the server refused the connection with HTTP {status}"
            raise ListenError("connection", text) from error
    elif isinstance(error, InvalidHandshake) and not isinstance(error, InvalidMessage):
        raise ListenError("connection", f"this is no live-listening server: {error}") from error
