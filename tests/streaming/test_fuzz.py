"""A small share of `python -m tests.fuzz`, with a seed that never changes."""

from __future__ import annotations

import logging

import pytest

from tests import fuzz


def test_ten_thousand_hostile_messages_get_only_documented_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        closes = fuzz.fuzz(seed=20, count=10_000)

    assert {1002, 4400, 4413} <= set(closes)
    ours = [one for one in caplog.records if not one.getMessage().startswith("socket.send()")]
    assert ours == []


@pytest.mark.slow
def test_a_hundred_thousand_hostile_messages_get_only_documented_answers() -> None:
    fuzz.fuzz(seed=21, count=100_000)
