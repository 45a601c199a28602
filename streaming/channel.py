"""One session in one process: its entries as frames, and its listeners.

A listener is in one of three places:

    lane     at the live edge: gets every entry with one write, together with all others
    cursor   behind: joining, or slower than the speech; only an index is kept for it, never a copy
    held     has all that its client allowed; an `ack` or `flow` moves it on

The way from cursor to lane is one event-loop step, so nothing is lost or sent twice. A slow
listener becomes a cursor and costs the others nothing.

There are two lanes for each codec: the edge lane writes every entry at once, the relaxed lane, for
clients with seconds of sound in hand, one second of them at a time.

How far a client is behind is known from its acks, not from buffers, which swallow minutes of Opus:
while no mark is open, sending a chunk sets one, and the ack that covers it closes it.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from streaming.chunk_log import BEGINNING, Entry, LogInfo, Position
from streaming.counters import Counters
from streaming.frames import (
    OPUS_RATE_HZ,
    OPUS_SKIP,
    PCM_RATE_HZ,
    TICKS_PER_MS,
    TICKS_PER_S,
    U32_MAX,
    Codec,
    Kind,
    as_pcm,
    binary_message,
    text_message,
    unpack_header,
)
from streaming.limits import Bucket, Limits
from streaming.listener import Ack, Start

log = logging.getLogger(__name__)

BACKLOG_BYTES = 16_384  # unsent bytes with which a listener leaves its lane
SLICE_BYTES = 32_768  # what a cursor may be written at one look
RUN_SLOTS = 8  # entries that a lane gets in one write
RELAXED_SLOTS = 64  # the same of a relaxed lane
RELAXED_TICKS = TICKS_PER_S  # what a relaxed lane waits for
RELAXED_S = 1.0  # but no longer than this
RELAX_MS, HURRY_MS = 3000, 2000  # sound in hand to enter the relaxed lane, and to leave it
WRITES_PER_STEP = 500  # then pings and joins get their turn
LOOK_S = 0.05  # how often cursors are looked at
BURST_TICKS = 2 * TICKS_PER_S
PCM_KEEP_CHUNKS = 300  # as the log: 60 s of 200 ms chunks
PACE = {Codec.OPUS: 8, Codec.PCM: 4}  # times real time, after the burst
STUCK_S = 20.0
CONTINUOUS_MS = 100  # silence that a whole session may have and still count as unbroken
STEP_DOWN_S = 5.0  # of lag: a PCM listener gets Opus
JUMP_S = 10.0  # of lag: a listener who wants to be at the live edge is brought there
NAME = {Codec.OPUS: "opus", Codec.PCM: "pcm"}
RATE_HZ = {Codec.OPUS: OPUS_RATE_HZ, Codec.PCM: PCM_RATE_HZ}


class Outlet(Protocol):
    """Where a listener's bytes go: a WebSocket connection, seen from the hub."""

    def write(self, frame: bytes) -> int:
        """Send a complete WebSocket frame, or drop it after a close; as `backlog` after it."""

    def backlog(self) -> int:
        """Bytes that the transport has not sent yet."""


@dataclass(slots=True, eq=False)
class Slot:
    """One log entry in memory. `begin` and `end` are ticks; an event's are its place in time."""

    seq: int
    k: int
    frame: bytes  # Opus or event, as a WebSocket frame
    audio: bool
    seg: int
    begin: int
    end: int
    kind: str = ""  # of an event
    void: bool = False
    came: float = 0.0  # monotonic s

    @property
    def position(self) -> Position:
        """Where the entry stands in its log."""
        return (self.seq, self.k)


class Purse(Protocol):
    """Bytes that somebody with several listeners may still be sent."""

    def left(self) -> float:
        """What is there."""

    def spend(self, size_bytes: int) -> None:
        """Take it; may go below zero by one write."""


@dataclass(slots=True, eq=False)
class Lane:
    """Listeners who have the same entries and get the next ones with the same write."""

    codec: Codec
    words: bool
    relaxed: bool
    at: int = 0  # slots up to here have been written
    since: float | None = None  # when the first slot began to wait (relaxed lanes)
    # In the order of joining, which is roughly that of memory: cache misses are what a walk costs.
    members: dict[Subscription, None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Subscription:
    """One listener of one session: what it has got (`index`) and what it may get (`limit`)."""

    outlet: Outlet
    sid: str
    codec: Codec
    fallback: bool
    words: bool
    ahead: int  # ticks
    on_end: Callable[[str], None]  # called with an error code when the hub gives the listener up
    live: bool = False  # the policy: rather lose sound than be late
    hears: bool = True  # counts as a listener; captions beside the sound do not
    ack_s: float = 0.0  # how often the client acknowledges
    egress: Bucket = field(default_factory=lambda: Bucket(Limits().egress))
    purse: Purse | None = None
    floor: int = 0  # ticks: where it began, so that a player that has not started is no holdup
    played: int = 0  # ticks
    limit: int = 0
    index: int = 0
    place: str = "cursor"
    lane: Lane | None = None
    replaying: bool = True
    relaxed: bool = False
    lower: bool = False  # the next PCM chunk becomes Opus
    credit: float = BURST_TICKS
    looked_at: float = 0.0
    moved_at: float = 0.0
    behind_at: float | None = None  # when it was first seen as a cursor, after its replay
    backlog: int = 0
    mark_at: float | None = None  # when chunk `mark_seq` was sent, until an ack covers it
    mark_seq: int = 0
    has_acked: bool = False
    has_sounded: bool = False
    under: tuple[int, int] = (0, 0)
    asked_at: float = 0.0  # monotonic s
    write: Callable[[bytes], int] = field(init=False)  # the outlet's

    def __post_init__(self) -> None:
        """Have it at hand."""
        self.write = self.outlet.write

    @property
    def continuity(self) -> str:
        """Whether it was heard without a gap, as far as its acks say: ok, broken or na."""
        if not self.has_acked:
            return "na"
        return "ok" if self.under[1] <= CONTINUOUS_MS else "broken"

    def allow(self, play_ms: int | None, ahead_ms: int | None, now: float) -> None:
        """Take the progress of an `ack` (`play_ms`) or the wish of a `flow` (`ahead_ms`)."""
        if play_ms is not None:
            self.played = max(self.floor, play_ms * TICKS_PER_MS)
        if ahead_ms is not None:
            self.ahead = ahead_ms * TICKS_PER_MS
        self.limit = self.played + self.ahead
        self.moved_at = now

    def mark(self, seq: int, now: float) -> None:
        """Chunk `seq` has been sent."""
        if self.mark_at is None:
            self.mark_at, self.mark_seq = now, seq

    def refill(self, now: float) -> None:
        """Add the pace's credit since the last look."""
        gained = (now - self.looked_at) * TICKS_PER_S * PACE[self.codec]
        self.credit = min(BURST_TICKS, self.credit + gained)
        self.looked_at = now

    def stuck(self, now: float) -> bool:
        """Say if the client has neither acknowledged nor taken a byte for `STUCK_S`."""
        waiting = self.outlet.backlog()
        if not waiting or waiting < self.backlog:
            self.moved_at = now
        self.backlog = waiting
        return now > self.moved_at + STUCK_S


class Channel:
    """One session in this process."""

    def __init__(self, sid: str, counters: Counters) -> None:
        self.sid = sid
        self.info: LogInfo | None = None
        self.slots: list[Slot] = []
        self.audio: list[int] = []  # indices of the effective chunks among them
        self.pcm: dict[int, bytes] = {}
        self.subscriptions: set[Subscription] = set()
        self.lanes: dict[tuple[Codec, bool, bool], Lane] = {}
        self.cursors: set[Subscription] = set()
        self.live = asyncio.Event()  # the log exists
        self.news = asyncio.Event()
        self.unused_since = time.monotonic()
        self.state = "generating"
        self.epoch = 1
        self._counters = counters

    @property
    def head(self) -> Position:
        """Position of the last entry here."""
        return self.slots[-1].position if self.slots else BEGINNING

    @property
    def skip(self) -> int:
        """Samples at 48 kHz that the session's Opus encoder prepends."""
        return int(self.info.meta.get("skip", OPUS_SKIP)) if self.info else OPUS_SKIP

    @property
    def wants_pcm(self) -> bool:
        """Say if somebody listens to PCM."""
        return any(sub.codec is Codec.PCM for sub in self.subscriptions)

    def extend(self, entries: Sequence[Entry]) -> None:
        """Take entries over from the log; what is here already is passed over."""
        head, now = self.head, time.monotonic()
        for entry in entries:
            if entry.position > head:
                slot = self._chunk(entry) if entry.header else self._event(entry)
                slot.came = now
                self.slots.append(slot)

    def keep_pcm(self, samples: Sequence[tuple[int, bytes]]) -> None:
        """Make frames of the log's PCM where its chunks are here; keep no more than it does."""
        for seq, pcm in samples:
            at = bisect.bisect_left(self.slots, (seq, 0), key=lambda slot: slot.position)
            if at < len(self.slots) and self.slots[at].seq == seq:
                self.pcm[seq] = binary_message(as_pcm(_header_of(self.slots[at].frame)), pcm)
        while len(self.pcm) > PCM_KEEP_CHUNKS:
            del self.pcm[next(iter(self.pcm))]

    def find(self, start: Start, codec: Codec) -> int:
        """Return the index of the first slot for a listener who wants to begin at `start`."""
        if start.position is not None:
            return bisect.bisect_right(self.slots, start.position, key=lambda slot: slot.position)
        if start.at == "start":
            return 0
        place = len(self.audio)
        if start.ms is not None:
            ticks = start.ms * TICKS_PER_MS
            place = bisect.bisect_right(self.audio, ticks, key=lambda i: self.slots[i].end)
        if codec is Codec.OPUS:
            place = max(0, place - 1)  # run-up: an Opus decoder needs 80 ms to settle
        return self.audio[place] if place < len(self.audio) else len(self.slots)

    def caption(self, index: int) -> list[bytes]:
        """Frames of the events of the sentence under `index` that come before it."""
        at = self._next_audio(index)
        seg = self.slots[self.audio[at]].seg if at < len(self.audio) else -1
        frames: list[bytes] = []
        for slot in reversed(self.slots[:index]):
            if slot.seg not in (seg, -1):
                break
            if slot.kind in ("seg", "w") and not slot.void:
                frames.append(slot.frame)
        return frames[::-1]

    def cut_after(self, index: int) -> bool:
        """Say if a listener who goes on at slot `index` is told of a cut."""
        return any(slot.kind == "cut" for slot in self.slots[index:])

    def opened(self, index: int) -> dict[str, Any]:
        """Return what `opened` says about the session and about a start at `index`."""
        first = self._place(0)
        end = self.slots[self.audio[-1]].end if self.audio else 0
        return {
            "epoch": self.epoch,
            "first": first,
            "head": {"seq": max(-1, self.head[0]), "ms": end // TICKS_PER_MS},
            "from": self._place(self._next_audio(index)),
            "state": self.state,
        }

    def _next_audio(self, index: int) -> int:
        """Where in `audio` the first chunk at or after slot `index` stands."""
        return bisect.bisect_left(self.audio, index)

    def _place(self, at: int) -> dict[str, int]:
        """Position and time of the effective chunk number `at`, or of the one that will come."""
        if at < len(self.audio):
            slot = self.slots[self.audio[at]]
            return {"seq": slot.seq, "ms": slot.begin // TICKS_PER_MS}
        end = self.slots[self.audio[-1]].end if self.audio else 0
        return {"seq": max(-1, self.head[0]) + 1, "ms": end // TICKS_PER_MS}

    def join(self, sub: Subscription, index: int, now: float) -> None:
        """Begin to serve `sub` from `index` on."""
        sub.index, sub.looked_at, sub.moved_at = index, now, now
        sub.floor = sub.played = self._place(self._next_audio(index))["ms"] * TICKS_PER_MS
        sub.limit = sub.played + sub.ahead
        self.subscriptions.add(sub)
        self._counters.opened += 1
        self._to_cursor(sub)
        self.pump(sub, now)
        if sub.mark_at is not None:  # sound was there, and has been sent
            self._counters.open_to_frame.observe(time.monotonic() - sub.asked_at)

    def leave(self, sub: Subscription) -> None:
        """Stop serving `sub`."""
        self.subscriptions.discard(sub)
        self._counters.continuous[sub.continuity] += 1
        self._move(sub, "left")
        if not self.subscriptions:
            self.unused_since = time.monotonic()

    def allow(self, sub: Subscription, ahead_ms: int, now: float) -> None:
        """Take a `flow` of `sub` and go on with it if it waited for one."""
        sub.allow(None, ahead_ms, now)
        self._go_on(sub, now)

    def ack(self, sub: Subscription, ack: Ack, now: float) -> None:
        """Take an `ack` of `sub`: it may go on, be late, or change its lane."""
        sub.allow(ack.play_ms, None, now)
        if sub.mark_at is not None and ack.seq >= sub.mark_seq:
            self._counters.ack.observe(now - sub.mark_at)
            sub.mark_at = None
        sub.has_acked = True
        if ack.ttfa_ms is not None and not sub.has_sounded:
            sub.has_sounded = True
            self._counters.click_to_sound.observe(ack.ttfa_ms / 1000)
        ran_dry = self._count_underruns(sub, ack)
        if sub.relaxed != (not ran_dry and ack.buf_ms >= (HURRY_MS if sub.relaxed else RELAX_MS)):
            sub.relaxed = not sub.relaxed
            if sub.lane is not None:
                self._to_cursor(sub)
                self.pump(sub, now)
        self._go_on(sub, now)

    def _count_underruns(self, sub: Subscription, ack: Ack) -> bool:
        """Count what is new among the underruns of an ack; say if there is any."""
        if ack.under is None:
            return False
        times, ms = (max(0, now - before) for now, before in zip(ack.under, sub.under, strict=True))
        sub.under = ack.under
        self._counters.underruns += times
        self._counters.underrun_ms += ms
        return times > 0

    def _go_on(self, sub: Subscription, now: float) -> None:
        if sub.place == "held":
            self._to_cursor(sub)
            self.pump(sub, now)

    def pump(self, sub: Subscription, now: float) -> None:
        """Write to a cursor what its transport, its pace and its client allow."""
        sub.refill(now)
        if sub.outlet.backlog():
            return
        place, frames = self._collect(sub, now)
        if place == "lane" and sub.replaying:
            sub.replaying = False
            seq = max(-1, self.head[0])
            frames.append(message({"t": "caught_up", "sid": self.sid, "seq": seq}))
        if place != sub.place:
            self._move(sub, place)
        if frames:
            self._write(sub, b"".join(frames))

    def _collect(self, sub: Subscription, now: float) -> tuple[str, list[bytes]]:
        """Advance `sub` as far as it may go now; return its place then and the frames for it."""
        frames: list[bytes] = []
        room = min(SLICE_BYTES, sub.egress.refill(now))
        if sub.purse is not None:
            room = min(room, sub.purse.left())
        size, place = 0, "lane"
        while sub.index < len(self.slots):
            slot = self.slots[sub.index]
            if slot.audio and not slot.void:
                if slot.end > sub.limit:
                    place = "held"
                    break
                if size >= room or (sub.replaying and sub.credit <= 0):
                    place = "cursor"
                    break
                sub.credit -= slot.end - slot.begin
                sub.mark(slot.seq, now)
            frame = self._frame(slot, sub)
            sub.index += 1
            frames.append(frame)
            size += len(frame)
        sub.egress.tokens -= size
        if sub.purse is not None:
            sub.purse.spend(size)
        return place, frames

    def look(self, now: float) -> None:
        """Serve the cursors; the clients that take nothing are reported as stuck."""
        for sub in list(self.cursors):
            if sub.stuck(now):
                self._counters.stuck += 1
                self.leave(sub)
                sub.on_end("slow_consumer")
            else:
                self.pump(sub, now)

    def watch(self, now: float) -> None:
        """Step down or bring forward who lags; called about once a second."""
        for sub in tuple(self.subscriptions):
            if not (sub.live or sub.codec is Codec.PCM):
                continue  # behind, without loss, is what a complete Opus listener wants
            lag = self.lag(sub, now)
            if lag > STEP_DOWN_S and sub.codec is Codec.PCM and sub.fallback and not sub.lower:
                sub.lower = True
                if sub.lane is not None:
                    self._to_cursor(sub)
            if lag > JUMP_S and sub.live:
                self._jump(sub, now)

    def lag(self, sub: Subscription, now: float) -> float:
        """Seconds by which `sub` is later than its pace and its allowance make it.

        The larger of two: how long ago it should have acknowledged what it was sent, and how long
        the oldest chunk has waited that its transport did not take.
        """
        late = waits = 0.0
        if sub.has_acked and sub.mark_at is not None:
            late = now - sub.mark_at - sub.ack_s
        if sub.place == "cursor" and not sub.replaying and sub.index < len(self.slots):
            if sub.behind_at is None:
                sub.behind_at = now
            # What waited longer was held back by the client itself until then.
            waits = now - max(sub.behind_at, self.slots[sub.index].came)
        return max(0.0, late, waits)

    def _jump(self, sub: Subscription, now: float) -> None:
        """Leave out what `sub` has not got, up to the live edge."""
        index = self.find(Start(at="live"), sub.codec)
        skipped = [slot.seq for slot in self.slots[sub.index : index] if slot.audio]
        if not skipped:
            return
        self._counters.skipped += 1
        gap = {"t": "gap", "sid": self.sid, "from_seq": skipped[0], "to_seq": skipped[-1]}
        # States and cuts among what is left out still count; captions of its sentences do not.
        kept = [
            slot.frame
            for slot in self.slots[sub.index : index]
            if slot.kind and slot.kind not in ("seg", "w")
        ]
        frames = [message({**gap, "why": "lagging"}), *kept, *self.caption(index)]
        sub.index, sub.mark_at, sub.replaying = index, None, False
        sub.floor = self._place(self._next_audio(index))["ms"] * TICKS_PER_MS
        sub.limit = max(sub.limit, sub.floor + sub.ahead)
        self._to_cursor(sub)
        self._write(sub, b"".join(frames))

    async def walk(self, now: float) -> None:
        """Write all new slots to the lanes; gives way to other tasks after each 500 writes."""
        more = True
        while more:
            more = False
            for lane in list(self.lanes.values()):
                last = self._due(lane, now)
                if last > lane.at:
                    await self._walk_lane(lane, last, now)
                    more = more or last < len(self.slots)
            if more:
                await asyncio.sleep(0)  # lets uvloop send, so that `backlog` is true again

    def wait_s(self, now: float) -> float | None:
        """How long the walk and the look have time if no news come; None: for ever."""
        if self.cursors:
            return LOOK_S
        lanes = (lane for lane in self.lanes.values() if lane.members)
        waiting = [lane.since for lane in lanes if lane.since is not None]
        return max(0.0, min(waiting) + RELAXED_S - now) if waiting else None

    def _due(self, lane: Lane, now: float) -> int:
        """Up to which slot `lane` is to be written now."""
        if not lane.members:
            return lane.at
        if not lane.relaxed:
            return min(len(self.slots), lane.at + RUN_SLOTS)
        new = self.slots[lane.at : lane.at + RELAXED_SLOTS]
        if not new:
            return lane.at
        if lane.since is None:
            lane.since = now
        ticks = sum(slot.end - slot.begin for slot in new if slot.audio)
        # What is no sound and no caption must not wait: cuts, states, the end.
        urgent = any(not slot.audio and slot.kind not in ("seg", "w") for slot in new)
        if urgent or ticks >= RELAXED_TICKS or now >= lane.since + RELAXED_S:
            return lane.at + len(new)
        return lane.at

    async def _walk_lane(self, lane: Lane, last: int, now: float) -> None:
        """Write the slots up to `last` to everybody in `lane` who stands before them."""
        first, lane.at, lane.since = lane.at, last, None
        run = [slot for slot in self.slots[first:last] if not slot.void]
        audio = [slot for slot in run if slot.audio]
        end = max((slot.end for slot in audio), default=0)
        frames = [self._shared(slot, lane.codec) for slot in run if lane.words or slot.kind != "w"]
        joined = None if None in frames else b"".join(filter(None, frames))
        written, began = 0, time.monotonic()
        for sub in tuple(lane.members):
            if sub.index >= last or sub.lane is not lane:
                continue  # joined or left while a walk gave way
            if joined is None or sub.index != first or sub.limit < end:
                self._to_cursor(sub)
                self.pump(sub, now)
                continue
            sub.index = last
            if sub.mark_at is None and audio:
                sub.mark_at, sub.mark_seq = now, audio[-1].seq
            if sub.write(joined) > BACKLOG_BYTES:
                self._counters.left_lane += 1
                self._to_cursor(sub)
            written += 1
            if not written % WRITES_PER_STEP:
                await asyncio.sleep(0)
        self._counters.writes += written
        self._counters.bytes += written * len(joined or b"")
        if written and audio:
            done = time.monotonic()
            self._counters.fanout.observe(done - began)
            self._counters.gateway_to_socket.observe(done - audio[-1].came)

    def _shared(self, slot: Slot, codec: Codec) -> bytes | None:
        """The frame of `slot` for a whole lane; None: each listener must be looked at."""
        if slot.audio and codec is Codec.PCM and _has_payload(slot):
            return self.pcm.get(slot.seq)
        return slot.frame

    def _frame(self, slot: Slot, sub: Subscription) -> bytes:
        """The frame of `slot` for `sub`; empty if it gets none."""
        if slot.void or (slot.kind == "w" and not sub.words):
            return b""
        if sub.codec is Codec.OPUS or not _has_payload(slot):
            return slot.frame
        if sub.lower:
            return self._step_down(sub, slot)
        if slot.seq in self.pcm:
            return self.pcm[slot.seq]
        if sub.fallback:
            return self._step_down(sub, slot)
        return self._gap(sub, slot)

    def _step_down(self, sub: Subscription, slot: Slot) -> bytes:
        sub.codec = Codec.OPUS
        self._counters.codec_down += 1
        codec = {"t": "codec", "sid": self.sid, "codec": "opus", "rate": OPUS_RATE_HZ}
        return message({**codec, "skip": self.skip, "from_seq": slot.seq}) + slot.frame

    def _gap(self, sub: Subscription, slot: Slot) -> bytes:
        """The PCM is gone and the client knows no Opus: go on at the oldest PCM there is."""
        audio = [s for s in self.slots[sub.index :] if s.audio]
        kept = next((s for s in audio if s.seq in self.pcm), None)
        to_seq = kept.seq - 1 if kept else audio[-1].seq
        index = bisect.bisect_right(self.slots, (to_seq, 0), key=lambda s: s.position)
        sub.index = index - 1  # the caller goes on with the next slot
        gap = {"t": "gap", "sid": self.sid, "from_seq": slot.seq, "to_seq": to_seq}
        return message({**gap, "why": "expired"})

    def _write(self, sub: Subscription, frame: bytes) -> None:
        self._counters.writes += 1
        self._counters.bytes += len(frame)
        sub.write(frame)

    def _to_cursor(self, sub: Subscription) -> None:
        self._move(sub, "cursor")
        self.news.set()  # the hub begins to look

    def _move(self, sub: Subscription, place: str) -> None:
        if sub.lane is not None:
            del sub.lane.members[sub]
            sub.lane = None
        self.cursors.discard(sub)
        sub.place = place
        if place == "lane":
            key = (sub.codec, sub.words, sub.relaxed)
            lane = self.lanes.setdefault(key, Lane(*key))
            if not lane.members:
                lane.at, lane.since = sub.index, None
            lane.members[sub] = None
            sub.lane = lane
        elif place == "cursor":
            self.cursors.add(sub)
            return
        sub.behind_at = None

    def _chunk(self, entry: Entry) -> Slot:
        header = unpack_header(entry.header)
        frame = binary_message(entry.header, entry.body)
        self.epoch = header.epoch
        end = header.pts + header.dur
        audio = header.kind is not Kind.END
        if audio:
            self.audio.append(len(self.slots))
            if self.live.is_set():  # not for the past of a session
                late_ms = (time.time_ns() // 1_000_000 - header.emit_ms) & U32_MAX
                self._counters.emit_to_gateway.observe(late_ms / 1000 if late_ms < 1 << 31 else 0)
        return Slot(entry.seq, entry.k, frame, audio, header.seg, header.pts, end)

    def _event(self, entry: Entry) -> Slot:
        event = json.loads(entry.body)
        kind, seg = event["t"], event.get("seg", -1)
        slot = Slot(entry.seq, entry.k, text_message(entry.body), False, seg, 0, 0, kind)
        if kind == "cut":
            self._cut(event["e"], event["from_seg"])
            if self.live.is_set():  # not for the past of a session
                about = {"sid": self.sid, "position": entry.seq, "seg": event["from_seg"]}
                log.info("session cut", extra={**about, "why": event["why"]})
        elif kind == "state":
            self.state = event["state"]
        elif kind == "end":
            self.state = "ended"
        return slot

    def _cut(self, epoch: int, from_seg: int) -> None:
        self.epoch = epoch
        for slot in self.slots:
            slot.void = slot.void or slot.seg >= from_seg
        self.audio = [index for index in self.audio if not self.slots[index].void]
        for sub in self.subscriptions:
            if sub.place == "held":  # what it waited to be allowed may be void now
                self._to_cursor(sub)


def message(fields: dict[str, Any]) -> bytes:
    """Return a JSON message as a WebSocket frame."""
    return text_message(json.dumps(fields, separators=(",", ":")).encode())


def _header_of(frame: bytes) -> bytes:
    """The packed frame header inside a WebSocket binary frame."""
    start = 2 if frame[1] < 126 else 4 if frame[1] == 126 else 10
    return frame[start : start + 32]


def _has_payload(slot: Slot) -> bool:
    """Say if the slot's frame depends on the codec."""
    return slot.audio and _header_of(slot.frame)[2] != Codec.NONE
