"""One listener's way through a session over plain HTTP, where what was sent cannot be taken back.

A WebSocket player holds a buffer and empties it when a `cut` comes. The buffer of an `<audio>`
element or of VLC is out of reach, so here the server keeps the lead small: a burst at the start,
then little more than the sound's own pace, and only as far ahead as a network may stumble. What a
cut makes void and was not sent by then is never sent.

After a cut listeners are joined by sentence, not by the clock: who was sent a sentence as a whole
goes on with the next one, who was in the middle of one hears it again from its start, in the new
epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from streaming.channel import Channel, Slot, Subscription
from streaming.errors import StreamingError
from streaming.frames import HEADER_BYTES, TICKS_PER_MS, TICKS_PER_S, Codec, Flag, unpack_header

BURST_S = 2.0
PACE = 1.25  # times the sound's own, until the lead is reached
LEAD_S = 10.0
RUN_UP = 2  # chunks before a start, from which a decoder settles
RUN_UP_TICKS = 2 * TICKS_PER_S // 5  # it needs no more than this of them
NEVER_STARTED = -1


class ChannelLost(StreamingError):
    """This process gave the session up: its log holds what cannot be read. Ask again."""


class _Nowhere:
    """The outlet of a subscription that reads the channel by itself."""

    def write(self, frame: bytes) -> int:
        """Drop it."""
        return 0

    def backlog(self) -> int:
        """Nothing waits."""
        return 0


@dataclass(slots=True)
class Pace:
    """How much may have been sent by now, as if a listener played from the first byte on.

    A listener who ran dry plays later by as much, so after a stall there is a burst again.
    """

    now: Callable[[], float] = time.monotonic
    _start: float = 0.0
    _began: float = 0.0
    _sent_s: float = 0.0

    def sent(self, ticks: int) -> None:
        """So much sound has left."""
        now = self.now()
        if not self._sent_s:
            self._start = self._began = now
        self._start = max(self._start, now - self._sent_s)
        self._sent_s += ticks / TICKS_PER_S

    def wait_s(self) -> float:
        """How long the next chunk has to wait; 0 if it may leave."""
        if not self._sent_s:
            return 0.0
        played_s = min(self._sent_s, self.now() - self._start)
        lead_s = min(LEAD_S, BURST_S + (PACE - 1) * (self.now() - self._began))
        return max(0.0, self._sent_s - played_s - lead_s)


class Tap:
    """Reads a channel in order: what counts, and each sentence once.

    Use it as a context manager; it keeps the channel in memory meanwhile.

    Args:
        channel: must be live.
        pace: None gives everything as soon as it is there, and what a cut makes void later too.
        codec: PCM lets the hub fetch samples, too (`pcm_of`).
        lingers: waits for more after the end as well: the recording is named then.
        hears: counts as a listener.

    Attributes:
        index: of the next slot.
        is_over: the session has ended and everything was given.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        pace: Pace | None = None,
        lingers: bool = False,
        codec: Codec = Codec.OPUS,
        hears: bool = True,
    ) -> None:
        self.channel = channel
        self.index = 0
        self.is_over = False
        self._pace = pace
        self._lingers = lingers
        self._is_lost = False
        self._seg = NEVER_STARTED  # of the last chunk given
        self._is_whole = False  # that chunk was its sentence's last
        self._before = (NEVER_STARTED, False)  # the same of the chunk before it
        self._resume = NEVER_STARTED  # sentences below this one were given before a cut
        self._subscription = Subscription(
            outlet=_Nowhere(),
            sid=channel.sid,
            codec=codec,
            fallback=True,
            words=True,
            ahead=0,
            on_end=self._lose,
            hears=hears,
            place="http",
        )

    @property
    def is_at_head(self) -> bool:
        """Nothing more is there now."""
        return self.index >= len(self.channel.slots)

    def __enter__(self) -> Self:
        """Hold the channel."""
        self.channel.subscriptions.add(self._subscription)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let it go."""
        self.channel.leave(self._subscription)

    def seek(self, ms: int | None) -> int:
        """Begin with the chunk that holds `ms`; None: `BURST_S` before the live edge.

        Returns:
            Ticks from the beginning of that chunk to `ms`.
        """
        slots, audio = self.channel.slots, self.channel.audio
        end = slots[audio[-1]].end if audio else 0
        ticks = max(0, end - int(BURST_S * TICKS_PER_S)) if ms is None else ms * TICKS_PER_MS
        self.index = next((i for i in audio if slots[i].end > ticks), len(slots))
        if self.index == len(slots) or ms is None:
            return 0
        return max(0, ticks - slots[self.index].begin)

    async def next(self) -> tuple[int, Slot] | None:
        """The next slot that counts, and its index; None when the session is over.

        It counts at this moment, and was not given before: use it before anything else is awaited.

        Raises:
            ChannelLost: nothing more will come by this channel.
        """
        while True:
            if self._is_lost:
                raise ChannelLost("the session cannot be read here at the moment; ask again")
            if self.is_at_head:
                if self.is_over and not self._lingers:
                    return None
                await _news(self.channel)
                continue
            slot = self.channel.slots[self.index]
            if slot.audio and (wait_s := self._wait_s(slot)):
                await _news(self.channel, wait_s)
                continue
            self.index += 1
            self._subscription.index = self.index  # for whoever looks at the listeners
            if self._counts(slot):
                return self.index - 1, slot

    async def next_chunk(self) -> tuple[int, Slot] | None:
        """The next sound; see `next`."""
        while (found := await self.next()) is not None:
            if found[1].audio:
                return found
        return None

    def take_back(self) -> None:
        """The chunk that was given last is not sent after all: a cut made it void meanwhile."""
        self._seg, self._is_whole = self._before

    def _wait_s(self, slot: Slot) -> float:
        if self._pace is None or slot.void or slot.seg < self._resume or self._has_ended():
            return 0.0
        return self._pace.wait_s()

    def _has_ended(self) -> bool:
        """Nothing can be cut any more, so nothing is gained by waiting."""
        return self.channel.state in ("ended", "failed")

    def _counts(self, slot: Slot) -> bool:
        if slot.kind == "cut":
            self._cut(slot)
        elif slot.kind == "end" or (slot.kind == "state" and _state(slot) == "failed"):
            self.is_over = True
        if slot.void or (slot.audio and slot.seg < self._resume):
            return False
        if slot.audio:
            self._before = self._seg, self._is_whole
            self._seg, self._resume = slot.seg, NEVER_STARTED
            self._is_whole = bool(unpack_header(header_of(slot)).flags & Flag.SEGMENT_END)
            if self._pace is not None:
                self._pace.sent(slot.end - slot.begin)
        return True

    def _cut(self, slot: Slot) -> None:
        event = json.loads(body_of(slot))
        if event["why"] == "skip":
            self._resume = NEVER_STARTED  # wherever the owner wants to go on
        elif self._seg >= event["from_seg"]:
            self._resume = self._seg + self._is_whole

    def _lose(self, code: str) -> None:
        self._is_lost = True
        self.channel.news.set()


def run_up(channel: Channel, index: int, count: int = RUN_UP) -> list[Slot]:
    """Up to `count` chunks that the encoder made right before the one at `index`.

    None where it was a new encoder. A pure function of the log: what a cut made void counts, for
    the encoder did speak it.
    """
    slots = channel.slots
    found: list[Slot] = []
    slot, at, ticks = slots[index], index, 0
    while len(found) < count and ticks < RUN_UP_TICKS and not _is_new(slot):
        at = next((i for i in range(at - 1, -1, -1) if slots[i].audio), -1)
        if at < 0:
            break
        slot = slots[at]
        ticks += slot.end - slot.begin
        found.append(slot)
    return found[::-1]


def _is_new(slot: Slot) -> bool:
    """Its encoder began with it."""
    return bool(unpack_header(header_of(slot)).flags & Flag.DISCONTINUITY)


def _state(slot: Slot) -> str:
    """What a `state` event says."""
    return str(json.loads(body_of(slot))["state"])


def header_of(slot: Slot) -> bytes:
    """The packed header of an audio slot."""
    return _message_of(slot.frame)[:HEADER_BYTES]


def body_of(slot: Slot) -> bytes:
    """Opus payload of an audio slot, JSON of an event."""
    message = _message_of(slot.frame)
    return message if slot.kind else message[HEADER_BYTES:]


def pcm_of(channel: Channel, slot: Slot) -> bytes | None:
    """The samples that the engine gave for a chunk; None where the log does not keep them."""
    frame = channel.pcm.get(slot.seq)
    return _message_of(frame)[HEADER_BYTES:] if frame is not None else None


def _message_of(frame: bytes) -> bytes:
    """What an unmasked WebSocket frame carries."""
    return frame[2 if frame[1] < 126 else 4 if frame[1] == 126 else 10 :]


async def _news(channel: Channel, most_s: float | None = None) -> None:
    """Wait until something has come, or so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(most_s):
            await channel.news.wait()
            await asyncio.sleep(0)  # the hub takes `news` back when it has served the others
