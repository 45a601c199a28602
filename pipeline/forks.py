"""Readings of one's own: an episode spoken anew from a sentence on, as somebody wishes it.

A fork is an episode with a link of its own. The one it comes from goes on as it was, and may be
over. It has the same script; what makes it another one (where it begins, pace, emotion, voice, and
what the owner of the first one had ordered) stands among its orders as followed already. So it is
prepared like every episode that somebody goes on with after orders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from engine.errors import EngineError
from pipeline import intake
from pipeline.audit import write_audit
from pipeline.control import Effect, Wishes, commands_of, fold, place, voice_of
from pipeline.errors import Ended, NotFound, Refused
from pipeline.links import owner_url
from pipeline.models import episode, episode_note, note
from pipeline.notes import note_from_json
from pipeline.script import Script
from pipeline.services import Services
from streaming.chunk_log import BEGINNING, ChunkLog
from streaming.orders import Wish

_PACE = "speed:"  # how a note asks for one


@dataclass(frozen=True, slots=True)
class Forked:
    """A fork that will be spoken, from sentence `seg` of its script on."""

    sid: str
    seg: int
    listen_url: str


def fork(services: Services, key: str, wish: Wish, *, actor: str, order_key: str) -> Forked:
    """Make a fork of an episode; safe to repeat with its key. Blocks.

    Args:
        wish: its `at` and `play_ms` say where it begins, as with every order; without `play_ms` it
            begins where the episode does.
        actor: the link or key whose holder wants it; the new episode is theirs.

    Raises:
        NotFound: there is no such episode.
        Ended: its live log is gone, nobody knows any more where its sentences begin.
        Refused: nothing of it has been spoken, or there is no such voice or speaker.
        DatabaseUnavailable: nothing was stored, or (lost in the commit) it is there under its key.
    """
    row, wishes = _source(services, key)
    said = sentences(services.chunks, key)
    if not row.script:
        raise Refused("nothing of it has been spoken yet; fork it once it sounds")
    if not said:
        raise Ended("its live session is gone; send the note again to have it read anew")
    script = Script.from_dict(row.script)
    starts = {seg: ms for seg, (ms, _) in said.items()}
    first = min(said) if wish.play_ms is None else min(place(wish, starts, max(said)), max(said))
    who = speaker_of(script, said, first)
    taken = intake.take_script(
        services.database,
        services.links,
        services.doors["api"],
        script,
        delivery_key=f"fork/{order_key}"[:200],
        wishes={"casting": row.wishes["casting"], "heard": row.script.get("voices", {})},
        asked_by=actor,
        followed=list(_orders(services, script, wishes, wish.value, who, first)),
    )
    services.sender.committed(taken.wake_ups)
    sid = taken.accepted.episode
    if not taken.accepted.duplicate:
        with services.database.write() as connection:
            detail = {"value": wish.value, "seg": first, "fork": sid}
            write_audit(connection, actor=actor, action="fork", about=key, detail=detail)
    return Forked(sid, first, owner_url(services.database, services.links, sid))


def sentences(log: ChunkLog, key: str) -> dict[int, tuple[int, str]]:
    """Where the sentences of a session begin, in ms, and what they say; without those cut away."""
    found: dict[int, tuple[int, str]] = {}
    after = BEGINNING
    while page := log.read(key, after):
        after = page[-1].position
        for event in (json.loads(entry.body) for entry in page if not entry.header):
            if event["t"] == "seg":
                found[event["seg"]] = event["ms"], event["text"]
            elif event["t"] == "cut":
                found = {seg: one for seg, one in found.items() if seg < event["from_seg"]}
    return found


def speaker_of(script: Script, said: Mapping[int, tuple[int, str]], seg: int) -> str:
    """Who says sentence `seg`: its place in the script is found by following what was said."""
    segments = list(script.segments())
    at, offset = 0, 0
    for _, (_, text) in sorted((n, one) for n, one in said.items() if n <= seg):
        for index in range(at, len(segments)):
            found = segments[index].text.find(text, offset if index == at else 0)
            if found >= 0:
                at, offset = index, found + len(text)
                break
    return segments[at].speaker


def _source(services: Services, key: str) -> tuple[Any, Wishes]:
    """The row of an episode, and how it is read at present."""
    with services.database.read() as connection:
        row = connection.execute(
            sa.select(episode.c.id, episode.c.wishes, episode.c.script).where(episode.c.key == key)
        ).first()
        if row is None:
            raise NotFound(f"there is no episode {key}")
        wishes = fold(commands_of(connection, row.id))
        notes = connection.execute(_NOTES, {"of_episode": row.id}).scalars().all()
    pace = note_from_json(notes[0]).duration if len(notes) == 1 and notes[0] else ""
    if wishes.speed is None and pace.startswith(_PACE):
        wishes = wishes.after(Wish("speed", float(pace.removeprefix(_PACE))), {})
    return row, wishes


def _orders(
    services: Services,
    script: Script,
    wishes: Wishes,
    changes: Mapping[str, Any],
    who: str,
    first: int,
) -> Iterator[tuple[Wish, Effect]]:
    """What makes the fork another reading, as orders that were followed before it began."""
    effect = {"from": 0, "seg": 0}
    speed = changes.get("speed", wishes.speed)
    if speed is not None:
        yield Wish("speed", speed), effect
    emotion = changes.get("emotion", wishes.emotion)
    if emotion is not None:
        yield Wish("emotion", emotion), effect
    voices = dict(wishes.voices)
    if "voice" in changes:
        wish = Wish("voice", changes["voice"])
        if isinstance(wish.value, dict):
            who = wish.value["speaker"]
            if who not in {one.speaker for one in script.segments()}:
                raise Refused(f"nobody called {who!r} speaks here")
        voices[who] = _known(services, voice_of(wish), script.lang)
    for speaker, voice in voices.items():
        yield Wish("voice", voice), {**effect, "speaker": speaker}
    if first > 0:
        yield Wish("skip", first), {"from": 0, "seg": first}


def _known(services: Services, voice: str, lang: str) -> str:
    try:
        found = services.catalogue.find(voice, lang)
    except EngineError as error:
        raise Refused(f"the voices cannot be asked for now: {error}") from error
    if found is None:
        raise Refused(f"there is no voice {voice!r}; GET /v1/audio/voices lists them")
    return found


_NOTES = (
    sa.select(note.c.content)
    .join(episode_note, episode_note.c.note_id == note.c.id)
    .where(episode_note.c.episode_id == sa.bindparam("of_episode"))
)
