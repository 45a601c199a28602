"""The peer: a bare Celery worker on the same broker, threads pool, null tasks, nothing kept.

Started by a benchmark as `python -m bench.bare_celery BROKER_URL KIND COUNT`; consumes COUNT tasks,
prints one JSON line and ends. KIND is `null`, which gives the rate, or `stamp`, which gives the
time from `delay` to the start of each task.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery, signals
from celery.platforms import SecurityWarning

THREADS = 8


def bare_app(broker_url: str) -> Celery:
    """Celery as it comes, but for early acknowledgement without results, as the pipeline has it."""
    app = Celery("bare", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_default_queue="bare",
        broker_transport_options={"global_keyprefix": "bare:"},
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )
    return app


@contextmanager
def bare_send(broker_url: str) -> Iterator[Callable[..., object]]:
    """A function that sends a task by its name and arguments, over one connection."""
    app = bare_app(broker_url)
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection)
        yield lambda name, *args: app.send_task(name, args=args, producer=producer)


@contextmanager
def bare_worker(broker_url: str, kind: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """A worker that consumes so many tasks; read its line from `stdout`."""
    command = [sys.executable, "-m", "bench.bare_celery", broker_url, kind, str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def answer_of(process: subprocess.Popen[str], timeout_s: float) -> dict[str, Any]:
    """What a worker found out, once it ends."""
    out, _ = process.communicate(timeout=timeout_s)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def _consume(broker_url: str, kind: str, count: int) -> None:
    app = bare_app(broker_url)
    starts: list[float] = []
    waits: list[float] = []
    done = threading.Event()

    def started(at: float) -> None:
        starts.append(at)
        if len(starts) == count:
            done.set()

    @app.task(name="null", ignore_result=True)
    def null() -> None:
        started(time.time())

    @app.task(name="stamp", ignore_result=True)
    def stamp(sent: float) -> None:
        now = time.time()
        waits.append((now - sent) * 1000)
        started(now)

    warnings.filterwarnings("ignore", category=SecurityWarning)
    signals.setup_logging.connect(_keep_logging)
    worker: Any = app.Worker(
        pool="threads",
        concurrency=THREADS,
        without_gossip=True,
        without_mingle=True,
        loglevel="ERROR",
        quiet=True,
    )

    def report() -> None:
        done.wait()
        rate = (count - 1) / (starts[-1] - starts[0]) if count > 1 else 0.0
        print(json.dumps({"per_s": rate, "waits_ms": waits}), flush=True)
        worker.stop()

    threading.Thread(target=report, daemon=True).start()
    worker.start()


def _keep_logging(**_: Any) -> None:
    """Being connected is enough: Celery then leaves the log alone."""


if __name__ == "__main__":
    _consume(sys.argv[1], sys.argv[2], int(sys.argv[3]))
