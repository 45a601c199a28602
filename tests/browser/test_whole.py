"""The page and the whole house behind it: database, worker, engine, gateway, files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pipeline import migrate
from pipeline.database import Database
from tests.browser.cdp import Browser, Tab
from tests.browser.page import events, set_value, stats, text, wait
from tests.pipeline.studio import API_KEY, Studio, open_studio

SENTENCES = [f"This is sentence number {n} of the notes." for n in range(12)]
NO_SOCKETS = (
    "window.WebSocket = class { constructor() {"
    " setTimeout(() => this.onclose?.({ code: 1006 })); } close() {} };"
)


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    template = tmp_path / "template.db"
    database = Database(f"sqlite:///{template}")
    migrate.upgrade(database)
    database.close()
    with open_studio(tmp_path, template, tone_pace="paced", tone_rtf=0.3) as studio:
        yield studio


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    tab = browser.tab()
    tab.emulate(width=1280, height=800)
    yield tab
    tab.close()


def accept(studio: Studio) -> dict[str, str]:
    """Post a note as a program does; gives the episode with both links."""
    answer = requests.post(
        f"{studio.url}/v1/episodes",
        json={"title": "Notes", "text": " ".join(SENTENCES)},
        headers={"Authorization": f"Bearer {API_KEY}"},
        timeout=20,
    )
    answer.raise_for_status()
    episode: dict[str, str] = answer.json()
    return episode


def here(studio: Studio, link: str) -> str:
    return studio.url + link[link.index("/l/") :]


def answered(tab: Tab) -> str:
    return str(
        tab.wait(
            "(() => { const t = document.querySelector('#host-answer').textContent;"
            " return t && !t.endsWith('…') && t; })()"
        )
    )


def test_owner_directs_what_a_worker_speaks(studio: Studio, tab: Tab) -> None:
    episode = accept(studio)
    tab.open(here(studio, episode["owner_url"]))
    tab.wait("!document.querySelector('#host').hidden")
    wait(tab, "s.edge_ms > 2000")
    tab.click("#play")
    wait(tab, "s.play_ms > 300")
    set_value(tab, "#host-speed", "1.5")
    told = answered(tab)
    wait(tab, "s.play_ms > 3000")
    tab.click("#host-stop")
    tab.click("#stop-yes")
    wait(tab, "s.end_sha256 !== null")

    assert told.startswith("Pace: 1.5× from 0:0") and told.endswith(" on, for everybody.")
    assert [cut["why"] for cut in events(tab, "cut")] == ["speed"]
    assert studio.wait_state(episode["id"], "cancelled").state == "cancelled"
    assert all(order["ms"] < 12_000 for order in events(tab, "order"))


def test_finished_episode_is_heard_with_its_captions_where_websockets_are_blocked(
    studio: Studio, tab: Tab
) -> None:
    episode = accept(studio)
    studio.wait_state(episode["id"], "done")
    studio.services.chunks.forget(episode["id"])  # as after six hours
    tab.on_load(NO_SOCKETS)
    tab.open(here(studio, episode["listen_url"]))
    wait(tab, "s.transport === 'file'")
    tab.wait("document.querySelectorAll('#transcript p').length >= 12")
    tab.click("#play")
    wait(tab, "s.play_ms > 500")
    set_value(tab, "#seek", 10_000)
    wait(tab, "s.state === 'file' && s.play_ms > 10300 && s.play_ms < 14000")

    assert SENTENCES[1] in text(tab, "#transcript")
    assert stats(tab)["underruns"]["n"] == 0


def test_chapter_that_the_short_form_leaves_out_is_spoken_when_it_is_tapped(
    studio: Studio, tab: Tab
) -> None:
    notes = (
        "## Decisions\n- Ship on Friday\n\n## The long talk\n"
        + "Alice: Hello, Bob.\nBob: Hello, Alice.\n" * 2
    )
    answer = requests.post(
        f"{studio.url}/v1/episodes",
        json={"title": "Notes", "text": notes, "detail": "brief"},
        headers={"Authorization": f"Bearer {API_KEY}"},
        timeout=20,
    ).json()
    tab.open(here(studio, answer["listen_url"]))
    tab.wait("!document.querySelector('#more-label').hidden")
    label, entry = text(tab, "#more-label"), text(tab, "#more-list li")
    tab.click("#chapters summary")
    tab.click("#more-list button")
    tab.wait("document.querySelector('#title')?.textContent === 'The long talk'")
    tab.click("#play")
    wait(tab, "s.end_sha256 !== null && s.play_ms > 500")

    assert (label, entry) == ("More, spoken when you open it", "The long talkabout 1 min")
    assert "Hello, Bob." in text(tab, "#transcript")
    assert tab.evaluate("document.querySelector('#more-label').hidden")
