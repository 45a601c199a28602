"""Addresses of users lead to the public internet or nowhere."""

from __future__ import annotations

import http.server
import ipaddress
import threading
import time
from collections.abc import Iterator

import pytest

from connectors.errors import ToolRefused, ToolUnavailable
from connectors.fetch import SafeSession, UnsafeAddress, fetch, is_public, post

LOOPBACK = ipaddress.ip_network("127.0.0.1/32")
PRIVATE = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.8",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.88.99.1",
    "::1",
    "::",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001:0:1::1",
    "2001:db8::1",
    "fc00::1",
    "fd12::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "fe80::1%eth0",
]
WRITTEN_ODDLY = [
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://[::ffff:7f00:1]/",
    "https://[::]/",
    "https://localhost/",
    "https://user@93.184.216.34/",
    "https://user:word@93.184.216.34/",
    "http://93.184.216.34/",
    "https://93.184.216.34:8443/",
    "https://93.184.216.34:22/",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700:4700::1111"])
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("url", WRITTEN_ODDLY)
def test_an_address_written_oddly_is_refused_before_a_byte_leaves(url: str) -> None:
    with SafeSession() as session, pytest.raises(UnsafeAddress):
        fetch(session, url, content_types=["*/*"], timeout_s=2)


@pytest.mark.parametrize(
    "answers",
    [
        ["93.184.216.34", "127.0.0.1"],  # one good, one bad
        ["::ffff:192.168.0.1"],
        [],
    ],
)
def test_a_name_is_refused_if_any_of_its_addresses_is_private(answers: list[str]) -> None:
    with SafeSession(resolve=lambda host, port: answers) as session, pytest.raises(UnsafeAddress):
        post(session, "https://friendly.example/", b"", headers={})


class Server(http.server.ThreadingHTTPServer):
    """What a stranger's server may do."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.seen: list[str] = []
        self.url = f"http://friendly.example:{self.server_address[1]}"


class Answers(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        kind, _, rest = self.path.strip("/").partition("/")
        status = int(rest) if kind == "status" else 302 if kind == "to" else 200
        self.send_response(status)
        if kind == "to":
            self.send_header("Location", {"loop": "/to/loop"}.get(rest, f"http://{rest}/"))
        self.send_header("Content-Type", "Audio/MPEG; x=1" if kind == "audio" else "text/html")
        if status == 429:
            self.send_header("Retry-After", "7")
        self.end_headers()
        try:
            if kind == "audio":
                self.wfile.write(b"x" * int(rest))
            if kind == "slow":
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
        except OSError:
            pass  # the client had enough

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def session() -> Iterator[SafeSession]:
    def local(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "friendly.example" else [host]

    with SafeSession(trusted=[LOOPBACK], resolve=local) as session:
        yield session


def test_a_body_is_fetched_with_its_type(server: Server, session: SafeSession) -> None:
    fetched = fetch(session, f"{server.url}/audio/70000", content_types=["audio/*"])
    assert fetched.content_type == "audio/mpeg"
    assert fetched.body == b"x" * 70_000


def test_another_type_is_refused(server: Server, session: SafeSession) -> None:
    with pytest.raises(ToolRefused, match="sent text/html"):
        fetch(session, f"{server.url}/page", content_types=["audio/*", "text/plain"])


def test_a_body_over_the_cap_is_refused_whatever_the_header_says(
    server: Server, session: SafeSession
) -> None:
    with pytest.raises(ToolRefused, match="more than 1000 bytes"):
        fetch(session, f"{server.url}/audio/5000000", content_types=["*/*"], max_bytes=1000)


def test_a_body_that_drips_is_given_up(server: Server, session: SafeSession) -> None:
    with pytest.raises(ToolUnavailable, match="took longer"):
        fetch(session, f"{server.url}/slow", content_types=["*/*"], timeout_s=0.3)


def test_a_redirect_into_a_private_network_is_refused(server: Server, session: SafeSession) -> None:
    with pytest.raises(UnsafeAddress):
        fetch(session, f"{server.url}/to/169.254.169.254", content_types=["*/*"])
    assert server.seen == ["GET /to/169.254.169.254"]


def test_a_redirect_in_a_circle_ends(server: Server, session: SafeSession) -> None:
    with pytest.raises(ToolRefused, match="redirects more than 3 times"):
        fetch(session, f"{server.url}/to/loop", content_types=["*/*"])
    assert len(server.seen) == 4


def test_a_post_does_not_follow_redirects(server: Server, session: SafeSession) -> None:
    with pytest.raises(ToolRefused) as refused:
        post(session, f"{server.url}/to/loop", b"{}", headers={})
    assert refused.value.code == "302"
    assert len(server.seen) == 1


def test_a_busy_server_says_when_to_come_again(server: Server, session: SafeSession) -> None:
    with pytest.raises(ToolUnavailable) as busy:
        post(session, f"{server.url}/status/429", b"{}", headers={})
    assert busy.value.after_s == 7


def test_a_status_is_given_and_gone_is_a_refusal(server: Server, session: SafeSession) -> None:
    assert post(session, f"{server.url}/status/202", b"{}", headers={}) == 202
    with pytest.raises(ToolRefused) as refused:
        post(session, f"{server.url}/status/410", b"{}", headers={})
    assert refused.value.code == "410"


def test_a_name_that_changes_its_mind_is_asked_once(server: Server) -> None:
    """DNS rebinding: good at the check, bad at the use. There is no second question."""
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    with SafeSession(trusted=[LOOPBACK], resolve=rebinding) as session:
        assert post(session, f"{server.url}/", b"", headers={}) == 200
    assert asked == ["friendly.example"]


def test_a_name_that_turns_bad_later_is_refused_then(server: Server) -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    with SafeSession(trusted=[LOOPBACK], resolve=lambda host, port: next(answers)) as session:
        assert post(session, f"{server.url}/", b"", headers={"Connection": "close"}) == 200
        with pytest.raises(UnsafeAddress):
            post(session, f"{server.url}/", b"", headers={})


def test_trust_in_a_network_does_not_open_other_ports_of_the_internet(
    session: SafeSession,
) -> None:
    with pytest.raises(UnsafeAddress, match="only https"):
        fetch(session, "http://93.184.216.34/", content_types=["*/*"])


def test_a_proxy_of_the_environment_is_not_asked(
    server: Server, session: SafeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert post(session, f"{server.url}/", b"", headers={}) == 200


def test_an_unknown_name_may_be_known_later() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    with SafeSession(resolve=unknown) as session, pytest.raises(ToolUnavailable):
        post(session, "https://nowhere.example/", b"", headers={})


def test_a_second_opinion_agrees() -> None:
    """The policy library of another house refuses whatever we refuse by address."""
    antissrf = pytest.importorskip("AntiSSRF", reason="microsoft-antissrf is not installed")
    policy = antissrf.AntiSSRFPolicy(antissrf.PolicyConfigOptions.EXTERNAL_ONLY_LATEST)
    for address in [one for one in PRIVATE if "%" not in one]:
        host = f"[{address}]" if ":" in address else address
        with policy.get_antissrf_session() as theirs, pytest.raises(antissrf.AntiSSRFError):
            theirs.get(f"https://{host}/", timeout=1)
