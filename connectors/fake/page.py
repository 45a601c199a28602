"""The page that shows the fake's tables while they change, and lets a person edit them.

GET  /                    the page           GET /_fake/state        everything, as JSON
GET  /_fake/live          server-sent events: `row`, `gone`, `message`
PUT  /_fake/rows          a person edits     POST /_fake/faults      the next calls go wrong
GET  /_fake/files/{token} an uploaded file
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.responses import FileResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field

from connectors.fake.world import Change, Column, File, Link, Message, Row, Table, Value, World

if TYPE_CHECKING:
    from connectors.fake.server import Fake

_STATIC = Path(__file__).parent / "static"
_KEEP_ALIVE_S = 15.0
_SOUND = {"mp3": "audio/mpeg", "ogg": "audio/ogg", "opus": "audio/ogg", "wav": "audio/wav"}


class Edit(BaseModel):
    """A person's edit: cells by column id, as typed."""

    model_config = ConfigDict(extra="forbid")
    tool: str
    container: str
    table: str
    row: str
    cells: dict[str, str | float | bool]


class FaultIn(BaseModel):
    """See `faults.Fault`."""

    model_config = ConfigDict(extra="forbid")
    on: str
    status: int = 500
    body: Any = None
    headers: dict[str, str] = Field(default_factory=dict)
    times: int = Field(default=1, ge=1, le=100_000)
    carried_out: bool = False


class Feed:
    """Passes the world's changes on to every open page."""

    def __init__(self, world: World) -> None:
        self.titles: Mapping[str, str] = {}
        self._world = world
        self._lock = threading.Lock()
        self._readers: set[tuple[asyncio.AbstractEventLoop, asyncio.Queue[str | None]]] = set()
        self._is_closed = False
        world.observers.append(self._pass_on)

    def close(self) -> None:
        """End the open pages' streams; they are not opened again."""
        with self._lock:
            self._is_closed = True
            readers, self._readers = self._readers, set()
        for loop, queue in readers:
            loop.call_soon_threadsafe(queue.put_nowait, None)

    async def lines(self) -> AsyncIterator[str]:
        """Server-sent events until the reader goes or the fake ends."""
        reader = (asyncio.get_running_loop(), asyncio.Queue[str | None]())
        with self._world.lock, self._lock:  # nothing may happen between the two
            if self._is_closed:
                return
            self._readers.add(reader)
            begin = _sse("state", self.state())
        try:
            yield begin
            while True:
                try:
                    text = await asyncio.wait_for(reader[1].get(), _KEEP_ALIVE_S)
                except TimeoutError:
                    text = ": still here\n\n"
                if text is None:
                    return
                yield text
        finally:
            with self._lock:
                self._readers.discard(reader)

    def state(self) -> dict[str, Any]:
        """Everything the page shows."""
        with self._world.lock:
            tables = [_table(table) for table in self._world.tables.values()]
            messages = [asdict(message) for message in self._world.messages[-50:]]
        return {"tools": self.titles, "tables": tables, "messages": messages}

    def _pass_on(self, event: Change | Message) -> None:
        text = _event(event)
        with self._lock:
            for loop, queue in self._readers:
                loop.call_soon_threadsafe(queue.put_nowait, text)


def routes(fake: Fake, feed: Feed) -> APIRouter:
    """The page's own addresses; none of them belongs to a tool."""
    router = APIRouter()
    world = fake.world

    @router.get("/")
    def page() -> FileResponse:
        return FileResponse(_STATIC / "tables.html")

    @router.get("/_fake/state")
    def state() -> dict[str, Any]:
        return feed.state()

    @router.get("/_fake/live")
    def live() -> StreamingResponse:
        return StreamingResponse(
            feed.lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    @router.put("/_fake/rows")
    def edit(wanted: Edit) -> dict[str, Any]:
        return _edit(world, wanted)

    @router.post("/_fake/faults")
    def add_fault(fault: FaultIn) -> dict[str, Any]:
        fake.fail(**fault.model_dump())
        return {"ok": True}

    @router.get("/_fake/files/{token}")
    def file(token: str) -> Response:
        found = _find_file(world, token)
        if found is None:
            raise HTTPException(404, "no such file")
        kind = _SOUND.get(found.name.rpartition(".")[2], "application/octet-stream")
        return Response(
            found.content, media_type=kind, headers={"X-Content-Type-Options": "nosniff"}
        )

    return router


def mount_static(app: FastAPI) -> None:
    """The page's script and style."""
    app.mount("/_fake/static", StaticFiles(directory=_STATIC))


def _edit(world: World, wanted: Edit) -> dict[str, Any]:
    table = world.tables.get((wanted.tool, wanted.container, wanted.table))
    if table is None or wanted.row not in table.rows:
        raise HTTPException(404, "no such row")
    cells = {}
    for column_id, typed in wanted.cells.items():
        column = table.column(column_id)
        if column is None:
            raise HTTPException(404, f"no column {column_id}")
        cells[column_id] = _typed(column, typed)
    world.edit(table, wanted.row, cells)
    return {"row": _row(table.rows[wanted.row])}


def _event(event: Change | Message) -> str:
    if isinstance(event, Message):
        return _sse("message", asdict(event))
    where = {"key": list(event.table.key), "by": event.by}
    if event.action == "deleted":
        return _sse("gone", where | {"row": event.row_id})
    row = event.table.rows[event.row_id]
    return _sse("row", where | {"row": _row(row), "changed": sorted(event.after)})


def _sse(name: str, content: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n"


def _table(table: Table) -> dict[str, Any]:
    return {
        "key": list(table.key),
        "name": table.name,
        "columns": [asdict(column) for column in table.columns],
        "rows": [_row(row) for row in table.rows.values()],
    }


def _row(row: Row) -> dict[str, Any]:
    cells = {column: _shown(value) for column, value in row.cells.items()}
    return {"id": row.id, "cells": cells, "modified_ms": row.modified_ms}


def _shown(value: Value) -> Any:
    if isinstance(value, Link):
        return {"text": value.text, "url": value.url}
    if isinstance(value, tuple):
        return [
            {"name": one.name, "url": f"/_fake/files/{one.token}", "bytes": len(one.content)}
            if isinstance(one, File)
            else one
            for one in value
        ]
    return value


def _typed(column: Column, typed: str | float | bool) -> Value:
    """What a person typed, as the column holds it."""
    if column.kind in ("files", "formula"):
        raise HTTPException(422, f"{column.name}: cannot be typed in")
    if typed == "":
        return None
    if column.kind == "checkbox":
        return typed in (True, "true", "1", "on")
    if column.kind in ("number", "date"):
        try:
            return float(typed)
        except ValueError:
            raise HTTPException(422, f"{column.name}: not a number") from None
    text = str(typed)
    if column.kind == "people":
        return tuple(name.strip() for name in text.split(",") if name.strip())
    return Link(text, text) if column.kind == "link" else text


def _find_file(world: World, token: str) -> File | None:
    with world.lock:
        cells = [
            value
            for table in world.tables.values()
            for row in table.rows.values()
            for value in row.cells.values()
            if isinstance(value, tuple)
        ]
    files = (one for value in cells for one in value if isinstance(one, File))
    return next((one for one in files if one.token == token), None)
