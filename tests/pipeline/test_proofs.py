"""Tickets and tokens for listening over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pipeline import links
from tests.pipeline.narrator import Narrator
from tests.pipeline.studio import API_KEY, Studio, open_studio, wait_for


@pytest.fixture
def studio(tmp_path: Path, sqlite_template: Path) -> Iterator[Studio]:
    with open_studio(tmp_path, sqlite_template, speaks=False) as studio:
        yield studio


@pytest.fixture
def narrator(studio: Studio) -> Iterator[Narrator]:
    narrator = Narrator(studio)
    narrator.say(0)
    narrator.session.end("done")
    yield narrator
    narrator.close()


def buy(studio: Studio, token: str, **body: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return requests.post(f"{studio.url}/v1/tickets", json=body, headers=headers, timeout=20)


def test_a_ticket_stands_for_the_token_where_only_an_address_goes(
    studio: Studio, narrator: Narrator
) -> None:
    answer = buy(studio, narrator.token)
    ticket = answer.json()["ticket"]
    path = f"/v1/live/{narrator.sid}/"

    assert answer.json() == {"ticket": ticket, "sid": narrator.sid, "expires_in_s": 60}
    for _ in range(2):  # a player may come back
        assert studio.get(f"{path}audio.ogg?from=0&ticket={ticket}").status_code == 200
    assert studio.get(f"{path}audio.mp3?from=0&ticket={ticket}").status_code == 401


def test_an_api_key_may_listen_to_everything_and_must_name_the_session(
    studio: Studio, narrator: Narrator
) -> None:
    path = f"/v1/live/{narrator.sid}/audio.ogg?from=0"

    assert studio.get(path, token=API_KEY).status_code == 200
    assert buy(studio, API_KEY).status_code == 422
    assert buy(studio, API_KEY, sid=narrator.sid).status_code == 201


def test_a_ticket_dies_with_the_link_it_was_bought_with(studio: Studio, narrator: Narrator) -> None:
    ticket = studio.ticket(narrator.sid, narrator.token)
    link = studio.gateway.links.verify(narrator.token).link
    links.revoke(studio.services.database, link)
    studio.gateway.links.forget(link)

    answer = studio.get(f"/v1/live/{narrator.sid}/audio.ogg?ticket={ticket}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


def test_a_link_buys_no_ticket_for_another_session(studio: Studio, narrator: Narrator) -> None:
    answer = buy(studio, narrator.token, sid="ses_other")

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


def test_without_a_token_there_is_no_ticket(studio: Studio) -> None:
    answer = requests.post(f"{studio.url}/v1/tickets", timeout=20)

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")


def test_a_link_has_only_so_many_endless_listeners(tmp_path: Path, sqlite_template: Path) -> None:
    options = {"speaks": False, "connections_per_link": 2}
    with open_studio(tmp_path, sqlite_template, **options) as studio:
        narrator = Narrator(studio)
        narrator.say(0)
        path = f"/v1/live/{narrator.sid}/"

        def listen(what: str) -> requests.Response:
            return studio.get(path + what, token=narrator.token, stream=True)

        with listen("audio.ogg?from=0") as first, listen("events") as second:
            third = listen("audio.mp3?from=0")
            statuses = first.status_code, second.status_code, third.status_code
        wait_for("a place", lambda: listen("events").status_code == 200)
        narrator.close()

    assert statuses == (200, 200, 429)
    assert third.json()["error"]["code"] == "too_many_listeners"
