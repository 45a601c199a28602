"""Feishu and Lark Bitable through an automation's "send HTTP request" step; needs no app.

Where there is an app, use `feishu`, whose door takes the same automation.

The automation cannot sign, so a bearer token authenticates. Its next step stores our `listen_url`
in the row; when the reading ends we POST to the Base's own "webhook received" trigger.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from connectors.base import (
    Accepted,
    Connector,
    Detail,
    EpisodeState,
    Hook,
    Note,
    NoteEvent,
    NotePatch,
    NoteRef,
    Reply,
)
from connectors.errors import Malformed, ToolRefused, ToolUnavailable
from connectors.http import Api, Bearer
from connectors.payload import (
    DurationRule,
    Key,
    Lang,
    Line,
    Name,
    Payload,
    Text,
    parse_json,
    validate,
)
from connectors.signing import verify_bearer

LABELS: Mapping[str, str] = {
    "queued": "排队中",
    "live": "播报中",
    "done": "已完成",
    "failed": "失败",
}
FLOW_DISABLED = "800004509"
TOO_FREQUENT = "99991400"


class Row(Payload):
    """The body the user typed into the automation; without `text` the row has to be read."""

    base: Key = ""
    table: Key = ""
    record: Key = Field(min_length=1)
    at: Name = ""
    title: Line = ""
    text: Text = ""
    speaker: Name = ""
    voice: Name = ""
    emotion: Name = ""
    duration: DurationRule = ""
    lang: Lang = ""
    detail: Detail | Literal[""] = ""

    @field_validator("*", mode="before")
    @classmethod
    def _cell(cls, value: Any) -> Any:
        """A variable without quotation marks around it: an empty cell is null, a number bare."""
        if value is None:
            return ""
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return str(value) if is_number else value


class FeishuAutomation(Connector):
    """Bearer in, `listen_url` out, completion through the Base's webhook trigger."""

    name: ClassVar[str] = "feishu_automation"
    max_body_bytes: ClassVar[int] = 256 << 10
    # our answer brings the link; each write starts the Base's flow, so only the end is worth one
    shows: frozenset[EpisodeState] = frozenset(("done", "failed"))

    class Secrets(BaseModel):
        """`token`: current and previous bearer; `write_back`: the Base's webhook trigger token."""

        model_config = ConfigDict(extra="forbid", frozen=True)
        token: list[SecretStr] = Field(min_length=1, max_length=4)
        write_back: SecretStr | None = None

        @field_validator("token")
        @classmethod
        def _long_enough(cls, tokens: list[SecretStr]) -> list[SecretStr]:
            return bearer_tokens(tokens)

    class Config(Connector.Config):
        """The endpoint's keys; `write_back_url` is the address the Base's webhook trigger shows."""

        secrets: FeishuAutomation.Secrets
        write_back_url: SecretStr | None = None
        labels: dict[EpisodeState, str] = Field(default_factory=dict)

        @field_validator("write_back_url")
        @classmethod
        def _secure(cls, url: SecretStr | None) -> SecretStr | None:
            parts = urlsplit(url.get_secret_value()) if url else None
            if parts and not (parts.scheme == "https" and parts.hostname) and not _loopback(parts):
                raise ValueError("must be the https address that the Base's webhook trigger shows")
            return url

    def __init__(self, endpoint: str, config: Config) -> None:
        super().__init__(endpoint, config)
        self._tokens = [token.get_secret_value() for token in config.secrets.token]
        self._trigger = _trigger(config)
        self._labels: dict[str, str] = dict(LABELS) | {str(k): v for k, v in config.labels.items()}

    def verify(self, hook: Hook, *, now: datetime) -> bytes:
        verify_bearer(self._tokens, hook.headers)
        return hook.body

    def as_sent(self, body: bytes, *, now: datetime, msg_id: str) -> Hook:
        """With the newest token."""
        return Hook("POST", bearer_header(self._tokens[0]), body, now)

    def events(self, body: bytes, hook: Hook) -> list[NoteEvent]:
        row = read_row(body)
        ref = NoteRef(self.endpoint, row.base, row.table, row.record)
        at = row.at or hook.headers.get("x-notecast-event")
        key = f"{row.record}:{at}" if at else hashlib.sha256(body).hexdigest()
        if not row.text.strip():
            raise Malformed("/text", "/text: missing or blank; put the notes column into the body")
        fields = row.model_dump(exclude={"base", "table", "record", "at"})
        return [NoteEvent(key[:200], ref, note=Note(ref=ref, **fields))]

    def answer(self, accepted: Accepted, hook: Hook) -> Reply:
        """Always 200: any other status stops the automation before it stores the link."""
        reply = super().answer(accepted, hook)
        return Reply(200, reply.body)

    def write_back(self, ref: NoteRef, patch: NotePatch) -> None:
        """Start the Base's webhook automation with the patch; the same token starts it once in 3 h.

        Raises:
            ToolUnavailable, ToolRefused: see `http.Api`; a non-zero `code` is a refusal.
        """
        if self._trigger is None:
            return
        seed = json.dumps([asdict(ref), asdict(patch)], sort_keys=True)
        client_token = str(uuid.uuid5(uuid.NAMESPACE_URL, f"notecast:{seed}"))
        cells = self._cells(ref, patch)
        answer = self._trigger.post("", cells, headers={"Client-Token": client_token})
        code = str(answer.get("code", 0))
        if code == TOO_FREQUENT:
            raise ToolUnavailable("the Base asks for fewer calls")
        if code == FLOW_DISABLED:
            raise ToolRefused("the Base's automation is switched off: switch it on", code=code)
        if code != "0":
            raise ToolRefused(f"the Base's automation refused with code {code[:20]}", code=code)

    def _cells(self, ref: NoteRef, patch: NotePatch) -> dict[str, Any]:
        """What the automation can put into columns: text and numbers, all keys always there."""
        return {
            "base": ref.container,
            "table": ref.table,
            "record": ref.key,
            "state": patch.status or "",
            "status": self._labels.get(patch.status or "", ""),
            "link": patch.link or "",
            "audio": patch.audio_ref or "",
            "error": patch.error or "",
            "duration_s": round(patch.duration_s or 0.0, 1),
        }


FeishuAutomation.Config.model_rebuild()


def bearer_header(token: str) -> dict[str, str]:
    """What an automation sends to prove itself."""
    return {"authorization": f"Bearer {token}", "content-type": "application/json"}


def bearer_tokens(tokens: list[SecretStr]) -> list[SecretStr]:
    """Tokens that are long enough not to be guessed.

    Raises:
        ValueError: one is not.
    """
    for token in tokens:
        if len(token.get_secret_value()) < 16:
            raise ValueError("shorter than 16 characters; make one: openssl rand -hex 24")
    return tokens


def read_row(body: bytes) -> Row:
    """What an automation posted.

    Raises:
        Malformed: with the field at fault.
    """
    return validate(Row, _parse(body))


def _trigger(config: FeishuAutomation.Config) -> Api | None:
    """The Base's "webhook received" trigger, if there is one."""
    if config.write_back_url is None:
        return None
    token = config.secrets.write_back
    auth = Bearer(token.get_secret_value()) if token else None
    return Api(config.write_back_url.get_secret_value(), name="the Base", auth=auth)


def _parse(body: bytes) -> Any:
    """JSON first; what does not look like JSON may be a form. Broken JSON is never repaired."""
    try:
        return parse_json(body)
    except Malformed as error:
        if body.lstrip()[:1] in (b"", b"{", b"["):
            raise
        try:
            pairs = parse_qsl(
                body.decode("ascii"), strict_parsing=True, keep_blank_values=True,
                errors="strict", max_num_fields=64,
            )  # fmt: skip
        except ValueError:
            raise error from None
    return dict(pairs)


def _loopback(parts: Any) -> bool:
    return parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
