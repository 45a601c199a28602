"""Slack as `connectors/slack.py` knows it: channels, threads, response addresses, limits.

Shapes and limits are those of the Web API's reference and of slack-sdk, which is a judge of this
file in the tests.
"""

from __future__ import annotations

import json
import re
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from connectors.fake.courier import Delivery
from connectors.fake.endpoints import Endpoint
from connectors.fake.faults import Window
from connectors.fake.tool import FakeTool, Refused, add_route
from connectors.fake.world import Change, Column, Message, World
from connectors.signing import sign_slack

TEAM, CHANNEL, BOT = "T0DEMO", "C0DEMO", "U0BOT"
PEOPLE = {"U0ALICE": "Alice", "U0BOB": "Bob"}
READ_ALOUD = "Read this aloud"
RESPONSE_USES = 5
RESPONSE_S = 1_800.0

_LINK = re.compile(r"<(https?://[^|>]+)\|([^>]*)>")

COLUMNS = (
    Column("who", "From"),
    Column("text", "Message"),
    Column("menu", "Menu", "select", ("", READ_ALOUD)),
)
ENDPOINT = """\
[endpoint.desk]
connector = "slack"
base_url = "{url}"
channel = "C0DEMO"

[endpoint.desk.secrets]
signing = ["file:fake-slack-signing"]
bot_token = "file:fake-slack-bot-token"
"""


@dataclass(slots=True)
class FakeResponse:
    """A response address: what was posted to it, and until when it lives."""

    until_s: float
    posted: list[dict[str, Any]]


class FakeSlack(FakeTool):
    """One workspace with one app.

    Attributes:
        bot_token, signing_secret: of the app.
        channels: messages of each channel the app is in, oldest first.
        responses: response addresses by path.
    """

    name: ClassVar[str] = "slack"
    title: ClassVar[str] = "Slack"

    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(world)
        self.bot_token = "xoxb-demo-token"  # noqa: S105
        self.signing_secret = "demo-signing-secret"  # noqa: S105
        self.channels: dict[str, list[dict[str, Any]]] = {CHANNEL: []}
        self.responses: dict[str, FakeResponse] = {}
        self.posts = Window(1, 1.0, clock)
        self.reads = Window(50, 60.0, clock)
        self._last_ts = 0.0

    # the world ----------------------------------------------------------------------------------

    def add_samples(self) -> None:
        """A channel with messages; its table's menu has the shortcut."""
        table = self.world.add_table(self.name, TEAM, CHANNEL, "#general", COLUMNS)
        texts = {
            "U0ALICE": "*Decisions*\nWe ship on Friday.",
            "U0BOB": "Then I write the release note on Thursday.",
        }
        for user, text in texts.items():
            self.world.add_row(table, self.say(user, text), {"From": PEOPLE[user], "Message": text})

    def endpoint(self, url: str) -> Endpoint:
        """The sample channel."""
        secrets = {
            "fake-slack-signing": self.signing_secret,
            "fake-slack-bot-token": self.bot_token,
        }
        return Endpoint("desk", ENDPOINT.replace("{url}", url), secrets)

    def events(self, change: Change) -> list[Delivery]:
        """The shortcut, if somebody took it from a message's menu."""
        if not self.hook_url or change.after.get("menu") != READ_ALOUD:
            return []
        return [self.shortcut(change.row_id)]

    # what people do -----------------------------------------------------------------------------

    def say(self, user: str, text: str, *, channel: str = CHANNEL, thread: str = "") -> str:
        """A person writes a message; gives its time stamp."""
        return self._add(channel, {"type": "message", "user": user, "text": text}, thread)

    def command(self, text: str, *, user: str = "U0ALICE", channel: str = CHANNEL) -> Delivery:
        """A person uses `/notecast`."""
        fields = {
            "command": "/notecast",
            "text": text,
            "team_id": TEAM,
            "channel_id": channel,
            "user_id": user,
            "trigger_id": f"1.2.{secrets.token_hex(8)}",
            "response_url": self._response_url("commands"),
        }
        return self._form(fields)

    def shortcut(self, ts: str, *, user: str = "U0ALICE", channel: str = CHANNEL) -> Delivery:
        """A person uses the shortcut on a message."""
        message = next(one for one in self.channels[channel] if one["ts"] == ts)
        payload = {
            "type": "message_action",
            "callback_id": "read_aloud",
            "trigger_id": f"1.3.{secrets.token_hex(8)}",
            "team": {"id": TEAM, "domain": "demo"},
            "user": {"id": user},
            "channel": {"id": channel, "name": "general"},
            "message": message,
            "response_url": self._response_url("app"),
        }
        return self._form({"payload": json.dumps(payload)})

    def mention(
        self, text: str, *, user: str = "U0ALICE", channel: str = CHANNEL, thread: str = ""
    ) -> Delivery:
        """A person names the app in a message."""
        spoken = f"<@{BOT}> {text}".strip()
        ts = self.say(user, spoken, channel=channel, thread=thread)
        event = {
            "type": "app_mention",
            "user": user,
            "text": spoken,
            "ts": ts,
            "channel": channel,
            "event_ts": ts,
        }
        if thread:
            event["thread_ts"] = thread
        return self.deliver(
            {
                "type": "event_callback",
                "team_id": TEAM,
                "api_app_id": "A0DEMO",
                "event_id": f"Ev{uuid.uuid4().hex[:10].upper()}",
                "event": event,
            }
        )

    def deliver(self, content: Mapping[str, Any]) -> Delivery:
        """An event to the hook, signed."""
        return self._signed(json.dumps(content).encode(), "application/json")

    def _form(self, fields: Mapping[str, str]) -> Delivery:
        return self._signed(urlencode(fields).encode(), "application/x-www-form-urlencoded")

    def _signed(self, body: bytes, content_type: str) -> Delivery:
        at = round(self.world.clock())
        headers = {"content-type": content_type, **sign_slack(self.signing_secret, at, body)}
        return Delivery(self.hook_url, headers, body, "slack")

    def _response_url(self, kind: str) -> str:
        path = f"/{kind}/{TEAM}/{secrets.randbelow(10**12)}/{secrets.token_hex(12)}"
        self.responses[path] = FakeResponse(self.world.clock() + RESPONSE_S, [])
        return f"https://hooks.slack.com{path}"

    # routes -------------------------------------------------------------------------------------

    def routes(self) -> APIRouter:
        """The Web API's methods, and the response addresses that are on a host of their own."""
        router = APIRouter()
        add_route(self, router, "POST", "/api/auth.test", self._test)
        add_route(self, router, "POST", "/api/chat.postMessage", self._post)
        add_route(self, router, "POST", "/api/chat.update", self._update)
        add_route(self, router, "POST", "/api/conversations.replies", self._replies)
        add_route(self, router, "POST", "/api/users.info", self._user)
        for kind in ("commands", "app"):
            add_route(self, router, "POST", f"/{kind}/{{team}}/{{number}}/{{key}}", self._respond)
        return router

    def bad_request(self) -> Refused:
        return _no("invalid_json")

    def _enter(self, request: Request) -> None:
        if request.headers.get("authorization") != f"Bearer {self.bot_token}":
            raise _no("invalid_auth")

    def _test(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request)
        return {"ok": True, "team_id": TEAM, "user_id": BOT, "bot_id": "B0BOT"}

    def _post(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request)
        channel = self._channel(content.get("channel"))
        _take(self.posts, channel)
        text = content.get("text")
        if not isinstance(text, str) or not text:
            raise _no("no_text")
        thread = str(content.get("thread_ts") or "")
        if thread and not any(one["ts"] == thread for one in self.channels[channel]):
            raise _no("thread_not_found")
        message = {"type": "message", "user": BOT, "bot_id": "B0BOT", "text": text}
        if content.get("metadata"):
            message["metadata"] = content["metadata"]
        ts = self._add(channel, message, thread)
        self._show(channel, text)
        return {"ok": True, "channel": channel, "ts": ts, "message": message}

    def _update(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request)
        channel = self._channel(content.get("channel"))
        _take(self.posts, channel)
        for message in self.channels[channel]:
            if message["ts"] == content.get("ts"):
                if message.get("user") != BOT:
                    raise _no("cant_update_message")
                message["text"] = str(content.get("text", ""))
                message["edited"] = {"user": BOT, "ts": f"{self.world.clock():.6f}"}
                message["metadata"] = content.get("metadata", message.get("metadata"))
                self._show(channel, message["text"])
                return {"ok": True, "channel": channel, "ts": message["ts"], "text": ""}
        raise _no("message_not_found")

    def _replies(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request)
        channel = self._channel(content.get("channel"))
        _take(self.reads, channel)
        ts = content.get("ts")
        found = [m for m in self.channels[channel] if ts in (m["ts"], m.get("thread_ts"))]
        if not found:
            raise _no("thread_not_found")
        if content.get("include_all_metadata") not in ("1", "true"):
            found = [{k: v for k, v in m.items() if k != "metadata"} for m in found]
        size, start = int(content.get("limit", "1000")), int(content.get("cursor") or 0)
        end = start + size
        cursor = str(end) if end < len(found) else ""
        return {
            "ok": True,
            "messages": found[start:end],
            "has_more": bool(cursor),
            "response_metadata": {"next_cursor": cursor},
        }

    def _user(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request)
        user = str(content.get("user", ""))
        if user not in PEOPLE:
            raise _no("user_not_found")
        name = PEOPLE[user]
        profile = {"display_name": name, "real_name": f"{name} Demo"}
        return {"ok": True, "user": {"id": user, "name": name.lower(), "profile": profile}}

    def _respond(self, request: Request, content: dict[str, Any]) -> Any:
        response = self.responses.get(request.url.path)
        if response is None or response.until_s < self.world.clock():
            return PlainTextResponse("expired_url", 404)
        if len(response.posted) >= RESPONSE_USES:
            return PlainTextResponse("used_url", 404)
        response.posted.append(content)
        self._show("only you", str(content.get("text", "")))
        return PlainTextResponse("ok")

    def _channel(self, channel: Any) -> str:
        if not isinstance(channel, str) or channel not in self.channels:
            raise _no("channel_not_found")
        return channel

    def _add(self, channel: str, message: dict[str, Any], thread: str) -> str:
        with self.world.lock:
            self._last_ts = max(self.world.clock(), self._last_ts + 0.000_001)
            message["ts"] = f"{self._last_ts:.6f}"
            if thread:
                message["thread_ts"] = thread
            self.channels[channel].append(message)
            return str(message["ts"])

    def _show(self, group: str, text: str) -> None:
        """Put a message on the page."""
        found = _LINK.search(text)
        link, button = (found[1], found[2]) if found else ("", "")
        shown = _LINK.sub(r"\2", text)
        self.world.post(
            Message(self.name, group, "", shown, link, button, at_ms=self.world.now_ms())
        )


def _take(budget: Window, key: str) -> None:
    wait_s = budget.take(key)
    if wait_s:
        headers = {"Retry-After": str(max(1, round(wait_s)))}
        raise Refused({"ok": False, "error": "ratelimited"}, 429, headers)


def _no(error: str) -> Refused:
    """Slack's no: a 200 that says it is none."""
    return Refused({"ok": False, "error": error}, 200)
