"""Airtable: a webhook's pings say that something changed; its payloads say which records.

    upkeep    creates the webhook, keeps its secret, refreshes it before it expires
    verify    HMAC over the ping; nothing in a ping is used but "walk"
    backfill  payloads since the cursor, page by page; the whole table where there is no cursor yet
    read      records by id; a column that is absent is empty

Fields are addressed by id, found through the schema, so a renamed column keeps working.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

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
from connectors.cells import Cell
from connectors.errors import (
    ConnectorError,
    Malformed,
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
from connectors.pace import PacedApi, pace_of
from connectors.payload import ApiUrl, Key, parse_json, validate
from connectors.signing import verify_airtable

log = logging.getLogger(__name__)

LIFE_S = 7 * 86_400.0
THROTTLED_S = 30.0
PAGE_SIZE = 100
PAYLOADS = 50

_KINDS: Mapping[str, ColumnKind] = {
    "singleLineText": "text",
    "multilineText": "text",
    "richText": "text",
    "email": "text",
    "phoneNumber": "text",
    "number": "number",
    "currency": "number",
    "percent": "number",
    "duration": "number",
    "rating": "number",
    "singleSelect": "select",
    "multipleSelects": "multi_select",
    "date": "time",
    "dateTime": "time",
    "checkbox": "checkbox",
    "url": "url",
    "multipleAttachments": "attachment",
    "singleCollaborator": "person",
    "multipleCollaborators": "person",
    "formula": "computed",
    "rollup": "computed",
    "multipleLookupValues": "computed",
    "count": "computed",
    "autoNumber": "computed",
    "createdTime": "computed",
    "createdBy": "computed",
    "lastModifiedTime": "computed",
    "lastModifiedBy": "computed",
    "button": "computed",
    "externalSyncSource": "computed",
    "aiText": "computed",
}
_CURES = {
    "AUTHENTICATION_REQUIRED": "the token is wrong; make one at airtable.com/create/tokens",
    "UNAUTHORIZED": "the token is wrong; make one at airtable.com/create/tokens",
    "INVALID_PERMISSIONS": "the token may not do this; give it the scopes and the base it needs",
    "INVALID_PERMISSIONS_OR_MODEL_NOT_FOUND": "no such base or table, or the token may not see it",
    "TABLE_NOT_FOUND": "no such table; take its id from the address of the page",
    "INVALID_MULTIPLE_CHOICE_OPTIONS": "an option is missing; add our words to the select column",
    "CANNOT_CREATE_WEBHOOKS_EXCEEDING_LIMIT": "the base has ten webhooks already; delete one",
}
_TOKEN_CODES = ("AUTHENTICATION_REQUIRED", "UNAUTHORIZED", "INVALID_PERMISSIONS")
_COLUMN_CODES = (
    "UNKNOWN_FIELD_NAME",
    "INVALID_VALUE_FOR_COLUMN",
    "INVALID_MULTIPLE_CHOICE_OPTIONS",
    "FIELD_CANNOT_ACCEPT_VALUE",
)


class _Id(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    id: Key = Field(min_length=1)


class _Ping(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    base: _Id
    webhook: _Id
    timestamp: Key = Field(min_length=1)


class Airtable(TableConnector):
    """Records of one table, through a personal access token."""

    name: ClassVar[str] = "airtable"
    max_body_bytes: ClassVar[int] = 64 << 10

    class Secrets(BaseModel):
        """`token`: a personal access token for the base."""

        model_config = ConfigDict(extra="forbid", frozen=True)
        token: SecretStr

    class Config(TableConfig):
        """`base` and `table` as in the address: `airtable.com/appXXX/tblXXX/...`."""

        secrets: Airtable.Secrets
        base: str = Field(pattern=r"^app[A-Za-z0-9]{1,40}$")
        table: str = Field(min_length=1, max_length=120)
        base_url: ApiUrl = "https://api.airtable.com"

    def __init__(self, endpoint: str, config: Config) -> None:
        super().__init__(endpoint, config)
        self._base = config.base
        self._table = config.table
        self._table_id = config.table
        self._is_real = config.base_url.startswith("https:")
        auth = Bearer(config.secrets.token.get_secret_value())
        self._api = PacedApi(
            config.base_url,
            pace=pace_of(f"airtable/{config.base}", 4, 1.0),  # five are allowed
            name="Airtable",
            auth=auth,
            complaint=_complaint,
        )

    # the door ----------------------------------------------------------------------------------

    def verify(self, hook: Hook, *, now: datetime) -> bytes:
        """Check the ping's MAC with the secrets that `upkeep` has kept."""
        verify_airtable(_macs(self.state), hook.headers, hook.body)
        return hook.body

    def events(self, body: bytes, hook: Hook) -> list[NoteEvent]:
        ping = validate(_Ping, parse_json(body))
        if ping.base.id != self._base:
            return []
        key = f"ping/{ping.webhook.id}/{ping.timestamp}"[:200]
        return [NoteEvent(key, NoteRef(self.endpoint, self._base), kind="ping")]

    def answer(self, accepted: Accepted, hook: Hook) -> Reply:
        """Airtable wants 200 and an empty body."""
        return Reply(200)

    def refuse(self, error: ConnectorError) -> Reply:
        """A genuine message that we cannot read is taken: repeating it would not mend it."""
        return Reply(200) if isinstance(error, Malformed) else super().refuse(error)

    # reading -----------------------------------------------------------------------------------

    def read(self, refs: list[NoteRef]) -> Iterator[Note]:
        """One call for up to a hundred records; a single one is fetched by its address."""
        self._ids()
        if len(refs) == 1:
            record = self._record(refs[0].key)
            found = [record] if record else []
        else:
            found = self._records(ref.key for ref in refs)
        wanted = {ref.key: ref for ref in refs}
        for record in found:
            yield self._note(wanted[record["id"]], record)

    def backfill(self, cursor: Cursor) -> Iterator[Page]:
        """Payloads of the webhook since the cursor, or the whole table where there are none.

        The cursor is `{"webhook": id, "payload": n}`, or `{"walk": n}` without a webhook; with
        `offset` in the midst of the table.
        """
        at = cursor.value if isinstance(cursor.value, dict) else {}
        webhook = str(self.state.get("webhook") or "")
        if at.get("offset") and at.get("webhook", "") == webhook:
            yield from self._walk_table(at)
            return
        if not webhook:
            yield from self._walk_table({"walk": int(at.get("walk", 0)) + 1})
            return
        if at.get("webhook") == webhook:
            try:
                yield from self._walk_payloads(webhook, int(at.get("payload", 1)))
            except _CursorLost:
                log.warning("payloads are gone, walking the table", extra={"webhook": webhook})
            else:
                return
        yield from self._walk_table({"webhook": webhook, "payload": self._next_payload(webhook)})

    def columns(self) -> Sequence[Column]:
        """The table's fields; needs the scope `schema.bases:read`."""
        schema = self._schema_of_table()
        self._table_id = str(schema["id"])
        return [
            Column(str(f["id"]), str(f["name"]), _KINDS.get(str(f.get("type")), "other"))
            for f in schema.get("fields", ())
        ]

    def sample(self) -> Note | None:
        """The first ready record, else the first with a text."""
        spare = None
        for records, _ in self._pages():
            for record in records:
                note = self._note(self._ref(record["id"]), record)
                if note.ready:
                    return note
                spare = spare or (note if note.text else None)
        return spare

    def problems(self) -> list[str]:
        """As for every table, and whether a select column has the words we write."""
        found = super().problems()
        status = self.table.output.status
        for field in self._schema_of_table().get("fields", ()):
            if field.get("type") != "singleSelect" or status not in (field["id"], field["name"]):
                continue
            choices = (field.get("options") or {}).get("choices") or ()
            known = {str(choice.get("name")) for choice in choices}
            missing = [label for label in self.table.labels.values() if label not in known]
            if missing:
                found.append(
                    f"output.status: {field['name']!r} lacks the options {', '.join(missing)}; "
                    "add them to the column, or set output.labels to options it has"
                )
        return found

    # writing -----------------------------------------------------------------------------------

    def write_back(self, ref: NoteRef, patch: NotePatch) -> None:
        """PATCH the output fields; others keep what they hold."""
        cells = output_cells(self.table, patch)
        if not cells:
            return
        ids = self._ids()
        kinds = {column.id: column.kind for column in self.schema()}
        fields = {ids[name]: _written(cell, kinds[ids[name]]) for name, cell in cells.items()}
        content = {"fields": fields, "typecast": False, "returnFieldsByFieldId": True}
        self._api.patch(path_of("v0", self._base, self._table, ref.key), content)

    def bucket(self, ref: NoteRef | None, call: Call = "write") -> Budget:
        return Budget(f"airtable/{self._base}", per_s=4)

    # the subscription --------------------------------------------------------------------------

    def upkeep(self, state: dict[str, Any], *, now: datetime, address: str) -> dict[str, Any]:
        """Keep one webhook alive that watches the trigger column and posts to `address`."""
        if address.startswith("http:") and self._is_real:
            raise ToolRefused(
                f"Airtable cannot post to {address}; set public_url to an https address that it "
                "reaches, until then the table is only walked by the clock"
            )
        watched = self._ids()[self.table.trigger.column]
        wanted = {"address": address, "field": watched, "table": self._table_id}
        listed = self._webhooks()
        mine = listed.get(str(state.get("webhook") or ""))
        if mine is None or not mine.get("isHookEnabled") or state.get("wanted") != wanted:
            return self._renewed(state, wanted, listed, now)
        self._delete_strays(listed, keep=mine["id"], address=address, old=state.get("previous"))
        path = path_of("v0", "bases", self._base, "webhooks", mine["id"])
        if not mine.get("areNotificationsEnabled"):
            failed = (mine.get("lastNotificationResult") or {}).get("error") or {}
            reason = str(failed.get("message", ""))[:100]
            log.warning("Airtable had stopped its pings", extra={"reason": reason})
            self._api.request("POST", f"{path}/enableNotifications", content={"enable": True})
        expires = mine.get("expirationTime")
        if expires:
            expires = self._api.post(f"{path}/refresh").get("expirationTime")
        return {
            "webhook": mine["id"],
            "wanted": wanted,
            "secrets": {"mac": _macs(state)[:1]},
            **_life(expires, now),
        }

    def _renewed(
        self,
        state: Mapping[str, Any],
        wanted: Mapping[str, str],
        listed: Mapping[str, Mapping[str, Any]],
        now: datetime,
    ) -> dict[str, Any]:
        """A new webhook; the old one's secret still counts until the next upkeep deletes it.

        The secret is told only once, so nothing that may fail comes after the call.
        """
        old = str(state.get("webhook") or "")
        keep = old if listed.get(old, {}).get("isHookEnabled") else ""
        self._delete_strays(listed, keep=keep, address=wanted["address"], old=old)
        filters = {
            "dataTypes": ["tableData"],
            "recordChangeScope": wanted["table"],
            "watchDataInFieldIds": [wanted["field"]],
        }
        content = {
            "notificationUrl": wanted["address"],
            "specification": {"options": {"filters": filters}},
        }
        created = self._api.post(path_of("v0", "bases", self._base, "webhooks"), content)
        macs = [str(created["macSecretBase64"]), *_macs(state)[:1]]
        return {
            "webhook": str(created["id"]),
            "previous": old,
            "wanted": dict(wanted),
            "secrets": {"mac": macs},
            **_life(created.get("expirationTime"), now),
        }

    def _delete_strays(
        self,
        listed: Mapping[str, Mapping[str, Any]],
        *,
        keep: str,
        address: str,
        old: str | None = None,
    ) -> None:
        """Our old one, and those that post to us with a lost secret: a base holds ten at most."""
        for one, webhook in listed.items():
            if one != keep and (one == old or webhook.get("notificationUrl") == address):
                self._api.request("DELETE", path_of("v0", "bases", self._base, "webhooks", one))

    # calls -------------------------------------------------------------------------------------

    def _webhooks(self) -> dict[str, dict[str, Any]]:
        answer = self._api.get(path_of("v0", "bases", self._base, "webhooks"))
        return {str(webhook["id"]): webhook for webhook in answer.get("webhooks", ())}

    def _next_payload(self, webhook: str) -> int:
        return int(self._webhooks().get(webhook, {}).get("cursorForNextPayload", 1))

    def _walk_payloads(self, webhook: str, at: int) -> Iterator[Page]:
        path = path_of("v0", "bases", self._base, "webhooks", webhook) + "/payloads"
        self._ids()
        more = True
        while more:
            try:
                answer = self._api.get(path, params={"cursor": at, "limit": PAYLOADS})
            except ToolRefused as error:
                if error.code in _TOKEN_CODES:
                    raise
                raise _CursorLost from None
            payloads = answer.get("payloads") or []
            events = [event for payload in payloads for event in self._changes(webhook, payload)]
            at = int(answer.get("cursor", at + len(payloads)))
            more = bool(answer.get("mightHaveMore")) and bool(payloads)
            yield Page(tuple(events), Cursor({"webhook": webhook, "payload": at}), not more)

    def _changes(self, webhook: str, payload: Mapping[str, Any]) -> Iterator[NoteEvent]:
        """Records of our table that a payload names, but those whose trigger says no."""
        if payload.get("error"):
            code = str(payload.get("code", ""))[:40]
            log.warning("Airtable could not tell a change", extra={"code": code})
            return
        table = (payload.get("changedTablesById") or {}).get(self._table_id) or {}
        at = _time(payload.get("timestamp"))
        stem = f"{webhook}/{payload.get('baseTransactionNumber')}"
        changed = {
            key: (record.get("current") or {}).get("cellValuesByFieldId") or {}
            for key, record in (table.get("changedRecordsById") or {}).items()
        }
        for key, record in (table.get("createdRecordsById") or {}).items():
            changed[key] = record.get("cellValuesByFieldId") or {}
        trigger = self._ids()[self.table.trigger.column]
        for key, cells in changed.items():
            if trigger in cells and not self.table.trigger.fits(cells[trigger]):
                continue
            names = frozenset(cells) or None
            yield NoteEvent(f"{stem}/{key}", self._ref(key), changed=names, occurred_at=at)
        for key in table.get("destroyedRecordIds") or ():
            yield NoteEvent(f"{stem}/{key}", self._ref(key), kind="deleted", occurred_at=at)

    def _walk_table(self, at: Mapping[str, Any]) -> Iterator[Page]:
        """Every ready record from `offset` on; then the cursor is `at` without it."""
        after = {key: value for key, value in at.items() if key != "offset"}
        # A row that stays ready is looked at again with every sixth walk, not with each of them.
        stem = f"walk/{after['webhook']}" if "webhook" in after else f"walk/{after['walk'] // 6}"
        for records, offset in self._pages(at.get("offset")):
            notes = [self._note(self._ref(record["id"]), record) for record in records]
            events = [
                NoteEvent(f"{stem}/{n.ref.key}/{n.fingerprint[:16]}", n.ref, note=n)
                for n in notes
                if n.ready
            ]
            value = {**after, "offset": offset} if offset else after
            yield Page(tuple(events), Cursor(value), not offset)

    def _pages(self, offset: str | None = None) -> Iterator[tuple[list[dict[str, Any]], str]]:
        """Pages of records, each with the offset of the next; an offset lives a few minutes."""
        self._ids()
        path = path_of("v0", self._base, self._table)
        params: dict[str, str | int] = {"pageSize": PAGE_SIZE, "returnFieldsByFieldId": 1}
        while True:
            try:
                answer = self._api.get(path, params={**params, **_named("offset", offset)})
            except ToolRefused as error:
                if error.code != "LIST_RECORDS_ITERATOR_NOT_AVAILABLE":
                    raise
                answer = self._api.get(path, params=params)
            offset = answer.get("offset")
            yield list(answer.get("records") or ()), str(offset or "")
            if not offset:
                return

    def _record(self, key: str) -> dict[str, Any] | None:
        try:
            return self._api.get(
                path_of("v0", self._base, self._table, key), params={"returnFieldsByFieldId": 1}
            )
        except ToolRefused as error:
            if error.code in ("404", "NOT_FOUND", "MODEL_ID_NOT_FOUND", "ROW_DOES_NOT_EXIST"):
                return None
            raise

    def _records(self, keys: Iterator[str]) -> list[dict[str, Any]]:
        """POST instead of GET, because a hundred ids make a long address."""
        found: list[dict[str, Any]] = []
        ids = [key for key in keys if key.isalnum()]
        for start in range(0, len(ids), PAGE_SIZE):
            either = ",".join(f"RECORD_ID()='{key}'" for key in ids[start : start + PAGE_SIZE])
            content = {
                "filterByFormula": f"OR({either})",
                "pageSize": PAGE_SIZE,
                "returnFieldsByFieldId": True,
            }
            path = path_of("v0", self._base, self._table) + "/listRecords"
            found += self._api.post(path, content).get("records") or []
        return found

    def _schema_of_table(self) -> dict[str, Any]:
        tables = self._api.get(path_of("v0", "meta", "bases", self._base, "tables")).get("tables")
        for table in tables or ():
            if self._table in (table.get("id"), table.get("name")):
                return dict(table)
        names = [str(table.get("name")) for table in tables or ()]
        raise ToolRefused(
            f"Airtable: the base has no table {self._table!r}; {nearest(self._table, names)}"
        )

    def _ids(self) -> dict[str, str]:
        """Configured column -> field id.

        Raises:
            WrongColumn: one of them is not in the table.
        """
        config = self.table
        wanted = {config.trigger.column, *config.output.columns().values()}
        wanted |= {name for _, source in config.fields.sources() for name in source.columns}
        known = {name: c.id for c in self.schema() for name in (c.id, c.name)}
        if not wanted <= known.keys():
            known = {name: c.id for c in self.schema(fresh=True) for name in (c.id, c.name)}
        for name in sorted(wanted - known.keys()):
            near = nearest(name, (column.name for column in self.schema()))
            raise WrongColumn(f"Airtable: the table has no column {name!r}; {near}")
        return {name: known[name] for name in wanted}

    def _note(self, ref: NoteRef, record: Mapping[str, Any]) -> Note:
        row: Mapping[str, Cell] = record.get("fields") or {}
        return note_from(self.table, ref, row, columns=self.schema())

    def _ref(self, key: str) -> NoteRef:
        return NoteRef(self.endpoint, self._base, self._table, str(key))


Airtable.Config.model_rebuild()


class _CursorLost(Exception):
    """The payloads behind the cursor are not kept any more."""


def _written(cell: OutputCell, kind: ColumnKind) -> Cell:
    """A cell as Airtable takes it: null clears, and it fetches a file from its address itself."""
    match cell:
        case Text(text):
            return text or None
        case Link(url):
            return url
        case Audio(url, _, file):
            if kind != "attachment":
                return url
            return [{"url": url, "filename": file.name if file else "audio.mp3"}]
        case Seconds(seconds):
            return round(seconds, 1) if kind == "number" else cell.clock


def _named(name: str, value: str | None) -> dict[str, str]:
    return {name: value} if value else {}


def _macs(state: Mapping[str, Any]) -> list[str]:
    """Secrets of the webhook and of the one before it."""
    return [str(mac) for mac in (state.get("secrets") or {}).get("mac") or ()]


def _life(expires: Any, now: datetime) -> dict[str, float]:
    """When it expires and when to come back: at half of its life."""
    until = _time(expires)
    if until is None:
        return {}
    left_s = max((until - now).total_seconds(), 0.0)
    return {"expires": until.timestamp(), "next_upkeep": now.timestamp() + left_s / 2}


def _time(text: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _complaint(answer: Answer) -> ConnectorError | None:
    """Airtable's `{"error": {"type": ...}}` or `{"error": "NOT_FOUND"}`."""
    if answer.status == 429:
        return ToolUnavailable(
            "Airtable asks for fewer calls", after_s=answer.wait_s or THROTTLED_S
        )
    if 200 <= answer.status < 300 or answer.status >= 500:
        return None
    error = (answer.content or {}).get("error")
    code = str(error.get("type") if isinstance(error, dict) else error or answer.status)[:60]
    cure = f": {_CURES[code]}" if code in _CURES else ""
    message = f"Airtable answered {answer.status} {code}{cure}"
    if code in _COLUMN_CODES:
        return WrongColumn(message, code=code)
    return ToolRefused(message, code=code)
