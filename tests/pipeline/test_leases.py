"""Who owns an episode: claims, renewals, reaping, and what a late owner can still do."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from pipeline import ids, leases, models
from pipeline.database import Database, now_ms
from tests.pipeline.conftest import Seed

LEASE_MS = 15_000


@pytest.fixture
def home(seed: Seed) -> tuple[str, str]:
    """A team and its endpoint."""
    tenant_id = seed.tenant()
    return tenant_id, seed.endpoint(tenant_id)


def new_worker(database: Database, pid: int = 1, host: str = "here") -> str:
    worker_id = ids.ulid()
    leases.register(database, worker_id, host=host, pid=pid, kind="gpu", build="0")
    return worker_id


def claim(database: Database, worker: str, limit: int = 8, queue: str = "realtime") -> list[Any]:
    return leases.claim(database, worker, queue=queue, limit=limit, lease_ms=LEASE_MS)


def row(database: Database, episode_id: str) -> Any:
    with database.read() as connection:
        query = sa.select(models.episode).where(models.episode.c.id == episode_id)
        return connection.execute(query).one()


def change(database: Database, episode_id: str, **values: Any) -> None:
    with database.write() as connection:
        connection.execute(
            models.episode.update().where(models.episode.c.id == episode_id).values(values)
        )


def expire(database: Database, episode_id: str) -> None:
    change(database, episode_id, lease_until_ms=now_ms() - 1)


def reap(database: Database) -> list[leases.Freed]:
    return leases.reap(database, on_dead=lambda *_: None)


def test_the_best_episodes_are_claimed_first(
    database: Database, seed: Seed, home: tuple[str, str]
) -> None:
    late = seed.episode(*home, priority=3, fair_at_ms=20)
    soon = seed.episode(*home, priority=3, fair_at_ms=10)
    urgent = seed.episode(*home, priority=0, fair_at_ms=99)
    seed.episode(*home, queue="batch", priority=0)

    taken = claim(database, new_worker(database), limit=2) + claim(database, new_worker(database))

    assert [one.episode_id for one in taken] == [urgent, soon, late]
    assert [one.fence for one in taken] == [1, 1, 1]


def test_threads_never_claim_the_same_episode(
    database: Database, seed: Seed, home: tuple[str, str]
) -> None:
    wanted = {seed.episode(*home) for _ in range(40)}
    taken: list[str] = []

    def work() -> None:
        worker = new_worker(database)
        while found := claim(database, worker, limit=3):
            taken.extend(one.episode_id for one in found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(taken) == sorted(wanted)


def test_a_claim_says_where_to_go_on_and_begins_an_attempt(
    database: Database, seed: Seed, home: tuple[str, str]
) -> None:
    episode_id = seed.episode(*home, segments_done=3, fence=4)
    worker = new_worker(database)
    (taken,) = claim(database, worker)

    assert (taken.episode_id, taken.fence, taken.segments_done) == (episode_id, 5, 3)
    with database.read() as connection:
        attempt = connection.execute(sa.select(models.attempt)).one()
        now = connection.execute(sa.select(now_ms())).scalar_one()
    assert (attempt.fence, attempt.worker_id, attempt.first_segment) == (5, worker, 3)
    assert 0 <= now - taken.claimed_ms < 60_000
    assert leases.has_due(database, ("realtime",)) is False


def test_only_what_is_worked_on_is_renewed(
    database: Database, seed: Seed, home: tuple[str, str]
) -> None:
    for _ in range(3):
        seed.episode(*home)
    worker, other = new_worker(database), new_worker(database)
    mine, forgotten = claim(database, worker, limit=2)
    (theirs,) = claim(database, other)
    for one in (mine, forgotten, theirs):
        expire(database, one.episode_id)

    held = [mine.episode_id, theirs.episode_id]
    kept = leases.renew(database, worker, held, lease_ms=LEASE_MS)

    assert kept == {mine.episode_id: leases.Renewed(mine.fence, 0)}
    assert {one.key for one in reap(database)} == {
        row(database, one.episode_id).key for one in (forgotten, theirs)
    }


def test_a_lease_that_runs_out_is_freed_once_and_its_owner_is_fenced(
    database: Database, seed: Seed, home: tuple[str, str]
) -> None:
    episode_id = seed.episode(*home)
    worker = new_worker(database)
    claim(database, worker)
    assert reap(database) == []
    expire(database, episode_id)

    (freed,) = reap(database)

    assert (freed.state, freed.fence) == ("queued", 2)
    assert reap(database) == []
    assert leases.renew(database, worker, [episode_id], lease_ms=LEASE_MS) == {}
    assert row(database, episode_id).lease_owner is None


def test_a_suspect_runs_alone_and_is_dead_after_three_crashes(
    database: Database, seed: Seed, home: tuple[str, str]
) -> None:
    episode_id = seed.episode(*home)
    died: list[str] = []

    def on_dead(connection: sa.Connection, one: str) -> None:
        connection.execute(sa.update(models.episode).values(title="buried"))
        died.append(one)

    for queue in ("realtime", "quarantine", "quarantine"):
        claim(database, new_worker(database), queue=queue)
        expire(database, episode_id)
        (freed,) = leases.reap(database, on_dead=on_dead)

    found = row(database, episode_id)
    assert (found.state, found.crash_count, found.error_code) == ("dead", 3, "poison")
    assert freed.state == "dead"
    assert freed.error == found.error
    assert (died, found.title) == ([episode_id], "buried")
    assert found.ended_ms is not None


def test_progress_clears_a_suspect(database: Database, seed: Seed, home: tuple[str, str]) -> None:
    episode_id = seed.episode(*home, crash_count=2)
    claim(database, new_worker(database))
    change(database, episode_id, segments_done=1)
    expire(database, episode_id)
    reap(database)

    found = row(database, episode_id)
    assert (found.state, found.queue, found.crash_count) == ("queued", "realtime", 0)


def test_a_parent_frees_what_its_dead_child_held_at_once(
    database: Database, seed: Seed, home: tuple[str, str]
) -> None:
    episode_id, kept = seed.episode(*home), seed.episode(*home)
    dead, living = new_worker(database, pid=7), new_worker(database, pid=8)
    claim(database, dead, limit=1)
    claim(database, living)

    gone = leases.workers_of(database, host="here", pid=7)
    freed = leases.release_owners(database, gone, actor="up", on_dead=lambda *_: None)

    assert gone == [dead]
    assert [one.key for one in freed] == [row(database, episode_id).key]
    assert row(database, kept).lease_owner == living
    assert leases.workers_of(database, host="here") == [living]


def test_an_episode_that_is_handed_back_is_no_suspect(
    database: Database, seed: Seed, home: tuple[str, str]
) -> None:
    episode_id = seed.episode(*home, crash_count=2)
    worker = new_worker(database)
    claim(database, worker)

    (freed,) = leases.hand_back(database, worker)

    found = row(database, episode_id)
    assert (freed.state, freed.fence) == ("queued", 2)
    assert (found.queue, found.crash_count, found.state) == ("realtime", 2, "queued")
    with database.read() as connection:
        assert connection.execute(sa.select(models.attempt.c.outcome)).scalar() == "handed_over"


def test_a_cancelled_episode_is_not_renewed(
    database: Database, seed: Seed, home: tuple[str, str]
) -> None:
    episode_id = seed.episode(*home)
    worker = new_worker(database)
    claim(database, worker)
    change(database, episode_id, state="cancelled", lease_owner=None)

    assert leases.renew(database, worker, [episode_id], lease_ms=LEASE_MS) == {}
    assert reap(database) == []
