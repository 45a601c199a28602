"""Chapters that are spoken only when somebody opens them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from pipeline import chapters
from pipeline.episode_view import show
from pipeline.errors import NotFound
from pipeline.models import audit, effect, episode, episode_note
from pipeline.operate import stop_episode
from pipeline.script import Script
from tests.pipeline.studio import API_KEY, Studio, open_studio

LINE = "we looked at the numbers once more and found them to be what they were last week."
TALK = "\n".join(f"{who}: {LINE}" for who in ("Alice", "Bob") for _ in range(130))
NOTES = f"""## Decisions
- Ship on Friday

## First talk
{TALK}

## Second talk
Bob: Good morning.
Carol: Good morning, Bob.
"""
SHORT = """## Decisions
- Ship on Friday

## First talk
Alice: Hello, Bob.
Bob: Hello, Alice.

## Second talk
Bob: Good morning.
Carol: Good morning, Bob.
Bob: Goodbye.
Carol: Goodbye, Bob.
"""

CONNECTORS = """
[sections]
decision = ["Verdict"]

[endpoint.board]
connector = "feishu_automation"
secrets = { token = ["file:secret"], write_back = "file:secret" }
write_back_url = "https://base.example/hook"

[endpoint.board.events]
url = "https://crm.example/hooks/notecast"
secret = ["file:secret"]
"""


@pytest.fixture
def studio(tmp_path: Path, sqlite_template: Path) -> Iterator[Studio]:
    (tmp_path / "secret").write_text("whsec_" + "bm90ZWNhc3QgYWNjZXB0YW5jZSBzZWNyZXQ=")
    with open_studio(tmp_path, sqlite_template, connectors=CONNECTORS) as studio:
        yield studio


def spoken(studio: Studio, text: str = SHORT, **note: object) -> tuple[str, str]:
    """A note that is spoken to its end; (key, link's token)."""
    key, token = studio.accept(text, title="Weekly", **note)
    studio.wait_state(key, "stored", "done")
    return key, token


def ask(studio: Studio, key: str, token: str, number: object = "") -> requests.Response:
    path = f"{studio.url}/v1/live/{key}/chapters"
    headers = {"Authorization": f"Bearer {token}"}
    if number == "":
        return requests.get(path, headers=headers, timeout=30)
    return requests.post(f"{path}/{number}", headers=headers, timeout=30)


def key_of(studio: Studio, link: str) -> str:
    """The episode of a link."""
    keys = [row.key for row in studio.house.all(episode)]
    return next(key for key in keys if show(studio.services, key)["listen_url"] == link)


def test_long_transcript_is_spoken_briefly_and_its_talks_are_spoken_when_opened(studio):
    key, token = spoken(studio, NOTES, endpoint="board", ref="row-1")
    parent = studio.house.row(key)
    ordered = [(row.kind, row.body) for row in studio.house.all(effect)]

    offered = ask(studio, key, token).json()["offered"]
    answer = ask(studio, key, token, 2)
    opened = key_of(studio, answer.json()["listen_url"])
    child = studio.wait_state(opened, "done")

    assert [(one["number"], one["title"]) for one in offered] == [
        (1, "First talk"),
        (2, "Second talk"),
    ]
    assert offered[0]["minutes"] > 10 and offered[1]["minutes"] == 1
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert [one.title for one in Script.from_dict(parent.script).chapters] == [
        "Weekly",
        "Decisions",
    ]
    assert (child.title, child.lang) == ("Second talk", "en")
    said = [segment.text for segment in Script.from_dict(child.script).segments()]
    assert said[0] == "Second talk" and "Good morning, Bob." in said
    assert chapters.offered(studio.services, opened) == []
    after = studio.house.row(key)
    assert (after.state, after.fence, after.state_ms) == (
        parent.state,
        parent.fence,
        parent.state_ms,
    )
    assert {kind for kind, _ in ordered} == {"write_back", "event"}
    assert [(row.kind, row.body) for row in studio.house.all(effect)] == ordered
    assert {row.episode_id for row in studio.house.all(episode_note)} == {parent.id}
    sound = studio.get(f"/episodes/{opened}.mp3", token=answer.json()["listen_url"].split("=")[1])
    assert sound.status_code == 200 and len(sound.content) > 1000


def test_opening_again_even_at_the_same_time_gives_the_same_link(studio):
    key, token = spoken(studio, detail="brief")

    with ThreadPoolExecutor(6) as pool:
        links = {
            answer.json()["listen_url"]
            for answer in pool.map(lambda _: ask(studio, key, token, 1), range(6))
        }
    studio.wait_state(key_of(studio, *links), "done")
    later = ask(studio, key, token, 1).json()

    assert links == {later["listen_url"]} and later["status"] == "done"
    assert len(studio.house.all(episode)) == 2


def test_people_keep_their_voices_over_the_chapters(studio):
    key, token = spoken(studio, detail="brief")

    first, second = (
        key_of(studio, ask(studio, key, token, n).json()["listen_url"]) for n in (1, 2)
    )
    casts = [studio.wait_state(one, "done").script["voices"] for one in (first, second)]

    assert casts[0]["Bob"] == casts[1]["Bob"] != casts[1]["Carol"]
    assert casts[0]["Alice"] not in (casts[0]["Bob"], casts[0][""])
    assert casts[0][""] == casts[1][""] == studio.house.row(key).script["voices"][""]


def test_stopped_chapter_is_spoken_when_it_is_opened_again(tmp_path, sqlite_template):
    with open_studio(tmp_path, sqlite_template) as studio:
        key, token = spoken(studio, detail="brief")
        studio.speaker.drain(0.5)
        link = ask(studio, key, token, 1).json()["listen_url"]
        opened = key_of(studio, link)
        stop_episode(studio.services, opened, actor="test")
        stopped = studio.house.row(opened).state
        again = ask(studio, key, token, 1).json()

        assert stopped == "cancelled"
        assert again == {"listen_url": link, "status": "queued"}
        assert studio.house.row(opened).state == "queued"
        revived = [row for row in studio.house.all(audit) if row.action == "revive"]
        assert [row.object for row in revived] == [opened]


@pytest.mark.parametrize("number", [0, 3, 10_000])
def test_chapter_that_is_not_offered_is_refused_with_their_number(studio, number):
    key, token = spoken(studio, detail="brief")

    answer = ask(studio, key, token, number)

    assert answer.status_code == 404
    assert answer.json()["error"]["message"].endswith("it offers 2, numbered from 1")
    assert len(studio.house.all(episode)) == 1


def test_note_that_is_said_in_full_offers_nothing(studio):
    key, token = spoken(studio, "Hello, all of you.")

    assert ask(studio, key, token).json() == {"offered": []}
    assert "it offers none" in ask(studio, key, token, 1).json()["error"]["message"]
    with pytest.raises(NotFound, match="no episode"):
        chapters.offered(studio.services, "ses_nobody")


def test_sections_have_the_names_that_a_team_gives_them(studio):
    key, _ = spoken(studio, "## Verdict\n- Ship on Friday\n\n## Talk\nNothing else.")

    (decision,) = (
        segment.text
        for segment in Script.from_dict(studio.house.row(key).script).segments()
        if segment.kind == "decision"
    )
    assert decision == "Decision: Ship on Friday"


HOSTILE = (
    "https://evil.example/clip.wav",
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\secret",
    "file:clip.wav",
    "data:audio/wav;base64,AAAA",
)


@pytest.mark.parametrize("voice", HOSTILE)
def test_voice_that_nobody_registered_fails_with_its_name_and_is_never_looked_for(studio, voice):
    answer = requests.post(
        f"{studio.url}/v1/episodes",
        json={"text": "Hello.", "voice": voice},
        headers={"Authorization": f"Bearer {API_KEY}"},
        timeout=20,
    )
    row = studio.wait_state(answer.json()["id"], "dead")

    assert row.error_code == "unknown_voice"


def test_cells_that_could_not_be_used_are_told_in_the_remarks(studio):
    key, _ = spoken(studio, "Hello.", warnings=("voice 'x' is an address",))

    remarks = show(studio.services, key)["remarks"]
    assert remarks["warnings"] == ["voice 'x' is an address"]


def test_only_who_may_listen_may_look_and_open(studio):
    key, token = spoken(studio, detail="brief")
    other, others_token = studio.accept("Something else.")
    revoked = studio.house.row(key)

    assert ask(studio, key, "").status_code == 401
    assert ask(studio, key, "nc1.e30.x", 1).status_code == 401
    assert ask(studio, key, others_token, 1).status_code == 403
    assert ask(studio, other, token).status_code == 403
    assert ask(studio, key, token, "one").status_code == 422
    assert revoked.state == "done"
    studio.wait_state(other, "done")
    assert len(studio.house.all(episode)) == 2
