from __future__ import annotations

import asyncio

import pytest

from streaming.errors import BadTicket, LinkRevoked
from streaming.limits import MemoryLedger
from streaming.redis_limits import RedisLedger
from streaming.tickets import Tickets
from streaming.tokens import Grant

GRANT = Grant("lnk_1", "listener", 2000, sid="*", scopes=("fork",), max_listeners=7)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_ticket_opens_the_stream_it_was_first_used_for() -> None:
    async def test() -> None:
        tickets = Tickets(MemoryLedger(), clock=Clock())
        ticket = await tickets.issue(GRANT, "ses_1")
        with pytest.raises(BadTicket):
            await tickets.redeem(ticket, "ses_2", "audio.mp3")
        grant = await tickets.redeem(ticket, "ses_1", "audio.mp3")
        assert grant == Grant(
            "lnk_1", "listener", 2000, sid="ses_1", scopes=("fork",), max_listeners=7
        )
        assert await tickets.redeem(ticket, "ses_1", "audio.mp3") == grant
        with pytest.raises(BadTicket, match="another stream"):
            await tickets.redeem(ticket, "ses_1", "events")

    asyncio.run(test())


def test_a_ticket_waits_a_minute_for_its_use_and_then_lasts_as_long_as_the_grant() -> None:
    async def test() -> None:
        clock = Clock()
        tickets = Tickets(MemoryLedger(clock=clock), clock=clock)
        used, late = [await tickets.issue(GRANT, "ses_1") for _ in range(2)]
        await tickets.redeem(used, "ses_1", "audio.mp3")
        clock.now += 61
        with pytest.raises(BadTicket):
            await tickets.redeem(late, "ses_1", "audio.mp3")
        await tickets.redeem(used, "ses_1", "audio.mp3")
        clock.now = 2001
        with pytest.raises(BadTicket):
            await tickets.redeem(used, "ses_1", "audio.mp3")

    asyncio.run(test())


def test_a_ticket_of_one_process_is_good_in_another(valkey_url: str) -> None:
    async def test() -> None:
        ours, theirs = RedisLedger(valkey_url), RedisLedger(valkey_url)
        clock = Clock()
        ticket = await Tickets(ours, clock=clock).issue(GRANT, "ses_1")
        grant = await Tickets(theirs, clock=clock).redeem(ticket, "ses_1", "index.m3u8")
        assert (grant.link, grant.sid) == ("lnk_1", "ses_1")
        stored = [await ours._redis.hgetall(key) for key in await ours._redis.keys("nc:*kept*")]
        assert ticket not in str(stored)
        await ours.close()
        await theirs.close()

    asyncio.run(test())


def test_a_grant_buys_no_ticket_for_another_session() -> None:
    async def test() -> None:
        tickets = Tickets(MemoryLedger(), clock=Clock())
        with pytest.raises(LinkRevoked):
            await tickets.issue(Grant("l", "listener", 2000, sid="ses_1"), "ses_2")

    asyncio.run(test())
