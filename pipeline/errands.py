"""The io worker: everything that waits for other people's servers.

Effects, notes that must be read from their tool first, walks and upkeep, expansion of batch runs.
Like the speaker it looks into SQL when a wake-up rings and every `look_s` without one.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import sqlalchemy as sa

from connectors.base import NoteRef
from pipeline import (
    effects,
    intake,
    leases,
    outbox,
    readings,
    retry,
    schedule,
    walks,
    write_backs,
)
from pipeline.carriers import Tools
from pipeline.database import affected, now_ms, rows
from pipeline.errors import DatabaseUnavailable, Refused
from pipeline.models import endpoint, episode, episode_note, note
from pipeline.notes import note_to_json
from pipeline.services import Services

log = logging.getLogger(__name__)

_WALK_LOOK_MS = 500


class RowGone(Refused):
    """The row somebody asked for is not there any more."""

    code = "row_gone"


class _Crew:
    """The threads of one loop; a piece of work that is under way is not begun again."""

    def __init__(self, name: str, threads: int, wake: Callable[[float], None]) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = threads
        self._wake = wake
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """Threads that have nothing to do."""
        with self._lock:
            return self._threads - len(self._busy)

    def give(self, key: str, work: Callable[[], None]) -> None:
        """Begin a piece of work, unless it is under way; the loop looks again when it is done."""
        with self._lock:
            if key in self._busy:
                return
            self._busy.add(key)
        self._pool.submit(self._run, key, work)

    def again(self, after_s: float) -> None:
        """There is more to do, after a while."""
        self._wake(after_s)

    def _run(self, key: str, work: Callable[[], None]) -> None:
        try:
            work()
        except DatabaseUnavailable as error:
            log.warning("errand waits: %s", error)
        except Exception:
            log.exception("an errand failed", extra={"errand": key})
        finally:
            with self._lock:
                self._busy.discard(key)
            self._wake(0.0)  # the next of the same lane may have waited for this one

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Loop:
    """Looks into SQL when a wake-up rings, when something said it would be due, and by itself."""

    def __init__(
        self, name: str, look: Callable[[_Crew], float | None], every_s: float, *, threads: int
    ) -> None:
        self._look = look
        self._every_s = every_s
        self._changed = threading.Condition()
        self._next_at = 0.0
        self._is_stopped = False
        self._crew = _Crew(name, threads, self.wake)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self, after_s: float = 0.0) -> None:
        with self._changed:
            self._next_at = min(self._next_at, time.monotonic() + after_s)
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._crew.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_stopped and (wait_s := self._next_at - time.monotonic()) > 0:
                    self._changed.wait(wait_s)
                if self._is_stopped:
                    return
                self._next_at = time.monotonic() + self._every_s
            try:
                after_s = self._look(self._crew)
            except DatabaseUnavailable as error:
                log.warning("errands wait: %s", error)
            except Exception:
                log.exception("an errand failed")
            else:
                if after_s is not None:
                    self.wake(after_s)


class Errands:
    """Runs what is due until closed.

    Each kind of errand has a loop of its own, and each loop a few threads for the waiting, so a
    tool that hangs keeps its own lane, rows or walk and nobody else's.
    """

    def __init__(self, services: Services, worker_id: str) -> None:
        self._services = services
        self._id = worker_id
        self._tools = Tools(services)
        look_s = services.settings.look_s
        self._walking = _Loop("duties", self._duties, look_s, threads=4)
        self._loops = (
            _Loop("effects", self._carry_out, look_s, threads=8),
            _Loop("reads", self._read, look_s, threads=4),
            self._walking,
            _Loop("runs", self._expand, look_s, threads=1),
        )

    def start(self) -> None:
        """Begin to look; every walk and every upkeep is due."""
        walks.sync(self._services)
        for loop in self._loops:
            loop.start()

    def wake(self) -> None:
        """Something may be due; returns at once."""
        for loop in self._loops:
            loop.wake()

    def close(self) -> None:
        """Finish what is being done and stop."""
        for loop in self._loops:
            loop.stop()
        for loop in self._loops:
            loop.join(self._services.settings.drain_s)
        self._tools.close()

    def _carry_out(self, crew: _Crew) -> float | None:
        services = self._services
        if not crew.free:
            return None
        claimed = effects.claim(services.database, self._id, self._tools, limit=crew.free)
        within_ms = int(services.settings.effect_hours * 3_600_000)
        for due in claimed.effects:
            work = partial(effects.finish, services.database, due, self._tools, within_ms=within_ms)
            crew.give(due.id, work)
        if claimed.effects:
            return 0.0
        return claimed.wait_ms / 1_000 if claimed.wait_ms is not None else None

    def _read(self, crew: _Crew) -> float | None:
        for name in readings.due_endpoints(self._services):
            crew.give(f"rows of {name}", partial(self._read_rows, crew, name))
        for row in self._received():
            crew.give(row["id"], partial(self._read_received, row))
        return None

    def _read_rows(self, crew: _Crew, name: str) -> None:
        done, wait_ms = readings.read_due(self._services, name)
        if done or wait_ms:
            crew.again(wait_ms / 1_000 if wait_ms else 0.0)

    def _duties(self, crew: _Crew) -> float | None:
        for turn in walks.claim(self._services):
            crew.give(f"{turn.kind} of {turn.endpoint}", partial(walks.run, self._services, turn))
        return None

    def _received(self) -> Sequence[Mapping[str, Any]]:
        """Episodes whose rows somebody asked for by name."""
        with self._services.database.read() as connection:
            return rows(
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

    def _read_received(self, row: Mapping[str, Any]) -> None:
        try:
            self._read_one(row)
        except Exception as error:
            self._not_read(row, error)

    def _read_one(self, row: Mapping[str, Any]) -> None:
        services = self._services
        ref = NoteRef(row["name"], row["ref_container"], row["ref_table"], row["ref_key"])
        door = next(one for one in services.endpoints.values() if one.name == row["name"])
        content = next(iter(door.connector.read([ref])), None)
        if content is None:
            raise RowGone("the row is not there any more")
        content = door.complete(content)
        at = content.schedule
        is_early = at is not None and at > datetime.datetime.now(datetime.UTC)
        state = "waiting" if is_early else "queued"
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
                        state=state,
                        state_ms=now_ms(),
                        queued_ms=now_ms(),
                        next_ms=round(at.timestamp() * 1000) if is_early and at else None,
                        title=content.title[:400],
                        text_chars=len(content.text),
                        estimated_ms=intake.estimate_ms(content.text),
                        wishes={**row["wishes"], "casting": door.casting(content)},
                    )
                )
            )
            if not changed:
                return
            leases.log_states(connection, [(row["id"], 0)], state, actor="read")
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
                write_backs.buried(self._services, connection, row["id"])

    def _expand(self, crew: _Crew) -> float | None:
        """Turn due batch runs into episodes, once their rows were looked through."""
        services = self._services
        ready, wait_ms = schedule.ready_runs(services.database)
        for run in ready:
            until_ms = walks.before_run(services, run.endpoint, run.begin_ms)
            if until_ms is None:
                self._walking.wake()
                wait_ms = _WALK_LOOK_MS
                continue
            schedule.walked(services.database, run.id, until_ms)
            schedule.expand(services.database, run.id, create_episode=self._create_episode)
        return wait_ms / 1_000 if wait_ms is not None else None

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
        write_backs.queued(self._services, connection, taken.episode_id)
        return taken.episode_id
