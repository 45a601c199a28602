"""One listener who reads 1 kB/s among 500: what it costs the others, and the memory.

python -m bench.slow_reader [--listeners 500] [--bytes 4000] [--seconds 20] [--passes 3]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from bench.gateway import gateway, listeners, token
from bench.report import Report

BAR_MIB = 5.0
BAR_RATIO = 1.1
WARM_S = 3.0


def measure(args: argparse.Namespace, *, slow: int) -> dict[str, Any]:
    """One pass, with or without the slow one."""
    with (
        gateway() as server,
        listeners(server.port, args.listeners, tok=token(), ack_s=15, slow=slow) as load,
    ):
        server.speak(seconds=WARM_S, chunk_bytes=args.bytes)
        load.forget()
        cost = server.speak(seconds=args.seconds, chunk_bytes=args.bytes)
        heard = load.result()
    # What the session itself keeps grows with every chunk, slow reader or not.
    grown = cost["rss_most"] - cost["rss_before"] - cost["rounds"] * 2 * args.bytes
    return {"p99_ms": heard["p99_ms"], "grown_mib": max(0.0, grown / 2**20)}


def main() -> None:
    """Run it with and without, in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--listeners", type=int, default=500)
    parser.add_argument("--bytes", type=int, default=4000, help="of one frame")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    alone, among = [], []
    for _ in range(args.passes):
        alone.append(measure(args, slow=0))
        time.sleep(0.5)
        among.append(measure(args, slow=1))
    report = Report(
        "slow_reader",
        f"One who reads 1 kB/s among {args.listeners}, {args.bytes} B every 200 ms",
        method="With and without it in turn. Memory is the growth beyond the session's own log.",
        packages=("websockets", "uvloop"),
    )
    ratios = [b["p99_ms"] / a["p99_ms"] for a, b in zip(alone, among, strict=True)]
    report.add("p99 of the others, with it over without it", ratios, at_most=BAR_RATIO)
    report.add("p99 without it", [one["p99_ms"] for one in alone], "ms")
    report.add("p99 with it", [one["p99_ms"] for one in among], "ms")
    report.add("memory grown without it", [one["grown_mib"] for one in alone], "MiB")
    report.add("memory grown with it", [one["grown_mib"] for one in among], "MiB", at_most=BAR_MIB)
    report.finish()


if __name__ == "__main__":
    main()
