"""Rows of Google Sheets, Airtable and Notion from Ready to Done, against a running installation.

The tools are the fakes: their hooks are signed like the real ones, their tables emit events for our
own writes too, and nothing but HTTP lies between them and us.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from connectors.airtable import Airtable
from connectors.fake.airtable import BASE, FakeAirtable
from connectors.fake.google_sheets import FakeGoogleSheets
from connectors.fake.notion import FakeNotion
from connectors.fake.server import Fake
from connectors.fake.slack import FakeSlack
from connectors.fake.tool import FakeTool
from connectors.fake.world import Table
from connectors.google_sheets import GoogleSheets
from connectors.notion import Notion
from connectors.pace import Pace
from connectors.slack import Slack
from pipeline import models
from pipeline.errands import Errands
from tests.pipeline.studio import Studio, open_studio


@dataclass(frozen=True)
class Kind:
    """A tool, its connector, and what its sample table calls title and notes."""

    fake: type[FakeTool]
    connector: type[Any]
    title: str
    notes: str


SHEETS = Kind(FakeGoogleSheets, GoogleSheets, "Title", "Notes")
AIRTABLE = Kind(FakeAirtable, Airtable, "Title", "Notes")
NOTION = Kind(FakeNotion, Notion, "Name", "")
KINDS = (SHEETS, AIRTABLE, NOTION)


class Works:
    """The tool, its table, and the installation that serves it."""

    def __init__(self, kind: Kind, fake: Fake, tool: Any, table: Table, studio: Studio) -> None:
        self.kind = kind
        self.fake = fake
        self.tool = tool
        self.table = table
        self.house = studio.house

    def add(self, key: str, text: str, status: str = "Draft") -> None:
        """A person adds a row, with the key that the sheet's script would have given it."""
        cells = {self.kind.title: key, "Status": status}
        if self.kind.notes:
            cells[self.kind.notes] = text
        else:
            self.tool.write_page(key, [text])
        if self.kind is SHEETS:
            cells["notecast_id"] = key
        self.fake.world.add_row(self.table, key, cells)

    def cell(self, key: str, column: str) -> Any:
        found = self.table.column(column)
        assert found is not None
        return self.table.rows[key].cells.get(found.id)

    def count(self, status: str) -> int:
        return Counter(self.cell(key, "Status") for key in self.table.rows)[status]

    def wait(self, what: str, is_true: Callable[[], bool], timeout_s: float = 90.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_true():
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
            time.sleep(0.05)

    def episodes(self) -> int:
        with self.house.database.read() as connection:
            query = sa.select(sa.func.count()).select_from(models.episode)
            return int(connection.execute(query).scalar_one())

    def walk(self) -> None:
        """The timer comes round, and the walk ends."""
        before = self._walked()
        self.house.change(models.duty, models.duty.c.kind == "walk", next_ms=0)
        self.wait("the walk", lambda: self._walked() > before)

    def _walked(self) -> int:
        with self.house.database.read() as connection:
            query = sa.select(models.duty.c.done_ms).where(models.duty.c.kind == "walk")
            return connection.execute(query).scalar() or 0


@contextmanager
def open_works(kind: Kind, directory: Path, template: Path) -> Iterator[Works]:
    """A table without rows, and an installation that has just started."""
    with Fake([kind.fake]).running() as fake:
        tool: Any = fake.tool(kind.fake)
        tool.add_samples()
        (table,) = fake.world.tables.values()
        table.rows.clear()
        endpoint = tool.endpoint(fake.url)
        for name, secret in endpoint.secrets.items():
            (directory / name).write_text(secret)
        with open_studio(directory, template, connectors=endpoint.toml) as studio:
            tool.hook_url = f"{studio.url}/hooks/{endpoint.name}"
            public = studio.services.settings.effective_public_url
            works = Works(kind, fake, tool, table, studio)
            runner = Errands(studio.services, studio.house.worker)
            runner.start()
            try:
                works.wait("the first walk", lambda: works._walked() > 0)
                if kind is AIRTABLE:
                    works.wait("the webhook", lambda: bool(tool.webhooks.get(BASE)))
                    (webhook,) = tool.webhooks[BASE].values()
                    assert webhook.url == f"{public}/hooks/{endpoint.name}"
                    webhook.url = tool.hook_url  # the test's server has a port of its own
                yield works
            finally:
                runner.close()


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No budgets on either side; they have tests of their own."""
    for kind in KINDS:
        monkeypatch.setattr(kind.connector, "bucket", lambda *_args: None)
    monkeypatch.setattr(Pace, "wait", lambda _self: None)
    limits = {FakeGoogleSheets: ("reads", "writes"), FakeAirtable: ("budget",)}
    for fake, names in {**limits, FakeNotion: ("budget",)}.items():
        made = fake.__init__

        def generous(tool: Any, *args: Any, _made: Any = made, _names: Any = names) -> None:
            _made(tool, *args)
            for name in _names:
                getattr(tool, name).limit = 100_000

        monkeypatch.setattr(fake, "__init__", generous)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.connector.name)
def test_row_that_is_set_to_ready_shows_each_state_by_itself(
    kind: Kind, tmp_path: Path, sqlite_template: Path
) -> None:
    with open_works(kind, tmp_path, sqlite_template) as works:
        works.add("recOne", "Ship on Friday.")
        works.fake.world.edit(works.table, "recOne", {"Status": "Ready"})
        works.wait("the row to be done", lambda: works.count("Done") == 1)

        for column in ("Listen", "Audio", "Length"):
            assert works.cell("recOne", column), column
        works.fake.courier.settle()
        works.walk()
        works.fake.courier.settle()
        assert works.episodes() == 1, "what we wrote ourselves came back as events"
        assert {outcome.status for outcome in works.fake.courier.outcomes} <= {200, 202}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.connector.name)
def test_rows_edited_while_the_door_was_shut_are_found_by_a_walk_and_spoken_once(
    kind: Kind, tmp_path: Path, sqlite_template: Path, unhurried: None
) -> None:
    with open_works(kind, tmp_path, sqlite_template) as works:
        lost: list[Any] = []
        send = works.fake.courier.send
        works.fake.courier.send = lost.append  # type: ignore[method-assign]
        for n in range(50):
            works.add(f"rec{n:02}", f"Note number {n}.")
            works.fake.world.edit(works.table, f"rec{n:02}", {"Status": "Ready"})
        assert works.episodes() == 0

        works.walk()
        works.wait("50 rows to be done", lambda: works.count("Done") == 50)
        works.fake.courier.send = send  # type: ignore[method-assign]
        for delivery in lost:
            send(delivery)
        works.fake.courier.settle(30.0)
        works.walk()

        assert len(lost) >= 50
        assert works.episodes() == 50
        assert works.count("Done") == 50


def test_message_of_slack_is_read_aloud_and_its_reader_told(
    tmp_path: Path, sqlite_template: Path
) -> None:
    with Fake([FakeSlack]).running() as fake:
        tool = fake.tool(FakeSlack)
        endpoint = tool.endpoint(fake.url)
        for name, secret in endpoint.secrets.items():
            (tmp_path / name).write_text(secret)
        with open_studio(tmp_path, sqlite_template, connectors=endpoint.toml) as studio:
            tool.hook_url = f"{studio.url}/hooks/desk"
            runner = Errands(studio.services, studio.house.worker)
            runner.start()
            try:
                root = tool.say("U0ALICE", "We ship on Friday.")
                tool.say("U0BOB", "Then I write the note.", thread=root)
                for delivery in (tool.command("Ship it."), tool.mention("", thread=root)):
                    fake.courier.send(delivery)
                    fake.courier.send(delivery)  # Slack repeats what it thinks was lost
                works = Works(
                    Kind(FakeSlack, Slack, "", ""), fake, tool, Table("", "", "", "", []), studio
                )
                (response,) = tool.responses.values()
                works.wait("the author to be told", lambda: bool(response.posted))
                works.wait(
                    "the reply to say done",
                    lambda: tool.channels["C0DEMO"][-1]["text"].startswith("Read aloud ("),
                )
            finally:
                runner.close()
        answers = [outcome.answer.decode() for outcome in fake.courier.outcomes]
        assert "Queued. <http" in answers[0]
        assert works.episodes() == 2
        replies = [m for m in tool.channels["C0DEMO"] if "bot_id" in m]
        assert len(replies) == 1
