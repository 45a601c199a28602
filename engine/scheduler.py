"""Who joins, who steps, who leaves. No thread and no clock: the engine brings both.

Joining: at most `slots` utterances are in flight. The others wait, live ones before batch ones,
among equals the earliest first.

Stepping: a batch is filled in this order.

1. Live utterances that have made no sound yet: somebody stares at a silent player.
2. Live utterances whose runway, the sound made so far minus the time since it began, is below
   RUNWAY_S; the shortest runway first (earliest deadline first: that is when the player runs dry).
3. All others in turn, the one that has not stepped for the longest time first.

An utterance whose reader is behind (parked) is passed over and keeps its slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from engine.base import SAMPLE_RATE_HZ
from engine.utterance import Utterance

RUNWAY_S = 5.0


@dataclass(slots=True, eq=False)
class _Entry:
    utterance: Utterance
    number: int
    give_up_at: float | None  # when it has waited for a slot long enough
    turn: int = 0  # grows with every turn anybody gets; 0: none yet
    sound_at: float | None = None  # when its first sound was made

    def __lt__(self, other: _Entry) -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[bool, int]:
        return not self.utterance.request.live, self.number


class Scheduler:
    """The utterances of one engine, waiting and in flight. Not thread-safe.

    Args:
        slots: utterances in flight at once.
        queue: utterances that may wait for a slot.
    """

    def __init__(self, slots: int, queue: int) -> None:
        self._slots = slots
        self._queue = queue
        self._numbers = 0
        self._turns = 0
        self._waiting: list[_Entry] = []  # heap
        self._active: list[_Entry] = []

    @property
    def is_full(self) -> bool:
        """No slot and no place in the queue is free."""
        here = sum(not e.utterance.is_done for e in (*self._active, *self._waiting))
        return here >= self._slots + self._queue

    @property
    def owed(self) -> int:
        """Utterances that a step could advance now, or that could take a slot now."""
        free = self._slots - len(self._active)
        runnable = sum(_is_runnable(entry) for entry in self._active)
        return runnable + min(free, len(self._waiting))

    def add(self, utterance: Utterance, *, give_up_at: float | None = None) -> None:
        """Put an utterance in the queue; the caller has looked at `is_full`."""
        self._numbers += 1
        heappush(self._waiting, _Entry(utterance, self._numbers, give_up_at))

    def settle(self, now: float) -> tuple[list[Utterance], list[Utterance]]:
        """Let the done leave and the waiting join.

        Returns:
            Utterances that left a slot, and utterances that waited longer than they may.
        """
        left = [e.utterance for e in self._active if e.utterance.is_done]
        if left:
            self._active = [e for e in self._active if not e.utterance.is_done]
        late: list[Utterance] = []
        if any(e.utterance.is_done or _is_late(e, now) for e in self._waiting):
            late = [e.utterance for e in self._waiting if _is_late(e, now)]
            self._waiting = sorted(
                e for e in self._waiting if not (e.utterance.is_done or _is_late(e, now))
            )
        while self._waiting and len(self._active) < self._slots:
            self._active.append(heappop(self._waiting))
        return left, late

    def next_batch(self, size: int, now: float) -> list[Utterance]:
        """At most `size` utterances to advance, the most urgent first."""
        runnable = [entry for entry in self._active if _is_runnable(entry)]
        runnable.sort(key=lambda entry: _urgency(entry, now))
        for entry in runnable[:size]:
            self._turns += 1
            entry.turn = self._turns
        return [entry.utterance for entry in runnable[:size]]

    def stepped(self, now: float) -> None:
        """A step is over: note who made their first sound."""
        for entry in self._active:
            if entry.sound_at is None and entry.utterance.sound_samples:
                entry.sound_at = now

    def wake_at(self) -> float | None:
        """When the next waiting utterance gives up, or None."""
        return min((e.give_up_at for e in self._waiting if e.give_up_at is not None), default=None)

    def drain(self) -> list[Utterance]:
        """Everybody, who then is no longer here."""
        everybody = [entry.utterance for entry in (*self._active, *self._waiting)]
        self._active, self._waiting = [], []
        return everybody


def _is_runnable(entry: _Entry) -> bool:
    return not (entry.utterance.is_done or entry.utterance.is_parked)


def _is_late(entry: _Entry, now: float) -> bool:
    return entry.give_up_at is not None and entry.give_up_at <= now


def _urgency(entry: _Entry, now: float) -> tuple[int, float, int]:
    if entry.utterance.request.live:
        if entry.sound_at is None:
            return 0, 0.0, entry.number
        runway_s = entry.utterance.sound_samples / SAMPLE_RATE_HZ - (now - entry.sound_at)
        if runway_s < RUNWAY_S:
            return 1, runway_s, entry.number
    return 2, entry.turn, entry.number
