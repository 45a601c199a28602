"""A table in a tool, a running installation, and nothing between them but HTTP.

The tool is the fake Feishu, which counts calls, refuses what comes too fast or side by side, and
sends its events encrypted and signed like the real one.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from connectors.base import Budget
from connectors.fake.feishu import FakeFeishu
from connectors.fake.server import Fake
from connectors.fake.world import Change, Table
from pipeline import models
from pipeline.errands import Errands
from tests.pipeline.studio import Studio, open_studio

STATUS, LINK, NOTES, TITLE = "播报状态", "收听链接", "会议纪要", "会议主题"
READY, QUEUED, LIVE, DONE = "待播报", "排队中", "播报中", "已完成"


class Works:
    """The tool, its table, and the installation that serves it."""

    def __init__(self, fake: Fake, table: Table, studio: Studio) -> None:
        self.fake = fake
        self.feishu = fake.tool(FakeFeishu)
        self.table = table
        self.studio = studio
        self.house = studio.house
        self.changes: list[Change] = []
        fake.world.observers.append(self._note)

    def _note(self, event: object) -> None:
        if isinstance(event, Change):
            self.changes.append(event)

    def add(self, key: str, notes: str, status: str = READY, **cells: str) -> None:
        """A person adds a row."""
        self.fake.world.add_row(self.table, key, {NOTES: notes, STATUS: status, **cells})

    def status(self, key: str) -> str:
        return str(self.table.rows[key].cells.get("fldStatus") or "")

    def wrote(self, key: str) -> list[str]:
        """What we wrote into the status column of a row, in order."""
        return [
            str(one.after["fldStatus"])
            for one in self.changes
            if one.row_id == key and one.by != "person" and "fldStatus" in one.after
        ]

    def wait(self, what: str, is_true: Callable[[], bool], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_true():
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
            time.sleep(0.05)

    def wait_done(self, count: int, timeout_s: float = 60.0) -> None:
        self.wait(
            f"{count} rows to be done",
            lambda: Counter(map(self.status, self.table.rows))[DONE] >= count,
            timeout_s,
        )

    def episodes(self) -> int:
        with self.house.database.read() as connection:
            query = sa.select(sa.func.count()).select_from(models.episode)
            return int(connection.execute(query).scalar_one())

    def walk(self) -> None:
        """The timer comes round."""
        self.house.change(models.duty, models.duty.c.kind == "walk", next_ms=0)


@contextmanager
def open_works(
    directory: Path, template: Path, *, errands: bool = True, lean: bool = False, **options: Any
) -> Iterator[Works]:
    """A table without rows, and an installation that has just started.

    Args:
        lean: rows show their status and their link, and nothing else goes out.
    """
    with Fake([FakeFeishu]).running() as fake:
        feishu = fake.tool(FakeFeishu)
        table = feishu.add_notes_table()
        endpoint = feishu.endpoint(fake.url)
        assert endpoint is not None
        toml = re.sub(r"\[endpoint\.zhou_hui\.voices\][^\[]*", "", endpoint.toml)
        if lean:
            toml = re.sub(r"(?m)^(audio|duration|error) = .*$", "", toml)
            toml = toml.partition("[endpoint.zhou_hui.notify]")[0]
        for name, secret in endpoint.secrets.items():
            (directory / name).write_text(secret)
        with open_studio(directory, template, connectors=toml, **options) as studio:
            feishu.hook_url = f"{studio.url}/hooks/zhou_hui"
            works = Works(fake, table, studio)
            runner = Errands(studio.services, studio.house.worker) if errands else None
            if runner is not None:
                runner.start()
                works.wait("the subscription", lambda: bool(feishu.subscribed))
            try:
                yield works
            finally:
                if runner is not None:
                    runner.close()


@pytest.fixture
def works(tmp_path: Path, sqlite_template: Path) -> Iterator[Works]:
    with open_works(tmp_path, sqlite_template) as works:
        yield works


def test_a_row_that_is_set_to_ready_shows_each_state_by_itself(works: Works) -> None:
    works.add("rec1", "周五发布。", "", 会议主题="周例会")
    works.fake.world.edit(works.table, "rec1", {STATUS: READY})
    works.wait_done(1)

    cells = works.table.rows["rec1"].cells
    assert works.wrote("rec1")[-1] == DONE
    assert set(works.wrote("rec1")) <= {QUEUED, LIVE, DONE}
    assert cells["fldLink"] and cells["fldSeconds"]
    (audio,) = cells["fldAudio"]  # type: ignore[misc]
    assert audio.name == "周例会.mp3"
    works.wait("a card", lambda: bool(works.fake.world.messages))
    assert len(works.fake.world.messages) == 1
    works.fake.courier.settle()
    assert works.episodes() == 1, "what we wrote ourselves came back as events"


def test_rows_edited_while_the_door_was_shut_are_found_by_a_walk(works: Works) -> None:
    works.fake.courier.is_open = False
    for n in range(50):
        works.add(f"rec{n:02}", f"第{n}条纪要。")
    works.fake.courier.is_open = True
    assert works.episodes() == 0
    works.walk()
    works.wait_done(50)
    works.walk()
    works.fake.courier.settle()
    works.wait(
        "the second walk",
        lambda: all(row.next_ms > 0 for row in works.house.all(models.duty)),
    )

    assert works.episodes() == 50


@pytest.mark.parametrize(
    ("status", "code"), [(429, 99991400), (400, 99991400), (200, 1254291), (500, 0)]
)
def test_a_tool_that_turns_us_away_gets_every_write_in_order(
    works: Works, status: int, code: int
) -> None:
    works.fake.fail("PUT *", status=status, body={"code": code, "msg": "slow down"}, times=2)
    for n in range(5):
        works.add(f"rec{n}", f"第{n}条纪要。")
    works.wait_done(5, timeout_s=90)

    for n in range(5):
        assert works.wrote(f"rec{n}")[-1] == DONE
        assert len(works.wrote(f"rec{n}")) <= 3
    assert works.feishu.conflicts == 0


@pytest.mark.slow
def test_five_thousand_rows_set_to_ready_at_once_all_end_done(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 5_000
    options = {"errands": False, "lean": True, "formats": ("opus",)}
    with open_works(tmp_path, sqlite_template, **options) as works:
        works.feishu.write_s = 0.0
        works.feishu.updates.limit = 320
        connector = works.studio.services.endpoints["zhou_hui"].connector
        faster = Budget("tblDemo01", per_s=300, burst=20)  # or it would take half an hour
        monkeypatch.setattr(
            connector, "bucket", lambda ref, call="write": faster if call == "write" else None
        )
        for n in range(count):
            works.add(f"rec{n:04}", f"第{n}条纪要。")
        runner = Errands(works.studio.services, works.house.worker)
        runner.start()
        try:
            works.wait_done(count, timeout_s=1_800)
        finally:
            runner.close()

        wrote: dict[str, list[str]] = defaultdict(list)
        for one in works.changes:
            if one.by != "person" and "fldStatus" in one.after:
                wrote[one.row_id].append(str(one.after["fldStatus"]))
        assert works.episodes() == count
        assert works.feishu.conflicts == 0
        assert works.feishu.updates.refused == 0
        order = [QUEUED, LIVE, DONE]
        for key in works.table.rows:
            steps = [order.index(one) for one in wrote[key]]
            assert steps == sorted(set(steps)), f"{key} went {wrote[key]}"
            assert wrote[key][-1] == DONE
