"""`GET /v1/live/{sid}/events`: what is not sound, as server-sent events.

The objects are those of the WebSocket (docs/listening-protocol.md), each with its position as the
event's id, so that `EventSource` resumes exactly after a break.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from pipeline.web.endless import HEADERS, Endless
from pipeline.web.live_audio import begins, look_up
from pipeline.web.proofs import ListenRefused, grant_for, take_place
from pipeline.web.site import Site
from streaming.channel import Channel, Slot
from streaming.chunk_log import Position
from streaming.frames import Codec
from streaming.gateway import opened_fields
from streaming.listener import Start
from streaming.tap import Tap, body_of

HEARTBEAT_S = 15.0
HEARTBEAT = b": alive\n\n"
FILE_WAIT_S = 60.0  # the recording is named a moment after the end
RETRY_MS = 2000
_ID = re.compile(r"(-?\d{1,10})\.(\d{1,10})")


def routes(site: Site) -> APIRouter:
    """Events of a session; they need a proof (`proofs.py`)."""
    handlers = _LiveEvents(site)
    router = APIRouter(tags=["listening"])
    router.get("/v1/live/{sid}/events")(handlers.events)
    return router


class _LiveEvents:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def events(
        self,
        sid: str,
        request: Request,
        ticket: Annotated[str, Query(description="in place of a bearer token")] = "",
        last_event_id: Annotated[str, Header()] = "",
    ) -> Response:
        """Captions, cuts, states, the end and the recording, from the start or after an id.

        204 when nothing can come after that id any more, so that `EventSource` stops asking.
        """
        grant = await grant_for(self._site, request, sid, "events")
        after = _position(last_event_id)
        channel, _info = await look_up(self._site, sid)
        if after is not None and after >= channel.head and _is_complete(channel):
            return Response(status_code=204, headers=HEADERS)
        guest = await take_place(self._site, request, sid, grant)
        return Endless(
            self._body(sid, after),
            media_type="text/event-stream",
            ended=guest.ended,
            on_close=lambda: self._site.gateway.dismiss(guest),
        )

    async def _body(self, sid: str, after: Position | None) -> AsyncGenerator[bytes]:
        yield b"retry: %d\n\n" % RETRY_MS
        async for part in self._until_live(sid):
            yield part
        channel = await self._site.gateway.hub.channel(sid)
        if not channel.live.is_set():
            return  # and it was said why
        info = await self._site.gateway.session_info(sid)
        with Tap(channel, lingers=True, hears=False) as tap:
            if after is not None:
                tap.index = channel.find(Start(position=after), Codec.OPUS)
            yield _data({"t": "opened", "sid": sid, **opened_fields(channel, tap.index, info)})
            silent_s = 0.0
            while not (tap.is_over and tap.is_at_head and _is_complete(channel)):
                if tap.is_over and silent_s >= FILE_WAIT_S:
                    return
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        found = await tap.next()
                except TimeoutError:
                    silent_s += HEARTBEAT_S
                    yield HEARTBEAT
                    continue
                silent_s = 0.0
                if found and found[1].kind:
                    yield _event(found[1])

    async def _until_live(self, sid: str) -> AsyncGenerator[bytes]:
        """The place in the queue as it changes, until the session begins."""
        told, said_at = None, time.monotonic()
        while True:
            try:
                channel, info = await look_up(self._site, sid)
            except ListenRefused as refusal:
                error = {"t": "error", "sid": sid, "code": refusal.code, "status": refusal.status}
                yield _data(error | {"message": str(refusal), "fatal": True} | refusal.details)
                return
            if channel.live.is_set():
                return
            now = time.monotonic()
            if info and (info.pos, info.eta_ms) != told:
                told, said_at = (info.pos, info.eta_ms), now
                yield _data(info.queued(sid))
            elif now > said_at + HEARTBEAT_S:
                said_at = now
                yield HEARTBEAT
            await begins(channel)


def _position(text: str) -> Position | None:
    if not text:
        return None
    found = _ID.fullmatch(text)
    if found is None:
        raise ListenRefused(
            400, "bad_message", "Last-Event-ID is the id of an event of this stream"
        )
    return int(found[1]), int(found[2])


def _is_complete(channel: Channel) -> bool:
    """Nothing can follow any more: the recording was named, or there will be none."""
    if channel.state == "failed":
        return True
    last = channel.slots[-1]
    if last.kind == "end":
        return bool(json.loads(body_of(last))["why"] != "done")
    return last.kind == "file"


def _event(slot: Slot) -> bytes:
    return f"id: {slot.seq}.{slot.k}\n".encode() + b"data: " + body_of(slot) + b"\n\n"


def _data(message: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(message, separators=(",", ":")).encode() + b"\n\n"
