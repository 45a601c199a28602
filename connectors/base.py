"""The whole contract between a tool that notes come from and the pipeline.

    Hook -> verify -> body -> events -> [NoteEvent] -> (stored by the pipeline) -> answer -> Reply
    NoteRef -> read -> Note          Cursor -> backfill -> Page          state -> upkeep -> state
    NotePatch -> write_back          Card -> notify

`verify`, `events`, `answer`, `refuse` and `bucket` are pure: no clock, no network, no database. The
others may call the tool and raise `ToolUnavailable` or `ToolRefused`. A connector that only
notifies, or only receives, leaves the rest at its default.

A notification is a wake-up, never the data: where `reads` is set, the pipeline reads the row again
before it speaks. It decides what is spoken (trigger, echo, fingerprint), when (budget, lanes,
retries) and how often (dedupe); a connector only translates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from connectors.errors import (
    ConfigError,
    ConnectorError,
    Malformed,
    Rejected,
    ToolUnavailable,
)

EpisodeState = Literal["queued", "live", "done", "failed"]
EventKind = Literal["changed", "deleted", "ping"]
Detail = Literal["brief", "full", "verbatim"]
Call = Literal["write", "read", "notify"]
ColumnKind = Literal[
    "text", "number", "select", "multi_select", "time", "checkbox", "url", "attachment", "person",
    "computed", "other",
]  # fmt: skip


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
        state: what a handshake wants remembered for this endpoint. `{"pending_secret": "..."}` is
            kept sealed, shown in `connectors status`, and used only once an operator accepts it.
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
        ready: the row's trigger says speak; False keeps it silent. Not part of the fingerprint.
        trigger: what the trigger column holds, for schedules that take some of its values only.
        warnings: sentences about cells that could not be used as they are.
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
    ready: bool = True
    trigger: str = ""
    warnings: tuple[str, ...] = ()

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
        delivery_key: the same for every repetition of one delivery; at most 200 characters. An
            event of a walk names the row and its revision, `walk/recDemo01/1763600000000`.
        kind: `ping` says only that something changed somewhere: it starts a walk.
        note: None for a thin event, whose note must be read.
        changed: columns that changed, by name or id, None if the tool does not say.
        asked: somebody asked for this very row, so a thin event gets its episode and its link at
            once, for the answer; the row is read before it is spoken.
    """

    delivery_key: str
    ref: NoteRef
    kind: EventKind = "changed"
    note: Note | None = None
    changed: frozenset[str] | None = None
    asked: bool = False
    occurred_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AudioFile:
    """The finished recording, for tools that keep a copy of their own.

    Attributes:
        load: fetches the bytes; call it only when they are uploaded.
    """

    name: str
    content_type: str
    size_bytes: int
    load: Callable[[], bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class NotePatch:
    """What a row should show; None leaves a cell as it is.

    Attributes:
        key: identifies this write, the same when it is repeated.
        audio_ref: address of the recording.
        audio_file: the recording itself, given to connectors with `uploads_audio`.
        error: a short reason code, never an exception's text.
        duration_s: length of the finished audio.
    """

    key: str
    status: EpisodeState | None = None
    link: str | None = None
    audio_ref: str | None = None
    error: str | None = None
    duration_s: float | None = None
    audio_file: AudioFile | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Card:
    """A message with a link for a group of people, in the language of the note.

    Attributes:
        text: chapters and length, or why it failed; plain text, to be escaped by the connector.
        button: what the button that leads to `link` says.
        state: what happened, for tools that colour their cards.
        lang: `zh` or `en`.
        key: identifies this card, the same when it is repeated.
    """

    title: str
    text: str
    link: str
    button: str
    state: EpisodeState = "live"
    lang: str = "en"
    key: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the live table.

    Attributes:
        id: the tool's own, equal to `name` where it has none.
        kind: what it holds; `computed` cannot be written and tells nobody when it changes.
    """

    id: str
    name: str
    kind: ColumnKind = "other"


@dataclass(frozen=True, slots=True)
class Budget:
    """How often a tool may be called; the pipeline enforces it over all workers.

    Attributes:
        name: calls of one name share the budget, endpoints of the same connector included; the
            base, the table or the account that the tool counts by, and the kind of call if those
            are counted apart.
        per_s, per_min: refill; name one of them.
        burst: calls that may come at once after a rest.
    """

    name: str
    per_s: float = 0.0
    per_min: float = 0.0
    burst: int = 1

    @property
    def interval_ms(self) -> float:
        """Time in which one call is refilled."""
        return 60_000.0 / (self.per_s * 60.0 + self.per_min)


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a walk over the rows has come: the tool's own JSON value, None for the beginning.

    Attributes:
        overlap_s: the next walk begins so much before `value`, because clocks and indexes of tools
            are coarse; what is found twice is dropped by its delivery key or its fingerprint.
    """

    value: Any = None
    overlap_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Page:
    """A step of a walk; events and cursor are committed together.

    An event may hold its note, if the walk has read the whole row anyway.
    """

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
        walks: `backfill` finds rows by itself; it runs for pings, at start-up and by a timer.
        shows: states that `write_back` wants to hear of.
        uploads_audio: `write_back` wants `NotePatch.audio_file`.
        upkeep_s: how often `upkeep` is called when nothing else asks for it.
        read_size: rows that one call of `read` gets at most.
        state: what `upkeep` and accepted handshakes have left, secrets open; the pipeline replaces
            it whenever it changes, so `verify` may use it.
    """

    name: ClassVar[str] = ""
    max_body_bytes: ClassVar[int] = 1 << 20
    reads: bool = False
    walks: bool = False
    shows: frozenset[EpisodeState] = frozenset(("queued", "live", "done", "failed"))
    uploads_audio: bool = False
    upkeep_s: ClassVar[float] = 86_400.0
    read_size: ClassVar[int] = 100

    class Config(BaseModel):
        """What may be written in the endpoint's table; secrets are `SecretStr`."""

        model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, endpoint: str, config: Any) -> None:
        self.endpoint = endpoint
        self.config = config
        self.state: Mapping[str, Any] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint}>"

    def verify(self, hook: Hook, *, now: datetime) -> bytes | Reply:
        """Prove who sent it; give the plain body, or the answer to a handshake.

        Raises:
            Rejected: and nothing else, whatever the headers and the body hold.
        """
        raise Rejected("this connector takes no hooks")

    def as_sent(self, body: bytes, *, now: datetime, msg_id: str) -> Hook:
        """The hook as the tool would send it, proven with our own secrets: for replays and tests.

        Args:
            body: as `verify` gives it; what the tool wraps or encrypts is wrapped here.

        Raises:
            ConfigError: this tool's proof cannot be made on our side.
        """
        raise ConfigError("", f"{self.name or 'this connector'} takes no hooks to replay")

    def events(self, body: bytes, hook: Hook) -> list[NoteEvent]:
        """Read events out of a verified body; `hook` gives the headers.

        Raises:
            Malformed: with the field at fault.
        """
        return []

    def answer(self, accepted: Accepted, hook: Hook) -> Reply:
        """Tell the sender that its event is stored; of many in one `hook`, the last one."""
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

    def is_echo(self, changed: frozenset[str]) -> bool:
        """Are these columns only ones that we write ourselves, the trigger excepted?"""
        return False

    def backfill(self, cursor: Cursor) -> Iterator[Page]:
        """Walk over what changed since `cursor`.

        Each page is committed with its cursor before the next one is asked for; the walk may be
        ended after any page and goes on there another time.
        """
        yield Page((), cursor, is_last=True)

    def write_back(self, ref: NoteRef, patch: NotePatch) -> None:
        """Make the row show the patch; twice is as good as once."""

    def notify(self, card: Card) -> None:
        """Post a message with the link; never repeated once it may have been sent."""

    def bucket(self, ref: NoteRef | None, call: Call = "write") -> Budget | None:
        """What a call counts against; None for a tool without limits worth naming.

        Args:
            ref: the row that is written; None for `read` (one call of `read`, one page of
                `backfill`) and for `notify`.
        """
        return None

    def event_secrets(self) -> Sequence[str]:
        """What signs events to a note's `callback_url`, newest first; empty sends none."""
        return ()

    def upkeep(self, state: dict[str, Any], *, now: datetime, address: str) -> dict[str, Any]:
        """Create, renew or check a subscription; gives the new state, plain JSON.

        Called at start-up, every `upkeep_s`, and when `next_upkeep` (epoch seconds) of the state
        has come: set it to half of a subscription's life. What lies under `secrets` of the state is
        kept sealed. What is raised becomes an alarm, and it is called again later.

        Args:
            address: of this endpoint's door, for tools that are told where to post.
        """
        return state

    def columns(self) -> Sequence[Column]:
        """The table's columns as they are now; for `connectors check`."""
        return ()

    def sample(self) -> Note | None:
        """The first row that could be spoken, as `read` gives it; None if there is none."""
        return None

    def problems(self) -> list[str]:
        """What of the configuration does not fit the live table, one sentence each."""
        return []


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
