"""A Google service account: bearer tokens for calls, from the key file that people download."""

from __future__ import annotations

import functools
import json
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from pydantic import SecretStr
from requests.auth import AuthBase

from connectors.errors import ToolRefused, ToolUnavailable
from connectors.http import CONNECT_S, READ_S

if TYPE_CHECKING:
    from google.oauth2.service_account import Credentials

SCOPE = "https://www.googleapis.com/auth/spreadsheets"


class ServiceAccount(AuthBase):
    """Bearer tokens of a Google service account, renewed shortly before they expire."""

    def __init__(self, key_file: str) -> None:
        self._key_file = SecretStr(key_file)
        self.email = str(read_key_file(key_file)["client_email"])
        self._credentials: Credentials | None = None
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Fetch another token next time, because this one was not accepted."""
        with self._lock:
            self._credentials = None

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token()}"
        return request

    def _token(self) -> str:
        # Imported late: a fifth of a second that only whoever owns a sheet should pay.
        from google.auth import exceptions
        from google.auth.transport.requests import Request
        from google.oauth2.service_account import Credentials

        with self._lock, requests.Session() as session:
            if self._credentials is None:
                self._credentials = Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
                    read_key_file(self._key_file.get_secret_value()), scopes=[SCOPE]
                )
            if not self._credentials.valid:
                call = functools.partial(Request(session), timeout=CONNECT_S + READ_S)
                try:
                    self._credentials.refresh(call)
                except exceptions.TransportError:
                    raise ToolUnavailable("Google's token service does not answer") from None
                except exceptions.RefreshError as error:
                    if error.retryable:
                        raise ToolUnavailable("Google's token service is busy") from None
                    raise ToolRefused(
                        "Google refused the service account: its key was deleted, or this "
                        "machine's clock is wrong; make a new key file",
                        code="invalid_grant",
                    ) from None
            return str(self._credentials.token)


def read_key_file(text: str) -> dict[str, Any]:
    """Read a key file.

    Raises:
        ValueError: says what is wrong without showing it.
    """
    try:
        info = json.loads(text)
    except ValueError:
        info = None
    needed = ("client_email", "private_key", "token_uri")
    if not isinstance(info, dict) or any(not isinstance(info.get(name), str) for name in needed):
        raise ValueError(
            "not the JSON key file of a service account; make one under IAM & Admin, "
            "Service Accounts, Keys, Add key, JSON"
        )
    uri = urlsplit(info["token_uri"])
    host = uri.hostname or ""
    is_google = uri.scheme == "https" and (
        host == "googleapis.com" or host.endswith(".googleapis.com")
    )
    if not is_google and not (uri.scheme == "http" and host in ("127.0.0.1", "localhost")):
        raise ValueError("token_uri of the key file does not lead to Google")
    return info
