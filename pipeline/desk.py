"""Where orders and texts from live connections become rows: the pipeline's side of
`streaming.orders`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

import sqlalchemy as sa

from connectors.base import Note, NoteEvent, NoteRef
from pipeline import control, episode_view, intake
from pipeline.control import Effect, Ordered
from pipeline.database import Database
from pipeline.errors import DatabaseUnavailable, PipelineError
from pipeline.forks import Forked, fork
from pipeline.models import OPEN, api_key, episode
from pipeline.services import Services
from pipeline.signals import EFFECTS, WAKE
from streaming.errors import BadToken, NotDone
from streaming.links import LinkStatus
from streaming.orders import GEN_SCOPE, Begun, Order, Outcome, Say
from streaming.tokens import Grant

T = TypeVar("T")

KEY_LINK = "key:"
"""What the link of an API key's grant begins with; its row's id follows."""

_LOOK_S = 0.5  # how often an order's row is looked at, in case the signal was lost
_RECENT = 256
_RETRY_MS = 1_000
_NEVER = 2**32 - 1  # API keys do not expire, they are revoked


class LiveDesk:
    """Carries orders out for the gateway of one process (see `streaming.orders.Desk`)."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._wait_s = services.settings.renew_ms / 1000 + 3.0  # a lost signal is repaired by then
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[tuple[str, int], asyncio.Future[Effect]] = {}
        self._recent: OrderedDict[tuple[str, int], Effect] = OrderedDict()

    async def order(self, order: Order, key: str) -> Ordered | Forked:
        """See `streaming.orders.Desk.order`."""
        self._listen()
        services = self._services
        if order.wish.op == "fork":
            return await _done(lambda: self._fork(order, key))

        def store() -> Ordered:
            return control.order(
                services, order.sid, order.wish, actor=order.link, role=order.role, order_key=key
            )

        return await _done(store)

    async def outcome(self, ticket: Ordered | Forked) -> Outcome:
        """See `streaming.orders.Desk.outcome`."""
        if isinstance(ticket, Forked):
            return Outcome(asdict(ticket))
        effect = ticket.effect
        if effect is None and ticket.is_held:
            effect = await self._effect(ticket)
        if effect is None:
            return Outcome()
        if "code" in effect:
            raise NotDone(effect["code"], effect["message"])
        named: list[str] = [name for name in ("seg", "ms", "epoch") if name in effect]
        return Outcome(
            {name: int(effect[name]) for name in named}, tuple(effect.get("degraded", ()))
        )

    async def say(self, say: Say, key: str) -> Begun:
        """See `streaming.orders.Desk.say`."""
        return await _done(lambda: self._say(say, key))

    async def is_waiting(self, sid: str) -> bool:
        """See `streaming.orders.Desk.is_waiting`."""
        view = await _done(lambda: episode_view.show(self._services, sid))
        return bool(view["status"] == "queued")

    def _say(self, say: Say, key: str) -> Begun:
        services = self._services
        self._check_quota(say.link)
        ref = NoteRef("api")
        note = Note(
            ref=ref,
            text=say.text,
            title=say.title,
            lang=say.lang,
            emotion=say.emotion,
            duration="" if say.speed == 1.0 else f"speed:{say.speed:.4f}",
            detail="verbatim",
        )
        taken = intake.accept(
            services.database,
            services.links,
            services.doors["api"],
            NoteEvent(f"say:{key}"[:200], ref, note=note),
            body_digest=hashlib.sha256(say.text.encode()).hexdigest(),
            casting={"default": say.voice} if say.voice else {},
            asked_by=say.link[:80],
        )
        services.signals.publish(WAKE)  # there sooner than a wake-up through the broker's queue
        services.sender.committed(taken.wake_ups)
        sid = taken.accepted.episode
        pos, eta_ms = episode_view.place_of(services.database, sid)
        url = f"{services.settings.effective_public_url}/v1/episodes/{sid}"
        return Begun(sid, pos, eta_ms, url)

    def _fork(self, order: Order, key: str) -> Forked:
        self._check_quota(order.link)
        return fork(self._services, order.sid, order.wish, actor=order.link, order_key=key)

    def _check_quota(self, link: str) -> None:
        """Raise `NotDone` where somebody has as many texts in work as they may."""
        most = self._services.settings.say_running
        if _running(self._services.database, link) >= most:
            text = f"{most} texts of yours are being spoken already; wait for one to end"
            raise NotDone("rate_limited", text, retry_ms=_RETRY_MS)

    def _listen(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._services.signals.listen(EFFECTS, self._came)

    def _came(self, signal: dict[str, Any]) -> None:
        """An order took effect somewhere; called on the signals' thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._settle, signal)

    def _settle(self, signal: dict[str, Any]) -> None:
        name = (signal["episode"], signal["number"])
        self._recent[name] = signal["effect"]
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        waiting = self._waiting.get(name)
        if waiting is not None and not waiting.done():
            waiting.set_result(signal["effect"])

    async def _effect(self, ticket: Ordered) -> Effect | None:
        """What came of an order, None if nobody followed it in time."""
        name = (ticket.episode_id, ticket.number)
        if name in self._recent:
            return self._recent[name]
        waiting: asyncio.Future[Effect] = asyncio.get_running_loop().create_future()
        self._waiting[name] = waiting
        deadline = time.monotonic() + self._wait_s
        try:
            while time.monotonic() < deadline:
                done, _ = await asyncio.wait([waiting], timeout=_LOOK_S)
                if done:
                    return waiting.result()
                found = await _done(lambda: control.effect_of(self._services, ticket))
                if found.effect is not None:
                    return found.effect
                if not found.is_held:
                    return control.too_late()
        finally:
            self._waiting.pop(name, None)
        return None


def account(database: Database, digest: str) -> Grant:
    """What an API key, by its SHA-256, grants: everything of its team, and `say`.

    Raises:
        BadToken: there is no such key, or it was revoked.
    """
    with database.read() as connection:
        row = connection.execute(
            sa.select(api_key.c.id).where(
                api_key.c.digest == digest, api_key.c.revoked_ms.is_(None)
            )
        ).first()
    if row is None:
        raise BadToken("this is neither a link token nor an API key of ours")
    return Grant(f"{KEY_LINK}{row.id}", "owner", _NEVER, sid="*", scopes=(GEN_SCOPE,))


def key_status(database: Database, link: str) -> LinkStatus | None:
    """Whether the API key behind a grant was revoked."""
    with database.read() as connection:
        row = connection.execute(
            sa.select(api_key.c.revoked_ms).where(api_key.c.id == link.removeprefix(KEY_LINK))
        ).first()
    return LinkStatus(revoked=row.revoked_ms is not None) if row is not None else None


def _running(database: Database, who: str) -> int:
    """Texts of somebody that are not spoken to their end."""
    with database.read() as connection:
        count: int = connection.execute(_RUNNING, {"who": who[:80]}).scalar_one()
    return count


_RUNNING = sa.select(sa.func.count()).where(
    episode.c.asked_by == sa.bindparam("who"), episode.c.state.in_(OPEN)
)


async def _done(work: Callable[[], T]) -> T:
    """Do blocking work on a thread; what goes wrong becomes an error of the protocol."""
    with _in_words():
        return await asyncio.to_thread(work)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except DatabaseUnavailable as error:
        text = "the database does not answer; try again"
        raise NotDone("internal", text, retry_ms=_RETRY_MS) from error
    except PipelineError as error:
        code = error.code if error.code in ("not_found", "gone") else "bad_message"
        raise NotDone(code, str(error)) from error
