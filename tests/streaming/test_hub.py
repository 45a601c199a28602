from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from streaming.chunk_log import ChunkLog, MemoryLog
from streaming.frames import Codec, parse
from streaming.hub import (
    BACKLOG_BYTES,
    BURST_TICKS,
    SLICE_BYTES,
    STUCK_S,
    Channel,
    Counters,
    Hub,
    Subscription,
)
from streaming.listener import Start
from streaming.session import LiveSession
from tests.streaming.speaking import SID, create, entries, payload, payloads, speak


class Pipe:
    """An outlet in memory; what is written stays in `backlog` until `drain`, if it is slow."""

    def __init__(self, *, slow: bool = False) -> None:
        self.slow = slow
        self.data = bytearray()
        self.unsent = 0
        self.most_unsent = 0

    def write(self, frame: bytes) -> None:
        self.data += frame
        if self.slow:
            self.unsent += len(frame)
            self.most_unsent = max(self.most_unsent, self.unsent)

    def backlog(self) -> int:
        return self.unsent

    def messages(self) -> list[bytes | dict[str, Any]]:
        """What was written, as frames and events."""
        found: list[bytes | dict[str, Any]] = []
        at = 0
        while at < len(self.data):
            size, start = self.data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(self.data[at + 2 : at + 4]), at + 4
            body = bytes(self.data[start : start + size])
            found.append(body if self.data[at] == 0x82 else json.loads(body))
            at = start + size
        return found

    def frames(self) -> list[bytes]:
        return [item for item in self.messages() if isinstance(item, bytes)]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [item for item in self.messages() if isinstance(item, dict) and item["t"] == kind]


def channel_of(log: ChunkLog) -> Channel:
    channel = Channel(SID, Counters())
    channel.extend(list(entries(log)))
    channel.walked = len(channel.slots)
    return channel


def subscribe(outlet: Pipe, **options: Any) -> Subscription:
    fields: dict[str, Any] = {"codec": Codec.OPUS, "fallback": True, "words": True}
    fields |= {"ahead": 600 * 48_000, "on_end": pytest.fail}
    return Subscription(outlet=outlet, sid=SID, **fields | options)


def update(channel: Channel, log: ChunkLog) -> None:
    """Take over and walk what is new in the log."""
    channel.extend(list(entries(log)))
    asyncio.run(channel.walk(0.0))


def test_a_join_from_the_start_is_paced_and_ends_in_the_lane() -> None:
    log = MemoryLog()
    session = create(log)
    for seg in range(10):
        speak(session, seg)
    channel, pipe = channel_of(log), Pipe()
    sub = subscribe(pipe)

    channel.join(sub, 0, now=0.0)
    assert len(pipe.frames()) * 9600 == BURST_TICKS
    channel.look(0.1)  # eight times real time: 800 ms, that is 4 chunks
    assert len(pipe.frames()) == 14
    assert sub.place == "cursor"
    channel.look(1.1)
    channel.look(2.1)

    assert sub.place == "lane"
    assert len(pipe.frames()) == 30
    assert pipe.messages()[-1] == {"t": "caught_up", "sid": SID, "seq": 29}


def test_nobody_gets_more_than_was_allowed() -> None:
    log = MemoryLog()
    session = create(log)
    for seg in range(2):
        speak(session, seg)
    channel, pipe = channel_of(log), Pipe()
    sub = subscribe(pipe, ahead=48 * 500)

    channel.join(sub, 0, now=0.0)
    assert (sub.place, len(pipe.frames())) == ("held", 2)
    channel.allow(sub, 400, None, 0.0)
    assert len(pipe.frames()) == 4
    channel.allow(sub, None, 0, 0.0)
    assert len(pipe.frames()) == 4
    channel.allow(sub, None, 60_000, 0.0)

    assert len(pipe.frames()) == 6
    assert sub.place == "lane"


def test_a_listener_that_runs_out_of_allowance_leaves_the_lane_and_returns() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    channel, pipe = channel_of(log), Pipe()
    sub = subscribe(pipe, ahead=48 * 700)
    channel.join(sub, 0, now=0.0)
    assert sub.place == "lane"

    speak(session, 1)
    update(channel, log)
    assert (sub.place, len(pipe.frames())) == ("held", 3)
    channel.allow(sub, 600, None, 0.0)

    assert payloads(pipe.frames()) == [payload(seg, n) for seg in (0, 1) for n in range(3)]
    assert sub.place == "lane"


def test_a_late_live_join_is_allowed_relative_to_where_it_begins() -> None:
    log = MemoryLog()
    session = create(log)
    for seg in range(5):
        speak(session, seg)
    channel, pipe = channel_of(log), Pipe()
    sub = subscribe(pipe, ahead=48 * 1000)
    channel.join(sub, channel.find(Start(at="live"), Codec.OPUS), now=0.0)

    channel.allow(sub, 0, None, 0.0)  # the player has not started
    speak(session, 5)
    update(channel, log)

    assert len(pipe.frames()) == 4


def test_cuts_hide_void_chunks_from_those_who_come_later() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    speak(session, 1)
    session.cut(1, "retry")
    speak(session, 1, take=1)
    channel, late, resumed = channel_of(log), Pipe(), Pipe()

    channel.join(subscribe(late), 0, now=0.0)
    position = Start(position=(4, 0))  # in the middle of what is void
    channel.join(subscribe(resumed), channel.find(position, Codec.OPUS), now=0.0)

    effective = [payload(0, n) for n in range(3)] + [payload(1, n, 1) for n in range(3)]
    assert payloads(late.frames()) == effective
    assert payloads(resumed.frames()) == effective[3:]
    first = resumed.messages()[0]
    assert isinstance(first, dict)
    assert (first["t"], first["from_seg"], first["why"]) == ("cut", 1, "retry")


def test_a_cut_frees_a_listener_that_waited_for_an_ack() -> None:
    log = MemoryLog()
    session = create(log)
    for seg in range(3):
        speak(session, seg)
    channel, pipe = channel_of(log), Pipe()
    sub = subscribe(pipe, ahead=48 * 1200)
    channel.join(sub, 0, now=0.0)
    assert sub.place == "held"

    session.cut(1, "emotion")
    speak(session, 1, take=1)
    update(channel, log)
    channel.look(5.0)

    assert payloads(pipe.frames())[-3:] == [payload(1, n, 1) for n in range(3)]


@pytest.mark.parametrize(
    ("start", "codec", "seq"),
    [
        (Start(at="start"), Codec.OPUS, 0),
        (Start(ms=0), Codec.OPUS, 0),
        (Start(ms=650), Codec.PCM, 3),
        (Start(ms=650), Codec.OPUS, 2),  # one chunk of run-up
        (Start(ms=599), Codec.PCM, 2),
        (Start(ms=99_000), Codec.PCM, 6),
        (Start(at="live"), Codec.PCM, 6),
        (Start(at="live"), Codec.OPUS, 5),
        (Start(position=(1, 0)), Codec.OPUS, 2),
        (Start(position=(99, 0)), Codec.OPUS, 6),
    ],
)
def test_a_start_is_found(start: Start, codec: Codec, seq: int) -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    speak(session, 1)
    channel = channel_of(log)

    opened = channel.opened(channel.find(start, codec))

    assert opened["from"] == {"seq": seq, "ms": seq * 200}
    assert opened["head"] == {"seq": 5, "ms": 1200}
    assert opened["first"] == {"seq": 0, "ms": 0}


def test_a_join_in_mid_sentence_brings_its_caption() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    speak(session, 1)
    session.sentence(2, "Not finished.")
    session.audio(2, 9600, [b"a"], first=True, last=False)
    session.state("paused", "owner")
    session.audio(2, 9600, [b"b"], first=False, last=False)
    channel = channel_of(log)
    pipe = Pipe()
    for frame in channel.caption(channel.find(Start(at="live"), Codec.OPUS)):
        pipe.write(frame)

    assert [event["text"] for event in pipe.events("seg")] == ["Not finished."]


def test_words_go_only_to_those_who_want_them() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    channel, with_words, without = channel_of(log), Pipe(), Pipe()
    channel.join(subscribe(with_words), 0, now=0.0)
    channel.join(subscribe(without, words=False), 0, now=0.0)

    speak(session, 1)
    update(channel, log)

    assert len(with_words.events("w")) == 2
    assert without.events("w") == []
    assert without.frames() == with_words.frames()


def pcm_channel(log: MemoryLog) -> Channel:
    channel = channel_of(log)
    channel.keep_pcm(log.pcm(SID, -1))
    return channel


def test_pcm_listeners_get_samples_with_the_same_header() -> None:
    log = MemoryLog()
    speak(create(log), 0, pcm=True)
    channel, pcm, opus = pcm_channel(log), Pipe(), Pipe()
    channel.join(subscribe(pcm, codec=Codec.PCM), 0, now=0.0)
    channel.join(subscribe(opus), 0, now=0.0)

    headers = [parse(frame)[0] for frame in pcm.frames()]
    assert {header.codec for header in headers} == {Codec.PCM}
    assert [header.seq for header in headers] == [parse(f)[0].seq for f in opus.frames()]
    assert [body[:1] for body in payloads(pcm.frames())] == [b"\0", b"\1", b"\2"]


def test_a_join_before_the_kept_pcm_gets_opus() -> None:
    log = MemoryLog()
    speak(create(log), 0)
    channel, pipe = pcm_channel(log), Pipe()
    channel.join(subscribe(pipe, codec=Codec.PCM), 0, now=0.0)

    (step,) = pipe.events("codec")
    assert (step["codec"], step["rate"], step["skip"], step["from_seq"]) == ("opus", 48_000, 312, 0)
    assert payloads(pipe.frames()) == [payload(0, n) for n in range(3)]


def test_who_knows_no_opus_skips_to_the_kept_pcm_and_is_told() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    speak(session, 1, pcm=True)
    channel, pipe = pcm_channel(log), Pipe()
    channel.join(subscribe(pipe, codec=Codec.PCM, fallback=False), 0, now=0.0)

    (gap,) = pipe.events("gap")
    assert (gap["from_seq"], gap["to_seq"], gap["why"]) == (0, 2, "expired")
    assert [parse(frame)[0].seq for frame in pipe.frames()] == [3, 4, 5]


def test_a_slow_listener_costs_a_bounded_buffer_and_delays_nobody() -> None:
    log = MemoryLog()
    session = create(log)
    channel, slow, fast = channel_of(log), Pipe(slow=True), Pipe()
    sub = subscribe(slow)
    channel.join(sub, 0, now=0.0)
    channel.join(subscribe(fast), 0, now=0.0)

    for seg in range(100):
        speak(session, seg)
        update(channel, log)
        channel.look(0.0)

    everything = [payload(seg, n) for seg in range(100) for n in range(3)]
    assert payloads(fast.frames()) == everything
    assert slow.most_unsent <= BACKLOG_BYTES + SLICE_BYTES
    now = 0.0
    while sub.place != "lane":
        slow.unsent, now = 0, now + 1
        channel.look(now)
    assert payloads(slow.frames()) == everything


def test_a_listener_that_takes_nothing_for_20_s_is_given_up() -> None:
    log = MemoryLog()
    session = create(log)
    given_up: list[str] = []
    channel, pipe = channel_of(log), Pipe(slow=True)
    sub = subscribe(pipe, on_end=given_up.append)
    channel.join(sub, 0, now=0.0)
    for seg in range(30):
        speak(session, seg)
        update(channel, log)
    channel.look(STUCK_S - 1)
    assert given_up == []

    channel.look(STUCK_S + 1)

    assert given_up == ["slow_consumer"]
    assert sub not in channel.subscriptions


def test_joins_while_a_walk_gives_way_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.hub.WRITES_PER_STEP", 7)
    log = MemoryLog()
    session = create(log)
    channel = channel_of(log)
    chance = random.Random(7)
    everyone: list[tuple[Subscription, Pipe]] = []

    def join_one() -> None:
        pipe = Pipe()
        sub = subscribe(pipe)
        everyone.append((sub, pipe))
        channel.join(sub, 0, now=0.0)

    async def speak_and_join() -> None:
        for _ in range(40):
            join_one()
        for seg in range(6):
            speak(session, seg, chunks=1)
            channel.extend(list(entries(log)))
            walk = asyncio.create_task(channel.walk(0.0))
            for _ in range(5):
                await asyncio.sleep(0)
                assert not walk.done()
                for _ in range(chance.randrange(3)):
                    join_one()
                speak(session, 100, chunks=1)  # more comes in while the walk gives way
                channel.extend(list(entries(log)))
            await walk
        for now in range(60):  # the cursors come after, at their pace
            await channel.walk(now)
            channel.look(now)

    asyncio.run(speak_and_join())
    spoken = [entry.body for entry in entries(log) if entry.header]
    assert len(everyone) > 50
    assert all(payloads(pipe.frames()) == spoken for _, pipe in everyone)


def test_channels_without_listeners_are_forgotten_after_a_while() -> None:
    log = MemoryLog()
    speak(create(log), 0)

    async def come_and_go() -> None:
        hub = Hub(log.reader(), Counters())
        hub.start()
        channel = await hub.channel(SID)
        assert await hub.channel(SID) is channel
        hub.drop_unused(channel.unused_since + 29)
        assert await hub.channel(SID) is channel
        hub.drop_unused(channel.unused_since + 31)
        assert await hub.channel(SID) is not channel
        await hub.stop()

    asyncio.run(come_and_go())


def test_an_unreadable_entry_ends_its_session_and_no_other() -> None:
    log = MemoryLog()
    session = create(log)
    ended: list[str] = []

    async def listen() -> list[bytes]:
        hub = Hub(log.reader(), Counters())
        hub.start()
        create(log, "ses_other")
        bad, good, pipe = await hub.channel(SID), await hub.channel("ses_other"), Pipe()
        bad.join(subscribe(Pipe(), on_end=ended.append), 0, now=0.0)
        good.join(subscribe(pipe), 0, now=0.0)
        broken = next(entries(log))._replace(k=2, body=b"no JSON")
        log.append(SID, 1, 1, session._head, [broken])
        other = LiveSession.take_over(log, "ses_other", 1)
        speak(other, 0)
        async with asyncio.timeout(5):
            while not ended or len(pipe.frames()) < 3:
                await asyncio.sleep(0.01)
        await hub.stop()
        return payloads(pipe.frames())

    assert asyncio.run(listen()) == [payload(0, n) for n in range(3)]
    assert ended == ["internal"]
