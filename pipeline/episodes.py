"""The life of an episode: claimed, spoken, stored, or failed with a reason.

`produce` conducts one claimed episode. A sentence is durable once its PCM is stored and its row is
committed; a new attempt goes on after the last such row.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import sqlalchemy as sa

from engine.base import SAMPLE_RATE_HZ
from engine.errors import BadRequest, EngineStopped
from engine.utterance import Utterance
from pipeline import arrows
from pipeline.arrows import Stored
from pipeline.database import rows
from pipeline.errors import DatabaseUnavailable, LostLease, ScriptError
from pipeline.job import Job, prepare
from pipeline.models import recording
from pipeline.recital import HandOver, Paused, Recital
from pipeline.speaker import Held

if TYPE_CHECKING:
    from pipeline.services import Services

log = logging.getLogger(__name__)

_WAIT_S = 0.5


def produce(services: Services, held: Held) -> None:
    """Speak a claimed episode live, keep its recording, order its write-back.

    Safe to run for any claim at any time: whatever an earlier attempt finished is not done again.
    Returns quietly when the episode was lost to another owner.
    """
    claim = held.claim
    extra = {"episode": claim.episode_id, "fence": claim.fence}
    try:
        job = prepare(services, held)
        if _reuse(services, held, job):
            return
        _speak(services, held, job)
    except LostLease:
        log.info("episode left to its new owner", extra=extra)
    except Paused:
        log.info("episode paused", extra=extra)
    except (EngineStopped, HandOver):
        if held.is_draining:
            arrows.hand_over(services, held)
        log.info("speech stopped", extra=extra)
    except Exception as error:
        _failed(services, held, error)


_SAME_SOUND = sa.select(recording).where(
    recording.c.tenant_id == sa.bindparam("tenant"),
    recording.c.spec_hash == sa.bindparam("spec"),
    recording.c.take == sa.bindparam("which"),
)


def _reuse(services: Services, held: Held, job: Job) -> bool:
    """Take recordings that sound the same, if all formats are there."""
    if not services.settings.reuse or held.claim.segments_done or held.heard:
        return False
    wanted = {*services.settings.formats, "vtt", "chapters"}
    with services.database.read() as connection:
        found = rows(
            connection,
            _SAME_SOUND,
            tenant=job.row["tenant_id"],
            spec=job.spec_hash,
            which=job.row["take"],
        )
    if wanted - {one["format"] for one in found}:
        return False
    made = [
        Stored(
            one["format"], one["object_key"], one["size_bytes"], one["digest"], one["duration_ms"]
        )
        for one in found
    ]
    _stored(services, held, job, made, busy_ms=0, first_audio_ms=None)
    log.info("episode stored", extra={"episode": job.key, "reused": True})
    return True


def _speak(services: Services, held: Held, job: Job) -> None:
    is_durable = held.claim.segments_done > 0 or (
        sum(sentence.estimated_ms for sentence in job.plan.sentences)
        >= services.settings.durable_after_s * 1000
    )
    early = _head_start(services, held, job)
    try:
        spoken = arrows.earlier(services, held, job)
        arrows.begin(services, held, job)
        recital = Recital(services, held, job, spoken, is_durable=is_durable, early=early)
        broadcast = recital.broadcast
        job = recital.speak()
    finally:
        if early is not None:
            early.cancel()
    broadcast.end("done")
    made = recital.store_recordings()
    url = _stored(
        services,
        held,
        job,
        made,
        busy_ms=recital.busy_ms,
        first_audio_ms=broadcast.first_audio_ms,
    )
    mp3 = next((one for one in made if one.format == "mp3"), made[0])
    broadcast.file(
        url=url(mp3.extension),
        size_bytes=mp3.size_bytes,
        vtt=url("vtt"),
        chapters=url("chapters.json"),
    )
    log.info(
        "episode stored",
        extra={"episode": job.key, "seconds": round(recital.samples / SAMPLE_RATE_HZ, 1)},
    )


def _head_start(services: Services, held: Held, job: Job) -> Utterance | None:
    """Let the engine begin a new episode while SQL and the live log are made ready for it."""
    if held.claim.segments_done or held.order is not None:
        return None
    request = replace(job.request, first_seg=job.wishes.next(0))
    return services.engine.submit(request, plan=job.plan)


def _stored(
    services: Services,
    held: Held,
    job: Job,
    made: list[Stored],
    *,
    busy_ms: int,
    first_audio_ms: int | None,
) -> Callable[[str], str]:
    """The recording can be fetched: state, usage and effects in one commit.

    Returns:
        a function from file extension to the address of that file.
    """
    length_ms = max(one.duration_ms for one in made)
    while True:
        try:
            wake_ups = arrows.commit_stored(
                services, held, job, made, length_ms, busy_ms=busy_ms, first_audio_ms=first_audio_ms
            )
            break
        except DatabaseUnavailable as error:
            held.check()
            log.warning("waiting to commit the recording: %s", error)
            time.sleep(_WAIT_S)
    services.sender.committed(wake_ups)
    return lambda extension: services.links.file_url(job.key, extension, now_s=time.time())


def _failed(services: Services, held: Held, error: Exception) -> None:
    """An attempt ended with an error: again later, or dead with the reason on the row."""
    is_foreseen = isinstance(error, (ScriptError, BadRequest))
    log.error(
        "episode failed: %s",
        error,
        exc_info=None if is_foreseen else error,
        extra={"episode": held.claim.episode_id},
    )
    try:
        dead = arrows.commit_failure(services, held, error)
    except (LostLease, DatabaseUnavailable) as lost:
        log.info("failure not recorded, the lease runs out instead: %s", lost)
        return
    if dead is not None:
        key, message = dead
        services.end_live(key, held.claim.fence, failure=message)
