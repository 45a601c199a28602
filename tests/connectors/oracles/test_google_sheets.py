"""gspread as judge: its requests are ours, and our fake suits it, token service included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from connectors.base import NotePatch, NoteRef
from connectors.fake.faults import Seen
from connectors.fake.google_sheets import SECRET, SHEET, FakeGoogleSheets
from connectors.fake.server import Fake
from connectors.google_sheets import GoogleSheets
from connectors.registry import make_connector

pytestmark = pytest.mark.oracle

LINK = "https://notes.example/l/8f2c"
REF = NoteRef("sync", SHEET, "Notes", "k-1")


@pytest.fixture(scope="module")
def sdk() -> ModuleType:
    return pytest.importorskip("gspread")


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake([FakeGoogleSheets], retry_s=()).running() as fake:
        table = fake.tool(FakeGoogleSheets).add_notes_tab()
        cells = {"Title": "Sync", "Notes": "Alice: yes", "Status": "Ready", "notecast_id": "k-1"}
        fake.world.add_row(table, "r1", cells)
        yield fake


@pytest.fixture
def ours(fake: Fake) -> Iterator[GoogleSheets]:
    config = {
        "sheet": SHEET,
        "tab": "Notes",
        "base_url": fake.url,
        "secrets": {
            "webhook": [SECRET],
            "service_account": fake.tool(FakeGoogleSheets).key_file(fake.url),
        },
        "trigger": {"column": "Status", "equals": "Ready"},
        "fields": {"title": "Title", "text": "Notes"},
        "output": {"status": "Status", "link": "Listen"},
    }
    connector = make_connector("google_sheets", "sync", config)
    assert isinstance(connector, GoogleSheets)
    yield connector
    connector._api.close()


@pytest.fixture
def theirs(sdk: ModuleType, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A worksheet whose client was led to the fake by its module constants."""
    from gspread import http_client

    for name in dir(http_client):
        value = getattr(http_client, name)
        if name.startswith("SPREADSHEET_") and isinstance(value, str):
            local = value.replace("https://sheets.googleapis.com", fake.url)
            monkeypatch.setattr(http_client, name, local)
    info = json.loads(fake.tool(FakeGoogleSheets).key_file(fake.url))
    client = sdk.service_account_from_dict(
        info, scopes=["https://www.googleapis.com/auth/spreadsheets"]
    )
    yield client.open_by_key(SHEET).worksheet("Notes")
    session = client.http_client.session
    session._auth_request.session.close()
    session.close()


def asked(seen: Seen) -> tuple[Any, ...]:
    """What two clients must agree on; a JSON null in the body is as good as nothing."""
    content = seen.json
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if value is not None}
    return seen.method, seen.path, sorted(seen.query), content


def test_columns_are_asked_for_alike(fake: Fake, ours: GoogleSheets, theirs: Any):
    list(ours.read([REF]))
    ours_asked = [asked(seen) for seen in fake.seen if seen.path.endswith("batchGet")]
    fake.seen.clear()

    theirs.batch_get(["1:1"], major_dimension="ROWS")
    (header, keys) = theirs.batch_get(["1:1", "H:H"], major_dimension="ROWS")
    theirs.batch_get(["2:2"], major_dimension="ROWS")

    assert [asked(seen) for seen in fake.seen] == ours_asked
    assert header[0][7] == "notecast_id"
    assert keys == [["notecast_id"], ["k-1"]]


def test_cells_are_written_alike(fake: Fake, ours: GoogleSheets, theirs: Any):
    ours.write_back(REF, NotePatch("k", "queued", LINK))
    ours_asked = asked(fake.seen[-1])

    theirs.batch_update(
        [
            {"range": "C2", "values": [["Queued"]]},
            {"range": "D2", "values": [[LINK]]},
            {"range": "H2", "values": [[None]]},
        ],
        value_input_option="RAW",
        include_values_in_response=True,
    )

    assert asked(fake.seen[-1]) == ours_asked
    assert theirs.row_values(2)[2:4] == ["Queued", LINK]


def test_what_it_writes_one_by_one_we_read(fake: Fake, ours: GoogleSheets, theirs: Any):
    theirs.update([["=1+1"]], "A2", value_input_option="RAW")

    (note,) = ours.read([REF])

    assert note.title == "=1+1"
    assert theirs.acell("A2").value == "=1+1"
    assert fake.seen[-1].path.endswith("/values/%27Notes%27%21A2")


def test_it_understands_the_refusals_of_the_fake(sdk: ModuleType, fake: Fake, theirs: Any):
    with pytest.raises(sdk.exceptions.APIError, match="Unable to parse range"):
        theirs.spreadsheet.values_get("Nothing!A1")
    fake.tool(FakeGoogleSheets).writes.limit = 0
    fake.tool(FakeGoogleSheets).reads.limit = 1
    with pytest.raises(sdk.exceptions.APIError, match="Quota exceeded"):
        theirs.acell("A2")


def test_account_that_is_not_the_keys_is_refused_by_the_token_service(
    sdk: ModuleType, fake: Fake, theirs: Any
):
    from google.auth.exceptions import RefreshError
    from google.auth.transport.requests import Request
    from google.oauth2.service_account import Credentials

    other = FakeGoogleSheets(fake.world).key_file(fake.url)
    credentials = Credentials.from_service_account_info(json.loads(other), scopes=["x"])

    import requests

    with requests.Session() as session, pytest.raises(RefreshError, match="invalid_grant"):
        credentials.refresh(Request(session))
