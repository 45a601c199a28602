"""The door's one transaction: a delivery becomes an episode, or nothing at all.

Delivery, note, episode, link and wake-up are committed together before the sender hears yes. A
repeated delivery finds its key taken and is answered with the same links. A newer revision of a row
cancels the open episodes of the older ones in the same commit.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from connectors.base import Accepted, Note, NoteEvent
from pipeline import ids, leases, outbox, schedule
from pipeline.database import Database, affected, now_ms
from pipeline.links import Links
from pipeline.models import (
    OPEN,
    api_key,
    attempt,
    delivery,
    endpoint,
    episode,
    episode_note,
    listen_link,
    note,
    tenant,
)
from pipeline.notes import note_to_json

REALTIME, BATCH = "realtime", "batch"
_PRIORITY = {REALTIME: 3, BATCH: 7}

_STATUS = {
    "received": "queued",
    "queued": "queued",
    "failed": "queued",
    "synthesising": "live",
    "encoding": "live",
    "stored": "done",
    "written_back": "done",
    "done": "done",
    "dead": "failed",
    "cancelled": "cancelled",
}


@dataclass(frozen=True, slots=True)
class Door:
    """The stored side of an endpoint: where its deliveries belong."""

    endpoint_id: str
    tenant_id: str


def status_of(state: str) -> str:
    """The word senders and listeners see for a state: queued, live, done, failed, cancelled."""
    return _STATUS[state]


def open_doors(database: Database, endpoints: Mapping[str, str]) -> dict[str, Door]:
    """Make sure every endpoint (name -> connector name) has its row; the first call makes the team.

    `api` is the door of `POST /v1/episodes`.
    """
    wanted = {**endpoints, "api": "api"}
    with database.write() as connection:
        connection.execute(
            database.insert(tenant)
            .values(id=ids.ulid(), name="main", created_ms=now_ms())
            .on_conflict_do_nothing()
        )
        tenant_id = connection.execute(
            sa.select(tenant.c.id).where(tenant.c.name == "main")
        ).scalar_one()
        for name, connector in wanted.items():
            connection.execute(
                database.insert(endpoint)
                .values(
                    id=ids.ulid(),
                    tenant_id=tenant_id,
                    connector=connector,
                    name=name,
                    created_ms=now_ms(),
                )
                .on_conflict_do_nothing()
            )
        found = connection.execute(
            sa.select(endpoint.c.name, endpoint.c.id).where(endpoint.c.tenant_id == tenant_id)
        ).all()
    return {row.name: Door(row.id, tenant_id) for row in found}


@dataclass(frozen=True, slots=True)
class Taken:
    """What a transaction left behind: the answer, and the outbox rows to send now."""

    accepted: Accepted
    episode_id: str = ""
    wake_ups: tuple[tuple[int, str], ...] = ()
    cancelled: tuple[tuple[str, int], ...] = ()  # (key, fence) of episodes a newer revision ended


def accept(
    database: Database,
    links: Links,
    door: Door,
    event: NoteEvent,
    *,
    body_digest: str,
    casting: Mapping[str, str],
    speak_now: bool = True,
) -> Taken:
    """Store an event; safe to call any number of times with the same delivery key.

    Args:
        casting: speaker -> engine voice; `default` is the narrator.
        speak_now: False keeps the note for a schedule and makes no episode.

    Raises:
        DatabaseUnavailable: nothing was stored, or (lost in the commit) it is there under its key.
    """
    with database.write() as connection:
        delivery_id = _deliver(database, connection, door, event, body_digest)
        if delivery_id is None:
            return Taken(_accepted_before(connection, links, door, event))
        if event.kind != "changed":
            gone = _cancel_row(connection, door, event) if event.kind == "deleted" else ()
            return Taken(Accepted("", "ignored", ""), cancelled=gone)
        note_id, revision = _keep_note(database, connection, door, event)
        superseded = _cancel_older(connection, note_id) if revision > 1 else ()
        if not speak_now:
            return Taken(Accepted("", "kept", ""), cancelled=superseded)
        created = create_episode(
            connection,
            links,
            door,
            notes=[(note_id, revision)],
            content=event.note,
            delivery_id=delivery_id,
            casting=casting,
        )
    return replace(created, cancelled=superseded)


def create_episode(
    connection: sa.Connection,
    links: Links,
    door: Door,
    *,
    notes: Sequence[tuple[str, int]],
    content: Note | None,
    casting: Mapping[str, str],
    delivery_id: str | None = None,
    batch_run_id: str | None = None,
    title: str = "",
    text_chars: int = 0,
    take: int = 1,
) -> Taken:
    """Insert an episode with its listener link and wake-up into an open transaction.

    Args:
        notes: (note id, revision) in speaking order.
        content: the note where it is known; None leaves the episode `received` until it was read.
        batch_run_id: makes it batch work, behind everybody who waits.
    """
    queue = BATCH if batch_run_id else REALTIME
    is_known = content is not None or batch_run_id is not None
    chars = len(content.text) if content is not None else text_chars
    estimated = estimate_ms(content.text) if content is not None else chars * 150
    now = datetime.datetime.now(datetime.UTC)
    episode_id, key = ids.ulid(), ids.session_key()
    fair_at = connection.execute(
        _TAKE_TURN, {"team": door.tenant_id, "cost": estimated * 100}
    ).scalar_one()
    state = "queued" if is_known else "received"
    connection.execute(
        _INSERT_EPISODE,
        {
            "id": episode_id,
            "tenant_id": door.tenant_id,
            "key": key,
            "endpoint_id": door.endpoint_id,
            "delivery_id": delivery_id,
            "batch_run_id": batch_run_id,
            "take": take,
            "title": (title or (content.title if content else ""))[:400],
            "lang": (content.lang if content and content.lang != "auto" else "")[:8],
            "wishes": {"casting": dict(casting)},
            "queue": queue,
            "priority": _PRIORITY[queue],
            "fair_at_ms": fair_at,
            "state": state,
            "estimated_ms": estimated,
            "text_chars": chars,
            "day": now.strftime("%Y-%m-%d"),
            "hour": now.strftime("%Y-%m-%dT%H"),
        },
    )
    connection.execute(
        _INSERT_EPISODE_NOTE,
        [
            {"episode_id": episode_id, "position": n, "note_id": note_id, "revision": revision}
            for n, (note_id, revision) in enumerate(notes)
        ],
    )
    leases.log_states(connection, [(episode_id, 0)], state, actor="intake")
    url = links.create(connection, episode_id=episode_id, key=key)
    topic = queue if is_known else "read"
    wake_up = (outbox.put(connection, topic), topic)
    return Taken(Accepted(key, status_of(state), url), episode_id, (wake_up,))


_TAKE_TURN = (
    tenant.update()
    .where(tenant.c.id == sa.bindparam("team"))
    .values(
        fair_at_ms=sa.case((tenant.c.fair_at_ms > now_ms(), tenant.c.fair_at_ms), else_=now_ms())
        + sa.bindparam("cost", type_=sa.BigInteger) // tenant.c.weight
    )
    .returning(tenant.c.fair_at_ms)
)
_INSERT_EPISODE = episode.insert().values(
    state_ms=now_ms(), created_ms=now_ms(), queued_ms=now_ms()
)
_INSERT_EPISODE_NOTE = episode_note.insert()


def estimate_ms(text: str) -> int:
    """Guess how long a text takes to say: hanzi 220 ms, other characters 62 ms."""
    hanzi = sum("\u3040" <= character <= "\u9fff" for character in text)
    return hanzi * 220 + (len(text) - hanzi) * 62


def _deliver(
    database: Database, connection: sa.Connection, door: Door, event: NoteEvent, body_digest: str
) -> str | None:
    """The new delivery's id, or None when its key was there already."""
    inserted: str | None = connection.execute(
        database.once(_insert_delivery),
        {
            "id": ids.ulid(),
            "tenant_id": door.tenant_id,
            "endpoint_id": door.endpoint_id,
            "delivery_key": event.delivery_key,
            "body_digest": body_digest,
        },
    ).scalar()
    return inserted


def _insert_delivery(database: Database) -> sa.Executable:
    insert = database.insert(delivery).values(received_ms=now_ms())
    return insert.on_conflict_do_nothing().returning(delivery.c.id)


def _accepted_before(
    connection: sa.Connection, links: Links, door: Door, event: NoteEvent
) -> Accepted:
    """Count the repetition and give the first answer again."""
    delivery_id = connection.execute(
        delivery.update()
        .where(
            delivery.c.endpoint_id == door.endpoint_id,
            delivery.c.delivery_key == event.delivery_key,
        )
        .values(repeats=delivery.c.repeats + 1, last_repeat_ms=now_ms())
        .returning(delivery.c.id)
    ).scalar_one()
    found = connection.execute(
        sa.select(episode.c.id, episode.c.key, episode.c.state)
        .where(episode.c.delivery_id == delivery_id)
        .order_by(episode.c.take)
        .limit(1)
    ).first()
    if found is None:
        return Accepted("", "kept", "", duplicate=True)
    link = connection.execute(
        sa.select(listen_link).where(
            listen_link.c.episode_id == found.id, listen_link.c.role == "listener"
        )
    ).first()
    url = links.url(link, found.key) if link is not None else ""
    return Accepted(found.key, status_of(found.state), url, duplicate=True)


def _keep_note(
    database: Database, connection: sa.Connection, door: Door, event: NoteEvent
) -> tuple[str, int]:
    """Insert the note, or the newer revision of the same row; (id, revision)."""
    content = event.note
    row = connection.execute(
        database.once(_upsert_note),
        {
            "id": ids.ulid(),
            "tenant_id": door.tenant_id,
            "endpoint_id": door.endpoint_id,
            "ref_container": event.ref.container,
            "ref_table": event.ref.table,
            "ref_key": event.ref.key or None,
            "fingerprint": content.fingerprint if content else "",
            "title": (content.title if content else "")[:400],
            "content": note_to_json(content) if content else None,
        },
    ).one()
    return row.id, row.revision


def _upsert_note(database: Database) -> sa.Executable:
    insert = database.insert(note).values(created_ms=now_ms(), changed_ms=now_ms())
    renewed = ("fingerprint", "title", "content", "changed_ms")
    return insert.on_conflict_do_update(
        index_elements=["endpoint_id", "ref_container", "ref_table", "ref_key"],
        index_where=sa.text("ref_key IS NOT NULL"),
        set_={
            "revision": note.c.revision + 1,
            **{name: insert.excluded[name] for name in renewed},
        },
    ).returning(note.c.id, note.c.revision)


def _cancel_row(
    connection: sa.Connection, door: Door, event: NoteEvent
) -> tuple[tuple[str, int], ...]:
    note_id = connection.execute(
        sa.select(note.c.id).where(
            note.c.endpoint_id == door.endpoint_id,
            note.c.ref_container == event.ref.container,
            note.c.ref_table == event.ref.table,
            note.c.ref_key == event.ref.key,
        )
    ).scalar()
    return _cancel_older(connection, note_id) if note_id else ()


def _cancel_older(connection: sa.Connection, note_id: str) -> tuple[tuple[str, int], ...]:
    """End the open episodes of a row, digests of several rows excepted."""
    of_note = sa.select(episode_note.c.episode_id).where(episode_note.c.note_id == note_id)
    return cancel(
        connection,
        sa.and_(episode.c.id.in_(of_note), episode.c.batch_run_id.is_(None)),
        actor="intake",
        reason="newer revision",
    )


def cancel(
    connection: sa.Connection, which: sa.ColumnElement[bool], *, actor: str, reason: str
) -> tuple[tuple[str, int], ...]:
    """End open episodes; their owners lose them at the next renewal. Gives (key, fence) of each."""
    ended = connection.execute(
        episode.update()
        .where(which, episode.c.state.in_(OPEN))
        .values(
            state="cancelled",
            state_ms=now_ms(),
            ended_ms=now_ms(),
            fence=episode.c.fence + 1,
            lease_owner=None,
            lease_until_ms=0,
        )
        .returning(episode.c.id, episode.c.key, episode.c.fence, episode.c.batch_run_id)
    ).all()
    for row in ended:
        schedule.episode_ended(connection, row)
    connection.execute(
        attempt.update()
        .where(attempt.c.episode_id.in_([row.id for row in ended]), attempt.c.ended_ms.is_(None))
        .values(outcome="cancelled", ended_ms=now_ms())
    )
    leases.log_states(
        connection,
        [(row.id, row.fence) for row in ended],
        "cancelled",
        actor=actor,
        reason=reason,
    )
    return tuple((row.key, row.fence) for row in ended)


def add_api_key(
    database: Database, door: Door, *, name: str, digest: str, prefix: str, scopes: Sequence[str]
) -> None:
    """Keep a new key's digest; the key itself is shown once and never stored here."""
    with database.write() as connection:
        connection.execute(
            api_key.insert().values(
                id=ids.ulid(),
                tenant_id=door.tenant_id,
                name=name,
                prefix=prefix,
                digest=digest,
                scopes=list(scopes),
                created_ms=now_ms(),
            )
        )


def revoke_api_key(database: Database, prefix: str) -> int:
    """Revoke keys whose prefix this is; returns how many."""
    with database.write() as connection:
        return affected(
            connection.execute(
                api_key.update()
                .where(api_key.c.prefix == prefix, api_key.c.revoked_ms.is_(None))
                .values(revoked_ms=now_ms())
            )
        )
