"""One speech on its way to the program that asked for it: ordered, read from its log, encoded."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from engine.base import Pcm
from pipeline import audio, episode_view, speech
from pipeline.errors import NotFound
from pipeline.operate import stop_episode
from pipeline.speech_formats import MEDIA_TYPES, SpeechFormat, make_writer
from pipeline.web.endless import BrokenOff
from pipeline.web.site import Site
from streaming.channel import Channel, Slot
from streaming.errors import LogUnavailable
from streaming.frames import Codec
from streaming.renditions import wav_samples
from streaming.tap import ChannelLost, Tap, body_of, pcm_of, run_up

log = logging.getLogger(__name__)

FIRST_SOUND_S = 60.0  # then whoever asks should come back later
_LOOK_S = 0.25  # how often it is checked that they still wait
_PIECE_SAMPLES = 24_000
_TYPES = {401: "invalid_request_error", 429: "rate_limit_error"}
_stopping: set[asyncio.Task[None]] = set()


class Trouble(Exception):
    """An answer in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.after_s = after_s

    @property
    def shape(self) -> dict[str, Any]:
        """The `error` object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "message": str(self),
            "type": _TYPES.get(self.status, kind),
            "param": self.param,
            "code": self.code,
        }

    def answer(self) -> Response:
        """The whole answer."""
        headers = {"Retry-After": str(self.after_s)} if self.after_s is not None else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": self.shape}, self.status, headers=headers)


class Reading:
    """Reads what it ordered; who leaves before the end stops the speech.

    Attributes:
        sid: the session, once it was ordered.
    """

    def __init__(self, site: Site, form: SpeechFormat, *, is_sse: bool) -> None:
        self.sid = ""
        self._site = site
        self._form = form
        self._is_sse = is_sse
        self._text = ""
        self._tap: Tap | None = None
        self._first: tuple[int, Slot] | None = None
        self._samples = 0
        self._is_whole = False

    @property
    def media_type(self) -> str:
        """Of the body."""
        return "text/event-stream" if self._is_sse else MEDIA_TYPES[self._form]

    async def begin(self, wanted: speech.Speech, *, asked_by: str, request: Request) -> None:
        """Order the speech and wait for its first sound.

        Raises:
            Trouble: there will be none, or not soon.
        """
        services = self._site.services
        self._text = wanted.text
        self.sid = await self._site.in_transaction(
            lambda: speech.order(services, wanted, asked_by=asked_by)
        )
        try:
            async with asyncio.timeout(FIRST_SOUND_S):
                while not await self._has_begun():
                    if await request.is_disconnected():
                        raise Trouble(499, "the client went away")
        except BaseException as error:
            self.close()
            if isinstance(error, TimeoutError):
                message = f"all voices were busy for {FIRST_SOUND_S:g} s, try again"
                raise Trouble(503, message, code="no_capacity", after_s=10) from error
            raise

    async def body(self) -> AsyncGenerator[bytes]:
        """The file, or its events; `close` afterwards."""
        try:
            async for part in self._file():
                yield _delta(part) if self._is_sse else part
            self._is_whole = True
            if self._is_sse:
                yield _event({"type": "speech.audio.done", "usage": self._usage()})
        except Trouble as trouble:
            if not self._is_sse:
                raise BrokenOff(str(trouble)) from trouble
            yield _event({"type": "error", "error": trouble.shape})

    def close(self) -> None:
        """Nobody reads any more: a speech that is not read to its end is stopped."""
        if self._tap is not None:
            self._tap.__exit__(None, None, None)
            self._tap = None
        if self._is_whole or not self.sid:
            return
        task = asyncio.create_task(_stop(self._site, self.sid))  # the answer does not wait for it
        _stopping.add(task)
        task.add_done_callback(_stopping.discard)

    async def _has_begun(self) -> bool:
        """Look for a moment whether there is sound, or will be none."""
        try:
            channel = await self._site.gateway.hub.channel(self.sid)
        except LogUnavailable as error:
            raise Trouble(503, "the live log cannot be reached, try again", after_s=2) from error
        if not channel.live.is_set():
            return await self._is_recorded(channel)
        if self._tap is None:
            self._tap = Tap(channel, codec=Codec.PCM).__enter__()
        try:
            async with asyncio.timeout(_LOOK_S):
                self._first = await self._tap.next_chunk()
        except TimeoutError:
            return False
        if self._first is None:
            raise _failure(channel)
        return True

    async def _is_recorded(self, channel: Channel) -> bool:
        """The same was spoken before, so the recording is all there is."""
        info = await self._site.gateway.session_info(self.sid)
        if info is not None and info.state == "done":
            return True
        if info is None or info.state == "failed":
            raise Trouble(500, "the speech failed before it began", code="engine_failed")
        try:
            async with asyncio.timeout(_LOOK_S):
                await channel.live.wait()
        except TimeoutError:
            pass
        return False

    async def _file(self) -> AsyncIterator[bytes]:
        if self._first is None and (stored := await run_in_threadpool(self._stored)):
            yield stored
            return
        writer = await run_in_threadpool(make_writer, self._form)
        async for pcm in self._sound():
            self._samples += len(pcm) // 2
            if part := await run_in_threadpool(writer.add, pcm):
                yield part
        if part := await run_in_threadpool(writer.end):
            yield part

    async def _sound(self) -> AsyncIterator[bytes]:
        """s16le samples at 24 kHz."""
        if self._first is None:
            samples = await run_in_threadpool(self._recorded)
            for start in range(0, len(samples), _PIECE_SAMPLES):
                yield samples[start : start + _PIECE_SAMPLES].astype("<i2").tobytes()
            return
        assert self._tap is not None
        found: tuple[int, Slot] | None = self._first
        try:
            while found is not None:
                yield await self._pcm(*found)
                found = await self._tap.next_chunk()
        except ChannelLost as error:
            raise Trouble(503, str(error)) from error
        if _last_event(self._tap.channel, "end").get("why") != "done":
            raise _failure(self._tap.channel)

    async def _pcm(self, index: int, slot: Slot) -> bytes:
        """What the engine gave, as long as the log keeps it; later what listeners hear."""
        assert self._tap is not None
        channel = self._tap.channel
        if pcm := pcm_of(channel, slot):
            return pcm
        try:
            await self._site.gateway.hub.load_pcm(channel)
        except LogUnavailable:
            log.info("samples not loaded", extra={"episode": self.sid})
        if pcm := pcm_of(channel, slot):
            return pcm
        return await run_in_threadpool(wav_samples, slot, run_up(channel, index))

    def _stored(self) -> bytes | None:
        """The recording, if it is kept in the very format."""
        if self._form not in ("mp3", "opus"):
            return None
        services = self._site.services
        extension = "ogg" if self._form == "opus" else "mp3"
        try:
            found = episode_view.file_of(services.database, self.sid, extension)
        except NotFound:
            return None
        body = services.storage.get(found.object_key)
        self._samples = audio.duration_ms(body) * 24
        return body

    def _recorded(self) -> Pcm:
        services = self._site.services
        for extension in ("wav", "ogg", "mp3"):
            try:
                found = episode_view.file_of(services.database, self.sid, extension)
            except NotFound:
                continue
            return audio.decode(services.storage.get(found.object_key))
        return np.zeros(0, np.int16)

    def _usage(self) -> dict[str, int]:
        """Notecast has no tokens: it counts characters in, and steps of 20 ms out."""
        spoken = self._samples // audio.PACKET_SAMPLES
        total = len(self._text) + spoken
        return {
            "input_tokens": len(self._text),
            "output_tokens": spoken,
            "total_tokens": total,
        }


async def _stop(site: Site, sid: str) -> None:
    try:
        await run_in_threadpool(stop_episode, site.services, sid, actor="speech")
    except Exception:  # nobody waits for the outcome
        log.exception("speech not stopped", extra={"episode": sid})


def _failure(channel: Channel) -> Trouble:
    """Why a session ended without the whole of its sound."""
    if channel.state != "failed":
        return Trouble(500, "the speech was stopped", code="stopped")
    said = _last_event(channel, "error").get("message", "the engine failed")
    return Trouble(500, str(said), code="engine_failed")


def _last_event(channel: Channel, kind: str) -> dict[str, Any]:
    for slot in reversed(channel.slots):
        if slot.kind == kind:
            event: dict[str, Any] = json.loads(body_of(slot))
            return event
    return {}


def _delta(part: bytes) -> bytes:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()})


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"
