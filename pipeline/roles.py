"""What each process does, first line to last: `notecast web`, `stream`, `relay`, `worker`.

`notecast up` runs all of them as children; on several machines each is started by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pipeline
from pipeline import ids, leases
from pipeline.services import Services
from pipeline.settings import Settings

log = logging.getLogger(__name__)


def run_web(settings: Settings) -> None:
    """HTTP and `WS /v1/live` on one port, until SIGTERM."""
    import uvicorn

    from pipeline.live import make_gateway
    from pipeline.web import make_web
    from pipeline.web.http import http_protocol
    from streaming.server import websocket_protocol

    services = Services(settings)
    gateway = make_gateway(services)
    app = make_web(services, gateway)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=http_protocol(gateway),
            ws=cast(Any, websocket_protocol(gateway)),  # uvicorn calls it, a factory will do
            log_config=None,
            access_log=False,  # addresses may hold tickets
            server_header=False,
            timeout_graceful_shutdown=5,
        )
    )
    try:
        server.run()
    finally:
        services.close()


def run_stream(settings: Settings, *, host: str, port: int) -> None:
    """Only `WS /v1/live`, on a port of its own; several may share it."""
    from pipeline.listening import told
    from pipeline.live import make_gateway
    from pipeline.metrics import Metrics
    from streaming.server import serve

    async def main() -> None:
        services = Services(settings)
        gateway = make_gateway(services)
        metrics = Metrics(gateway, services.database, services.chunks)
        gateway.metrics = metrics.text
        stop = asyncio.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, stop.set)
        try:
            async with (
                serve(host, port, gateway, reuse_port=True),
                told(services, gateway),
                metrics.watching(),
            ):
                log.info("gateway ready", extra={"port": port})
                await stop.wait()
        finally:
            services.close()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The fast event loop, where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    return cast(Callable[[], asyncio.AbstractEventLoop], uvloop.new_event_loop)


def run_relay(settings: Settings) -> None:
    """Outbox, reaper, sweeper, ticker, until SIGTERM."""
    from pipeline.relay import run_relay as relay_forever

    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    services = Services(settings)
    try:
        relay_forever(services, stop)
    finally:
        services.close()


def run_speaker(settings: Settings) -> None:
    """Speak episodes, until SIGTERM."""
    from pipeline.control import read_new
    from pipeline.episodes import produce
    from pipeline.signals import ORDERS, WAKE
    from pipeline.speaker import Speaker
    from pipeline.tasks import SPEAK_QUEUES

    services = Services(settings)
    worker_id = _register(services, "gpu")
    try:
        engine = services.engine
        engine.warm(settings.warm)
        info = engine.info()
        speaker = Speaker(
            services.database,
            engine,
            partial(produce, services),
            settings,
            worker_id,
            read_orders=partial(read_new, services),
        )
        services.signals.listen(
            ORDERS,
            lambda order: speaker.order_came(order["episode"], is_stop=order["op"] == "stop"),
        )
        services.signals.listen(WAKE, lambda _signal: speaker.wake())
        leases.announce(services.database, worker_id, "ready", engine=info.name, slots=info.slots)
        log.info("worker ready", extra={"engine": info.name, "slots": info.slots})
        speaker.start()
        try:
            _consume(services, "speak", speaker.wake, SPEAK_QUEUES, worker_id)
        finally:
            leases.announce(services.database, worker_id, "draining")
            speaker.drain(settings.drain_s)
            leases.hand_back(services.database, worker_id)
            leases.announce(services.database, worker_id, "gone")
    finally:
        services.close()


def run_errands(settings: Settings) -> None:
    """Write-backs, reads and batch expansion, until SIGTERM."""
    from pipeline.errands import Errands
    from pipeline.tasks import IO_QUEUES

    services = Services(settings)
    worker_id = _register(services, "io")
    errands = Errands(services, worker_id)
    try:
        leases.announce(services.database, worker_id, "ready")
        errands.start()
        try:
            _consume(services, "errand", errands.wake, IO_QUEUES, worker_id)
        finally:
            errands.close()
            leases.announce(services.database, worker_id, "gone")
    finally:
        services.close()


def _consume(
    services: Services,
    task: str,
    wake: Callable[[], None],
    queues: tuple[str, ...],
    worker_id: str,
) -> None:
    """Take wake-ups until SIGTERM; a second one leaves at once, which loses nothing."""
    from pipeline.tasks import make_app, run_worker

    try:
        run_worker(make_app(services.broker_url), task, wake, queues=queues, name=worker_id)
    except SystemExit as stop:
        log.info("worker stops", extra={"status": stop.code})


def _register(services: Services, kind: str) -> str:
    worker_id = ids.ulid()
    leases.register(
        services.database,
        worker_id,
        host=services.settings.host_name,
        pid=os.getpid(),
        kind=kind,
        build=pipeline.__version__,
    )
    return worker_id
