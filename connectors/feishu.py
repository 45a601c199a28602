"""Feishu and Lark Bitable through an app of your own: rows are read and written by its API.

Two ways to hear of a row that is ready, which may be used together:

- an automation of the Base posts the record's id with a bearer token (`secrets.automation`)
- the app subscribes to the Base's events (`secrets.encrypt_key` and `secrets.token`)

Either only wakes us up; what is spoken is what the API says the row holds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from connectors.base import (
    Accepted,
    Budget,
    Call,
    Column,
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
    ConfigError,
    ConnectorError,
    Malformed,
    Rejected,
    ToolRefused,
    WrongColumn,
)
from connectors.feishu_api import AppConfig, AppSecrets, FeishuApi
from connectors.feishu_automation import bearer_header, bearer_tokens, read_row
from connectors.feishu_events import (
    MAX_BODY_BYTES,
    EventDoor,
    delivery_key,
    is_of_event,
    read_event,
)
from connectors.feishu_rows import FeishuRows, Filter, Row
from connectors.fields import TableConnector, note_from, output_cells
from connectors.http import path_of
from connectors.payload import Key, validate
from connectors.signing import verify_bearer

log = logging.getLogger(__name__)

RECORD_CHANGED = "drive.file.bitable_record_changed_v1"
WRITES_PER_S = 5.0
READS_PER_S = 5.0


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Cell(_Part):
    """The value is left aside: the row is read again."""

    field_id: str


class _Action(_Part):
    record_id: Key = Field(min_length=1)
    action: str = ""
    before_value: list[_Cell] | None = None
    after_value: list[_Cell] | None = None

    @property
    def columns(self) -> frozenset[str]:
        cells = [*(self.before_value or ()), *(self.after_value or ())]
        return frozenset(cell.field_id for cell in cells)


class _RecordChanged(_Part):
    action_list: list[_Action]
    update_time: int = Field(default=0, ge=0, le=4_000_000_000)


class _Event(_Part):
    event: _RecordChanged


class Feishu(TableConnector):
    """One table of one Base."""

    name: ClassVar[str] = "feishu"
    max_body_bytes: ClassVar[int] = MAX_BODY_BYTES
    uploads_audio = True

    class Secrets(AppSecrets):
        """The app's, and what proves who knocks; lists hold the current and the previous one."""

        encrypt_key: list[SecretStr] = Field(default_factory=list, max_length=4)
        token: list[SecretStr] = Field(default_factory=list, max_length=4)
        automation: list[SecretStr] = Field(default_factory=list, max_length=4)

        @field_validator("encrypt_key", "token", "automation", mode="before")
        @classmethod
        def _listed(cls, value: Any) -> Any:
            return [value] if isinstance(value, (str, SecretStr)) else value

        @field_validator("automation")
        @classmethod
        def _long_enough(cls, tokens: list[SecretStr]) -> list[SecretStr]:
            return bearer_tokens(tokens)

    class Config(TableConnector.Config, AppConfig):
        """`base` and `table` stand in the Base's address: `/base/{base}?table={table}`."""

        secrets: Feishu.Secrets
        base: Key = Field(min_length=1)
        table: Key = Field(min_length=1)
        allow_unsigned: bool = False

        @model_validator(mode="after")
        def _can_be_proven(self) -> Feishu.Config:
            secrets = self.secrets
            if secrets.token and not secrets.encrypt_key and not self.allow_unsigned:
                raise ValueError(
                    "secrets.encrypt_key is missing, so events would carry no signature: set an "
                    "Encrypt Key under Events & Callbacks, or write allow_unsigned = true"
                )
            if secrets.encrypt_key and not secrets.token:
                raise ValueError(
                    "secrets.token is missing: the Verification Token stands beside the Encrypt Key"
                )
            if not secrets.token and not secrets.automation:
                raise ValueError(
                    "secrets: nobody could tell us of a row: set encrypt_key and token for events, "
                    "or automation for an automation's bearer token"
                )
            return self

    def __init__(self, endpoint: str, config: Config) -> None:
        super().__init__(endpoint, config)
        secrets = config.secrets
        self._app = config
        self._api = FeishuApi(config.address, secrets)
        self._rows = FeishuRows(self._api, config.base, config.table)
        self._door = EventDoor(_plain(secrets.encrypt_key), _plain(secrets.token))
        self._bearers = _plain(secrets.automation)

    # the door -----------------------------------------------------------------------------------

    def verify(self, hook: Hook, *, now: datetime) -> bytes | Reply:
        if "authorization" in hook.headers:
            verify_bearer(self._bearers, hook.headers)
            return hook.body
        if not self._app.secrets.token:
            raise Rejected("no bearer token, and no event subscription is configured")
        return self._door.open(hook, now=now)

    def as_sent(self, body: bytes, *, now: datetime, msg_id: str) -> Hook:
        """An event sealed and signed, or an automation's call with its bearer token."""
        if self._bearers and b'"event"' not in body:
            return Hook("POST", bearer_header(self._bearers[0]), body, now)
        if not self._app.secrets.token:
            raise ConfigError("secrets.token", "this endpoint takes an automation's calls only")
        return self._door.as_sent(body, now=now)

    def events(self, body: bytes, hook: Hook) -> list[NoteEvent]:
        if "authorization" in hook.headers:
            return [self._call_of_automation(body, hook)]
        kind, event_id, event = read_event(body)
        if kind != RECORD_CHANGED or event.get("file_token") != self._app.base:
            return []
        return self._changes(event_id, event) if event.get("table_id") == self._app.table else []

    def answer(self, accepted: Accepted, hook: Hook) -> Reply:
        """Always 200: an automation stops at any other status, the event service tries again."""
        return Reply(200, super().answer(accepted, hook).body)

    def refuse(self, error: ConnectorError) -> Reply:
        """A genuine event that cannot be read is taken, or it would be repeated for hours."""
        return Reply.of(200, {"ok": False}) if is_of_event(error) else super().refuse(error)

    def _call_of_automation(self, body: bytes, hook: Hook) -> NoteEvent:
        row = read_row(body)
        for name, said, ours in (
            ("base", row.base, self._app.base),
            ("table", row.table, self._app.table),
        ):
            if said and said != ours:
                raise Malformed(f"/{name}", f"/{name}: this endpoint reads {ours}")
        at = row.at or hook.headers.get("x-notecast-event") or hook.received_at.isoformat()
        return NoteEvent(f"{row.record}:{at}"[:200], self._ref(row.record), asked=True)

    def _changes(self, event_id: str, event: Mapping[str, Any]) -> list[NoteEvent]:
        """One thin event a row, whatever happened to it in between."""
        told = validate(_Event, {"event": event}).event
        columns: dict[str, frozenset[str]] = {}
        deleted: dict[str, bool] = {}
        for action in told.action_list:
            key = action.record_id
            columns[key] = columns.get(key, frozenset()) | action.columns
            deleted[key] = action.action == "record_deleted"
        return [
            NoteEvent(
                delivery_key(event_id, key),
                self._ref(key),
                "deleted" if deleted[key] else "changed",
                changed=changed or None,
                occurred_at=datetime.fromtimestamp(told.update_time, UTC)
                if told.update_time
                else None,
            )
            for key, changed in columns.items()
        ]

    # the rows -----------------------------------------------------------------------------------

    def read(self, refs: list[NoteRef]) -> Iterator[Note]:
        """Fetch rows as they are now; one that is gone, or not ours, is left out."""
        ours = {ref.key: ref for ref in refs if ref.table == self._app.table}
        columns = self._live_columns()
        for row in self._rows.read(list(ours)):
            yield self._note(ours[row.key], row, columns)

    def backfill(self, cursor: Cursor) -> Iterator[Page]:
        """Walk over the rows that hold the trigger's value."""
        columns = self._live_columns()
        walk = self._rows.walk(self._ready_filter(), cursor, leave=self._rows_leave())
        for rows, following, is_last in walk:
            events = (
                NoteEvent(
                    f"walk/{row.key}/{row.modified_ms}",
                    self._ref(row.key),
                    note=self._note(self._ref(row.key), row, columns),
                    occurred_at=row.modified_at,
                )
                for row in rows
            )
            yield Page(tuple(events), following, is_last)

    def write_back(self, ref: NoteRef, patch: NotePatch) -> None:
        """Set the output columns; a row that is gone has nothing to show."""
        cells = output_cells(self.table, patch)
        if not cells:
            return
        try:
            fields = self._rows.written(cells, self.schema())
            is_there = self._rows.update(ref.key, fields, write_key=patch.key)
        except WrongColumn:  # renamed since the schema was read?
            fields = self._rows.written(cells, self.schema(fresh=True))
            is_there = self._rows.update(ref.key, fields, write_key=patch.key)
        if not is_there:
            log.info("row is gone, nothing written", extra={"endpoint": self.endpoint})

    def bucket(self, ref: NoteRef | None, call: Call = "write") -> Budget | None:
        """Writes count by table, and reads apart from them."""
        name = f"feishu/{self._app.base}/{self._app.table}"
        if call == "write":
            return Budget(name, per_s=WRITES_PER_S, burst=5)
        return Budget(f"{name}/read", per_s=READS_PER_S, burst=5)

    def upkeep(self, state: dict[str, Any], *, now: datetime, address: str) -> dict[str, Any]:
        """Subscribe to the Base's events, which is harmless to repeat, and look at the columns."""
        if self._app.secrets.token:
            self._subscribe()
        found = self.problems()
        if found:
            raise WrongColumn("; ".join(found))
        return {**state, "checked_at": now.isoformat()}

    def columns(self) -> Sequence[Column]:
        """The table's columns as they are now."""
        return self._rows.columns()

    def sample(self) -> Note | None:
        """A row that is ready, or else the first one."""
        columns = self.schema()
        rows, _ = self._rows.search(self._ready_filter(), size=1)
        if not rows:
            rows, _ = self._rows.search(None, size=1)
        return self._note(self._ref(rows[0].key), rows[0], columns) if rows else None

    def _subscribe(self) -> None:
        path = "/drive/v1" + path_of("files", self._app.base)
        of_base = {"file_type": "bitable"}
        self._api.call("POST", f"{path}/subscribe", params=of_base)
        data = self._api.call("GET", f"{path}/get_subscribe", params=of_base)
        if data.get("is_subscribe") is not True:
            raise ToolRefused(
                "the app is not subscribed to the base: add it to the base as a document app that "
                "may manage it, then run `notecast connectors check`"
            )

    def _ref(self, key: str) -> NoteRef:
        return NoteRef(self.endpoint, self._app.base, self._app.table, key)

    def _note(self, ref: NoteRef, row: Row, columns: Sequence[Column]) -> Note:
        return note_from(self.table, ref, row.cells, row.modified_at, columns=columns)

    def _live_columns(self) -> Sequence[Column]:
        """The columns, asked anew where the configuration has ids: names are what may change."""
        sources = [column for _, source in self.table.fields.sources() for column in source.columns]
        by_id = any(name.startswith("fld") for name in (*sources, self.table.trigger.column))
        return self.schema(fresh=by_id)

    def _rows_leave(self) -> bool:
        """Does a row stop to be ready as soon as we write its status?"""
        ids = {column.name: column.id for column in self.schema()}
        status, trigger = self.table.output.status, self.table.trigger.column
        return bool(status) and ids.get(status, status) == ids.get(trigger, trigger)

    def _ready_filter(self) -> Filter:
        equals = self.table.trigger.equals
        values = ["true" if equals else "false"] if isinstance(equals, bool) else equals
        known = {one.id: one for one in self.schema()} | {one.name: one for one in self.schema()}
        column = known.get(self.table.trigger.column)
        if column is None:
            raise WrongColumn("; ".join(self.problems()), code="1254045")
        several = column.kind == "multi_select"
        return Filter(column.name, [values] if isinstance(values, str) else values, several)


Feishu.Config.model_rebuild()


def _plain(secrets: Sequence[SecretStr]) -> list[str]:
    return [secret.get_secret_value() for secret in secrets]
