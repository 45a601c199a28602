"""What the relay repairs each second."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import leases, models, relay
from pipeline.database import now_ms
from pipeline.episodes import produce
from streaming.chunk_log import BEGINNING
from tests.pipeline.house import House, open_house


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template, durable_after_s=0) as house:
        yield house


def test_a_failed_episode_is_queued_when_its_time_has_come(house: House) -> None:
    early = house.accept("Early.").accepted.episode
    due = house.accept("Due.").accepted.episode
    house.change(
        models.episode, models.episode.c.key == early, state="failed", next_ms=now_ms() + 60_000
    )
    house.change(models.episode, models.episode.c.key == due, state="failed", next_ms=now_ms())

    assert relay.retry_failed(house.services) == 1
    assert relay.retry_failed(house.services) == 0
    assert (house.row(early).state, house.row(due).state) == ("failed", "queued")
    last = house.all(models.episode_log, models.episode_log.c.id)[-1]
    assert (last.to_state, last.reason) == ("queued", "again")


def test_a_sweep_frees_what_ran_out(house: House) -> None:
    key = house.accept("Freed.").accepted.episode
    house.claim()
    house.change(models.episode, models.episode.c.key == key, lease_until_ms=now_ms() - 1)
    relay.sweep(house.services)

    assert house.row(key).state == "queued"


def test_listeners_hear_why_an_episode_died_with_its_worker(house: House) -> None:
    key = house.accept("Deadly.").accepted.episode
    house.change(models.episode, models.episode.c.key == key, crash_count=2)
    house.claim()
    house.change(models.episode, models.episode.c.key == key, lease_until_ms=now_ms() - 1)
    relay.sweep(house.services)

    entries = house.services.chunks.read(key, BEGINNING, 100)
    told = [json.loads(entry.body) for entry in entries if not entry.header]
    row = house.row(key)
    assert (row.state, row.error_code) == ("dead", "poison")
    assert [event["message"] for event in told if event["t"] == "error"] == [row.error]


def test_a_worker_not_seen_for_long_is_gone(house: House) -> None:
    house.change(models.worker, models.worker.c.id == house.worker, seen_ms=now_ms() - 31_000)
    leases.register(house.database, "w" * 26, host="here", pid=2, kind="gpu", build="0")
    relay.sweep(house.services)

    states = {one.id: one.state for one in house.all(models.worker)}
    assert states == {house.worker: "gone", "w" * 26: "starting"}


def test_stored_sentences_are_removed_when_the_episode_ended_long_ago(house: House) -> None:
    old = house.accept("Sentence one of old. Sentence two of old.").accepted.episode
    produce(house.services, house.hold())
    new = house.accept("Sentence one of new.").accepted.episode
    produce(house.services, house.hold())
    house.change(models.episode, models.episode.c.key == old, ended_ms=now_ms() - 25 * 3_600_000)

    assert relay.tidy(house.services) == 2
    assert relay.tidy(house.services) == 0
    kept = {one.object_key for one in house.all(models.segment)}
    assert {one.key for one in house.services.storage.list("seg/")} == kept
    assert len(kept) == 1
    assert house.row(new).state == "done"


def test_the_relay_runs_until_it_is_told_to_stop(house: House) -> None:
    house.accept("Ring.")
    house.change(models.outbox, models.outbox.c.id > 0, due_ms=0)
    stop = threading.Event()
    thread = threading.Thread(target=relay.run_relay, args=(house.services, stop))
    thread.start()
    deadline = time.monotonic() + 20
    while "realtime" not in house.bell.rung and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    thread.join(20)

    assert not thread.is_alive()
    assert "realtime" in house.bell.rung
