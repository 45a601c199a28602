"""Databases for the pipeline's tests, in SQLite and in PostgreSQL, and rows to put into them."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from pipeline import ids, migrate, models
from pipeline.database import Database, now_ms
from pipeline.servers import PostgreSQL


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


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    """With all tables; once in SQLite, once in PostgreSQL."""
    made: Any = request.getfixturevalue(f"{request.param}_database")
    return made


@pytest.fixture
def sqlite_database(sqlite_template: Path, tmp_path: Path) -> Iterator[Database]:
    """With all tables, in SQLite."""
    path = tmp_path / "notecast.db"
    shutil.copy(sqlite_template, path)
    with _open(f"sqlite:///{path}") as database:
        yield database


@pytest.fixture
def postgres_database(postgres_server: PostgreSQL, postgres_template: str) -> Iterator[Database]:
    """With all tables, in PostgreSQL."""
    with _maintenance(postgres_server) as connection:
        name = f"test_{secrets.token_hex(4)}"
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
        with _open(_url(postgres_server, name)) as database:
            yield database
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upgraded file to copy: upgrading it for each test would take longer than the test."""
    path = tmp_path_factory.mktemp("template") / "notecast.db"
    with _open(f"sqlite:///{path}") as database:
        migrate.upgrade(database)
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgreSQL) -> str:
    """An upgraded database to copy."""
    name = "notecast_template"
    with _maintenance(postgres_server) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    with _open(_url(postgres_server, name)) as database:
        migrate.upgrade(database)
    return name


@contextmanager
def _maintenance(server: PostgreSQL) -> Iterator[Any]:
    url = server.url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def _url(server: PostgreSQL, name: str) -> str:
    return server.url.replace("/postgres?", f"/{name}?")


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
