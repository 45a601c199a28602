"""CPU per delivered chunk: our gateway against a bare `websockets.broadcast` loop.

Both send the same bytes to the same listeners at the same pace, in turns within one run: on a
shared machine only such ratios mean anything. Ours does more (protocol, log, flow control); its
listeners are silent in one row and acknowledge every 5 s, as the protocol asks, in the other.

    python bench/fanout.py [--listeners 1000] [--bytes 730] [--seconds 6] [--passes 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast
from websockets.asyncio.server import serve as serve_websockets

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from streaming.chunk_log import MemoryLog
from streaming.frames import Codec, Flag, Header, Kind, pack_header, pack_packets
from streaming.links import LinkBook
from streaming.server import Gateway, serve
from streaming.session import LiveSession
from streaming.tokens import KeyRing

HERE = Path(__file__).resolve().parent
SID = "ses_bench"
CHUNK_TICKS = 9600
CHUNK_S = 0.2
ACK_S = 5
BARS = {"gateway": 1.0, "with acks": 1.1}  # CPU per message, as a share of the reference
RING = KeyRing({"k1": bytes(32)}, "k1")
Publish = Callable[[bytes], object]


def packet(size_bytes: int) -> bytes:
    """An Opus payload's only packet, so that the frame has `size_bytes`; begins with the time."""
    return struct.pack("<Q", time.monotonic_ns()) + bytes(size_bytes - 32 - 3 - 8)


async def pace(publish: Publish, size_bytes: int, seconds: float) -> dict[str, float]:
    """Publish a chunk every 200 ms; the CPU seconds that this process needed."""
    loop = asyncio.get_running_loop()
    rounds = int(seconds / CHUNK_S)
    began, due = time.process_time(), loop.time()
    for _ in range(rounds):
        publish(packet(size_bytes))
        due += CHUNK_S
        await asyncio.sleep(max(0.0, due - loop.time()))
    return {"cpu_s": time.process_time() - began, "rounds": rounds}


async def serve_broadcast(run: Callable[[int, Publish], Awaitable[None]]) -> None:
    """The reference: nothing but a handshake and `broadcast`."""
    connections: set[ServerConnection] = set()
    sent = 0

    async def handler(ws: ServerConnection) -> None:
        connections.add(ws)
        await ws.wait_closed()

    def publish(one: bytes) -> None:
        nonlocal sent
        flags = Flag(0)
        header = Header(
            Kind.AUDIO, Codec.OPUS, flags, 1, 1, 0, sent, sent * CHUNK_TICKS, CHUNK_TICKS, 0
        )
        sent += 1
        broadcast(connections, pack_header(header) + pack_packets([one]))

    options: dict[str, Any] = {"subprotocols": ["notecast.v1"], "compression": None}
    async with serve_websockets(handler, "127.0.0.1", 0, backlog=4096, **options) as server:
        await run(server.sockets[0].getsockname()[1], publish)


async def serve_gateway(run: Callable[[int, Publish], Awaitable[None]]) -> None:
    """Ours, with the log in memory."""
    log = MemoryLog()
    session = LiveSession.create(log, SID, 1, meta={})
    gateway = Gateway(log, LinkBook(RING))

    def publish(one: bytes) -> None:
        session.audio(0, CHUNK_TICKS, [one], first=False, last=False)

    async with serve("127.0.0.1", 0, gateway) as server:
        await run(server.sockets[0].getsockname()[1], publish)


async def server_main(variant: str, size_bytes: int, seconds: float) -> None:
    """The server process: print the port, wait for a line, publish, print what it cost."""

    async def run(port: int, publish: Publish) -> None:
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        await pace(publish, size_bytes, 1.0)  # warm up
        cost = await pace(publish, size_bytes, seconds)
        sys.stdout.write(json.dumps(cost) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        os._exit(0)  # a thousand closing handshakes are not what is measured

    await {"broadcast": serve_broadcast, "gateway": serve_gateway}[variant](run)


def pinned(core: int, argv: list[str]) -> list[str]:
    """The command on one core, where that can be had."""
    can = shutil.which("taskset") and len(os.sched_getaffinity(0)) > 1
    return ["taskset", "-c", str(core), *argv] if can else argv


def measure(variant: str, client: Path, args: argparse.Namespace) -> dict[str, float]:
    """One pass of one variant: CPU us per message, and delays at the listeners."""
    served = "broadcast" if variant == "broadcast" else "gateway"
    command = [sys.executable, __file__, "--serve", served]
    command += ["--bytes", str(args.bytes), "--seconds", str(args.seconds)]
    token = LinkBook(RING).mint("lnk_bench", SID, expires=int(time.time()) + 3600)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(subprocess.Popen(pinned(0, command), **pipes))
        stack.callback(server.kill)
        port = server.stdout.readline().strip()
        listen = [str(client), port, str(args.listeners)]
        listen += [str(ACK_S if variant == "with acks" else 0)]
        listen += [token if served == "gateway" else "-", SID]
        listeners = stack.enter_context(subprocess.Popen(pinned(1, listen), **pipes))
        stack.callback(listeners.kill)
        if listeners.stdout.readline() != "ready\n":
            raise SystemExit("the load client could not connect")
        time.sleep(1)
        server.stdin.write("go\n")
        server.stdin.flush()
        cost = json.loads(server.stdout.readline())
        time.sleep(0.5)
        listeners.stdin.close()
        heard = json.loads(listeners.stdout.readline())
    expected = (cost["rounds"] + int(1.0 / CHUNK_S)) * args.listeners
    if heard["messages"] != expected:
        raise SystemExit(f"{variant}: {heard['messages']} messages came, {expected} were sent")
    cpu_us = cost["cpu_s"] * 1e6 / (cost["rounds"] * args.listeners)
    return {"cpu_us": cpu_us, "p50_ms": heard["p50_ms"], "p99_ms": heard["p99_ms"]}


def table(results: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> bool:
    """Print the figures; say if the bars are held."""
    print(f"{args.listeners} listeners, {args.bytes} B every 200 ms, {args.passes} passes in turn")
    print(f"{platform.machine()}, Python {platform.python_version()}, uvloop, loopback, no TLS;")
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores\n")
    print(f"{'':10} {'CPU us per message':>28} {'delay ms':>18} {'ratio':>7} {'bar':>5}")
    print(f"{'':10} {'min':>8} {'median':>9} {'max':>9} {'p50':>9} {'p99':>8}")
    medians: dict[str, float] = {}
    held = True
    for variant, passes in results.items():
        cpu = sorted(one["cpu_us"] for one in passes)
        medians[variant] = statistics.median(cpu)
        delay = [statistics.median(one[name] for one in passes) for name in ("p50_ms", "p99_ms")]
        ratio, bar = medians[variant] / medians["broadcast"], BARS.get(variant)
        held = held and (bar is None or ratio <= bar)
        print(
            f"{variant:10} {cpu[0]:8.2f} {medians[variant]:9.2f} {cpu[-1]:9.2f}"
            f" {delay[0]:9.1f} {delay[1]:8.1f} {ratio:7.2f} {bar or '':>5}"
        )
    print("\nbars held" if held else "\na bar was MISSED")
    return held


def main() -> None:
    """Run the comparison, or one of its servers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listeners", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=730, help="of one frame, header included")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--serve", choices=["broadcast", "gateway"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        uvloop.run(server_main(args.serve, args.bytes, args.seconds))
        return
    with tempfile.TemporaryDirectory() as directory:
        client = Path(directory) / "fanout_client"
        compiler = shutil.which("cc") or "gcc"
        subprocess.run([compiler, "-O2", "-o", client, HERE / "fanout_client.c"], check=True)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in ("broadcast", *BARS)}
        for _ in range(args.passes):
            for variant, passes in results.items():
                passes.append(measure(variant, client, args))
    sys.exit(not table(results, args))


if __name__ == "__main__":
    main()
