"""The io worker: everything that waits for other people's servers.

Effects, notes that must be read from their tool first, and expansion of batch runs. Like the
speaker it looks into SQL when a wake-up rings and every `look_s` without one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa

from connectors.base import NoteRef
from pipeline import effects, intake, leases, outbox, retry, schedule
from pipeline.database import affected, now_ms, rows
from pipeline.errors import DatabaseUnavailable, Refused
from pipeline.models import batch_run, endpoint, episode, episode_note, note
from pipeline.notes import note_to_json
from pipeline.services import Services
from pipeline.write_backs import buried

log = logging.getLogger(__name__)

_THREADS = 8


class Errands:
    """Runs what is due until closed."""

    def __init__(self, services: Services, worker_id: str) -> None:
        self._services = services
        self._id = worker_id
        self._bell = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run_forever, name="errands", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()
        self.wake()

    def wake(self) -> None:
        """Something may be due; returns at once."""
        self._bell.set()

    def close(self) -> None:
        """Finish what is being done and stop."""
        self._is_closed = True
        self._bell.set()
        self._thread.join(timeout=self._services.settings.drain_s)

    def _run_forever(self) -> None:
        while not self._is_closed:
            self._bell.wait(self._services.settings.look_s)
            self._bell.clear()
            for errand in (self._carry_out, self._read, self._expand):
                try:
                    while not self._is_closed and errand():
                        pass
                except DatabaseUnavailable as error:
                    log.warning("errands wait: %s", error)
                except Exception:
                    log.exception("an errand failed")
                    time.sleep(0.5)

    def _carry_out(self) -> bool:
        if not effects.has_due(self._services.database):
            return False
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="effect") as pool:
            lanes = [pool.submit(self._carry_out_some) for _ in range(_THREADS)]
        return any(lane.result() for lane in lanes)

    def _carry_out_some(self) -> int:
        return effects.carry_out(
            self._services.database,
            self._id,
            self._services.connector,
            within_ms=int(self._services.settings.effect_hours * 3_600_000),
            limit=2,
        )

    def _read(self) -> bool:
        """Read the notes of `received` episodes from their tool, then let them be spoken."""
        with self._services.database.read() as connection:
            found = rows(
                connection,
                sa.select(
                    episode.c.id,
                    episode.c.tries,
                    episode.c.wishes,
                    (now_ms() - episode.c.created_ms).label("age_ms"),
                    endpoint.c.name,
                    note.c.id.label("note_id"),
                    note.c.ref_container,
                    note.c.ref_table,
                    note.c.ref_key,
                )
                .join(endpoint, endpoint.c.id == episode.c.endpoint_id)
                .join(episode_note, episode_note.c.episode_id == episode.c.id)
                .join(note, note.c.id == episode_note.c.note_id)
                .where(
                    episode.c.state == "received",
                    sa.or_(episode.c.next_ms.is_(None), episode.c.next_ms <= now_ms()),
                )
                .limit(16),
            )
        for row in found:
            try:
                self._read_one(row)
            except Exception as error:
                self._not_read(row, error)
        return bool(found)

    def _read_one(self, row: Mapping[str, Any]) -> None:
        services = self._services
        ref = NoteRef(row["name"], row["ref_container"], row["ref_table"], row["ref_key"])
        door = next(one for one in services.endpoints.values() if one.name == row["name"])
        content = next(iter(door.connector.read([ref])), None)
        if content is None:
            raise Refused("the row is not there any more")
        content = door.complete(content)
        with services.database.write() as connection:
            connection.execute(
                note.update()
                .where(note.c.id == row["note_id"])
                .values(
                    content=note_to_json(content),
                    fingerprint=content.fingerprint,
                    title=content.title[:400],
                )
            )
            changed = affected(
                connection.execute(
                    episode.update()
                    .where(episode.c.id == row["id"], episode.c.state == "received")
                    .values(
                        state="queued",
                        state_ms=now_ms(),
                        queued_ms=now_ms(),
                        next_ms=None,
                        title=content.title[:400],
                        text_chars=len(content.text),
                        estimated_ms=intake.estimate_ms(content.text),
                        wishes={**row["wishes"], "casting": door.casting(content)},
                    )
                )
            )
            if not changed:
                return
            leases.log_states(connection, [(row["id"], 0)], "queued", actor="read")
            wake_up = (outbox.put(connection, "realtime"), "realtime")
        services.sender.committed([wake_up])

    def _not_read(self, row: Mapping[str, Any], error: Exception) -> None:
        log.warning("note not read: %s", error, extra={"episode": row["id"]})
        verdict = retry.decide(error, tries=row["tries"] + 1, age_ms=row["age_ms"])
        is_dead = verdict.after_ms is None
        with self._services.database.write() as connection:
            changed = affected(
                connection.execute(
                    episode.update()
                    .where(episode.c.id == row["id"], episode.c.state == "received")
                    .values(
                        state="dead" if is_dead else "received",
                        tries=episode.c.tries + 1,
                        next_ms=None if is_dead else now_ms() + verdict.after_ms,
                        ended_ms=now_ms() if is_dead else None,
                        error_code=verdict.code,
                        error=verdict.message,
                    )
                )
            )
            if changed and is_dead:
                leases.log_states(connection, [(row["id"], 0)], "dead", actor="read")
                buried(self._services, connection, row["id"])

    def _expand(self) -> bool:
        """Turn due batch runs into episodes."""
        services = self._services
        with services.database.read() as connection:
            due = list(
                connection.execute(
                    sa.select(batch_run.c.id)
                    .where(batch_run.c.state.in_(("due", "selecting")))
                    .order_by(batch_run.c.fire_ms)
                ).scalars()
            )
        for run_id in due:
            schedule.expand(services.database, run_id, create_episode=self._create_episode)
        return bool(due)

    def _create_episode(
        self, connection: sa.Connection, notes: Sequence[Mapping[str, Any]], order: schedule.Order
    ) -> str:
        endpoints = self._services.endpoints.values()
        door = next((one for one in endpoints if one.name == order.endpoint), None)
        casting = dict(door.voices) if door is not None else {}
        if order.voice:
            casting["default"] = door.library.get(order.voice, order.voice) if door else order.voice
        taken = intake.create_episode(
            connection,
            self._services.links,
            intake.Door(order.endpoint_id, order.tenant_id),
            notes=[(one["id"], one["revision"]) for one in notes],
            content=None,
            casting=casting,
            batch_run_id=order.run_id,
            title=order.title,
            text_chars=sum(len((one["content"] or {}).get("text", "")) for one in notes),
        )
        return taken.episode_id
