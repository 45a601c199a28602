"""Rows to notes, states to cells, and what `check` says about a mapping that does not fit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from connectors.base import Column, NotePatch, NoteRef
from connectors.fields import (
    Audio,
    Link,
    Seconds,
    TableConfig,
    Text,
    is_echo,
    note_from,
    output_cells,
    problems,
)

REF = NoteRef("board", "base", "table", "rec1")
CHINESE: dict[str, Any] = {
    "trigger": {"column": "播报状态", "equals": "待播报"},
    "fields": {
        "title": "会议主题",
        "text": ["会议纪要", "决议"],
        "speaker": "主持人",
        "voice": "音色",
        "emotion": "语气",
        "duration": "时长模式",
        "schedule": "播报时间",
        "detail": "详略",
        "lang": {"const": "zh"},
    },
    "output": {"status": "播报状态", "link": "收听链接", "audio": "音频", "error": "失败原因"},
    "timezone": "Asia/Shanghai",
}
ENGLISH: dict[str, Any] = {
    "trigger": {"column": "Status", "equals": ["Ready", "Again"]},
    "fields": {"title": "Title", "text": "Notes", "lang": "Language"},
    "output": {"status": "Status", "link": "Listen", "error": "Error", "duration": "Length"},
}
ROW = {
    "会议主题": [{"type": "text", "text": "周例会"}],
    "会议纪要": "李雷：接口延期两天。",
    "决议": "周五发布",
    "播报状态": "待播报",
}
COLUMNS = [
    Column("fldT", "Title", "text"),
    Column("fldN", "Notes", "text"),
    Column("fldS", "Status", "select"),
    Column("fldL", "Listen", "url"),
    Column("fldE", "Error", "text"),
    Column("fldD", "Length", "number"),
    Column("fldG", "Language", "select"),
]


def chinese(**changes: Any) -> TableConfig:
    return TableConfig.model_validate({**CHINESE, **changes})


def english(**changes: Any) -> TableConfig:
    return TableConfig.model_validate({**ENGLISH, **changes})


def test_columns_are_joined_with_their_names_as_chapters() -> None:
    note = note_from(chinese(), REF, ROW)

    assert note.title == "周例会"
    assert note.text == "## 会议纪要\n\n李雷：接口延期两天。\n\n## 决议\n\n周五发布"
    assert (note.lang, note.ready, note.warnings) == ("zh", True, ())


def test_one_column_is_taken_as_it_is_and_empty_ones_are_left_out() -> None:
    assert note_from(english(), REF, {"Notes": "Words."}).text == "Words."
    assert note_from(chinese(), REF, {"决议": "周五发布"}).text == "## 决议\n\n周五发布"


@pytest.mark.parametrize(
    ("status", "ready"),
    [("Ready", True), ("ready ", True), ("Again", True), ("Draft", False), (None, False)],
)
def test_the_trigger_decides(status: Any, ready: bool) -> None:
    assert note_from(english(), REF, {"Notes": "x", "Status": status}).ready is ready


def test_a_row_without_words_is_never_ready() -> None:
    assert not note_from(english(), REF, {"Notes": " ", "Status": "Ready"}).ready


def test_a_ticked_box_can_trigger() -> None:
    config = english(trigger={"column": "Read aloud", "equals": True})

    assert note_from(config, REF, {"Notes": "x", "Read aloud": True}).ready
    assert not note_from(config, REF, {"Notes": "x"}).ready


def test_readiness_is_not_part_of_what_is_heard() -> None:
    ready = note_from(english(), REF, {"Notes": "x", "Status": "Ready"})
    done = note_from(english(), REF, {"Notes": "x", "Status": "Done"})

    assert ready.fingerprint == done.fingerprint


def test_columns_may_be_named_by_id_on_either_side() -> None:
    by_id = english(fields={"text": "fldN"}, trigger={"column": "fldS", "equals": "Ready"})
    note = note_from(by_id, REF, {"Notes": "x", "Status": "Ready"}, columns=COLUMNS)
    assert (note.text, note.ready) == ("x", True)

    note = note_from(english(), REF, {"fldN": "x", "fldS": "Ready"}, columns=COLUMNS)
    assert (note.text, note.ready) == ("x", True)


@pytest.mark.parametrize(
    ("cells", "field", "value", "warning"),
    [
        ({"语气": "严肃"}, "emotion", "serious", ""),
        ({"语气": "happy: 0.6, sad: 0.2"}, "emotion", "happy: 0.6, sad: 0.2", ""),
        ({"语气": "怪怪的"}, "emotion", "calm", "emotion: '怪怪的' is unknown, spoken calmly"),
        ({"时长模式": "Max：5m"}, "duration", "max:5m", ""),
        ({"时长模式": "speed:1.1"}, "duration", "speed:1.1", ""),
        ({"时长模式": "short"}, "duration", "", "duration: 'short' is no rule"),
        ({"详略": "摘要"}, "detail", "brief", ""),
        ({"详略": "kurz"}, "detail", "", "detail: 'kurz' is unknown"),
        ({"音色": "anna"}, "voice", "anna", ""),
        ({"音色": "https://x.example/a.wav"}, "voice", "", "voice: 'https://x.example/a.wav'"),
        ({"播报时间": "bald"}, "schedule", None, "schedule: 'bald' is no time"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_left_out_and_told(
    cells: dict[str, Any], field: str, value: Any, warning: str
) -> None:
    note = note_from(chinese(), REF, ROW | cells)

    assert getattr(note, field) == value
    assert " ".join(note.warnings).startswith(warning)
    assert bool(note.warnings) == bool(warning)


def test_a_time_of_day_is_read_in_the_endpoints_zone() -> None:
    now = datetime(2026, 11, 20, 0, 0, tzinfo=UTC)
    note = note_from(chinese(), REF, ROW | {"播报时间": "9:30"}, now=now)

    assert note.schedule == datetime(2026, 11, 20, 1, 30, tzinfo=UTC)


def test_a_state_becomes_cells() -> None:
    queued = NotePatch("k", status="queued", link="https://x.example/l/1")
    assert output_cells(english(), queued) == {
        "Status": Text("Queued"),
        "Listen": Link("https://x.example/l/1", "Listen"),
        "Error": Text(""),
    }
    done = NotePatch("k", status="done", audio_ref="https://x.example/a.mp3", duration_s=205.4)
    assert output_cells(chinese(), done) == {
        "播报状态": Text("已完成"),
        "音频": Audio("https://x.example/a.mp3", "收听"),
        "失败原因": Text(""),
    }
    assert output_cells(english(), done)["Length"] == Seconds(205.4)


def test_a_failure_shows_a_code_and_a_fixed_sentence() -> None:
    failed = NotePatch("k", status="failed", error="too_long")

    assert output_cells(english(), failed)["Error"] == Text(
        "too_long: the notes are too long for one recording"
    )
    assert output_cells(chinese(), failed)["失败原因"] == Text("too_long：内容太长，一次读不完")
    unknown = NotePatch("k", status="failed", error="weird")
    assert "operators see more" in output_cells(english(), unknown)["Error"].text  # type: ignore[union-attr]


def test_labels_may_be_ones_own() -> None:
    config = english(output={"status": "Status", "labels": {"done": "Read"}})

    assert output_cells(config, NotePatch("k", status="done")) == {"Status": Text("Read")}
    assert output_cells(config, NotePatch("k", status="live")) == {"Status": Text("Live")}


@pytest.mark.parametrize(
    ("seconds", "clock"), [(5, "0:05"), (205.4, "3:25"), (3_727, "1:02:07"), (0, "0:00")]
)
def test_a_length_as_a_clock_shows_it(seconds: float, clock: str) -> None:
    assert Seconds(seconds).clock == clock


@pytest.mark.parametrize(
    ("changed", "echo"),
    [
        ({"Listen", "Error"}, True),
        ({"fldL"}, True),
        ({"Listen", "Notes"}, False),
        ({"Status"}, False),
        ({"Status", "Listen"}, False),
        (set(), False),
    ],
)
def test_only_what_nobody_triggers_with_is_an_echo(changed: set[str], echo: bool) -> None:
    assert is_echo(english(), changed, COLUMNS) is echo


def test_a_mapping_that_fits_has_no_problems() -> None:
    assert problems(english(), COLUMNS) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"fields": {"text": "Nots"}},
            "fields.text: the table has no column 'Nots'; did you mean 'Notes'?",
        ),
        (
            {"trigger": {"column": "State", "equals": "Ready"}},
            "trigger.column: the table has no column 'State'; did you mean 'Status'?",
        ),
        (
            {"output": {"link": "Length"}},
            "output.link: 'Length' holds number; it must be text or url",
        ),
        (
            {"output": {"error": "Notes"}},
            "output.error: 'Notes' is read by [fields] too; what we write there would be spoken",
        ),
    ],
)
def test_a_mapping_that_does_not_fit_names_the_nearest_column(
    changes: dict[str, Any], problem: str
) -> None:
    assert problem in problems(english(**changes), COLUMNS)


def test_a_computed_column_neither_triggers_nor_is_written() -> None:
    columns = [*COLUMNS, Column("fldX", "Both", "computed")]
    config = english(
        trigger={"column": "Both", "equals": "Ready"}, output={"status": "Both", "error": "Both"}
    )
    found = " ".join(problems(config, columns))

    assert "nobody is told when it changes" in found
    assert "output.error: 'Both' is computed and cannot be written" in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": {"text": {"const": "x"}}}, "it is what is spoken"),
        ({"fields": {"text": []}}, "a column, a list of columns, or"),
        ({"timezone": "Mars/Olympus"}, "no zone 'Mars/Olympus'"),
        (
            {"output": {"status": "Status", "labels": {"done": "ready"}}},
            "the row would be spoken again and again",
        ),
    ],
)
def test_a_mapping_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match="(?s)" + message.replace("[", r"\[")):
        english(**changes)


@pytest.mark.parametrize(
    "voice",
    [
        "https://evil.example/clip.wav",
        "//evil.example/clip",
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\secret",
        "C:\\clip.wav",
        "file:clip.wav",
        "data:audio/wav;base64,AAAA",
    ],
)
def test_a_voice_is_a_name_and_never_an_address_or_a_path(voice: str) -> None:
    config = english(fields={"text": "Notes", "voice": "Voice"})

    note = note_from(config, REF, {"Notes": "x", "Voice": voice})

    assert note.voice == ""
    assert note.warnings and "is an address or a path" in note.warnings[0]


@pytest.mark.parametrize(
    "voice", ["anna", "zf_xiaoxiao", "af_heart:0.6,af_bella:.4", "小美", "alloy:2"]
)
def test_names_and_blends_of_voices_are_taken_as_they_are(voice: str) -> None:
    config = english(fields={"text": "Notes", "voice": "Voice"})

    note = note_from(config, REF, {"Notes": "x", "Voice": voice})

    assert (note.voice, note.warnings) == (voice, ())
