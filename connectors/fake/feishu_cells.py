"""Bitable's cells, rows, filters and cards, read and written for the fake."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from connectors.fake.tool import Refused
from connectors.fake.world import Column, File, Link, Message, Row, Table, Value

COLUMNS: tuple[Column, ...] = (
    Column("fldTitle", "会议主题"),
    Column("fldNotes", "会议纪要"),
    Column("fldDecisions", "决议"),
    Column("fldHost", "主持人", "people"),
    Column("fldStatus", "播报状态", "select", ("待播报", "排队中", "播报中", "已完成", "失败")),
    Column("fldLink", "收听链接", "link"),
    Column("fldAudio", "音频文件", "files"),
    Column("fldSeconds", "时长", "number"),
    Column("fldError", "失败原因"),
)
SAMPLE_ZH: dict[str, Value] = {
    "会议主题": "产品周例会",
    "会议纪要": "李雷：接口联调比计划晚了两天，原因是测试环境不稳定。\n"
    "韩梅梅：我今天把环境迁到新的机器上，明天可以继续。",
    "决议": "- 周五发布 2.3 版本\n- 测试环境由运维统一维护",
    "主持人": ("李雷",),
}
SAMPLE_EN: dict[str, Value] = {
    "会议主题": "Design review",
    "会议纪要": "Alice: The player keeps its place when the network goes away.\n"
    "Bob: Then we can show it to the customer on Monday.",
    "决议": "- Ship the player on Friday",
    "主持人": ("Alice",),
}
ENDPOINT = """\
[endpoint.zhou_hui]
connector = "feishu"
base_url = "{url}"
base = "bascDemo01"
table = "tblDemo01"
timezone = "Asia/Shanghai"

[endpoint.zhou_hui.secrets]
app_id = "file:fake-feishu-app-id"
app_secret = "file:fake-feishu-app-secret"
encrypt_key = ["file:fake-feishu-encrypt-key"]
token = "file:fake-feishu-token"

[endpoint.zhou_hui.trigger]
column = "播报状态"
equals = "待播报"

[endpoint.zhou_hui.fields]
title = "会议主题"
text = ["会议纪要", "决议"]

[endpoint.zhou_hui.output]
status = "播报状态"
link = "收听链接"
audio = "音频文件"
duration = "时长"
error = "失败原因"

[endpoint.zhou_hui.notify]
connector = "feishu_robot"
url = "{url}/open-apis/bot/v2/hook/demo"
secret = "file:fake-feishu-robot-secret"
on = ["live", "failed"]
"""
KINDS = {
    "text": (1, "Text"), "number": (2, "Number"), "select": (3, "SingleSelect"),
    "date": (5, "DateTime"), "checkbox": (7, "Checkbox"), "people": (11, "User"),
    "link": (15, "Url"), "files": (17, "Attachment"), "formula": (20, "Formula"),
}  # fmt: skip
WRONG_VALUE = {
    "text": (1254060, "TextFieldConvFail"), "number": (1254061, "NumberFieldConvFail"),
    "select": (1254062, "SingleSelectFieldConvFail"), "date": (1254064, "DatetimeFieldConvFail"),
    "checkbox": (1254065, "CheckboxFieldConvFail"), "people": (1254066, "UserFieldConvFail"),
    "link": (1254068, "URLFieldConvFail"), "files": (1254069, "AttachFieldConvFail"),
}  # fmt: skip


class No(Refused):
    """An answer whose `code` is not 0."""

    def __init__(
        self, code: int, msg: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__({"code": code, "msg": msg}, status, headers)


def read_cell(column: Column, value: Value) -> Any:
    """A cell as the API and the events show it."""
    if isinstance(value, Link):
        return {"text": value.text, "link": value.url}
    if isinstance(value, tuple):
        return [_file(one) if isinstance(one, File) else _person(one) for one in value]
    if column.kind == "text" and value is not None:
        return [{"type": "text", "text": value}]
    if column.kind == "formula":
        return {"type": 1, "value": [{"type": "text", "text": str(value)}]}
    if column.kind == "date" and isinstance(value, (int, float)):
        return int(value)
    return value


def _file(file: File) -> dict[str, Any]:
    size = len(file.content)
    return {"file_token": file.token, "name": file.name, "size": size, "type": "audio/mpeg"}


def _person(name: str) -> dict[str, Any]:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"id": f"ou_{digest[:16]}", "name": name, "en_name": name, "email": ""}


def record_of(table: Table, row: Row, wants: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the API shows it; empty cells are left out."""
    fields = {
        column.name: read_cell(column, row.cells[column.id])
        for column in table.columns
        if column.id in row.cells
    }
    record: dict[str, Any] = {"record_id": row.id, "fields": fields}
    if wants.get("automatic_fields"):
        record |= {"created_time": row.created_ms, "last_modified_time": row.modified_ms}
    return record


def fits(table: Table, row: Row, wanted: Any) -> bool:
    """Whether a row fits a search's filter: `is` on select, text and checkbox columns."""
    if not wanted:
        return True
    results = []
    for condition in wanted["conditions"]:
        column = next((one for one in table.columns if one.name == condition["field_name"]), None)
        if column is None or condition["operator"] != "is" or len(condition["value"]) != 1:
            raise No(1254018, "InvalidFilter")
        cell = row.cells.get(column.id)
        said = ("true" if cell else "false") if column.kind == "checkbox" else str(cell or "")
        results.append(said == condition["value"][0])
    return all(results) if wanted.get("conjunction", "and") == "and" else any(results)


def _number(value: Any) -> Value:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number else None


def _link(value: Any) -> Value:
    if not isinstance(value, dict) or not isinstance(value.get("link"), str):
        return None
    return Link(str(value.get("text") or value["link"]), value["link"])


def _names(value: Any, key: str) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(
        isinstance(one, dict) and key in one for one in value
    ):
        return None
    return tuple(str(one[key]) for one in value)


WRITERS: Mapping[str, Callable[[Any], Value]] = {
    "text": lambda value: value if isinstance(value, str) else None,
    "select": lambda value: value if isinstance(value, str) else None,
    "number": _number,
    "date": lambda value: _number(value) if not isinstance(value, float) else None,
    "checkbox": lambda value: value if isinstance(value, bool) else None,
    "people": lambda value: _names(value, "id"),
    "link": _link,
    "files": lambda value: _names(value, "file_token"),
}


def message_of(card: Mapping[str, Any], robot: str, at_ms: int) -> Message:
    """What people see of a card."""
    title = card.get("header", {}).get("title", {}).get("content", "")
    texts, link, button = [], "", ""
    for element in card.get("elements", []):
        if element.get("tag") == "div":
            texts.append(element["text"]["content"])
        for action in element.get("actions", []):
            link, button = action.get("url", ""), action["text"]["content"]
    return Message("feishu", robot, title, "\n".join(texts), link, button, at_ms)


def ok(data: dict[str, Any]) -> dict[str, Any]:
    """An answer that is a yes."""
    return {"code": 0, "msg": "success", "data": data}
