"""Tickets: short-lived stand-ins for a link token where only a URL can carry a proof.

An `<audio>` element, a cast device or an HLS player sends no headers, and a token in a URL would
lie in logs for as long as the link works. A ticket is a random number: it must be used within a
minute, and from then on it opens nothing but the stream it was first used for. Works with any
`Ledger`; only its digest is kept there.

    ticket = await tickets.issue(grant, "ses_1")              # POST /v1/tickets
    grant = await tickets.redeem(ticket, "ses_1", "audio.mp3")   # GET ...audio.mp3?ticket=...
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, replace

from streaming.errors import BadTicket, LinkRevoked
from streaming.limits import Ledger
from streaming.tokens import Grant

FIRST_USE_S = 60.0
TICKET_BYTES = 16  # 128 random bits


class Tickets:
    """Issues and redeems tickets.

    Every method may raise `LedgerUnavailable`: answer 503.
    """

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._clock = clock

    async def issue(self, grant: Grant, sid: str) -> str:
        """Return a ticket (22 URL-safe characters) for session `sid`, bought with `grant`.

        It has the grant's role and link, and works no longer than the grant.

        Raises:
            LinkRevoked: the grant is for another session.
        """
        if not grant.covers(sid):
            raise LinkRevoked("the link is for another session")
        ticket = secrets.token_urlsafe(TICKET_BYTES)
        fields = asdict(replace(grant, sid=sid))
        text = json.dumps({name: value for name, value in fields.items() if value})
        left_s = grant.expires - self._clock()
        key = _key(ticket, sid)
        await self._ledger.put(key, text, first_s=min(FIRST_USE_S, left_s), keep_s=left_s)
        return ticket

    async def redeem(self, ticket: str, sid: str, stream: str) -> Grant:
        """Return what `ticket` grants, and bind it to `stream` of session `sid`.

        Args:
            stream: what is fetched with it, by any name: a player may come back for parts of the
                same stream (`Range`, HLS segments) until the grant expires, for no other.

        Raises:
            BadTicket: unknown, first used too late, or for another stream or session. (A link
                that was revoked meanwhile is the caller's to check: `LinkBook.is_good`.)
        """
        text = await self._ledger.bind(_key(ticket, sid), stream)
        if text is None:
            raise BadTicket("the ticket has expired or is for another stream; open the page again")
        fields = json.loads(text)
        return Grant(**fields | {"scopes": tuple(fields.get("scopes", ()))})


def _key(ticket: str, sid: str) -> str:
    return hashlib.sha256(f"{sid}/{ticket}".encode()).hexdigest()
