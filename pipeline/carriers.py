"""How each kind of effect is carried out: a row is written, a card posted, an event delivered."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from connectors.base import AudioFile, Budget, Card, NotePatch, NoteRef
from connectors.errors import ToolRefused
from connectors.fetch import SafeSession
from connectors.webhook import send_event
from pipeline import alarms, budgets
from pipeline.effects import Due, Kind
from pipeline.errors import NotFound
from pipeline.models import episode, episode_note, episode_recording, note, recording
from pipeline.write_backs import address_digest

if TYPE_CHECKING:
    from pipeline.endpoints import Endpoint
    from pipeline.services import Services

log = logging.getLogger(__name__)

_EVERYWHERE = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
_FILE = (
    sa.select(recording.c.object_key, recording.c.size_bytes, episode.c.title, episode.c.key)
    .join(episode_recording, episode_recording.c.recording_id == recording.c.id)
    .join(episode, episode.c.id == episode_recording.c.episode_id)
    .where(episode.c.id == sa.bindparam("of_episode"), recording.c.format == "mp3")
    .order_by(recording.c.take.desc())
)


class Tools:
    """Carries effects to the tools of this installation."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def budget(self, body: Mapping[str, Any], kind: Kind) -> tuple[str, Budget] | None:
        """The bucket an effect counts against; events and removed endpoints have none."""
        endpoint = self._services.endpoint_or_none(body["endpoint"])
        if endpoint is None or kind == "event":
            return None
        if kind == "card":
            if body["n"] >= len(endpoint.notify):
                return None
            connector = endpoint.notify[body["n"]].connector
            wanted = connector.bucket(None, "notify")
        else:
            connector = endpoint.connector
            wanted = connector.bucket(NoteRef(**body["ref"]), "write")
        return (budgets.name_of(connector, wanted), wanted) if wanted is not None else None

    def carry(self, due: Due) -> str:
        """Do it; gives the state it ends in.

        Raises:
            ConnectorError: the tool is away, or said no.
            NotFound: connectors.toml has no such endpoint any more.
        """
        if due.kind == "write_back":
            return self._write_back(due)
        if due.kind == "card":
            return self._notify(due)
        return self._deliver(due)

    def _write_back(self, due: Due) -> str:
        if self._is_superseded(due.episode_id):
            log.info("write-back dropped, the row has a newer revision", extra={"effect": due.id})
            return "dropped"
        connector = self._services.connector(due.body["endpoint"])
        patch = due.body["patch"]
        if connector.uploads_audio and patch.get("audio_ref"):
            patch = {**patch, "audio_file": self._audio_file(due.episode_id)}
        connector.write_back(NoteRef(**due.body["ref"]), NotePatch(**patch))
        return "done"

    def _is_superseded(self, episode_id: str) -> bool:
        """An older episode must not write over what a newer revision of its row shows."""
        with self._services.database.read() as connection:
            newer = connection.execute(
                sa.select(note.c.id)
                .join(episode_note, episode_note.c.note_id == note.c.id)
                .where(
                    episode_note.c.episode_id == episode_id,
                    note.c.revision > episode_note.c.revision,
                )
            )
            return newer.first() is not None

    def _audio_file(self, episode_id: str) -> AudioFile | None:
        with self._services.database.read() as connection:
            row = connection.execute(_FILE, {"of_episode": episode_id}).first()
        if row is None:
            return None
        name = "".join(one for one in row.title if one.isalnum() or one in " -_").strip()[:80]
        return AudioFile(
            name=f"{name or row.key}.mp3",
            content_type="audio/mpeg",
            size_bytes=row.size_bytes,
            load=lambda: self._services.storage.get(row.object_key),
        )

    def _notify(self, due: Due) -> str:
        notify = self._endpoint(due.body["endpoint"]).notify
        if due.body["n"] >= len(notify):
            return "dropped"  # the group was taken out of the file since
        notify[due.body["n"]].connector.notify(Card(**due.body["card"]))
        return "done"

    def _deliver(self, due: Due) -> str:
        endpoint = self._endpoint(due.body["endpoint"])
        own = endpoint.events
        if due.body["target"] == "own":
            if own is None:
                return "dropped"
            url, secrets, session = own.url.get_secret_value(), own.texts, self._trusted
        else:
            secrets = list(endpoint.connector.event_secrets()) or (own.texts if own else [])
            url, session = due.body["url"], self._foreign
        try:
            send_event(
                session,
                url,
                due.body["event"],
                secrets=secrets,
                msg_id=f"msg_{due.id}",
                now=datetime.now(UTC),
            )
        except ToolRefused as error:
            if error.code == "410":
                self._switch_off(endpoint, url)
            raise
        return "done"

    def _switch_off(self, endpoint: Endpoint, url: str) -> None:
        services = self._services
        with services.database.write() as connection:
            alarms.ring(
                services.database,
                connection,
                services.doors[endpoint.name].endpoint_id,
                "events",
                "events are switched off: their address answered 410 Gone",
                about=address_digest(url),
            )
        log.error("events switched off, 410 Gone", extra={"endpoint": endpoint.name})

    @cached_property
    def _trusted(self) -> SafeSession:
        """For addresses that operators wrote into the configuration."""
        return SafeSession(trusted=_EVERYWHERE)

    @cached_property
    def _foreign(self) -> SafeSession:
        """For addresses that came with a note."""
        return SafeSession(trusted=self._services.settings.fetch_trusted_networks)

    def _endpoint(self, name: str) -> Endpoint:
        endpoint = self._services.endpoint_or_none(name)
        if endpoint is None:
            raise NotFound(f"connectors.toml has no endpoint {name!r} any more")
        return endpoint

    def close(self) -> None:
        """Close what was opened."""
        for name in ("_trusted", "_foreign"):
            session = vars(self).get(name)
            if session is not None:
                session.close()
