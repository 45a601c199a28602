"""Where the truth is kept: SQLite (WAL, synchronous FULL) or PostgreSQL, with the same statements.

Every decision of the pipeline is one UPDATE whose WHERE names the expected state and fence, so READ
COMMITTED is enough. SQLite has one writer: writing transactions begin with BEGIN IMMEDIATE, because
a read that turns into a write fails at once with "locked" and the busy timeout does not help it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from pipeline.errors import DatabaseUnavailable, Misconfigured

log = logging.getLogger(__name__)

S = TypeVar("S", bound=sa.Executable)

_READING = {"notecast_reading": True}
_BUSY_S, _POLL_S = 10.0, 0.001
_PATIENT, _IMPATIENT = f"busy_timeout={int(_BUSY_S * 1000)}", "busy_timeout=0"
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", _PATIENT, "foreign_keys=ON")


class now_ms(FunctionElement[int]):
    """The database's clock, epoch milliseconds: the only clock that rows are compared by."""

    type = sa.BigInteger()
    inherit_cache = True
    name = "now_ms"


@compiles(now_ms, "sqlite")
def _now_sqlite(_element: now_ms, _compiler: Any, **_options: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@compiles(now_ms, "postgresql")
def _now_postgresql(_element: now_ms, _compiler: Any, **_options: Any) -> str:
    return "CAST(extract(epoch from clock_timestamp()) * 1000 AS BIGINT)"


class Database:
    """One database and its pool; safe to share between threads, not between processes.

    Args:
        url: `sqlite:////absolute/path.db` or `postgresql+psycopg://...`.
        statement_timeout_s: PostgreSQL ends a statement after this long.
    """

    def __init__(self, url: str, *, statement_timeout_s: float = 30.0) -> None:
        self.url = url
        self._writing = threading.Lock()
        self._statements: dict[Callable[[Database], Any], Any] = {}
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite:
            self.engine = _sqlite_engine(url)
        elif url.startswith("postgresql"):
            self.engine = _postgresql_engine(url, statement_timeout_s)
        else:
            scheme = url.split(":", 1)[0]
            raise Misconfigured(
                f"database_url: {scheme!r} is not supported; use sqlite:////path or postgresql+psycopg://"
            )

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction that may write; committed when the block ends.

        Raises:
            DatabaseUnavailable: no connection, or locked for longer than the busy timeout. Raised
                by the commit itself it leaves the outcome unknown: look by key.
        """
        with _translated(), self._turn(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One transaction that only reads.

        Raises:
            DatabaseUnavailable: as `write`.
        """
        with (
            _translated(),
            self.engine.connect().execution_options(**_READING) as connection,
            connection.begin(),
        ):
            yield connection

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows ON CONFLICT in this database's dialect."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def once(self, build: Callable[[Database], S]) -> S:
        """The statement that `build` makes, made at its first use.

        For what every hook needs: building a statement costs several times what running it does.
        """
        found: S | None = self._statements.get(build)
        if found is None:
            found = self._statements[build] = build(self)
        return found

    def skip_locked(self, select: sa.Select[Any]) -> sa.Select[Any]:
        """FOR UPDATE SKIP LOCKED where rows can be locked; SQLite has one writer anyway."""
        return select if self.is_sqlite else select.with_for_update(skip_locked=True)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Queue the writers of this process: SQLite would let them poll, the unlucky for long."""
        if not self.is_sqlite:
            yield
            return
        if not self._writing.acquire(timeout=_BUSY_S):
            raise DatabaseUnavailable(f"the database was busy for {_BUSY_S:g} s")
        try:
            yield
        finally:
            self._writing.release()

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def affected(result: sa.CursorResult[Any]) -> int:
    """Rows an UPDATE or DELETE changed; 0 means: not in the expected state any more."""
    return result.rowcount


def rows(
    connection: sa.Connection, statement: sa.Executable, **values: object
) -> Sequence[Mapping[str, Any]]:
    """All rows of a query as mappings; `values` are those of its bound parameters."""
    return [dict(row) for row in connection.execute(statement, values).mappings()]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sa.exc.OperationalError as error:
        raise DatabaseUnavailable(f"the database does not answer: {error.orig}") from error
    except (sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise DatabaseUnavailable(f"the database does not answer: {error}") from error


def _sqlite_engine(url: str) -> sa.Engine:
    path = Path(url.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_S}, pool_size=8, max_overflow=32)

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("notecast_reading"):
            connection.exec_driver_sql("BEGIN")
        else:
            _begin_immediate(connection)

    return engine


def _begin_immediate(connection: sa.Connection) -> None:
    """Wait for the write lock in steps of a millisecond.

    SQLite's own busy handler sleeps longer each time, up to 100 ms, and so starves whoever waits
    behind another process that commits without pause.
    """
    driver: Any = connection.connection.driver_connection
    give_up_at = time.monotonic() + _BUSY_S
    driver.execute(f"PRAGMA {_IMPATIENT}")
    try:
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except sa.exc.OperationalError as error:
                code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
                if code != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                    raise
            time.sleep(_POLL_S)
    finally:
        driver.execute(f"PRAGMA {_PATIENT}")


def _postgresql_engine(url: str, statement_timeout_s: float) -> sa.Engine:
    options = (
        f"-c statement_timeout={int(statement_timeout_s * 1000)} "
        "-c idle_in_transaction_session_timeout=10000 -c synchronous_commit=on"
    )
    try:
        return sa.create_engine(
            url,
            pool_size=5,
            max_overflow=11,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 3, "options": options},
        )
    except ModuleNotFoundError as error:
        raise Misconfigured(
            "PostgreSQL needs its driver: pip install 'notecast[postgres]'"
        ) from error
