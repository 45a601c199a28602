"""Every change of an episode's state by its worker: one guarded statement each, one commit each.

An UPDATE names the state and the fence it expects; when it changes no row the episode is not ours
any more, and we leave without repairing anything.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from engine.base import SAMPLE_RATE_HZ
from pipeline import control, effects, ids, leases, outbox, retry
from pipeline.audio import from_flac, to_flac
from pipeline.database import Database, affected, now_ms, rows
from pipeline.errors import DatabaseUnavailable, LostLease
from pipeline.job import Job, mine, owner
from pipeline.models import (
    attempt,
    episode,
    episode_recording,
    recording,
    segment,
    usage_day,
)
from pipeline.narration import Spoken
from pipeline.speaker import Held
from pipeline.write_backs import announce, buried

if TYPE_CHECKING:
    from pipeline.services import Services

log = logging.getLogger(__name__)

EXTENSIONS = {"opus": "ogg", "mp3": "mp3", "wav": "wav", "vtt": "vtt", "chapters": "chapters.json"}


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished object in the store."""

    format: str
    object_key: str
    size_bytes: int
    digest: str
    duration_ms: int

    @property
    def extension(self) -> str:
        """How its file name ends."""
        return EXTENSIONS[self.format]


def begin(services: Services, held: Held, job: Job) -> None:
    """The first attempt keeps script and hash, so that all attempts speak the same words."""
    if job.row["spec_hash"] == job.spec_hash:
        return
    with services.database.write() as connection:
        _change(
            connection,
            held,
            script=job.kept_script(),
            spec_hash=job.spec_hash,
            title=job.script.title[:400],
            lang=job.script.lang,
            segments_total=len(job.plan.sentences),
        )
        wake_ups = announce(
            services,
            connection,
            job.id,
            "live",
            length_ms=sum(sentence.estimated_ms for sentence in job.plan.sentences),
            chapters=len(job.script.chapters),
        )
    services.sender.committed(wake_ups)


def earlier(services: Services, held: Held, job: Job) -> list[Spoken]:
    """Stored sentences that still fit the plan; later ones are dropped.

    What somebody skipped is not among them.
    """
    due = job.wishes.next(0)
    if due == held.claim.segments_done == 0:
        return []
    with services.database.read() as connection:
        found = rows(
            connection,
            sa.select(segment).where(segment.c.episode_id == job.id).order_by(segment.c.n),
        )
    good: list[Spoken] = []
    for row in found:
        if row["n"] != due or due >= len(job.plan.sentences):
            break
        sentence = job.plan.sentences[due]
        if row["text_digest"] != _text_digest(sentence.text):
            break
        due = job.wishes.next(due + 1)
        good.append(
            Spoken(
                seg=row["n"],
                text=sentence.text,
                samples=row["samples"],
                pause_ms=row["pause_ms"],
                words=row["words"],
                quality="model",
                load=lambda key=row["object_key"]: from_flac(  # type: ignore[misc]
                    services.storage.get(key)
                ),
            )
        )
    if due != held.claim.segments_done:
        with services.database.write() as connection:
            _change(connection, held, segments_done=due)
            connection.execute(
                segment.delete().where(segment.c.episode_id == job.id, segment.c.n >= due)
            )
    return good


def revise(
    services: Services,
    held: Held,
    job: Job,
    *,
    number: int,
    effect: control.Effect,
    segments_done: int,
    samples: int,
) -> list[str]:
    """An order takes effect: sentences from `effect["from"]` on are void, others follow.

    Args:
        job: as revised.
        number: of the order.
        segments_done: the sentence that is stored next.
        samples: of the sentences that stay.

    Returns:
        objects of the void sentences, to be removed before others are stored.
    """
    with services.database.write() as connection:
        _change(
            connection,
            held,
            segments_done=segments_done,
            samples=samples,
            state="synthesising",
            spec_hash=job.spec_hash,
        )
        void = connection.execute(
            segment.delete()
            .where(segment.c.episode_id == job.id, segment.c.n >= effect["from"])
            .returning(segment.c.object_key)
        ).scalars()
        objects = list(void)
        control.settle(connection, job.id, [(number, effect)], fence=held.claim.fence)
    return objects


def answer(services: Services, held: Held, number: int, effect: control.Effect) -> None:
    """An order changed nothing, or could not be followed."""
    with services.database.write() as connection:
        held.check()
        control.settle(
            connection, held.claim.episode_id, [(number, effect)], fence=held.claim.fence
        )


def pause(services: Services, held: Held, number: int, effect: control.Effect) -> bool:
    """Free the slot until somebody resumes; False if somebody has already."""
    with services.database.write() as connection:
        held.check()
        control.settle(
            connection, held.claim.episode_id, [(number, effect)], fence=held.claim.fence
        )
        paused = mine(episode.update()).where(episode.c.wanted == "pause").values(_GIVEN_BACK)
        if not affected(connection.execute(paused, owner(held))):
            return False
        _end_attempt(connection, held, "paused")
        leases.log_states(
            connection,
            [(held.claim.episode_id, held.claim.fence + 1)],
            "queued",
            actor="worker",
            reason="paused",
        )
    return True


_GIVEN_BACK: dict[str, Any] = {
    "state": "queued",
    "state_ms": now_ms(),
    "queued_ms": now_ms(),
    "fence": episode.c.fence + 1,
    "lease_owner": None,
    "lease_until_ms": 0,
}


def commit_segment(services: Services, held: Held, job: Job, one: Spoken) -> None:
    """PCM first, then the row; update before insert, because the update decides whose it is."""
    pcm = one.load()
    digest = hashlib.sha256(pcm.tobytes()).hexdigest()
    key = f"seg/{job.row['tenant_id']}/{job.id}/{one.seg:05}-{digest[:12]}.flac"
    services.storage.put_if_absent(key, to_flac(pcm), content_type="audio/flac")
    following = job.wishes.next(one.seg + 1)
    is_last = following >= len(job.plan.sentences)
    with services.database.write() as connection:
        held.check()
        changed = affected(
            connection.execute(
                mine(episode.update())
                .where(episode.c.segments_done == one.seg)
                .values(
                    segments_done=following,
                    samples=episode.c.samples + one.samples,
                    state="encoding" if is_last else "synthesising",
                    state_ms=sa.case((sa.literal(is_last), now_ms()), else_=episode.c.state_ms),
                ),
                owner(held),
            )
        )
        if not changed:
            if _is_committed(connection, held, job, one, digest):
                return
            raise LostLease(f"episode {job.id} has another owner")
        connection.execute(
            segment.insert().values(
                episode_id=job.id,
                n=one.seg,
                fence=held.claim.fence,
                object_key=key,
                samples=one.samples,
                pcm_digest=digest,
                text_digest=_text_digest(one.text),
                pause_ms=one.pause_ms,
                words=one.words,
                committed_ms=now_ms(),
            )
        )
        if is_last:
            leases.log_states(connection, [(job.id, held.claim.fence)], "encoding", actor="worker")


def _is_committed(
    connection: sa.Connection, held: Held, job: Job, one: Spoken, digest: str
) -> bool:
    """Did an earlier call commit this very row before its answer was lost?"""
    return (
        connection.execute(
            sa.select(segment.c.n).where(
                segment.c.episode_id == job.id,
                segment.c.n == one.seg,
                segment.c.fence == held.claim.fence,
                segment.c.pcm_digest == digest,
            )
        ).first()
        is not None
    )


_STORED = mine(episode.update()).values(
    state="stored",
    state_ms=now_ms(),
    stored_ms=now_ms(),
    first_audio_ms=sa.func.coalesce(
        episode.c.first_audio_ms, sa.bindparam("heard_ms", type_=sa.BigInteger)
    ),
    lease_owner=None,
    lease_until_ms=0,
    error=None,
    error_code=None,
)
_END_ATTEMPT = (
    attempt.update()
    .where(
        attempt.c.episode_id == sa.bindparam("of_episode"),
        attempt.c.fence == sa.bindparam("at_fence"),
    )
    .values(ended_ms=now_ms())
)


def commit_stored(
    services: Services,
    held: Held,
    job: Job,
    made: list[Stored],
    length_ms: int,
    *,
    busy_ms: int,
    first_audio_ms: int | None,
) -> list[tuple[int, str]]:
    """The recording can be fetched: state, usage and effects; gives the outbox rows to send."""
    with services.database.write() as connection:
        _run(
            connection,
            held,
            _STORED,
            heard_ms=first_audio_ms,
            samples=length_ms * SAMPLE_RATE_HZ // 1000,
            script=job.kept_script(),
            spec_hash=job.spec_hash,
            title=job.script.title[:400],
            lang=job.script.lang,
            segments_total=len(job.plan.sentences),
        )
        _end_attempt(connection, held, "stored")
        control.settle_rest(connection, job.id, held.claim.fence)
        _link_recordings(services, connection, job, made)
        _count_usage(services, connection, job, made, length_ms, busy_ms)
        leases.log_states(connection, [(job.id, held.claim.fence)], "stored", actor="worker")
        wake_ups = announce(
            services,
            connection,
            job.id,
            "done",
            length_ms=length_ms,
            chapters=len(job.script.chapters),
        )
        effects.settle(connection, job.id)
    return wake_ups


def commit_failure(services: Services, held: Held, error: Exception) -> tuple[str, str] | None:
    """Again later, or dead with the reason on the row; (key, message) if it is dead now."""
    with services.database.write() as connection:
        query = mine(sa.select(episode, now_ms().label("now")))
        row = connection.execute(query, owner(held)).first()
        if row is None:
            raise LostLease("the episode has another owner")
        verdict = retry.decide(
            error,
            tries=row.tries + 1,
            age_ms=row.now - row.created_ms,
            attempts=services.settings.attempts,
        )
        is_dead = verdict.after_ms is None
        state = "dead" if is_dead else "failed"
        _change(
            connection,
            held,
            state=state,
            state_ms=now_ms(),
            tries=episode.c.tries + 1,
            next_ms=None if is_dead else now_ms() + verdict.after_ms,
            ended_ms=now_ms() if is_dead else None,
            lease_owner=None,
            lease_until_ms=0,
            error_code=verdict.code,
            error=verdict.message,
        )
        _end_attempt(connection, held, state, verdict.code)
        leases.log_states(
            connection,
            [(row.id, held.claim.fence)],
            state,
            actor="worker",
            reason=verdict.code,
        )
        wake_ups = buried(services, connection, row.id) if is_dead else []
    services.sender.committed(wake_ups)
    return (row.key, verdict.message) if is_dead else None


def hand_over(services: Services, held: Held) -> None:
    """Give the episode to the next worker, with everything up to this sentence committed."""
    try:
        with services.database.write() as connection:
            row_id = held.claim.episode_id
            _change(connection, held, **_GIVEN_BACK)
            _end_attempt(connection, held, "handed_over")
            leases.log_states(
                connection,
                [(row_id, held.claim.fence + 1)],
                "queued",
                actor="worker",
                reason="handed over",
            )
            outbox.put(connection, "realtime", after_ms=-1_000)
    except (LostLease, DatabaseUnavailable) as error:
        log.info("not handed over, the lease runs out instead: %s", error)


def _link_recordings(
    services: Services, connection: sa.Connection, job: Job, made: list[Stored]
) -> None:
    tenant_id, take = job.row["tenant_id"], job.row["take"]
    connection.execute(
        services.database.once(_insert_recording),
        [
            {
                "id": ids.ulid(),
                "tenant_id": tenant_id,
                "spec_hash": job.spec_hash,
                "take": take,
                "format": one.format,
                "object_key": one.object_key,
                "size_bytes": one.size_bytes,
                "digest": one.digest,
                "duration_ms": one.duration_ms,
                "created_ms": int(time.time() * 1000),
            }
            for one in made
        ],
    )
    connection.execute(
        services.database.once(_insert_links),
        {"linked": job.id, "of_tenant": tenant_id, "of_spec": job.spec_hash, "of_take": take},
    )


def _insert_recording(database: Database) -> sa.Executable:
    return database.insert(recording).on_conflict_do_nothing()


def _insert_links(database: Database) -> sa.Executable:
    found = sa.select(sa.bindparam("linked", type_=sa.String), recording.c.id).where(
        recording.c.tenant_id == sa.bindparam("of_tenant"),
        recording.c.spec_hash == sa.bindparam("of_spec"),
        recording.c.take == sa.bindparam("of_take"),
    )
    insert = database.insert(episode_recording)
    return insert.from_select(["episode_id", "recording_id"], found).on_conflict_do_nothing()


def _count_usage(
    services: Services,
    connection: sa.Connection,
    job: Job,
    made: list[Stored],
    length_ms: int,
    busy_ms: int,
) -> None:
    connection.execute(
        services.database.once(_add_usage),
        {
            "tenant_id": job.row["tenant_id"],
            "day": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "endpoint_id": job.row["endpoint_id"],
            "engine": services.engine.info().name,
            "episodes": 1,
            "audio_ms": length_ms,
            "busy_ms": busy_ms,
            "chars": job.row["text_chars"],
            "stored_bytes": sum(one.size_bytes for one in made) if busy_ms else 0,
        },
    )


def _add_usage(database: Database) -> sa.Executable:
    insert = database.insert(usage_day)
    counted = ("episodes", "audio_ms", "busy_ms", "chars", "stored_bytes")
    return insert.on_conflict_do_update(
        index_elements=["tenant_id", "day", "endpoint_id", "engine"],
        set_={name: usage_day.c[name] + insert.excluded[name] for name in counted},
    )


def _change(connection: sa.Connection, held: Held, **values: Any) -> None:
    _run(connection, held, mine(episode.update()).values(values))


def _run(connection: sa.Connection, held: Held, change: sa.Update, **values: Any) -> None:
    held.check()
    if not affected(connection.execute(change, owner(held) | values)):
        raise LostLease(f"episode {held.claim.episode_id} has another owner")


def _end_attempt(
    connection: sa.Connection, held: Held, outcome: str, error_code: str | None = None
) -> None:
    connection.execute(
        _END_ATTEMPT,
        {
            "of_episode": held.claim.episode_id,
            "at_fence": held.claim.fence,
            "outcome": outcome,
            "error_code": error_code,
        },
    )


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
