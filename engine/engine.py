"""The engine: callers submit requests from any thread, one thread of its own works the model.

    with Engine(make_backend("kokoro")) as engine:
        for chunk in engine.speak(SpeechRequest(turns=(Turn("Hello."),))):
            play(chunk.pcm)

Who steps when is the scheduler's business; how a step works is the backend's. The thread sleeps
while nothing can be advanced.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType

from engine.base import AudioChunk, Backend, BackendInfo, Plan, SpeechRequest, Voice
from engine.errors import BadRequest, EngineFailed, EngineOverloaded, EngineStopped
from engine.scheduler import Scheduler
from engine.utterance import Utterance

log = logging.getLogger(__name__)

_RANGES = {"rate": (0.5, 2.0), "pitch": (0.75, 1.33), "range": (0.5, 1.5), "gain_db": (-12.0, 12.0)}


class Engine:
    """Speaks requests on one backend, many at a time.

    Args:
        backend: owned by the engine from now on; closed with it.
        ahead_s: sound a request may be ahead of its reader before it is parked.
        queue: requests that may wait for a slot; one more is refused.
        clock: seconds, monotonic.

    Attributes:
        steps: grows by one with every step of the backend and every finished `warm`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        ahead_s: float = 30.0,
        queue: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps = 0
        self._backend = backend
        self._info = backend.info()
        self._ahead_s = ahead_s
        self._clock = clock
        self._scheduler = Scheduler(self._info.slots, queue)
        self._lock = threading.Lock()  # guards _scheduler, _calls and _closing
        self._wake = threading.Event()
        self._calls: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # for callers, on any thread ---------------------------------------------------------------

    def info(self) -> BackendInfo:
        """Who speaks."""
        return self._info

    def voices(self) -> list[Voice]:
        """Every voice that can be asked for."""
        return self._backend.voices()

    def default_voice(self, lang: str) -> str:
        """Id of the voice that speaks `lang` when none is asked for, or empty."""
        return self._backend.default_voice(lang)

    @property
    def in_flight(self) -> int:
        """Requests the engine could advance right now.

        For a watchdog: while this is above 0, `steps` must grow. Requests parked because their
        reader is behind do not count, nor those that wait for a slot behind them.
        """
        with self._lock:
            return self._scheduler.owed

    def plan(self, request: SpeechRequest) -> Plan:
        """Cut a request into sentences without speaking it.

        Raises:
            BadRequest: it could never be spoken.
        """
        _check(request)
        return self._backend.plan(request)

    def submit(
        self, request: SpeechRequest, *, plan: Plan | None = None, timeout_s: float | None = None
    ) -> Utterance:
        """Queue a request and return at once; iterate over the result for its sound.

        Read it to its end or `cancel()` it: an unread utterance keeps its slot.

        Args:
            request: what to say.
            plan: what `plan` gave for this request, if the caller has it already.
            timeout_s: how long it may wait for a slot; after that its reader gets EngineOverloaded.

        Raises:
            BadRequest: it could never be spoken.
            EngineOverloaded: the queue is full.
            EngineStopped: the engine is closed.
        """
        utterance = Utterance(request, plan or self.plan(request), ahead_s=self._ahead_s)
        if request.first_seg >= len(utterance.plan.sentences):
            utterance.finish()  # nothing (left) to say
            return utterance
        utterance.bind(self._wake)
        give_up_at = None if timeout_s is None else self._clock() + timeout_s
        with self._lock:
            if self._closing:
                raise EngineStopped("the engine is shutting down")
            if self._scheduler.is_full:
                raise EngineOverloaded(
                    f"all {self._info.slots} slots are taken and the queue is full; try again later"
                )
            self._scheduler.add(utterance, give_up_at=give_up_at)
        self._wake.set()
        return utterance

    def speak(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        """Submit at the first `next` and iterate; leaving the iteration early cancels the request.

        Raises:
            EngineError: as `submit` does, at the first `next`.
        """
        utterance = self.submit(request)
        try:
            yield from utterance
        finally:
            utterance.cancel()

    def warm(self, langs: Sequence[str] = ()) -> None:
        """Load what the first request in these languages would wait for; blocks until done."""
        self._call(lambda: self._backend.warm(langs))

    def close(self, *, timeout_s: float = 10.0) -> None:
        """Stop after the current step; readers get EngineStopped. Safe to repeat.

        A step that hangs is left behind after `timeout_s` with a warning.
        """
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning("engine did not stop", extra={"timeout_s": timeout_s})

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, call: Callable[[], None]) -> None:
        done: Future[None] = Future()
        with self._lock:
            if self._closing:
                raise EngineStopped("the engine is shutting down")
            self._calls.append((call, done))
        self._wake.set()
        done.result()

    # the engine's thread ----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wake.clear()  # before looking: what comes later wakes the next round
                self._serve_calls()
                if not self._advance():
                    self._wake.wait(self._idle_s())
        finally:
            self._stop()

    def _serve_calls(self) -> None:
        while self._calls:
            call, done = self._calls.popleft()
            try:
                call()
            except Exception as error:  # handed to whoever called
                done.set_exception(error)
            else:
                done.set_result(None)
            self.steps += 1

    def _advance(self) -> bool:
        """One step for the most urgent; False when there is nobody to advance."""
        now = self._clock()
        with self._lock:
            left, late = self._scheduler.settle(now)
            batch = self._scheduler.next_batch(self._info.batch, now)
        for utterance in left:
            self._forget(utterance)
        for utterance in late:
            utterance.finish(EngineOverloaded("no slot became free in the time allowed; try again"))
        if not batch:
            return bool(left)
        try:
            self._backend.step(batch)
        except Exception as error:
            self._fail(batch, error)
        self.steps += 1
        with self._lock:
            self._scheduler.stepped(self._clock())
        return True

    def _fail(self, batch: Sequence[Utterance], error: Exception) -> None:
        log.exception("engine step failed", extra={"utterances": len(batch)})
        for utterance in batch:
            failure = EngineFailed(
                f"the voice engine failed while speaking ({type(error).__name__})"
            )
            failure.__cause__ = error
            utterance.finish(failure)

    def _forget(self, utterance: Utterance) -> None:
        try:
            self._backend.forget(utterance)
        except Exception:
            log.exception("engine could not release an utterance")

    def _idle_s(self) -> float | None:
        with self._lock:
            wake_at = self._scheduler.wake_at()
        return None if wake_at is None else max(0.0, wake_at - self._clock())

    def _stop(self) -> None:
        with self._lock:
            self._closing = True  # also when the loop itself broke
            everybody = self._scheduler.drain()
            calls = list(self._calls)
        for utterance in everybody:
            utterance.finish(EngineStopped("the engine is shutting down"))
            self._forget(utterance)
        for _, done in calls:
            done.set_exception(EngineStopped("the engine is shutting down"))
        self._backend.close()


def _check(request: SpeechRequest) -> None:
    """What holds for every backend: the ranges that engine.base promises."""
    if request.first_seg < 0:
        raise BadRequest("first_seg counts from 0", field="first_seg")
    if request.target_s is not None and not 0 < request.target_s < math.inf:
        raise BadRequest("target_s is a length in seconds, above 0", field="target_s")
    for turn in request.turns:
        if turn.pause_before_ms < 0:
            raise BadRequest("pause_before_ms cannot be negative", field="pause_before_ms")
        for name, (low, high) in _RANGES.items():
            value = getattr(turn.controls, name)
            if not low <= value <= high:  # false for NaN too
                raise BadRequest(f"{name} is {value}; it goes from {low} to {high}", field=name)
