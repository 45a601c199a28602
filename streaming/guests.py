"""Listeners who came without a WebSocket: the gateway counts them, and can end their listening."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from streaming.errors import StreamingError
from streaming.tokens import Grant


class NoPlace(StreamingError):
    """Nobody more is let in; `status` and `code` are those of the protocol's errors."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True, eq=False)
class Guest:
    """One endless answer, to whoever holds `grant`.

    Attributes:
        name: of the connection, among the leases.
        ended: set when the listening is to be broken off (kicked, revoked, expired, drained).
    """

    name: str
    sid: str
    grant: Grant
    address: str
    ended: asyncio.Event = field(default_factory=asyncio.Event)
