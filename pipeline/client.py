"""Talking to a running `notecast up` from the same machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests

from pipeline.errors import Misconfigured, Refused
from pipeline.settings import Settings
from pipeline.up import running

_TIMEOUT_S = 10


def send_text(settings: Settings, text: str, *, title: str = "", voice: str = "") -> dict[str, Any]:
    """Send a text to `POST /v1/episodes`; gives the answer.

    Raises:
        Misconfigured: nothing runs here, or the key is missing.
        Refused: the text was refused; the message says why.
    """
    state = running(settings.data)
    if state is None:
        raise Misconfigured(f"nothing runs in {settings.data}; start it with: notecast up")
    url = state["url"]
    try:
        answer = requests.post(
            f"{url}/v1/episodes",
            json={"text": text, "title": title, "voice": voice},
            headers={"Authorization": f"Bearer {admin_key(settings.data)}"},
            timeout=_TIMEOUT_S,
        )
    except requests.RequestException as error:
        raise Misconfigured(
            f"{url} does not answer ({type(error).__name__}); start it with: notecast up"
        ) from error
    if not answer.ok:
        raise Refused(f"{url} answered {answer.status_code}: {answer.json()['error']['message']}")
    found: dict[str, Any] = answer.json()
    return found


def admin_key(data: Path) -> str:
    """The admin key that the first `up` made."""
    path = data / "api-key"
    if not path.exists():
        raise Misconfigured(f"{path} is missing; make a key with: notecast keys add NAME")
    return path.read_text().strip()
