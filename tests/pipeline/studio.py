"""A house that speaks, with its door open: everything of an installation but other processes."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import requests
import uvicorn

from pipeline import intake, leases
from pipeline.control import read_new
from pipeline.episodes import produce
from pipeline.live import make_gateway
from pipeline.signals import ORDERS
from pipeline.speaker import Speaker
from pipeline.web import make_web
from pipeline.web.http import http_protocol
from streaming.admission import Admission
from streaming.limits import MemoryLedger
from streaming.server import websocket_protocol
from streaming.tickets import Tickets
from tests.pipeline.house import House, open_house

T = TypeVar("T")
API_KEY = "nck_" + "k" * 32


class Studio:
    """One installation in this process: a worker that speaks, and the HTTP door on a free port."""

    def __init__(self, house: House, *, speaks: bool = True) -> None:
        self.house = house
        self.services = services = house.services
        digest = hashlib.sha256(API_KEY.encode()).hexdigest()
        door = services.doors["api"]
        intake.add_api_key(
            services.database, door, name="test", digest=digest, prefix="nck_kkkk", scopes=[]
        )
        self.gateway = make_gateway(services)
        self.gateway.ledger = MemoryLedger()  # one process, no server
        self.gateway.tickets = Tickets(self.gateway.ledger)
        self.gateway.admission = Admission(self.gateway.ledger, self.gateway.limits)
        config = uvicorn.Config(
            make_web(services, self.gateway),
            port=0,
            http=http_protocol(self.gateway),
            ws=websocket_protocol(self.gateway),
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        self.speaker: Speaker | None = None
        if speaks:
            self._speak()
        wait_for("the door to be open", lambda: self._server.started)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def _speak(self) -> None:
        services = self.services
        engine = services.engine
        self.speaker = speaker = Speaker(
            services.database,
            engine,
            partial(produce, services),
            services.settings,
            self.house.worker,
            read_orders=partial(read_new, services),
        )
        services.signals.listen(
            ORDERS,
            lambda order: speaker.order_came(order["episode"], is_stop=order["op"] == "stop"),
        )
        info = engine.info()
        leases.announce(
            services.database, self.house.worker, "ready", engine=info.name, slots=info.slots
        )
        speaker.start()

    def in_gateway(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something where the gateway runs."""
        loop = self.gateway._clocks[0].get_loop()
        return asyncio.run_coroutine_threadsafe(work, loop).result(20)

    def close(self) -> None:
        """Stop everything."""
        self._server.should_exit = True
        self._thread.join(20)
        if self.speaker is not None:
            self.speaker.drain(0.5)

    def accept(self, text: str, **note: Any) -> tuple[str, str]:
        """Store a note; (key, link's token)."""
        taken = self.house.accept(text, **note)
        if self.speaker is not None:
            self.speaker.wake()
        return taken.accepted.episode, taken.accepted.listen_url.partition("#t=")[2]

    def get(self, path: str, *, token: str = "", **options: Any) -> requests.Response:
        headers = dict(options.pop("headers", {}))
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return requests.get(f"{self.url}{path}", headers=headers, timeout=30, **options)

    def ticket(self, sid: str, token: str) -> str:
        answer = requests.post(
            f"{self.url}/v1/tickets",
            json={"sid": sid},
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["ticket"])

    def wait_state(self, sid: str, *states: str, timeout_s: float = 30.0) -> Any:
        return wait_for(
            f"{sid} to be {states}",
            lambda: row if (row := self.house.row(sid)).state in states else None,
            timeout_s,
        )


@contextmanager
def open_studio(
    directory: Path, template: Path, *, speaks: bool = True, **options: Any
) -> Iterator[Studio]:
    """A studio in an empty directory; options are settings."""
    with open_house(directory, template, look_s=0.2, **options) as house:
        studio = Studio(house, speaks=speaks)
        try:
            yield studio
        finally:
            studio.close()


def wait_for(what: str, look: Any, timeout_s: float = 20.0) -> Any:
    """The first true answer of `look`."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.02)
    return found
