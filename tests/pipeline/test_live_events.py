"""Server-sent events of a session, read as `EventSource` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline.web import live_events
from tests.pipeline.narrator import SENTENCES, Narrator
from tests.pipeline.studio import Studio, open_studio

Event = tuple[str, dict[str, Any]]


@pytest.fixture
def studio(tmp_path: Path, sqlite_template: Path) -> Iterator[Studio]:
    with open_studio(tmp_path, sqlite_template, speaks=False) as studio:
        yield studio


@pytest.fixture
def narrator(studio: Studio) -> Iterator[Narrator]:
    narrator = Narrator(studio)
    yield narrator
    narrator.close()


def blocks(answer: Any) -> Iterator[str]:
    text = ""
    for part in answer.iter_content(None):
        *whole, text = (text + part.decode()).split("\n\n")
        yield from whole


def messages(answer: Any) -> Iterator[Event]:
    """(id, message) of everything that is no comment."""
    for block in blocks(answer):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        if "data" in fields:
            yield fields.get("id", ""), json.loads(fields["data"])


def events(answer: Any) -> Iterator[Event]:
    """(id, message) of what stands in the log."""
    return ((name, message) for name, message in messages(answer) if name)


def ask(studio: Studio, narrator: Narrator, after: str = "") -> Any:
    headers = {"Last-Event-ID": after} if after else {}
    path = f"/v1/live/{narrator.sid}/events"
    return studio.get(path, token=narrator.token, headers=headers, stream=True)


def test_captions_cuts_states_and_the_end_come_as_they_are_in_the_log(
    studio: Studio, narrator: Narrator
) -> None:
    with ask(studio, narrator) as answer:
        narrator.say(0)
        narrator.say(1, part=0.5)
        heard = events(answer)
        found = [next(heard) for _ in range(3)]  # what comes after a cut may be void by then
        narrator.cut(1)
        narrator.say(1)
        narrator.session.end("done")
        narrator.session.file("/file.mp3", "mp3", 10, "/file.vtt", "/file.json")
        found += heard

    kinds = [message["t"] for _, message in found]
    assert kinds == ["state", "seg", "seg", "cut", "seg", "end", "file"]
    assert [one for one, _ in found] == [
        f"{message['p'][0]}.{message['p'][1]}" for _, message in found
    ]
    assert answer.headers["Content-Type"].startswith("text/event-stream")


def test_a_listener_who_comes_back_gets_what_follows_and_nothing_twice(
    studio: Studio, narrator: Narrator
) -> None:
    narrator.say(0, 1, 2)
    narrator.session.end("stopped")
    with ask(studio, narrator) as answer:
        whole = list(events(answer))

    for n, (last, _) in enumerate(whole[:-1]):
        with ask(studio, narrator, last) as answer:
            assert list(events(answer)) == whole[n + 1 :]
    with ask(studio, narrator, whole[-1][0]) as answer:
        assert answer.status_code == 204


def test_who_comes_late_gets_only_what_counts(studio: Studio, narrator: Narrator) -> None:
    narrator.say(0, 1)
    narrator.cut(1)
    narrator.say(1)
    narrator.session.end("stopped")

    with ask(studio, narrator) as answer:
        said = [message["e"] for _, message in events(answer) if message["t"] == "seg"]

    assert said == [1, 2]


def test_a_resume_behind_a_void_position_begins_with_the_cut(
    studio: Studio, narrator: Narrator
) -> None:
    narrator.say(0, 1)
    with ask(studio, narrator) as answer:
        known = [event for _, event in zip(range(3), events(answer), strict=False)]
    narrator.cut(1)
    narrator.say(1)
    narrator.session.end("stopped")

    with ask(studio, narrator, known[-1][0]) as answer:
        kinds = [message["t"] for _, message in events(answer)]

    assert kinds == ["cut", "seg", "end"]


def test_silence_is_filled_with_comments(
    studio: Studio, narrator: Narrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_events, "HEARTBEAT_S", 0.05)
    with ask(studio, narrator) as answer:
        found = blocks(answer)
        first = [next(found) for _ in range(6)]

    assert first[0] == "retry: 2000"
    assert first[4:] == [": alive", ": alive"]


def test_who_waits_is_told_the_place_in_the_queue(studio: Studio) -> None:
    sid, token = studio.accept(SENTENCES[0])
    with studio.get(f"/v1/live/{sid}/events", token=token, stream=True) as answer:
        name, message = next(messages(answer))

    assert (name, message["t"], message["pos"]) == ("", "queued", 1)
    assert {"title", "lang"} <= message.keys()


@pytest.mark.parametrize("after", ["", "0.0"])
def test_a_stream_begins_with_what_the_session_is(
    studio: Studio, narrator: Narrator, after: str
) -> None:
    narrator.say(0)
    with ask(studio, narrator, after) as answer:
        name, opened = next(messages(answer))

    assert (name, opened["t"], opened["sid"]) == ("", "opened", narrator.sid)
    assert (opened["title"], opened["lang"], opened["state"]) == ("By hand", "en", "generating")


def test_a_session_that_is_gone_names_its_recording_in_fields(
    tmp_path: Path, sqlite_template: Path
) -> None:
    with open_studio(tmp_path, sqlite_template) as studio:
        sid, token = studio.accept(SENTENCES[0])
        studio.wait_state(sid, "done")
        studio.services.chunks.forget(sid)

        answer = studio.get(f"/v1/live/{sid}/events", token=token)

        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (410, "gone")
        vtt = urlsplit(error["vtt"])
        assert SENTENCES[0] in studio.get(f"{vtt.path}?{vtt.query}").text


def test_a_failure_is_told_and_ends_the_stream(studio: Studio, narrator: Narrator) -> None:
    narrator.say(0, part=0.5)
    narrator.session.fail("engine_failed", "The voice broke.")

    with ask(studio, narrator) as answer:
        *_, error, state = (message for _, message in events(answer))

    assert (error["code"], state["state"]) == ("engine_failed", "failed")


def test_an_id_that_is_none_of_ours_is_refused(studio: Studio, narrator: Narrator) -> None:
    with ask(studio, narrator, "somewhere") as answer:
        assert answer.status_code == 400
