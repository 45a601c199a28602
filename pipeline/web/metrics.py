"""`/metrics` for Prometheus: open to this machine, to others with an API key of scope `admin`."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request, Response

from pipeline.metrics import CONTENT_TYPE
from pipeline.web.site import Site
from streaming.admission import is_loopback


def routes(site: Site) -> APIRouter:
    """Operations."""
    handlers = _Metrics(site)
    router = APIRouter(tags=["operations"])
    router.get("/metrics", response_class=Response)(handlers.show)
    return router


class _Metrics:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def show(self, request: Request) -> Response:
        """Everything this process counts, in the Prometheus text format."""
        text = await self._site.in_transaction(lambda: self._text(request))
        return Response(text, headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})

    def _text(self, request: Request) -> bytes:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        found = self._site.key_of(key) if scheme.lower() == "bearer" else None
        if not _is_local(request) and (found is None or "admin" not in found.scopes):
            raise HTTPException(
                401,
                "from another machine, send an API key of scope admin as 'Authorization: Bearer "
                "KEY'; 'notecast keys add NAME --scope admin' makes one",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return self._site.metrics.text()


def _is_local(request: Request) -> bool:
    """Say if nobody but this machine asks; what a proxy passes on is from elsewhere."""
    return "x-forwarded-for" not in request.headers and is_loopback(request.client)
