"""The script for Google Sheets, run under node; its messages are judged by two verifiers."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from connectors.signing import verify_webhook, webhook_key

ROOT = Path(__file__).parents[2]
SECRET = "whsec_bm90ZWNhc3QtZGVtby1zZWNyZXQtMDAwMQ=="
HEADER = ["Title", "Notes", "Status", "notecast_id", "", "Title"]

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="the script runs under node")


def run(call: str, cells: list[list[Any]], **scene: Any) -> dict[str, Any]:
    scene = {
        "script": str(ROOT / "docs" / "google-sheets.gs"),
        "call": call,
        "cells": cells,
        "secret": SECRET,
        "answers": [202],
    } | scene
    result = subprocess.run(
        ["node", str(Path(__file__).parent / "apps_script.js")],
        input=json.dumps(scene),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


def payload(request: dict[str, Any]) -> dict[str, Any]:
    return json.loads(request["payload"])


def test_ready_row_gets_a_key_and_is_sent_with_a_signature_that_two_judges_accept():
    left = run(
        "onRowEdit",
        [HEADER, ["Sync", "Decisions: 周五发布 — “ship” 🚢", "Ready"], ["Old", "x", "Done"]],
        rows=[2, 2],
    )

    (request,) = left["sent"]
    key = left["cells"][1][3]
    assert len(key) == 36
    assert left["cells"][2] == ["Old", "x", "Done"]
    assert payload(request)["type"] == "row.ready"
    assert payload(request)["data"] == {
        "sheet": "1DemoSheetId",
        "tab": "Notes",
        "key": key,
        "row": 2,
        "values": {
            "Title": "Sync",
            "Notes": "Decisions: 周五发布 — “ship” 🚢",
            "Status": "Ready",
            "notecast_id": key,
        },
    }
    body = request["payload"].encode()
    now = datetime.now(UTC)
    assert verify_webhook([webhook_key(SECRET)], request["headers"], body, now=now)
    standardwebhooks.Webhook(SECRET).verify(body, request["headers"], json_parse=False)
    assert (request["method"], request["contentType"]) == ("post", "application/json")
    assert request["followRedirects"] is False


@pytest.mark.parametrize(
    ("answers", "tries", "waits"),
    [
        ([503, 429, 202], 3, [1000, 4000]),
        (["DNS error", 202], 2, [1000]),
        ([500, 500, 500], 3, [1000, 4000]),
        ([401], 1, []),
        ([422], 1, []),
        ([302], 1, []),
    ],
)
def test_three_tries_with_one_id_and_none_after_a_refusal(answers, tries, waits):
    left = run("onRowEdit", [HEADER, ["Sync", "x", "Ready"]], rows=[2, 1], answers=answers)

    assert len(left["sent"]) == tries
    assert left["waits"] == waits
    assert len({request["headers"]["webhook-id"] for request in left["sent"]}) == 1


def test_failure_is_shown_on_the_status_cell():
    left = run("onRowEdit", [HEADER, ["Sync", "x", "Ready"]], rows=[2, 1], answers=[401])

    assert left["notes"] == {"2:3": 'Notecast answered 401: {"status": 401}'}


@pytest.mark.parametrize(
    "cells",
    [
        [HEADER, ["Sync", "x", "Draft"]],
        [HEADER, ["Sync", "x"]],
        [HEADER],
    ],
)
def test_row_that_is_not_ready_is_left_alone(cells: list[list[str]]):
    left = run("onRowEdit", cells, rows=[2, 1])

    assert left["sent"] == []
    assert left["cells"] == cells


def test_header_and_other_tabs_are_left_alone():
    ready = [HEADER, ["Sync", "x", "Ready"]]

    assert run("onRowEdit", ready, rows=[1, 1])["sent"] == []
    assert run("onRowEdit", ready, rows=[2, 1], tab="Archive")["sent"] == []


def test_copied_row_gets_a_key_of_its_own():
    left = run(
        "onRowEdit",
        [HEADER, ["Sync", "x", "Done", "k-1"], ["Sync", "x", "Ready", "k-1"]],
        rows=[3, 1],
    )

    assert left["cells"][1][3] == "k-1"
    assert left["cells"][2][3] not in ("", "k-1")


def test_known_row_keeps_its_key():
    left = run("onRowForm", [HEADER, ["Sync", "x", "Ready", "k-1"]], rows=[2, 1])

    assert payload(left["sent"][0])["data"]["key"] == "k-1"


def test_sweep_finds_rows_that_programs_added_and_no_others():
    rows = [["API", "x", "Ready"], ["Seen", "x", "Ready", "k-1"], ["Idle", "x", "Draft"]]

    left = run("sweep", [HEADER, *rows])

    assert [payload(request)["data"]["row"] for request in left["sent"]] == [2]


def test_paste_of_many_rows_gives_all_of_them_keys_and_sends_a_hundred():
    left = run("onRowEdit", [HEADER, *(["T", "x", "Ready"] for _ in range(130))], rows=[2, 130])

    assert len(left["sent"]) == 100
    assert len({row[3] for row in left["cells"][1:]}) == 130


def test_install_twice_leaves_one_trigger_of_each_kind_and_others_alone():
    left = run("install", [HEADER], triggers=["onRowEdit", "mine", "sweep"])

    assert left["triggers"] == [
        {"handler": "mine"},
        {"handler": "onRowEdit", "source": "sheet", "on": "edit"},
        {"handler": "onRowForm", "source": "sheet", "on": "form"},
        {"handler": "sweep", "source": "clock", "on": "every 10 min"},
    ]


@pytest.mark.parametrize(
    ("call", "scene", "message"),
    [
        ("install", {"secret": None}, "NOTECAST_SECRET"),
        ("onRowEdit", {"rows": [2, 1], "cells": [["Title"], ["x"]]}, "no column named Status"),
        ("sweep", {"tab": "Other"}, "no tab named Notes"),
    ],
)
def test_wrong_set_up_is_named(call: str, scene: dict[str, Any], message: str):
    cells = scene.pop("cells", [HEADER, ["Sync", "x", "Ready"]])

    assert message in run(call, cells, **scene)["error"]
