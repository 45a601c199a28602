"""The io worker: notes are read from their tool, rows are written back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from connectors.base import Connector, Note, NotePatch, NoteRef
from connectors.errors import ToolUnavailable
from pipeline import intake, models
from pipeline.endpoints import Endpoint
from pipeline.episodes import produce
from pipeline.errands import Errands
from pipeline.operate import revive
from tests.pipeline.house import House, open_house


class Tool(Connector):
    """A tool in memory: rows to read, and what was written back to them."""

    name = "tool"
    reads = True

    def __init__(self) -> None:
        super().__init__("tool", None)
        self.rows: dict[str, str] = {}
        self.is_away = False
        self.written: list[tuple[str, NotePatch]] = []

    def read(self, refs: list[NoteRef]) -> Iterator[Note]:
        if self.is_away:
            raise ToolUnavailable("the tool is away", after_s=0)
        for ref in refs:
            if ref.key in self.rows:
                yield Note(ref=ref, text=self.rows[ref.key], title=f"Row {ref.key}")

    def write_back(self, ref: NoteRef, patch: NotePatch) -> None:
        self.written.append((ref.key, patch))


@pytest.fixture
def tool() -> Tool:
    return Tool()


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path, tool: Tool) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template, look_s=0.02) as house:
        services = house.services
        services.endpoints["tool"] = Endpoint("tool", "tool", tool, voices={"default": "tone_c"})
        services.doors.update(intake.open_doors(services.database, {"tool": "tool"}))
        yield house


@pytest.fixture
def errands(house: House) -> Iterator[Errands]:
    errands = Errands(house.services, house.worker)
    errands.start()
    yield errands
    errands.close()


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline, "never became true"
        time.sleep(0.01)


def test_a_thin_event_is_read_from_its_tool_and_then_spoken(
    house: House, tool: Tool, errands: Errands
) -> None:
    tool.rows["r1"] = "The words of the row."
    key = house.accept("", ref="r1", endpoint="tool").accepted.episode
    wait_until(lambda: house.row(key).state == "queued" and len(tool.written) == 1)
    produce(house.services, house.hold())
    row = house.row(key)

    assert (row.title, row.text_chars) == ("Row r1", len(tool.rows["r1"]))
    assert row.wishes == {"casting": {"default": "tone_c"}}
    wait_until(lambda: house.row(key).state == "done")
    (_, queued), (written, patch) = tool.written
    assert (queued.status, queued.link) == ("queued", patch.link)
    assert (written, patch.status, patch.error) == ("r1", "done", None)
    assert patch.link is not None and patch.link.startswith("http")
    assert patch.audio_ref is not None and f"/episodes/{key}.mp3" in patch.audio_ref
    assert patch.duration_s == pytest.approx(row.samples / 24_000, abs=0.01)


def test_a_lane_of_many_writes_does_not_wait_for_looks(
    tmp_path: Path, sqlite_template: Path, tool: Tool
) -> None:
    with open_house(tmp_path, sqlite_template, look_s=30.0) as house:
        services = house.services
        services.endpoints["tool"] = Endpoint("tool", "tool", tool)
        services.doors.update(intake.open_doors(services.database, {"tool": "tool"}))
        for n in range(20):
            house.accept(f"Words {n}.", ref=f"r{n}", endpoint="tool")
        errands = Errands(services, house.worker)
        errands.start()
        wait_until(lambda: len(tool.written) == 20)  # within 20 s
        errands.close()

    assert [row for row, _ in tool.written] == [f"r{n}" for n in range(20)]


def test_a_row_that_is_gone_is_told_to_be(house: House, errands: Errands) -> None:
    key = house.accept("", ref="nowhere", endpoint="tool").accepted.episode
    wait_until(lambda: house.row(key).state == "dead")

    assert "not there" in house.row(key).error


def test_a_tool_that_is_away_is_read_when_it_is_back(
    house: House, tool: Tool, errands: Errands
) -> None:
    tool.rows["r1"], tool.is_away = "Late words.", True
    key = house.accept("", ref="r1", endpoint="tool").accepted.episode
    wait_until(lambda: house.row(key).tries >= 2)
    assert house.row(key).state == "received"
    tool.is_away = False

    wait_until(lambda: house.row(key).state == "queued")
    assert house.row(key).next_ms is None


def test_a_row_that_cannot_be_spoken_shows_the_reason(
    house: House, tool: Tool, errands: Errands
) -> None:
    tool.rows["r1"] = "🎉🎉"
    key = house.accept("🎉🎉", ref="r1", endpoint="tool").accepted.episode
    wait_until(lambda: len(tool.written) == 1)
    produce(house.services, house.hold())
    wait_until(lambda: len(tool.written) == 2)

    _, (_row, patch) = tool.written
    assert house.row(key).state == "dead"
    assert (patch.status, patch.error, patch.audio_ref) == ("failed", "unspeakable", None)


def test_each_new_take_of_a_row_is_written_back(house: House, tool: Tool, errands: Errands) -> None:
    key = house.accept("Words.", ref="r1", endpoint="tool").accepted.episode
    wait_until(lambda: len(tool.written) == 1)
    for _ in range(2):  # a done episode is spoken anew, twice
        produce(house.services, house.hold())
        wait_until(lambda: house.row(key).state == "done")
        revive(house.services, key, actor="test", new_take=True)
    produce(house.services, house.hold())
    wait_until(lambda: house.row(key).state == "done")

    assert [patch.status for _, patch in tool.written].count("done") == 3
    assert len({patch.key for _, patch in tool.written}) == len(tool.written)
    assert {one.state for one in house.all(models.effect)} == {"done"}
