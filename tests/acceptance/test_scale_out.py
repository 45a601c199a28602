"""Several `notecast stream` processes, behind real nginx with the configuration that we ship."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from pipeline import migrate
from pipeline.services import Services
from pipeline.settings import Settings
from pipeline.up import free_port
from streaming.client import Audio, Listening
from streaming.frames import pack_packets
from streaming.links import socket_url
from streaming.listener import SUBPROTOCOL
from streaming.session import LiveSession
from tests.acceptance import talker
from tests.pipeline.house import Bell, House
from tests.streaming.speaking import BadNetwork, packets, speak

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@pytest.fixture
def house(tmp_path: Path, valkey_url: str) -> Iterator[House]:
    """An installation whose live log is on a real Valkey."""
    services = Services(Settings(data=tmp_path, engine="tone", broker_url=valkey_url))
    migrate.upgrade(services.database)
    vars(services).update(send=Bell())
    yield House(services, Bell())
    services.close()


class Streams:
    """`notecast stream` processes of one installation."""

    def __init__(self, house: House, directory: Path, **options: object) -> None:
        settings = house.services.settings
        self._directory = directory
        self._environment = {
            **os.environ,
            "NOTECAST_DATA": str(settings.data),
            "NOTECAST_BROKER_URL": settings.broker_url,
            "NOTECAST_ENGINE": "tone",
            **{f"NOTECAST_{name.upper()}": str(value) for name, value in options.items()},
        }
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, port: int) -> subprocess.Popen[bytes]:
        """Start one; it may need a moment to be ready."""
        command = [sys.executable, "-m", "pipeline.cli", "stream", "--port", str(port)]
        with (self._directory / "stream.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, cwd=ROOT
            )
        self.running[process.pid] = process
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM; gives its exit status."""
        process.send_signal(signal.SIGTERM)
        return process.wait(20)

    def close(self) -> None:
        """Stop those that run."""
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def streams(house: House, tmp_path: Path) -> Iterator[Streams]:
    made = Streams(house, tmp_path, goaway_spread_s=2)
    yield made
    made.close()


def ready(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return
        assert time.monotonic() < deadline, "notecast stream did not become ready"
        time.sleep(0.05)


def make_certificate(directory: Path) -> Path:
    """A certificate for localhost that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "notecast.crt").write_bytes(certificate.public_bytes(pem))
    (directory / "notecast.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return directory / "notecast.crt"


def set_up(
    text: str, directory: Path, *, port: int, plain: int, web: int, streams: list[int]
) -> str:
    """The shipped configuration with the places of this test."""
    (directory / "temp").mkdir(exist_ok=True)
    temporary = "".join(
        f"    {kind}_temp_path {directory}/temp/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "127.0.0.1:8080": f"127.0.0.1:{web}",
        "127.0.0.1:8081": f"127.0.0.1:{streams[0]}",
        "127.0.0.1:8082": f"127.0.0.1:{streams[1]}",
        "/etc/nginx/": f"{directory}/",
        "/var/log/nginx/": f"{directory}/",
        "/run/nginx.pid": f"{directory}/nginx.pid",
        "http {\n": "http {\n" + temporary,
    }
    for old, new in changes.items():
        assert text.count(old) >= 1, f"deploy/nginx.conf has no {old!r} any more"
        text = text.replace(old, new)
    return text


class Front:
    """nginx, running."""

    def __init__(self, directory: Path, *, web: int, streams: list[int]) -> None:
        assert NGINX is not None
        self.port, self.plain = free_port(), free_port()
        self.url = f"https://localhost:{self.port}"
        self.log = directory / "notecast.log"
        self.certificate = make_certificate(directory)
        text = set_up(
            CONFIGURATION.read_text(),
            directory,
            port=self.port,
            plain=self.plain,
            web=web,
            streams=streams,
        )
        path = directory / "nginx.conf"
        path.write_text(text)
        command = [NGINX, "-p", str(directory), "-c", str(path)]
        user = "user root; " if os.geteuid() == 0 else ""  # pytest's directories are private
        checked = subprocess.run(
            [*command, "-t", "-g", user], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr
        self.process = subprocess.Popen([*command, "-g", f"{user}daemon off;"])
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"http://127.0.0.1:{self.plain}", allow_redirects=False, timeout=5)
                return
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def ports() -> list[int]:
    """Of the two gateways."""
    return [free_port(), free_port()]


@pytest.fixture
def web_port() -> int:
    return free_port()


@pytest.fixture
def front(
    tmp_path: Path, ports: list[int], web_port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Front]:
    # Not below the installation's directory: nginx's workers must get there.
    directory = tmp_path / "nginx"
    directory.mkdir()
    made = Front(directory, web=web_port, streams=ports)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(made.certificate))
    yield made
    made.close()


def accepted(house: House) -> tuple[str, str]:
    """An episode: its key, and its listen link's fragment."""
    answer = house.accept("Words.").accepted
    assert answer.listen_url is not None
    return str(answer.episode), answer.listen_url.partition("#")[2]


@needs_nginx
def test_a_gateway_can_be_stopped_under_two_dozen_listeners_behind_nginx(
    house: House, streams: Streams, front: Front, ports: list[int]
) -> None:
    key, fragment = accepted(house)
    first, _ = [streams.start(port) for port in ports]
    for port in ports:
        ready(port)
    session = LiveSession.create(house.services.chunks, key, 1, meta={"title": "Weekly"})
    half = threading.Event()

    def talk() -> None:
        for seg in range(30):
            speak(session, seg)
            time.sleep(0.1)
            if seg == 10:
                half.set()
        session.end("done")

    async def follow() -> tuple[bytes, int]:
        heard = b""
        async with Listening(f"{front.url}/l/x#{fragment}") as listening:
            async for item in listening:
                if isinstance(item, Audio):
                    heard += item.payload
            assert listening.exact
        return heard, listening.resumes

    async def everybody() -> list[tuple[bytes, int]]:
        listening = asyncio.gather(*(follow() for _ in range(24)))
        await asyncio.to_thread(half.wait)
        assert await asyncio.to_thread(streams.stop, first) == 0
        return await asyncio.wait_for(listening, 60)

    talking = threading.Thread(target=talk)
    talking.start()
    found = asyncio.run(everybody())
    talking.join()

    spoken = b"".join(pack_packets(packets(seg, n)) for seg in range(30) for n in range(3))
    assert all(heard == spoken for heard, _ in found)
    resumed = sum(resumes for _, resumes in found)
    assert 8 <= resumed <= 16  # least_conn had shared them out: half of them had to move
    lines = front.log.read_text()
    assert "/v1/live 101" in lines
    assert "nc1." not in lines


@needs_nginx
def test_what_nginx_and_the_gateway_refuse(
    house: House, streams: Streams, front: Front, ports: list[int]
) -> None:
    _, fragment = accepted(house)
    url, tok = socket_url(f"{front.url}/l/x#{fragment}")
    for port in ports:
        streams.start(port)
    for port in ports:
        ready(port)

    async def knock(**headers: str) -> int:
        try:
            async with connect(url, subprotocols=[SUBPROTOCOL], additional_headers=headers) as ws:
                hello = {"t": "hello", "v": 1, "token": tok}
                await ws.send(json.dumps(hello))
                assert json.loads(await ws.recv())["t"] == "welcome"
                return 101
        except InvalidStatus as refused:
            return refused.response.status_code

    async def knock_often() -> None:
        assert await knock() == 101
        assert await knock(Origin=front.url) == 101  # the page of this very host
        assert await knock(Origin="https://evil.example") == 403
        assert await knock(**{"X-Forwarded-For": "192.0.2.1"}) == 101
        codes = await asyncio.gather(*(knock() for _ in range(60)))
        assert set(codes) == {101, 429}

    asyncio.run(knock_often())
    assert requests.get(f"{front.url}/v1/live?ticket=secret", timeout=10).status_code in (400, 429)
    assert "secret" not in front.log.read_text()
    plain = requests.get(f"http://127.0.0.1:{front.plain}/l/x", allow_redirects=False, timeout=10)
    assert (plain.status_code, plain.headers["Location"]) == (301, "https://127.0.0.1/l/x")


@contextlib.asynccontextmanager
async def page_server(port: int, go_on: asyncio.Event) -> AsyncIterator[list[str]]:
    """Stands for `notecast web`: an endless answer, whose second half waits for `go_on`."""
    requests_seen: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests_seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await writer.drain()
        await go_on.wait()
        writer.write(b"data: 2\n\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        yield requests_seen


@needs_nginx
@pytest.mark.parametrize(
    "path", ["/v1/live/ses_1/events", "/v1/live/ses_1/audio.mp3", "/v1/audio/speech"]
)
def test_endless_answers_are_not_held_back(path: str, front: Front, web_port: int) -> None:
    async def test() -> list[str]:
        go_on = asyncio.Event()
        async with page_server(web_port, go_on) as seen:
            context = ssl.create_default_context(cafile=str(front.certificate))
            reader, writer = await asyncio.open_connection("localhost", front.port, ssl=context)
            writer.write(
                f"GET {path}?ticket=t HTTP/1.1\r\nHost: localhost\r\n"
                "X-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n".encode()
            )
            async with asyncio.timeout(10):
                await reader.readuntil(b"data: 1\n\n")  # the second half is not written yet
                go_on.set()
                await reader.readuntil(b"data: 2\n\n")
            writer.close()
            with contextlib.suppress(ssl.SSLError, ConnectionError):  # nginx closes, too
                await writer.wait_closed()
        return seen

    (request,) = asyncio.run(test())
    assert re.findall(r"(?im)^x-forwarded-for: (.*?)\r?$", request) == ["127.0.0.1"]
    assert "Host: localhost" in request


def test_stream_processes_share_one_port(house: House, streams: Streams) -> None:
    key, fragment = accepted(house)
    port = free_port()
    first, _ = [streams.start(port) for _ in range(2)]
    session = LiveSession.create(house.services.chunks, key, 1, meta={})
    heard = speak(session, 0)
    url, tok = socket_url(f"http://127.0.0.1:{port}/l/x#{fragment}")

    async def node() -> str:
        async with connect(url, subprotocols=[SUBPROTOCOL]) as ws:
            await ws.send(json.dumps({"t": "hello", "v": 1, "token": tok}))
            return str(json.loads(await ws.recv())["node"])

    async def nodes() -> set[str]:
        found: set[str] = set()
        async with asyncio.timeout(30):
            while len(found) < 2:  # the kernel shares connections out by their ports
                with contextlib.suppress(OSError):
                    found.add(await node())
        return found

    async def follow() -> Any:
        async with Listening(url, token=tok) as listening:
            return [item.payload async for item in listening if isinstance(item, Audio)]

    async def listen_while_one_stops() -> Any:
        listening = asyncio.gather(*(follow() for _ in range(10)))
        await asyncio.sleep(0.5)
        assert await asyncio.to_thread(streams.stop, first) == 0
        session.end("done")
        return await asyncio.wait_for(listening, 60)

    assert len(asyncio.run(nodes())) == 2
    assert asyncio.run(listen_while_one_stops()) == [heard] * 10


class Kills:
    """`kill -9` of the worker and of one of two gateways, and their successors."""

    def __init__(self, streams: Streams, ports: list[int], talk: list[str]) -> None:
        self._streams = streams
        self._ports = ports
        self._talk = talk
        self._chance = random.Random(9)
        self._gateways = [streams.start(port) for port in ports]
        ready(ports[0])
        self.fence = 0
        self.gateways = 0
        self.workers = 0
        self.worker = self._speak()

    def _speak(self) -> subprocess.Popen[bytes]:
        self.fence += 1
        return subprocess.Popen([*self._talk, str(self.fence)], cwd=ROOT)

    def run(self) -> None:
        """Kill until the worker has said everything."""
        deadline = time.monotonic() + 240
        while self.worker.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(self._chance.uniform(0.5, 1.5))
            self.worker.kill()
            self.workers += self.worker.wait() != 0
            self.worker = self._speak()
            time.sleep(self._chance.uniform(1.0, 2.0))
            which = self.gateways % 2
            ready(self._ports[1 - which])
            self._gateways[which].kill()
            self._gateways[which].wait()
            self._gateways[which] = self._streams.start(self._ports[which])
            self.gateways += 1
        assert self.worker.returncode == 0

    def close(self) -> None:
        self.worker.kill()
        self.worker.wait()


class TwoWays(BadNetwork):
    """A bad network that leads to either gateway."""

    def __init__(self, ports: list[int]) -> None:
        super().__init__(4, 0, most_bytes=20_000)
        self._ports = ports

    @property
    def _port(self) -> int:
        return self._random.choice(self._ports)

    @_port.setter
    def _port(self, _: int) -> None:
        """There are two."""


def test_whoever_is_killed_every_listener_hears_every_chunk_once(
    house: House, streams: Streams, ports: list[int], valkey_url: str
) -> None:
    """The digest of what each received is the one that `end` names, and the order is right."""
    key, fragment = accepted(house)
    talk = [sys.executable, "-m", "tests.acceptance.talker", valkey_url, key]
    kills = Kills(streams, ports, talk)
    network = TwoWays(ports)

    async def follow(url: str) -> tuple[list[bytes], Listening]:
        heard: list[tuple[int, bytes]] = []
        async with Listening(url, token=fragment.removeprefix("t=")) as listening:
            async for item in listening:
                if isinstance(item, Audio):
                    heard.append((item.header.seg, item.payload))
                elif item["t"] == "cut":
                    heard = [one for one in heard if one[0] < item["from_seg"]]
        return [body for _, body in heard], listening

    async def everybody() -> list[tuple[list[bytes], Listening]]:
        async with network.running() as url:
            listening = asyncio.gather(*(follow(url) for _ in range(20)))
            await asyncio.to_thread(kills.run)
            network.calm = True
            return await asyncio.wait_for(listening, 60)

    try:
        found = asyncio.run(everybody())
    finally:
        kills.close()
    spoken = [
        pack_packets(packets(seg, n))
        for seg in range(talker.SENTENCES)
        for n in range(talker.CHUNKS)
    ]
    assert kills.gateways >= 3
    assert kills.workers >= 3
    assert network.breaks >= 20
    for heard, listening in found:
        assert listening.exact
        assert listening.resumes >= 1
        assert heard == spoken
