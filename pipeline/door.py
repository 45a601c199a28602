"""The door of every connector, HTTP aside: prove, read the events, one transaction, answer.

Nothing here calls out; whatever needs a tool or the network is done by a worker later.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from connectors.base import EpisodeState, Hook, NoteEvent, Reply
from connectors.errors import Malformed, Rejected
from connectors.signing import proofs
from pipeline import intake, vault, write_backs
from pipeline.database import now_ms
from pipeline.models import endpoint as endpoint_table

if TYPE_CHECKING:
    from pipeline.endpoints import Endpoint
    from pipeline.services import Services

log = logging.getLogger(__name__)

_STATE_AGE_S = 5.0
_NOTED_AGE_S = 60.0


@dataclass(frozen=True, slots=True)
class Received:
    """The answer, and what was stored for it."""

    reply: Reply
    taken: Sequence[intake.Taken] = ()


class Doors:
    """Takes hooks; one for each process, shared by its threads."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._refreshing = threading.Lock()
        self._refreshed_at = float("-inf")
        self._noted: dict[tuple[str, str], float] = {}

    def receive(self, endpoint: Endpoint, hook: Hook) -> Received:
        """Take one hook.

        Raises:
            DatabaseUnavailable: nothing was stored; the sender's repetition is our durability.
        """
        digest = hashlib.sha256(hook.body).hexdigest()
        self.refresh(_STATE_AGE_S)
        try:
            with proofs() as labels:
                verified = self._verify(endpoint, hook)
        except Rejected as error:
            log.info("hook refused", extra={"endpoint": endpoint.name, "reason": str(error)[:200]})
            return Received(endpoint.connector.refuse(error))
        if isinstance(verified, Reply):
            self._keep_handshake(endpoint, verified)
            return Received(verified)
        try:
            events = endpoint.connector.events(verified, hook)
        except Malformed as error:
            return self._keep_malformed(endpoint, error, digest)
        return self._store(endpoint, hook, events, digest, labels)

    def refresh(self, max_age_s: float) -> None:
        """Give connectors what workers and operators have left for them since."""
        if time.monotonic() - self._refreshed_at < max_age_s:
            return
        with self._refreshing:
            if time.monotonic() - self._refreshed_at < max_age_s:
                return
            services = self._services
            with services.database.read() as connection:
                found = vault.states(connection, services.vault)
            for one in services.endpoints.values():
                one.connector.state = found.get(services.doors[one.name].endpoint_id, {})
            self._refreshed_at = time.monotonic()

    def _verify(self, endpoint: Endpoint, hook: Hook) -> bytes | Reply:
        try:
            return endpoint.connector.verify(hook, now=hook.received_at)
        except Rejected:
            if time.monotonic() - self._refreshed_at < 1.0:
                raise
        self.refresh(1.0)  # the secret may be younger than what we know
        return endpoint.connector.verify(hook, now=hook.received_at)

    def _keep_handshake(self, endpoint: Endpoint, reply: Reply) -> None:
        secret = reply.state.get("pending_secret")
        if not secret:
            return
        services = self._services
        endpoint_id = services.doors[endpoint.name].endpoint_id
        with services.database.write() as connection:
            vault.keep_pending(
                services.database, connection, services.vault, endpoint_id, str(secret)
            )
        log.warning(
            "a handshake left a secret that waits for: notecast connectors rotate %s --accept",
            endpoint.name,
        )

    def _keep_malformed(self, endpoint: Endpoint, error: Malformed, digest: str) -> Received:
        log.warning(
            "hook not understood", extra={"endpoint": endpoint.name, "reason": str(error)[:200]}
        )
        services = self._services
        door = services.doors[endpoint.name]
        intake.keep_dead(services.database, door, body_digest=digest, error=str(error))
        return Received(endpoint.connector.refuse(error))

    def _store(
        self,
        endpoint: Endpoint,
        hook: Hook,
        events: Sequence[NoteEvent],
        digest: str,
        labels: set[str],
    ) -> Received:
        services = self._services
        door = services.doors[endpoint.name]
        taken = []
        with services.database.write() as connection:
            self._note_signs(connection, endpoint, labels)
            for event in events:
                event, casting = completed(endpoint, event)
                taken.append(
                    intake.take_event(
                        services.database,
                        connection,
                        services.links,
                        door,
                        event,
                        body_digest=digest,
                        casting=casting,
                        terms=terms_of(services, endpoint),
                    )
                )
        reply = Reply.of(200, {"ok": True})
        if taken:
            reply = endpoint.connector.answer(taken[-1].accepted, hook)
        return Received(reply, taken)

    def _note_signs(self, connection: sa.Connection, endpoint: Endpoint, labels: set[str]) -> None:
        """When the endpoint was heard last, and by which secret; once a minute is enough."""
        now = time.monotonic()
        name = endpoint.name
        fresh = {
            one
            for one in ("", *labels)
            if now - self._noted.get((name, one), -60.0) >= _NOTED_AGE_S
        }
        if not fresh:
            return
        services = self._services
        endpoint_id = services.doors[name].endpoint_id
        if "" in fresh:
            connection.execute(
                endpoint_table.update()
                .where(endpoint_table.c.id == endpoint_id)
                .values(heard_ms=now_ms())
            )
        vault.verified(services.database, connection, endpoint_id, fresh - {""})
        self._noted.update({(name, one): now for one in fresh})


def completed(endpoint: Endpoint, event: NoteEvent) -> tuple[NoteEvent, dict[str, str]]:
    """The event with the endpoint's defaults, and who speaks with which voice."""
    if event.note is None:
        return event, {}
    note = endpoint.complete(event.note)
    return replace(event, note=note), endpoint.casting(note)


def terms_of(services: Services, endpoint: Endpoint) -> intake.Terms:
    """How an endpoint takes notes."""
    return intake.Terms(
        speak_now=endpoint.speaks_now,
        reads=endpoint.connector.reads,
        daily_cap=endpoint.daily_cap,
        told=partial(_told, services),
    )


def _told(
    services: Services, connection: sa.Connection, episode_id: str, state: EpisodeState, error: str
) -> Sequence[Any]:
    return write_backs.announce(services, connection, episode_id, state, error=error)
