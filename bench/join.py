"""Joining: the first frame after `open`, and everything of a 10 min session from its start.

python -m bench.join [--opens 200] [--minutes 10] [--joiners 10] [--edge 200]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import uvloop
from websockets.asyncio.client import ClientConnection, connect

from bench.gateway import CHUNK_S, SID, gateway, listeners, token
from bench.report import Report
from streaming.listener import SUBPROTOCOL

BAR_FIRST_MS = 50
BAR_P99_RATIO = 1.1
CHUNK_BYTES = 730
OPTIONS: dict[str, Any] = {
    "subprotocols": [SUBPROTOCOL],
    "compression": None,
    "max_size": None,
}


async def greeted(port: int) -> ClientConnection:
    """A connection that has said hello."""
    ws = await connect(f"ws://127.0.0.1:{port}/v1/live", **OPTIONS)
    await ws.send(json.dumps({"t": "hello", "v": 1, "token": token()}))
    await ws.recv()
    return ws


async def first_frames(port: int, count: int) -> list[float]:
    """Milliseconds from `open` to the first frame, one listener after the other."""
    found = []
    for n in range(count):
        ws = await greeted(port)
        began = time.perf_counter()
        start = {"ms": n * 997 % 60_000}
        await ws.send(json.dumps({"t": "open", "sid": SID, "from": start}))
        while isinstance(await ws.recv(), str):
            pass
        found.append((time.perf_counter() - began) * 1000)
        await ws.close()
    return found


async def join_late(port: int) -> tuple[float, int]:
    """Seconds from `open` to `caught_up`, and bytes of messages until then."""
    ws = await greeted(port)
    began, size = time.monotonic(), 0
    await ws.send(json.dumps({"t": "open", "sid": SID, "ahead_ms": 3_600_000}))
    acked_at = began
    while True:
        data = await ws.recv()
        size += len(data)
        if isinstance(data, str) and '"caught_up"' in data:
            await ws.close()
            return time.monotonic() - began, size
        if isinstance(data, bytes) and time.monotonic() > acked_at + 10:
            acked_at = time.monotonic()
            ack = {"t": "ack", "sid": SID, "seq": int.from_bytes(data[12:16]), "buf_ms": 9000}
            await ws.send(json.dumps(ack))


async def join_together(port: int, count: int) -> list[tuple[float, int]]:
    """`join_late`, `count` times at once."""
    return await asyncio.gather(*(join_late(port) for _ in range(count)))


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--opens", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the session")
    parser.add_argument("--joiners", type=int, default=10, help="that join from the start at once")
    parser.add_argument("--edge", type=int, default=200, help="listeners at the live edge")
    args = parser.parse_args()
    chunks = int(args.minutes * 60 / CHUNK_S)
    expected_s = args.minutes * 60 / 8  # the pace of a replay
    with gateway() as server:
        server.speak(chunks=chunks, chunk_bytes=CHUNK_BYTES)
        opens = uvloop.run(first_frames(server.port, args.opens))
        with listeners(server.port, args.edge, tok=token(), ack_s=15) as load:
            time.sleep(expected_s * 1.2 + 1)  # they replay, too
            server.speak(seconds=2, chunk_bytes=CHUNK_BYTES)
            load.forget()
            server.speak(seconds=10, chunk_bytes=CHUNK_BYTES)
            alone = load.result()
        with listeners(server.port, args.edge, tok=token(), ack_s=15) as load:
            time.sleep(expected_s * 1.2 + 1)
            server.speak(seconds=2, chunk_bytes=CHUNK_BYTES)
            load.forget()
            server.begin(seconds=expected_s * 1.3 + 2, chunk_bytes=CHUNK_BYTES)
            joined = uvloop.run(join_together(server.port, args.joiners))
            server.ended()
            during = load.result()
    opens.sort()
    report = Report(
        "join",
        f"Joining a session of {args.minutes:g} min",
        method=f"{args.opens} opens one after the other, each at another place; then "
        f"{args.joiners} listeners from the start at once, beside {args.edge} at the edge.",
        packages=("websockets", "uvloop"),
    )
    report.add("open to first frame, p50", [opens[len(opens) // 2]], "ms")
    p99 = opens[int((len(opens) - 1) * 0.99)]
    report.add("open to first frame, p99", [p99], "ms", at_most=BAR_FIRST_MS)
    report.add("from the start to the live edge", [one[0] for one in joined], "s")
    report.add("sent to one joiner", [one[1] / 2**20 for one in joined], "MiB")
    ratio = during["p99_ms"] / alone["p99_ms"]
    report.add("edge p99, during over before", [ratio], at_most=BAR_P99_RATIO)
    report.add("edge p99 before", [alone["p99_ms"]], "ms")
    report.add("edge p99 during", [during["p99_ms"]], "ms")
    report.finish()


if __name__ == "__main__":
    main()
