"""One WebSocket connection: does what its `listener.Listener` says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request

from streaming.admission import SecurityEvent
from streaming.channel import NAME, RATE_HZ, Channel, Subscription, message
from streaming.chunk_log import BEGINNING
from streaming.connection import LiveConnection
from streaming.errors import LogUnavailable, TokenError
from streaming.frames import TICKS_PER_MS, Codec, text_message
from streaming.gateway import QUEUE_LOOK_S, Gateway, SessionInfo, opened_fields
from streaming.limits import Bucket, Rate
from streaming.listener import (
    ACK_MS,
    CLOSE_ACK_MS,
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
from streaming.orders import Clerk, Order, Say
from streaming.session import stream_handle

log = logging.getLogger(__name__)

BACKLOG_LIMIT = 65_536  # unsent bytes at which a connection gets no more small messages
SILENT_S = 40.0  # and after this it is taken for dead
FULL_RETRY_MS = 10_000
# Error codes that whoever runs the place should be able to look up.
AUDITED = {"unauthenticated", "forbidden", "rate_limited", "too_many_listeners"}


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
        self.write = ws.writer()  # see `channel.Outlet`
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


def _bearer(request: Request | None) -> str | None:
    """The token that programs may send in the handshake."""
    values = request.headers.get_all("Authorization") if request else []
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
