"""Every connector's folder of fixtures, run by one test: what comes in, what becomes of it, and
what goes out.

A fixture is one JSON file with made-up data; it is signed at test time, so it stays editable:

    config      keys beside those of `CONFIGS`; `{vendor}` is the address of the scripted vendor
    state       what upkeep and accepted handshakes have left
    hook        body (or raw), headers, sign: standard | bearer | feishu | ..., see `SIGNERS`
    expect      status, answer, events, state: each value that is named must be there
    vendor      [{on: "PUT /path/*", status, reply}], used up in order; anything else is a 404
    read        [NoteRef...] -> expect_notes
    write_back  {ref, patch}, notify {card} -> expect_out: the calls, by method, path and json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from connectors.base import Accepted, Card, Connector, Hook, NotePatch, NoteRef, Reply
from connectors.errors import ConnectorError
from connectors.fake.google_sheets import FakeGoogleSheets
from connectors.fake.server import Fake
from connectors.fake.world import World
from connectors.registry import CONNECTORS, make_connector
from connectors.signing import (
    encrypt_feishu,
    sign_airtable,
    sign_feishu_event,
    sign_notion,
    sign_slack,
    sign_webhook,
)

FOLDER = Path(__file__).parent.parent / "fixtures" / "connectors"
SECRET = "whsec_bm90ZWNhc3QtZGVtby1zZWNyZXQtMDAwMQ=="
TOKEN = "a-token-of-the-automation"
FEISHU_KEY, FEISHU_TOKEN = "demo-encrypt-key", "demo-token"
FEISHU_SECRETS: dict[str, Any] = {
    "app_id": "cli_demo",
    "app_secret": "demo-app-secret",
    "encrypt_key": [FEISHU_KEY],
    "token": FEISHU_TOKEN,
}
AIRTABLE_MAC, NOTION_TOKEN, SLACK_SECRET = "ZGVtby1tYWM=", "secret_demo", "demo-signing"
TABLE: dict[str, Any] = {
    "base_url": "{vendor}",
    "trigger": {"column": "Status", "equals": "Ready"},
    "fields": {"title": "Title", "text": "Notes"},
    "output": {"status": "Status", "link": "Listen", "error": "Error"},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "webhook": {"secrets": {"webhook": [SECRET]}},
    "feishu_automation": {"secrets": {"token": [TOKEN]}},
    "feishu": {
        "base_url": "{vendor}",
        "base": "bascDemo01",
        "table": "tblDemo01",
        "secrets": {**FEISHU_SECRETS, "automation": [TOKEN]},
        "trigger": {"column": "播报状态", "equals": "待播报"},
        "fields": {"title": "会议主题", "text": ["会议纪要", "决议"], "lang": {"const": "zh"}},
        "output": {"status": "播报状态", "link": "收听链接", "error": "失败原因"},
    },
    "feishu_minutes": {
        "base_url": "{vendor}",
        "secrets": {**FEISHU_SECRETS, "refresh_token": "ur-demo"},
    },
    "feishu_robot": {"url": "{vendor}/open-apis/bot/v2/hook/demo", "secret": "demo-secret"},
    "dingtalk_robot": {"url": "{vendor}/robot/send?access_token=demo", "secret": "SECdemo"},
    "wecom_robot": {"url": "{vendor}/cgi-bin/webhook/send?key=demo"},
    "google_sheets": {
        **TABLE,
        "sheet": "1DemoSheetId",
        "tab": "Notes",
        "secrets": {
            "webhook": [SECRET],
            "service_account": FakeGoogleSheets(World()).key_file("{vendor}"),
        },
    },
    "airtable": {
        **TABLE,
        "base": "appDemo01",
        "table": "tblDemo01",
        "secrets": {"token": "pat-demo"},
    },
    "notion": {
        **TABLE,
        "data_source": "11111111-2222-4333-8444-555555555555",
        "secrets": {"token": "ntn_demo", "verification": [NOTION_TOKEN]},
        "fields": {"title": "Name", "text": "@page"},
    },
    "slack": {
        "base_url": "{vendor}",
        "secrets": {"signing": [SLACK_SECRET], "bot_token": "xoxb-demo"},
        "channel": "C0DEMO",
    },
}
FIXTURES = sorted(FOLDER.glob("*/*.json"))

Signer = Callable[[Mapping[str, Any], bytes, int], tuple[dict[str, str], bytes]]


def _standard(described: Mapping[str, Any], body: bytes, at_s: int) -> tuple[dict[str, str], bytes]:
    return sign_webhook(SECRET, described["id"], at_s, body), body


def _bearer(described: Mapping[str, Any], body: bytes, at_s: int) -> tuple[dict[str, str], bytes]:
    return {"authorization": f"Bearer {TOKEN}"}, body


def _sealed(described: Mapping[str, Any], body: bytes, at_s: int) -> tuple[dict[str, str], bytes]:
    envelope = {"encrypt": encrypt_feishu(FEISHU_KEY, body, iv=bytes(16))}
    return {}, json.dumps(envelope).encode()


def _feishu(described: Mapping[str, Any], body: bytes, at_s: int) -> tuple[dict[str, str], bytes]:
    _, envelope = _sealed(described, body, at_s)
    return sign_feishu_event(FEISHU_KEY, at_s, "nonce", envelope), envelope


def _airtable(described: Mapping[str, Any], body: bytes, at_s: int) -> tuple[dict[str, str], bytes]:
    return sign_airtable(AIRTABLE_MAC, body), body


def _notion(described: Mapping[str, Any], body: bytes, at_s: int) -> tuple[dict[str, str], bytes]:
    return sign_notion(NOTION_TOKEN, body), body


def _slack(described: Mapping[str, Any], body: bytes, at_s: int) -> tuple[dict[str, str], bytes]:
    return sign_slack(SLACK_SECRET, at_s, body), body


SIGNERS: dict[str, Signer] = {
    "airtable": _airtable,
    "notion": _notion,
    "slack": _slack,
    "standard": _standard,
    "bearer": _bearer,
    "feishu": _feishu,
    "feishu sealed": _sealed,
}


@pytest.fixture(scope="module")
def vendor() -> Iterator[Fake]:
    """A server that knows no tool: it answers what a fixture scripts, and keeps what came."""
    with Fake([], retry_s=()).running() as fake:
        yield fake


def hook_of(fixture: Mapping[str, Any], now: datetime) -> Hook:
    """The request of a fixture, signed at test time so that bodies stay editable."""
    described = fixture["hook"]
    body = (
        described.get("raw", "").encode()
        or json.dumps(described.get("body"), ensure_ascii=False).encode()
    )
    headers = dict(described.get("headers", {}))
    if "sign" in described:
        proof, body = SIGNERS[described["sign"]](described, body, int(now.timestamp()))
        headers |= proof
    return Hook("POST", headers, body, now)


def deliver(connector: Connector, hook: Hook) -> tuple[Reply, list[dict[str, Any]]]:
    """What the door does, without a database: verify, events, answer or refuse."""
    try:
        body = connector.verify(hook, now=hook.received_at)
        if isinstance(body, Reply):
            return body, []
        events = connector.events(body, hook)
    except ConnectorError as error:
        return connector.refuse(error), []
    accepted = Accepted("ep_1", "queued", "https://notes.example/l/8f2c")
    return connector.answer(accepted, hook), [asdict(event) for event in events]


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


def connector_of(path: Path, fixture: Mapping[str, Any], vendor: Fake) -> Connector:
    """The fixture's connector, with the scripted vendor in place of the real one."""
    name = path.parent.name
    config = CONFIGS[name] | fixture.get("config", {})
    connector = make_connector(
        name, "board", json.loads(json.dumps(config).replace("{vendor}", vendor.url))
    )
    connector.state = fixture.get("state", {})
    return connector


def run_in(connector: Connector, fixture: Mapping[str, Any], now: datetime) -> None:
    """What comes in."""
    reply, events = deliver(connector, hook_of(fixture, now))
    expected = fixture["expect"]
    assert reply.status == expected["status"]
    assert_within(expected.get("answer", {}), json.loads(reply.body or b"{}"))
    assert_within(expected.get("events", []), events)
    assert_within(expected.get("state", {}), dict(reply.state))


def run_out(connector: Connector, fixture: Mapping[str, Any], vendor: Fake) -> None:
    """What is read from the vendor, and what it is told."""
    vendor.seen.clear()
    vendor.recorder.faults.clear()
    for scripted in fixture.get("vendor", []):
        status, headers = scripted.get("status", 200), scripted.get("headers")
        vendor.fail(scripted["on"], status=status, body=scripted["reply"], headers=headers)
    if "read" in fixture:
        notes = [asdict(note) for note in connector.read([NoteRef(**r) for r in fixture["read"]])]
        assert_within(fixture["expect_notes"], notes)
    if "write_back" in fixture:
        told = fixture["write_back"]
        connector.write_back(NoteRef(**told["ref"]), NotePatch(**told["patch"]))
    if "notify" in fixture:
        connector.notify(Card(**fixture["notify"]))
    made = [{"method": one.method, "path": one.path, "json": one.json} for one in vendor.seen]
    assert_within(fixture.get("expect_out", []), made)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_fixture(path: Path, vendor: Fake):
    fixture = json.loads(path.read_text("utf-8"))
    now = datetime.fromisoformat(fixture.get("now", "2026-11-20T01:30:06+00:00")).astimezone(UTC)
    connector = connector_of(path, fixture, vendor)

    assert {"hook", "read", "write_back", "notify"} & set(fixture)
    if "hook" in fixture:
        run_in(connector, fixture, now)
    if {"read", "write_back", "notify"} & set(fixture):
        run_out(connector, fixture, vendor)


@pytest.mark.parametrize(
    ("name", "secrets"),
    [
        ("google_sheets", ["bm90ZWNh", "PRIVATE KEY"]),
        ("airtable", ["pat-demo"]),
        ("notion", ["ntn_demo", NOTION_TOKEN]),
        ("slack", [SLACK_SECRET, "xoxb-demo"]),
    ],
)
def test_no_secret_is_shown(name: str, secrets: list[str], vendor: Fake):
    connector = connector_of(FOLDER / name / "any.json", {}, vendor)
    shown = repr(connector) + repr(vars(connector))

    assert not [secret for secret in secrets if secret in shown]


def test_every_connector_has_fixtures():
    assert {path.parent.name for path in FIXTURES} == set(CONNECTORS)
