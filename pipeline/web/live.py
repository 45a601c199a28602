"""Listening without a WebSocket: tickets, endless sound, events, HLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from pipeline.web import live_audio, live_events, live_hls, proofs
from pipeline.web.site import Site
from streaming.renditions import Renditions


def routes(site: Site) -> APIRouter:
    """All of it; what is encoded is shared between audio and HLS."""
    renditions = Renditions()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        renditions.close()

    router = APIRouter(lifespan=lifespan)
    router.include_router(proofs.routes(site))
    router.include_router(live_audio.routes(site, renditions))
    router.include_router(live_events.routes(site))
    router.include_router(live_hls.routes(site, renditions))
    return router
