"""Group robots of DingTalk and WeCom; Feishu's is one of `fake.feishu`'s routes."""

from __future__ import annotations

from typing import Any, ClassVar

from fastapi import APIRouter, Request

from connectors.fake.faults import Window
from connectors.fake.tool import FakeTool, add_route
from connectors.fake.world import Message, World
from connectors.signing import sign_dingtalk_robot

_HOUR_MS = 3_600_000


class FakeDingTalk(FakeTool):
    """`robots`: access token -> signing secret, empty for none."""

    name: ClassVar[str] = "dingtalk_robot"
    title: ClassVar[str] = "DingTalk group"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.robots = {"demo": "SECdemo"}
        self.budget = Window(20, 60.0)

    def routes(self) -> APIRouter:
        router = APIRouter()
        add_route(self, router, "POST", "/robot/send", self._send)
        return router

    def _send(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        robot = request.query_params.get("access_token", "")
        secret = self.robots.get(robot)
        if secret is None:
            return {"errcode": 300001, "errmsg": "token is not exist"}
        if secret and not self._is_signed(request, secret):
            return {"errcode": 310000, "errmsg": "sign not match"}
        if self.budget.take(robot):
            return {"errcode": 130101, "errmsg": "send too fast, exceed 20 times per minute"}
        card = content.get("actionCard")
        if content.get("msgtype") != "actionCard" or not isinstance(card, dict):
            return {"errcode": 40035, "errmsg": "invalid parameter"}
        message = Message(
            self.name, robot, card["title"], card["text"], card["singleURL"], card["singleTitle"],
            self.world.now_ms(),
        )  # fmt: skip
        self.world.post(message)
        return {"errcode": 0, "errmsg": "ok"}

    def _is_signed(self, request: Request, secret: str) -> bool:
        timestamp = request.query_params.get("timestamp", "")
        if not timestamp.isascii() or not timestamp.isdecimal():
            return False
        fresh = abs(self.world.now_ms() - int(timestamp)) <= _HOUR_MS
        given = request.query_params.get("sign")
        return fresh and given == sign_dingtalk_robot(secret, int(timestamp))


class FakeWeCom(FakeTool):
    """`robots`: the keys that stand in addresses."""

    name: ClassVar[str] = "wecom_robot"
    title: ClassVar[str] = "WeCom group"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.robots = {"demo"}
        self.budget = Window(20, 60.0)

    def routes(self) -> APIRouter:
        router = APIRouter()
        add_route(self, router, "POST", "/cgi-bin/webhook/send", self._send)
        return router

    def _send(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        robot = request.query_params.get("key", "")
        if robot not in self.robots:
            return {"errcode": 93000, "errmsg": "invalid webhook url"}
        if self.budget.take(robot):
            return {"errcode": 45009, "errmsg": "api freq out of limit"}
        articles = content.get("news", {}).get("articles", [])
        if content.get("msgtype") != "news" or len(articles) != 1:
            return {"errcode": 40058, "errmsg": "invalid Request Parameter"}
        (article,) = articles
        too_long = len(article["title"].encode()) > 128
        if too_long or len(article["description"].encode()) > 512:
            return {"errcode": 40058, "errmsg": "invalid Request Parameter: too long"}
        message = Message(
            self.name, robot, article["title"], article["description"], article["url"],
            at_ms=self.world.now_ms(),
        )  # fmt: skip
        self.world.post(message)
        return {"errcode": 0, "errmsg": "ok"}
