from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from streaming.channel import (
    BACKLOG_BYTES,
    BURST_TICKS,
    SLICE_BYTES,
    STUCK_S,
    Channel,
    Subscription,
)
from streaming.chunk_log import ChunkLog, MemoryLog
from streaming.counters import Counters
from streaming.frames import Codec, parse
from streaming.hub import Hub
from streaming.limits import Bucket, Rate
from streaming.listener import Ack, Start
from streaming.session import LiveSession
from tests.streaming.speaking import SID, create, entries, payload, payloads, speak


class Pipe:
    """An outlet in memory; what is written stays in `backlog` until `drain`, if it is slow."""

    def __init__(self, *, slow: bool = False) -> None:
        self.slow = slow
        self.data = bytearray()
        self.unsent = 0
        self.most_unsent = 0

    def write(self, frame: bytes) -> int:
        self.data += frame
        if self.slow:
            self.unsent += len(frame)
            self.most_unsent = max(self.most_unsent, self.unsent)
        return self.unsent

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
    return channel


def subscribe(outlet: Pipe, **options: Any) -> Subscription:
    fields: dict[str, Any] = {"codec": Codec.OPUS, "fallback": True, "words": True}
    fields |= {"ahead": 600 * 48_000, "on_end": pytest.fail}
    return Subscription(outlet=outlet, sid=SID, **fields | options)


def acked(seq: int = 0, *, play_ms: int = 0, buf_ms: int = 0, under: Any = None) -> Ack:
    return Ack(SID, seq, play_ms, buf_ms, under)


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
    channel.ack(sub, acked(play_ms=400), 0.0)
    assert len(pipe.frames()) == 4
    channel.allow(sub, 0, 0.0)
    assert len(pipe.frames()) == 4
    channel.allow(sub, 60_000, 0.0)

    assert len(pipe.frames()) == 6
    assert sub.place == "lane"


def test_the_time_from_click_to_sound_counts_once_for_a_listener() -> None:
    log = MemoryLog()
    create(log)
    counters = Counters()
    channel, sub = Channel(SID, counters), subscribe(Pipe())
    channel.join(sub, 0, now=0.0)

    for ttfa_ms in (None, 180, 180):
        channel.ack(sub, acked()._replace(ttfa_ms=ttfa_ms), 0.0)

    assert sum(counters.click_to_sound.counts) == 1
    assert counters.click_to_sound.total == pytest.approx(0.18)


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
    channel.ack(sub, acked(play_ms=600), 0.0)

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

    channel.ack(sub, acked(play_ms=0), 0.0)  # the player has not started
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
    monkeypatch.setattr("streaming.channel.WRITES_PER_STEP", 7)
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


def at_the_edge(log: MemoryLog, pipe: Pipe, **options: Any) -> tuple[Channel, Subscription]:
    """A channel of what is in the log, and a listener in its lane."""
    channel, sub = pcm_channel(log), subscribe(pipe, **options)
    channel.join(sub, 0, now=0.0)
    assert sub.place == "lane"
    return channel, sub


def test_a_mark_stays_open_until_an_ack_covers_it() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    channel, sub = at_the_edge(log, Pipe(), ack_s=5.0)
    assert sub.mark_at == 0.0

    channel.ack(sub, acked(2), 1.0)
    assert sub.mark_at is None
    assert channel.lag(sub, 100.0) == 0.0
    speak(session, 1)
    channel.extend(list(entries(log)))
    asyncio.run(channel.walk(10.0))
    channel.ack(sub, acked(2), 12.0)  # the new chunks have not arrived
    assert channel.lag(sub, 14.9) == 0.0  # an ack may still come in time
    assert channel.lag(sub, 18.0) == pytest.approx(3.0)
    channel.ack(sub, acked(5), 18.0)

    assert channel.lag(sub, 18.0) == 0.0


def test_a_client_that_never_acknowledges_is_not_taken_for_late() -> None:
    log = MemoryLog()
    speak(create(log), 0)
    channel, sub = at_the_edge(log, Pipe(), live=True, ack_s=5.0)

    assert channel.lag(sub, 100.0) == 0.0


def test_a_late_pcm_listener_gets_opus_from_a_chunk_border_on() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0, pcm=True)
    pipe = Pipe()
    channel, sub = at_the_edge(log, pipe, codec=Codec.PCM, ack_s=5.0)
    channel.ack(sub, acked(0), 1.0)  # chunk 0 was marked; what follows never arrives
    speak(session, 1, pcm=True)
    channel.extend(list(entries(log)))
    channel.keep_pcm(log.pcm(SID, -1))
    asyncio.run(channel.walk(2.0))

    channel.watch(11.9)
    assert sub.codec is Codec.PCM
    channel.watch(12.1)
    channel.look(12.1)
    speak(session, 2, pcm=True)
    update(channel, log)
    channel.look(12.2)

    (step,) = pipe.events("codec")
    assert (step["codec"], step["from_seq"]) == ("opus", 6)
    codecs = [parse(frame)[0].codec for frame in pipe.frames()]
    assert codecs == [Codec.PCM] * 6 + [Codec.OPUS] * 3
    assert channel._counters.codec_down == 1


def test_a_late_pcm_listener_without_opus_keeps_its_codec() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0, pcm=True)
    channel, sub = at_the_edge(log, Pipe(), codec=Codec.PCM, fallback=False, ack_s=5.0)
    channel.ack(sub, acked(0), 1.0)
    speak(session, 1, pcm=True)
    channel.extend(list(entries(log)))
    channel.keep_pcm(log.pcm(SID, -1))
    asyncio.run(channel.walk(2.0))

    channel.watch(60.0)

    assert channel.lag(sub, 60.0) > 50
    assert (sub.codec, sub.lower) == (Codec.PCM, False)


def stalled(log: MemoryLog, **options: Any) -> tuple[Channel, Subscription, Pipe]:
    """A listener whose network has stood still for 20 sentences of 600 ms."""
    session = create(log)
    speak(session, 0)
    pipe = Pipe()
    channel, sub = at_the_edge(log, pipe, **options)
    pipe.slow, pipe.unsent = True, 2 * BACKLOG_BYTES
    for seg in range(1, 21):
        speak(session, seg)
        update(channel, log)
    for slot in channel.slots:
        slot.came = 0.0
    assert sub.place == "cursor"
    channel.lag(sub, 0.0)
    return channel, sub, pipe


def test_who_wants_to_be_live_is_brought_to_the_live_edge() -> None:
    channel, sub, pipe = stalled(MemoryLog(), live=True)
    before = len(pipe.frames())

    channel.watch(9.9)
    assert pipe.events("gap") == []
    channel.watch(10.1)
    pipe.unsent = 0
    channel.look(10.2)

    (gap,) = pipe.events("gap")
    assert (gap["from_seq"], gap["to_seq"], gap["why"]) == (before, 61, "lagging")
    assert [parse(frame)[0].seq for frame in pipe.frames()[before:]] == [62]
    assert pipe.events("seg")[-1]["text"] == "Sentence 20."
    assert sub.place == "lane"
    assert channel._counters.skipped == 1


def test_who_wants_all_of_it_stays_behind_and_loses_nothing() -> None:
    channel, sub, pipe = stalled(MemoryLog())

    channel.watch(15.0)
    pipe.slow, pipe.unsent = False, 0
    channel.look(15.1)

    assert pipe.events("gap") == []
    everything = [payload(seg, n) for seg in range(21) for n in range(3)]
    assert payloads(pipe.frames()) == everything
    assert sub.place == "lane"


def test_catching_up_after_a_stall_is_not_paced() -> None:
    channel, sub, pipe = stalled(MemoryLog())
    pipe.slow, pipe.unsent = False, 0

    channel.look(1.0)

    assert sub.place == "lane"
    assert len(pipe.frames()) == 63


def relaxed(log: MemoryLog, pipe: Pipe) -> tuple[Channel, Subscription]:
    channel, sub = at_the_edge(log, pipe)
    channel.ack(sub, acked(buf_ms=3000), 0.0)
    assert sub.lane is not None
    assert sub.lane.relaxed
    return channel, sub


class Writes(Pipe):
    """Counts how often it is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, frame: bytes) -> int:
        self.writes += 1
        return super().write(frame)


def test_who_has_sound_in_hand_gets_a_second_at_a_time() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    relaxed_pipe, edge_pipe = Writes(), Writes()
    channel, _ = relaxed(log, relaxed_pipe)
    channel.join(subscribe(edge_pipe), 0, now=0.0)
    relaxed_pipe.writes = edge_pipe.writes = 0

    for n in range(10):
        session.audio(1, 9600, [bytes([n])], first=n == 0, last=n == 9)
        channel.extend(list(entries(log)))
        asyncio.run(channel.walk(n * 0.2))

    assert relaxed_pipe.frames() == edge_pipe.frames()
    assert (relaxed_pipe.writes, edge_pipe.writes) == (2, 10)


def test_a_relaxed_lane_waits_no_longer_than_a_second() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    pipe = Writes()
    channel, _ = relaxed(log, pipe)
    session.audio(1, 9600, [b"a"], first=True, last=True)
    channel.extend(list(entries(log)))

    asyncio.run(channel.walk(5.0))
    assert len(pipe.frames()) == 3
    assert channel.wait_s(5.25) == pytest.approx(0.75)
    asyncio.run(channel.walk(6.0))

    assert len(pipe.frames()) == 4
    assert channel.wait_s(6.0) is None


def test_a_cut_and_the_end_do_not_wait_in_a_relaxed_lane() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    pipe = Writes()
    channel, _ = relaxed(log, pipe)

    session.cut(0, "emotion")
    update(channel, log)
    assert len(pipe.events("cut")) == 1
    session.end("done")
    update(channel, log)

    assert len(pipe.events("end")) == 1


def test_who_runs_short_of_sound_returns_to_the_edge_at_once() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    pipe = Writes()
    channel, sub = relaxed(log, pipe)
    session.audio(1, 9600, [b"a"], first=True, last=True)
    channel.extend(list(entries(log)))
    asyncio.run(channel.walk(0.0))

    channel.ack(sub, acked(buf_ms=2500), 0.1)  # between the two thresholds nothing changes
    assert len(pipe.frames()) == 3
    channel.ack(sub, acked(buf_ms=1900), 0.2)

    assert len(pipe.frames()) == 4
    assert sub.lane is not None
    assert not sub.lane.relaxed


def test_an_underrun_brings_a_listener_to_the_edge_and_is_counted_once() -> None:
    log = MemoryLog()
    speak(create(log), 0)
    channel, sub = relaxed(log, Pipe())

    channel.ack(sub, acked(buf_ms=5000, under=(2, 300)), 0.1)
    assert not sub.relaxed
    channel.ack(sub, acked(buf_ms=5000, under=(2, 300)), 0.2)

    assert sub.relaxed
    assert (channel._counters.underruns, channel._counters.underrun_ms) == (2, 300)


def test_a_replay_is_limited_in_bytes() -> None:
    log = MemoryLog()
    session = create(log)
    for seg in range(8):
        speak(session, seg, pcm=True)  # 9.6 kB a chunk
    channel, pipe = pcm_channel(log), Pipe()
    sub = subscribe(pipe, codec=Codec.PCM, egress=Bucket(Rate(20_000, 30_000)))

    channel.join(sub, 0, now=0.0)
    sub.credit = 1e9
    at_once = len(pipe.frames())
    channel.look(0.1)
    sub.credit = 1e9
    assert at_once == 4  # the write that passes the limit is still made
    assert len(pipe.frames()) == at_once
    channel.look(5.0)

    assert len(pipe.frames()) > at_once
    assert sub.egress.tokens < 10_000


def test_listeners_of_one_user_share_their_bytes() -> None:
    log = MemoryLog()
    session = create(log)
    for seg in range(8):
        speak(session, seg)

    class Shared:
        bytes = 1000

        def left(self) -> float:
            return self.bytes

        def spend(self, size_bytes: int) -> None:
            self.bytes -= size_bytes

    channel, one, other, purse = channel_of(log), Pipe(), Pipe(), Shared()
    channel.join(subscribe(one, purse=purse), 0, now=0.0)
    channel.join(subscribe(other, purse=purse), 0, now=0.0)
    assert len(one.data) >= 1000
    assert len(other.frames()) == 0
    purse.bytes = 1_000_000
    for now in range(1, 5):
        channel.look(now)

    assert len(one.frames()) == len(other.frames()) == 24


def heard_by(pipe: Pipe) -> list[bytes]:
    """What counts of what a client received: a cut takes its sentences back."""
    heard: list[tuple[int, bytes]] = []
    last = (-2, 0)
    for item in pipe.messages():
        if isinstance(item, bytes):
            header, body = parse(item)
            position = (header.seq, 0)
            if body:
                heard.append((header.seg, body))
        elif "p" in item:
            position = tuple(item["p"])
            if item["t"] == "cut":
                heard = [one for one in heard if one[0] < item["from_seg"]]
        else:
            continue
        assert position > last, "out of order, or twice"
        last = position
    return [body for _, body in heard]


class Storm:
    """Sentences, cuts, joins, stalls and acks, in any order."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.log = MemoryLog()
        self.session = create(self.log)
        self.channel = channel_of(self.log)
        self.everyone: list[tuple[Subscription, Pipe]] = []
        self.now = 0.0
        self.seg = 0

    async def rage(self) -> None:
        for _ in range(120):
            self.now += self.chance.choice([0.0, 0.05, 0.3, 1.2])
            step = self.chance.choices([self.speak, self.cut, self.join, self.ack], [7, 1, 2, 10])
            step[0]()
            self.channel.extend(list(entries(self.log)))
            if self.chance.random() < 0.7:
                await self.channel.walk(self.now)
            self.channel.look(self.now)
            self.channel.watch(self.now)

    async def calm_down(self) -> None:
        self.session.end("done")
        self.channel.extend(list(entries(self.log)))
        for _ in range(400):
            self.now += 0.5
            for sub, pipe in self.everyone:
                pipe.slow, pipe.unsent = False, 0
                self.channel.allow(sub, 10**7, self.now)
            await self.channel.walk(self.now)
            self.channel.look(self.now)

    def speak(self) -> None:
        chunks, take = self.chance.randint(1, 7), self.chance.randrange(99)
        speak(self.session, self.seg, chunks=chunks, take=take)
        self.seg += 1

    def cut(self) -> None:
        self.seg = max(0, self.seg - self.chance.randint(0, 2))
        self.session.cut(self.seg, "emotion")

    def join(self) -> None:
        pipe, ahead = Pipe(), self.chance.choice([600, 2, 1]) * 48_000
        sub = subscribe(pipe, words=self.chance.random() < 0.5, ahead=ahead, ack_s=5.0)
        self.everyone.append((sub, pipe))
        self.channel.join(sub, 0, self.now)

    def ack(self) -> None:
        if not self.everyone:
            return
        sub, pipe = self.chance.choice(self.everyone)
        if self.chance.random() < 0.3:
            pipe.slow, pipe.unsent = not pipe.slow, 0
        if frames := pipe.frames():
            got = parse(frames[-1])[0]
            buf_ms = self.chance.choice([0, 2500, 4000])
            ack = acked(got.seq, play_ms=(got.pts + got.dur) // 48, buf_ms=buf_ms)
            self.channel.ack(sub, ack, self.now)


@pytest.mark.parametrize("seed", range(25))
def test_whatever_lanes_a_listener_goes_through_it_hears_what_counts_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.channel.STUCK_S", 1e9)
    storm = Storm(seed)
    asyncio.run(storm.rage())
    asyncio.run(storm.calm_down())

    late = Pipe()
    storm.channel.join(subscribe(late), 0, storm.now)
    while not late.events("end"):
        storm.now += 1
        storm.channel.look(storm.now)
    effective = heard_by(late)
    assert storm.everyone
    for sub, pipe in storm.everyone:
        assert sub.place == "lane"
        assert heard_by(pipe) == effective
        assert len(pipe.events("end")) == 1
