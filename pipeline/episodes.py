"""The life of an episode: claimed, spoken, stored, or failed with a reason.

`produce` conducts one claimed episode. A sentence is durable once its PCM is stored and its row is
committed; a new attempt goes on after the last such row.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from engine.base import SAMPLE_RATE_HZ, Pcm
from engine.errors import BadRequest, EngineStopped
from pipeline import arrows
from pipeline.arrows import EXTENSIONS, Stored
from pipeline.audio import Recording
from pipeline.captions import ChapterMark, Cue, chapters_json, webvtt
from pipeline.database import rows
from pipeline.errors import DatabaseUnavailable, LostLease, ScriptError
from pipeline.job import Job, prepare
from pipeline.models import recording
from pipeline.narration import Broadcast, KeptOrder, Spoken, Word, words_of
from pipeline.script import chapter_starts
from pipeline.speaker import Held
from pipeline.storage import StorageUnavailable

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
    except (EngineStopped, HandOver):
        if held.is_draining:
            arrows.hand_over(services, held)
        log.info("speech stopped", extra=extra)
    except Exception as error:
        _failed(services, held, error)


class HandOver(Exception):
    """The worker drains: the sentence is committed, another worker goes on."""


_SAME_SOUND = sa.select(recording).where(
    recording.c.tenant_id == sa.bindparam("tenant"),
    recording.c.spec_hash == sa.bindparam("spec"),
    recording.c.take == sa.bindparam("which"),
)


def _reuse(services: Services, held: Held, job: Job) -> bool:
    """Take recordings that sound the same, if all formats are there."""
    if not services.settings.reuse or held.claim.segments_done:
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
    is_durable = (
        sum(sentence.estimated_ms for sentence in job.plan.sentences)
        >= services.settings.durable_after_s * 1000
    )
    spoken = arrows.earlier(services, held, job)
    arrows.begin(services, held, job)
    narration = _Narration(services, held, job, spoken, is_durable=is_durable)
    broadcast = narration.broadcast
    narration.speak()
    broadcast.end("done")
    made = narration.store_recordings()
    url = _stored(
        services,
        held,
        job,
        made,
        busy_ms=narration.busy_ms,
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
        extra={"episode": job.key, "seconds": round(narration.samples / SAMPLE_RATE_HZ, 1)},
    )


class _Narration:
    """Takes the engine's chunks to listeners, into stored sentences and into the recording."""

    def __init__(
        self,
        services: Services,
        held: Held,
        job: Job,
        spoken: list[Spoken],
        *,
        is_durable: bool,
    ) -> None:
        self._services = services
        self._held = held
        self._job = job
        self._spoken = spoken
        self._is_durable = is_durable
        self._uncommitted: list[Spoken] = []
        self._timings: dict[int, tuple[list[Word], Any]] = {}
        self._recording = Recording(
            services.encoder,
            formats=services.settings.formats,
            spec_hash=job.spec_hash,
            title=job.script.title,
            artist="Notecast",
            lang=job.script.lang,
        )
        for one in spoken:
            self._recording.add(one.load())
        # only now: a store that is away must not cost listeners a cut at each try
        self.broadcast = Broadcast(
            services.chunks,
            services.encoder,
            held,
            key=job.key,
            title=job.script.title,
            lang=job.script.lang,
            first_seg=len(spoken),
            earlier=lambda: spoken,
        )
        self.busy_ms = 0

    @property
    def samples(self) -> int:
        """Length so far."""
        return sum(one.samples for one in self._spoken)

    def speak(self) -> None:
        """Speak what is left of the plan."""
        first_seg = len(self._spoken)
        if first_seg == len(self._job.plan.sentences):
            return
        order = KeptOrder(first_seg)
        began = time.monotonic()
        utterance = self._services.engine.submit(
            replace(self._job.request, first_seg=first_seg), plan=self._job.plan
        )
        self._held.watch(utterance)
        try:
            for chunk in utterance:
                if chunk.live:
                    self.broadcast.chunk(chunk, self._job.plan.sentences[chunk.seg].text)
                if chunk.words:
                    self._timings[chunk.seg] = (words_of(chunk), chunk.quality)
                if chunk.kept:
                    for seg, pcm, pause_ms in order.add(chunk):
                        self._keep(seg, pcm, pause_ms)
                if self._held.is_draining and chunk.last and self._is_durable:
                    raise HandOver
        finally:
            utterance.cancel()
            self._held.watch(None)
            self.busy_ms = int((time.monotonic() - began) * 1000)
        self._held.check()
        self._commit_all()

    def store_recordings(self) -> list[Stored]:
        """Put recordings, captions and chapters; put-if-absent, the first attempt's bytes win."""
        marks, cues = self._marks(), self._cues()
        made = [
            self._put(one.format, one.body, one.content_type, one.duration_ms)
            for one in self._recording.finish(marks)
        ]
        length_ms = self.samples * 1000 // SAMPLE_RATE_HZ
        vtt = webvtt(cues, lang=self._job.script.lang, title=self._job.script.title)
        made.append(self._put("vtt", vtt.encode(), "text/vtt; charset=utf-8", length_ms))
        chapters = chapters_json(marks).encode()
        content_type = "application/json+chapters"
        made.append(self._put("chapters", chapters, content_type, length_ms))
        return made

    def _keep(self, seg: int, pcm: Pcm, pause_ms: int) -> None:
        words, quality = self._timings.pop(seg, ([], "model"))
        one = Spoken(
            seg=seg,
            text=self._job.plan.sentences[seg].text,
            samples=len(pcm),
            pause_ms=pause_ms,
            words=words,
            quality=quality,
            load=lambda: pcm,
        )
        self._recording.add(pcm)
        self._spoken.append(one)
        self.broadcast.kept(seg)
        if self._is_durable:
            self._uncommitted.append(one)
            try:
                self._commit_some()
            except (DatabaseUnavailable, StorageUnavailable) as error:
                # the voice goes on; what waits in memory is committed with a later sentence
                log.warning("sentence not stored yet: %s", error, extra={"segment": seg})

    def _commit_some(self) -> None:
        while self._uncommitted:
            self._held.check()
            arrows.commit_segment(self._services, self._held, self._job, self._uncommitted[0])
            self._uncommitted.pop(0)

    def _commit_all(self) -> None:
        while True:
            try:
                return self._commit_some()
            except (DatabaseUnavailable, StorageUnavailable) as error:
                self._held.check()
                log.warning("waiting to store sentences: %s", error)
                time.sleep(_WAIT_S)

    def _put(self, format_: str, body: bytes, content_type: str, duration_ms: int) -> Stored:
        spec = self._job.spec_hash
        key = (
            f"rec/{self._job.row['tenant_id']}/{spec[:2]}/"
            f"{spec}-{self._job.row['take']}.{EXTENSIONS[format_]}"
        )
        digest, size = hashlib.sha256(body).hexdigest(), len(body)
        storage = self._services.storage
        while True:
            try:
                if not storage.put_if_absent(key, body, content_type=content_type):
                    kept = storage.get(key)
                    if kept != body:
                        # two attempts sounded differently; what is stored first is the recording
                        log.info("recording differs, the first one stays", extra={"object": key})
                        digest, size = hashlib.sha256(kept).hexdigest(), len(kept)
                return Stored(format_, key, size, digest, duration_ms)
            except StorageUnavailable as error:
                self._held.check()
                log.warning("waiting to store the recording: %s", error)
                time.sleep(_WAIT_S)

    def _marks(self) -> list[ChapterMark]:
        """Chapters on the recording's timeline; one that has no sentence of its own is left out."""
        first_turns = [start.turn for start in chapter_starts(self._job.script)]
        titles = [start.title for start in chapter_starts(self._job.script)]
        begins: dict[int, int] = {}
        at = 0
        for one, sentence in zip(self._spoken, self._job.plan.sentences, strict=True):
            chapter = sum(turn <= sentence.turn for turn in first_turns) - 1
            begins.setdefault(max(chapter, 0), at * 1000 // SAMPLE_RATE_HZ)
            at += one.samples
        order = sorted(begins)
        ends = [begins[chapter] for chapter in order[1:]] + [at * 1000 // SAMPLE_RATE_HZ]
        return [
            ChapterMark(begins[chapter], end, titles[chapter])
            for chapter, end in zip(order, ends, strict=True)
        ]

    def _cues(self) -> list[Cue]:
        cues, at = [], 0
        for one in self._spoken:
            start_ms = at * 1000 // SAMPLE_RATE_HZ + one.pause_ms
            at += one.samples
            words = [(str(word), start_ms + a, start_ms + b) for word, a, b in one.words]
            cues.append(Cue(start_ms, at * 1000 // SAMPLE_RATE_HZ, one.text, words))
        return cues


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
