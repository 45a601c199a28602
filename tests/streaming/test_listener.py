from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.errors import BadToken, LinkRevoked
from streaming.frames import Codec
from streaming.listener import (
    CLOSE,
    MAX_FAULTS,
    MAX_MESSAGE_BYTES,
    STATUS,
    Ack,
    Action,
    Allow,
    Check,
    Close,
    Leave,
    Listener,
    Open,
    Send,
    Start,
)
from streaming.tokens import Grant

NOW = 1000.0
GRANT = Grant("lnk_1", "listener", 2000, sid="ses_1")


def say(listener: Listener, now: float = NOW, **fields: Any) -> list[Action]:
    return listener.receive(json.dumps(fields), now)


def greeting() -> Listener:
    return Listener(conn="c1", node="n1", connected_at=NOW)


def ready(*grants: Grant) -> Listener:
    listener = greeting()
    say(listener, t="hello", v=1, token="nc1.x.y", codecs=["opus", "pcm"])
    for grant in grants or (GRANT,):
        listener.granted(grant, NOW)
    return listener


def only_error(actions: list[Action]) -> dict[str, Any]:
    (action,) = actions
    assert isinstance(action, Send)
    assert action.message["t"] == "error"
    assert action.message["fatal"] is False
    assert action.message["status"] == STATUS[action.message["code"]]
    return action.message


def fatal(actions: list[Action]) -> tuple[str, int]:
    error, close = actions
    assert isinstance(error, Send)
    assert isinstance(close, Close)
    assert error.message["fatal"] is True
    return error.message["code"], close.code


def test_hello_is_checked_then_welcomed() -> None:
    listener = greeting()

    assert say(listener, t="hello", v=1, token="nc1.x.y", codecs=["opus"]) == [Check("nc1.x.y")]

    (welcome,) = listener.granted(GRANT, NOW)
    assert isinstance(welcome, Send)
    assert welcome.message["t"] == "welcome"
    assert welcome.message["now"] == 1_000_000
    assert welcome.message["grants"] == [{"sid": "ses_1", "role": "listener", "exp": 2000}]


def test_a_program_may_bring_its_token_in_the_handshake() -> None:
    listener = Listener(conn="c", node="n", connected_at=NOW, bearer="nc1.b.c")

    assert say(listener, t="hello", v=1) == [Check("nc1.b.c")]


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({"t": "open", "sid": "ses_1"}, ("bad_message", 4400)),
        ({"t": "hello", "v": 1}, ("unauthenticated", 4401)),
        ({"t": "hello", "v": 1, "token": "x", "codecs": ["mp3"]}, ("unsupported_codec", 4400)),
    ],
)
def test_a_wrong_greeting_ends_the_talk(fields: dict[str, Any], ending: tuple[str, int]) -> None:
    listener = greeting()

    assert fatal(say(listener, **fields)) == ending
    assert say(listener, t="ping") == []


def test_another_version_is_told_so() -> None:
    assert say(greeting(), t="hello", v=2, token="x") == [Close(4426, "version")]


def test_no_hello_within_five_seconds_ends_the_talk() -> None:
    listener = greeting()

    assert listener.due == NOW + 5
    assert listener.tick(NOW + 4.9) == []
    assert listener.tick(NOW + 5.1) == [Close(4408, "timeout")]


@pytest.mark.parametrize(
    ("reason", "ending"),
    [(BadToken("no"), ("unauthenticated", 4401)), (LinkRevoked("no"), ("forbidden", 4403))],
)
def test_a_refused_token_ends_the_talk(reason: Any, ending: tuple[str, int]) -> None:
    listener = greeting()
    say(listener, t="hello", v=1, token="x")

    assert fatal(listener.refused(reason)) == ending


def test_a_refused_second_token_leaves_the_first() -> None:
    listener = ready()
    assert say(listener, t="auth", token="nc1.z.z") == [Check("nc1.z.z")]

    assert only_error(listener.refused(BadToken("no")))["code"] == "unauthenticated"
    assert isinstance(say(listener, t="open", sid="ses_1")[0], Open)


def test_open_has_defaults_by_codec() -> None:
    listener = ready(Grant("l", "owner", 2000, sid="*"))

    assert say(listener, t="open", req=7, sid="ses_1") == [
        Open(7, "ses_1", Codec.OPUS, True, Start(at="start"), "complete", True, 600_000)
    ]
    assert say(listener, t="open", sid="ses_2", codec="pcm", words=False, policy="live") == [
        Open(None, "ses_2", Codec.PCM, True, Start(at="start"), "live", False, 20_000)
    ]


@pytest.mark.parametrize(
    ("value", "start"),
    [
        ({"at": "live"}, Start(at="live")),
        ({"seq": 812, "k": 3}, Start(position=(812, 3))),
        ({"seq": -1, "k": 1}, Start(position=(-1, 1))),
        ({"ms": 61500}, Start(ms=61500)),
        ({"ms": 61500.7}, Start(ms=61500)),
    ],
)
def test_open_understands_where_to_start(value: dict[str, Any], start: Start) -> None:
    (action,) = say(ready(), **{"t": "open", "sid": "ses_1", "from": value})

    assert isinstance(action, Open)
    assert action.start == start


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"t": "open", "sid": "ses_2"}, "forbidden"),
        ({"t": "open"}, "bad_message"),
        ({"t": "open", "sid": "a b"}, "bad_message"),
        ({"t": "open", "sid": "ses_1", "codec": "mp3"}, "unsupported_codec"),
        ({"t": "open", "sid": "ses_1", "policy": "any"}, "bad_message"),
        ({"t": "open", "sid": "ses_1", "words": 1}, "bad_message"),
        ({"t": "open", "sid": "ses_1", "ahead_ms": -1}, "bad_message"),
        ({"t": "open", "sid": "ses_1", "ahead_ms": True}, "bad_message"),
        ({"t": "open", "sid": "ses_1", "from": {"seq": "1"}}, "bad_message"),
        ({"t": "open", "sid": "ses_1", "from": {"seq": 1 << 32}}, "bad_message"),
        ({"t": "open", "sid": "ses_1", "from": 3}, "bad_message"),
        ({"t": "ack", "sid": "ses_1"}, "not_found"),
        ({"t": "flow", "sid": "ses_1"}, "not_found"),
        ({"t": "close", "sid": "ses_1"}, "not_found"),
        ({"t": "ping", "ts": "now"}, "bad_message"),
        ({"t": "auth"}, "bad_message"),
        ({"t": "hello", "v": 1, "token": "x"}, "unknown_type"),
        ({"t": "control", "sid": "ses_1", "op": "pause"}, "forbidden"),
        ({"t": "say", "text": "hi"}, "forbidden"),
        ({"t": "dance"}, "unknown_type"),
    ],
)
def test_a_mistake_is_named_and_the_talk_goes_on(fields: dict[str, Any], code: str) -> None:
    listener = ready()

    message = only_error(say(listener, req=5, **fields))

    assert message["code"] == code
    assert message["req"] == 5
    assert say(listener, t="ping", ts=1)[0] == Send({"t": "pong", "ts": 1, "now": 1_000_000})


@pytest.mark.parametrize(
    "data", ["", "no", "[]", "3", '"hello"', "{}", '{"t":1}', '{"t":NaN}', "[" * 16_000, b"bytes"]
)
def test_what_is_no_message_ends_the_talk(data: str | bytes) -> None:
    assert fatal(ready().receive(data, NOW)) == ("bad_message", 4400)


@pytest.mark.parametrize("char", ["a", "é"])
def test_a_message_over_16_kib_ends_the_talk(char: str) -> None:
    text = json.dumps({"t": "ping", "x": char * MAX_MESSAGE_BYTES}, ensure_ascii=False)

    assert fatal(ready().receive(text, NOW)) == ("too_large", 4413)


def test_many_mistakes_end_the_talk() -> None:
    listener = ready()
    for _ in range(MAX_FAULTS - 1):
        only_error(say(listener, t="dance"))

    assert fatal(say(listener, t="dance")) == ("bad_message", 4400)


def test_acks_and_flow_move_the_allowance() -> None:
    listener = ready()
    say(listener, t="open", sid="ses_1")

    under = {"n": 2, "ms": 340}
    assert say(listener, t="ack", sid="ses_1", seq=9, play_ms=1500.5, under=under, ts=4) == [
        Ack("ses_1", 9, 1500, 0, (2, 340)),
        Send({"t": "pong", "ts": 4, "now": 1_000_000}),
    ]
    assert say(listener, t="ack", sid="ses_1", seq=9, buf_ms=70) == [
        Ack("ses_1", 9, None, 70, None)
    ]
    assert say(listener, t="ack", sid="ses_1", seq=9, ttfa_ms=310) == [
        Ack("ses_1", 9, None, 0, None, 310)
    ]
    assert only_error(say(listener, t="ack", sid="ses_1", ttfa_ms=-1))["code"] == "bad_message"
    assert say(listener, t="flow", sid="ses_1", ahead_ms=0) == [Allow("ses_1", ahead_ms=0)]
    assert say(listener, t="close", sid="ses_1") == [Leave("ses_1")]


def test_eight_sessions_may_be_open_at_once() -> None:
    listener = ready(Grant("l", "listener", 2000, sid="*"))
    for n in range(8):
        assert isinstance(say(listener, t="open", sid=f"ses_{n}")[0], Open)

    assert only_error(say(listener, t="open", sid="ses_8"))["code"] == "too_many_streams"
    listener.left("ses_3", NOW)
    assert isinstance(say(listener, t="open", sid="ses_8")[0], Open)


def test_opening_a_session_twice_is_a_mistake() -> None:
    listener = ready()
    say(listener, t="open", sid="ses_1")

    assert only_error(say(listener, t="open", sid="ses_1"))["code"] == "bad_message"


def test_an_expired_grant_ends_the_talk_unless_it_was_renewed() -> None:
    listener = ready()
    say(listener, t="open", sid="ses_1")
    assert listener.tick(2029) == []

    renewed = ready()
    say(renewed, t="open", sid="ses_1")
    renewed.granted(Grant("lnk_2", "listener", 9000, sid="ses_1"), NOW)

    assert fatal(listener.tick(2031)) == ("token_expired", 4401)
    assert renewed.tick(2031) == []


def test_a_revoked_link_ends_the_talk() -> None:
    listener = ready()

    assert listener.revoked("lnk_other") == []
    assert fatal(listener.revoked("lnk_1")) == ("forbidden", 4403)


def test_going_away_names_a_time_to_come_back() -> None:
    assert ready().drain(700) == [
        Send({"t": "goaway", "retry_ms": 700, "why": "drain"}),
        Close(1001, "drain", 700),
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
FIELDS = "t v token codecs req sid codec from policy words ahead_ms seq play_ms buf_ms ts".split()  # noqa: SIM905
KINDS = "hello auth open close ack flow ping control say".split()  # noqa: SIM905


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda kind, fields: {**fields, "t": kind},
            st.sampled_from(KINDS) | JSON,
            st.dictionaries(st.sampled_from(FIELDS), JSON | st.just("ses_1"), max_size=6),
        )
        | JSON,
        max_size=8,
    )
)
def test_whatever_a_client_says_only_documented_answers_come(messages: list[Any]) -> None:
    listener = ready()
    for message in messages:
        for action in listener.receive(json.dumps(message), NOW):
            if isinstance(action, Close):
                assert action.code in CLOSE.values()
                assert listener.state == "closed"
            elif isinstance(action, Send):
                json.dumps(action.message).encode()
                assert action.message["t"] in ("error", "pong", "welcome")
            elif isinstance(action, Check):
                listener.refused(BadToken("no"))
