"""What operators ask of endpoints: check, status, backfill, replay, rotate."""

from __future__ import annotations

import hashlib
import json
import secrets as random_secrets
import time
import tomllib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
import sqlalchemy as sa
from pydantic import BaseModel, SecretStr
from rich.console import Console

from connectors.base import Column, Connector, Note, NotePatch
from connectors.errors import ConnectorError
from connectors.fields import Audio, Link, OutputCell, Seconds, TableConfig, Text, output_cells
from connectors.signing import secret_label
from pipeline import vault, walks
from pipeline.audit import write_audit
from pipeline.database import now_ms, rows
from pipeline.errors import Misconfigured, Refused
from pipeline.models import alarm, duty, endpoint_secret, reading
from pipeline.models import endpoint as endpoint_table
from pipeline.schedule import parse_schedules
from pipeline.services import connectors_file

if TYPE_CHECKING:
    from pipeline.endpoints import Endpoint
    from pipeline.services import Services

_POLL_S = 0.5
_WALK_LIMIT_S = 600.0
_SHOWN = 60  # characters of a cell


# check ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Checked:
    """What an endpoint would do with its table, and what is wrong with it."""

    endpoint: str
    columns: list[Column] = field(default_factory=list)
    reads: list[tuple[str, str]] = field(default_factory=list)
    writes: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "endpoint": self.endpoint,
            "columns": [asdict(one) for one in self.columns],
            "reads": dict(self.reads),
            "writes": dict(self.writes),
            "problems": self.problems,
            "remarks": self.remarks,
        }


def check(endpoint: Endpoint) -> Checked:
    """Ask the tool for the schema and a row; says what would be read and written."""
    checked = Checked(endpoint.name)
    connector = endpoint.connector
    try:
        checked.columns = list(connector.columns())
        checked.problems = list(connector.problems())
        note = connector.sample() if not checked.problems else None
    except ConnectorError as error:
        checked.problems.append(str(error))
        return checked
    if note is not None:
        checked.reads = _read(endpoint, endpoint.complete(note))
        checked.remarks += note.warnings
    elif isinstance(connector.config, TableConfig) and not checked.problems:
        trigger = connector.config.trigger
        checked.remarks.append(f"no row is ready: none has {trigger.column} = {trigger.equals!r}")
    checked.writes = _written(connector)
    for notifier in endpoint.notify:
        checked.remarks.append(
            f"a card goes out through {notifier.connector.name} on: {', '.join(notifier.on)}"
        )
    if endpoint.events is not None:
        host = urlsplit(endpoint.events.url.get_secret_value()).hostname
        checked.remarks.append(f"events go to {host}: {', '.join(endpoint.events.on)}")
    return checked


def _read(endpoint: Endpoint, note: Note) -> list[tuple[str, str]]:
    shown = [("row", note.ref.key), ("title", note.title), ("text", note.text)]
    shown += [
        (name, str(getattr(note, name)))
        for name in ("speaker", "emotion", "duration", "lang", "detail", "schedule")
        if getattr(note, name)
    ]
    casting = endpoint.casting(note)
    shown += [(f"voice of {'the narrator' if who == 'default' else who}", voice)
              for who, voice in casting.items()]  # fmt: skip
    return [(name, _short(value)) for name, value in shown]


def _written(connector: Connector) -> list[tuple[str, str]]:
    if not isinstance(connector.config, TableConfig):
        return []
    config = connector.config
    link, audio = "https://.../l/...", "https://.../episodes/....mp3"
    queued = NotePatch("check", status="queued", link=link)
    done = NotePatch("check", status="done", link=link, audio_ref=audio, duration_s=245.0)
    failed = NotePatch("check", status="failed", error="too_long")
    found: dict[str, list[str]] = {}
    for patch in (queued, NotePatch("check", status="live"), done, failed):
        for column, cell in output_cells(config, patch).items():
            text = _cell_text(cell)
            if text and text not in found.setdefault(column, []):
                found[column].append(text)
    return [(column, " -> ".join(texts)) for column, texts in found.items()]


def _cell_text(cell: OutputCell) -> str:
    match cell:
        case Text(text):
            return text
        case Link(url, text) | Audio(url, text):
            return f"{text} ({url})"
        case Seconds():
            return cell.clock


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def crowded_schedules(services: Services) -> list[str]:
    """Schedules that post to a Feishu group when everybody does, one sentence each."""
    path = connectors_file(services.settings)
    document = tomllib.loads(path.read_text("utf-8")) if path is not None else {}
    found = []
    for spec in parse_schedules(document.get("schedule", {})):
        endpoint = services.endpoint_or_none(spec.endpoint)
        names = [one.connector.name for one in endpoint.notify] if endpoint is not None else []
        is_crowded = spec.cron.split()[0] in ("0", "30") and not spec.jitter
        if is_crowded and any("feishu" in name for name in names):
            found.append(
                f"schedule.{spec.name}: Feishu turns robots away at full and half hours (11232); "
                'choose another minute, or write jitter = "90s"'
            )
    return found


# status -----------------------------------------------------------------------------------------


def status(services: Services, name: str = "") -> list[dict[str, Any]]:
    """Everything an operator may want to know of each endpoint, newest instants as ISO 8601."""
    wanted = [services.named_endpoint(name)] if name else list(services.endpoints.values())
    with services.database.read() as connection:
        return [_status(services, connection, one) for one in wanted]


def _status(services: Services, connection: sa.Connection, one: Endpoint) -> dict[str, Any]:
    endpoint_id = services.doors[one.name].endpoint_id
    heard = connection.execute(
        sa.select(endpoint_table.c.heard_ms, now_ms().label("now")).where(
            endpoint_table.c.id == endpoint_id
        )
    ).one()
    duties = {
        row["kind"]: row
        for row in rows(connection, sa.select(duty).where(duty.c.endpoint_id == endpoint_id))
    }
    walk, upkeep = duties.get("walk", {}), duties.get("upkeep", {})
    waiting = connection.execute(
        sa.select(sa.func.count()).select_from(reading).where(reading.c.endpoint_id == endpoint_id)
    ).scalar_one()
    alarms = rows(
        connection,
        sa.select(alarm).where(alarm.c.endpoint_id == endpoint_id).order_by(alarm.c.first_ms),
    )
    return {
        "endpoint": one.name,
        "connector": one.connector.name,
        "heard": _iso(heard.heard_ms),
        "walked": _iso(walk.get("done_ms")),
        "found": walk.get("found"),
        "lag": _ago(walk.get("done_ms"), heard.now),
        "next_walk": _iso(walk.get("next_ms")),
        "walk_error": walk.get("error"),
        "upkept": _iso(upkeep.get("done_ms")),
        "next_upkeep": _iso(upkeep.get("next_ms")),
        "upkeep_error": upkeep.get("error"),
        "waiting": waiting,
        "alarms": [
            {
                "kind": row["kind"],
                "message": row["message"],
                "since": _iso(row["first_ms"]),
                "times": row["times"],
            }
            for row in alarms
        ],
        "secrets": _secrets(services, connection, one, endpoint_id),
    }


def _secrets(
    services: Services, connection: sa.Connection, one: Endpoint, endpoint_id: str
) -> list[dict[str, Any]]:
    """The file's secrets and the kept ones, with when each proved something last.

    Only a pending one is shown: an operator must compare it, or paste it where the tool asks.
    """
    kept = {
        row["label"]: row
        for row in rows(
            connection,
            sa.select(endpoint_secret)
            .where(endpoint_secret.c.endpoint_id == endpoint_id)
            .order_by(endpoint_secret.c.id),
        )
    }
    found = []
    for name, text in configured_secrets(one.connector):
        row = kept.pop(secret_label(text), {})
        found.append(_secret(secret_label(text), name, row.get("verified_ms"), ""))
    for label, row in kept.items():
        if row["sealed"] is None:
            continue  # left the file since
        value = ""
        if row["state"] == "pending":
            value = services.vault.open(row["sealed"], endpoint_id)
        state = "accepted" if row["state"] == "active" else "pending"
        found.append(_secret(label, state, row["verified_ms"], value))
    return found


def _secret(label: str, state: str, verified_ms: int | None, value: str) -> dict[str, Any]:
    return {
        "label": label,
        "state": state,
        "verified": _iso(verified_ms) or "never",
        "value": value,
    }


def configured_secrets(connector: Connector) -> list[tuple[str, str]]:
    """(key, text) of what stands under `secrets` of an endpoint, newest first."""
    table = getattr(connector.config, "secrets", None)
    found: list[tuple[str, str]] = []
    if isinstance(table, BaseModel):
        for key, value in table:
            for one in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(one, SecretStr):
                    found.append((f"secrets.{key}", one.get_secret_value()))
    return found


def _iso(ms: int | None) -> str | None:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds") if ms else None


def _ago(ms: int | None, now: int) -> str | None:
    if ms is None:
        return None
    seconds = max(0, (now - ms) // 1000)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


# backfill ---------------------------------------------------------------------------------------


def preview(services: Services, name: str, *, everything: bool) -> list[dict[str, Any]]:
    """The rows a walk would find from where the last one ended, without storing anything."""
    endpoint = services.named_endpoint(name)
    _must_walk(endpoint)
    state = None
    if not everything:
        with services.database.read() as connection:
            state = connection.execute(
                sa.select(duty.c.state).where(
                    duty.c.endpoint_id == services.doors[name].endpoint_id, duty.c.kind == "walk"
                )
            ).scalar()
    return [
        {
            "row": event.ref.key,
            "title": _short(event.note.title) if event.note is not None else "",
            "would": _outlook(event.note),
        }
        for event in walks.preview(endpoint, state)
    ]


def _outlook(note: Note | None) -> str:
    if note is None:
        return "be read"
    if not note.ready:
        return "be left alone: not ready"
    return "be spoken, unless it was heard"


def backfill(
    services: Services, name: str, *, actor: str, everything: bool, console: Console
) -> dict[str, Any]:
    """Walk now, here; gives how many rows were new.

    Raises:
        Refused: the tool did not let us, or the walk is not done within ten minutes.
    """
    endpoint = services.named_endpoint(name)
    _must_walk(endpoint)
    walks.order_walk(services, name, actor=actor, from_start=everything)
    endpoint_id = services.doors[name].endpoint_id
    of_walk = sa.and_(duty.c.endpoint_id == endpoint_id, duty.c.kind == "walk")
    with services.database.read() as connection:
        asked_ms = connection.execute(sa.select(now_ms())).scalar_one()
    give_up_at = time.monotonic() + _WALK_LIMIT_S
    with console.status(f"walking over {name}"):
        while time.monotonic() < give_up_at:
            for turn in walks.claim(services, name):
                walks.run(services, turn)
            with services.database.read() as connection:
                row = connection.execute(sa.select(duty).where(of_walk)).one()
            if row.done_ms is not None and row.done_ms >= asked_ms:
                return {"endpoint": name, "found": row.found}
            if row.error:
                raise Refused(f"{name}: {row.error}")
            time.sleep(_POLL_S)
    raise Refused(f"{name}: the walk goes on in the background; see notecast connectors status")


def _must_walk(endpoint: Endpoint) -> None:
    if not walks.walks(endpoint.connector):
        raise Refused(
            f"{endpoint.connector.name} cannot look for rows by itself: its sender has to send them"
        )


# replay -----------------------------------------------------------------------------------------


def replay(services: Services, fixture: Path, to: str) -> dict[str, Any]:
    """Post a fixture to a running server, proven with the endpoint's own secret.

    Args:
        fixture: a fixture (`hook.body` is sent), or any JSON, which is sent as it is.
        to: the address of a door; its last part names the endpoint.

    Raises:
        Misconfigured: an address or a file that cannot be used.
        Refused: nobody answers.
    """
    address = urlsplit(to).path.rpartition("/")[2]
    endpoint = services.endpoints.get(address)
    if endpoint is None:
        known = ", ".join(f"/hooks/{one}" for one in services.endpoints) or "none"
        raise Misconfigured(f"--to {to}: no endpoint has this address; there are: {known}")
    body, msg_id = _fixture_body(fixture)
    hook = endpoint.connector.as_sent(body, now=datetime.now(UTC), msg_id=msg_id)
    try:
        answer = requests.post(
            to, data=hook.body, headers=dict(hook.headers), timeout=15, allow_redirects=False
        )
    except requests.RequestException as error:
        raise Refused(
            f"{to} does not answer ({type(error).__name__}); is notecast up running?"
        ) from None
    return {"status": answer.status_code, "answer": answer.text[:2_000]}


def _fixture_body(path: Path) -> tuple[bytes, str]:
    """What to send, and an id for it that is new each time."""
    msg_id = f"replay-{hashlib.sha256(str(time.time_ns()).encode()).hexdigest()[:16]}"
    try:
        raw = path.read_bytes()
        document = json.loads(raw)
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{path}: cannot be read as JSON: {type(error).__name__}") from None
    hook = document.get("hook") if isinstance(document, Mapping) else None
    if not isinstance(hook, Mapping):
        return raw, msg_id
    if "raw" in hook:
        return str(hook["raw"]).encode(), msg_id
    return json.dumps(hook.get("body"), ensure_ascii=False).encode(), msg_id


# rotate -----------------------------------------------------------------------------------------


def new_secret(services: Services, name: str) -> dict[str, Any]:
    """A new secret of the kind the endpoint verifies with, and how to change over to it."""
    connector = services.named_endpoint(name).connector
    fields = getattr(type(getattr(connector.config, "secrets", None)), "model_fields", {})
    if "webhook" in fields:
        key, secret = "webhook", "whsec_" + b64encode(random_secrets.token_bytes(32)).decode()
    elif "token" in fields and connector.name == "feishu_automation":
        key, secret = "token", random_secrets.token_hex(24)
    else:
        raise Refused(
            f"{connector.name} makes its own secrets: make a new one there, put it first in "
            f"endpoint.{name}.secrets with the old one behind it, and remove the old one when "
            "notecast connectors status shows that it is not used any more"
        )
    return {
        "endpoint": name,
        "secret": secret,
        "label": secret_label(secret),
        "steps": [
            secret,
            f"1. Put it into a variable, say NC_NEW, and list both in connectors.toml: "
            f'{key} = ["env:NC_NEW", "env:..."], the new one first. Restart.',
            "2. Give the new secret to the sender.",
            f"3. When notecast connectors status {name} shows that {secret_label(secret)} was "
            "verified and the old one is not used any more, remove the old one. Restart.",
        ],
    }


def accept_secret(services: Services, name: str, label: str, *, actor: str) -> dict[str, Any]:
    """Make a secret that a handshake left the one that events are verified with."""
    endpoint = services.named_endpoint(name)
    endpoint_id = services.doors[endpoint.name].endpoint_id
    with services.database.write() as connection:
        label = vault.accept(connection, endpoint_id, label)
        write_audit(connection, actor=actor, action="accept", about=name, detail={"secret": label})
    steps = [f"{name}: secret {label} is accepted; running doors know it within seconds"]
    return {"endpoint": name, "label": label, "steps": steps}


def retire_secret(services: Services, name: str, label: str, *, actor: str) -> dict[str, Any]:
    """Forget an accepted secret."""
    endpoint = services.named_endpoint(name)
    with services.database.write() as connection:
        vault.retire(connection, services.doors[endpoint.name].endpoint_id, label)
        write_audit(connection, actor=actor, action="retire", about=name, detail={"secret": label})
    return {"endpoint": name, "label": label, "steps": [f"{name}: secret {label} is forgotten"]}
