"""The table of `notecast demo --with feishu`: a fake Bitable whose row is set ready and watched."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from connectors.fake.endpoints import Endpoint
from connectors.fake.feishu import BASE, FakeFeishu
from connectors.fake.server import Fake
from connectors.fake.world import Change, File, Link, Message, Value
from pipeline.errors import PipelineError

_ROW = "recDemo01"
_READY = "待播报"
_STATUS, _LINK = "fldStatus", "fldLink"
_SHOWN = ("fldTitle", _STATUS, _LINK, "fldAudio", "fldSeconds", "fldError")
_COLOURS = {"待播报": "yellow", "排队中": "blue", "播报中": "red", "已完成": "green", "失败": "red"}
_WAIT_S = 120.0


class FakeTable:
    """A Bitable of its own with one row.

    Attributes:
        text: what the row's notes column holds.
        history: each status the row has had, with seconds since it was set ready.
    """

    def __init__(self, note: str) -> None:
        title, _, rest = note.lstrip().partition("\n")
        self.title = title.lstrip("# ")
        self.text = rest.strip() if title.startswith("#") and rest.strip() else note
        self.history: list[dict[str, Any]] = []
        self._fake = Fake([FakeFeishu])
        self._tool = self._fake.tool(FakeFeishu)
        self._table = self._tool.add_notes_table()
        self._began = time.monotonic()
        self._open = ExitStack()
        cells: dict[str, Value] = {"会议主题": self.title, "会议纪要": self.text}
        self._fake.world.add_row(self._table, _ROW, cells)
        self._fake.world.observers.append(self._note)

    def __enter__(self) -> FakeTable:
        self._open.enter_context(self._fake.running())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    @property
    def url(self) -> str:
        """The page that shows the table."""
        return self._fake.url

    @property
    def endpoint(self) -> Endpoint:
        """The table for `connectors.toml`."""
        return self._tool.endpoint(self.url)

    def connect(self, notecast_url: str) -> None:
        """Tell the fake where Notecast is, and wait until that has subscribed to the base."""
        self._tool.hook_url = f"{notecast_url}/hooks/{self.endpoint.name}"
        self._until(lambda: BASE in self._tool.subscribed, "Notecast did not subscribe to the base")

    def send(self) -> str:
        """Set the row ready, as a person does; gives the link that Notecast writes into it."""
        self._began = time.monotonic()
        self._fake.world.edit(self._table, _ROW, {_STATUS: _READY})
        self._until(lambda: self._cell(_LINK) is not None, "the row got no link")
        link = self._cell(_LINK)
        assert isinstance(link, Link)
        return link.url

    def wait(self, status: str) -> None:
        """Wait until the row says so."""
        self._until(lambda: self._cell(_STATUS) == status, f"the row did not become {status}")

    def lines(self) -> list[RenderableType]:
        """The row as it is now."""
        return [self._grid(), Text("")]

    def show(self, console: Console) -> None:
        """Print the row, and when it changed."""
        console.print(self._grid())
        steps = " → ".join(f"{one['status']} {one['at_s']:.1f} s" for one in self.history)
        console.print(f"its status: {escape(steps)}", highlight=False)
        for message in self._fake.world.messages:
            console.print(f"in the group: {escape(message.title)}", highlight=False)

    def _grid(self) -> Table:
        grid = Table(box=box.ROUNDED, title=self._table.name, title_justify="left")
        columns = [column for column in self._table.columns if column.id in _SHOWN]
        for column in columns:
            grid.add_column(column.name, overflow="ellipsis", no_wrap=True)
        grid.add_row(*(_shown(column.id, self._cell(column.id)) for column in columns))
        return grid

    def _cell(self, column: str) -> Value:
        return self._table.rows[_ROW].cells.get(column)

    def _note(self, event: Change | Message) -> None:
        if isinstance(event, Change) and _STATUS in event.after:
            at_s = round(time.monotonic() - self._began, 3)
            self.history.append({"status": str(event.after[_STATUS]), "at_s": at_s})

    def _until(self, holds: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not holds():
            if time.monotonic() > deadline:
                raise PipelineError(f"{otherwise} within {_WAIT_S:.0f} s")
            time.sleep(0.02)


def _shown(column: str, value: Value) -> Text:
    if column == _STATUS:
        colour = _COLOURS.get(str(value), "")
        return Text(f" {value} ", f"bold white on {colour}") if colour else Text("")
    if isinstance(value, Link):
        return Text(value.text, "underline")
    if isinstance(value, tuple):
        names = (one.name if isinstance(one, File) else one for one in value)
        return Text(", ".join(names))
    return Text("" if value is None else str(value))
