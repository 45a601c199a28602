"""Who may come in, and how much each may have: leases, and bytes that several share.

If the ledger cannot be reached, nobody is turned away for it: a listener who has a valid link is
worth more than an exact count.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from streaming.errors import LedgerUnavailable
from streaming.limits import RENEW_S, Ledger, Limits, Rate
from streaming.tokens import Grant

log = logging.getLogger(__name__)

FIRST_BYTES = 65_536  # of a purse, so that nobody waits for the ledger at the begin
BLOCK_BYTES = 262_144  # what a purse draws at a time
IPV6_HOME = 64  # bits: one household or server has a whole network of addresses
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class SecurityEvent(NamedTuple):
    """Something that whoever runs the place should be able to look up.

    `kind` is an error code of the protocol, or `revoked`, `replaced`, `origin`.
    """

    kind: str
    address: str
    link: str = ""
    detail: str = ""


def is_loopback(peer: object) -> bool:
    """Say if a socket's peer is a process of this machine."""
    try:
        found = ipaddress.ip_address(peer[0] if isinstance(peer, tuple) else "")
    except ValueError:
        return False
    mapped = found.ipv4_mapped if found.version == 6 else None
    return (mapped or found).is_loopback


class Admission:
    """Leases of one gateway's connections.

    Args:
        trusted: addresses or networks of proxies whose `X-Forwarded-For` is believed.
    """

    def __init__(self, ledger: Ledger, limits: Limits, *, trusted: Iterable[str] = ()) -> None:
        self._ledger = ledger
        self._limits = limits
        self._trusted: list[Network] = [ipaddress.ip_network(one) for one in trusted]
        self._held: dict[str, set[str]] = {}  # places by connection
        self._purses: dict[str, _Purse] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._away = False

    def address(self, peer: object, forwarded: Iterable[str]) -> str:
        """Whose connection it is: `peer` is the socket's, or what a trusted proxy says it is.

        An IPv6 address stands for its /64. Empty for a unix socket that no proxy speaks for.
        """
        host = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        chain = [part.strip() for line in forwarded for part in line.split(",")]
        while chain and (not host or self._is_trusted(host)):
            host = chain.pop()
        try:
            found = ipaddress.ip_address(host)
        except ValueError:
            return host[:64]
        if found.version == 4:
            return str(found)
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, IPV6_HOME), strict=False))

    async def enter(self, conn: str, address: str) -> bool:
        """Take a place at `address` for connection `conn`; say if there was one."""
        places = {f"address:{address}": self._limits.per_address} if address else {}
        return await self._lease(conn, places) is None

    async def join(self, conn: str, grant: Grant) -> str | None:
        """Take the places of the link and its user; gives a sentence if one of them is full."""
        places = {f"link:{grant.link}": grant.max_listeners or self._limits.per_link}
        if person := grant.person:
            places[f"user:{person}"] = self._limits.per_user
        full = await self._lease(conn, places)
        if full is None:
            return None
        whose = "by this user" if full.startswith("user:") else "over this link"
        return f"{places[full]} connections {whose} are open already"

    def leave(self, conn: str) -> None:
        """Give back all that connection `conn` holds."""
        if places := self._held.pop(conn, None):
            self._begin(self._give_back(conn, places))

    def purse(self, grant: Grant) -> _Purse | None:
        """The bytes that all listeners of the grant's user share; None if it has no user."""
        if (person := grant.person) is None:
            return None
        if person not in self._purses:
            idle = [name for name, purse in self._purses.items() if purse.is_idle]
            for name in idle:
                del self._purses[name]
            self._purses[person] = _Purse(self._ledger, person, self._limits.user_egress)
        return self._purses[person]

    async def renew_for_ever(self) -> None:
        """Renew the leases as long as the gateway lives."""
        while True:
            await asyncio.sleep(RENEW_S)
            members: dict[str, set[str]] = {}
            for conn, places in self._held.items():
                for place in places:
                    members.setdefault(place, set()).add(conn)
            with self._reaching():
                await self._ledger.renew(members)

    async def close(self) -> None:
        """Wait until all is given back."""
        for purse in self._purses.values():
            purse.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _lease(self, conn: str, places: Mapping[str, int]) -> str | None:
        if places:
            with self._reaching():
                if full := await self._ledger.lease(places, conn):
                    return full
            self._held.setdefault(conn, set()).update(places)
        return None

    async def _give_back(self, conn: str, places: set[str]) -> None:
        with self._reaching():
            await self._ledger.give_back(places, conn)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _is_trusted(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
            self._away = False
        except LedgerUnavailable as error:
            if not self._away:
                log.warning("limits are not counted for now: %s", error)
            self._away = True


class _Purse:
    """Bytes drawn from a shared bucket in blocks, because each draw may be a round trip."""

    def __init__(self, ledger: Ledger, person: str, rate: Rate) -> None:
        self._ledger = ledger
        self._name = f"egress:{person}"
        self._rate = rate
        self._block = min(BLOCK_BYTES, rate.burst)
        self._credit = min(float(FIRST_BYTES), rate.burst)
        self._drawing: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Nothing is being drawn: nobody misses it."""
        return self._drawing is None

    def left(self) -> float:
        """What may be sent now; more is drawn in time."""
        if self._credit < self._block / 2 and self._drawing is None:
            self._drawing = asyncio.get_running_loop().create_task(self._draw())
        return self._credit

    def spend(self, size_bytes: int) -> None:
        """Take what was sent."""
        self._credit -= size_bytes

    def close(self) -> None:
        """Draw no more."""
        if self._drawing is not None:
            self._drawing.cancel()

    async def _draw(self) -> None:
        try:
            while wait_s := await self._ledger.take(self._name, self._rate, self._block):
                await asyncio.sleep(wait_s)
            self._credit += self._block
        except LedgerUnavailable:
            self._credit += self._block  # as for leases: nobody is kept waiting for a count
        finally:
            self._drawing = None
