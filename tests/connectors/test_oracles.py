"""The vendors' own SDKs as judges of our signatures, our requests and our fakes.

Each runs its own operation against the fake and must be satisfied; the requests it makes are the
contract that ours are compared with. A part is left out where its SDK is not installed.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.base import AudioFile, Cursor, Hook, NotePatch, NoteRef
from connectors.errors import Rejected
from connectors.fake.faults import Seen
from connectors.fake.feishu import BASE, TABLE, FakeFeishu
from connectors.fake.feishu_minutes import FakeMinutes, Minutes
from connectors.fake.server import Fake
from connectors.fake.tool import read_content
from connectors.feishu_events import EventDoor
from connectors.registry import make_connector
from connectors.signing import decrypt_feishu, encrypt_feishu, sign_feishu_event

pytestmark = pytest.mark.oracle

AT = 1_700_000_000
NOW = datetime.fromtimestamp(AT, UTC)


def asked(seen: Seen) -> tuple[Any, ...]:
    """What two clients must agree on: method, path, query, JSON."""
    query = sorted((name, value.lower()) for name, value in seen.query)
    return seen.method, seen.path, query, seen.json


# Feishu -------------------------------------------------------------------------------------------

KEY, TOKEN = "demo-encrypt-key", "demo-verification-token"
FEISHU = {
    "base": BASE,
    "table": TABLE,
    "secrets": {
        "app_id": "cli_demo",
        "app_secret": "demo-app-secret",
        "encrypt_key": [KEY],
        "token": TOKEN,
    },
    "trigger": {"column": "播报状态", "equals": "待播报"},
    "fields": {"text": "会议纪要"},
    "output": {"status": "播报状态", "link": "收听链接", "audio": "音频文件"},
}


@pytest.fixture(scope="module")
def lark() -> ModuleType:
    """The SDK; its dependencies warn while they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdk = pytest.importorskip("lark_oapi")
    logging.getLogger("Lark").setLevel(logging.CRITICAL)  # it logs each refusal with its trace
    return sdk


@pytest.fixture
def feishu() -> Iterator[Fake]:
    with Fake([FakeFeishu, FakeMinutes], retry_s=()).running() as fake:
        fake.tool(FakeFeishu).add_samples()
        yield fake


def lark_client(lark: ModuleType, fake: Fake) -> Any:
    lark.core.token.manager.TokenManager.cache.set("self_tenant_token:cli_demo", "", 0)
    builder = lark.Client.builder().app_id("cli_demo").app_secret("demo-app-secret")
    return builder.domain(fake.url).build()


def satisfied(response: Any) -> Any:
    """The SDK's own verdict on an answer of the fake."""
    assert response.success(), (response.code, response.msg)
    return getattr(response, "data", None)


def table_request(builder: Any) -> Any:
    return builder.app_token(BASE).table_id(TABLE)


def lark_reads(lark: ModuleType, client: Any) -> None:
    from lark_oapi.api.bitable import v1

    body = v1.BatchGetAppTableRecordRequestBody.builder().record_ids(["recDemo01"])
    request = table_request(v1.BatchGetAppTableRecordRequest.builder())
    request = request.request_body(body.automatic_fields(True).build()).build()
    (record,) = satisfied(client.bitable.v1.app_table_record.batch_get(request)).records
    assert record.fields["会议主题"] == [{"type": "text", "text": "产品周例会"}]
    assert record.last_modified_time > 1_700_000_000_000


def lark_searches(lark: ModuleType, client: Any) -> None:
    from lark_oapi.api.bitable import v1

    condition = v1.Condition.builder().field_name("播报状态").operator("is").value(["待播报"])
    wanted = v1.FilterInfo.builder().conjunction("or").conditions([condition.build()]).build()
    body = v1.SearchAppTableRecordRequestBody.builder().filter(wanted).automatic_fields(True)
    request = table_request(v1.SearchAppTableRecordRequest.builder()).page_size(200)
    found = satisfied(
        client.bitable.v1.app_table_record.search(request.request_body(body.build()).build())
    )
    assert (found.items, found.has_more, found.total) == ([], False, 0)


def lark_lists_fields(lark: ModuleType, client: Any) -> None:
    from lark_oapi.api.bitable import v1

    request = table_request(v1.ListAppTableFieldRequest.builder()).page_size(100).build()
    items = satisfied(client.bitable.v1.app_table_field.list(request)).items
    assert (items[4].field_name, items[4].type, items[4].ui_type) == ("播报状态", 3, "SingleSelect")
    assert items[4].property.options[0].name == "待播报"


def lark_updates(lark: ModuleType, client: Any, client_token: str) -> None:
    from lark_oapi.api.bitable import v1

    fields = {
        "播报状态": "排队中",
        "收听链接": {"text": "收听", "link": "https://notes.example/l/1"},
    }
    request = table_request(v1.UpdateAppTableRecordRequest.builder()).record_id("recDemo01")
    request = request.client_token(client_token).ignore_consistency_check(True)
    request = request.request_body(v1.AppTableRecord.builder().fields(fields).build()).build()
    record = satisfied(client.bitable.v1.app_table_record.update(request)).record
    assert record.fields["播报状态"] == "排队中"


def lark_subscribes(lark: ModuleType, client: Any) -> None:
    from lark_oapi.api.drive import v1

    request = v1.SubscribeFileRequest.builder().file_token(BASE).file_type("bitable").build()
    satisfied(client.drive.v1.file.subscribe(request))
    query = v1.GetSubscribeFileRequest.builder().file_token(BASE).file_type("bitable").build()
    assert satisfied(client.drive.v1.file.get_subscribe(query)).is_subscribe is True


def test_lark_asks_for_rows_as_we_do(lark, feishu):
    door = make_connector("feishu", "zhou_hui", {**FEISHU, "base_url": feishu.url})
    client = lark_client(lark, feishu)

    for theirs, ours in (
        (lark_lists_fields, lambda: door.columns()),
        (lark_reads, lambda: list(door.read([NoteRef("z", BASE, TABLE, "recDemo01")]))),
        (lark_searches, lambda: list(door.backfill(Cursor()))),
        (lark_subscribes, lambda: door.upkeep({}, now=NOW, address="")),
    ):
        feishu.seen.clear()
        theirs(lark, client)
        contract = [asked(one) for one in feishu.seen if "tenant_access_token" not in one.path]
        feishu.seen.clear()
        ours()
        made = [asked(one) for one in feishu.seen]
        assert [one for one in contract if one not in made] == [], theirs.__name__


def test_lark_gets_its_token_and_writes_as_we_do(lark, feishu):
    door = make_connector("feishu", "zhou_hui", {**FEISHU, "base_url": feishu.url})
    patch = NotePatch("ep1:queued", "queued", "https://notes.example/l/1")
    door.write_back(NoteRef("z", BASE, TABLE, "recDemo01"), patch)
    ours = [asked(one) for one in feishu.seen if not one.path.endswith("/fields")]
    client_token = dict(feishu.seen[-1].query)["client_token"]
    feishu.seen.clear()

    lark_updates(lark, lark_client(lark, feishu), client_token)

    theirs = [asked(one) for one in feishu.seen]
    assert [one[0] for one in theirs] == ["POST", "PUT"]
    assert theirs == ours


def test_lark_uploads_as_we_do(lark, feishu):
    from lark_oapi.api.drive import v1

    content = bytes(range(256))
    body = v1.UploadAllMediaRequestBody.builder().file_name("a.mp3").parent_type("bitable_file")
    body = body.parent_node(BASE).size(len(content)).file(io.BytesIO(content)).build()
    request = v1.UploadAllMediaRequest.builder().request_body(body).build()
    satisfied(lark_client(lark, feishu).drive.v1.media.upload_all(request))
    door = make_connector("feishu", "zhou_hui", {**FEISHU, "base_url": feishu.url})
    file = AudioFile("a.mp3", "audio/mpeg", len(content), lambda: content)
    patch = NotePatch("k", "done", audio_ref="https://a", audio_file=file)
    door.write_back(NoteRef("z", BASE, TABLE, "recDemo01"), patch)

    theirs, ours = (one for one in feishu.seen if one.path.endswith("/upload_all"))
    told = [read_content(one.headers["content-type"], one.body) for one in (theirs, ours)]
    for one in told:
        one["file"] = one["file"][1]  # the SDK does not name the file there
    assert {name: value for name, value in told[0].items() if value} == told[1]


def test_lark_sees_each_refusal_of_the_fake(lark, feishu):
    from lark_oapi.api.bitable import v1

    client = lark_client(lark, feishu)
    for fields, code in (
        ({"没有": "x"}, 1254045),
        ({"收听链接": "https://a"}, 1254068),
        ({"时长": "long"}, 1254061),
        ({"音频文件": [{"file_token": "boxOther"}]}, 1254303),
    ):
        request = table_request(v1.UpdateAppTableRecordRequest.builder()).record_id("recDemo01")
        request = request.request_body(v1.AppTableRecord.builder().fields(fields).build()).build()
        response = client.bitable.v1.app_table_record.update(request)
        assert (response.success(), response.code) == (False, code)


def test_lark_reads_minutes_as_we_do(lark, feishu):
    from lark_oapi.api.minutes import v1

    tool = feishu.tool(FakeMinutes)
    chapters = [{"title": "接口", "start_ms": 5_000, "stop_ms": 9_000, "summary_content": "两天。"}]
    tool.generate(Minutes("obcdemo", "周例会", 0, {"summary": "好", "minute_chapters": chapters}))
    secrets = {**FEISHU["secrets"], "refresh_token": "ur-first"}
    door = make_connector(
        "feishu_minutes", "m", {"secrets": secrets, "base_url": feishu.url, "transcript": False}
    )
    door.state = door.upkeep({}, now=datetime.now(UTC), address="")
    (note,) = door.read([NoteRef("m", "minutes", "", "obcdemo")])
    assert "[00:00:05] 接口" in note.text
    ours = [asked(one) for one in feishu.seen if "/minutes/" in one.path]
    feishu.seen.clear()

    user = str(door.state["secrets"]["user_token"])
    client = (
        lark.Client.builder().app_id("cli_demo").app_secret("demo-app-secret")
        .domain(feishu.url).enable_set_token(True).build()
    )  # fmt: skip
    option = lark.RequestOption.builder().user_access_token(user).build()
    kind = v1.SubscriptionMinuteRequestBody.builder().event_type("minutes.minute.generated_v1")
    subscription = v1.SubscriptionMinuteRequest.builder().request_body(kind.build()).build()
    assert client.minutes.v1.minute.subscription(subscription, option).success()
    one = v1.GetMinuteRequest.builder().minute_token("obcdemo").build()
    assert satisfied(client.minutes.v1.minute.get(one, option)).minute.title == "周例会"
    made = v1.ArtifactsMinuteRequest.builder().minute_token("obcdemo").build()
    artifacts = satisfied(client.minutes.v1.minute.artifacts(made, option))
    assert artifacts.minute_chapters[0].start_ms == 5_000

    assert [asked(one) for one in feishu.seen] == ours


class Dispatcher:
    """The SDK's handler of events, as a web server would use it."""

    def __init__(self, lark: ModuleType) -> None:
        self.heard: list[Any] = []
        self._lark = lark
        self._handler = (
            lark.EventDispatcherHandler.builder(KEY, TOKEN, lark.LogLevel.CRITICAL)
            .register_p2_drive_file_bitable_record_changed_v1(self.heard.append)
            .build()
        )

    def status(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        request = self._lark.RawRequest()
        request.uri, request.body = "/", body
        request.headers = {_header(name): value for name, value in headers.items()}
        answer = self._handler.do(request)
        return answer.status_code, answer.content


def _header(name: str) -> str:
    """Names as the SDK looks them up, which minds their case."""
    return "-".join(part.capitalize() for part in name.split("-"))


def envelope(content: Any, *, at_s: int = AT) -> tuple[dict[str, str], bytes]:
    text = json.dumps(content, ensure_ascii=False).encode()
    body = json.dumps({"encrypt": encrypt_feishu(KEY, text, iv=bytes(range(16)))}).encode()
    return sign_feishu_event(KEY, at_s, "nonce", body), body


def test_lark_accepts_the_events_of_the_fake_and_so_do_we(lark, feishu):
    tool = feishu.tool(FakeFeishu)
    tool.hook_url = "http://127.0.0.1:9"
    (table,) = (one for one in feishu.world.tables.values())
    judge, door = Dispatcher(lark), make_connector("feishu", "zhou_hui", FEISHU)
    changes = [
        feishu.world.edit(table, "recDemo01", {"播报状态": "待播报", "会议纪要": '新"纪要"'}),
        feishu.world.add_row(table, "recNew", {"会议主题": "a"}),
        feishu.world.delete(table, "recDemo02"),
    ]

    for change in changes:
        assert change is not None
        sent = tool.deliver(tool.event_of(change))
        assert judge.status(dict(sent.headers), sent.body)[0] == 200
        hook = Hook("POST", sent.headers, sent.body, datetime.now(UTC))
        body = door.verify(hook, now=hook.received_at)
        assert isinstance(body, bytes)
        (ours,) = door.events(body, hook)
        theirs = judge.heard[-1].event.action_list[0]
        assert ours.ref.key == theirs.record_id == change.row_id
        cells = [*(theirs.before_value or ()), *(theirs.after_value or ())]
        assert ours.changed == {cell.field_id for cell in cells}


def test_lark_answers_the_challenge_as_we_do(lark):
    challenge = {"type": "url_verification", "challenge": "ajls384k", "token": TOKEN}
    _, body = envelope(challenge)
    door = EventDoor([KEY], [TOKEN])

    status, theirs = Dispatcher(lark).status({}, body)
    ours = door.open(Hook("POST", {}, body, NOW), now=NOW)

    assert status == 200
    assert json.loads(theirs) == json.loads(ours.body) == {"challenge": "ajls384k"}


@given(text=st.text(max_size=200), iv=st.binary(min_size=16, max_size=16))
def test_each_opens_what_the_other_sealed(lark, text, iv):
    from Crypto.Cipher import AES

    cipher = lark.AESCipher(KEY)
    assert cipher.decrypt_str(encrypt_feishu(KEY, text.encode(), iv=iv)) == text

    pad = 16 - len(text.encode()) % 16
    sealing = AES.new(cipher.digest, AES.MODE_CBC, iv)
    theirs = iv + sealing.encrypt(text.encode() + bytes([pad]) * pad)
    assert decrypt_feishu(KEY, base64.b64encode(theirs).decode()) == text.encode()


_HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "x-lark-request-timestamp": st.text(max_size=20) | st.just(str(AT)),
        "x-lark-request-nonce": st.text(max_size=20) | st.just("nonce"),
        "x-lark-signature": st.text(max_size=70),
    },
)


@settings(max_examples=150)
@given(
    headers=_HEADERS,
    body=st.binary(max_size=100)
    | st.text(max_size=60).map(lambda text: json.dumps({"encrypt": text}).encode())
    | st.dictionaries(
        st.sampled_from(["type", "token", "encrypt", "uuid", "schema"]), st.text()
    ).map(lambda content: envelope(content)[1]),
)
def test_what_makes_lark_stumble_is_rejected_by_us(lark, headers, body):
    """It answers 500 to what it did not expect, and a sender takes that for a reason to repeat."""
    status, _ = Dispatcher(lark).status(headers, body)

    if status != 200:
        with pytest.raises(Rejected):
            EventDoor([KEY], [TOKEN]).open(Hook("POST", headers, body, NOW), now=NOW)


def test_lark_takes_events_of_any_age_and_we_do_not(lark):
    content = {
        "schema": "2.0",
        "header": {
            "event_id": "e",
            "event_type": "drive.file.bitable_record_changed_v1",
            "token": TOKEN,
        },
        "event": {"file_token": BASE, "action_list": []},
    }
    headers, body = envelope(content, at_s=AT - 365 * 86_400)

    assert Dispatcher(lark).status(headers, body)[0] == 200
    with pytest.raises(Rejected, match="tolerance"):
        EventDoor([KEY], [TOKEN]).open(Hook("POST", headers, body, NOW), now=NOW)


def test_a_flipped_bit_is_refused_by_both(lark):
    headers, body = envelope({"schema": "2.0", "header": {"token": TOKEN}, "event": {}})
    judge, door = Dispatcher(lark), EventDoor([KEY], [TOKEN])
    for bit in range(0, len(body) * 8, 7):
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        assert judge.status(headers, bytes(flipped))[0] == 500
        with pytest.raises(Rejected):
            door.open(Hook("POST", headers, bytes(flipped), NOW), now=NOW)
