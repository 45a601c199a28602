from __future__ import annotations

import logging

import pytest
import sqlalchemy as sa

from pipeline.database import Database
from pipeline.models import audit
from pipeline.security_log import MOST_ROWS, SecurityLog
from streaming.admission import SecurityEvent

EVENT = SecurityEvent("forbidden", "192.0.2.7", "lnk_1", "the link is for another session")


def rows(database: Database) -> list[tuple[str, str, str, object]]:
    with database.read() as connection:
        found = connection.execute(sa.select(audit).order_by(audit.c.id)).all()
    return [(row.actor, row.action, row.object, row.detail) for row in found]


def test_equal_events_become_one_row(database: Database) -> None:
    log = SecurityLog(database)
    for _ in range(3):
        log.note(EVENT)
    log.note(EVENT._replace(kind="origin", link="", detail="https://evil.example"))
    log.close()

    assert rows(database) == [
        (
            "192.0.2.7",
            "live.forbidden",
            "lnk_1",
            {"times": 3, "why": "the link is for another session"},
        ),
        ("192.0.2.7", "live.origin", "", {"times": 1, "why": "https://evil.example"}),
    ]


def test_a_flood_fills_no_table(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    log = SecurityLog(sqlite_database)
    for n in range(MOST_ROWS + 25):
        log.note(EVENT._replace(address=f"192.0.2.{n}"))
    with caplog.at_level(logging.WARNING):
        log.close()

    assert len(rows(sqlite_database)) == MOST_ROWS
    assert "25 security events" in caplog.text


def test_nothing_is_left_to_do_when_nothing_happened(sqlite_database: Database) -> None:
    log = SecurityLog(sqlite_database)
    log.close()
    log.note(EVENT)
    log.close()
    log.close()

    assert len(rows(sqlite_database)) == 1
