"""Airtable against the fake: the webhook's life, payload walks, records, limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.airtable import LIFE_S, Airtable
from connectors.base import Accepted, Cursor, Hook, NoteEvent, NotePatch, NoteRef
from connectors.errors import Malformed, Rejected, ToolRefused, ToolUnavailable, WrongColumn
from connectors.fake.airtable import BASE, STATES, TABLE, FakeAirtable
from connectors.fake.server import Fake
from connectors.fake.world import Column, Link, Table, World
from connectors.pace import Pace
from connectors.registry import make_connector
from connectors.signing import sign_airtable, verify_airtable

NOW = datetime(2026, 11, 20, 1, 30, 6, tzinfo=UTC)
ADDRESS = "http://127.0.0.1:1/hooks/sync"
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
    with Fake([FakeAirtable], world=World(clock), retry_s=()).running() as fake:
        tool = fake.tool(FakeAirtable)
        tool.budget.limit = 1000
        yield fake


@pytest.fixture
def tool(fake: Fake) -> FakeAirtable:
    return fake.tool(FakeAirtable)


@pytest.fixture
def table(tool: FakeAirtable) -> Table:
    table = tool.add_notes_table()
    for n in (1, 2, 3):
        cells = {"Title": f"Sync {n}", "Notes": f"Alice: {n}", "Status": "Draft"}
        tool.world.add_row(table, f"rec{n}", cells)
    return table


@pytest.fixture
def airtable(fake: Fake, table: Table) -> Iterator[Airtable]:
    connector = connect(fake)
    yield connector
    connector._api.close()


def connect(fake: Fake, **more: Any) -> Airtable:
    config = {
        "base": BASE,
        "table": TABLE,
        "base_url": fake.url,
        "secrets": {"token": "pat-demo-token"},
        "trigger": {"column": "Status", "equals": "Ready"},
        "fields": {"title": "Title", "text": "Notes"},
        "output": OUTPUT,
    } | more
    connector = make_connector("airtable", "sync", config)
    assert isinstance(connector, Airtable)
    return connector


def ref(key: str) -> NoteRef:
    return NoteRef("sync", BASE, TABLE, key)


def keep(airtable: Airtable, now: datetime = NOW) -> dict[str, Any]:
    """What the pipeline does: upkeep, then the new state is the connector's."""
    state = airtable.upkeep(dict(airtable.state), now=now, address=ADDRESS)
    airtable.state = state
    return state


def walk(airtable: Airtable, cursor: Cursor) -> tuple[list[NoteEvent], Cursor]:
    events: list[NoteEvent] = []
    for page in airtable.backfill(cursor):
        events += page.events
        cursor = page.cursor
    return events, cursor


def hook(delivery: Any) -> Hook:
    return Hook("POST", delivery.headers, delivery.body, NOW)


def test_frozen_vector():
    headers = sign_airtable("ZGVtby1tYWM=", b'{"base":{"id":"appDemo"}}')

    assert headers == {
        "x-airtable-content-mac": "hmac-sha256="
        "5c95e6b27d570985da7dcb1c0d106799eeb2d89d72a9240b587d3819c5ac34be"
    }


def test_first_upkeep_makes_a_webhook_that_watches_the_trigger_and_keeps_its_secret(
    airtable: Airtable, tool: FakeAirtable, fake: Fake
):
    state = keep(airtable)

    (webhook,) = tool.webhooks[BASE].values()
    assert state["webhook"] == webhook.id
    assert state["secrets"] == {"mac": [webhook.secret]}
    assert webhook.filters["watchDataInFieldIds"] == ["fldStatus"]
    assert webhook.filters["recordChangeScope"] == TABLE
    assert state["next_upkeep"] == NOW.timestamp() + LIFE_S / 2
    assert fake.seen[-1].method == "POST", "nothing that may fail comes after the secret"


def test_ping_is_a_walk_with_an_empty_answer(airtable: Airtable, tool: FakeAirtable, table: Table):
    keep(airtable)
    change = tool.world.edit(table, "rec1", {"Status": "Ready"})
    assert change is not None
    (webhook,) = tool.webhooks[BASE].values()
    delivery = tool.ping(BASE, webhook)

    (event,) = airtable.events(airtable.verify(hook(delivery), now=NOW), hook(delivery))
    reply = airtable.answer(Accepted("", "ignored", ""), Hook("POST", {}, b"{}", NOW))

    assert event.kind == "ping"
    assert webhook.id in event.delivery_key
    assert (reply.status, reply.body) == (200, b"")


def test_ping_without_a_known_secret_is_rejected(airtable: Airtable):
    body = b'{"base": {"id": "appDemo01"}}'

    with pytest.raises(Rejected):
        airtable.verify(Hook("POST", sign_airtable("ZGVtbw==", body), body, NOW), now=NOW)


def test_walk_gives_records_by_transaction_and_the_cursor_after_them(
    airtable: Airtable, tool: FakeAirtable, table: Table
):
    keep(airtable)
    first, cursor = walk(airtable, Cursor())
    tool.world.edit(table, "rec1", {"Status": "Ready"})
    tool.world.edit(table, "rec2", {"Status": "Ready"})
    tool.world.edit(table, "rec2", {"Status": "Draft"})
    tool.world.edit(table, "rec3", {"Title": "nobody watches this"})
    tool.world.delete(table, "rec3")

    events, after = walk(airtable, cursor)
    nothing, same = walk(airtable, after)

    assert first == nothing == []
    webhook = airtable.state["webhook"]
    assert [(event.delivery_key, event.kind) for event in events] == [
        (f"{webhook}/801/rec1", "changed"),
        (f"{webhook}/802/rec2", "changed"),
        (f"{webhook}/804/rec3", "deleted"),
    ]
    assert events[0].changed == {"fldStatus"}
    assert after == same == Cursor({"webhook": webhook, "payload": 5})


def test_walk_goes_on_while_there_is_more_and_each_page_has_its_cursor(
    airtable: Airtable, tool: FakeAirtable, table: Table
):
    keep(airtable)
    _, cursor = walk(airtable, Cursor())
    for n in range(120):
        tool.world.add_row(table, f"new{n}", {"Notes": "x", "Status": "Ready"})

    pages = list(airtable.backfill(cursor))
    resumed = list(airtable.backfill(pages[0].cursor))

    assert [len(page.events) for page in pages] == [50, 50, 20]
    assert [page.is_last for page in pages] == [False, False, True]
    assert [page.events for page in resumed] == [page.events for page in pages[1:]]


def test_row_set_ready_before_the_webhook_was_there_is_found(
    airtable: Airtable, tool: FakeAirtable, table: Table
):
    tool.world.edit(table, "rec2", {"Status": "Ready"})
    keep(airtable)

    events, cursor = walk(airtable, Cursor())

    (event,) = events
    assert event.ref.key == "rec2"
    assert event.note is not None and event.note.title == "Sync 2"
    assert cursor.value == {"webhook": airtable.state["webhook"], "payload": 1}


def test_change_during_the_first_walk_is_in_the_payloads(
    airtable: Airtable, tool: FakeAirtable, table: Table
):
    keep(airtable)
    pages = airtable.backfill(Cursor())
    (page,) = pages
    tool.world.edit(table, "rec1", {"Status": "Ready"})

    events, _ = walk(airtable, page.cursor)

    assert [event.ref.key for event in events] == ["rec1"]


def test_table_walk_can_be_ended_and_goes_on(airtable: Airtable, tool: FakeAirtable, table: Table):
    keep(airtable)
    for n in range(230):
        tool.world.add_row(table, f"new{n}", {"Notes": "x", "Status": "Ready"}, by="api")
    cursor = Cursor()
    found = []
    while True:
        page = next(airtable.backfill(cursor))
        found += [event.ref.key for event in page.events]
        cursor = page.cursor
        if page.is_last:
            break

    assert len(found) == len(set(found)) == 230
    assert cursor.value == {"webhook": airtable.state["webhook"], "payload": 231}


def test_payloads_that_are_gone_make_it_walk_the_table(
    airtable: Airtable, tool: FakeAirtable, table: Table
):
    keep(airtable)
    tool.world.edit(table, "rec1", {"Status": "Ready"})

    events, cursor = walk(airtable, Cursor({"webhook": airtable.state["webhook"], "payload": 99}))

    assert [event.ref.key for event in events] == ["rec1"]
    assert cursor.value["payload"] == 2


def test_without_a_webhook_the_table_is_walked(airtable: Airtable, tool, table: Table):
    tool.world.edit(table, "rec1", {"Status": "Ready"})

    events, cursor = walk(airtable, Cursor())
    again, _ = walk(airtable, cursor)

    assert [event.ref.key for event in events] == ["rec1"]
    assert [event.delivery_key for event in again] == [event.delivery_key for event in events]
    assert cursor.value == {"walk": 1}


def test_webhook_is_refreshed_at_half_of_its_life_and_lives_on(
    airtable: Airtable, tool: FakeAirtable, clock: Clock
):
    keep(airtable)
    for _ in range(6):
        clock.now += timedelta(days=3.5)
        state = keep(airtable, clock.now)

    (webhook,) = tool.webhooks[BASE].values()
    assert webhook.expires_s == clock() + LIFE_S
    assert state["next_upkeep"] == clock() + LIFE_S / 2


def test_expired_webhook_is_replaced_and_its_rows_are_not_lost(
    airtable: Airtable, tool: FakeAirtable, clock: Clock, table: Table
):
    old = keep(airtable)
    _, cursor = walk(airtable, Cursor())
    clock.now += timedelta(days=8)
    tool.world.edit(table, "rec1", {"Status": "Ready"})

    new = keep(airtable, clock.now)
    events, _ = walk(airtable, cursor)
    keep(airtable, clock.now)

    assert new["webhook"] != old["webhook"]
    assert new["secrets"]["mac"][1:] == old["secrets"]["mac"]
    assert [event.ref.key for event in events] == ["rec1"]
    assert list(tool.webhooks[BASE]) == [new["webhook"]]
    assert len(airtable.state["secrets"]["mac"]) == 1


def test_webhook_that_was_deleted_by_hand_is_made_again(airtable: Airtable, tool: FakeAirtable):
    keep(airtable)
    tool.webhooks[BASE].clear()

    state = keep(airtable)

    assert list(tool.webhooks[BASE]) == [state["webhook"]]


def test_pings_that_were_switched_off_are_switched_on_again(airtable: Airtable, tool: FakeAirtable):
    keep(airtable)
    (webhook,) = tool.webhooks[BASE].values()
    webhook.pings = False

    keep(airtable)

    assert webhook.pings


def test_webhook_whose_secret_was_lost_in_a_crash_is_deleted(
    airtable: Airtable, tool: FakeAirtable
):
    for _ in range(3):
        airtable.upkeep({}, now=NOW, address=ADDRESS)

    assert len(tool.webhooks[BASE]) == 1


def test_other_peoples_webhooks_are_left_alone(airtable: Airtable, tool: FakeAirtable):
    keep(airtable)
    (mine,) = tool.webhooks[BASE].values()
    mine.url = "https://somebody.example/hook"
    airtable.state = {}

    keep(airtable)

    assert mine.id in tool.webhooks[BASE]
    assert len(tool.webhooks[BASE]) == 2


def test_new_trigger_column_makes_a_new_webhook(airtable: Airtable, fake: Fake, table: Table):
    state = keep(airtable)
    table.columns.append(Column("fldSpeak", "Speak", "checkbox"))
    other = connect(fake, trigger={"column": "Speak", "equals": True})
    other.state = state

    renewed = keep(other)

    assert renewed["webhook"] != state["webhook"]
    assert renewed["wanted"]["field"] == "fldSpeak"
    other._api.close()


def test_failed_renewal_is_raised_for_the_alarm(airtable: Airtable, fake: Fake):
    keep(airtable)
    fake.fail("POST *refresh", status=403, body={"error": {"type": "INVALID_PERMISSIONS"}})

    with pytest.raises(ToolRefused, match="give it the scopes"):
        keep(airtable)


def test_address_that_airtable_cannot_reach_is_named_before_it_is_asked():
    config = {
        "base": BASE, "table": TABLE, "secrets": {"token": "t"},
        "trigger": {"column": "S", "equals": "R"}, "fields": {"text": "N"},
    }  # fmt: skip

    with pytest.raises(ToolRefused, match="set public_url"):
        make_connector("airtable", "sync", config).upkeep({}, now=NOW, address=ADDRESS)


def test_records_are_read_by_id_and_blanks_are_empty(
    airtable: Airtable, tool: FakeAirtable, table: Table, fake: Fake
):
    tool.world.add_row(table, "recBlank", {"Status": "Ready"})
    tool.world.edit(table, "rec1", {"Status": "Ready"})

    notes = {note.ref.key: note for note in airtable.read([ref(k) for k in ("rec1", "recBlank")])}
    (one,) = airtable.read([ref("rec1")])
    gone = list(airtable.read([ref("recGone")]))

    assert notes["rec1"] == one
    assert (one.title, one.text, one.ready) == ("Sync 1", "Alice: 1", True)
    assert (notes["recBlank"].text, notes["recBlank"].ready) == ("", False)
    assert gone == []


def test_renamed_column_goes_on_working_and_a_deleted_one_is_named(
    airtable: Airtable, tool: FakeAirtable, table: Table, fake: Fake
):
    list(airtable.read([ref("rec1")]))
    table.columns[1] = Column("fldNotes", "Minutes")
    (note,) = airtable.read([ref("rec1")])
    late = connect(fake)

    with pytest.raises(WrongColumn, match="no column 'Notes'; "):
        list(late.read([ref("rec1")]))

    assert note.text == "Alice: 1"
    late._api.close()


def test_write_patches_the_output_fields_only(airtable: Airtable, table: Table, fake: Fake):
    patch = NotePatch("ep_1/done", "done", LINK, f"{LINK}.mp3", duration_s=63.24)

    airtable.write_back(ref("rec1"), patch)

    row = table.rows["rec1"].cells
    assert (row["fldStatus"], row["fldLength"]) == ("Done", 63.2)
    assert row["fldListen"] == Link(LINK, LINK)
    assert row["fldAudio"] == Link("audio.mp3", f"{LINK}.mp3")
    assert row["fldTitle"] == "Sync 1"
    assert fake.seen[-1].json["typecast"] is False
    assert fake.seen[-1].json["fields"]["fldError"] is None


def test_missing_option_is_a_wrong_column_and_check_says_so_before(
    airtable: Airtable, table: Table, fake: Fake
):
    assert airtable.problems() == []
    table.columns[2] = Column("fldStatus", "Status", "select", ("Draft", "Ready", "Done"))

    with pytest.raises(WrongColumn, match="add our words to the select column"):
        airtable.write_back(ref("rec1"), NotePatch("k", "queued", LINK))

    (problem,) = airtable.problems()
    assert "'Status' lacks the options Queued, Live, Failed" in problem


def test_own_writes_make_no_payload_unless_they_touch_the_trigger(
    airtable: Airtable, tool: FakeAirtable, table: Table, fake: Fake
):
    keep(airtable)
    _, cursor = walk(airtable, Cursor())
    quiet = connect(fake, output={"link": "Listen"})
    quiet.write_back(ref("rec1"), NotePatch("k", "queued", LINK))
    (webhook,) = tool.webhooks[BASE].values()
    assert webhook.payloads == []

    airtable.write_back(ref("rec1"), NotePatch("k", "queued", LINK))
    events, _ = walk(airtable, cursor)

    assert len(webhook.payloads) == 1
    assert events == []
    assert airtable.is_echo(frozenset({"fldListen", "fldError"}))
    assert not airtable.is_echo(frozenset({"fldStatus"}))
    quiet._api.close()


def test_base_that_was_called_too_often_asks_for_half_a_minute(
    airtable: Airtable, tool: FakeAirtable
):
    tool.budget.limit = 2
    list(airtable.read([ref("rec1")]))

    with pytest.raises(ToolUnavailable) as caught:
        list(airtable.read([ref("rec1")]))

    assert caught.value.after_s == 30.0
    assert airtable.bucket(ref("rec1")).per_s < 5


@pytest.mark.parametrize(
    ("status", "error", "cure"),
    [
        (401, "AUTHENTICATION_REQUIRED", "airtable.com/create/tokens"),
        (403, "INVALID_PERMISSIONS_OR_MODEL_NOT_FOUND", "no such base or table"),
        (422, "UNKNOWN_FIELD_NAME", "UNKNOWN_FIELD_NAME"),
    ],
)
def test_refusals_name_the_cure(airtable: Airtable, fake: Fake, status, error, cure):
    fake.fail("GET *", status=status, body={"error": {"type": error, "message": "m"}}, times=9)

    with pytest.raises(ToolRefused, match=cure):
        list(airtable.read([ref("rec1")]))


def test_unknown_table_is_named_with_the_nearest_one(fake: Fake, table: Table):
    airtable = connect(fake, table="Note")

    with pytest.raises(ToolRefused, match="did you mean 'Notes'"):
        airtable.columns()
    airtable._api.close()


def test_sample_is_the_first_ready_record(airtable: Airtable, tool, table: Table):
    tool.world.edit(table, "rec3", {"Status": "Ready"})

    sample = airtable.sample()

    assert sample is not None and sample.ref.key == "rec3"


def test_states_of_the_sample_table_are_the_words_we_write(airtable: Airtable):
    assert set(airtable.table.labels.values()) <= set(STATES)


@given(headers=st.dictionaries(st.just("x-airtable-content-mac"), st.text()), body=st.binary())
def test_hostile_pings_are_rejected_and_nothing_else(headers: dict[str, str], body: bytes):
    with pytest.raises(Rejected):
        verify_airtable(["ZGVtby1tYWM=", "b3RoZXI="], headers, body)


@given(content=st.recursive(st.none() | st.text() | st.integers(), st.lists))
def test_odd_pings_are_malformed(content: Any):
    config = {
        "base": BASE, "table": TABLE, "secrets": {"token": "t"},
        "trigger": {"column": "S", "equals": "R"}, "fields": {"text": "N"},
    }  # fmt: skip
    body = json.dumps(content).encode()

    with pytest.raises(Malformed):
        make_connector("airtable", "sync", config).events(body, Hook("POST", {}, body, NOW))
