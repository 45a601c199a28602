"""`POST /hooks/{address}`: cap the size, verify, read the events, one transaction, answer.

The handler never calls out; whatever needs a tool or the network is done by a worker later.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response

from connectors.base import Hook, NoteEvent, Reply
from connectors.errors import Malformed, Rejected
from pipeline import intake
from pipeline.endpoints import Endpoint
from pipeline.errors import NotFound
from pipeline.web.problems import problem
from pipeline.web.site import Site

log = logging.getLogger(__name__)


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
        reply = await self._site.in_transaction(lambda: self._take(endpoint, hook))
        return Response(
            reply.body, reply.status, media_type=reply.content_type, headers=dict(reply.headers)
        )

    def _take(self, endpoint: Endpoint, hook: Hook) -> Reply:
        connector = endpoint.connector
        try:
            verified = connector.verify(hook, now=hook.received_at)
            if isinstance(verified, Reply):
                return verified
            events = connector.events(verified, hook)
        except (Rejected, Malformed) as error:
            log.info("hook refused", extra={"endpoint": endpoint.name, "reason": str(error)[:200]})
            return connector.refuse(error)
        reply = Reply.of(200, {"ok": True})
        for event in events:
            taken = self._accept(endpoint, event, hashlib.sha256(hook.body).hexdigest())
            reply = connector.answer(taken.accepted)
        return reply

    def _accept(self, endpoint: Endpoint, event: NoteEvent, digest: str) -> intake.Taken:
        event, casting = _completed(endpoint, event)
        services = self._services
        taken = intake.accept(
            services.database,
            services.links,
            services.doors[endpoint.name],
            event,
            body_digest=digest,
            casting=casting,
            speak_now=endpoint.speaks_now,
        )
        self._site.after_commit(taken)
        return taken


def _completed(endpoint: Endpoint, event: NoteEvent) -> tuple[NoteEvent, dict[str, str]]:
    """The event with the endpoint's defaults, and who speaks with which voice."""
    if event.note is None:
        return event, {}
    note = endpoint.complete(event.note)
    return replace(event, note=note), endpoint.casting(note)


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
