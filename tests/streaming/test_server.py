from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streaming.channel import BACKLOG_BYTES, SLICE_BYTES
from streaming.chunk_log import MemoryLog
from streaming.errors import LogUnavailable
from streaming.gateway import Gateway, SessionInfo
from streaming.limits import Limits
from streaming.links import LinkStatus
from streaming.listener import CLOSE
from streaming.server import websocket_protocol
from streaming.session import LiveSession
from tests.streaming.speaking import (
    ROOMY,
    SID,
    book,
    create,
    event,
    greet,
    packets,
    payload,
    payloads,
    raw,
    running,
    send,
    speak,
    token,
    until_end,
)


def gateway(log: MemoryLog | None = None, **options) -> Gateway:  # type: ignore[no-untyped-def]
    links = options.pop("links", None) or book()
    return Gateway(log or MemoryLog(), links, **options)


def spoken(segs: int = 2, **options: object) -> MemoryLog:
    """A log with a finished session."""
    log = MemoryLog()
    session = create(log)
    for seg in range(segs):
        speak(session, seg, **options)  # type: ignore[arg-type]
    session.end("done")
    return log


def closed(coroutine) -> tuple[int, dict]:  # type: ignore[no-untyped-def, type-arg]
    """Run until the server closes the connection: code and reason."""
    with pytest.raises(ConnectionClosed) as caught:
        asyncio.run(coroutine)
    received = caught.value.rcvd
    assert received is not None
    assert len(received.reason.encode()) < 123
    return received.code, json.loads(received.reason)


def test_a_session_is_heard_from_start_to_end() -> None:
    async def listen() -> None:
        async with running(gateway(spoken())) as url, raw(url) as ws:
            assert (await greet(ws))["t"] == "welcome"
            await send(ws, t="open", req=1, sid=SID)
            found, frames = await until_end(ws)

            assert payloads(frames) == [payload(seg, n) for seg in range(2) for n in range(3)]
            assert [e["t"] for e in found[:3]] == ["opened", "state", "seg"]
            opened = found[0]
            assert (opened["req"], opened["title"], opened["lang"]) == (1, "Weekly", "en")
            assert (opened["codec"], opened["rate"], opened["skip"]) == ("opus", 48_000, 312)
            positions = [tuple(e["p"]) for e in found if "p" in e]
            assert positions == sorted(positions)

    asyncio.run(listen())


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/live", {"Sec-WebSocket-Protocol": "notecast.v1"}, 101),
        ("/v1/live", {"Sec-WebSocket-Protocol": "chat, notecast.v1"}, 101),
        ("/v1/live?x=1", {"Sec-WebSocket-Protocol": "notecast.v1"}, 101),
        ("/v1/live", {}, 400),
        ("/v1/live", {"Sec-WebSocket-Protocol": "notecast.v9"}, 400),
        ("/v1/else", {"Sec-WebSocket-Protocol": "notecast.v1"}, 404),
        ("/", {}, 404),
        ("/v1/live", {"Origin": "https://evil.example"}, 403),
        ("/v1/live", {"Origin": "null"}, 403),
        ("/v1/live", {"Origin": "https://notes.example", "Sec-WebSocket-Protocol": "x"}, 400),
    ],
)
@pytest.mark.parametrize("door", ["own", "uvicorn"])
def test_upgrades_are_let_in_or_refused(
    door: str, path: str, headers: dict[str, str], status: int
) -> None:
    async def knock() -> str:
        gate = gateway(origins={"https://notes.example"})
        async with (running if door == "own" else on_uvicorn)(gate) as url:
            port = int(url.split(":")[2].split("/")[0])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket"]
            lines += ["Connection: Upgrade", "Sec-WebSocket-Version: 13"]
            lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            first = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return first.decode()

    assert asyncio.run(knock()).split()[1] == str(status)


def test_the_own_host_is_no_foreign_origin() -> None:
    async def knock() -> None:
        async with running(gateway(spoken())) as url:
            origin = url.replace("ws://", "http://").removesuffix("/v1/live")
            async with raw(url, origin=origin) as ws:
                assert (await greet(ws))["t"] == "welcome"

    asyncio.run(knock())


@contextlib.asynccontextmanager
async def on_uvicorn(gate: Gateway) -> AsyncIterator[str]:
    """The gateway on one port with an HTTP application."""
    app = FastAPI()
    app.get("/healthz")(lambda: {"ok": True})
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        config = uvicorn.Config(app, ws=websocket_protocol(gate), log_level="warning")  # type: ignore[arg-type]
        server = uvicorn.Server(config)
        async with gate:
            task = asyncio.create_task(server.serve(sockets=[sock]))
            while not server.started:
                await asyncio.sleep(0.01)
            try:
                yield f"ws://127.0.0.1:{port}/v1/live"
            finally:
                server.should_exit = True
                await task


def test_http_and_listening_share_a_port_under_uvicorn() -> None:
    async def listen() -> bytes:
        async with on_uvicorn(gateway(spoken())) as url, raw(url) as ws:
            await greet(ws)
            await send(ws, t="open", sid=SID)
            _, frames = await until_end(ws)
            assert len(frames) == 7
            port = int(url.split(":")[2].split("/")[0])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer

    assert b'{"ok":true}' in asyncio.run(listen())


def test_uvicorn_sends_its_listeners_away_when_it_stops() -> None:
    async def listen() -> None:
        async with on_uvicorn(gateway(spoken())) as url:
            ws = await connect(url, subprotocols=["notecast.v1"])
            await greet(ws)
        assert (await event(ws))["t"] == "goaway"
        await ws.recv()

    code, reason = closed(listen())
    assert code == 1001
    assert 0 <= reason["retry_ms"] < 15_000


def test_draining_sends_everybody_away_and_refuses_newcomers() -> None:
    async def listen() -> None:
        gate = gateway(spoken())
        async with running(gate) as url, raw(url) as ws:
            await greet(ws)
            await gate.drain()
            with pytest.raises(InvalidStatus) as refused:
                async with raw(url):
                    pass
            assert refused.value.response.status_code == 503
            assert (await event(ws))["t"] == "goaway"
            await ws.recv()

    assert closed(listen())[0] == 1001


def test_a_silent_client_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.gateway.TICK_S", 0.01)

    async def wait() -> None:
        async with running(gateway(limits=Limits(hello_s=0.0))) as url, raw(url) as ws:
            await ws.recv()

    assert closed(wait()) == (4408, {"code": "timeout"})


@pytest.mark.parametrize(
    ("tok", "ending"),
    [
        ("nc1.bad.token", (4401, "unauthenticated")),
        (token(lasts_s=-100), (4401, "token_expired")),
        (token(link="lnk_revoked"), (4403, "forbidden")),
        (token(link="lnk_unknown"), (4403, "forbidden")),
    ],
)
def test_a_token_that_opens_nothing_closes_the_connection(
    tok: str, ending: tuple[int, str]
) -> None:
    table = {"lnk_revoked": LinkStatus(revoked=True)}

    async def knock() -> None:
        async with running(gateway(links=book(status=table.get))) as url, raw(url) as ws:
            error = await greet(ws, tok)
            assert (error["t"], error["code"], error["fatal"]) == ("error", ending[1], True)
            await ws.recv()

    assert closed(knock()) == (ending[0], {"code": ending[1]})


def test_a_link_revoked_in_the_table_closes_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.gateway.LINK_CHECK_S", 0.05)
    revoked = False

    async def listen() -> None:
        nonlocal revoked
        links = book(status=lambda _: LinkStatus(revoked=revoked))
        async with running(gateway(spoken(), links=links)) as url, raw(url) as ws:
            await greet(ws)
            revoked = True
            assert (await event(ws))["code"] == "forbidden"
            await ws.recv()

    assert closed(listen())[0] == 4403


def test_an_expired_token_ends_a_running_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.listener.SKEW_S", -30.0)
    monkeypatch.setattr("streaming.gateway.TICK_S", 0.02)

    async def listen() -> None:
        async with running(gateway(spoken())) as url, raw(url) as ws:
            await greet(ws, token(lasts_s=20))
            assert (await event(ws))["code"] == "token_expired"
            await ws.recv()

    assert closed(listen())[0] == 4401


def test_a_bearer_in_the_handshake_is_a_token() -> None:
    async def listen() -> None:
        headers = {"Authorization": f"Bearer {token()}"}
        async with (
            running(gateway(spoken())) as url,
            raw(url, additional_headers=headers) as ws,
        ):
            await send(ws, t="hello", v=1)
            assert (await event(ws))["t"] == "welcome"

    asyncio.run(listen())


def test_who_opens_before_the_first_word_waits_in_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streaming.peer.QUEUE_LOOK_S", 0.02)
    places = [3, 3, 2, 1]

    async def info(sid: str) -> SessionInfo:
        pos = places.pop(0) if len(places) > 1 else places[0]
        return SessionInfo("queued", title="Later", pos=pos, eta_ms=pos * 1000)

    async def listen() -> None:
        log = MemoryLog()
        async with running(gateway(log, session_info=info)) as url, raw(url) as ws:
            await greet(ws)
            await send(ws, t="open", sid=SID, req=4)
            queued = [await event(ws) for _ in range(3)]
            assert [(e["t"], e["pos"], e["eta_ms"]) for e in queued] == [
                ("queued", 3, 3000),
                ("queued", 2, 2000),
                ("queued", 1, 1000),
            ]
            session = create(log)
            opened = await event(ws)
            assert (opened["t"], opened["req"], opened["title"]) == ("opened", 4, "Later")
            heard = speak(session, 0)
            session.end("done")
            _, frames = await until_end(ws)
            assert payloads(frames) == heard

    asyncio.run(listen())


@pytest.mark.parametrize(
    ("info", "code", "url"),
    [
        (None, "not_found", None),
        (SessionInfo("done", url="https://h/x.mp3"), "gone", "https://h/x.mp3"),
        (SessionInfo("failed"), "engine_failed", None),
    ],
)
def test_a_session_without_a_log_is_explained(
    info: SessionInfo | None, code: str, url: str | None
) -> None:
    async def session_info(sid: str) -> SessionInfo | None:
        return info

    async def listen() -> None:
        async with running(gateway(session_info=session_info)) as address, raw(address) as ws:
            await greet(ws)
            for _ in range(2):  # the connection stays usable, and the session can be asked again
                await send(ws, t="open", req=1, sid=SID)
                error = await event(ws)
                assert (error["code"], error.get("url"), error["fatal"]) == (code, url, False)
                assert (error["req"], error["sid"]) == (1, SID)

    asyncio.run(listen())


def test_a_wait_that_ends_in_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.peer.QUEUE_LOOK_S", 0.01)
    states = ["queued", "queued", "failed"]

    async def info(sid: str) -> SessionInfo:
        return SessionInfo(states.pop(0) if len(states) > 1 else states[0])  # type: ignore[arg-type]

    async def listen() -> None:
        async with running(gateway(session_info=info)) as url, raw(url) as ws:
            await greet(ws)
            await send(ws, t="open", sid=SID)
            assert (await event(ws, "error"))["code"] == "engine_failed"

    asyncio.run(listen())


def test_a_failing_lookup_ends_the_talk_with_internal(caplog: pytest.LogCaptureFixture) -> None:
    async def info(sid: str) -> SessionInfo:
        raise RuntimeError("the database burns")

    async def listen() -> None:
        async with running(gateway(session_info=info)) as url, raw(url) as ws:
            await greet(ws)
            await send(ws, t="open", sid=SID)
            error = await event(ws)
            assert "burns" not in json.dumps(error)
            await ws.recv()

    assert closed(listen()) == (4500, {"code": "internal", "retry_ms": 1000})
    assert "burns" in caplog.text


def test_a_log_that_is_away_is_an_error_that_may_be_tried_again() -> None:
    class Away(MemoryLog):
        def read(self, *_: object) -> list:  # type: ignore[type-arg, override]
            raise LogUnavailable("no store")

    async def listen() -> None:
        async with running(gateway(Away())) as url, raw(url) as ws:
            await greet(ws)
            for _ in range(2):
                await send(ws, t="open", sid=SID)
                error = await event(ws)
                assert (error["code"], error["retry_ms"], error["fatal"]) == (
                    "internal",
                    1000,
                    False,
                )

    asyncio.run(listen())


def test_several_sessions_come_over_one_connection() -> None:
    async def listen() -> None:
        log = MemoryLog()
        async with running(gateway(log)) as url, raw(url) as ws:
            await greet(ws, token("*"))
            heard = {}
            for sid in ("ses_a", "ses_b"):
                session = create(log, sid)
                heard[sid] = speak(session, 0)
                session.end("done")
                await send(ws, t="open", sid=sid)
            ends = [await event(ws, "end") for _ in range(2)]
            assert {end["sid"] for end in ends} == set(heard)
            await send(ws, t="close", sid="ses_a")
            await send(ws, t="open", sid="ses_a")
            assert (await event(ws, "opened"))["sid"] == "ses_a"

    asyncio.run(listen())


def test_after_close_nothing_more_comes() -> None:
    async def listen() -> None:
        log = MemoryLog()
        session = create(log)
        async with running(gateway(log)) as url, raw(url) as ws:
            await greet(ws)
            await send(ws, t="open", sid=SID)
            await event(ws, "caught_up")
            await send(ws, t="close", sid=SID)
            await send(ws, t="ping", ts=1)
            await event(ws, "pong")
            speak(session, 0)
            await send(ws, t="ping", ts=2)
            async with asyncio.timeout(5):
                assert json.loads(await ws.recv())["ts"] == 2

    asyncio.run(listen())


def test_pcm_is_sent_on_wish() -> None:
    async def listen() -> None:
        log = MemoryLog()
        session = create(log)
        async with running(gateway(log)) as url, raw(url) as ws:
            speak(session, 0, pcm=True)
            await greet(ws)
            await send(ws, t="open", sid=SID, codec="pcm")
            await event(ws, "caught_up")
            speak(session, 1, pcm=True)
            session.end("done")
            _, frames = await until_end(ws)
            assert payloads(frames) == [bytes([n]) * 9600 for n in range(3)]

    asyncio.run(listen())


GOOD: list[dict[str, Any]] = [
    {"t": "open", "sid": SID},
    {"t": "close", "sid": SID},
    {"t": "ack", "sid": SID, "seq": 1, "play_ms": 5},
    {"t": "flow", "sid": SID, "ahead_ms": 0},
    {"t": "ping", "ts": 1},
    {"t": "auth", "token": "nc1.x.y"},
    {"t": "control", "sid": SID, "op": "stop"},
]
ODD = [None, True, -1, 1e308, 10**400, "\ud800", "x" * 500, [], {}, [[]] * 9, SID]
BROKEN = ["", "{", "[" * 15_000, '{"t":', "null", '{"t":NaN}', "x" * 17_000]


def hostile(chance: random.Random) -> str | bytes:
    """Broken JSON, wrong types, deep nesting, binary frames, and good messages between."""
    kind = chance.random()
    if kind < 0.01:
        return chance.randbytes(20)
    if kind < 0.03:
        return chance.choice(BROKEN)
    fields = dict(chance.choice(GOOD))
    if kind < 0.7:
        name = chance.choice(["t", "sid", "from", "codec", "ts", "seq", "req", "token"])
        fields[name] = chance.choice(ODD)
    return json.dumps(fields)


def test_hostile_clients_get_only_documented_answers(caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(11)

    async def read_all(ws: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for _ in ws:
                pass

    async def attack(url: str) -> int:
        async with raw(url) as ws:
            await greet(ws)
            answers = asyncio.create_task(read_all(ws))
            with contextlib.suppress(ConnectionClosed):
                for _ in range(40):
                    await ws.send(hostile(chance))
                    await asyncio.sleep(0)
                await ws.close()
            await answers
            return ws.close_code or 0

    async def attack_often() -> set[int]:
        gate = gateway(spoken())
        async with running(gate) as url:
            codes = [await asyncio.gather(*(attack(url) for _ in range(10))) for _ in range(10)]
            assert gate.counters.errors == 0
        assert not gate.peers
        return {code for some in codes for code in some}

    with caplog.at_level(logging.WARNING):
        codes = asyncio.run(attack_often())
    assert caplog.records == []
    assert codes <= {1000, *CLOSE.values()}
    assert {4400, 4413} <= codes


def test_a_message_too_large_for_any_answer_is_cut_off() -> None:
    async def shout() -> None:
        async with running(gateway()) as url, raw(url) as ws:
            await ws.send("x" * 100_000)
            await ws.recv()

    with pytest.raises(ConnectionClosed) as caught:
        asyncio.run(shout())
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1009


async def join_by_hand(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A listener with the smallest receive buffer, that reads only when it is told to."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    port = int(url.split(":")[2].split("/")[0])
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    writer.write(
        b"GET /v1/live HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: notecast.v1\r\n\r\n"
    )
    for fields in ({"t": "hello", "v": 1, "token": token()}, {"t": "open", "sid": SID}):
        body = json.dumps(fields).encode()
        # An all-zero mask leaves the text as it is.
        size = bytes([0x80 | len(body)]) if len(body) < 126 else b"\xfe" + len(body).to_bytes(2)
        writer.write(b"\x81" + size + bytes(4) + body)
    return reader, writer


async def hear_by_hand(reader: asyncio.StreamReader) -> int:
    """Read until the end event; gives the number of bytes."""
    heard, tail = 0, b""
    while b'"t":"end"' not in tail and (data := await reader.read(1 << 16)):
        heard += len(data)
        tail = (tail + data)[-400:]
    return heard


def talk(session: LiveSession, chunks: int) -> None:
    """Chunks of 2 kB, far faster than real time."""
    for chunk in range(chunks):
        body = packets(0, chunk) * 6
        session.audio(0, 9600, body, first=chunk == 0, last=chunk == chunks - 1)
        time.sleep(0.002)
    session.end("done")


def test_who_takes_nothing_for_long_is_closed_and_told_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streaming.channel.STUCK_S", 0.3)

    async def listen() -> bytes:
        log = MemoryLog()
        session = create(log)
        gate = gateway(log)
        async with running(gate) as url:
            reader, writer = await join_by_hand(url)
            await asyncio.to_thread(talk, session, 200)
            async with asyncio.timeout(10):
                while not gate.counters.stuck:
                    await asyncio.sleep(0.02)
            heard = await reader.read(-1)  # what was under way, and the reason
            writer.close()
            await writer.wait_closed()
            return heard[-200:]

    tail = asyncio.run(listen())
    assert (4488).to_bytes(2) + b'{"code":"slow_consumer"}' in tail
    assert b'"slow_consumer"' in tail


def test_one_who_does_not_read_neither_grows_memory_nor_delays_199_others() -> None:
    chunks = 200

    async def listen() -> int:
        log = MemoryLog()
        session = create(log)
        gate = gateway(log, limits=ROOMY)
        async with running(gate) as url:
            everyone = [await join_by_hand(url) for _ in range(200)]
            while gate.counters.opened < 200:
                await asyncio.sleep(0.01)
            talking = asyncio.create_task(asyncio.to_thread(talk, session, chunks))
            listening = asyncio.gather(*(hear_by_hand(reader) for reader, _ in everyone[1:]))
            most = 0
            while not listening.done():
                most = max([most, *(peer.backlog() for peer in gate.peers)])
                await asyncio.sleep(0.01)
            assert min(await listening) > chunks * 2000
            await talking
            assert gate.counters.left_lane >= 1
            for _, writer in everyone:
                writer.transport.abort()
        return most

    most = asyncio.run(asyncio.wait_for(listen(), 60))
    assert 0 < most <= BACKLOG_BYTES + SLICE_BYTES
