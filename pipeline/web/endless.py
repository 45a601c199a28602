"""A body that has no end of its own: sound and events while a session is spoken."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from streaming.tap import ChannelLost

log = logging.getLogger(__name__)

STUCK_S = 60.0  # a client that takes nothing for so long is left
LOOK_S = 2.0  # how often it is checked that the listener may still listen

HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx hands everything on at once
    "X-Content-Type-Options": "nosniff",
    "Access-Control-Allow-Origin": "*",
}


class BrokenOff(Exception):
    """Raised by a body that cannot go on: the connection is closed before its end."""


class Endless(Response):
    """Streams `body` until it ends, the client is gone or stuck, or may not go on.

    Only a body that came to its end is closed as HTTP wants it, so that a client can tell a whole
    stream from one that broke off. Nothing is read ahead: a slow client slows `body` down.

    Args:
        body: closed in any case.
        allowed: asked every two seconds; False breaks the stream off.
        ended: breaks the stream off when it is set.
        on_close: called at the end in any case, also if `body` was never begun.
    """

    def __init__(
        self,
        body: AsyncGenerator[bytes],
        *,
        media_type: str,
        allowed: Callable[[], Awaitable[bool]] | None = None,
        ended: asyncio.Event | None = None,
        headers: Mapping[str, str] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers({**HEADERS, **(headers or {})})
        self._body = body
        self._allowed = allowed
        self._ended = ended
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        works: list[Coroutine[Any, Any, object]] = [self._send(send), _until_gone(receive)]
        if self._allowed is not None:
            works.append(_until_refused(self._allowed))
        if self._ended is not None:
            works.append(self._ended.wait())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            try:
                await self._body.aclose()
            finally:
                if self._on_close is not None:
                    self._on_close()
        for result in results:
            if isinstance(result, (BrokenOff, ChannelLost)):
                log.info("body broken off: %s", result)
            elif isinstance(result, Exception):
                raise result

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        with contextlib.suppress(TimeoutError):
            async for part in self._body:
                async with asyncio.timeout(STUCK_S):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_refused(allowed: Callable[[], Awaitable[bool]]) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        if not await allowed():
            return


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
