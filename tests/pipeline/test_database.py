import threading
import time

import pytest
import sqlalchemy as sa

from pipeline import ids
from pipeline.database import Database, affected, now_ms, rows
from pipeline.errors import DatabaseUnavailable, Misconfigured
from pipeline.models import endpoint, outbox, tenant


def add_tenant(database: Database, name: str) -> None:
    with database.write() as connection:
        connection.execute(tenant.insert().values(id=ids.ulid(), name=name, created_ms=now_ms()))


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return [row["name"] for row in rows(connection, sa.select(tenant.c.name).order_by("name"))]


def test_the_clock_is_the_databases_in_epoch_milliseconds(database: Database) -> None:
    before = time.time_ns() // 1_000_000
    with database.read() as connection:
        now = connection.scalar(sa.select(now_ms()))
    after = time.time_ns() // 1_000_000

    # julianday() and a server on the same host agree with ours to the millisecond they round to
    assert before - 1 <= now <= after + 1
    assert isinstance(now, int)


def test_the_clock_moves_inside_a_transaction(database: Database) -> None:
    with database.write() as connection:
        first = connection.scalar(sa.select(now_ms()))
        while connection.scalar(sa.select(now_ms())) == first:
            pass

        assert connection.scalar(sa.select(now_ms())) > first


def test_a_write_is_committed_as_a_whole_or_not_at_all(database: Database) -> None:
    add_tenant(database, "first")

    with pytest.raises(ZeroDivisionError), database.write() as connection:
        connection.execute(tenant.insert().values(id=ids.ulid(), name="second", created_ms=0))
        raise ZeroDivisionError

    assert names(database) == ["first"]


def test_inserting_twice_can_be_told_to_do_nothing(database: Database) -> None:
    add_tenant(database, "main")
    again = (
        database.insert(tenant)
        .values(id=ids.ulid(), name="main", created_ms=0)
        .on_conflict_do_nothing()
        .returning(tenant.c.id)
    )

    with database.write() as connection:
        assert connection.execute(again).scalar() is None
    assert names(database) == ["main"]


def test_affected_counts_the_rows_of_an_update(database: Database) -> None:
    for name in ("a", "b", "c"):
        add_tenant(database, name)

    with database.write() as connection:
        update = tenant.update().where(tenant.c.name > "a").values(weight=1)
        assert affected(connection.execute(update)) == 2


def test_serial_numbers_are_given_out_by_the_database(database: Database) -> None:
    put = outbox.insert().values(topic="expand", created_ms=0, due_ms=0).returning(outbox.c.id)

    with database.write() as connection:
        first, second = (connection.execute(put).scalar_one() for _ in range(2))

    assert first < second


def test_an_enumeration_refuses_other_words(database: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError, match="ck_outbox_topic"), database.write() as one:
        one.execute(outbox.insert().values(topic="nonsense", created_ms=0, due_ms=0))


def test_a_reference_to_nothing_is_refused(database: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(
            endpoint.insert().values(
                id="e", tenant_id="nobody", connector="webhook", name="board", created_ms=0
            )
        )


def test_writers_that_read_first_wait_for_each_other(database: Database) -> None:
    add_tenant(database, "main")
    errors: list[Exception] = []

    def count_up() -> None:
        try:
            for _ in range(25):
                with database.write() as connection:
                    weight = connection.scalar(
                        sa.select(tenant.c.weight).with_for_update().where(tenant.c.name == "main")
                    )
                    connection.execute(tenant.update().values(weight=weight + 1))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with database.read() as connection:
        assert (errors, connection.scalar(sa.select(tenant.c.weight))) == ([], 200)


def test_rows_another_writer_holds_can_be_skipped(database: Database) -> None:
    for name in ("a", "b"):
        add_tenant(database, name)
    query = database.skip_locked(sa.select(tenant.c.name).order_by("name").limit(1))
    if database.is_sqlite:  # one writer: there is nobody to skip
        with database.write() as connection:
            assert connection.scalar(query) == "a"
        return

    with database.write() as first, database.write() as second:
        assert (first.scalar(query), second.scalar(query)) == ("a", "b")


def test_sqlite_keeps_what_it_acknowledged(sqlite_database: Database) -> None:
    with sqlite_database.read() as connection:
        pragmas = {
            name: connection.scalar(sa.text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }

    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_sqlite_reading_does_not_wait_for_a_writer(sqlite_database: Database) -> None:
    add_tenant(sqlite_database, "main")

    with sqlite_database.write() as writer:
        writer.execute(tenant.update().values(name="other"))
        assert names(sqlite_database) == ["main"]
    assert names(sqlite_database) == ["other"]


def test_postgresql_ends_a_statement_that_takes_too_long(postgres_url: str) -> None:
    database = Database(postgres_url, statement_timeout_s=0.1)

    with pytest.raises(DatabaseUnavailable, match="statement timeout"), database.read() as one:
        one.execute(sa.text("SELECT pg_sleep(60)"))
    database.close()


def test_a_database_that_is_away_is_unavailable_not_a_trace() -> None:
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing")

    with pytest.raises(DatabaseUnavailable, match="the database does not answer"), database.read():
        pass
    database.close()


def test_other_databases_are_refused_with_the_choice() -> None:
    with pytest.raises(Misconfigured, match="'mysql' is not supported; use sqlite"):
        Database("mysql://localhost/notecast")
