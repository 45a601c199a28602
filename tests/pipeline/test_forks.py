"""Readings of one's own: the rest of an episode, spoken anew as somebody wishes it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from engine.backends.tone import decode, sentence_code
from pipeline import forks, models
from pipeline.errors import Ended, NotFound, Refused
from pipeline.forks import Forked, fork, sentences
from pipeline.script import Chapter, Script, Segment
from pipeline.up import new_key
from streaming.client import Listening
from streaming.orders import Wish
from tests.acceptance.ears import Heard
from tests.pipeline.house import House, open_house
from tests.pipeline.test_control import (
    SENTENCES,
    TEXT,
    at_work,
    done,
    effect,
    effective,
    events,
    give,
    hums,
    published,
    sound,
)
from tests.pipeline.test_desk import listener_token, owner_token, socket_of
from tests.pipeline.test_web import Door
from tests.streaming.speaking import event, greet, raw, send

OPTIONS = {"durable_after_s": 0, "look_s": 0.05, "lease_ms": 2_000, "renew_ms": 300}


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template, **OPTIONS) as house:
        yield house


@pytest.fixture
def door(house: House) -> Iterator[Door]:
    door = Door(house)
    yield door
    door.close()


def spoken(house: House, text: str = TEXT, **note: Any) -> str:
    """An episode that is over."""
    key = house.accept(text, **note).accepted.episode
    done(house, key)
    return key


def forked(house: House, key: str, value: Any = None, *, name: str = "f", **place: Any) -> Forked:
    wish = Wish("fork", value or {}, **{"at": "now", **place})
    return fork(house.services, key, wish, actor="lnk_1", order_key=name)


async def order(door: Door, token: str, key: str, **fields: Any) -> dict[str, Any]:
    """Fork over a socket; gives the answer."""
    async with raw(socket_of(door)) as ws:
        await greet(ws, token)
        await send(ws, t="control", req=1, sid=key, op="fork", **fields)
        return await event(ws)


def start(house: House, key: str, seg: int) -> int:
    return sentences(house.services.chunks, key)[seg][0]


def lengths(house: House, key: str) -> dict[int, int]:
    found: dict[int, int] = {}
    for _epoch, seg, ticks in effective(house, key):
        found[seg] = found.get(seg, 0) + ticks
    return found


def test_the_rest_is_spoken_anew_in_another_voice_and_the_first_reading_stays(
    house: House,
) -> None:
    with at_work(house):
        key = spoken(house)
        before = house.row(key).spec_hash
        new = forked(house, key, {"voice": "tone_c"}, play_ms=start(house, key, 5) + 100)
        done(house, new.sid)

    assert new.seg == 5
    assert decode(sound(house, new.sid)) == [sentence_code(text) for text in SENTENCES[5:]]
    assert hums(house, new.sid) == ["tone_c"] * 3
    assert hums(house, key) == ["tone_a"] * 8
    assert house.row(key).spec_hash == before
    (link,) = [one for one in house.all(models.listen_link) if one.role == "owner"]
    assert link.slug in new.listen_url
    assert link.episode_id == house.row(new.sid).id
    row = house.row(new.sid)
    assert (row.asked_by, row.title) == ("lnk_1", house.row(key).title)
    (audited,) = [one for one in house.all(models.audit) if one.action == "fork"]
    assert (audited.object, audited.detail["fork"]) == (key, new.sid)


def test_a_fork_of_a_live_session_goes_its_own_way(house: House) -> None:
    with at_work(house, rtf=0.2):
        key = house.accept(TEXT).accepted.episode
        published(house, key, 2)
        new = forked(house, key, {"speed": 2.0}, play_ms=start(house, key, 1))
        done(house, new.sid)
        done(house, key)

    assert decode(sound(house, new.sid)) == [sentence_code(text) for text in SENTENCES[1:]]
    assert decode(sound(house, key)) == [sentence_code(text) for text in SENTENCES]
    own, first = lengths(house, new.sid), lengths(house, key)
    assert own[3] < 0.6 * first[3], "twice the pace"
    assert events(house, key, "cut") == [], "nobody else noticed"


def test_without_a_place_it_begins_where_the_episode_does(house: House) -> None:
    with at_work(house):
        key = spoken(house)
        new = forked(house, key)
        late = forked(house, key, name="late", play_ms=10**7)
        done(house, new.sid)
        done(house, late.sid)

    assert (new.seg, late.seg) == (0, 7)
    assert decode(sound(house, new.sid)) == [sentence_code(text) for text in SENTENCES]
    assert decode(sound(house, late.sid)) == [sentence_code(SENTENCES[7])]


def test_what_the_owner_had_ordered_holds_for_a_fork_too(house: House) -> None:
    with at_work(house, rtf=0.2):
        key = house.accept(TEXT).accepted.episode
        published(house, key, 1)
        effect(house, give(house, key, "voice", "tone_d", at="next"))
        effect(house, give(house, key, "speed", 2.0, at="next"))
        effect(house, give(house, key, "skip", 6, at="next"))
        done(house, key)
        new = forked(house, key, {"emotion": "sad"})
        done(house, new.sid)
        again = forked(house, new.sid, {"speed": 1.0}, name="g")
        done(house, again.sid)

    assert decode(sound(house, new.sid)) == [sentence_code(text) for text in SENTENCES]
    assert hums(house, new.sid) == ["tone_d"] * 8
    assert hums(house, again.sid) == ["tone_d"] * 8
    assert lengths(house, again.sid)[1] > 1.8 * lengths(house, new.sid)[1]
    assert house.row(again.sid).command_head == 3  # pace, emotion, voice


def test_the_pace_that_a_note_asked_for_is_kept(house: House) -> None:
    with at_work(house):
        key = spoken(house, duration="speed:1.5000")
        new = forked(house, key, {"voice": "tone_b"})
        done(house, new.sid)
    assert lengths(house, new.sid)[2] == pytest.approx(lengths(house, key)[2], rel=0.02)


def test_the_same_order_makes_one_fork(house: House) -> None:
    with at_work(house):
        key = spoken(house)
        one, two = forked(house, key), forked(house, key)
        done(house, one.sid)
    assert one == two
    assert len(house.all(models.episode)) == 2
    assert len([row for row in house.all(models.audit) if row.action == "fork"]) == 1


def test_what_cannot_be_forked_is_refused_with_the_reason(house: House) -> None:
    waiting = house.accept("Not yet.").accepted.episode
    with pytest.raises(NotFound, match="no episode ses_none"):
        forked(house, "ses_none")
    with pytest.raises(Refused, match="nothing of it has been spoken"):
        forked(house, waiting)
    with at_work(house):
        done(house, waiting)
        key = spoken(house)
        for value, reason in (
            ({"voice": "nobody"}, "no voice 'nobody'; GET /v1/audio/voices"),
            ({"voice": {"speaker": "Eve", "voice": "tone_b"}}, "nobody called 'Eve'"),
        ):
            with pytest.raises(Refused, match=reason):
                forked(house, key, value)
        house.services.chunks.forget(key)
        with pytest.raises(Ended, match="send the note again"):
            forked(house, key)
    assert len(house.all(models.episode)) == 2


def test_a_voice_is_for_whoever_speaks_where_the_fork_begins() -> None:
    lines = [("A", "Yes."), ("B", "Yes. No. Yes."), ("A", "No.")]
    segments = tuple(Segment("speech", who, said) for who, said in lines)
    script = Script("", "en", (Chapter("", segments),))
    texts = ["Yes.", "Yes.", "No.", "Yes.", "No."]
    said = {seg: (seg * 1000, text) for seg, text in enumerate(texts)}
    assert [forks.speaker_of(script, said, seg) for seg in said] == ["A", "B", "B", "B", "A"]


def test_an_owner_forks_over_the_socket_and_listens_to_it(house: House, door: Door) -> None:
    async def run() -> tuple[dict[str, Any], Heard]:
        answer = await order(door, owner_token(house, key), key, value={"voice": "tone_b"})
        heard = Heard()
        token = answer["effect"]["listen_url"].partition("#t=")[2]
        async with Listening(socket_of(door), token=token) as own:
            async for item in own:
                heard.take(item)
        return answer, heard

    with at_work(house):
        key = spoken(house)
        answer, heard = asyncio.run(asyncio.wait_for(run(), 60))

    assert (answer["t"], answer["sid"], answer["ok"]) == ("ctl", key, True)
    assert answer["effect"]["seg"] == 0
    heard.assert_exact()
    assert heard.codes() == [sentence_code(text) for text in SENTENCES]


@pytest.mark.parametrize("allowed", [False, True])
def test_listeners_fork_where_the_installation_lets_them(
    tmp_path: Path, sqlite_template: Path, allowed: bool
) -> None:
    with open_house(tmp_path, sqlite_template, **OPTIONS, listeners_fork=allowed) as house:
        door = Door(house)
        try:
            with at_work(house):
                taken = house.accept(TEXT)
                sid = taken.accepted.episode
                done(house, sid)
                answer = asyncio.run(order(door, listener_token(taken), sid))
                if allowed:
                    done(house, answer["effect"]["sid"])
                else:
                    assert (answer["t"], answer["code"]) == ("error", "forbidden")
        finally:
            door.close()
        rows = house.all(models.episode, models.episode.c.id)
        assert len(rows) == 1 + allowed


def test_a_program_forks_over_http_and_two_at_a_time_are_the_most(house: House, door: Door) -> None:
    key = new_key(house.services, name="test", scopes=("episodes",))

    def post(sid: str, name: str, value: Any) -> requests.Response:
        return requests.post(
            f"{door.url}/v1/episodes/{sid}/control",
            json={"op": "fork", "value": value},
            headers={"Authorization": f"Bearer {key}", "Idempotency-Key": name},
            timeout=20,
        )

    with at_work(house):
        sid = spoken(house)
    first = post(sid, "a", {"speed": 1.2})  # nobody speaks now: they wait
    assert first.status_code == 200
    assert first.json()["effect"].keys() == {"sid", "seg", "listen_url"}
    assert post(sid, "b", {"speed": 1.4}).status_code == 200
    full = post(sid, "c", {"speed": 1.6})
    assert (full.status_code, full.json()["error"]["code"]) == (429, "rate_limited")
    assert int(full.headers["Retry-After"]) >= 1
    bad = post(sid, "d", {"colour": "red"})
    assert (bad.status_code, bad.json()["error"]["code"]) == (422, "bad_request")
    assert "speed, emotion, voice" in bad.json()["error"]["message"]
    with at_work(house):
        done(house, first.json()["effect"]["sid"])
