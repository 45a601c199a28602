"""Google Sheets against the fake: rows by key, writes as they are, rows that move meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.base import Cursor, Hook, NotePatch, NoteRef
from connectors.errors import ConfigError, Malformed, Rejected, ToolRefused, ToolUnavailable
from connectors.fake.google_sheets import EMAIL, SECRET, SHEET, FakeGoogleSheets
from connectors.fake.server import Fake
from connectors.fake.world import Column, Table
from connectors.google_sheets import GoogleSheets
from connectors.registry import make_connector
from connectors.signing import sign_webhook

NOW = datetime(2026, 11, 20, 1, 30, 6, tzinfo=UTC)
LINK = "https://notes.example/l/8f2c"
QUEUED = NotePatch("ep_1/queued", "queued", LINK)
OUTPUT = {
    "status": "Status",
    "link": "Listen",
    "audio": "Audio",
    "error": "Error",
    "duration": "Length",
}


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake([FakeGoogleSheets], retry_s=()).running() as fake:
        yield fake


@pytest.fixture
def tool(fake: Fake) -> FakeGoogleSheets:
    return fake.tool(FakeGoogleSheets)


@pytest.fixture
def table(tool: FakeGoogleSheets) -> Table:
    table = tool.add_notes_tab()
    for n in (1, 2, 3):
        cells = {"Title": f"Sync {n}", "Notes": f"Alice: {n}", "Status": "Ready"}
        tool.world.add_row(table, f"r{n}", {**cells, "notecast_id": f"k-{n}"})
    return table


@pytest.fixture
def sheets(fake: Fake, tool: FakeGoogleSheets, table: Table) -> Iterator[GoogleSheets]:
    connector = connect(fake)
    yield connector
    connector._api.close()


def config(url: str, key_file: str, **more: Any) -> dict[str, Any]:
    return {
        "sheet": SHEET,
        "tab": "Notes",
        "base_url": url,
        "secrets": {"webhook": [SECRET], "service_account": key_file},
        "trigger": {"column": "Status", "equals": "Ready"},
        "fields": {"title": "Title", "text": "Notes"},
        "output": OUTPUT,
    } | more


def connect(fake: Fake, **more: Any) -> GoogleSheets:
    key_file = fake.tool(FakeGoogleSheets).key_file(fake.url)
    connector = make_connector("google_sheets", "sync", config(fake.url, key_file, **more))
    assert isinstance(connector, GoogleSheets)
    return connector


def ref(key: str) -> NoteRef:
    return NoteRef("sync", SHEET, "Notes", key)


def cells(table: Table, row: str) -> dict[str, Any]:
    names = {column.id: column.name for column in table.columns}
    return {names[key]: value for key, value in table.rows[row].cells.items()}


def calls(fake: Fake) -> list[str]:
    return [f"{seen.method} {seen.path.rpartition('/')[2]}" for seen in fake.seen]


def test_rows_are_read_by_key_in_two_calls(fake: Fake, sheets: GoogleSheets):
    notes = list(sheets.read([ref("k-3"), ref("k-1"), ref("gone")]))
    fake.seen.clear()
    again = list(sheets.read([ref("k-2")]))

    assert [(note.ref.key, note.title, note.text, note.ready) for note in notes] == [
        ("k-3", "Sync 3", "Alice: 3", True),
        ("k-1", "Sync 1", "Alice: 1", True),
    ]
    assert again[0].title == "Sync 2"
    assert calls(fake) == ["GET values:batchGet", "GET values:batchGet"]


def test_many_rows_of_a_tab_with_a_long_name_do_not_make_a_long_address(
    fake: Fake, tool: FakeGoogleSheets
):
    name = "会议纪要" * 10
    table = tool.add_notes_tab(tab=name)
    for n in range(100):
        tool.world.add_row(table, f"r{n}", {"Notes": str(n), "notecast_id": f"k-{n}"})
    sheets = connect(fake, tab=name)

    notes = list(sheets.read([NoteRef("sync", SHEET, name, f"k-{n}") for n in range(100)]))

    assert [note.text for note in notes] == [str(n) for n in range(100)]
    longest = max(
        len(quote(value)) * len(seen.query) for seen in fake.seen for _, value in seen.query
    )
    assert longest < 8_000
    sheets._api.close()


def test_ragged_rows_are_padded(sheets: GoogleSheets, table: Table, fake: Fake):
    fake.world.edit(table, "r2", {"Title": "", "Notes": "only text"}, by="api")

    (note,) = sheets.read([ref("k-2")])

    assert (note.title, note.text) == ("", "only text")


def test_write_is_raw_and_two_calls(fake: Fake, sheets: GoogleSheets, table: Table):
    sheets.write_back(ref("k-2"), QUEUED)
    fake.seen.clear()
    failed = NotePatch("ep_1/failed", "failed", LINK, error="=1+1")
    sheets.write_back(ref("k-2"), failed)

    shown = cells(table, "r2")
    assert (shown["Status"], shown["Listen"]) == ("Failed", LINK)
    assert shown["Error"].startswith("=1+1: ")
    assert cells(table, "r1")["Status"] == "Ready"
    assert calls(fake) == ["GET values:batchGet", "POST values:batchUpdate"]
    assert fake.seen[-1].json["valueInputOption"] == "RAW"


def test_done_shows_audio_and_length_and_clears_the_error(sheets: GoogleSheets, table: Table):
    sheets.write_back(ref("k-1"), NotePatch("a", "failed", LINK, error="too_long"))
    sheets.write_back(ref("k-1"), NotePatch("b", "done", LINK, f"{LINK}.mp3", duration_s=63.2))

    shown = cells(table, "r1")
    assert (shown["Audio"], shown["Length"], shown["Status"]) == (f"{LINK}.mp3", "1:03", "Done")
    assert "Error" not in shown


@pytest.mark.parametrize("echoes", [True, False])
def test_row_that_moves_between_look_and_write_is_found_and_the_other_put_right(
    tool: FakeGoogleSheets, sheets: GoogleSheets, table: Table, echoes: bool
):
    tool.echoes = echoes
    tool.world.edit(table, "r1", {"Listen": "old link"}, by="api")
    tool.meanwhile = lambda: tool.insert_row(table, 2, "new", {"Title": "Inserted"})

    sheets.write_back(ref("k-2"), QUEUED)

    assert cells(table, "r2")["Listen"] == LINK
    assert cells(table, "r2")["Status"] == "Queued"
    assert cells(table, "r1")["Listen"] == "old link"
    assert cells(table, "r1")["Status"] == "Ready"
    assert cells(table, "new") == {"Title": "Inserted"}


def test_write_that_hits_a_row_without_a_key_is_undone(
    tool: FakeGoogleSheets, sheets: GoogleSheets, table: Table
):
    tool.meanwhile = lambda: tool.insert_row(table, 2, "new", {"Title": "Inserted"})

    sheets.write_back(ref("k-1"), QUEUED)

    assert cells(table, "r1")["Status"] == "Queued"
    assert cells(table, "new") == {"Title": "Inserted"}


def test_row_deleted_meanwhile_is_refused_and_nobody_else_touched(
    tool: FakeGoogleSheets, sheets: GoogleSheets, table: Table
):
    tool.meanwhile = lambda: tool.world.delete(table, "r1")

    with pytest.raises(ToolRefused, match="row is gone"):
        sheets.write_back(ref("k-1"), QUEUED)

    assert cells(table, "r2")["Status"] == "Ready"
    assert "Listen" not in cells(table, "r2")


def test_last_row_deleted_meanwhile_is_tried_again(
    tool: FakeGoogleSheets, sheets: GoogleSheets, table: Table
):
    tool.meanwhile = lambda: tool.world.delete(table, "r2")

    with pytest.raises(ToolUnavailable, match="deleted meanwhile"):
        sheets.write_back(ref("k-3"), QUEUED)
    sheets.write_back(ref("k-3"), QUEUED)

    assert cells(table, "r3")["Status"] == "Queued"


def test_columns_that_move_are_read_again_with_every_call(
    sheets: GoogleSheets, table: Table, fake: Fake
):
    assert len(list(sheets.read([ref("k-1")]))) == 1
    table.columns.insert(0, Column("Z", "Owner"))

    (note,) = sheets.read([ref("k-1")])
    sheets.write_back(ref("k-1"), QUEUED)

    assert note.title == "Sync 1"
    assert cells(table, "r1")["Status"] == "Queued"


def test_copied_key_is_refused_with_its_cure(sheets: GoogleSheets, table: Table, fake: Fake):
    fake.world.edit(table, "r3", {"notecast_id": "k-1"}, by="api")

    with pytest.raises(ToolRefused, match="clear the copy's key"):
        sheets.write_back(ref("k-1"), QUEUED)

    assert sheets.problems() == ["two rows have the same key, one is a copy; clear the copy's key"]


def test_renamed_column_is_named_with_the_nearest_one(sheets: GoogleSheets, table: Table):
    table.columns[3] = Column("D", "Listen here")

    with pytest.raises(ToolRefused, match="no column 'Listen'; did you mean 'Listen here'"):
        sheets.write_back(ref("k-1"), QUEUED)


def test_walk_finds_ready_rows_with_a_key_of_their_own(
    sheets: GoogleSheets, table: Table, fake: Fake
):
    fake.world.edit(table, "r1", {"Status": "Done"}, by="api")
    fake.world.add_row(table, "r4", {"Title": "No key", "Status": "Ready"})
    fake.world.add_row(table, "r5", {"Status": "Ready", "notecast_id": "k-2"})

    (page,) = sheets.backfill(Cursor())
    (again,) = sheets.backfill(page.cursor)

    assert [event.ref.key for event in page.events] == ["k-2", "k-3"]
    assert page.is_last
    assert {event.delivery_key for event in page.events} == {
        event.delivery_key for event in again.events
    }


def test_row_that_stays_ready_is_offered_again_with_the_sixth_walk(sheets: GoogleSheets):
    cursor, keys = Cursor(), set()
    for _ in range(6):
        (page,) = sheets.backfill(cursor)
        cursor = page.cursor
        keys |= {event.delivery_key for event in page.events if event.ref.key == "k-1"}

    assert len(keys) == 2


def test_where_the_trigger_stays_the_link_says_what_is_done(
    fake: Fake, tool: FakeGoogleSheets, table: Table
):
    sheets = connect(fake, output={"link": "Listen"})
    sheets.write_back(ref("k-1"), QUEUED)

    (page,) = sheets.backfill(Cursor())

    assert [event.ref.key for event in page.events] == ["k-2", "k-3"]
    assert cells(table, "r1")["Status"] == "Ready"
    sheets._api.close()


def test_budget_is_the_accounts_and_the_fake_enforces_it(
    fake: Fake, tool: FakeGoogleSheets, sheets: GoogleSheets
):
    written, read = sheets.bucket(ref("k-1"), "write"), sheets.bucket(None, "read")
    tool.writes.limit = 1
    sheets.write_back(ref("k-1"), QUEUED)

    with pytest.raises(ToolUnavailable):
        sheets.write_back(ref("k-2"), QUEUED)

    assert EMAIL in written.name
    assert written.per_min + 2 * read.per_min < 60
    assert tool.writes.refused == 1


def test_token_is_fetched_once_and_again_when_google_has_forgotten_it(
    fake: Fake, tool: FakeGoogleSheets, sheets: GoogleSheets
):
    for _ in range(3):
        assert list(sheets.read([ref("k-1")]))
    assert sum(seen.path == "/token" for seen in fake.seen) == 1

    tool.forget_tokens()
    assert list(sheets.read([ref("k-1")]))
    tool.forget_tokens()
    sheets.write_back(ref("k-1"), QUEUED)

    assert sum(seen.path == "/token" for seen in fake.seen) == 3


def test_refused_account_is_explained(fake: Fake, tool: FakeGoogleSheets, sheets: GoogleSheets):
    fake.fail("POST /token", status=400, body={"error": "invalid_grant"})

    with pytest.raises(ToolRefused, match="key was deleted"):
        list(sheets.read([ref("k-1")]))


@pytest.mark.parametrize(
    ("status", "message", "cure"),
    [
        (403, "The caller does not have permission", f"share the sheet with {EMAIL}"),
        (403, "Google Sheets API has not been used in project 1", "switch it on"),
        (404, "Requested entity was not found.", "take it from the sheet's address"),
        (400, "Unable to parse range: 'Notes'!1:1", "no tab 'Notes'"),
        (401, "", "make a new key file"),
    ],
)
def test_refusals_name_the_cure(fake: Fake, sheets: GoogleSheets, status, message, cure):
    error = {"error": {"code": status, "message": message, "status": "X"}}
    fake.fail("GET /v4/*", status=status, body=error, times=9)

    with pytest.raises(ToolRefused, match=cure):
        sheets.write_back(ref("k-1"), QUEUED)


def test_check_names_what_is_missing_or_doubled(fake: Fake, sheets: GoogleSheets, table: Table):
    assert sheets.problems() == []
    table.columns[:] = [
        *(column for column in table.columns if column.name != "notecast_id"),
        Column("I", "Title"),
    ]

    found = sheets.problems()

    assert "two columns are named 'Title'; rename one" in found
    assert any("no column 'notecast_id'" in sentence for sentence in found)


def test_sample_is_the_first_ready_row(sheets: GoogleSheets, table: Table, fake: Fake):
    fake.world.edit(table, "r1", {"Status": "Draft"}, by="api")

    sample = sheets.sample()

    assert sample is not None
    assert (sample.title, sample.ready) == ("Sync 2", True)


def test_edit_on_the_page_reaches_the_door_with_key_and_whole_row(
    tool: FakeGoogleSheets, sheets: GoogleSheets, table: Table
):
    tool.hook_url = "http://127.0.0.1:1/hooks/sync"
    tool.world.add_row(table, "r9", {"Title": "New", "Notes": "Bob: yes", "Status": "Draft"})
    change = tool.world.edit(table, "r9", {"Status": "Ready"})
    assert change is not None
    (delivery,) = tool.events(change)
    hook = Hook("POST", delivery.headers, delivery.body, NOW)

    (event,) = sheets.events(sheets.verify(hook, now=datetime.now(UTC)), hook)

    assert event.note is not None
    assert (event.note.title, event.note.ready) == ("New", True)
    assert event.ref.key == table.rows["r9"].cells["H"]
    (read,) = sheets.read([event.ref])
    assert read.fingerprint == event.note.fingerprint


def test_message_of_another_sheet_or_tab_is_malformed(sheets: GoogleSheets):
    for field, value in (("sheet", "1Other"), ("tab", "Archive")):
        data = {"sheet": SHEET, "tab": "Notes", "key": "k", "values": {}} | {field: value}
        body = json.dumps({"type": "row.ready", "data": data}).encode()

        with pytest.raises(Malformed, match="belongs to"):
            sheets.events(body, Hook("POST", {}, body, NOW))


@settings(max_examples=50, deadline=None)
@given(body=st.binary(max_size=80))
def test_hostile_bodies_are_malformed(body: bytes):
    sheets = make_connector("google_sheets", "sync", config("http://127.0.0.1:1", KEY_FILE))
    hook = Hook("POST", sign_webhook(SECRET, "m", int(NOW.timestamp()), body), body, NOW)

    with pytest.raises(Malformed):
        sheets.events(sheets.verify(hook, now=NOW), hook)


def test_unsigned_message_is_rejected(sheets: GoogleSheets):
    with pytest.raises(Rejected):
        sheets.verify(Hook("POST", {}, b"{}", NOW), now=NOW)


KEY_FILE = json.dumps(
    {"client_email": EMAIL, "private_key": "x", "token_uri": "https://oauth2.googleapis.com/token"}
)


@pytest.mark.parametrize(
    ("key_file", "message"),
    [
        ("not json", "not the JSON key file"),
        ('{"type": "authorized_user"}', "not the JSON key file"),
        (KEY_FILE.replace("oauth2.googleapis.com", "evil.example"), "does not lead to Google"),
        (KEY_FILE.replace("https://oauth2", "http://oauth2"), "does not lead to Google"),
    ],
)
def test_bad_key_file_is_named_and_not_shown(key_file: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        make_connector("google_sheets", "sync", config("https://a.example", key_file))

    assert "evil" not in str(caught.value)
