"""Walks find what was missed while nobody listened; upkeep keeps subscriptions alive."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from connectors.base import Budget, Cursor, Note, NoteEvent, NoteRef, Page
from connectors.errors import ToolRefused, ToolUnavailable
from pipeline import intake, models, walks
from pipeline.errors import Refused
from tests.pipeline.house import House, open_house
from tests.pipeline.table import Table, World, changed, install
from tests.pipeline.test_readings import read, speak, write

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


class Subscribed(Table):
    """A table whose subscription lives for a week."""

    upkeeps: list[datetime]

    def __init__(self, world: World, **config: Any) -> None:
        super().__init__(world, **config)
        self.upkeeps = []

    def upkeep(self, state: dict[str, Any], *, now: datetime, address: str) -> dict[str, Any]:
        self.world.fail()
        if state and now.timestamp() < state["next_upkeep"]:
            return state
        self.upkeeps.append(now)
        renewed = now + timedelta(days=3.5)
        secrets = state.get("secrets") or {"mac": "a-secret-of-the-tool"}
        return {"next_upkeep": renewed.timestamp(), "secrets": secrets, "address": address}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def table(world: World) -> Subscribed:
    return Subscribed(world)


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path, table: Table) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template) as house:
        install(house, table)
        walks.sync(house.services)
        yield house


def run_due(house: House, *, now: datetime | None = None) -> int:
    """Do every duty that is due; how many there were."""
    turns = walks.claim(house.services)
    for turn in turns:
        walks.run(house.services, turn, now=now)
    return len(turns)


def walk(house: House) -> None:
    """Look through the table now."""
    house.change(models.duty, models.duty.c.kind == "walk", next_ms=0)
    run_due(house)


def the(house: House, kind: str) -> Any:
    return next(row for row in house.all(models.duty) if row.kind == kind)


def test_fifty_rows_edited_while_we_were_down_are_found_once(house: House, world: World) -> None:
    for n in range(50):
        world.set(f"r{n}", Notes=f"Note {n}.", Status="Ready")
    world.set("draft", Notes="Not yet.", Status="Draft")
    walk(house)
    assert len(house.all(models.episode)) == 50
    assert the(house, "walk").found == 50

    for n in range(50):  # then the tool repeats every ping that was lost
        changed(house, f"r{n}")
    read(house)
    walk(house)
    assert len(house.all(models.episode)) == 50
    assert len(house.all(models.delivery)) == 100


def test_a_walk_goes_on_where_the_last_one_ended(house: House, world: World) -> None:
    world.set("r1", Notes="One.", Status="Ready")
    walk(house)
    first = the(house, "walk").state["value"]
    world.set("r2", Notes="Two.", Status="Ready")
    walk(house)

    assert the(house, "walk").state["value"] > first
    assert len(house.all(models.episode)) == 2


def test_a_walk_that_dies_between_pages_loses_nothing(
    house: House, world: World, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(45):
        world.set(f"r{n}", Notes=f"Note {n}.", Status="Ready")
    was = table.backfill

    def dies(cursor: Any) -> Iterator[Any]:
        for count, page in enumerate(was(cursor)):
            if count == 1:
                raise ToolUnavailable("the line broke")
            yield page

    monkeypatch.setattr(table, "backfill", dies)
    walk(house)
    assert len(house.all(models.episode)) == 20
    assert the(house, "walk").error == "the line broke"
    monkeypatch.setattr(table, "backfill", was)
    walk(house)

    assert len(house.all(models.episode)) == 45
    assert (the(house, "walk").error, the(house, "walk").tries) == (None, 0)


def test_our_own_writes_bring_a_walk_nothing(house: House, world: World) -> None:
    world.set("r1", Notes="One.", Status="Ready")
    walk(house)
    speak(house)
    assert world.rows["r1"].cells["Status"] == "Done"
    walk(house)

    assert len(house.all(models.episode)) == 1
    assert the(house, "walk").found == 0


def test_a_ping_makes_a_walk_due_also_while_one_runs(
    house: House, world: World, table: Table
) -> None:
    from connectors.base import NoteEvent, NoteRef

    def ping(key: str) -> None:
        services = house.services
        intake.accept(
            services.database,
            services.links,
            services.doors["table"],
            NoteEvent(key, NoteRef("table"), kind="ping"),
            body_digest="",
            casting={},
        )

    run_due(house)
    assert run_due(house) == 0
    ping("p1")
    (turn,) = walks.claim(house.services)
    ping("p2")
    walks.run(house.services, turn)

    assert run_due(house) == 1
    assert run_due(house) == 0


def test_a_walk_stops_when_the_budget_is_spent_and_goes_on_later(
    house: House, world: World, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(30):
        world.set(f"r{n}", Notes=f"Note {n}.", Status="Ready")
    monkeypatch.setattr(
        table,
        "bucket",
        lambda ref, call="write": Budget("table", per_min=1) if ref is None else None,
    )
    walk(house)

    assert len(house.all(models.episode)) == 20
    row = the(house, "walk")
    assert row.done_ms is None
    assert row.lease_until_ms == 0
    monkeypatch.setattr(table, "bucket", lambda ref, call="write": None)
    walk(house)
    assert len(house.all(models.episode)) == 30
    assert the(house, "walk").done_ms is not None


def test_a_tool_that_stays_away_rings_an_alarm_until_it_is_back(house: House, world: World) -> None:
    for expected in (0, 0, 1, 1):
        world.errors = [ToolUnavailable("away")]
        walk(house)
        assert len([one for one in house.all(models.alarm) if one.kind == "walk"]) == expected
    walk(house)

    assert [one for one in house.all(models.alarm) if one.kind == "walk"] == []


def test_an_endpoint_that_points_to_another_table_is_walked_from_its_beginning(
    house: House, world: World
) -> None:
    world.set("r1", Notes="One.", Status="Ready")
    walk(house)
    walks.sync(house.services)
    assert the(house, "walk").state is not None
    install(house, Subscribed(world, timezone="Asia/Shanghai"))
    walks.sync(house.services)

    assert the(house, "walk").state is None


def test_a_subscription_is_renewed_at_half_its_life(house: House, table: Subscribed) -> None:
    run_due(house, now=NOON)
    row = the(house, "upkeep")
    assert table.upkeeps == [NOON]
    assert row.next_ms - row.done_ms <= 86_400_000  # looked at daily, though renewed at half life
    for day in range(1, 7):
        house.change(models.duty, models.duty.c.kind == "upkeep", next_ms=0)
        run_due(house, now=NOON + timedelta(days=day))

    assert table.upkeeps == [NOON, NOON + timedelta(days=4)]


def test_a_renewal_that_fails_rings_at_once_and_is_tried_again(house: House, world: World) -> None:
    run_due(house, now=NOON)
    world.errors = [ToolRefused("the token may not manage webhooks", code="403")]
    house.change(models.duty, models.duty.c.kind == "upkeep", next_ms=0)
    run_due(house, now=NOON + timedelta(days=6))

    (alarm,) = house.all(models.alarm)
    assert (alarm.kind, alarm.message) == ("upkeep", "the token may not manage webhooks")
    row = the(house, "upkeep")
    assert row.next_ms > row.begun_ms
    house.change(models.duty, models.duty.c.kind == "upkeep", next_ms=0)
    run_due(house, now=NOON + timedelta(days=6))
    assert house.all(models.alarm) == []


def test_secrets_of_a_subscription_lie_sealed_and_reach_the_connector(
    house: House, table: Subscribed
) -> None:
    run_due(house, now=NOON)

    assert "a-secret-of-the-tool" not in str(the(house, "upkeep").state)
    assert table.state["secrets"] == {"mac": "a-secret-of-the-tool"}
    assert table.state["address"].endswith("/hooks/table")
    table.state = {}
    house.services.hooks.refresh(0.0)
    assert table.state["secrets"] == {"mac": "a-secret-of-the-tool"}


def test_a_worker_that_lost_its_walk_changes_nothing(house: House, world: World) -> None:
    (turn, *_) = [one for one in walks.claim(house.services) if one.kind == "walk"]
    house.change(models.duty, models.duty.c.kind == "walk", fence=turn.fence + 1)
    world.set("r1", Notes="One.", Status="Ready")
    walks.run(house.services, turn)

    assert house.all(models.episode) == []
    assert the(house, "walk").state is None


def test_who_cannot_walk_says_so(house: House, table: Table) -> None:
    table.walks = False

    with pytest.raises(Refused, match="its sender has to send them"):
        walks.order_walk(house.services, "table", actor="test")


def test_walking_all_over_again_speaks_nothing_twice(house: House, world: World) -> None:
    world.set("r1", Notes="One.", Status="Ready")
    walk(house)
    speak(house)
    world.set("r1", Status="Ready")
    walks.order_walk(house.services, "table", actor="test", from_start=True)
    run_due(house)
    write(house)

    assert len(house.all(models.episode)) == 1
    assert world.rows["r1"].cells["Status"] == "Done"


def test_rows_that_slip_from_page_to_page_are_found_at_once(
    house: House, world: World, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(50):
        world.set(f"r{n:02}", Notes=f"Note {n}.", Status="Ready")

    def shrinking(cursor: Any) -> Iterator[Page]:
        """Pages are counted anew for each call, and rows that we wrote to are not among them."""
        at = 0
        while True:
            ready = [key for key in sorted(world.rows) if not world.statuses(key)]
            events = (
                NoteEvent(
                    f"walk/{key}",
                    ref := NoteRef("table", "base", "notes", key),
                    note=Note(ref, f"Note {key}."),
                )
                for key in ready[at : at + 20]
            )
            at += 20
            yield Page(tuple(events), Cursor(), is_last=at >= len(ready))
            write(house)

    monkeypatch.setattr(table, "backfill", shrinking)
    walk(house)
    assert len(house.all(models.episode)) < 50
    while run_due(house):
        pass

    assert len(house.all(models.episode)) == 50
    assert len({row.delivery_key for row in house.all(models.delivery)}) == 50
