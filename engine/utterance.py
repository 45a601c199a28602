"""One request in flight: its plan, how far it is, and the bounded queue to its reader."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from engine.base import SAMPLE_RATE_HZ, AudioChunk, Plan, SpeechRequest
from engine.errors import EngineStopped


class Utterance:
    """One request in flight; the backend's thread writes, one reader iterates.

    The reader's queue is bounded by audio length: when more than `ahead_s` of unread kept or live
    sound waits, `is_parked` turns True and the engine stops stepping this utterance until the
    reader has caught up. Nothing ever blocks the engine's thread.

    Attributes:
        request, plan: what is spoken.
        next_seg: sentence the backend works on next.
        state: free for the backend (decoder state, pending windows).
        sound_samples: live sound emitted so far, read or not; pauses included.
    """

    def __init__(self, request: SpeechRequest, plan: Plan, *, ahead_s: float = 30.0) -> None:
        self.request = request
        self.plan = plan
        self.next_seg = request.first_seg
        self.state: object = None
        self.sound_samples = 0
        self._limit = int(ahead_s * SAMPLE_RATE_HZ)
        self._ready = threading.Condition()
        self._chunks: deque[AudioChunk] = deque()
        self._waiting = 0  # samples in _chunks
        self._finished = False
        self._cancelled = False
        self._error: Exception | None = None
        self._on_room: threading.Event | None = None
        self._on_cancel: Callable[[], None] | None = None

    # engine side -----------------------------------------------------------------------------

    def bind(self, room: threading.Event) -> None:
        """Set `room` whenever a parked utterance becomes steppable again, or is cancelled."""
        self._on_room = room

    def emit(self, chunk: AudioChunk) -> None:
        """Hand a chunk to the reader; after a cancel it goes nowhere."""
        with self._ready:
            if self._cancelled or self._finished:
                return
            self._chunks.append(chunk)
            self._waiting += len(chunk.pcm)
            if chunk.live:
                self.sound_samples += len(chunk.pcm)
            self._ready.notify()

    def finish(self, error: Exception | None = None) -> None:
        """No more chunks; with `error` the reader gets it after what was emitted before."""
        with self._ready:
            if not self._finished:
                self._finished = True
                self._error = error
                self._ready.notify()

    def when_cancelled(self, call: Callable[[], None] | None) -> None:
        """Call this at a cancel, on whichever thread that is; at once if it has come already."""
        with self._ready:
            self._on_cancel = call
            is_late = self._cancelled
        if is_late and call is not None:
            call()

    @property
    def is_done(self) -> bool:
        """Finished, failed or cancelled: must not be stepped again."""
        return self._finished or self._cancelled

    @property
    def is_cancelled(self) -> bool:
        """The reader went away."""
        return self._cancelled

    @property
    def is_parked(self) -> bool:
        """The reader is behind by more than the bound."""
        return self._waiting > self._limit

    # reader side -----------------------------------------------------------------------------

    def cancel(self) -> None:
        """Stop at the next step; the reader's iteration ends with EngineStopped. Safe to repeat."""
        on_cancel = None
        with self._ready:
            if not self._finished:
                self._cancelled = True
                self._chunks.clear()
                self._waiting = 0
                self._ready.notify()
                on_cancel = self._on_cancel
        if on_cancel is not None:
            on_cancel()
        if self._on_room is not None:
            self._on_room.set()

    def __iter__(self) -> Iterator[AudioChunk]:
        return self

    def __next__(self) -> AudioChunk:
        with self._ready:
            while not self._chunks:
                if self._cancelled:
                    raise EngineStopped("the stream was cancelled")
                if self._finished:
                    if self._error is not None:
                        raise self._error
                    raise StopIteration
                self._ready.wait()
            chunk = self._chunks.popleft()
            was_parked = self.is_parked
            self._waiting -= len(chunk.pcm)
            woke = was_parked and not self.is_parked
        if woke and self._on_room is not None:
            self._on_room.set()
        return chunk


def split_chunks(chunk: AudioChunk, samples: int) -> Iterator[AudioChunk]:
    """Cut a chunk into pieces of at most `samples`; marks and words stay where they belong.

    `pause_ms` stays whole on the first piece, because the words count from its end; a long pause
    may run on into the next pieces.
    """
    if len(chunk.pcm) <= samples:
        yield chunk
        return
    for at in range(0, len(chunk.pcm), samples):
        is_first, is_last = at == 0, at + samples >= len(chunk.pcm)
        yield replace(
            chunk,
            pcm=chunk.pcm[at : at + samples],
            first=chunk.first and is_first,
            last=chunk.last and is_last,
            words=chunk.words if is_first else (),
            pause_ms=chunk.pause_ms if is_first else 0,
            remarks=chunk.remarks if is_last else (),
        )
