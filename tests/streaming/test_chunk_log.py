"""The contract of `ChunkLog`; every test runs over both forms."""

from __future__ import annotations

import asyncio
import threading

import pytest

from streaming.chunk_log import BEGINNING, ChunkLog, Entry, LogReader, MemoryLog
from streaming.errors import Fenced, LogLost, SessionExists
from tests.streaming.speaking import SID

START = (-1, 0)


def chunk(seq: int, body: bytes = b"opus") -> Entry:
    return Entry(seq, 0, bytes(31) + bytes([seq % 256]), body)


def event(seq: int, k: int) -> Entry:
    return Entry(seq, k, b"", f'{{"t":"seg","seg":{seq}}}'.encode())


def fill(log: ChunkLog, count: int, sid: str = SID) -> list[Entry]:
    log.create(sid, 1, {"title": "Weekly"}, epoch=1, start=START)
    added = [chunk(seq) for seq in range(count)]
    log.append(sid, 1, 1, START, added)
    return added


def test_entries_come_back_in_order_and_by_position(chunk_log: ChunkLog) -> None:
    chunk_log.create(SID, 1, {}, epoch=1, start=START)
    added = [event(-1, 1), event(-1, 2), chunk(0), event(0, 1), chunk(1, b"\x00\xff")]
    chunk_log.append(SID, 1, 1, START, added[:2])
    chunk_log.append(SID, 1, 1, (-1, 2), added[2:])

    assert chunk_log.read(SID, BEGINNING) == added
    assert chunk_log.read(SID, (-1, 1)) == added[1:]
    assert chunk_log.read(SID, (0, 0), limit=1) == [added[3]]
    assert chunk_log.read(SID, (1, 0)) == []
    assert chunk_log.read("ses_other", BEGINNING) == []


def test_a_repeated_append_adds_nothing_twice(chunk_log: ChunkLog) -> None:
    added = fill(chunk_log, 2)

    chunk_log.append(SID, 1, 1, START, added)

    assert chunk_log.read(SID, BEGINNING) == added


def test_the_store_says_how_much_it_holds(chunk_log: ChunkLog) -> None:
    before = chunk_log.size_bytes()
    chunk_log.create(SID, 1, {}, epoch=1, start=START)
    chunk_log.append(SID, 1, 1, START, [chunk(0, bytes(1 << 20))])

    assert chunk_log.size_bytes() > before + (1 << 20)


def test_a_smaller_fence_is_shut_out(chunk_log: ChunkLog) -> None:
    added = fill(chunk_log, 2)

    info = chunk_log.take_over(SID, 3)

    assert (info.fence, info.epoch, info.head, info.meta["title"]) == (3, 1, (1, 0), "Weekly")
    with pytest.raises(Fenced, match="belongs to fence 3"):
        chunk_log.append(SID, 1, 1, (1, 0), [chunk(2)])
    with pytest.raises(Fenced):
        chunk_log.take_over(SID, 2)
    chunk_log.append(SID, 3, 1, (1, 0), [chunk(2)])
    assert chunk_log.read(SID, BEGINNING) == [*added, chunk(2)]


def test_taking_over_twice_with_one_fence_is_fine(chunk_log: ChunkLog) -> None:
    fill(chunk_log, 1)

    assert chunk_log.take_over(SID, 2) == chunk_log.take_over(SID, 2)


def test_an_old_epoch_is_refused(chunk_log: ChunkLog) -> None:
    fill(chunk_log, 1)
    chunk_log.append(SID, 1, 1, (0, 0), [event(0, 1)], next_epoch=2)

    with pytest.raises(Fenced, match="epoch 2"):
        chunk_log.append(SID, 1, 1, (0, 1), [chunk(1)])
    assert chunk_log.take_over(SID, 1).epoch == 2


def test_a_log_that_does_not_end_where_the_writer_left_it_is_lost(chunk_log: ChunkLog) -> None:
    fill(chunk_log, 2)

    with pytest.raises(LogLost):
        chunk_log.append(SID, 1, 1, (5, 0), [chunk(6)])
    assert len(chunk_log.read(SID, BEGINNING)) == 2


def test_a_missing_log_is_lost(chunk_log: ChunkLog) -> None:
    with pytest.raises(LogLost):
        chunk_log.take_over(SID, 1)
    with pytest.raises(LogLost):
        chunk_log.append(SID, 1, 1, START, [chunk(0)])
    fill(chunk_log, 1)
    chunk_log.forget(SID)
    with pytest.raises(LogLost):
        chunk_log.append(SID, 1, 1, (0, 0), [chunk(1)])


def test_creating_twice_is_refused_unless_it_replaces(chunk_log: ChunkLog) -> None:
    fill(chunk_log, 2)

    with pytest.raises(SessionExists):
        chunk_log.create(SID, 1, {}, epoch=1, start=START)
    chunk_log.create(SID, 2, {}, epoch=4, start=(9, 0), replace=True)
    assert chunk_log.read(SID, BEGINNING) == []
    assert chunk_log.take_over(SID, 2).head == (9, 0)
    with pytest.raises(Fenced):
        chunk_log.create(SID, 1, {}, epoch=1, start=START, replace=True)


def test_old_pcm_is_dropped_and_chunks_stay(chunk_log: ChunkLog) -> None:
    chunk_log.create(SID, 1, {}, epoch=1, start=START)
    for seq in range(5):
        samples = {seq: bytes([seq, 0])}
        after = (seq - 1, 0)
        chunk_log.append(SID, 1, 1, after, [chunk(seq)], pcm=samples, pcm_from=max(0, seq - 2))

    async def kept(after: int) -> list[tuple[int, bytes]]:
        reader = chunk_log.reader()
        try:
            return await reader.pcm(SID, after)
        finally:
            await reader.close()

    assert asyncio.run(kept(-1)) == [(2, b"\x02\0"), (3, b"\x03\0"), (4, b"\x04\0")]
    assert asyncio.run(kept(3)) == [(4, b"\x04\0")]
    assert len(chunk_log.read(SID, BEGINNING)) == 5


def test_a_reader_sees_what_other_threads_write(chunk_log: ChunkLog) -> None:
    sids = [f"ses_{n}" for n in range(4)]
    count = 40

    def write(sid: str) -> None:
        chunk_log.create(sid, 1, {}, epoch=1, start=START)
        for seq in range(count):
            chunk_log.append(sid, 1, 1, (seq - 1, 0), [chunk(seq)])

    async def read_all() -> dict[str, list[int]]:
        reader = chunk_log.reader()
        for sid in sids:
            reader.follow(sid, BEGINNING)
        seen: dict[str, list[int]] = {sid: [] for sid in sids}
        threads = [threading.Thread(target=write, args=(sid,)) for sid in sids]
        for thread in threads:
            thread.start()
        async with asyncio.timeout(10):
            while any(len(seqs) < count for seqs in seen.values()):
                for sid, found in (await reader.changes()).items():
                    seen[sid] += [entry.seq for entry in found]
        for thread in threads:
            thread.join()
        await reader.close()
        return seen

    assert asyncio.run(read_all()) == {sid: list(range(count)) for sid in sids}


def test_following_wakes_a_reader_that_waits(
    chunk_log: ChunkLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.redis_log.BLOCK_MS", 60_000)
    added = fill(chunk_log, 3)

    async def follow_late() -> dict[str, list[Entry]]:
        reader = chunk_log.reader()
        reader.follow("ses_quiet", BEGINNING)
        waiting = asyncio.create_task(_first(reader))
        await asyncio.sleep(0.05)
        reader.follow(SID, (0, 0))
        news = await waiting
        await reader.close()
        return news

    assert asyncio.run(follow_late()) == {SID: added[1:]}


async def _first(reader: LogReader) -> dict[str, list[Entry]]:
    async with asyncio.timeout(20):
        while not (news := await reader.changes()):
            pass
    return news


def test_info_tells_the_head_and_none_without_a_log(chunk_log: ChunkLog) -> None:
    fill(chunk_log, 2)

    async def infos() -> tuple[object, object]:
        reader = chunk_log.reader()
        found = await reader.info(SID), await reader.info("ses_other")
        await reader.close()
        return found

    info, none = asyncio.run(infos())
    assert none is None
    assert info.head == (1, 0)


def test_finished_logs_of_the_memory_form_expire_and_live_ones_stay() -> None:
    now = [0.0]
    log = MemoryLog(keep_s=100, clock=lambda: now[0])
    fill(log, 1, "ses_live")
    fill(log, 1, "ses_done")
    log.append("ses_done", 1, 1, (0, 0), [event(0, 1)], finish=True)
    now[0] = 60
    log.append("ses_done", 1, 1, (0, 1), [event(0, 2)])  # the recording's link, late
    now[0] = 159
    assert log.read("ses_done", BEGINNING)

    now[0] = 161

    assert log.read("ses_done", BEGINNING) == []
    assert log.read("ses_live", BEGINNING)


def test_the_memory_form_lets_the_oldest_finished_sessions_go_first() -> None:
    now = [0.0]
    log = MemoryLog(max_bytes=250, clock=lambda: now[0])
    for n, sid in enumerate(("ses_old", "ses_new", "ses_live")):
        now[0] = n
        log.create(sid, 1, {}, epoch=1, start=START)
        log.append(sid, 1, 1, START, [chunk(0, bytes(68))], finish=sid != "ses_live")

    assert log.read("ses_old", BEGINNING) == []
    assert log.read("ses_new", BEGINNING)
    assert log.read("ses_live", BEGINNING)
