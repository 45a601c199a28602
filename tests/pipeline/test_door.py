"""The door without HTTP: proof, handshakes, messages that cannot be understood, many events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from connectors.base import Hook, NoteEvent, NoteRef, Reply
from connectors.errors import Malformed, Rejected
from connectors.signing import proved, secret_label, sign_webhook
from pipeline import models, vault
from tests.pipeline.house import House, open_house
from tests.pipeline.table import Table, World, install

SECRET = "whsec_bm90ZWNhc3QtZGVtby1zZWNyZXQtMDAwMQ=="
CONFIG = '[endpoint.board]\nconnector = "webhook"\nsecrets = { webhook = ["file:secret"] }\n'
NOW = datetime.now(UTC)


class Shy(Table):
    """Leaves a secret at its handshake, and verifies with what was accepted."""

    def verify(self, hook: Hook, *, now: datetime) -> bytes | Reply:
        content = json.loads(hook.body)
        if "handshake" in content:
            return Reply(200, state={"pending_secret": content["handshake"]})
        for secret in self.state.get("accepted", []):
            if hook.headers.get("x-secret") == secret:
                proved(secret)
                return hook.body
        raise Rejected("no secret fits")

    def events(self, body: bytes, hook: Hook) -> list[NoteEvent]:
        rows = json.loads(body).get("rows")
        if rows is None:
            raise Malformed("/rows", "/rows: missing")
        return [NoteEvent(f"{key}/1", NoteRef("table", "base", "notes", key)) for key in rows]


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path) -> Iterator[House]:
    (tmp_path / "secret").write_text(SECRET)
    with open_house(tmp_path, sqlite_template, connectors=CONFIG) as house:
        install(house, Shy(World()))
        yield house


def post(house: House, body: Any, *, secret: str = "") -> Reply:
    hook = Hook("POST", {"x-secret": secret}, json.dumps(body).encode(), NOW)
    return house.services.hooks.receive(house.services.endpoints["table"], hook).reply


def test_a_pending_secret_verifies_nothing_until_it_is_accepted(house: House) -> None:
    assert post(house, {"handshake": "secret_one"}).status == 200
    assert post(house, {"rows": ["r1"]}, secret="secret_one").status == 401
    endpoint_id = house.services.doors["table"].endpoint_id
    with house.database.write() as connection:
        vault.accept(connection, endpoint_id)
    house.services.hooks.refresh(0.0)

    assert post(house, {"rows": ["r1"]}, secret="secret_one").status == 202
    (row,) = house.all(models.endpoint_secret)
    assert (row.state, row.verified_ms is not None) == ("active", True)


def test_many_events_of_one_message_are_one_commit(house: House) -> None:
    house.services.endpoints["table"].connector.state = {"accepted": ["s"]}
    vars(house.services.hooks)["_refreshed_at"] = float("inf")
    reply = post(house, {"rows": [f"r{n}" for n in range(30)]}, secret="s")

    assert json.loads(reply.body)["status"] == "noted"
    assert len(house.all(models.reading)) == 30


def test_a_genuine_message_nobody_understands_is_kept_once(house: House) -> None:
    house.services.endpoints["table"].connector.state = {"accepted": ["s"]}
    vars(house.services.hooks)["_refreshed_at"] = float("inf")
    for _ in range(3):
        assert post(house, {"row": "r1"}, secret="s").status == 422

    (dead,) = house.all(models.delivery)
    assert (dead.error, dead.repeats) == ("/rows: missing", 2)
    assert dead.delivery_key.startswith("dead/")


def test_the_secret_that_fitted_is_remembered(house: House) -> None:
    body = json.dumps({"type": "note.ready", "data": {"text": "Words."}}).encode()
    headers = sign_webhook(SECRET, "m1", int(NOW.timestamp()), body)
    endpoint = house.services.endpoints["board"]
    received = house.services.hooks.receive(endpoint, Hook("POST", headers, body, NOW))

    assert received.reply.status == 202
    (row,) = house.all(models.endpoint_secret)
    assert row.label == secret_label(SECRET)
    heard = {one.name: one.heard_ms for one in house.all(models.endpoint)}
    assert heard["board"] is not None
    assert heard["table"] is None


def test_the_same_note_under_another_id_is_answered_with_its_episode(house: House) -> None:
    endpoint = house.services.endpoints["board"]
    answers = []
    for msg_id in ("m1", "m2"):
        data = {"ref": "crm/1", "text": "Words."}
        body = json.dumps({"type": "note.ready", "data": data}).encode()
        headers = sign_webhook(SECRET, msg_id, int(NOW.timestamp()), body)
        received = house.services.hooks.receive(endpoint, Hook("POST", headers, body, NOW))
        answers.append(json.loads(received.reply.body))

    first, second = answers
    assert (second["episode"], second["listen_url"]) == (first["episode"], first["listen_url"])
    assert (first["duplicate"], second["duplicate"]) == (False, True)
    assert len(house.all(models.episode)) == 1
