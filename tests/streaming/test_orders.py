from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import NotDone
from streaming.fields import Fault
from streaming.listener import Action, Listener, Open, Send
from streaming.orders import Begun, Clerk, Order, Outcome, Say, Wish, read_wish
from streaming.tokens import Grant
from tests.streaming.test_listener import NOW, only_error, ready, say

OWNER = Grant("lnk_own", "owner", 2000, sid="ses_1")
ADMIN = Grant("lnk_adm", "admin", 2000, sid="*")
OTHER = Grant("lnk_l", "listener", 2000, sid="ses_1")
KEY = Grant("key:1", "owner", 2000, sid="*", scopes=("gen",))
OPS: dict[str, Any] = {
    "pause": None,
    "resume": None,
    "speed": 1.5,
    "emotion": "sad",
    "voice": "af_heart",
    "skip": 4,
    "stop": None,
    "fork": {"speed": 1.2, "emotion": "calm", "voice": "af_heart"},
}


def control(listener: Listener, op: str, value: Any = None, **more: Any) -> list[Action]:
    fields = {"t": "control", "req": 7, "sid": "ses_1", "op": op, **more}
    return say(listener, **fields | ({"value": value} if value is not None else {}))


@pytest.mark.parametrize("op", OPS)
def test_an_owner_may_order_everything(op: str) -> None:
    (order,) = control(ready(OWNER), op, OPS[op], at="now", play_ms=1200)

    wish = Wish(op, OPS[op], "now", 1200)  # type: ignore[arg-type]
    assert order == Order(7, "ses_1", wish, "owner", "lnk_own")


@pytest.mark.parametrize("op", OPS)
def test_an_admin_may_stop_and_a_listener_nothing(op: str) -> None:
    found = control(ready(ADMIN), op, OPS[op])
    if op == "stop":
        assert isinstance(found[0], Order)
        assert (found[0].role, found[0].link) == ("admin", "lnk_adm")
    else:
        assert only_error(found)["code"] == "forbidden"
    assert only_error(control(ready(), op, OPS[op]))["code"] == "forbidden"


def test_a_listener_with_the_scope_may_fork_and_nothing_else() -> None:
    listener = ready(Grant("lnk_f", "listener", 2000, sid="ses_1", scopes=("fork",)))
    (order,) = control(listener, "fork", {"speed": 1.2}, play_ms=900)
    wish = Wish("fork", {"speed": 1.2}, "playhead", 900)
    assert order == Order(7, "ses_1", wish, "listener", "lnk_f")
    assert only_error(control(listener, "speed", 1.2))["code"] == "forbidden"

    other = ready(Grant("lnk_f", "listener", 2000, sid="ses_2", scopes=("fork",)), OTHER)
    assert only_error(control(other, "fork"))["code"] == "forbidden"


@pytest.mark.parametrize(
    "value", [3, "fast", {"speed": 9}, {"voice": ""}, {"skip": 3}, {"emotion": [1]}]
)
def test_a_fork_wishes_for_pace_emotion_and_voice_only(value: Any) -> None:
    assert only_error(control(ready(OWNER), "fork", value))["code"] == "bad_message"


def test_the_best_grant_on_a_session_counts() -> None:
    (order,) = control(ready(ADMIN, OWNER), "pause")
    assert isinstance(order, Order)
    assert (order.role, order.link) == ("owner", "lnk_own")


def test_an_owner_of_one_session_orders_nothing_for_another() -> None:
    found = say(ready(OWNER), t="control", req=7, sid="ses_2", op="pause")
    assert only_error(found)["code"] == "forbidden"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("sad", "sad"),
        ("", ""),
        ({"name": "happy", "strength": 0.5}, "happy@0.5"),
        ({"vector": [0.6, 0, 0, 0, 0, 0, 0, 0]}, "[0.6,0,0,0,0,0,0,0]"),
        ([0, 0, 1, 0, 0, 0, 0, 0], "[0,0,1,0,0,0,0,0]"),
        ({"vector": [0.1] * 8, "strength": 1}, "[" + ",".join(["0.1"] * 8) + "]@1"),
    ],
)
def test_an_emotion_is_kept_in_the_engines_notation(value: Any, kept: str) -> None:
    assert read_wish({"op": "emotion", "value": value}).value == kept


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(op=st.sampled_from([*OPS, "dance"]), value=json_values, at=json_values, play_ms=json_values)
def test_any_values_make_an_order_or_a_fault(op: str, value: Any, at: Any, play_ms: Any) -> None:
    try:
        wish = read_wish({"op": op, "value": value, "at": at, "play_ms": play_ms})
    except Fault as fault:
        assert fault.code == "bad_message"
        assert str(fault)
    else:
        assert wish.op == op
        assert wish.op != "speed" or 0.5 <= wish.value <= 2.0


def test_saying_needs_the_scope_and_every_session() -> None:
    (wish,) = say(ready(KEY), t="say", req=1, text="Hello.", speed=1.5, codec="pcm")
    assert wish == Say(1, "key:1", "Hello.", speed=1.5, opening={"codec": "pcm"})

    for grant in (ADMIN, OWNER, Grant("x", "owner", 2000, sid="ses_1", scopes=("gen",))):
        assert only_error(say(ready(grant), t="say", text="Hello."))["code"] == "forbidden"


def test_who_said_it_owns_and_hears_it() -> None:
    listener = ready(Grant("key:1", "listener", 2000, sid="*", scopes=("gen",)))
    (wish,) = say(listener, t="say", req=1, text="Hello.")
    assert isinstance(wish, Say)
    accepted, opened = listener.accepted(wish, "ses_9", {"pos": 1, "eta_ms": 0}, NOW)

    assert isinstance(accepted, Send)
    assert accepted.message == {
        "t": "accepted", "req": 1, "sid": "ses_9", "queue": {"pos": 1, "eta_ms": 0},
    }  # fmt: skip
    assert isinstance(opened, Open)
    assert (opened.req, opened.sid) == (1, "ses_9")
    (order,) = say(listener, t="control", req=2, sid="ses_9", op="stop")
    assert isinstance(order, Order)
    assert order.role == "owner"
    other = say(listener, t="control", req=2, sid="ses_8", op="stop")
    assert only_error(other)["code"] == "forbidden"


def test_whoever_may_speak_is_not_sent_away_while_thinking() -> None:
    quiet, speaking = ready(OWNER), ready(KEY)

    assert quiet.tick(NOW + 120) != []
    assert speaking.tick(NOW + 120) == []


class Stub:
    """A desk that notes what is put on it."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.slow = asyncio.Event()

    async def order(self, order: Order, key: str) -> object:
        self.keys.append(key)
        return order

    async def outcome(self, ticket: Any) -> Outcome:
        if ticket.wish.op == "skip":
            raise NotDone("gone", "it is over", retry_ms=5)
        if ticket.wish.op == "voice":
            await self.slow.wait()
        return Outcome({"seg": 1, "ms": 2, "epoch": 3})

    async def say(self, say: Say, key: str) -> Begun:
        raise RuntimeError("nobody expected this")

    async def is_waiting(self, sid: str) -> bool:
        return False


def told(*wishes: tuple[str, Any], desk: Stub | None) -> tuple[list[dict[str, Any]], list[str]]:
    """What a connection is told that gives these orders, one after the other."""
    answers: list[dict[str, Any]] = []

    async def perform(actions: list[Action]) -> None:
        answers.extend(action.message for action in actions if isinstance(action, Send))

    async def run() -> None:
        listener = ready(KEY)
        clerk = Clerk(listener, desk, perform)
        for number, (op, value) in enumerate(wishes):
            if op == "say":
                (action,) = say(listener, t="say", req=number, text=value)
            else:
                (action,) = say(listener, t="control", req=number, sid="ses_1", op=op, value=value)
            assert isinstance(action, Order | Say)
            clerk.take(action)
        for _ in range(50):
            await asyncio.sleep(0)
        await clerk.close()

    asyncio.run(run())
    return answers, desk.keys if desk else []


def test_orders_reach_the_desk_as_they_came_and_answers_come_as_they_are_ready() -> None:
    answers, keys = told(("voice", "a"), ("speed", 1.2), ("skip", 3), desk=Stub())

    assert [key.rpartition(":")[2] for key in keys] == ["0", "1", "2"]
    assert [(one["t"], one["req"]) for one in answers] == [("ctl", 1), ("error", 2)]
    assert answers[0]["effect"] == {"seg": 1, "ms": 2, "epoch": 3}
    assert (answers[1]["code"], answers[1]["retry_ms"]) == ("gone", 5)


def test_a_fault_of_the_desk_is_told_as_ours() -> None:
    ((answer,), _) = told(("say", "Hello."), desk=Stub())
    assert (answer["code"], answer["retry_ms"]) == ("internal", 1000)


def test_without_a_desk_nothing_can_be_ordered() -> None:
    ((answer,), _) = told(("pause", None), desk=None)
    assert answer["code"] == "forbidden"
