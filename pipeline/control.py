"""Orders while an episode is spoken: pause, resume, speed, emotion, voice, skip, stop.

An order is a row first (`command`, numbered per episode, in one commit with what it changes) and a
signal after: the worker that speaks the episode reads its rows, follows them in order, and commits
what came of each. A signal that is lost is repaired by the next renewal of the lease, and an order
that nobody is there to follow waits for the next owner.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipeline import intake, outbox
from pipeline.audit import write_audit
from pipeline.database import now_ms
from pipeline.errors import DatabaseUnavailable, Ended, NotFound
from pipeline.models import LEASED, OPEN, command, episode
from pipeline.signals import EFFECTS, ORDERS
from pipeline.write_backs import announce
from streaming.errors import LogLost, StreamingError
from streaming.orders import Wish
from streaming.session import LiveSession

if TYPE_CHECKING:
    from pipeline.services import Services

log = logging.getLogger(__name__)

LEAD_MS = 1_500
"""A change begins at the earliest so long after the sender's playhead."""

REVISING = ("speed", "emotion", "voice", "skip")
"""Orders that change what is spoken from some sentence on."""

Effect = dict[str, Any]
"""{"seg", "ms", "epoch"}, with `from` (the first void sentence), `speaker` and `degraded` where an
order revised the speech; or {"code", "message"} of an order that came to nothing."""


@dataclass(frozen=True, slots=True)
class Command:
    """One order, as its row has it."""

    episode_id: str
    number: int
    wish: Wish
    actor: str
    role: str
    effect: Effect | None = None


@dataclass(frozen=True, slots=True)
class Ordered:
    """An order that is stored.

    Attributes:
        effect: what came of it, None if that is not known yet.
        is_held: a worker speaks the episode at this moment.
    """

    episode_id: str
    number: int
    effect: Effect | None
    is_held: bool


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the orders so far ask of the voice; None and empty leave the script's own.

    Attributes:
        voices: voice by speaker.
        skips: first sentence left out -> sentence to go on at.
    """

    speed: float | None = None
    emotion: str | None = None
    voices: Mapping[str, str] = field(default_factory=dict)
    skips: Mapping[int, int] = field(default_factory=dict)

    def after(self, wish: Wish, effect: Effect) -> Wishes:
        """These wishes once an order has taken effect."""
        if wish.op == "speed":
            return replace(self, speed=wish.value)
        if wish.op == "emotion":
            return replace(self, emotion=wish.value or None)
        if wish.op == "voice":
            return replace(self, voices={**self.voices, effect["speaker"]: voice_of(wish)})
        if wish.op == "skip" and effect["seg"] > effect["from"]:
            return replace(self, skips={**self.skips, effect["from"]: effect["seg"]})
        return self

    def next(self, seg: int) -> int:
        """The sentence that is spoken when `seg` is due: itself, or the one behind a skip."""
        while seg in self.skips:
            seg = self.skips[seg]
        return seg

    def until(self, seg: int, total: int) -> int:
        """Where speaking that begins at `seg` must stop: at a skip, or at the end."""
        return min((start for start in self.skips if start > seg), default=total)


def voice_of(wish: Wish) -> str:
    """The voice id that a `voice` order names."""
    return str(wish.value["voice"] if isinstance(wish.value, dict) else wish.value)


def fold(commands: Iterable[Command]) -> Wishes:
    """The wishes after all orders that took effect, in their order."""
    wishes = Wishes()
    for one in commands:
        if one.effect is not None and "from" in one.effect:
            wishes = wishes.after(one.wish, one.effect)
    return wishes


def place(wish: Wish, starts: Mapping[int, int], following: int) -> int:
    """The sentence from which on an order changes what is heard.

    Args:
        starts: sentence -> its start in ms, for all that listeners have or will get as things are.
        following: the first sentence of which nothing is published.
    """
    if wish.op == "pause" or wish.at == "next" or wish.play_ms is None:
        return following
    if wish.at == "now":
        begun = [seg for seg, ms in starts.items() if ms <= wish.play_ms]
        return max(begun, default=min(starts, default=following))
    later = [seg for seg, ms in starts.items() if ms >= wish.play_ms + LEAD_MS]
    return min(later, default=following)


def order(
    services: Services, key: str, wish: Wish, *, actor: str, role: str, order_key: str
) -> Ordered:
    """Store an order and hurry it to whoever speaks the episode; safe to repeat with its key.

    Raises:
        NotFound: there is no such episode.
        Ended: it is spoken to its end, or stopped; nothing can be changed any more.
        DatabaseUnavailable: nothing was stored, or (lost in the commit) it is there under its key.
    """
    wake_ups: list[tuple[int, str]] = []
    stopped: tuple[tuple[str, int], ...] = ()
    with services.database.write() as connection:
        row = connection.execute(
            sa.select(episode).where(episode.c.key == key).with_for_update()
        ).first()
        if row is None:
            raise NotFound(f"there is no episode {key}")
        before = _before(connection, row, order_key)
        if before is not None:
            return before
        if row.state not in OPEN:
            raise Ended("the episode is over; nothing in it can be changed any more")
        number = row.command_head + 1
        is_held = row.state in LEASED
        effect: Effect | None = None
        if wish.op == "pause" and not is_held:
            effect = {"seg": row.segments_done}
        values: dict[str, Any] = {"command_head": number}
        if wish.op in ("pause", "resume"):
            values["wanted"] = "pause" if wish.op == "pause" else "run"
        is_resumed = wish.op == "resume" and row.wanted == "pause" and row.state == "queued"
        if is_resumed:
            values |= {"state_ms": now_ms(), "queued_ms": now_ms()}  # it waits from now on
        connection.execute(episode.update().where(episode.c.id == row.id).values(values))
        connection.execute(
            command.insert().values(
                episode_id=row.id,
                number=number,
                op=wish.op,
                value=wish.value,
                at=wish.at,
                play_ms=wish.play_ms,
                actor=actor[:80],
                role=role,
                order_key=order_key[:200],
                received_ms=now_ms(),
                applied_ms=now_ms() if effect is not None else None,
                effect=effect,
            )
        )
        detail = {"value": wish.value, "at": wish.at, "play_ms": wish.play_ms, "role": role}
        write_audit(connection, actor=actor, action=wish.op, about=key, detail=detail)
        if wish.op == "stop":
            stopped = intake.cancel(
                connection, episode.c.id == row.id, actor=actor[:40], reason="stopped"
            )
            wake_ups += announce(services, connection, row.id, "failed", error="stopped")
        if is_resumed:
            wake_ups.append((outbox.put(connection, row.queue), row.queue))
    services.signals.publish(ORDERS, episode=row.id, op=wish.op)
    services.sender.committed(wake_ups)
    for _key, fence in stopped:
        effect = _end(services, key, fence)
        _settle_stop(services, row.id, number, effect)
    log.info("order stored", extra={"episode": key, "op": wish.op, "number": number})
    return Ordered(row.id, number, effect, is_held)


def _before(connection: sa.Connection, row: Any, order_key: str) -> Ordered | None:
    """The same order, if it came before."""
    found = connection.execute(
        sa.select(command.c.number, command.c.effect).where(
            command.c.episode_id == row.id, command.c.order_key == order_key[:200]
        )
    ).first()
    if found is None:
        return None
    return Ordered(row.id, found.number, found.effect, row.state in LEASED)


def _end(services: Services, key: str, fence: int) -> Effect | None:
    """Tell listeners that nothing more comes; None if the log is away, SQL knows anyway."""
    try:
        try:
            session = LiveSession.take_over(services.chunks, key, fence)
        except LogLost:
            session = LiveSession.create(services.chunks, key, fence, meta={})
        if not session.ended:
            session.end("stopped")
    except StreamingError as error:
        log.info("listeners not told: %s", error, extra={"episode": key})
        return None
    return {"seg": max(session.segments, default=0), "ms": session.dur_ms, "epoch": session.epoch}


def _settle_stop(services: Services, episode_id: str, number: int, effect: Effect | None) -> None:
    try:
        with services.database.write() as connection:
            settle(connection, episode_id, [(number, effect or {"seg": 0})], fence=None)
    except DatabaseUnavailable as error:  # it is stopped all the same
        log.warning("effect not noted: %s", error)


def commands_of(connection: sa.Connection, episode_id: str) -> list[Command]:
    """All orders for an episode, in the order given."""
    found = connection.execute(
        sa.select(command).where(command.c.episode_id == episode_id).order_by(command.c.number)
    ).all()
    return [
        Command(
            row.episode_id,
            row.number,
            Wish(row.op, row.value, row.at, row.play_ms),
            row.actor,
            row.role,
            row.effect if row.applied_ms is not None else None,
        )
        for row in found
    ]


def read_new(services: Services, episode_id: str, after: int) -> list[Command]:
    """Orders with a number above `after` that nobody has followed yet."""
    with services.database.read() as connection:
        return [
            one
            for one in commands_of(connection, episode_id)
            if one.number > after and one.effect is None
        ]


def settle(
    connection: sa.Connection,
    episode_id: str,
    done: Sequence[tuple[int, Effect]],
    *,
    fence: int | None,
) -> None:
    """Note what came of orders, in the commit that makes it so; the first note stays."""
    for number, effect in done:
        connection.execute(
            command.update()
            .where(
                command.c.episode_id == episode_id,
                command.c.number == number,
                command.c.applied_ms.is_(None),
            )
            .values(applied_ms=now_ms(), applied_fence=fence, effect=effect)
        )


def settle_rest(connection: sa.Connection, episode_id: str, fence: int) -> None:
    """Orders that came too late to change anything, in the commit that ends the episode."""
    connection.execute(
        command.update()
        .where(command.c.episode_id == episode_id, command.c.applied_ms.is_(None))
        .values(applied_ms=now_ms(), applied_fence=fence, effect=too_late())
    )


def too_late() -> Effect:
    """Of an order for a time at which all was spoken."""
    return {"code": "gone", "message": "the rest of the episode was spoken already"}


def tell(services: Services, one: Command, effect: Effect) -> None:
    """Tell whoever waits for it what came of an order; its row says the same."""
    services.signals.publish(EFFECTS, episode=one.episode_id, number=one.number, effect=effect)


def effect_of(services: Services, ordered: Ordered) -> Ordered:
    """The order with what came of it by now; `is_held` False: nobody will follow it soon."""
    with services.database.read() as connection:
        row = connection.execute(
            sa.select(command.c.effect, command.c.applied_ms, episode.c.state)
            .join(episode, episode.c.id == command.c.episode_id)
            .where(command.c.episode_id == ordered.episode_id, command.c.number == ordered.number)
        ).one()
    effect = row.effect if row.applied_ms is not None else None
    return replace(ordered, effect=effect, is_held=row.state in (*LEASED, "queued"))
