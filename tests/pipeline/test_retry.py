from __future__ import annotations

import pytest

from connectors.errors import ToolRefused, ToolUnavailable
from engine.errors import BadRequest, EngineFailed
from pipeline import retry
from pipeline.errors import Refused
from pipeline.script import Unspeakable
from pipeline.storage import StorageUnavailable

HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadRequest("no such voice"), "bad_request"),
        (Unspeakable("nothing to say"), "unspeakable"),
        (Refused("the row is gone"), "bad_request"),
        (ToolRefused("switched off", code="800004509"), "800004509"),
    ],
)
def test_what_time_cannot_mend_is_never_tried_again(error: Exception, code: str) -> None:
    verdict = retry.decide(error, tries=1, age_ms=0)

    assert verdict.after_ms is None
    assert verdict.code == code
    assert verdict.message == str(error)


@pytest.mark.parametrize("error", [ToolUnavailable("away"), StorageUnavailable("away")])
def test_what_is_away_is_asked_for_a_day_and_no_longer(error: Exception) -> None:
    young = retry.decide(error, tries=500, age_ms=23 * HOUR_MS)
    old = retry.decide(error, tries=2, age_ms=25 * HOUR_MS)

    assert young.after_ms is not None
    assert old.after_ms is None


def test_the_time_for_a_tool_that_is_away_can_be_shorter() -> None:
    verdict = retry.decide(ToolUnavailable("away"), tries=1, age_ms=2 * HOUR_MS, within_ms=HOUR_MS)

    assert verdict.after_ms is None


def test_a_tool_that_names_a_wait_gets_it() -> None:
    verdict = retry.decide(ToolUnavailable("busy", after_s=17.0), tries=9, age_ms=0)

    assert verdict.after_ms == 17_000


def test_delays_double_with_jitter_up_to_a_cap() -> None:
    for tries in range(1, 40):
        delay = retry.decide(ToolUnavailable("away"), tries=tries, age_ms=0).after_ms
        middle = min(900_000, 2_000 * 2 ** (tries - 1))
        assert delay is not None
        assert middle * 0.5 <= delay <= middle * 1.5


@pytest.mark.parametrize("error", [RuntimeError("boom"), EngineFailed("the engine failed")])
def test_an_error_of_unknown_kind_has_three_tries(error: Exception) -> None:
    verdicts = [retry.decide(error, tries=tries, age_ms=0) for tries in (1, 2, 3)]

    assert [verdict.after_ms is None for verdict in verdicts] == [False, False, True]


def test_the_number_of_tries_can_be_set() -> None:
    assert retry.decide(RuntimeError(), tries=1, age_ms=0, attempts=1).after_ms is None
    assert retry.decide(RuntimeError(), tries=4, age_ms=0, attempts=5).after_ms is not None


def test_a_foreign_error_shows_its_kind_and_not_its_insides() -> None:
    verdict = retry.decide(RuntimeError("password=hunter2"), tries=1, age_ms=0)

    assert verdict.code == "runtime_error"
    assert "hunter2" not in verdict.message
    assert "RuntimeError" in verdict.message


def test_codes_and_messages_fit_their_columns() -> None:
    class AnErrorWithAVeryLongNameThatNobodyWouldEverWrite(Exception):
        pass

    long = retry.decide(AnErrorWithAVeryLongNameThatNobodyWouldEverWrite(), tries=1, age_ms=0)
    wordy = retry.decide(ToolRefused("x" * 9_000), tries=1, age_ms=0)

    assert len(long.code) <= 32
    assert len(wordy.message) == 500


def test_events_are_repeated_by_the_table_of_the_standard() -> None:
    waits = [
        retry.decide_event(ToolUnavailable("answered 500"), tries=tries).after_ms
        for tries in range(1, 11)
    ]

    assert waits.pop() is None
    for wait_ms, table_s in zip(
        waits, (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400), strict=True
    ):
        assert wait_ms is not None
        assert table_s <= wait_ms / 1_000 <= table_s * 1.2


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ToolRefused("answered 400", code="400"), True),
        (ToolRefused("answered 302", code="302"), True),
        (ToolRefused("answered 410", code="410"), False),
        (ToolRefused("leads inside", code="unsafe_address"), False),
        (ValueError("ours"), False),
    ],
)
def test_only_a_farewell_ends_an_event(error: Exception, again: bool) -> None:
    assert (retry.decide_event(error, tries=1).after_ms is not None) is again
