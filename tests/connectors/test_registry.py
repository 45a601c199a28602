"""Making connectors from configuration."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from connectors.base import Connector, Cursor, Hook, NotePatch, NoteRef
from connectors.errors import ConfigError, Rejected, ToolUnavailable
from connectors.registry import make_connector

NOW = datetime(2026, 11, 20, tzinfo=UTC)
SECRET = "whsec_bm90ZWNhc3QtZGVtby1zZWNyZXQtMDAwMQ=="


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("webhok", {}, "connector: unknown 'webhok'; did you mean 'webhook'"),
        ("webhook", {}, "secrets: Field required"),
        ("webhook", {"secrets": {}}, "secrets.webhook: Field required"),
        ("webhook", {"secrets": {"webhook": []}}, "secrets.webhook: .*at least 1"),
        ("webhook", {"secrets": {"webhook": ["hunter2"]}}, "not a webhook secret"),
        ("webhook", {"secret": {"webhook": [SECRET]}}, "secret"),
        ("webhook", {"secrets": {"webhook": [SECRET], "webhok": 1}}, "did you mean 'webhook'"),
        ("feishu_automation", {"secrets": {"token": ["short"]}}, "shorter than 16"),
        (
            "feishu_automation",
            {"secrets": {"token": ["x" * 16]}, "write_back_url": "http://a.example"},
            "write_back_url: must be the https address",
        ),
        ("feishu_automation", {"secrets": {"token": ["x" * 16]}, "label": {}}, "'labels'"),
    ],
)
def test_bad_configuration_names_key_and_cure_and_no_secret(name, config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_connector(name, "board", config)

    assert "hunter2" not in str(caught.value)
    assert "bm90ZWNh" not in str(caught.value)


def test_connector_never_shows_its_secrets():
    connector = make_connector("webhook", "board", {"secrets": {"webhook": [SECRET]}})

    assert repr(connector) == "<Webhook board>"
    assert "bm90ZWNh" not in repr(vars(connector))


def test_plain_connector_refuses_hooks_and_does_nothing_else():
    plain = Connector("board", None)
    cursor = Cursor({"page": 2})

    with pytest.raises(Rejected):
        plain.verify(Hook("POST", {}, b"", NOW), now=NOW)
    assert plain.events(b"", Hook("POST", {}, b"", NOW)) == []
    assert list(plain.read([NoteRef("board")])) == []
    (page,) = plain.backfill(cursor)
    assert (page.events, page.cursor, page.is_last) == ((), cursor, True)
    assert plain.upkeep({"a": 1}, now=NOW, address="https://x") == {"a": 1}
    plain.write_back(NoteRef("board"), NotePatch("k"))


def test_busy_refusal_says_when_to_come_back():
    reply = Connector("board", None).refuse(ToolUnavailable("database", after_s=7.6))

    assert (reply.status, reply.headers) == (503, {"Retry-After": "8"})
