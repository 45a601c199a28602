"""One WebSocket connection of the gateway: `websockets`, with a short way for small messages.

A listener's acks are most of what a gateway receives. Through the library's parser, its queue and
the reading task one costs as much as a dozen frames sent. So a segment that is exactly one small
text frame, on a connection where nothing else is under way, is unmasked here and offered to
`quick`; everything else, and what `quick` declines, takes the library's road.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import DATA_OPCODES, Frame
from websockets.protocol import State

QUICK_BYTES = 1024
EARLY_BYTES = 65_536  # of frames that a client sends before it has been let in
PING = b"\x89\x00"


class LiveConnection(ServerConnection):
    """A server connection that counts what is unread and knows when it last heard something."""

    def __init__(self, *args: Any, on_lost: Callable[[str], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self.name = secrets.token_hex(6)
        self.address = ""  # whose it is, once that is known
        self.heard_at = time.monotonic()
        self.handshaking = True
        self.unread = 0  # messages that the reading task has not done with
        self.quick: Callable[[str], bool] | None = None  # says if it took the message
        self._on_lost = on_lost
        self._socket: socket.socket | None = None  # the transport's, for `writer`
        self._edges = FrameEdges()
        self._request = b""  # its last bytes, until the empty line that ends it
        self._early: bytes | None = None  # what came behind it

    def data_received(self, data: bytes) -> None:
        """Take what has come, the short way if that is open."""
        if self.handshaking:
            self._shake_hands(data)
            return
        self.heard_at = time.monotonic()
        if self.quick is not None and not self.unread and self._edges.whole:
            text = small_text(data)
            if text is not None and self.protocol.state is State.OPEN and self.quick(text):
                return
        self._edges.feed(data)
        super().data_received(data)

    def begin(self) -> None:
        """The connection has been let in: from now on frames are read."""
        self.handshaking = False
        if self._early:
            self.data_received(self._early)

    def _shake_hands(self, data: bytes) -> None:
        """Hold frames back until the answer is out: the library would read, and answer, them."""
        if self._early is None:
            found = (self._request + data).find(b"\r\n\r\n")
            if found < 0:
                self._request = (self._request + data)[-3:]
                super().data_received(data)
                return
            end = found + 4 - len(self._request)
            self._early = b""
            super().data_received(data[:end])
            data = data[end:]
        self._early += data
        if len(self._early) > EARLY_BYTES:
            self.transport.abort()

    def process_event(self, event: Any) -> None:
        """Count messages on their way to the reading task."""
        if isinstance(event, Frame) and event.opcode in DATA_OPCODES and event.fin:
            self.unread += 1
        super().process_event(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone; its descriptor is still open, and closed by it next."""
        if self._socket is not None:
            self._socket.detach()
        super().connection_lost(exc)
        self._on_lost(self.name)

    def writer(self) -> Callable[[bytes], int]:
        """Return what hands a complete frame to the client, and says how many bytes wait unsent.

        While the connection is open only: no data frame may come after our close frame. A frame
        goes straight to the socket if nothing waits before it: the transport's way costs more, and
        a thousand listeners take it for every chunk, which is also why this is a closure.
        """
        protocol, is_open = self.protocol, State.OPEN
        transport, waiting = self.transport, self.transport.get_write_buffer_size
        its_own = transport.get_extra_info("socket")
        descriptor = its_own.fileno() if its_own is not None else -1  # also if it is closed
        is_bare = transport.get_extra_info("sslcontext") is None
        is_plain = os.name == "posix" and is_bare and descriptor >= 0
        if is_plain:
            self._socket = socket.socket(fileno=descriptor)
            self._socket.setblocking(False)
            send = self._socket.send

        def write(frame: bytes) -> int:
            if protocol.state is not is_open:
                return 0
            if is_plain and not waiting():
                try:
                    sent = send(frame)
                except OSError:  # full, or broken: the transport finds out which
                    sent = 0
                if sent == len(frame):
                    return 0
                frame = frame[sent:]
            transport.write(frame)
            return waiting()

        return write

    def ping_now(self) -> None:
        """Ask for a sign of life."""
        if self.protocol.state is State.OPEN:
            self.transport.write(PING)


class FrameEdges:
    """Follows a client's bytes and says whether they end where a frame ends: `whole`."""

    def __init__(self) -> None:
        self.whole = True
        self._head = b""  # the begin of a frame's header
        self._left = 0  # bytes of a frame that are still to come

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        data = self._head + data
        at = self._left
        while at < len(data):
            size = _frame_bytes(data, at)
            if not size:
                break
            at += size
        self._left = max(0, at - len(data))
        self._head = data[at:]
        self.whole = not (self._left or self._head)


def small_text(data: bytes) -> str | None:
    """Return the text in `data` if that is one whole masked text frame of up to 1 KiB."""
    if len(data) < 7 or data[0] != 0x81:
        return None
    size, at = data[1] - 0x80, 6
    if size == 126:
        size, at = int.from_bytes(data[2:4]), 8
    elif size == 127:  # a long frame
        return None
    if not 0 < size <= QUICK_BYTES or len(data) != at + size:
        return None
    key = (data[at - 4 : at] * (size // 4 + 1))[:size]
    try:
        return (int.from_bytes(data[at:]) ^ int.from_bytes(key)).to_bytes(size).decode()
    except UnicodeDecodeError:
        return None


def _frame_bytes(data: bytes, at: int) -> int:
    """Length of the client's frame that begins at `at`, header included; 0: not known yet."""
    if len(data) < at + 2:
        return 0
    size, head = data[at + 1] & 0x7F, 2
    if size > 125:
        head = 4 if size == 126 else 10
        if len(data) < at + head:
            return 0
        size = int.from_bytes(data[at + 2 : at + head])
    return head + 4 * (data[at + 1] >> 7) + size
