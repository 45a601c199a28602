"""A whole installation in one process, for tests: real SQL, store and voice, a log in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from connectors.base import Note, NoteEvent, NoteRef
from pipeline import ids, intake, leases
from pipeline.door import terms_of
from pipeline.leases import Claim
from pipeline.models import episode
from pipeline.services import Services
from pipeline.settings import Settings
from pipeline.signals import LocalSignals
from pipeline.speaker import Held
from streaming.chunk_log import MemoryLog

LEASE_MS = 15_000


class Bell:
    """A broker that only remembers which wake-ups were published; it can be switched off."""

    def __init__(self) -> None:
        self.rung: list[str] = []
        self.is_away = False

    def __call__(self, topic: str) -> None:
        if self.is_away:
            raise ConnectionError("the broker is away")
        self.rung.append(topic)


class House:
    """One installation: its services, its doors, and what goes on in it."""

    def __init__(self, services: Services, bell: Bell) -> None:
        self.services = services
        self.database = services.database
        self.bell = bell
        self.worker = ids.ulid()
        leases.register(self.database, self.worker, host="here", pid=1, kind="gpu", build="0")

    def accept(
        self,
        text: str,
        *,
        delivery: str = "",
        ref: str = "",
        endpoint: str = "api",
        kind: Any = "changed",
        **note: Any,
    ) -> intake.Taken:
        """What the door does with a note; without a text somebody asked for a row."""
        where = NoteRef(endpoint, key=ref)
        content = Note(ref=where, text=text, **note) if text else None
        event = NoteEvent(
            delivery or ids.ulid(), where, kind=kind, note=content, asked=content is None
        )
        services = self.services
        door = services.endpoint_or_none(endpoint)
        return intake.accept(
            self.database,
            services.links,
            services.doors[endpoint],
            event,
            body_digest="0" * 64,
            casting={},
            terms=terms_of(services, door) if door is not None else intake.Terms(),
        )

    def claim(self, queue: str = "realtime", *, worker: str = "") -> Claim:
        """The next episode of a queue."""
        (claim,) = leases.claim(
            self.database, worker or self.worker, queue=queue, limit=1, lease_ms=LEASE_MS
        )
        return claim

    def hold(self, queue: str = "realtime") -> Held:
        return Held(self.claim(queue), LEASE_MS / 1000)

    def row(self, key: str) -> Any:
        """The episode of a public key."""
        with self.database.read() as connection:
            return connection.execute(sa.select(episode).where(episode.c.key == key)).one()

    def all(self, table: sa.Table, *order: Any) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(sa.select(table).order_by(*order)).all())

    def change(self, table: sa.Table, where: Any, **values: Any) -> None:
        with self.database.write() as connection:
            connection.execute(table.update().where(where).values(values))


@contextmanager
def open_house(
    directory: Path, template: Path, *, connectors: str = "", **options: Any
) -> Iterator[House]:
    """An installation in an empty directory.

    Args:
        template: a database with all tables, to copy.
        connectors: text of its connectors.toml; secrets are files in the directory.
        options: settings.
    """
    shutil.copy(template, directory / "notecast.db")
    (directory / "connectors.toml").write_text(connectors)
    services = Services(Settings(data=directory, engine="tone", **options))
    bell = Bell()
    # the parts that would need a server; everything else is as in a real process
    vars(services).update(chunks=MemoryLog(), send=bell, signals=LocalSignals())
    try:
        yield House(services, bell)
    finally:
        services.close()
