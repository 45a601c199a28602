"""The short way for small messages takes what it may take, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from websockets.frames import Frame, Opcode

from streaming.chunk_log import MemoryLog
from streaming.connection import QUICK_BYTES, FrameEdges, small_text
from streaming.frames import binary_message, text_message
from streaming.gateway import Gateway
from streaming.peer import Peer
from tests.streaming.speaking import (
    SID,
    book,
    create,
    event,
    greet,
    raw,
    running,
    send,
    speak,
    token,
)


def text_frame(text: str, **options: object) -> bytes:
    return Frame(Opcode.TEXT, text.encode(), **options).serialize(mask=True, extensions=[])  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["{}", "x" * 125, "x" * 126, "é" * 300, "x" * QUICK_BYTES])
def test_a_small_masked_frame_is_read(text: str) -> None:
    assert small_text(text_frame(text)) == text


def test_whatever_is_not_exactly_one_small_text_frame_is_left_to_the_library() -> None:
    frame = text_frame("hello")
    binary = Frame(Opcode.BINARY, b"hello").serialize(mask=True, extensions=[])
    left = [
        b"",
        frame[:-1],
        frame + b"\x81",
        frame + frame,
        binary,
        text_frame("x" * (QUICK_BYTES + 1)),
        text_frame("hello", fin=False),
        Frame(Opcode.TEXT, b"hello").serialize(mask=False, extensions=[]),
        Frame(Opcode.TEXT, b"\xff\xfe\xfd").serialize(mask=True, extensions=[]),
        bytes([0x81, 0xFF]) + bytes(4) + bytes(127),  # a 64-bit length, not 127
    ]

    assert [small_text(data) for data in left] == [None] * len(left)


@pytest.mark.parametrize("seed", range(20))
def test_frame_edges_are_found_however_the_bytes_are_split(seed: int) -> None:
    chance = random.Random(seed)
    frames = [
        Frame(Opcode.TEXT, chance.randbytes(chance.choice([0, 1, 100, 125, 126, 200, 70_000])))
        for _ in range(12)
    ]
    parts = [frame.serialize(mask=chance.random() < 0.9, extensions=[]) for frame in frames]
    whole_at, at = set(), 0
    for part in parts:
        at += len(part)
        whole_at.add(at)
    data, edges, fed = b"".join(parts), FrameEdges(), 0

    while fed < len(data):
        border = min(one for one in whole_at if one > fed)
        size = chance.choice([1, 2, 3, 7, 100, 5000, border - fed])
        edges.feed(data[fed : fed + size])
        fed = min(len(data), fed + size)
        assert edges.whole == (fed in whole_at)


def spy_on_quick(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    taken: list[bool] = []
    take = Peer._take_quick

    def spied(self: Peer, text: str) -> bool:
        taken.append(take(self, text))
        return taken[-1]

    monkeypatch.setattr(Peer, "_take_quick", spied)
    return taken


def test_acks_and_pings_go_the_short_way_and_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = spy_on_quick(monkeypatch)

    async def listen() -> None:
        log = MemoryLog()
        session = create(log)
        speak(session, 0)
        gate = Gateway(log, book())
        async with running(gate) as url, raw(url) as ws:
            await greet(ws)
            await send(ws, t="open", sid=SID, ahead_ms=400)
            await event(ws, "opened")
            for n in range(20):
                await send(ws, t="ping", ts=n)
                assert (await event(ws, "pong"))["ts"] == n
            await send(ws, t="ack", sid=SID, seq=1, play_ms=400, buf_ms=9, ts=7)
            assert (await event(ws, "caught_up"))["seq"] == 2
            assert (await event(ws, "pong"))["ts"] == 7
            await send(ws, t="ack", sid="ses_other", seq=1)
            assert (await event(ws, "error"))["code"] == "not_found"

    asyncio.run(listen())
    assert taken[-10:] == [True] * 10


def test_what_comes_in_one_segment_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    spy_on_quick(monkeypatch)

    async def listen() -> None:
        log = MemoryLog()
        session = create(log)
        speak(session, 0)
        async with running(Gateway(log, book())) as url, raw(url) as ws:
            await greet(ws)
            for n in range(18):  # within the rate of messages
                frames = [{"t": "open", "sid": SID}, {"t": "ack", "sid": SID, "seq": 0, "ts": n}]
                if n % 2:
                    for fields in frames:  # written one by one, read together or not
                        ws.transport.write(text_frame(json.dumps(fields)))
                else:
                    ws.transport.write(b"".join(text_frame(json.dumps(f)) for f in frames))
                # An ack that overtook its `open` would be answered with an error.
                assert (await event(ws, "opened"))["sid"] == SID
                found = await event(ws)
                while found["t"] not in ("pong", "error"):
                    found = await event(ws)
                assert found["t"] == "pong", found
                await send(ws, t="close", sid=SID)

    asyncio.run(listen())


def test_a_frame_in_pieces_is_followed_by_quick_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = spy_on_quick(monkeypatch)

    async def listen() -> None:
        async with running(Gateway(MemoryLog(), book())) as url, raw(url) as ws:
            await greet(ws)
            frame = text_frame(json.dumps({"t": "ping", "ts": 1, "x": "y" * 300}))
            for at in range(0, len(frame), 50):
                ws.transport.write(frame[at : at + 50])
                await asyncio.sleep(0.005)
            assert (await event(ws, "pong"))["ts"] == 1
            await send(ws, t="ping", ts=2)
            assert (await event(ws, "pong"))["ts"] == 2

    asyncio.run(listen())
    assert taken == [False, True]  # the hello was not for the short way


# (uvicorn itself drops what comes in one segment with the request)
@pytest.mark.parametrize(
    ("door", "step"),
    [("websockets", 1), ("websockets", 37), ("websockets", 10_000), ("uvicorn", 1)],
)
def test_frames_sent_before_the_answer_wait_for_it(door: str, step: int) -> None:
    from tests.streaming.test_server import on_uvicorn

    request = (
        b"GET /v1/live HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: notecast.v1\r\n\r\n"
    )
    hello = text_frame(json.dumps({"t": "hello", "v": 1, "token": token()}))

    async def knock() -> bytes:
        gate = Gateway(MemoryLog(), book())
        async with (running if door == "websockets" else on_uvicorn)(gate) as url:
            reader, writer = await asyncio.open_connection(*url[5:].split("/")[0].split(":"))
            data = request + hello
            for at in range(0, len(data), step):
                writer.write(data[at : at + step])
                await writer.drain()
                await asyncio.sleep(0)
            heard = await reader.readuntil(b"}]")
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            return heard

    assert b'{"t":"welcome"' in asyncio.run(knock())


def test_a_refused_client_s_frames_are_not_read(caplog: pytest.LogCaptureFixture) -> None:
    async def knock() -> bytes:
        async with running(Gateway(MemoryLog(), book())) as url:
            reader, writer = await asyncio.open_connection(*url[5:].split("/")[0].split(":"))
            writer.write(b"GET /v1/live HTTP/1.1\r\nHost: h\r\n\r\n\xff\xff\xff\xff")
            heard = await reader.read()
            writer.close()
            await writer.wait_closed()
            return heard

    assert asyncio.run(knock()).startswith(b"HTTP/1.1 400")
    assert caplog.records == []


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_frames_arrive_whole_and_in_order_however_little_the_kernel_takes(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    bodies = [n.to_bytes(32) + bytes([n % 251]) * 5000 for n in range(400)]

    async def talk() -> None:
        gate = Gateway(MemoryLog(), book())
        async with running(gate) as url, raw(url) as ws:
            await greet(ws)
            [peer] = gate.peers
            # The client holds a few and reads no more, until it is asked for the first.
            waits = [peer.write(binary_message(body[:32], body[32:])) for body in bodies[:300]]
            assert waits[0] == 0 < max(waits) == waits[-1]
            for body in bodies[300:]:
                peer.write(binary_message(body[:32], body[32:]))
                assert await ws.recv() == bodies.pop(0)
            while bodies:
                assert await ws.recv() == bodies.pop(0)
            while peer.backlog():
                await asyncio.sleep(0.01)
            assert peer.write(text_message(b"{}")) == 0
            assert await ws.recv() == "{}"

    run(asyncio.wait_for(talk(), 20))
