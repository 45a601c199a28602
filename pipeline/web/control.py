"""Orders over HTTP: `POST /v1/episodes/{key}/pause`, `/resume`, `/stop` and `/control`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from pipeline import control, episode_view, ids
from pipeline.desk import LiveDesk
from pipeline.errors import Ended, Refused
from pipeline.web.problems import problem
from pipeline.web.site import Site
from streaming.errors import NotDone
from streaming.fields import Fault
from streaming.listener import STATUS
from streaming.orders import Op, Order, Wish, read_wish


class NewOrder(BaseModel):
    """What `POST /v1/episodes/{key}/control` takes; the fields of the `control` message."""

    model_config = ConfigDict(extra="forbid")

    op: Op
    value: Any = Field(None, description="what the op wants; see the listening protocol")
    at: Literal["playhead", "next", "now"] = "playhead"
    play_ms: Annotated[int | None, Field(ge=0, description="where the sender's player is")] = None


def routes(site: Site) -> APIRouter:
    """Orders for one episode. Needs an API key; `Idempotency-Key` makes repeats harmless."""
    handlers = _Control(site)
    router = APIRouter(
        prefix="/v1/episodes/{key}", tags=["episodes"], dependencies=[Depends(site.check_key)]
    )
    router.post("/pause")(handlers.pause)
    router.post("/resume")(handlers.resume)
    router.post("/stop")(handlers.stop)
    router.post("/control")(handlers.control)
    return router


class _Control:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._services = site.services

    async def pause(self, key: str, request: Request) -> dict[str, Any]:
        """Pause after the running sentence; the episode keeps its place until it is resumed."""
        return await self._give(key, Wish("pause"), request)

    async def resume(self, key: str, request: Request) -> dict[str, Any]:
        """Go on with a paused episode."""
        return await self._give(key, Wish("resume"), request)

    async def stop(self, key: str, request: Request) -> dict[str, Any]:
        """Stop an episode that is not finished; listeners are told. Harmless when it is over."""
        try:
            return await self._give(key, Wish("stop"), request)
        except Ended:
            return await self._site.in_transaction(lambda: episode_view.show(self._services, key))

    async def control(
        self, key: str, new: Annotated[NewOrder, Body()], request: Request
    ) -> Response:
        """Give any order, and wait for where it takes effect (up to some seconds)."""
        wish = read_wish_or_refuse(new)
        desk = self._site.gateway.desk
        assert isinstance(desk, LiveDesk)
        order = Order(None, key, wish, "owner", "api")
        try:
            ticket = await desk.order(order, _order_key(request))
            outcome = await desk.outcome(ticket)
        except NotDone as error:
            return _not_done(error)
        effect = dict(outcome.effect) if outcome.effect is not None else None
        return JSONResponse({"ok": True, "effect": effect, "degraded": list(outcome.degraded)})

    async def _give(self, key: str, wish: Wish, request: Request) -> dict[str, Any]:
        order_key = _order_key(request)

        def work() -> dict[str, Any]:
            control.order(self._services, key, wish, actor="api", role="owner", order_key=order_key)
            return episode_view.show(self._services, key)

        return await self._site.in_transaction(work)


def read_wish_or_refuse(new: NewOrder) -> Wish:
    """The wish of a request's body.

    Raises:
        Refused: a value that its `op` cannot have.
    """
    try:
        return read_wish(new.model_dump(exclude_none=True))
    except Fault as fault:
        raise Refused(str(fault), field="/value") from fault


def _order_key(request: Request) -> str:
    key = request.headers.get("idempotency-key")
    return f"http:{key[:190] if key else ids.ulid()}"


def _not_done(error: NotDone) -> Response:
    headers = {}
    if error.retry_ms is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_ms / 1000))
    return problem(STATUS[error.code], error.code, str(error), headers=headers)
