"""Group robots of Feishu, DingTalk and WeCom: they only notify.

A robot's address holds its token, so the whole address is a secret. Each answers HTTP 200 with a
code in the body. What people wrote is plain text in every card: no robot reads markup in it.

Feishu and DingTalk sign with key and message the other way round; see `signing`.
"""

from __future__ import annotations

import hashlib
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from connectors.base import Budget, Call, Card, Connector, NoteRef
from connectors.errors import ConfigError, ConnectorError, ToolRefused, ToolUnavailable
from connectors.http import Answer, Api, Params
from connectors.signing import sign_dingtalk_robot, sign_feishu_robot

_HOSTS: Mapping[str, str] = {
    "open.feishu.cn": "feishu_robot",
    "open.larksuite.com": "feishu_robot",
    "oapi.dingtalk.com": "dingtalk_robot",
    "qyapi.weixin.qq.com": "wecom_robot",
}
_TITLE_CHARACTERS = 120
_TEXT_CHARACTERS = 2_000
_COLOURS = {"queued": "blue", "live": "red", "done": "green", "failed": "orange"}
_NO_MARKUP = str.maketrans({"[": "［", "]": "］", "<": "＜", ">": "＞", "`": "'"})

_FEISHU: Mapping[str, str] = {
    "19001": "the address is not a robot's: copy it anew from the group's settings",
    "19021": "the signature does not fit: is `secret` this robot's, not DingTalk's, and is the "
    "clock right?",
    "19022": "this machine's address is not on the robot's list",
    "19024": "the robot wants a keyword in each message: take the title of your notes, or sign",
    "9499": "the card is not what the robot takes",
}  # fmt: skip
_DINGTALK: Mapping[str, str] = {
    "300001": "the address is not a robot's: copy it anew from the group's settings",
    "310000": "the robot's security settings refuse the message: signature, keyword or address",
    "400101": "the address is not a robot's: copy it anew from the group's settings",
}
_WECOM: Mapping[str, str] = {
    "93000": "the address is not a robot's: copy it anew from the group's settings",
    "40058": "the message is not what the robot takes",
}


class Robot(Connector, ABC):
    """A group's robot; `Config` has its address and, where it signs, its secret."""

    per_min: ClassVar[float] = 18.0
    burst: ClassVar[int] = 4

    class Config(Connector.Config):
        """`url = "env:NC_BOT_URL"`, as the group's settings show it."""

        url: SecretStr

    def __init__(
        self, endpoint: str, config: Config, *, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(endpoint, config)
        url = config.url.get_secret_value()
        _check_address(self.name, url)
        self._clock = clock
        self._api = Api(url, name=self.name, complaint=self._complaint)
        self._budget = f"{self.name}/{hashlib.sha256(url.encode()).hexdigest()[:16]}"

    def bucket(self, ref: NoteRef | None, call: Call = "write") -> Budget | None:
        """Robots of one address share what it may send."""
        return Budget(self._budget, per_min=self.per_min, burst=self.burst)

    @abstractmethod
    def _complaint(self, answer: Answer) -> ConnectorError | None:
        """What an answer of status 200 says is wrong, if so."""


class FeishuRobot(Robot):
    """A custom bot of a Feishu or Lark group."""

    name: ClassVar[str] = "feishu_robot"
    per_min: ClassVar[float] = 90.0

    class Config(Robot.Config):
        """`secret`: from "signature verification"; two while it is being changed."""

        secret: list[SecretStr] = Field(default_factory=list, max_length=2)

        @field_validator("secret", mode="before")
        @classmethod
        def _listed(cls, value: Any) -> Any:
            return [value] if isinstance(value, (str, SecretStr)) else value

    def __init__(
        self, endpoint: str, config: Config, *, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(endpoint, config, clock=clock)
        self._secrets = [secret.get_secret_value() for secret in config.secret]

    def notify(self, card: Card) -> None:
        """Post a card; one that was refused for its signature is signed with the other secret."""
        content = {"msg_type": "interactive", "card": _feishu_card(card)}
        if not self._secrets:
            self._api.post("", content)
            return
        for left, secret in enumerate(self._secrets, start=1 - len(self._secrets)):
            at_s = int(self._clock())
            signed = {"timestamp": str(at_s), "sign": sign_feishu_robot(secret, at_s)}
            try:
                self._api.post("", {**signed, **content})
            except ToolRefused as error:
                if error.code == "19021" and left:
                    continue
                raise
            return

    def _complaint(self, answer: Answer) -> ConnectorError | None:
        content = answer.content or {}
        code = str(content.get("code", content.get("StatusCode", 0)))
        if code in ("11232", "99991400"):
            wait_s = random.uniform(30.0, 90.0)  # noqa: S311  # spreads senders, hides nothing
            return ToolUnavailable("the Feishu robot asks for fewer cards", after_s=wait_s)
        return _refusal("the Feishu robot", code, _FEISHU)


class DingTalkRobot(Robot):
    """A custom robot of a DingTalk group; too many messages silence it for ten minutes."""

    name: ClassVar[str] = "dingtalk_robot"

    class Config(Robot.Config):
        """`secret`: from "additional signature", begins with SEC."""

        secret: SecretStr | None = None

    def __init__(
        self, endpoint: str, config: Config, *, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(endpoint, config, clock=clock)
        self._secret = config.secret.get_secret_value() if config.secret else ""

    def notify(self, card: Card) -> None:
        """Post an action card: its text is Markdown, so what could be markup is replaced."""
        title = _cut(card.title, _TITLE_CHARACTERS).translate(_NO_MARKUP)
        text = _cut(card.text, _TEXT_CHARACTERS).translate(_NO_MARKUP)
        content = {
            "msgtype": "actionCard",
            "actionCard": {
                "title": title,
                "text": f"### {title}\n\n" + text.replace("\n", "  \n"),
                "singleTitle": card.button,
                "singleURL": card.link,
            },
        }
        at_ms = int(self._clock() * 1000)
        signed: Params = {"timestamp": at_ms, "sign": sign_dingtalk_robot(self._secret, at_ms)}
        self._api.post("", content, params=signed if self._secret else None)

    def _complaint(self, answer: Answer) -> ConnectorError | None:
        code = str((answer.content or {}).get("errcode", 0))
        if code in ("130101", "410100", "-1"):
            wait_s = 60.0 if code == "-1" else 600.0
            return ToolUnavailable("the DingTalk robot asks for fewer messages", after_s=wait_s)
        return _refusal("the DingTalk robot", code, _DINGTALK)


class WeComRobot(Robot):
    """A group robot of WeCom; the key in its address is the only secret."""

    name: ClassVar[str] = "wecom_robot"

    def notify(self, card: Card) -> None:
        """Post a news card, whose title and description are plain text."""
        description = f"{_cut(card.text, _TEXT_CHARACTERS)}\n▶ {card.button}"
        article = {
            "title": _cut_bytes(card.title, 128),
            "description": _cut_bytes(description, 512),
            "url": card.link,
        }
        self._api.post("", {"msgtype": "news", "news": {"articles": [article]}})

    def _complaint(self, answer: Answer) -> ConnectorError | None:
        code = str((answer.content or {}).get("errcode", 0))
        if code in ("45009", "45033", "-1"):
            return ToolUnavailable("the WeCom robot asks for fewer messages", after_s=60.0)
        return _refusal("the WeCom robot", code, _WECOM)


def _check_address(name: str, url: str) -> None:
    """Catch a robot's address that was pasted into another robot's endpoint.

    Raises:
        ConfigError: another vendor's address, or one that is not https.
    """
    parts = urlsplit(url)
    is_local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    if not is_local and not (parts.scheme == "https" and parts.hostname):
        raise ConfigError("url", "must be the https address that the group's settings show")
    other = _HOSTS.get(parts.hostname or "", name)
    if other != name:
        raise ConfigError("url", f'this is the address of a robot for connector = "{other}"')


def _refusal(who: str, code: str, cures: Mapping[str, str]) -> ConnectorError | None:
    if code == "0":
        return None
    cure = cures.get(code, "see the vendor's list of codes")
    return ToolRefused(f"{who} refused with code {code[:20]}: {cure}", code=code[:20])


def _feishu_card(card: Card) -> dict[str, Any]:
    button = {
        "tag": "button",
        "type": "primary",
        "url": card.link,
        "text": {"tag": "plain_text", "content": card.button},
    }
    title = {"tag": "plain_text", "content": _cut(card.title, _TITLE_CHARACTERS)}
    text = {"tag": "plain_text", "content": _cut(card.text, _TEXT_CHARACTERS)}
    return {
        "config": {"wide_screen_mode": True},
        "header": {"title": title, "template": _COLOURS[card.state]},
        "elements": [{"tag": "div", "text": text}, {"tag": "action", "actions": [button]}],
    }


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _cut_bytes(text: str, size: int) -> str:
    raw = text.encode("utf-8", "replace")
    if len(raw) <= size:
        return text
    return raw[: size - 3].decode("utf-8", "ignore") + "…"
