"""Every fixture that comes in, posted to the real door: what is answered, and what is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from connectors.base import Connector, Hook, NoteEvent, Reply
from connectors.errors import Malformed, Rejected
from connectors.fake.server import Fake
from pipeline import intake, models
from pipeline.endpoints import Endpoint
from tests.connectors.test_fixtures import FIXTURES, connector_of, hook_of
from tests.pipeline.house import House, open_house

INCOMING = [path for path in FIXTURES if "hook" in json.loads(path.read_text("utf-8"))]


@pytest.fixture(scope="module")
def vendor() -> Iterator[Fake]:
    with Fake([], retry_s=()).running() as fake:
        yield fake


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template) as house:
        yield house


def told(connector: Connector, hook: Hook) -> tuple[Sequence[NoteEvent], bool]:
    """What the connector makes of it, and whether it is genuine but not understood."""
    try:
        body = connector.verify(hook, now=hook.received_at)
        return ([], False) if isinstance(body, Reply) else (connector.events(body, hook), False)
    except Rejected:
        return [], False
    except Malformed:
        return [], True


@pytest.mark.parametrize("path", INCOMING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_door_answers_a_fixture_and_stores_it_once(
    path: Path, house: House, vendor: Fake
) -> None:
    fixture = json.loads(path.read_text("utf-8"))
    now = datetime.fromisoformat(fixture.get("now", "2026-11-20T01:30:06+00:00")).astimezone(UTC)
    connector = connector_of(path, fixture, vendor)
    hook = hook_of(fixture, now)
    events, is_dead = told(connector, hook)
    services = house.services
    services.endpoints["board"] = Endpoint("board", "board", connector)
    services.doors.update(intake.open_doors(services.database, {"board": connector.name}))
    vars(services.hooks)["_refreshed_at"] = float("inf")  # the state is the fixture's

    replies = [
        services.hooks.receive(services.endpoints["board"], hook).reply.status for _ in range(2)
    ]

    assert replies[0] == fixture["expect"]["status"]
    assert replies[1] in (replies[0], 200)
    told_keys = {one.delivery_key for one in events}
    kept = house.all(models.delivery)
    if is_dead:
        assert [bool(row.error) for row in kept] == [True]
    else:
        assert {row.delivery_key for row in kept} == told_keys
    spoken = [one for one in events if one.kind == "changed"]
    thin = [one for one in spoken if one.note is None and connector.reads and not one.asked]
    assert len(house.all(models.reading)) == len({one.ref for one in thin})
    whole = [one for one in spoken if one not in thin and (one.note is None or one.note.ready)]
    assert len(house.all(models.episode)) == len({one.ref for one in whole})
