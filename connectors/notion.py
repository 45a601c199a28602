"""Notion: events say which page changed; properties are the row, the page itself is the notes.

    verify    HMAC keyed with the verification token; a new token is only pending until accepted
    events    page ids, without content; what our own integration did is left out
    backfill  the data source by time of the last edit, which Notion rounds to the minute
    read      the page's properties, and its blocks as Markdown where a field names `@page`

Property ids are compared decoded: Notion writes them percent-encoded in some places only.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from connectors.base import (
    Accepted,
    Budget,
    Call,
    Column,
    ColumnKind,
    Cursor,
    Hook,
    Note,
    NoteEvent,
    NotePatch,
    NoteRef,
    Page,
    Reply,
)
from connectors.errors import (
    ConnectorError,
    Malformed,
    Rejected,
    ToolRefused,
    ToolUnavailable,
    WrongColumn,
    nearest,
)
from connectors.fields import (
    Audio,
    Link,
    OutputCell,
    Seconds,
    TableConfig,
    TableConnector,
    Text,
    note_from,
    output_cells,
)
from connectors.http import Answer, Bearer, path_of
from connectors.notion_blocks import Block, markdown
from connectors.pace import PacedApi, pace_of
from connectors.payload import ApiUrl, Key, parse_json, validate
from connectors.signing import secret_label, verify_notion

log = logging.getLogger(__name__)

VERSION = "2025-09-03"
PAGE_TEXT = "@page"
OLDEST_S = 48 * 3_600.0
AHEAD_S = 300.0
PASSES = 3  # times that a long walk is repeated
OVERLAP_S = 120.0
PAGE_SIZE = 100
MAX_CALLS = 200  # for the blocks of one page

_CHANGED = frozenset(
    ("page.created", "page.properties_updated", "page.content_updated", "page.moved",
     "page.undeleted")
)  # fmt: skip
_KINDS: Mapping[str, ColumnKind] = {
    "title": "text",
    "rich_text": "text",
    "email": "text",
    "phone_number": "text",
    "number": "number",
    "select": "select",
    "status": "select",
    "multi_select": "multi_select",
    "date": "time",
    "checkbox": "checkbox",
    "url": "url",
    "files": "attachment",
    "people": "person",
    "formula": "computed",
    "rollup": "computed",
    "unique_id": "computed",
    "button": "computed",
    "created_time": "computed",
    "created_by": "computed",
    "last_edited_time": "computed",
    "last_edited_by": "computed",
}
_CURES = {
    "unauthorized": "the integration's token is not valid; copy it again from its settings",
    "restricted_resource": "the integration lacks a capability; let it read and update content",
    "object_not_found": "not there, or not shared; add the integration under Connections",
}


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Thing(_Loose):
    id: Key = Field(min_length=1)
    type: Key = ""


class _Parent(_Loose):
    id: Key = ""
    type: Key = ""
    data_source_id: Key = ""


class _Details(_Loose):
    parent: _Parent = _Parent()
    updated_properties: list[Key] = Field(default_factory=list)


class _Event(_Loose):
    id: Key = Field(min_length=1)
    timestamp: datetime
    type: Key
    entity: _Thing
    authors: list[_Thing] = Field(default_factory=list)
    data: _Details = _Details()


class Notion(TableConnector):
    """Pages of one data source, through an internal integration."""

    name: ClassVar[str] = "notion"
    max_body_bytes: ClassVar[int] = 256 << 10
    read_size: ClassVar[int] = 1

    class Secrets(BaseModel):
        """`token`: of the integration; `verification`: of the webhook, also accepted by command."""

        model_config = ConfigDict(extra="forbid", frozen=True)
        token: SecretStr
        verification: list[SecretStr] = Field(default_factory=list, max_length=4)

    class Config(TableConfig):
        """`data_source` is the id behind "Copy data source ID" of the database's settings."""

        secrets: Notion.Secrets
        data_source: str = Field(pattern=r"^[0-9a-fA-F-]{32,36}$")
        base_url: ApiUrl = "https://api.notion.com"

    def __init__(self, endpoint: str, config: Config) -> None:
        super().__init__(endpoint, config)
        self._source = config.data_source
        self._verification = config.secrets.verification
        token = config.secrets.token.get_secret_value()
        self._account = secret_label(token)
        self._api = PacedApi(
            f"{config.base_url}/v1",
            pace=pace_of(f"notion/{self._account}", 5, 2.0),  # three a second are allowed
            name="Notion",
            auth=Bearer(token),
            headers={"Notion-Version": VERSION},
            complaint=_complaint,
        )
        self._types: dict[str, str] = {}  # column id -> Notion's type

    # the door ----------------------------------------------------------------------------------

    def verify(self, hook: Hook, *, now: datetime) -> bytes | Reply:
        """Check the MAC and the age; a handshake leaves a pending secret and proves nothing."""
        tokens = [one.get_secret_value() for one in self._verification]
        tokens += self.state.get("accepted", ())
        handshake = _verification_token(hook.body)
        if handshake:
            pending = {} if handshake in tokens else {"pending_secret": handshake}
            return Reply(200, state=pending)
        verify_notion(tokens, hook.headers, hook.body)
        age_s = _age_s(hook.body, now)
        if age_s is not None and not -AHEAD_S <= age_s <= OLDEST_S:
            raise Rejected("the event's timestamp is outside the tolerance")
        return hook.body

    def events(self, body: bytes, hook: Hook) -> list[NoteEvent]:
        event = validate(_Event, parse_json(body))
        if event.entity.type != "page" or not self._is_ours(event.data.parent):
            return []
        bot = self.state.get("bot")
        if bot and event.authors and all(author.id == bot for author in event.authors):
            return []
        ref = self._ref(event.entity.id)
        if event.type == "page.deleted":
            return [NoteEvent(event.id, ref, kind="deleted", occurred_at=event.timestamp)]
        if event.type not in _CHANGED:
            return []
        changed = frozenset(unquote(one) for one in event.data.updated_properties) or None
        return [NoteEvent(event.id, ref, changed=changed, occurred_at=event.timestamp)]

    def answer(self, accepted: Accepted, hook: Hook) -> Reply:
        """Always 200: Notion repeats what is answered otherwise."""
        return Reply(200, super().answer(accepted, hook).body)

    def refuse(self, error: ConnectorError) -> Reply:
        """A genuine message that we cannot read is taken: repeating it would not mend it."""
        return Reply(200) if isinstance(error, Malformed) else super().refuse(error)

    # reading -----------------------------------------------------------------------------------

    def read(self, refs: list[NoteRef]) -> Iterator[Note]:
        """One call per page, and one per hundred blocks; pages in the trash are gone."""
        for ref in refs:
            try:
                page = self._api.get(path_of("pages", ref.key))
            except ToolRefused as error:
                if error.code == "object_not_found":
                    continue
                raise
            if page.get("archived") or page.get("in_trash"):
                continue
            if self._is_ours(_Parent.model_validate(page.get("parent") or {})):
                yield self._note(page, content=True)

    def backfill(self, cursor: Cursor) -> Iterator[Page]:
        """Pages edited since the cursor's minute, oldest first, two minutes earlier to be safe.

        Pages that we write to move to the end, so others may slip from one answer to the next: a
        walk of several answers that met ready pages is walked again from where it began, a few
        times at most, for pages may stay ready.

        The cursor is `{"since": time}`, with `passes` if it is to be walked again; in the midst of
        a walk with `next`, `newest` and `ready`.
        """
        at = dict(cursor.value or {})
        since, following = _time(at.get("since")), at.get("next")
        newest = str(at.get("newest") or at.get("since") or "")
        passes, ready = int(at.get("passes", 0)), bool(at.get("ready"))
        is_long = following is not None
        while True:
            answer = self._query(since, following)
            pages = [page for page in answer.get("results") or () if page.get("object") == "page"]
            newest = max([newest, *(str(page.get("last_edited_time", "")) for page in pages)])
            following = answer.get("next_cursor") if answer.get("has_more") else None
            events = tuple(event for page in pages for event in self._found(page))
            ready = ready or bool(events)
            is_long = is_long or following is not None
            value: dict[str, Any] = {"since": newest} if newest else {}
            if following:
                value = {"since": at.get("since"), "next": following, "newest": newest}
                value |= {"passes": passes, "ready": ready}
            elif is_long and ready and passes < PASSES:
                value = {"since": at.get("since"), "passes": passes + 1}
            yield Page(events, Cursor(value, OVERLAP_S), is_last=following is None)
            if following is None:
                return

    def columns(self) -> Sequence[Column]:
        """The properties, and `@page` for what is written on the page."""
        columns = [Column(PAGE_TEXT, "Page", "computed")]
        for name, prop in self._properties().items():
            column = Column(unquote(str(prop.get("id"))), name, _KINDS.get(prop["type"], "other"))
            self._types[column.id] = str(prop["type"])
            columns.append(column)
        return columns

    def sample(self) -> Note | None:
        """The first ready page, else the first at all."""
        pages = self._query(None, None).get("results") or []
        ready = (page for page in pages if self._is_ready(page))
        page = next(ready, pages[0] if pages else None)
        return self._note(page, content=True) if page else None

    def problems(self) -> list[str]:
        """As for every table; and whether a status property has the words we write."""
        found = super().problems()
        output = self.table.output.status
        for name, prop in self._properties().items():
            if output in (name, unquote(str(prop.get("id")))) and prop["type"] == "status":
                known = {str(one.get("name")) for one in prop["status"].get("options") or ()}
                missing = [label for label in self.table.labels.values() if label not in known]
                if missing:
                    found.append(
                        f"output.status: {name!r} lacks the options {', '.join(missing)}; add them "
                        "to the property, or set output.labels to options it has"
                    )
        return found

    # writing -----------------------------------------------------------------------------------

    def write_back(self, ref: NoteRef, patch: NotePatch) -> None:
        """PATCH the output properties; others keep what they hold."""
        cells = output_cells(self.table, patch)
        if not cells:
            return
        try:
            self._patch(ref, cells)
        except WrongColumn:
            # Perhaps a column named by id was renamed since we last looked.
            known = list(self.schema())
            if list(self.schema(fresh=True)) == known:
                raise
            self._patch(ref, cells)

    def bucket(self, ref: NoteRef | None, call: Call = "write") -> Budget:
        """Three calls a second for one token, of which a read takes at least two."""
        per_s = 1.0 if call == "write" else 0.75
        return Budget(f"notion/{self._account}/{call}", per_s=per_s, burst=2)

    def upkeep(self, state: dict[str, Any], *, now: datetime, address: str) -> dict[str, Any]:
        """Ask who we are, so that our own edits can be told from people's."""
        return {**state, "bot": str(self._api.get("/users/me").get("id", ""))}

    # calls -------------------------------------------------------------------------------------

    def _properties(self) -> dict[str, dict[str, Any]]:
        try:
            source = self._api.get(path_of("data_sources", self._source))
        except ToolRefused as error:
            if error.code != "object_not_found":
                raise
            # What people have at hand is the database's id, which stands in its address.
            database = self._api.get(path_of("databases", self._source))
            ids = [str(one.get("id")) for one in database.get("data_sources") or ()]
            message = f"Notion: {self._source} is a database; write data_source = {ids[:1]}"
            raise ToolRefused(message, code=error.code) from None
        return {str(name): dict(prop) for name, prop in (source.get("properties") or {}).items()}

    def _query(self, since: datetime | None, following: str | None) -> dict[str, Any]:
        content: dict[str, Any] = {
            "sorts": [{"timestamp": "last_edited_time", "direction": "ascending"}],
            "page_size": PAGE_SIZE,
        }
        if since is not None:
            floor = (since - timedelta(seconds=OVERLAP_S)).strftime("%Y-%m-%dT%H:%M:00.000Z")
            on_or_after = {"on_or_after": floor}
            content["filter"] = {"timestamp": "last_edited_time", "last_edited_time": on_or_after}
        if following:
            content["start_cursor"] = following
        return self._api.post(path_of("data_sources", self._source) + "/query", content)

    def _found(self, page: Mapping[str, Any]) -> Iterator[NoteEvent]:
        """The event of a page that a walk met, if its trigger says yes."""
        if self._is_ready(page) and not page.get("in_trash"):
            note, edited = self._note(page), str(page.get("last_edited_time", ""))
            key = f"walk/{note.ref.key}/{edited}/{note.fingerprint[:16]}"
            yield NoteEvent(key, note.ref, occurred_at=_time(edited))

    def _note(self, page: Mapping[str, Any], *, content: bool = False) -> Note:
        row: dict[str, Any] = self._row(page)
        if content and PAGE_TEXT in self.table.fields.text.columns:
            row[PAGE_TEXT] = self._text(str(page["id"]))
        edited = _time(page.get("last_edited_time"))
        ref = self._ref(str(page["id"]))
        return note_from(self.table, ref, row, edited, columns=self._known())

    def _row(self, page: Mapping[str, Any]) -> dict[str, Any]:
        """Column id -> cell."""
        properties = page.get("properties") or {}
        return {unquote(str(prop.get("id", ""))): prop for prop in properties.values()}

    def _known(self) -> Sequence[Column]:
        """The schema, once every configured column was found in it.

        Raises:
            WrongColumn: one of them is not a property.
        """
        config = self.table
        wanted = {config.trigger.column, *config.output.columns().values()}
        wanted |= {name for _, source in config.fields.sources() for name in source.columns}
        for fresh in (False, True):
            columns = self.schema(fresh=fresh)
            missing = wanted - {name for column in columns for name in (column.id, column.name)}
            if not missing:
                return columns
        name = min(missing)
        near = nearest(name, (column.name for column in self.schema()))
        raise WrongColumn(f"Notion: the data source has no property {name!r}; {near}")

    def _is_ready(self, page: Mapping[str, Any]) -> bool:
        """Does the trigger say yes? Unlike a note's `ready` it does not need the page's text."""
        name = self.table.trigger.column
        column = next(c for c in self._known() if name in (c.id, c.name))
        return self.table.trigger.fits(self._row(page).get(column.id))

    def _patch(self, ref: NoteRef, cells: Mapping[str, OutputCell]) -> None:
        columns = {name: c for c in self._known() for name in (c.name, c.id)}
        properties = {}
        for name, cell in cells.items():
            column = columns[name]
            properties[column.name] = _written(cell, self._types.get(column.id, ""), column.name)
        self._api.patch(path_of("pages", ref.key), {"properties": properties})

    def _is_ours(self, parent: _Parent) -> bool:
        """Does a page belong to our data source? An event may name only the database."""
        found = parent.data_source_id or (parent.id if parent.type == "data_source" else "")
        return not found or _bare(found) == _bare(self._source)

    def _ref(self, page_id: str) -> NoteRef:
        return NoteRef(self.endpoint, self._source, "", page_id)

    # the page ----------------------------------------------------------------------------------

    def _text(self, page_id: str) -> str:
        """The blocks of a page as Markdown.

        Raises:
            ToolRefused: too many blocks within blocks.
        """
        calls = 0

        def children(block_id: str) -> Iterator[Block]:
            nonlocal calls
            params: dict[str, str | int] = {"page_size": PAGE_SIZE}
            path = path_of("blocks", block_id) + "/children"
            while True:
                calls += 1
                if calls > MAX_CALLS:
                    raise ToolRefused("Notion: the page has too many blocks", code="too_long")
                answer = _patiently(lambda: self._api.get(path, params=params))
                yield from answer.get("results") or ()
                if not answer.get("has_more"):
                    return
                params["start_cursor"] = str(answer["next_cursor"])

        return markdown(children, page_id)


Notion.Config.model_rebuild()


def _written(cell: OutputCell, kind: str, name: str) -> dict[str, Any]:
    """A property value as Notion takes it.

    Raises:
        WrongColumn: the property cannot hold it.
    """
    match cell, kind:
        case (Text(text), "status" | "select"):
            return {kind: {"name": text} if text else None}
        case (Text(text), "rich_text" | "title"):
            return {kind: _pieces(text)}
        case (Link(url) | Audio(url), "url"):
            return {"url": url}
        case (Link(url, text) | Audio(url, text), "rich_text" | "title"):
            return {kind: _pieces(text, url)}
        case (Audio(url, _, file), "files"):
            external = {"type": "external", "external": {"url": url}}
            return {"files": [{"name": (file.name if file else "audio.mp3")[:100], **external}]}
        case (Seconds(seconds), "number"):
            return {"number": round(seconds, 1)}
        case (Seconds(), "rich_text" | "title"):
            return {kind: _pieces(cell.clock)}
    raise WrongColumn(f"Notion: the property {name!r} is of type {kind} and cannot hold this")


def _pieces(text: str, url: str = "") -> list[dict[str, Any]]:
    if not text:
        return []
    link = {"link": {"url": url}} if url else {}
    return [{"type": "text", "text": {"content": text[:2000], **link}}]


def _patiently(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Wait out short throttling: a long page would else never come to its end."""
    for _ in range(5):
        try:
            return call()
        except ToolUnavailable as error:
            if error.after_s is None or error.after_s > 5:
                raise
            time.sleep(max(error.after_s, 0.5))
    return call()


def _verification_token(body: bytes) -> str:
    """What a handshake brings; empty for every other body."""
    if b"verification_token" not in body or len(body) > 1_000:
        return ""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(content, dict) or list(content) != ["verification_token"]:
        return ""
    token = content["verification_token"]
    is_token = isinstance(token, str) and 8 <= len(token) <= 200
    return token if is_token and token.isascii() and token.isprintable() else ""


def _age_s(body: bytes, now: datetime) -> float | None:
    """How old an event says it is; None if it does not say, which `events` refuses."""
    try:
        event = validate(_Event, parse_json(body))
    except Malformed:
        return None
    at = event.timestamp
    return (now - (at if at.tzinfo else at.replace(tzinfo=UTC))).total_seconds()


def _time(text: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)


def _bare(notion_id: str) -> str:
    return notion_id.replace("-", "").lower()


def _complaint(answer: Answer) -> ConnectorError | None:
    """Notion's `{"object": "error", "code": "validation_error", "message": ...}`."""
    if answer.status < 400 or answer.status == 429 or answer.status >= 500:
        return None
    code = str((answer.content or {}).get("code") or answer.status)[:60]
    if code == "conflict_error":
        return ToolUnavailable("Notion: somebody else edits the page", after_s=1.0)
    if code == "validation_error":
        return WrongColumn("Notion: a property cannot hold what we write", code=code)
    cure = f": {_CURES[code]}" if code in _CURES else ""
    return ToolRefused(f"Notion answered {answer.status} {code}{cure}", code=code)
