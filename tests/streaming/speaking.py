"""Sessions, gateways and a bad network for the tests of `streaming`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from streaming.chunk_log import BEGINNING, ChunkLog, Entry
from streaming.frames import pack_packets, parse
from streaming.gateway import Gateway
from streaming.limits import Limits
from streaming.links import LinkBook
from streaming.listener import SUBPROTOCOL
from streaming.server import serve
from streaming.session import LiveSession
from streaming.tokens import KeyRing

RING = KeyRing({"k1": b"0123456789abcdef0123456789abcdef"}, "k1")
SID = "ses_test"
CHUNK_TICKS = 9600
ROOMY = Limits(per_address=5000, per_link=5000)


def packets(seg: int, chunk: int, take: int = 0) -> list[bytes]:
    """Ten packets that no other chunk has."""
    seed = f"{seg}/{chunk}/{take}".encode()
    return [hashlib.sha256(seed + bytes([n])).digest() for n in range(10)]


def payload(seg: int, chunk: int, take: int = 0) -> bytes:
    return pack_packets(packets(seg, chunk, take))


def sha256(payloads: list[bytes]) -> str:
    return hashlib.sha256(b"".join(payloads)).hexdigest()


def create(log: ChunkLog, sid: str = SID, fence: int = 1, **options: Any) -> LiveSession:
    meta = {"title": "Weekly", "lang": "en"}
    return LiveSession.create(log, sid, fence, meta=meta, **options)


def speak(
    session: LiveSession, seg: int, *, chunks: int = 3, take: int = 0, pcm: bool = False
) -> list[bytes]:
    """Speak one whole sentence; return its payloads."""
    session.sentence(seg, f"Sentence {seg}.")
    for chunk in range(chunks):
        samples = bytes([chunk]) * CHUNK_TICKS if pcm else b""
        first, last = chunk == 0, chunk == chunks - 1
        session.audio(seg, CHUNK_TICKS, packets(seg, chunk, take), samples, first=first, last=last)
    session.words(seg, [("Sentence", session.dur_ms - 600, session.dur_ms)], "model")
    return [payload(seg, chunk, take) for chunk in range(chunks)]


def entries(log: ChunkLog, sid: str = SID) -> Iterator[Entry]:
    after = BEGINNING
    while page := log.read(sid, after):
        yield from page
        after = page[-1].position


def events(log: ChunkLog, sid: str = SID) -> list[dict[str, Any]]:
    return [json.loads(entry.body) for entry in entries(log, sid) if not entry.header]


def book(**options: Any) -> LinkBook:
    return LinkBook(RING, **options)


def token(sid: str = SID, *, link: str = "lnk_1", lasts_s: float = 86_400) -> str:
    """A link's token; parametrised tests make theirs when the whole suite is collected."""
    return book().mint(link, sid, expires=int(time.time() + lasts_s))


@contextlib.asynccontextmanager
async def running(gateway: Gateway, port: int = 0) -> AsyncIterator[str]:
    """Serve on a free port; gives the URL."""
    async with serve("127.0.0.1", port, gateway) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/live"


@contextlib.asynccontextmanager
async def raw(url: str, **options: Any) -> AsyncIterator[ClientConnection]:
    """A connection that has said nothing yet."""
    async with connect(
        url, subprotocols=[SUBPROTOCOL], compression=None, max_size=None, **options
    ) as ws:
        yield ws


async def greet(ws: ClientConnection, tok: str | None = None, **fields: Any) -> dict[str, Any]:
    """Say hello; gives the welcome."""
    hello = {"t": "hello", "v": 1, "token": tok or token(), "codecs": ["opus", "pcm"]}
    await send(ws, **hello | fields)
    return await event(ws)


async def send(ws: ClientConnection, **fields: Any) -> None:
    await ws.send(json.dumps(fields))


async def event(ws: ClientConnection, kind: str | None = None) -> dict[str, Any]:
    """The next event, or the next one of `kind`; frames and others are passed over."""
    async with asyncio.timeout(10):
        while True:
            data = await ws.recv()
            if isinstance(data, str):
                found: dict[str, Any] = json.loads(data)
                if kind in (None, found["t"]):
                    return found


async def until_end(ws: ClientConnection) -> tuple[list[dict[str, Any]], list[bytes]]:
    """All events up to `end`, and all audio frames."""
    found, frames = [], []
    async with asyncio.timeout(20):
        while not found or found[-1]["t"] != "end":
            data = await ws.recv()
            if isinstance(data, bytes):
                frames.append(data)
            else:
                found.append(json.loads(data))
    return found, frames


def payloads(frames: list[bytes]) -> list[bytes]:
    return [body for _, body in map(parse, frames) if body]


class BadNetwork:
    """A TCP relay that breaks each connection after a random number of bytes, in mid-frame."""

    def __init__(self, seed: int, port: int, most_bytes: int = 8000) -> None:
        self._random = random.Random(seed)
        self._port = port
        self._most = most_bytes
        self.calm = False  # break no more
        self.breaks = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        async with server:
            yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/live"

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        left = self._random.randrange(self._most) if not self.calm else 1 << 40
        up = asyncio.create_task(_copy(reader, inner_writer, 1 << 40))
        done = await _copy(inner_reader, writer, left)
        self.breaks += done
        up.cancel()
        await asyncio.gather(up, return_exceptions=True)
        for each in (writer, inner_writer):
            each.transport.abort()
        await asyncio.sleep(0)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int) -> bool:
    """Copy up to `left` bytes; say if that many came."""
    with contextlib.suppress(OSError):
        while data := await reader.read(min(left, 1 << 14) or 1):
            if not left:
                return True
            left -= len(data)
            writer.write(data)
            await writer.drain()
    return False
