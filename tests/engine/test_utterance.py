"""engine/utterance.py: the bounded queue between the engine's thread and one reader."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.base import SAMPLE_RATE_HZ, AudioChunk, Plan, SpeechRequest, WordTiming
from engine.errors import EngineFailed, EngineStopped
from engine.utterance import Utterance, split_chunks


def utterance(ahead_s: float = 1.0) -> Utterance:
    return Utterance(SpeechRequest(turns=()), Plan(()), ahead_s=ahead_s)


def chunk(samples: int, **marks) -> AudioChunk:
    pcm = np.arange(samples).astype(np.int16)
    return AudioChunk(**{"seg": 0, "pcm": pcm, "first": True, "last": True, **marks})


def test_reader_gets_chunks_in_order_and_then_the_end():
    u = utterance()
    u.emit(chunk(1, seg=0))
    u.emit(chunk(1, seg=1))
    u.finish()

    assert [c.seg for c in u] == [0, 1]


def test_an_error_comes_after_what_was_emitted_before_it():
    u = utterance()
    u.emit(chunk(1))
    u.finish(EngineFailed("broke"))

    assert next(u).seg == 0
    with pytest.raises(EngineFailed, match="broke"):
        next(u)


def test_the_first_end_counts():
    u = utterance()
    u.finish()
    u.finish(EngineFailed("too late"))

    assert list(u) == []


def test_cancel_drops_what_waits_and_stops_the_reader():
    u = utterance()
    u.emit(chunk(10))
    u.cancel()
    u.cancel()
    u.emit(chunk(10))

    assert u.is_done
    with pytest.raises(EngineStopped):
        next(u)


def test_cancel_after_the_end_takes_nothing_away():
    u = utterance()
    u.emit(chunk(10))
    u.finish()
    u.cancel()

    assert not u.is_cancelled
    assert len(list(u)) == 1


def test_cancel_wakes_a_reader_that_waits():
    u = utterance()
    seen: list[type[Exception]] = []

    def read() -> None:
        try:
            next(u)
        except EngineStopped as error:
            seen.append(type(error))

    reader = threading.Thread(target=read)
    reader.start()
    u.cancel()
    reader.join(10)

    assert seen == [EngineStopped]


def test_a_reader_that_catches_up_gives_room():
    room = threading.Event()
    u = utterance(ahead_s=1.0)
    u.bind(room)
    u.emit(chunk(SAMPLE_RATE_HZ))
    assert not u.is_parked
    u.emit(chunk(1))
    assert u.is_parked
    assert not room.is_set()

    next(u)

    assert not u.is_parked
    assert room.is_set()


def test_sound_made_counts_what_listeners_hear_only():
    u = utterance()
    u.emit(chunk(5))
    u.emit(chunk(7, live=False))

    assert u.sound_samples == 5


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(1, 60_000), st.none()), max_size=40))
def test_parked_means_more_unread_sound_than_allowed(moves: list[int | None]):
    """A number emits that many samples, None reads one chunk."""
    room = threading.Event()
    u = utterance(ahead_s=2.0)
    u.bind(room)
    unread: list[int] = []
    for move in moves:
        was_parked = u.is_parked
        room.clear()
        if move is not None:
            u.emit(chunk(move))
            unread.append(move)
        elif unread:
            assert len(next(u).pcm) == unread.pop(0)

        assert u.is_parked == (sum(unread) > 2 * SAMPLE_RATE_HZ)
        assert room.is_set() == (was_parked and not u.is_parked)


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 2000))
def test_split_chunks_lose_nothing(samples: int, size: int):
    words = (WordTiming("a", 0, 1, (0, 1)),)
    whole = chunk(samples, pause_ms=7, words=words, remarks=("cut off",))

    pieces = list(split_chunks(whole, size))

    assert np.array_equal(np.concatenate([p.pcm for p in pieces]), whole.pcm)
    assert all(0 < len(p.pcm) <= size for p in pieces)
    assert [p.first for p in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]
    assert [p.pause_ms for p in pieces] == [7] + [0] * (len(pieces) - 1)
    assert pieces[0].words == whole.words
    assert [r for p in pieces for r in p.remarks] == ["cut off"]
    assert pieces[-1].remarks == whole.remarks


def test_whoever_wants_to_know_of_a_cancel_is_told_once_and_also_late():
    told = []
    u = utterance()
    u.when_cancelled(lambda: told.append("first"))
    u.when_cancelled(None)
    u.when_cancelled(lambda: told.append("second"))
    u.cancel()

    assert told == ["second"]
    u.when_cancelled(lambda: told.append("late"))
    assert told == ["second", "late"]


def test_a_cancel_after_the_end_tells_nobody():
    u = utterance()
    u.when_cancelled(pytest.fail)
    u.finish()
    u.cancel()

    assert not u.is_cancelled
