"""The generic signed endpoint, both ways: any system that can sign a POST (Standard Webhooks).

In: `note.ready` with the whole note. Out: `note.queued`, `note.live`, `note.finished` and
`note.failed`, signed with the same scheme, to the note's `callback_url` or to the address of
`[endpoint.x.events]`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from connectors.base import Connector, Detail, EpisodeState, Hook, Note, NoteEvent, NoteRef
from connectors.errors import ConfigError, ToolRefused
from connectors.fetch import SafeSession, post
from connectors.payload import (
    DurationRule,
    HttpsUrl,
    Key,
    Lang,
    Line,
    Name,
    Payload,
    Text,
    parse_json,
    validate,
)
from connectors.signing import sign_webhook, verify_webhook, webhook_key

EventType = Literal["note.queued", "note.live", "note.finished", "note.failed"]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
EVENT_OF: Mapping[EpisodeState, EventType] = {
    "queued": "note.queued",
    "live": "note.live",
    "done": "note.finished",
    "failed": "note.failed",
}
EVENT_TIMEOUT_S = 15.0


class NoteData(Payload):
    """`data` of a `note.ready` message; only `text` is required."""

    ref: Key = ""
    title: Line = ""
    text: Text = Field(min_length=1)
    speaker: Name = ""
    voice: Name = ""
    speakers: dict[Name, Name] = Field(default_factory=dict, max_length=40)
    emotion: Name = ""
    duration: DurationRule = ""
    lang: Lang = ""
    detail: Detail | Literal[""] = ""
    callback_url: HttpsUrl = ""

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("is blank")
        return text


class Message(BaseModel):
    """The envelope. Other members at this level are the sender's own affair."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["note.ready"]
    timestamp: datetime | None = None
    data: NoteData


class Webhook(Connector):
    """`webhook-id` is the delivery key; the payload carries the whole note."""

    name: ClassVar[str] = "webhook"

    class Secrets(BaseModel):
        """`webhook`: current and, while changing over, previous."""

        model_config = ConfigDict(extra="forbid", frozen=True)
        webhook: list[SecretStr] = Field(min_length=1, max_length=4)

        @field_validator("webhook")
        @classmethod
        def _readable(cls, secrets: list[SecretStr]) -> list[SecretStr]:
            for secret in secrets:
                webhook_key(secret.get_secret_value())
            return secrets

    class Config(Connector.Config):
        """`secrets = { webhook = ["env:NAME"] }`."""

        secrets: Webhook.Secrets

    def __init__(self, endpoint: str, config: Config) -> None:
        super().__init__(endpoint, config)
        self._keys = [webhook_key(secret.get_secret_value()) for secret in config.secrets.webhook]

    def event_secrets(self) -> Sequence[str]:
        """The endpoint's own secrets; a public key (`whpk_`) signs nothing."""
        return [key.text for key in self._keys if not key.text.startswith("whpk_")]

    def verify(self, hook: Hook, *, now: datetime) -> bytes:
        verify_webhook(self._keys, hook.headers, hook.body, now=now)
        return hook.body

    def as_sent(self, body: bytes, *, now: datetime, msg_id: str) -> Hook:
        """Signed with the newest secret."""
        secrets = self.event_secrets()
        if not secrets:
            raise ConfigError("secrets.webhook", "a whpk_ key cannot sign; replay takes whsec_")
        headers = sign_webhook(secrets[0], msg_id, int(now.timestamp()), body)
        return Hook("POST", headers | {"content-type": "application/json"}, body, now)

    def events(self, body: bytes, hook: Hook) -> list[NoteEvent]:
        message = validate(Message, parse_json(body))
        msg_id = hook.headers.get("webhook-id") or hashlib.sha256(body).hexdigest()
        data = message.data
        ref = NoteRef(self.endpoint, key=data.ref or msg_id)
        note = Note(ref=ref, modified_at=message.timestamp, **data.model_dump(exclude={"ref"}))
        return [NoteEvent(msg_id, ref, note=note, occurred_at=message.timestamp)]


Webhook.Config.model_rebuild()


def send_event(
    session: SafeSession,
    url: str,
    event: Mapping[str, Any],
    *,
    secrets: Sequence[str],
    msg_id: str,
    now: datetime,
) -> None:
    """POST an event; a redirect is a failure.

    Args:
        event: `type`, `timestamp` and `data`; the same on every try.
        secrets: newest first; each signs.
        msg_id: the same on every try; receivers drop repetitions by it.

    Raises:
        UnsafeAddress, ToolUnavailable, ToolRefused: see `fetch.post`; the code 410 means: never
            send anything there again.
    """
    if not secrets:
        raise ToolRefused(
            "there is no secret to sign events with: give [endpoint.x.events] one", code="no_secret"
        )
    body = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    headers = sign_webhook(secrets, msg_id, int(now.timestamp()), body)
    headers |= {"Content-Type": "application/json", "User-Agent": "notecast"}
    post(session, url, body, headers=headers, timeout_s=EVENT_TIMEOUT_S)
