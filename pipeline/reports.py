"""What administrators may ask: one SELECT of their own, or a named report. Read-only, always.

The wall on PostgreSQL is a read-only transaction, a server-side cursor (which takes one query and
nothing else) and, where an administrator has made it, the role `notecast_read`, which may read the
views and nothing besides. On SQLite whoever may run a query may also read the file: there the wall
keeps people from changing things, and from reading notes, keys and links by accident. Every call
leaves an audit row with the digest of its text.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa

from migrations import report_views
from pipeline import models
from pipeline.database import Database, now_ms
from pipeline.errors import DatabaseUnavailable, PipelineError, Refused

if TYPE_CHECKING:
    from rich.table import Table

_MAX_VALUE_BYTES = 10_000_000  # one value a query may build
_OPCODES_BETWEEN_LOOKS = 10_000

# What the text of a note, a key or a link can be read from; the views show none of it.
_PRIVATE = {
    (models.api_key.name, "digest"),
    (models.effect.name, "body"),
    (models.endpoint_secret.name, "sealed"),
    (models.duty.name, "state"),
    (models.episode.name, "script"),
    (models.episode.name, "title"),
    (models.episode.name, "wishes"),
    (models.listen_link.name, "slug"),
    (models.note.name, "content"),
    (models.note.name, "title"),
    (models.segment.name, "words"),
}
# Asked of PostgreSQL: become `notecast_read` where that role exists and is ours to take.
_TAKE_ROLE = """
SELECT set_config('role', rolname, false) FROM pg_roles
WHERE rolname = 'notecast_read' AND pg_has_role(current_user, oid, 'MEMBER')
"""
_ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


@dataclass(frozen=True, slots=True)
class Result:
    """Rows of an answer; `truncated` says that there were more."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Report:
    """A view with its order, and the columns a person may filter by."""

    order_by: tuple[str, ...]
    filters: tuple[str, ...] = ()

    def select(self, view: str, wanted: dict[str, str], limit: int) -> sa.Select[Any]:
        """The query; the newest come first, as far as the view knows time."""
        query = sa.select(sa.text("*")).select_from(sa.table(view))
        for name, value in wanted.items():
            query = query.where(sa.column(name) == value)
        for name in self.order_by:
            column: sa.ColumnClause[Any] = sa.column(name.removeprefix("-"))
            query = query.order_by(column.desc() if name.startswith("-") else column.asc())
        return query.limit(limit)


REPORTS: dict[str, Report] = {
    "minutes_day": Report(("-day", "tenant", "endpoint"), ("day", "tenant", "endpoint")),
    "queue_latency": Report(("-hour", "queue", "stage"), ("day",)),
    "backlog": Report(("tenant", "queue"), ("tenant",)),
    "failures_connector": Report(("-day", "endpoint", "error_code"), ("day", "tenant", "endpoint")),
    "stuck": Report(("-for_s",)),
    "dead": Report(("-died_at_ms",), ("day", "tenant", "endpoint")),
    "alarms": Report(("-last_at_ms", "endpoint"), ("tenant", "endpoint")),
    "workers": Report(("seen_s_ago",)),
    "episode_path": Report(("at_ms", "step"), ("episode",)),
    "runs": Report(("-fired_at_ms",), ("tenant", "schedule")),
}
"""Name -> report; the view is `v_` and the name."""


def report(
    database: Database,
    name: str,
    *,
    actor: str = "system",
    limit: int = 10_000,
    **filters: str | None,
) -> Result:
    """Run a named report.

    Args:
        filters: column -> value, `day="2026-11-20"` or `tenant=...` for example; None is no filter.

    Raises:
        Refused: no such report, or it has no such filter.
        DatabaseUnavailable: no connection.
    """
    if name not in REPORTS:
        raise Refused(f"no such report: {name}; reports are: {', '.join(REPORTS)}", field="name")
    wanted = {column: value for column, value in filters.items() if value is not None}
    for column in wanted:
        if column not in REPORTS[name].filters:
            raise Refused(f"report {name} has no {column} to filter by", field=column)
    with database.read() as connection:
        found = connection.execute(REPORTS[name].select(f"v_{name}", wanted, limit + 1))
        result = _result(list(found.keys()), found.all(), limit)
    _audit(database, actor, "report", name, {"rows": len(result.rows), **wanted})
    return result


def episode_path(database: Database, key: str) -> list[dict[str, Any]]:
    """What happened to one episode, oldest first: `at_ms`, `what`, `detail`."""
    query = REPORTS["episode_path"].select("v_episode_path", {"episode": key}, 10_000)
    with database.read() as connection:
        found = connection.execute(query).mappings().all()
    return [{name: row[name] for name in ("at_ms", "what", "detail")} for row in found]


def run_sql(
    database: Database, text: str, *, actor: str, limit: int = 10_000, timeout_s: float = 10.0
) -> Result:
    """Run one SELECT as a person wrote it; it cannot change anything.

    Args:
        actor: who asks, for the audit row.
        limit: rows given at most; `Result.truncated` says when there were more.
        timeout_s: the database stops the query after this long.

    Raises:
        Refused: not a query, a mistake in it, or stopped after `timeout_s`; the message says which.
        DatabaseUnavailable: no connection.
    """
    ask = _ask_sqlite if database.is_sqlite else _ask_postgresql
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    try:
        result = ask(database, _clean(text), limit, timeout_s)
    except PipelineError as error:
        _audit(database, actor, "sql", digest, {"rows": 0, "refused": error.code})
        raise
    _audit(database, actor, "sql", digest, {"rows": len(result.rows)})
    return result


def _clean(text: str) -> str:
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
        raise Refused("the query is not valid UTF-8 text", field="query")
    return text.strip().rstrip(";")


def to_json(result: Result) -> str:
    """A JSON list with one object per row."""
    found = [dict(zip(result.columns, row, strict=True)) for row in result.rows]
    return json.dumps(found, ensure_ascii=False, default=str)


def to_csv(result: Result) -> str:
    """RFC 4180 with a header line."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(result.columns)
    writer.writerows(result.rows)
    return text.getvalue()


def to_table(result: Result) -> Table:
    """For a terminal; instants (`_at_ms`) are shown as UTC times."""
    from rich.markup import escape
    from rich.table import Table

    more = f"first {len(result.rows)} rows; there are more" if result.truncated else None
    table = Table(caption=more or f"{len(result.rows)} rows", caption_justify="left")
    for column in result.columns:
        is_number = any(isinstance(row[len(table.columns)], (int, float)) for row in result.rows)
        is_instant = column.endswith("_at_ms")
        table.add_column(
            escape(column.removesuffix("_ms") if is_instant else column),
            justify="right" if is_number and not is_instant else "left",
            overflow="fold",
        )
    for row in result.rows:
        cells = zip(result.columns, row, strict=True)
        table.add_row(*(escape(_shown(column, value)) for column, value in cells))
    return table


def _shown(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column.endswith("_at_ms") and isinstance(value, int):
        return datetime.fromtimestamp(value / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return str(value)


def _result(columns: Sequence[str], found: Sequence[Sequence[Any]], limit: int) -> Result:
    kept = tuple(tuple(_plain(value) for value in row) for row in found[:limit])
    return Result(tuple(columns), kept, len(found) > limit)


def _plain(value: Any) -> Any:
    """PostgreSQL's NUMERIC and SQLite's blobs as what JSON and CSV can hold."""
    if isinstance(value, Decimal):
        return int(value) if value.as_tuple().exponent == 0 else float(value)
    if isinstance(value, (bytes, memoryview)):
        return f"{len(bytes(value))} bytes"
    return value


def _audit(database: Database, actor: str, action: str, what: str, detail: dict[str, Any]) -> None:
    with database.write() as connection:
        connection.execute(
            models.audit.insert().values(
                ms=now_ms(), actor=actor[:80], action=action, object=what[:80], detail=detail
            )
        )


# SQLite -----------------------------------------------------------------------------------------


def _ask_sqlite(database: Database, text: str, limit: int, timeout_s: float) -> Result:
    path = Path(database.engine.url.database or "")
    uri = f"file:{quote(str(path))}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        connection.execute("PRAGMA query_only=ON")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
        refusals: list[str] = []
        connection.set_authorizer(_authorizer(refusals))
        until = time.monotonic() + timeout_s
        connection.set_progress_handler(lambda: time.monotonic() > until, _OPCODES_BETWEEN_LOOKS)
        try:
            cursor = connection.execute(text)
            found = cursor.fetchmany(limit + 1)
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise _sqlite_error(error, refusals, timeout_s) from None
        if cursor.description is None:
            raise Refused("write one SELECT: an empty text asks nothing", field="query")
        return _result([column[0] for column in cursor.description], found, limit)


def _authorizer(refusals: list[str]) -> Callable[..., int]:
    def authorize(action: int, first: str | None, second: str | None, *_where: str | None) -> int:
        if action == sqlite3.SQLITE_READ and (first, second) in _PRIVATE:
            refusals.append(f"{first}.{second} is private and cannot be queried")
            return sqlite3.SQLITE_DENY
        if action in _ALLOWED and second != "load_extension":
            return sqlite3.SQLITE_OK
        refusals.append("only a SELECT is possible: nothing can be changed, attached or set here")
        return sqlite3.SQLITE_DENY

    return authorize


def _sqlite_error(
    error: Exception, refusals: Sequence[str], timeout_s: float
) -> Refused | DatabaseUnavailable:
    message = str(error)
    if message == "interrupted":
        return _too_slow(timeout_s)
    if refusals:
        return Refused(refusals[0], field="query")
    if "one statement at a time" in message:
        return Refused("write one SELECT: there are several statements", field="query")
    if "locked" in message or "unable to open" in message:
        return DatabaseUnavailable(f"the database does not answer: {message}")
    return _mistake(message)


# PostgreSQL -------------------------------------------------------------------------------------


def _ask_postgresql(database: Database, text: str, limit: int, timeout_s: float) -> Result:
    import psycopg

    with _own_connection(database) as connection:
        try:
            connection.execute("SET default_transaction_read_only = on")
            connection.execute(f"SET statement_timeout = {int(timeout_s * 1000)}")
            connection.execute(_TAKE_ROLE)
            connection.commit()
            # A server-side cursor accepts one query: no second statement, no COPY, no SET.
            with connection.cursor(name="notecast_sql") as cursor:
                cursor.execute(text)
                found = cursor.fetchmany(limit + 1)
                columns = [column.name for column in cursor.description]
        except psycopg.errors.QueryCanceled:
            raise _too_slow(timeout_s) from None
        except psycopg.Error as error:
            raise _postgresql_error(error) from None
    return _result(columns, found, limit)


@contextmanager
def _own_connection(database: Database) -> Iterator[Any]:
    """Outside the pool: whatever the text sets ends with it."""
    try:
        pooled = database.engine.raw_connection()
    except sa.exc.OperationalError as error:
        raise DatabaseUnavailable(f"the database does not answer: {error.orig}") from error
    connection: Any = pooled.driver_connection
    pooled.detach()
    try:
        yield connection
    finally:
        pooled.close()


def _postgresql_error(error: Any) -> Refused | DatabaseUnavailable:
    message = error.diag.message_primary
    if message is None:  # the connection broke; the server said nothing
        return DatabaseUnavailable(f"the database does not answer: {error}")
    if error.sqlstate == "25006" or "multiple commands" in message:
        return Refused(f"only one SELECT is possible: {message}", field="query")
    return _mistake(message)


def _too_slow(timeout_s: float) -> Refused:
    return Refused(
        f"the query ran for {timeout_s:g} s and was stopped: narrow it down, by day for example",
        field="query",
    )


def _mistake(message: str) -> Refused:
    if "no such table" in message or ("relation" in message and "does not exist" in message):
        message = f"{message}; views are: {', '.join(report_views.names())}"
    return Refused(message, field="query")
