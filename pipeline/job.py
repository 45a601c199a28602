"""What a claimed episode needs before it can be spoken: script, voices, plan, hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from connectors.base import NoteRef
from engine.base import Plan, SpeechRequest
from pipeline.audio import AUDIO_PROFILE
from pipeline.errors import LostLease
from pipeline.models import LEASED, endpoint, episode, episode_note, note
from pipeline.notes import note_from_json
from pipeline.script import Script, cast, compose, merge, to_request
from pipeline.speaker import Held

if TYPE_CHECKING:
    from pipeline.services import Services

S = TypeVar("S", sa.Update, sa.Select[Any])


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed episode with all that decides its sound.

    Attributes:
        row: the episode.
        endpoint: name of the endpoint its notes came through.
        request: what the engine is asked for.
        spec_hash: same hash, same sound.
    """

    row: Mapping[str, Any]
    endpoint: str
    refs: tuple[NoteRef, ...]
    script: Script
    request: SpeechRequest
    plan: Plan
    spec_hash: str

    @property
    def id(self) -> str:
        """The episode's row id."""
        return str(self.row["id"])

    def kept_script(self) -> dict[str, Any]:
        """The script as the episode keeps it, with what people should know about its speech."""
        remarks = {
            "degraded": list(self.plan.degraded),
            "warnings": list(self.plan.warnings),
            "skipped": [asdict(one) for one in self.script.skipped],
        }
        return self.script.to_dict() | {"remarks": remarks}

    @property
    def key(self) -> str:
        """The episode's public name."""
        return str(self.row["key"])


def prepare(services: Services, held: Held) -> Job:
    """Compose the script (the first attempt keeps it), cast it and plan the sentences."""
    with services.database.read() as connection:
        row = connection.execute(_EPISODE, owner(held)).mappings().first()
        if row is None:
            raise LostLease("claimed, but not ours when it was read")
        found = connection.execute(_NOTES, {"of_episode": row["id"]}).mappings().all()
        door = connection.execute(_DOOR, {"door_id": row["endpoint_id"]}).scalar_one()
    notes = [note_from_json(one["content"]) for one in found if one["content"] is not None]
    script = Script.from_dict(row["script"]) if row["script"] else None
    if script is None:
        roster = row["wishes"]["casting"]
        scripts = [compose(one, roster=roster) for one in notes]
        script = scripts[0] if len(scripts) == 1 else merge(row["title"], scripts)
    info = services.engine.info()
    casting = cast(
        script, services.engine.voices(), row["wishes"]["casting"], services.narrator(script.lang)
    )
    duration = notes[0].duration if len(notes) == 1 else ""
    request = to_request(script, casting, live=True, duration=duration)
    plan = services.engine.plan(request)
    refs = tuple(
        NoteRef(door, one["ref_container"], one["ref_table"], one["ref_key"])
        for one in found
        if one["ref_key"]
    )
    return Job(
        dict(row), door, refs, script, request, plan, _spec_hash(request, info.name, info.build)
    )


def _spec_hash(request: SpeechRequest, engine: str, build: str) -> str:
    """SHA-256 over everything that decides the sound of a recording."""
    spec = {
        "turns": [asdict(turn) for turn in request.turns],
        "target_s": request.target_s,
        "seed": request.seed,
        "engine": engine,
        "build": build,
        "audio": AUDIO_PROFILE,
    }
    text = json.dumps(spec, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def mine(statement: S) -> S:
    """Only the row of one claim, at its fence, while it is in work; run it with `owner`."""
    found: S = statement.where(
        episode.c.id == sa.bindparam("owned_id"),
        episode.c.fence == sa.bindparam("owned_fence"),
        episode.c.state.in_(LEASED),
    )
    return found


def owner(held: Held) -> dict[str, Any]:
    """What a statement made by `mine` is run with."""
    return {"owned_id": held.claim.episode_id, "owned_fence": held.claim.fence}


_EPISODE = mine(sa.select(episode))
_NOTES = (
    sa.select(note.c.content, note.c.ref_container, note.c.ref_table, note.c.ref_key)
    .join(episode_note, episode_note.c.note_id == note.c.id)
    .where(episode_note.c.episode_id == sa.bindparam("of_episode"))
    .order_by(episode_note.c.position)
)
_DOOR = sa.select(endpoint.c.name).where(endpoint.c.id == sa.bindparam("door_id"))
