"""Speech in the shape of OpenAI's API: `POST /v1/audio/speech`, the models and the voices.

A speech takes the road of every other one (intake, worker, chunk log); this is a reader of its log
that waits for nothing and encodes what comes. Errors have OpenAI's shape on these three addresses.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Annotated, Any, Literal, Self, TypeVar

from fastapi import APIRouter, Body, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from engine.errors import EngineError
from pipeline import speech
from pipeline.errors import PipelineError
from pipeline.speech_formats import SpeechFormat
from pipeline.web.endless import Endless
from pipeline.web.health import ready_voices
from pipeline.web.reading import Reading, Trouble
from pipeline.web.site import Site
from streaming.errors import TokenError
from streaming.orders import GEN_SCOPE
from streaming.tokens import Grant

log = logging.getLogger(__name__)

T = TypeVar("T")

INPUT_CHARS = 65_536
BODY_BYTES = 1 << 20
MODELS = ("gpt-4o-mini-tts", "tts-1", "tts-1-hd", "notecast")


class CustomVoice(BaseModel):
    """A voice as an object."""

    id: Annotated[str, Field(min_length=1, max_length=200)]


class SpeechWish(BaseModel):
    """What `POST /v1/audio/speech` takes; fields it does not know are passed over."""

    model_config = ConfigDict(extra="ignore")

    model: Annotated[str, Field(min_length=1, max_length=200)]
    input: Annotated[str, Field(min_length=1, max_length=INPUT_CHARS)]
    voice: Annotated[str, Field(min_length=1, max_length=400)] | CustomVoice
    response_format: SpeechFormat = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4.0)] = 1.0
    instructions: Annotated[str, Field(max_length=4096)] = ""
    stream_format: Literal["audio", "sse"] = "audio"

    @property
    def voice_name(self) -> str:
        """The name of the voice, however it was given."""
        return self.voice if isinstance(self.voice, str) else self.voice.id

    @property
    def pace(self) -> float:
        """`speed` as far as an engine can follow it."""
        slowest, fastest = speech.SPEEDS
        return min(max(self.speed, slowest), fastest)


def routes(site: Site) -> APIRouter:
    """The three addresses; each needs an API key."""
    handlers = _SpeechApi(site)
    router = APIRouter(tags=["speech"], route_class=_Route)
    router.post("/v1/audio/speech")(handlers.speak)
    router.get("/v1/audio/voices")(handlers.voices)
    router.get("/v1/models")(handlers.models)
    router.get("/v1/models/{name}")(handlers.model)
    return router


class _Capped(Request):
    async def body(self) -> bytes:
        """The body, if it is not too large."""
        if not hasattr(self, "_body"):
            parts, size = [], 0
            async for part in self.stream():
                size += len(part)
                if size > BODY_BYTES:
                    raise Trouble(413, f"the body may have {BODY_BYTES} bytes", code="too_large")
                parts.append(part)
            self._body = b"".join(parts)
        return self._body


class _Route(APIRoute):
    """Answers every error in OpenAI's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As the base class."""
        handle = super().get_route_handler()

        async def shaped(request: Request) -> Response:
            try:
                return await handle(_Capped(request.scope, request.receive))
            except Trouble as trouble:
                return trouble.answer()
            except RequestValidationError as error:
                return _invalid(error).answer()
            except PipelineError as error:
                log.warning("speech cannot be made: %s", error)
                message = "not available at the moment, try again"
                return Trouble(503, message, code=error.code, after_s=2).answer()
            except HTTPException as error:
                if isinstance(error.__cause__, Trouble):  # while the body was read
                    return error.__cause__.answer()
                return Trouble(error.status_code, str(error.detail)).answer()
            except Exception:
                log.exception("speech request failed")
                return Trouble(500, "something broke here; it is in our log").answer()

        return shaped


def _invalid(error: RequestValidationError) -> Trouble:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return Trouble(400, f"the body is not JSON: {first['ctx']['error']}")
    names = [str(part) for part in first["loc"] if part != "body"]
    field = names[0] if names else None
    message = f"{field}: {first['msg']}" if field else str(first["msg"])
    if first["type"] == "string_too_long" and field == "input":
        message = f"input may have {INPUT_CHARS} characters; cut it into several requests"
        return Trouble(400, message, param=field, code="string_above_max_length")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return Trouble(400, message, param=field, code=code)


class _SpeechApi:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._settings = site.services.settings
        self._catalogue = site.services.catalogue
        self._running: Counter[str] = Counter()  # by who asked

    async def models(self, request: Request) -> dict[str, Any]:
        """The names that `model` may have; all mean the engine of this installation."""
        await self._asker(request)
        return {"object": "list", "data": [_model(name) for name in MODELS]}

    async def model(self, name: str, request: Request) -> dict[str, Any]:
        """One of them."""
        await self._asker(request)
        _check_model(name)
        return _model(name)

    async def voices(self, request: Request) -> dict[str, Any]:
        """Every voice that `voice` may name, besides OpenAI's own names.

        Whoever has a live link may ask, too.
        """
        await self._asker(request, may_speak=False)
        listed = await self._from_engine(self._catalogue.voices)
        return {
            "voices": [
                {"id": one.id, "name": one.name, "lang": one.lang, "gender": one.gender}
                for one in listed
            ]
        }

    async def speak(self, request: Request, wish: Annotated[SpeechWish, Body()]) -> Response:
        """Speak a text; the sound is sent while it is made."""
        asker = await self._asker(request)
        _check_model(wish.model)
        lang = speech.language(wish.input)
        voice = await self._from_engine(lambda: self._catalogue.find(wish.voice_name, lang))
        if voice is None:
            message = f"there is no voice {wish.voice_name!r}; GET /v1/audio/voices lists them"
            raise Trouble(404, message, param="voice", code="voice_not_found")
        await self._check_workers()
        with self._place(asker.link) as place:
            reading = Reading(self._site, wish.response_format, is_sse=wish.stream_format == "sse")
            ordered = speech.Speech(wish.input, voice, wish.instructions, wish.pace)
            await reading.begin(ordered, asked_by=asker.link, request=request)
            place.keep()

        def close() -> None:
            place.give_back()
            reading.close()

        return Endless(
            reading.body(),
            on_close=close,
            media_type=reading.media_type,
            headers={"X-Notecast-Session": reading.sid, "X-Notecast-Speed": f"{wish.pace:g}"},
            allowed=lambda: self._site.gateway.links.is_good(asker.link),
        )

    async def _asker(self, request: Request, *, may_speak: bool = True) -> Grant:
        """Who asks, and may have speech made."""
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not bearer.strip():
            message = (
                "send an API key as 'Authorization: Bearer KEY'; 'notecast keys add' makes one"
            )
            raise Trouble(401, message, code="missing_api_key")
        try:
            grant = await self._site.gateway.links.check(bearer.strip())
        except TokenError as error:
            raise Trouble(401, str(error), code="invalid_api_key") from error
        if may_speak and GEN_SCOPE not in grant.scopes:
            message = "this token is for listening; speech needs an API key"
            raise Trouble(401, message, code="invalid_api_key")
        return grant

    async def _from_engine(self, look: Callable[[], T]) -> T:
        """Ask the catalogue, which may have to ask a remote engine."""
        try:
            return await run_in_threadpool(look)
        except EngineError as error:
            log.warning("voices cannot be listed: %s", error)
            raise Trouble(503, "the voices cannot be listed now, try again", after_s=5) from error

    async def _check_workers(self) -> None:
        if not await self._site.in_transaction(lambda: ready_voices(self._site.services.database)):
            message = "no voice is running at the moment, try again"
            raise Trouble(503, message, code="no_capacity", after_s=5)

    def _place(self, who: str) -> _Place:
        most = self._settings.speech_running
        if self._running[who] >= most:
            message = f"{most} speeches of this key are running here already; wait for one to end"
            raise Trouble(429, message, code="rate_limit_exceeded", after_s=1)
        return _Place(self._running, who)


class _Place:
    """One of the speeches that somebody may have at a time; given back unless it is kept."""

    def __init__(self, running: Counter[str], who: str) -> None:
        self._running, self._who = running, who
        self._is_kept = False

    def __enter__(self) -> Self:
        self._running[self._who] += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_kept:
            self.give_back()

    def keep(self) -> None:
        """Whoever has it calls `give_back` later."""
        self._is_kept = True

    def give_back(self) -> None:
        """It is free again."""
        self._running[self._who] -= 1
        if not self._running[self._who]:
            del self._running[self._who]


def _check_model(name: str) -> None:
    if name not in MODELS:
        message = f"there is no model {name!r}; these are: {', '.join(MODELS)}"
        raise Trouble(404, message, param="model", code="model_not_found")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "notecast"}
