"""CPU per delivered chunk: our gateway against a bare `websockets.broadcast` loop.

All variants send the same bytes to the same listeners at the same pace, in turns within one run: on
a shared machine only such ratios mean anything. Ours does more (protocol, log, flow control). Its
listeners are silent, or acknowledge as often as `opened` asks: on the edge lane, and with sound in
hand on the relaxed one, which writes a second at a time.

    python -m bench.fanout [--listeners 1000] [--bytes 730] [--seconds 6] [--passes 3]
"""

from __future__ import annotations

import argparse
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


def measure(variant: str, args: argparse.Namespace) -> dict[str, float]:
    """One pass of one variant."""
    options = {**VARIANTS[variant]}
    if options:
        options["tok"] = token()
    with (
        gateway("gateway" if options else "broadcast") as server,
        listeners(server.port, args.listeners, **options) as load,
    ):
        server.speak(seconds=WARM_S, chunk_bytes=args.bytes)
        time.sleep(1.2)  # a relaxed lane writes what it holds
        load.forget()
        cost = server.speak(seconds=args.seconds, chunk_bytes=args.bytes)
        if variant == "relaxed":
            time.sleep(1.2)
        heard = load.result()
    expected = cost["rounds"] * args.listeners
    if heard["messages"] != expected:
        raise BenchFailed(f"{variant}: {heard['messages']} messages came, {expected} were sent")
    return {**heard, "cpu_us": cost["cpu_s"] * 1e6 / expected}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--listeners", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=730, help="of one frame, header included")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(args.passes):
        for variant, found in passes.items():
            found.append(measure(variant, args))
    report = Report(
        "fanout",
        f"Fan-out: {args.listeners} listeners, {args.bytes} B every 200 ms",
        method=f"{args.passes} passes in turn, server and load on a core each, loopback, no TLS. "
        "Ratios are within a pass.",
        packages=("websockets", "uvloop"),
    )
    bare = [one["cpu_us"] for one in passes["bare broadcast"]]
    for name, bar in BARS.items():
        ratios = [one["cpu_us"] / base for one, base in zip(passes[name], bare, strict=True)]
        report.add(f"CPU per message over bare broadcast, {name}", ratios, at_most=bar)
    for name, found in passes.items():
        report.add(f"CPU per message, {name}", [one["cpu_us"] for one in found], "µs")
    for name in ("bare broadcast", "edge"):
        for part in ("p50_ms", "p99_ms"):
            is_bar = name == "edge" and part == "p99_ms"
            values = [one[part] for one in passes[name]]
            label = f"chunk delay {part[:3]}, {name}"
            report.add(label, values, "ms", at_most=BAR_P99_MS if is_bar else None)
    report.finish()


if __name__ == "__main__":
    main()
