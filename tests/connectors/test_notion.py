"""Notion against the fake: handshake, events, the minute trap, pages as Markdown, writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.base import Cursor, Hook, NoteEvent, NotePatch, NoteRef, Reply
from connectors.errors import Malformed, Rejected, ToolRefused, ToolUnavailable, WrongColumn
from connectors.fake.notion import BOT, DATA_SOURCE, DATABASE, PAGE, SAMPLE, FakeNotion
from connectors.fake.server import Fake
from connectors.fake.world import Column, Link, Table, World
from connectors.notion import Notion
from connectors.pace import Pace
from connectors.registry import make_connector
from connectors.signing import sign_notion, verify_notion

NOW = datetime(2026, 11, 20, 1, 30, 6, tzinfo=UTC)
VERIFICATION = "secret_demo_verification"
LINK = "https://notes.example/l/8f2c"
OUTPUT = {
    "status": "Status",
    "link": "Listen",
    "audio": "Audio",
    "error": "Error",
    "duration": "Length",
}


class Clock:
    """The world's time; moved by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now.timestamp()


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls need not keep their distance here."""
    monkeypatch.setattr(Pace, "wait", lambda _self: None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> Iterator[Fake]:
    with Fake([FakeNotion], world=World(clock), retry_s=()).running() as fake:
        tool = fake.tool(FakeNotion)
        tool.budget.limit = 1000
        tool.hook_url = "http://127.0.0.1:1/hooks/minutes"
        yield fake


@pytest.fixture
def tool(fake: Fake) -> FakeNotion:
    return fake.tool(FakeNotion)


@pytest.fixture
def table(tool: FakeNotion) -> Table:
    tool.add_samples()
    (table,) = tool.world.tables.values()
    return table


@pytest.fixture
def notion(fake: Fake, table: Table) -> Iterator[Notion]:
    connector = connect(fake)
    yield connector
    connector._api.close()


def settings_of(**more: Any) -> dict[str, Any]:
    return {
        "data_source": DATA_SOURCE,
        "secrets": {"token": "ntn_demo_token", "verification": [VERIFICATION]},
        "trigger": {"column": "Status", "equals": "Ready"},
        "fields": {"title": "Name", "text": "@page"},
        "output": OUTPUT,
    } | more


def connect(fake: Fake, **more: Any) -> Notion:
    connector = make_connector("notion", "minutes", settings_of(base_url=fake.url, **more))
    assert isinstance(connector, Notion)
    return connector


def ref(page: str = PAGE) -> NoteRef:
    return NoteRef("minutes", DATA_SOURCE, "", page)


def hook_of(content: Any, *, token: str = VERIFICATION) -> Hook:
    body = json.dumps(content).encode()
    return Hook("POST", sign_notion(token, body), body, NOW)


def events_of(notion: Notion, content: Any) -> list[NoteEvent]:
    hook = hook_of(content)
    body = notion.verify(hook, now=NOW)
    assert isinstance(body, bytes)
    return notion.events(body, hook)


def edit(tool: FakeNotion, table: Table, page: str = PAGE, **cells: Any) -> dict[str, Any]:
    """A person edits; gives the event's content."""
    change = tool.world.edit(table, page, cells)
    assert change is not None
    (delivery,) = tool.events(change)
    content: dict[str, Any] = json.loads(delivery.body)
    return content


def walk(notion: Notion, cursor: Cursor) -> tuple[list[NoteEvent], Cursor]:
    events: list[NoteEvent] = []
    for page in notion.backfill(cursor):
        events += page.events
        cursor = page.cursor
    return events, cursor


def test_frozen_vector():
    assert sign_notion("secret_demo", b'{"id":"evt-demo"}') == {
        "x-notion-signature": "sha256="
        "c34ad00c99e38324d53f8b867579f84cc0a66efb438b5dfb0d284e5e29c10bb6"
    }


def test_handshake_leaves_a_pending_secret_and_never_an_active_one(
    notion: Notion, tool: FakeNotion
):
    tool.verification = "secret_new_token"
    delivery = tool.handshake()
    reply = notion.verify(Hook("POST", {}, delivery.body, NOW), now=NOW)
    event = edit(tool, next(iter(tool.world.tables.values())), Status="Ready")

    assert isinstance(reply, Reply)
    assert reply.status == 200
    assert reply.state == {"pending_secret": "secret_new_token"}
    with pytest.raises(Rejected):
        notion.verify(hook_of(event, token="secret_new_token"), now=NOW)

    notion.state = {"accepted": ["secret_new_token"]}
    assert notion.verify(hook_of(event, token="secret_new_token"), now=NOW)
    again = notion.verify(Hook("POST", {}, delivery.body, NOW), now=NOW)
    assert isinstance(again, Reply) and again.state == {}


@pytest.mark.parametrize(
    "body",
    [
        b'{"verification_token": 1}',
        b'{"verification_token": "short"}',
        b'{"verification_token": "secret_demo", "id": "evt"}',
        b'{"verification_token": "secret_\\u0000demo"}',
        b'["verification_token"]',
        b'{"verification_token": "' + b"x" * 2_000 + b'"}',
        b"verification_token" + b"[" * 900,
    ],
)
def test_odd_handshake_is_rejected(notion: Notion, body: bytes):
    with pytest.raises(Rejected):
        notion.verify(Hook("POST", {}, body, NOW), now=NOW)


def test_event_is_thin_and_names_changed_properties(notion: Notion, tool: FakeNotion, table: Table):
    content = edit(tool, table, Status="Ready")

    (event,) = events_of(notion, content)

    assert content["data"]["updated_properties"] == ["st%3Aa"]
    assert (event.delivery_key, event.ref, event.note) == (content["id"], ref(), None)
    assert event.changed == {"st:a"}
    assert not notion.is_echo(event.changed)


@pytest.mark.parametrize(
    ("age", "genuine"),
    [
        (timedelta(hours=47), True),
        (timedelta(hours=49), False),
        (timedelta(minutes=-4), True),
        (timedelta(minutes=-6), False),
    ],
)
def test_event_counts_for_two_days(notion: Notion, tool, table: Table, age, genuine: bool):
    content = edit(tool, table, Status="Ready")
    hook = hook_of(content)

    if genuine:
        assert notion.verify(hook, now=NOW + age) == hook.body
    else:
        with pytest.raises(Rejected, match="tolerance"):
            notion.verify(hook, now=NOW + age)


def test_own_edits_and_other_sources_are_left_out(notion: Notion, tool: FakeNotion, table: Table):
    notion.state = notion.upkeep({}, now=NOW, address="")
    content = edit(tool, table, Status="Ready")
    mine = content | {"authors": [{"id": BOT, "type": "bot"}]}
    both = content | {"authors": [{"id": BOT, "type": "bot"}, *content["authors"]]}
    other = json.loads(json.dumps(content))
    other["data"]["parent"]["data_source_id"] = DATABASE
    schema = content | {"type": "data_source.schema_updated"}
    comment = content | {"entity": {"id": "c", "type": "comment"}}

    assert notion.state["bot"] == BOT
    assert [len(events_of(notion, one)) for one in (mine, both, other, schema, comment)] == [
        0, 1, 0, 0, 0,
    ]  # fmt: skip
    assert notion.is_echo(frozenset({"li%b", "er~e"}))
    assert not notion.is_echo(frozenset({"li%b", "st:a"}))


def test_deleted_page_is_a_deleted_note(notion: Notion, tool: FakeNotion, table: Table):
    change = tool.world.delete(table, PAGE)
    (delivery,) = tool.events(change)

    (event,) = events_of(notion, json.loads(delivery.body))

    assert event.kind == "deleted"


def test_page_is_read_with_its_blocks_as_markdown(notion: Notion, tool, table: Table):
    tool.world.edit(table, PAGE, {"Status": "Ready"})

    (note,) = notion.read([ref()])

    assert (note.title, note.ready) == ("Weekly sync", True)
    assert note.text == (
        "# Decisions\n\n- Ship on Friday\n\n# Discussion\n\nAlice: The tests are green.\n\n"
        "Bob: Then I write the release note.\n\n# Action items\n\n"
        "- [ ] Bob writes the release note"
    )
    assert len(SAMPLE) == 7


def block(kind: str, content: dict[str, Any], block_id: str = "") -> dict[str, Any]:
    return {"object": "block", "id": block_id or kind, "type": kind, kind: content}


def test_long_page_is_read_to_its_end(notion: Notion, tool: FakeNotion, table: Table, fake: Fake):
    tool.write_page(PAGE, [f"- point {n}" for n in range(250)])

    (note,) = notion.read([ref()])

    assert note.text.splitlines() == [f"- point {n}" for n in range(250)]
    asked = [seen for seen in fake.seen if seen.path.endswith("/children")]
    assert [dict(seen.query).get("start_cursor") for seen in asked] == [None, "100", "200"]


def test_page_of_endless_blocks_is_too_long(notion: Notion, tool: FakeNotion, table: Table):
    tool.blocks[PAGE] = [block("toggle", {"rich_text": []}, f"t{n}") for n in range(100)]
    for n in range(100):
        tool.blocks[f"t{n}"] = [block("toggle", {"rich_text": []}, f"t{n}-{m}") for m in range(3)]
        for m in range(3):
            tool.blocks[f"t{n}-{m}"] = [block("paragraph", {"rich_text": []})]

    with pytest.raises(ToolRefused, match="too many blocks") as caught:
        list(notion.read([ref()]))

    assert caught.value.code == "too_long"


def test_short_throttling_is_waited_out_on_a_page_and_nowhere_else(
    notion: Notion, fake: Fake, table: Table
):
    throttled = {"status": 429, "headers": {"Retry-After": "0"}, "body": {"code": "rate_limited"}}
    fake.fail("GET /v1/blocks/*", times=2, **throttled)
    (note,) = notion.read([ref()])
    fake.fail("GET /v1/pages/*", **throttled)

    with pytest.raises(ToolUnavailable) as caught:
        list(notion.read([ref()]))

    assert note.text.startswith("# Decisions")
    assert caught.value.after_s == 0.0


def test_page_that_is_gone_or_elsewhere_is_left_out(notion: Notion, tool, table: Table, fake: Fake):
    trashed = {"in_trash": True, "id": PAGE, "properties": {}}
    moved = {"parent": {"type": "data_source_id", "data_source_id": DATABASE}, "id": PAGE}

    assert list(notion.read([ref("aaaaaaaa-0000-4000-8000-00000000dead")])) == []
    for page in (trashed, moved):
        fake.fail("GET /v1/pages/*", status=200, body=page)
        assert list(notion.read([ref()])) == []


def test_edits_in_the_minute_of_the_cursor_are_not_lost(
    notion: Notion, tool: FakeNotion, table: Table, clock: Clock
):
    first, cursor = walk(notion, Cursor())
    clock.now += timedelta(seconds=20)
    tool.world.edit(table, PAGE, {"Status": "Ready"})

    found, after = walk(notion, cursor)
    again, _ = walk(notion, after)
    clock.now += timedelta(hours=1)
    tool.world.add_row(table, "p2", {"Name": "Later", "Status": "Ready"})
    later, _ = walk(notion, after)

    assert first == []
    assert [event.ref.key for event in found] == [PAGE]
    assert [event.delivery_key for event in again] == [event.delivery_key for event in found]
    assert [event.ref.key for event in later] == [PAGE, "p2"]
    assert cursor == Cursor({"since": "2026-11-20T01:30:00.000Z"}, 120.0)


def test_walk_asks_for_two_minutes_before_the_cursor(notion: Notion, fake: Fake, table: Table):
    walk(notion, Cursor({"since": "2026-11-20T01:30:00.000Z"}))

    query = next(seen for seen in fake.seen if seen.path.endswith("/query"))
    assert query.json == {
        "sorts": [{"timestamp": "last_edited_time", "direction": "ascending"}],
        "page_size": 100,
        "filter": {
            "timestamp": "last_edited_time",
            "last_edited_time": {"on_or_after": "2026-11-20T01:28:00.000Z"},
        },
    }
    assert query.headers["notion-version"] == "2025-09-03"


def test_walk_of_many_pages_edited_in_one_minute_can_be_ended_and_goes_on(
    notion: Notion, tool: FakeNotion, table: Table
):
    for n in range(230):
        tool.world.add_row(table, f"p{n}", {"Name": str(n), "Status": "Ready"})
    cursor, found = Cursor(), []
    while True:
        page = next(notion.backfill(cursor))
        found += [event.ref.key for event in page.events]
        cursor = page.cursor
        if page.is_last:
            break

    assert sorted(found) == sorted(f"p{n}" for n in range(230))


def test_write_sets_each_kind_of_property(notion: Notion, table: Table):
    notion.write_back(ref(), NotePatch("a", "failed", LINK, error="too_long"))
    failed = dict(table.rows[PAGE].cells)
    notion.write_back(ref(), NotePatch("b", "done", LINK, f"{LINK}.mp3", duration_s=63.24))

    row = table.rows[PAGE].cells
    assert failed["er~e"] == "too_long: the notes are too long for one recording"
    assert "er~e" not in row
    assert (row["st:a"], row["ln=d"], row["title"]) == ("Done", 63.2, "Weekly sync")
    assert row["li%b"] == Link(LINK, LINK)
    assert row["au;c"] == Link("audio.mp3", f"{LINK}.mp3")


def test_text_and_select_properties_can_be_written_too(fake: Fake, tool: FakeNotion, table: Table):
    tool.status.clear()
    table.columns[2] = Column("li%b", "Listen")
    table.columns[3] = Column("au;c", "Audio")
    table.columns[4] = Column("ln=d", "Length")
    notion = connect(fake)

    notion.write_back(ref(), NotePatch("b", "done", LINK, f"{LINK}.mp3", duration_s=63.24))

    row = table.rows[PAGE].cells
    assert (row["st:a"], row["li%b"], row["ln=d"]) == ("Done", "Listen", "1:03")
    sent = fake.seen[-1].json["properties"]["Listen"]["rich_text"]
    assert sent == [{"type": "text", "text": {"content": "Listen", "link": {"url": LINK}}}]
    notion._api.close()


def test_status_without_our_words_is_found_by_check_and_refused_by_notion(
    notion: Notion, table: Table
):
    assert notion.problems() == []
    table.columns[1] = Column("st:a", "Status", "select", ("Draft", "Ready", "Done"))

    with pytest.raises(WrongColumn, match="cannot hold what we write"):
        notion.write_back(ref(), NotePatch("a", "queued", LINK))

    (problem,) = notion.problems()
    assert "'Status' lacks the options Queued, Live, Failed" in problem


def test_column_that_cannot_hold_audio_is_a_wrong_column(fake: Fake, table: Table):
    notion = connect(fake, output={"audio": "Length"})

    with pytest.raises(WrongColumn, match="'Length' is of type number"):
        notion.write_back(ref(), NotePatch("b", "done", LINK, f"{LINK}.mp3"))
    notion._api.close()


def test_column_named_by_id_survives_a_new_name(fake: Fake, tool: FakeNotion, table: Table):
    notion = connect(fake, output={"link": "li%b"})
    notion.write_back(ref(), NotePatch("a", "queued", LINK))
    table.columns[2] = Column("li%b", "Hear it", "link")

    notion.write_back(ref(), NotePatch("b", "queued", f"{LINK}2"))

    assert table.rows[PAGE].cells["li%b"] == Link(f"{LINK}2", f"{LINK}2")
    notion._api.close()


def test_unknown_property_is_named_with_the_nearest_one(fake: Fake, table: Table):
    notion = connect(fake, trigger={"column": "Statu", "equals": "Ready"})

    with pytest.raises(WrongColumn, match="no property 'Statu'; did you mean 'Status'"):
        list(notion.read([ref()]))
    notion._api.close()


def test_id_of_the_database_is_recognised(fake: Fake, table: Table):
    notion = connect(fake, data_source=DATABASE)

    with pytest.raises(ToolRefused, match=f"is a database; write data_source = .*{DATA_SOURCE}"):
        notion.columns()
    notion._api.close()


def test_database_without_the_connection_is_explained(notion: Notion, tool: FakeNotion):
    tool.shared = False

    with pytest.raises(ToolRefused, match="add the integration under Connections"):
        notion.write_back(ref(), NotePatch("a", "queued", LINK))


def test_conflict_is_tried_again(notion: Notion, fake: Fake):
    fake.fail("PATCH *", status=409, body={"code": "conflict_error"})

    with pytest.raises(ToolUnavailable):
        notion.write_back(ref(), NotePatch("a", "queued", LINK))


def test_budget_is_below_what_the_fake_enforces(notion: Notion, tool: FakeNotion, table: Table):
    tool.budget.limit = 1
    notion.columns()

    with pytest.raises(ToolUnavailable) as caught:
        notion.columns()

    written, read = notion.bucket(ref(), "write"), notion.bucket(None, "read")
    assert written.per_s + 2 * read.per_s <= 2.5
    assert caught.value.after_s is not None and caught.value.after_s >= 1
    assert "ntn_demo" not in written.name


def test_sample_is_the_first_ready_page(notion: Notion, tool: FakeNotion, table: Table):
    tool.world.add_row(table, "p2", {"Name": "Two", "Status": "Ready"})

    sample = notion.sample()

    assert sample is not None and sample.title == "Two"


@given(headers=st.dictionaries(st.just("x-notion-signature"), st.text()), body=st.binary())
def test_hostile_events_are_rejected_and_nothing_else(headers: dict[str, str], body: bytes):
    with pytest.raises(Rejected):
        verify_notion([VERIFICATION, "other-token"], headers, body)


@given(
    content=st.dictionaries(
        st.sampled_from(["id", "timestamp", "type", "entity", "authors", "data"]),
        st.none() | st.text() | st.integers() | st.lists(st.none()) | st.just({"id": "x"}),
    )
)
def test_odd_events_are_malformed(content: dict[str, Any]):
    notion = make_connector("notion", "minutes", settings_of())
    hook = hook_of(content)
    body = notion.verify(hook, now=NOW)
    assert isinstance(body, bytes)

    with pytest.raises(Malformed):
        notion.events(body, hook)


def test_pages_that_slip_from_answer_to_answer_are_found_by_the_next_walk(
    notion: Notion, tool: FakeNotion, table: Table, clock: Clock
):
    for n in range(230):
        tool.world.add_row(table, f"p{n}", {"Name": str(n), "Status": "Ready"})
    cursor, found = Cursor(), []
    for page in notion.backfill(cursor):
        found += [event.ref.key for event in page.events]
        cursor = page.cursor
        clock.now += timedelta(minutes=10)
        if "next" in cursor.value:  # the one to go on with moves to the end
            tool.world.edit(table, cursor.value["next"], {"Name": "edited"})
    assert len(found) < 230
    again, _ = walk(notion, cursor)

    assert {event.ref.key for event in again} == {f"p{n}" for n in range(230)}


def test_a_long_walk_over_pages_that_stay_ready_is_not_repeated_for_ever(
    notion: Notion, tool: FakeNotion, table: Table
):
    for n in range(130):
        tool.world.add_row(table, f"p{n}", {"Name": str(n), "Status": "Ready"})
    cursor = Cursor()
    for _ in range(4):
        _, cursor = walk(notion, cursor)

    assert cursor.value.keys() == {"since"}
    assert cursor.value["since"]
