"""One attempt at speaking an episode: the engine's chunks go to listeners, into stored sentences
and into the recording, and what is ordered meanwhile is followed.

Orders that change the speech take effect at the border of a sentence S. Whatever was spoken from S
on is void: in SQL first (one commit that also notes the order as followed), then for listeners (a
`cut` and a new epoch). So the recording and what listeners hear hold the same sentences, each once.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from engine.base import SAMPLE_RATE_HZ, AudioChunk, Pcm
from engine.errors import BadRequest, EngineStopped
from engine.utterance import Utterance
from pipeline import arrows, control
from pipeline.arrows import EXTENSIONS, Stored
from pipeline.audio import Recording
from pipeline.captions import ChapterMark, Cue, chapters_json, webvtt
from pipeline.control import Command, Effect
from pipeline.errors import DatabaseUnavailable, Refused
from pipeline.job import Job, revise, speaker_of
from pipeline.narration import Broadcast, KeptOrder, Spoken, Word, words_of
from pipeline.script import chapter_starts
from pipeline.speaker import Held
from pipeline.storage import StorageError, StorageUnavailable

if TYPE_CHECKING:
    from pipeline.services import Services

log = logging.getLogger(__name__)

T = TypeVar("T")

_WAIT_S = 0.5


class HandOver(Exception):
    """The worker drains: the sentence is committed, another worker goes on."""


class Paused(Exception):
    """The owner paused: the sentence is committed, whoever claims it after `resume` goes on."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """What an order would change."""

    job: Job
    effect: Effect


class Recital:
    """Speaks what is left of a job.

    Args:
        spoken: stored sentences of earlier attempts.
        is_durable: whether sentences are stored as they are spoken.
        early: the engine's work on it, if that was begun; ours from now on.
    """

    def __init__(
        self,
        services: Services,
        held: Held,
        job: Job,
        spoken: list[Spoken],
        *,
        is_durable: bool,
        early: Utterance | None = None,
    ) -> None:
        self._services = services
        self._held = held
        self._job = job
        self._spoken = spoken
        self._next = job.wishes.next(spoken[-1].seg + 1 if spoken else 0)  # the sentence to keep
        self._is_durable = is_durable
        self._uncommitted: list[Spoken] = []
        self._void: list[str] = []  # objects of sentences that do not count any more
        self._timings: dict[int, tuple[list[Word], Any]] = {}
        self._places: dict[int, int] = {}  # order -> sentence it takes effect at
        self._drafts: dict[int, _Draft | Effect] = {}
        self._drafting = threading.RLock()  # orders are looked at as they come, on another thread
        self._early = early
        self._recording: Recording | None = self._record()
        # only now: a store that is away must not cost listeners a cut at each try
        self.broadcast = Broadcast(
            services.chunks,
            services.encoder,
            held,
            key=job.key,
            title=job.script.title,
            lang=job.script.lang,
            first_seg=self._next,
            earlier=lambda: self._spoken,
            chapter=self._chapter_begun,
        )
        self.busy_ms = 0

    @property
    def samples(self) -> int:
        """Length so far."""
        return sum(one.samples for one in self._spoken)

    def speak(self) -> Job:
        """Speak what is left and follow what is ordered; gives the job as it was spoken.

        Raises:
            HandOver, Paused: not to the end; everything up to here is committed.
            EngineStopped: not to the end.
        """
        self._held.on_orders(self._hear)
        try:
            self._follow_orders()
            while self._next < self._total:
                self._speak_on()
                self._follow_orders()
        finally:
            self._held.on_orders(None)
            self._cancel_early()
        self._held.check()
        self._commit_all()
        return self._job

    def store_recordings(self) -> list[Stored]:
        """Put recordings, captions and chapters; put-if-absent, the first attempt's bytes win."""
        marks, cues = self._marks(), self._cues()
        recording = self._recording or self._record()
        made = [
            self._put(one.format, one.body, one.content_type, one.duration_ms)
            for one in recording.finish(marks)
        ]
        length_ms = self.samples * 1000 // SAMPLE_RATE_HZ
        vtt = webvtt(cues, lang=self._job.script.lang, title=self._job.script.title)
        made.append(self._put("vtt", vtt.encode(), "text/vtt; charset=utf-8", length_ms))
        chapters = chapters_json(marks).encode()
        content_type = "application/json+chapters"
        made.append(self._put("chapters", chapters, content_type, length_ms))
        return made

    @property
    def _total(self) -> int:
        return len(self._job.plan.sentences)

    # speaking ---------------------------------------------------------------------------------

    def _speak_on(self) -> None:
        """Speak until the end, a skip, or an order that is due."""
        first, until = self._next, self._job.wishes.until(self._next, self._total)
        order = KeptOrder(first)
        if self.broadcast.has_begun(first):
            self.broadcast.cut(first)  # it was broken off
        began = time.monotonic()
        utterance, self._early = self._early or self._submit(first), None
        self._held.watch(utterance)
        try:
            for chunk in utterance:
                if chunk.seg < until:
                    self._take(chunk, order)
                if self._held.is_draining and chunk.last and self._is_durable:
                    raise HandOver
                if self._next >= until or self._must_stop():
                    break
        except EngineStopped:
            if self._held.is_lost or self._held.is_draining:
                raise
            # else `_hear` broke it off for an order
        finally:
            utterance.cancel()
            self._held.watch(None)
            self.busy_ms += int((time.monotonic() - began) * 1000)

    def _take(self, chunk: AudioChunk, order: KeptOrder) -> None:
        if chunk.live:
            self.broadcast.chunk(chunk, self._job.plan.sentences[chunk.seg].text)
        if chunk.words:
            self._timings[chunk.seg] = (words_of(chunk), chunk.quality)
        if chunk.kept:
            if chunk.last:
                self._job.remarks[chunk.seg] = chunk.remarks
            for seg, pcm, pause_ms in order.add(chunk):
                self._keep(seg, pcm, pause_ms)

    def _submit(self, first_seg: int) -> Utterance:
        request = replace(self._job.request, first_seg=first_seg)
        return self._services.engine.submit(request, plan=self._job.plan)

    def _cancel_early(self) -> None:
        if self._early is not None:
            self._early.cancel()
            self._early = None

    # orders -----------------------------------------------------------------------------------

    def _hear(self) -> None:
        """An order came, on another thread: break the speech off if it takes effect already."""
        order = self._due()
        if order is not None and order.wish.op in control.REVISING and _is_good(self._draft(order)):
            self._held.stop_speech()

    def _must_stop(self) -> bool:
        """Has the time of an order come? What needs no stop is answered here."""
        while (order := self._due()) is not None:
            if order.wish.op == "pause":
                return True
            if order.wish.op in control.REVISING and _is_good(self._draft(order)):
                return True
            self._follow(order)
        return False

    def _due(self) -> Command | None:
        """The oldest order, if its time has come: all before its sentence is spoken."""
        order = self._held.order
        if order is None or (order.wish.op != "resume" and self._place(order) > self._next):
            return None
        return order

    def _place(self, order: Command) -> int:
        """The sentence at which an order takes effect; decided when it is first looked at."""
        with self._drafting:
            place = self._places.get(order.number)
            if place is None:
                starts = self.broadcast.starts
                following = max([self._next, *(seg + 1 for seg in starts)])
                place = control.place(order.wish, starts, following)
                place = self._places[order.number] = min(place, self._total)
            return place

    def _follow_orders(self) -> None:
        while (order := self._held.order) is not None:
            if self._next < self._total and self._due() is None:
                return
            self._follow(order)

    def _follow(self, order: Command) -> None:
        if order.wish.op == "resume":
            self.broadcast.state("generating", _by(order))
            self._answer(order, self._here())
        elif order.wish.op == "pause" and self._place(order) >= self._total:
            self._answer(order, control.too_late())
        elif order.wish.op == "pause":
            self._pause(order)
        else:
            self._revise(order)
        self._held.followed(order)

    def _here(self) -> Effect:
        """Where the speech stands."""
        broadcast = self.broadcast
        return {"seg": self._next, "ms": broadcast.dur_ms, "epoch": broadcast.epoch}

    def _answer(self, order: Command, effect: Effect) -> None:
        self._patiently(lambda: arrows.answer(self._services, self._held, order.number, effect))
        control.tell(self._services, order, effect)

    def _pause(self, order: Command) -> None:
        if self.broadcast.has_begun(self._next):
            self.broadcast.cut(self._next)  # a sentence was begun before the last one was whole
        if not self._is_durable:
            self._is_durable = True
            self._uncommitted = list(self._spoken)
        self._commit_all()
        effect = self._here()
        is_paused = self._patiently(
            lambda: arrows.pause(self._services, self._held, order.number, effect)
        )
        if is_paused:
            self.broadcast.state("paused", _by(order))
        control.tell(self._services, order, effect)
        if is_paused:
            raise Paused

    def _draft(self, order: Command) -> _Draft | Effect:
        """The job as an order would have it, or why it cannot be; for any thread."""
        with self._drafting:
            found = self._drafts.get(order.number)
            if found is None:
                found = self._drafts[order.number] = self._make_draft(order, self._place(order))
            return found

    def _make_draft(self, order: Command, seg: int) -> _Draft | Effect:
        effect: Effect = {"seg": seg, "from": seg}
        if seg >= self._total:
            return control.too_late()
        try:
            if order.wish.op == "voice":
                effect["speaker"] = self._speaker(order, seg)
            if order.wish.op == "skip":
                effect["seg"] = self._target(order, seg)
            job = revise(self._services.engine, self._job, order, effect)
        except (BadRequest, Refused) as error:
            return {"code": "bad_message", "message": str(error)}
        if nearly := _degraded(order, self._job, job):
            effect["degraded"] = nearly
        return _Draft(job, effect)

    def _revise(self, order: Command) -> None:
        draft = self._draft(order)
        if not isinstance(draft, _Draft):
            self._answer(order, draft)
            return
        job, effect = draft.job, dict(draft.effect)
        seg = effect["from"]
        effect["ms"] = self.broadcast.starts.get(seg, self.broadcast.dur_ms)
        effect["epoch"] = self.broadcast.epoch + 1
        self._commit_all()
        following = job.wishes.next(effect["seg"])
        stays = [one for one in self._spoken if one.seg < seg]
        with self._drafting:
            self._job, self._next = job, following
            self._places.clear()  # the timeline is another one now
            self._drafts.clear()
        self._cancel_early()
        self._early = self._submit(following)  # it begins to work while SQL commits
        self._void += self._patiently(
            lambda: arrows.revise(
                self._services,
                self._held,
                job,
                number=order.number,
                effect=effect,
                segments_done=following if self._is_durable else 0,
                samples=sum(one.samples for one in stays) if self._is_durable else 0,
            )
        )
        self._spoken[:] = stays
        self._timings.clear()
        self._recording = None  # made anew with the next sentence
        self.broadcast.cut(seg, order.wish.op)  # type: ignore[arg-type]  # one of REVISING
        control.tell(self._services, order, effect)

    def _speaker(self, order: Command, seg: int) -> str:
        value = order.wish.value
        return str(value["speaker"]) if isinstance(value, dict) else speaker_of(self._job, seg)

    def _target(self, order: Command, seg: int) -> int:
        target = int(order.wish.value)
        if not seg <= target < self._total:
            raise Refused(
                f"sentence {target} cannot be skipped to: {seg} to {self._total - 1} are ahead; "
                "the player seeks in what was spoken"
            )
        return target

    # keeping ----------------------------------------------------------------------------------

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
        self._spoken.append(one)
        if self._recording is None:
            self._recording = self._record()
        else:
            self._recording.add(pcm)
        self._next = self._job.wishes.next(seg + 1)
        self.broadcast.kept(seg)
        if self._is_durable:
            self._uncommitted.append(one)
            try:
                self._commit_some()
            except (DatabaseUnavailable, StorageUnavailable) as error:
                # the voice goes on; what waits in memory is committed with a later sentence
                log.warning("sentence not stored yet: %s", error, extra={"segment": seg})

    def _record(self) -> Recording:
        """A recording that holds what was spoken so far."""
        recording = Recording(
            self._services.encoder,
            formats=self._services.settings.formats,
            spec_hash=self._job.spec_hash,
            title=self._job.script.title,
            artist="Notecast",
            lang=self._job.script.lang,
        )
        for one in self._spoken:
            recording.add(one.load())
        return recording

    def _commit_some(self) -> None:
        self._drop_void()
        while self._uncommitted:
            self._held.check()
            arrows.commit_segment(self._services, self._held, self._job, self._uncommitted[0])
            self._uncommitted.pop(0)

    def _commit_all(self) -> None:
        self._patiently(self._commit_some)

    def _drop_void(self) -> None:
        """Before anything new is stored: what is spoken again may sound, and be named, the same."""
        void, self._void = self._void, []
        for key in void:
            try:
                self._services.storage.delete(key)
            except StorageError as error:
                log.warning("void sentence not removed: %s", error, extra={"object": key})

    def _patiently(self, call: Callable[[], T]) -> T:
        """Do it, again and again while SQL or the store is away and the episode is ours."""
        while True:
            try:
                return call()
            except (DatabaseUnavailable, StorageUnavailable) as error:
                self._held.check()
                log.warning("waiting to store: %s", error)
                time.sleep(_WAIT_S)

    def _put(self, format_: str, body: bytes, content_type: str, duration_ms: int) -> Stored:
        spec = self._job.spec_hash
        key = (
            f"rec/{self._job.row['tenant_id']}/{spec[:2]}/"
            f"{spec}-{self._job.row['take']}.{EXTENSIONS[format_]}"
        )
        storage = self._services.storage

        def put() -> bytes:
            is_new = storage.put_if_absent(key, body, content_type=content_type)
            return body if is_new else storage.get(key)

        kept = self._patiently(put)
        if kept != body:
            # two attempts sounded differently; what is stored first is the recording
            log.info("recording differs, the first one stays", extra={"object": key})
        return Stored(format_, key, len(kept), hashlib.sha256(kept).hexdigest(), duration_ms)

    def _marks(self) -> list[ChapterMark]:
        """Chapters on the recording's timeline; one that has no sentence of its own is left out."""
        titles = [start.title for start in chapter_starts(self._job.script)]
        begins: dict[int, int] = {}
        at = 0
        for one in self._spoken:
            begins.setdefault(self._chapter_of(one.seg), at * 1000 // SAMPLE_RATE_HZ)
            at += one.samples
        order = sorted(begins)
        ends = [begins[chapter] for chapter in order[1:]] + [at * 1000 // SAMPLE_RATE_HZ]
        return [
            ChapterMark(begins[chapter], end, titles[chapter])
            for chapter, end in zip(order, ends, strict=True)
        ]

    def _chapter_of(self, seg: int) -> int:
        """Number of the chapter that a sentence belongs to."""
        turn = self._job.plan.sentences[seg].turn
        return max(0, sum(one.turn <= turn for one in chapter_starts(self._job.script)) - 1)

    def _chapter_begun(self, seg: int, last: int | None) -> str:
        """Title of the chapter that sentence `seg` begins after `last`; empty if it begins none."""
        chapter = self._chapter_of(seg)
        if last is not None and self._chapter_of(last) == chapter:
            return ""
        return chapter_starts(self._job.script)[chapter].title

    def _cues(self) -> list[Cue]:
        cues, at = [], 0
        for one in self._spoken:
            start_ms = at * 1000 // SAMPLE_RATE_HZ + one.pause_ms
            at += one.samples
            words = [(str(word), start_ms + a, start_ms + b) for word, a, b in one.words]
            cues.append(Cue(start_ms, at * 1000 // SAMPLE_RATE_HZ, one.text, words))
        return cues


def _is_good(draft: _Draft | Effect) -> bool:
    return isinstance(draft, _Draft)


def _by(order: Command) -> Any:
    """Who an event of the live log says it was."""
    return "admin" if order.role == "admin" else "owner"


def _degraded(order: Command, before: Job, after: Job) -> list[str]:
    """What the voice gives only nearly since this order."""
    found = after.plan.degraded
    return [one for one in found if one == order.wish.op or one not in before.plan.degraded]
