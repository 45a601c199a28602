"""`notecast connectors`, as people type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.test_cli import data as data  # the fixture
from tests.pipeline.test_cli import notecast
from tests.pipeline.test_door import CONFIG, SECRET

TABLE = """
[endpoint.notes]
connector = "airtable"
base = "appDemo01"
table = "tblDemo01"
base_url = "http://127.0.0.1:9"
secrets = { token = "file:token" }
trigger = { column = "Status", equals = "Ready" }
fields = { title = "Title", text = "Notes" }
output = { status = "Status", link = "Listen" }
"""


@pytest.fixture
def place(data: Path) -> Path:
    (data / "secret").write_text(SECRET)
    (data / "token").write_text("pat-demo")
    (data / "connectors.toml").write_text(CONFIG + TABLE)
    return data


def test_the_endpoints_are_listed_with_their_doors(place: Path) -> None:
    done = notecast("connectors", "list", "--data", str(place), "--json", cwd=place)

    assert [(one["endpoint"], one["hook"]) for one in json.loads(done.stdout)] == [
        ("board", "/hooks/board"),
        ("notes", "/hooks/notes"),
    ]


def test_check_ends_with_1_when_something_is_wrong(place: Path) -> None:
    good = notecast("connectors", "check", "board", "--data", str(place), cwd=place)
    assert (good.returncode, "board: good" in good.stdout) == (0, True)

    bad = notecast("connectors", "check", "--data", str(place), "--json", cwd=place)
    assert bad.returncode == 1
    by_name = {one["endpoint"]: one["problems"] for one in json.loads(bad.stdout)}
    assert by_name["board"] == []
    assert "Airtable" in by_name["notes"][0]


def test_status_and_rotate_speak_plainly(place: Path) -> None:
    shown = notecast("connectors", "status", "--data", str(place), cwd=place)
    assert shown.returncode == 0
    assert SECRET not in shown.stdout

    nothing = notecast("connectors", "rotate", "board", "--accept", "--data", str(place), cwd=place)
    assert nothing.returncode == 2
    assert "no secret is pending here" in nothing.stderr
    made = notecast("connectors", "rotate", "board", "--data", str(place), cwd=place)
    assert made.stdout.startswith("whsec_")


def test_backfill_of_a_sender_that_must_send_is_refused(place: Path) -> None:
    done = notecast("connectors", "backfill", "board", "--dry-run", "--data", str(place), cwd=place)

    assert done.returncode == 2
    assert "its sender has to send them" in done.stderr
