"""Notion as `connectors/notion.py` knows it: data sources, pages, blocks, events, limits.

Shapes and limits are those of the API's reference, version 2025-09-03, and of notion-client, which
is a judge of this file in the tests.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import quote, unquote

from fastapi import APIRouter, Request

from connectors.fake.courier import Delivery
from connectors.fake.endpoints import Endpoint
from connectors.fake.faults import Window
from connectors.fake.tool import FakeTool, Refused, add_route
from connectors.fake.world import Change, Column, Kind, Link, Row, Table, Value, World
from connectors.signing import sign_notion

DATA_SOURCE = "11111111-2222-4333-8444-555555555555"
DATABASE = "99999999-2222-4333-8444-555555555555"
PAGE = "aaaaaaaa-0000-4000-8000-000000000001"
BOT = "b0b0b0b0-0000-4000-8000-000000000001"
PERSON = "c0c0c0c0-0000-4000-8000-000000000001"
VERSION = "2025-09-03"

_TYPES: Mapping[Kind, str] = {
    "text": "rich_text",
    "select": "select",
    "link": "url",
    "files": "files",
    "number": "number",
    "date": "date",
    "checkbox": "checkbox",
    "people": "people",
    "formula": "formula",
}
STATES = ("Draft", "Ready", "Queued", "Live", "Done", "Failed")
COLUMNS = (
    Column("title", "Name"),
    Column("st:a", "Status", "select", STATES),
    Column("li%b", "Listen", "link"),
    Column("au;c", "Audio", "files"),
    Column("ln=d", "Length", "number"),
    Column("er~e", "Error"),
)
SAMPLE = (
    "# Decisions",
    "- Ship on Friday",
    "# Discussion",
    "Alice: The tests are green.",
    "Bob: Then I write the release note.",
    "# Action items",
    "- [ ] Bob writes the release note",
)

ENDPOINT = """\
[endpoint.sync_notion]
connector = "notion"
base_url = "{url}"
data_source = "11111111-2222-4333-8444-555555555555"

[endpoint.sync_notion.secrets]
token = "file:fake-notion-token"
verification = ["file:fake-notion-verification"]

[endpoint.sync_notion.trigger]
column = "Status"
equals = "Ready"

[endpoint.sync_notion.fields]
title = "Name"
text = "@page"

[endpoint.sync_notion.output]
status = "Status"
link = "Listen"
audio = "Audio"
error = "Error"
duration = "Length"
"""


class FakeNotion(FakeTool):
    """One workspace with one integration.

    Attributes:
        token: of the integration.
        verification: what events are signed with; told by `handshake`.
        status: columns of the kind "select" that are a status property: its options are fixed.
        blocks: what is in a page or a block, by its id.
        shared: False answers everything with 404, as for a database without the connection.
    """

    name: ClassVar[str] = "notion"
    title: ClassVar[str] = "Notion"

    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(world)
        self.token = "ntn_demo_token"  # noqa: S105
        self.verification = "secret_demo_verification"
        self.status = {"st:a"}
        self.blocks: dict[str, list[dict[str, Any]]] = {}
        self.shared = True
        self.budget = Window(9, 3.0, clock)

    # the world ----------------------------------------------------------------------------------

    def add_samples(self) -> None:
        """A data source with a page that waits to be set ready."""
        table = self.add_notes_source()
        self.world.add_row(table, PAGE, {"Name": "Weekly sync", "Status": "Draft"})
        self.write_page(PAGE, SAMPLE)

    def add_notes_source(self, source: str = DATA_SOURCE) -> Table:
        """An empty data source with the properties of `docs/connect-notion.md`."""
        return self.world.add_table(self.name, source, "", "Notes", COLUMNS)

    def write_page(self, page: str, lines: Sequence[str]) -> None:
        """Put lines of Markdown on a page, as blocks."""
        self.blocks[page] = [_block(line) for line in lines]

    def endpoint(self, url: str) -> Endpoint:
        """The sample data source."""
        secrets = {
            "fake-notion-token": self.token,
            "fake-notion-verification": self.verification,
        }
        return Endpoint("sync_notion", ENDPOINT.replace("{url}", url), secrets)

    def events(self, change: Change) -> list[Delivery]:
        """What Notion tells: a page of the data source, never its content."""
        if not self.hook_url:
            return []
        kinds = {"added": "page.created", "deleted": "page.deleted"}
        event_type = kinds.get(change.action, "page.properties_updated")
        changed = sorted(quote(one, safe="") for one in change.after)
        author = {"id": PERSON if change.by == "person" else BOT}
        author["type"] = "person" if change.by == "person" else "bot"
        return [self.deliver(self.event(event_type, change.row_id, author, changed, change.table))]

    def event(
        self,
        event_type: str,
        page: str,
        author: Mapping[str, str],
        changed: Sequence[str],
        table: Table,
    ) -> dict[str, Any]:
        """An event's content."""
        parent = {"id": DATABASE, "type": "database", "data_source_id": table.container}
        data: dict[str, Any] = {"parent": parent}
        if event_type == "page.properties_updated":
            data["updated_properties"] = list(changed)
        return {
            "id": str(uuid.uuid4()),
            "timestamp": _iso(self.world.clock()),
            "workspace_id": "ws-demo",
            "subscription_id": "sub-demo",
            "integration_id": "int-demo",
            "type": event_type,
            "authors": [dict(author)],
            "attempt_number": 1,
            "entity": {"id": page, "type": "page"},
            "data": data,
        }

    def deliver(self, content: Mapping[str, Any]) -> Delivery:
        """A signed message to the hook."""
        body = json.dumps(content).encode()
        headers = {"content-type": "application/json", **sign_notion(self.verification, body)}
        return Delivery(self.hook_url, headers, body, "notion")

    def handshake(self) -> Delivery:
        """What Notion posts when an address is entered."""
        return self.deliver({"verification_token": self.verification})

    # routes -------------------------------------------------------------------------------------

    def routes(self) -> APIRouter:
        """The API's addresses."""
        router = APIRouter(prefix="/v1")
        add_route(self, router, "GET", "/users/me", self._me)
        add_route(self, router, "GET", "/databases/{database}", self._database)
        add_route(self, router, "GET", "/data_sources/{source}", self._source)
        add_route(self, router, "POST", "/data_sources/{source}/query", self._query)
        add_route(self, router, "GET", "/pages/{page}", self._page)
        add_route(self, router, "PATCH", "/pages/{page}", self._update)
        add_route(self, router, "GET", "/blocks/{block}/children", self._children)
        return router

    def bad_request(self) -> Refused:
        return _no("invalid_json", 400)

    def _enter(self, request: Request) -> None:
        """Check token, version and budget."""
        if request.headers.get("authorization") != f"Bearer {self.token}":
            raise _no("unauthorized", 401)
        if request.headers.get("notion-version", "") < VERSION:
            raise _no("missing_version", 400)
        wait_s = self.budget.take()
        if wait_s:
            raise _no("rate_limited", 429, headers={"Retry-After": str(max(1, round(wait_s)))})
        if not self.shared:
            raise _no("object_not_found", 404)

    def _me(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request)
        return {"object": "user", "id": BOT, "type": "bot", "name": "Notecast", "bot": {}}

    def _database(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request)
        if request.path_params["database"] != DATABASE:
            raise _no("object_not_found", 404)
        found = [
            {"id": key[1], "name": table.name}
            for key, table in self.world.tables.items()
            if key[0] == self.name
        ]
        return {"object": "database", "id": DATABASE, "data_sources": found}

    def _source(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        table = self._table(request)
        properties = {column.name: self._property(column) for column in table.columns}
        return {"object": "data_source", "id": table.container, "properties": properties}

    def _query(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        table = self._table(request)
        edited = (content.get("filter") or {}).get("last_edited_time") or {}
        floor = str(edited.get("on_or_after", ""))
        size = min(int(content.get("page_size", 100)), 100)
        with self.world.lock:
            pages = [self._shown(table, row) for row in table.rows.values()]
        pages = [page for page in pages if page["last_edited_time"] >= floor]
        if content.get("sorts"):
            pages.sort(key=lambda page: str(page["last_edited_time"]))
        ids = [page["id"] for page in pages]
        following = content.get("start_cursor")
        if following and following not in ids:
            raise _no("validation_error", 400)
        start = ids.index(following) if following else 0
        end = start + size
        return {
            "object": "list",
            "type": "page_or_data_source",
            "page_or_data_source": {},
            "results": pages[start:end],
            "has_more": end < len(pages),
            "next_cursor": ids[end] if end < len(pages) else None,
        }

    def _page(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request)
        return self._shown(*self._find(request))

    def _update(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request)
        table, row = self._find(request)
        cells: dict[str, Value] = {}
        for name, value in (content.get("properties") or {}).items():
            column = table.column(name) or table.column(unquote(name))
            if column is None:
                raise _no("validation_error", 400, f"{name} is not a property that exists.")
            cells[column.id] = self._written(column, value)
        self.world.edit(table, row.id, cells, by="api")
        return self._shown(table, row)

    def _children(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._enter(request)
        blocks = self.blocks.get(request.path_params["block"], [])
        size = min(int(request.query_params.get("page_size", "100")), 100)
        start = int(request.query_params.get("start_cursor", "0"))
        shown = [
            {**block, "has_children": bool(self.blocks.get(block["id"]))}
            for block in blocks[start : start + size]
        ]
        has_more = start + size < len(blocks)
        following = str(start + size) if has_more else None
        return {"object": "list", "results": shown, "has_more": has_more, "next_cursor": following}

    def _table(self, request: Request) -> Table:
        self._enter(request)
        table = self.world.tables.get((self.name, request.path_params["source"], ""))
        if table is None:
            raise _no("object_not_found", 404)
        return table

    def _find(self, request: Request) -> tuple[Table, Row]:
        page = request.path_params["page"]
        for key, table in self.world.tables.items():
            if key[0] == self.name and page in table.rows:
                return table, table.rows[page]
        raise _no("object_not_found", 404)

    # cells --------------------------------------------------------------------------------------

    def _type(self, column: Column) -> str:
        if column.id == "title":
            return "title"
        return "status" if column.id in self.status else _TYPES[column.kind]

    def _property(self, column: Column) -> dict[str, Any]:
        kind = self._type(column)
        options = [{"id": name.lower(), "name": name} for name in column.options]
        detail: dict[str, Any] = {"options": options} if kind in ("select", "status") else {}
        return {
            "id": quote(column.id, safe=""),
            "name": column.name,
            "type": kind,
            kind: detail,
        }

    def _shown(self, table: Table, row: Row) -> dict[str, Any]:
        """A page; the time of its last edit is rounded down to the minute."""
        properties = {
            column.name: {
                "id": quote(column.id, safe=""),
                "type": self._type(column),
                self._type(column): _cell(self._type(column), row.cells.get(column.id)),
            }
            for column in table.columns
        }
        parent = {"type": "data_source_id", "data_source_id": table.container}
        return {
            "object": "page",
            "id": row.id,
            "created_time": _iso(row.created_ms // 60_000 * 60),
            "last_edited_time": _iso(row.modified_ms // 60_000 * 60),
            "parent": {**parent, "database_id": DATABASE},
            "archived": False,
            "in_trash": False,
            "properties": properties,
            "url": f"https://www.notion.so/{row.id.replace('-', '')}",
        }

    def _written(self, column: Column, value: Any) -> Value:
        """A cell as it is written, or the refusal of its type."""
        kind = self._type(column)
        if not isinstance(value, dict) or kind not in value or kind == "formula":
            raise _no("validation_error", 400, f"{column.name} is expected to be {kind}.")
        inner = value[kind]
        if inner is None or inner == []:
            return None
        match kind, inner:
            case ("status", {"name": str(name)}) if name not in column.options:
                raise _no("validation_error", 400, f'Status option "{name}" does not exist.')
            case ("status" | "select", {"name": str(name)}):
                return name
            case ("url", str(url)):
                return Link(url, url)
            case ("number", int() | float()):
                return float(inner)
            case ("rich_text" | "title", [*pieces]):
                return "".join(str(piece["text"]["content"]) for piece in pieces)
            case ("files", [{"name": str(name), "external": {"url": str(url)}}]):
                return Link(name, url)
        raise _no("validation_error", 400, f"{column.name} is expected to be {kind}.")


def rich(text: str, **more: Any) -> dict[str, Any]:
    """A piece of rich text; `bold`, `href` as wished."""
    return {
        "type": "text",
        "text": {"content": text, "link": None},
        "annotations": {"bold": bool(more.get("bold")), "italic": False, "code": False},
        "plain_text": text,
        "href": more.get("href"),
    }


def _block(line: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for prefix, kind in (
        ("- [ ] ", "to_do"),
        ("- ", "bulleted_list_item"),
        ("# ", "heading_1"),
        ("## ", "heading_2"),
        ("", "paragraph"),
    ):
        if line.startswith(prefix):
            content["rich_text"] = [rich(line.removeprefix(prefix))]
            if kind == "to_do":
                content["checked"] = False
            break
    return {"object": "block", "id": str(uuid.uuid4()), "type": kind, kind: content}


def _cell(kind: str, value: Value) -> Any:
    match value:
        case None:
            return [] if kind in ("title", "rich_text", "files", "people") else None
        case str() if kind in ("title", "rich_text"):
            return [rich(value)]
        case str() if kind in ("status", "select"):
            return {"id": value.lower(), "name": value, "color": "default"}
        case str() if kind == "formula":
            return {"type": "string", "string": value}
        case Link(name, url) if kind == "files":
            return [{"name": name, "type": "external", "external": {"url": url}}]
        case Link(_, url):
            return url
        case tuple():
            return [{"object": "user", "id": f"usr-{name}", "name": str(name)} for name in value]
        case int() | float() if kind == "date":
            return {"start": _iso(value / 1000), "end": None, "time_zone": None}
    return value


def _no(
    code: str, status: int, message: str = "", headers: Mapping[str, str] | None = None
) -> Refused:
    content = {"object": "error", "status": status, "code": code, "message": message or code}
    return Refused(content, status, headers)


def _iso(at_s: float) -> str:
    at = datetime.fromtimestamp(at_s, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
