"""The page of the fake tools: rows change by themselves, and a person can change them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from connectors.fake.feishu import FakeFeishu
from connectors.fake.server import Fake
from connectors.fake.world import File, Link, Message, Table
from tests.browser.cdp import Browser, Tab


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake([FakeFeishu], retry_s=()).running() as fake:
        fake.tool(FakeFeishu).add_samples()
        yield fake


@pytest.fixture
def table(fake: Fake) -> Table:
    (table,) = fake.world.tables.values()
    return table


@pytest.fixture
def tab(browser: Browser, fake: Fake) -> Iterator[Tab]:
    tab = browser.tab()
    tab.emulate(width=1280, height=800)
    tab.open(fake.url)
    tab.wait("document.querySelectorAll('tbody tr').length === 2")
    yield tab
    complaints = tab.complaints()
    tab.close()
    assert complaints == []


STATUS = "document.querySelector('tbody tr select')"


def test_a_row_changes_while_one_looks(fake: Fake, table: Table, tab: Tab) -> None:
    cells = {"播报状态": "播报中", "收听链接": Link("收听", "https://notes.example/l/1")}
    fake.world.edit(table, "recDemo01", cells, by="api")

    tab.wait(f"{STATUS}.value === '播报中' && {STATUS}.dataset.look === 'live'")
    assert tab.evaluate("document.querySelectorAll('td.changed').length") == 2
    assert tab.evaluate("document.querySelector('td.link a').href") == "https://notes.example/l/1"

    file = File("boxDemo", "notes.mp3", b"", "bascDemo01")
    fake.world.edit(table, "recDemo01", {"音频文件": (file,)}, by="api")
    tab.wait("document.querySelector('td.files audio') !== null")


def test_a_person_sets_a_row_ready(table: Table, tab: Tab) -> None:
    tab.evaluate(f"{STATUS}.value = '待播报'; {STATUS}.dispatchEvent(new Event('change'))")

    until = time.monotonic() + 10
    while table.rows["recDemo01"].cells.get("fldStatus") != "待播报" and time.monotonic() < until:
        time.sleep(0.02)
    assert table.rows["recDemo01"].cells["fldStatus"] == "待播报"


def test_a_cell_is_edited_with_the_keyboard_and_left_alone_meanwhile(
    fake: Fake, table: Table, tab: Tab
) -> None:
    tab.evaluate("document.querySelector('tbody td').focus()")
    tab.key("Enter", text="\r")
    tab.wait("document.activeElement.tagName === 'TEXTAREA'")
    fake.world.edit(table, "recDemo01", {"会议主题": "Theirs", "时长": 3.0})
    tab.wait("[...document.querySelectorAll('td.number')].some(cell => cell.textContent === '3')")
    tab.evaluate("document.activeElement.value = 'Mine'")
    tab.evaluate("document.activeElement.blur()")

    tab.wait("document.querySelector('tbody td').textContent === 'Mine'")
    assert table.rows["recDemo01"].cells["fldTitle"] == "Mine"


def test_what_people_write_is_never_markup(fake: Fake, table: Table, tab: Tab) -> None:
    text = "<img src=x onerror='window.hacked = 1'>"
    link = Link(text, "javascript:window.hacked=1")
    fake.world.edit(table, "recDemo01", {"会议主题": text, "收听链接": link})
    fake.world.post(Message("feishu", "demo", text, text, "javascript:window.hacked=1", text))

    tab.wait("document.querySelector('#messages li') !== null")

    assert tab.evaluate("document.querySelector('tbody td').textContent") == text
    assert tab.evaluate("document.querySelectorAll('img, a').length") == 0
    assert tab.evaluate("window.hacked") is None


def test_the_page_comes_back_after_a_break(fake: Fake, table: Table, tab: Tab) -> None:
    tab.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1,
             uploadThroughput=-1)  # fmt: skip
    fake.world.edit(table, "recDemo02", {"播报状态": "已完成"})
    tab.send("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1,
             uploadThroughput=-1)  # fmt: skip

    tab.wait("document.querySelectorAll('tbody tr select')[1].value === '已完成'", limit_s=30)
