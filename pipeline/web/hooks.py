"""`POST /hooks/{address}`: cap the size, verify, read the events, one transaction, answer.

The handler never calls out; whatever needs a tool or the network is done by a worker later.
"""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response

from connectors.base import Hook
from pipeline.errors import NotFound
from pipeline.web.problems import problem
from pipeline.web.site import Site


def routes(site: Site) -> APIRouter:
    """The door of every connector."""
    router = APIRouter(tags=["hooks"])
    router.post("/hooks/{address}")(_Hooks(site).receive_hook)
    return router


class _Hooks:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._services = site.services

    async def receive_hook(self, address: str, request: Request) -> Response:
        """Take a tool's message: 202 accepted, 200 seen before, 401, 404, 413, 422 or 503."""
        endpoint = self._services.endpoints.get(address)
        if endpoint is None:
            raise NotFound(f"there is no endpoint {address}; endpoints live in connectors.toml")
        limit = min(endpoint.connector.max_body_bytes, self._services.settings.body_limit_bytes)
        body = await _read_capped(request, limit)
        if body is None:
            return problem(413, "too_large", f"a hook may have at most {limit} bytes")
        hook = Hook(
            request.method,
            {name.lower(): value for name, value in request.headers.items()},
            body,
            datetime.now(UTC),
        )
        received = await self._site.in_transaction(
            lambda: self._services.hooks.receive(endpoint, hook)
        )
        for taken in received.taken:
            self._site.after_commit(taken)
        reply = received.reply
        return Response(
            reply.body, reply.status, media_type=reply.content_type, headers=dict(reply.headers)
        )


async def _read_capped(request: Request, limit: int) -> bytes | None:
    """The body, or None when it is larger than `limit` bytes (said or sent)."""
    said = request.headers.get("content-length", "0")
    if said.isdigit() and int(said) > limit:
        return None
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)
