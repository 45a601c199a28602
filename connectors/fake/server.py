"""The fake: one HTTP server, the tools it speaks for, and the page that shows their tables.

with Fake([FakeFeishu]).running() as fake:
    Api(fake.url)...                       # our client, or the vendor's own
    fake.fail("PUT *", status=429)         # the next write is throttled
    fake.world.edit(table, "rec1", {"Status": "Ready"})   # a person edits; the hook hears
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI

from connectors.fake import page
from connectors.fake.courier import RETRY_S, Courier
from connectors.fake.endpoints import Endpoint
from connectors.fake.faults import Fault, Recorder, Seen
from connectors.fake.tool import FakeTool
from connectors.fake.world import Change, Message, World

_START_S = 20.0


T = TypeVar("T", bound=FakeTool)


class Fake:
    """The server; `url` once it runs."""

    def __init__(
        self,
        tools: Sequence[type[FakeTool]],
        *,
        world: World | None = None,
        retry_s: Sequence[float] = RETRY_S,
    ) -> None:
        self.world = world or World()
        self.courier = Courier(retry_s)
        self.tools: Mapping[str, FakeTool] = {kind.name: kind(self.world) for kind in tools}
        self.url = ""
        self.world.observers.append(self._emit)
        app = FastAPI(openapi_url=None)
        for tool in self.tools.values():
            app.include_router(tool.routes())
        self._feed = page.Feed(self.world)
        self._feed.titles = {name: tool.title for name, tool in self.tools.items()}
        app.include_router(page.routes(self, self._feed))
        page.mount_static(app)
        self.recorder = Recorder(app)

    @property
    def seen(self) -> list[Seen]:
        """Every call to a tool so far."""
        return self.recorder.seen

    def tool(self, kind: type[T]) -> T:
        """The tool of this kind."""
        tool = self.tools[kind.name]
        assert isinstance(tool, kind)
        return tool

    def add_samples(self, url: str, notecast_url: str) -> list[Endpoint]:
        """Fill in every tool's samples, and tell those that have hooks where Notecast is.

        Args:
            url: where this fake will be reached.
            notecast_url: where Notecast runs.
        """
        endpoints = []
        for tool in self.tools.values():
            tool.add_samples()
            endpoint = tool.endpoint(url)
            if endpoint is not None:
                tool.hook_url = f"{notecast_url}/hooks/{endpoint.name}"
                endpoints.append(endpoint)
        return endpoints

    def fail(
        self,
        on: str,
        *,
        status: int = 500,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        times: int = 1,
        carried_out: bool = False,
    ) -> None:
        """Answer the next `times` calls that fit `on` with a fault; see `faults.Fault`."""
        fault = Fault(on, status, body, headers or {}, times, carried_out)
        self.recorder.faults.append(fault)

    def serve(self, listening: socket.socket) -> None:
        """Serve on a socket until SIGINT or SIGTERM, in the main thread."""
        host, port = listening.getsockname()
        self.url = f"http://{host}:{port}"
        self.courier.start()
        try:
            self._server(host, port).run([listening])
        finally:
            self.courier.close()

    @contextmanager
    def running(self, port: int = 0) -> Iterator[Fake]:
        """Serve on loopback in a thread; port 0 takes a free one."""
        listening = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = self._server("127.0.0.1", port)
        serving = threading.Thread(target=server.run, args=([listening],), name="fake-tools")
        self.courier.start()
        serving.start()
        try:
            _wait_started(server, serving)
            yield self
        finally:
            self._feed.close()
            server.should_exit = True
            serving.join()
            self.courier.close()
            listening.close()

    def _server(self, host: str, port: int) -> uvicorn.Server:
        config = uvicorn.Config(
            self.recorder, host=host, port=port, log_config=None, lifespan="off",
            timeout_graceful_shutdown=2, ws="none",
        )  # fmt: skip
        return _Server(config, self._feed)

    def _emit(self, event: Change | Message) -> None:
        if isinstance(event, Change) and event.table.tool in self.tools:
            for delivery in self.tools[event.table.tool].events(event):
                self.courier.send(delivery)


class _Server(uvicorn.Server):
    """Ends the live pages first, which would otherwise hold up the end."""

    def __init__(self, config: uvicorn.Config, feed: page.Feed) -> None:
        super().__init__(config)
        self._feed = feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._feed.close()
        await super().shutdown(sockets)


def _wait_started(server: uvicorn.Server, serving: threading.Thread) -> None:
    deadline = time.monotonic() + _START_S
    while not server.started:
        if not serving.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the fake did not start")
        time.sleep(0.005)
