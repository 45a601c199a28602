"""Both ledgers pass the same tests; the Redis form counts for several gateways at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from streaming import limits, redis_limits
from streaming.errors import LedgerUnavailable
from streaming.limits import Bucket, Ledger, MemoryLedger, Rate
from streaming.redis_limits import RedisLedger, tell

Test = Callable[[Ledger], Awaitable[None]]


@pytest.fixture(params=["memory", "redis"])
def on_ledger(request: pytest.FixtureRequest) -> Callable[[Test], None]:
    """Runs a test on an empty ledger of each form."""
    url = request.getfixturevalue("valkey_url") if request.param == "redis" else None

    @contextlib.asynccontextmanager
    async def ledger() -> AsyncIterator[Ledger]:
        made = RedisLedger(url) if url else MemoryLedger()
        try:
            yield made
        finally:
            await made.close()

    def run(test: Test) -> None:
        async def main() -> None:
            async with ledger() as made:
                await test(made)

        asyncio.run(main())

    return run


def test_a_bucket_gives_its_burst_then_its_rate() -> None:
    bucket = Bucket(Rate(2, 3))

    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(0.5) == 0.0
    assert bucket.take(0.4) == 0.5  # a clock that goes back gives nothing
    assert [bucket.take(60.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_a_place_has_as_many_leases_as_it_says(on_ledger: Callable[[Test], None]) -> None:
    async def test(ledger: Ledger) -> None:
        assert await ledger.lease({"link:a": 2}, "one") is None
        assert await ledger.lease({"link:a": 2}, "two") is None
        assert await ledger.lease({"link:a": 2}, "two") is None  # it has one already
        assert await ledger.lease({"link:a": 2}, "three") == "link:a"
        await ledger.give_back(["link:a"], "one")
        assert await ledger.lease({"link:a": 2}, "three") is None

    on_ledger(test)


def test_leases_are_given_in_all_places_or_in_none(on_ledger: Callable[[Test], None]) -> None:
    async def test(ledger: Ledger) -> None:
        assert await ledger.lease({"user:u": 1}, "one") is None
        assert await ledger.lease({"link:a": 1, "user:u": 1}, "two") == "user:u"
        assert await ledger.lease({"link:a": 1}, "three") is None

    on_ledger(test)


def test_leases_run_out_unless_they_are_renewed(
    on_ledger: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (limits, redis_limits):
        monkeypatch.setattr(module, "LEASE_S", 0.4)

    async def test(ledger: Ledger) -> None:
        await ledger.lease({"link:a": 2}, "dead gateway's")
        await ledger.lease({"link:a": 2}, "living gateway's")
        for _ in range(6):
            await asyncio.sleep(0.1)
            await ledger.renew({"link:a": {"living gateway's"}})
        assert await ledger.lease({"link:a": 2}, "new") is None
        assert await ledger.lease({"link:a": 2}, "newer") == "link:a"

    on_ledger(test)


def test_a_shared_bucket_is_drawn_from_and_refills(on_ledger: Callable[[Test], None]) -> None:
    async def test(ledger: Ledger) -> None:
        rate = Rate(20, 2)
        assert [await ledger.take("control:s", rate) for _ in range(2)] == [0.0, 0.0]
        assert 0 < await ledger.take("control:s", rate) <= 0.05
        assert await ledger.take("control:other", rate) == 0.0
        await asyncio.sleep(0.06)
        assert await ledger.take("control:s", rate) == 0.0

    on_ledger(test)


def test_what_is_kept_is_bound_to_its_first_use(on_ledger: Callable[[Test], None]) -> None:
    async def test(ledger: Ledger) -> None:
        await ledger.put("k", "text", first_s=9, keep_s=9)
        assert await ledger.bind("k", "audio.mp3") == "text"
        assert await ledger.bind("k", "audio.mp3") == "text"
        assert await ledger.bind("k", "events") is None
        assert await ledger.bind("unknown", "events") is None

    on_ledger(test)


def test_what_is_not_used_in_time_is_gone(on_ledger: Callable[[Test], None]) -> None:
    async def test(ledger: Ledger) -> None:
        await ledger.put("late", "text", first_s=0.05, keep_s=9)
        await ledger.put("used", "text", first_s=0.05, keep_s=9)
        assert await ledger.bind("used", "a") == "text"
        await asyncio.sleep(0.1)
        assert await ledger.bind("late", "a") is None
        assert await ledger.bind("used", "a") == "text"

    on_ledger(test)


def test_news_reach_every_gateway(valkey_url: str) -> None:
    import redis

    async def test() -> list[str]:
        gateways = [RedisLedger(valkey_url) for _ in range(2)]
        heard = [asyncio.create_task(gateway.hear()) for gateway in gateways]
        with redis.Redis.from_url(valkey_url) as client:
            async with asyncio.timeout(5):
                while not all(task.done() for task in heard):
                    tell(client, "again")  # until both have subscribed
                    await asyncio.sleep(0.02)
        for gateway in gateways:
            await gateway.close()
        return [task.result() for task in heard]

    assert asyncio.run(test()) == ["again", "again"]


def test_a_quiet_channel_is_no_fault(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.redis_limits.ANSWER_S", 0.1)
    monkeypatch.setattr("streaming.redis_limits.HEAR_S", 0.3)

    async def test() -> str:
        ledger = RedisLedger(valkey_url)
        heard = asyncio.create_task(ledger.hear())
        await asyncio.sleep(1.0)
        assert not heard.done()
        await ledger.tell("at last")
        async with asyncio.timeout(5):
            news = await heard
        await ledger.close()
        return news

    assert asyncio.run(test()) == "at last"


def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.redis_limits.ANSWER_S", 0.1)

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()

    async def test() -> None:
        async with await asyncio.start_server(silence, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            ledger = RedisLedger(f"redis://127.0.0.1:{port}/0")
            async with asyncio.timeout(10):
                with pytest.raises(LedgerUnavailable):
                    await ledger.lease({"a": 1}, "one")
            await ledger.close()

    asyncio.run(test())


def test_news_are_heard_in_one_process() -> None:
    async def test() -> str:
        ledger = MemoryLedger()
        heard = asyncio.create_task(ledger.hear())
        await asyncio.sleep(0)
        await ledger.tell("revoked")
        return await heard

    assert asyncio.run(test()) == "revoked"


def test_a_store_that_is_away_is_named() -> None:
    async def test() -> None:
        ledger = RedisLedger("unix:///nowhere/valkey.sock")
        with pytest.raises(LedgerUnavailable, match="shared limits"):
            await ledger.lease({"a": 1}, "one")
        with pytest.raises(LedgerUnavailable):
            await ledger.hear()
        await ledger.close()

    asyncio.run(test())
