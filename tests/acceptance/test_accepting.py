"""What senders are told, what they get for it, and what becomes of notes that cannot be spoken."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from connectors.signing import sign_webhook
from engine.backends.tone import sentence_code
from streaming.client import listen
from streaming.errors import ListenError
from tests.acceptance.base import BASE, WRITE_BACK_TOKEN, Base
from tests.acceptance.ears import Audience
from tests.acceptance.stack import (
    CONNECTORS,
    FEISHU_TOKEN,
    SECRET,
    Stack,
    is_alive,
    note_body,
    wait_for,
)

OPTIONS = {
    "tone_faults": "true",
    "attempts": 2,
    "durable_after_s": 0,
    "body_limit_bytes": 65_536,
    "hung_s": 4,
    "lease_ms": 6_000,
    "renew_ms": 500,
}


@pytest.fixture(scope="module")
def base() -> Iterator[Base]:
    base = Base()
    yield base
    base.close()


@pytest.fixture(scope="module")
def stack(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(
        tmp_path_factory.mktemp("accepting"),
        OPTIONS,
        variables={"NC_FEISHU_WRITE_BACK": WRITE_BACK_TOKEN},
        connectors=CONNECTORS + BASE.format(url=base.url),
    )
    stack.start()
    yield stack
    stack.close()


def test_a_delivery_posted_twenty_times_from_four_threads_makes_one_episode(stack: Stack) -> None:
    before = stack.count("episode")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(stack.send_note, "Said once.", key="twenty") for _ in range(20)]
        answers = [one.result() for one in sent]

    contents = [answer.json() for answer in answers]
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [202]
    assert [one["duplicate"] for one in contents].count(False) == 1
    assert len({(one["episode"], one["listen_url"]) for one in contents}) == 1
    assert stack.count("episode") == before + 1
    (delivery,) = stack.query("SELECT * FROM delivery WHERE delivery_key = 'twenty'")
    assert delivery["repeats"] == 19
    stack.wait_done(contents[0]["episode"])
    stack.assert_complete(contents[0]["episode"], "Said once.")


def test_what_is_refused_is_told_why_and_what_was_authentic_is_kept_as_a_dead_letter(
    stack: Stack,
) -> None:
    tables = ("delivery", "note", "episode")
    rows = {table: stack.count(table) for table in tables}
    body = note_body("Never spoken.")
    now = int(time.time())
    signed = sign_webhook(SECRET, "refused", now, body)
    huge = note_body("x" * 100_000)
    blank = note_body("   ")
    foreign = json.dumps({"type": "note.ready", "data": {"text": "x", "speekers": {}}}).encode()
    torn = b'{"type": "note.ready", "data": {"text": '

    def refusal(body: bytes, headers: dict[str, str], address: str = "board") -> tuple[int, Any]:
        answer = stack.hook(body, headers, address)
        return answer.status_code, answer.json()["error"]

    def resigned(body: bytes) -> dict[str, str]:
        return sign_webhook(SECRET, "refused", now, body)

    assert refusal(huge, resigned(huge))[0] == 413
    assert refusal(body, signed, "nowhere")[0] == 404
    assert refusal(body, {})[0] == 401
    assert refusal(body + b" ", signed)[0] == 401
    assert refusal(body, sign_webhook(SECRET, "refused", now - 301, body))[0] == 401
    assert refusal(blank, resigned(blank)) == (
        422,
        {"code": "malformed", "message": "/data/text: is blank", "field": "/data/text"},
    )
    status, error = refusal(foreign, resigned(foreign))
    assert (status, error["field"]) == (422, "/data/speekers")
    assert "speakers" in error["message"]
    status, error = refusal(torn, resigned(torn))
    assert (status, error["offset_bytes"]) == (422, len(torn))
    unreadable = 3  # blank, foreign and torn were signed; a person may look at them
    assert {table: stack.count(table) for table in tables} == {
        **rows,
        "delivery": rows["delivery"] + unreadable,
    }


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(stack: Stack) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 4096

    answer = requests.post(f"{stack.url}/hooks/board", data=endless(), timeout=30)

    assert answer.status_code == 413
    assert "65536" in answer.json()["error"]["message"]


def test_the_api_speaks_a_text_once_for_an_idempotency_key(stack: Stack) -> None:
    wish = {"text": "The API speaks.", "voice": "tone_b"}
    headers = {"Idempotency-Key": "api-once"}
    first = stack.api("POST", "episodes", json=wish, headers=headers)
    second = stack.api("POST", "episodes", json=wish, headers=headers)

    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    assert (first.json()["duplicate"], second.json()["duplicate"]) == (False, True)
    key = first.json()["id"]
    stack.wait_done(key)
    shown = stack.api("GET", f"episodes/{key}").json()
    assert (shown["status"], shown["error"]) == ("done", None)
    assert shown["duration_s"] > 0.5
    assert set(shown["recordings"]) == {"opus", "mp3", "vtt", "chapters"}


def test_the_api_names_the_field_at_fault_and_asks_for_a_key(stack: Stack) -> None:
    unknown = stack.api("POST", "episodes", json={"text": "x", "vioce": "tone_a"})
    empty = stack.api("POST", "episodes", json={"text": ""})
    json_type = {"Content-Type": "application/json"}
    torn = stack.api("POST", "episodes", data=b'{"text": ', headers=json_type)
    keyless = requests.get(f"{stack.url}/v1/episodes", timeout=10)
    absent = stack.api("GET", "episodes/ses_nothing")
    nowhere = requests.get(f"{stack.url}/nowhere", timeout=10)

    assert (unknown.status_code, unknown.json()["error"]["field"]) == (422, "/vioce")
    assert (empty.status_code, empty.json()["error"]["field"]) == (422, "/text")
    assert torn.status_code == 422
    assert "JSON" in torn.json()["error"]["message"]
    assert (keyless.status_code, keyless.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (absent.status_code, absent.json()["error"]["code"]) == (404, "not_found")
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")


def test_a_finished_file_is_fetched_whole_or_in_part_by_its_ticket(stack: Stack) -> None:
    accepted = stack.accept("A file to fetch.", key="file")
    key = accepted["episode"]
    with Audience(accepted["listen_url"]) as audience:
        pass
    stack.wait_done(key)
    row = stack.recordings(key)["mp3"]
    token = accepted["listen_url"].partition("#t=")[2]
    bearer = {"Authorization": f"Bearer {token}"}
    address = f"{stack.url}/episodes/{key}.mp3"

    whole = requests.get(address, headers=bearer, timeout=10)
    part = requests.get(address, headers={**bearer, "Range": "bytes=100-199"}, timeout=10)
    rest = requests.get(address, headers={**bearer, "Range": "bytes=-50"}, timeout=10)
    beyond = requests.get(address, headers={**bearer, "Range": "bytes=99999999-"}, timeout=10)
    backwards = requests.get(address, headers={**bearer, "Range": "bytes=9-5"}, timeout=10)
    head = requests.head(address, headers=bearer, timeout=10)
    other = requests.get(f"{stack.url}/episodes/ses_other.mp3", headers=bearer, timeout=10)

    assert audience.heard[0].codes() == [sentence_code("A file to fetch.")]
    assert (whole.status_code, len(whole.content)) == (200, row["size_bytes"])
    assert whole.headers["Content-Type"] == "audio/mpeg"
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{row['size_bytes']}"
    assert rest.content == whole.content[-50:]
    assert beyond.status_code == 416
    assert backwards.content == whole.content, "a senseless range is as none (RFC 9110)"
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(row["size_bytes"]))
    assert requests.get(address, timeout=10).status_code == 401
    assert other.status_code == 403


def test_what_nobody_can_read_aloud_ends_with_the_reason(stack: Stack) -> None:
    symbols = stack.accept("🎉🎉 👍", key="symbols")
    stack.wait_state(symbols["episode"], "dead")
    stranger = stack.api("POST", "episodes", json={"text": "Who?", "voice": "nobody"}).json()
    stack.wait_state(stranger["id"], "dead")

    for key, code in ((symbols["episode"], "unspeakable"), (stranger["id"], "unknown_voice")):
        shown = stack.api("GET", f"episodes/{key}").json()
        assert (shown["status"], shown["error"]["code"]) == ("failed", code)
        assert shown["error"]["message"]
    with pytest.raises(ListenError) as told:
        list(listen(symbols["listen_url"]))
    assert told.value.code == "engine_failed"


def test_a_text_the_voice_fails_on_is_tried_again_and_then_given_up(stack: Stack) -> None:
    accepted = stack.accept("This one [[fail]] cannot be spoken.", key="fail")
    row = stack.wait_state(accepted["episode"], "dead")

    assert row["tries"] == 2
    assert row["error_code"] == "engine_failed"
    path = stack.query(
        "SELECT to_state FROM episode_log WHERE episode_id = :id ORDER BY id", id=row["id"]
    )
    assert [step["to_state"] for step in path] == [
        "queued", "synthesising", "failed", "queued", "synthesising", "dead",
    ]  # fmt: skip


def test_a_text_that_kills_the_worker_is_given_up_and_its_neighbours_are_spoken(
    stack: Stack,
) -> None:
    good = [stack.accept(f"Good neighbour {n}.", key=f"good-{n}") for n in range(4)]
    bad = stack.accept("This one [[crash]] kills.", key="crash")
    more = [stack.accept(f"Later neighbour {n}.", key=f"later-{n}") for n in range(4)]
    with Audience(bad["listen_url"]) as audience:
        row = stack.wait_state(bad["episode"], "dead", timeout_s=90)
    for one in (*good, *more):
        stack.wait_done(one["episode"])

    assert (row["error_code"], row["crash_count"]) == ("poison", 3)
    assert audience.heard[0].errors, "whoever listened was told that it ends"
    stack.assert_complete(more[0]["episode"], "Later neighbour 0.")
    crashes = stack.query("SELECT max(crash_count) AS n FROM episode WHERE state = 'done'")
    assert crashes[0]["n"] < 3


def test_a_worker_whose_engine_stands_still_is_replaced(stack: Stack) -> None:
    victim = stack.pid("worker gpu")
    stuck = stack.accept("This one [[hang]] never ends.", key="hang")
    wait_for("another worker", lambda: not is_alive(victim) and stack.pid("worker gpu"), 60)
    stack.api("POST", f"episodes/{stuck['episode']}/stop")
    after = stack.accept("The next worker speaks.", key="after-hang")

    stack.wait_done(after["episode"])
    assert stack.episode(stuck["episode"])["state"] == "cancelled"


def test_two_hundred_small_episodes_at_once_are_all_spoken(stack: Stack) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(stack.accept, f"Small {n}.", key=f"small-{n}") for n in range(200)]
        keys = [one.result()["episode"] for one in sent]
    listed = ", ".join(f"'{key}'" for key in keys)
    wait_for(
        "200 episodes to be done",
        lambda: stack.count("episode", f"state = 'done' AND key IN ({listed})") == 200,
        90,
    )

    assert len(set(keys)) == 200
    stack.assert_complete(keys[0], "Small 0.")
    stack.assert_complete(keys[199], "Small 199.")


def test_the_same_text_is_spoken_once_and_recorded_once(stack: Stack) -> None:
    first = stack.accept("Spoken once, asked for twice.", key="same-1")
    stack.wait_done(first["episode"])
    second = stack.accept("Spoken once, asked for twice.", key="same-2")
    stack.wait_done(second["episode"])

    assert first["episode"] != second["episode"]
    assert stack.recordings(first["episode"]) == stack.recordings(second["episode"])


def test_a_feishu_row_gets_its_link_at_once_and_its_recording_when_it_is_done(
    stack: Stack, base: Base
) -> None:
    row = {"base": "bas1", "table": "tbl1", "record": "rec1", "text": "From the Base."}
    headers = {"Authorization": f"Bearer {FEISHU_TOKEN}"}
    answer = stack.hook(json.dumps(row).encode(), headers, "base")
    accepted = answer.json()
    stack.wait_done(accepted["episode"])

    assert answer.status_code == 200
    assert accepted["listen_url"].startswith(stack.url)
    (busy_headers, busy_body), (headers, body) = base.calls
    assert body == busy_body
    assert headers["Authorization"] == f"Bearer {WRITE_BACK_TOKEN}"
    assert headers["Client-Token"] == busy_headers["Client-Token"]
    assert (body["record"], body["state"], body["error"]) == ("rec1", "done", "")
    assert body["link"] == accepted["listen_url"]
    assert body["duration_s"] > 0.5
    fetched = requests.get(body["audio"], timeout=10)
    assert len(fetched.content) == stack.recordings(accepted["episode"])["mp3"]["size_bytes"]
    (effect,) = stack.query("SELECT * FROM effect")
    assert (effect["state"], effect["tries"]) == ("done", 2)


def test_a_feishu_row_that_cannot_be_spoken_shows_why(stack: Stack, base: Base) -> None:
    row = {"base": "bas1", "table": "tbl1", "record": "rec2", "text": "🎉🎉"}
    headers = {"Authorization": f"Bearer {FEISHU_TOKEN}"}
    accepted = stack.hook(json.dumps(row).encode(), headers, "base").json()
    stack.wait_state(accepted["episode"], "dead")

    _, body = wait_for(
        "the row's write-back",
        lambda: next((call for call in base.calls if call[1]["record"] == "rec2"), None),
    )
    assert (body["state"], body["error"], body["audio"]) == ("failed", "unspeakable", "")


def test_a_second_up_on_the_same_directory_is_refused_with_the_reason(stack: Stack) -> None:
    second = stack.run("up", "--port", "0")

    assert stack.process is not None
    assert second.returncode == 2
    assert f"process {stack.process.pid}" in second.stderr.replace("\n", " ")
    assert "--data" in second.stderr
    assert "Traceback" not in second.stderr


def test_admin_sql_counts_what_was_spoken(stack: Stack) -> None:
    result = stack.run("sql", "select count(*) as n from episode where state = 'done'", "--json")
    refused = stack.run("sql", "delete from episode")

    assert json.loads(result.stdout)[0]["n"] == stack.count("episode", "state = 'done'")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
