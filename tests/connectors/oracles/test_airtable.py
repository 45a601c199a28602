"""pyairtable as judge: its requests are ours, it takes our signature, and our fake suits it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.airtable import Airtable
from connectors.base import Cursor, NotePatch, NoteRef
from connectors.errors import Rejected
from connectors.fake.airtable import BASE, TABLE, FakeAirtable
from connectors.fake.faults import Seen
from connectors.fake.server import Fake
from connectors.pace import Pace
from connectors.registry import make_connector
from connectors.signing import sign_airtable, verify_airtable

pytestmark = pytest.mark.oracle

NOW = datetime(2026, 11, 20, tzinfo=UTC)
SECRET = "ZGVtby1tYWM="
ADDRESS = "http://127.0.0.1:1/hooks/sync"
LINK = "https://notes.example/l/8f2c"


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls need not keep their distance here."""
    monkeypatch.setattr(Pace, "wait", lambda _self: None)


@pytest.fixture(scope="module")
def sdk() -> ModuleType:
    return pytest.importorskip("pyairtable")


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake([FakeAirtable], retry_s=()).running() as fake:
        fake.tool(FakeAirtable).budget.limit = 1000
        fake.tool(FakeAirtable).add_samples()
        yield fake


@pytest.fixture
def ours(fake: Fake) -> Iterator[Airtable]:
    config = {
        "base": BASE,
        "table": TABLE,
        "base_url": fake.url,
        "secrets": {"token": "pat-demo-token"},
        "trigger": {"column": "Status", "equals": "Ready"},
        "fields": {"title": "Title", "text": "Notes"},
        "output": {"status": "Status", "link": "Listen"},
    }
    connector = make_connector("airtable", "sync", config)
    assert isinstance(connector, Airtable)
    connector.schema()
    yield connector
    connector._api.close()


@pytest.fixture
def theirs(sdk: ModuleType, fake: Fake) -> Iterator[Any]:
    api = sdk.Api("pat-demo-token", endpoint_url=fake.url, retry_strategy=None)
    yield api
    api.session.close()


def asked(seen: Seen) -> tuple[Any, ...]:
    """What two clients must agree on."""
    return seen.method, seen.path, sorted(seen.query), seen.json


def last(fake: Fake, call: Callable[[], Any]) -> tuple[Any, ...]:
    call()
    return asked(fake.seen[-1])


def ref(key: str = "recDemo01") -> NoteRef:
    return NoteRef("sync", BASE, TABLE, key)


def test_records_are_asked_for_and_written_alike(fake: Fake, ours: Airtable, theirs: Any):
    table = theirs.table(BASE, TABLE)
    fields = {"fldStatus": "Queued", "fldListen": LINK}

    assert last(fake, lambda: table.get("recDemo01", use_field_ids=True)) == last(
        fake, lambda: list(ours.read([ref()]))
    )
    assert last(fake, lambda: table.all(page_size=100, use_field_ids=True)) == last(
        fake, lambda: list(ours.backfill(Cursor()))
    )
    assert last(fake, lambda: table.update("recDemo01", fields, use_field_ids=True)) == last(
        fake, lambda: ours.write_back(ref(), NotePatch("k", "queued", LINK))
    )


def test_many_records_are_asked_for_alike(
    fake: Fake, ours: Airtable, theirs: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(type(theirs), "MAX_URL_LENGTH", 10)  # as a hundred long ids would be
    formula = "OR(RECORD_ID()='recDemo01',RECORD_ID()='recOther')"
    table = theirs.table(BASE, TABLE)

    method, path, query, theirs_json = last(
        fake, lambda: table.all(formula=formula, page_size=100, use_field_ids=True)
    )
    ours_asked = last(fake, lambda: list(ours.read([ref(), ref("recOther")])))

    assert (method, path, query) == ours_asked[:3]
    assert {**theirs_json, "returnFieldsByFieldId": True} == ours_asked[3]


def test_webhook_is_made_kept_and_read_alike(fake: Fake, ours: Airtable, theirs: Any):
    tool = fake.tool(FakeAirtable)
    (table,) = fake.world.tables.values()
    base = theirs.base(BASE)
    ours.state = ours.upkeep({}, now=NOW, address=ADDRESS)
    made = asked(fake.seen[-1])
    filters = made[3]["specification"]["options"]["filters"]

    spec = {"options": {"filters": filters}}
    assert last(fake, lambda: base.add_webhook(ADDRESS, spec)) == made
    (webhook,) = [one for one in base.webhooks() if one.id == ours.state["webhook"]]
    fake.world.edit(table, "recDemo01", {"Status": "Ready"})
    fake.seen.clear()
    (payload,) = webhook.payloads()
    cursor = Cursor({"webhook": webhook.id, "payload": 1})
    (page,) = ours.backfill(cursor)
    theirs_get, ours_get = (seen for seen in fake.seen if seen.path.endswith("/payloads"))

    assert payload.base_transaction_number in (801, 802)
    changed = payload.changed_tables_by_id[TABLE].changed_records_by_id["recDemo01"]
    assert changed.current.cell_values_by_field_id == {"fldStatus": "Ready"}
    assert [event.ref.key for event in page.events] == ["recDemo01"]
    assert (theirs_get.method, theirs_get.path) == (ours_get.method, ours_get.path)
    assert set(theirs_get.query) <= set(ours_get.query)

    tool.webhooks[BASE][webhook.id].pings = False
    fake.seen.clear()
    ours.upkeep(dict(ours.state), now=NOW, address=ADDRESS)
    ours_made = [
        asked(seen) for seen in fake.seen if seen.path.endswith(("fresh", "Notifications"))
    ]
    fake.seen.clear()
    webhook.enable_notifications()
    webhook.extend_expiration()

    assert [asked(seen) for seen in fake.seen] == ours_made
    assert webhook.expiration_time is not None


def test_schema_of_the_fake_suits_it(fake: Fake, ours: Airtable, theirs: Any):
    shown = theirs.base(BASE).schema().table(TABLE)

    assert {field.id: field.name for field in shown.fields} == {
        column.id: column.name for column in ours.columns()
    }


def test_it_takes_the_pings_of_the_fake(sdk: ModuleType, fake: Fake, ours: Airtable):
    from pyairtable.models import WebhookNotification

    ours.state = ours.upkeep({}, now=NOW, address=ADDRESS)
    (webhook,) = fake.tool(FakeAirtable).webhooks[BASE].values()
    delivery = fake.tool(FakeAirtable).ping(BASE, webhook)

    ping = WebhookNotification.from_request(
        delivery.body.decode(), delivery.headers["x-airtable-content-mac"], webhook.secret
    )

    assert (ping.base.id, ping.webhook.id) == (BASE, webhook.id)


@given(
    content=st.from_regex(r"[a-zA-Z0-9]{1,20}", fullmatch=True),
    key=st.binary(min_size=1, max_size=64),
)
def test_each_takes_what_the_other_signed(sdk: ModuleType, content: str, key: bytes):
    import base64
    import hmac

    from pyairtable.models import WebhookNotification

    secret = base64.b64encode(key).decode()
    body = (
        f'{{"base":{{"id":"{content}"}},"webhook":{{"id":"ach1"}},'
        '"timestamp":"2026-11-20T01:30:05.000Z"}'
    )
    headers = sign_airtable(secret, body.encode())
    theirs = "hmac-sha256=" + hmac.HMAC(key, body.encode("ascii"), "sha256").hexdigest()

    ping = WebhookNotification.from_request(body, headers["x-airtable-content-mac"], secret)
    verify_airtable([secret], {"x-airtable-content-mac": theirs}, body.encode())

    assert ping.base.id == content


@given(header=st.text(), body=st.text().map(str.encode) | st.binary())
def test_what_it_stumbles_over_is_rejected_by_us(sdk: ModuleType, header: str, body: bytes):
    from pyairtable.models import WebhookNotification

    with pytest.raises(ValueError):  # its own, or a UnicodeError
        WebhookNotification.from_request(body.decode(), header, SECRET)
    with pytest.raises(Rejected):
        verify_airtable([SECRET], {"x-airtable-content-mac": header}, body)
