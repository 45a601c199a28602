"""Rows of one table of Feishu or Lark Bitable: read, walked over, written.

Cells are read and written by the column's name, which is all the API knows there; a column that the
configuration names by its id is looked up in the live table.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from connectors.base import AudioFile, Column, ColumnKind, Cursor
from connectors.cells import Cell
from connectors.errors import ToolRefused, WrongColumn, nearest
from connectors.feishu_api import GONE, FeishuApi
from connectors.fields import Audio, OutputCell, Seconds, Text
from connectors.http import path_of

MAX_READ = 100
PAGE_ROWS = 200
OVERLAP_S = 120.0
MAX_WHOLE_BYTES = 20 << 20  # a larger file goes up in parts

_KINDS: Mapping[int, ColumnKind] = {
    1: "text", 2: "number", 3: "select", 4: "multi_select", 5: "time", 7: "checkbox", 11: "person",
    13: "text", 15: "url", 17: "attachment", 19: "computed", 20: "computed", 1001: "computed",
    1002: "computed", 1003: "computed", 1004: "computed", 1005: "computed",
}  # fmt: skip


class Row:
    """A row as the platform tells it; `cells` by column name."""

    __slots__ = ("cells", "key", "modified_ms")

    def __init__(self, record: Mapping[str, Any]) -> None:
        fields = record.get("fields")
        self.key = str(record.get("record_id", ""))
        self.cells: Mapping[str, Cell] = fields if isinstance(fields, dict) else {}
        modified = record.get("last_modified_time") or record.get("created_time") or 0
        self.modified_ms = modified if isinstance(modified, int) else 0

    @property
    def modified_at(self) -> datetime | None:
        """When it was last changed, by whoever."""
        return datetime.fromtimestamp(self.modified_ms / 1000, UTC) if self.modified_ms else None


@dataclass(frozen=True, slots=True)
class Filter:
    """Rows whose `column` (by name) holds one of the values; `several` for multi-selects."""

    column: str
    values: Sequence[str]
    several: bool = False

    def content(self) -> dict[str, Any]:
        """As the search takes it."""
        operator = "contains" if self.several else "is"
        conditions = [
            {"field_name": self.column, "operator": operator, "value": [value]}
            for value in self.values
        ]
        return {"conjunction": "or", "conditions": conditions}


class FeishuRows:
    """One table of one base."""

    def __init__(self, api: FeishuApi, base: str, table: str) -> None:
        self._api = api
        self._base = base
        self._address = "/bitable/v1" + path_of("apps", base, "tables", table)

    def columns(self) -> Sequence[Column]:
        """The table's columns as they are now."""
        found: list[Column] = []
        params: dict[str, str | int] = {"page_size": 100}
        while True:
            data = self._api.call("GET", f"{self._address}/fields", params=params)
            for item in data.get("items") or ():
                kind = _KINDS.get(item.get("type"), "other")
                found.append(Column(str(item["field_id"]), str(item["field_name"]), kind))
            if not data.get("has_more") or not data.get("page_token"):
                return found
            params["page_token"] = data["page_token"]

    def read(self, keys: Sequence[str]) -> Iterator[Row]:
        """The rows that exist and may be seen, in the order asked for."""
        for start in range(0, len(keys), MAX_READ):
            some = list(dict.fromkeys(keys[start : start + MAX_READ]))
            content = {"record_ids": some, "automatic_fields": True}
            data = self._api.call("POST", f"{self._address}/records/batch_get", content=content)
            rows = {row.key: row for row in map(Row, data.get("records") or ())}
            yield from (rows[key] for key in some if key in rows)

    def search(
        self, wanted: Filter | None, *, size: int, page_token: str = ""
    ) -> tuple[list[Row], str]:
        """A page of the rows that fit; gives the next page's token, empty at the end."""
        content: dict[str, Any] = {"automatic_fields": True}
        if wanted is not None:
            content["filter"] = wanted.content()
        params: dict[str, str | int] = {"page_size": size}
        if page_token:
            params["page_token"] = page_token
        path = f"{self._address}/records/search"
        data = self._api.call("POST", path, params=params, content=content)
        rows = [Row(item) for item in data.get("items") or ()]
        return rows, str(data.get("page_token") or "") if data.get("has_more") else ""

    def walk(
        self, wanted: Filter, cursor: Cursor, *, leave: bool
    ) -> Iterator[tuple[list[Row], Cursor, bool]]:
        """The rows that fit, page by page, with the cursor after each.

        The search knows no time of change. Where rows `leave`, because we set the column they are
        found by, every row that fits is given: there are few, and one that slipped from page to
        page while others left is still there at the next walk. Where they stay, those that did not
        change since `cursor` are left out.
        """
        state = cursor.value if isinstance(cursor.value, dict) else {}
        since, newest = int(state.get("since", 0)), int(state.get("newest", 0))
        oldest = 0.0 if leave else since - OVERLAP_S * 1000
        token = str(state.get("page_token", ""))
        while True:
            try:
                rows, following = self.search(wanted, size=PAGE_ROWS, page_token=token)
            except ToolRefused as error:
                if not token or isinstance(error, WrongColumn):
                    raise
                token = ""  # a page's token lives for minutes only; begin anew
                continue
            newest = max([newest, since, *(row.modified_ms for row in rows)])
            fresh = [row for row in rows if row.modified_ms >= oldest]
            value = {"since": since, "newest": newest, "page_token": following}
            done = {"since": newest}
            yield fresh, Cursor(value if following else done, OVERLAP_S), not following
            if not following:
                return
            token = following

    def update(self, key: str, fields: Mapping[str, Any], *, write_key: str) -> bool:
        """Set cells by column name; False if the row is gone.

        Args:
            write_key: the same when the same write is repeated, so that it happens once.
        """
        client_token = str(uuid.uuid5(uuid.NAMESPACE_URL, f"notecast:{write_key}"))
        params = {"client_token": client_token, "ignore_consistency_check": "true"}
        path = f"{self._address}/records{path_of(key)}"
        try:
            self._api.call("PUT", path, params=params, content={"fields": dict(fields)})
        except ToolRefused as error:
            if error.code in GONE:
                return False
            raise
        return True

    def written(self, cells: Mapping[str, OutputCell], columns: Sequence[Column]) -> dict[str, Any]:
        """Cells in the shapes that the columns take; uploads a file where one is wanted.

        Raises:
            WrongColumn: the table has no such column.
        """
        known = {name: column for column in columns for name in (column.id, column.name)}
        fields = {}
        for name, cell in cells.items():
            if name not in known:
                hint = nearest(name, [column.name for column in columns])
                raise WrongColumn(f"the table has no column {name!r}; {hint}", code="1254045")
            column = known[name]
            fields[column.name] = self._cell(cell, column.kind)
        return fields

    def _cell(self, cell: OutputCell, kind: ColumnKind) -> Any:
        if isinstance(cell, Seconds):
            return round(cell.seconds, 1) if kind == "number" else cell.clock
        if isinstance(cell, Text):
            text = cell.text or None
            return [text] if text and kind == "multi_select" else text
        if isinstance(cell, Audio) and kind == "attachment" and cell.file is not None:
            return [{"file_token": self.upload(cell.file)}]
        return {"text": cell.text, "link": cell.url} if kind == "url" else cell.url

    def upload(self, file: AudioFile) -> str:
        """Put a file where this base may attach it; gives its token."""
        content = file.load()
        where = {"file_name": file.name, "parent_type": "bitable_file", "parent_node": self._base}
        size = len(content)
        if size <= MAX_WHOLE_BYTES:
            fields = {**where, "size": str(size)}
            data = self._api.upload("/drive/v1/medias/upload_all", fields, file.name, content)
            return str(data["file_token"])
        data = self._api.call(
            "POST", "/drive/v1/medias/upload_prepare", content={**where, "size": size}
        )
        upload_id, block = str(data["upload_id"]), int(data["block_size"])
        parts = [content[start : start + block] for start in range(0, size, block)]
        for seq, part in enumerate(parts):
            fields = {"upload_id": upload_id, "seq": str(seq), "size": str(len(part))}
            self._api.upload("/drive/v1/medias/upload_part", fields, file.name, part)
        finish = {"upload_id": upload_id, "block_num": len(parts)}
        data = self._api.call("POST", "/drive/v1/medias/upload_finish", content=finish)
        return str(data["file_token"])
