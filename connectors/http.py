"""Calls to tools: one place for timeouts, limits and the tool's wish to wait.

Redirects are failures: the address comes from the configuration and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError

from connectors.errors import ToolRefused, ToolUnavailable

CONNECT_S = 5.0
READ_S = 15.0
MAX_ANSWER_BYTES = 1 << 20
MAX_WAIT_S = 3_600.0


class Bearer(AuthBase):
    """`Authorization: Bearer`, as an auth object so that a .netrc file cannot replace it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def post_json(
    url: str,
    content: Mapping[str, Any],
    *,
    auth: AuthBase | None = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """POST JSON, give the JSON object that comes back.

    Raises:
        ToolUnavailable: no connection, no answer in time, 429 or 5xx; with the wait it asked for.
        ToolRefused: any other status, a redirect, or an answer that is no JSON object.
    """
    try:
        with (
            requests.Session() as session,
            session.post(
                url, json=content, auth=auth, headers=headers, stream=True,
                timeout=(CONNECT_S, READ_S), allow_redirects=False,
            ) as response,
        ):  # fmt: skip
            body = response.raw.read(MAX_ANSWER_BYTES, decode_content=True)
    except (requests.RequestException, HTTPError) as error:
        # The text of the error may hold the address, and the address may be a secret.
        raise ToolUnavailable(f"no answer: {type(error).__name__}") from None
    if response.status_code == 429 or response.status_code >= 500:
        wait_s = retry_after_s(response.headers, now=datetime.now(UTC))
        raise ToolUnavailable(f"answered {response.status_code}", after_s=wait_s)
    if not 200 <= response.status_code < 300:
        raise ToolRefused(f"answered {response.status_code}", code=str(response.status_code))
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ToolRefused("answered something that is not a JSON object")
    return answer


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
