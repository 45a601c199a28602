"""The connector of docs/add-a-connector.md, taken from that page and added."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from connectors.base import Connector
from connectors.fake.server import Fake
from connectors.registry import CONNECTORS, make_connector
from tests.connectors.test_fixtures import TOKEN, run_in, run_out
from tests.connectors.test_fixtures import vendor as vendor  # the fixture

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-connector.md").read_text("utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Connector]]:
    """The file of the page, imported and registered."""
    path = tmp_path / "tracker.py"
    path.write_text(block("python"), "utf-8")
    spec = importlib.util.spec_from_file_location("tracker", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tracker", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(CONNECTORS, "tracker", module.Tracker)  # type: ignore[index]
    yield module.Tracker


def config(vendor: Fake) -> dict[str, Any]:
    return {
        "base_url": vendor.url,
        "secrets": {"hook": [TOKEN], "api": "a-token-of-tracker"},
        "trigger": {"column": "Status", "equals": "Ready"},
        "fields": {"title": "Title", "text": "Notes"},
        "output": {"status": "Status", "link": "Listen"},
    }


def test_the_page_adds_a_connector(tracker: type[Connector], vendor: Fake) -> None:
    fixture = json.loads(block("json"))
    now = datetime(2026, 11, 20, 1, 30, tzinfo=UTC)
    connector = make_connector("tracker", "board", config(vendor))

    run_in(connector, fixture, now)
    run_out(connector, fixture, vendor)
    assert {one.headers["authorization"] for one in vendor.seen} == {"Bearer a-token-of-tracker"}


def test_its_mistakes_are_told_like_those_of_others(
    tracker: type[Connector],
    vendor: Fake,
) -> None:
    from tests.connectors.test_fixtures import deliver, hook_of

    connector = make_connector("tracker", "board", config(vendor))
    fixture = {"hook": {"sign": "bearer", "body": {"rows": "17"}}}
    reply, events = deliver(connector, hook_of(fixture, datetime(2026, 11, 20, tzinfo=UTC)))

    assert (reply.status, events) == (422, [])
    assert json.loads(reply.body)["error"]["field"] in ("/row", "/rows")
