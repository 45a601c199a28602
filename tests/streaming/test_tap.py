from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from streaming.channel import Channel
from streaming.chunk_log import MemoryLog
from streaming.counters import Counters
from streaming.frames import TICKS_PER_S
from streaming.hub import Hub
from streaming.session import LiveSession
from streaming.tap import Pace, Tap, body_of, run_up
from tests.streaming.speaking import SID, create, payload, speak


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test that waits for things in an event loop of its own."""

    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@contextlib.asynccontextmanager
async def listening(log: MemoryLog) -> AsyncIterator[tuple[Hub, Channel]]:
    hub = Hub(log.reader(), Counters())
    hub.start()
    try:
        yield hub, await hub.channel(SID)
    finally:
        await hub.stop()


async def given(tap: Tap, seconds: float = 0.15) -> list[bytes]:
    """The payloads that a tap gives until nothing comes for a while."""
    found = []
    with contextlib.suppress(TimeoutError):
        while True:
            async with asyncio.timeout(seconds):
                item = await tap.next_chunk()
            if item is None:
                break
            found.append(body_of(item[1]))
    return found


def take(session: LiveSession, *segs: int, chunks: int = 3, take: int = 0) -> list[bytes]:
    return [one for seg in segs for one in speak(session, seg, chunks=chunks, take=take)]


@in_a_loop
async def test_everything_comes_once_and_in_order_and_then_the_end() -> None:
    log = MemoryLog()
    session = create(log)
    said = take(session, 0, 1)
    async with listening(log) as (_hub, channel):
        with Tap(channel) as tap:
            heard = await given(tap)
            said += take(session, 2)
            session.end("done")
            heard += await given(tap)

            assert heard == said
            assert await tap.next() is None


@in_a_loop
async def test_who_was_in_the_middle_of_a_sentence_hears_it_again_after_a_cut() -> None:
    log = MemoryLog()
    session = create(log)
    whole = take(session, 0)
    session.sentence(1, "Interrupted.")
    session.audio(1, 9600, [b"half"], first=True, last=False)
    async with listening(log) as (_hub, channel):
        with Tap(channel) as tap:
            before = await given(tap)
            session.cut(1, "retry")
            again = take(session, 1, 2, take=1)
            session.end("done")

            assert before[:-1] == whole
            assert await given(tap) == again


@in_a_loop
async def test_who_was_sent_a_sentence_as_a_whole_goes_on_with_the_next_one() -> None:
    log = MemoryLog()
    session = create(log)
    take(session, 0, 1, 2)
    async with listening(log) as (_hub, channel):
        with Tap(channel) as tap:
            await given(tap)  # all three, while others are still at the first
            session.cut(1, "speed")
            take(session, 1, 2, take=1)
            rest = take(session, 3, take=1)
            session.end("done")

            assert await given(tap) == rest


@in_a_loop
async def test_a_sentence_whose_end_was_taken_back_is_heard_again() -> None:
    log = MemoryLog()
    session = create(log)
    take(session, 0, 1)
    async with listening(log) as (_hub, channel):
        with Tap(channel) as tap:
            await given(tap)
            session.cut(1, "voice")
            tap.take_back()  # while its last chunk was encoded
            again = take(session, 1, take=1)
            session.end("done")

            assert await given(tap) == again


@in_a_loop
async def test_a_skip_is_followed_wherever_it_leads() -> None:
    log = MemoryLog()
    session = create(log)
    take(session, 0, 1, 2)
    async with listening(log) as (_hub, channel):
        with Tap(channel) as tap:
            await given(tap)
            session.cut(0, "skip")
            back = take(session, 0, take=1)
            session.end("done")

            assert await given(tap) == back


@in_a_loop
async def test_what_a_cut_made_void_and_was_not_sent_is_never_sent() -> None:
    log = MemoryLog()
    session = create(log)
    take(session, 0, 1, 2, 3, chunks=5)  # a second each
    async with listening(log) as (_hub, channel):
        with Tap(channel, pace=Pace()) as tap:
            before = await given(tap, 0.05)
            session.cut(1, "voice")
            again = take(session, 1, chunks=5, take=1)
            session.end("done")
            after = await given(tap)

            void = {payload(seg, n) for seg in (1, 2, 3) for n in range(5)}
            assert 10 <= len(before) <= 12  # two seconds, and what passed meanwhile
            assert not void & set(after)
            assert set(after) <= set(again)


@in_a_loop
async def test_a_start_in_the_middle_says_how_far_into_its_chunk_it_is() -> None:
    log = MemoryLog()
    session = create(log)
    said = take(session, 0, 1)
    async with listening(log) as (_hub, channel):
        with Tap(channel) as tap:
            offset = tap.seek(450)

            assert offset == 50 * 48
            assert (await given(tap))[0] == said[2]


@in_a_loop
async def test_the_live_edge_is_two_seconds_before_the_last_chunk() -> None:
    log = MemoryLog()
    session = create(log)
    said = take(session, 0, chunks=30)
    async with listening(log) as (_hub, channel):
        with Tap(channel) as tap:
            tap.seek(None)

            assert await given(tap) == said[20:]


@in_a_loop
async def test_run_up_stays_within_one_encoder() -> None:
    log = MemoryLog()
    session = create(log)
    take(session, 0)
    session.cut(1, "retry")
    take(session, 1, take=1)
    async with listening(log) as (_hub, channel):
        runs = [[slot.seq for slot in run_up(channel, index)] for index in channel.audio]

        assert runs == [[], [0], [0, 1], [], [3], [3, 4]]


@in_a_loop
async def test_a_tap_keeps_its_channel_in_memory_and_lets_it_go() -> None:
    log = MemoryLog()
    create(log)
    async with listening(log) as (hub, channel):
        with Tap(channel):
            hub.drop_unused(channel.unused_since + 10_000)
            assert await hub.channel(SID) is channel
        hub.drop_unused(channel.unused_since + 10_000)

        assert await hub.channel(SID) is not channel


def test_pace_is_a_burst_and_then_a_little_more_than_the_sounds_own() -> None:
    clock = Clock()
    pace = Pace(now=clock)
    sent = []
    for tick in range(400):
        clock.at = 100 + tick * 0.1
        while not pace.wait_s():
            pace.sent(TICKS_PER_S // 5)
            sent.append(clock.at - 100)

    def ahead(at_s: float) -> float:
        return 0.2 * sum(one <= at_s for one in sent) - at_s

    assert [ahead(at) for at in (0, 10, 35)] == [
        pytest.approx(lead, abs=0.31) for lead in (2.0, 4.5, 10.0)
    ]


def test_who_ran_dry_gets_a_burst_again() -> None:
    clock = Clock()
    pace = Pace(now=clock)

    def burst() -> int:
        chunks = 0
        while not pace.wait_s():
            pace.sent(TICKS_PER_S // 5)
            chunks += 1
        return chunks

    first = burst()
    clock.at += 60  # the voice had nothing to say

    assert first == 11
    assert burst() == 51  # the lead that it has come to by then
