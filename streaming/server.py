"""The gateway's port: its own (`serve`), or one that it shares with HTTP.

`websocket_protocol` gives uvicorn what `serve` gives the library, so that HTTP and live listening
share one port.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from websockets.asyncio.connection import Connection
from websockets.asyncio.server import Server
from websockets.asyncio.server import serve as serve_websockets
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from streaming.connection import LiveConnection
from streaming.gateway import Gateway
from streaming.listener import (
    MAX_MESSAGE_BYTES,
    SUBPROTOCOL,
)
from streaming.peer import Peer

SEND_BUFFER_BYTES = 65_536
UNSENT_BYTES = 16_384
# The library closes with 1009 beyond its limit, before the message is read whole; up to there
# `listener.py` closes with the 4413 of the protocol.
MAX_READ_BYTES = 2 * MAX_MESSAGE_BYTES


async def serve_connection(ws: LiveConnection, gateway: Gateway) -> None:
    """Serve one accepted connection until it is closed."""
    sock = ws.transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        # Default buffers swallow minutes of Opus before a slow listener can be noticed.
        with contextlib.suppress(OSError):  # the client may be gone already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            if lowat := getattr(socket, "TCP_NOTSENT_LOWAT", None):  # not on every system
                sock.setsockopt(socket.IPPROTO_TCP, lowat, UNSENT_BYTES)
    peer = Peer(ws, gateway)
    ws.begin()
    await peer.run()


@contextlib.asynccontextmanager
async def serve(
    host: str, port: int, gateway: Gateway, *, reuse_port: bool = False
) -> AsyncIterator[Server]:
    """Run `gateway` on a port of its own; several processes may share it with `reuse_port`."""

    async def handler(ws: LiveConnection) -> None:
        await serve_connection(ws, gateway)

    def connection(*args: Any, **options: Any) -> LiveConnection:
        return LiveConnection(*args, **options, on_lost=gateway.admission.leave)

    async with (
        serve_websockets(
            cast(Any, handler),
            host,
            port,
            create_connection=cast(Any, connection),
            process_request=cast(Any, gateway.let_in),
            ping_interval=None,  # `Gateway` asks those who say nothing: most do
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            max_size=MAX_READ_BYTES,
            max_queue=8,
            close_timeout=5,
            reuse_port=reuse_port,
        ) as server,
        gateway,
    ):
        yield server


def websocket_protocol(gateway: Gateway) -> Callable[..., asyncio.Protocol]:
    """Return a protocol factory for uvicorn's `ws=` that hands upgrades to `gateway`."""

    def protocol(*, config: Any, server_state: Any, app_state: Any) -> asyncio.Protocol:
        return _UvicornConnection(gateway, server_state.connections)

    return protocol


class _UvicornConnection(LiveConnection):
    """A WebSocket connection whose transport and handshake bytes come from uvicorn."""

    def __init__(self, gateway: Gateway, connections: set[Any]) -> None:
        protocol = ServerProtocol(subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=MAX_READ_BYTES)
        super().__init__(
            protocol,
            cast(Server, self),
            max_queue=8,
            close_timeout=5,
            ping_interval=None,
            on_lost=gateway.admission.leave,
        )
        self._gateway = gateway
        self._connections = connections
        self._task: asyncio.Task[None] | None = None

    def is_serving(self) -> bool:
        """Answer for the server object that the library asks during the handshake."""
        return not self._gateway.draining

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport over from uvicorn."""
        Connection.connection_made(self, transport)
        self._connections.add(self)
        self._task = self.loop.create_task(self._run())

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell uvicorn, which waits for its connections when it stops."""
        self._connections.discard(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Be sent away by uvicorn, which is stopping."""
        self._gateway.send_away()

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(10):
                await self.handshake(cast(Any, self._gateway.let_in))
        except TimeoutError:
            self.transport.abort()
            return
        if self.protocol.state is not State.OPEN:
            self.transport.close()
            return
        async with self:
            await serve_connection(self, self._gateway)
