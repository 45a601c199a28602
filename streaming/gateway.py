"""What the connections of one process share: who may come in, who is there, what is told to all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from websockets.http11 import Request, Response

from streaming.admission import Admission, SecurityEvent, is_loopback
from streaming.channel import Channel
from streaming.chunk_log import ChunkLog
from streaming.connection import LiveConnection
from streaming.counters import Counters
from streaming.errors import LedgerUnavailable
from streaming.guests import Guest, NoPlace
from streaming.hub import UNUSED_KEEP_S, Hub
from streaming.limits import Ledger, Limits, MemoryLedger, revocation
from streaming.links import LinkBook
from streaming.listener import (
    SUBPROTOCOL,
)
from streaming.orders import OFFER_AFTER_S, Desk
from streaming.tickets import Tickets
from streaming.tokens import SKEW_S, Grant

if TYPE_CHECKING:
    from streaming.peer import Peer

log = logging.getLogger(__name__)

PATH = "/v1/live"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TICK_S = 1.0
PING_S = 20.0  # a client that says nothing for so long is asked for a sign of life
LINK_CHECK_S = 2.0  # how often the links in use are looked up: a revoked one ends within 5 s
QUEUE_LOOK_S = 1.0
INFO_KEEP = 0.9  # share of that for which an answer is good enough
HEAR_AGAIN_S = 1.0
HEALTH = ("/healthz", "/readyz")
TELL_TICKS = 2  # how often, in rounds of `TICK_S`, hosts are told how many listen
PRE_MS = 240


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
