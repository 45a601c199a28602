"""What all routes of the HTTP door share: services, transactions, API keys, start and stop."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa
from fastapi import FastAPI, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from pipeline import intake
from pipeline.listening import told
from pipeline.metrics import Metrics
from pipeline.models import api_key
from pipeline.services import Services
from streaming.gateway import Gateway

T = TypeVar("T")
KEY_KEEP_S = 5.0  # how long a revoked key may still work


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A valid API key, as the table knows it."""

    id: str
    name: str
    scopes: frozenset[str]


class Site:
    """The state of one web process.

    Attributes:
        is_ready: requests can be served.
    """

    def __init__(self, services: Services, gateway: Gateway) -> None:
        self.services = services
        self.gateway = gateway
        self.metrics = Metrics(gateway, services.database, services.chunks)
        self.is_ready = False
        self._transactions = asyncio.Semaphore(services.settings.transactions)
        self._after_answer = ThreadPoolExecutor(1, thread_name_prefix="after-answer")
        self._keys: dict[str, tuple[float, ApiKey]] = {}  # digest or id -> seen valid, what it is

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Make what the first request would wait for."""
        await run_in_threadpool(lambda: (self.services.endpoints, self.services.doors))
        await run_in_threadpool(lambda: (self.services.links, self.services.sender))
        async with (
            self.gateway,
            told(self.services, self.gateway),
            self.metrics.watching(),
        ):
            self.is_ready = True
            yield
            self.is_ready = False
        self._after_answer.shutdown(cancel_futures=True)

    async def in_transaction(self, work: Callable[[], T]) -> T:
        """Run blocking work on a thread, so many at once that the database is busy, not more."""
        async with self._transactions:
            return await run_in_threadpool(work)

    def after_commit(self, taken: intake.Taken) -> None:
        """Do what a stored event causes: wake-ups now, ends of older episodes after the answer."""
        self.services.sender.committed(taken.wake_ups)
        for key, fence in taken.cancelled:
            # not before the answer: the live log may be away, and the sender waits
            self._after_answer.submit(self.services.end_live, key, fence)

    def check_key(self, request: Request) -> None:
        """Refuse requests without a valid API key (`Authorization: Bearer ...`)."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or self.key_of(key) is None:
            raise HTTPException(
                401,
                "send an API key as 'Authorization: Bearer KEY'; 'notecast keys add' makes one",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def key_of(self, key: str) -> ApiKey | None:
        """What is known of an API key; None if it is unknown or was revoked over 5 s ago."""
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        return self._known(digest, api_key.c.digest == digest)

    def key_of_id(self, key_id: str) -> ApiKey | None:
        """As `key_of`, for who has shown the key before."""
        return self._known(key_id, api_key.c.id == key_id)

    def _known(self, name: str, which: sa.ColumnElement[bool]) -> ApiKey | None:
        now = time.monotonic()
        kept = self._keys.get(name)
        if kept is not None and now - kept[0] < KEY_KEEP_S:
            return kept[1]
        with self.services.database.read() as connection:
            row = connection.execute(
                sa.select(api_key.c.id, api_key.c.name, api_key.c.scopes).where(
                    which, api_key.c.revoked_ms.is_(None)
                )
            ).first()
        if row is None:
            self._keys.pop(name, None)
            return None
        known = ApiKey(row.id, row.name, frozenset(row.scopes))
        self._keys[name] = (now, known)
        return known
