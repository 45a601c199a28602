"""What a claimed episode needs before it can be spoken: script, voices, plan, hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from engine.base import Plan, SpeechRequest, Voice
from pipeline.audio import AUDIO_PROFILE
from pipeline.control import Command, Effect, Wishes, commands_of, fold, voice_of
from pipeline.errors import LostLease, Refused
from pipeline.models import LEASED, endpoint, episode, episode_note, note
from pipeline.notes import note_from_json
from pipeline.script import Script, cast, compose, merge, speaker_languages, to_request
from pipeline.speaker import Held

if TYPE_CHECKING:
    from engine.engine import Engine
    from pipeline.services import Services

S = TypeVar("S", sa.Update, sa.Select[Any])


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed episode with all that decides its sound.

    Attributes:
        row: the episode.
        endpoint: name of the endpoint its notes came through.
        casting: speaker -> voice, as the script has it.
        duration: the note's rule for its length.
        request: what the engine is asked for.
        spec_hash: same hash, same sound.
        wishes: what was ordered while it was spoken.
        revisions: the orders that made them, as far as they decide the sound.
        remarks: the engine's about sentences it spoke in this attempt, by their number.
        troupe: as `casting`, with those who speak in the chapters that the script offers.
        warnings: about cells that could not be used as they are.
    """

    row: Mapping[str, Any]
    endpoint: str
    script: Script
    casting: Mapping[str, str]
    duration: str
    request: SpeechRequest
    plan: Plan
    spec_hash: str
    wishes: Wishes = field(default_factory=Wishes)
    revisions: tuple[dict[str, Any], ...] = ()
    remarks: dict[int, tuple[str, ...]] = field(default_factory=dict)
    troupe: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The episode's row id."""
        return str(self.row["id"])

    def kept_script(self) -> dict[str, Any]:
        """The script as the episode keeps it, with what people should know about its speech."""
        said = [one for _, remarks in sorted(self.remarks.items()) for one in remarks]
        kept = self.script.kept(
            degraded=self.plan.degraded, warnings=[*self.warnings, *self.plan.warnings, *said]
        )
        return kept | {"voices": dict(self.troupe)}

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
        commands = commands_of(connection, row["id"]) if row["command_head"] else []
        found = connection.execute(_NOTES, {"of_episode": row["id"]}).mappings().all()
        door = connection.execute(_DOOR, {"door_id": row["endpoint_id"]}).scalar_one()
    notes = [note_from_json(one["content"]) for one in found if one["content"] is not None]
    script = Script.from_dict(row["script"]) if row["script"] else None
    if script is None:
        roster = row["wishes"]["casting"]
        names = services.section_names
        scripts = [compose(one, roster=roster, names=names) for one in notes]
        script = scripts[0] if len(scripts) == 1 else merge(row["title"], scripts)
    info = services.engine.info()
    voices = services.engine.voices()
    narrator = services.narrator(script.lang)
    casting = cast(script, voices, _wanted(row["wishes"], script, voices), narrator)
    duration = notes[0].duration if len(notes) == 1 else ""
    held.deliver([one for one in commands if one.effect is None], head=row["command_head"])
    followed = [one for one in commands if one.effect is not None]
    revisions = tuple(_revision(one, one.effect) for one in followed if _revises(one))
    wishes = fold(followed)
    request = _request(script, casting, duration, wishes)
    return Job(
        dict(row),
        door,
        script,
        casting,
        duration,
        request,
        services.engine.plan(request),
        _spec_hash(request, info.name, info.build, revisions),
        wishes,
        revisions,
        troupe=cast(script.whole(), voices, _as_wishes(casting), narrator),
        warnings=tuple(warning for one in notes for warning in one.warnings),
    )


def _wanted(wishes: Mapping[str, Any], script: Script, voices: Sequence[Voice]) -> dict[str, str]:
    """Who shall speak with which voice: as the note says, else as people have heard them."""
    heard = wishes.get("heard", {})
    if not heard:
        return dict(wishes["casting"])
    speaks = {voice.id: voice.lang for voice in voices}
    languages = speaker_languages(script).items()
    fitting = {who: heard[who] for who, lang in languages if speaks.get(heard.get(who)) == lang}
    return {**_as_wishes(fitting), **wishes["casting"]}


def _as_wishes(casting: Mapping[str, str]) -> dict[str, str]:
    return {who or "default": voice for who, voice in casting.items()}


def revise(engine: Engine, job: Job, command: Command, effect: Effect) -> Job:
    """The job once an order has taken effect; its sentences keep their numbers.

    Raises:
        BadRequest: the voice cannot do it (no such voice, ...).
        Refused: nobody of that name speaks, or the text would be cut into other sentences.
    """
    wishes = job.wishes.after(command.wish, effect)
    if command.wish.op == "voice" and effect["speaker"] not in job.casting:
        raise Refused(f"nobody called {effect['speaker']!r} speaks here")
    request = _request(job.script, job.casting, job.duration, wishes)
    plan = engine.plan(request)
    if [one.text for one in plan.sentences] != [one.text for one in job.plan.sentences]:
        raise Refused(
            f"{_named(command)} would cut the text into other sentences; stop and begin anew"
        )
    info = engine.info()
    revisions = (*job.revisions, _revision(command, effect))
    spec_hash = _spec_hash(request, info.name, info.build, revisions)
    return replace(
        job, request=request, plan=plan, spec_hash=spec_hash, wishes=wishes, revisions=revisions
    )


def speaker_of(job: Job, seg: int) -> str:
    """Who says a sentence."""
    turn = job.plan.sentences[seg].turn
    return list(job.script.segments())[turn].speaker


def _request(
    script: Script, casting: Mapping[str, str], duration: str, wishes: Wishes
) -> SpeechRequest:
    if wishes.speed is not None:
        duration = f"speed:{wishes.speed:.4f}"
    request = to_request(script, {**casting, **wishes.voices}, live=True, duration=duration)
    if wishes.emotion is None:
        return request
    turns = (
        replace(turn, controls=replace(turn.controls, emotion=wishes.emotion))
        for turn in request.turns
    )
    return replace(request, turns=tuple(turns))


_DECISIVE = ("from", "seg", "speaker")


def _named(command: Command) -> str:
    wish = command.wish
    return f"{wish.op} {voice_of(wish) if wish.op == 'voice' else wish.value}"


def _revises(command: Command) -> bool:
    return command.effect is not None and "from" in command.effect


def _revision(command: Command, effect: Effect | None) -> dict[str, Any]:
    """What of an order decides the sound."""
    assert effect is not None
    revision: dict[str, Any] = {"op": command.wish.op, "value": command.wish.value}
    return revision | {name: effect[name] for name in _DECISIVE if name in effect}


def _spec_hash(
    request: SpeechRequest, engine: str, build: str, revisions: tuple[dict[str, Any], ...]
) -> str:
    """SHA-256 over everything that decides the sound of a recording."""
    spec: dict[str, Any] = {
        "turns": [asdict(turn) for turn in request.turns],
        "target_s": request.target_s,
        "seed": request.seed,
        "engine": engine,
        "build": build,
        "audio": AUDIO_PROFILE,
    }
    if revisions:
        spec["revisions"] = revisions
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
