from __future__ import annotations

from collections.abc import Iterator

import pytest

from streaming.chunk_log import ChunkLog, MemoryLog
from streaming.redis_log import RedisLog


@pytest.fixture(params=["memory", "redis"])
def chunk_log(request: pytest.FixtureRequest) -> Iterator[ChunkLog]:
    """Each form of the log in turn, empty."""
    if request.param == "memory":
        yield MemoryLog()
        return
    log = RedisLog(request.getfixturevalue("valkey_url"))
    yield log
    log.close()


@pytest.fixture
def redis_log(valkey_url: str) -> Iterator[RedisLog]:
    log = RedisLog(valkey_url)
    yield log
    log.close()
