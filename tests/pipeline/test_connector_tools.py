"""What operators ask of endpoints: check, status, backfill, replay, rotate."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from connectors.errors import ToolRefused, ToolUnavailable
from connectors.signing import secret_label
from pipeline import connector_tools, models, vault, walks
from pipeline.errors import Misconfigured, NotFound, Refused
from tests.pipeline.house import House, open_house
from tests.pipeline.studio import open_studio
from tests.pipeline.table import Table, World, install
from tests.pipeline.test_door import CONFIG, SECRET, Shy, post

NOTE = {"hook": {"body": {"type": "note.ready", "data": {"text": "Words."}}}}


class Sampled(Table):
    def sample(self) -> Any:
        return self._note("r1") if "r1" in self.world.rows else None


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path, world: World) -> Iterator[House]:
    (tmp_path / "secret").write_text(SECRET)
    with open_house(tmp_path, sqlite_template, connectors=CONFIG) as house:
        install(house, Sampled(world), voices={"default": "tone_a"})
        yield house


def console() -> Console:
    return Console(file=io.StringIO())


def test_check_prints_what_would_be_read_and_written(house: House, world: World) -> None:
    world.set("r1", Title="Sync", Notes="We ship.", Status="Ready")
    checked = connector_tools.check(house.services.endpoints["table"])

    assert checked.problems == []
    assert dict(checked.reads) == {
        "row": "r1",
        "title": "Sync",
        "text": "We ship.",
        "voice of the narrator": "tone_a",
    }
    writes = dict(checked.writes)
    assert writes["Status"] == "Queued -> Live -> Done -> Failed"
    assert writes["Listen"].startswith("Listen (https://")
    assert writes["Length"] == "4:05"
    assert writes["Error"].startswith("too_long: ")


def test_check_names_a_column_that_is_not_there(house: House, world: World) -> None:
    install(house, Sampled(world, fields={"text": "Nots"}))
    checked = connector_tools.check(house.services.endpoints["table"])

    assert checked.problems == [
        "fields.text: the table has no column 'Nots'; did you mean 'Notes'?"
    ]
    assert checked.reads == []


def test_check_without_a_ready_row_says_so(house: House) -> None:
    checked = connector_tools.check(house.services.endpoints["table"])

    assert "no row is ready: none has Status = 'Ready'" in checked.remarks


def test_check_passes_on_what_the_tool_says(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def columns() -> None:
        raise ToolRefused("the app may not read this base")

    endpoint = house.services.endpoints["table"]
    monkeypatch.setattr(endpoint.connector, "columns", columns)

    assert connector_tools.check(endpoint).problems == ["the app may not read this base"]


def test_status_tells_walks_waiting_rows_alarms_and_secrets(house: House, world: World) -> None:
    walks.sync(house.services)
    world.errors = [ToolUnavailable("away")] * 3
    for _ in range(3):
        house.change(models.duty, models.duty.c.kind == "walk", next_ms=0)
        for turn in walks.claim(house.services):
            walks.run(house.services, turn)
    board, table = connector_tools.status(house.services)

    assert board["heard"] is None
    assert board["secrets"] == [
        {
            "label": secret_label(SECRET),
            "state": "secrets.webhook",
            "verified": "never",
            "value": "",
        }
    ]
    assert (table["walked"], table["walk_error"], table["waiting"]) == (None, "away", 0)
    assert [one["message"] for one in table["alarms"]] == ["away"]


def test_status_shows_a_pending_secret_and_no_other(house: House) -> None:
    install(house, Shy(World()))
    post(house, {"handshake": "secret_to_paste"})
    (table,) = connector_tools.status(house.services, "table")
    assert [(one["state"], one["value"]) for one in table["secrets"]] == [
        ("pending", "secret_to_paste")
    ]

    done = connector_tools.accept_secret(house.services, "table", "", actor="test")
    assert done["label"] == secret_label("secret_to_paste")
    (table,) = connector_tools.status(house.services, "table")
    assert [(one["state"], one["value"]) for one in table["secrets"]] == [("accepted", "")]
    connector_tools.retire_secret(house.services, "table", done["label"], actor="test")
    assert connector_tools.status(house.services, "table")[0]["secrets"] == []
    assert {one.action for one in house.all(models.audit)} == {"accept", "retire"}


def test_an_endpoint_nobody_knows_names_the_nearest(house: House) -> None:
    with pytest.raises(NotFound, match="did you mean 'table'"):
        connector_tools.status(house.services, "tabel")


def test_a_dry_run_shows_what_a_walk_would_find(house: House, world: World) -> None:
    world.set("r1", Title="Sync", Notes="Words.", Status="Ready")
    world.set("r2", Title="Draft", Notes="Words.", Status="Draft")
    found = connector_tools.preview(house.services, "table", everything=False)

    assert [(one["row"], one["would"]) for one in found] == [
        ("r1", "be spoken, unless it was heard"),
        ("r2", "be left alone: not ready"),
    ]
    assert house.all(models.episode) == []


def test_backfill_walks_here_and_now(house: House, world: World) -> None:
    world.set("r1", Notes="Words.", Status="Ready")

    outcome = connector_tools.backfill(
        house.services, "table", actor="test", everything=True, console=console()
    )
    assert outcome == {"endpoint": "table", "found": 1}
    assert len(house.all(models.episode)) == 1


def test_backfill_passes_on_what_the_tool_says(house: House, world: World) -> None:
    world.errors = [ToolRefused("the app may not read this base")]

    with pytest.raises(Refused, match="the app may not read this base"):
        connector_tools.backfill(
            house.services, "table", actor="test", everything=False, console=console()
        )


def test_who_cannot_walk_is_not_backfilled(house: House) -> None:
    with pytest.raises(Refused, match="webhook cannot look for rows"):
        connector_tools.preview(house.services, "board", everything=False)


def test_replay_signs_a_fixture_and_posts_it(tmp_path: Path, sqlite_template: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    fixture = tmp_path / "fixture.json"
    fixture.write_text(json.dumps(NOTE))
    with open_studio(tmp_path, sqlite_template, connectors=CONFIG, speaks=False) as studio:
        address = f"{studio.url}/hooks/board"
        outcome = connector_tools.replay(studio.services, fixture, address)

        assert outcome["status"] == 202
        assert json.loads(outcome["answer"])["status"] == "queued"
        with pytest.raises(Misconfigured, match="/hooks/board"):
            connector_tools.replay(studio.services, fixture, f"{studio.url}/hooks/bord")
    with pytest.raises(Refused, match="is notecast up running"):
        connector_tools.replay(studio.services, fixture, address)


def test_a_file_that_is_no_fixture_is_told(house: House, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{")

    with pytest.raises(Misconfigured, match="cannot be read as JSON"):
        connector_tools.replay(house.services, path, "http://localhost/hooks/board")


def test_a_new_secret_comes_with_its_steps(house: House) -> None:
    made = connector_tools.new_secret(house.services, "board")

    assert made["secret"].startswith("whsec_")
    assert secret_label(made["secret"]) in " ".join(made["steps"])
    with pytest.raises(Refused, match="makes its own secrets"):
        connector_tools.new_secret(house.services, "table")


def test_a_lost_seal_key_is_told_with_its_cure(house: House) -> None:
    install(house, Shy(World()))
    post(house, {"handshake": "secret_to_paste"})
    vars(house.services)["vault"] = vault.Vault("another key")

    with pytest.raises(Misconfigured, match="seal-key"):
        connector_tools.status(house.services, "table")
