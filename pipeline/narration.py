"""One attempt's sound on its way to listeners and into the recording.

Each way has its own promise. The live log is heard within a moment and survives any process. The
recording holds every sentence once, whatever was cut on the way to listeners.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from engine.base import AudioChunk, Pcm
from engine.utterance import split_chunks
from pipeline.audio import FRAME_SAMPLES, Encoder, LiveEncoder, pad_to_packet
from pipeline.errors import LostLease
from pipeline.speaker import Held
from streaming.chunk_log import ChunkLog
from streaming.errors import Fenced, LogLost, LogUnavailable, SessionExists
from streaming.frames import TICKS_PER_MS
from streaming.session import Actor, CutWhy, LiveSession, Quality, State

log = logging.getLogger(__name__)

T = TypeVar("T")
Word = list[Any]
"""[text, start_ms, end_ms] from the end of the sentence's leading pause."""


@dataclass(slots=True)
class Spoken:
    """One sentence that was spoken in full.

    Attributes:
        samples: of the sentence, pause included; a whole number of 20 ms packets.
        pause_ms: leading silence.
        load: gives the (samples,) int16 PCM, from memory or from the store.
    """

    seg: int
    text: str
    samples: int
    pause_ms: int
    words: list[Word]
    quality: Quality
    load: Callable[[], Pcm]


class KeptOrder:
    """Puts kept chunks into whole sentences, in order; one that was decoded twice arrives late."""

    def __init__(self, first_seg: int) -> None:
        self._next = first_seg
        self._open: dict[int, list[AudioChunk]] = {}
        self._complete: dict[int, tuple[Pcm, int]] = {}

    def add(self, chunk: AudioChunk) -> Iterator[tuple[int, Pcm, int]]:
        """Take a chunk; gives (seg, padded pcm, pause_ms) of each sentence that is due now."""
        parts = self._open.setdefault(chunk.seg, [])
        parts.append(chunk)
        if chunk.last:
            del self._open[chunk.seg]
            pcm = np.concatenate([part.pcm for part in parts])
            self._complete[chunk.seg] = (pad_to_packet(pcm), parts[0].pause_ms)
        while self._next in self._complete:
            pcm, pause_ms = self._complete.pop(self._next)
            yield self._next, pcm, pause_ms
            self._next += 1


class Broadcast:
    """The way to listeners: Opus frames and captions in the live log.

    While the log's store restarts, calls wait for as long as the episode is ours. A log that was
    lost with its store is built again from what was spoken before.

    Args:
        first_seg: the sentence this attempt begins with.
        earlier: the sentences spoken before, in order, by this attempt and those before it.
        chapter: title of the chapter that a sentence begins for whoever heard another one last
            (None: nothing); empty if it begins none.

    Attributes:
        first_audio_ms: database time at which the first frame of this attempt could be heard.
    """

    def __init__(
        self,
        chunks: ChunkLog,
        encoder: Encoder,
        held: Held,
        *,
        key: str,
        title: str,
        lang: str,
        first_seg: int,
        earlier: Callable[[], Iterable[Spoken]],
        chapter: Callable[[int, int | None], str] = lambda _seg, _last: "",
    ) -> None:
        self._chunks = chunks
        self._encoder = encoder
        self._held = held
        self._key = key
        self._earlier = earlier
        self._chapter = chapter
        self._live = LiveEncoder(encoder)
        self._recent: list[tuple[AudioChunk, str]] = []  # published, sentence not kept yet
        self._meta = {"title": title, "lang": lang, "skip": str(self._live.skip)}
        self.first_audio_ms: int | None = None
        self._is_new = False
        self._session = self._patiently(self._open)
        # an attempt before us died after the last word: listeners have heard all
        self._is_over = self._session.ended
        if self._is_new:
            self._replay()
        elif not self._is_over:
            self.cut(first_seg)

    @property
    def starts(self) -> dict[int, int]:
        """When each sentence begins that listeners have or will get, in ms; for any thread."""
        found = self._session.segments.copy()
        return {seg: place.pts // TICKS_PER_MS for seg, place in found.items()}

    @property
    def dur_ms(self) -> int:
        """Length of what listeners have or will get."""
        return self._session.dur_ms

    @property
    def epoch(self) -> int:
        """The epoch that is spoken in."""
        return self._session.epoch

    def has_begun(self, seg: int) -> bool:
        """Do listeners have something of this sentence, or of a later one?"""
        return not self._is_over and any(one >= seg for one in self.starts)

    def cut(self, from_seg: int, why: CutWhy = "retry") -> None:
        """Void what was published from this sentence on, and begin a new epoch."""
        self._live = LiveEncoder(self._encoder)
        self._recent.clear()
        self._unless_lost(lambda: self._session.cut(from_seg, why))

    def state(self, state: State, by: Actor) -> None:
        """Tell listeners that the speech pauses or goes on, and who wanted it."""
        if not self._is_over:
            self._unless_lost(lambda: self._session.state(state, by))

    def chunk(self, chunk: AudioChunk, text: str) -> None:
        """Publish a chunk that the engine has just given; `text` is its sentence."""
        if self._is_over:
            return
        self._recent.append((chunk, text))
        try:
            self._publish(chunk, text)
        except LogLost:
            self._rebuild()

    def kept(self, seg: int) -> None:
        """This sentence is among `earlier` from now on."""
        self._recent = [item for item in self._recent if item[0].seg > seg]

    def end(self, why: str) -> None:
        """Nothing more comes."""
        if not self._is_over:
            self._unless_lost(lambda: self._session.end(why))

    def file(self, *, url: str, size_bytes: int, vtt: str, chapters: str) -> None:
        """Say where the recording is."""
        self._unless_lost(lambda: self._session.file(url, "mp3", size_bytes, vtt, chapters))

    def _open(self) -> LiveSession:
        fence = self._held.claim.fence
        if fence > 1:  # the first owner finds no log
            try:
                return LiveSession.take_over(self._chunks, self._key, fence, meta=self._meta)
            except LogLost:
                pass
        try:
            # after the first claim listeners may have heard something that is lost now
            session = LiveSession.create(
                self._chunks, self._key, fence, meta=self._meta, rebuilt=fence > 1
            )
        except SessionExists:  # made by our own call whose answer was lost
            return LiveSession.take_over(self._chunks, self._key, fence, meta=self._meta)
        self._is_new = True
        return session

    def _publish(self, chunk: AudioChunk, text: str) -> None:
        emit_ms = int(time.time() * 1000)
        words = None
        if chunk.first:
            words = self._announce(chunk.seg, text, chunk.pause_ms, words_of(chunk), chunk.quality)
        self._frames(chunk, emit_ms, words)

    def _frames(
        self,
        chunk: AudioChunk,
        emit_ms: int | None = None,
        words: Callable[[], object] | None = None,
    ) -> None:
        # A chunk may be a whole sentence: its first frame leaves before the rest is encoded, and
        # before its words, which somebody must be hearing to follow.
        for piece in split_chunks(chunk, FRAME_SAMPLES):
            for frame in self._live.push(piece.pcm, first=piece.first, last=piece.last):
                self._patiently(
                    lambda frame=frame: self._session.audio(  # type: ignore[misc]
                        chunk.seg,
                        frame.dur_ticks,
                        frame.packets,
                        frame.pcm,
                        first=frame.first,
                        last=frame.last,
                        emit_ms=emit_ms,
                    )
                )
                self.first_audio_ms = self.first_audio_ms or self._held.now_ms()
                if words is not None:
                    self._patiently(words)
                    words = None

    def _announce(
        self, seg: int, text: str, pause_ms: int, words: list[Word], quality: Quality
    ) -> Callable[[], object] | None:
        """Announce a sentence; gives what publishes its words, to be done behind a frame."""
        at_ms = self._session.dur_ms + pause_ms
        last = max((one for one in self._session.segments if one < seg), default=None)
        chapter = self._chapter(seg, last)
        self._patiently(lambda: self._session.sentence(seg, text, chapter=chapter))
        if not words:
            return None
        timed = [(str(word), at_ms + start, at_ms + end) for word, start, end in words]
        return lambda: self._session.words(seg, timed, quality)

    def _rebuild(self) -> None:
        log.warning("the live log was lost, building it again", extra={"episode": self._key})
        while True:
            try:
                self._patiently(self._session.rebuild)
                self._replay()
                return
            except LogLost:
                self._held.check()

    def _replay(self) -> None:
        """Fill an empty log with everything that was spoken before."""
        self._live = LiveEncoder(self._encoder)
        for spoken in self._earlier():
            pcm = spoken.load()
            words = self._announce(
                spoken.seg, spoken.text, spoken.pause_ms, spoken.words, spoken.quality
            )
            self._frames(AudioChunk(spoken.seg, pcm, first=True, last=True), words=words)
        for chunk, text in self._recent:
            self._publish(chunk, text)

    def _unless_lost(self, call: Callable[[], object]) -> None:
        try:
            self._patiently(call)
        except LogLost:
            log.info("the live log is gone, listeners use the recording", extra={"key": self._key})

    def _patiently(self, call: Callable[[], T]) -> T:
        """Do it, again and again while the log's store is away and the episode is ours.

        Raises:
            LostLease: somebody newer owns the session, or our lease ran out while waiting.
        """
        while True:
            try:
                return call()
            except Fenced as error:
                raise LostLease(str(error)) from error
            except LogUnavailable as error:
                self._held.check()
                log.warning("the live log is away, waiting: %s", error)


def words_of(chunk: AudioChunk) -> list[Word]:
    """A chunk's word timings as plain JSON."""
    return [[word.text, word.start_ms, word.end_ms] for word in chunk.words]
