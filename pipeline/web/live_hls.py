"""HLS of a session: `index.m3u8`, and segments that any cache may keep (`streaming/hls.py`).

A ticket for HLS is bound to the stream, not to a player: everybody at a public event may be given
the same address, so that a cache holds each segment once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import quote
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Query, Request, Response

from pipeline.web.live_audio import channel_of
from pipeline.web.proofs import ListenRefused, grant_for
from pipeline.web.site import Site
from streaming.channel import Channel
from streaming.hls import Playlist, segment
from streaming.renditions import Renditions
from streaming.tap import Tap

LIST_TYPE = "application/vnd.apple.mpegurl"
_HEADERS: Mapping[str, str] = {
    "Access-Control-Allow-Origin": "*",
    "X-Content-Type-Options": "nosniff",
}


def routes(site: Site, renditions: Renditions) -> APIRouter:
    """Playlist and segments; each needs a proof (`proofs.py`)."""
    handlers = _LiveHls(site, renditions)
    router = APIRouter(tags=["listening"])
    for register in (router.get, router.head):
        is_shown = register == router.get
        register("/v1/live/{sid}/index.m3u8", include_in_schema=is_shown)(handlers.playlist)
        register("/v1/live/{sid}/hls/{name}.mp3", include_in_schema=is_shown)(handlers.part)
    return router


class _LiveHls:
    def __init__(self, site: Site, renditions: Renditions) -> None:
        self._site = site
        self._renditions = renditions
        self._playlists: WeakKeyDictionary[Channel, Playlist] = WeakKeyDictionary()

    async def playlist(
        self,
        sid: str,
        request: Request,
        ticket: Annotated[str, Query(description="in place of a bearer token")] = "",
    ) -> Response:
        """The EVENT playlist; it ends when the session does."""
        channel = await self._channel(request, sid)
        now_ms = time.time() * 1000
        playlist = self._playlists.setdefault(channel, Playlist())
        playlist.read(channel, now_ms=now_ms)
        proof = f"?ticket={quote(ticket)}" if ticket else ""
        text = playlist.text(lambda part: f"hls/{part.name}.mp3{proof}", now_ms=now_ms)
        keep_s = 3600 if playlist.has_ended else 1
        headers = {**_HEADERS, "Cache-Control": f"public, max-age={keep_s}"}
        return Response(text, headers=headers, media_type=LIST_TYPE)

    async def part(
        self,
        sid: str,
        name: str,
        request: Request,
        ticket: Annotated[str, Query(description="in place of a bearer token")] = "",
    ) -> Response:
        """One segment; its bytes never change."""
        channel = await self._channel(request, sid)
        with Tap(channel, hears=False):  # holds it
            body = await segment(self._renditions, channel, name)
        if body is None:
            raise ListenRefused(404, "not_found", f"there is no segment {name}")
        headers = {**_HEADERS, "Cache-Control": "public, max-age=86400, immutable"}
        return Response(body, headers=headers, media_type="audio/mpeg")

    async def _channel(self, request: Request, sid: str) -> Channel:
        await grant_for(self._site, request, sid, "hls")
        return await channel_of(self._site, sid)
