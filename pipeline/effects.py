"""What leaves the house: rows of other people's tables, written with lease, lane and retry.

An effect is committed together with the state that caused it and carried out later by an io worker.
Effects of one lane (one table of one tool) never run side by side and keep their order, because
tools refuse or mix up concurrent writes to a table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from connectors.base import Connector, NotePatch, NoteRef
from pipeline import ids, leases, outbox, retry, schedule
from pipeline.database import Database, affected, now_ms
from pipeline.models import effect, episode, episode_note, note

log = logging.getLogger(__name__)

LEASE_MS = 60_000
_PENDING = ("due", "running", "failed")


@dataclass(frozen=True, slots=True)
class Due:
    """An effect this worker has claimed."""

    id: str
    episode_id: str
    fence: int
    tries: int
    age_ms: int
    body: Mapping[str, Any]


def order_write_back(
    connection: sa.Connection,
    *,
    tenant_id: str,
    episode_id: str,
    endpoint: str,
    ref: NoteRef,
    patch: NotePatch,
) -> tuple[int, str]:
    """Add a row write-back to the open transaction; gives the outbox row to send."""
    connection.execute(
        effect.insert().values(
            id=ids.ulid(),
            tenant_id=tenant_id,
            episode_id=episode_id,
            kind="write_back",
            lane=f"{endpoint}/{ref.container}/{ref.table}"[:300],
            effect_key=patch.key,
            body={"endpoint": endpoint, "ref": asdict(ref), "patch": asdict(patch)},
            policy="repeat",
            state="due",
            next_ms=now_ms(),
            created_ms=now_ms(),
        )
    )
    return outbox.put(connection, "effect"), "effect"


def supersede(connection: sa.Connection, episode_id: str) -> None:
    """What an episode ordered before and was not carried out yet is out of date now."""
    connection.execute(
        effect.update()
        .where(effect.c.episode_id == episode_id, effect.c.state.in_(("due", "failed")))
        .values(state="dropped", done_ms=now_ms())
    )


def revive(connection: sa.Connection, key: str) -> int:
    """Let the dead write-backs of an episode be tried again; gives how many there are."""
    of_episode = sa.select(episode.c.id).where(episode.c.key == key)
    revived = affected(
        connection.execute(
            effect.update()
            .where(effect.c.episode_id.in_(of_episode), effect.c.state.in_(("dead", "uncertain")))
            .values(state="due", tries=0, next_ms=now_ms(), created_ms=now_ms())
        )
    )
    if revived:
        outbox.put(connection, "effect", after_ms=-1_000)
    return revived


def carry_out(
    database: Database,
    worker_id: str,
    connector: Callable[[str], Connector],
    *,
    within_ms: int,
    limit: int = 16,
) -> int:
    """Claim due effects, at most one per lane, and carry them out; returns how many were tried."""
    claimed = _claim(database, worker_id, limit)
    for due in claimed:
        try:
            state = _write_back(database, due, connector)
        except Exception as error:
            _failed(database, due, error, within_ms=within_ms)
        else:
            _ended(database, due, state)
    return len(claimed)


def reap(database: Database) -> int:
    """Free effects whose worker died; one that must not be repeated becomes `uncertain`."""
    overdue = sa.and_(effect.c.state == "running", effect.c.lease_until_ms < now_ms())
    with database.read() as connection:
        if connection.execute(sa.select(effect.c.id).where(overdue).limit(1)).first() is None:
            return 0
    return _free(database, overdue)


def release_owners(database: Database, worker_ids: Sequence[str]) -> int:
    """Free at once what dead incarnations were carrying out."""
    return _free(
        database, sa.and_(effect.c.state == "running", effect.c.lease_owner.in_(worker_ids))
    )


def _free(database: Database, which: sa.ColumnElement[bool]) -> int:
    with database.write() as connection:
        return affected(
            connection.execute(
                effect.update()
                .where(which)
                .values(
                    state=sa.case((effect.c.policy == "once", "uncertain"), else_="due"),
                    next_ms=now_ms(),
                    fence=effect.c.fence + 1,
                    lease_owner=None,
                )
            )
        )


def has_due(database: Database) -> bool:
    """Is there an effect to carry out now?"""
    with database.read() as connection:
        due = sa.select(effect.c.id).where(
            effect.c.state.in_(("due", "failed")), effect.c.next_ms <= now_ms()
        )
        return connection.execute(due.limit(1)).first() is not None


def _claim(database: Database, worker_id: str, limit: int) -> list[Due]:
    other = effect.alias("other")
    lane_is_busy = sa.exists().where(other.c.lane == effect.c.lane, other.c.state == "running")
    firsts = (
        sa.select(sa.func.min(effect.c.id))
        .where(
            effect.c.state.in_(("due", "failed")),
            effect.c.next_ms <= now_ms(),
            sa.not_(lane_is_busy),
        )
        .group_by(effect.c.lane)
        .limit(limit)
    )
    with database.write() as connection:
        taken = connection.execute(
            effect.update()
            .where(effect.c.id.in_(firsts), effect.c.state.in_(("due", "failed")))
            .values(
                state="running",
                lease_owner=worker_id,
                lease_until_ms=now_ms() + LEASE_MS,
                fence=effect.c.fence + 1,
                tries=effect.c.tries + 1,
            )
            .returning(
                effect.c.id,
                effect.c.episode_id,
                effect.c.fence,
                effect.c.tries,
                (now_ms() - effect.c.created_ms).label("age_ms"),
                effect.c.body,
            )
        ).all()
    return [Due(*row) for row in taken]


def _write_back(database: Database, due: Due, connector: Callable[[str], Connector]) -> str:
    """The state it ends in."""
    if _is_superseded(database, due.episode_id):
        log.info("write-back dropped, the row has a newer revision", extra={"effect": due.id})
        return "dropped"
    ref, patch = NoteRef(**due.body["ref"]), NotePatch(**due.body["patch"])
    connector(due.body["endpoint"]).write_back(ref, patch)
    return "done"


def _is_superseded(database: Database, episode_id: str) -> bool:
    """An older episode must not write over what a newer revision of its row shows."""
    with database.read() as connection:
        newer = connection.execute(
            sa.select(note.c.id)
            .join(episode_note, episode_note.c.note_id == note.c.id)
            .where(
                episode_note.c.episode_id == episode_id,
                note.c.revision > episode_note.c.revision,
            )
        )
        return newer.first() is not None


def _ended(database: Database, due: Due, state: str) -> None:
    with database.write() as connection:
        mine = affected(
            connection.execute(
                effect.update()
                .where(effect.c.id == due.id, effect.c.fence == due.fence)
                .values(state=state, done_ms=now_ms(), lease_owner=None, error=None)
            )
        )
        if mine:
            settle(connection, due.episode_id)


def _failed(database: Database, due: Due, error: Exception, *, within_ms: int) -> None:
    verdict = retry.decide(error, tries=due.tries, age_ms=due.age_ms, within_ms=within_ms)
    if verdict.code.startswith("unexpected") or verdict.message.startswith("unexpected"):
        log.exception("write-back failed", exc_info=error, extra={"effect": due.id})
    is_dead = verdict.after_ms is None
    with database.write() as connection:
        mine = affected(
            connection.execute(
                effect.update()
                .where(effect.c.id == due.id, effect.c.fence == due.fence)
                .values(
                    state="dead" if is_dead else "failed",
                    next_ms=now_ms() + (verdict.after_ms or 0),
                    lease_owner=None,
                    error_code=verdict.code,
                    error=verdict.message,
                )
            )
        )
        if mine and is_dead:
            settle(connection, due.episode_id)


_SETTLE = (
    episode.update()
    .where(
        episode.c.id == sa.bindparam("settled"),
        episode.c.state == "stored",
        ~sa.exists().where(effect.c.episode_id == episode.c.id, effect.c.state.in_(_PENDING)),
    )
    .values(state="done", state_ms=now_ms(), ended_ms=now_ms())
    .returning(episode.c.fence, episode.c.batch_run_id)
)


def settle(connection: sa.Connection, episode_id: str) -> None:
    """A stored episode with no effect left to wait for is done, in the same commit.

    A write-back that is dead does not hold it up: the recording is there, the effect is listed in
    v_dead and can be revived.
    """
    row = connection.execute(_SETTLE, {"settled": episode_id}).first()
    if row is None:
        return
    for state in ("written_back", "done"):
        leases.log_states(connection, [(episode_id, row.fence)], state, actor="effects")
    schedule.episode_ended(connection, row)
