"""The generic signed endpoint: any system that can sign a POST (Standard Webhooks)."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from connectors.base import Connector, Detail, Hook, Note, NoteEvent, NoteRef
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
from connectors.signing import verify_webhook, webhook_key


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

    def verify(self, hook: Hook, *, now: datetime) -> bytes:
        verify_webhook(self._keys, hook.headers, hook.body, now=now)
        return hook.body

    def events(self, body: bytes, hook: Hook) -> list[NoteEvent]:
        message = validate(Message, parse_json(body))
        msg_id = hook.headers.get("webhook-id") or hashlib.sha256(body).hexdigest()
        data = message.data
        ref = NoteRef(self.endpoint, key=data.ref or msg_id)
        note = Note(ref=ref, modified_at=message.timestamp, **data.model_dump(exclude={"ref"}))
        return [NoteEvent(msg_id, ref, note=note, occurred_at=message.timestamp)]


Webhook.Config.model_rebuild()
