"""The whole contract between a tool that notes come from and the pipeline.

    Hook -> verify -> body -> events -> [NoteEvent] -> (stored by the pipeline) -> answer -> Reply
    NoteRef -> read -> Note          Cursor -> backfill -> Page          NotePatch -> write_back

`verify`, `events`, `answer` and `refuse` are pure: no clock, no network, no database. The others
may call the tool and raise `ToolUnavailable` or `ToolRefused`. A connector that only notifies, or
only receives, leaves the rest at its default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from connectors.errors import ConnectorError, Malformed, Rejected, ToolUnavailable

EpisodeState = Literal["queued", "live", "done", "failed"]
EventKind = Literal["changed", "deleted", "ping"]
Detail = Literal["brief", "full", "verbatim"]


@dataclass(frozen=True, slots=True)
class Hook:
    """One HTTP request as it came in.

    Attributes:
        headers: names in lower case, values as received.
        body: raw bytes; signatures are over these, not over parsed and rewritten JSON.
        received_at: with time zone.
    """

    method: str
    headers: Mapping[str, str]
    body: bytes
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Reply:
    """What the door sends back.

    Attributes:
        state: what a handshake wants remembered for this endpoint.
    """

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, status: int, content: Mapping[str, Any], **headers: str) -> Reply:
        """A JSON reply; `retry_after="5"` becomes the header `Retry-After`."""
        body = json.dumps(content, ensure_ascii=False).encode()
        names = {name.replace("_", "-").title(): value for name, value in headers.items()}
        return cls(status, body, headers=names)


@dataclass(frozen=True, slots=True)
class NoteRef:
    """Where a note lives: endpoint, then the tool's own words for base, table and row."""

    endpoint: str
    container: str = ""
    table: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """A note as its tool tells it. Empty means: not said, the endpoint's default applies.

    Attributes:
        text: Markdown or plain text.
        speaker: who speaks where the text names nobody.
        voice: a registered voice name, never an address.
        speakers: speaker -> voice name.
        emotion: a name or free text.
        duration: `free`, `fixed:90s`, `max:5m` or `speed:1.1`.
        lang: `zh`, `en`, ..., `auto` or empty.
        schedule: when to speak; None is now.
        callback_url: where the sender wants to hear about progress.
    """

    ref: NoteRef
    text: str
    title: str = ""
    speaker: str = ""
    voice: str = ""
    speakers: Mapping[str, str] = field(default_factory=dict)
    emotion: str = ""
    duration: str = ""
    lang: str = ""
    schedule: datetime | None = None
    detail: Detail | Literal[""] = ""
    modified_at: datetime | None = None
    callback_url: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what is heard: a re-saved row with the same words has the same one."""
        heard = [
            self.title, self.text, self.speaker, self.voice, sorted(self.speakers.items()),
            self.emotion, self.duration, self.lang, self.detail,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(heard, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class NoteEvent:
    """Something happened to a note.

    Attributes:
        delivery_key: the same for every repetition of one delivery; at most 200 characters.
        note: None for a thin event, whose note must be read.
        changed: column ids that changed, None if the tool does not say.
    """

    delivery_key: str
    ref: NoteRef
    kind: EventKind = "changed"
    note: Note | None = None
    changed: frozenset[str] | None = None
    occurred_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class NotePatch:
    """What a row should show; None leaves a cell as it is.

    Attributes:
        key: identifies this write, the same when it is repeated.
        error: a short reason code, never an exception's text.
        duration_s: length of the finished audio.
    """

    key: str
    status: EpisodeState | None = None
    link: str | None = None
    audio_ref: str | None = None
    error: str | None = None
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """A message with a link for a group of people."""

    title: str
    text: str
    link: str
    button: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a walk over the rows has come: the tool's own JSON value; steps back `overlap_s`."""

    value: Any = None
    overlap_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Page:
    """A step of a walk; events and cursor are committed together."""

    events: tuple[NoteEvent, ...]
    cursor: Cursor
    is_last: bool


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of an event, once it is safely stored."""

    episode: str
    status: str
    listen_url: str
    duplicate: bool = False


class Connector:
    """A tool. Every method has a default that does nothing; `verify` refuses.

    Attributes:
        name: as written in `connector = "..."`.
        max_body_bytes: a larger request is answered 413 before it is read.
        reads: `read` can fetch notes, so thin events are welcome.
    """

    name: ClassVar[str] = ""
    max_body_bytes: ClassVar[int] = 1 << 20
    reads: ClassVar[bool] = False

    class Config(BaseModel):
        """What may be written in the endpoint's table; secrets are `SecretStr`."""

        model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, endpoint: str, config: Any) -> None:
        self.endpoint = endpoint

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint}>"

    def verify(self, hook: Hook, *, now: datetime) -> bytes | Reply:
        """Prove who sent it; give the plain body, or the answer to a handshake.

        Raises:
            Rejected: and nothing else, whatever the headers and the body hold.
        """
        raise Rejected("this connector takes no hooks")

    def events(self, body: bytes, hook: Hook) -> list[NoteEvent]:
        """Read events out of a verified body; `hook` gives the headers.

        Raises:
            Malformed: with the field at fault.
        """
        return []

    def answer(self, accepted: Accepted) -> Reply:
        """Tell the sender that its event is stored."""
        return Reply.of(200 if accepted.duplicate else 202, _answer_content(accepted))

    def refuse(self, error: ConnectorError) -> Reply:
        """Tell the sender what is wrong; a failed proof of identity is told nothing."""
        if isinstance(error, Rejected):
            return _refusal(error.status, {"code": "unauthorized", "message": "not proven"})
        if isinstance(error, Malformed):
            content: dict[str, Any] = {
                "code": "malformed",
                "message": str(error),
                "field": error.pointer,
            }
            if error.offset_bytes is not None:
                content["offset_bytes"] = error.offset_bytes
            return _refusal(error.status, content)
        if isinstance(error, ToolUnavailable):
            wait_s = max(1, round(error.after_s or 5))
            content = {"code": "busy", "message": "send it again after Retry-After seconds"}
            return _refusal(error.status, content, retry_after=str(wait_s))
        return _refusal(error.status, {"code": "failed", "message": "see the log of the server"})

    def read(self, refs: list[NoteRef]) -> Iterator[Note]:
        """Fetch notes in as few calls as possible; a note that is gone is left out."""
        return iter(())

    def backfill(self, cursor: Cursor) -> Iterator[Page]:
        """Walk over what changed since `cursor`."""
        yield Page((), cursor, is_last=True)

    def write_back(self, ref: NoteRef, patch: NotePatch) -> None:
        """Make the row show the patch; twice is as good as once."""

    def notify(self, card: Card) -> None:
        """Post a message with the link."""

    def upkeep(self, state: dict[str, Any]) -> dict[str, Any]:
        """Create, renew or check a subscription; gives the new state."""
        return state


def _refusal(status: int, error: Mapping[str, Any], **headers: str) -> Reply:
    return Reply.of(status, {"ok": False, "error": error}, **headers)


def _answer_content(accepted: Accepted) -> dict[str, Any]:
    return {
        "ok": True,
        "episode": accepted.episode,
        "status": accepted.status,
        "listen_url": accepted.listen_url,
        "duplicate": accepted.duplicate,
    }
