"""The worker: how many at once, who is renewed, how it leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.backends.tone import Tone
from engine.base import SpeechRequest, Turn
from engine.engine import Engine
from engine.errors import EngineStopped
from pipeline import models
from pipeline.errors import LostLease
from pipeline.leases import Claim
from pipeline.settings import Settings
from pipeline.speaker import Held, Speaker
from tests.pipeline.house import House, open_house


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline, "never became true"
        time.sleep(0.01)


def a_claim() -> Claim:
    return Claim("e", 1, "realtime", 0, 1_000)


def test_a_claim_is_given_up_some_time_before_its_lease_runs_out() -> None:
    long, short, over = Held(a_claim(), 15.0), Held(a_claim(), 1.0), Held(a_claim(), 1.0)
    over.renewed(time.monotonic() - 0.85)

    assert not long.is_lost
    assert not short.is_lost, "a short lease is not over before it began"
    assert over.is_lost
    with pytest.raises(LostLease):
        over.check()


def test_a_renewal_counts_from_when_it_was_asked() -> None:
    held = Held(a_claim(), 15.0)
    held.renewed(time.monotonic() - 12.5)
    assert held.is_lost
    held.renewed(time.monotonic())
    assert not held.is_lost


def test_what_is_lost_stays_lost_and_stops_speaking() -> None:
    with Engine(Tone(pace="paced", rtf=10)) as engine:
        held = Held(a_claim(), 15.0)
        speech = engine.submit(SpeechRequest((Turn("A long sentence that takes a while."),)))
        held.watch(speech)
        held.lose()
        held.renewed(time.monotonic())

        assert held.is_lost
        with pytest.raises(EngineStopped):
            list(speech)
        later = engine.submit(SpeechRequest((Turn("Another one."),)))
        held.watch(later)
        assert later.is_cancelled


class Stage:
    """Conducts nothing: holds each episode until it is let go."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self.most: dict[str, int] = {}
        self._open = threading.Event()
        self._lock = threading.Lock()

    def conduct(self, held: Held) -> None:
        with self._lock:
            self.held[held.claim.episode_id] = held
            queue = held.claim.queue
            now = sum(one.claim.queue == queue for one in self.held.values())
            self.most[queue] = max(now, self.most.get(queue, 0))
        while not (self._open.wait(0.01) or held.is_lost or held.is_draining):
            pass
        with self._lock:
            del self.held[held.claim.episode_id]

    def let_go(self) -> None:
        self._open.set()


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template) as house:
        yield house


@contextmanager
def at_work(house: House, conduct: Callable[[Held], None], **options: Any) -> Iterator[Speaker]:
    settings = Settings(look_s=0.05, lease_ms=2_000, renew_ms=200, **options)
    with Engine(Tone()) as engine:
        speaker = Speaker(house.database, engine, conduct, settings, house.worker)
        speaker.start()
        try:
            yield speaker
        finally:
            speaker.drain(5.0)


def fill(house: House, count: int, queue: str = "realtime") -> list[str]:
    ids = [house.accept(f"Note {queue} {n}.").episode_id for n in range(count)]
    house.change(models.episode, models.episode.c.id.in_(ids), queue=queue)
    return ids


def test_as_many_are_spoken_at_once_as_the_engine_has_slots(house: House) -> None:
    fill(house, 12)
    stage = Stage()
    with at_work(house, stage.conduct):
        wait_until(lambda: len(stage.held) == 8)
        stage.let_go()
        wait_until(lambda: len({one.episode_id for one in house.all(models.attempt)}) == 12)

    assert stage.most == {"realtime": 8}


def test_batch_work_leaves_room_for_those_who_wait(house: House) -> None:
    fill(house, 12, "batch")
    stage = Stage()
    with at_work(house, stage.conduct):
        wait_until(lambda: len(stage.held) == 6)
        (urgent,) = fill(house, 1)
        wait_until(lambda: urgent in stage.held)

    assert stage.most["batch"] == 6


def test_a_suspect_runs_alone_of_its_kind(house: House) -> None:
    fill(house, 3, "quarantine")
    stage = Stage()
    with at_work(house, stage.conduct):
        wait_until(lambda: len(stage.held) == 1)
        fill(house, 2)
        wait_until(lambda: len(stage.held) == 3)

    assert stage.most["quarantine"] == 1


def test_owned_episodes_are_renewed_and_lost_ones_are_told(house: House) -> None:
    kept, taken = fill(house, 2)
    stage = Stage()
    with at_work(house, stage.conduct):
        wait_until(lambda: len(stage.held) == 2)
        before = {one.id: one.lease_until_ms for one in house.all(models.episode)}
        lost = stage.held[taken]
        house.change(models.episode, models.episode.c.id == taken, fence=7)
        wait_until(lambda: lost.is_lost)
        wait_until(
            lambda: (
                next(one.lease_until_ms for one in house.all(models.episode) if one.id == kept)
                > before[kept]
            )
        )
        assert not stage.held[kept].is_lost


def test_an_episode_whose_conductor_broke_is_not_renewed_for_ever(house: House) -> None:
    (broken,) = fill(house, 1)

    def conduct(held: Held) -> None:
        raise RuntimeError("nobody expected this")

    with at_work(house, conduct):
        wait_until(lambda: bool(house.all(models.attempt)))
        row = house.all(models.episode)[0]
        time.sleep(0.7)  # three renewals
        assert house.all(models.episode)[0].lease_until_ms == row.lease_until_ms

    assert row.id == broken


def test_a_draining_worker_claims_no_more_and_waits_for_its_episodes(house: House) -> None:
    fill(house, 2)
    stage = Stage()
    with at_work(house, stage.conduct) as speaker:
        wait_until(lambda: len(stage.held) == 2)
        speaker.drain(5.0)
        fill(house, 1)
        speaker.wake()
        time.sleep(0.2)

    assert stage.held == {}
    assert [one.state for one in house.all(models.episode)].count("queued") == 1


def test_who_does_not_reach_the_end_of_its_sentence_in_time_is_interrupted(house: House) -> None:
    fill(house, 1)
    began, interrupted = threading.Event(), threading.Event()
    with Engine(Tone(pace="paced", rtf=100)) as engine:

        def speak(held: Held) -> None:
            speech = engine.submit(SpeechRequest((Turn("A sentence that takes minutes."),)))
            held.watch(speech)
            began.set()
            with pytest.raises(EngineStopped):
                list(speech)
            if held.is_draining and not held.is_lost:
                interrupted.set()

        with at_work(house, speak) as speaker:
            assert began.wait(20)
            speaker.drain(0.1)

    assert interrupted.is_set(), "it still owns the episode, so that it can hand it over"
