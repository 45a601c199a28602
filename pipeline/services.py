"""Everything wired, in one place: settings in, the parts a process needs out.

Parts are made when they are first asked for, so a web process loads no engine and a worker no web
framework.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
import tomllib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connectors.base import Connector
from connectors.errors import nearest
from pipeline import intake, links, servers
from pipeline.database import Database
from pipeline.door import Doors
from pipeline.errors import Misconfigured, NotFound
from pipeline.links import Links
from pipeline.outbox import Send, Sender
from pipeline.settings import Settings, connectors_environment
from pipeline.signals import RedisSignals, Signals
from pipeline.vault import Vault
from streaming.chunk_log import ChunkLog
from streaming.errors import LedgerUnavailable, LogLost, StreamingError
from streaming.limits import revocation
from streaming.session import LiveSession
from streaming.tokens import KeyRing

if TYPE_CHECKING:
    from engine.engine import Engine
    from pipeline.audio import Encoder
    from pipeline.endpoints import Endpoint
    from pipeline.script import SectionNames
    from pipeline.security_log import SecurityLog
    from pipeline.speech import Catalogue
    from pipeline.storage import Storage

log = logging.getLogger(__name__)


class Services:
    """The parts of one process; close it at the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def database(self) -> Database:
        """SQL."""
        return Database(self.settings.effective_database_url)

    @cached_property
    def endpoints(self) -> dict[str, Endpoint]:
        """The endpoints of connectors.toml by the name in their address."""
        from pipeline.endpoints import load_endpoints

        path = connectors_file(self.settings)
        if path is None:
            return {}
        by_name = load_endpoints(path, env=connectors_environment())
        return {endpoint.address: endpoint for endpoint in by_name.values()}

    @cached_property
    def section_names(self) -> SectionNames:
        """What sections of notes are called, with the words of connectors.toml."""
        from pipeline.endpoints import load_section_names
        from pipeline.script import SECTION_NAMES

        path = connectors_file(self.settings)
        return load_section_names(path) if path is not None else SECTION_NAMES

    def sync_schedules(self) -> None:
        """Make the schedules what connectors.toml says."""
        from pipeline import schedule

        path = connectors_file(self.settings)
        document = tomllib.loads(path.read_text("utf-8")) if path is not None else {}
        _ = self.doors  # endpoints have their rows
        specs = schedule.parse_schedules(document.get("schedule", {}))
        schedule.check(specs, {one.name: one for one in self.endpoints.values()})
        schedule.sync(self.database, specs)

    @cached_property
    def doors(self) -> dict[str, intake.Door]:
        """The stored side of each endpoint, by its name; `api` among them."""
        kinds = {one.name: one.connector.name for one in self.endpoints.values()}
        return intake.open_doors(self.database, kinds)

    @cached_property
    def links(self) -> Links:
        """Live links, signed with the keys in the data directory."""
        return Links(
            key_ring(self.settings.data),
            base_url=self.settings.effective_public_url,
            days=self.settings.link_days,
            may_fork=self.settings.listeners_fork,
        )

    @cached_property
    def catalogue(self) -> Catalogue:
        """The voices that can be asked for."""
        from pipeline.speech import Catalogue

        return Catalogue(self.settings)

    @cached_property
    def storage(self) -> Storage:
        """Where recordings and stored sentences lie."""
        from pipeline.storage import make_storage

        where = self.settings.storage
        if where == "folder":
            where = f"folder:{self.settings.data / 'objects'}"
        return make_storage(
            where,
            access_key=self.settings.s3_access_key.get_secret_value() or None,
            secret_key=self.settings.s3_secret_key.get_secret_value() or None,
        )

    @cached_property
    def redis_url(self) -> str:
        """Where the live log is, in redis-py's words."""
        if self.settings.broker_url:
            return self.settings.broker_url
        return servers.valkey(self.settings.data / "valkey").url

    @cached_property
    def broker_url(self) -> str:
        """The same server in kombu's words."""
        if not self.settings.broker_url:
            return servers.valkey(self.settings.data / "valkey").broker_url
        if self.settings.broker_url.startswith("unix://"):
            path = self.settings.broker_url.removeprefix("unix://").partition("?")[0]
            return f"redis+socket://{path}?virtual_host=0"
        return self.settings.broker_url

    @cached_property
    def chunks(self) -> ChunkLog:
        """The live log."""
        from streaming.redis_log import RedisLog

        return RedisLog(self.redis_url, keep_s=self.settings.keep_live_h * 3600)

    @cached_property
    def signals(self) -> Signals:
        """Hints between processes."""
        return RedisSignals(self.redis_url)

    @cached_property
    def security_log(self) -> SecurityLog:
        """Refused and ended connections, as audit rows."""
        from pipeline.security_log import SecurityLog

        return SecurityLog(self.database)

    def revoke_link(self, link_id: str) -> bool:
        """Revoke a live link and close what came by it, at every gateway; True if it worked.

        A gateway that the news does not reach looks by itself within 5 s.
        """
        from redis import Redis

        from streaming.redis_limits import tell

        revoked = links.revoke(self.database, link_id)
        try:
            with Redis.from_url(self.redis_url) as client:
                tell(client, revocation(link_id))
        except LedgerUnavailable as error:
            log.info("gateways not told: %s", error)
        return revoked

    @cached_property
    def send(self) -> Send:
        """Publishes wake-ups; connects at the first one."""
        from pipeline.tasks import make_app, make_send

        return make_send(make_app(self.broker_url))

    @cached_property
    def sender(self) -> Sender:
        """Sends committed outbox rows at once."""
        return Sender(self.database, self.send)

    @cached_property
    def engine(self) -> Engine:
        """The voice."""
        return make_engine(self.settings)

    @cached_property
    def encoder(self) -> Encoder:
        """The one thread that encodes."""
        from pipeline.audio import Encoder

        return Encoder()

    def connector(self, name: str) -> Connector:
        """The connector of an endpoint.

        Raises:
            NotFound: connectors.toml has no such endpoint any more.
        """
        connector = self.connector_or_none(name)
        if connector is None:
            raise NotFound(f"connectors.toml has no endpoint {name!r} any more")
        return connector

    def connector_or_none(self, name: str) -> Connector | None:
        """The connector of an endpoint, None for `api` and for endpoints that were removed."""
        found = self.endpoint_or_none(name)
        return found.connector if found is not None else None

    def endpoint_or_none(self, name: str) -> Endpoint | None:
        """An endpoint by its name, None for `api` and for those that were removed."""
        return next((one for one in self.endpoints.values() if one.name == name), None)

    def named_endpoint(self, name: str) -> Endpoint:
        """An endpoint by its name, as an operator gave it.

        Raises:
            NotFound: connectors.toml has none of this name.
        """
        found = self.endpoint_or_none(name)
        if found is None:
            known = [one.name for one in self.endpoints.values()]
            hint = nearest(name, known) if known else "connectors.toml has no [endpoint.NAME]"
            raise NotFound(f"no endpoint {name!r}; {hint}")
        return found

    @cached_property
    def hooks(self) -> Doors:
        """Takes what tools post."""
        return Doors(self)

    @cached_property
    def vault(self) -> Vault:
        """Seals what tools handed us, with the key in the data directory."""
        return Vault(read_or_make_secret(self.settings.data / "seal-key"))

    def narrator(self, lang: str) -> str:
        """The narrator's voice for a language: of the settings, else the engine's default."""
        wished = {"en": self.settings.voice_en, "zh": self.settings.voice_zh}.get(lang, "")
        return wished or self.engine.default_voice(lang)

    def end_live(self, key: str, fence: int, *, failure: str | None = None) -> None:
        """End a live stream from outside: stopped, or failed with a sentence for people.

        Nobody waits for it if the log is away; whoever asks later is told by the database.
        """
        try:
            try:
                session = LiveSession.take_over(self.chunks, key, fence)
            except LogLost:
                session = LiveSession.create(self.chunks, key, fence, meta={})
            if failure is None:
                session.end("stopped")
            else:
                session.fail("engine_failed", failure)
        except StreamingError as error:
            log.info("listeners not told: %s", error, extra={"episode": key})

    def forget_live(self, key: str) -> None:
        """Drop a live stream that ended, because it will be spoken anew."""
        try:
            self.chunks.forget(key)
        except StreamingError as error:
            log.warning("old live stream not dropped: %s", error, extra={"episode": key})

    def close(self) -> None:
        """Release what was made."""
        made = vars(self)
        for name in (
            "security_log",
            "sender",
            "signals",
            "engine",
            "encoder",
            "chunks",
            "storage",
            "database",
        ):
            part: Any = made.get(name)
            if part is not None:
                part.close()


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings name, its model not loaded yet."""
    from engine.backends import make_backend
    from engine.engine import Engine

    return Engine(make_backend(settings.engine, **engine_options(settings)))


def engine_options(settings: Settings) -> dict[str, Any]:
    """What the engine's backend is made with.

    Raises:
        Misconfigured: something it cannot do without is not set.
    """
    if settings.engine == "kokoro":
        return {"cache_dir": settings.model_cache, "threads": settings.engine_threads}
    if settings.engine == "indextts2":
        if settings.model_dir is None:
            raise Misconfigured(
                "engine indextts2 needs the files of the release: --model-dir DIR "
                "(docs/indextts2.md says which files, and where people get them)"
            )
        return {
            "model_dir": settings.model_dir,
            "voices_dir": settings.data / "voices",
            "device": settings.device,
            "threads": settings.engine_threads,
        }
    if settings.engine == "remote":
        if not settings.remote_url:
            raise Misconfigured(
                "engine remote needs the address of a speech server: NOTECAST_REMOTE_URL, or "
                "remote_url in notecast.toml (docs/remote-engine.md)"
            )
        return {
            "url": settings.remote_url,
            "api_key": settings.remote_key.get_secret_value(),
            "model": settings.remote_model,
            "voice": settings.remote_voice,
            "rate_hz": settings.remote_rate_hz,
            "slots": settings.remote_slots,
            "first_byte_s": settings.remote_wait_s,
        }
    return {
        "pace": settings.tone_pace,
        "rtf": settings.tone_rtf,
        "faults": settings.tone_faults,
    }


def connectors_file(settings: Settings) -> Path | None:
    """The connectors.toml that is used, None if there is none.

    Raises:
        Misconfigured: the settings name one that does not exist.
    """
    if settings.connectors is not None:
        if not settings.connectors.is_file():
            raise Misconfigured(f"connectors: there is no file {settings.connectors}")
        return settings.connectors
    for path in (settings.data / "connectors.toml", Path("connectors.toml")):
        if path.is_file():
            return path
    return None


def key_ring(data: Path) -> KeyRing:
    """The keys of live links: `link-key` signs, `link-key.previous` is still believed.

    To change keys, rename the first to the second and start again: a new one is made.
    """
    texts = [read_or_make_secret(data / "link-key")]
    previous = data / "link-key.previous"
    if previous.is_file():
        texts.append(previous.read_text().strip())
    # A key's name follows from it, so that all machines that share the files agree.
    keys = {f"k{hashlib.sha256(text.encode()).hexdigest()[:8]}": text.encode() for text in texts}
    return KeyRing(keys, next(iter(keys)))


def read_or_make_secret(path: Path) -> str:
    """A secret in a file that only we can read; made when it is not there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        for _ in range(50):  # another process may be writing it
            if text := path.read_text().strip():
                return text
            time.sleep(0.02)
        raise Misconfigured(f"{path} is empty; remove it to get a new one") from None
    text = secrets.token_urlsafe(32)
    with os.fdopen(handle, "w") as file:
        file.write(text + "\n")
    return text
