"""The player page and the finished files."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

from pipeline import episode_view, links
from pipeline.links import FILE_SCOPE
from pipeline.services import Services
from pipeline.storage import content_type_of
from pipeline.web.problems import problem
from pipeline.web.site import Site
from streaming.errors import TokenError

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


def routes(site: Site) -> APIRouter:
    """Pages and files; each file needs a ticket or a link's token."""
    handlers = _Files(site)
    router = APIRouter()
    router.get("/l/{slug}", include_in_schema=False)(handlers.player)
    router.get("/episodes/{name}", tags=["listening"])(handlers.file)
    router.head("/episodes/{name}", include_in_schema=False)(handlers.file)
    return router


def mount_static(app: FastAPI) -> None:
    """The page's own files, under `/static`."""
    app.mount("/static", GZipMiddleware(_PageFiles(directory=STATIC)), name="static")


class _PageFiles(StaticFiles):
    """The page's own files, under the page's own rules."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """As the base class; browsers ask again each time, so an update is seen at once."""
        response = super().file_response(*arguments, **options)
        for name, value in {**PAGE_HEADERS, "Cache-Control": "no-cache"}.items():
            response.headers[name] = value
        return response


class _Files:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._services = site.services

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
            return problem(401, "unauthenticated", str(error))
        if not grant.covers(key) or (ticket and FILE_SCOPE not in grant.scopes):
            return problem(403, "forbidden", "this ticket is for another file")
        if grant.link and not await self._site.in_transaction(lambda: self._is_good(grant.link)):
            return problem(403, "forbidden", "this link was revoked")
        return await self._site.in_transaction(
            lambda: stored_file(self._services, key, extension, request)
        )

    def _is_good(self, link_id: str) -> bool:
        found = links.status(self._services.database, link_id)
        return found is not None and not found.revoked


def stored_file(services: Services, key: str, extension: str, request: Request) -> Response:
    """A finished file, whole or a range of it; blocks.

    Raises:
        NotFound: there is none, or not yet.
    """
    found = episode_view.file_of(services.database, key, extension)
    part = byte_range(request.headers.get("range"), found.size_bytes)
    start, end = part or (0, found.size_bytes)
    if start >= end:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{found.size_bytes}"})
    headers = file_headers(f"{key}.{extension}", found.size_bytes, part)
    media_type = content_type_of(found.object_key)
    if request.method == "HEAD":
        return Response(headers=headers, media_type=media_type)
    body = services.storage.open(found.object_key, start, end)

    def stream() -> Iterator[bytes]:
        with body:
            yield from body

    return StreamingResponse(stream(), 206 if part else 200, headers=headers, media_type=media_type)


def file_headers(name: str, size_bytes: int, part: tuple[int, int] | None) -> dict[str, str]:
    """The headers of a file of that name, or of a part of it."""
    start, end = part or (0, size_bytes)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - start),
        "Content-Disposition": f'inline; filename="{name}"',
        "Cache-Control": "private, max-age=3600",
        "X-Content-Type-Options": "nosniff",
        "Access-Control-Allow-Origin": "*",
    }
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    return headers


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
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
