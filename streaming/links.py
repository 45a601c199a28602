"""Live-listening links: made, checked, and switched off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from streaming.errors import LinkRevoked, ListenError
from streaming.tokens import PREFIX, Grant, KeyRing, Role

STATUS_KEEP_S = 5.0  # a revoked link opens nothing, and its sockets are closed, within this
MAX_CACHED = 10_000


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """What the table of links says about one link."""

    revoked: bool = False
    expires: float | None = None  # Unix s; overrides the token's when it is earlier


def listen_url(base: str, slug: str, token: str) -> str:
    """Return the link for people.

    The token stands in the fragment: no server log, proxy or Referer sees it.
    """
    return f"{base.rstrip('/')}/l/{quote(slug, safe='')}#t={token}"


def socket_url(link: str) -> tuple[str, str]:
    """Split a listen link into the address of its WebSocket and the token.

    Raises:
        ListenError: it is no listen link.
    """
    parts = urlsplit(link)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc or not parts.fragment.startswith("t="):
        raise ListenError("link", "this is no listen link; it looks like https://host/l/name#t=...")
    prefix = parts.path.partition("/l/")[0].rstrip("/")
    return f"{scheme}://{parts.netloc}{prefix}/v1/live", parts.fragment.removeprefix("t=")


class LinkBook:
    """Signs and checks link tokens against the keys and the table of links.

    Args:
        ring: the signing keys.
        status: returns what the table says about a link id, None if it is not in there. It may
            block (it is called in a worker thread) and is asked at most every 5 s for a link.
            Without it the token alone decides, and links cannot be revoked.
        accounts: returns what a text that is no link token (an API key) grants, or raises
            `BadToken`; it may block too.
    """

    def __init__(
        self,
        ring: KeyRing,
        status: Callable[[str], LinkStatus | None] | None = None,
        *,
        accounts: Callable[[str], Grant] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ring = ring
        self._status = status
        self._accounts = accounts
        self._clock = clock
        self._cache: dict[str, tuple[float, LinkStatus | None]] = {}

    def mint(
        self,
        link: str,
        sid: str,
        *,
        expires: int,
        role: Role = "listener",
        scopes: tuple[str, ...] = (),
    ) -> str:
        """Return the token of link id `link` for session `sid` until `expires` (Unix s)."""
        return self._ring.sign(Grant(link, role, expires, sid=sid, scopes=scopes))

    def verify(self, token: str) -> Grant:
        """Check signature and expiry only; see `KeyRing.verify`."""
        return self._ring.verify(token, now=self._clock())

    async def check(self, token: str) -> Grant:
        """Return what `token` grants now.

        Raises:
            BadToken, TokenExpired, LinkRevoked: it grants nothing.
        """
        if self._accounts is not None and not token.startswith(PREFIX):
            return await asyncio.to_thread(self._accounts, token)
        grant = self.verify(token)
        if not await self.is_good(grant.link):
            raise LinkRevoked("the link was revoked; ask for a new one")
        return grant

    async def is_good(self, link: str, *, max_age_s: float = STATUS_KEEP_S) -> bool:
        """Say if link id `link` is in the table and not switched off, as of `max_age_s` ago."""
        if self._status is None:
            return True
        now = self._clock()
        asked_at, status = self._cache.get(link, (0.0, None))
        if now >= asked_at + max_age_s:
            status = await asyncio.to_thread(self._status, link)
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            self._cache[link] = (now, status)
        if status is None or status.revoked:
            return False
        return status.expires is None or now < status.expires

    def forget(self, link: str) -> None:
        """Ask the table again at the next check: the link was changed a moment ago."""
        self._cache.pop(link, None)
