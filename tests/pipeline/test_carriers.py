"""Events to other systems: signed, repeated by the table, switched off by 410."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook as Judge

from pipeline import models
from pipeline.episodes import produce
from tests.connectors.conftest import Tool, tool  # noqa: F401 - the fixture
from tests.pipeline.house import House, open_house
from tests.pipeline.test_readings import write

SECRET = "whsec_bm90ZWNhc3QtZGVtby1zZWNyZXQtMDAwMQ=="
OTHER = "whsec_b3RoZXItbm90ZWNhc3QtZGVtby1zZWNyZXQtMg=="
E = models.effect.c


def config(events: str = "") -> str:
    return f"""
        [endpoint.board]
        connector = "webhook"
        secrets = {{ webhook = ["file:secret"] }}
        {events}
    """


@pytest.fixture
def house(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    sqlite_template: Path,
    tool: Tool,  # noqa: F811
) -> Iterator[House]:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "other").write_text(OTHER)
    (tmp_path / "url").write_text(tool.url)
    text = config(getattr(request, "param", ""))
    options = {"fetch_trusted": ("127.0.0.0/8",)}
    with open_house(tmp_path, sqlite_template, connectors=text, **options) as house:
        yield house


OWN = '[endpoint.board.events]\nurl = "file:url"\nsecret = ["file:other", "file:secret"]\n'


def accept(house: House, text: str = "Words.", **note: Any) -> str:
    return house.accept(text, ref="crm/4711", endpoint="board", **note).accepted.episode


def told(tool: Tool) -> list[dict[str, Any]]:  # noqa: F811
    """What the receiver got; the standard's own library checks each signature."""
    return [Judge(SECRET).verify(body, headers) for headers, body in tool.requests]


def events_of(house: House) -> list[Any]:
    return [one for one in house.all(models.effect, E.id) if one.kind == "event"]


def test_a_note_with_a_callback_hears_of_every_state(house: House, tool: Tool) -> None:  # noqa: F811
    for _ in range(3):
        tool.answers(200, {})
    key = accept(house, callback_url=tool.url)
    write(house)
    produce(house.services, house.hold())
    write(house)

    queued, live, finished = told(tool)
    assert [one["type"] for one in (queued, live, finished)] == [
        "note.queued",
        "note.live",
        "note.finished",
    ]
    assert queued["data"]["ref"] == "crm/4711"
    assert queued["data"]["episode"] == key
    assert queued["data"]["listen_url"] == finished["data"]["listen_url"]
    assert f"/episodes/{key}.mp3" in finished["data"]["audio_url"]
    assert finished["data"]["duration_s"] > 0


@pytest.mark.parametrize("house", [OWN], indirect=True)
def test_an_endpoints_own_system_hears_too_and_both_secrets_sign(
    house: House,
    tool: Tool,  # noqa: F811
) -> None:
    tool.answers(200, {})
    accept(house)
    write(house)

    ((headers, body),) = tool.requests
    assert Judge(OTHER).verify(body, headers) == Judge(SECRET).verify(body, headers)


@pytest.mark.parametrize(
    "house", [OWN + 'on = ["note.failed"]'], indirect=True, ids=["failures only"]
)
def test_an_endpoint_hears_only_what_it_asked_for(house: House, tool: Tool) -> None:  # noqa: F811
    tool.answers(200, {})
    accept(house, "🎉")
    write(house)
    produce(house.services, house.hold())
    write(house)

    (failed,) = told(tool)
    assert failed["data"]["error"] == {
        "code": "unspeakable",
        "message": "nothing is left to say",
    }


def test_a_refused_event_is_repeated_with_its_id_and_body(house: House, tool: Tool) -> None:  # noqa: F811
    tool.answers(500, {})
    tool.answers(400, {})
    tool.answers(302, {}, Location="http://127.0.0.1/elsewhere")
    tool.answers(200, {})
    accept(house, callback_url=tool.url)
    waits = []
    for _ in range(3):
        write(house)
        (row,) = events_of(house)
        waits.append(row.next_ms)
        assert row.state == "failed"
        house.change(models.effect, E.id == row.id, next_ms=0)
    write(house)

    assert events_of(house)[0].state == "done"
    assert len({headers["webhook-id"] for headers, _ in tool.requests}) == 1
    assert len({body for _, body in tool.requests}) == 1
    assert len(told(tool)) == 4
    assert waits[2] - waits[1] > 1_200_000, "5 s, 5 min, 30 min"


@pytest.mark.parametrize("house", [OWN], indirect=True)
def test_410_switches_events_off_and_rings(house: House, tool: Tool) -> None:  # noqa: F811
    tool.answers(410, {})
    accept(house)
    write(house)
    produce(house.services, house.hold())
    write(house)

    assert len(tool.requests) == 1
    assert [one.state for one in events_of(house)] == ["dead"]
    (alarm,) = house.all(models.alarm)
    assert (alarm.kind, "410 Gone" in alarm.message) == ("events", True)


def test_an_address_of_a_note_may_not_lead_inside(
    tmp_path: Path,
    sqlite_template: Path,
    tool: Tool,  # noqa: F811
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    with open_house(tmp_path, sqlite_template, connectors=config()) as house:
        accept(house, callback_url=tool.url)
        write(house)
        (row,) = events_of(house)

    assert (row.state, row.error_code) == ("dead", "unsafe_address")
    assert tool.requests == []


def test_the_secret_of_the_own_address_is_not_stored(
    tmp_path: Path,
    sqlite_template: Path,
    tool: Tool,  # noqa: F811
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "other").write_text(OTHER)
    (tmp_path / "url").write_text(tool.url + "?token=hush")
    with open_house(tmp_path, sqlite_template, connectors=config(OWN)) as house:
        accept(house)

        assert "hush" not in json.dumps([one.body for one in events_of(house)])
