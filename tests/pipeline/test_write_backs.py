"""What a state orders: rows at most three times, cards once, events to whoever wants them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.errors import ToolRefused, ToolUnavailable
from pipeline import effects, models, write_backs
from pipeline.carriers import Tools
from pipeline.database import now_ms
from pipeline.endpoints import Notifier
from pipeline.episodes import produce
from pipeline.operate import revive, stop_episode
from tests.pipeline.house import House, open_house
from tests.pipeline.table import Table, World, install
from tests.pipeline.test_readings import DAY_MS, write

E = models.effect.c


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def table(world: World) -> Table:
    return Table(world)


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path, table: Table) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template) as house:
        install(house, table, notify=(Notifier(table, ("live", "done", "failed")),))
        yield house


def accept(house: House, text: str = "Words.", **note: Any) -> str:
    return house.accept(text, ref="r1", endpoint="table", **note).accepted.episode


def live(house: House, key: str, *, waited_ms: int = 0) -> None:
    """What `arrows.begin` orders, as if the episode had waited so long."""
    row = house.row(key)
    created_ms = row.created_ms - waited_ms
    house.change(models.episode, models.episode.c.id == row.id, created_ms=created_ms)
    with house.database.write() as connection:
        write_backs.announce(house.services, connection, row.id, "live", chapters=3)


def carry_one(house: House) -> int:
    tools = Tools(house.services)
    tried = effects.carry_out(house.database, house.worker, tools, within_ms=DAY_MS, limit=1)
    tools.close()
    return tried


def rows_of(house: House) -> list[Any]:
    return [one for one in house.all(models.effect, E.id) if one.kind == "write_back"]


def test_a_short_note_costs_two_writes(house: House, world: World) -> None:
    accept(house)
    write(house)
    produce(house.services, house.hold())
    write(house)

    assert world.statuses("r1") == ["Queued", "Done"]


def test_a_long_queue_is_shown_to_end(house: House, world: World) -> None:
    key = accept(house)
    write(house)
    live(house, key, waited_ms=6_000)
    write(house)

    assert world.statuses("r1") == ["Queued", "Live"]


def test_a_live_soon_after_queued_waits_and_holds_nobody_up(house: House, world: World) -> None:
    key = accept(house)
    write(house)
    live(house, key, waited_ms=1_000)
    (_, waiting) = rows_of(house)
    house.accept("Other words.", ref="r2", endpoint="table")
    write(house)

    assert waiting.state == "due"
    assert 0 < waiting.next_ms - int(time.time() * 1000) <= 4_000
    assert [key for key, _ in world.written] == ["r1", "r2"]


def test_news_overwrite_what_was_not_written_yet_in_its_place(house: House, world: World) -> None:
    key = accept(house)
    world.errors = [ToolUnavailable("away", after_s=0)]
    carry_one(house)
    house.accept("Other words.", ref="r2", endpoint="table")
    live(house, key)
    write(house)

    assert len(rows_of(house)) == 2
    assert [key for key, _ in world.written] == ["r1", "r2"]
    assert world.statuses("r1") == ["Live"]


def test_a_throttled_row_holds_its_lane_in_order(house: House, world: World) -> None:
    for n in range(3):
        house.accept(f"Words {n}.", ref=f"r{n}", endpoint="table")
    world.errors = [ToolUnavailable("slow down", after_s=60)]
    assert carry_one(house) == 1
    assert carry_one(house) == 0, "the others wait behind it"
    house.change(models.effect, E.state == "failed", next_ms=now_ms())
    write(house)

    assert [key for key, _ in world.written] == ["r0", "r1", "r2"]


def test_a_write_that_failed_under_way_makes_room_for_the_last_word(
    house: House, world: World
) -> None:
    key = accept(house)

    def meanwhile(_row: str) -> None:
        world.on_write = lambda _: None
        live(house, key, waited_ms=6_000)
        world.errors = [ToolUnavailable("away", after_s=0)]

    world.on_write = meanwhile
    carry_one(house)
    assert [one.state for one in rows_of(house)] == ["failed", "due"]
    with house.database.write() as connection:
        row_id = house.row(key).id
        write_backs.announce(house.services, connection, row_id, "done", length_ms=1_000)
    write(house)

    assert [one.state for one in rows_of(house)] == ["done", "dropped"]
    assert world.statuses("r1") == ["Done"]


def test_an_episode_stopped_by_hand_is_shown_as_stopped(house: House, world: World) -> None:
    key = accept(house)
    write(house)
    assert stop_episode(house.services, key, actor="test")
    write(house)

    assert world.rows["r1"].cells["Status"] == "Failed"
    assert world.rows["r1"].cells["Error"] == "stopped: stopped by hand"


def test_an_older_episode_does_not_write_over_a_newer_revision(house: House, world: World) -> None:
    accept(house)
    house.change(models.note, models.note.c.ref_key == "r1", revision=2)
    write(house)

    assert world.written == []
    assert [one.state for one in rows_of(house)] == ["dropped"]


def test_a_card_says_how_much_there_is_to_hear(house: House, world: World) -> None:
    key = accept(house, title="Weekly sync", lang="en")
    live(house, key)
    live(house, key)
    write(house)

    (card,) = world.cards
    assert (card.title, card.text, card.button) == (
        "Weekly sync is live",
        "3 chapters, about a minute",
        "Listen now",
    )
    assert card.link.startswith("http")


def test_a_chinese_note_has_a_chinese_card(house: House, world: World) -> None:
    key = accept(house, "周五发布。" * 300, title="周例会", lang="zh")
    live(house, key)
    write(house)

    (card,) = world.cards
    assert (card.title, card.button) == ("周例会 正在播报", "立即收听")
    assert card.text.startswith("3 个章节，约 ")


def test_a_failure_tells_its_reason_on_the_card(house: House, world: World) -> None:
    accept(house, "🎉", lang="en")
    produce(house.services, house.hold())
    write(house)

    (card,) = world.cards
    assert (card.title, card.text) == (
        "Meeting notes failed",
        "unspeakable: nothing is left to say",
    )


def card_row(house: House) -> Any:
    (row,) = [one for one in house.all(models.effect) if one.kind == "card"]
    return row


def test_a_card_that_may_have_been_sent_is_never_sent_again(house: House, world: World) -> None:
    key = accept(house)
    write(house)
    live(house, key)
    world.errors = [ToolUnavailable("no answer", unanswered=True)]
    write(house)
    assert card_row(house).state == "uncertain"
    write(house)
    assert world.cards == []

    with house.database.write() as connection:  # a person has looked into the group
        effects.revive(connection, key)
    write(house)
    assert len(world.cards) == 1


def test_a_card_the_tool_turned_away_is_sent_later(house: House, world: World) -> None:
    key = accept(house)
    write(house)
    live(house, key)
    world.errors = [ToolUnavailable("too many", after_s=0)]
    write(house)

    assert len(world.cards) == 1
    assert card_row(house).tries == 2


def test_a_worker_that_dies_over_a_card_leaves_it_missing_not_doubled(
    house: House, world: World
) -> None:
    key = accept(house)
    write(house)
    live(house, key)

    def die(_row: str) -> None:
        world.on_write = lambda _: None
        raise SystemExit

    world.on_write = die
    with pytest.raises(SystemExit):
        write(house)
    assert card_row(house).state == "running"
    effects.release_owners(house.database, [house.worker])
    write(house)

    assert card_row(house).state == "uncertain"
    assert world.cards == []


def test_cards_and_events_do_not_hold_an_episode_open(house: House, world: World) -> None:
    key = accept(house)
    produce(house.services, house.hold())
    world.on_write = lambda row: (
        world.errors.append(ToolUnavailable("away")) if row == "card" else None
    )
    write(house)

    assert house.row(key).state == "done"


def test_a_new_take_has_a_card_of_its_own(house: House, world: World) -> None:
    key = accept(house)
    produce(house.services, house.hold())
    write(house)
    sent = len(world.cards)
    revive(house.services, key, actor="test", new_take=True)
    produce(house.services, house.hold())
    write(house)

    assert len(world.cards) == 2 * sent


def test_a_tool_that_refuses_for_good_leaves_a_dead_effect(house: House, world: World) -> None:
    accept(house)
    world.errors = [ToolRefused("no such table", code="404")]
    write(house)

    (dead,) = rows_of(house)
    assert (dead.state, dead.error_code, dead.error) == ("dead", "404", "no such table")
