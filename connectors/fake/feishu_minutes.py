"""Feishu Minutes: the user's tokens, a subscription, minutes with what was made of them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from connectors.fake.courier import Delivery
from connectors.fake.feishu import delivery_of, wrapped
from connectors.fake.feishu_cells import No
from connectors.fake.tool import FakeTool, Refused, add_route
from connectors.fake.world import World

MINUTE_GENERATED = "minutes.minute.generated_v1"


@dataclass(frozen=True, slots=True)
class Minutes:
    """A meeting's minutes.

    Attributes:
        artifacts: `summary`, `minute_chapters`, `minute_todos`, `transcript`, as the API has them.
        export: the exported transcript.
    """

    token: str
    title: str
    created_ms: int
    artifacts: Mapping[str, Any] = field(default_factory=dict)
    export: str = ""


class FakeMinutes(FakeTool):
    """The minutes of one user, who has authorised the app once.

    Attributes:
        refresh_token: what the next refresh takes; each works once.
        subscribers: user tokens that subscribed.
    """

    name: ClassVar[str] = "feishu_minutes"
    title: ClassVar[str] = "Feishu Minutes"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.app_id = "cli_demo"
        self.app_secret = "demo-app-secret"  # noqa: S105  # of a fake
        self.encrypt_key = "demo-encrypt-key"
        self.token = "demo-verification-token"  # noqa: S105
        self.refresh_token = "ur-first"  # noqa: S105
        self.user_s = 7_200
        self.minutes: dict[str, Minutes] = {}
        self.subscribers: set[str] = set()
        self._users: dict[str, float] = {}

    def generate(self, minutes: Minutes) -> Delivery:
        """Add minutes; gives the event that tells of them."""
        self.minutes[minutes.token] = minutes
        event = {
            "minute_token": minutes.token,
            "minute_source": {"source_type": "meeting", "source_entity_id": "7600000000000000000"},
        }
        content = wrapped(MINUTE_GENERATED, event, token=self.token, now_ms=self.world.now_ms())
        return delivery_of(self, content, self.encrypt_key)

    def routes(self) -> APIRouter:
        router = APIRouter(prefix="/open-apis")
        minutes = "/minutes/v1/minutes"
        add_route(self, router, "POST", "/authen/v2/oauth/token", self._refresh)
        add_route(self, router, "POST", f"{minutes}/subscription", self._subscribe)
        add_route(self, router, "GET", f"{minutes}/{{minutes}}", self._get)
        add_route(self, router, "GET", f"{minutes}/{{minutes}}/artifacts", self._artifacts)
        add_route(self, router, "GET", f"{minutes}/{{minutes}}/transcript", self._transcript)
        return router

    def bad_request(self) -> Refused:
        return No(99992402, "field validation failed", 400)

    def _refresh(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        app = (content.get("client_id"), content.get("client_secret"))
        if app != (self.app_id, self.app_secret):
            raise No(20002, "client secret invalid", 400)
        if content.get("grant_type") != "refresh_token":
            raise No(20036, "grant type not supported", 400)
        if content.get("refresh_token") != self.refresh_token:
            raise No(20064, "refresh token was used before", 400)
        user = f"u-{secrets.token_hex(12)}"
        self.refresh_token = f"ur-{secrets.token_hex(12)}"
        self._users[user] = self.world.clock() + self.user_s
        return {
            "code": 0,
            "access_token": user,
            "expires_in": self.user_s,
            "refresh_token": self.refresh_token,
            "refresh_token_expires_in": 604_800,
            "token_type": "Bearer",
        }

    def _user(self, request: Request) -> str:
        user = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._users.get(user, 0.0) <= self.world.clock():
            raise No(99991677, "Authentication token expired", 401)
        return user

    def _subscribe(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        user = self._user(request)
        if content.get("event_type") != MINUTE_GENERATED:
            raise No(99992402, "field validation failed", 400)
        self.subscribers.add(user)
        return {"code": 0, "msg": "success", "data": {}}

    def _found(self, request: Request) -> Minutes:
        self._user(request)
        found = self.minutes.get(request.path_params["minutes"])
        if found is None:
            raise No(2091005, "minute not found", 404)
        return found

    def _get(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        found = self._found(request)
        minute = {"token": found.token, "title": found.title, "create_time": str(found.created_ms)}
        return {"code": 0, "msg": "success", "data": {"minute": minute}}

    def _artifacts(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        return {"code": 0, "msg": "success", "data": dict(self._found(request).artifacts)}

    def _transcript(self, request: Request, content: dict[str, Any]) -> Response:
        found = self._found(request)
        if not found.export:
            raise No(2091007, "no permission to export", 403)
        return Response(found.export.encode(), media_type="application/octet-stream")
