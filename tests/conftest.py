"""Real servers for the whole suite, each started once, and only if a test asks for it.

`valkey_server`, `s3_server` and `postgres_server` live as long as the session; `valkey_url`,
`s3_storage` and `postgres_url` give one test an empty place in them.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import servers
from pipeline.storage import S3Storage


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """Not under `tmp_path`: PostgreSQL, which is not root even where we are, must reach it."""
    directory = Path(tempfile.mkdtemp(prefix="notecast-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def valkey_server(server_directory: Path) -> Iterator[servers.Valkey]:
    """Valkey on a unix socket: `.url` for redis-py, `.broker_url` for Celery."""
    with servers.running(servers.valkey(server_directory / "valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(server_directory: Path) -> Iterator[servers.SeaweedFS]:
    """SeaweedFS; `.s3` holds endpoint, keys and a bucket that exists."""
    with servers.running(servers.seaweedfs(server_directory / "seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server(server_directory: Path) -> Iterator[servers.PostgreSQL]:
    """PostgreSQL; `.url` is its maintenance database: tests take `postgres_url`."""
    with servers.running(servers.postgres(server_directory / "postgres")) as server:
        yield server


@pytest.fixture
def valkey_url(valkey_server: servers.Valkey) -> str:
    """The session's Valkey, emptied."""
    import redis

    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture
def postgres_url(postgres_server: servers.PostgreSQL) -> Iterator[str]:
    """A new, empty database (SQLAlchemy URL), dropped after the test."""
    import psycopg

    name = f"test_{secrets.token_hex(4)}"
    maintenance = postgres_server.url.replace("+psycopg", "")
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres_server.url.replace("/postgres?", f"/{name}?")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def s3_storage(s3_server: servers.SeaweedFS) -> Iterator[S3Storage]:
    """An empty part of the session's bucket."""
    with S3Storage.at(s3_server.s3, prefix=secrets.token_hex(8)) as storage:
        yield storage
