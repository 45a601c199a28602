"""The gateway: WebSocket connections around `listener.py` and `hub.py`.

`serve` opens a port of its own; `websocket_protocol` gives uvicorn the same handler, so that HTTP
and live listening share one port.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self, cast
from urllib.parse import urlsplit

from websockets.asyncio.connection import Connection
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from streaming.chunk_log import ChunkLog
from streaming.errors import LogUnavailable, TokenError
from streaming.frames import TICKS_PER_MS, Codec
from streaming.hub import NAME, RATE_HZ, Channel, Counters, Hub, Subscription, message
from streaming.links import LinkBook
from streaming.listener import (
    MAX_MESSAGE_BYTES,
    SUBPROTOCOL,
    Action,
    Allow,
    Check,
    Close,
    Leave,
    Listener,
    Open,
    Send,
    error,
)
from streaming.session import stream_handle

log = logging.getLogger(__name__)

PATH = "/v1/live"
SEND_BUFFER_BYTES = 65_536
UNSENT_BYTES = 16_384
BACKLOG_LIMIT = 65_536  # unsent bytes at which a connection gets no more small messages
TICK_S = 1.0
LINK_CHECK_S = 2.0  # how often the links in use are looked up: a revoked one ends within 5 s
QUEUE_LOOK_S = 1.0
PRE_MS = 240
# The library closes with 1009 beyond its limit, before the message is read whole; up to there
# `listener.py` closes with the 4413 of the protocol.
MAX_READ_BYTES = 2 * MAX_MESSAGE_BYTES


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What the pipeline knows about a session, live or not.

    `state`: queued (will be spoken), live (is spoken now), done (the recording is at `url`) or
    failed. `pos` and `eta_ms` are its place in the queue. `pre_ms` is how much sound a player
    should have before it starts. `vtt` and `chapters` are addresses beside `url`.
    """

    state: Literal["queued", "live", "done", "failed"]
    title: str | None = None
    lang: str | None = None
    pos: int | None = None
    eta_ms: int | None = None
    url: str | None = None
    vtt: str | None = None
    chapters: str | None = None
    pre_ms: int | None = None


async def _no_session(sid: str) -> SessionInfo | None:
    return None


class Gateway:
    """Everything that the connections of one process share.

    Use it as `async with gateway:` around the server; leaving drains it.

    Args:
        log: where sessions are written.
        links: checks tokens.
        session_info: what is known about a session that has no log (not begun, or expired).
        origins: pages of other hosts that may connect (`https://host[:port]`); pages of the host
            that the client itself named always may.
        node: this process, as clients see it in `welcome`.
        goaway_ms: time over which a drain spreads the reconnects.
    """

    def __init__(
        self,
        log: ChunkLog,
        links: LinkBook,
        *,
        session_info: Callable[[str], Awaitable[SessionInfo | None]] = _no_session,
        origins: Collection[str] = (),
        node: str | None = None,
        goaway_ms: int = 15_000,
    ) -> None:
        self.links = links
        self.session_info = session_info
        self.origins = frozenset(origins)
        self.node = node or f"{socket.gethostname()}-{secrets.token_hex(3)}"
        self.counters = Counters()
        self.peers: set[Peer] = set()
        self.draining = False
        self._goaway_ms = goaway_ms
        self.hub: Hub
        self._log = log
        self._clocks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin to read the log."""
        self.hub = Hub(self._log.reader(), self.counters)
        self.hub.start()
        clocks = (self._tick(), self._check_links())
        self._clocks = [asyncio.create_task(clock) for clock in clocks]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Drain, then stop reading."""
        await self.drain()
        for task in self._clocks:
            task.cancel()
        await asyncio.gather(*self._clocks, return_exceptions=True)
        await self.hub.stop()

    async def drain(self) -> None:
        """Send everybody away, refuse newcomers, and wait until the connections are closed."""
        peers = list(self.peers)
        self.send_away()
        await asyncio.gather(*(peer.closed() for peer in peers))

    def send_away(self) -> None:
        """Tell everybody to come back, each at another time, and refuse newcomers."""
        self.draining = True
        for peer in list(self.peers):
            retry_ms = random.randrange(self._goaway_ms)  # noqa: S311
            peer.perform_now(peer.listener.drain(retry_ms))

    def revoke(self, link: str) -> None:
        """Close what came by `link` at once; without this call it takes up to 5 s."""
        self.links.forget(link)
        for peer in list(self.peers):
            peer.perform_now(peer.listener.revoked(link))

    def refusal(self, path: str, headers: Request) -> tuple[int, str] | None:
        """Return status and text for an upgrade that is not let in, None if it is."""
        if path.partition("?")[0] != PATH:
            return 404, f"live listening is at {PATH}\n"
        if not self._is_own(headers):
            return 403, "this origin may not connect\n"
        offered = ",".join(headers.headers.get_all("Sec-WebSocket-Protocol"))
        if SUBPROTOCOL not in [name.strip() for name in offered.split(",")]:
            return 400, f"offer the subprotocol {SUBPROTOCOL}\n"
        if self.draining:
            return 503, "this server is going away; try again\n"
        return None

    def _is_own(self, request: Request) -> bool:
        origins = request.headers.get_all("Origin")
        hosts = request.headers.get_all("Host")
        if not origins:
            return True  # no browser
        if len(origins) != 1 or len(hosts) != 1:
            return False
        return origins[0] in self.origins or urlsplit(origins[0]).netloc == hosts[0].lower()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = time.time()
            for peer in list(self.peers):
                peer.perform_now(peer.listener.tick(now))
            self.hub.drop_unused(time.monotonic())

    async def _check_links(self) -> None:
        while True:
            await asyncio.sleep(LINK_CHECK_S)
            for link in {link for peer in self.peers for link in peer.listener.grants}:
                try:
                    good = await self.links.is_good(link, max_age_s=LINK_CHECK_S)
                except Exception:  # the table of links is somebody else's code
                    log.exception("link status could not be read")
                    break
                if not good:
                    self.revoke(link)


class Peer:
    """One connection: does what its `Listener` says."""

    def __init__(self, ws: ServerConnection, gateway: Gateway) -> None:
        self.listener = Listener(
            conn=secrets.token_hex(6),
            node=gateway.node,
            connected_at=time.time(),
            bearer=_bearer(ws.request),
        )
        self._ws = ws
        self._protocol = ws.protocol
        self._write = ws.transport.write
        self.backlog = ws.transport.get_write_buffer_size  # bytes not sent yet
        self._gateway = gateway
        self._subscriptions: dict[str, tuple[Channel, Subscription]] = {}
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._closing: asyncio.Task[None] | None = None

    def write(self, frame: bytes) -> None:
        """Hand a ready frame to the transport (see `hub.Outlet`)."""
        # A data frame after our close frame would break the WebSocket protocol.
        if self._protocol.state is State.OPEN:
            self._write(frame)

    async def run(self) -> None:
        """Serve the connection until it is closed."""
        self._gateway.peers.add(self)
        try:
            async for data in self._ws:
                await self._perform(self.listener.receive(data, time.time()))
        except ConnectionClosed:
            pass
        except Exception:
            log.exception("connection failed", extra={"conn": self.listener.conn})
            self._gateway.counters.errors += 1
            self.perform_now(self.listener.failed())
        finally:
            self._gateway.peers.discard(self)
            self.listener.state = "closed"
            for sid in [*self._subscriptions, *self._waiting]:
                self._leave(sid)
            await self.closed()
            code = self._ws.close_code or 1006
            counts = self._gateway.counters.closed
            counts[code] = counts.get(code, 0) + 1

    async def closed(self) -> None:
        """Wait for the close that was begun here, if there is one."""
        if self._closing:
            await asyncio.gather(self._closing, return_exceptions=True)

    def perform_now(self, actions: Iterable[Action]) -> None:
        """Do actions that need no waiting; used where many connections are gone through."""
        for action in actions:
            if isinstance(action, Send):
                self._send(action.message)
            elif isinstance(action, Close):
                self._close(action)

    async def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send() | Close():
                    self.perform_now([action])
                case Check():
                    await self._perform(await self._check(action))
                case Open():
                    await self._open(action)
                case Leave():
                    self._leave(action.sid)
                case Allow():
                    self._allow(action)
        # A client that sends and does not read is not read either.
        if self.backlog() > BACKLOG_LIMIT:
            await self._ws.drain()

    async def _check(self, action: Check) -> list[Action]:
        try:
            grant = await self._gateway.links.check(action.token)
        except TokenError as reason:
            return self.listener.refused(reason)
        return self.listener.granted(grant, time.time())

    async def _open(self, wish: Open) -> None:
        try:
            channel = await self._gateway.hub.channel(wish.sid)
            info = await self._gateway.session_info(wish.sid)
        except LogUnavailable:
            self._refuse(wish, "internal", "the live log cannot be reached", retry_ms=1000)
            return
        if channel.live.is_set():
            await self._join(wish, channel, info)
        elif info is None:
            self._refuse(wish, "not_found", "there is no such session")
        elif info.state == "done":
            names = ("url", "vtt", "chapters", "title", "lang")
            known = {name: value for name in names if (value := getattr(info, name)) is not None}
            self._refuse(wish, "gone", "the session is over; hear its recording", **known)
        elif info.state == "failed":
            self._refuse(wish, "engine_failed", "the session could not be spoken")
        else:
            waiting = asyncio.create_task(self._wait(wish, channel, info))
            waiting.add_done_callback(self._waited)
            self._waiting[wish.sid] = waiting

    async def _wait(self, wish: Open, channel: Channel, info: SessionInfo) -> None:
        """Tell the place in the queue as it changes, until the session begins."""
        told: SessionInfo | None = None
        while not channel.live.is_set() and info.state in ("queued", "live"):
            if info != told:
                queued = {"t": "queued", "sid": wish.sid, "pos": info.pos, "eta_ms": info.eta_ms}
                self._send(queued)
                told = info
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUEUE_LOOK_S):
                    await channel.live.wait()
            with contextlib.suppress(LogUnavailable):
                channel = await self._gateway.hub.channel(wish.sid)  # it may have been dropped
            info = await self._gateway.session_info(wish.sid) or info
        del self._waiting[wish.sid]
        await self._open(wish)

    def _waited(self, task: asyncio.Task[None]) -> None:
        """A wait is over; its error is our own fault."""
        if not task.cancelled() and (fault := task.exception()):
            log.error("waiting for a session failed", exc_info=fault)
            self._gateway.counters.errors += 1
            self.perform_now(self.listener.failed())

    async def _join(self, wish: Open, channel: Channel, info: SessionInfo | None) -> None:
        sub = Subscription(
            outlet=self,
            sid=wish.sid,
            codec=wish.codec,
            fallback=wish.fallback,
            words=wish.words,
            ahead=wish.ahead_ms * TICKS_PER_MS,
            on_end=lambda code: self._given_up(wish.sid, code),
        )
        if wish.codec is Codec.PCM:
            with contextlib.suppress(LogUnavailable):
                await self._gateway.hub.load_pcm(channel)
        meta = channel.info.meta if channel.info else {}
        # From here to `join` nothing waits: what `opened` says is what comes.
        index = channel.find(wish.start, wish.codec)
        opened = {
            "t": "opened",
            "req": wish.req,
            "sid": wish.sid,
            "stream": stream_handle(wish.sid),
            "codec": NAME[wish.codec],
            "rate": RATE_HZ[wish.codec],
            "skip": channel.skip if wish.codec is Codec.OPUS else 0,
            **channel.opened(index),
            "pre_ms": (info and info.pre_ms) or PRE_MS,
            "title": (info and info.title) or meta.get("title"),
            "lang": (info and info.lang) or meta.get("lang"),
            "policy": wish.policy,
        }
        self._send(opened)
        if wish.start.position is None:
            for frame in channel.caption(index):
                self.write(frame)
        self._subscriptions[wish.sid] = (channel, sub)
        channel.join(sub, index, time.monotonic())

    def _refuse(self, wish: Open, code: str, text: str, **more: Any) -> None:
        self.listener.left(wish.sid)
        self.perform_now([error(code, text, req=wish.req, sid=wish.sid, **more)])

    def _allow(self, action: Allow) -> None:
        if found := self._subscriptions.get(action.sid):
            channel, sub = found
            channel.allow(sub, action.play_ms, action.ahead_ms, time.monotonic())

    def _leave(self, sid: str) -> None:
        if found := self._subscriptions.pop(sid, None):
            channel, sub = found
            channel.leave(sub)
        if waiting := self._waiting.pop(sid, None):
            waiting.cancel()

    def _given_up(self, sid: str, code: str) -> None:
        slow = code == "slow_consumer"
        self.perform_now(self.listener.slow(sid) if slow else self.listener.failed())

    def _send(self, fields: dict[str, Any]) -> None:
        if self.backlog() <= BACKLOG_LIMIT:
            self.write(message(fields))

    def _close(self, action: Close) -> None:
        reason: dict[str, object] = {"code": action.why}
        if action.retry_ms is not None:
            reason["retry_ms"] = action.retry_ms
        text = json.dumps(reason, separators=(",", ":"))
        if self._closing is None:
            self._closing = asyncio.create_task(self._ws.close(action.code, text))


async def serve_connection(ws: ServerConnection, gateway: Gateway) -> None:
    """Serve one accepted connection until it is closed."""
    sock = ws.transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        # Default buffers swallow minutes of Opus before a slow listener can be noticed.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if lowat := getattr(socket, "TCP_NOTSENT_LOWAT", None):  # not on every system
            sock.setsockopt(socket.IPPROTO_TCP, lowat, UNSENT_BYTES)
    await Peer(ws, gateway).run()


@contextlib.asynccontextmanager
async def serve(
    host: str, port: int, gateway: Gateway, *, reuse_port: bool = False
) -> AsyncIterator[Server]:
    """Run `gateway` on a port of its own; several processes may share it with `reuse_port`."""

    async def handler(ws: ServerConnection) -> None:
        await serve_connection(ws, gateway)

    def let_in(ws: ServerConnection, request: Request) -> Response | None:
        refusal = gateway.refusal(request.path, request)
        return ws.respond(*refusal) if refusal else None

    async with (
        serve_websockets(
            handler,
            host,
            port,
            process_request=let_in,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            max_size=MAX_READ_BYTES,
            max_queue=8,
            close_timeout=5,
            reuse_port=reuse_port,
        ) as server,
        gateway,
    ):
        yield server


def websocket_protocol(gateway: Gateway) -> Callable[..., asyncio.Protocol]:
    """Return a protocol factory for uvicorn's `ws=` that hands upgrades to `gateway`."""

    def protocol(*, config: Any, server_state: Any, app_state: Any) -> asyncio.Protocol:
        return _UvicornConnection(gateway, server_state.connections)

    return protocol


class _UvicornConnection(ServerConnection):
    """A WebSocket connection whose transport and handshake bytes come from uvicorn."""

    def __init__(self, gateway: Gateway, connections: set[Any]) -> None:
        protocol = ServerProtocol(subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=MAX_READ_BYTES)
        super().__init__(protocol, cast(Server, self), max_queue=8, close_timeout=5)
        self._gateway = gateway
        self._connections = connections
        self._task: asyncio.Task[None] | None = None

    def is_serving(self) -> bool:
        """Answer for the server object that the library asks during the handshake."""
        return not self._gateway.draining

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport over from uvicorn."""
        Connection.connection_made(self, transport)
        self._connections.add(self)
        self._task = self.loop.create_task(self._run())

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell uvicorn, which waits for its connections when it stops."""
        self._connections.discard(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Be sent away by uvicorn, which is stopping."""
        self._gateway.send_away()

    def _let_in(self, ws: ServerConnection, request: Request) -> Response | None:
        refusal = self._gateway.refusal(request.path, request)
        return self.respond(*refusal) if refusal else None

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(10):
                await self.handshake(self._let_in)
        except TimeoutError:
            self.transport.abort()
            return
        if self.protocol.state is not State.OPEN:
            self.transport.close()
            return
        self.start_keepalive()
        async with self:
            await serve_connection(self, self._gateway)


def _bearer(request: Request | None) -> str | None:
    """The token that programs may send in the handshake."""
    values = request.headers.get_all("Authorization") if request else []
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
