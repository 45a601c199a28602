"""How soon `notecast up` is ready, and what it takes while nobody wants anything.

    python -m bench.rest [--passes 3] [--seconds 20]

The tone voice, folder storage, SQLite: what is left is the installation itself. Linux only.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bench.report import Report
from bench.stack import cpu_s, running, wait_for


def main() -> None:
    """Start, look, wait, look again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of rest that are watched")
    wanted = parser.parse_args()
    starts, loads, memories = [], [], []
    for _ in range(wanted.passes):
        with running(engine="tone") as stack:
            starts.append(_said_ready_after_s(stack.data))
            time.sleep(3)  # what a start leaves to do is not rest
            before = _cpu_s(stack.process.pid)
            time.sleep(wanted.seconds)
            loads.append(100 * (_cpu_s(stack.process.pid) - before) / wanted.seconds)
            memories.append(_memory_mib(stack.process.pid))
    report = Report("rest", "notecast up, tone voice, at rest", method=_METHOD)
    report.add("ready after", starts, "s", at_most=3)
    report.add("CPU at rest, share of one core", loads, "%", at_most=2)
    report.add("memory of the whole tree (PSS)", memories, "MiB")
    report.finish()


_METHOD = (
    "Each pass is a new data directory, database upgrade included. CPU and memory are summed over "
    "the parent and its children, Valkey among them."
)


def _said_ready_after_s(data: Path) -> float:
    """The figure that `up` prints itself: until the door answers."""
    log = data / "up.log"
    wait_for("notecast up to say that it is ready", lambda: "ready after" in log.read_text(), 20)
    return float(log.read_text().partition("ready after ")[2].split()[0])


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def _cpu_s(pid: int) -> float:
    return sum(cpu_s(one) or 0.0 for one in _tree(pid))


def _memory_mib(pid: int) -> float:
    kib = 0
    for one in _tree(pid):
        for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kib += int(line.split()[1])
    return kib / 1024


if __name__ == "__main__":
    main()
