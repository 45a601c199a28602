"""`connectors.toml`: which tools may knock, with which secrets and voices.

    [voices]                      # names that notes may use -> voices of the engine
    anna = "af_heart"

    [endpoint.board]
    connector = "webhook"
    secrets = { webhook = ["env:NC_BOARD_SECRET"] }
    speak = "now"                 # or "schedule": keep notes for a schedule

    [endpoint.board.fields]       # what a note gets when it does not say
    lang = { const = "en" }

    [endpoint.board.voices]       # speaker -> voice
    Alice = "anna"
    default = "bm_george"

    [endpoint.board.notify]       # or [[endpoint.board.notify]] for several
    connector = "feishu_robot"
    url = "env:NC_BOT_URL"
    on = ["live", "failed"]

    [endpoint.board.events]       # Standard Webhooks to a system of yours
    url = "https://crm.example/hooks/notecast"
    secret = ["env:NC_EVENTS_SECRET"]
    on = ["note.finished", "note.failed"]

    [sections]                    # what a team calls the sections of its notes
    decision = ["Verdict"]

Secrets are references, `env:NAME` or `file:path` beside the file, never text. Anything wrong ends
in a `BadEndpoints` that names file, key and cure.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SecretStr,
    ValidationError,
    field_validator,
)

from connectors.base import Connector, Detail, EpisodeState, Note
from connectors.errors import ConfigError, nearest
from connectors.payload import DurationRule, Lang, Name
from connectors.registry import CONNECTORS, make_connector
from connectors.signing import webhook_key
from connectors.webhook import EVENT_TYPES, EventType
from pipeline.script import SECTION_NAMES, SectionNames
from pipeline.script.words import SECTION_ROLES, plain_name

_ADDRESS = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VOICE = re.compile(r"[\w.:, -]{1,200}")
_TOP = ("endpoint", "voices", "sections", "schedule")  # schedules are read where they run
_OWN = ("connector", "id", "speak", "fields", "voices", "notify", "events", "daily_cap")
_NOTIFY_OWN = ("connector", "on")


class BadEndpoints(Exception):
    """`connectors.toml` cannot be used; the message names file, key and cure."""


class Defaults(BaseModel):
    """`[endpoint.x.fields]`: values for notes that do not say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    speaker: Name = ""
    voice: Name = ""
    emotion: Name = ""
    duration: DurationRule = ""
    lang: Lang = ""
    detail: Detail | Literal[""] = ""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Events(BaseModel):
    """`[endpoint.x.events]`: where a system of the operator's hears what becomes of notes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: SecretStr
    secret: Annotated[tuple[SecretStr, ...], BeforeValidator(_listed)]
    on: tuple[EventType, ...] = EVENT_TYPES

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: SecretStr) -> SecretStr:
        parts = urlsplit(url.get_secret_value())
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise ValueError("must be an https address")
        return url

    @field_validator("secret")
    @classmethod
    def _signs(cls, secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in secrets:
            if webhook_key(secret.get_secret_value()).text.startswith("whpk_"):
                raise ValueError("a whpk_ key only verifies; signing takes whsec_ or whsk_")
        if not secrets:
            raise ValueError("must name at least one secret")
        return secrets

    @property
    def texts(self) -> list[str]:
        """The secrets, newest first."""
        return [secret.get_secret_value() for secret in self.secret]


@dataclass(frozen=True, slots=True)
class Notifier:
    """A group that hears of some states."""

    connector: Connector = field(repr=False)
    on: tuple[EpisodeState, ...] = ("live", "failed")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A door for one tool of one team.

    Attributes:
        name: of its table in the file.
        address: what stands in `/hooks/{address}`; the `id` if it sets one.
        connector: ready to use; holds the secrets.
        defaults: for notes that do not say.
        voices: speaker -> engine voice; `default` is the narrator's.
        library: voice name a note may use -> engine voice.
        speaks_now: False keeps notes for a schedule.
        notify: groups that are sent a card.
        events: a system that hears of every note of this endpoint.
        daily_cap: episodes a day (UTC) that this endpoint may begin; None is no limit.
    """

    name: str
    address: str
    connector: Connector = field(repr=False)
    defaults: Defaults = field(default_factory=Defaults)
    voices: Mapping[str, str] = field(default_factory=dict)
    library: Mapping[str, str] = field(default_factory=dict)
    speaks_now: bool = True
    notify: tuple[Notifier, ...] = ()
    events: Events | None = None
    daily_cap: int | None = None

    def complete(self, note: Note) -> Note:
        """The note with the endpoint's defaults where it says nothing."""
        return replace(
            note, **{key: value for key, value in self.defaults if value and not getattr(note, key)}
        )

    def casting(self, note: Note) -> dict[str, str]:
        """Who speaks with which engine voice: the endpoint's map, then the note's own on top.

        The narrator's voice is under `default`; absent, the engine's default speaks.
        """
        wanted = dict(self.voices)
        if note.voice:
            wanted["default"] = note.voice
            wanted[note.speaker or "default"] = note.voice
        wanted.update(note.speakers)
        return {speaker: self.library.get(voice, voice) for speaker, voice in wanted.items()}


def load_endpoints(path: Path, *, env: Mapping[str, str]) -> dict[str, Endpoint]:
    """Read the file; gives endpoints by name.

    Args:
        path: the TOML file.
        env: where `env:NAME` is looked up.

    Raises:
        BadEndpoints: unreadable file, unknown key, missing secret, doubled address, ...
    """
    document = _read(path)
    try:
        _check_keys("", document, _TOP)
        _section_names(document)
        library = _voice_map("voices", document.get("voices", {}))
        tables = _table("endpoint", document.get("endpoint", {}))
        endpoints = {
            name: _endpoint(name, table, library, _References(path.parent, env))
            for name, table in tables.items()
        }
        _check_addresses(endpoints)
    except ConfigError as error:
        raise BadEndpoints(f"{path}: {error}") from None
    return endpoints


def load_section_names(path: Path) -> SectionNames:
    """What sections of notes are called: the words everybody has, and those of the file.

    Raises:
        BadEndpoints: unreadable file, or a `[sections]` that cannot be used.
    """
    try:
        return _section_names(_read(path))
    except ConfigError as error:
        raise BadEndpoints(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadEndpoints(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise BadEndpoints(f"{path}: not TOML: {error}") from None


def _section_names(document: Mapping[str, Any]) -> SectionNames:
    sections = _table("sections", document.get("sections", {}))
    for role, names in sections.items():
        if role not in SECTION_ROLES:
            cure = f"no kind of section; known: {', '.join(SECTION_ROLES)}"
            raise ConfigError(f"sections.{role}", cure)
        if not isinstance(names, list) or not all(
            isinstance(name, str) and plain_name(name) for name in names
        ):
            raise ConfigError(f"sections.{role}", 'must list names: ["...", "..."]')
    return SECTION_NAMES.with_more(sections)


def _endpoint(
    name: str, table: Any, library: Mapping[str, str], references: _References
) -> Endpoint:
    where = f"endpoint.{name}"
    table = _table(where, table)
    address = table.get("id", name)
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        raise ConfigError(
            where, "the name (or `id`) stands in an address: a-z, 0-9, _ and -, at most 64"
        )
    kind = table.get("connector")
    if not isinstance(kind, str):
        raise ConfigError(f"{where}.connector", 'missing: write connector = "webhook"')
    known = CONNECTORS[kind].Config.model_fields if kind in CONNECTORS else {}
    if known:
        _check_keys(where, table, (*_OWN, *known))
    own = [key for key in _OWN if key not in known]  # a table's connector maps [fields] itself
    config = {key: value for key, value in table.items() if key not in own}
    connector = _connector(kind, name, references.resolve(config, where), where)
    voices = _voice_map(f"{where}.voices", table.get("voices", {}))
    return Endpoint(
        name=name,
        address=address,
        connector=connector,
        defaults=_defaults(f"{where}.fields", table.get("fields", {}) if "fields" in own else {}),
        voices={speaker: library.get(voice, voice) for speaker, voice in voices.items()},
        library=library,
        speaks_now=_speaks_now(where, table.get("speak", "now")),
        notify=_notifiers(name, table.get("notify", []), references),
        events=_events(f"{where}.events", table.get("events"), references),
        daily_cap=_daily_cap(where, table.get("daily_cap")),
    )


def _connector(kind: str, name: str, config: Mapping[str, Any], where: str) -> Connector:
    try:
        return make_connector(kind, name, config)
    except ConfigError as error:
        key = f"{where}.{error.key}" if error.key else where
        raise ConfigError(key, _rest(error)) from None


def _notifiers(name: str, value: Any, references: _References) -> tuple[Notifier, ...]:
    where = f"endpoint.{name}.notify"
    found = []
    for table in value if isinstance(value, list) else [value]:
        table = _table(where, table)
        kind = table.get("connector")
        if not isinstance(kind, str):
            raise ConfigError(f"{where}.connector", 'missing: write connector = "feishu_robot"')
        if kind in CONNECTORS and CONNECTORS[kind].notify is Connector.notify:
            able = [one for one, k in CONNECTORS.items() if k.notify is not Connector.notify]
            cure = f"{kind} posts no cards; {nearest(kind, able)}"
            raise ConfigError(f"{where}.connector", cure)
        config = {key: item for key, item in table.items() if key not in _NOTIFY_OWN}
        connector = _connector(kind, name, references.resolve(config, where), where)
        on = table.get("on", ["live", "failed"])
        if not isinstance(on, list) or not on or not set(on) <= set(get_args(EpisodeState)):
            raise ConfigError(f"{where}.on", "must list some of: queued, live, done, failed")
        found.append(Notifier(connector, tuple(on)))
    return tuple(found)


def _events(where: str, table: Any, references: _References) -> Events | None:
    if table is None:
        return None
    table = dict(_table(where, table))
    if "secret" in table:
        secrets = references.resolve({"secrets": table["secret"]}, where)
        table["secret"] = secrets["secrets"]
    if "url" in table:
        table |= references.resolve({"url": table["url"]}, where)
    _check_keys(where, table, Events.model_fields)
    try:
        return Events.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    raise ConfigError(f"{where}.{key}", first["msg"].removeprefix("Value error, "))


def _daily_cap(where: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{where}.daily_cap", "must be a number of episodes, 1 or more")
    return value


@dataclass(frozen=True, slots=True)
class _References:
    """Turns `env:NAME` and `file:path` into what they stand for."""

    folder: Path
    env: Mapping[str, str]

    def resolve(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {
            key: self._value(value, f"{where}.{key}", secret=key in ("secrets", "secret"))
            for key, value in config.items()
        }

    def _value(self, value: Any, where: str, *, secret: bool) -> Any:
        if isinstance(value, dict):
            return {
                key: self._value(item, f"{where}.{key}", secret=secret)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._value(item, where, secret=secret) for item in value]
        if not isinstance(value, str):
            return value
        kind, _, target = value.partition(":")
        if kind == "env":
            return self._from_env(target, where)
        if kind == "file":
            return self._from_file(target, where)
        if secret:
            raise ConfigError(
                where, "a secret may not stand in this file: write env:NAME or file:path"
            )
        return value

    def _from_env(self, name: str, where: str) -> str:
        if not self.env.get(name):
            raise ConfigError(where, f"the environment variable {name} is not set: export {name}")
        return self.env[name]

    def _from_file(self, name: str, where: str) -> str:
        folder = self.folder.resolve()
        target = (folder / name).resolve()
        if not target.is_relative_to(folder):
            raise ConfigError(where, f"file:{name} must lie in the folder of this file")
        try:
            text = target.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                where, f"file:{name} cannot be read: {type(error).__name__}"
            ) from None
        if not text:
            raise ConfigError(where, f"file:{name} is empty")
        return text


def _speaks_now(where: str, value: Any) -> bool:
    if value not in ("now", "schedule"):
        raise ConfigError(f"{where}.speak", 'must be "now" or "schedule"')
    return bool(value == "now")


def _defaults(where: str, table: Any) -> Defaults:
    values = {}
    for key, value in _table(where, table).items():
        _check_keys(where, {key: value}, Defaults.model_fields)
        if not isinstance(value, dict) or list(value) != ["const"]:
            cure = f'this connector has no columns: write {key} = {{ const = "..." }}'
            raise ConfigError(f"{where}.{key}", cure)
        values[key] = value["const"]
    try:
        return Defaults.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{where}.{first['loc'][0]}", first["msg"]) from None


def _voice_map(where: str, table: Any) -> dict[str, str]:
    voices = _table(where, table)
    for name, voice in voices.items():
        if not isinstance(voice, str) or not _VOICE.fullmatch(voice):
            raise ConfigError(f"{where}.{name}", "must name a voice, such as af_heart")
    return dict(voices)


def _check_addresses(endpoints: Mapping[str, Endpoint]) -> None:
    owners: dict[str, str] = {}
    for endpoint in endpoints.values():
        other = owners.setdefault(endpoint.address, endpoint.name)
        if other != endpoint.name:
            cure = f"has the address of endpoint.{other}: set another id"
            raise ConfigError(f"endpoint.{endpoint.name}", cure)


def _check_keys(where: str, table: Mapping[str, Any], known: Any) -> None:
    for key in table:
        if key not in known:
            name = f"{where}.{key}" if where else key
            raise ConfigError(name, f"unknown key; {nearest(key, known)}")


def _table(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(where, f"must be a table: [{where}]")
    return value


def _rest(error: ConfigError) -> str:
    return str(error).removeprefix(f"{error.key}: ")
