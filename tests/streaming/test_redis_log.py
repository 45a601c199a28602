from __future__ import annotations

import asyncio

import pytest
import redis

from streaming.chunk_log import BEGINNING
from streaming.errors import LogLost, LogUnavailable
from streaming.redis_log import RedisLog
from tests.streaming.speaking import SID, create, entries, events, speak


def test_keys_carry_one_hash_tag_and_expire(redis_log: RedisLog, valkey_url: str) -> None:
    session = create(redis_log)
    speak(session, 0, pcm=True)

    with redis.Redis.from_url(valkey_url) as client:
        keys = {f"nc:{{{SID}}}:{part}".encode() for part in ("log", "pcm", "meta")}
        assert set(client.keys()) == keys
        assert all(client.pttl(key) > 47 * 3_600_000 for key in keys)
        session.end("done")
        session.file("https://h/x.mp3", "mp3", 1, "", "")
        assert all(0 < client.pttl(key) <= 6 * 3_600_000 for key in keys)


def test_a_flushed_store_is_noticed_and_the_log_built_again(
    redis_log: RedisLog, valkey_url: str
) -> None:
    session = create(redis_log)
    speak(session, 0)
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()

    with pytest.raises(LogLost):
        speak(session, 1)
    session.rebuild()
    speak(session, 0)
    speak(session, 1)

    assert events(redis_log)[0]["t"] == "cut"
    assert next(entries(redis_log)).position == (3, 1)  # after all that was ever published
    assert session.epoch == 2


def test_scripts_are_loaded_again_after_a_restart(redis_log: RedisLog, valkey_url: str) -> None:
    session = create(redis_log)
    with redis.Redis.from_url(valkey_url) as client:
        client.script_flush()

    speak(session, 0)

    assert session.head_seq == 2


def test_a_store_that_is_away_is_unavailable(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("streaming.session.RETRY_AFTER_S", (0.01,))
    log = RedisLog(f"unix://{tmp_path}/nobody.sock")

    async def read() -> None:
        reader = log.reader()
        try:
            await reader.changes()
        finally:
            await reader.close()

    for call in (
        lambda: create(log),
        lambda: log.read(SID, BEGINNING),
        lambda: asyncio.run(read()),
    ):
        with pytest.raises(LogUnavailable, match="chunk log's store"):
            call()
    log.close()


def test_a_full_store_refuses_the_whole_append(redis_log: RedisLog, valkey_url: str) -> None:
    session = create(redis_log)
    speak(session, 0)
    held = list(entries(redis_log))
    with redis.Redis.from_url(valkey_url) as client:
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(LogUnavailable, match="memory"):
                session._log.append(SID, 1, 1, held[-1].position, [held[-1]._replace(seq=99)])
        finally:
            client.config_set("maxmemory", "0")

    assert list(entries(redis_log)) == held
