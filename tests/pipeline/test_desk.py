"""`control` and `say` over a real socket, with a worker in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from engine.backends.tone import sentence_code
from pipeline import links, models
from pipeline.up import new_key
from streaming.client import Audio, Listening
from streaming.errors import ListenError
from streaming.frames import Codec
from streaming.talk import Talk, Utterance
from tests.acceptance.ears import Heard
from tests.pipeline.house import House, open_house
from tests.pipeline.test_control import SENTENCES, TEXT, at_work, done, hums, wait_until
from tests.pipeline.test_web import Door

OPTIONS = {
    "durable_after_s": 0,
    "look_s": 0.05,
    "lease_ms": 2_000,
    "renew_ms": 300,
    "say_offer_s": 0.5,
}


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template, **OPTIONS) as house:
        yield house


@pytest.fixture
def door(house: House) -> Iterator[Door]:
    door = Door(house)
    yield door
    door.close()


@pytest.fixture
def key(house: House) -> str:
    return new_key(house.services, name="test", scopes=("episodes",))


def socket_of(door: Door) -> str:
    return door.url.replace("http://", "ws://") + "/v1/live"


def owner_token(house: House, sid: str) -> str:
    return links.owner_url(house.database, house.services.links, sid).partition("#t=")[2]


def listener_token(taken: Any) -> str:
    return str(taken.accepted.listen_url).partition("#t=")[2]


@asynccontextmanager
async def listening(
    door: Door, token: str
) -> AsyncIterator[tuple[Listening, Heard, asyncio.Task[None]]]:
    """Somebody who follows a session on a task of their own."""
    async with Listening(socket_of(door), token=token) as one:
        heard = Heard()

        async def follow() -> None:
            async for item in one:
                heard.take(item)

        task = asyncio.create_task(follow())
        async with asyncio.timeout(30):
            while not heard.chunks:
                await asyncio.sleep(0.01)
            yield one, heard, task
            await task


def test_an_owner_changes_the_voice_and_everybody_hears_the_same(house: House, door: Door) -> None:
    taken = house.accept(TEXT)
    sid = taken.accepted.episode

    async def run() -> tuple[dict[str, Any], Heard, Heard]:
        async with (
            listening(door, owner_token(house, sid)) as (owner, mine, _),
            listening(door, listener_token(taken)) as (_other, theirs, _),
        ):
            answer = await owner.control("voice", "tone_d", at="playhead", play_ms=0)
        return answer, mine, theirs

    with at_work(house):
        answer, mine, theirs = asyncio.run(run())
        done(house, sid)

    assert (answer["t"], answer["sid"], answer["ok"]) == ("ctl", sid, True)
    assert answer["effect"] == {
        "seg": 1, "ms": mine.cuts[0]["cut_ms"], "epoch": mine.cuts[0]["e"],
    }  # fmt: skip
    assert mine.cuts == theirs.cuts
    mine.assert_exact()
    theirs.assert_exact()
    assert mine.codes() == [sentence_code(text) for text in SENTENCES]
    assert hums(house, sid) == ["tone_a"] + ["tone_d"] * 7


def test_a_listener_may_not_order_and_hears_on(house: House, door: Door) -> None:
    taken = house.accept(TEXT)

    async def run() -> Heard:
        async with listening(door, listener_token(taken)) as (one, heard, _):
            for op, value in (("pause", None), ("speed", 1.5), ("stop", None)):
                with pytest.raises(ListenError) as refused:
                    await one.control(op, value)
                assert refused.value.code == "forbidden"
        return heard

    with at_work(house):
        heard = asyncio.run(run())
    heard.assert_exact()
    assert heard.cuts == []
    assert house.all(models.command) == []


def test_an_emotion_that_is_met_nearly_is_said_so_in_the_answer(house: House, door: Door) -> None:
    sid = house.accept(TEXT).accepted.episode

    async def run() -> dict[str, Any]:
        async with listening(door, owner_token(house, sid)) as (owner, _heard, _):
            return await owner.control("emotion", {"name": "sad", "strength": 0.5})

    with at_work(house):
        answer = asyncio.run(run())

    assert answer["degraded"] == ["emotion"]
    (row,) = house.all(models.command)
    assert row.value == "sad@0.5"


@pytest.mark.parametrize(
    ("order", "code"),
    [
        ({"op": "dance"}, "bad_message"),
        ({"op": "speed"}, "bad_message"),
        ({"op": "speed", "value": 9}, "bad_message"),
        ({"op": "speed", "value": True}, "bad_message"),
        ({"op": "emotion", "value": [1, 2]}, "bad_message"),
        ({"op": "emotion", "value": {"vector": [2] * 8}}, "bad_message"),
        ({"op": "voice", "value": ""}, "bad_message"),
        ({"op": "voice", "value": "nobody"}, "bad_message"),
        ({"op": "skip", "value": -1}, "bad_message"),
        ({"op": "pause", "at": "soon"}, "bad_message"),
        ({"op": "pause", "at": "now", "play_ms": "x"}, "bad_message"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_with_a_reason(
    house: House, door: Door, key: str, order: dict[str, Any], code: str
) -> None:
    sid = house.accept(TEXT).accepted.episode

    async def run() -> None:
        async with Talk(socket_of(door), key) as talk:
            with pytest.raises(ListenError) as refused:
                await talk.control(sid, order.pop("op"), **order)
            assert refused.value.code == code
            assert str(refused.value)

    with at_work(house, rtf=0.3):
        wait_until(lambda: house.row(sid).started_ms)
        asyncio.run(run())


def test_pause_resume_and_stop_work_over_http_too(house: House, door: Door, key: str) -> None:
    bearer = {"Authorization": f"Bearer {key}", "Idempotency-Key": "once"}
    body = {"text": TEXT}
    made = requests.post(f"{door.url}/v1/episodes", json=body, headers=bearer, timeout=20).json()
    sid = made["id"]

    def post(what: str, **more: Any) -> Any:
        headers = {**bearer, "Idempotency-Key": what}
        url = f"{door.url}/v1/episodes/{sid}/{what}"
        return requests.post(url, headers=headers, timeout=20, **more)

    assert post("pause").json()["paused"] is True
    assert post("pause").json()["paused"] is True
    with at_work(house):
        assert post("control", json={"op": "speed", "value": 1.5}).json() == {
            "ok": True, "effect": None, "degraded": [],
        }  # fmt: skip
        assert post("resume").json()["paused"] is False
        done(house, sid)
    assert [one.op for one in house.all(models.command, models.command.c.number)] == [
        "pause", "speed", "resume",
    ]  # fmt: skip
    late = post("control", json={"op": "speed", "value": 1.2}, params={"n": 2})
    assert late.status_code == 200, "a repetition gets the answer of the first"
    assert post("stop").status_code == 200
    bad = requests.post(
        f"{door.url}/v1/episodes/{sid}/control", json={"op": "speed"}, headers=bearer, timeout=20
    )
    assert (bad.status_code, bad.json()["error"]["code"]) == (422, "bad_request")
    over = requests.post(
        f"{door.url}/v1/episodes/{sid}/control",
        json={"op": "skip", "value": 1},
        headers={"Authorization": f"Bearer {key}"},
        timeout=20,
    )
    assert (over.status_code, over.json()["error"]["code"]) == (410, "gone")
    assert "#t=" in made["owner_url"]
    again = requests.post(f"{door.url}/v1/episodes", json=body, headers=bearer, timeout=20).json()
    assert again["owner_url"] == made["owner_url"]


# say ---------------------------------------------------------------------------------------------


async def hear(utterance: Utterance) -> tuple[Heard, list[dict[str, Any]], set[Codec]]:
    heard, events, codecs = Heard(), [], set()
    async with asyncio.timeout(30):
        async for item in utterance:
            if isinstance(item, Audio):
                codecs.add(item.header.codec)
            else:
                events.append(item)
            heard.take(item)
    return heard, events, codecs


def test_two_texts_are_spoken_side_by_side_over_one_connection(
    house: House, door: Door, key: str
) -> None:
    first = "The first text has two sentences. This is the second of them."
    second = "The other text is another session."

    async def run() -> Any:
        async with Talk(socket_of(door), key) as talk:
            one, two = await asyncio.gather(
                talk.say(first, voice="tone_b"), talk.say(second, speed=1.5, codec="pcm")
            )
            assert one.sid != two.sid
            return await asyncio.gather(hear(one), hear(two))

    with at_work(house):
        (one, events, opus), (two, _events, pcm) = asyncio.run(run())

    one.assert_exact()
    assert one.codes() == [sentence_code(part + ".") for part in first.split(".")[:2]]
    assert list(one.words.values()) == [part.strip() + "." for part in first.split(".")[:2]]
    assert (opus, pcm) == ({Codec.OPUS}, {Codec.PCM})
    assert two.end["why"] == "done"
    assert [event["t"] for event in events if event["t"] in ("queued", "opened")][-1] == "opened"
    rows = house.all(models.episode, models.episode.c.id)
    assert [row.asked_by[:4] for row in rows] == ["key:", "key:"]


def test_a_third_text_at_a_time_is_refused_until_one_has_ended(
    house: House, door: Door, key: str
) -> None:
    async def run() -> None:
        async with Talk(socket_of(door), key) as talk:
            one = await talk.say(TEXT)
            await talk.say(TEXT + " More.")
            with pytest.raises(ListenError) as refused:
                await talk.say("Too much.")
            assert refused.value.code == "rate_limited"
            answer = await talk.control(one.sid, "stop")
            assert answer["ok"]
            heard, _, _ = await hear(one)
            assert heard.end["why"] == "stopped"
            await talk.say("Now there is room.")

    with at_work(house):
        asyncio.run(run())


def test_what_waits_too_long_is_offered_as_batch_work_and_spoken_all_the_same(
    house: House, door: Door, key: str
) -> None:
    async def run() -> Any:
        async with Talk(socket_of(door), key) as talk:
            utterance = await talk.say("Nobody has a voice for this at first.")
            offer = None
            async with asyncio.timeout(30):
                while offer is None:
                    item = await anext(utterance)
                    assert not isinstance(item, Audio)
                    offer = item.get("offer")
            with at_work(house):
                heard, _, _ = await hear(utterance)
            return utterance, offer, heard

    utterance, offer, heard = asyncio.run(run())
    assert offer["mode"] == "batch"
    assert offer["url"].endswith(f"/v1/episodes/{utterance.sid}")
    heard.assert_exact()


def test_a_text_is_spoken_although_its_connection_went_and_can_be_resumed(
    house: House, door: Door, key: str
) -> None:
    async def run() -> Any:
        async with Talk(socket_of(door), key) as talk:
            utterance = await talk.say(TEXT)
        heard = Heard()
        async with Listening(socket_of(door), token=key, sid=utterance.sid) as listening:
            async for item in listening:
                heard.take(item)
        return heard

    with at_work(house):
        heard = asyncio.run(run())
    heard.assert_exact()
    assert heard.codes() == [sentence_code(text) for text in SENTENCES]


@pytest.mark.parametrize(
    "wish",
    [
        {"text": ""},
        {"text": "  \n "},
        {"text": "x", "speed": 7},
        {"text": "x", "lang": "English"},
        {"text": "x", "voice": 3},
        {"text": "x", "codec": "mp3"},
        {"text": "x", "open": "yes"},
        {"text": "x" * 17_000},
    ],
)
def test_a_text_that_cannot_be_is_refused(
    house: House, door: Door, key: str, wish: dict[str, Any]
) -> None:
    async def run() -> None:
        async with Talk(socket_of(door), key) as talk:
            with pytest.raises(ListenError):
                await talk.say(**wish)

    asyncio.run(run())
    assert house.all(models.episode) == []


def test_a_link_for_one_session_may_not_say_anything(house: House, door: Door) -> None:
    taken = house.accept("Words.")

    async def run() -> None:
        for token in (listener_token(taken), owner_token(house, taken.accepted.episode)):
            async with Talk(socket_of(door), token) as talk:
                with pytest.raises(ListenError) as refused:
                    await talk.say("Something else.")
                assert refused.value.code == "forbidden"

    asyncio.run(run())


@pytest.mark.parametrize("token", ["nck_of_nobody", "", "nc1.x.y"])
def test_a_key_that_is_none_opens_nothing(door: Door, token: str) -> None:
    async def run() -> None:
        async with Talk(socket_of(door), token):
            pass

    with pytest.raises(ListenError) as refused:
        asyncio.run(run())
    assert refused.value.code == "unauthenticated"
