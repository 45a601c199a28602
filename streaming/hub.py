"""One log reader, many sessions: the channels of a process, filled as their logs grow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from typing import NamedTuple

from streaming.channel import NAME, Channel
from streaming.chunk_log import PAGE, Entry, LogReader
from streaming.counters import Counters
from streaming.errors import BadFrame, LogUnavailable

log = logging.getLogger(__name__)

UNUSED_KEEP_S = 30.0  # how long a channel without listeners stays in memory


class Census(NamedTuple):
    """The listeners of one session: how many, their underruns, the lag of the slowest in s."""

    listeners: int
    underruns: int
    lag_s: float


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

    def watch(self, now: float) -> None:
        """Look after the listeners who lag; call about once a second."""
        for channel in list(self._channels.values()):
            channel.watch(now)

    def places(self) -> Counter[tuple[str, str]]:
        """How many listeners there are, by codec and place (edge, relaxed, cursor, held, http).

        May be called from another thread.
        """
        found: Counter[tuple[str, str]] = Counter()
        for channel in list(self._channels.values()):
            for sub in list(channel.subscriptions):
                lane = sub.lane and ("relaxed" if sub.lane.relaxed else "edge")
                if sub.hears:
                    found[NAME[sub.codec], lane or sub.place] += 1
        return found

    def sessions(self) -> Counter[str]:
        """How many sessions are listened to, by state."""
        channels = self._channels.values()
        return Counter(channel.state for channel in channels if channel.subscriptions)

    def census(self, now: float) -> dict[str, Census]:
        """Who listens to what, by session."""
        found = {}
        for sid, channel in self._channels.items():
            if heard := [sub for sub in channel.subscriptions if sub.hears]:
                underruns = sum(sub.under[0] for sub in heard)
                lag_s = max(channel.lag(sub, now) for sub in heard)
                found[sid] = Census(len(heard), underruns, lag_s)
        return found

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
                async with asyncio.timeout(channel.wait_s(time.monotonic())):
                    await channel.news.wait()
            channel.news.clear()
            await channel.walk(time.monotonic())
            channel.look(time.monotonic())
