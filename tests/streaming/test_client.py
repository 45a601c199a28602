from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable

import pytest
import redis
import uvloop

from streaming.chunk_log import ChunkLog, MemoryLog
from streaming.client import Audio, Listening, listen
from streaming.errors import ListenError, LogLost
from streaming.frames import Codec
from streaming.gateway import Gateway, SessionInfo
from streaming.links import LinkStatus, listen_url
from streaming.redis_log import RedisLog
from streaming.session import LiveSession
from tests.streaming.speaking import (
    ROOMY,
    SID,
    BadNetwork,
    book,
    create,
    payload,
    running,
    speak,
    token,
)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnects wait milliseconds."""
    monkeypatch.setattr("streaming.client.BASE_S", 0.005)
    monkeypatch.setattr("streaming.client.MOST_S", 0.02)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Heard:
    """What a careful listener has after each item: payloads by sentence, less what was cut."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, bytes]] = []
        self.kinds: list[str] = []
        self.texts: dict[int, str] = {}

    def take(self, item: object) -> None:
        if isinstance(item, Audio):
            self.chunks.append((item.header.seg, item.payload))
            return
        assert isinstance(item, dict)
        self.kinds.append(item["t"])
        if item["t"] == "cut":
            self.chunks = [chunk for chunk in self.chunks if chunk[0] < item["from_seg"]]
        elif item["t"] == "seg":
            self.texts[item["seg"]] = item["text"]

    @property
    def payloads(self) -> list[bytes]:
        return [body for _, body in self.chunks]


async def follow(url: str, **options: object) -> tuple[Heard, Listening]:
    heard = Heard()
    async with Listening(url, token=token(), **options) as listening:  # type: ignore[arg-type]
        async for item in listening:
            heard.take(item)
    return heard, listening


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_link_is_followed_to_its_end() -> None:
    log = MemoryLog()
    session = create(log)
    spoken = speak(session, 0) + speak(session, 1)
    session.end("done")

    async def run() -> Heard:
        async with running(Gateway(log, book())) as url:
            link = listen_url(url.replace("ws", "http").removesuffix("/v1/live"), "x", token())
            heard = Heard()
            async with Listening(link) as listening:
                async for item in listening:
                    heard.take(item)
            assert listening.exact
            return heard

    heard = asyncio.run(run())
    assert heard.payloads == spoken
    assert heard.texts == {0: "Sentence 0.", 1: "Sentence 1."}
    assert heard.kinds[-1] == "end"


def test_code_without_an_event_loop_can_listen() -> None:
    log = MemoryLog()
    session = create(log)
    spoken = speak(session, 0)
    session.end("done")
    url: list[str] = []
    ready, done = threading.Event(), threading.Event()

    async def run() -> None:
        async with running(Gateway(log, book())) as address:
            url.append(address)
            ready.set()
            await asyncio.to_thread(done.wait)

    server = in_thread(lambda: asyncio.run(run()))
    ready.wait()
    try:
        items = list(listen(url[0], token=token()))
        assert next(iter(listen(url[0], token=token())))["t"] == "opened"  # and goes away
    finally:
        done.set()
        server.join()
    assert [item.payload for item in items if isinstance(item, Audio)] == spoken


def test_fifty_listeners_on_a_bad_network_hear_every_chunk_once(chunk_log: ChunkLog) -> None:
    """Connections break in mid-frame, again and again, while sentences are cut and taken over."""
    chance = random.Random(3)

    def talk() -> None:
        session, seg, fence = create(chunk_log), 0, 1
        for take in range(24):
            speak(session, seg, take=take)
            seg += 1
            time.sleep(0.03)
            if chance.random() < 0.2:
                fence += 1
                session = LiveSession.take_over(chunk_log, SID, fence)
            if chance.random() < 0.3:
                seg = max(0, seg - chance.randrange(3))
                session.cut(seg, "retry")
        session.end("done")

    async def run() -> tuple[list[tuple[Heard, Listening]], int]:
        async with running(Gateway(chunk_log, book(), limits=ROOMY)) as inner:
            network = BadNetwork(5, int(inner.split(":")[2].split("/")[0]))
            async with network.running() as url:
                talking = in_thread(talk)
                everybody = asyncio.gather(*(follow(url) for _ in range(50)))
                await asyncio.to_thread(talking.join)
                await asyncio.sleep(0.3)
                network.calm = True
                return await everybody, network.breaks

    everybody, breaks = asyncio.run(asyncio.wait_for(run(), 50))
    first = everybody[0][0].payloads
    assert breaks > 50
    assert sum(listening.resumes for _, listening in everybody) > 50
    for heard, listening in everybody:
        assert listening.exact  # and the digest was compared: `follow` would have raised
        assert heard.payloads == first


def test_a_gateway_may_be_replaced_while_people_listen(redis_log: RedisLog) -> None:
    def talk() -> None:
        session = create(redis_log)
        for seg in range(12):
            speak(session, seg)
            time.sleep(0.04)
        session.end("done")

    async def run() -> list[tuple[Heard, Listening]]:
        port = free_port()
        url = f"ws://127.0.0.1:{port}/v1/live"
        talking = in_thread(talk)
        everybody = asyncio.gather(*(follow(url) for _ in range(10)))
        for _ in range(4):
            gateway = Gateway(redis_log, book(), session_info=_queued, goaway_ms=20)
            async with running(gateway, port):
                await asyncio.sleep(0.15)
                for peer in gateway.peers:
                    peer._ws.transport.abort()  # as if the process were killed
        async with running(Gateway(redis_log, book(), session_info=_queued, goaway_ms=20), port):
            await asyncio.to_thread(talking.join)
            return await everybody

    # uvloop, as in production: asyncio before 3.12 leaks a connection that comes while its server
    # is being closed.
    everybody = uvloop.run(asyncio.wait_for(run(), 50))
    spoken = [payload(seg, n) for seg in range(12) for n in range(3)]
    assert all(heard.payloads == spoken for heard, _ in everybody)
    assert all(listening.resumes for _, listening in everybody)


def test_listeners_follow_a_log_that_was_lost_and_built_again(
    redis_log: RedisLog, valkey_url: str
) -> None:
    def talk() -> None:
        session = create(redis_log)
        speak(session, 0)
        speak(session, 1)
        time.sleep(0.2)
        with redis.Redis.from_url(valkey_url) as client:
            client.flushall()
        with pytest.raises(LogLost):
            speak(session, 2)
        session.rebuild()
        for seg in range(4):
            speak(session, seg, take=1)
        session.end("done")

    async def run() -> Heard:
        async with running(Gateway(redis_log, book(), session_info=_queued)) as url:
            talking = in_thread(talk)
            heard, listening = await follow(url)
            await asyncio.to_thread(talking.join)
            assert listening.exact
            return heard

    heard = asyncio.run(asyncio.wait_for(run(), 30))
    assert heard.payloads == [payload(seg, n, 1) for seg in range(4) for n in range(3)]
    assert "cut" in heard.kinds


async def _queued(sid: str) -> SessionInfo:
    return SessionInfo("queued", pos=1)


def test_a_resumer_of_a_lost_log_goes_back_to_the_beginning_of_the_new_one() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)

    async def run() -> Heard:
        heard = Heard()
        gateway = Gateway(log, book())
        async with running(gateway) as url, Listening(url, token=token()) as listening:
            async for item in listening:
                heard.take(item)
                if len(heard.chunks) == 3 and listening.resumes == 0:
                    log.forget(SID)
                    new = create(log, fence=2, rebuilt=True)
                    speak(new, 0, take=1)
                    new.end("done")
                    gateway.hub.drop_unused(time.monotonic() + 60)
                    for peer in gateway.peers:
                        peer._ws.transport.abort()
                    for channel in list(gateway.hub._channels.values()):
                        gateway.hub._drop(channel)
        return heard

    heard = asyncio.run(asyncio.wait_for(run(), 20))
    assert heard.payloads == [payload(0, n, 1) for n in range(3)]


def test_pcm_is_followed_without_a_digest() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0, pcm=True)
    session.end("done")

    async def run() -> tuple[Heard, Listening]:
        async with running(Gateway(log, book())) as url:
            return await follow(url, codec="pcm")

    heard, listening = asyncio.run(run())
    assert heard.payloads == [bytes([n]) * 9600 for n in range(3)]
    assert not listening.exact


def test_a_start_in_the_middle_begins_one_chunk_earlier() -> None:
    log = MemoryLog()
    session = create(log)
    for seg in range(3):
        speak(session, seg)
    session.end("done")

    async def run() -> Heard:
        async with running(Gateway(log, book())) as url:
            return (await follow(url, start={"ms": 1250}))[0]

    assert asyncio.run(run()).payloads == [payload(1, 2), *(payload(2, n) for n in range(3))]


def test_a_wrong_digest_is_noticed() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    session._digest.update(b"something nobody heard")
    session.end("done")

    with pytest.raises(ListenError, match="heard 3 chunks") as caught:
        run_follow(Gateway(log, book()))
    assert caught.value.code == "checksum"


def run_follow(gateway: Gateway, **options: object) -> Heard:
    async def run() -> Heard:
        async with running(gateway) as url:
            return (await follow(url, **options))[0]

    return asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize(
    ("info", "code"),
    [(None, "not_found"), ("done", "gone"), ("failed", "engine_failed")],
)
def test_an_error_for_good_ends_with_its_cause(info: str | None, code: str) -> None:
    async def session_info(sid: str) -> SessionInfo | None:
        return SessionInfo(info, url="https://h/x.mp3") if info else None  # type: ignore[arg-type]

    with pytest.raises(ListenError) as caught:
        run_follow(Gateway(MemoryLog(), book(), session_info=session_info))
    assert caught.value.code == code
    assert caught.value.url == ("https://h/x.mp3" if code == "gone" else None)


def test_a_failed_session_raises_what_the_worker_said() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)
    session.fail("engine_failed", "the voice is missing")

    with pytest.raises(ListenError, match="the voice is missing"):
        run_follow(Gateway(log, book()))


def test_a_revoked_link_ends_with_forbidden() -> None:
    links = book(status=lambda _: LinkStatus(revoked=True))

    with pytest.raises(ListenError) as caught:
        run_follow(Gateway(MemoryLog(), links))
    assert caught.value.code == "forbidden"


def test_what_is_no_gateway_is_refused_at_once() -> None:
    async def run() -> None:
        async with running(Gateway(MemoryLog(), book())) as url:
            await follow(url.replace("/v1/live", "/v2/live"))

    with pytest.raises(ListenError, match="HTTP 404"):
        asyncio.run(run())


def test_an_absent_server_is_given_up_after_a_while() -> None:
    async def run() -> None:
        await follow(f"ws://127.0.0.1:{free_port()}/v1/live", give_up_s=0.1)

    with pytest.raises(ListenError, match="no answer for 0 s"):
        asyncio.run(run())


@pytest.mark.parametrize("address", ["https://h/l/x", "h", "https://h/l/x#t=nonsense"])
def test_what_is_no_link_is_refused(address: str) -> None:
    with pytest.raises(ListenError) as caught:
        Listening(address)
    assert caught.value.code == "link"


def test_codecs_are_told_by_the_frames() -> None:
    log = MemoryLog()
    session = create(log)
    speak(session, 0)  # no samples: the server steps down
    session.end("done")

    async def run() -> list[Codec]:
        codecs = []
        async with running(Gateway(log, book())) as url:
            with contextlib.suppress(StopAsyncIteration):
                async with Listening(url, token=token(), codec="pcm") as listening:
                    async for item in listening:
                        if isinstance(item, Audio):
                            codecs.append(item.header.codec)
        return codecs

    assert asyncio.run(run()) == [Codec.OPUS] * 3
