"""The ordered log between the worker that speaks a session and the gateways that serve it.

One session is one sequence of entries at positions (seq, k): k = 0 is audio chunk `seq`, k = 1, 2,
... are the events that follow it. Entries are only ever added, by one writer at a time: `take_over`
gives the session to a newer fence and shuts the older owner out. Writing blocks and may come from
any thread; reading is done by `LogReader`, which belongs to one event loop.

`MemoryLog` serves tests and one-process set-ups, `redis_log.RedisLog` everything else. Both pass
the same tests.
"""

from __future__ import annotations

import asyncio
import bisect
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from streaming.errors import Fenced, LogLost, SessionExists

Position = tuple[int, int]
BEGINNING: Position = (-2, 0)  # before every entry of every log
KEEP_S = 6 * 3600.0  # how long a finished log can be read
IDLE_KEEP_S = 48 * 3600.0  # how long a log lives that nobody finished
PAGE = 512


class Entry(NamedTuple):
    """One entry: audio has a packed `header`; an event has none and its JSON as `body`."""

    seq: int
    k: int
    header: bytes
    body: bytes

    @property
    def position(self) -> Position:
        """Where the entry stands in its log."""
        return (self.seq, self.k)


@dataclass(frozen=True, slots=True)
class LogInfo:
    """The state of one log; `head` is the position of its last entry."""

    fence: int
    epoch: int
    head: Position
    meta: Mapping[str, str]


class ChunkLog(ABC):
    """Where sessions are written. Every write names its fence and is refused once that is old."""

    @abstractmethod
    def create(
        self,
        sid: str,
        fence: int,
        meta: Mapping[str, str],
        *,
        epoch: int,
        start: Position,
        replace: bool = False,
    ) -> None:
        """Make an empty log whose first entry will come right after `start`.

        Args:
            replace: drop what is there, unless it has a newer owner. Safe to repeat.

        Raises:
            SessionExists: there is one, and `replace` is not set.
            Fenced: there is one with a newer owner.
            LogUnavailable: the store cannot be reached (as every method may).
        """

    @abstractmethod
    def take_over(self, sid: str, fence: int) -> LogInfo:
        """Make `fence` the owner; from now on smaller ones are refused. Safe to repeat.

        Raises:
            Fenced: the log has a newer owner.
            LogLost: there is no such log.
        """

    @abstractmethod
    def append(
        self,
        sid: str,
        fence: int,
        epoch: int,
        after: Position,
        entries: Sequence[Entry],
        *,
        pcm: Mapping[int, bytes] | None = None,
        pcm_from: int = 0,
        next_epoch: int | None = None,
        finish: bool = False,
    ) -> None:
        """Add `entries` right after the entry at `after`: all of them or none, in one round trip.

        Repeating a call whose answer was lost adds nothing twice.

        Args:
            pcm: samples of the added chunks by seq, for listeners without Opus.
            pcm_from: PCM of chunks before this seq is dropped.
            next_epoch: the epoch from now on, when these entries begin one.
            finish: nothing more is spoken; the log soon expires.

        Raises:
            Fenced: `fence` or `epoch` is not the log's.
            LogLost: the log is gone or does not end at `after`.
        """

    @abstractmethod
    def read(self, sid: str, after: Position, limit: int = PAGE) -> list[Entry]:
        """Return up to `limit` entries that follow `after`; none when the log is not there."""

    @abstractmethod
    def forget(self, sid: str) -> None:
        """Delete the log of `sid` now."""

    @abstractmethod
    def size_bytes(self) -> int:
        """Return the memory that the store of all logs takes."""

    @abstractmethod
    def reader(self) -> LogReader:
        """Return a reader for the running event loop."""

    def close(self) -> None:
        """Give connections back; readers close theirs."""
        return None


class LogReader(ABC):
    """Reads any number of sessions for one gateway, on one event loop."""

    @abstractmethod
    async def info(self, sid: str) -> LogInfo | None:
        """Return the state of the log, None when there is none."""

    @abstractmethod
    async def read(self, sid: str, after: Position, limit: int = PAGE) -> list[Entry]:
        """As `ChunkLog.read`."""

    @abstractmethod
    async def pcm(self, sid: str, after: int) -> list[tuple[int, bytes]]:
        """Return (seq, samples) of the kept PCM with seq above `after`."""

    @abstractmethod
    def follow(self, sid: str, after: Position) -> None:
        """Let `changes` report what `sid` gets after `after`, also if it does not exist yet."""

    @abstractmethod
    def unfollow(self, sid: str) -> None:
        """Undo `follow`."""

    @abstractmethod
    async def changes(self) -> dict[str, list[Entry]]:
        """Wait until followed sessions have new entries and return them (may be empty).

        Raises:
            LogUnavailable: the store cannot be reached; call again later, nothing is skipped.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give connections back; `changes` must not be waiting."""


@dataclass(slots=True)
class _Stored:
    fence: int
    epoch: int
    head: Position
    meta: Mapping[str, str]
    expires: float
    entries: list[Entry] = field(default_factory=list)
    pcm: dict[int, bytes] = field(default_factory=dict)
    finished: bool = False
    size_bytes: int = 0

    def after(self, position: Position, limit: int) -> list[Entry]:
        """Entries that follow `position`."""
        start = bisect.bisect_right(self.entries, position, key=lambda entry: entry.position)
        return self.entries[start : start + limit]

    def keep_pcm(self, from_seq: int) -> None:
        """Drop the PCM of chunks before `from_seq`; chunks were added in order."""
        while self.pcm and (oldest := next(iter(self.pcm))) < from_seq:
            del self.pcm[oldest]


class MemoryLog(ChunkLog):
    """`ChunkLog` in this process, for any number of writing threads and reading loops.

    Finished sessions can be read for `keep_s`. When all together pass `max_bytes`, the finished
    ones that expire first go.
    """

    def __init__(
        self,
        *,
        max_bytes: int = 256 << 20,
        keep_s: float = KEEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._clock = clock
        self._lock = threading.Lock()
        self._logs: dict[str, _Stored] = {}
        self._readers: set[_MemoryReader] = set()

    def create(
        self,
        sid: str,
        fence: int,
        meta: Mapping[str, str],
        *,
        epoch: int,
        start: Position,
        replace: bool = False,
    ) -> None:
        """See `ChunkLog.create`."""
        with self._lock:
            self._expire()
            if sid in self._logs and self._logs[sid].fence > fence:
                raise Fenced(f"session {sid} belongs to fence {self._logs[sid].fence}")
            if sid in self._logs and not replace:
                raise SessionExists(f"session {sid} has a log already")
            self._logs[sid] = _Stored(fence, epoch, start, dict(meta), self._clock() + IDLE_KEEP_S)

    def take_over(self, sid: str, fence: int) -> LogInfo:
        """See `ChunkLog.take_over`."""
        with self._lock:
            log = self._owned(sid, fence, newer=True)
            log.fence = fence
            return LogInfo(log.fence, log.epoch, log.head, log.meta)

    def append(
        self,
        sid: str,
        fence: int,
        epoch: int,
        after: Position,
        entries: Sequence[Entry],
        *,
        pcm: Mapping[int, bytes] | None = None,
        pcm_from: int = 0,
        next_epoch: int | None = None,
        finish: bool = False,
    ) -> None:
        """See `ChunkLog.append`."""
        with self._lock:
            log = self._owned(sid, fence)
            if log.head == entries[-1].position:
                return  # the answer to this very call was lost
            if log.epoch != epoch:
                raise Fenced(f"session {sid} is in epoch {log.epoch}, not {epoch}")
            if log.head != after:
                raise LogLost(f"the log of session {sid} ends at {log.head}, not at {after}")
            log.entries += entries
            log.head = entries[-1].position
            log.epoch = next_epoch or epoch
            log.size_bytes += sum(len(entry.header) + len(entry.body) for entry in entries)
            log.pcm |= pcm or {}
            log.keep_pcm(pcm_from)
            log.finished = log.finished or finish
            log.expires = self._clock() + (self._keep_s if log.finished else IDLE_KEEP_S)
            readers = [reader for reader in self._readers if sid in reader.followed]
        for reader in readers:
            reader.wake()

    def read(self, sid: str, after: Position, limit: int = PAGE) -> list[Entry]:
        """See `ChunkLog.read`."""
        with self._lock:
            self._expire()
            log = self._logs.get(sid)
            return log.after(after, limit) if log else []

    def forget(self, sid: str) -> None:
        """See `ChunkLog.forget`."""
        with self._lock:
            self._logs.pop(sid, None)

    def size_bytes(self) -> int:
        """See `ChunkLog.size_bytes`."""
        with self._lock:
            return sum(log.size_bytes for log in self._logs.values())

    def reader(self) -> LogReader:
        """See `ChunkLog.reader`."""
        reader = _MemoryReader(self)
        with self._lock:
            self._readers.add(reader)
        return reader

    def info(self, sid: str) -> LogInfo | None:
        """Return the state of the log, None when there is none."""
        with self._lock:
            self._expire()
            log = self._logs.get(sid)
            return LogInfo(log.fence, log.epoch, log.head, log.meta) if log else None

    def pcm(self, sid: str, after: int) -> list[tuple[int, bytes]]:
        """Return (seq, samples) of the kept PCM with seq above `after`."""
        with self._lock:
            log = self._logs.get(sid)
            return [item for item in log.pcm.items() if item[0] > after] if log else []

    def _drop_reader(self, reader: _MemoryReader) -> None:
        with self._lock:
            self._readers.discard(reader)

    def _owned(self, sid: str, fence: int, *, newer: bool = False) -> _Stored:
        log = self._logs.get(sid)
        if log is None:
            raise LogLost(f"session {sid} has no log")
        if log.fence > fence or (log.fence < fence and not newer):
            raise Fenced(f"session {sid} belongs to fence {log.fence}, not {fence}")
        return log

    def _expire(self) -> None:
        now = self._clock()
        for sid in [sid for sid, log in self._logs.items() if log.expires <= now]:
            del self._logs[sid]
        total = sum(log.size_bytes for log in self._logs.values())
        finished = [(log.expires, sid) for sid, log in self._logs.items() if log.finished]
        for _, sid in sorted(finished):
            if total <= self._max_bytes:
                return
            total -= self._logs.pop(sid).size_bytes


class _MemoryReader(LogReader):
    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self.followed: dict[str, Position] = {}

    def wake(self) -> None:
        """Let `changes` look again; called from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    async def info(self, sid: str) -> LogInfo | None:
        return self._log.info(sid)

    async def read(self, sid: str, after: Position, limit: int = PAGE) -> list[Entry]:
        return self._log.read(sid, after, limit)

    async def pcm(self, sid: str, after: int) -> list[tuple[int, bytes]]:
        return self._log.pcm(sid, after)

    def follow(self, sid: str, after: Position) -> None:
        self.followed[sid] = after
        self._news.set()

    def unfollow(self, sid: str) -> None:
        self.followed.pop(sid, None)

    async def changes(self) -> dict[str, list[Entry]]:
        await self._news.wait()
        self._news.clear()
        news = {}
        for sid, after in list(self.followed.items()):
            if entries := self._log.read(sid, after):
                news[sid] = entries
                self.followed[sid] = entries[-1].position
                if len(entries) == PAGE:
                    self._news.set()
        return news

    async def close(self) -> None:
        self._log._drop_reader(self)
