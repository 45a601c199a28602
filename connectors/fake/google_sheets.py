"""Google Sheets as `connectors/google_sheets.py` knows it: a token service, values, limits.

A row of the world is a row of the grid, in order; the first row holds the column names. Shapes are
those of the v4 reference and of gspread, which is a judge of this file in the tests. The script
that lives in a real sheet is played too: a ready row gets a key and a signed message.
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from fastapi import APIRouter, Request

from connectors.fake.courier import Delivery
from connectors.fake.endpoints import Endpoint
from connectors.fake.faults import Window
from connectors.fake.tool import FakeTool, Refused, add_route
from connectors.fake.world import Change, Column, Link, Row, Table, Value, World
from connectors.signing import sign_webhook

SHEET, TAB = "1DemoSheetId", "Notes"
EMAIL = "notecast@demo.iam.gserviceaccount.com"
SECRET = "whsec_bm90ZWNhc3QtZGVtby1zZWNyZXQtMDAwMQ=="  # noqa: S105
SCOPE = "https://www.googleapis.com/auth/spreadsheets"
TOKEN_S = 3_600

_RANGE = re.compile(
    r"(?:(?P<tab>.+)!)?(?P<c1>[A-Z]*)(?P<r1>[0-9]*)(?::(?P<c2>[A-Z]*)(?P<r2>[0-9]*))?"
)
STATES = ("Draft", "Ready", "Queued", "Live", "Done", "Failed")
COLUMNS = (
    Column("A", "Title"),
    Column("B", "Notes"),
    Column("C", "Status", "select", STATES),
    Column("D", "Listen"),
    Column("E", "Audio"),
    Column("F", "Length"),
    Column("G", "Error"),
    Column("H", "notecast_id"),
)

ENDPOINT = """\
[endpoint.sync_sheets]
connector = "google_sheets"
base_url = "{url}"
sheet = "1DemoSheetId"
tab = "Notes"

[endpoint.sync_sheets.secrets]
webhook = ["file:fake-sheets-webhook"]
service_account = "file:fake-sheets-account"

[endpoint.sync_sheets.trigger]
column = "Status"
equals = "Ready"

[endpoint.sync_sheets.fields]
title = "Title"
text = "Notes"

[endpoint.sync_sheets.output]
status = "Status"
link = "Listen"
audio = "Audio"
error = "Error"
duration = "Length"
"""


class FakeGoogleSheets(FakeTool):
    """One project with one service account.

    Attributes:
        secret: of the played script; `trigger` and `key` are its columns.
        meanwhile: done once, right before the next write, as somebody else's edit would be.
        echoes: False leaves out of answers what was not written.
    """

    name: ClassVar[str] = "google_sheets"
    title: ClassVar[str] = "Google Sheets"

    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(world)
        self.secret = SECRET
        self.trigger = ("Status", "Ready")
        self.key = "notecast_id"
        self.meanwhile: Callable[[], object] | None = None
        self.echoes = True
        self.reads = Window(60, 60.0, clock)
        self.writes = Window(60, 60.0, clock)
        self._tokens: dict[str, float] = {}

    # the world ----------------------------------------------------------------------------------

    def add_samples(self) -> None:
        """A tab of meeting notes with a row that waits to be set ready."""
        table = self.add_notes_tab()
        notes = (
            "Decisions: ship on Friday.\nAlice: The tests are green.\nBob: Then I write the note."
        )
        self.world.add_row(
            table, "row-1", {"Title": "Weekly sync", "Notes": notes, "Status": "Draft"}
        )

    def add_notes_tab(self, sheet: str = SHEET, tab: str = TAB) -> Table:
        """An empty tab with the columns of `docs/connect-google-sheets.md`."""
        return self.world.add_table(self.name, sheet, tab, tab, COLUMNS)

    def endpoint(self, url: str) -> Endpoint:
        """The sample tab."""
        secrets = {
            "fake-sheets-webhook": self.secret,
            "fake-sheets-account": self.key_file(url),
        }
        return Endpoint("sync_sheets", ENDPOINT.replace("{url}", url), secrets)

    def insert_row(self, table: Table, at: int, row_id: str, cells: Mapping[str, Value]) -> None:
        """Insert a row of the grid before row `at` (2 is the first below the header)."""
        with self.world.lock:
            self.world.add_row(table, row_id, cells, by="api")
            rows = [row for row in table.rows.values() if row.id != row_id]
            rows.insert(at - 2, table.rows[row_id])
            table.rows = {row.id: row for row in rows}

    def events(self, change: Change) -> list[Delivery]:
        """What the script does: API writes start no trigger, a person's edit does."""
        column, value = self.trigger
        row = change.table.rows.get(change.row_id)
        trigger, key = change.table.column(column), change.table.column(self.key)
        if not self.hook_url or change.by == "api" or row is None or not trigger or not key:
            return []
        if row.cells.get(trigger.id) != value:
            return []
        if not row.cells.get(key.id):
            self.world.edit(change.table, row.id, {key.id: str(uuid.uuid4())}, by="api")
        return [self.message(change.table, row)]

    def message(self, table: Table, row: Row) -> Delivery:
        """The script's message about a row."""
        values = {column.name: _shown(row.cells.get(column.id)) for column in table.columns}
        data = {
            "sheet": table.container,
            "tab": table.id,
            "key": values[self.key],
            "row": list(table.rows).index(row.id) + 2,
            "values": values,
        }
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.world.clock()))
        body = json.dumps({"type": "row.ready", "timestamp": at, "data": data}).encode()
        msg_id = str(uuid.uuid4())
        headers = sign_webhook(self.secret, msg_id, int(self.world.clock()), body)
        headers["content-type"] = "application/json"
        return Delivery(self.hook_url, headers, body, "google_sheets")

    def key_file(self, url: str) -> str:
        """The text of a service account's key file whose tokens come from the fake at `url`."""
        private = self._private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return json.dumps(
            {
                "type": "service_account",
                "project_id": "demo",
                "private_key_id": "demo-key",
                "private_key": private.decode(),
                "client_email": EMAIL,
                "client_id": "1",
                "token_uri": f"{url}/token",
            }
        )

    def forget_tokens(self) -> None:
        """Make every access token invalid."""
        self._tokens.clear()

    @cached_property
    def _private_key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    # routes -------------------------------------------------------------------------------------

    def routes(self) -> APIRouter:
        """The token service, and the API's addresses."""
        router = APIRouter()
        sheet = "/v4/spreadsheets/{sheet}"
        add_route(self, router, "POST", "/token", self._token)
        add_route(self, router, "GET", f"{sheet}/values:batchGet", self._batch_get)
        add_route(self, router, "POST", f"{sheet}/values:batchUpdate", self._batch_update)
        add_route(self, router, "GET", f"{sheet}/values/{{range:path}}", self._get)
        add_route(self, router, "PUT", f"{sheet}/values/{{range:path}}", self._put)
        add_route(self, router, "GET", sheet, self._sheet)
        return router

    def bad_request(self) -> Refused:
        return _no(400, "INVALID_ARGUMENT", "Invalid JSON payload received.")

    def _token(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        """RFC 7523: an assertion signed by the account's key."""
        head, _, signature = str(content.get("assertion", "")).rpartition(".")
        try:
            self._private_key.public_key().verify(
                _unbase64(signature), head.encode(), padding.PKCS1v15(), hashes.SHA256()
            )
            claims = json.loads(_unbase64(head.partition(".")[2]))
        except (InvalidSignature, ValueError):
            raise Refused({"error": "invalid_grant", "error_description": "bad JWT"}) from None
        if claims.get("iss") != EMAIL or SCOPE not in str(claims.get("scope", "")).split():
            raise Refused({"error": "invalid_scope"})
        token = f"ya29.{uuid.uuid4().hex}"
        self._tokens[token] = self.world.clock() + TOKEN_S
        return {"access_token": token, "expires_in": TOKEN_S, "token_type": "Bearer"}

    def _enter(self, request: Request, budget: Window) -> None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._tokens.get(token, 0.0) <= self.world.clock():
            raise _no(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        if budget.take(EMAIL):
            raise _no(429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric.")

    def _sheet(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request, self.reads)
        sheet = request.path_params["sheet"]
        tabs = [table for key, table in self.world.tables.items() if key[:2] == (self.name, sheet)]
        if not tabs:
            raise _no(404, "NOT_FOUND", "Requested entity was not found.")
        shown = [
            {
                "properties": {
                    "sheetId": n,
                    "title": table.name,
                    "index": n,
                    "sheetType": "GRID",
                    "gridProperties": {"rowCount": 1000, "columnCount": 26},
                }
            }
            for n, table in enumerate(tabs)
        ]
        return {"spreadsheetId": sheet, "properties": {"title": "Demo"}, "sheets": shown}

    def _batch_get(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request, self.reads)
        ranges = request.query_params.getlist("ranges")
        return {
            "spreadsheetId": request.path_params["sheet"],
            "valueRanges": [self._values(request, one) for one in ranges],
        }

    def _get(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request, self.reads)
        return self._values(request, unquote(request.path_params["range"]))

    def _put(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request, self.writes)
        self._interrupt()
        option = request.query_params.get("valueInputOption", "")
        name = unquote(request.path_params["range"])
        with self.world.lock:
            return self._write(request, name, content.get("values"), option, echo=False)

    def _batch_update(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request, self.writes)
        self._interrupt()
        option = str(content.get("valueInputOption", ""))
        echo = bool(content.get("includeValuesInResponse"))
        with self.world.lock:
            responses = [
                self._write(request, str(one.get("range")), one.get("values"), option, echo=echo)
                for one in content.get("data") or ()
            ]
        return {"spreadsheetId": request.path_params["sheet"], "responses": responses}

    def _interrupt(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()

    # the grid -----------------------------------------------------------------------------------

    def _place(self, request: Request, name: str) -> tuple[Table, range, range]:
        """Table, row numbers and column indexes of a range in A1 notation."""
        found = _RANGE.fullmatch(name)
        tab = (found["tab"] or TAB).strip("'").replace("''", "'") if found else ""
        table = self.world.tables.get((self.name, request.path_params["sheet"], tab))
        if found is None or table is None:
            if not any(
                k[:2] == (self.name, request.path_params["sheet"]) for k in self.world.tables
            ):
                raise _no(404, "NOT_FOUND", "Requested entity was not found.")
            raise _no(400, "INVALID_ARGUMENT", f"Unable to parse range: {name}")
        is_cell = ":" not in name.rpartition("!")[2]
        first = int(found["r1"] or 1)
        last = first if is_cell else int(found["r2"] or len(table.rows) + 1)
        left = _index(found["c1"]) if found["c1"] else 0
        right = left if is_cell else _index(found["c2"]) if found["c2"] else len(table.columns) - 1
        return table, range(first, last + 1), range(left, right + 1)

    def _values(self, request: Request, name: str) -> dict[str, Any]:
        """A range as it is shown, cut at the last filled cell of each row and the last row."""
        with self.world.lock:
            table, numbers, columns = self._place(request, name)
            rows = list(table.rows.values())
            grid = [[_at(table, rows, number, column) for column in columns] for number in numbers]
        for cells in grid:
            while cells and cells[-1] == "":
                cells.pop()
        while grid and not grid[-1]:
            grid.pop()
        answer: dict[str, Any] = {"range": name, "majorDimension": "ROWS"}
        return {**answer, "values": grid} if grid else answer

    def _write(
        self, request: Request, name: str, values: Any, option: str, *, echo: bool
    ) -> dict[str, Any]:
        """Write a range; null leaves a cell as it is."""
        if option not in ("RAW", "USER_ENTERED"):
            raise _no(400, "INVALID_ARGUMENT", "'valueInputOption' is required but not specified")
        table, numbers, columns = self._place(request, name)
        rows = list(table.rows.values())
        written = 0
        for number, cells in zip(numbers, values or (), strict=False):
            if number < 2 or number > len(rows) + 1:
                raise _no(400, "INVALID_ARGUMENT", f"Range ({name}) exceeds grid limits.")
            for at, value in zip(columns, cells, strict=False):
                if value is None:
                    continue
                text = str(value)
                is_formula = option == "USER_ENTERED" and text.startswith("=")
                cell = {table.columns[at].id: "#NAME?" if is_formula else text}
                self.world.edit(table, rows[number - 2].id, cell, by="api")
                written += 1
        answer = {
            "spreadsheetId": request.path_params["sheet"],
            "updatedRange": name,
            "updatedCells": written,
        }
        if echo and (written or self.echoes):
            return {**answer, "updatedData": self._values(request, name)}
        return answer


def _at(table: Table, rows: list[Row], number: int, column: int) -> str:
    if column >= len(table.columns) or number > len(rows) + 1:
        return ""
    if number == 1:
        return table.columns[column].name
    return _shown(rows[number - 2].cells.get(table.columns[column].id))


def _shown(value: Value) -> str:
    """A cell as people see it."""
    if isinstance(value, Link):
        return value.url
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    return "" if value is None else str(value)


def _index(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _no(code: int, status: str, message: str) -> Refused:
    return Refused({"error": {"code": code, "message": message, "status": status}}, code)
