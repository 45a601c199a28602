"""Databases for the pipeline's tests, in SQLite and in PostgreSQL, and rows to put into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipeline import ids, migrate, models
from pipeline.database import Database, now_ms


@contextmanager
def _open(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/notecast.db"


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """No tables yet; once in SQLite, once in PostgreSQL."""
    url: Any = request.getfixturevalue(f"{request.param}_url")
    with _open(url) as database:
        yield database


@pytest.fixture
def database(empty_database: Database) -> Database:
    """With all tables; once in SQLite, once in PostgreSQL."""
    migrate.upgrade(empty_database)
    return empty_database


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Iterator[Database]:
    """With all tables, in SQLite."""
    with _open(sqlite_url) as database:
        migrate.upgrade(database)
        yield database


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[Database]:
    """With all tables, in PostgreSQL."""
    with _open(postgres_url) as database:
        migrate.upgrade(database)
        yield database


class Seed:
    """Rows as the pipeline would leave them; what a test does not name is ordinary."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def row(self, table: sa.Table, **values: object) -> str:
        """Insert a row; gives its id, a new one unless it is named."""
        if "id" in table.c and isinstance(table.c.id.type, sa.String):
            values = {"id": ids.ulid(), **values}
        with self._database.write() as connection:
            connection.execute(table.insert().values(values))
        return str(values.get("id", ""))

    def tenant(self, name: str = "main") -> str:
        return self.row(models.tenant, name=name, created_ms=0)

    def endpoint(self, tenant_id: str, name: str = "board", connector: str = "webhook") -> str:
        return self.row(
            models.endpoint, tenant_id=tenant_id, connector=connector, name=name, created_ms=0
        )

    def note(self, tenant_id: str, endpoint_id: str, **values: object) -> str:
        ordinary = {
            "fingerprint": "f" * 64,
            "title": "a private title",
            "content": {"text": "a private text"},
            "created_ms": 0,
            "changed_ms": 0,
        }
        return self.row(
            models.note, tenant_id=tenant_id, endpoint_id=endpoint_id, **{**ordinary, **values}
        )

    def episode(self, tenant_id: str, endpoint_id: str, **values: object) -> str:
        ordinary = {
            "key": ids.session_key(),
            "wishes": {},
            "title": "a private title",
            "queue": "realtime",
            "priority": 3,
            "fair_at_ms": 0,
            "state": "queued",
            "state_ms": now_ms(),
            "estimated_ms": 60_000,
            "text_chars": 100,
            "created_ms": now_ms(),
            "queued_ms": now_ms(),
            "day": "2026-11-20",
            "hour": "2026-11-20T08",
        }
        return self.row(
            models.episode, tenant_id=tenant_id, endpoint_id=endpoint_id, **{**ordinary, **values}
        )


@pytest.fixture
def seed(database: Database) -> Seed:
    """Builds rows in `database`."""
    return Seed(database)
