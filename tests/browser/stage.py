"""A web server with the player page and the real gateway, behind a wire that a test can cut."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, cast

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

import streaming
from pipeline.services import Services
from pipeline.web import live_audio, live_events, problems, proofs
from pipeline.web.http import http_protocol
from pipeline.web.site import Site
from streaming.chunk_log import MemoryLog
from streaming.counters import Counters
from streaming.errors import NotDone
from streaming.gateway import Gateway, SessionInfo
from streaming.limits import Limits
from streaming.links import LinkBook, listen_url
from streaming.orders import Begun, Order, Outcome, Say
from streaming.renditions import Renditions
from streaming.server import websocket_protocol
from streaming.session import LiveSession
from streaming.tokens import KeyRing, Role

STATIC = Path(streaming.__file__).parent / "static"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
        "media-src 'self' blob:; style-src 'self'; script-src 'self'; worker-src 'self'; "
        "frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Wire:
    """TCP from a port of its own to the server's; can be cut, and stay cut.

    `blocks` says what it does to WebSockets, as some company networks do: `silence` swallows the
    upgrade, `reset` breaks the connection.
    """

    def __init__(self) -> None:
        self.is_cut = False
        self.blocks: Literal["", "silence", "reset"] = ""
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def lay(self, server_port: int) -> asyncio.Server:
        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self.is_cut:
                writer.transport.abort()
                return
            first = await reader.read(1 << 16)
            if self.blocks and b"upgrade: websocket" in first.lower():
                self._writers.add(writer)
                if self.blocks == "reset":
                    writer.transport.abort()
                return
            there_reader, there = await asyncio.open_connection("127.0.0.1", server_port)
            there.write(first)
            self._writers |= {writer, there}
            await asyncio.gather(self._pump(reader, there), self._pump(there_reader, writer))
            self._writers -= {writer, there}

        server = await asyncio.start_server(carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        self.is_cut = True
        for writer in list(self._writers):
            writer.transport.abort()


Follow = Callable[[Order], Outcome]


class Desk:
    """Carries orders out as a test says (`follow[sid]`), in a thread of their own."""

    def __init__(self) -> None:
        self.follow: dict[str, Follow] = {}
        self.orders: list[Order] = []

    async def order(self, order: Order, key: str) -> Order:
        self.orders.append(order)
        return order

    async def outcome(self, ticket: Order) -> Outcome:
        return await asyncio.to_thread(self.follow[ticket.sid], ticket)

    async def say(self, say: Say, key: str) -> Begun:
        raise NotDone("forbidden", "nobody speaks on this stage")

    async def is_waiting(self, sid: str) -> bool:
        return False


class Stage:
    """Everything in one thread with one event loop; `close` leaves nothing behind."""

    def __init__(self, recordings: Path) -> None:
        self.log = MemoryLog()
        self.counters = Counters()  # the gateway's, once it runs
        self.desk = Desk()
        self.recordings = recordings  # what lies here is served under /recordings/
        self.known: dict[str, SessionInfo] = {}  # what the pipeline says of sessions without a log
        self._links = LinkBook(KeyRing({"test": secrets.token_bytes(32)}, "test"))
        self._wire = Wire()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        if not self._ready.wait(20):
            raise RuntimeError("the stage did not come up")

    def session(self, *, title: str = "Weekly sync", lang: str = "en") -> LiveSession:
        sid = f"ses_{secrets.token_hex(10)}"
        return LiveSession.create(self.log, sid, 1, meta={"title": title, "lang": lang})

    def link(
        self,
        sid: str,
        *,
        expires_in_s: float = 600,
        role: Role = "listener",
        scopes: tuple[str, ...] = (),
    ) -> str:
        expires = int(time.time() + expires_in_s)
        link = f"lnk_{secrets.token_hex(6)}"
        token = self._links.mint(link, sid, expires=expires, role=role, scopes=scopes)
        return listen_url(self.origin, "notes", token)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._wire.port}"

    def cut_wire(self) -> None:
        """Break every connection, and refuse new ones until `mend_wire`."""
        self._call(self._wire.cut)

    def mend_wire(self) -> None:
        self._wire.is_cut = False
        self._wire.blocks = ""

    def block_websockets(self, how: Literal["silence", "reset"]) -> None:
        """Let no new WebSocket through, until `mend_wire`."""
        self._wire.blocks = how

    def close(self) -> None:
        self._call(self._stop.set)
        self._thread.join(20)

    def _call(self, work: Callable[[], object]) -> None:
        async def run() -> None:
            work()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _serve(self) -> None:
        async def info(sid: str) -> SessionInfo | None:
            return self.known.get(sid)

        roomy = Limits(per_address=5_000)
        async with Gateway(
            self.log, self._links, session_info=info, desk=self.desk, limits=roomy
        ) as gateway:
            self.counters = gateway.counters
            config = uvicorn.Config(
                page_app(self.recordings, gateway),
                port=0,
                http=http_protocol(gateway),
                ws=websocket_protocol(gateway),  # type: ignore[arg-type]
                log_level="error",
                lifespan="off",
                timeout_graceful_shutdown=2,
            )
            server = uvicorn.Server(config)
            with contextlib.suppress(asyncio.CancelledError):
                serving = asyncio.create_task(server._serve())
                while not server.started:
                    await asyncio.sleep(0.01)
                port = server.servers[0].sockets[0].getsockname()[1]
                wire = await self._wire.lay(port)
                self._ready.set()
                await self._stop.wait()
                self._wire.cut()
                wire.close()
                server.should_exit = True
                await serving


def page_app(recordings: Path, gateway: Gateway) -> FastAPI:
    """The page and live listening as `pipeline.web` serves them, without the pipeline."""
    app = FastAPI()
    problems.install(app)
    services = SimpleNamespace(settings=SimpleNamespace(transactions=4), database=None, chunks=None)
    site = Site(cast(Services, services), gateway)
    for routes in (
        proofs.routes(site),
        live_audio.routes(site, Renditions()),
        live_events.routes(site),
    ):
        app.include_router(routes)

    @app.get("/l/{slug}")
    def player(slug: str) -> FileResponse:
        return FileResponse(STATIC / "player.html", headers=HEADERS)

    @app.get("/rig")
    def rig() -> Response:
        icon = '<link rel="icon" href="/static/favicon.svg">'
        return Response(f"<!doctype html><title>rig</title>{icon}", media_type="text/html")

    @app.get("/rig.js")
    def rig_script() -> FileResponse:
        return FileResponse(Path(__file__).with_name("rig.js"), media_type="text/javascript")

    @app.get("/v1/audio/voices")
    def voices() -> dict[str, list[dict[str, str]]]:
        heart = {"id": "af_heart", "name": "Heart", "lang": "en"}
        return {"voices": [{"id": "zf_xiaoxiao", "name": "Xiaoxiao", "lang": "zh"}, heart]}

    @app.get("/v1/live/{sid}/chapters")
    def chapters(sid: str) -> dict[str, list[object]]:
        return {"offered": []}

    @app.get("/recordings/{name}")
    def recording(name: str) -> FileResponse:
        return FileResponse(recordings / name)

    app.mount("/static", StaticFiles(directory=STATIC))
    return app
