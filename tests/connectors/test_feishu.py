"""Bitable through an app: the door, rows, write-back, tokens and limits, against the fake."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.base import (
    Accepted,
    AudioFile,
    Cursor,
    Hook,
    NotePatch,
    NoteRef,
    Reply,
)
from connectors.errors import (
    ConfigError,
    Malformed,
    Rejected,
    ToolRefused,
    ToolUnavailable,
    WrongColumn,
)
from connectors.fake.feishu import BASE, TABLE, FakeFeishu
from connectors.fake.feishu_drive import BLOCK_BYTES
from connectors.fake.server import Fake
from connectors.fake.world import Column, File, Link, Table
from connectors.feishu import Feishu
from connectors.feishu_api import AppSecrets, FeishuApi
from connectors.registry import make_connector
from connectors.signing import encrypt_feishu, proofs, secret_label, sign_feishu_event

KEY, TOKEN, BEARER = "demo-encrypt-key", "demo-verification-token", "a-token-of-the-automation"
NOW = datetime(2026, 11, 20, 1, 30, 6, tzinfo=UTC)
AT = int(NOW.timestamp())
EVENT_SECRETS = {"encrypt_key": [KEY], "token": TOKEN}
CONFIG: dict[str, Any] = {
    "base": BASE,
    "table": TABLE,
    "secrets": {"app_id": "cli_demo", "app_secret": "demo-app-secret", **EVENT_SECRETS},
    "timezone": "Asia/Shanghai",
    "trigger": {"column": "播报状态", "equals": "待播报"},
    "fields": {
        "title": "会议主题",
        "text": ["会议纪要", "决议"],
        "speaker": "主持人",
        "lang": {"const": "zh"},
    },
    "output": {
        "status": "播报状态",
        "link": "收听链接",
        "audio": "音频文件",
        "error": "失败原因",
        "duration": "时长",
    },
}
LINK = "https://notes.example/l/8f2c"


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake([FakeFeishu], retry_s=()).running() as fake:
        yield fake


@pytest.fixture
def table(fake: Fake) -> Table:
    tool = fake.tool(FakeFeishu)
    tool.write_s = 0.0
    tool.add_samples()
    (table,) = fake.world.tables.values()
    return table


def connector(fake: Fake | None = None, **changes: Any) -> Feishu:
    config = {**CONFIG, **changes, "base_url": fake.url if fake else ""}
    made = make_connector("feishu", "zhou_hui", config)
    assert isinstance(made, Feishu)
    return made


def ref(key: str = "recDemo01") -> NoteRef:
    return NoteRef("zhou_hui", BASE, TABLE, key)


def event(*actions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "schema": "2.0",
        "header": {
            "event_id": "ev-demo-1",
            "event_type": "drive.file.bitable_record_changed_v1",
            "token": TOKEN,
        },
        "event": {
            "file_token": BASE,
            "table_id": TABLE,
            "update_time": 1_763_600_000,
            "action_list": list(actions),
            **changes,
        },
    }


EDITED = {
    "record_id": "recDemo01",
    "action": "record_edited",
    "after_value": [{"field_id": "fldStatus", "field_value": '"optDemo"'}],
}


def sealed(content: Any, *, key: str = KEY, at_s: int = AT, sign: bool = True) -> Hook:
    body = json.dumps(
        {"encrypt": encrypt_feishu(key, json.dumps(content).encode(), iv=bytes(16))}
    ).encode()
    headers = sign_feishu_event(key, at_s, "nonce", body) if sign else {}
    return Hook("POST", headers, body, NOW)


# the door -----------------------------------------------------------------------------------------


def test_a_signed_event_names_rows_and_columns_and_not_their_values():
    door = connector()
    hook = sealed(event(EDITED))

    body = door.verify(hook, now=NOW)
    assert isinstance(body, bytes)
    (found,) = door.events(body, hook)

    assert found.delivery_key == "ev-demo-1/recDemo01"
    assert (found.ref, found.kind, found.note) == (ref(), "changed", None)
    assert found.changed == {"fldStatus"}
    assert found.occurred_at == datetime.fromtimestamp(1_763_600_000, UTC)


def test_many_actions_become_one_event_a_row():
    again = {**EDITED, "after_value": [{"field_id": "fldNotes", "field_value": "[]"}]}
    added = {"record_id": "recDemo02", "action": "record_added"}
    gone = {"record_id": "recDemo03", "action": "record_deleted"}
    door = connector()

    found = door.events(json.dumps(event(EDITED, again, added, gone)).encode(), sealed({}))

    assert [(one.ref.key, one.kind, one.changed) for one in found] == [
        ("recDemo01", "changed", {"fldStatus", "fldNotes"}),
        ("recDemo02", "changed", None),
        ("recDemo03", "deleted", None),
    ]


@pytest.mark.parametrize(
    "content",
    [
        event(EDITED, table_id="tblOther"),
        event(EDITED, file_token="bascOther"),
        {**event(EDITED), "header": {"event_id": "e", "event_type": "drive.file.edit_v1"}},
    ],
)
def test_events_of_other_tables_and_kinds_are_nothing(content):
    assert connector().events(json.dumps(content).encode(), sealed({})) == []


def test_version_1_events_have_their_id_elsewhere():
    content = {
        "uuid": "u-1",
        "token": TOKEN,
        "type": "event_callback",
        "event": event(EDITED)["event"] | {"type": "drive.file.bitable_record_changed_v1"},
    }
    door = connector()
    hook = sealed(content)

    body = door.verify(hook, now=NOW)
    assert isinstance(body, bytes)

    assert [one.delivery_key for one in door.events(body, hook)] == ["u-1/recDemo01"]


def test_the_challenge_is_answered_though_nothing_signs_it():
    challenge = {"type": "url_verification", "challenge": 'a"b\\', "token": TOKEN}

    reply = connector().verify(sealed(challenge, sign=False), now=NOW)

    assert isinstance(reply, Reply)
    assert (reply.status, json.loads(reply.body)) == (200, {"challenge": 'a"b\\'})


@pytest.mark.parametrize(
    "hook",
    [
        sealed({"type": "url_verification", "challenge": "c", "token": "other"}, sign=False),
        sealed({"type": "url_verification", "challenge": "c"}, sign=False),
        sealed(event(EDITED), sign=False),
        sealed(event(EDITED), key="another key"),
        sealed({**event(EDITED), "header": {"token": "other"}}),
        sealed({"encrypt": 1}),
        Hook("POST", {}, json.dumps(event(EDITED)).encode(), NOW),
        Hook("POST", {}, b"", NOW),
        Hook("POST", {}, b"\xff", NOW),
        Hook("POST", {}, b'{"encrypt": "AAAA"}', NOW),
        Hook("POST", {}, b'{"encrypt": 7}', NOW),
        Hook("POST", {}, b"[" * 200_000, NOW),
        Hook("POST", {"authorization": f"Bearer {BEARER}"}, b"{}", NOW),
    ],
)
def test_what_does_not_prove_itself_is_rejected(hook):
    with pytest.raises(Rejected):
        connector().verify(hook, now=NOW)


@pytest.mark.parametrize(
    ("age_s", "fits"), [(86_400, True), (-300, True), (86_401, False), (-301, False)]
)
def test_an_event_may_be_a_day_old_and_five_minutes_early(age_s, fits):
    hook = sealed(event(EDITED), at_s=AT - age_s)

    if fits:
        assert connector().verify(hook, now=NOW)
    else:
        with pytest.raises(Rejected, match="tolerance"):
            connector().verify(hook, now=NOW)


def test_two_encrypt_keys_open_while_the_vendor_changes_over():
    both = connector(secrets={**CONFIG["secrets"], "encrypt_key": ["new-key", KEY]})

    assert both.verify(sealed(event(EDITED), key="new-key"), now=NOW)
    assert both.verify(sealed(event(EDITED), key=KEY), now=NOW)


def test_every_flipped_bit_of_the_envelope_is_rejected():
    hook = sealed({**event(), "event": {}})
    door = connector()
    for bit in range(len(hook.body) * 8):
        body = bytearray(hook.body)
        body[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Rejected):
            door.verify(replace(hook, body=bytes(body)), now=NOW)


@settings(max_examples=200)
@given(
    headers=st.dictionaries(
        st.sampled_from(["x-lark-signature", "x-lark-request-timestamp", "x-lark-request-nonce"]),
        st.text(max_size=60) | st.just(str(AT)),
    ),
    body=st.binary(max_size=80)
    | st.text(max_size=80).map(lambda text: json.dumps({"encrypt": text}).encode()),
)
def test_hostile_messages_are_rejected_and_nothing_else(headers, body):
    with pytest.raises(Rejected):
        connector().verify(Hook("POST", headers, body, NOW), now=NOW)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["record_id", "action", "after_value", "field_id", "action_list", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(actions=_JSON, update_time=_JSON)
def test_odd_events_are_events_or_name_the_field(actions, update_time):
    content = event(action_list=actions, update_time=update_time)

    try:
        found = connector().events(json.dumps(content).encode(), sealed({}))
    except Malformed as error:
        assert error.pointer.startswith("/event")
    else:
        assert all(len(one.delivery_key) <= 200 for one in found)


def test_without_an_encrypt_key_only_the_token_is_left_and_must_be_wanted():
    secrets = {**CONFIG["secrets"], "encrypt_key": []}
    with pytest.raises(ConfigError, match="allow_unsigned = true"):
        connector(secrets=secrets)

    door = connector(secrets=secrets, allow_unsigned=True)
    plain = Hook("POST", {}, json.dumps(event(EDITED)).encode(), NOW)

    assert door.verify(plain, now=NOW) == plain.body
    with pytest.raises(Rejected, match="encrypted"):
        door.verify(sealed(event(EDITED)), now=NOW)


@pytest.mark.parametrize(
    ("secrets", "message"),
    [
        ({}, "nobody could tell us"),
        ({"encrypt_key": ["k"]}, "secrets.token is missing"),
        ({"automation": ["short"]}, "shorter than 16"),
    ],
)
def test_an_endpoint_that_nobody_could_wake_is_refused(secrets, message):
    app = {"app_id": "cli_demo", "app_secret": "hunter2"}
    with pytest.raises(ConfigError, match=message) as caught:
        connector(secrets={**app, **secrets})

    assert "hunter2" not in str(caught.value)


def test_an_automation_wakes_us_and_its_words_are_not_believed():
    door = connector(secrets={**CONFIG["secrets"], "automation": [BEARER]})
    body = json.dumps({"record": "recDemo01", "at": "1", "text": "forged"}).encode()
    hook = Hook("POST", {"authorization": f"Bearer {BEARER}"}, body, NOW)

    verified = door.verify(hook, now=NOW)
    assert isinstance(verified, bytes)
    (found,) = door.events(verified, hook)

    assert (found.delivery_key, found.ref, found.note) == ("recDemo01:1", ref(), None)
    assert found.asked, "the next step of the automation wants the link"
    assert door.answer(Accepted("ep", "queued", LINK, duplicate=True), hook).status == 200


def test_every_press_of_a_button_counts_where_the_automation_sends_no_time():
    door = connector(secrets={**CONFIG["secrets"], "automation": [BEARER]})
    body = b'{"record": "recDemo01"}'
    headers = {"authorization": f"Bearer {BEARER}"}

    first = door.events(body, Hook("POST", headers, body, NOW))
    second = door.events(body, Hook("POST", headers, body, NOW + timedelta(seconds=9)))

    assert first[0].delivery_key != second[0].delivery_key


def test_a_replay_is_proven_as_the_tool_would_prove_it_and_says_which_secrets_did():
    door = connector(secrets={**CONFIG["secrets"], "automation": [BEARER]})
    for body, secrets in (
        (json.dumps(event(EDITED)).encode(), {KEY, TOKEN}),
        (b'{"record": "recDemo01"}', {BEARER}),
    ):
        hook = door.as_sent(body, now=NOW, msg_id="m")
        with proofs() as proven:
            assert door.verify(hook, now=NOW) == body
        assert proven == {secret_label(secret) for secret in secrets}

    alone = {"app_id": "a", "app_secret": "b", "automation": [BEARER]}
    with pytest.raises(ConfigError, match="automation's calls only"):
        connector(secrets=alone).as_sent(json.dumps(event()).encode(), now=NOW, msg_id="m")


def test_an_automation_of_another_table_is_told_so():
    door = connector(secrets={**CONFIG["secrets"], "automation": [BEARER]})
    body = b'{"record": "rec1", "table": "tblOther"}'
    hook = Hook("POST", {"authorization": f"Bearer {BEARER}"}, body, NOW)

    with pytest.raises(Malformed, match="/table: this endpoint reads tblDemo01"):
        door.events(body, hook)


# rows ---------------------------------------------------------------------------------------------


def test_rows_are_read_as_notes_and_ones_that_are_gone_are_left_out(fake, table):
    fake.world.edit(table, "recDemo01", {"播报状态": "待播报"})

    ready, other = connector(fake).read([ref(), ref("recGone"), ref("recDemo02")])

    assert ready.title == "产品周例会"
    assert ready.text.startswith("## 会议纪要\n\n李雷：接口联调")
    assert "## 决议\n\n- 周五发布" in ready.text
    assert (ready.speaker, ready.lang, ready.ready) == ("李雷", "zh", True)
    assert ready.modified_at is not None
    assert (other.ref.key, other.ready) == ("recDemo02", False)
    assert sum("batch_get" in one.path for one in fake.seen) == 1


def test_a_large_batch_is_read_in_calls_of_a_hundred(fake, table):
    for n in range(150):
        fake.world.add_row(table, f"rec{n}", {"会议主题": str(n), "会议纪要": "a"})

    notes = list(connector(fake).read([ref(f"rec{n}") for n in range(150)]))

    assert [note.title for note in notes] == [str(n) for n in range(150)]
    sizes = [len(one.json["record_ids"]) for one in fake.seen if "batch_get" in one.path]
    assert sizes == [100, 50]


def test_columns_that_are_named_by_id_may_be_renamed(fake, table):
    fields = {"text": "fldNotes", "title": "fldTitle"}
    trigger = {"column": "fldStatus", "equals": "待播报"}
    door = connector(fake, fields=fields, trigger=trigger, output={"status": "fldStatus"})
    assert next(door.read([ref()])).title == "产品周例会"

    at = [one.id for one in table.columns].index("fldTitle")
    table.columns[at] = Column("fldTitle", "主题")
    at = [one.id for one in table.columns].index("fldStatus")
    table.columns[at] = replace(table.columns[at], name="状态")

    assert next(door.read([ref()])).title == "产品周例会"
    door.write_back(ref(), NotePatch("k", "queued"))
    assert table.rows["recDemo01"].cells["fldStatus"] == "排队中"


def test_the_walk_finds_what_was_made_ready_and_goes_on_from_there(fake, table):
    for n in range(450):
        fake.world.add_row(table, f"rec{n:03}", {"会议纪要": "a", "播报状态": "待播报"})
    door = connector(fake)

    pages = list(door.backfill(Cursor()))
    again = list(door.backfill(pages[-1].cursor))

    assert [len(page.events) for page in pages] == [200, 200, 50]
    assert [page.is_last for page in pages] == [False, False, True]
    keys = [one.delivery_key for page in pages for one in page.events]
    assert len(set(keys)) == 450
    assert keys[0].startswith("walk/rec000/1")
    assert all(one.note and one.note.ready for page in pages for one in page.events)
    # What lies within the overlap comes again, under the same keys.
    assert {one.delivery_key for page in again for one in page.events} == set(keys)


def test_a_walk_that_was_broken_off_goes_on_where_it_was(fake, table):
    for n in range(300):
        fake.world.add_row(table, f"rec{n:03}", {"会议纪要": "a", "播报状态": "待播报"})
    door = connector(fake)

    first = next(door.backfill(Cursor()))
    kept = json.loads(json.dumps(first.cursor.value))
    rest = list(door.backfill(Cursor(kept, first.cursor.overlap_s)))

    found = [one.ref.key for page in (first, *rest) for one in page.events]
    assert found == [f"rec{n:03}" for n in range(300)]


def test_a_page_token_that_is_too_old_begins_the_walk_anew(fake, table):
    fake.world.add_row(table, "rec1", {"会议纪要": "a", "播报状态": "待播报"})

    value = {"since": 0, "newest": 5, "page_token": "no token"}
    (page,) = connector(fake).backfill(Cursor(value))

    assert [one.ref.key for one in page.events] == ["rec1"]


def test_a_row_that_slips_between_pages_is_found_by_the_next_walk(fake, table):
    clock = [time.time()]
    fake.world.clock = lambda: clock[0]
    for n in range(250):
        fake.world.add_row(table, f"rec{n:03}", {"会议纪要": "a", "播报状态": "待播报"})
        clock[0] += 60
    door = connector(fake)
    walk = door.backfill(Cursor())
    found = {one.ref.key for one in next(walk).events}

    for n in range(60):  # they are taken, so that the next page begins further on
        fake.world.edit(table, f"rec{n:03}", {"播报状态": "排队中"}, by="api")
    *_, last = walk
    found |= {one.ref.key for one in last.events}
    assert len(found) < 250
    *_, last = door.backfill(last.cursor)

    assert found | {one.ref.key for one in last.events} == {f"rec{n:03}" for n in range(250)}


def test_rows_that_stay_ready_are_walked_again_only_when_they_changed(fake, table):
    clock = [time.time() + 60]
    fake.world.clock = lambda: clock[0]
    fake.world.edit(table, "recDemo01", {"播报状态": "待播报"})
    door = connector(fake, output={"link": "收听链接"})
    *_, last = door.backfill(Cursor())
    clock[0] += 3_600
    fake.world.edit(table, "recDemo02", {"播报状态": "待播报"})
    *_, last = door.backfill(last.cursor)

    (page,) = door.backfill(last.cursor)

    assert [one.ref.key for one in page.events] == ["recDemo02"]


def test_the_sample_is_a_ready_row_if_there_is_one(fake, table):
    door = connector(fake)
    assert door.sample() is not None

    fake.world.edit(table, "recDemo02", {"播报状态": "待播报"})

    sample = door.sample()
    assert sample is not None
    assert sample.title == "Design review"


# write-back ---------------------------------------------------------------------------------------


def mp3(content: bytes) -> AudioFile:
    return AudioFile("notes.mp3", "audio/mpeg", len(content), lambda: content)


def test_each_state_is_written_in_the_columns_own_shape(fake, table):
    door = connector(fake)
    cells = table.rows["recDemo01"].cells

    door.write_back(ref(), NotePatch("1", "queued", LINK))
    assert table.rows["recDemo01"].cells["fldStatus"] == "排队中"
    assert table.rows["recDemo01"].cells["fldLink"] == Link("收听", LINK)
    done = NotePatch("2", "done", LINK, "https://notes.example/a.mp3", duration_s=63.24)
    door.write_back(ref(), replace(done, audio_file=mp3(b"sound")))
    after = table.rows["recDemo01"].cells

    assert after["fldStatus"] == "已完成"
    (file,) = after["fldAudio"]
    assert isinstance(file, File)
    assert (file.name, file.content) == ("notes.mp3", b"sound")
    assert after["fldSeconds"] == 63.2
    assert after["fldNotes"] == cells["fldNotes"]

    door.write_back(ref(), NotePatch("3", "failed", error="too_long"))
    assert table.rows["recDemo01"].cells["fldStatus"] == "失败"
    assert table.rows["recDemo01"].cells["fldError"]
    door.write_back(ref(), NotePatch("4", "queued"))
    assert "fldError" not in table.rows["recDemo01"].cells


def test_a_large_recording_goes_up_in_parts(fake, table):
    content = bytes(range(256)) * (((20 << 20) + 700_000) // 256)

    patch = NotePatch("1", "done", audio_ref="https://a", audio_file=mp3(content))
    connector(fake).write_back(ref(), patch)

    (file,) = table.rows["recDemo01"].cells["fldAudio"]
    assert isinstance(file, File)
    assert file.content == content
    parts = [one for one in fake.seen if one.path.endswith("upload_part")]
    assert len(parts) == -(-len(content) // BLOCK_BYTES)


def test_links_and_lengths_fit_text_columns_too(fake, table):
    output = {"link": "失败原因", "audio": "收听链接", "duration": "决议"}
    patch = NotePatch("1", "done", LINK, "https://notes.example/a.mp3", duration_s=205.0)

    connector(fake, output=output).write_back(ref(), patch)

    cells = table.rows["recDemo01"].cells
    assert cells["fldError"] == LINK
    assert cells["fldLink"] == Link("收听", "https://notes.example/a.mp3")
    assert cells["fldDecisions"] == "3:25"


def test_a_repeated_write_happens_once_even_if_its_answer_was_lost(fake, table):
    tool = fake.tool(FakeFeishu)
    tool.subscribed.add(BASE)
    fake.fail("PUT *", status=504, carried_out=True)
    door = connector(fake)
    patch = NotePatch("ep1:queued", "queued", LINK)

    with pytest.raises(ToolUnavailable):
        door.write_back(ref(), patch)
    revision = table.revision
    door.write_back(ref(), patch)

    tokens = {dict(one.query)["client_token"] for one in fake.seen if one.method == "PUT"}
    assert len(tokens) == 1
    assert table.revision == revision


def test_a_row_that_is_gone_has_nothing_to_show(fake, table):
    fake.world.delete(table, "recDemo01")

    connector(fake).write_back(ref(), NotePatch("1", "done", LINK))

    assert [one.method for one in fake.seen].count("PUT") == 1


def test_a_renamed_column_is_found_out_and_the_nearest_one_named(fake, table):
    door = connector(fake)
    door.write_back(ref(), NotePatch("1", "queued", LINK))
    at = [one.id for one in table.columns].index("fldLink")
    table.columns[at] = Column("fldLink", "收听连接", "link")

    with pytest.raises(WrongColumn, match="no column '收听链接'; did you mean '收听连接'"):
        door.write_back(ref(), NotePatch("2", "live", LINK))


@pytest.mark.parametrize(
    ("code", "status", "kind", "message"),
    [
        (99991400, 429, ToolUnavailable, "fewer calls"),
        (99991400, 400, ToolUnavailable, "fewer calls"),
        (1254291, 200, ToolUnavailable, "somebody else writes"),
        (1254607, 400, ToolUnavailable, "not ready"),
        (1255040, 504, ToolUnavailable, "not ready"),
        (1254068, 200, WrongColumn, "a link column takes"),
        (1254064, 200, WrongColumn, "milliseconds"),
        (1254302, 403, ToolRefused, "advanced permissions"),
        (91403, 200, ToolRefused, "Add document app"),
        (99991672, 400, ToolRefused, "lacks a permission"),
        (424242, 200, ToolRefused, "code 424242"),
    ],
)
def test_each_code_has_its_meaning(fake, table, code, status, kind, message):
    headers = {"x-ogw-ratelimit-reset": "4"}
    body = {"code": code, "msg": "as the vendor says"}
    fake.fail("PUT *", status=status, body=body, headers=headers, times=2)

    with pytest.raises(kind, match=message) as caught:
        connector(fake).write_back(ref(), NotePatch("1", "queued"))

    if code == 99991400:
        assert caught.value.after_s == 4.0
    if code == 1254291:
        assert 0.5 <= caught.value.after_s <= 1.0


def test_two_writers_of_one_table_are_refused_and_one_gets_through(fake, table):
    fake.tool(FakeFeishu).write_s = 0.3
    doors = [connector(fake) for _ in range(2)]
    for door in doors:
        door.schema()
    barrier = threading.Barrier(2)
    outcomes: list[str] = []

    def write(door: Feishu, key: str) -> None:
        barrier.wait()
        try:
            door.write_back(ref(key), NotePatch(key, "queued"))
        except ToolUnavailable:
            outcomes.append("conflict")
        else:
            outcomes.append("written")

    keys = ("recDemo01", "recDemo02")
    threads = [threading.Thread(target=write, args=pair) for pair in zip(doors, keys, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["conflict", "written"]


# tokens, upkeep, limits ---------------------------------------------------------------------------


def test_a_token_is_fetched_once_and_anew_when_it_is_called_invalid(fake, table):
    door = connector(fake)
    door.schema()
    list(door.read([ref()]))
    fake.tool(FakeFeishu).forget_tokens()

    assert list(door.read([ref()]))

    paths = [one.path.rsplit("/", 1)[1] for one in fake.seen]
    assert paths == ["internal", "fields", "batch_get", "batch_get", "internal", "batch_get"]


def test_a_token_that_stays_invalid_is_an_error_and_no_loop(fake, table):
    body = {"code": 99991663, "msg": "Invalid access token"}
    fake.fail("POST */batch_get", status=400, body=body, times=9)

    with pytest.raises(ToolRefused, match="99991663"):
        list(connector(fake).read([ref()]))

    assert sum("batch_get" in one.path for one in fake.seen) == 2


def test_a_token_is_kept_until_ten_minutes_before_its_end(fake, table):
    clock = [0.0]
    secrets = AppSecrets(app_id="cli_demo", app_secret="demo-app-secret")
    api = FeishuApi(fake.url, secrets, clock=lambda: clock[0])
    path = f"/bitable/v1/apps/{BASE}/tables/{TABLE}/fields"

    for at_s in (0.0, 6_599.0, 6_600.0):
        clock[0] = at_s
        api.call("GET", path)

    assert [one.path.rsplit("/", 1)[1] for one in fake.seen] == [
        "internal", "fields", "fields", "internal", "fields",
    ]  # fmt: skip


def test_wrong_credentials_say_what_to_copy(fake, table):
    secrets = {**CONFIG["secrets"], "app_secret": "hunter2"}

    with pytest.raises(ToolRefused, match="copy both from the developer console") as caught:
        connector(fake, secrets=secrets).schema()

    assert "hunter2" not in str(caught.value)


def test_upkeep_subscribes_and_looks_at_the_columns(fake, table):
    door = connector(fake)

    state = door.upkeep({}, now=NOW, address="https://notes.example/hooks/zhou_hui")

    assert state["checked_at"].startswith("2026-11-20")
    assert fake.tool(FakeFeishu).subscribed == {BASE}
    subscribe = next(one for one in fake.seen if one.path.endswith("/subscribe"))
    assert (subscribe.query, subscribe.body) == ((("file_type", "bitable"),), b"")

    table.columns = [one for one in table.columns if one.id != "fldLink"]
    with pytest.raises(WrongColumn, match=r"output\.link: the table has no column '收听链接'"):
        door.upkeep(state, now=NOW, address="")


def test_a_subscription_that_did_not_take_is_an_alarm(fake, table):
    fake.fail("POST */subscribe", status=200, body={"code": 0, "data": {}})

    with pytest.raises(ToolRefused, match="not subscribed"):
        connector(fake).upkeep({}, now=NOW, address="")


def test_our_own_writes_are_an_echo_and_a_persons_are_none(fake, table):
    door = connector(fake)

    assert door.is_echo(frozenset({"fldLink", "fldAudio"}))
    assert not door.is_echo(frozenset({"fldLink", "fldNotes"}))
    assert not door.is_echo(frozenset({"fldStatus"}))


def test_writes_are_counted_by_table_and_reads_apart():
    door = connector()

    write, read = door.bucket(ref()), door.bucket(None, "read")

    assert write is not None and read is not None
    assert (write.name, write.per_s) == (f"feishu/{BASE}/{TABLE}", 5.0)
    assert read.name != write.name


def test_lark_has_its_own_address():
    assert make_connector("feishu", "x", {**CONFIG, "site": "lark"}).config.address == (
        "https://open.larksuite.com"
    )
    with pytest.raises(ConfigError, match="base_url: must be an https address"):
        make_connector("feishu", "x", {**CONFIG, "base_url": "http://example.com"})


def test_no_secret_is_shown():
    shown = repr(connector()) + repr(vars(connector())) + repr(connector().config)

    assert "demo-app-secret" not in shown
    assert KEY not in shown
    assert TOKEN not in shown
