"""What leaves the house: rows of other people's tables, cards, events; with lease, lane and retry.

An effect is committed together with the state that caused it and carried out later by an io worker.
Effects of one lane (one table of one tool, one robot) never run side by side and keep their order,
because tools refuse or mix up concurrent writes to a table. One that is tried again holds its lane
up; one that is due later does not. Effects without a lane have no order.

    repeat   twice is as good as once: a row write-back
    keyed    the receiver drops repetitions by a key: an event
    once     never sent again once it may have been sent: a card

A `once` effect whose outcome nobody knows ends as `uncertain`, and a person decides.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import sqlalchemy as sa

from connectors.base import Budget, NotePatch, NoteRef
from connectors.errors import ToolUnavailable
from pipeline import budgets, ids, leases, outbox, retry, schedule
from pipeline.database import Database, affected, now_ms, rows
from pipeline.models import effect, episode

log = logging.getLogger(__name__)

LEASE_MS = 60_000
Kind = Literal["write_back", "card", "event"]
Policy = Literal["repeat", "keyed", "once"]

_WAITING = ("due", "failed")


@dataclass(frozen=True, slots=True)
class Due:
    """An effect this worker has claimed."""

    id: str
    episode_id: str
    kind: Kind
    policy: Policy
    fence: int
    tries: int
    age_ms: int
    body: Mapping[str, Any]


class Carrier(Protocol):
    """Knows the tools; `pipeline.carriers` is the real one."""

    def budget(self, body: Mapping[str, Any], kind: Kind) -> tuple[str, Budget] | None:
        """The bucket an effect counts against, with its name in SQL; None for no limit. Pure."""

    def carry(self, due: Due) -> str:
        """Do it; gives the state it ends in, `done` or `dropped`. Raises what `retry` judges."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """What can be done now, and when more can: a wait in ms for the next budget, None for none."""

    effects: Sequence[Due]
    wait_ms: int | None = None


# ordering ---------------------------------------------------------------------------------------


def order(
    database: Database,
    connection: sa.Connection,
    *,
    tenant_id: str,
    episode_id: str,
    kind: Kind,
    policy: Policy,
    key: str,
    body: Mapping[str, Any],
    lane: str | None = None,
    after_ms: int = 0,
) -> tuple[int, str] | None:
    """Add an effect to the open transaction; gives the outbox row to send.

    Returns None when `key` was ordered before: the same effect is never ordered twice.
    """
    ordered = connection.execute(
        database.once(_insert),
        {
            "id": ids.ulid(),
            "tenant_id": tenant_id,
            "episode_id": episode_id,
            "kind": kind,
            "lane": lane[:300] if lane is not None else None,
            "effect_key": key[:200],
            "body": dict(body),
            "policy": policy,
            "after_ms": after_ms,
        },
    ).first()
    if ordered is None:
        return None
    return outbox.put(connection, "effect", after_ms=after_ms), "effect"


def _insert(database: Database) -> sa.Executable:
    insert = database.insert(effect).values(
        id=sa.bindparam("id"),
        tenant_id=sa.bindparam("tenant_id"),
        episode_id=sa.bindparam("episode_id"),
        kind=sa.bindparam("kind"),
        lane=sa.bindparam("lane"),
        effect_key=sa.bindparam("effect_key"),
        body=sa.bindparam("body"),
        policy=sa.bindparam("policy"),
        state="due",
        next_ms=now_ms() + sa.bindparam("after_ms", type_=sa.BigInteger),
        created_ms=now_ms(),
    )
    return insert.on_conflict_do_nothing(index_elements=["effect_key"]).returning(effect.c.id)


def order_write_back(
    database: Database,
    connection: sa.Connection,
    *,
    tenant_id: str,
    episode_id: str,
    endpoint: str,
    ref: NoteRef,
    patch: NotePatch,
    after_ms: int = 0,
) -> tuple[int, str] | None:
    """Order what a row shall show; see `order`."""
    return order(
        database,
        connection,
        tenant_id=tenant_id,
        episode_id=episode_id,
        kind="write_back",
        policy="repeat",
        key=patch.key,
        lane=f"{endpoint}/{ref.container}/{ref.table}",
        body=write_back_body(endpoint, ref, patch),
        after_ms=after_ms,
    )


def write_back_body(endpoint: str, ref: NoteRef, patch: NotePatch) -> dict[str, Any]:
    """A row and what it shall show, as JSON."""
    names = ("key", "status", "link", "audio_ref", "error", "duration_s")
    shown = {name: value for name in names if (value := getattr(patch, name)) is not None}
    return {"endpoint": endpoint, "ref": asdict(ref), "patch": shown}


def revive(connection: sa.Connection, key: str) -> int:
    """Let what an episode could not send be tried again; gives how many there are.

    That includes what may have been sent and must not be sent twice: a person has looked.
    """
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


# carrying out -----------------------------------------------------------------------------------


def carry_out(
    database: Database, worker_id: str, carrier: Carrier, *, within_ms: int, limit: int = 16
) -> int:
    """Claim due effects, at most one per lane, and carry them out; returns how many were tried."""
    claimed = claim(database, worker_id, carrier, limit=limit)
    for due in claimed.effects:
        finish(database, due, carrier, within_ms=within_ms)
    return len(claimed.effects)


def finish(database: Database, due: Due, carrier: Carrier, *, within_ms: int) -> None:
    """Carry out a claimed effect and keep what became of it."""
    try:
        state = carrier.carry(due)
    except Exception as error:
        _failed(database, due, error, carrier, within_ms=within_ms)
    else:
        _ended(database, due, state)


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


# The head of a lane is its oldest effect that is being tried: running, to be tried again, or due.
# The list of states stands there word for word, because only so SQLite takes the partial index.
_HEADS = """
WITH RECURSIVE lanes(lane) AS (
    SELECT min(lane) FROM effect WHERE state IN ('due', 'failed', 'running')
    UNION ALL
    SELECT (SELECT min(e.lane) FROM effect e
            WHERE e.state IN ('due', 'failed', 'running') AND e.lane > lanes.lane)
    FROM lanes WHERE lanes.lane IS NOT NULL
), heads(id) AS (
    SELECT (SELECT h.id FROM effect h
            WHERE h.lane = lanes.lane AND h.state IN ('due', 'failed', 'running')
              AND (h.state <> 'due' OR h.next_ms <= {now})
            ORDER BY h.id LIMIT 1)
    FROM lanes WHERE lanes.lane IS NOT NULL
)
SELECT e.id, e.next_ms FROM heads JOIN effect e ON e.id = heads.id
WHERE e.state <> 'running' AND e.next_ms <= {now}
  AND NOT EXISTS (SELECT 1 FROM effect r
                  WHERE r.lane = e.lane AND r.state IN ('due', 'failed', 'running')
                    AND r.state = 'running')
UNION ALL
SELECT o.id, o.next_ms FROM effect o
WHERE o.lane IS NULL AND o.state IN ('due', 'failed') AND o.next_ms <= {now}
ORDER BY 2, 1 LIMIT :most
"""


def _heads(database: Database) -> sa.TextClause:
    clock = str(now_ms().compile(dialect=database.engine.dialect))
    return sa.text(_HEADS.format(now=clock))


def has_due(database: Database) -> bool:
    """Is there an effect to carry out now, budgets aside?"""
    with database.read() as connection:
        return connection.execute(database.once(_heads), {"most": 1}).first() is not None


def claim(database: Database, worker_id: str, carrier: Carrier, *, limit: int) -> Claimed:
    """Take effects that are due and within the budget of their tool, at most one of each lane."""
    with database.read() as connection:
        # more than wanted: the first ones may all wait for the same tool
        ordered = connection.execute(database.once(_heads), {"most": limit * 4}).all()
        found = {
            one["id"]: one
            for one in rows(
                connection,
                sa.select(effect.c.id, effect.c.kind, effect.c.body).where(
                    effect.c.id.in_([one.id for one in ordered])
                ),
            )
        }
    if not found:
        return Claimed(())
    taken: list[Due] = []
    waits: dict[str, int] = {}
    with database.write() as connection:
        for head in ordered:
            row = found.get(head.id)
            if row is None or len(taken) == limit:
                continue
            bucket = carrier.budget(row["body"], row["kind"])
            if bucket is not None:
                name, wanted = bucket
                if name not in waits:
                    wait_ms = budgets.take(database, connection, name, wanted)
                    if wait_ms:
                        waits[name] = wait_ms
                if name in waits:
                    continue
            claimed = connection.execute(
                _CLAIM, {"of": head.id, "owner": worker_id, "lease_ms": LEASE_MS}
            ).first()
            if claimed is not None:
                taken.append(Due(*claimed))
    return Claimed(taken, min(waits.values(), default=None))


_other = effect.alias("other")
_CLAIM = (
    effect.update()
    .where(
        effect.c.id == sa.bindparam("of"),
        effect.c.state.in_(_WAITING),
        ~sa.exists().where(
            _other.c.lane == effect.c.lane,
            sa.text("other.state IN ('due', 'failed', 'running')"),
            _other.c.state == "running",
        ),
    )
    .values(
        state="running",
        lease_owner=sa.bindparam("owner"),
        lease_until_ms=now_ms() + sa.bindparam("lease_ms", type_=sa.BigInteger),
        fence=effect.c.fence + 1,
        tries=effect.c.tries + 1,
    )
    .returning(
        effect.c.id,
        effect.c.episode_id,
        effect.c.kind,
        effect.c.policy,
        effect.c.fence,
        effect.c.tries,
        (now_ms() - effect.c.created_ms).label("age_ms"),
        effect.c.body,
    )
)
_END = effect.update().where(
    effect.c.id == sa.bindparam("of"), effect.c.fence == sa.bindparam("at_fence")
)
_ENDED = _END.values(
    state=sa.bindparam("ends_as"), done_ms=now_ms(), lease_owner=None, error=None, error_code=None
)


def _ended(database: Database, due: Due, state: str) -> None:
    with database.write() as connection:
        mine = affected(
            connection.execute(_ENDED, {"of": due.id, "at_fence": due.fence, "ends_as": state})
        )
        if mine:
            settle(connection, due.episode_id)


def _failed(
    database: Database, due: Due, error: Exception, carrier: Carrier, *, within_ms: int
) -> None:
    if due.kind == "event":
        verdict = retry.decide_event(error, tries=due.tries)
    else:
        verdict = retry.decide(error, tries=due.tries, age_ms=due.age_ms, within_ms=within_ms)
    if verdict.message.startswith("unexpected"):
        log.exception("effect failed", exc_info=error, extra={"effect": due.id, "kind": due.kind})
    state = "dead" if verdict.after_ms is None else "failed"
    if due.policy == "once" and _may_have_worked(error):
        state = "uncertain"
    with database.write() as connection:
        mine = affected(
            connection.execute(
                _END.values(
                    state=state,
                    next_ms=now_ms() + (verdict.after_ms or 0),
                    lease_owner=None,
                    error_code=verdict.code,
                    error=verdict.message,
                ),
                {"of": due.id, "at_fence": due.fence},
            )
        )
        bucket = carrier.budget(due.body, due.kind)
        if bucket is not None and isinstance(error, ToolUnavailable) and error.after_s:
            budgets.hold(database, connection, bucket[0], int(error.after_s * 1_000))
        if mine and state != "failed":
            settle(connection, due.episode_id)


def _may_have_worked(error: Exception) -> bool:
    """Nobody knows whether the tool did it; only a tool's own answer says that it did not."""
    if isinstance(error, ToolUnavailable):
        return error.unanswered
    return not isinstance(error, retry.KNOWN)


_SETTLE = (
    episode.update()
    .where(
        episode.c.id == sa.bindparam("settled"),
        episode.c.state == "stored",
        ~sa.exists().where(
            effect.c.episode_id == episode.c.id,
            effect.c.kind == "write_back",
            effect.c.state.in_((*_WAITING, "running")),
        ),
    )
    .values(state="done", state_ms=now_ms(), ended_ms=now_ms())
    .returning(episode.c.fence, episode.c.batch_run_id)
)


def settle(connection: sa.Connection, episode_id: str) -> None:
    """A stored episode whose rows show it is done, in the same commit; cards and events may follow.

    A write-back that is dead does not hold it up: the recording is there, the effect is listed in
    v_dead and can be revived.
    """
    row = connection.execute(_SETTLE, {"settled": episode_id}).first()
    if row is None:
        return
    for state in ("written_back", "done"):
        leases.log_states(connection, [(episode_id, row.fence)], state, actor="effects")
    schedule.episode_ended(connection, row)
