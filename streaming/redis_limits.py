"""`Ledger` on Valkey or Redis: one script for each decision, times from the server's clock.

Keys: `nc:{gw}:lease:PLACE` (sorted sets, member -> end of its lease in ms), `nc:{gw}:bucket:NAME`
and `nc:{gw}:kept:KEY` (hashes), and the channel `nc:gw:news`. One hash tag, because a lease is
taken in several places at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import RedisError

from streaming.errors import LedgerUnavailable
from streaming.limits import LEASE_S, Ledger, Rate

CHANNEL = "nc:gw:news"
HEAR_S = 15.0
ANSWER_S = 2.0  # a listener who waits for the store any longer is let in uncounted

_CLOCK = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""

# ARGV: member, lease in ms, then the most members of each place. Gives the number of the place that
# is full, or 0.
_LEASE = (
    _CLOCK
    + """
for i, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  if not redis.call('ZSCORE', key, ARGV[1])
     and redis.call('ZCARD', key) >= tonumber(ARGV[2 + i]) then return i end
end
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, now + ARGV[2], ARGV[1])
  redis.call('PEXPIRE', key, ARGV[2])
end
return 0
"""
)

# ARGV: lease in ms, then members of the one place.
_RENEW = (
    _CLOCK
    + """
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""
)

# ARGV: tokens per ms, burst, cost. The ms to wait, 0 if the cost was taken.
_TAKE = (
    _CLOCK
    + """
local rate, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local held = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = burst
if held[1] then
  tokens = math.min(burst, tonumber(held[1]) + math.max(0, now - tonumber(held[2])) * rate)
end
local wait = 0
if tokens >= cost then tokens = tokens - cost else wait = math.ceil((cost - tokens) / rate) end
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', tostring(now))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst / rate) + 1000)
return wait
"""
)

# ARGV: the use. Text, or nothing.
_BIND = """
local kept = redis.call('HMGET', KEYS[1], 'text', 'use', 'keep')
if not kept[1] or (kept[2] and kept[2] ~= ARGV[1]) then return false end
if not kept[2] then
  redis.call('HSET', KEYS[1], 'use', ARGV[1])
  redis.call('PEXPIRE', KEYS[1], kept[3])
end
return kept[1]
"""


class RedisLedger(Ledger):
    """`Ledger` on the server at `url`, for any number of gateways; belongs to one event loop."""

    def __init__(self, url: str) -> None:
        # Any: redis-py types an answer as the union of all that settings can make of it.
        self._redis: Any = redis.asyncio.Redis.from_url(
            url, socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S
        )
        self._lease = self._redis.register_script(_LEASE)
        self._renew = self._redis.register_script(_RENEW)
        self._take = self._redis.register_script(_TAKE)
        self._bind = self._redis.register_script(_BIND)
        self._ears: Any = None

    async def lease(self, places: Mapping[str, int], member: str) -> str | None:
        """See `Ledger.lease`."""
        with _reaching():
            full = await self._lease(
                keys=[_lease_key(place) for place in places],
                args=[member, int(LEASE_S * 1000), *places.values()],
            )
        return list(places)[full - 1] if full else None

    async def renew(self, leases: Mapping[str, Collection[str]]) -> None:
        """See `Ledger.renew`."""
        with _reaching():
            for place, members in leases.items():
                args: list[str | int] = [int(LEASE_S * 1000), *members]
                await self._renew(keys=[_lease_key(place)], args=args)

    async def give_back(self, places: Collection[str], member: str) -> None:
        """See `Ledger.give_back`."""
        with _reaching():
            async with self._redis.pipeline(transaction=False) as pipe:
                for place in places:
                    pipe.zrem(_lease_key(place), member)
                await pipe.execute()

    async def take(self, name: str, rate: Rate, cost: float = 1.0) -> float:
        """See `Ledger.take`."""
        with _reaching():
            args = [rate.per_s / 1000, rate.burst, cost]
            wait_ms = await self._take(keys=[f"nc:{{gw}}:bucket:{name}"], args=args)
        return float(wait_ms) / 1000

    async def put(self, key: str, text: str, *, first_s: float, keep_s: float) -> None:
        """See `Ledger.put`."""
        with _reaching():
            async with self._redis.pipeline() as pipe:
                fields = {"text": text, "keep": max(1, int(keep_s * 1000))}
                pipe.hset(_kept_key(key), mapping=fields)
                pipe.pexpire(_kept_key(key), int(first_s * 1000))
                await pipe.execute()

    async def bind(self, key: str, use: str) -> str | None:
        """See `Ledger.bind`."""
        with _reaching():
            text = await self._bind(keys=[_kept_key(key)], args=[use])
        return text.decode() if text else None

    async def tell(self, news: str) -> None:
        """See `Ledger.tell`."""
        with _reaching():
            await self._redis.publish(CHANNEL, news)

    async def hear(self) -> str:
        """See `Ledger.hear`."""
        with _reaching():
            if self._ears is None:
                ears = self._redis.pubsub(ignore_subscribe_messages=True)
                await ears.subscribe(CHANNEL)
                self._ears = ears
            while True:
                if news := await self._ears.get_message(timeout=HEAR_S):
                    return str(news["data"].decode())

    async def close(self) -> None:
        """See `Ledger.close`."""
        if self._ears is not None:
            await self._ears.aclose()
        await self._redis.aclose()


def tell(client: redis.Redis, news: str) -> None:
    """As `Ledger.tell`, from code without an event loop.

    Raises:
        LedgerUnavailable: the server cannot be reached.
    """
    with _reaching():
        client.publish(CHANNEL, news)


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise LedgerUnavailable(f"the store of shared limits failed: {error}") from error


def _lease_key(place: str) -> str:
    return f"nc:{{gw}}:lease:{place}"


def _kept_key(key: str) -> str:
    return f"nc:{{gw}}:kept:{key}"
