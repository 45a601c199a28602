"""Celery carries wake-ups: which task and queue each topic of the outbox is, and how to publish
one.

A message has no content and is acknowledged before it is worked on, so losing or doubling one
changes only when something happens. Delays, retries, results, priorities and limits are columns in
SQL.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

from celery import Celery, signals
from celery.platforms import SecurityWarning
from kombu.entity import Queue

SPEAK_QUEUES = ("realtime", "batch", "quarantine")
IO_QUEUES = ("io",)

_ROUTES = {
    "realtime": ("speak", "realtime"),
    "batch": ("speak", "batch"),
    "quarantine": ("speak", "quarantine"),
    "effect": ("errand", "io"),
    "read": ("errand", "io"),
    "walk": ("errand", "io"),
    "expand": ("errand", "io"),
}


def make_app(broker_url: str) -> Celery:
    """The Celery application; the same settings for whoever publishes and whoever consumes."""
    app = Celery("notecast", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_create_missing_queues=False,
        task_queues=[Queue(name) for name in (*SPEAK_QUEUES, *IO_QUEUES)],
        task_default_queue="io",
        task_publish_retry=False,  # the outbox is the retry
        worker_pool="threads",  # CUDA cannot be used after fork
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_acquire_timeout=2,
        broker_transport_options={
            "visibility_timeout": 3600,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "retry_on_timeout": True,
            "global_keyprefix": "nc:",
            "queue_order_strategy": "priority",
        },
    )
    return app


def make_send(app: Celery) -> Callable[[str], None]:
    """A function that publishes one wake-up of a topic; raises when the broker is away."""
    local = threading.local()

    def send(topic: str) -> None:
        task, queue = _ROUTES[topic]
        producer = getattr(local, "producer", None)
        if producer is None:
            producer = local.producer = app.amqp.Producer(app.connection_for_write())
        try:
            app.send_task(task, queue=queue, producer=producer, retry=False)
        except Exception:
            local.producer = None  # connect anew next time
            raise

    return send


def run_worker(
    app: Celery, task: str, wake: Callable[[], None], *, queues: tuple[str, ...], name: str
) -> None:
    """Consume wake-ups until SIGTERM or SIGINT; each calls `wake`. Blocks the main thread."""

    signals.setup_logging.connect(_keep_logging)
    # Its concern is code in pickled messages; ours are JSON without content.
    warnings.filterwarnings("ignore", category=SecurityWarning)

    @app.task(name=task, ignore_result=True)
    def woken() -> None:
        wake()

    worker: Any = app.Worker(
        pool="threads",
        concurrency=2,  # a wake-up only rings a bell
        queues=queues,
        hostname=f"{name}@%h",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel="WARNING",
        quiet=True,
    )
    worker.start()


def _keep_logging(**_: Any) -> None:
    """Being connected is enough: Celery then leaves our log lines alone."""
