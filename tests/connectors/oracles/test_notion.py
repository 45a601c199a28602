"""notion-client as judge: its requests are ours, and our fake suits it. It verifies no webhooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from connectors.base import Cursor, NotePatch, NoteRef
from connectors.fake.faults import Seen
from connectors.fake.notion import BOT, DATA_SOURCE, PAGE, FakeNotion
from connectors.fake.server import Fake
from connectors.notion import Notion
from connectors.pace import Pace
from connectors.registry import make_connector

pytestmark = pytest.mark.oracle

LINK = "https://notes.example/l/8f2c"


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls need not keep their distance here."""
    monkeypatch.setattr(Pace, "wait", lambda _self: None)


@pytest.fixture(scope="module")
def sdk() -> ModuleType:
    return pytest.importorskip("notion_client")


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake([FakeNotion], retry_s=()).running() as fake:
        fake.tool(FakeNotion).budget.limit = 1000
        fake.tool(FakeNotion).add_samples()
        yield fake


@pytest.fixture
def ours(fake: Fake) -> Iterator[Notion]:
    config = {
        "data_source": DATA_SOURCE,
        "base_url": fake.url,
        "secrets": {"token": "ntn_demo_token"},
        "trigger": {"column": "Status", "equals": "Ready"},
        "fields": {"title": "Name", "text": "@page"},
        "output": {
            "status": "Status", "link": "Listen", "audio": "Audio", "error": "Error",
            "duration": "Length",
        },
    }  # fmt: skip
    connector = make_connector("notion", "minutes", config)
    assert isinstance(connector, Notion)
    connector.schema()
    yield connector
    connector._api.close()


@pytest.fixture
def theirs(sdk: ModuleType, fake: Fake) -> Iterator[Any]:
    with sdk.Client(auth="ntn_demo_token", base_url=fake.url, retry=False) as client:
        yield client


def asked(seen: Seen) -> tuple[Any, ...]:
    """What two clients must agree on; the version stands in a header."""
    return (
        seen.method, seen.path, sorted(seen.query), seen.json, seen.headers["notion-version"],
        seen.headers["authorization"],
    )  # fmt: skip


def last(fake: Fake, call: Callable[[], Any]) -> tuple[Any, ...]:
    call()
    return asked(fake.seen[-1])


def test_pages_and_blocks_are_asked_for_alike(fake: Fake, ours: Notion, theirs: Any):
    (note,) = ours.read([NoteRef("minutes", DATA_SOURCE, "", PAGE)])
    ours_asked = [asked(seen) for seen in fake.seen[-2:]]
    fake.seen.clear()
    page = theirs.pages.retrieve(PAGE)
    blocks = theirs.blocks.children.list(PAGE, page_size=100)

    assert [asked(seen) for seen in fake.seen] == ours_asked
    assert page["properties"]["Name"]["title"][0]["plain_text"] == note.title == "Weekly sync"
    assert len(blocks["results"]) == 7


def test_source_is_asked_for_and_queried_alike(fake: Fake, ours: Notion, theirs: Any):
    cursor = Cursor({"since": "2026-11-20T01:30:00.000Z"}, 120.0)
    edited = {"on_or_after": "2026-11-20T01:28:00.000Z"}

    assert last(fake, lambda: theirs.data_sources.retrieve(DATA_SOURCE)) == last(
        fake, lambda: ours.columns()
    )
    assert last(
        fake,
        lambda: theirs.data_sources.query(
            DATA_SOURCE,
            sorts=[{"timestamp": "last_edited_time", "direction": "ascending"}],
            page_size=100,
            filter={"timestamp": "last_edited_time", "last_edited_time": edited},
        ),
    ) == last(fake, lambda: list(ours.backfill(cursor)))


def test_properties_are_written_alike(fake: Fake, ours: Notion, theirs: Any):
    ref = NoteRef("minutes", DATA_SOURCE, "", PAGE)
    properties = {
        "Status": {"status": {"name": "Done"}},
        "Listen": {"url": LINK},
        "Audio": {
            "files": [{"name": "audio.mp3", "type": "external", "external": {"url": f"{LINK}.mp3"}}]
        },
        "Error": {"rich_text": []},
        "Length": {"number": 63.2},
    }
    patch = NotePatch("k", "done", LINK, f"{LINK}.mp3", duration_s=63.2)

    assert last(fake, lambda: theirs.pages.update(PAGE, properties=properties)) == last(
        fake, lambda: ours.write_back(ref, patch)
    )


def test_own_user_is_asked_for_alike(fake: Fake, ours: Notion, theirs: Any):
    from datetime import UTC, datetime

    now = datetime(2026, 11, 20, tzinfo=UTC)

    assert last(fake, lambda: theirs.users.me()) == last(
        fake, lambda: ours.upkeep({}, now=now, address="")
    )
    assert theirs.users.me()["id"] == BOT


def test_it_understands_the_refusals_of_the_fake(sdk: ModuleType, fake: Fake, theirs: Any):
    with pytest.raises(sdk.APIResponseError) as caught:
        theirs.pages.update(PAGE, properties={"Nothing": {"url": LINK}})
    assert caught.value.code == sdk.APIErrorCode.ValidationError

    fake.tool(FakeNotion).budget.limit = 1
    with pytest.raises(sdk.APIResponseError) as caught:
        theirs.users.me()
    assert caught.value.code == sdk.APIErrorCode.RateLimited
