"""CPU per delivered chunk: our gateway against a bare `websockets.broadcast` loop.

Each variant is a server and its listeners. All of them stand side by side and speak in turn, a few
seconds each, the same bytes at the same pace: on a shared machine only ratios of such neighbours
mean anything. Ours does more (protocol, log, flow control). Its listeners are silent, or
acknowledge as often as `opened` asks: on the edge lane, and with sound in hand on the relaxed one,
which writes a second at a time.

    python -m bench.fanout [--listeners 1000] [--bytes 730] [--seconds 4] [--turns 5] [--passes 3]
"""

from __future__ import annotations

import argparse
import contextlib
import time
from typing import Any

from bench.gateway import gateway, listeners, token
from bench.report import Report
from bench.stack import BenchFailed
from streaming.listener import ACK_MS

WARM_S = 2.0
VARIANTS: dict[str, dict[str, Any]] = {
    "bare broadcast": {},
    "silent": {"tok": True},
    "edge": {"tok": True, "ack_s": ACK_MS / 1000},
    "relaxed": {"tok": True, "ack_s": ACK_MS / 1000, "buf_ms": 5000},
}
BARS = {"silent": None, "edge": 1.0, "relaxed": 0.4}
BAR_P99_MS = 100


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """One pass: start all variants and let them speak in turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    with contextlib.ExitStack() as stack:
        servers, loads = {}, {}
        for name, options in VARIANTS.items():
            kind = "gateway" if options else "broadcast"
            server = servers[name] = stack.enter_context(gateway(kind))
            options = {**options, "tok": token()} if options else {}
            loads[name] = stack.enter_context(listeners(server.port, args.listeners, **options))
            server.speak(seconds=WARM_S, chunk_bytes=args.bytes)
        time.sleep(1.2)  # a relaxed lane writes what it holds
        for load in loads.values():
            load.forget()
        for _ in range(args.turns):
            for name, server in servers.items():
                found[name].append(server.speak(seconds=args.seconds, chunk_bytes=args.bytes))
        time.sleep(1.2)
        for name, load in loads.items():
            heard = load.result()
            sent = sum(turn["rounds"] for turn in found[name]) * args.listeners
            if heard["messages"] != sent:
                raise BenchFailed(f"{name}: {heard['messages']} messages came, {sent} were sent")
            for turn in found[name]:
                turn["cpu_us"] = turn["cpu_s"] * 1e6 / turn["rounds"] / args.listeners
                turn |= {part: heard[part] for part in ("p50_ms", "p99_ms")}
    return found


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--listeners", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=730, help="of one frame, header included")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn")
    parser.add_argument("--turns", type=int, default=5, help="of each variant in a pass")
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(args.passes):
        for name, found in measure(args).items():
            turns[name] += found
    report = Report(
        "fanout",
        f"Fan-out: {args.listeners} listeners, {args.bytes} B every 200 ms",
        method=f"{args.passes} passes of {args.turns} turns of {args.seconds:g} s, servers and "
        "loads on a core each, loopback, no TLS. Ratios are of neighbouring turns.",
        packages=("websockets", "uvloop"),
    )
    bare = [one["cpu_us"] for one in turns["bare broadcast"]]
    for name, bar in BARS.items():
        ratios = [one["cpu_us"] / base for one, base in zip(turns[name], bare, strict=True)]
        report.add(f"CPU per message over bare broadcast, {name}", ratios, at_most=bar)
    for name, found in turns.items():
        report.add(f"CPU per message, {name}", [one["cpu_us"] for one in found], "µs")
    for name in ("bare broadcast", "edge"):
        for part in ("p50_ms", "p99_ms"):
            is_bar = name == "edge" and part == "p99_ms"
            values = [one[part] for one in turns[name]]
            label = f"chunk delay {part[:3]}, {name}"
            report.add(label, values, "ms", at_most=BAR_P99_MS if is_bar else None)
    report.finish()


if __name__ == "__main__":
    main()
