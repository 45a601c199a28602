"""What a client may order while it listens: `control` of a session, and `say` for a new one.

The two functions that `listener.MESSAGES` names read such a message and check its rights; they
know no socket. A `Desk` (the pipeline's, or none) carries orders out, and a `Clerk` brings them
there beside the connection's reading and sends the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from streaming.errors import NotDone
from streaming.fields import Fault, flag, number, req, sid, text, whole
from streaming.tokens import Role

if TYPE_CHECKING:
    from streaming.listener import Action, Listener

log = logging.getLogger(__name__)

Op = Literal["pause", "resume", "speed", "emotion", "voice", "skip", "stop", "fork"]
At = Literal["playhead", "next", "now"]
GEN_SCOPE, FORK_SCOPE = "gen", "fork"
SPEED = (0.5, 2.0)
EMOTIONS = 8  # weights in an emotion vector
OFFER_AFTER_S = 30.0  # a wish to speak that has not begun by then is offered as batch work
_BY_ROLE: Mapping[Role, tuple[str, ...]] = {
    "owner": get_args(Op),
    "admin": ("stop",),
    "listener": (),
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What an order wants, whoever gives it.

    Attributes:
        value: `speed` a number; `emotion` a text (empty: the script's own again); `voice` a voice
            id, or {"speaker", "voice"}; `skip` the number of a sentence; `fork` any of {"speed",
            "emotion", "voice"}; None for the others.
        at: where it begins: `playhead` the first sentence that starts at least 1.5 s after
            `play_ms`, `now` the sentence that holds `play_ms`, `next` the first one that is not
            published.
    """

    op: Op
    value: Any = None
    at: At = "playhead"
    play_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """Carry out `wish` on session `sid`, for whoever holds `link`."""

    req: int | str | None
    sid: str
    wish: Wish
    role: Role
    link: str


@dataclass(frozen=True, slots=True)
class Say:
    """Speak `text` as a new session, for whoever holds `link`.

    Attributes:
        emotion: as the engine reads it; empty for none.
        speed: times the natural pace.
        open: whether the connection listens to it at once.
        opening: fields of the `open` that follows.
    """

    req: int | str | None
    link: str
    text: str
    voice: str = ""
    emotion: str = ""
    speed: float = 1.0
    lang: str = ""
    title: str = ""
    open: bool = True
    opening: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an order.

    Attributes:
        effect: {"seg", "ms", "epoch"}: from that sentence on, which begins there in that epoch;
            None while nobody speaks the session: the order is stored and is followed when somebody
            does. Of a fork {"sid", "seg", "listen_url"}: the new session, its first sentence, and
            a link by which its holder owns it.
        degraded: what the voice can give only nearly.
    """

    effect: Mapping[str, Any] | None = None
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """A text that will be spoken.

    Attributes:
        pos, eta_ms: its place in the queue.
        url: where a program asks how it is getting on.
    """

    sid: str
    pos: int
    eta_ms: int
    url: str


class Desk(Protocol):
    """Carries orders out. Each call raises `NotDone` when it cannot be done."""

    async def order(self, order: Order, key: str) -> object:
        """Store an order; `key` makes a repetition harmless. Gives a ticket for `outcome`."""

    async def outcome(self, ticket: Any) -> Outcome:
        """Wait for what became of it."""

    async def say(self, say: Say, key: str) -> Begun:
        """Store a text to be spoken; `key` makes a repetition harmless."""

    async def is_waiting(self, sid: str) -> bool:
        """Say if a session has not begun to be spoken."""


def read_wish(message: Mapping[str, Any]) -> Wish:
    """Read `op`, `value`, `at` and `play_ms`.

    Raises:
        Fault: `bad_message`, with what is wrong.
    """
    fields = dict(message)
    op: Any = fields.get("op")
    at: Any = fields.get("at", "playhead")
    if op not in get_args(Op):
        raise Fault("bad_message", f"`op` is one of {', '.join(get_args(Op))}")
    if at not in get_args(At):
        raise Fault("bad_message", f"`at` is one of {', '.join(get_args(At))}")
    play_ms = whole(fields, "play_ms", default=0) if "play_ms" in fields else None
    read = _VALUES.get(op)
    return Wish(op, read(fields.get("value")) if read else None, at, play_ms)


def control(listener: Listener, message: dict[str, Any], now: float) -> list[Action]:
    """Take a `control`: its sender must be allowed this `op` on this session."""
    name = sid(message)
    role, link = right_on(listener, name)
    wish = read_wish(message)
    if wish.op == "fork" and role != "owner":
        link = _fork_right(listener, name)
    elif wish.op not in _BY_ROLE[role]:
        raise Fault("forbidden", f"a link with the role {role} may not {wish.op}")
    return [Order(req(message), name, wish, role, link)]


def say(listener: Listener, message: dict[str, Any], now: float) -> list[Action]:
    """Take a `say`: its sender needs a grant for every session with the scope `gen`."""
    grants = (one for one in listener.grants.values() if one.sid == "*" and GEN_SCOPE in one.scopes)
    grant = next(grants, None)
    if grant is None:
        raise Fault("forbidden", "`say` needs an API key, or a token with the scope gen")
    said = text(message, "text", most=16_384)
    if not said.strip():
        raise Fault("bad_message", "`text` is what to say")
    wished = ("codec", "words", "ahead_ms")
    opening: dict[str, Any] = {name: message[name] for name in wished if name in message}
    listener.check_open(opening)
    wish = Say(
        req(message),
        grant.link,
        said,
        voice=text(message, "voice", most=200),
        emotion=_emotion(message.get("emotion", "")),
        speed=number(message.get("speed", 1.0), "speed", *SPEED),
        lang=_lang(message),
        title=text(message, "title", most=400),
        open=flag(message, "open", default=True),
        opening=opening,
    )
    return [wish]


def right_on(listener: Listener, name: str) -> tuple[Role, str]:
    """The best role that the connection has on a session, and the link that gives it.

    Raises:
        Fault: `forbidden`, it has none.
    """
    best: dict[Role, str] = {}
    for grant in listener.grants.values():
        if grant.covers(name) or name in listener.own:
            best.setdefault("owner" if name in listener.own else grant.role, grant.link)
    for role in _BY_ROLE:
        if role in best:
            return role, best[role]
    raise Fault("forbidden", "the link is for another session")


def _fork_right(listener: Listener, name: str) -> str:
    """The link by which somebody who only listens may have a reading of their own."""
    for grant in listener.grants.values():
        if grant.covers(name) and FORK_SCOPE in grant.scopes:
            return grant.link
    raise Fault("forbidden", "a reading of your own needs an owner's link, or the scope fork")


def _speed(value: object) -> float:
    return number(value, "value", *SPEED)


def _emotion(value: object) -> str:
    """A name or words as they are; eight weights, or a strength, in the engines' notation."""
    strength = None
    if isinstance(value, dict):
        strength = value.get("strength")
        value = value.get("vector", value.get("name", ""))
    if isinstance(value, list):
        if len(value) != EMOTIONS:
            raise Fault("bad_message", f"an emotion vector has {EMOTIONS} numbers")
        weights = [number(one, "vector", 0.0, 1.0) for one in value]
        value = f"[{','.join(f'{one:g}' for one in weights)}]"
    if not isinstance(value, str) or len(value) > 180:
        raise Fault("bad_message", "an emotion is a name, or eight numbers from 0 to 1")
    if strength is None or not value:
        return value
    return f"{value}@{number(strength, 'strength', 0.0, 1.0):g}"


def _voice(value: object) -> str | dict[str, str]:
    speaker = ""
    if isinstance(value, dict):
        speaker, value = value.get("speaker", ""), value.get("voice")
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise Fault("bad_message", "`value` is the id of a voice")
    if not isinstance(speaker, str) or len(speaker) > 200:
        raise Fault("bad_message", "`speaker` is the name of somebody who speaks")
    return {"speaker": speaker, "voice": value} if speaker else value


def _skip(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 16:
        raise Fault("bad_message", "`value` is the number of the sentence to go on at")
    return value


def _fork(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not value.keys() <= _CHANGES.keys():
        raise Fault("bad_message", f"`value` may hold {', '.join(_CHANGES)}")
    return {name: _CHANGES[name](one) for name, one in value.items()}


def _lang(message: dict[str, Any]) -> str:
    lang = text(message, "lang", most=4)
    if lang and lang != "auto" and not (len(lang) == 2 and lang.isascii() and lang.islower()):
        raise Fault("bad_message", "`lang` is a code of two letters, or auto")
    return lang


_CHANGES: Mapping[str, Callable[[object], Any]] = {
    "speed": _speed,
    "emotion": _emotion,
    "voice": _voice,
}
_VALUES: Mapping[str, Callable[[object], Any]] = {**_CHANGES, "skip": _skip, "fork": _fork}


class Clerk:
    """Takes one connection's orders to the desk, in their order, and its answers back.

    Args:
        perform: does what the listener answers with.
        desk: None where nothing can be ordered.
    """

    def __init__(
        self,
        listener: Listener,
        desk: Desk | None,
        perform: Callable[[list[Action]], Awaitable[None]],
        *,
        offer_after_s: float = OFFER_AFTER_S,
    ) -> None:
        self._listener = listener
        self._desk = desk
        self._perform = perform
        self._offer_after_s = offer_after_s
        self._turn = asyncio.Lock()  # fair, so orders are stored as they came
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, action: Order | Say) -> None:
        """Begin to carry out an order; returns at once."""
        self._count += 1
        # without a `req` of its own every message is a new order
        key = f"{self._listener.conn}:{'' if action.req is None else action.req}"
        key += f"#{self._count}" if action.req is None else ""
        work = self._order(action, key) if isinstance(action, Order) else self._say(action, key)
        self._begin(self._answered(action, work))

    async def close(self) -> None:
        """The connection is gone. What was ordered stays ordered."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answered(self, action: Order | Say, work: Coroutine[Any, Any, None]) -> None:
        name = action.sid if isinstance(action, Order) else None
        try:
            await work
        except NotDone as reason:
            await self._refuse(action.req, name, reason.code, str(reason), reason.retry_ms)
        except Exception:  # the desk is somebody else's code
            log.exception("order failed", extra={"conn": self._listener.conn})
            await self._refuse(action.req, name, "internal", "the server failed; try again", 1000)

    async def _order(self, order: Order, key: str) -> None:
        desk = self._open_desk()
        async with self._turn:
            ticket = await desk.order(order, key)
        outcome = await desk.outcome(ticket)
        answer: dict[str, Any] = {"t": "ctl", "req": order.req, "sid": order.sid, "ok": True}
        answer["effect"] = dict(outcome.effect) if outcome.effect is not None else None
        if outcome.degraded:
            answer["degraded"] = list(outcome.degraded)
        await self._perform(self._listener.answer(answer))

    async def _say(self, say: Say, key: str) -> None:
        desk = self._open_desk()
        async with self._turn:
            begun = await desk.say(say, key)
            queue = {"pos": begun.pos, "eta_ms": begun.eta_ms}
            await self._perform(self._listener.accepted(say, begun.sid, queue, time.time()))
        self._begin(self._offer(say, begun))

    async def _offer(self, say: Say, begun: Begun) -> None:
        """Who has waited long enough may leave: it will be spoken without them, too."""
        assert self._desk is not None
        await asyncio.sleep(self._offer_after_s)
        with contextlib.suppress(NotDone):
            if await self._desk.is_waiting(begun.sid):
                offer = {"mode": "batch", "url": begun.url}
                text = "all voices are busy; it stays in the queue, its recording will be at `url`"
                await self._refuse(say.req, begun.sid, "no_capacity", text, None, offer=offer)

    def _open_desk(self) -> Desk:
        if self._desk is None:
            raise NotDone("forbidden", "nothing can be ordered at this server")
        return self._desk

    async def _refuse(
        self, req: Any, sid: str | None, code: str, text: str, retry_ms: int | None, **more: Any
    ) -> None:
        fields = {"req": req, "sid": sid, "retry_ms": retry_ms, **more}
        await self._perform(self._listener.regret(code, text, **fields))
