"""Feishu and Lark Bitable as `connectors/feishu.py` knows it: routes, cells, limits, events.

Codes, shapes and limits are those of the open platform's documentation and of its Python SDK, which
is a judge of this file in the tests. Writes of one table that overlap are refused, as there.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from fastapi import APIRouter, Request

from connectors.fake.courier import Delivery
from connectors.fake.endpoints import Endpoint
from connectors.fake.faults import Window
from connectors.fake.feishu_cells import (
    COLUMNS,
    ENDPOINT,
    KINDS,
    SAMPLE_EN,
    SAMPLE_ZH,
    WRITERS,
    WRONG_VALUE,
    No,
    fits,
    message_of,
    ok,
    read_cell,
    record_of,
)
from connectors.fake.feishu_drive import Drive
from connectors.fake.tool import FakeTool, Refused, add_route
from connectors.fake.world import Change, Column, Table, Value, World
from connectors.signing import encrypt_feishu, sign_feishu_event, sign_feishu_robot

BASE, TABLE = "bascDemo01", "tblDemo01"
TOKEN_S = 7_200
ROBOT_WINDOW_S = 3_600
RECORD_CHANGED = "drive.file.bitable_record_changed_v1"


class FakeFeishu(FakeTool):
    """One app in one tenant.

    Attributes:
        app_id, app_secret: what a tenant token is given for.
        encrypt_key, token: of the event subscription; an empty key sends events in plain.
        robots: name of a group robot -> its signing secret, empty for none.
        write_s: how long a write takes; another one of the same table meanwhile is refused.
        subscribed: bases whose events are sent.
        token_s: how long a tenant token lives.
    """

    name: ClassVar[str] = "feishu"
    title: ClassVar[str] = "Feishu Bitable"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.app_id = "cli_demo"
        self.app_secret = "demo-app-secret"  # noqa: S105  # of a fake
        self.encrypt_key = "demo-encrypt-key"
        self.token = "demo-verification-token"  # noqa: S105
        self.robots: dict[str, str] = {"demo": "demo-robot-secret"}
        self.write_s = 0.02
        self.token_s = TOKEN_S
        self.subscribed: set[str] = set()
        self.updates = Window(50, 1.0)
        self.reads = Window(20, 1.0)
        self.robot_minute = Window(100, 60.0)
        self.robot_second = Window(5, 1.0)
        self.conflicts = 0
        self._tokens: dict[str, float] = {}
        self._done: dict[str, dict[str, Any]] = {}  # client_token -> its answer
        self._drive = Drive(self._require_token)
        self._writing: dict[tuple[str, str, str], threading.Lock] = {}

    # the world ----------------------------------------------------------------------------------

    def add_samples(self) -> None:
        """A table of meeting notes with one row that waits to be set ready."""
        table = self.add_notes_table()
        self.world.add_row(table, "recDemo01", SAMPLE_ZH)
        self.world.add_row(table, "recDemo02", SAMPLE_EN)

    def add_notes_table(self, base: str = BASE, table_id: str = TABLE) -> Table:
        """An empty table with the columns of `docs/connect-feishu.md`."""
        return self.world.add_table(self.name, base, table_id, "会议纪要", COLUMNS)

    def endpoint(self, url: str) -> Endpoint:
        """The sample table, with a group that hears when a row is live."""
        secrets = {
            "fake-feishu-app-id": self.app_id,
            "fake-feishu-app-secret": self.app_secret,
            "fake-feishu-encrypt-key": self.encrypt_key,
            "fake-feishu-token": self.token,
            "fake-feishu-robot-secret": self.robots["demo"],
        }
        return Endpoint("zhou_hui", ENDPOINT.replace("{url}", url), secrets)

    def events(self, change: Change) -> list[Delivery]:
        """The change as an event, encrypted and signed, if the base is subscribed."""
        if not self.hook_url or change.table.container not in self.subscribed:
            return []
        return [self.deliver(self.event_of(change))]

    def event_of(self, change: Change) -> dict[str, Any]:
        """The event's content before it is encrypted; formulas neither trigger nor appear."""
        kinds = {column.id: column for column in change.table.columns}
        action: dict[str, Any] = {"record_id": change.row_id, "action": f"record_{change.action}"}
        for when, cells in (("before_value", change.before), ("after_value", change.after)):
            shown = [
                {
                    "field_id": column,
                    "field_value": json.dumps(read_cell(kinds[column], value), ensure_ascii=False),
                }
                for column, value in cells.items()
                if kinds[column].kind != "formula"
            ]
            if shown:
                action[when] = shown
        operator = "ou_demo_person" if change.by == "person" else "ou_demo_app"
        event = {
            "file_type": "bitable",
            "file_token": change.table.container,
            "table_id": change.table.id,
            "revision": change.revision,
            "operator_id": {"open_id": operator},
            "action_list": [action],
            "update_time": change.at_ms // 1000,
        }
        return wrapped(RECORD_CHANGED, event, token=self.token, now_ms=self.world.now_ms())

    def deliver(self, content: Mapping[str, Any]) -> Delivery:
        """A message to the hook: an event, or the challenge that asks whether it is there."""
        return delivery_of(self, content, self.encrypt_key)

    def challenge(self) -> dict[str, Any]:
        """What the developer console sends when an address is saved."""
        challenge = str(uuid.uuid4())
        return {"challenge": challenge, "token": self.token, "type": "url_verification"}

    def forget_tokens(self) -> None:
        """Make every tenant token invalid, as a reset of the app's secret does."""
        self._tokens.clear()

    # routes -------------------------------------------------------------------------------------

    def routes(self) -> APIRouter:
        """The open platform's addresses."""
        router = APIRouter(prefix="/open-apis")
        table = "/bitable/v1/apps/{base}/tables/{table}"
        records = f"{table}/records"
        add_route(self, router, "POST", "/auth/v3/tenant_access_token/internal", self._tenant_token)
        add_route(self, router, "POST", f"{records}/batch_get", self._batch_get)
        add_route(self, router, "POST", f"{records}/search", self._search)
        add_route(self, router, "GET", f"{records}/{{record}}", self._get)
        add_route(self, router, "PUT", f"{records}/{{record}}", self._update)
        add_route(self, router, "GET", f"{table}/fields", self._fields)
        for step, handler in self._drive.steps().items():
            add_route(self, router, "POST", f"/drive/v1/medias/{step}", handler)
        add_route(self, router, "POST", "/drive/v1/files/{base}/subscribe", self._subscribe)
        add_route(self, router, "GET", "/drive/v1/files/{base}/get_subscribe", self._is_subscribed)
        add_route(self, router, "POST", "/bot/v2/hook/{robot}", self._post_card)
        return router

    def bad_request(self) -> Refused:
        return No(1254001, "WrongRequestBody", 400)

    def _tenant_token(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(content.get("app_id"), str):
            raise No(10003, "invalid param")
        if (content["app_id"], content.get("app_secret")) != (self.app_id, self.app_secret):
            raise No(10014, "app secret invalid")
        token = f"t-{secrets.token_hex(16)}"
        self._tokens[token] = self.world.clock() + self.token_s
        return {"code": 0, "msg": "ok", "tenant_access_token": token, "expire": self.token_s}

    def _require_token(self, request: Request) -> None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not token:
            raise No(99991661, "Missing access token for authorization.", 400)
        if self._tokens.get(token, 0.0) <= self.world.clock():
            raise No(99991663, "Invalid access token for authorization.", 400)

    def _table(self, request: Request, budget: Window) -> Table:
        """The table of the address, once token and budget allow it."""
        self._require_token(request)
        base, table_id = request.path_params["base"], request.path_params["table"]
        wait_s = budget.take((base, table_id))
        if wait_s:
            headers = {"x-ogw-ratelimit-limit": str(budget.limit)}
            headers["x-ogw-ratelimit-reset"] = str(max(1, round(wait_s)))
            raise No(99991400, "request trigger frequency limit", 429, headers)
        table = self.world.tables.get((self.name, base, table_id))
        if table is None:
            known = any(key[:2] == (self.name, base) for key in self.world.tables)
            raise No(1254041, "TableIdNotFound") if known else No(1254040, "BaseTokenNotFound")
        return table

    def _batch_get(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        table = self._table(request, self.reads)
        wanted = content.get("record_ids")
        if not isinstance(wanted, list) or not wanted:
            raise No(1254001, "WrongRequestBody")
        if len(wanted) > 100:
            raise No(1254104, "RecordAddOnceExceedLimit")
        with self.world.lock:
            found = [
                record_of(table, table.rows[one], content) for one in wanted if one in table.rows
            ]
            absent = [one for one in wanted if one not in table.rows]
        data = {"records": found, "forbidden_record_ids": [], "absent_record_ids": absent}
        return ok(data)

    def _get(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        table = self._table(request, self.reads)
        row = table.rows.get(request.path_params["record"])
        if row is None:
            raise No(1254043, "RecordIdNotFound")
        wants = {"automatic_fields": request.query_params.get("automatic_fields") == "true"}
        return ok({"record": record_of(table, row, wants)})

    def _search(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        table = self._table(request, self.reads)
        size = min(int(request.query_params.get("page_size", "20")), 500)
        try:
            start = int(request.query_params.get("page_token", "0"), 16)
        except ValueError:
            raise No(1254030, "InvalidPageToken") from None
        with self.world.lock:
            rows = [row for row in table.rows.values() if fits(table, row, content.get("filter"))]
            page = [record_of(table, row, content) for row in rows[start : start + size]]
        has_more = start + size < len(rows)
        data: dict[str, Any] = {"items": page, "has_more": has_more, "total": len(rows)}
        if has_more:
            data["page_token"] = f"{start + size:x}"
        return ok(data)

    def _update(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        table = self._table(request, self.updates)
        record, client_token = (
            request.path_params["record"],
            request.query_params.get("client_token", ""),
        )
        with self._only_writer(table):
            if client_token and client_token in self._done:
                return self._done[client_token]
            time.sleep(self.write_s)
            row = table.rows.get(record)
            if row is None:
                raise No(1254043, "RecordIdNotFound")
            fields = content.get("fields")
            if not isinstance(fields, dict):
                raise No(1254001, "WrongRequestBody")
            cells = {}
            for name, value in fields.items():
                column = next((one for one in table.columns if one.name == name), None)
                if column is None:
                    raise No(1254045, "FieldNameNotFound")
                cells[column.id] = self._written(table, column, value)
            self.world.edit(table, record, cells, by="api")
            answer = ok({"record": record_of(table, row, {})})
            if client_token:
                self._done[client_token] = answer
            return answer

    @contextmanager
    def _only_writer(self, table: Table) -> Iterator[None]:
        lock = self._writing.setdefault(table.key, threading.Lock())
        if not lock.acquire(blocking=False):
            self.conflicts += 1
            raise No(1254291, "Write conflict")
        try:
            yield
        finally:
            lock.release()

    def _written(self, table: Table, column: Column, value: Any) -> Value:
        """A cell as it is written, or the column's own refusal."""
        if value is None:
            return None
        if column.kind == "formula":
            raise No(1254015, "Field types do not match.", 400)
        written = WRITERS[column.kind](value)
        if written is None:
            raise No(*WRONG_VALUE[column.kind])
        if isinstance(written, tuple) and column.kind == "files":
            files = [self._drive.files.get(str(token)) for token in written]
            if any(one is None or one.container != table.container for one in files):
                raise No(1254303, "AttachPermNotAllow")
            return tuple(one for one in files if one is not None)
        if column.kind == "select" and written not in column.options:
            at = table.columns.index(column)
            options = (*column.options, str(written))
            table.columns[at] = Column(column.id, column.name, column.kind, options)
        if isinstance(written, str) and len(written) > 100_000:
            raise No(1254130, "TooLargeCell")
        return written

    def _fields(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        table = self._table(request, self.reads)
        items = []
        for at, column in enumerate(table.columns):
            kind, ui_type = KINDS[column.kind]
            options = [{"id": f"opt{n}", "name": name} for n, name in enumerate(column.options)]
            items.append({
                "field_id": column.id, "field_name": column.name, "type": kind, "ui_type": ui_type,
                "is_primary": at == 0, "property": {"options": options} if options else None,
            })  # fmt: skip
        return ok({"items": items, "has_more": False, "total": len(items)})

    def _subscribe(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._require_token(request)
        if request.query_params.get("file_type") != "bitable":
            raise No(1061002, "params error.", 400)
        self.subscribed.add(request.path_params["base"])
        return ok({})

    def _is_subscribed(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._require_token(request)
        return ok({"is_subscribe": request.path_params["base"] in self.subscribed})

    def _post_card(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        robot = request.path_params["robot"]
        if robot not in self.robots:
            raise No(19001, "param invalid: incoming webhook access token invalid")
        secret = self.robots[robot]
        if secret and not self._is_signed(content, secret):
            raise No(19021, "sign match fail or timestamp is not within one hour")
        if self.robot_minute.take(robot) or self.robot_second.take(robot):
            raise No(11232, "frequency limited")
        if content.get("msg_type") != "interactive" or not isinstance(content.get("card"), dict):
            raise No(9499, "Bad Request")
        self.world.post(message_of(content["card"], robot, self.world.now_ms()))
        return {
            "StatusCode": 0,
            "StatusMessage": "success",
            "code": 0,
            "data": {},
            "msg": "success",
        }

    def _is_signed(self, content: Mapping[str, Any], secret: str) -> bool:
        timestamp = str(content.get("timestamp", ""))
        if not timestamp.isascii() or not timestamp.isdecimal():
            return False
        fresh = abs(self.world.clock() - int(timestamp)) <= ROBOT_WINDOW_S
        return fresh and content.get("sign") == sign_feishu_robot(secret, int(timestamp))


def wrapped(
    event_type: str, event: Mapping[str, Any], *, token: str, now_ms: int
) -> dict[str, Any]:
    """An event in its version 2.0 envelope."""
    header = {
        "event_id": uuid.uuid4().hex,
        "event_type": event_type,
        "create_time": str(now_ms),
        "token": token,
        "app_id": "cli_demo",
        "tenant_key": "tk_demo",
    }
    return {"schema": "2.0", "header": header, "event": event}


def delivery_of(tool: FakeTool, content: Mapping[str, Any], key: str) -> Delivery:
    """A message as it is sent: with a key it is sealed, and signed if it is no challenge."""
    body = json.dumps(content, ensure_ascii=False).encode()
    headers = {"content-type": "application/json; charset=utf-8"}
    if key:
        sealed = encrypt_feishu(key, body, iv=secrets.token_bytes(16))
        body = json.dumps({"encrypt": sealed}).encode()
    if key and content.get("type") != "url_verification":
        now_s = round(tool.world.clock())
        headers |= sign_feishu_event(key, now_s, secrets.token_hex(8), body)
    return Delivery(tool.hook_url, headers, body, tool.name)
