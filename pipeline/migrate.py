"""Bring a database to the newest tables: `notecast db upgrade`, and each `notecast up`.

    read revision -> nothing to do (no Alembic imported, a few milliseconds)
                  -> SQLite: copy the file -> lock, read again -> revisions, views -> commit

An upgrade is one transaction on both databases: it happens as a whole or not at all. A revision
whose head says `live = False` cannot share the tables with running workers: it is refused until
they are gone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

import migrations
from pipeline import models
from pipeline.database import Database, now_ms
from pipeline.errors import DatabaseUnavailable, Misconfigured, Refused

if TYPE_CHECKING:
    from alembic.config import Config

log = logging.getLogger(__name__)

_ADVISORY_KEY = 0x6E6F7465  # any number, the same in every build
_LOCK_TRIES = 10  # of 3 s each
_ALIVE_MS = 30_000  # a worker that was not seen for longer is gone
_LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's SQLSTATE for lock_timeout


@dataclass(frozen=True, slots=True)
class Status:
    """Where a database stands.

    Attributes:
        current: its revision, None before the first upgrade.
        head: the newest revision of this build.
    """

    current: str | None
    head: str

    @property
    def is_current(self) -> bool:
        """Nothing is to be done."""
        return self.current == self.head

    def __str__(self) -> str:
        if self.is_current:
            return f"the database is at revision {self.current}, the newest"
        at = f"at revision {self.current}" if self.current else "empty"
        return f"the database is {at}; the newest is {self.head}: run `notecast db upgrade`"


def status(database: Database) -> Status:
    """Read the revision; changes nothing and imports no Alembic.

    Raises:
        DatabaseUnavailable: no connection.
    """
    with database.read() as connection:
        return Status(_revision(connection), migrations.head())


def upgrade(database: Database) -> list[str]:
    """Apply what is missing; twice is as good as once, two at a time are as good as one.

    Returns:
        The revisions that were applied, oldest first.

    Raises:
        Misconfigured: a newer build has upgraded this database, or its tables are not ours.
        Refused: workers are alive that the next revision would break.
        DatabaseUnavailable: no connection, or the tables stayed locked for 30 s.
    """
    found = status(database)
    if found.is_current:
        return []
    if database.is_sqlite and found.current is not None:
        _copy(database, found)
    for _ in range(_LOCK_TRIES):
        try:
            return _upgrade_locked(database)
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise DatabaseUnavailable(f"the database does not answer: {error.orig}") from error
            log.info("waiting for the tables: another upgrade or a long transaction has them")
    raise DatabaseUnavailable(
        "another upgrade or a long transaction has held the tables for 30 s; nothing was changed, "
        "run `notecast db upgrade` again when it has ended"
    )


def config(connection: sa.Connection) -> Config:
    """Alembic's configuration for commands on an open connection; there is no alembic.ini."""
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(migrations.DIRECTORY).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def _upgrade_locked(database: Database) -> list[str]:
    with (
        database.engine.connect() as connection,
        _foreign_keys_off(database, connection),
        connection.begin(),
    ):
        if not database.is_sqlite:
            _lock(connection)
        found = Status(_revision(connection), migrations.head())
        if found.is_current:  # somebody else was faster
            return []
        applied = _apply(connection, found)
        if database.is_sqlite:
            _check_foreign_keys(connection)
    log.info("database upgraded", extra={"from": found.current, "to": found.head})
    return applied


def _lock(connection: sa.Connection) -> None:
    """Keep other upgrades out; wait 3 s at most for a lock, for the work as long as it takes."""
    connection.execute(sa.text("SET LOCAL lock_timeout = '3s'"))
    connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
    connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_KEY)))


@contextmanager
def _foreign_keys_off(database: Database, connection: sa.Connection) -> Iterator[None]:
    """SQLite changes a column by rebuilding its table, and dropping the old one would cascade."""
    if not database.is_sqlite:
        yield
        return
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")  # inside a transaction it would be ignored
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def _check_foreign_keys(connection: sa.Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        tables = ", ".join(sorted({row[0] for row in broken}))
        raise Misconfigured(f"the upgrade was taken back: rows of {tables} point to nothing")


def _apply(connection: sa.Connection, found: Status) -> list[str]:
    from alembic import command
    from alembic.script import ScriptDirectory

    _check_ours(connection, found)
    made = config(connection)
    chain = ScriptDirectory.from_config(made).iterate_revisions("head", found.current or "base")
    revisions = list(reversed(list(chain)))
    if found.current is not None and not all(revision.module.live for revision in revisions):
        _check_no_workers(connection, found)
    command.upgrade(made, "head")
    return [revision.revision for revision in revisions]


def _check_ours(connection: sa.Connection, found: Status) -> None:
    if found.current is None:
        taken = sorted(set(sa.inspect(connection).get_table_names()) & set(models.metadata.tables))
        if taken:
            raise Misconfigured(
                f"database_url: the database has a table {taken[0]!r} that no upgrade made; "
                "give Notecast a database of its own"
            )
    elif found.current > found.head:
        raise Misconfigured(
            f"the database is at revision {found.current}, this build knows revisions up to "
            f"{found.head}: run the newer build, or restore the copy made before its upgrade"
        )


def _check_no_workers(connection: sa.Connection, found: Status) -> None:
    worker = models.worker
    alive = connection.scalar(
        sa.select(sa.func.count())
        .select_from(worker)
        .where(worker.c.state != "gone", worker.c.seen_ms > now_ms() - _ALIVE_MS)
    )
    if alive:
        raise Refused(
            f"workers are running ({alive}) and the upgrade to {found.head} would break them: "
            "stop them, then run `notecast db upgrade` again"
        )


def _copy(database: Database, found: Status) -> None:
    """Keep the file as it is beside itself, readable by its owner only."""
    path = Path(database.engine.url.database or "")
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    copy = path.with_name(f"{path.stem}.before-{found.head}.{stamp}{path.suffix}")
    os.close(os.open(copy, os.O_CREAT | os.O_WRONLY, 0o600))  # VACUUM fills an empty file
    with database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.execute("VACUUM INTO ?", (str(copy),))  # refused inside a transaction
    log.info("database copied before its upgrade", extra={"copy": str(copy)})
