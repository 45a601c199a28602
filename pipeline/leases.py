"""Who owns an episode: claim, renew, reap.

A claim raises the episode's fence and gives a lease; every later write names that fence, so an
owner that lost its lease (stopped, cut off, superseded) changes nothing when it wakes. Leases are
renewed by one statement per worker; ids that do not come back are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from pipeline import outbox
from pipeline.database import Database, now_ms
from pipeline.models import LEASED, attempt, episode, episode_log, worker

OnDead = Callable[[sa.Connection, str], object]
"""What the death of an episode causes, in the commit that makes it."""

HANDED_OVER, LEASE_LOST = "handed over", "lease lost"

POISON_CRASHES = 3
"""Crashes without progress after which an episode is dead."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One episode, owned by this worker until the fence moves on.

    Attributes:
        claimed_ms: database time of the claim; with a monotonic clock it gives later instants.
        segments_done: stored sentences to go on after.
    """

    episode_id: str
    fence: int
    queue: str
    segments_done: int
    claimed_ms: int


def register(
    database: Database, worker_id: str, *, host: str, pid: int, kind: str, build: str
) -> None:
    """Make this process incarnation known; leases belong to it."""
    with database.write() as connection:
        connection.execute(
            worker.insert().values(
                id=worker_id,
                host=host,
                pid=pid,
                kind=kind,
                build=build,
                state="starting",
                started_ms=now_ms(),
                seen_ms=now_ms(),
            )
        )


def announce(
    database: Database, worker_id: str, state: str, *, engine: str | None = None, slots: int = 0
) -> None:
    """Change what others see of this worker (`ready`, `draining`, `gone`)."""
    values: dict[str, object] = {"state": state, "seen_ms": now_ms()}
    if engine is not None:
        values |= {"engine": engine, "slots": slots}
    with database.write() as connection:
        connection.execute(worker.update().where(worker.c.id == worker_id).values(values))


@dataclass(frozen=True, slots=True)
class Freed:
    """An episode that has no owner any more: `queued` again, or `dead` with the reason."""

    key: str
    fence: int
    state: str
    error: str


def has_due(database: Database, queues: Collection[str]) -> bool:
    """Is anything there to claim? A read, so that idle looks cost no write lock."""
    with database.read() as connection:
        return connection.execute(_DUE, {"queues": list(queues)}).first() is not None


_DUE = (
    sa.select(episode.c.id)
    .where(
        episode.c.state == "queued",
        episode.c.wanted == "run",
        episode.c.queue.in_(sa.bindparam("queues", expanding=True)),
    )
    .limit(1)
)


def claim(
    database: Database, worker_id: str, *, queue: str, limit: int, lease_ms: int
) -> list[Claim]:
    """Take the best due episodes of a queue, at most `limit`, in one commit.

    Best: lowest priority number, then fair share between tenants, then oldest.
    """
    with database.write() as connection:
        taken = connection.execute(
            database.once(_claim_best),
            {
                "from_queue": queue,
                "at_most": limit,
                "lease_owner": worker_id,
                "lease_ms": lease_ms,
            },
        ).all()
        if not taken:
            return []
        connection.execute(
            _START_ATTEMPT,
            [
                {
                    "episode_id": row.id,
                    "fence": row.fence,
                    "worker_id": worker_id,
                    "first_segment": row.segments_done,
                }
                for row in taken
            ],
        )
        log_states(
            connection, [(row.id, row.fence) for row in taken], "synthesising", actor=worker_id
        )
        connection.execute(_TOOK, {"taker": worker_id})
    taken = sorted(taken, key=lambda row: (row.priority, row.fair_at_ms, row.id))
    return [Claim(row.id, row.fence, queue, row.segments_done, row.now) for row in taken]


def _claim_best(database: Database) -> sa.Executable:
    best = (
        sa.select(episode.c.id)
        .where(
            episode.c.queue == sa.bindparam("from_queue"),
            episode.c.state == "queued",
            episode.c.wanted == "run",
        )
        .order_by(episode.c.priority, episode.c.fair_at_ms, episode.c.id)
        .limit(sa.bindparam("at_most", type_=sa.Integer))
    )
    return (
        episode.update()
        .where(episode.c.id.in_(database.skip_locked(best)))
        .values(
            state="synthesising",
            state_ms=now_ms(),
            lease_until_ms=now_ms() + sa.bindparam("lease_ms", type_=sa.BigInteger),
            fence=episode.c.fence + 1,
            started_ms=sa.func.coalesce(episode.c.started_ms, now_ms()),
        )
        .returning(
            episode.c.id,
            episode.c.fence,
            episode.c.segments_done,
            episode.c.priority,
            episode.c.fair_at_ms,
            now_ms().label("now"),
        )
    )


_START_ATTEMPT = attempt.insert().values(started_ms=now_ms())
_TOOK = (
    worker.update()
    .where(worker.c.id == sa.bindparam("taker"))
    .values(took_ms=now_ms(), seen_ms=now_ms())
)


@dataclass(frozen=True, slots=True)
class Renewed:
    """What a renewal says about an episode.

    Attributes:
        command_head: number of the last order, in case its signal was lost.
    """

    fence: int
    command_head: int


def renew(
    database: Database, worker_id: str, held: Collection[str], *, lease_ms: int
) -> dict[str, Renewed]:
    """Prolong what this worker works on; returns what it still owns, by episode id.

    Only episodes among `held` are prolonged: one whose conductor broke off must run out.
    """
    with database.write() as connection:
        kept = connection.execute(
            episode.update()
            .where(
                episode.c.lease_owner == worker_id,
                episode.c.state.in_(LEASED),
                episode.c.id.in_(held),
            )
            .values(lease_until_ms=now_ms() + lease_ms)
            .returning(episode.c.id, episode.c.fence, episode.c.command_head)
        ).all()
        connection.execute(worker.update().where(worker.c.id == worker_id).values(seen_ms=now_ms()))
    return {row.id: Renewed(row.fence, row.command_head) for row in kept}


def reap(database: Database, *, on_dead: OnDead) -> list[Freed]:
    """Free every episode whose lease ran out; harmless when two processes do it."""
    with database.read() as connection:
        overdue = sa.and_(episode.c.state.in_(LEASED), episode.c.lease_until_ms < now_ms())
        if connection.execute(sa.select(episode.c.id).where(overdue).limit(1)).first() is None:
            return []
    return _free(database, overdue, "reaper", on_dead)


def release_owners(
    database: Database, worker_ids: Sequence[str], *, actor: str, on_dead: OnDead
) -> list[Freed]:
    """Free at once what dead incarnations held; for a parent that saw its child exit."""
    freed = _free(database, episode.c.lease_owner.in_(worker_ids), actor, on_dead)
    with database.write() as connection:
        connection.execute(worker.update().where(worker.c.id.in_(worker_ids)).values(state="gone"))
    return freed


def hand_back(database: Database, worker_id: str) -> list[Freed]:
    """Give back what a worker still owns as it leaves; that is no crash."""
    owned = episode.c.lease_owner == worker_id
    return _free(database, owned, "worker", lambda *_: None, is_crash=False)


def workers_of(database: Database, *, host: str, pid: int | None = None) -> list[str]:
    """Incarnations on a host (of one process) that have not said goodbye."""
    query = sa.select(worker.c.id).where(worker.c.host == host, worker.c.state != "gone")
    if pid is not None:
        query = query.where(worker.c.pid == pid)
    with database.read() as connection:
        return list(connection.execute(query).scalars())


_LOG = episode_log.insert().values(ms=now_ms())


def log_states(
    connection: sa.Connection,
    episodes: Sequence[tuple[str, int]],
    to_state: str,
    *,
    actor: str,
    reason: str | None = None,
) -> None:
    """Append to the history of episodes (id, fence), in the commit that changes them."""
    if episodes:
        connection.execute(
            _LOG,
            [
                {
                    "episode_id": episode_id,
                    "fence": fence,
                    "to_state": to_state,
                    "actor": actor,
                    "reason": reason,
                }
                for episode_id, fence in episodes
            ],
        )


def _free(
    database: Database,
    which: sa.ColumnElement[bool],
    actor: str,
    on_dead: OnDead,
    *,
    is_crash: bool = True,
) -> list[Freed]:
    """Put leased episodes back into a queue.

    A crash is not a failure of the episode that was running: with batching many innocent ones die
    with one guilty. After a crash without progress suspects run alone, in quarantine; after
    POISON_CRASHES of them an episode is dead.
    """
    made_progress = sa.exists().where(
        attempt.c.episode_id == episode.c.id,
        attempt.c.fence == episode.c.fence,
        attempt.c.first_segment < episode.c.segments_done,
    )
    is_spared = made_progress if is_crash else sa.true()
    crashes = sa.case((made_progress, 0), else_=episode.c.crash_count + int(is_crash))
    is_poison = sa.and_(sa.not_(is_spared), episode.c.crash_count + 1 >= POISON_CRASHES)
    outcome, reason = ("reaped", LEASE_LOST) if is_crash else ("handed_over", HANDED_OVER)
    with database.write() as connection:
        freed = connection.execute(
            episode.update()
            .where(episode.c.state.in_(LEASED), which)
            .values(
                crash_count=crashes,
                queue=sa.case((is_spared, episode.c.queue), else_="quarantine"),
                state=sa.case((is_poison, "dead"), else_="queued"),
                error_code=sa.case((is_poison, "poison"), else_=episode.c.error_code),
                error=sa.case(
                    (is_poison, "the worker died each time it spoke this episode"),
                    else_=episode.c.error,
                ),
                ended_ms=sa.case((is_poison, now_ms()), else_=None),
                state_ms=now_ms(),
                queued_ms=now_ms(),
                fence=episode.c.fence + 1,
                lease_owner=None,
                lease_until_ms=0,
            )
            .returning(
                episode.c.id,
                episode.c.key,
                episode.c.fence,
                episode.c.state,
                episode.c.error,
            )
        ).all()
        for row in freed:
            connection.execute(
                attempt.update()
                .where(attempt.c.episode_id == row.id, attempt.c.fence == row.fence - 1)
                .values(outcome=outcome, ended_ms=now_ms())
            )
            log_states(connection, [(row.id, row.fence)], row.state, actor=actor, reason=reason)
            if row.state == "dead":
                on_dead(connection, row.id)
        if freed:
            outbox.put(connection, "quarantine", after_ms=-1_000)
    return [Freed(row.key, row.fence, row.state, row.error or "") for row in freed]
