"""Minutes become notes; the user's token is refreshed with tokens that work once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from connectors.base import Hook, NoteRef
from connectors.errors import ConfigError, Malformed, Rejected, ToolRefused
from connectors.fake.feishu import FakeFeishu
from connectors.fake.feishu_minutes import FakeMinutes, Minutes
from connectors.fake.server import Fake
from connectors.feishu_minutes import FeishuMinutes, minutes_text
from connectors.registry import make_connector

NOW = datetime(2026, 11, 20, 1, 30, tzinfo=UTC)
SECRETS = {
    "app_id": "cli_demo",
    "app_secret": "demo-app-secret",
    "encrypt_key": "demo-encrypt-key",
    "token": "demo-verification-token",
    "refresh_token": "ur-first",
}
ARTIFACTS: dict[str, Any] = {
    "summary": "接口延期两天，周五发布。",
    "minute_chapters": [
        {
            "title": "接口延期",
            "start_ms": 192_000,
            "stop_ms": 400_000,
            "summary_content": "原因是环境。",
        },
        {"title": "发布", "start_ms": 3_792_500, "summary_content": "周五。"},
    ],
    "minute_todos": [
        {"content": "更新文档", "assignees": ["李雷", "韩梅梅"], "is_done": False},
        {"content": "通知客户", "assignees": [], "is_done": True},
        {"content": " "},
    ],
    "keywords": ["接口"],
    "transcript": "2026-11-20 10:00:00 CST|12分钟\n\n关键词:\n接口\n\n文字记录:\n"
    "李雷 00:00:05\n大家好。\n今天说接口。\n\n韩梅梅 00:00:12.300\n好的。\n",
}
TEXT = """## 摘要

接口延期两天，周五发布。

## [00:03:12] 接口延期

原因是环境。

## [01:03:12] 发布

周五。

## 待办事项

- [ ] 更新文档（负责人：李雷和韩梅梅）
- [x] 通知客户

## 文字记录

[00:00:05] 李雷：大家好。
今天说接口。
[00:00:12] 韩梅梅：好的。"""


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake([FakeFeishu, FakeMinutes], retry_s=()).running() as fake:
        fake.world.clock = NOW.timestamp
        yield fake


def connector(fake: Fake | None = None, **changes: Any) -> FeishuMinutes:
    config = {"secrets": SECRETS, "base_url": fake.url if fake else "", **changes}
    made = make_connector("feishu_minutes", "meetings", config)
    assert isinstance(made, FeishuMinutes)
    return made


def kept(state: dict[str, Any]) -> dict[str, Any]:
    """What is left of a state that was stored."""
    return json.loads(json.dumps(state))


def ready(fake: Fake, **changes: Any) -> FeishuMinutes:
    door = connector(fake, **changes)
    door.state = kept(door.upkeep({}, now=NOW, address=""))
    return door


def test_the_event_names_the_minutes(fake):
    door = connector(fake)
    delivery = fake.tool(FakeMinutes).generate(Minutes("obcdemo", "周例会", 0))
    hook = Hook("POST", delivery.headers, delivery.body, NOW)

    body = door.verify(hook, now=NOW)
    assert isinstance(body, bytes)
    (event,) = door.events(body, hook)

    assert event.ref == NoteRef("meetings", "minutes", "", "obcdemo")
    assert event.delivery_key.endswith("/obcdemo")
    assert event.note is None


def test_other_events_are_nothing_and_unsigned_ones_are_rejected():
    door = connector()
    other = {"header": {"event_id": "e", "event_type": "im.message.receive_v1"}, "event": {}}
    odd = {
        "header": {"event_id": "e", "event_type": "minutes.minute.generated_v1"},
        "event": {"minute_token": 7},
    }

    assert door.events(json.dumps(other).encode(), Hook("POST", {}, b"", NOW)) == []
    with pytest.raises(Malformed, match="/event/minute_token"):
        door.events(json.dumps(odd).encode(), Hook("POST", {}, b"", NOW))
    with pytest.raises(Rejected):
        door.verify(Hook("POST", {}, json.dumps(odd).encode(), NOW), now=NOW)


def test_minutes_are_read_as_a_note(fake):
    made = Minutes("obcdemo", "产品 周例会", 1_763_600_000_000, ARTIFACTS)
    fake.tool(FakeMinutes).generate(made)
    door = ready(fake)

    (note,) = door.read([NoteRef("meetings", "minutes", "", "obcdemo")])

    assert note.text == TEXT
    assert (note.title, note.detail, note.ready) == ("产品 周例会", "brief", True)
    assert note.modified_at == datetime.fromtimestamp(1_763_600_000, UTC)


def test_the_transcript_is_exported_where_the_artifacts_have_none(fake):
    artifacts = {"summary": "All fine."}
    tool = fake.tool(FakeMinutes)
    tool.generate(Minutes("a", "Sync", 0, artifacts, "Alice 00:05\nHello.\n\nBob 01:00:07\nHi.\n"))
    tool.generate(Minutes("b", "Sync", 0, artifacts))
    door = ready(fake)

    exported, without = door.read([NoteRef("meetings", "minutes", "", key) for key in "ab"])

    assert exported.text == (
        "## Summary\n\nAll fine.\n\n## Transcript\n\n[00:05] Alice: Hello.\n[01:00:07] Bob: Hi."
    )
    assert without.text == "## Summary\n\nAll fine."
    asked = [one for one in fake.seen if one.path.endswith("/transcript")]
    assert dict(asked[0].query) == {
        "need_speaker": "true",
        "need_timestamp": "true",
        "file_format": "txt",
    }


def test_the_transcript_may_be_left_out(fake):
    fake.tool(FakeMinutes).generate(Minutes("a", "Sync", 0, ARTIFACTS))

    (note,) = ready(fake, transcript=False).read([NoteRef("meetings", "minutes", "", "a")])

    assert "文字记录" not in note.text
    assert "待办事项" in note.text


def test_minutes_that_were_deleted_are_left_out_and_empty_ones_are_not_ready(fake):
    fake.tool(FakeMinutes).generate(Minutes("empty", "Sync", 0))

    (note,) = ready(fake).read([NoteRef("meetings", "minutes", "", key) for key in ("no", "empty")])

    assert (note.ref.key, note.ready) == ("empty", False)


def test_english_minutes_have_english_sections():
    artifacts = {
        "summary": "We ship.",
        "minute_todos": [{"content": "Update the docs", "assignees": ["Alice"]}],
    }

    assert minutes_text(artifacts, "") == (
        "## Summary\n\nWe ship.\n\n## To-dos\n\n- [ ] Update the docs (owner: Alice)"
    )


def test_odd_artifacts_are_text_all_the_same():
    odd = {"summary": None, "minute_chapters": [None, {"title": None}], "minute_todos": "no"}

    assert minutes_text(odd, "") == ""


def test_each_refresh_uses_the_token_of_the_one_before(fake):
    tool = fake.tool(FakeMinutes)
    door = connector(fake)

    first = kept(door.upkeep({}, now=NOW, address=""))
    soon = kept(door.upkeep(first, now=NOW + timedelta(minutes=10), address=""))
    late = kept(door.upkeep(soon, now=NOW + timedelta(minutes=110), address=""))

    assert soon == first
    assert first["secrets"]["refresh_token"] != late["secrets"]["refresh_token"]
    assert late["secrets"]["refresh_token"] == tool.refresh_token
    assert first["next_upkeep"] == NOW.timestamp() + 3_600
    assert len(tool.subscribers) == 1
    assert "ur-" not in repr({key: value for key, value in late.items() if key != "secrets"})


def test_the_next_day_subscribes_again(fake):
    door = connector(fake)

    first = kept(door.upkeep({}, now=NOW, address=""))
    door.upkeep(first, now=NOW + timedelta(days=1), address="")

    assert len(fake.tool(FakeMinutes).subscribers) == 2


def test_a_new_refresh_token_in_the_configuration_wins(fake):
    tool = fake.tool(FakeMinutes)
    first = kept(connector(fake).upkeep({}, now=NOW, address=""))
    tool.refresh_token = "ur-authorised-again"
    again = connector(fake, secrets={**SECRETS, "refresh_token": "ur-authorised-again"})

    state = again.upkeep(first, now=NOW, address="")

    assert state["secrets"]["refresh_token"] == tool.refresh_token


def test_a_refresh_token_that_was_used_before_asks_to_authorise_again(fake):
    fake.tool(FakeMinutes).refresh_token = "ur-other"

    with pytest.raises(ToolRefused, match="authorise again") as caught:
        connector(fake).upkeep({}, now=NOW, address="")

    assert "ur-first" not in str(caught.value)


def test_a_refresh_token_is_needed():
    secrets = {key: value for key, value in SECRETS.items() if key != "refresh_token"}
    with pytest.raises(ConfigError, match=r"secrets\.refresh_token: Field required"):
        make_connector("feishu_minutes", "meetings", {"secrets": secrets})
