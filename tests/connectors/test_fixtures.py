"""Every connector's folder of fixtures, run by one test: what comes in, what becomes of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from connectors.base import Accepted, Connector, Hook, Reply
from connectors.errors import ConnectorError
from connectors.registry import CONNECTORS, make_connector
from connectors.signing import sign_webhook

FOLDER = Path(__file__).parent.parent / "fixtures" / "connectors"
SECRET = "whsec_bm90ZWNhc3QtZGVtby1zZWNyZXQtMDAwMQ=="
TOKEN = "a-token-of-the-automation"
CONFIGS: dict[str, dict[str, Any]] = {
    "webhook": {"secrets": {"webhook": [SECRET]}},
    "feishu_automation": {"secrets": {"token": [TOKEN]}},
}
FIXTURES = sorted(FOLDER.glob("*/*.json"))


def hook_of(fixture: dict[str, Any], now: datetime) -> Hook:
    """The request of a fixture, signed at test time so that bodies stay editable."""
    described = fixture["hook"]
    body = (
        described.get("raw", "").encode()
        or json.dumps(described.get("body"), ensure_ascii=False).encode()
    )
    headers = dict(described.get("headers", {}))
    if described.get("sign") == "standard":
        headers |= sign_webhook(SECRET, described["id"], int(now.timestamp()), body)
    if described.get("sign") == "bearer":
        headers["authorization"] = f"Bearer {TOKEN}"
    return Hook("POST", headers, body, now)


def deliver(connector: Connector, hook: Hook) -> tuple[Reply, list[dict[str, Any]]]:
    """What the door does, without a database: verify, events, answer or refuse."""
    try:
        body = connector.verify(hook, now=hook.received_at)
        assert isinstance(body, bytes)
        events = connector.events(body, hook)
    except ConnectorError as error:
        return connector.refuse(error), []
    accepted = Accepted("ep_1", "queued", "https://notes.example/l/8f2c")
    return connector.answer(accepted), [asdict(event) for event in events]


def assert_within(expected: Any, actual: Any, where: str = "") -> None:
    """Every value that the fixture names is there; it may leave out others."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in actual, f"{where}/{key} is missing"
            assert_within(value, actual[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(expected) == len(actual), where
        for at, value in enumerate(expected):
            assert_within(value, actual[at], f"{where}/{at}")
    else:
        assert actual == expected, where


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_fixture(path: Path):
    fixture = json.loads(path.read_text("utf-8"))
    now = datetime.fromisoformat(fixture.get("now", "2026-11-20T01:30:06+00:00")).astimezone(UTC)
    name = path.parent.name
    connector = make_connector(name, "board", CONFIGS[name] | fixture.get("config", {}))

    reply, events = deliver(connector, hook_of(fixture, now))

    expected = fixture["expect"]
    assert reply.status == expected["status"]
    assert_within(expected.get("answer", {}), json.loads(reply.body))
    assert_within(expected.get("events", []), events)


def test_every_connector_has_fixtures():
    assert {path.parent.name for path in FIXTURES} == set(CONNECTORS)
