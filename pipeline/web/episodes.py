"""`/v1/episodes`: speak a text, see what became of it. Needs an API key."""

from __future__ import annotations

import hashlib
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from connectors.base import Note, NoteEvent, NoteRef
from connectors.payload import DurationRule, Lang, Line, Name, Text
from pipeline import episode_view, intake, links
from pipeline.web.site import Site


class NewEpisode(BaseModel):
    """What `POST /v1/episodes` takes."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[Text, Field(min_length=1)]
    title: Line = ""
    lang: Lang = ""
    voice: Line = ""
    speakers: dict[Name, Line] = Field(
        default_factory=dict, max_length=40, description="speaker -> voice"
    )
    emotion: Line = ""
    duration: Annotated[DurationRule, Field(description="free, fixed:90s, max:5m or speed:1.1")] = (
        ""
    )
    detail: Literal["", "brief", "full", "verbatim"] = ""


def routes(site: Site) -> APIRouter:
    """The episode API."""
    handlers = _Episodes(site)
    router = APIRouter(
        prefix="/v1/episodes", tags=["episodes"], dependencies=[Depends(site.check_key)]
    )
    router.post("", status_code=202)(handlers.create)
    router.get("")(handlers.newest)
    router.get("/{key}")(handlers.show)
    return router


class _Episodes:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._services = site.services

    async def create(self, request: Request, new: Annotated[NewEpisode, Body()]) -> dict[str, Any]:
        """Speak a text. `Idempotency-Key` makes repeats harmless.

        `owner_url` is for its creator: whoever opens it may pause, change and stop the speech.
        """
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
            self._site.after_commit(taken)
            view = episode_view.show(self._services, taken.accepted.episode)
            owner_url = links.owner_url(self._services.database, self._services.links, view["id"])
            return {**view, "owner_url": owner_url, "duplicate": taken.accepted.duplicate}

        answer: dict[str, Any] = await self._site.in_transaction(work)
        return answer

    async def newest(
        self,
        limit: Annotated[int, Query(ge=1, le=200)] = 20,
        status: Literal["queued", "live", "done", "failed", "cancelled"] | None = None,
    ) -> dict[str, Any]:
        """The newest episodes first."""
        found = await self._site.in_transaction(
            lambda: episode_view.newest(self._services, limit=limit, status=status)
        )
        return {"episodes": found}

    async def show(self, key: str) -> dict[str, Any]:
        """One episode."""
        answer: dict[str, Any] = await self._site.in_transaction(
            lambda: episode_view.show(self._services, key)
        )
        return answer
