"""The open platform of Feishu and Lark for one app: tokens, and what its codes mean.

A tenant token is kept until ten minutes before it ends. When the platform calls it invalid all the
same (the app's secret was reset), it is fetched anew once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from connectors.base import Connector
from connectors.errors import ConnectorError, ToolRefused, ToolUnavailable, WrongColumn
from connectors.http import Answer, Api, Bearer, Params

T = TypeVar("T")

SITES: Mapping[str, str] = {
    "feishu": "https://open.feishu.cn",
    "lark": "https://open.larksuite.com",
}
TOKEN_MARGIN_S = 600.0
GONE = frozenset({"1254006", "1254043"})  # WrongRecordId, RecordIdNotFound

_PREFIX = "/open-apis"
_BAD_TOKEN = frozenset({99991661, 99991663, 99991664, 99991665, 99991668, 99991671, 99991677})
_TOO_MANY = frozenset({99991400, 1254290})
_CONFLICT = 1254291
_NOT_NOW = frozenset({1254002, 1254036, 1254607, 1255001, 1255002, 1255040})
_COLUMN = frozenset({1254015, 1254045, 1254130, *range(1254060, 1254073)})
_CURES: Mapping[int, str] = {
    10003: "app_id or app_secret is missing",
    10014: "app_id and app_secret do not belong together: copy both from the developer console",
    91403: "the app may not open this base: in the base, ... > More > Add document app",
    99991672: "the app lacks a permission: grant what the message names and publish a version",
    1254003: "there is no such base: `base` is the part of its address after /base/",
    1254040: "there is no such base: `base` is the part of its address after /base/",
    1254004: "there is no such table: `table` is the `table=` of the base's address",
    1254041: "there is no such table: `table` is the `table=` of the base's address",
    1254015: "a column is of another type than the value",
    1254027: "the file was uploaded to another base",
    1254045: "a column is missing or has another name now: run `notecast connectors check`",
    1254064: "a date column takes milliseconds",
    1254068: "a link column takes text and link",
    1254130: "a cell holds at most 100,000 characters",
    1254302: "advanced permissions are on and the app has no role that may write: give it one",
    1254303: "the file was uploaded to another base",
    20026: "the refresh token is not valid: authorise again",
    20037: "the refresh token has expired: authorise again",
    20064: "the refresh token was used before: authorise again",
    20073: "the refresh token was used before: authorise again",
}  # fmt: skip


class TokenRefused(ToolRefused):
    """The platform does not know the access token (any more)."""


class AppSecrets(BaseModel):
    """What an app proves itself with; both stand on its page "Credentials"."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    app_id: SecretStr
    app_secret: SecretStr


class AppConfig(Connector.Config):
    """Where the app lives; `base_url` is for a fake or a proxy of your own."""

    site: Literal["feishu", "lark"] = "feishu"
    base_url: str = Field(default="", max_length=500)

    @field_validator("base_url")
    @classmethod
    def _is_safe(cls, url: str) -> str:
        parts = urlsplit(url)
        local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
        if url and not local and not (parts.scheme == "https" and parts.hostname):
            raise ValueError("must be an https address, or http on this machine")
        return url.rstrip("/")

    @property
    def address(self) -> str:
        """Of the open platform."""
        return self.base_url or SITES[self.site]


class FeishuApi:
    """Calls to the open platform as one app.

    Every call gives the answer's `data` and raises what `http.Api` raises; a `code` that is not 0
    is an error, whatever the status:

    - `ToolUnavailable`: limits, write conflicts, an overloaded table; with the wait asked for
    - `WrongColumn`: a column is missing or cannot hold the value
    - `TokenRefused`: the token is invalid even though it is new
    - `ToolRefused`: everything else; `code` is the platform's
    """

    def __init__(
        self,
        address: str,
        secrets: AppSecrets,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = Api(address, name="Feishu", complaint=complaint)
        self._secrets = secrets
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._token_until = 0.0

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        content: Any = None,
        user_token: str = "",
    ) -> dict[str, Any]:
        """Call `/open-apis{path}` as the app, or as the user whose token is given."""

        def once(token: str) -> dict[str, Any]:
            answer = self._api.request(
                method, _PREFIX + path, params=params, content=content, auth=Bearer(token)
            )
            return _data(self._api.object(answer))

        return once(user_token) if user_token else self._as_app(once)

    def upload(
        self, path: str, fields: Mapping[str, str], name: str, content: bytes
    ) -> dict[str, Any]:
        """Post a form with one file to `/open-apis{path}` as the app."""
        files = {"file": (name, content, "application/octet-stream")}

        def once(token: str) -> dict[str, Any]:
            answer = self._api.request(
                "POST", _PREFIX + path, form=fields, files=files, auth=Bearer(token)
            )
            return _data(self._api.object(answer))

        return self._as_app(once)

    def download(self, path: str, *, params: Params | None = None, user_token: str = "") -> bytes:
        """Get a file from `/open-apis{path}`."""

        def once(token: str) -> bytes:
            return self._api.request("GET", _PREFIX + path, params=params, auth=Bearer(token)).body

        return once(user_token) if user_token else self._as_app(once)

    def refresh_user(self, refresh_token: str) -> dict[str, Any]:
        """Trade a refresh token, which works once, for a user token and the next refresh token."""
        content = {
            "grant_type": "refresh_token",
            "client_id": self._secrets.app_id.get_secret_value(),
            "client_secret": self._secrets.app_secret.get_secret_value(),
            "refresh_token": refresh_token,
        }
        return self._api.post(f"{_PREFIX}/authen/v2/oauth/token", content)

    def _as_app(self, once: Callable[[str], T]) -> T:
        token = self._tenant_token()
        try:
            return once(token)
        except TokenRefused:
            self._forget(token)
        return once(self._tenant_token())

    def _tenant_token(self) -> str:
        with self._lock:  # two threads need not ask twice
            if self._clock() >= self._token_until:
                began = self._clock()
                content = {
                    "app_id": self._secrets.app_id.get_secret_value(),
                    "app_secret": self._secrets.app_secret.get_secret_value(),
                }
                path = f"{_PREFIX}/auth/v3/tenant_access_token/internal"
                answer = self._api.post(path, content)
                self._token = str(answer.get("tenant_access_token", ""))
                self._token_until = began + float(answer.get("expire", 0)) - TOKEN_MARGIN_S
            return self._token

    def _forget(self, token: str) -> None:
        with self._lock:
            if self._token == token:
                self._token_until = 0.0


def complaint(answer: Answer) -> ConnectorError | None:
    """What the `code` of an answer says; see `FeishuApi`."""
    content = answer.content
    code = content.get("code", 0) if content else 0
    if not isinstance(code, (int, str)) or str(code) == "0":
        return None
    number = int(code) if str(code).isdecimal() else -1
    if number in _TOO_MANY:
        return ToolUnavailable("Feishu asks for fewer calls", after_s=answer.wait_s)
    if number == _CONFLICT:
        wait_s = random.uniform(0.5, 1.0)  # noqa: S311  # spreads writers, hides nothing
        return ToolUnavailable("somebody else writes to the table", after_s=wait_s)
    if number in _NOT_NOW or answer.status >= 500:
        return ToolUnavailable(f"Feishu is not ready: code {number}", after_s=answer.wait_s)
    kind = WrongColumn if number in _COLUMN else ToolRefused
    kind = TokenRefused if number in _BAD_TOKEN else kind
    said = str(content.get("msg", ""))[:120] if content else ""
    cure = _CURES.get(number, "")
    message = f"Feishu refused with code {number}: {' | '.join(filter(None, (cure, said)))}"
    return kind(message, code=str(number))


def _data(answer: Mapping[str, Any]) -> dict[str, Any]:
    data = answer.get("data")
    return data if isinstance(data, dict) else {}
