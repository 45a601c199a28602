"""Gateways of one installation know of each other's listeners."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import requests
from redis import Redis
from websockets.asyncio.client import ClientConnection

from pipeline import listening, migrate
from pipeline.listening import told
from pipeline.metrics import CONTENT_TYPE
from pipeline.services import Services
from pipeline.settings import Settings
from streaming.chunk_log import MemoryLog
from streaming.gateway import Gateway
from streaming.links import LinkBook
from tests.pipeline.studio import wait_for
from tests.streaming.speaking import RING, SID, create, event, greet, raw, running, send, speak
from tests.streaming.test_gateway_limits import owner_token


@pytest.fixture
def services(tmp_path: Path, valkey_url: str) -> Iterator[Services]:
    services = Services(Settings(data=tmp_path, engine="tone", broker_url=valkey_url))
    yield services
    services.close()


def test_a_stream_process_shows_its_metrics_and_says_who_listens(
    services: Services, tmp_path: Path
) -> None:
    migrate.upgrade(services.database)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {"DATA": tmp_path, "BROKER_URL": services.settings.broker_url, "ENGINE": "tone"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "stream", "--port", str(port)],
        env=os.environ | {f"NOTECAST_{name}": str(value) for name, value in settings.items()},
    )
    try:
        found = wait_for("metrics", lambda: metrics_of(port))
        proxied = metrics_of(port, {"X-Forwarded-For": "10.0.0.1"})
        with Redis.from_url(services.redis_url) as client:
            said = wait_for("its census", lambda: client.hvals("nc:listening"))
    finally:
        process.terminate()
        process.wait(20)

    assert found.status_code == 200
    assert found.headers["Content-Type"] == CONTENT_TYPE
    assert "notecast_connections 0.0" in found.text
    assert "notecast_database_up 1.0" in found.text
    assert proxied is not None
    assert proxied.status_code == 403
    assert json.loads(said[0])["listeners"] == 0


def metrics_of(port: int, headers: dict[str, str] | None = None) -> requests.Response | None:
    """None while nobody answers."""
    try:
        return requests.get(f"http://127.0.0.1:{port}/metrics", headers=headers, timeout=10)
    except requests.ConnectionError:
        return None


def test_a_host_is_told_of_listeners_at_another_gateway_and_of_their_leaving(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.gateway.TICK_S", 0.05)
    monkeypatch.setattr(listening, "EVERY_S", 0.1)
    log = MemoryLog()
    speak(create(log), 0)

    async def until(ws: ClientConnection, number: int) -> None:
        while (await event(ws, "listeners"))["n"] != number:
            pass

    async def test() -> None:
        gates = [Gateway(log, LinkBook(RING), node=name) for name in ("one", "two")]
        async with AsyncExitStack() as stack:
            urls = [await stack.enter_async_context(running(gate)) for gate in gates]
            for gate in gates:
                await stack.enter_async_context(told(services, gate))
            host = await stack.enter_async_context(raw(urls[0]))
            await greet(host, owner_token())
            await send(host, t="open", sid=SID)
            await until(host, 1)
            async with raw(urls[1]) as guest:
                await greet(guest)
                await send(guest, t="open", sid=SID)
                await until(host, 2)
            await until(host, 1)

    asyncio.run(test())
