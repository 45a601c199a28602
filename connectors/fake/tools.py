"""The fake tools there are; `connectors fake` serves them all."""

from __future__ import annotations

from connectors.fake.airtable import FakeAirtable
from connectors.fake.feishu import FakeFeishu
from connectors.fake.feishu_minutes import FakeMinutes
from connectors.fake.google_sheets import FakeGoogleSheets
from connectors.fake.notion import FakeNotion
from connectors.fake.robots import FakeDingTalk, FakeWeCom
from connectors.fake.slack import FakeSlack
from connectors.fake.tool import FakeTool

TOOLS: tuple[type[FakeTool], ...] = (
    FakeFeishu,
    FakeMinutes,
    FakeDingTalk,
    FakeWeCom,
    FakeGoogleSheets,
    FakeAirtable,
    FakeNotion,
    FakeSlack,
)
