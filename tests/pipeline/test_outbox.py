"""Wake-ups survive whatever the broker and the processes do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from pipeline import outbox
from pipeline.database import Database
from pipeline.models import outbox as table
from tests.pipeline.house import Bell


def put(database: Database, *topics: str, after_ms: int = -1_000) -> list[tuple[int, str]]:
    """Rows that are due now unless `after_ms` says otherwise."""
    with database.write() as connection:
        return [(outbox.put(connection, topic, after_ms=after_ms), topic) for topic in topics]


def left(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline, "never became true"
        time.sleep(0.01)


def test_a_wake_up_of_a_broken_transaction_was_never_there(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        outbox.put(connection, "realtime")
        raise ZeroDivisionError

    assert left(database) == 0


def test_the_relay_sends_what_is_due_and_forgets_it(database: Database) -> None:
    put(database, "realtime", "effect")
    put(database, "batch", after_ms=60_000)
    bell = Bell()

    assert outbox.relay(database, bell) == 2
    assert sorted(bell.rung) == ["effect", "realtime"]
    assert left(database) == 1
    assert outbox.relay(database, bell) == 0


def test_the_writer_gets_a_second_before_the_relay_takes_over(database: Database) -> None:
    put(database, "realtime", after_ms=0)
    bell = Bell()

    assert outbox.relay(database, bell) == 0
    assert bell.rung == []


def test_a_hundred_wake_ups_of_one_topic_are_a_few_messages(database: Database) -> None:
    put(database, *["realtime"] * 100, "read")
    bell = Bell()
    outbox.relay(database, bell)

    assert bell.rung.count("realtime") == 4
    assert bell.rung.count("read") == 1
    assert left(database) == 0


def test_rows_stay_while_the_broker_is_away(database: Database) -> None:
    put(database, "realtime", "effect")
    bell = Bell()
    bell.is_away = True

    assert outbox.relay(database, bell) == 0
    assert left(database) == 2
    with database.write() as connection:  # the short claim of that relay runs out
        connection.execute(table.update().values(claimed_until_ms=0))
    bell.is_away = False
    assert outbox.relay(database, bell) == 2
    assert left(database) == 0


def test_a_topic_that_cannot_be_sent_does_not_hold_the_others_up(database: Database) -> None:
    put(database, "realtime", "effect")
    rung: list[str] = []

    def send(topic: str) -> None:
        if topic == "realtime":
            raise ConnectionError
        rung.append(topic)

    assert outbox.relay(database, send) == 1
    assert rung == ["effect"]
    assert left(database) == 1


def test_two_relays_do_not_send_the_same_rows(database: Database) -> None:
    put(database, "realtime", "batch", "effect", "read")
    second, seen = Bell(), []

    def send(topic: str) -> None:
        if not seen:
            seen.append(outbox.relay(database, second))

    outbox.relay(database, send)

    assert seen == [0]
    assert second.rung == []


def test_a_relay_that_dies_before_it_publishes_is_followed_by_another(database: Database) -> None:
    put(database, "realtime")

    def die(topic: str) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        outbox.relay(database, die)
    with database.write() as connection:
        connection.execute(table.update().values(claimed_until_ms=0))
    bell = Bell()
    outbox.relay(database, bell)

    assert bell.rung == ["realtime"]
    assert left(database) == 0


def test_the_sender_publishes_at_once_and_deletes_the_rows(database: Database) -> None:
    bell = Bell()
    sender = outbox.Sender(database, bell)
    try:
        sender.committed(put(database, "realtime"))
        wait_until(lambda: bell.rung == ["realtime"])
        wait_until(lambda: left(database) == 0)
        sender.committed([])
    finally:
        sender.close()

    assert bell.rung == ["realtime"]


def test_the_sender_leaves_to_the_relay_what_it_cannot_publish(database: Database) -> None:
    bell, tried = Bell(), threading.Event()
    bell.is_away = True

    def send(topic: str) -> None:
        tried.set()
        bell(topic)

    sender = outbox.Sender(database, send)
    try:
        sender.committed(put(database, "realtime"))
        assert tried.wait(20)
    finally:
        sender.close()

    assert left(database) == 1
    bell.is_away = False
    assert outbox.relay(database, bell) == 1
