"""Chapters on demand: `GET /v1/live/{sid}/chapters`, `POST /v1/live/{sid}/chapters/{number}`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from pipeline import chapters
from pipeline.web.proofs import grant_for
from pipeline.web.site import Site

STREAM = "chapters"
_KEPT = 256


def routes(site: Site) -> APIRouter:
    """What a session's short form leaves out; listeners may open it (`proofs.py` says who)."""
    handlers = _Chapters(site)
    router = APIRouter(prefix="/v1/live/{sid}/chapters", tags=["listening"])
    router.get("")(handlers.offered)
    router.post("/{number}", status_code=202)(handlers.open)
    return router


class _Chapters:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._known: dict[str, list[dict[str, Any]]] = {}  # a script does not change

    async def offered(self, sid: str, request: Request) -> dict[str, Any]:
        """The chapters that are spoken when somebody opens them; none before speech begins."""
        await grant_for(self._site, request, sid, STREAM)
        found = self._known.get(sid) or await self._site.in_transaction(
            lambda: chapters.offered(self._site.services, sid)
        )
        if found:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[sid] = found
        return {"offered": found}

    async def open(
        self,
        sid: str,
        number: Annotated[int, Path(ge=0, le=10_000, description="from 1, as offered")],
        request: Request,
    ) -> dict[str, Any]:
        """Let a chapter be spoken, and get its link; the same one, however often it is opened."""
        grant = await grant_for(self._site, request, sid, STREAM)
        accepted = await self._site.in_transaction(
            lambda: chapters.open_chapter(self._site.services, sid, number, actor=grant.link)
        )
        return {"listen_url": accepted.listen_url, "status": accepted.status}
