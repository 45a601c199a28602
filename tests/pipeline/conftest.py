"""Databases for the pipeline's tests: an upgraded one in SQLite and one in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline import migrate
from pipeline.database import Database


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
