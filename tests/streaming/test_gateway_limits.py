"""Who is let in, how much they may have, and how they are told: against a real gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streaming.admission import SecurityEvent
from streaming.chunk_log import MemoryLog
from streaming.gateway import Gateway, SessionInfo
from streaming.limits import Limits, Rate
from streaming.links import LinkStatus
from streaming.orders import Outcome
from streaming.redis_limits import RedisLedger
from streaming.tokens import Grant
from tests.streaming.speaking import (
    RING,
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
    until_end,
)


def owner_token(link: str = "lnk_owner") -> str:
    return RING.sign(Grant(link, "owner", 2_000_000_000, sid=SID))


async def closing(ws: ClientConnection) -> tuple[int, dict[str, Any]]:
    """Read until the server closes: code and reason."""
    with pytest.raises(ConnectionClosed) as caught:
        async with asyncio.timeout(10):
            while True:
                await ws.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, json.loads(caught.value.rcvd.reason)


async def refused(url: str, **options: Any) -> tuple[int, str | None]:
    """The HTTP status and Retry-After of an upgrade that is not let in."""
    with pytest.raises(InvalidStatus) as caught:
        async with raw(url, **options):
            pass
    response = caught.value.response
    return response.status_code, response.headers.get("Retry-After")


@contextlib.asynccontextmanager
async def greeted(
    url: str, tok: str | None = None, **fields: Any
) -> AsyncIterator[ClientConnection]:
    async with raw(url) as ws:
        assert (await greet(ws, tok, **fields))["t"] == "welcome"
        yield ws


def test_an_address_with_too_many_connections_gets_429() -> None:
    events: list[SecurityEvent] = []

    async def test() -> None:
        gate = Gateway(MemoryLog(), book(), limits=Limits(per_address=2), on_security=events.append)
        async with running(gate) as url:
            async with greeted(url), greeted(url):
                status, retry_after = await refused(url)
                assert status == 429
                assert retry_after is not None
                assert 1 <= int(retry_after) <= 10
            async with greeted(url):  # a place is free again
                pass
        assert gate.counters.refused == {"address": 1}

    asyncio.run(test())
    assert events == [SecurityEvent("too_many_listeners", "127.0.0.1")]


def test_behind_a_proxy_each_listener_has_an_address_of_its_own() -> None:
    async def test() -> None:
        limits = Limits(per_address=1)
        gate = Gateway(MemoryLog(), book(), limits=limits, trusted_proxies=["127.0.0.1"])
        async with running(gate) as url:
            one, other = ({"X-Forwarded-For": f"192.0.2.{n}"} for n in (1, 2))
            async with raw(url, additional_headers=one), raw(url, additional_headers=other):
                assert (await refused(url, additional_headers=one))[0] == 429

    asyncio.run(test())


def test_a_full_process_answers_503() -> None:
    async def test() -> None:
        async with (
            running(Gateway(MemoryLog(), book(), limits=Limits(connections=1))) as url,
            greeted(url),
        ):
            assert (await refused(url))[0] == 503

    asyncio.run(test())


@pytest.mark.parametrize(
    ("limits", "tok", "why"),
    [
        (Limits(per_link=1), token(), "over this link"),
        (Limits(per_user=1), owner_token(), "by this user"),
    ],
)
def test_a_link_and_a_user_have_so_many_connections(limits: Limits, tok: str, why: str) -> None:
    async def test() -> tuple[int, dict[str, Any]]:
        async with (
            running(Gateway(MemoryLog(), book(), limits=limits)) as url,
            greeted(url, tok),
            raw(url) as ws,
        ):
            answer = await greet(ws, tok)
            assert (answer["code"], answer["status"]) == ("too_many_listeners", 429)
            assert why in answer["message"]
            return await closing(ws)

    code, reason = asyncio.run(test())
    assert code == 4429
    assert reason == {"code": "too_many_listeners", "retry_ms": 10_000}


def test_places_are_counted_over_all_gateways(valkey_url: str) -> None:
    async def test() -> None:
        gates = [
            Gateway(MemoryLog(), book(), limits=Limits(per_link=2), ledger=RedisLedger(valkey_url))
            for _ in range(2)
        ]
        async with running(gates[0]) as one, running(gates[1]) as other:
            async with greeted(one), greeted(other), raw(one) as ws:
                assert (await greet(ws))["code"] == "too_many_listeners"
            await asyncio.sleep(0.1)
            async with greeted(other), greeted(other):
                pass

    asyncio.run(test())


def test_floods_are_warned_twice_and_closed_at_the_third_excess() -> None:
    async def test() -> tuple[int, dict[str, Any]]:
        limits = Limits(messages=Rate(0.001, 5))
        gate = Gateway(MemoryLog(), book(), limits=limits)
        async with running(gate) as url, greeted(url) as ws:  # the hello was the first
            for n in range(7):
                await send(ws, t="ping", ts=n, req=n)
            answers = [await event(ws) for _ in range(7)]
            assert [one["t"] for one in answers] == ["pong"] * 4 + ["error"] * 3
            assert [one["code"] for one in answers[4:]] == ["rate_limited"] * 3
            assert [one["fatal"] for one in answers[4:]] == [False, False, True]
            assert answers[4]["req"] == 4
            assert answers[4]["retry_ms"] > 0
            return await closing(ws)

    code, reason = asyncio.run(test())
    assert code == 4429
    assert reason["code"] == "rate_limited"


class Obedient:
    """A desk that does everything at once."""

    def __init__(self) -> None:
        self.done = 0

    async def order(self, order: Any, key: str) -> object:
        self.done += 1
        return key

    async def outcome(self, ticket: Any) -> Outcome:
        return Outcome()

    async def say(self, say: Any, key: str) -> Any:
        raise AssertionError

    async def is_waiting(self, sid: str) -> bool:
        return False


def test_orders_to_a_session_are_counted_from_everybody_together(valkey_url: str) -> None:
    async def test() -> None:
        limits, desk = Limits(session_controls=Rate(0.001, 3)), Obedient()
        gates = [
            Gateway(MemoryLog(), book(), limits=limits, ledger=RedisLedger(valkey_url), desk=desk)
            for _ in range(2)
        ]
        async with (
            running(gates[0]) as one,
            running(gates[1]) as other,
            greeted(one, owner_token()) as ws,
            greeted(other, owner_token()) as more,
        ):
            for which in (ws, more, ws):
                await send(which, t="control", req=1, sid=SID, op="pause")
                assert (await event(which))["t"] == "ctl"
            await send(more, t="control", req=9, sid=SID, op="pause")
            error = await event(more)
            assert (error["code"], error["req"], error["fatal"]) == ("rate_limited", 9, False)
            assert error["retry_ms"] > 0
        assert desk.done == 3

    asyncio.run(test())


def test_who_opens_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.gateway.TICK_S", 0.02)

    async def test() -> tuple[int, dict[str, Any]]:
        log = MemoryLog()
        create(log)
        async with (
            running(Gateway(log, book(), limits=Limits(idle_s=0.3))) as url,
            greeted(url) as idle,
            greeted(url) as busy,
        ):
            await send(busy, t="open", sid=SID)
            found = await closing(idle)
            await send(busy, t="ping", ts=1)
            assert (await event(busy, "pong"))["ts"] == 1
            await send(busy, t="close", sid=SID)
            assert (await closing(busy))[0] == 4408
            return found

    assert asyncio.run(test()) == (4408, {"code": "timeout"})


def test_who_does_not_even_answer_a_ping_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("gateway.TICK_S", 0.02), ("gateway.PING_S", 0.1), ("peer.SILENT_S", 0.4)):
        monkeypatch.setattr(f"streaming.{name}", value)

    async def test() -> None:
        gate = Gateway(MemoryLog(), book())
        # The library of `living` answers pings.
        async with running(gate) as url, greeted(url) as living:
            reader, writer = await asyncio.open_connection(*url[5:].split("/")[0].split(":"))
            writer.write(
                b"GET /v1/live HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: notecast.v1\r\n\r\n"
            )
            await reader.readuntil(b"\r\n\r\n")
            heard = await reader.read()
            writer.close()
            await writer.wait_closed()
            pings, _, close = heard.partition(b"\x88")
            assert set(pings) == {0x89, 0}
            assert int.from_bytes(close[1:3]) == 4408
            await send(living, t="ping", ts=1)
            assert (await event(living))["t"] == "pong"

    asyncio.run(test())


def test_a_client_that_connects_again_replaces_itself_and_nobody_else(valkey_url: str) -> None:
    async def test() -> None:
        gates = [Gateway(MemoryLog(), book(), ledger=RedisLedger(valkey_url)) for _ in range(2)]
        client = {"name": "player", "id": "tab-7"}
        async with (
            running(gates[0]) as one,
            running(gates[1]) as other,
            greeted(one, client=client) as first,
            greeted(one, client={"id": "tab-8"}) as stranger,
            greeted(one, token(link="lnk_2"), client=client) as by_another_link,
            greeted(one, client=client) as second,
        ):
            assert await closing(first) == (4409, {"code": "replaced"})
            await asyncio.sleep(0.1)  # the news go round
            async with greeted(other, client=client) as third:
                assert await closing(second) == (4409, {"code": "replaced"})
                for ws in (stranger, by_another_link, third):
                    await send(ws, t="ping", ts=1)
                    assert (await event(ws))["t"] == "pong"

    asyncio.run(test())


def test_a_revoked_link_is_closed_at_every_gateway_at_once(valkey_url: str) -> None:
    """The table is not asked again for minutes here: it is the news that close."""
    import redis

    from streaming.limits import revocation
    from streaming.redis_limits import tell

    table = {"lnk_1": LinkStatus(), "lnk_2": LinkStatus()}

    async def test() -> None:
        gates = [
            Gateway(MemoryLog(), book(status=table.get), ledger=RedisLedger(valkey_url))
            for _ in range(2)
        ]
        async with (
            running(gates[0]) as one,
            running(gates[1]) as other,
            greeted(one) as first,
            greeted(other) as second,
            greeted(other, token(link="lnk_2")) as good,
        ):
            await asyncio.sleep(0.1)
            table["lnk_1"] = LinkStatus(revoked=True)
            with redis.Redis.from_url(valkey_url) as client:
                tell(client, revocation("lnk_1"))
            async with asyncio.timeout(1):
                for ws in (first, second):
                    assert await closing(ws) == (4403, {"code": "forbidden"})
            async with raw(other) as ws:
                assert (await greet(ws))["code"] == "forbidden"
            await send(good, t="ping", ts=1)
            assert (await event(good))["t"] == "pong"

    asyncio.run(test())


def test_hosts_are_told_how_many_listen_at_all_gateways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.gateway.TICK_S", 0.05)

    async def test() -> None:
        log = MemoryLog()
        speak(create(log), 0)
        gate = Gateway(log, book())
        async with (
            running(gate) as url,
            greeted(url, owner_token()) as host,
            greeted(url) as guest,
        ):
            for ws in (host, guest):
                await send(ws, t="open", sid=SID)
                await event(ws, "opened")
            told = {"t": "listeners", "sid": SID}
            heard = await event(host, "listeners")
            while heard["n"] != 2:  # the first may be from before the guest came
                heard = await event(host, "listeners")
            gate.elsewhere = {SID: 5}
            assert await event(host, "listeners") == told | {"n": 7}
            await send(guest, t="close", sid=SID)
            assert await event(host, "listeners") == told | {"n": 6}
            await asyncio.sleep(0.3)  # several rounds in which nothing changes
            for ws in (host, guest):
                await send(ws, t="ping", ts=1)
                await pong_only(ws)

    async def pong_only(ws: ClientConnection) -> None:
        while (found := await event(ws))["t"] != "pong":
            assert found["t"] != "listeners"

    asyncio.run(test())


def test_open_cut_control_error_and_close_leave_a_line_each_and_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        log = MemoryLog()
        session = create(log)
        speak(session, 0)
        async with running(Gateway(log, book())) as url, greeted(url, owner_token()) as ws:
            await send(ws, t="open", sid=SID)
            await event(ws, "caught_up")
            session.cut(0, "voice")
            await event(ws, "cut")
            await send(ws, t="ack", sid=SID, seq=1, play_ms=10, buf_ms=1, ts=1)
            await event(ws, "pong")
            await send(ws, t="control", req=1, sid=SID, op="pause", play_ms=40)
            await event(ws, "error")  # nobody carries orders out here
            await send(ws, t="open", sid="ses_other")
            await event(ws, "error")
            await send(ws, t="close", sid=SID)
            await send(ws, t="ping", ts=1)
            await event(ws, "pong")

    asyncio.run(test())
    lines = [one for one in caplog.records if one.name in ("streaming.peer", "streaming.channel")]
    assert [one.getMessage() for one in lines] == [
        "session opened",
        "session cut",
        "order came",
        "error sent",
        "error sent",
        "session closed",
        "connection closed",
    ]
    opened, cut, order, _, forbidden, closed, _ = (vars(one) for one in lines)
    assert (opened["sid"], opened["role"], opened["position"]) == (SID, "owner", 0)
    assert (cut["position"], cut["seg"]) == (2, 0)
    assert (order["op"], order["position"]) == ("pause", 40)
    assert (forbidden["code"], forbidden["role"]) == ("forbidden", None)
    assert closed["conn"] == opened["conn"]
    assert "Sentence 0" not in str([vars(one) for one in lines])
    assert owner_token() not in str([vars(one) for one in lines])


async def get(url: str, **headers: str) -> tuple[str, str]:
    """Head and body of `GET /metrics`."""
    host, port = url.removeprefix("ws://").removesuffix("/v1/live").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head, body


def test_metrics_are_shown_to_this_machine_only() -> None:
    async def test() -> None:
        gate = Gateway(MemoryLog(), book())
        async with running(gate) as url:
            assert " 404 " in (await get(url))[0]
            gate.metrics = lambda: b"notecast_listeners 0\n"
            head, body = await get(url)
            assert " 200 " in head
            assert "text/plain; version=0.0.4" in head
            assert body == "notecast_listeners 0\n"
            assert " 403 " in (await get(url, X_Forwarded_For="10.0.0.1"))[0]

    asyncio.run(test())


def test_kicking_closes_what_listens_to_a_session_everywhere(valkey_url: str) -> None:
    async def test() -> None:
        log = MemoryLog()
        create(log)
        gates = [Gateway(log, book(), ledger=RedisLedger(valkey_url)) for _ in range(2)]
        async with (
            running(gates[0]) as one,
            running(gates[1]) as other,
            greeted(one) as first,
            greeted(other) as second,
            greeted(other) as elsewhere,
        ):
            for ws in (first, second):
                await send(ws, t="open", sid=SID)
                await event(ws, "opened")
            await asyncio.sleep(0.1)
            await gates[0].kick(SID)
            assert (await closing(first))[0] == (await closing(second))[0] == 4403
            await send(elsewhere, t="ping", ts=1)
            assert (await event(elsewhere))["t"] == "pong"

    asyncio.run(test())


def test_what_is_refused_leaves_a_trace_without_secrets() -> None:
    events: list[SecurityEvent] = []

    async def test() -> None:
        gate = Gateway(MemoryLog(), book(), on_security=events.append)
        async with running(gate) as url:
            assert (await refused(url, origin="https://evil.example"))[0] == 403
            async with raw(url) as ws:
                await greet(ws, "nc1.e30.sneaky")
                await closing(ws)
            async with greeted(url) as ws:
                await send(ws, t="open", sid="ses_other")
                await event(ws)

    asyncio.run(test())
    assert [(one.kind, one.address, one.link) for one in events] == [
        ("origin", "127.0.0.1", ""),
        ("unauthenticated", "127.0.0.1", ""),
        ("forbidden", "127.0.0.1", "lnk_1"),
    ]
    assert events[0].detail == "https://evil.example"
    assert "sneaky" not in str(events)


def test_the_acks_a_session_wants_are_told_when_it_is_opened() -> None:
    async def test() -> list[int]:
        log = MemoryLog()
        session = create(log)
        speak(session, 0, pcm=True)
        session.end("done")
        found = []
        async with running(Gateway(log, book())) as url, greeted(url) as ws:
            for options in ({}, {"codec": "pcm"}, {"policy": "live"}):
                await send(ws, t="open", sid=SID, **options)
                found.append((await event(ws, "opened"))["ack_ms"])
                await until_end(ws)
                await send(ws, t="close", sid=SID)
        return found

    assert asyncio.run(test()) == [15_000, 5_000, 5_000]


def test_a_session_is_looked_up_once_for_everybody_who_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streaming.peer.QUEUE_LOOK_S", 0.2)
    asked = 0

    async def info(sid: str) -> SessionInfo:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)
        return SessionInfo("queued", pos=1)

    async def wait(url: str) -> None:
        async with greeted(url) as ws:
            await send(ws, t="open", sid=SID)
            assert (await event(ws))["t"] == "queued"
            await asyncio.sleep(1)

    async def test() -> None:
        async with running(Gateway(MemoryLog(), book(), session_info=info)) as url:
            await asyncio.gather(*(wait(url) for _ in range(30)))

    asyncio.run(test())
    assert 1 < asked < 12


@pytest.mark.parametrize(("path", "status"), [("/healthz", 200), ("/readyz", 200), ("/", 404)])
def test_a_stream_process_says_how_it_is(path: str, status: int) -> None:
    async def ask(url: str) -> int:
        host, port = url[5:].split("/")[0].split(":")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return int(line.split()[1])

    async def test() -> None:
        gate = Gateway(MemoryLog(), book())
        async with running(gate) as url:
            assert await ask(url) == status
            gate.send_away()
            if path == "/readyz":
                assert await ask(url) == 503

    asyncio.run(test())
