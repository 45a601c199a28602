"""engine/scheduler.py: who joins, who steps, who leaves."""

import numpy as np

from engine.base import SAMPLE_RATE_HZ, AudioChunk, Plan, SpeechRequest
from engine.scheduler import RUNWAY_S, Scheduler
from engine.utterance import Utterance


def utterance(*, live: bool = False, ahead_s: float = 1000.0) -> Utterance:
    return Utterance(SpeechRequest(turns=(), live=live), Plan(()), ahead_s=ahead_s)


def sound(u: Utterance, seconds: float) -> None:
    pcm = np.zeros(int(seconds * SAMPLE_RATE_HZ), np.int16)
    u.emit(AudioChunk(seg=0, pcm=pcm, first=True, last=True))


def started(slots: int, *utterances: Utterance, queue: int = 10) -> Scheduler:
    scheduler = Scheduler(slots, queue)
    for u in utterances:
        scheduler.add(u)
    scheduler.settle(0.0)
    return scheduler


def test_live_requests_take_free_slots_before_earlier_batch_requests():
    batch, live = utterance(), utterance(live=True)
    scheduler = started(1, batch, live)

    assert scheduler.next_batch(8, 0.0) == [live]


def test_among_equals_the_earliest_joins_first():
    first, second = utterance(), utterance()
    scheduler = started(1, first, second)
    first.finish()

    left, late = scheduler.settle(0.0)

    assert (left, late) == ([first], [])
    assert scheduler.next_batch(8, 0.0) == [second]


def test_full_means_slots_and_queue():
    scheduler = started(1, utterance(), queue=1)
    assert not scheduler.is_full
    scheduler.add(waiting := utterance())
    assert scheduler.is_full

    waiting.cancel()

    assert not scheduler.is_full


def test_batch_requests_step_in_turn():
    a, b, c = (utterance() for _ in range(3))
    scheduler = started(3, a, b, c)

    rounds = [scheduler.next_batch(2, 0.0) for _ in range(3)]

    assert rounds == [[a, b], [c, a], [b, c]]


def test_a_live_request_without_sound_steps_first():
    old, batch, new = utterance(live=True), utterance(), utterance(live=True)
    scheduler = started(3, old, batch, new)
    sound(old, 1.0)
    scheduler.stepped(0.0)

    assert scheduler.next_batch(3, 0.5) == [new, old, batch]


def test_the_live_request_that_runs_dry_first_steps_first():
    rich, poor, batch = utterance(live=True), utterance(live=True), utterance()
    scheduler = started(3, rich, poor, batch)
    sound(rich, 4.0)
    sound(poor, 2.0)
    scheduler.stepped(0.0)

    assert scheduler.next_batch(3, 1.0) == [poor, rich, batch]


def test_a_live_request_with_enough_runway_takes_turns_with_batch():
    live, batch = utterance(live=True), utterance()
    scheduler = started(2, live, batch)
    assert scheduler.next_batch(1, 0.0) == [live]
    sound(live, RUNWAY_S + 1)
    scheduler.stepped(0.0)

    assert scheduler.next_batch(1, 0.0) == [batch]
    assert scheduler.next_batch(1, 0.5) == [live]
    assert scheduler.next_batch(1, 0.5) == [batch]


def test_parked_requests_are_passed_over_and_keep_their_slot():
    parked, waiting = utterance(ahead_s=1.0), utterance()
    scheduler = started(1, parked, waiting)
    sound(parked, 2.0)

    assert scheduler.next_batch(8, 0.0) == []
    assert scheduler.owed == 0
    next(parked)
    assert scheduler.next_batch(8, 0.0) == [parked]
    assert scheduler.owed == 1


def test_waiting_too_long_gives_up():
    scheduler = started(1, utterance())
    impatient = utterance()
    scheduler.add(impatient, give_up_at=5.0)
    assert scheduler.wake_at() == 5.0
    assert scheduler.settle(4.9) == ([], [])

    assert scheduler.settle(5.0) == ([], [impatient])
    assert scheduler.wake_at() is None


def test_cancelled_requests_never_take_a_slot():
    gone, here = utterance(), utterance()
    gone.cancel()
    scheduler = started(1, gone, here)

    assert scheduler.next_batch(8, 0.0) == [here]


def test_drain_gives_everybody_back_once():
    a, b = utterance(), utterance()
    scheduler = started(1, a, b)

    assert scheduler.drain() == [a, b]
    assert scheduler.drain() == []
