"""A scheduled reading from the file to the rows: look first, choose, speak, tell the groups."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from connectors.errors import ToolUnavailable
from pipeline import intake, models, schedule, walks
from pipeline.endpoints import Endpoint, Notifier
from pipeline.episodes import produce
from pipeline.errands import Errands
from pipeline.errors import Misconfigured
from tests.pipeline.house import House, open_house
from tests.pipeline.table import Table, World, changed, install

BOTH = {"trigger": {"column": "Status", "equals": ["Ready", "Digest"]}}
DIGEST = {
    "endpoint": "table",
    "cron": "55 8 * * 1-5",
    "timezone": "Asia/Shanghai",
    "select": {"column": "Status", "in": ["Digest"], "since": "last_run"},
    "notify": ["group"],
    "title": "Digest {date}",
}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def group() -> World:
    return World()


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path, world: World, group: World) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template, look_s=0.05) as house:
        install(house, Table(world, **BOTH), speaks_now=False)
        services = house.services
        crowd = Table(group)
        services.endpoints["group"] = Endpoint(
            "group", "group", Table(World()), notify=(Notifier(crowd, ("done",)),)
        )
        services.doors.update(intake.open_doors(services.database, {"group": "table"}))
        yield house


def sync(house: House, **changes: object) -> None:
    specs = schedule.parse_schedules({"daily": {**DIGEST, **changes}})
    schedule.check(specs, {one.name: one for one in house.services.endpoints.values()})
    schedule.sync(house.database, specs)


def run_until(house: House, is_true: Callable[[], bool]) -> None:
    errands = Errands(house.services, house.worker)
    errands.start()
    try:
        deadline = time.monotonic() + 20
        while not is_true():
            assert time.monotonic() < deadline, "never became true"
            if any(row.state == "queued" for row in house.all(models.episode)):
                produce(house.services, house.hold("batch"))
            time.sleep(0.01)
    finally:
        errands.close()


def test_a_run_looks_for_rows_first_and_takes_those_it_was_told_to(
    house: House, world: World, group: World
) -> None:
    walks.sync(house.services)
    house.change(models.duty, models.duty.c.kind == "walk", next_ms=2**60)
    for key, status in (("r1", "Digest"), ("r2", "Ready"), ("r3", "digest"), ("r4", "Draft")):
        world.set(key, Notes=f"Note of {key}.", Status=status)
    sync(house)
    run_id = schedule.fire(house.database, "daily")
    run_until(house, lambda: schedule.progress(house.database, run_id).is_ended)

    assert schedule.progress(house.database, run_id) == schedule.Progress("done", 2, 2, 0)
    (made,) = house.all(models.episode)
    assert made.title.startswith("Digest 20")
    run_until(house, lambda: len(group.cards) == 1)
    run_until(house, lambda: [world.statuses(key)[-1:] for key in ("r1", "r3")] == [["Done"]] * 2)
    assert (world.statuses("r2"), world.statuses("r4"), world.cards) == ([], [], [])


def test_a_row_that_is_chosen_later_with_the_same_words_is_taken_then(
    house: House, world: World
) -> None:
    sync(house)
    world.set("r1", Notes="The same.", Status="Ready")
    changed(house, "r1")
    first = schedule.fire(house.database, "daily")
    run_until(house, lambda: schedule.progress(house.database, first).is_ended)
    assert schedule.progress(house.database, first).total == 0

    world.set("r1", Status="Digest")
    changed(house, "r1")
    second = schedule.fire(house.database, "daily")
    run_until(house, lambda: schedule.progress(house.database, second).is_ended)
    assert schedule.progress(house.database, second).total == 1


def test_a_run_goes_on_without_a_walk_when_the_tool_is_away_for_long(
    house: House, world: World
) -> None:
    world.errors = [ToolUnavailable("away") for _ in range(50)]
    walks.sync(house.services)
    (turn,) = walks.claim(house.services, "table")
    walks.run(house.services, turn)
    now = house.all(models.duty)[0].begun_ms

    assert walks.before_run(house.services, "table", now - 1_000) is None
    assert walks.before_run(house.services, "table", now - 700_000) == 0
    assert walks.before_run(house.services, "elsewhere", now) == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"select": {"column": "State", "in": ["Digest"]}},
            r"schedule\.daily\.select\.column: must be the trigger's column of 'table', 'Status'",
        ),
        (
            {"select": {"column": "Status", "in": ["Digets"]}},
            r"schedule\.daily\.select\.in: 'Digets' makes no row of 'table' ready; add it to "
            r"endpoint\.table\.trigger\.equals",
        ),
        ({"notify": ["table"]}, r"schedule\.daily\.notify: 'table' tells nobody"),
    ],
)
def test_what_does_not_fit_the_endpoint_is_named(
    house: House, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(Misconfigured, match=told):
        sync(house, **changes)
