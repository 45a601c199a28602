"""Calls that keep their distance."""

from __future__ import annotations

from connectors.pace import Pace, pace_of


class Clock:
    """Time that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_no_more_than_the_limit_begin_in_any_window():
    clock = Clock()
    pace = Pace(4, 1.0, clock=clock, sleep=clock.sleep)
    begun = []
    for n in range(20):
        pace.wait()
        begun.append(clock.now)
        clock.now += 0.05 * (n % 3)

    assert begun[3] - begun[0] < 1.0, "a burst within the limit is not held up"
    for first, fifth in zip(begun, begun[4:], strict=False):
        assert fifth - first >= 1.0 - 1e-9


def test_after_a_rest_nobody_waits():
    clock = Clock()
    pace = Pace(1, 1.0, clock=clock, sleep=clock.sleep)
    pace.wait()
    clock.now += 5.0
    pace.wait()

    assert clock.now == 105.0


def test_who_counts_together_keeps_one_pace():
    assert pace_of("airtable/appOne", 4, 1.0) is pace_of("airtable/appOne", 4, 1.0)
    assert pace_of("airtable/appOne", 4, 1.0) is not pace_of("airtable/appTwo", 4, 1.0)
