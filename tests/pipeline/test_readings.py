"""Thin events: rows are read many at a time, and only what is ready and new is spoken."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from connectors.base import NoteEvent, NoteRef
from connectors.errors import ToolRefused, ToolUnavailable
from pipeline import effects, ids, intake, models, readings
from pipeline.carriers import Tools
from pipeline.door import terms_of
from pipeline.episodes import produce
from pipeline.relay import retry_failed
from tests.pipeline.house import House, open_house
from tests.pipeline.table import Table, World, changed, install

DAY_MS = 86_400_000


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def table(world: World) -> Table:
    return Table(world)


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path, table: Table) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template) as house:
        install(house, table)
        yield house


def read(house: House) -> int:
    """Read until nothing is due; how many rows were read."""
    total = 0
    while done := readings.read_due(house.services, "table")[0]:
        total += done
    return total


def write(house: House) -> None:
    """Carry out every effect that is due."""
    tools = Tools(house.services)
    while effects.carry_out(house.database, house.worker, tools, within_ms=DAY_MS):
        pass
    tools.close()


def speak(house: House) -> None:
    """Speak whatever is queued and show it."""
    while any(row.state == "queued" for row in house.all(models.episode)):
        produce(house.services, house.hold())
    write(house)


def test_a_ready_row_is_spoken_and_shows_every_state(house: House, world: World) -> None:
    world.set("r1", Title="Sync", Notes="We ship on Friday.", Status="Ready")
    noted = changed(house, "r1")
    assert (noted.accepted.status, house.all(models.episode)) == ("noted", [])

    assert read(house) == 1
    write(house)
    assert world.rows["r1"].cells["Status"] == "Queued"
    link = world.rows["r1"].cells["Listen"]["link"]
    speak(house)

    assert world.statuses("r1") == ["Queued", "Done"]
    assert world.rows["r1"].cells["Listen"]["link"] == link
    assert world.rows["r1"].cells["Length"] > 0
    assert [row.state for row in house.all(models.episode)] == ["done"]


def test_most_edits_make_nothing(house: House, world: World) -> None:
    for n in range(30):
        world.set("r1", Notes="x" * n, Status="Draft")
        changed(house, "r1", columns=["f2"])

    assert len(house.all(models.reading)) == 1
    assert read(house) == 1
    assert world.reads == [["r1"]]
    assert house.all(models.episode) == []
    assert len(house.all(models.delivery)) == 30


def test_many_rows_are_read_in_few_calls(house: House, world: World) -> None:
    for n in range(25):
        world.set(f"r{n}", Notes=f"Note {n}.", Status="Ready")
        changed(house, f"r{n}")

    assert read(house) == 25
    assert [len(keys) for keys in world.reads] == [10, 10, 5]
    assert len(house.all(models.episode)) == 25


def test_our_own_writes_are_not_even_read(house: House, world: World) -> None:
    world.set("r1", Notes="Words.", Status="Done")
    changed(house, "r1", columns=["f4", "f6"])

    assert read(house) == 1
    assert world.reads == []
    assert house.all(models.reading) == []


def test_our_own_status_makes_no_episode(house: House, world: World) -> None:
    world.set("r1", Notes="Words.", Status="Ready")
    changed(house, "r1")
    read(house)
    speak(house)
    for _key, cells in world.written:
        changed(house, "r1", columns=list(cells))
    read(house)

    assert len(house.all(models.episode)) == 1


def test_a_row_saved_again_shows_its_earlier_recording(house: House, world: World) -> None:
    world.set("r1", Title="Sync", Notes="Words.", Status="Ready")
    changed(house, "r1")
    read(house)
    speak(house)
    shown = dict(world.rows["r1"].cells)
    world.set("r1", Status="Ready", Listen="", Length="")
    changed(house, "r1")
    read(house)
    speak(house)

    assert world.rows["r1"].cells == shown
    assert len(house.all(models.episode)) == 1
    assert world.statuses("r1") == ["Done", "Done"]


def test_new_words_are_spoken_and_end_what_the_old_ones_began(house: House, world: World) -> None:
    world.set("r1", Notes="Old words.", Status="Ready")
    changed(house, "r1")
    read(house)
    world.set("r1", Notes="New words.", Status="Ready")
    changed(house, "r1")
    read(house)
    speak(house)

    assert [row.state for row in house.all(models.episode, models.episode.c.id)] == [
        "cancelled",
        "done",
    ]
    assert world.rows["r1"].cells["Status"] == "Done"


def test_other_voices_for_the_same_words_are_spoken(house: House, world: World) -> None:
    world.set("r1", Notes="Words.", Status="Ready")
    changed(house, "r1")
    read(house)
    speak(house)
    install(house, Table(world), voices={"default": "tone_b"})
    world.set("r1", Status="Ready")
    changed(house, "r1")
    read(house)

    assert len(house.all(models.episode)) == 2


def test_a_row_that_failed_is_spoken_when_it_is_ready_again(house: House, world: World) -> None:
    world.set("r1", Notes="🎉", Status="Ready")
    changed(house, "r1")
    read(house)
    speak(house)
    assert world.rows["r1"].cells["Status"] == "Failed"
    assert world.rows["r1"].cells["Error"].startswith("unspeakable: ")
    world.set("r1", Notes="Now with words.", Status="Ready")
    changed(house, "r1")
    read(house)
    speak(house)

    assert world.rows["r1"].cells["Status"] == "Done"
    assert world.rows["r1"].cells["Error"] == ""


def test_a_deleted_row_ends_what_has_not_begun(house: House, world: World) -> None:
    world.set("r1", Notes="Words.", Status="Ready")
    changed(house, "r1")
    read(house)
    del world.rows["r1"]
    changed(house, "r1")
    read(house)

    assert [row.state for row in house.all(models.episode)] == ["cancelled"]


def test_a_row_waits_for_its_time(house: House, world: World) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    world.set("r1", Notes="Words.", Status="Ready", When=int(soon.timestamp() * 1000))
    changed(house, "r1")
    read(house)
    write(house)
    (waiting,) = house.all(models.episode)

    assert waiting.state == "waiting"
    assert world.statuses("r1") == ["Queued"]
    assert retry_failed(house.services) == 0
    house.change(models.episode, models.episode.c.id == waiting.id, next_ms=0)
    assert retry_failed(house.services) == 1
    speak(house)
    assert world.rows["r1"].cells["Status"] == "Done"


def test_another_time_for_a_waiting_row_is_taken(house: House, world: World) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    world.set("r1", Notes="Words.", Status="Ready", When=int(soon.timestamp() * 1000))
    changed(house, "r1")
    read(house)
    later = soon + timedelta(hours=1)
    world.set("r1", Status="Ready", When=int(later.timestamp() * 1000))
    changed(house, "r1")
    read(house)

    (row,) = house.all(models.episode)
    assert row.next_ms == int(later.timestamp() * 1000)


def test_beyond_the_daily_cap_a_row_says_so(house: House, world: World, table: Table) -> None:
    install(house, table, daily_cap=2)
    for n in range(4):
        world.set(f"r{n}", Notes=f"Words {n}.", Status="Ready")
        changed(house, f"r{n}")
    read(house)
    speak(house)

    shown = [world.rows[f"r{n}"].cells["Status"] for n in range(4)]
    assert shown == ["Done", "Done", "Failed", "Failed"]
    assert world.rows["r3"].cells["Error"].startswith("daily_cap: ")


def test_a_tool_that_is_away_is_read_later(house: House, world: World) -> None:
    world.set("r1", Notes="Words.", Status="Ready")
    changed(house, "r1")
    world.errors = [ToolUnavailable("busy", after_s=30)]
    read(house)
    (row,) = house.all(models.reading)

    assert (row.tries, row.error) == (1, "busy")
    assert row.next_ms > row.created_ms + 25_000
    house.change(models.reading, models.reading.c.id == row.id, next_ms=0)
    assert read(house) == 1
    assert len(house.all(models.episode)) == 1


def test_rows_nobody_lets_us_read_ring_an_alarm_and_stay(house: House, world: World) -> None:
    world.set("r1", Notes="Words.", Status="Ready")
    changed(house, "r1")
    world.errors = [ToolRefused("the app was removed from the base", code="403")]
    read(house)

    (row,) = house.all(models.reading)
    assert (row.next_ms, row.error_code) == (None, "403")
    (alarm,) = house.all(models.alarm)
    assert "the app was removed from the base" in alarm.message
    changed(house, "r1")
    assert read(house) == 1
    assert len(house.all(models.episode)) == 1


def test_an_event_while_a_row_is_read_has_it_read_again(
    house: House, world: World, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.set("r1", Notes="Words.", Status="Draft")
    changed(house, "r1")
    was = table.read

    def meanwhile(refs: list[object]) -> object:
        found = list(was(refs))  # type: ignore[arg-type]
        if len(world.reads) == 1:
            world.set("r1", Status="Ready")
            changed(house, "r1")
        return iter(found)

    monkeypatch.setattr(table, "read", meanwhile)
    read(house)

    assert world.reads == [["r1"], ["r1"]]
    assert len(house.all(models.episode)) == 1


def test_one_delivery_posted_twenty_times_from_four_threads_is_one_episode(
    house: House, world: World
) -> None:
    world.set("r1", Notes="Words.", Status="Ready")

    def post() -> None:
        for _ in range(5):
            changed(house, "r1", delivery="the-same")
            read(house)

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(house.all(models.episode)) == 1
    (delivery,) = house.all(models.delivery)
    assert delivery.repeats == 19


def ask(house: House, key: str) -> intake.Taken:
    """An automation calls, and its next step waits for the link."""
    services = house.services
    door = services.endpoints["table"]
    event = NoteEvent(ids.ulid(), NoteRef("table", "base", "notes", key), asked=True)
    return intake.accept(
        services.database,
        services.links,
        services.doors["table"],
        event,
        body_digest="",
        casting={},
        terms=terms_of(services, door),
    )


def test_a_row_that_is_asked_for_has_its_link_at_once_and_one_episode(
    house: House, world: World
) -> None:
    world.set("r1", Notes="Words.", Status="Ready")
    first = ask(house, "r1").accepted
    changed(house, "r1")
    read(house)

    assert first.listen_url
    again = ask(house, "r1").accepted
    assert (again.episode, again.listen_url, again.duplicate) == (
        first.episode, first.listen_url, True,
    )  # fmt: skip
    read(house)
    assert len(house.all(models.episode)) == 1


def test_our_own_writes_that_ask_again_make_nothing_new(house: House, world: World) -> None:
    world.set("r1", Notes="Words.", Status="Ready")
    changed(house, "r1")
    read(house)
    speak(house)
    for _ in range(3):  # an automation without conditions calls at each of our writes
        assert ask(house, "r1").accepted.duplicate
        read(house)
        write(house)

    assert len(house.all(models.episode)) == 1
