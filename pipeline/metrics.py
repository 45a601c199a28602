"""Metrics in the Prometheus text format, gathered when they are asked for.

The gateway counts while it works and is only read here. What concerns episodes is read from SQL:
each scrape takes the changes of state since the last one, so a worker needs no port of its own and
no scrape looks at old rows. Every process with a door shows the same episodes; ask one of them, or
take the maximum over instances.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pipeline.database import Database, now_ms
from pipeline.errors import DatabaseUnavailable
from pipeline.intake import status_of
from pipeline.models import OPEN, QUEUES, attempt, command, effect, episode, episode_log, worker
from streaming.chunk_log import ChunkLog
from streaming.counters import Counters, Histogram
from streaming.errors import LogUnavailable
from streaming.gateway import Gateway

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SAMPLE_S = 0.1
_PAGE = 5_000


class Metrics:
    """What one process with a gateway shows."""

    def __init__(self, gateway: Gateway, database: Database, log: ChunkLog) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_GatewayMetrics(gateway))
        self._registry.register(_EpisodeMetrics(database, gateway.counters))
        self._registry.register(_LogMetrics(log))
        ProcessCollector(registry=self._registry)
        self._loop_lag = Gauge(
            "notecast_loop_lag_seconds",
            "How late the event loop is, the worst of the last second.",
            registry=self._registry,
        )

    def text(self) -> bytes:
        """The exposition; blocks while it asks the database."""
        return generate_latest(self._registry)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Measure the event loop while the block runs."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            worst_s = 0.0
            for _ in range(round(1 / _SAMPLE_S)):
                due = loop.time() + _SAMPLE_S
                await asyncio.sleep(_SAMPLE_S)
                worst_s = max(worst_s, loop.time() - due)
            self._loop_lag.set(worst_s)


class _GatewayMetrics(Collector):
    """The counters of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        counters, hub = self._gateway.counters, self._gateway.hub
        listeners = GaugeMetricFamily(
            "notecast_listeners", "Who listens, by codec and lane.", labels=("codec", "lane")
        )
        for (codec, lane), count in hub.places().items():
            listeners.add_metric((codec, lane), count)
        yield listeners
        yield GaugeMetricFamily(
            "notecast_connections", "Open WebSockets.", len(self._gateway.peers)
        )
        lag = HistogramMetricFamily(
            "notecast_chunk_lag_seconds", "Age of a chunk at each hop.", labels=("hop",)
        )
        for hop, histogram in (
            ("emit_to_gateway", counters.emit_to_gateway),
            ("gateway_to_socket", counters.gateway_to_socket),
            ("socket_to_ack", counters.ack),
        ):
            lag.add_metric((hop,), *_buckets(histogram))
        yield lag
        fanout = HistogramMetricFamily(
            "notecast_fanout_seconds", "From the first to the last write of one chunk."
        )
        fanout.add_metric((), *_buckets(counters.fanout))
        yield fanout
        for name, what, value in (
            ("notecast_opens", "Sessions opened by listeners.", counters.opened),
            ("notecast_egress_bytes", "Bytes handed to sockets.", counters.bytes),
            ("notecast_egress_writes", "Writes to sockets.", counters.writes),
            ("notecast_client_underruns", "Underruns that players report.", counters.underruns),
            (
                "notecast_client_underrun_seconds",
                "Silence in players because sound was late.",
                counters.underrun_ms / 1000,
            ),
            ("notecast_gateway_errors", "Faults of our own.", counters.errors),
        ):
            yield CounterMetricFamily(name, what, value)
        steps = {
            "cursor": counters.left_lane,
            "codec_down": counters.codec_down,
            "skip": counters.skipped,
            "close": counters.stuck,
        }
        for name, what, label, counts in (
            ("notecast_slow_consumer", "What slow listeners made us do.", "step", steps),
            ("notecast_ws_closed", "Closed connections.", "code", counters.closed),
            ("notecast_resumes", "Listeners who came back.", "result", counters.resumes),
            (
                "notecast_streams_continuous",
                "Sessions left: at most 100 ms of silence in all, more, or not known.",
                "result",
                counters.continuous,
            ),
            ("notecast_limit_rejections", "What a limit kept out.", "limit", counters.refused),
        ):
            family = CounterMetricFamily(name, what, labels=(label,))
            for kind, count in list(counts.items()):
                family.add_metric((str(kind),), count)
            yield family


class _LogMetrics(Collector):
    """The store of the live logs."""

    def __init__(self, log: ChunkLog) -> None:
        self._log = log

    def collect(self) -> Iterator[Metric]:
        try:
            size = self._log.size_bytes()
        except LogUnavailable:
            return
        yield GaugeMetricFamily(
            "notecast_log_bytes", "Memory of the store that holds the live logs.", size
        )


class _EpisodeMetrics(Collector):
    """What became of episodes since this process began to be asked, and how soon they sounded."""

    def __init__(self, database: Database, counters: Counters) -> None:
        self._database = database
        self._counters = counters
        self._lock = threading.Lock()
        self._seen: int | None = None  # last row of episode_log that was counted
        self._first_chunk: dict[str, Histogram] = {}  # by engine
        self._waited: dict[str, Histogram] = {queue: Histogram() for queue in QUEUES}
        self._ended: dict[tuple[str, str], int] = {}  # status, reason

    def collect(self) -> Iterator[Metric]:
        try:
            with self._lock, self._database.read() as connection:
                self._count_new(connection)
                gauges = list(_now(connection))
        except DatabaseUnavailable:
            gauges = [_up(0)]
        yield from gauges
        ttfa = HistogramMetricFamily(
            "notecast_ttfa_seconds",
            "Until the first sound, as seen from three places.",
            labels=("stage", "engine"),
        )
        ttfa.add_metric(("open_to_first_frame", ""), *_buckets(self._counters.open_to_frame))
        ttfa.add_metric(("click_to_sound", ""), *_buckets(self._counters.click_to_sound))
        for engine, histogram in self._first_chunk.items():
            ttfa.add_metric(("request_to_first_chunk", engine), *_buckets(histogram))
        yield ttfa
        waited = HistogramMetricFamily(
            "notecast_queue_wait_seconds", "From queued to claimed.", labels=("queue",)
        )
        for queue, histogram in self._waited.items():
            waited.add_metric((queue,), *_buckets(histogram))
        yield waited
        ended = CounterMetricFamily(
            "notecast_episodes", "Episodes that ended, and why.", labels=("status", "reason")
        )
        for (status, reason), count in self._ended.items():
            ended.add_metric((status, reason), count)
        yield ended

    def _count_new(self, connection: sa.Connection) -> None:
        if self._seen is None:
            self._seen = connection.execute(sa.select(sa.func.max(episode_log.c.id))).scalar() or 0
            return
        while True:
            found = connection.execute(_NEW, {"seen": self._seen, "page": _PAGE}).all()
            for row in found:
                self._count(row)
            if found:
                self._seen = found[-1].id
            if len(found) < _PAGE:
                return

    def _count(self, row: Any) -> None:
        if row.to_state == "synthesising" and row.queued_ms is not None:
            self._waited[row.queue].observe(max(0, row.ms - row.queued_ms) / 1000)
        if row.to_state in ("stored", "dead", "cancelled"):
            key = (status_of(row.to_state), row.error_code or "")
            self._ended[key] = self._ended.get(key, 0) + 1
        if row.to_state == "stored" and row.first_audio_ms is not None:
            seconds = max(0, row.first_audio_ms - row.created_ms) / 1000
            histogram = self._first_chunk.setdefault(row.engine or "unknown", Histogram())
            histogram.observe(seconds)


_ENGINE = (
    sa.select(worker.c.engine)
    .join(attempt, attempt.c.worker_id == worker.c.id)
    .where(attempt.c.episode_id == episode_log.c.episode_id, attempt.c.outcome == "stored")
    .limit(1)
    .scalar_subquery()
)
_NEW = (
    sa.select(
        episode_log.c.id,
        episode_log.c.ms,
        episode_log.c.to_state,
        episode.c.queue,
        episode.c.created_ms,
        episode.c.queued_ms,
        episode.c.first_audio_ms,
        episode.c.error_code,
        _ENGINE.label("engine"),
    )
    .join(episode, episode.c.id == episode_log.c.episode_id)
    .where(episode_log.c.id > sa.bindparam("seen"))
    .order_by(episode_log.c.id)
    .limit(sa.bindparam("page", type_=sa.Integer))
)


_CAME_TO = sa.case(
    (command.c.applied_ms.is_(None), "waiting"),
    else_=sa.func.coalesce(command.c.effect["code"].as_string(), "done"),
)
_ORDERS = sa.select(command.c.op, _CAME_TO, sa.func.count()).group_by(command.c.op, _CAME_TO)


def _up(value: int) -> Metric:
    return GaugeMetricFamily("notecast_database_up", "The database answers.", value)


def _now(connection: sa.Connection) -> Iterator[Metric]:
    """How things stand at this moment."""
    count = sa.func.count()
    yield _up(1)
    sessions = GaugeMetricFamily(
        "notecast_sessions", "Episodes that have not ended.", labels=("state", "queue")
    )
    query = sa.select(episode.c.state, episode.c.queue, count).where(episode.c.state.in_(OPEN))
    for state, queue, number in connection.execute(query.group_by("state", "queue")):
        sessions.add_metric((state, queue), number)
    yield sessions
    oldest = connection.execute(
        sa.select(now_ms() - sa.func.min(episode.c.queued_ms)).where(episode.c.state == "queued")
    ).scalar()
    yield GaugeMetricFamily(
        "notecast_queue_oldest_seconds", "How long the oldest one waits.", (oldest or 0) / 1000
    )
    effects = GaugeMetricFamily(
        "notecast_effects", "What waits to be written back, or failed.", labels=("state",)
    )
    waiting = ("due", "running", "failed", "uncertain", "dead")
    query = sa.select(effect.c.state, count).where(effect.c.state.in_(waiting))
    for state, number in connection.execute(query.group_by("state")):
        effects.add_metric((state,), number)
    yield effects
    workers = GaugeMetricFamily("notecast_workers", "Workers.", labels=("kind", "state"))
    query = sa.select(worker.c.kind, worker.c.state, count, sa.func.sum(worker.c.slots)).where(
        worker.c.state != "gone"
    )
    total = 0
    for kind, state, number, its_slots in connection.execute(query.group_by("kind", "state")):
        workers.add_metric((kind, state), number)
        total += its_slots if state == "ready" else 0
    yield workers
    yield GaugeMetricFamily("notecast_slots", "Episodes that may be spoken side by side.", total)
    orders = CounterMetricFamily(
        "notecast_control",
        "Orders of owners, since the installation began.",
        labels=("op", "result"),
    )
    for op, result, number in connection.execute(_ORDERS):
        orders.add_metric((op, result), number)
    yield orders


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts by upper bound, and the sum, as the text format wants them."""
    bounds = [*map(str, Histogram.BOUNDS), "+Inf"]
    total, found = 0, []
    for bound, count in zip(bounds, histogram.counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found, histogram.total
