"""What a new state of an episode orders for the world outside, in the commit that makes the state.

Its rows show it, groups get a card, systems an event. A row is written at most three times: Queued
with the link at once, Live when the queue took longer than five seconds, Done or Failed. What is
still waiting to be written is overwritten in its place, so a tool that was away sees only the news.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from connectors.base import Connector, EpisodeState, NotePatch, NoteRef
from connectors.webhook import EVENT_OF
from pipeline import cards, effects, ids, leases, schedule
from pipeline.database import affected, now_ms
from pipeline.models import (
    alarm,
    effect,
    endpoint,
    episode,
    episode_note,
    episode_recording,
    listen_link,
    note,
    recording,
)

if TYPE_CHECKING:
    from pipeline.endpoints import Endpoint
    from pipeline.services import Services

WakeUps = list[tuple[int, str]]

MERGE_MS = 5_000  # a Live so soon after Queued is not worth a write of its own

_ROW = sa.select(episode).where(episode.c.id == sa.bindparam("of_episode"))
_REFS = (
    sa.select(
        endpoint.c.name,
        note.c.ref_container,
        note.c.ref_table,
        note.c.ref_key,
        note.c.content,
    )
    .join(note, note.c.endpoint_id == endpoint.c.id)
    .join(episode_note, episode_note.c.note_id == note.c.id)
    .where(episode_note.c.episode_id == sa.bindparam("of_episode"), note.c.ref_key.is_not(None))
    .order_by(episode_note.c.position)
)
_LINK = (
    sa.select(listen_link)
    .where(listen_link.c.episode_id == sa.bindparam("of_episode"), listen_link.c.role == "listener")
    .limit(1)
)
_DOOR = sa.select(endpoint.c.name).where(endpoint.c.id == sa.bindparam("door_id"))


def announce(
    services: Services,
    connection: sa.Connection,
    episode_id: str,
    state: EpisodeState,
    *,
    error: str = "",
    length_ms: int = 0,
    chapters: int = 0,
    lang: str = "",
) -> WakeUps:
    """Order what a state causes; gives the outbox rows to send after the commit.

    Args:
        error: reason code of a failure.
        length_ms: of the recording, or a guess; 0 takes what SQL knows.
        chapters: how many the script has, 0 if it is not composed yet.
        lang: of the script, if it is known better than the note says.
    """
    row = dict(connection.execute(_ROW, {"of_episode": episode_id}).mappings().one())
    door = connection.execute(_DOOR, {"door_id": row["endpoint_id"]}).scalar_one()
    place = services.endpoint_or_none(door)
    if place is None:
        return []
    found = connection.execute(_REFS, {"of_episode": episode_id}).all()
    link = connection.execute(_LINK, {"of_episode": episode_id}).first()
    news = cards.News(
        key=row["key"],
        state=state,
        at=datetime.now(UTC),
        title=row["title"],
        ref=found[0].ref_key if len(found) == 1 else "",
        lang=lang or row["lang"],
        link=services.links.url(link, row["key"]) if link is not None else "",
        chapters=chapters,
        length_ms=length_ms or _length_ms(connection, row, state),
        audio=_audio(services, row["key"]) if state == "done" else "",
        error_code=error,
    )
    refs = [NoteRef(one.name, one.ref_container, one.ref_table, one.ref_key) for one in found]
    order = _Orders(services, connection, row, place, news)
    callbacks = [(one.content or {}).get("callback_url") for one in found]
    return [*order.rows(refs), *order.cards(), *order.events(callbacks)]


def queued(services: Services, connection: sa.Connection, episode_id: str) -> WakeUps:
    """A new episode has its link."""
    return announce(services, connection, episode_id, "queued")


def buried(services: Services, connection: sa.Connection, episode_id: str) -> WakeUps:
    """What a death causes, in the same commit: the row shows why, a batch run counts it."""
    row = dict(connection.execute(_ROW, {"of_episode": episode_id}).mappings().one())
    schedule.episode_ended(connection, row)
    return announce(services, connection, episode_id, "failed", error=row["error_code"] or "failed")


def tell_dead(services: Services, freed: Sequence[leases.Freed]) -> None:
    """Those who listen to an episode that died with its worker hear why it ends."""
    for one in freed:
        if one.state == "dead":
            services.end_live(one.key, one.fence, failure=one.error)


def _length_ms(connection: sa.Connection, row: Mapping[str, Any], state: EpisodeState) -> int:
    if state != "done":
        return int(row["estimated_ms"])
    return int(
        connection.execute(
            sa.select(sa.func.coalesce(sa.func.max(recording.c.duration_ms), 0))
            .join(episode_recording, episode_recording.c.recording_id == recording.c.id)
            .where(episode_recording.c.episode_id == row["id"], recording.c.take == row["take"])
        ).scalar_one()
    )


def _audio(services: Services, key: str) -> str:
    hours = services.settings.link_days * 24
    return services.links.file_url(key, "mp3", now_s=time.time(), hours=hours)


class _Orders:
    """One state of one episode, put into effects."""

    def __init__(
        self,
        services: Services,
        connection: sa.Connection,
        row: Mapping[str, Any],
        place: Endpoint,
        news: cards.News,
    ) -> None:
        self._services = services
        self._connection = connection
        self._row = row
        self._place = place
        self._news = news

    def rows(self, refs: Sequence[NoteRef]) -> WakeUps:
        """One write for each row of the episode, if its tool can be written to and wants it."""
        connector, news, row = self._place.connector, self._news, self._row
        if type(connector).write_back is Connector.write_back:
            return []
        if news.state not in connector.shows or (news.state == "live" and row["batch_run_id"]):
            return []
        after_ms = self._merge_ms() if news.state == "live" else 0
        ordered = []
        for position, ref in enumerate(refs):
            place = f"{row['id']}:{position}:"
            patch = NotePatch(
                key=place + ids.ulid(),
                status=news.state,
                link=news.link or None,
                audio_ref=news.audio or None,
                error=news.error_code or None,
                duration_s=news.length_ms / 1000 if news.state == "done" else None,
            )
            if self._overwritten(place, ref, patch):
                continue
            ordered.append(
                effects.order_write_back(
                    self._services.database,
                    self._connection,
                    tenant_id=row["tenant_id"],
                    episode_id=row["id"],
                    endpoint=self._place.name,
                    ref=ref,
                    patch=patch,
                    after_ms=after_ms,
                )
            )
        return [one for one in ordered if one is not None]

    def _merge_ms(self) -> int:
        now = self._connection.execute(sa.select(now_ms())).scalar_one()
        return max(0, int(self._row["created_ms"]) + MERGE_MS - int(now))

    def _overwritten(self, place: str, ref: NoteRef, patch: NotePatch) -> bool:
        """Put the news into the oldest write that still waits; it keeps its place in the lane.

        There are two when a write that was under way as others were ordered has failed since.
        """
        found = self._connection.execute(
            _PENDING, {"of_episode": self._row["id"], "place": place + "%"}
        )
        waiting = list(found.scalars())
        if not waiting:
            return False
        first, *others = waiting
        changed = self._connection.execute(
            _OVERWRITE,
            {
                "first": first,
                "new_key": patch.key,
                "new_body": effects.write_back_body(self._place.name, ref, patch),
                "is_final": patch.status in ("done", "failed"),
            },
        )
        if others:
            self._connection.execute(_DROP.where(effect.c.id.in_(others)))
        return bool(affected(changed))

    def cards(self) -> WakeUps:
        """A card for each group that wants to hear of the state; UNIQUE keeps it single."""
        ordered = []
        for place in self._places():
            for n, notifier in enumerate(place.notify):
                if self._news.state not in notifier.on:
                    continue
                key = f"card:{self._row['id']}:{self._row['take']}:{self._news.state}:{n}"
                if place is not self._place:
                    key += f":{place.name}"
                card = asdict(cards.card(self._news, key))
                body = {"endpoint": place.name, "n": n, "card": card}
                ordered.append(self._order("card", "once", key, body, f"{place.name}/notify/{n}"))
        return [one for one in ordered if one is not None]

    def _places(self) -> list[Endpoint]:
        """Whose groups hear of it: a batch run's schedule may name others."""
        run_id = self._row["batch_run_id"]
        names = schedule.notified(self._connection, run_id) if run_id else None
        if names is None:
            return [self._place]
        found = (self._services.endpoint_or_none(name) for name in names)
        return [one for one in found if one is not None]

    def events(self, callbacks: Sequence[str | None]) -> WakeUps:
        """An event to the endpoint's own system, and to the note's sender."""
        targets = []
        own = self._place.events
        if own is not None and EVENT_OF[self._news.state] in own.on:
            targets.append(("own", own.url.get_secret_value()))
        if len(callbacks) == 1 and callbacks[0]:
            targets.append(("callback", callbacks[0]))
        ordered = []
        for target, url in targets:
            if self._is_gone(url):
                continue
            row = self._row
            key = f"event:{row['id']}:{row['take']}:{row['fence']}:{self._news.state}:{target}"
            body = {
                "endpoint": self._place.name,
                "target": target,
                # the address of the file stays there: it may be a secret
                "url": url if target == "callback" else "",
                "event": cards.event(self._news),
            }
            ordered.append(self._order("event", "keyed", key, body))
        return [one for one in ordered if one is not None]

    def _order(
        self,
        kind: effects.Kind,
        policy: effects.Policy,
        key: str,
        body: Mapping[str, Any],
        lane: str | None = None,
    ) -> tuple[int, str] | None:
        return effects.order(
            self._services.database,
            self._connection,
            tenant_id=self._row["tenant_id"],
            episode_id=self._row["id"],
            kind=kind,
            policy=policy,
            key=key,
            body=body,
            lane=lane,
        )

    def _is_gone(self, url: str) -> bool:
        """Has this address answered 410 before?"""
        gone = self._connection.execute(
            sa.select(alarm.c.about).where(
                alarm.c.endpoint_id == self._row["endpoint_id"],
                alarm.c.kind == "events",
                alarm.c.about == address_digest(url),
            )
        )
        return gone.first() is not None


def address_digest(url: str) -> str:
    """How an alarm names an address, which may hold a secret."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


_STILL = effect.c.state.in_(("due", "failed"))
_PENDING = (
    sa.select(effect.c.id)
    .where(
        effect.c.episode_id == sa.bindparam("of_episode"),
        effect.c.effect_key.like(sa.bindparam("place")),
        effect.c.kind == "write_back",
        _STILL,
    )
    .order_by(effect.c.id)
)
_DROP = effect.update().where(_STILL).values(state="dropped", done_ms=now_ms())
_OVERWRITE = (
    effect.update()
    .where(effect.c.id == sa.bindparam("first"), _STILL)
    .values(
        effect_key=sa.bindparam("new_key"),
        body=sa.bindparam("new_body", type_=effect.c.body.type),
        created_ms=now_ms(),
        # a Live that was waiting for its five seconds need not wait with the last word
        next_ms=sa.case(
            (
                sa.and_(effect.c.state == "due", sa.bindparam("is_final", type_=sa.Boolean)),
                now_ms(),
            ),
            else_=effect.c.next_ms,
        ),
    )
)
