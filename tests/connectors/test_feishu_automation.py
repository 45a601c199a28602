"""Write-back through the Base's webhook trigger, thin events, and hostile bodies."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.base import Accepted, Connector, Hook, NotePatch, NoteRef
from connectors.errors import ConnectorError, Malformed, ToolRefused, ToolUnavailable
from connectors.registry import make_connector

TOKEN = "a-token-of-the-automation"
NOW = datetime(2026, 11, 20, 1, 30, 6, tzinfo=UTC)
REF = NoteRef("board", "bascDemo01", "tblDemo01", "recDemo01")
DONE = NotePatch("ep_1/done", "done", "https://notes.example/l/8f2c", duration_s=63.24)


def connector(**config: Any) -> Connector:
    secrets = {"token": [TOKEN], "write_back": "token-of-the-base"}
    return make_connector("feishu_automation", "board", {"secrets": secrets, **config})


def hook(body: bytes) -> Hook:
    return Hook("POST", {"authorization": f"Bearer {TOKEN}"}, body, NOW)


def test_completion_is_posted_to_the_bases_trigger(tool):
    tool.answers(200, {"code": 0, "msg": "success"})

    connector(write_back_url=tool.url).write_back(REF, DONE)

    headers, body = tool.requests[0]
    assert headers["authorization"] == "Bearer token-of-the-base"
    assert json.loads(body) == {
        "base": "bascDemo01",
        "table": "tblDemo01",
        "record": "recDemo01",
        "state": "done",
        "status": "已完成",
        "link": "https://notes.example/l/8f2c",
        "audio": "",
        "error": "",
        "duration_s": 63.2,
    }


def test_repeated_write_back_has_the_same_client_token_and_another_write_has_not(tool):
    for _ in range(3):
        tool.answers(200, {"code": 0})
    feishu = connector(write_back_url=tool.url, labels={"done": "Done"})

    feishu.write_back(REF, DONE)
    feishu.write_back(REF, DONE)
    feishu.write_back(REF, NotePatch("ep_2/done", "done", DONE.link, duration_s=63.24))

    first, again, other = (headers["client-token"] for headers, _ in tool.requests)
    assert first == again != other
    assert json.loads(tool.requests[0][1])["status"] == "Done"


def test_netrc_cannot_replace_the_token(tool, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    tool.answers(200, {"code": 0})

    connector(write_back_url=tool.url).write_back(REF, DONE)

    assert tool.requests[0][0]["authorization"] == "Bearer token-of-the-base"


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, {"code": 800004509, "msg": "flow is disabled"}, "switch it on"),
        (200, {"code": 4001}, "refused with code 4001"),
        (200, b"<html>", "not a JSON object"),
        (200, [1], "not a JSON object"),
        (200, b"[" * 100_000, "not a JSON object"),
        (403, {}, "answered 403"),
        (302, {}, "answered 302"),
    ],
)
def test_refusal_is_final(tool, status: int, body: Any, message: str):
    tool.answers(status, body, Location="http://127.0.0.1:1/")

    with pytest.raises(ToolRefused, match=message) as caught:
        connector(write_back_url=tool.url).write_back(REF, DONE)

    assert not caught.value.retry
    assert len(tool.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "headers", "after_s"),
    [
        (429, {}, {"Retry_After": "17"}, 17.0),
        (503, {}, {}, None),
        (429, {}, {"x_ogw_ratelimit_reset": "3"}, 3.0),
        (503, {}, {"Retry_After": "999999"}, 3600.0),
        (503, {}, {"Retry_After": "soon"}, None),
        (503, {}, {"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        (200, {"code": 99991400}, {}, None),
    ],
)
def test_busy_tool_is_asked_again_when_it_wishes(tool, status, body, headers, after_s):
    tool.answers(status, body, **headers)

    with pytest.raises(ToolUnavailable) as caught:
        connector(write_back_url=tool.url).write_back(REF, DONE)

    assert caught.value.retry
    assert caught.value.after_s == after_s


def test_tool_that_is_gone_is_unavailable_and_its_address_stays_secret():
    feishu = connector(write_back_url="http://127.0.0.1:1/secret-path")

    with pytest.raises(ToolUnavailable) as caught:
        feishu.write_back(REF, DONE)

    assert "secret-path" not in str(caught.value)


def test_without_an_address_nothing_is_written(monkeypatch):
    def no_network(*_: object) -> None:
        raise AssertionError("somebody was called")

    monkeypatch.setattr(socket.socket, "connect", no_network)

    assert connector().write_back(REF, DONE) is None


def test_a_replay_carries_the_newest_token():
    door = connector()
    body = b'{"record": "recDemo01", "text": "a"}'

    assert door.verify(door.as_sent(body, now=NOW, msg_id="m"), now=NOW) == body


def test_the_trigger_time_may_stand_in_a_header():
    body = json.dumps({"record": "recDemo01", "text": "a"}).encode()
    headers = {"authorization": f"Bearer {TOKEN}", "x-notecast-event": "2026-11-20 09:30"}

    (event,) = connector().events(body, Hook("POST", headers, body, NOW))

    assert event.delivery_key == "recDemo01:2026-11-20 09:30"


def test_answer_is_always_200_so_that_the_next_step_runs():
    accepted = Accepted("ep_1", "queued", "https://notes.example/l/8f2c", True)
    reply = connector().answer(accepted, Hook("POST", {}, b"{}", NOW))

    assert reply.status == 200
    assert json.loads(reply.body)["duplicate"] is True


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
_KEYS = ["record", "at", "text", "title", "lang", "base", "type", "data", "timestamp", "speakers"]


@settings(max_examples=300)
@given(
    body=st.binary()
    | _JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(_KEYS), _JSON).map(lambda value: json.dumps(value).encode()),
    name=st.sampled_from(["webhook", "feishu_automation"]),
)
def test_hostile_bodies_are_events_or_named_faults(body: bytes, name: str):
    secrets = {"webhook": ["whsec_bm90ZWNhc3QtZGVtby1zZWNyZXQtMDAwMQ=="], "token": [TOKEN]}
    key = "webhook" if name == "webhook" else "token"
    door = make_connector(name, "board", {"secrets": {key: secrets[key]}})

    try:
        events = door.events(body, hook(body))
    except ConnectorError as error:
        reply = door.refuse(error)
        assert reply.status == 422
        assert json.loads(reply.body)["error"]["message"]
    else:
        assert all(len(event.delivery_key) <= 200 for event in events)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[" * 100_000, "nested deeper|not JSON"),
        (b"[" * 70 + b"]" * 70, "nested deeper"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper"),
        (b"[" + b"1," * 10_001 + b"1]", "more than 10000"),
        (b"1" * 5000, "not JSON"),
        (b'{"record": NaN}', "NaN"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b'{"record":"r","text":"\\u0000"}', "/text: holds a NUL"),
        (b"", "not JSON at byte 0"),
    ],
)
def test_dangerous_json_is_malformed(body: bytes, message: str):
    with pytest.raises(Malformed, match=message):
        connector().events(body, hook(body))


def test_the_flow_of_the_base_is_started_at_the_end_only():
    assert connector().shows == {"done", "failed"}
