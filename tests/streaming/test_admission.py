from __future__ import annotations

import asyncio
import logging

import pytest

from streaming.admission import Admission, is_loopback
from streaming.limits import Limits, MemoryLedger, Rate
from streaming.redis_limits import RedisLedger
from streaming.tokens import Grant

LISTENER = Grant("lnk_1", "listener", 2000, sid="ses_1")
OWNER = Grant("lnk_2", "owner", 2000, sid="ses_1")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        (("192.0.2.7", 1), [], "192.0.2.7"),
        (("192.0.2.7", 1), ["198.51.100.1"], "192.0.2.7"),  # no proxy of ours: not believed
        (("127.0.0.1", 1), ["198.51.100.1"], "198.51.100.1"),
        (("127.0.0.1", 1), ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),  # what it was told itself
        (("127.0.0.1", 1), ["6.6.6.6", "198.51.100.1, 10.0.0.9"], "198.51.100.1"),
        (("127.0.0.1", 1), ["10.0.0.9"], "10.0.0.9"),
        (("127.0.0.1", 1), ["no address"], "no address"),
        (("127.0.0.1", 1), [], "127.0.0.1"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), [], "2001:db8:1:2::/64"),
        (("::ffff:192.0.2.7", 1, 0, 0), [], "192.0.2.7"),
        ("", ["198.51.100.1"], "198.51.100.1"),  # a unix socket is the proxy's
        ("", [], ""),
    ],
)
def test_an_address_is_the_socket_s_or_what_our_proxy_says(
    peer: object, forwarded: list[str], address: str
) -> None:
    trusted = ["127.0.0.1", "10.0.0.0/8"]
    admission = Admission(MemoryLedger(), Limits(), trusted=trusted)

    assert admission.address(peer, forwarded) == address


def test_places_are_limited_by_address_link_and_user() -> None:
    async def test() -> None:
        limits = Limits(per_user=1, per_link=2, per_address=3)
        admission = Admission(MemoryLedger(), limits)
        assert [await admission.enter(f"c{n}", "192.0.2.7") for n in range(4)] == [True] * 3 + [
            False
        ]
        assert await admission.enter("c9", "192.0.2.8")
        assert [await admission.join(f"c{n}", LISTENER) for n in range(3)] == [
            None,
            None,
            "2 connections over this link are open already",
        ]
        assert await admission.join("c8", OWNER) is None
        assert await admission.join("c9", OWNER) == "1 connections by this user are open already"
        admission.leave("c0")
        await asyncio.sleep(0)
        assert await admission.enter("c10", "192.0.2.7")
        assert await admission.join("c10", LISTENER) is None
        await admission.close()

    asyncio.run(test())


def test_a_link_may_name_its_own_number_of_listeners() -> None:
    async def test() -> list[str | None]:
        admission = Admission(MemoryLedger(), Limits(per_link=1))
        grant = Grant("lnk", "listener", 2000, sid="s", max_listeners=3)
        return [await admission.join(f"c{n}", grant) for n in range(4)]

    assert [refusal is None for refusal in asyncio.run(test())] == [True, True, True, False]


def test_gateways_count_together_and_a_dead_one_s_places_run_out(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.redis_limits.LEASE_S", 0.5)
    monkeypatch.setattr("streaming.admission.RENEW_S", 0.1)

    async def test() -> None:
        limits = Limits(per_link=2)
        living, dead = (Admission(RedisLedger(valkey_url), limits) for _ in range(2))
        renewing = asyncio.create_task(living.renew_for_ever())
        assert await living.join("c1", LISTENER) is None
        assert await dead.join("c2", LISTENER) is None
        assert await living.join("c3", LISTENER) is not None
        await asyncio.sleep(0.8)
        assert await living.join("c3", LISTENER) is None
        assert await living.join("c4", LISTENER) is not None
        renewing.cancel()
        for admission in (living, dead):
            await admission.close()
            await admission._ledger.close()

    asyncio.run(test())


def test_nobody_is_turned_away_because_the_ledger_is_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        ledger = RedisLedger("unix:///nowhere/valkey.sock")
        admission = Admission(ledger, Limits(per_address=1, user_egress=Rate(1000, 1000)))
        assert await admission.enter("c1", "192.0.2.7")
        assert await admission.enter("c2", "192.0.2.7")
        assert await admission.join("c2", OWNER) is None
        purse = admission.purse(OWNER)
        assert purse is not None
        purse.spend(10_000)
        purse.left()
        admission.leave("c1")
        await admission.close()
        await ledger.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(test())
    assert len(caplog.records) == 1
    assert "limits are not counted" in caplog.text


def test_a_purse_draws_in_blocks_at_the_rate_of_its_user() -> None:
    async def test() -> None:
        limits = Limits(user_egress=Rate(1_000_000, 100_000))
        admission = Admission(MemoryLedger(), limits)
        assert admission.purse(LISTENER) is None
        purse = admission.purse(OWNER)
        assert purse is not None
        assert admission.purse(OWNER) is purse
        assert purse.left() == 65_536
        spent = 0
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() < began + 0.5:
            if purse.left() > 0:
                purse.spend(10_000)
                spent += 10_000
            await asyncio.sleep(0)
        await admission.close()
        assert 300_000 < spent < 1_000_000

    asyncio.run(test())


@pytest.mark.parametrize(
    ("peer", "is_ours"),
    [
        (("127.0.0.1", 5000), True),
        (("::1", 5000, 0, 0), True),
        (("::ffff:127.0.0.1", 5000, 0, 0), True),
        (("10.0.0.1", 5000), False),
        (("::ffff:10.0.0.1", 5000, 0, 0), False),
        ("", False),
        (None, False),
    ],
)
def test_a_peer_is_of_this_machine_or_not(peer: object, is_ours: bool) -> None:
    assert is_loopback(peer) is is_ours
