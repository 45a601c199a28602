"""How much one person, link, address, connection or session may use, and who keeps count.

A connection holds *leases* (one place each among those of its user, its link and its address) and
draws from *buckets* (messages, orders, bytes). What all gateways must count together stands in a
`Ledger`: `MemoryLedger` for one process, `redis_limits.RedisLedger` for several. Both pass the same
tests.
"""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

LEASE_S = 90.0  # a gateway that died gives its places back after this
RENEW_S = 30.0


class Rate(NamedTuple):
    """What a bucket gains each second, and the most it holds."""

    per_s: float
    burst: float


class Limits(NamedTuple):
    """The limits of a gateway; `docs/operations.md` explains each."""

    per_user: int = 10
    per_link: int = 500
    per_address: int = 50
    connections: int = 4000  # of this process
    streams: int = 8  # of one connection
    messages: Rate = Rate(30, 60)  # of one connection, without orders
    controls: Rate = Rate(20, 20)  # of one connection
    session_controls: Rate = Rate(5, 10)  # of one session, from everybody
    egress: Rate = Rate(200_000, 512_000)  # bytes to one listener who is behind the live edge
    user_egress: Rate = Rate(4_000_000, 4_000_000)  # bytes to all listeners of one user
    hello_s: float = 5.0
    idle_s: float = 60.0  # a connection without an open session


@dataclass(slots=True)
class Bucket:
    """A token bucket in this process; full at first, `now` only ever grows."""

    rate: Rate
    tokens: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        """Fill it."""
        self.tokens = self.rate.burst

    def refill(self, now: float) -> float:
        """Add what came since the last call; return what is there."""
        if now > self.at:
            gained = (now - self.at) * self.rate.per_s
            self.tokens = min(self.rate.burst, self.tokens + gained)
            self.at = now
        return self.tokens

    def take(self, now: float, cost: float = 1.0) -> float:
        """Take `cost` and return 0.0, or take nothing and return the seconds until it is there."""
        if self.refill(now) >= cost:
            self.tokens -= cost
            return 0.0
        return (cost - self.tokens) / self.rate.per_s


def revocation(link: str) -> str:
    """The news that link id `link` opens nothing any more."""
    return json.dumps({"revoke": link})


class Ledger(ABC):
    """What the gateways of one installation count and keep together.

    Every method may raise `LedgerUnavailable`.
    """

    @abstractmethod
    async def lease(self, places: Mapping[str, int], member: str) -> str | None:
        """Give `member` a lease in each of `places` (name -> most members), or in none.

        Leases run out after `LEASE_S` unless they are renewed. Safe to repeat.

        Returns:
            The name of a place that is full; None if the leases were given.
        """

    @abstractmethod
    async def renew(self, leases: Mapping[str, Collection[str]]) -> None:
        """Let the leases (members by place) run for another `LEASE_S`."""

    @abstractmethod
    async def give_back(self, places: Collection[str], member: str) -> None:
        """End the leases of `member`."""

    @abstractmethod
    async def take(self, name: str, rate: Rate, cost: float = 1.0) -> float:
        """As `Bucket.take`, from the bucket `name` that all gateways share."""

    @abstractmethod
    async def put(self, key: str, text: str, *, first_s: float, keep_s: float) -> None:
        """Keep `text` for `first_s`; from its first `bind` on, for `keep_s`."""

    @abstractmethod
    async def bind(self, key: str, use: str) -> str | None:
        """Return what was put under `key` and bind it to `use`.

        Returns:
            None if nothing is there, or if it is bound to another use.
        """

    @abstractmethod
    async def tell(self, news: str) -> None:
        """Tell every gateway, this one too."""

    @abstractmethod
    async def hear(self) -> str:
        """Wait for the next news; what was told before the first call is not heard."""

    @abstractmethod
    async def close(self) -> None:
        """Give connections back."""


class MemoryLedger(Ledger):
    """`Ledger` in one process and one event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._leases: dict[str, dict[str, float]] = {}  # place -> member -> when it runs out
        self._buckets: dict[str, Bucket] = {}
        self._kept: dict[str, _Kept] = {}
        self._ears: asyncio.Queue[str] | None = None

    async def lease(self, places: Mapping[str, int], member: str) -> str | None:
        """See `Ledger.lease`."""
        now = self._clock()
        for place, most in places.items():
            held = self._held(place, now)
            if member not in held and len(held) >= most:
                return place
        for place in places:
            self._leases.setdefault(place, {})[member] = now + LEASE_S
        return None

    async def renew(self, leases: Mapping[str, Collection[str]]) -> None:
        """See `Ledger.renew`."""
        until = self._clock() + LEASE_S
        for place, members in leases.items():
            self._leases.setdefault(place, {}).update(dict.fromkeys(members, until))

    async def give_back(self, places: Collection[str], member: str) -> None:
        """See `Ledger.give_back`."""
        for place in places:
            held = self._leases.get(place, {})
            held.pop(member, None)
            if not held:
                self._leases.pop(place, None)

    async def take(self, name: str, rate: Rate, cost: float = 1.0) -> float:
        """See `Ledger.take`."""
        now = self._clock()
        bucket = self._buckets.get(name)
        if bucket is None:
            full = [k for k, b in self._buckets.items() if b.refill(now) >= b.rate.burst]
            for key in full:  # a full bucket is as good as none
                del self._buckets[key]
            bucket = self._buckets[name] = Bucket(rate, at=now)
        return bucket.take(now, cost)

    async def put(self, key: str, text: str, *, first_s: float, keep_s: float) -> None:
        """See `Ledger.put`."""
        now = self._clock()
        for old in [name for name, kept in self._kept.items() if kept.until <= now]:
            del self._kept[old]
        self._kept[key] = _Kept(text, now + first_s, keep_s)

    async def bind(self, key: str, use: str) -> str | None:
        """See `Ledger.bind`."""
        kept = self._kept.get(key)
        if kept is None or kept.until <= self._clock() or kept.use not in (None, use):
            return None
        if kept.use is None:
            kept.use, kept.until = use, self._clock() + kept.keep_s
        return kept.text

    async def tell(self, news: str) -> None:
        """See `Ledger.tell`."""
        if self._ears is not None:
            self._ears.put_nowait(news)

    async def hear(self) -> str:
        """See `Ledger.hear`."""
        if self._ears is None:
            self._ears = asyncio.Queue()
        return await self._ears.get()

    async def close(self) -> None:
        """See `Ledger.close`."""
        self._ears = None

    def _held(self, place: str, now: float) -> dict[str, float]:
        held = self._leases.get(place, {})
        for member in [one for one, until in held.items() if until <= now]:
            del held[member]
        return held


@dataclass(slots=True)
class _Kept:
    text: str
    until: float
    keep_s: float
    use: str | None = None
