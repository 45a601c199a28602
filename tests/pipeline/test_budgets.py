"""One bucket for all workers: bursts, refill, the tool's own wish."""

from __future__ import annotations

import threading
import time

import pytest

from connectors.base import Budget
from pipeline import budgets, models
from pipeline.database import Database


def take(database: Database, wanted: Budget, name: str = "tool/x") -> int:
    with database.write() as connection:
        return budgets.take(database, connection, name, wanted)


def test_a_burst_is_let_through_and_then_the_wait_is_named(database: Database) -> None:
    wanted = Budget("x", per_min=1, burst=3)

    assert [take(database, wanted) for _ in range(3)] == [0, 0, 0]
    assert 30_000 < take(database, wanted) <= 60_000


def test_without_a_burst_calls_come_one_by_one(database: Database) -> None:
    wanted = Budget("x", per_s=20)
    began = time.monotonic()
    taken = 0
    while taken < 10:
        wait_ms = take(database, wanted)
        taken += not wait_ms
        time.sleep(wait_ms / 1000)

    assert time.monotonic() - began >= 0.44  # nine waits of 50 ms, clocks are whole milliseconds


def test_other_names_have_other_buckets(database: Database) -> None:
    wanted = Budget("x", per_min=1)

    assert take(database, wanted) == 0
    assert take(database, wanted, "tool/y") == 0
    assert take(database, wanted) > 0


@pytest.mark.parametrize("known", [False, True])
def test_a_tool_that_wants_a_rest_gets_it(database: Database, known: bool) -> None:
    wanted = Budget("x", per_s=1000, burst=10)
    if known:
        take(database, wanted)
    with database.write() as connection:
        budgets.hold(database, connection, "tool/x", 60_000)
        budgets.hold(database, connection, "tool/x", 1_000)

    assert 50_000 < take(database, wanted) <= 60_000


def test_many_workers_take_no_more_than_there_is(database: Database) -> None:
    wanted = Budget("x", per_min=1, burst=7)
    taken: list[int] = []

    def work() -> None:
        for _ in range(5):
            taken.append(take(database, wanted))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert taken.count(0) == 7
    with database.read() as connection:
        assert len(connection.execute(models.budget.select()).all()) == 1
