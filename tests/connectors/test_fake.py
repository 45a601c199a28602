"""The fake tools' server: its page, its hooks, its unkindness."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import requests

from connectors.base import Hook, NotePatch, NoteRef, Reply
from connectors.errors import ToolUnavailable
from connectors.fake.faults import Window
from connectors.fake.feishu import BASE, TABLE, FakeFeishu
from connectors.fake.server import Fake
from connectors.fake.tools import TOOLS
from connectors.fake.world import Column, Link, Table, World
from connectors.feishu import Feishu
from connectors.registry import make_connector


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake([FakeFeishu], retry_s=(0.01, 0.01)).running() as fake:
        fake.tool(FakeFeishu).add_samples()
        yield fake


@pytest.fixture
def table(fake: Fake) -> Table:
    (table,) = fake.world.tables.values()
    return table


def edit(fake: Fake, **cells: str) -> requests.Response:
    body = {
        "tool": "feishu", "container": BASE, "table": TABLE, "row": "recDemo01", "cells": cells,
    }  # fmt: skip
    return requests.put(f"{fake.url}/_fake/rows", json=body, timeout=10)


def test_the_page_and_what_it_is_made_of_are_there(fake):
    page = requests.get(fake.url, timeout=10).text

    for name in ("tables.css", "tables.js"):
        assert f"/_fake/static/{name}" in page
        assert requests.get(f"{fake.url}/_fake/static/{name}", timeout=10).ok
    state = requests.get(f"{fake.url}/_fake/state", timeout=10).json()
    assert state["tools"] == {"feishu": "Feishu Bitable"}
    assert [row["id"] for row in state["tables"][0]["rows"]] == ["recDemo01", "recDemo02"]
    assert fake.seen == []


def test_the_page_hears_of_each_change_after_the_state_it_began_with(fake, table):
    with requests.get(f"{fake.url}/_fake/live", stream=True, timeout=10) as feed:
        lines = feed.iter_lines(chunk_size=1, decode_unicode=True)
        events = ((next(lines), json.loads(next(lines)[6:]), next(lines)) for _ in range(3))
        kind, state, _ = next(events)
        assert (kind, len(state["tables"])) == ("event: state", 1)

        fake.world.edit(table, "recDemo01", {"收听链接": Link("收听", "https://a")}, by="api")
        kind, told, _ = next(events)
        assert (kind, told["changed"], told["by"]) == ("event: row", ["fldLink"], "api")
        assert told["row"]["cells"]["fldLink"] == {"text": "收听", "url": "https://a"}
        fake.world.delete(table, "recDemo01")
        kind, told, _ = next(events)
        assert (kind, told["row"]) == ("event: gone", "recDemo01")


def test_the_end_of_the_server_does_not_wait_for_open_pages():
    with Fake([FakeFeishu]).running() as fake:
        feed = requests.get(f"{fake.url}/_fake/live", stream=True, timeout=10)
        assert feed.raw.read1(1)

    feed.close()
    with pytest.raises(requests.ConnectionError):
        requests.get(fake.url, timeout=10)


def test_a_person_edits_through_the_page(fake, table):
    assert edit(fake, fldStatus="待播报", fldSeconds="3", fldHost="李雷, Ann", fldNotes="").ok

    cells = table.rows["recDemo01"].cells
    assert cells["fldStatus"] == "待播报"
    assert cells["fldSeconds"] == 3.0
    assert cells["fldHost"] == ("李雷", "Ann")
    assert "fldNotes" not in cells
    assert edit(fake, fldSeconds="many").status_code == 422
    assert edit(fake, fldAudio="x").status_code == 422
    assert edit(fake, nothing="x").status_code == 404


def feishu(fake: Fake) -> Feishu:
    tool = fake.tool(FakeFeishu)
    config = {
        "base_url": fake.url,
        "base": BASE,
        "table": TABLE,
        "secrets": {
            "app_id": tool.app_id,
            "app_secret": tool.app_secret,
            "encrypt_key": tool.encrypt_key,
            "token": tool.token,
        },
        "trigger": {"column": "播报状态", "equals": "待播报"},
        "fields": {"text": "会议纪要"},
        "output": {"status": "播报状态", "link": "收听链接"},
    }
    made = make_connector("feishu", "zhou_hui", config)
    assert isinstance(made, Feishu)
    return made


def test_a_hook_hears_of_a_persons_edit_and_of_our_own_write(fake, table, tool):
    door = feishu(fake)
    door.upkeep({}, now=datetime.now(UTC), address="")
    fake.tool(FakeFeishu).hook_url = tool.url
    for _ in range(2):
        tool.answers(200, {})

    edit(fake, fldStatus="待播报")
    patch = NotePatch("1", "queued", "https://notes.example/l/1")
    door.write_back(NoteRef("z", BASE, TABLE, "recDemo01"), patch)
    assert fake.courier.settle()

    changed = []
    for headers, body in tool.requests:
        hook = Hook("POST", headers, body, datetime.now(UTC))
        verified = door.verify(hook, now=hook.received_at)
        assert isinstance(verified, bytes)
        changed += [one.changed for one in door.events(verified, hook)]
    assert changed == [{"fldStatus"}, {"fldStatus", "fldLink"}]


def test_a_base_that_is_not_subscribed_tells_nobody(fake, table, tool):
    fake.tool(FakeFeishu).hook_url = tool.url

    edit(fake, fldStatus="待播报")

    assert fake.courier.settle()
    assert tool.requests == []


def test_what_a_hook_does_not_take_is_brought_again(fake, table, tool):
    fake.tool(FakeFeishu).subscribed.add(BASE)
    fake.tool(FakeFeishu).hook_url = tool.url
    tool.answers(500, {})
    tool.answers(503, {})
    tool.answers(200, {})

    edit(fake, fldStatus="待播报")

    deadline = time.monotonic() + 10
    while len(fake.courier.outcomes) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [one.status for one in fake.courier.outcomes] == [500, 503, 200]
    assert len({body for _, body in tool.requests}) == 1


def test_events_can_be_lost_on_purpose(fake, table, tool):
    fake.tool(FakeFeishu).subscribed.add(BASE)
    fake.tool(FakeFeishu).hook_url = tool.url
    fake.courier.is_open = False

    edit(fake, fldStatus="待播报")

    assert fake.courier.settle()
    assert fake.courier.outcomes == []


def test_a_hook_that_nobody_answers_is_an_outcome_too(fake, table):
    fake.tool(FakeFeishu).subscribed.add(BASE)
    fake.tool(FakeFeishu).hook_url = "http://127.0.0.1:9/"

    edit(fake, fldStatus="待播报")

    deadline = time.monotonic() + 10
    while not fake.courier.outcomes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fake.courier.outcomes[0].status == 0


def test_the_challenge_of_the_fake_is_answered(fake):
    tool = fake.tool(FakeFeishu)
    delivery = tool.deliver(tool.challenge())

    reply = feishu(fake).verify(
        Hook("POST", delivery.headers, delivery.body, datetime.now(UTC)), now=datetime.now(UTC)
    )

    assert isinstance(reply, Reply)
    assert reply.status == 200


def test_a_fault_comes_as_often_as_it_was_ordered(fake):
    fault = {"on": "GET */fields", "status": 503, "headers": {"Retry-After": "2"}, "times": 2}
    requests.post(f"{fake.url}/_fake/faults", json=fault, timeout=10).raise_for_status()
    door = feishu(fake)

    for _ in range(2):
        with pytest.raises(ToolUnavailable) as caught:
            door.columns()
        assert caught.value.after_s == 2.0
    assert door.columns()


def test_more_writes_than_the_budget_allows_are_refused_with_a_wait(fake, table):
    fake.tool(FakeFeishu).updates = Window(2, 60.0)
    fake.tool(FakeFeishu).write_s = 0.0
    door = feishu(fake)
    ref = NoteRef("z", BASE, TABLE, "recDemo01")

    for n in range(2):
        door.write_back(ref, NotePatch(str(n), "queued", f"https://a/{n}"))
    with pytest.raises(ToolUnavailable, match="fewer calls") as caught:
        door.write_back(ref, NotePatch("3", "live"))

    assert caught.value.after_s is not None
    assert 50 < caught.value.after_s <= 60


def test_a_window_counts_each_key_apart_and_forgets():
    clock = [0.0]
    window = Window(2, 1.0, clock=lambda: clock[0])

    taken = [window.take("a"), window.take("a"), window.take("a"), window.take("b")]
    clock[0] = 1.0

    assert taken == [0.0, 0.0, 1.0, 0.0]
    assert window.take("a") == 0.0
    assert window.refused == 1


def test_the_world_tells_changes_in_order_and_only_changes():
    world = World()
    table = world.add_table("t", "c", "i", "Notes", [Column("a", "A"), Column("b", "B")])
    told: list[int] = []
    world.observers.append(lambda event: told.append(event.revision))
    world.add_row(table, "r", {"A": "1"})

    assert world.edit(table, "r", {"A": "1"}) is None
    threads = [
        threading.Thread(target=world.edit, args=(table, "r", {"B": str(n)})) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert told == sorted(told)
    assert table.revision == told[-1]
    with pytest.raises(KeyError):
        world.edit(table, "r", {"C": "1"})


def test_all_tools_live_side_by_side_and_fill_in_samples():
    with Fake(TOOLS).running() as fake:
        for tool in fake.tools.values():
            tool.add_samples()

        assert len(fake.tools) == len(TOOLS)
        assert requests.get(f"{fake.url}/_fake/state", timeout=10).json()["tables"]
