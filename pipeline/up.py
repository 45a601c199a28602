"""`notecast up`: what is embedded, which children run, what a person is told."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import requests
from pydantic import SecretStr

from pipeline import intake, servers
from pipeline.errors import Misconfigured
from pipeline.services import Services
from pipeline.settings import PREFIX, Settings, load_settings
from pipeline.supervise import Supervisor, Tell, data_lock

Db = Literal["sqlite", "postgres"]
_STATE = "up.json"
_PORT_WAIT_S = 10.0
ROLES = (("relay",), ("web",), ("worker", "gpu"), ("worker", "io"))


def embed(settings: Settings, *, db: Db, s3: str) -> tuple[Settings, list[servers.Server]]:
    """Choose the embedded servers; gives the settings that the children need to find them.

    Args:
        db: `sqlite` needs no server; `postgres` starts one from the wheel.
        s3: `folder`, `embedded` (SeaweedFS) or an `s3://` address.
    """
    embedded: list[servers.Server] = []
    values: dict[str, object] = {}
    if not settings.broker_url:
        embedded.append(servers.valkey(settings.data / "valkey"))
    if db == "postgres" and not settings.database_url:
        postgres = servers.postgres(settings.data / "postgres")
        embedded.append(postgres)
        values["database_url"] = postgres.url
    if s3 == "embedded":
        store = servers.seaweedfs(settings.data / "seaweedfs")
        embedded.append(store)
        values["storage"] = f"s3://{store.s3.bucket}?endpoint={store.s3.endpoint_url}"
        values["s3_access_key"] = SecretStr(store.s3.access_key)
        values["s3_secret_key"] = SecretStr(store.s3.secret_key)
    elif s3 != "folder":
        values["storage"] = s3
    return with_values(settings, values), embedded


def with_values(settings: Settings, values: dict[str, object]) -> Settings:
    """A copy with other values, which count as given."""
    changed = settings.model_copy(update=values)
    changed.model_fields_set.update(values)
    return changed


def run_up(
    settings: Settings,
    *,
    db: Db,
    s3: str,
    tell: Tell,
    on_ready: Callable[[Services, str | None], None],
    bind: Callable[[Supervisor], None] = lambda _supervisor: None,
) -> None:
    """Run everything until told to stop.

    Args:
        on_ready: called once the door answers and a worker speaks, with a new API key or None.
        bind: gets the supervisor before it starts, to stop it.

    Raises:
        Misconfigured: the directory is in use, the port is taken, a wheel is missing, ...
    """
    settings.data.mkdir(parents=True, exist_ok=True)
    with data_lock(settings.data):
        if settings.port == 0:
            settings = with_values(settings, {"port": free_port()})
        _check_port(settings)
        settings, embedded = embed(settings, db=db, s3=s3)
        services = Services(settings)
        _ = services.endpoints  # a mistake in connectors.toml is told here, not in a child's log
        supervisor = Supervisor(settings, embedded=embedded, roles=ROLES, tell=tell)
        bind(supervisor)

        def ready() -> bool:
            return _answers(settings)

        def told() -> None:
            _save_state(settings)
            on_ready(services, first_key(services))

        try:
            supervisor.run(ready, told)
        finally:
            services.close()
            (settings.data / _STATE).unlink(missing_ok=True)


def first_key(services: Services) -> str | None:
    """The admin API key of a new installation; None if there is one already."""
    path = services.settings.data / "api-key"
    if path.exists():
        return None
    key = new_key(services, name="admin", scopes=("admin",))
    path.touch(mode=0o600)
    path.write_text(key + "\n")
    return key


def new_key(services: Services, *, name: str, scopes: tuple[str, ...]) -> str:
    """Make an API key and keep only its digest."""
    key = f"nck_{secrets.token_urlsafe(32)}"
    intake.add_api_key(
        services.database,
        services.doors["api"],
        name=name,
        digest=hashlib.sha256(key.encode()).hexdigest(),
        prefix=key[:8],
        scopes=scopes,
    )
    return key


def running(data: Path) -> dict[str, Any] | None:
    """What the `up` of a data directory left for other commands, None if none runs."""
    path = data / _STATE
    try:
        state: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return state


def running_settings(data: Path) -> Settings:
    """The settings that the `up` of a data directory runs with; plain ones if none runs."""
    state = running(data)
    return load_settings(data=data, **(state["settings"] if state else {}))


def _save_state(settings: Settings) -> None:
    """Holds secrets of the embedded servers, so only we may read it."""
    path = settings.data / _STATE
    path.touch(mode=0o600)
    values = {
        name.removeprefix(PREFIX).lower(): value for name, value in settings.environment().items()
    }
    values.pop("data", None)
    state = {"pid": os.getpid(), "url": settings.effective_public_url, "settings": values}
    path.write_text(json.dumps(state, indent=2) + "\n")


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _answers(settings: Settings) -> bool:
    try:
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
        url = f"http://{host}:{settings.port}/readyz"
        return requests.get(url, timeout=1).status_code == 200
    except requests.RequestException:
        return False


def _check_port(settings: Settings) -> None:
    """Raise unless the port is free; a predecessor that was killed may still be leaving it."""
    was_killed = (settings.data / _STATE).exists()
    deadline = time.monotonic() + (_PORT_WAIT_S if was_killed else 0.0)
    while (reason := _port_taken(settings)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if reason:
        raise Misconfigured(
            f"port {settings.port} on {settings.host} cannot be used ({reason}); "
            "give another with --port"
        )


def _port_taken(settings: Settings) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            return error.strerror or type(error).__name__
    return ""
