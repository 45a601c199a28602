"""`GET /v1/live/{sid}/audio.ogg`, `.mp3`, `.wav`: for players that know addresses and no sockets.

While a session is spoken the body is endless and begins near the live edge, or at `?from=` ms. When
it is over and no `from` is given, the same address is the finished file, with `Range`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from pipeline.errors import NotFound
from pipeline.web.endless import HEADERS, Endless
from pipeline.web.files import stored_file
from pipeline.web.proofs import ListenRefused, grant_for, take_place
from pipeline.web.site import Site
from pipeline.web.wav_files import wav_file
from streaming.channel import Channel
from streaming.errors import LogUnavailable
from streaming.frames import OPUS_SKIP, Flag, unpack_header
from streaming.gateway import SessionInfo
from streaming.ogg import OggOpus
from streaming.renditions import Renditions, packets_of, wav_header
from streaming.session import stream_handle
from streaming.tap import Pace, Tap, header_of, run_up

START_WAIT_S = 45.0  # for a session that waits for a voice; proxies give up after a minute
_LOOK_S = 1.0
_MOST_SKIP = 0xFFFF  # what an OpusHead can say

Format = Literal["ogg", "mp3", "wav"]
MEDIA_TYPES: dict[Format, str] = {
    "ogg": "audio/ogg; codecs=opus",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
}


def routes(site: Site, renditions: Renditions) -> APIRouter:
    """Sound of a session; each needs a proof (`proofs.py`)."""
    handlers = _LiveAudio(site, renditions)
    router = APIRouter(tags=["listening"])
    router.get("/v1/live/{sid}/audio.{form}")(handlers.audio)
    router.head("/v1/live/{sid}/audio.{form}", include_in_schema=False)(handlers.audio)
    return router


async def look_up(site: Site, sid: str) -> tuple[Channel, SessionInfo | None]:
    """The channel of a session, which is live or will be.

    Raises:
        ListenRefused: it never will be; the message says what to do instead.
    """
    try:
        channel = await site.gateway.hub.channel(sid)
        info = await site.gateway.session_info(sid)
    except LogUnavailable as error:
        message = "the live log cannot be reached, try again"
        raise ListenRefused(503, "internal", message) from error
    if not channel.live.is_set():
        if info is None:
            raise ListenRefused(404, "not_found", f"there is no session {sid}")
        if info.state == "done":
            message = f"the session is over; its recording: {info.url}"
            raise ListenRefused(410, "gone", message, **info.recording())
        if info.state == "failed":
            raise ListenRefused(502, "engine_failed", "the session could not be spoken")
    return channel, info


async def channel_of(site: Site, sid: str) -> Channel:
    """The channel of a session that is spoken, was lately, or begins within `START_WAIT_S`.

    Raises:
        ListenRefused: there is none.
    """
    began = time.monotonic()
    while True:
        channel, _info = await look_up(site, sid)
        if channel.live.is_set():
            return channel
        if time.monotonic() > began + START_WAIT_S:
            raise ListenRefused(503, "no_capacity", "the session still waits for a voice")
        await begins(channel)


async def begins(channel: Channel) -> None:
    """Wait a second for the session to begin."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LOOK_S):
            await channel.live.wait()


class _LiveAudio:
    def __init__(self, site: Site, renditions: Renditions) -> None:
        self._site = site
        self._renditions = renditions

    async def audio(
        self,
        sid: str,
        form: Format,
        request: Request,
        ticket: Annotated[str, Query(description="in place of a bearer token")] = "",
        from_ms: Annotated[
            int | None, Query(alias="from", ge=0, lt=1 << 40, description="ms; default: live")
        ] = None,
    ) -> Response:
        """The sound of a session: endless while it is spoken, a file with `Range` afterwards."""
        grant = await grant_for(self._site, request, sid, f"audio.{form}")
        if from_ms is None and (stored := await self._stored(sid, form, request)):
            return stored
        if request.method == "HEAD":
            return Response(
                headers={**HEADERS, "Accept-Ranges": "none"}, media_type=MEDIA_TYPES[form]
            )
        channel = await channel_of(self._site, sid)
        if from_ms is None and channel.state == "ended":
            from_ms = 0  # spoken, not filed yet: there is no live edge to begin at
        tap = Tap(channel, pace=Pace())
        offset = tap.seek(from_ms)
        guest = await take_place(self._site, request, sid, grant)
        return Endless(
            self._body(tap, form, offset),
            media_type=MEDIA_TYPES[form],
            headers={"Accept-Ranges": "none"},
            ended=guest.ended,
            on_close=lambda: self._site.gateway.dismiss(guest),
        )

    async def _stored(self, sid: str, form: Format, request: Request) -> Response | None:
        """The finished file; None if there is none (yet)."""
        # not as it was a second ago: a session that has just ended has no live edge any more
        info = await self._site.gateway.session_info(sid, max_age_s=0.0)
        if info is None or info.state != "done":
            return None
        services = self._site.services
        try:
            return await self._site.in_transaction(
                lambda: stored_file(services, sid, form, request)
            )
        except NotFound:
            if form != "wav":
                return None
        return await self._site.in_transaction(lambda: wav_file(services, sid, request))

    async def _body(self, tap: Tap, form: Format, offset: int) -> AsyncGenerator[bytes]:
        bodies = {"ogg": _ogg, "mp3": self._mp3, "wav": self._wav}
        with tap:
            async for part in bodies[form](tap, offset):
                yield part

    async def _wav(self, tap: Tap, offset: int) -> AsyncGenerator[bytes]:
        yield wav_header(None)
        while found := await tap.next_chunk():
            index, slot = found
            samples = await self._renditions.of(tap.channel, index, "wav")
            if slot.void:
                tap.take_back()
            else:
                yield samples[offset // 2 * 2 :]
                offset = 0

    async def _mp3(self, tap: Tap, _offset: int) -> AsyncGenerator[bytes]:
        last = -1
        while found := await tap.next_chunk():
            index, slot = found
            frames = await self._renditions.of(tap.channel, index, "mp3")
            if unpack_header(header_of(slot)).flags & Flag.DISCONTINUITY:
                yield await self._tail(tap.channel, last)
            if slot.void:
                tap.take_back()
            else:
                yield frames
                last = index
        yield await self._tail(tap.channel, last)

    async def _tail(self, channel: Channel, last: int) -> bytes:
        """What the encoder still owes for the chunk that was sent last, if that still counts."""
        if last < 0 or channel.slots[last].void:
            return b""
        return await self._renditions.of(channel, last, "mp3_tail")


async def _ogg(tap: Tap, offset: int) -> AsyncGenerator[bytes]:
    """The packets of the log as they are."""
    stream = None
    while found := await tap.next_chunk():
        index, slot = found
        pages = b""
        if stream is None:
            before = run_up(tap.channel, index, 1)
            stream = _begin_ogg(tap.channel, offset + sum(one.end - one.begin for one in before))
            pages = stream.head() + b"".join(stream.page(packets_of(one)) for one in before)
        yield pages + stream.page(packets_of(slot))
    if stream is not None:
        yield stream.end()


def _begin_ogg(channel: Channel, drop: int) -> OggOpus:
    """A stream whose player drops the first `drop` ticks."""
    title = channel.info.meta.get("title", "") if channel.info else ""
    skip = min(_MOST_SKIP, OPUS_SKIP + drop)
    return OggOpus(stream_handle(channel.sid), skip=skip, tags={"TITLE": title})
