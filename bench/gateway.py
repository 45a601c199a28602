"""A gateway in a process of its own and thousands of listeners, for the benchmarks of listening.

    with gateway() as server, listeners(server, 1000, ack_s=10) as load:
        cost = server.speak(seconds=6)
        heard = load.result()

Server and load are pinned to a core each where there are two. `python -m bench.gateway` is the
server: it reads orders on standard input and answers each with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast
from websockets.asyncio.server import serve as serve_websockets

from bench.stack import BenchFailed
from streaming.chunk_log import MemoryLog
from streaming.frames import Codec, Flag, Header, Kind, pack_header, pack_packets
from streaming.gateway import Gateway
from streaming.limits import Limits
from streaming.links import LinkBook
from streaming.server import serve
from streaming.session import LiveSession
from streaming.tokens import KeyRing

HERE = Path(__file__).parent
SID = "ses_bench"
CHUNK_TICKS = 9600
CHUNK_S = 0.2
RING = KeyRing({"k1": bytes(32)}, "k1")
EVERYBODY = Limits(per_user=10**6, per_link=10**6, per_address=10**6, connections=10**6)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def token() -> str:
    """A link to the session of the benchmarks."""
    return LinkBook(RING).mint("lnk_bench", SID, expires=int(time.time()) + 3600)


# what the benchmarks call


class Server:
    """The process that speaks and serves."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(self._answer()["port"])

    def speak(self, *, seconds: float = 0.0, chunks: int = 0, chunk_bytes: int = 730) -> Any:
        """Speak chunks of 200 ms, at real time for `seconds` or `chunks` of them at once.

        Gives `cpu_s` of the process, the number of `rounds`, and its memory: `rss_before` and
        `rss_most`, in bytes.
        """
        order = {"seconds": seconds, "chunks": chunks, "bytes": chunk_bytes}
        self._tell(order)
        return self._answer()

    def begin(self, *, seconds: float, chunk_bytes: int = 730) -> None:
        """As `speak`, without waiting; the answer is `ended`'s."""
        self._tell({"seconds": seconds, "chunks": 0, "bytes": chunk_bytes})

    def ended(self) -> Any:
        """Wait until what was begun is over."""
        return self._answer()

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchFailed("the server of the benchmark died")
        return json.loads(line)


class Load:
    """The process that listens."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def forget(self) -> None:
        """What was heard so far does not count."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        time.sleep(0.2)

    def result(self) -> Any:
        """Stop listening; gives what `fanout_client` prints (see there)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        time.sleep(0.5)  # for what is still on its way
        self._process.stdin.close()
        return json.loads(self._process.stdout.readline() or "null") or _dead()


@contextlib.contextmanager
def gateway(variant: str = "gateway") -> Iterator[Server]:
    """A server: `gateway`, or `broadcast`, a bare loop around `websockets.broadcast`."""
    command = pinned(0, [sys.executable, "-m", "bench.gateway", variant])
    with _process(command) as process:
        yield Server(process)


@contextlib.contextmanager
def listeners(
    port: int,
    count: int,
    *,
    tok: str | None = None,
    sid: str = SID,
    ack_s: float = 0.0,
    buf_ms: int = 0,
    by_emit: bool = False,
    slow: int = 0,
) -> Iterator[Load]:
    """`count` listeners, connected; without `tok` they say nothing (see `fanout_client.c`)."""
    command = [str(client()), "-a", str(ack_s), "-b", str(buf_ms), "-w", str(slow)]
    command += ["-t", tok, "-s", sid] if tok else []
    command += ["-e"] if by_emit else []
    with _process(pinned(1, [*command, str(port), str(count)])) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise BenchFailed("the load client could not connect")
        time.sleep(0.5)
        yield Load(process)


@cache
def client() -> Path:
    """The load client, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchFailed("this benchmark needs a C compiler")
    directory = tempfile.mkdtemp(prefix="ncb-")
    path = Path(directory) / "fanout_client"
    subprocess.run([compiler, "-O2", "-o", path, HERE / "fanout_client.c"], check=True)
    return path


def pinned(core: int, command: list[str]) -> list[str]:
    """The command on one core, where that can be had."""
    can = shutil.which("taskset") and len(os.sched_getaffinity(0)) > 1
    return ["taskset", "-c", str(core), *command] if can else command


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=HERE.parent)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _dead() -> Any:
    raise BenchFailed("a listener was closed")


# the server process


def packet(size_bytes: int) -> bytes:
    """An Opus payload's only packet, so that the frame has `size_bytes`; begins with the time."""
    return struct.pack("<Q", time.monotonic_ns()) + bytes(size_bytes - 32 - 3 - 8)


async def serve_broadcast(run: Callable[..., Any]) -> None:
    """The reference: nothing but a handshake and `broadcast`."""
    connections: set[ServerConnection] = set()
    sent = 0

    async def handler(ws: ServerConnection) -> None:
        connections.add(ws)
        await ws.wait_closed()

    def publish(one: bytes) -> None:
        nonlocal sent
        header = Header(
            Kind.AUDIO, Codec.OPUS, Flag(0), 1, 1, 0, sent, sent * CHUNK_TICKS, CHUNK_TICKS, 0
        )
        sent += 1
        broadcast(connections, pack_header(header) + pack_packets([one]))

    options: dict[str, Any] = {"subprotocols": ["notecast.v1"], "compression": None}
    async with serve_websockets(handler, "127.0.0.1", 0, backlog=4096, **options) as server:
        await run(server.sockets[0].getsockname()[1], publish)


async def serve_gateway(run: Callable[..., Any]) -> None:
    """Ours, with the log in memory."""
    log = MemoryLog()
    session = LiveSession.create(log, SID, 1, meta={})

    def publish(one: bytes) -> None:
        session.audio(0, CHUNK_TICKS, [one], first=False, last=False)

    async with serve("127.0.0.1", 0, Gateway(log, LinkBook(RING), limits=EVERYBODY)) as server:
        await run(server.sockets[0].getsockname()[1], publish)


async def obey(port: int, publish: Callable[[bytes], object]) -> None:
    """Do what standard input says until it closes."""
    say({"port": port})
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        for _ in range(order["chunks"]):
            publish(packet(order["bytes"]))
        say(await pace(publish, order["bytes"], order["seconds"]))
    os._exit(0)  # a thousand closing handshakes are not what is measured


async def pace(
    publish: Callable[[bytes], object], size_bytes: int, seconds: float
) -> dict[str, float]:
    """Publish a chunk every 200 ms; what this process needed for it."""
    loop = asyncio.get_running_loop()
    rounds = round(seconds / CHUNK_S)
    before = most = rss_bytes()
    began, due = time.process_time(), loop.time()
    for n in range(rounds):
        publish(packet(size_bytes))
        due += CHUNK_S
        await asyncio.sleep(max(0.0, due - loop.time()))
        if n % 10 == 0:
            most = max(most, rss_bytes())
    cpu_s = time.process_time() - began
    return {"cpu_s": cpu_s, "rounds": rounds, "rss_before": before, "rss_most": most}


def rss_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def say(answer: dict[str, Any]) -> None:
    """Answer in one line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def serve_until_told() -> None:
    """The server process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", choices=["broadcast", "gateway"])
    variant = parser.parse_args().variant
    uvloop.run((serve_broadcast if variant == "broadcast" else serve_gateway)(obey))


if __name__ == "__main__":
    serve_until_told()
