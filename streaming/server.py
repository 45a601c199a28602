"""The gateway: WebSocket connections around `listener.py` and `hub.py`.

`serve` opens a port of its own; `websocket_protocol` gives uvicorn the same handler, so that HTTP
and live listening share one port.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, cast
from urllib.parse import urlsplit

from websockets.asyncio.connection import Connection
from websockets.asyncio.server import Server
from websockets.asyncio.server import serve as serve_websockets
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from streaming.admission import Admission, SecurityEvent, is_loopback
from streaming.chunk_log import BEGINNING, ChunkLog
from streaming.connection import LiveConnection
from streaming.errors import LedgerUnavailable, LogUnavailable, TokenError
from streaming.frames import TICKS_PER_MS, Codec, text_message
from streaming.guests import Guest, NoPlace
from streaming.hub import (
    NAME,
    RATE_HZ,
    UNUSED_KEEP_S,
    Channel,
    Counters,
    Hub,
    Subscription,
    message,
)
from streaming.limits import Bucket, Ledger, Limits, MemoryLedger, Rate, revocation
from streaming.links import LinkBook
from streaming.listener import (
    ACK_MS,
    CLOSE_ACK_MS,
    MAX_MESSAGE_BYTES,
    SUBPROTOCOL,
    Ack,
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
from streaming.orders import OFFER_AFTER_S, Clerk, Desk, Order, Say
from streaming.session import stream_handle
from streaming.tickets import Tickets
from streaming.tokens import SKEW_S, Grant

log = logging.getLogger(__name__)

PATH = "/v1/live"
SEND_BUFFER_BYTES = 65_536
UNSENT_BYTES = 16_384
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BACKLOG_LIMIT = 65_536  # unsent bytes at which a connection gets no more small messages
TICK_S = 1.0
PING_S = 20.0  # a client that says nothing for so long is asked for a sign of life
SILENT_S = 40.0  # and after this it is taken for dead
LINK_CHECK_S = 2.0  # how often the links in use are looked up: a revoked one ends within 5 s
FULL_RETRY_MS = 10_000
# Error codes that whoever runs the place should be able to look up.
AUDITED = {"unauthenticated", "forbidden", "rate_limited", "too_many_listeners"}
QUEUE_LOOK_S = 1.0
INFO_KEEP = 0.9  # share of that for which an answer is good enough
HEAR_AGAIN_S = 1.0
HEALTH = ("/healthz", "/readyz")
TELL_TICKS = 2  # how often, in rounds of `TICK_S`, hosts are told how many listen
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

    def queued(self, sid: str) -> dict[str, Any]:
        """The message `queued` for somebody who waits."""
        place = {"t": "queued", "sid": sid, "pos": self.pos, "eta_ms": self.eta_ms}
        return place | {"title": self.title, "lang": self.lang}

    def recording(self) -> dict[str, str]:
        """What is known about the recording, as the error `gone` names it."""
        names = ("url", "vtt", "chapters", "title", "lang")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def opened_fields(channel: Channel, index: int, info: SessionInfo | None) -> dict[str, Any]:
    """What `opened` says about a session, whatever the transport, and a start at slot `index`."""
    meta = channel.info.meta if channel.info else {}
    return {
        **channel.opened(index),
        "pre_ms": (info and info.pre_ms) or PRE_MS,
        "title": (info and info.title) or meta.get("title"),
        "lang": (info and info.lang) or meta.get("lang"),
    }


def _unseen(event: SecurityEvent) -> None:
    return None


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
        desk: carries out what listeners order; without it nothing can be ordered.
        offer_after_s: a `say` that has not begun by then is offered as batch work.
        limits: how much everybody may use.
        ledger: where that is counted, tickets are kept, and revoked links are told; without it,
            in this process.
        trusted_proxies: addresses or networks whose `X-Forwarded-For` is believed.
        on_security: called for what should be kept for the record; must not wait.

    Attributes:
        elsewhere: listeners of each session at other gateways, as far as somebody keeps it up.
        metrics: what `GET /metrics` answers to this machine, on a port of `serve`; may block, and
            is called on a thread.
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
        desk: Desk | None = None,
        offer_after_s: float = OFFER_AFTER_S,
        limits: Limits | None = None,
        ledger: Ledger | None = None,
        trusted_proxies: Iterable[str] = (),
        on_security: Callable[[SecurityEvent], None] = _unseen,
    ) -> None:
        self.links = links
        self.limits = limits or Limits()
        self.ledger = ledger or MemoryLedger()
        self.admission = Admission(self.ledger, self.limits, trusted=trusted_proxies)
        self.tickets = Tickets(self.ledger)
        self.on_security = on_security
        self.desk = desk
        self.offer_after_s = offer_after_s
        self._look_up = session_info
        self._infos: dict[str, tuple[float, asyncio.Task[SessionInfo | None]]] = {}
        self.origins = frozenset(origins)
        self.node = node or f"{socket.gethostname()}-{secrets.token_hex(3)}"
        self.counters = Counters()
        self.peers: set[Peer] = set()
        self.guests: set[Guest] = set()
        self.hosts: set[Peer] = set()  # who are told how many listen
        self.clients: dict[str, Peer] = {}  # by link and the client's name for itself
        self.elsewhere: Mapping[str, int] = {}
        self.metrics: Callable[[], bytes] | None = None
        self._rounds = 0
        self.draining = False
        self._goaway_ms = goaway_ms
        self.hub: Hub
        self._log = log
        self._clocks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin to read the log."""
        self.hub = Hub(self._log.reader(), self.counters)
        self.hub.start()
        clocks = (self._tick(), self._check_links(), self._hear(), self.admission.renew_for_ever())
        self._clocks = [asyncio.create_task(clock) for clock in clocks]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Drain, then stop reading."""
        await self.drain()
        for task in self._clocks:
            task.cancel()
        await asyncio.gather(*self._clocks, return_exceptions=True)
        await self.admission.close()
        await self.ledger.close()
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
        for guest in self.guests:
            guest.ended.set()

    def revoke(self, link: str) -> None:
        """Close what came by `link` at once, at this gateway; `tell_revoked` reaches all."""
        self.links.forget(link)
        for peer in list(self.peers):
            if link in peer.listener.grants:
                self.on_security(SecurityEvent("revoked", peer.address, link))
                peer.perform_now(peer.listener.revoked(link))
        for guest in self.guests:
            if guest.grant.link == link and not guest.ended.is_set():
                self.on_security(SecurityEvent("revoked", guest.address, link))
                guest.ended.set()

    async def let_in(self, ws: LiveConnection, request: Request) -> Response | None:
        """Return the answer to an upgrade that is not let in, None if it is."""
        if request.path in HEALTH:
            well = request.path == "/healthz" or not self.draining
            return ws.respond(200 if well else 503, "ok\n" if well else "going away\n")
        if request.path == "/metrics" and self.metrics is not None:
            return await self._show_metrics(ws, request, self.metrics)
        ws.address = self.admission.address(
            ws.transport.get_extra_info("peername"), request.headers.get_all("X-Forwarded-For")
        )
        refusal = self._refusal(request, ws.address)
        if refusal is None and not await self.admission.enter(ws.name, ws.address):
            refusal = 429, f"{self._crowded(ws.address)}\n"
        if refusal is None:
            return None
        response = ws.respond(*refusal)
        if refusal[0] in (429, 503):
            response.headers["Retry-After"] = str(random.randint(1, 10))  # noqa: S311
        return response

    async def join(self, peer: Peer, grant: Grant) -> str | None:
        """Take the places that a grant needs; gives a sentence if there is none."""
        refusal = await self._join(peer.name, grant)
        if refusal is None and peer.listener.client:
            await self._replace(f"{grant.link}/{peer.listener.client}", peer)
        return refusal

    async def admit(self, sid: str, grant: Grant, address: str) -> Guest:
        """Take the places of a listener who comes without a WebSocket; `dismiss` ends it.

        Raises:
            NoPlace: there is none.
        """
        guest = Guest(secrets.token_hex(6), sid, grant, address)
        if refusal := self._unable():
            raise NoPlace(503, "no_capacity", refusal)
        try:
            if not await self.admission.enter(guest.name, address):
                raise NoPlace(429, "too_many_listeners", self._crowded(address))
            if full := await self._join(guest.name, grant):
                self.on_security(SecurityEvent("too_many_listeners", address, grant.link, full))
                raise NoPlace(429, "too_many_listeners", full)
        except BaseException:
            self.admission.leave(guest.name)
            raise
        self.guests.add(guest)
        about = {"conn": guest.name, "sid": sid, "role": grant.role}
        log.info("session opened over HTTP", extra=about)
        return guest

    def dismiss(self, guest: Guest) -> None:
        """A guest has gone, or is sent away."""
        guest.ended.set()
        self.guests.discard(guest)
        self.admission.leave(guest.name)
        about = {"conn": guest.name, "sid": guest.sid, "role": guest.grant.role}
        log.info("session closed over HTTP", extra=about)

    async def _join(self, name: str, grant: Grant) -> str | None:
        refusal = await self.admission.join(name, grant)
        if refusal is not None:
            self.counters.refused["user" if "user" in refusal else "link"] += 1
        return refusal

    def _crowded(self, address: str) -> str:
        self.counters.refused["address"] += 1
        self.on_security(SecurityEvent("too_many_listeners", address))
        return "too many connections from this address; close one, or try later"

    def _unable(self) -> str | None:
        """Why nobody can be let in now, if so."""
        if self.draining:
            return "this server is going away; try again"
        if len(self.peers) + len(self.guests) >= self.limits.connections:
            self.counters.refused["process"] += 1
            return "this server is full; try again"
        return None

    async def _show_metrics(
        self, ws: LiveConnection, request: Request, metrics: Callable[[], bytes]
    ) -> Response:
        """What is counted, for whoever asks from this machine and through no proxy."""
        peer = ws.transport.get_extra_info("peername")
        if "X-Forwarded-For" in request.headers or not is_loopback(peer):
            return ws.respond(403, "metrics are for this machine only\n")
        response = ws.respond(200, "")
        response.body = await asyncio.to_thread(metrics)
        del response.headers["Content-Length"], response.headers["Content-Type"]
        response.headers["Content-Length"] = str(len(response.body))
        response.headers["Content-Type"] = METRICS_TYPE
        return response

    async def tell_revoked(self, link: str) -> None:
        """Close what came by `link`, at every gateway, at once; without this it takes up to 5 s."""
        self.revoke(link)
        with contextlib.suppress(LedgerUnavailable):
            await self.ledger.tell(revocation(link))

    async def session_info(
        self, sid: str, *, max_age_s: float = INFO_KEEP * QUEUE_LOOK_S
    ) -> SessionInfo | None:
        """What is known about a session; looked up once a second, however many want to know."""
        now = time.monotonic()
        asked_at, task = self._infos.get(sid, (0.0, None))
        if task is None or (task.done() and now >= asked_at + max_age_s):
            task = asyncio.ensure_future(self._look_up(sid))
            # Its error is for whoever waits below; if all of them have gone, for nobody.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._infos[sid] = (now, task)
        return await asyncio.shield(task)

    async def kick(self, sid: str) -> None:
        """Close what listens to session `sid`, at every gateway; good links may come back."""
        self._kick(sid)
        with contextlib.suppress(LedgerUnavailable):
            await self.ledger.tell(json.dumps({"kick": sid}))

    def left(self, peer: Peer) -> None:
        """A connection is over."""
        self.peers.discard(peer)
        self.hosts.discard(peer)
        if self.clients.get(peer.client_key) is peer:
            del self.clients[peer.client_key]

    async def may_order(self, sid: str) -> float:
        """Count an order to session `sid`: 0.0, or the seconds to wait before it may be given."""
        try:
            return await self.ledger.take(f"control:{sid}", self.limits.session_controls)
        except LedgerUnavailable:
            return 0.0

    def _refusal(self, request: Request, address: str) -> tuple[int, str] | None:
        if request.path.partition("?")[0] != PATH:
            return 404, f"live listening is at {PATH}\n"
        if not self._is_own(request):
            self.counters.refused["origin"] += 1
            origin = ", ".join(request.headers.get_all("Origin"))[:200]
            self.on_security(SecurityEvent("origin", address, detail=origin))
            return 403, "this origin may not connect\n"
        offered = ",".join(request.headers.get_all("Sec-WebSocket-Protocol"))
        if SUBPROTOCOL not in [name.strip() for name in offered.split(",")]:
            return 400, f"offer the subprotocol {SUBPROTOCOL}\n"
        if unable := self._unable():
            return 503, f"{unable}\n"
        return None

    def _kick(self, sid: str) -> None:
        for peer in list(self.peers):
            if sid in peer.listener.sids:
                for link in peer.listener.grants:
                    self.links.forget(link)
                peer.perform_now(peer.listener.kicked())
        for guest in self.guests:
            if guest.sid == sid:
                self.links.forget(guest.grant.link)
                guest.ended.set()

    async def _replace(self, key: str, peer: Peer) -> None:
        """A client has one connection for each link: the newest, at whichever gateway it is."""
        if (older := self.clients.get(key)) and older is not peer:
            older.perform_now(older.listener.replaced())
        peer.client_key, self.clients[key] = key, peer
        with contextlib.suppress(LedgerUnavailable):
            await self.ledger.tell(json.dumps({"client": key, "conn": peer.listener.conn}))

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
            try:
                self._look_around(time.time(), time.monotonic())
            except Exception:  # one bad session must not stop everybody's clock
                log.exception("the gateway's round failed")
                self.counters.errors += 1

    def _look_around(self, now: float, clock: float) -> None:
        """What is due by Unix time `now` and by the monotonic `clock`."""
        for peer in list(self.peers):
            if now >= peer.listener.due:
                peer.perform_now(peer.listener.tick(now))
            if clock > peer.heard_at + PING_S:
                peer.ask(clock)
        for sid, (asked_at, _) in list(self._infos.items()):
            if clock > asked_at + UNUSED_KEEP_S:
                del self._infos[sid]
        for guest in self.guests:
            if now > guest.grant.expires + SKEW_S:
                guest.ended.set()
        self.hub.watch(clock)
        self.hub.drop_unused(clock)
        self._rounds += 1
        if self.hosts and not self._rounds % TELL_TICKS:
            self._tell_hosts(clock)

    def _tell_hosts(self, clock: float) -> None:
        """Tell owners and admins how many listen to what they have open, where that changed."""
        here = self.hub.census(clock)
        for peer in list(self.hosts):
            peer.tell_listeners(
                lambda sid: (here[sid].listeners if sid in here else 0) + self.elsewhere.get(sid, 0)
            )

    async def _hear(self) -> None:
        """Follow what other gateways and the pipeline tell."""
        while True:
            try:
                news = json.loads(await self.ledger.hear())
            except LedgerUnavailable:
                await asyncio.sleep(HEAR_AGAIN_S)  # meanwhile `_check_links` looks by itself
                continue
            except ValueError:
                continue
            if not isinstance(news, dict):
                continue
            if link := news.get("revoke"):
                self.revoke(link)
            elif sid := news.get("kick"):
                self._kick(sid)
            elif (peer := self.clients.get(str(news.get("client")))) and (
                peer.name != news.get("conn")
            ):
                peer.perform_now(peer.listener.replaced())

    async def _check_links(self) -> None:
        while True:
            await asyncio.sleep(LINK_CHECK_S)
            links = {link for peer in self.peers for link in peer.listener.grants}
            links |= {guest.grant.link for guest in self.guests}
            for link in links - {""}:
                try:
                    good = await self.links.is_good(link, max_age_s=LINK_CHECK_S)
                except Exception:  # the table of links is somebody else's code
                    log.exception("link status could not be read")
                    break
                if not good:
                    self.revoke(link)


class Peer:
    """One connection: does what its `Listener` says."""

    def __init__(self, ws: LiveConnection, gateway: Gateway) -> None:
        self.listener = Listener(
            conn=ws.name,
            node=gateway.node,
            connected_at=time.time(),
            bearer=_bearer(ws.request),
            limits=gateway.limits,
        )
        self.name = ws.name
        self.address = ws.address
        self.client_key = ""
        self._ws = ws
        self.write = ws.writer()  # see `hub.Outlet`
        self.backlog = ws.transport.get_write_buffer_size  # bytes not sent yet
        self._gateway = gateway
        self._subscriptions: dict[str, tuple[Channel, Subscription]] = {}
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._closing: asyncio.Task[None] | None = None
        self._told: dict[str, int] = {}  # how many listen, by session
        self._clerk = Clerk(
            self.listener, gateway.desk, self._perform, offer_after_s=gateway.offer_after_s
        )

    @property
    def heard_at(self) -> float:
        """When the last byte came; monotonic s."""
        return self._ws.heard_at

    def ask(self, now: float) -> None:
        """Nothing has come for a while: send a ping, or give the client up."""
        if now > self.heard_at + SILENT_S:
            self.perform_now(self.listener.silent())
        elif not self.backlog():
            self._ws.ping_now()

    async def run(self) -> None:
        """Serve the connection until it is closed."""
        self._gateway.peers.add(self)
        self._ws.quick = self._take_quick
        try:
            async for data in self._ws:
                await self._perform(self.listener.receive(data, time.time()))
                self._ws.unread -= 1
        except ConnectionClosed:
            pass
        except Exception:
            self._broke()
        finally:
            self._ws.quick = None
            self._gateway.left(self)
            self.listener.state = "closed"
            for sid in [*self._subscriptions, *self._waiting]:
                self._leave(sid)
            await self._clerk.close()
            await self.closed()
            code = self._ws.close_code or 1006
            self._gateway.counters.closed[code] += 1
            log.info("connection closed", extra={"conn": self.name, "code": code})

    async def closed(self) -> None:
        """Wait for the close that was begun here, if there is one."""
        if self._closing:
            await asyncio.gather(self._closing, return_exceptions=True)

    def perform_now(self, actions: Iterable[Action]) -> None:
        """Do actions that need no waiting; used where many connections are gone through."""
        for action in actions:
            if isinstance(action, Ack):
                self._ack(action)
            elif isinstance(action, Send):
                self._send(action.message)
            elif isinstance(action, Allow):
                self._allow(action)
            elif isinstance(action, Close):
                self._close(action)

    def _take_quick(self, text: str) -> bool:
        """Take a small message without waking the reading task; False if it must be woken."""
        if self.backlog() > BACKLOG_LIMIT:
            return False
        try:
            actions = self.listener.receive_quick(text, time.time())
            if actions is None:
                return False
            self.perform_now(actions)
        except Exception:
            self._broke()
        return True

    def _broke(self) -> None:
        log.exception("connection failed", extra={"conn": self.listener.conn})
        self._gateway.counters.errors += 1
        self.perform_now(self.listener.failed())

    async def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send() | Close() | Ack() | Allow():
                    self.perform_now([action])
                case Check():
                    await self._perform(await self._check(action))
                case Open():
                    await self._open(action)
                case Leave():
                    self._leave(action.sid)
                case Order():
                    await self._order(action)
                case Say():
                    self._clerk.take(action)
        # A client that sends and does not read is not read either.
        if self.backlog() > BACKLOG_LIMIT:
            await self._ws.drain()

    async def _check(self, action: Check) -> list[Action]:
        try:
            grant = await self._gateway.links.check(action.token)
        except TokenError as reason:
            return self.listener.refused(reason)
        if refusal := await self._gateway.join(self, grant):
            return self.listener.crowded(refusal, FULL_RETRY_MS)
        return self.listener.granted(grant, time.time())

    async def _order(self, order: Order) -> None:
        self._log("order came", order.sid, op=order.wish.op, position=order.wish.play_ms)
        wait_s = await self._gateway.may_order(order.sid)
        if not wait_s:
            self._clerk.take(order)
            return
        self._gateway.counters.refused["control"] += 1
        text, retry_ms = "too many orders for this session", math.ceil(wait_s * 1000)
        answer = error("rate_limited", text, req=order.req, sid=order.sid, retry_ms=retry_ms)
        self.perform_now([answer])

    async def _open(self, wish: Open) -> None:
        wish_at = time.monotonic()
        try:
            channel = await self._gateway.hub.channel(wish.sid)
            info = await self._gateway.session_info(wish.sid)
        except LogUnavailable:
            self._refuse(wish, "internal", "the live log cannot be reached", retry_ms=1000)
            return
        if channel.live.is_set():
            await self._join(wish, wish_at, channel, info)
        elif info is None:
            self._refuse(wish, "not_found", "there is no such session")
        elif info.state == "done":
            if wish.start.position is not None:
                self._gateway.counters.resumes["gone"] += 1
            self._refuse(
                wish, "gone", "the session is over; hear its recording", **info.recording()
            )
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
                self._send(info.queued(wish.sid))
                told = info
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUEUE_LOOK_S):
                    await channel.live.wait()
            if channel.live.is_set():
                break  # nothing is asked of SQL between the first frame and its listener
            with contextlib.suppress(LogUnavailable):
                channel = await self._gateway.hub.channel(wish.sid)  # it may have been dropped
            info = await self._gateway.session_info(wish.sid) or info
        del self._waiting[wish.sid]
        if channel.live.is_set():
            await self._join(wish, time.monotonic(), channel, info)
        else:
            await self._open(wish)

    def _waited(self, task: asyncio.Task[None]) -> None:
        """A wait is over; its error is our own fault."""
        if not task.cancelled() and (fault := task.exception()):
            log.error("waiting for a session failed", exc_info=fault)
            self._gateway.counters.errors += 1
            self.perform_now(self.listener.failed())

    async def _join(
        self, wish: Open, wish_at: float, channel: Channel, info: SessionInfo | None
    ) -> None:
        ack_ms = CLOSE_ACK_MS if wish.policy == "live" or wish.codec is Codec.PCM else ACK_MS
        grant = self.listener.grant_for(wish.sid)
        rate = self._gateway.limits.egress
        if grant is not None and grant.bytes_per_s:
            rate = Rate(min(rate.per_s, grant.bytes_per_s), rate.burst)
        sub = Subscription(
            outlet=self,
            sid=wish.sid,
            codec=wish.codec,
            fallback=wish.fallback,
            words=wish.words,
            ahead=wish.ahead_ms * TICKS_PER_MS,
            on_end=lambda code: self._given_up(wish.sid, code),
            live=wish.policy == "live",
            ack_s=ack_ms / 1000,
            asked_at=wish_at,
            egress=Bucket(rate),
            purse=self._gateway.admission.purse(grant) if grant else None,
        )
        if wish.codec is Codec.PCM:
            with contextlib.suppress(LogUnavailable):
                await self._gateway.hub.load_pcm(channel)
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
            **opened_fields(channel, index, info),
            "policy": wish.policy,
            "ack_ms": ack_ms,
        }
        self._send(opened)
        if wish.start.position is None:
            for frame in channel.caption(index):
                self.write(frame)
        else:
            self._gateway.counters.resumes["cut" if channel.cut_after(index) else "exact"] += 1
        self._subscriptions[wish.sid] = (channel, sub)
        if self._is_host(wish.sid):
            self._gateway.hosts.add(self)
        self._log("session opened", wish.sid, position=opened["from"]["seq"], codec=NAME[sub.codec])
        channel.join(sub, index, time.monotonic())

    def tell_listeners(self, count: Callable[[str], int]) -> None:
        """Say how many listen to the sessions that are open here and are ours, where it changed."""
        if self.backlog() > BACKLOG_LIMIT:
            return  # the next round
        for sid in self._subscriptions:
            number = count(sid)
            if self._told.get(sid) != number and self._is_host(sid):
                self._told[sid] = number
                self._send({"t": "listeners", "sid": sid, "n": number})

    def _is_host(self, sid: str) -> bool:
        return self.listener.role_on(sid) in ("owner", "admin")

    def _log(self, what: str, sid: str, **more: Any) -> None:
        """One line about this connection; never a token, nor anything that is said."""
        about = {"conn": self.name, "sid": sid, "role": self.listener.role_on(sid)}
        log.info(what, extra=about | more)

    def _refuse(self, wish: Open, code: str, text: str, **more: Any) -> None:
        self.listener.left(wish.sid, time.time())
        self.perform_now([error(code, text, req=wish.req, sid=wish.sid, **more)])

    def _ack(self, action: Ack) -> None:
        if found := self._subscriptions.get(action.sid):
            channel, sub = found
            channel.ack(sub, action, time.monotonic())

    def _allow(self, action: Allow) -> None:
        if found := self._subscriptions.get(action.sid):
            channel, sub = found
            channel.allow(sub, action.ahead_ms, time.monotonic())

    def _leave(self, sid: str) -> None:
        if found := self._subscriptions.pop(sid, None):
            channel, sub = found
            channel.leave(sub)
            self._told.pop(sid, None)
            position = channel.slots[sub.index - 1].position if sub.index else BEGINNING
            self._log("session closed", sid, position=position[0])
        if waiting := self._waiting.pop(sid, None):
            waiting.cancel()

    def _given_up(self, sid: str, code: str) -> None:
        slow = code == "slow_consumer"
        self.perform_now(self.listener.slow(sid) if slow else self.listener.failed())

    def _send(self, fields: dict[str, Any]) -> None:
        if fields["t"] == "pong":
            # Every ack is answered: this is a tenth of what a general encoder costs.
            ts = "null" if fields["ts"] is None else fields["ts"]
            text = f'{{"t":"pong","ts":{ts},"now":{fields["now"]}}}'
            if self.backlog() <= BACKLOG_LIMIT:
                self.write(text_message(text.encode()))
            return
        if fields["t"] == "error":
            self._log("error sent", fields.get("sid", ""), code=fields["code"])
            if fields["code"] in AUDITED:
                link = next(iter(self.listener.grants), "")
                event = SecurityEvent(fields["code"], self.address, link, fields["message"])
                self._gateway.on_security(event)
        if self.backlog() <= BACKLOG_LIMIT:
            self.write(message(fields))

    def _close(self, action: Close) -> None:
        reason: dict[str, object] = {"code": action.why}
        if action.retry_ms is not None:
            reason["retry_ms"] = action.retry_ms
        text = json.dumps(reason, separators=(",", ":"))
        if self._closing is None:
            self._closing = asyncio.create_task(self._ws.close(action.code, text))


async def serve_connection(ws: LiveConnection, gateway: Gateway) -> None:
    """Serve one accepted connection until it is closed."""
    sock = ws.transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        # Default buffers swallow minutes of Opus before a slow listener can be noticed.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if lowat := getattr(socket, "TCP_NOTSENT_LOWAT", None):  # not on every system
            sock.setsockopt(socket.IPPROTO_TCP, lowat, UNSENT_BYTES)
    peer = Peer(ws, gateway)
    ws.begin()
    await peer.run()


@contextlib.asynccontextmanager
async def serve(
    host: str, port: int, gateway: Gateway, *, reuse_port: bool = False
) -> AsyncIterator[Server]:
    """Run `gateway` on a port of its own; several processes may share it with `reuse_port`."""

    async def handler(ws: LiveConnection) -> None:
        await serve_connection(ws, gateway)

    def connection(*args: Any, **options: Any) -> LiveConnection:
        return LiveConnection(*args, **options, on_lost=gateway.admission.leave)

    async with (
        serve_websockets(
            cast(Any, handler),
            host,
            port,
            create_connection=cast(Any, connection),
            process_request=cast(Any, gateway.let_in),
            ping_interval=None,  # `Gateway` asks those who say nothing: most do
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


class _UvicornConnection(LiveConnection):
    """A WebSocket connection whose transport and handshake bytes come from uvicorn."""

    def __init__(self, gateway: Gateway, connections: set[Any]) -> None:
        protocol = ServerProtocol(subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=MAX_READ_BYTES)
        super().__init__(
            protocol,
            cast(Server, self),
            max_queue=8,
            close_timeout=5,
            ping_interval=None,
            on_lost=gateway.admission.leave,
        )
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

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(10):
                await self.handshake(cast(Any, self._gateway.let_in))
        except TimeoutError:
            self.transport.abort()
            return
        if self.protocol.state is not State.OPEN:
            self.transport.close()
            return
        async with self:
            await serve_connection(self, self._gateway)


def _bearer(request: Request | None) -> str | None:
    """The token that programs may send in the handshake."""
    values = request.headers.get_all("Authorization") if request else []
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
