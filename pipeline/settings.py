"""Every knob, typed, read once.

Values come from, in this order: arguments of the command line, the environment (`NOTECAST_*`),
`notecast.toml` in the data directory or the working directory, the defaults below. A key nobody
knows is an error that names the nearest known one. `notecast config` prints the effective values,
secrets masked.
"""

from __future__ import annotations

import difflib
import os
import socket
import tomllib
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from pipeline.errors import Misconfigured

PREFIX = "NOTECAST_"
EngineName = Literal["kokoro", "indextts2", "remote", "tone"]


class Settings(BaseSettings):
    """The settings of one process; frozen."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    # where things lie
    data: Path = Field(Path("data"), description="directory of everything a small install keeps")
    connectors: Path | None = Field(
        None, description="connectors.toml; looked for in the data, then the working directory"
    )
    database_url: str = Field(
        "", description="sqlite:////path or postgresql+psycopg://...; empty: DATA/notecast.db"
    )
    broker_url: str = Field(
        "", description="redis://host/db or unix:///path.sock; empty: the embedded Valkey"
    )
    storage: str = Field(
        "folder", description="folder, folder:PATH or s3://bucket/prefix?endpoint=URL"
    )
    s3_access_key: SecretStr = Field(SecretStr(""), description="for an s3:// storage")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="for an s3:// storage")

    # the door
    host: str = Field("127.0.0.1", description="address the web door listens on")
    port: int = Field(8080, ge=0, le=65535, description="port of the web door")
    public_url: str = Field(
        "", description="how others reach the web door; empty: http://HOST:PORT"
    )
    allowed_origins: tuple[str, ...] = Field(
        (), description="further pages that may open /v1/live; the same host always may"
    )
    body_limit_bytes: int = Field(1 << 20, gt=0, description="larger hooks get 413")
    link_days: int = Field(30, gt=0, description="how long a live link works")
    transactions: int = Field(16, gt=0, description="open transactions per web process")

    # how much one listener may have (docs/operations.md, Limits)
    trusted_proxies: tuple[str, ...] = Field(
        ("127.0.0.1", "::1"),
        description="addresses or networks of proxies whose X-Forwarded-For is believed",
    )
    connections_per_user: int = Field(
        10, gt=0, description="live connections with one owner link or API key"
    )
    connections_per_link: int = Field(
        500, gt=0, description="live connections with one listener link; a link may name its own"
    )
    connections_per_address: int = Field(
        50, gt=0, description="live connections from one IPv4 address or IPv6 /64; more get 429"
    )
    connections_per_process: int = Field(
        4000, gt=0, description="live connections of one gateway process; more get 503"
    )
    sessions_per_connection: int = Field(
        8, gt=0, description="sessions heard on one live connection at a time"
    )
    orders_per_s: float = Field(
        5.0, gt=0, description="orders (pause, speed ...) to one session, from everybody together"
    )
    order_burst: int = Field(10, gt=0, description="orders to one session that may come at once")
    connection_orders_per_s: float = Field(
        20.0, gt=0, description="orders of one live connection, to all its sessions"
    )
    messages_per_s: float = Field(
        30.0, gt=0, description="other messages of one live connection; the third excess closes it"
    )
    message_burst: int = Field(60, gt=0, description="messages that may come at once")
    listener_bytes_per_s: int = Field(
        200_000, gt=0, description="sent to a listener who is behind the live edge"
    )
    listener_burst_bytes: int = Field(
        512_000, gt=0, description="of that, at once after a quiet while"
    )
    user_bytes_per_s: int = Field(
        4_000_000, gt=0, description="the same, for all connections of one owner link or API key"
    )
    hello_timeout_s: float = Field(5.0, gt=0, description="a live connection must say hello within")
    idle_timeout_s: float = Field(
        60.0, gt=0, description="a live connection that hears no session is closed after"
    )

    goaway_spread_s: float = Field(
        15.0, gt=0, description="a gateway that stops spreads its listeners' return over"
    )

    say_running: int = Field(
        2,
        gt=0,
        description="texts and readings of their own that one key or link may have spoken at a "
        "time over a socket",
    )
    listeners_fork: bool = Field(
        False,
        description="whoever has a listener's link may have the rest read anew in another voice, "
        "pace or emotion, for themselves",
    )
    speech_running: int = Field(
        8, gt=0, description="speeches (POST /v1/audio/speech) of one key at a time, per process"
    )
    say_offer_s: float = Field(
        30.0, gt=0, description="a text that waits for longer is offered as batch work"
    )

    # the voice
    engine: EngineName = Field(
        "kokoro", description="the voice: kokoro, indextts2, remote, or tone for drills"
    )
    model_dir: Path | None = Field(
        None, description="indextts2: directory of the published release (docs/indextts2.md)"
    )
    device: str = Field("auto", description="indextts2: auto, cpu, cuda or cuda:N")
    remote_url: str = Field(
        "", description="remote: address of an OpenAI-shaped speech server, http://host:8880"
    )
    remote_key: SecretStr = Field(SecretStr(""), description="remote: the server's API key")
    remote_model: str = Field("tts-1", description="remote: the server's name for its model")
    remote_voice: str = Field(
        "",
        description="remote: one voice, or en=NAME,zh=NAME; empty: the first that the server lists",
    )
    remote_rate_hz: int = Field(
        24_000, ge=8_000, le=192_000, description="remote: of its PCM, unless its answers say"
    )
    remote_slots: int = Field(4, gt=0, description="remote: texts the server speaks at a time")
    remote_wait_s: float = Field(
        30.0, gt=0, description="remote: a sentence without sound for so long has failed"
    )
    model_cache: Path | None = Field(
        None, description="prepared models; empty: notecast in the user's cache directory"
    )
    engine_threads: int = Field(2, gt=0, description="CPU threads of the embedded voice")
    warm: tuple[str, ...] = Field(
        ("en", "zh"), description="languages loaded before a worker says it is ready"
    )
    voice_en: str = Field("", description="narrator for English; empty: the engine's default")
    voice_zh: str = Field("", description="narrator for Chinese; empty: the engine's default")
    tone_pace: Literal["instant", "paced"] = Field("instant", description="tone engine: speed")
    tone_rtf: float = Field(
        0.25, gt=0, description="tone engine, paced: seconds of work per second"
    )
    tone_faults: bool = Field(False, description="tone engine: texts may ask for a crash (drills)")
    formats: tuple[Literal["opus", "mp3", "wav"], ...] = Field(
        ("opus", "mp3"), description="recordings made of every episode"
    )
    reuse: bool = Field(
        True, description="same text, voice and settings: take the recording we have"
    )

    # never losing
    lease_ms: int = Field(15_000, ge=1_000, description="a silent worker loses its episodes after")
    renew_ms: int = Field(5_000, ge=200, description="leases are renewed this often")
    hung_s: float = Field(
        30.0, gt=0, description="no engine step for so long: the worker is replaced"
    )
    look_s: float = Field(2.0, gt=0, description="an idle worker looks for work without a message")
    durable_after_s: float = Field(
        20.0, ge=0, description="episodes estimated shorter are spoken again after a crash"
    )
    keep_segments_h: float = Field(24.0, ge=0, description="stored sentences are kept so long")
    keep_live_h: float = Field(
        6.0, gt=0, description="a finished live stream can be resumed so long"
    )
    drain_s: float = Field(20.0, ge=0, description="a stopping worker finishes its sentence within")
    attempts: int = Field(3, gt=0, description="tries of an episode that fails with unknown errors")
    effect_hours: float = Field(24.0, gt=0, description="a row write-back is tried for so long")
    walk_s: float = Field(600.0, gt=0, description="tables are looked through this often")
    fetch_trusted: tuple[str, ...] = Field(
        (), description="networks that addresses inside notes may lead to, besides public ones"
    )

    log_level: Literal["DEBUG", "INFO", "WARNING"] = Field(
        "INFO", description="log lines from here on"
    )

    @model_validator(mode="after")
    def _renew_in_time(self) -> Self:
        if self.renew_ms * 2 > self.lease_ms:
            raise ValueError(
                f"renew_ms ({self.renew_ms}) must be at most half of lease_ms ({self.lease_ms}), "
                "or one late renewal loses an episode"
            )
        return self

    @field_validator("fetch_trusted")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ip_network(network)
        return networks

    @property
    def fetch_trusted_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`fetch_trusted` as networks."""
        return tuple(ip_network(network) for network in self.fetch_trusted)

    @property
    def effective_database_url(self) -> str:
        """The database that is used."""
        return self.database_url or f"sqlite:///{self.data.resolve() / 'notecast.db'}"

    @property
    def effective_public_url(self) -> str:
        """The address that links begin with, without a slash at the end."""
        host = "localhost" if self.host in ("127.0.0.1", "0.0.0.0", "::") else self.host  # noqa: S104
        return (self.public_url or f"http://{host}:{self.port}").rstrip("/")

    @property
    def host_name(self) -> str:
        """Which machine and data directory a worker row belongs to."""
        return f"{socket.gethostname()}:{self.data.resolve()}"

    def environment(self) -> dict[str, str]:
        """These values as environment variables, for a child process."""
        found: dict[str, str] = {}
        for name in self.model_fields_set:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            elif isinstance(value, tuple):
                value = "[" + ",".join(f'"{item}"' for item in value) + "]"
            if value is not None:
                found[PREFIX + name.upper()] = str(value)
        return found


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; `None` among the overrides means "not given".

    Raises:
        Misconfigured: an unknown key or a value of the wrong kind; the message names it.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    _refuse_unknown((key for key in os.environ if key.startswith(PREFIX)), prefix=PREFIX)
    data = Path(given.get("data") or os.environ.get(PREFIX + "DATA") or "data")
    from_file = _read_file(data)
    in_environment = {
        key.removeprefix(PREFIX).lower() for key in os.environ if key.startswith(PREFIX)
    }
    values = {k: v for k, v in from_file.items() if k not in in_environment} | given
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise Misconfigured(first["msg"].removeprefix("Value error, ")) from error
        name = str(first["loc"][0])
        raise Misconfigured(f"{name} ({PREFIX}{name.upper()}): {first['msg']}") from error
    except SettingsError as error:  # a list that is not JSON
        cause = f'{error}; a list is written as JSON, for example \'["opus", "mp3"]\''
        raise Misconfigured(cause) from error


def connectors_environment() -> Mapping[str, str]:
    """The environment that `env:NAME` references in connectors.toml are looked up in."""
    return os.environ


def _read_file(data: Path) -> dict[str, Any]:
    for path in (data / "notecast.toml", Path("notecast.toml")):
        if path.is_file():
            try:
                values = tomllib.loads(path.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise Misconfigured(f"{path}: {error}") from error
            _refuse_unknown(iter(values), prefix="", where=f"{path}: ")
            return values
    return {}


def _refuse_unknown(keys: Any, *, prefix: str, where: str = "") -> None:
    known = {prefix + (name.upper() if prefix else name) for name in Settings.model_fields}
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise Misconfigured(f"{where}unknown setting {key}{hint}")
