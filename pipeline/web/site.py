"""What all routes of the HTTP door share: services, transactions, API keys, start and stop."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

import sqlalchemy as sa
from fastapi import FastAPI, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from pipeline import intake
from pipeline.models import api_key
from pipeline.services import Services
from streaming.server import Gateway

T = TypeVar("T")


class Site:
    """The state of one web process.

    Attributes:
        is_ready: requests can be served.
    """

    def __init__(self, services: Services, gateway: Gateway) -> None:
        self.services = services
        self.gateway = gateway
        self.is_ready = False
        self._transactions = asyncio.Semaphore(services.settings.transactions)
        self._after_answer = ThreadPoolExecutor(1, thread_name_prefix="after-answer")
        self._keys: dict[str, float] = {}  # digest -> when it was seen valid

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Make what the first request would wait for."""
        await run_in_threadpool(lambda: (self.services.endpoints, self.services.doors))
        await run_in_threadpool(lambda: (self.services.links, self.services.sender))
        async with self.gateway:
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
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        if scheme.lower() != "bearer" or not self._is_valid(digest):
            raise HTTPException(
                401,
                "send an API key as 'Authorization: Bearer KEY'; 'notecast keys add' makes one",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _is_valid(self, digest: str) -> bool:
        now = time.monotonic()
        if now - self._keys.get(digest, -60.0) < 5.0:
            return True
        with self.services.database.read() as connection:
            row = connection.execute(
                sa.select(api_key.c.digest).where(
                    api_key.c.digest == digest, api_key.c.revoked_ms.is_(None)
                )
            ).first()
        if row is None or not hmac.compare_digest(row.digest, digest):
            self._keys.pop(digest, None)
            return False
        self._keys[digest] = now
        return True
