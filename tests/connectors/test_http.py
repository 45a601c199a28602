"""Calls to tools: shapes of requests, errors, limits; against a real server."""

from __future__ import annotations

import gzip
import socket
import threading
from datetime import UTC, datetime

import pytest

from connectors import http
from connectors.errors import ConnectorError, ToolRefused, ToolUnavailable
from connectors.http import Answer, Api, Bearer, path_of, retry_after_s

NOW = datetime(2026, 11, 20, 1, 30, tzinfo=UTC)


@pytest.fixture
def api(tool):
    with Api(tool.url, name="Tool", auth=Bearer("secret-token")) as api:
        yield api


def test_json_goes_out_with_the_proof_and_an_object_comes_back(api, tool):
    tool.answers(200, {"id": "é"})

    assert api.post("/rows", {"a": ["周"]}, params={"q": ["1", "2"]}) == {"id": "é"}
    headers, body = tool.requests[0]
    assert headers["authorization"] == "Bearer secret-token"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"] == "notecast"
    assert body == b'{"a": ["\\u5468"]}'


def test_a_form_and_a_file_go_out_as_such(api, tool):
    tool.answers(200, {})
    tool.answers(200, {})

    api.post_form("/token", {"grant": "a b"})
    api.upload("/files", {"size": "3"}, "ä.mp3", b"\x00\r\n--")

    (form, form_body), (upload, upload_body) = tool.requests
    assert form["content-type"] == "application/x-www-form-urlencoded"
    assert form_body == b"grant=a+b"
    assert upload["content-type"].startswith("multipart/form-data; boundary=")
    assert b'name="size"\r\n\r\n3\r\n' in upload_body
    assert b"\r\n\r\n\x00\r\n--\r\n" in upload_body


def test_netrc_and_cookies_stay_out(tool, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login stranger password stranger\n")
    monkeypatch.setenv("NETRC", str(netrc))
    tool.answers(200, {}, Set_Cookie="a=b; Path=/")
    tool.answers(200, {})

    with Api(tool.url) as api:
        api.post("", {})
        api.post("", {})

    assert "authorization" not in tool.requests[0][0]
    assert "cookie" not in tool.requests[1][0]


@pytest.mark.parametrize(
    ("status", "headers", "after_s", "unanswered"),
    [
        (429, {"Retry-After": "7"}, 7.0, False),
        (429, {"x_ogw_ratelimit_reset": "3"}, 3.0, False),
        (503, {}, None, False),
        (502, {}, None, True),
    ],
)
def test_a_busy_tool_says_when_to_come_back(api, tool, status, headers, after_s, unanswered):
    tool.answers(status, {}, **headers)

    with pytest.raises(ToolUnavailable, match=f"Tool answered {status}") as caught:
        api.post("", {})

    assert caught.value.after_s == after_s
    assert caught.value.unanswered is unanswered


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (301, {}, "answered 301"),
        (404, {}, "answered 404"),
        (200, b"[1]", "not a JSON object"),
        (200, b"", "not a JSON object"),
        (200, b"\xff", "not a JSON object"),
        (200, b"[" * 100_000, "not a JSON object"),
    ],
)
def test_what_is_not_agreed_is_refused(api, tool, status, body, message):
    tool.answers(status, body, Location="http://127.0.0.1:1/")

    with pytest.raises(ToolRefused, match=message):
        api.post("", {})

    assert len(tool.requests) == 1


def test_an_answer_that_never_ends_is_cut_off(api, tool, monkeypatch):
    bomb = gzip.compress(b" " * (20 << 20))
    tool.answers(200, bomb, Content_Encoding="gzip")

    with pytest.raises(ToolRefused, match="more than 8388608 bytes"):
        api.post("", {})


def test_an_answer_that_drips_is_given_up(api, tool, monkeypatch):
    monkeypatch.setattr(http, "ANSWER_S", -1.0)
    tool.answers(200, {})

    with pytest.raises(ToolUnavailable, match="took more than") as caught:
        api.post("", {})

    assert caught.value.unanswered


def test_nobody_at_the_address_means_that_nothing_was_sent():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    address = f"http://127.0.0.1:{port}/secret-path"
    with Api(address) as api, pytest.raises(ToolUnavailable, match="no answer") as caught:
        api.post("", {})

    assert "secret-path" not in str(caught.value)
    assert not caught.value.unanswered


def test_a_connection_that_breaks_may_have_worked():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)

        thread = threading.Thread(target=hang_up)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with Api(address) as api, pytest.raises(ToolUnavailable) as caught:
            api.post("", {})
        thread.join()

    assert caught.value.unanswered


def test_the_tools_own_words_come_first(tool):
    def complaint(answer: Answer) -> ConnectorError | None:
        content = answer.content or {}
        return ToolRefused("no such row", code="7") if content.get("code") == 7 else None

    tool.answers(200, {"code": 7})
    tool.answers(200, {"code": 0})

    with Api(tool.url, complaint=complaint) as api:
        with pytest.raises(ToolRefused, match="no such row"):
            api.post("", {})
        assert api.post("", {}) == {"code": 0}


def test_ids_from_outside_stay_in_their_place():
    assert path_of("v0", "app 1", "tbl/2?x#y") == "/v0/app%201/tbl%2F2%3Fx%23y"
    for part in ("", ".", ".."):
        with pytest.raises(ToolRefused, match="is not an id"):
            path_of("v0", part)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "-4"}, 0.0),
        ({"Retry-After": "999999"}, 3_600.0),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Fri, 20 Nov 2026 01:30:09 GMT"}, 9.0),
    ],
)
def test_waits_are_read_as_seconds_or_as_a_date(headers, wait_s):
    assert retry_after_s(headers, now=NOW) == wait_s
