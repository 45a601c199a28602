"""The door's one transaction: a delivery becomes an episode, or nothing at all.

Delivery, note, episode, link and wake-up are committed together before the sender hears yes. A
repeated delivery finds its key taken and is answered with the same links. A newer revision of a row
cancels the open episodes of the older ones in the same commit.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from connectors.base import Accepted, EpisodeState, Note, NoteEvent, NoteRef
from connectors.reasons import reason
from pipeline import ids, leases, outbox, schedule
from pipeline.database import Database, affected, now_ms
from pipeline.links import Links
from pipeline.models import (
    LEASED,
    OPEN,
    api_key,
    attempt,
    command,
    delivery,
    duty,
    endpoint,
    episode,
    episode_note,
    listen_link,
    note,
    reading,
    tenant,
)
from pipeline.notes import note_to_json
from pipeline.script import Script
from streaming.orders import Wish

WakeUps = tuple[tuple[int, str], ...]

CAPPED = "daily_cap"
REALTIME, BATCH = "realtime", "batch"
_PRIORITY = {REALTIME: 3, BATCH: 7}

_STATUS = {
    "received": "queued",
    "waiting": "queued",
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


Told = Callable[[sa.Connection, str, EpisodeState, str], Sequence[tuple[int, str]]]
"""(connection, episode id, state, reason code): order what the outside shall see of it."""


def _nobody(_connection: sa.Connection, _id: str, _state: EpisodeState, _error: str) -> WakeUps:
    return ()


@dataclass(frozen=True, slots=True)
class Terms:
    """How an endpoint takes notes.

    Attributes:
        speak_now: False keeps notes for a schedule and makes no episode.
        reads: thin events are read from the tool before anything is made of them.
        daily_cap: episodes a day (UTC); None is no limit.
        told: what a new state of an episode orders for the outside, in the same commit.
    """

    speak_now: bool = True
    reads: bool = False
    daily_cap: int | None = None
    told: Told = _nobody


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


_PLAIN = Terms()
_NOTED, _IGNORED, _KEPT = (
    Accepted("", "noted", ""),
    Accepted("", "ignored", ""),
    Accepted("", "kept", ""),
)


@dataclass(frozen=True, slots=True)
class Taken:
    """What a transaction left behind: the answer, and the outbox rows to send now."""

    accepted: Accepted
    episode_id: str = ""
    wake_ups: WakeUps = ()
    cancelled: tuple[tuple[str, int], ...] = ()  # (key, fence) of episodes a newer revision ended


def accept(
    database: Database,
    links: Links,
    door: Door,
    event: NoteEvent,
    *,
    body_digest: str,
    casting: Mapping[str, str],
    terms: Terms = _PLAIN,
    asked_by: str | None = None,
) -> Taken:
    """Store an event; safe to call any number of times with the same delivery key.

    Args:
        casting: speaker -> engine voice; `default` is the narrator.
        asked_by: the link whose holder asked with `say`.

    Raises:
        DatabaseUnavailable: nothing was stored, or (lost in the commit) it is there under its key.
    """
    with database.write() as connection:
        return take_event(
            database,
            connection,
            links,
            door,
            event,
            body_digest=body_digest,
            casting=casting,
            terms=terms,
            asked_by=asked_by,
        )


def take_event(
    database: Database,
    connection: sa.Connection,
    links: Links,
    door: Door,
    event: NoteEvent,
    *,
    body_digest: str,
    casting: Mapping[str, str],
    terms: Terms = _PLAIN,
    asked_by: str | None = None,
) -> Taken:
    """`accept` in an open transaction, for the many events of one message."""
    delivery_id = _deliver(database, connection, door, event, body_digest)
    if delivery_id is None:
        return Taken(_accepted_before(connection, links, door, event))
    if event.kind == "ping":
        return Taken(_NOTED, wake_ups=_want_walk(connection, door))
    if event.kind == "deleted":
        return Taken(_IGNORED, cancelled=row_gone(connection, door, event.ref))
    if event.note is None and terms.reads and not event.asked:
        return Taken(_NOTED, wake_ups=want_reading(database, connection, door, event))
    if event.note is not None:
        return take_note(
            database,
            connection,
            links,
            door,
            event.note,
            casting=casting,
            terms=terms,
            delivery_id=delivery_id,
            asked_by=asked_by,
        )
    known = _known_note(connection, door, event.ref) if terms.reads else None
    if known is not None:
        # our own writes may be why somebody asks again: the row is read first, then judged
        wake_ups = want_reading(database, connection, door, event)
        earlier = _standing(connection, known.id)
        if earlier is None:
            return Taken(_NOTED, wake_ups=wake_ups)
        url = _link_of(connection, links, earlier)
        accepted = Accepted(earlier.key, status_of(earlier.state), url, duplicate=True)
        return Taken(accepted, earlier.id, wake_ups)
    note_id, revision = _keep_note(database, connection, door, event.ref, None)
    superseded = _cancel_older(connection, note_id) if revision > 1 else ()
    made = _make(
        connection, links, door, (note_id, revision), None, casting, terms, delivery_id=delivery_id
    )
    return replace(made, cancelled=superseded)


def take_note(
    database: Database,
    connection: sa.Connection,
    links: Links,
    door: Door,
    content: Note,
    *,
    casting: Mapping[str, str],
    terms: Terms = _PLAIN,
    delivery_id: str | None = None,
    asked_by: str | None = None,
) -> Taken:
    """Make an episode of a note as it is now, unless it says what was heard or waits already.

    A note that says the same as before is not spoken again: its row is shown what became of the
    earlier episode. A newer revision cancels the open episodes of older ones.
    """
    if not content.ready:
        return Taken(_IGNORED)
    known = _known_note(connection, door, content.ref)
    if known is not None and not known.fingerprint:
        earlier = _standing(connection, known.id)
        if earlier is not None and earlier.state == "received":  # it will read the row itself
            return _point_to(connection, links, earlier, content, terms)
    is_same = known is not None and known.fingerprint == content.fingerprint
    if known is not None and is_same:
        if not terms.speak_now and (known.trigger or "") == content.trigger:
            return Taken(_KEPT)
        earlier = _standing(connection, known.id, casting) if terms.speak_now else None
        if earlier is not None:
            return _point_to(connection, links, earlier, content, terms)
    note_id, revision = _keep_note(database, connection, door, content.ref, content)
    superseded = _cancel_older(connection, note_id) if revision > 1 else ()
    if not terms.speak_now:
        return Taken(_KEPT, cancelled=superseded)
    made = _make(
        connection,
        links,
        door,
        (note_id, revision),
        content,
        casting,
        terms,
        delivery_id=delivery_id,
        asked_by=asked_by,
    )
    return replace(made, cancelled=superseded)


def take_script(
    database: Database,
    links: Links,
    door: Door,
    script: Script,
    *,
    delivery_key: str,
    wishes: Mapping[str, Any],
    asked_by: str,
    followed: Sequence[tuple[Wish, Mapping[str, Any]]] = (),
) -> Taken:
    """Make an episode of a finished script, once for each delivery key; no row is written.

    Args:
        wishes: as episodes keep them: `casting`, and `heard` for the voices of an earlier one.
        asked_by: the link or key whose holder asked.
        followed: orders, and where they took effect, with which it begins.

    Raises:
        DatabaseUnavailable: nothing was stored, or (lost in the commit) it is there under its key.
    """
    said = "\n".join(segment.text for segment in script.segments())
    content = Note(NoteRef(""), said, title=script.title, lang=script.lang)
    event = NoteEvent(delivery_key, content.ref, note=content, asked=True)
    with database.write() as connection:
        delivery_id = _deliver(database, connection, door, event, script.digest())
        if delivery_id is None:
            return Taken(_accepted_before(connection, links, door, event))
        made = create_episode(
            connection,
            links,
            door,
            notes=(),
            content=content,
            casting=wishes["casting"],
            delivery_id=delivery_id,
            asked_by=asked_by[:80],
        )
        connection.execute(
            episode.update()
            .where(episode.c.id == made.episode_id)
            .values(script=script.kept(), wishes=dict(wishes), command_head=len(followed))
        )
        for number, (wish, effect) in enumerate(followed, 1):
            connection.execute(
                command.insert().values(
                    episode_id=made.episode_id,
                    number=number,
                    op=wish.op,
                    value=wish.value,
                    at=wish.at,
                    actor=asked_by[:80],
                    role="owner",
                    order_key=f"{delivery_key}#{number}"[-200:],
                    received_ms=now_ms(),
                    applied_ms=now_ms(),
                    effect=dict(effect),
                )
            )
    return made


def _make(
    connection: sa.Connection,
    links: Links,
    door: Door,
    revised: tuple[str, int],
    content: Note | None,
    casting: Mapping[str, str],
    terms: Terms,
    *,
    delivery_id: str | None,
    asked_by: str | None = None,
) -> Taken:
    refused = ""
    if terms.daily_cap is not None and _made_today(connection, door) >= terms.daily_cap:
        refused = CAPPED
    made = create_episode(
        connection,
        links,
        door,
        notes=[revised],
        content=content,
        delivery_id=delivery_id,
        casting=casting,
        refused=refused,
        asked_by=asked_by,
    )
    state: EpisodeState = "failed" if refused else "queued"
    ordered = terms.told(connection, made.episode_id, state, refused)
    return replace(made, wake_ups=(*made.wake_ups, *ordered))


def _made_today(connection: sa.Connection, door: Door) -> int:
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return int(
        connection.execute(
            sa.select(sa.func.count())
            .select_from(episode)
            .where(
                episode.c.tenant_id == door.tenant_id,
                episode.c.day == today,
                episode.c.endpoint_id == door.endpoint_id,
                episode.c.batch_run_id.is_(None),
                sa.func.coalesce(episode.c.error_code, "") != CAPPED,
            )
        ).scalar_one()
    )


def _known_note(connection: sa.Connection, door: Door, ref: NoteRef) -> Any:
    if not ref.key:
        return None
    return connection.execute(
        sa.select(
            note.c.id, note.c.fingerprint, note.c.content["trigger"].as_string().label("trigger")
        ).where(_of_row(door, ref))
    ).first()


def _of_row(door: Door, ref: NoteRef) -> sa.ColumnElement[bool]:
    return sa.and_(
        note.c.endpoint_id == door.endpoint_id,
        note.c.ref_container == ref.container,
        note.c.ref_table == ref.table,
        note.c.ref_key == ref.key,
    )


def _standing(
    connection: sa.Connection, note_id: str, casting: Mapping[str, str] | None = None
) -> Any:
    """The newest episode of a note, if it was or will be heard; in these voices, if any."""
    row = connection.execute(
        sa.select(episode)
        .join(episode_note, episode_note.c.episode_id == episode.c.id)
        .where(episode_note.c.note_id == note_id, episode.c.batch_run_id.is_(None))
        .order_by(episode.c.id.desc())
        .limit(1)
    ).first()
    if row is None or row.state in ("dead", "cancelled"):
        return None
    return row if casting is None or row.wishes["casting"] == dict(casting) else None


def _point_to(
    connection: sa.Connection, links: Links, row: Any, content: Note, terms: Terms
) -> Taken:
    """Answer with the episode that says the same, and let the row show it again."""
    if row.state == "waiting":
        _put_off(connection, row.id, content.schedule)
    status = status_of(row.state)
    shown: EpisodeState = "live" if status == "live" else "done" if status == "done" else "queued"
    ordered = terms.told(connection, row.id, shown, "")
    url = _link_of(connection, links, row)
    return Taken(Accepted(row.key, status, url, duplicate=True), row.id, tuple(ordered))


def _put_off(connection: sa.Connection, episode_id: str, until: datetime.datetime | None) -> None:
    """A row that waits for its time got another one."""
    at_ms = round(until.timestamp() * 1000) if until is not None else now_ms()
    connection.execute(
        episode.update()
        .where(episode.c.id == episode_id, episode.c.state == "waiting")
        .values(next_ms=at_ms)
    )


def _want_walk(connection: sa.Connection, door: Door) -> WakeUps:
    """Something changed somewhere: look for it soon."""
    connection.execute(
        duty.update()
        .where(duty.c.endpoint_id == door.endpoint_id, duty.c.kind == "walk")
        .where(duty.c.next_ms > now_ms())
        .values(next_ms=now_ms())
    )
    return ((outbox.put(connection, "walk"), "walk"),)


def want_reading(
    database: Database, connection: sa.Connection, door: Door, event: NoteEvent
) -> WakeUps:
    """Order a row to be read; many events of one row before that are one reading."""
    changed = sorted(event.changed) if event.changed is not None else None
    insert = database.insert(reading).values(
        id=ids.ulid(),
        endpoint_id=door.endpoint_id,
        ref_container=event.ref.container,
        ref_table=event.ref.table,
        ref_key=event.ref.key,
        changed=changed,
        next_ms=now_ms(),
        created_ms=now_ms(),
    )
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["endpoint_id", "ref_container", "ref_table", "ref_key"],
            # two bursts of changes: whatever they were, one of them may matter
            set_={"wanted": reading.c.wanted + 1, "changed": sa.null(), "next_ms": now_ms()},
        )
    )
    return ((outbox.put(connection, "read"), "read"),)


def keep_dead(database: Database, door: Door, *, body_digest: str, error: str) -> None:
    """Remember an authentic message that could not be understood; trying again would not help."""
    with database.write() as connection:
        connection.execute(
            database.insert(delivery)
            .values(
                id=ids.ulid(),
                tenant_id=door.tenant_id,
                endpoint_id=door.endpoint_id,
                delivery_key=f"dead/{body_digest}",
                body_digest=body_digest,
                received_ms=now_ms(),
                error=error[:500],
            )
            .on_conflict_do_update(
                index_elements=["endpoint_id", "delivery_key"],
                set_={"repeats": delivery.c.repeats + 1, "last_repeat_ms": now_ms()},
            )
        )


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
    refused: str = "",
    asked_by: str | None = None,
) -> Taken:
    """Insert an episode with its listener link and wake-up into an open transaction.

    Args:
        notes: (note id, revision) in speaking order; without any, no row is written.
        content: the note where it is known; None leaves the episode `received` until it was read.
        batch_run_id: makes it batch work, behind everybody who waits.
        refused: reason code; the episode is dead from the beginning, and a person may revive it.
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
    at = content.schedule if content is not None else None
    is_early = at is not None and at > now
    state = "dead" if refused else "waiting" if is_early else "queued" if is_known else "received"
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
            "asked_by": asked_by,
            "queue": queue,
            "priority": _PRIORITY[queue],
            "fair_at_ms": fair_at,
            "state": state,
            "next_ms": round(at.timestamp() * 1000) if state == "waiting" and at else None,
            "error_code": refused or None,
            "error": reason(refused, "en")[:500] if refused else None,
            "estimated_ms": estimated,
            "text_chars": chars,
            "day": now.strftime("%Y-%m-%d"),
            "hour": now.strftime("%Y-%m-%dT%H"),
        },
    )
    if notes:
        connection.execute(
            _INSERT_EPISODE_NOTE,
            [
                {"episode_id": episode_id, "position": n, "note_id": note_id, "revision": revision}
                for n, (note_id, revision) in enumerate(notes)
            ],
        )
    leases.log_states(connection, [(episode_id, 0)], state, actor="intake")
    url = links.create(connection, episode_id=episode_id, key=key)
    topic = {"queued": queue, "received": "read"}.get(state)
    wake_ups = ((outbox.put(connection, topic), topic),) if topic else ()
    return Taken(Accepted(key, status_of(state), url), episode_id, wake_ups)


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
    url = _link_of(connection, links, found)
    return Accepted(found.key, status_of(found.state), url, duplicate=True)


def _link_of(connection: sa.Connection, links: Links, row: Any) -> str:
    link = connection.execute(
        sa.select(listen_link).where(
            listen_link.c.episode_id == row.id, listen_link.c.role == "listener"
        )
    ).first()
    return links.url(link, row.key) if link is not None else ""


def _keep_note(
    database: Database, connection: sa.Connection, door: Door, ref: NoteRef, content: Note | None
) -> tuple[str, int]:
    """Insert the note, or the newer revision of the same row; (id, revision)."""
    row = connection.execute(
        database.once(_upsert_note),
        {
            "id": ids.ulid(),
            "tenant_id": door.tenant_id,
            "endpoint_id": door.endpoint_id,
            "ref_container": ref.container,
            "ref_table": ref.table,
            "ref_key": ref.key or None,
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


def row_gone(connection: sa.Connection, door: Door, ref: NoteRef) -> tuple[tuple[str, int], ...]:
    """A deleted row ends what has not begun; what is being heard goes on."""
    connection.execute(
        reading.delete().where(
            reading.c.endpoint_id == door.endpoint_id,
            reading.c.ref_container == ref.container,
            reading.c.ref_table == ref.table,
            reading.c.ref_key == ref.key,
        )
    )
    note_id = connection.execute(sa.select(note.c.id).where(_of_row(door, ref))).scalar()
    if note_id is None:
        return ()
    of_note = sa.select(episode_note.c.episode_id).where(episode_note.c.note_id == note_id)
    unstarted = sa.and_(
        episode.c.id.in_(of_note),
        episode.c.batch_run_id.is_(None),
        episode.c.state.not_in(LEASED),
    )
    return cancel(connection, unstarted, actor="intake", reason="row deleted")


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
