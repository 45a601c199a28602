"""Row write-backs: in order, one at a time for a table, again when the tool was away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from connectors.base import Budget, Connector, NotePatch, NoteRef
from connectors.errors import ToolRefused, ToolUnavailable
from pipeline import effects, ids, models
from pipeline.database import Database, now_ms
from tests.pipeline.conftest import Seed

DAY_MS = 86_400_000


class Tool(Connector):
    """Keeps what it is told; says no as often as it was told to."""

    def __init__(self) -> None:
        super().__init__("board", None)
        self.told: list[tuple[str, str]] = []
        self.errors: list[Exception] = []
        self.on_write: Callable[[], None] = lambda: None

    def write_back(self, ref: NoteRef, patch: NotePatch) -> None:
        self.on_write()
        if self.errors:
            raise self.errors.pop(0)
        self.told.append((ref.key, patch.status or ""))


class Carrier:
    """Carries row write-backs to one tool, within its budget if it has one."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.wanted: Budget | None = None

    def budget(self, body: Mapping[str, Any], kind: effects.Kind) -> tuple[str, Budget] | None:
        return ("tool", self.wanted) if self.wanted is not None else None

    def carry(self, due: effects.Due) -> str:
        self.tool.write_back(NoteRef(**due.body["ref"]), NotePatch(**due.body["patch"]))
        return "done"


class Desk:
    """An episode in state `stored`, and what is ordered for its row."""

    def __init__(self, database: Database, seed: Seed) -> None:
        self.database = database
        self.seed = seed
        self.tool = Tool()
        self.carrier = Carrier(self.tool)
        self.tenant_id = seed.tenant()
        self.endpoint_id = seed.endpoint(self.tenant_id)
        self.count = 0

    def stored(self, row: str = "r1", table: str = "t1", status: Any = "done") -> str:
        """A stored episode with its write-back ordered."""
        note_id = self.seed.note(self.tenant_id, self.endpoint_id, ref_table=table, ref_key=row)
        episode_id = self.seed.episode(self.tenant_id, self.endpoint_id, state="stored")
        self.seed.row(
            models.episode_note, episode_id=episode_id, position=0, note_id=note_id, revision=1
        )
        self.order(episode_id, row, table, status)
        return episode_id

    def order(self, episode_id: str, row: str, table: str = "t1", status: Any = "done") -> None:
        self.count += 1
        with self.database.write() as connection:
            effects.order_write_back(
                self.database,
                connection,
                tenant_id=self.tenant_id,
                episode_id=episode_id,
                endpoint="board",
                ref=NoteRef("board", "", table, row),
                patch=NotePatch(key=f"k{self.count}", status=status),
            )

    def carry_out(self, within_ms: int = DAY_MS, worker: str = "w" * 26) -> int:
        return effects.carry_out(self.database, worker, self.carrier, within_ms=within_ms)

    def all(self, table: Any) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(table.select().order_by(table.c.id)).all())

    def change(self, **values: Any) -> None:
        with self.database.write() as connection:
            connection.execute(models.effect.update().values(values))


@pytest.fixture
def desk(database: Database, seed: Seed) -> Desk:
    return Desk(database, seed)


def states(desk: Desk) -> list[str]:
    return [one.state for one in desk.all(models.effect)]


def test_a_write_back_that_worked_makes_the_episode_done(desk: Desk) -> None:
    desk.stored()

    assert effects.has_due(desk.database)
    assert desk.carry_out() == 1
    assert desk.tool.told == [("r1", "done")]
    assert states(desk) == ["done"]
    assert [one.state for one in desk.all(models.episode)] == ["done"]
    assert not effects.has_due(desk.database)
    assert desk.carry_out() == 0


def test_a_tool_that_is_away_is_asked_again_when_it_wants(desk: Desk) -> None:
    desk.stored()
    desk.tool.errors = [ToolUnavailable("busy", after_s=60)]
    desk.carry_out()
    (waiting,) = desk.all(models.effect)

    assert (waiting.state, waiting.tries, waiting.error) == ("failed", 1, "busy")
    assert 50_000 < waiting.next_ms - waiting.created_ms < 90_000
    assert desk.carry_out() == 0
    desk.change(next_ms=now_ms())
    assert desk.carry_out() == 1
    assert states(desk) == ["done"]
    assert [one.state for one in desk.all(models.episode)] == ["done"]


def test_a_refusal_is_final_and_does_not_hold_the_episode_up(desk: Desk) -> None:
    desk.stored()
    desk.tool.errors = [ToolRefused("the automation is switched off", code="off")]
    desk.carry_out()
    (refused,) = desk.all(models.effect)

    assert (refused.state, refused.error_code) == ("dead", "off")
    assert [one.state for one in desk.all(models.episode)] == ["done"]


def test_a_tool_that_stays_away_is_given_up_in_the_end(desk: Desk) -> None:
    desk.stored()
    desk.tool.errors = [ToolUnavailable("away")]
    desk.change(created_ms=now_ms() - 7_200_000)
    desk.carry_out(within_ms=3_600_000)

    assert states(desk) == ["dead"]


def test_effects_of_one_table_keep_their_order_and_never_run_side_by_side(desk: Desk) -> None:
    for n in range(4):
        desk.stored(row=f"r{n}")
    desk.stored(row="other", table="t2")
    beside: list[int] = []
    desk.tool.on_write = lambda: beside.append(
        sum(one.state == "running" and one.lane.endswith("/t1") for one in desk.all(models.effect))
    )
    while desk.carry_out():
        pass

    assert [row for row, _ in desk.tool.told if row != "other"] == ["r0", "r1", "r2", "r3"]
    assert max(beside) == 1


def test_workers_side_by_side_write_each_row_once(desk: Desk) -> None:
    for n in range(12):
        desk.stored(row=f"r{n}", table=f"t{n % 3}")

    def work() -> None:
        worker = ids.ulid()
        for _ in range(12):
            desk.carry_out(worker=worker)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(row for row, _ in desk.tool.told) == sorted(f"r{n}" for n in range(12))
    assert set(states(desk)) == {"done"}


def test_what_a_dead_worker_was_writing_is_written_again(desk: Desk) -> None:
    desk.stored()

    def die() -> None:
        raise SystemExit

    desk.tool.on_write = die
    with pytest.raises(SystemExit):
        desk.carry_out(worker="a" * 26)
    assert states(desk) == ["running"]
    assert effects.reap(desk.database) == 0, "its lease still runs"

    assert effects.release_owners(desk.database, ["b" * 26]) == 0
    assert effects.release_owners(desk.database, ["a" * 26]) == 1
    desk.tool.on_write = lambda: None
    desk.carry_out()
    assert desk.tool.told == [("r1", "done")]


@pytest.mark.parametrize(("policy", "state"), [("repeat", "due"), ("once", "uncertain")])
def test_a_lease_that_ran_out_frees_what_may_be_repeated(
    desk: Desk, policy: str, state: str
) -> None:
    desk.stored()
    desk.change(state="running", policy=policy, lease_until_ms=now_ms() - 1)

    assert effects.reap(desk.database) == 1
    assert states(desk) == [state]


def test_a_worker_that_wakes_up_late_does_not_change_the_outcome(desk: Desk) -> None:
    desk.stored()

    def meanwhile() -> None:
        desk.change(state="dead", fence=9, lease_owner=None)

    desk.tool.on_write = meanwhile
    desk.carry_out()

    assert states(desk) == ["dead"]
