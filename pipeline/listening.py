"""Who listens, at every gateway of the installation.

Each gateway says every two seconds what it holds, in one hash of the live log's server; a look
reads them all. What a gateway said over ten seconds ago is not believed any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from pipeline.services import Services
from streaming.gateway import Gateway

log = logging.getLogger(__name__)

EVERY_S = 2.0
BELIEVED_S = 10.0
_KEY = "nc:listening"


def census(gateway: Gateway) -> dict[str, Any]:
    """What one gateway holds, as plain JSON values."""
    sessions = gateway.hub.census(time.monotonic())
    return {
        "node": gateway.node,
        "at": time.time(),
        "draining": gateway.draining,
        "listeners": sum(one.listeners for one in sessions.values()),
        "underruns": gateway.counters.underruns,
        "sessions": {
            sid: {
                "listeners": one.listeners,
                "underruns": one.underruns,
                "lag_s": round(one.lag_s, 1),
            }
            for sid, one in sessions.items()
        },
    }


@asynccontextmanager
async def told(services: Services, gateway: Gateway) -> AsyncIterator[None]:
    """Let gateways know of each other's listeners, while the block runs."""
    task = asyncio.create_task(_tell(services.redis_url, gateway))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def listening(services: Services, gateway: Gateway) -> dict[str, Any]:
    """All gateways together: `listeners`, `underruns`, `sessions` by id, `gateways`."""
    now = time.time()
    found = {gateway.node: census(gateway)}
    try:
        async with Redis.from_url(services.redis_url, socket_timeout=2.0) as client:
            found = await _others(client, gateway.node) | found
    except (RedisError, OSError) as error:
        log.info("other gateways cannot be asked: %s", error)
    sessions: dict[str, dict[str, Any]] = {}
    for one in found.values():
        for sid, heard in one["sessions"].items():
            whole = sessions.setdefault(sid, {"listeners": 0, "underruns": 0, "lag_s": 0.0})
            whole["listeners"] += heard["listeners"]
            whole["underruns"] += heard["underruns"]
            whole["lag_s"] = max(whole["lag_s"], heard["lag_s"])
    return {
        "listeners": sum(one["listeners"] for one in found.values()),
        "underruns": sum(one["underruns"] for one in found.values()),
        "sessions": sessions,
        "gateways": [
            {
                "node": one["node"],
                "listeners": one["listeners"],
                "draining": one["draining"],
                "seen_s_ago": round(max(0.0, now - one["at"]), 1),
            }
            for one in found.values()
        ],
    }


async def _others(client: Redis, node: str) -> dict[str, dict[str, Any]]:
    """What the gateways other than `node` said lately; what is too old is removed."""
    now, found = time.time(), {}
    said: Any = await client.hgetall(_KEY)
    for name, text in said.items():
        other = json.loads(text)
        if now - other["at"] > BELIEVED_S:
            await client.hdel(_KEY, name)
        elif name.decode() != node:
            found[name.decode()] = other
    return found


def _by_session(gateways: Mapping[str, Mapping[str, Any]]) -> Counter[str]:
    """How many listen to each session."""
    counts: Counter[str] = Counter()
    for one in gateways.values():
        counts.update({sid: heard["listeners"] for sid, heard in one["sessions"].items()})
    return counts


async def _tell(url: str, gateway: Gateway) -> None:
    async with Redis.from_url(url, socket_timeout=2.0) as client:
        try:
            while True:
                try:
                    await client.hset(_KEY, gateway.node, json.dumps(census(gateway)))
                    if gateway.hosts:
                        gateway.elsewhere = _by_session(await _others(client, gateway.node))
                except (RedisError, OSError) as error:
                    gateway.elsewhere = {}
                    log.debug("gateway not counted: %s", error)
                await asyncio.sleep(EVERY_S)
        finally:
            with contextlib.suppress(RedisError, OSError):
                await client.hdel(_KEY, gateway.node)
