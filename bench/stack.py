"""A real `notecast up` for a benchmark, and signed hooks to fire at it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from connectors.signing import sign_webhook
from pipeline.database import Database
from pipeline.settings import Settings
from pipeline.up import free_port, running_settings

SECRET = "whsec_" + "bm90ZWNhc3QtYmVuY2htYXJrLXNlY3JldC0wMQ=="
CONNECTORS = """
[endpoint.bench]
connector = "webhook"
secrets = { webhook = ["env:NC_BENCH_SECRET"] }
"""
_START_S = 240.0
_ANSWER_S = 30.0


class BenchFailed(SystemExit):
    """The thing to be measured did not work; the message goes to stderr, the status is 1."""


@dataclass(frozen=True)
class Stack:
    """One running installation on loopback."""

    data: Path
    port: int
    settings: Settings
    database: Database
    process: subprocess.Popen[bytes]

    def pid(self, role: str) -> int:
        """The process of one role: `web`, `relay`, `worker gpu`, `worker io`."""
        children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        for pid in Path(children).read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if role in b" ".join(words).decode():
                return int(pid)
        raise BenchFailed(f"notecast up has no process {role!r}")


@contextmanager
def running(*arguments: str, **options: object) -> Iterator[Stack]:
    """`notecast up` in a directory of its own, ready to speak; gone at the end.

    Args:
        arguments: further arguments of the command.
        options: settings, by their names.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and leave through the finally below
    with tempfile.TemporaryDirectory(prefix="ncb-") as directory:
        Path(directory).chmod(0o711)  # PostgreSQL runs as another account when we are root
        data = Path(directory) / "data"
        data.mkdir()
        (data / "connectors.toml").write_text(CONNECTORS)
        port = free_port()
        command = [sys.executable, "-m", "pipeline.cli", "up", "--data", str(data)]
        with (data / "up.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--port", str(port), *arguments],
                env=_environment(options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            _wait_ready(process, data)
            settings = running_settings(data)
            database = Database(settings.effective_database_url)
            try:
                yield Stack(data, port, settings, database, process)
            finally:
                database.close()
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Hold a process still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def cpu_s(pid: int) -> float | None:
    """CPU time a process has used so far; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(what: str, look: Callable[[], Any], timeout_s: float, *, every_s: float = 0.05) -> Any:
    """The first true answer of `look`."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise BenchFailed(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(every_s)
    return found


def signed_hook(text: str, *, title: str = "") -> bytes:
    """A whole HTTP request with a signed note; good for five minutes."""
    note = {"text": text, **({"title": title} if title else {})}
    body = json.dumps({"type": "note.ready", "data": note}, ensure_ascii=False).encode()
    proof = sign_webhook(SECRET, f"msg_{uuid.uuid4().hex}", int(time.time()), body)
    headers = {
        "host": "127.0.0.1",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **proof,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST /hooks/bench HTTP/1.1\r\n{lines}\r\n".encode() + body


class Poster:
    """One kept-alive connection to the door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int) -> Poster:
        """Connect over loopback."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, request: bytes) -> dict[str, Any]:
        """Send a request made by `signed_hook`; the answer of a hook that was accepted."""
        self._writer.write(request)
        async with asyncio.timeout(_ANSWER_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            body = await self._reader.readexactly(length)
        if not head.startswith(b"http/1.1 202"):
            status = head.partition(b"\r\n")[0].decode()
            raise BenchFailed(f"the door answered {status}: {body[:200]!r}")
        found: dict[str, Any] = json.loads(body)
        return found

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._writer.wait_closed()


async def post_all(port: int, requests: Sequence[bytes], *, clients: int) -> list[float]:
    """Post as fast as so many clients can, each waiting for its answer; seconds per request."""
    waiting = iter(requests)
    took: list[float] = []

    async def client() -> None:
        poster = await Poster.connect(port)
        for request in waiting:
            began = time.perf_counter()
            await poster.post(request)
            took.append(time.perf_counter() - began)
        await poster.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return took


async def post_paced(port: int, requests: Sequence[bytes], *, per_s: float) -> list[float]:
    """Post at a steady rate; seconds from when each was due to its answer.

    Counting from the due time keeps a stall from hiding the requests it held up.
    """
    idle: asyncio.Queue[Poster] = asyncio.Queue()  # in turn, or the door closes the unused ones
    posters = [await Poster.connect(port) for _ in range(16)]
    for poster in posters:
        idle.put_nowait(poster)
    took: list[float] = []

    async def send(request: bytes, due: float) -> None:
        poster = await idle.get()
        await poster.post(request)
        idle.put_nowait(poster)
        took.append(time.perf_counter() - due)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for n, request in enumerate(requests):
            due = began + n / per_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(send(request, due))
    for poster in posters:
        await poster.close()
    return took


def run(main: Any) -> Any:
    """Run a coroutine on uvloop, so that the load costs less of the machine."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _environment(options: Mapping[str, object]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NOTECAST_")}
    own = {f"NOTECAST_{name.upper()}": str(value) for name, value in options.items()}
    return {**kept, "NC_BENCH_SECRET": SECRET, **own}


def _wait_ready(process: subprocess.Popen[bytes], data: Path) -> None:
    def look() -> bool:
        if process.poll() is not None:
            raise BenchFailed(f"notecast up ended: {(data / 'up.log').read_text().strip()}")
        return (data / "up.json").exists()

    wait_for("notecast up to be ready", look, _START_S)
