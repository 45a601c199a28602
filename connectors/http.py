"""Calls to tools: one place for timeouts, limits, refusals and the tool's wish to wait.

An `Api` is one tool at one address. Redirects are failures: the address comes from the
configuration and nowhere else, and no part of a path can lead out of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from types import TracebackType
from typing import Any
from urllib.parse import quote

import requests
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError, NewConnectionError

from connectors.errors import ConnectorError, ToolRefused, ToolUnavailable

CONNECT_S = 5.0
READ_S = 15.0  # silence on the line, not the whole answer
ANSWER_S = 60.0
MAX_ANSWER_BYTES = 8 << 20
MAX_WAIT_S = 3_600.0

_PIECE_BYTES = 1 << 16

Params = Mapping[str, str | int | Sequence[str]]
"""Query parameters; a sequence repeats its name."""


class Bearer(AuthBase):
    """`Authorization: Bearer`, as an auth object so that a .netrc file cannot replace it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class NoAuth(AuthBase):
    """Nothing, and neither what a .netrc file says."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool answered, whatever its status.

    Attributes:
        name: the tool's, for messages.
        headers: case does not matter.
    """

    name: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def wait_s(self) -> float | None:
        """The wait the tool asks for, None if it names none."""
        return retry_after_s(self.headers, now=datetime.now(UTC))

    @property
    def content(self) -> dict[str, Any] | None:
        """The JSON object in the body; `{}` for a 204; None if there is something else."""
        if self.status == 204 and not self.body:
            return {}
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


Complaint = Callable[[Answer], ConnectorError | None]
"""Reads a tool's own error codes: the error to raise, None if it finds none."""


class Api:
    """One tool at one address, with one pool of connections; threads may share it.

    Every call raises `ToolUnavailable` for no connection, no answer in time, 429 and 5xx, with the
    wait the tool asked for, and `ToolRefused` for every other status that is not 2xx, a redirect,
    an answer beyond `MAX_ANSWER_BYTES` or one that is not the JSON object it should be.
    """

    def __init__(
        self,
        base_url: str,
        *,
        name: str = "the tool",
        auth: AuthBase | None = None,
        headers: Mapping[str, str] | None = None,
        complaint: Complaint | None = None,
    ) -> None:
        """Prepare calls; opens no connection.

        Args:
            base_url: what every path is put behind; may itself be a secret.
            name: the tool as it stands in messages.
            auth: puts proof into each request, say `Bearer`.
            headers: sent with every request.
            complaint: asked before the status is looked at, because many tools say what is wrong
                in the body of a 200.
        """
        self.name = name
        self._base_url = base_url
        self._complaint = complaint
        self._session = requests.Session()
        self._session.auth = auth or NoAuth()
        self._session.headers.update({"User-Agent": "notecast", **(headers or {})})
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def __repr__(self) -> str:
        return f"<Api {self.name}>"

    def __enter__(self) -> Api:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._session.close()

    def get(self, path: str, *, params: Params | None = None) -> dict[str, Any]:
        """GET a JSON object."""
        return self.object(self.request("GET", path, params=params))

    def post(
        self,
        path: str,
        content: Any = None,
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        auth: AuthBase | None = None,
    ) -> dict[str, Any]:
        """POST JSON, or an empty body for None; gives the JSON object that comes back."""
        answer = self.request(
            "POST", path, params=params, content=content, headers=headers, auth=auth
        )
        return self.object(answer)

    def put(self, path: str, content: Any, *, params: Params | None = None) -> dict[str, Any]:
        """PUT JSON; gives the JSON object that comes back."""
        return self.object(self.request("PUT", path, params=params, content=content))

    def patch(self, path: str, content: Any, *, params: Params | None = None) -> dict[str, Any]:
        """PATCH JSON; gives the JSON object that comes back."""
        return self.object(self.request("PATCH", path, params=params, content=content))

    def delete(self, path: str, *, params: Params | None = None) -> dict[str, Any]:
        """DELETE; gives the JSON object that comes back."""
        return self.object(self.request("DELETE", path, params=params))

    def post_form(self, path: str, fields: Mapping[str, str]) -> dict[str, Any]:
        """POST `application/x-www-form-urlencoded`; gives the JSON object that comes back."""
        return self.object(self.request("POST", path, form=fields))

    def upload(
        self, path: str, fields: Mapping[str, str], file_name: str, content: bytes
    ) -> dict[str, Any]:
        """POST `multipart/form-data`: the fields, then `content` as the part named `file`."""
        part = {"file": (file_name, content, "application/octet-stream")}
        return self.object(self.request("POST", path, form=fields, files=part))

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        content: Any = None,
        form: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: AuthBase | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """Make a call; gives the answer of a call that went well.

        Args:
            path: made by `path_of`, or one written in the code; `""` is the base address itself.
            content: JSON.
            auth: in place of the tool's own.
            max_bytes: the longest answer that is read.
        """
        url = self._base_url.rstrip("/") + path if path else self._base_url
        try:
            with self._session.request(
                method, url, params=params, json=content, data=form, files=files,
                headers=headers, auth=auth, stream=True, timeout=(CONNECT_S, READ_S),
                allow_redirects=False,
            ) as response:  # fmt: skip
                body = self._read(response, max_bytes)
        except (requests.RequestException, HTTPError) as error:
            # The text of the error may hold the address, and the address may be a secret.
            raise ToolUnavailable(
                f"{self.name}: no answer: {type(error).__name__}", unanswered=_was_sent(error)
            ) from None
        answer = Answer(self.name, response.status_code, response.headers, body)
        found = self._complaint(answer) if self._complaint else None
        if found is not None:
            raise found
        check_status(answer)
        return answer

    def object(self, answer: Answer) -> dict[str, Any]:
        """The JSON object of an answer.

        Raises:
            ToolRefused: there is none.
        """
        content = answer.content
        if content is None:
            raise ToolRefused(f"{self.name} answered something that is not a JSON object")
        return content

    def _read(self, response: requests.Response, max_bytes: int) -> bytes:
        deadline = time.monotonic() + ANSWER_S
        body = bytearray()
        while piece := response.raw.read1(_PIECE_BYTES, decode_content=True):
            body += piece
            if len(body) > max_bytes:
                raise ToolRefused(f"{self.name} answered more than {max_bytes} bytes")
            if time.monotonic() > deadline:
                raise ToolUnavailable(
                    f"{self.name} took more than {ANSWER_S:.0f} s to answer", unanswered=True
                )
        return bytes(body)


def _was_sent(error: Exception) -> bool:
    """May the request have reached the tool? Not if there was never a connection."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    return not isinstance(error, requests.ConnectTimeout) and not isinstance(
        cause, NewConnectionError
    )


def check_status(answer: Answer) -> None:
    """What a status alone says.

    Raises:
        ToolUnavailable: 429, 5xx.
        ToolRefused: anything else but 2xx; `code` is the status.
    """
    if answer.status == 429 or answer.status >= 500:
        message = f"{answer.name} answered {answer.status}"
        said_no = answer.status in (429, 503)  # any other failure may have come half-way
        raise ToolUnavailable(message, after_s=answer.wait_s, unanswered=not said_no)
    if not 200 <= answer.status < 300:
        message = f"{answer.name} answered {answer.status}"
        raise ToolRefused(message, code=str(answer.status))


def path_of(*parts: str) -> str:
    """`("v0", "app 1", "tbl/2")` -> `/v0/app%201/tbl%2F2`; ids that came from outside are safe.

    Raises:
        ToolRefused: an empty part, `.` or `..`, which would lead to another address.
    """
    for part in parts:
        if part in ("", ".", ".."):
            raise ToolRefused(f"{part!r} is not an id")
    return "".join("/" + quote(part, safe="") for part in parts)


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """The wait a tool asks for, 0 to 3600 s: `Retry-After` (RFC 9110) or Feishu's own header."""
    text = headers.get("Retry-After") or headers.get("x-ogw-ratelimit-reset") or ""
    try:
        wait_s = float(text) if text.strip().isascii() else None
    except ValueError:
        try:
            at = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError):
            return None
        wait_s = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    if wait_s is None or wait_s != wait_s:  # NaN
        return None
    return min(max(wait_s, 0.0), MAX_WAIT_S)
