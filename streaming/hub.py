"""One log reader, many listeners.

A `Channel` is one session in this process: its entries as frames that are ready for any transport,
and its listeners. A listener is in one of three places:

    lane     at the live edge: gets every entry with one write, together with all others
    cursor   behind: joining, or slower than the speech; only an index is kept for it, never a copy
    held     has all that its client allowed; an `ack` or `flow` moves it on

The way from cursor to lane is one event-loop step, so nothing is lost or sent twice. A slow
listener becomes a cursor and costs the others nothing.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from streaming.chunk_log import BEGINNING, PAGE, Entry, LogInfo, LogReader, Position
from streaming.errors import BadFrame, LogUnavailable
from streaming.frames import (
    OPUS_RATE_HZ,
    OPUS_SKIP,
    PCM_RATE_HZ,
    TICKS_PER_MS,
    TICKS_PER_S,
    Codec,
    Kind,
    as_pcm,
    binary_message,
    text_message,
    unpack_header,
)
from streaming.listener import Start

log = logging.getLogger(__name__)

BACKLOG_BYTES = 16_384  # unsent bytes at which a listener leaves its lane
SLICE_BYTES = 32_768  # what a cursor may be written at one look
RUN_SLOTS = 8  # entries that a lane gets in one write
WRITES_PER_STEP = 500  # then pings and joins get their turn
LOOK_S = 0.05  # how often cursors are looked at
BURST_TICKS = 2 * TICKS_PER_S
PCM_KEEP_CHUNKS = 300  # as the log: 60 s of 200 ms chunks
PACE = {Codec.OPUS: 8, Codec.PCM: 4}  # times real time, after the burst
STUCK_S = 20.0
UNUSED_KEEP_S = 30.0  # how long a channel without listeners stays in memory
NAME = {Codec.OPUS: "opus", Codec.PCM: "pcm"}
RATE_HZ = {Codec.OPUS: OPUS_RATE_HZ, Codec.PCM: PCM_RATE_HZ}


class Outlet(Protocol):
    """Where a listener's bytes go: a WebSocket connection, seen from the hub."""

    def write(self, frame: bytes) -> None:
        """Hand a complete WebSocket frame to the transport; after a close it is dropped."""

    def backlog(self) -> int:
        """Bytes that the transport has not sent yet."""


@dataclass(slots=True)
class Counters:
    """What this process has done, for metrics and tests."""

    writes: int = 0
    bytes: int = 0
    opened: int = 0
    left_lane: int = 0
    codec_down: int = 0
    stuck: int = 0
    errors: int = 0
    closed: dict[int, int] = field(default_factory=dict)


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

    @property
    def position(self) -> Position:
        """Where the entry stands in its log."""
        return (self.seq, self.k)


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
    floor: int = 0  # ticks: where it began, so that a player that has not started is no holdup
    played: int = 0  # ticks
    limit: int = 0
    index: int = 0
    place: str = "cursor"
    replaying: bool = True
    credit: float = BURST_TICKS
    looked_at: float = 0.0
    moved_at: float = 0.0
    backlog: int = 0

    def allow(self, play_ms: int | None, ahead_ms: int | None, now: float) -> None:
        """Take an `ack` (`play_ms`) or a `flow` (`ahead_ms`)."""
        if play_ms is not None:
            self.played = max(self.floor, play_ms * TICKS_PER_MS)
        if ahead_ms is not None:
            self.ahead = ahead_ms * TICKS_PER_MS
        self.limit = self.played + self.ahead
        self.moved_at = now

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


class _Run(NamedTuple):
    """Slots `first` to `last` (exclusive), and the latest tick that their sound reaches."""

    first: int
    last: int
    end: int


class Channel:
    """One session in this process."""

    def __init__(self, sid: str, counters: Counters) -> None:
        self.sid = sid
        self.info: LogInfo | None = None
        self.slots: list[Slot] = []
        self.audio: list[int] = []  # indices of the effective chunks among them
        self.pcm: dict[int, bytes] = {}
        self.subscriptions: set[Subscription] = set()
        self.lanes: dict[tuple[Codec, bool], set[Subscription]] = {}
        self.cursors: set[Subscription] = set()
        self.live = asyncio.Event()  # the log exists
        self.news = asyncio.Event()
        self.unused_since = time.monotonic()
        self.walked = 0  # slots up to here have been written to the lanes
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
        head = self.head
        for entry in entries:
            if entry.position > head:
                self.slots.append(self._chunk(entry) if entry.header else self._event(entry))

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

    def leave(self, sub: Subscription) -> None:
        """Stop serving `sub`."""
        self.subscriptions.discard(sub)
        self.cursors.discard(sub)
        for lane in self.lanes.values():
            lane.discard(sub)
        if not self.subscriptions:
            self.unused_since = time.monotonic()

    def allow(
        self, sub: Subscription, play_ms: int | None, ahead_ms: int | None, now: float
    ) -> None:
        """Take an `ack` or `flow` of `sub` and go on with it if it waited for one."""
        sub.allow(play_ms, ahead_ms, now)
        if sub.place == "held":
            self._to_cursor(sub)
            self.pump(sub, now)

    def pump(self, sub: Subscription, now: float) -> None:
        """Write to a cursor what its transport, its pace and its client allow."""
        sub.refill(now)
        if sub.outlet.backlog():
            return
        place, frames = self._collect(sub)
        if place == "lane" and sub.replaying:
            sub.replaying = False
            seq = max(-1, self.head[0])
            frames.append(message({"t": "caught_up", "sid": self.sid, "seq": seq}))
        if place != sub.place:
            self._move(sub, place)
        if frames:
            self._write(sub, b"".join(frames))

    def _collect(self, sub: Subscription) -> tuple[str, list[bytes]]:
        """Advance `sub` as far as it may go now; return its place then and the frames for it."""
        frames: list[bytes] = []
        room = SLICE_BYTES
        while sub.index < len(self.slots):
            slot = self.slots[sub.index]
            if slot.audio and not slot.void:
                if slot.end > sub.limit:
                    return "held", frames
                if sub.credit <= 0 or room <= 0:
                    return "cursor", frames
                sub.credit -= slot.end - slot.begin
            frame = self._frame(slot, sub)
            sub.index += 1
            frames.append(frame)
            room -= len(frame)
        return "lane", frames

    def look(self, now: float) -> None:
        """Serve the cursors; the clients that take nothing are reported as stuck."""
        for sub in list(self.cursors):
            if sub.stuck(now):
                self._counters.stuck += 1
                self.leave(sub)
                sub.on_end("slow_consumer")
            else:
                self.pump(sub, now)

    async def walk(self, now: float) -> None:
        """Write all new slots to the lanes; gives way to other tasks after each 500 writes."""
        while self.walked < len(self.slots):
            first = self.walked
            self.walked = last = min(len(self.slots), first + RUN_SLOTS)
            run = [slot for slot in self.slots[first:last] if not slot.void]
            end = max((slot.end for slot in run if slot.audio), default=0)
            for (codec, words), lane in list(self.lanes.items()):
                if lane:
                    frames = [
                        self._shared(slot, codec) for slot in run if words or slot.kind != "w"
                    ]
                    joined = None if None in frames else b"".join(filter(None, frames))
                    await self._walk_lane(lane, joined, _Run(first, last, end), now)
            if last < len(self.slots):
                await asyncio.sleep(0)  # lets uvloop send, so that `backlog` is true again

    async def _walk_lane(
        self, lane: set[Subscription], frame: bytes | None, run: _Run, now: float
    ) -> None:
        """Write `frame`, the slots of `run` joined, to everybody who stands before them."""
        written = 0
        first, last, end = run
        for sub in tuple(lane):
            if sub.index >= last or sub.place != "lane":
                continue  # joined or left while a walk gave way
            odd = frame is None or sub.index != first
            if odd or sub.limit < end or sub.outlet.backlog() > BACKLOG_BYTES:
                self._counters.left_lane += 1
                self._to_cursor(sub)
                self.pump(sub, now)
                continue
            sub.index = last
            sub.outlet.write(frame)  # type: ignore[arg-type]  # `odd` covers None
            written += 1
            if not written % WRITES_PER_STEP:
                await asyncio.sleep(0)
        self._counters.writes += written
        self._counters.bytes += written * len(frame or b"")

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
        sub.outlet.write(frame)

    def _to_cursor(self, sub: Subscription) -> None:
        self._move(sub, "cursor")
        self.news.set()  # the hub begins to look

    def _move(self, sub: Subscription, place: str) -> None:
        for lane in self.lanes.values():
            lane.discard(sub)
        self.cursors.discard(sub)
        sub.place = place
        if place == "lane":
            self.lanes.setdefault((sub.codec, sub.words), set()).add(sub)
        elif place == "cursor":
            self.cursors.add(sub)

    def _chunk(self, entry: Entry) -> Slot:
        header = unpack_header(entry.header)
        frame = binary_message(entry.header, entry.body)
        self.epoch = header.epoch
        end = header.pts + header.dur
        audio = header.kind is not Kind.END
        if audio:
            self.audio.append(len(self.slots))
        return Slot(entry.seq, entry.k, frame, audio, header.seg, header.pts, end)

    def _event(self, entry: Entry) -> Slot:
        event = json.loads(entry.body)
        kind, seg = event["t"], event.get("seg", -1)
        slot = Slot(entry.seq, entry.k, text_message(entry.body), False, seg, 0, 0, kind)
        if kind == "cut":
            self._cut(event["e"], event["from_seg"])
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


class Hub:
    """All sessions that this process serves, filled by one reader task."""

    def __init__(self, reader: LogReader, counters: Counters) -> None:
        self._reader = reader
        self._counters = counters
        self._channels: dict[str, Channel] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._walkers: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin to read; needs a running loop."""
        self._task = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """Stop reading and walking."""
        # The flag ends the reader too where a client library swallows a cancellation.
        self._stopped = True
        tasks = [*self._walkers.values(), *self._loading.values()]
        tasks += [self._task] if self._task else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._reader.close()

    async def channel(self, sid: str) -> Channel:
        """Return the channel of `sid`, filled up to the log's head; `live` says if it has a log.

        Raises:
            LogUnavailable: the store cannot be reached.
        """
        channel = self._channels.get(sid)
        if channel is None:
            channel = self._channels[sid] = Channel(sid, self._counters)
            task = self._loading[sid] = asyncio.create_task(self._load(channel))
            # Its error is for whoever waits below; if all of them have gone, for nobody.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        if loading := self._loading.get(sid):
            await asyncio.shield(loading)
        return channel

    async def load_pcm(self, channel: Channel) -> None:
        """Fetch the PCM that the log still keeps, for a first listener without Opus."""
        samples = await self._reader.pcm(channel.sid, max(channel.pcm, default=-1))
        channel.keep_pcm(samples)

    def drop_unused(self, now: float) -> None:
        """Forget the channels that nobody has listened to for a while."""
        for sid, channel in list(self._channels.items()):
            unused = not channel.subscriptions and now > channel.unused_since + UNUSED_KEEP_S
            if unused and sid not in self._loading:
                self._drop(channel)

    async def _load(self, channel: Channel) -> None:
        try:
            while page := await self._reader.read(channel.sid, channel.head):
                channel.extend(page)
                if len(page) < PAGE:
                    break
            channel.info = await self._reader.info(channel.sid)
        except LogUnavailable:
            del self._channels[channel.sid]
            raise
        finally:
            del self._loading[channel.sid]
        channel.walked = len(channel.slots)
        if channel.info:
            channel.live.set()
        self._reader.follow(channel.sid, channel.head)
        self._walkers[channel.sid] = asyncio.create_task(self._serve(channel))

    async def _read(self) -> None:
        away = False
        while not self._stopped:
            try:
                changes = await self._reader.changes()
                for sid, entries in changes.items():
                    if channel := self._channels.get(sid):
                        await self._take(channel, entries)
                if away:
                    log.info("chunk log reachable again")
                away = False
            except LogUnavailable as error:
                if not away:
                    log.warning("chunk log cannot be reached: %s", error)
                away = True
                await asyncio.sleep(0.5)

    async def _take(self, channel: Channel, entries: list[Entry]) -> None:
        try:
            channel.extend(entries)
        except (BadFrame, ValueError, KeyError):
            log.exception("session %s: its log holds an entry that cannot be read", channel.sid)
            self._drop(channel)
            return
        # Without its PCM or its description a session can still be heard.
        with contextlib.suppress(LogUnavailable):
            if channel.wants_pcm:
                await self.load_pcm(channel)
            if channel.info is None:
                channel.info = await self._reader.info(channel.sid)
        channel.live.set()
        channel.news.set()

    def _drop(self, channel: Channel) -> None:
        """Forget a channel; who still listens is told that the server failed."""
        del self._channels[channel.sid]
        self._reader.unfollow(channel.sid)
        if walker := self._walkers.pop(channel.sid, None):
            walker.cancel()
        for sub in list(channel.subscriptions):
            sub.on_end("internal")

    async def _serve(self, channel: Channel) -> None:
        """Bring news to the lanes as they come, and look at the cursors while there are any."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if channel.cursors else None):
                    await channel.news.wait()
            channel.news.clear()
            await channel.walk(time.monotonic())
            channel.look(time.monotonic())


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
