"""The HTTP door over a real socket; what needs several processes is in tests/acceptance."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn

from connectors.signing import sign_webhook
from pipeline import links, models
from pipeline.database import Database
from pipeline.episodes import produce
from pipeline.live import make_gateway
from pipeline.up import new_key
from pipeline.web import make_web
from pipeline.web.files import byte_range
from streaming.server import websocket_protocol
from tests.pipeline.house import House, open_house

SECRET = "whsec_" + "bm90ZWNhc3QgYWNjZXB0YW5jZSBzZWNyZXQ="
CONNECTORS = """
[endpoint.board]
connector = "webhook"
id = "front-door"
secrets = { webhook = ["file:secret"] }

[endpoint.later]
connector = "webhook"
speak = "schedule"
secrets = { webhook = ["file:secret"] }
"""


class Door:
    """A house with its HTTP door open."""

    def __init__(self, house: House) -> None:
        self.house = house
        gateway = make_gateway(house.services)
        app = make_web(house.services, gateway)
        config = uvicorn.Config(
            app, port=0, ws=websocket_protocol(gateway), log_config=None, server_header=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)

    def post(self, text: str, *, key: str = "d1", address: str = "front-door") -> Any:
        body = json.dumps({"type": "note.ready", "data": {"text": text}}).encode()
        headers = sign_webhook(SECRET, key, int(time.time()), body)
        return requests.post(f"{self.url}/hooks/{address}", body, headers=headers, timeout=20)

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(f"{self.url}{path}", headers=headers, timeout=20)


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path) -> Iterator[House]:
    (tmp_path / "secret").write_text(SECRET)
    with open_house(tmp_path, sqlite_template, connectors=CONNECTORS) as house:
        yield house


@pytest.fixture
def door(house: House) -> Iterator[Door]:
    door = Door(house)
    yield door
    door.close()


def test_a_hook_is_found_by_its_address_and_not_by_its_name(door: Door) -> None:
    assert door.post("Words.").status_code == 202
    assert door.post("Words.").status_code == 200
    assert door.post("Words.", address="board").status_code == 404


def test_a_note_for_a_schedule_is_kept_and_has_no_link(door: Door) -> None:
    answer = door.post("Words for later.", address="later")

    assert answer.status_code == 202
    assert (answer.json()["status"], answer.json()["listen_url"]) == ("kept", "")
    assert len(door.house.all(models.note)) == 1
    assert door.house.all(models.episode) == []


def test_a_committed_hook_rings_the_bell_at_once(door: Door) -> None:
    door.post("Words.")
    deadline = time.monotonic() + 20
    while not door.house.bell.rung and time.monotonic() < deadline:
        time.sleep(0.01)

    assert door.house.bell.rung == ["realtime"]


def test_without_a_database_the_sender_is_asked_to_come_back(door: Door) -> None:
    services = door.house.services
    real = services.database
    nowhere = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    vars(services)["database"] = nowhere
    try:
        refused, ready, alive = door.post("Words."), door.get("/readyz"), door.get("/healthz")
    finally:
        vars(services)["database"] = real
        nowhere.close()

    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["code"] == "database_unavailable"
    assert "127.0.0.1" not in refused.text
    assert (ready.status_code, alive.status_code) == (503, 200)
    assert door.house.all(models.delivery) == []
    assert door.post("Words.").status_code == 202


def test_a_fault_of_ours_is_told_without_its_insides(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(door.house.services.links, "create", broken)
    answer = door.post("Words.")

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "hunter2" not in answer.text
    assert door.house.all(models.delivery) == []


def test_a_revoked_key_opens_nothing(door: Door) -> None:
    key = new_key(door.house.services, name="ci", scopes=("episodes",))
    bearer = f"Bearer {key}"

    assert door.get("/v1/episodes", Authorization=bearer).status_code == 200
    assert door.get("/v1/episodes", Authorization=bearer[:-1]).status_code == 401
    assert door.get("/v1/episodes", Authorization=f"Basic {key}").status_code == 401
    assert door.get("/v1/episodes").status_code == 401


def test_a_stopped_episode_is_cancelled(door: Door) -> None:
    bearer = {"Authorization": f"Bearer {new_key(door.house.services, name='ci', scopes=())}"}
    key = door.post("Words.").json()["episode"]
    answer = requests.post(f"{door.url}/v1/episodes/{key}/stop", headers=bearer, timeout=20)

    assert answer.json()["status"] == "cancelled"
    assert door.house.row(key).state == "cancelled"


def test_the_newest_episodes_are_listed_first_and_by_status(door: Door) -> None:
    bearer = f"Bearer {new_key(door.house.services, name='ci', scopes=())}"
    keys = [door.post(f"Note {n}.", key=f"d{n}").json()["episode"] for n in range(3)]
    produce(door.house.services, door.house.hold())

    def listed(query: str) -> list[str]:
        answer = door.get(f"/v1/episodes?{query}", Authorization=bearer).json()
        return [one["id"] for one in answer["episodes"]]

    assert listed("") == keys[::-1]
    assert listed("limit=1") == [keys[2]]
    assert listed("status=done") == [keys[0]]
    assert listed("status=queued") == [keys[2], keys[1]]
    assert door.get("/v1/episodes?limit=0", Authorization=bearer).json()["error"]["field"] == (
        "/query/limit"
    )


def test_a_file_needs_a_ticket_for_it_or_a_link_that_still_works(door: Door) -> None:
    answer = door.post("Words.").json()
    key, token = answer["episode"], answer["listen_url"].partition("#t=")[2]
    produce(door.house.services, door.house.hold())
    maker = door.house.services.links
    path = f"/episodes/{key}.mp3"

    def ticket(of: str, now_s: float) -> str:
        return maker.file_url(of, "mp3", now_s=now_s).partition("?")[2]

    assert door.get(path).status_code == 401
    assert door.get(f"{path}?ticket=nonsense").status_code == 401
    assert door.get(f"{path}?{ticket(key, 0.0)}").status_code == 401, "it ran out long ago"
    assert door.get(f"{path}?{ticket('ses_other', time.time())}").status_code == 403
    assert door.get(f"{path}?ticket={token}").status_code == 403, "links do not go into addresses"
    assert door.get(f"{path}?{ticket(key, time.time())}").status_code == 200
    assert door.get(path, Authorization=f"Bearer {token}").status_code == 200
    assert door.get(f"/episodes/{key}.exe", Authorization=f"Bearer {token}").status_code == 404
    (link,) = door.house.all(models.listen_link)
    links.revoke(door.house.database, link.id)
    assert door.get(path, Authorization=f"Bearer {token}").status_code == 403


def test_the_player_page_runs_no_foreign_code(door: Door) -> None:
    page = door.get("/l/whatever")

    assert page.status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert "<script>" not in page.text


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, None),
        ("", None),
        ("bytes=0-", (0, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=10-999", (10, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=99-", (99, 100)),
        ("bytes=100-", (100, 100)),
        ("bytes=-0", (100, 100)),
        ("bytes=9-5", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=0-1,5-6", None),
        ("items=0-5", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_ranges_are_read_as_the_standard_says(
    header: str | None, found: tuple[int, int] | None
) -> None:
    assert byte_range(header, 100) == found


@pytest.mark.parametrize(
    ("field", "value"),
    [("text", "a\x00b"), ("title", "\x00"), ("voice", "\x00"), ("duration", "soon"), ("lang", "e")],
)
def test_a_text_that_cannot_be_kept_is_refused_by_its_field(
    door: Door, house: House, field: str, value: str
) -> None:
    key = new_key(house.services, name="test", scopes=("episodes",))
    body = {"text": "Hello.", field: value}
    answer = requests.post(
        f"{door.url}/v1/episodes", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=20
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == f"/{field}"
