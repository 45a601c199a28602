"""The clients of docs/clients, which other people copy: run as they are, over a bad network."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.pipeline.narrator import CODES, SENTENCES, Narrator, codes_in
from tests.pipeline.studio import Studio, open_studio, wait_for
from tests.streaming.speaking import BadNetwork

CLIENTS = Path(__file__).parents[2] / "docs" / "clients"
# Node has a WebSocket of its own from 22 on; before that it has to be asked for it.
COMMANDS = {
    "listen.py": [sys.executable, "-W", "error"],
    "listen.mjs": ["node", "--experimental-websocket"],
}


@pytest.fixture
def studio(tmp_path: Path, sqlite_template: Path) -> Iterator[Studio]:
    with open_studio(tmp_path, sqlite_template, speaks=False) as studio:
        yield studio


@contextmanager
def bad_network(port: int) -> Iterator[tuple[BadNetwork, int]]:
    """A relay on a loop of its own that breaks every connection for a while; (relay, its port)."""
    network = BadNetwork(7, port, most_bytes=6000)
    ports: list[int] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with network.running() as url:
            ports.append(int(url.rpartition(":")[2].partition("/")[0]))
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield network, wait_for("the relay", lambda: ports)[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_client_hears_everything_once_whatever_breaks(
    studio: Studio, tmp_path: Path, name: str
) -> None:
    command = COMMANDS[name]
    if not shutil.which(command[0]):
        pytest.skip(f"there is no {command[0]} on this machine")
    narrator = Narrator(studio)
    out = tmp_path / "heard.ogg"
    with bad_network(int(studio.url.rpartition(":")[2])) as (network, port):
        link = f"http://127.0.0.1:{port}/l/any#t={narrator.token}"
        client = subprocess.Popen(
            [*command, str(CLIENTS / name), link, str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        narrator.say(0, 1)
        narrator.say(2, part=0.5)
        wait_for("a break", lambda: network.breaks >= 2)
        narrator.cut(2)
        narrator.say(2, 3)
        network.calm = True
        narrator.session.end("done")
        said, complaints = client.communicate(timeout=60)
    narrator.close()

    assert client.returncode == 0, complaints
    assert said.split()[-1] == narrator.session._digest.hexdigest()
    assert codes_in(out.read_bytes()) == CODES[:4]
    assert all(text in said for text in SENTENCES[:4])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_client_says_why_it_cannot_listen(studio: Studio, tmp_path: Path, name: str) -> None:
    command = COMMANDS[name]
    if not shutil.which(command[0]):
        pytest.skip(f"there is no {command[0]} on this machine")
    link = f"{studio.url}/l/any#t=nc1.no.token"

    done = subprocess.run(
        [*command, str(CLIENTS / name), link, str(tmp_path / "out.ogg")],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    assert "link" in done.stderr
