"""The HTTP door: hooks, the episode API, the player page, finished files, health.

A hook's handler does only this: cap the size, verify, read the events, one transaction, answer. It
never calls out. WebSocket upgrades on the same port are `streaming.server`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from connectors.base import Hook, Note, NoteEvent, NoteRef, Reply
from connectors.errors import Malformed, Rejected
from connectors.payload import json_pointer
from pipeline import episode_view, intake, links
from pipeline.endpoints import Endpoint
from pipeline.errors import DatabaseUnavailable, NotFound, PipelineError, Refused
from pipeline.links import FILE_SCOPE
from pipeline.models import api_key, worker
from pipeline.operate import stop_episode
from pipeline.services import Services
from pipeline.storage import StorageUnavailable, content_type_of
from streaming.errors import TokenError
from streaming.server import Gateway

log = logging.getLogger(__name__)

STATIC = Path(str(resources.files("streaming"))) / "static"
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
        "media-src 'self' blob:; style-src 'self'; script-src 'self'; worker-src 'self'; "
        "frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
TEXT_LIMIT = 200_000


class NewEpisode(BaseModel):
    """What `POST /v1/episodes` takes."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT)]
    title: Annotated[str, Field(max_length=400)] = ""
    lang: Annotated[str, Field(pattern=r"^[a-z]{2}$|^auto$|^$")] = ""
    voice: Annotated[str, Field(max_length=200)] = ""
    speakers: dict[str, str] = Field(default_factory=dict, description="speaker -> voice")
    emotion: Annotated[str, Field(max_length=200)] = ""
    duration: Annotated[str, Field(description="free, fixed:90s, max:5m or speed:1.1")] = ""
    detail: Literal["", "brief", "full", "verbatim"] = ""


def make_web(services: Services, gateway: Gateway) -> FastAPI:
    """The application; `services` must outlive it, and `gateway` runs while it does."""
    web = _Web(services, gateway)
    app = FastAPI(
        title="Notecast",
        description="Meeting notes in, a live voice out.",
        version="1",
        docs_url="/docs",
        redoc_url=None,
        lifespan=web.lifespan,
    )
    app.exception_handler(PipelineError)(_pipeline_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(StarletteHTTPException)(_http_error)
    app.exception_handler(Exception)(_internal_error)

    app.post("/hooks/{address}", tags=["hooks"])(web.receive_hook)
    keyed = [Depends(web.check_key)]
    app.post("/v1/episodes", status_code=202, tags=["episodes"], dependencies=keyed)(web.create)
    app.get("/v1/episodes", tags=["episodes"], dependencies=keyed)(web.newest)
    app.get("/v1/episodes/{key}", tags=["episodes"], dependencies=keyed)(web.show)
    app.post("/v1/episodes/{key}/stop", tags=["episodes"], dependencies=keyed)(web.stop)
    app.get("/l/{slug}", include_in_schema=False)(web.player)
    app.get("/episodes/{name}", tags=["listening"])(web.file)
    app.head("/episodes/{name}", include_in_schema=False)(web.file)
    app.get("/healthz", tags=["operations"])(web.healthz)
    app.get("/readyz", tags=["operations"])(web.readyz)
    app.mount("/static", GZipMiddleware(_PageFiles(directory=STATIC)), name="static")
    return app


class _PageFiles(StaticFiles):
    """The page's own files, under the page's own rules."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """As the base class; browsers ask again each time, so an update is seen at once."""
        response = super().file_response(*arguments, **options)
        for name, value in {**PAGE_HEADERS, "Cache-Control": "no-cache"}.items():
            response.headers[name] = value
        return response


class _Web:
    """The handlers; each does one step and calls the pipeline for the rest."""

    def __init__(self, services: Services, gateway: Gateway) -> None:
        self._services = services
        self._gateway = gateway
        self._transactions = asyncio.Semaphore(services.settings.transactions)
        self._after_answer = ThreadPoolExecutor(1, thread_name_prefix="after-answer")
        self._keys: dict[str, float] = {}  # digest -> when it was seen valid
        self._is_ready = False

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Make what the first request would wait for."""
        await run_in_threadpool(lambda: (self._services.endpoints, self._services.doors))
        await run_in_threadpool(lambda: (self._services.links, self._services.sender))
        async with self._gateway:
            self._is_ready = True
            yield
            self._is_ready = False
        self._after_answer.shutdown(cancel_futures=True)

    # hooks

    async def receive_hook(self, address: str, request: Request) -> Response:
        """Take a tool's message: 202 accepted, 200 seen before, 401, 404, 413, 422 or 503."""
        endpoint = self._services.endpoints.get(address)
        if endpoint is None:
            raise NotFound(f"there is no endpoint {address}; endpoints live in connectors.toml")
        limit = min(endpoint.connector.max_body_bytes, self._services.settings.body_limit_bytes)
        body = await _read_capped(request, limit)
        if body is None:
            return _problem(413, "too_large", f"a hook may have at most {limit} bytes")
        hook = Hook(
            request.method,
            {name.lower(): value for name, value in request.headers.items()},
            body,
            datetime.now(UTC),
        )
        reply = await self._in_transaction(lambda: self._take(endpoint, hook))
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
        self._after_commit(taken)
        return taken

    def _after_commit(self, taken: intake.Taken) -> None:
        self._services.sender.committed(taken.wake_ups)
        for key, fence in taken.cancelled:
            # not before the answer: the live log may be away, and the sender waits
            self._after_answer.submit(self._services.end_live, key, fence)

    async def _in_transaction(self, work: Callable[[], Any]) -> Any:
        """Run blocking work on a thread, so many at once that the database is busy, not more."""
        async with self._transactions:
            return await run_in_threadpool(work)

    # episodes

    async def create(self, request: Request, new: Annotated[NewEpisode, Body()]) -> dict[str, Any]:
        """Speak a text. `Idempotency-Key` makes repeats harmless."""
        key = request.headers.get("idempotency-key") or ""
        text = new.model_dump_json()
        ref = NoteRef("api")
        content = Note(ref=ref, **{k: v for k, v in new.model_dump().items() if k != "voice"})
        wanted = {"default": new.voice} if new.voice else {}
        event = NoteEvent(
            delivery_key=key[:200]
            or f"once-{time.time_ns()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}",
            ref=ref,
            note=content,
        )

        def work() -> dict[str, Any]:
            taken = intake.accept(
                self._services.database,
                self._services.links,
                self._services.doors["api"],
                event,
                body_digest=hashlib.sha256(text.encode()).hexdigest(),
                casting={**wanted, **new.speakers},
            )
            self._after_commit(taken)
            view = episode_view.show(self._services, taken.accepted.episode)
            return {**view, "duplicate": taken.accepted.duplicate}

        answer: dict[str, Any] = await self._in_transaction(work)
        return answer

    async def newest(
        self,
        limit: Annotated[int, Query(ge=1, le=200)] = 20,
        status: Literal["queued", "live", "done", "failed", "cancelled"] | None = None,
    ) -> dict[str, Any]:
        """The newest episodes first."""
        found = await self._in_transaction(
            lambda: episode_view.newest(self._services, limit=limit, status=status)
        )
        return {"episodes": found}

    async def show(self, key: str) -> dict[str, Any]:
        """One episode."""
        answer: dict[str, Any] = await self._in_transaction(
            lambda: episode_view.show(self._services, key)
        )
        return answer

    async def stop(self, key: str) -> dict[str, Any]:
        """Stop an episode that is not finished; listeners are told."""

        def work() -> dict[str, Any]:
            stop_episode(self._services, key, actor="api")
            return episode_view.show(self._services, key)

        answer: dict[str, Any] = await self._in_transaction(work)
        return answer

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
        with self._services.database.read() as connection:
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

    # listening

    async def player(self, slug: str) -> Response:
        """The player page; what it plays stands in the fragment, which never reaches us."""
        return FileResponse(STATIC / "player.html", headers=PAGE_HEADERS)

    async def file(
        self, name: str, request: Request, ticket: Annotated[str, Query()] = ""
    ) -> Response:
        """A finished file (`KEY.mp3`, `.ogg`, `.vtt`, `.chapters.json`), whole or a range of it.

        Needs the ticket that the live stream named, or a link token as `Authorization: Bearer`.
        """
        key, _, extension = name.partition(".")
        _scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        try:
            grant = self._services.links.ring.verify(ticket or bearer, now=time.time())
        except TokenError as error:
            return _problem(401, "unauthenticated", str(error))
        if not grant.covers(key) or (ticket and FILE_SCOPE not in grant.scopes):
            return _problem(403, "forbidden", "this ticket is for another file")
        if grant.link and not await self._in_transaction(lambda: self._is_good(grant.link)):
            return _problem(403, "forbidden", "this link was revoked")
        answer: Response = await self._in_transaction(lambda: self._serve(key, extension, request))
        return answer

    def _is_good(self, link_id: str) -> bool:
        found = links.status(self._services.database, link_id)
        return found is not None and not found.revoked

    def _serve(self, key: str, extension: str, request: Request) -> Response:
        found = episode_view.file_of(self._services.database, key, extension)
        storage = self._services.storage
        part = _range(request.headers.get("range"), found.size_bytes)
        start, end = part or (0, found.size_bytes)
        if start >= end:
            return Response(
                status_code=416, headers={"Content-Range": f"bytes */{found.size_bytes}"}
            )
        body = storage.open(found.object_key, start, end)
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": str(end - start),
            "Content-Disposition": f'inline; filename="{key}.{extension}"',
            "Cache-Control": "private, max-age=3600",
            "X-Content-Type-Options": "nosniff",
            "Access-Control-Allow-Origin": "*",
        }
        if part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.size_bytes}"

        def stream() -> Iterator[bytes]:
            with body:
                yield from body

        if request.method == "HEAD":
            body.close()
            return Response(headers=headers, media_type=content_type_of(found.object_key))
        return StreamingResponse(
            stream(),
            206 if part else 200,
            headers=headers,
            media_type=content_type_of(found.object_key),
        )

    # operations

    async def healthz(self) -> dict[str, bool]:
        """This process answers."""
        return {"ok": True}

    async def readyz(self) -> Response:
        """This process can accept: 200 with the number of voices that are ready, else 503."""

        def look() -> int:
            with self._services.database.read() as connection:
                ready = sa.select(sa.func.count()).where(
                    worker.c.state == "ready", worker.c.slots > 0
                )
                count: int = connection.execute(ready).scalar_one()
                return count

        if not self._is_ready:
            return _problem(503, "starting", "not ready yet")
        return JSONResponse({"ok": True, "voices": await self._in_transaction(look)})


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


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """(start, end) of a single-range header, empty if it lies behind the file's end.

    None for no header, and for what may be ignored: several ranges, other units, nonsense (RFC 9110
    section 14.2).
    """
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", (header or "").replace(" ", ""))
    if found is None or found[1] == found[2] == "":
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size
    start, end = int(found[1]), int(found[2]) + 1 if found[2] else size
    if found[2] and end <= start:
        return None
    return start, min(size, end)


def _problem(
    status: int, code: str, message: str, *, field: str = "", headers: dict[str, str] | None = None
) -> JSONResponse:
    error: dict[str, Any] = {"code": code, "message": message}
    if field:
        error["field"] = field
    return JSONResponse({"ok": False, "error": error}, status, headers=headers)


async def _pipeline_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PipelineError)
    headers = {}
    if isinstance(error, (DatabaseUnavailable, StorageUnavailable)):
        log.warning("cannot answer: %s", error)
        headers["Retry-After"] = str(round(getattr(error, "after_s", 2.0)))
        return _problem(503, error.code, "not available at the moment, try again", headers=headers)
    field = error.field if isinstance(error, Refused) else ""
    return _problem(error.status, error.code, str(error), field=field)


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _problem(422, "bad_request", f"the body is not JSON: {first['ctx']['error']}")
    pointer = json_pointer(part for part in first["loc"] if part != "body")
    return _problem(422, "bad_request", first["msg"], field=pointer)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    code = {401: "unauthenticated", 404: "not_found", 405: "method_not_allowed"}
    return _problem(
        error.status_code,
        code.get(error.status_code, "error"),
        str(error.detail),
        headers=dict(error.headers or {}),
    )


async def _internal_error(_request: Request, error: Exception) -> Response:
    log.exception("request failed", exc_info=error)
    return _problem(500, "internal", "something broke here; it is in our log")
