"""Airtable as `connectors/airtable.py` knows it: records, webhooks with payloads, limits.

Shapes and limits are those of the Web API's documentation and of pyairtable, which is a judge of
this file in the tests.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from fastapi import APIRouter, Request

from connectors.fake.courier import Delivery
from connectors.fake.endpoints import Endpoint
from connectors.fake.faults import Window
from connectors.fake.tool import FakeTool, Refused, add_route
from connectors.fake.world import Change, Column, Kind, Link, Row, Table, Value, World
from connectors.signing import sign_airtable

BASE, TABLE = "appDemo01", "tblDemo01"
LIFE_S = 7 * 86_400.0
PAYLOADS = 50
PAGE_SIZE = 100
MAX_WEBHOOKS = 10

_TYPES: Mapping[Kind, str] = {
    "text": "multilineText",
    "select": "singleSelect",
    "link": "url",
    "files": "multipleAttachments",
    "number": "number",
    "date": "dateTime",
    "checkbox": "checkbox",
    "people": "multipleCollaborators",
    "formula": "formula",
}
_RECORD_ID = re.compile(r"RECORD_ID\(\)='([^']*)'")
STATES = ("Draft", "Ready", "Queued", "Live", "Done", "Failed")
COLUMNS = (
    Column("fldTitle", "Title"),
    Column("fldNotes", "Notes"),
    Column("fldStatus", "Status", "select", STATES),
    Column("fldListen", "Listen", "link"),
    Column("fldAudio", "Audio", "files"),
    Column("fldLength", "Length", "number"),
    Column("fldError", "Error"),
)

ENDPOINT = """\
[endpoint.sync_airtable]
connector = "airtable"
base_url = "{url}"
base = "appDemo01"
table = "tblDemo01"
secrets = { token = "file:fake-airtable-token" }

[endpoint.sync_airtable.trigger]
column = "Status"
equals = "Ready"

[endpoint.sync_airtable.fields]
title = "Title"
text = "Notes"

[endpoint.sync_airtable.output]
status = "Status"
link = "Listen"
audio = "Audio"
error = "Error"
duration = "Length"
"""


@dataclass(slots=True)
class FakeWebhook:
    """A subscription of a base; `payloads` with the time they were made."""

    id: str
    secret: str
    url: str
    filters: dict[str, Any]
    expires_s: float
    pings: bool = True
    is_broken: bool = False
    payloads: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    dropped: int = 0


class FakeAirtable(FakeTool):
    """One workspace with one token.

    Attributes:
        token: a personal access token.
        webhooks: by base and id.
        penalty_s: how long a base refuses everything once it was called too often.
    """

    name: ClassVar[str] = "airtable"
    title: ClassVar[str] = "Airtable"

    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(world)
        self.token = "pat-demo-token"  # noqa: S105
        self.webhooks: dict[str, dict[str, FakeWebhook]] = {}
        self.penalty_s = 30.0
        self.budget = Window(5, 1.0, clock)
        self._clock = clock
        self._blocked: dict[str, float] = {}
        self._transaction = 800

    # the world ----------------------------------------------------------------------------------

    def add_samples(self) -> None:
        """A table of meeting notes with a row that waits to be set ready."""
        table = self.add_notes_table()
        notes = (
            "Decisions: ship on Friday.\nAlice: The tests are green.\nBob: Then I write the note."
        )
        self.world.add_row(
            table, "recDemo01", {"Title": "Weekly sync", "Notes": notes, "Status": "Draft"}
        )

    def add_notes_table(self, base: str = BASE, table_id: str = TABLE) -> Table:
        """An empty table with the columns of `docs/connect-airtable.md`."""
        return self.world.add_table(self.name, base, table_id, "Notes", COLUMNS)

    def endpoint(self, url: str) -> Endpoint:
        """The sample table."""
        secrets = {"fake-airtable-token": self.token}
        return Endpoint("sync_airtable", ENDPOINT.replace("{url}", url), secrets)

    def events(self, change: Change) -> list[Delivery]:
        """A payload for every webhook that watches, and a ping if it has an address."""
        pings = []
        for webhook in self.webhooks.get(change.table.container, {}).values():
            if not self._is_enabled(webhook) or not _watches(webhook.filters, change):
                continue
            self._transaction += 1
            payload = _payload(change, self._transaction)
            webhook.payloads.append((self.world.clock(), payload))
            if webhook.pings and webhook.url:
                pings.append(self.ping(change.table.container, webhook))
        return pings

    def ping(self, base: str, webhook: FakeWebhook) -> Delivery:
        """What a webhook posts: ids and a time, with its MAC."""
        content = {
            "base": {"id": base},
            "webhook": {"id": webhook.id},
            "timestamp": _iso(self.world.clock()),
        }
        body = json.dumps(content).encode()
        headers = {"content-type": "application/json", **sign_airtable(webhook.secret, body)}
        return Delivery(webhook.url, headers, body, "airtable")

    # routes -------------------------------------------------------------------------------------

    def routes(self) -> APIRouter:
        """The Web API's addresses."""
        router = APIRouter(prefix="/v0")
        webhooks = "/bases/{base}/webhooks"
        add_route(self, router, "GET", "/meta/bases/{base}/tables", self._tables)
        add_route(self, router, "GET", webhooks, self._list_webhooks)
        add_route(self, router, "POST", webhooks, self._create_webhook)
        add_route(self, router, "DELETE", f"{webhooks}/{{webhook}}", self._delete_webhook)
        add_route(self, router, "POST", f"{webhooks}/{{webhook}}/refresh", self._refresh)
        add_route(self, router, "POST", f"{webhooks}/{{webhook}}/enableNotifications", self._enable)
        add_route(self, router, "GET", f"{webhooks}/{{webhook}}/payloads", self._payloads)
        add_route(self, router, "GET", "/{base}/{table}", self._list)
        add_route(self, router, "POST", "/{base}/{table}/listRecords", self._list)
        add_route(self, router, "GET", "/{base}/{table}/{record}", self._get)
        add_route(self, router, "PATCH", "/{base}/{table}/{record}", self._update)
        return router

    def bad_request(self) -> Refused:
        return _no("INVALID_REQUEST_BODY", 422)

    def _base(self, request: Request) -> str:
        """The base of the address, once token and budget allow it."""
        if request.headers.get("authorization") != f"Bearer {self.token}":
            raise _no("AUTHENTICATION_REQUIRED", 401)
        base = str(request.path_params["base"])
        now = self._clock()
        if self._blocked.get(base, 0.0) > now:
            raise _no("RATE_LIMIT_REACHED", 429)
        if self.budget.take(base):
            self._blocked[base] = now + self.penalty_s
            raise _no("RATE_LIMIT_REACHED", 429)
        if not any(key[:2] == (self.name, base) for key in self.world.tables):
            raise _no("INVALID_PERMISSIONS_OR_MODEL_NOT_FOUND", 403)
        return base

    def _table(self, request: Request) -> Table:
        base, wanted = self._base(request), request.path_params["table"]
        for (tool, container, _), table in self.world.tables.items():
            if (tool, container) == (self.name, base) and wanted in (table.id, table.name):
                return table
        raise _no("INVALID_PERMISSIONS_OR_MODEL_NOT_FOUND", 403)

    def _tables(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        base = self._base(request)
        return {
            "tables": [
                {
                    "id": table.id,
                    "name": table.name,
                    "primaryFieldId": table.columns[0].id,
                    "fields": [_field(column) for column in table.columns],
                    "views": [{"id": "viwDemo01", "name": "Grid view", "type": "grid"}],
                }
                for (tool, container, _), table in self.world.tables.items()
                if (tool, container) == (self.name, base)
            ]
        }

    # records ------------------------------------------------------------------------------------

    def _list(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        table = self._table(request)
        wants = {**request.query_params, **content}
        formula = str(wants.get("filterByFormula", ""))
        wanted = set(_RECORD_ID.findall(formula))
        if formula and not wanted:
            raise _no("INVALID_FILTER_BY_FORMULA", 422)
        size = min(int(wants.get("pageSize", PAGE_SIZE)), PAGE_SIZE)
        start_text = str(wants.get("offset", "itr0/0")).removeprefix("itr0/")
        if not start_text.isdigit():
            raise _no("LIST_RECORDS_ITERATOR_NOT_AVAILABLE", 422)
        start = int(start_text)
        with self.world.lock:
            rows = [row for row in table.rows.values() if not formula or row.id in wanted]
            found = [_record(table, row, _truth(wants)) for row in rows[start : start + size]]
        answer: dict[str, Any] = {"records": found}
        if start + size < len(rows):
            answer["offset"] = f"itr0/{start + size}"
        return answer

    def _get(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        table = self._table(request)
        return _record(table, self._row(request, table), _truth(request.query_params))

    def _update(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        table = self._table(request)
        row = self._row(request, table)
        fields = content.get("fields")
        if not isinstance(fields, dict):
            raise _no("INVALID_REQUEST_MISSING_FIELDS", 422)
        cells: dict[str, Value] = {}
        for name, value in fields.items():
            column = table.column(name)
            if column is None:
                raise _no("UNKNOWN_FIELD_NAME", 422, f'Unknown field name: "{name}"')
            cells[column.id] = _written(column, value, bool(content.get("typecast")))
        self.world.edit(table, row.id, cells, by="api")
        return _record(table, row, _truth(content))

    def _row(self, request: Request, table: Table) -> Row:
        row = table.rows.get(request.path_params["record"])
        if row is None:
            raise Refused({"error": "NOT_FOUND"}, 404)
        return row

    # webhooks -----------------------------------------------------------------------------------

    def _list_webhooks(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        base = self._base(request)
        return {"webhooks": [self._shown(one) for one in self.webhooks.get(base, {}).values()]}

    def _create_webhook(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        base = self._base(request)
        held = self.webhooks.setdefault(base, {})
        if len(held) >= MAX_WEBHOOKS:
            raise _no("CANNOT_CREATE_WEBHOOKS_EXCEEDING_LIMIT", 403)
        filters = ((content.get("specification") or {}).get("options") or {}).get("filters")
        if not isinstance(filters, dict) or not filters.get("dataTypes"):
            raise _no("INVALID_REQUEST_UNKNOWN", 422)
        url = str(content.get("notificationUrl") or "")
        if url and not re.match(r"https?://", url):
            raise _no("INVALID_NOTIFICATION_URL", 422)
        webhook = FakeWebhook(
            id=f"ach{secrets.token_hex(7)}",
            secret=base64.b64encode(secrets.token_bytes(32)).decode(),
            url=url,
            filters=filters,
            expires_s=self.world.clock() + LIFE_S,
        )
        held[webhook.id] = webhook
        return {
            "id": webhook.id,
            "macSecretBase64": webhook.secret,
            "expirationTime": _iso(webhook.expires_s),
        }

    def _delete_webhook(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        base, webhook = self._webhook(request)
        del self.webhooks[base][webhook.id]
        return {}

    def _refresh(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        _, webhook = self._webhook(request)
        if not self._is_enabled(webhook):
            raise _no("CANNOT_REFRESH_DISABLED_WEBHOOK", 403)
        webhook.expires_s = self.world.clock() + LIFE_S
        return {"expirationTime": _iso(webhook.expires_s)}

    def _enable(self, request: Request, content: dict[str, Any]) -> Any:
        _, webhook = self._webhook(request)
        webhook.pings = content.get("enable") is True
        return {}

    def _payloads(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        _, webhook = self._webhook(request)
        if self._is_enabled(webhook):
            webhook.expires_s = self.world.clock() + LIFE_S
        old = self.world.clock() - LIFE_S
        while webhook.payloads and webhook.payloads[0][0] < old:
            webhook.payloads.pop(0)
            webhook.dropped += 1
        at = int(request.query_params.get("cursor", "1"))
        size = min(int(request.query_params.get("limit", PAYLOADS)), PAYLOADS)
        start = at - 1 - webhook.dropped
        if at < 1 or start > len(webhook.payloads):
            raise _no("INVALID_CURSOR", 422)
        start = max(start, 0)
        shown = [payload for _, payload in webhook.payloads[start : start + size]]
        following = start + len(shown) + webhook.dropped + 1
        has_more = start + len(shown) < len(webhook.payloads)
        return {"payloads": shown, "cursor": following, "mightHaveMore": has_more}

    def _webhook(self, request: Request) -> tuple[str, FakeWebhook]:
        base = self._base(request)
        webhook = self.webhooks.get(base, {}).get(request.path_params["webhook"])
        if webhook is None:
            raise _no("NOT_FOUND", 404)
        return base, webhook

    def _is_enabled(self, webhook: FakeWebhook) -> bool:
        return not webhook.is_broken and webhook.expires_s > self.world.clock()

    def _shown(self, webhook: FakeWebhook) -> dict[str, Any]:
        return {
            "id": webhook.id,
            "areNotificationsEnabled": webhook.pings,
            "cursorForNextPayload": webhook.dropped + len(webhook.payloads) + 1,
            "isHookEnabled": self._is_enabled(webhook),
            "lastSuccessfulNotificationTime": None,
            "lastNotificationResult": None,
            "notificationUrl": webhook.url or None,
            "expirationTime": _iso(webhook.expires_s),
            "specification": {"options": {"filters": webhook.filters}},
        }


def _no(code: str, status: int, message: str = "") -> Refused:
    return Refused({"error": {"type": code, "message": message or code}}, status)


def _watches(filters: Mapping[str, Any], change: Change) -> bool:
    if filters.get("recordChangeScope") not in (None, change.table.id):
        return False
    watched = set(filters.get("watchDataInFieldIds") or ())
    return change.action == "deleted" or not watched or bool(watched & change.after.keys())


def _payload(change: Change, transaction: int) -> dict[str, Any]:
    columns = {column.id: column for column in change.table.columns}
    cells = {key: _cell(columns[key], value) for key, value in change.after.items()}
    cells = {key: value for key, value in cells.items() if columns[key].kind != "formula"}
    shown: dict[str, Any] = {"cellValuesByFieldId": cells}
    table: dict[str, Any] = {}
    if change.action == "added":
        shown["createdTime"] = _iso(change.at_ms / 1000)
        table["createdRecordsById"] = {change.row_id: shown}
    elif change.action == "edited":
        table["changedRecordsById"] = {change.row_id: {"current": shown}}
    else:
        table["destroyedRecordIds"] = [change.row_id]
    return {
        "timestamp": _iso(change.at_ms / 1000),
        "baseTransactionNumber": transaction,
        "payloadFormat": "v0",
        "actionMetadata": {"source": "client" if change.by == "person" else "publicApi"},
        "changedTablesById": {change.table.id: table},
    }


def _field(column: Column) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": column.id, "name": column.name, "type": _TYPES[column.kind]}
    if column.kind == "select":
        choices = [{"id": f"sel{n}", "name": name} for n, name in enumerate(column.options)]
        shown["options"] = {"choices": choices}
    return shown


def _record(table: Table, row: Row, by_id: bool) -> dict[str, Any]:
    """A record; empty cells are left out."""
    fields = {
        (column.id if by_id else column.name): _cell(column, row.cells[column.id])
        for column in table.columns
        if column.id in row.cells
    }
    return {"id": row.id, "createdTime": _iso(row.created_ms / 1000), "fields": fields}


def _cell(column: Column, value: Value) -> Any:
    match value:
        case Link(name, url) if column.kind == "files":
            return [{"id": f"att{name}", "filename": name, "url": url}]
        case Link(_, url):
            return url
        case tuple():
            return [{"id": f"usr{n}", "name": str(name)} for n, name in enumerate(value)]
        case float() | int() if column.kind == "date":
            return _iso(value / 1000)
        case _:
            return value


def _written(column: Column, value: Any, typecast: bool) -> Value:
    """A cell as it is written, or the refusal of its type."""
    if value is None or value == "":
        return None
    if column.kind == "select" and isinstance(value, str):
        if value not in column.options and not typecast:
            message = f'Insufficient permissions to create new select option ""{value}""'
            raise _no("INVALID_MULTIPLE_CHOICE_OPTIONS", 422, message)
        return value
    if column.kind == "link" and isinstance(value, str):
        return Link(value, value)
    if column.kind == "text" and isinstance(value, str):
        return value
    if column.kind == "number" and isinstance(value, (int, float)):
        return value
    match value:
        case [{"url": str(url), "filename": str(name)}] if column.kind == "files":
            return Link(name, url)
    message = f'Field "{column.name}" cannot accept the provided value'
    raise _no("INVALID_VALUE_FOR_COLUMN", 422, message)


def _truth(wants: Mapping[str, Any]) -> bool:
    return str(wants.get("returnFieldsByFieldId", "")).lower() in ("1", "true")


def _iso(at_s: float) -> str:
    at = datetime.fromtimestamp(at_s, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
