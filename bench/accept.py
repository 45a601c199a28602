"""How fast the door takes signed hooks: accepted per second, and how long each waits.

Real posts with Standard Webhooks signatures against `notecast up`. The worker's slots are taken by
endless episodes meanwhile, so what is measured is the door: signature, JSON, one durable commit,
answer, wake-up.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import sqlalchemy as sa

from bench.report import Report, percentile
from bench.stack import (
    BenchFailed,
    Stack,
    cpu_s,
    post_all,
    post_paced,
    run,
    running,
    signed_hook,
    wait_for,
)
from pipeline.models import episode

CLIENTS = (1, 8, 32)
NOTE = "Alice: the storage migration is done and reads are a third faster.\n" * 12
_SLOTS = 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.accept", description=__doc__)
    parser.add_argument("--db", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("-n", type=int, default=1000, help="hooks of each pass")
    parser.add_argument("--passes", type=int, default=3)
    wanted = parser.parse_args()
    figures: dict[str, list[float]] = defaultdict(list)
    # a step of this engine takes minutes: slots are taken, the CPU is not
    slow = {"engine": "tone", "tone_pace": "paced", "tone_rtf": 20, "drain_s": 0}
    with running("--db", wanted.db, **slow) as stack:
        _take_slots(stack)
        run(post_all(stack.port, _hooks(50), clients=8))  # connections, caches
        for _ in range(wanted.passes):
            figures["commits"].append(_commits_per_s(wanted.n // 3))
            _one_pass(stack, wanted.n, figures)
        _nothing_lost(stack, _SLOTS + 50 + wanted.passes * _per_pass(wanted.n))
    name = "accept" if wanted.db == "sqlite" else "accept-postgres"
    title = f"Accepting signed hooks, {_NAMES[wanted.db]}"
    packages = ("fastapi", "uvicorn", "sqlalchemy", "celery")
    report = Report(name, title, method=_METHOD.format(n=wanted.n), packages=packages)
    most = f"hooks/s at {CLIENTS[-1]} clients"
    ratios = [rate / floor for rate, floor in zip(figures[most], figures["commits"], strict=True)]
    report.add("hooks/s over bare SQLite commits/s", ratios, "ratio")
    for clients in CLIENTS:
        report.add(
            label := f"hooks/s at {clients} clients",
            figures[label],
            "1/s",
            at_least=500 if clients == CLIENTS[-1] else None,
        )
        for share in ("p50", "p99"):
            report.add(f"  answer after, {share}", figures[f"{share} at {clients}"], "ms")
    report.add("at 100 hooks/s: answer after, p50", figures["p50 paced"], "ms")
    report.add("at 100 hooks/s: answer after, p99", figures["p99 paced"], "ms", at_most=50)
    report.add("CPU of the web process per hook", figures["cpu"], "ms")
    report.add("bare commits: one row, sqlite3, FULL", figures["commits"], "1/s")
    report.finish()


_NAMES = {
    "sqlite": "SQLite (WAL, synchronous FULL)",
    "postgres": "PostgreSQL (synchronous_commit on)",
}
_METHOD = (
    "{n} hooks of 0.8 kB each pass and client count, over kept-alive loopback connections, the "
    "client on the same cores. Paced latencies count from when the hook was due."
)


def _hooks(count: int) -> list[bytes]:
    return [signed_hook(f"Note {time.time_ns()}-{n}.\n{NOTE}") for n in range(count)]


def _per_pass(n: int) -> int:
    return n * len(CLIENTS) + _paced(n)


def _paced(n: int) -> int:
    return min(n, 1000)


def _one_pass(stack: Stack, n: int, figures: dict[str, list[float]]) -> None:
    web = stack.pid("web")
    used = cpu_s(web)
    for clients in CLIENTS:
        hooks = _hooks(n)
        began = time.perf_counter()
        took = run(post_all(stack.port, hooks, clients=clients))
        figures[f"hooks/s at {clients} clients"].append(n / (time.perf_counter() - began))
        figures[f"p50 at {clients}"].append(percentile(took, 0.5) * 1000)
        figures[f"p99 at {clients}"].append(percentile(took, 0.99) * 1000)
    took = run(post_paced(stack.port, _hooks(_paced(n)), per_s=100))
    figures["p50 paced"].append(percentile(took, 0.5) * 1000)
    figures["p99 paced"].append(percentile(took, 0.99) * 1000)
    now = cpu_s(web)
    if used is not None and now is not None:
        figures["cpu"].append((now - used) * 1000 / _per_pass(n))


def _take_slots(stack: Stack) -> None:
    run(post_all(stack.port, _hooks(_SLOTS), clients=1))

    def taken() -> bool:
        return _count(stack, episode.c.state == "synthesising") == _SLOTS

    wait_for("the worker to take its slots", taken, 30)


def _nothing_lost(stack: Stack, sent: int) -> None:
    found = _count(stack, sa.true())
    if found != sent:
        raise BenchFailed(f"{sent} hooks were accepted, {found} episodes are there")


def _count(stack: Stack, which: sa.ColumnElement[bool]) -> int:
    with stack.database.read() as connection:
        query = sa.select(sa.func.count()).select_from(episode).where(which)
        return int(connection.execute(query).scalar_one())


def _commits_per_s(count: int) -> float:
    """What the disk gives: one small row a transaction, one connection, nothing else."""
    with tempfile.TemporaryDirectory(prefix="ncb-") as directory:
        connection = sqlite3.connect(Path(directory) / "floor.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
        began = time.perf_counter()
        for n in range(count):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t (body) VALUES (?)", (f"{n} {NOTE}",))
            connection.execute("COMMIT")
        took_s = time.perf_counter() - began
        connection.close()
    return count / took_s


if __name__ == "__main__":
    main()
