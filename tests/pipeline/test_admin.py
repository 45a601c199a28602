"""The admin page and the metrics, as a browser, a program and Prometheus get them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import websockets
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from pipeline import control, models
from pipeline.episodes import produce
from pipeline.up import new_key
from streaming.orders import Wish
from tests.pipeline.house import House, open_house
from tests.pipeline.test_web import Door


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template) as house:
        yield house


@pytest.fixture
def door(house: House) -> Iterator[Door]:
    door = Door(house)
    yield door
    door.close()


@pytest.fixture
def key(house: House) -> str:
    return new_key(house.services, name="ops", scopes=("admin",))


@pytest.fixture
def browser(door: Door, key: str) -> Iterator[requests.Session]:
    with requests.Session() as browser:
        browser.headers["Origin"] = door.url
        answer = browser.post(f"{door.url}/admin/login", {"key": key}, timeout=20)
        assert answer.url == f"{door.url}/admin"
        yield browser


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_stranger_is_led_to_the_login(door: Door) -> None:
    page = door.get("/admin")
    assert page.url == f"{door.url}/admin/login"
    assert "API key of an administrator" in page.text
    assert door.get("/admin/part").status_code == 401
    assert door.get("/admin/live").status_code == 401
    assert requests.post(f"{door.url}/admin/live/x/stop", timeout=20).status_code == 403


@pytest.mark.parametrize("scopes", [(), ("episodes",)])
def test_a_key_without_the_scope_does_not_open_it(
    door: Door, house: House, scopes: tuple[str, ...]
) -> None:
    other = new_key(house.services, name="bot", scopes=scopes)
    form = requests.post(
        f"{door.url}/admin/login", {"key": other}, headers={"Origin": door.url}, timeout=20
    )
    assert form.status_code == 401
    assert "not an administrator" in form.text
    assert not form.cookies
    assert door.get("/admin/live", **bearer(other)).status_code == 401


def test_a_login_from_another_page_is_refused(door: Door, key: str) -> None:
    answer = requests.post(
        f"{door.url}/admin/login",
        {"key": key},
        headers={"Origin": "https://evil.example"},
        timeout=20,
    )
    assert answer.status_code == 403


def test_the_cookie_is_for_the_admin_page_only_and_dies_with_its_key(
    door: Door, house: House, browser: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cookie,) = list(browser.cookies)
    assert cookie.path == "/admin"
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "strict"
    monkeypatch.setattr("pipeline.web.site.KEY_KEEP_S", 0.0)
    house.change(models.api_key, models.api_key.c.name == "ops", revoked_ms=1)
    assert browser.get(f"{door.url}/admin", timeout=20).url == f"{door.url}/admin/login"


def test_the_page_shows_what_waits_what_failed_and_escapes_titles(
    door: Door, house: House, browser: requests.Session
) -> None:
    house.accept("Hello.", title="<script>alert(1)</script>")
    dead = house.accept("Hello.", title="broken").accepted.episode
    house.change(
        models.episode, models.episode.c.key == dead, state="dead", error="no voice", ended_ms=1
    )
    page = browser.get(f"{door.url}/admin", timeout=20)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert "<script>alert" not in page.text
    assert "no voice" in page.text
    assert f'action="/admin/live/{dead}/retry"' in page.text
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert page.headers["Cache-Control"] == "no-store"


def test_the_page_needs_nothing_from_elsewhere(door: Door, browser: requests.Session) -> None:
    page = browser.get(f"{door.url}/admin", timeout=20)
    linked = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert linked
    for path in linked:
        assert path.startswith("/")
        assert browser.get(f"{door.url}{path}", timeout=20).status_code == 200, path


def test_stop_and_retry_do_what_they_say_and_are_audited(
    door: Door, house: House, browser: requests.Session
) -> None:
    episode = house.accept("Hello.", title="one").accepted.episode
    page = browser.post(f"{door.url}/admin/live/{episode}/stop", timeout=20)
    assert page.url == f"{door.url}/admin"
    assert house.row(episode).state == "cancelled"
    browser.post(f"{door.url}/admin/live/{episode}/retry", timeout=20)
    assert house.row(episode).state == "queued"
    actions = [(row.actor, row.action, row.object) for row in house.all(models.audit)]
    assert ("key:ops", "stop", episode) in actions
    assert ("key:ops", "revive", episode) in actions


def test_a_form_of_another_site_changes_nothing(
    door: Door, house: House, browser: requests.Session
) -> None:
    episode = house.accept("Hello.").accepted.episode
    answer = browser.post(
        f"{door.url}/admin/live/{episode}/stop",
        headers={"Origin": "https://evil.example"},
        timeout=20,
    )
    assert answer.status_code == 403
    assert house.row(episode).state == "queued"


def test_a_program_sees_and_acts_with_a_bearer_key(door: Door, house: House, key: str) -> None:
    episode = house.accept("Hello.", title="one").accepted.episode
    seen = door.get("/admin/live", **bearer(key)).json()
    assert [one["id"] for one in seen["queue"]] == [episode]
    url = f"{door.url}/admin/live/{episode}"
    assert requests.post(f"{url}/stop", headers=bearer(key), timeout=20).status_code == 204
    assert requests.post(f"{url}/stop", headers=bearer(key), timeout=20).status_code == 409
    assert requests.post(f"{url}/melt", headers=bearer(key), timeout=20).status_code == 422
    unknown = requests.post(f"{door.url}/admin/live/no/stop", headers=bearer(key), timeout=20)
    assert unknown.status_code == 404


@contextmanager
def listen(door: Door, url: str) -> Iterator[Any]:
    """A connection that has opened the session of a link."""
    token = url.partition("#t=")[2]
    sid = door.house.services.links.ring.verify(token, now=0).sid
    address = door.url.replace("http", "ws") + "/v1/live"
    with connect(address, subprotocols=[websockets.Subprotocol("notecast.v1")]) as socket:
        socket.send(f'{{"t":"hello","v":1,"token":"{token}"}}')
        assert '"welcome"' in socket.recv(20)
        socket.send(f'{{"t":"open","req":1,"sid":"{sid}"}}')
        socket.recv(20)
        yield socket


def test_listeners_are_counted_kicked_and_shut_out(door: Door, house: House, key: str) -> None:
    taken = house.accept("Hello there. And again.")
    produce(house.services, house.hold())
    with listen(door, taken.accepted.listen_url) as socket:
        seen = door.get("/admin/live", **bearer(key)).json()["listening"]
        assert seen["sessions"][taken.accepted.episode]["listeners"] == 1
        assert [one["listeners"] for one in seen["gateways"]] == [1]
        act = f"{door.url}/admin/live/{taken.accepted.episode}"
        assert requests.post(f"{act}/kick", headers=bearer(key), timeout=20).status_code == 204
        with pytest.raises(websockets.ConnectionClosed):
            while True:
                socket.recv(20)
    assert requests.post(f"{act}/revoke", headers=bearer(key), timeout=20).status_code == 204
    assert all(row.revoked_ms for row in house.all(models.listen_link))


def test_reports_are_pages_and_csv(door: Door, house: House, browser: requests.Session) -> None:
    house.accept("Hello.")
    page = browser.get(f"{door.url}/admin/reports/backlog", timeout=20)
    assert "select * from v_backlog" in page.text
    assert "realtime" in page.text
    table = browser.get(f"{door.url}/admin/reports/backlog.csv", timeout=20)
    assert table.headers["Content-Type"].startswith("text/csv")
    assert table.text.startswith("tenant,queue,")
    unknown = browser.get(f"{door.url}/admin/reports/nothing", timeout=20)
    assert unknown.status_code in (404, 422)
    assert "reports are" in unknown.json()["error"]["message"]


def scrape(door: Door, **headers: str) -> dict[str, Any]:
    answer = door.get("/metrics", **headers)
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        f"{sample.name}{sorted(sample.labels.items()) or ''}": sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_metrics_count_episodes_from_the_first_scrape_on(door: Door, house: House) -> None:
    house.accept("Hello.")
    before = scrape(door)
    assert before["notecast_sessions[('queue', 'realtime'), ('state', 'queued')]"] == 1
    assert not any(name.startswith("notecast_episodes_total") for name in before)
    produce(house.services, house.hold())
    after = scrape(door)
    assert after["notecast_episodes_total[('reason', ''), ('status', 'done')]"] == 1
    assert after["notecast_queue_wait_seconds_count[('queue', 'realtime')]"] == 1
    first = [name for name in after if name.startswith("notecast_ttfa_seconds_count")]
    stages = {name.split("'")[-2]: after[name] for name in first}
    assert stages == {"request_to_first_chunk": 1, "open_to_first_frame": 0, "click_to_sound": 0}
    assert after["notecast_log_bytes"] > 0
    assert after["notecast_database_up"] == 1


def test_metrics_count_orders_by_what_came_of_them(door: Door, house: House) -> None:
    sid = house.accept("Hello.").accepted.episode
    for at, wish in enumerate([Wish("pause"), Wish("resume"), Wish("speed", 1.5)]):
        control.order(house.services, sid, wish, actor="me", role="owner", order_key=str(at))
    found = scrape(door)
    counts = {name: found[name] for name in found if name.startswith("notecast_control_total")}
    assert counts == {
        "notecast_control_total[('op', 'pause'), ('result', 'done')]": 1,
        "notecast_control_total[('op', 'resume'), ('result', 'waiting')]": 1,
        "notecast_control_total[('op', 'speed'), ('result', 'waiting')]": 1,
    }


def test_metrics_are_for_this_machine_and_for_administrators(
    door: Door, house: House, key: str
) -> None:
    passed_on = {"X-Forwarded-For": "203.0.113.9"}
    assert door.get("/metrics", **passed_on).status_code == 401
    other = new_key(house.services, name="bot", scopes=("episodes",))
    assert door.get("/metrics", **passed_on, **bearer(other)).status_code == 401
    assert door.get("/metrics", **passed_on, **bearer(key)).status_code == 200


def test_the_dashboard_asks_only_for_metrics_that_exist(door: Door) -> None:
    dashboard = (Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json").read_text("utf-8")
    exposed = {
        line.split()[2] for line in door.get("/metrics").text.splitlines() if "# TYPE" in line
    }
    asked = set(re.findall(r"notecast_[a-z_]+|process_[a-z_]+", dashboard))
    missing = {re.sub("_(bucket|count|sum)$", "", name) for name in asked} - exposed
    assert asked
    assert not missing
