"""Many streams on one model: who decodes, which window moves, what is ready. One thread calls
`tick`.

A tick admits what fits, draws a few codes for every reading that is not too far ahead of its
renderer, and makes one flow-matching step for the most urgent window and all that share its size.
Streams come in order of urgency (the engine puts the shortest runway first), so the earliest
deadline is served first, a new arrival waits one tick, and a cancelled stream is gone before the
next.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from engine.backends.indextts2.cfm import Window, bucket
from engine.backends.indextts2.config import SAMPLE_RATE_HZ
from engine.backends.indextts2.decode import Decoder, End, Reading
from engine.backends.indextts2.duration import CODES_PER_S, codes_for
from engine.backends.indextts2.graphs import Mode, StaticCalls
from engine.backends.indextts2.model import Model
from engine.backends.indextts2.render import SCHEDULE, Plan, Samples, SentenceRenderer
from engine.backends.indextts2.sampling import Sampling
from engine.backends.indextts2.voice import VoiceFeatures

log = logging.getLogger(__name__)

_NEAR_ENOUGH = 0.03  # of the wanted length: no further candidate is read
_AHEAD = 1.5  # chunks a live reading may be ahead of its renderer
_SAFETY = 1.5  # a chunk must be affordable this many times before the listener runs dry


@dataclass(frozen=True, slots=True)
class Task:
    """A sentence, ready to be spoken.

    Attributes:
        number: of the sentence in its request.
        ids: text pieces.
        voice, emotion: features and (D,) vector.
        plan: how it is rendered.
        sampling: how codes are drawn.
        candidates: readings to choose from when a length is wanted.
        beams: above 1 for beam search, whose codes are not final before its end: never live.
    """

    number: int
    ids: tuple[int, ...]
    voice: VoiceFeatures
    emotion: torch.Tensor
    plan: Plan
    sampling: Sampling = field(default_factory=Sampling)
    candidates: int = 1
    beams: int = 1


@dataclass(frozen=True, slots=True)
class Sound:
    """What a stream has made since it was last looked at.

    Attributes:
        number: of the sentence.
        wave: (samples,) at 22,050 Hz.
        first, last: of its sentence.
        codes: decoded so far, for a guess of the sentence's length; final on the last one.
        ended: what ended the reading, None before it has.
    """

    number: int
    wave: Samples
    first: bool
    last: bool
    codes: int
    ended: End | None = None


class Stream:
    """One request in flight.

    Args:
        next_task: gives the next sentence, None when there is no more; called when its decoding may
        begin.
        seed: of the request.
        live: somebody listens.
    """

    def __init__(self, next_task: Callable[[], Task | None], *, seed: int, live: bool) -> None:
        self.seed, self.live = seed, live
        self.out: deque[Sound] = deque()
        self._next_task = next_task
        self._speeches: deque[_Speech] = deque()
        self._has_more = True
        self._first_sound_at: float | None = None
        self._made = 0  # samples

    @property
    def is_done(self) -> bool:
        """Everything is in `out`."""
        return not self._has_more and not self._speeches

    @property
    def has_begun(self) -> bool:
        """A sentence was started."""
        return bool(self._speeches) or self._made > 0

    def runway_s(self, now: float) -> float:
        """Sound made and not yet heard by a listener who plays at once."""
        if self._first_sound_at is None:
            return 0.0
        return self._made / SAMPLE_RATE_HZ - (now - self._first_sound_at)

    def begin_next(self) -> None:
        """Start the next sentence when the last one is decoded; at most one is prepared ahead."""
        is_free = not self._speeches or (len(self._speeches) == 1 and self._speeches[0].is_decoded)
        if not (self._has_more and is_free):
            return
        task = self._next_task()
        if task is None:
            self._has_more = False
        else:
            self._speeches.append(_Speech(task))

    def decoding(self) -> _Speech | None:
        """The sentence whose codes are being drawn."""
        last = self._speeches[-1] if self._speeches else None
        return None if last is None or last.is_decoded else last

    def rendering(self) -> _Speech | None:
        """The sentence whose sound is due."""
        return self._speeches[0] if self._speeches else None

    def deliver(self, wave: Samples, now: float) -> None:
        """Put a piece of sound out; drop the sentence when it was its last."""
        speech = self._speeches[0]
        assert speech.renderer is not None
        last = speech.renderer.is_done
        self.out.append(
            Sound(
                speech.task.number,
                wave,
                first=speech.renderer.samples == len(wave),
                last=last,
                codes=len(speech.reading.codes) if speech.reading else 0,
                ended=speech.reading.ended if speech.reading else None,
            )
        )
        self._made += len(wave)
        if self._first_sound_at is None:
            self._first_sound_at = now
        if last:
            self._speeches.popleft()

    def readings(self) -> list[Reading]:
        """Everything that may hold a slot."""
        return [s.reading for s in self._speeches if s.reading is not None]


class _Speech:
    """One sentence: readings until one is taken, then windows until its sound is whole."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.reading: Reading | None = None
        self.renderer: SentenceRenderer | None = None
        self.window: Window | None = None
        self.is_decoded = False
        self._tried: list[Reading] = []

    def next_reading(self, model: Model, seed: int) -> Reading:
        task = self.task
        prefix = model.gpt.prefix(
            task.voice.latents.to(model.placement.gpt_dtype),
            task.emotion.to(model.placement.gpt_dtype),
            list(task.ids),
        )
        frames = task.plan.frames
        self.reading = Reading(
            prefix,
            len(task.ids),
            task.sampling,
            seed,
            place=(task.number, len(self._tried)),
            wanted_codes=None if frames is None else codes_for(frames),
            beams=task.beams,
        )
        return self.reading

    def judge(self) -> None:
        """After a reading ended: take it, or the best so far, or ask for another."""
        reading = self.reading
        assert reading is not None
        self._tried.append(reading)
        wanted = reading.wanted_codes
        if wanted is None:
            self.is_decoded = True
            return

        def miss(r: Reading) -> float:
            return abs(len(r.codes) - wanted) / wanted

        if miss(reading) <= _NEAR_ENOUGH or len(self._tried) >= self.task.candidates:
            self.reading = min(self._tried, key=miss)
            self.is_decoded = True
        else:
            self.reading = None


class Synthesiser:
    """The model, its slots, and the rules of a tick.

    Args:
        model: the release.
        slots: readings in flight.
        exact: never share a floating-point call between streams, so that a request's samples do not
            depend on its neighbours (the default on a CPU).
        adaptive: choose chunk sizes by the listener's runway instead of the fixed schedule (the
            default on a GPU); sound then depends on load in where its chunks join.
        graphs: fix the shapes of decoding, flow and vocoder calls: `cuda` (the default on a GPU)
            records them in `warm`, `eager` does not; None (the default on a CPU) computes exactly
            what is there.
        rows: windows in one call.
        prefill_positions: text positions read per tick.
        decode_steps: codes drawn per reading per tick.
        most_load: predicted share of the device above which new live streams wait.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int = 8,
        exact: bool | None = None,
        adaptive: bool | None = None,
        graphs: Mode | None = None,
        rows: int = 16,
        prefill_positions: int = 512,
        decode_steps: int = 4,
        most_load: float = 0.85,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        on_gpu = model.device.type == "cuda"
        self.model = model
        if graphs is None and on_gpu and not exact:
            graphs = "cuda"
        self.calls = None if graphs is None else StaticCalls(graphs)
        self.decoder = Decoder(model, slots=slots, exact=exact, calls=self.calls)
        self.adaptive = on_gpu if adaptive is None else adaptive
        self.load = Load(most_load)
        self._rows, self._slots = 1 if self.decoder.exact else rows, slots
        self._prefill, self._decode_steps = prefill_positions, decode_steps
        self._clock = clock

    def warm(self) -> None:
        """Record static calls of usual sizes, where that is asked for."""
        if self.calls is None:
            return
        with self._on_device():
            self.decoder.warm()
            self.model.solver.warm(self.calls, rows=min(self._rows, self._slots))
            self.model.vocoder.warm(self.calls, rows=min(self._rows, self._slots))
        log.info("static calls ready", extra={"recorded": self.calls.recorded})

    def tick(self, streams: Sequence[Stream]) -> None:
        """Advance streams, the most urgent first; the first one always moves."""
        with self._on_device():
            self._tick(streams)

    def cancel(self, stream: Stream) -> None:
        """Give back everything a stream holds; safe to repeat."""
        for reading in stream.readings():
            self.decoder.drop(reading)
        stream._speeches.clear()
        stream._has_more = False

    def _on_device(self) -> AbstractContextManager[object]:
        """Kernels and recordings go to the current GPU, which need not be the first."""
        on_gpu = self.model.device.type == "cuda"
        return torch.cuda.device(self.model.device) if on_gpu else nullcontext()

    def _tick(self, streams: Sequence[Stream]) -> None:
        began = self._clock()
        self._admit(streams)
        for _ in range(self._decode_steps):
            if not self._decode(streams):
                break
        self._open_windows(streams)
        group = self._most_urgent(streams)
        made = self._render(group) if group else 0
        if self.model.device.type == "cuda":  # else steps queue up that nobody can cancel or time
            torch.cuda.synchronize(self.model.device)
        busy_s = self._clock() - began
        self.load.spent(busy_s, made / SAMPLE_RATE_HZ)
        if group:
            self.load.stepped(busy_s, rows=len(group), steps=group[0][1].steps)

    def _admit(self, streams: Sequence[Stream]) -> None:
        budget = self._prefill
        begun = sum(s.live and s.has_begun for s in streams)
        for stream in streams:
            if stream.live and not stream.has_begun:
                if begun and not self.load.allows(begun + 1):
                    continue
                begun += 1
            stream.begin_next()
            speech = stream.decoding()
            if speech is None or speech.reading is not None:
                continue
            if not self.decoder.free_slots or budget <= 0:
                break
            reading = speech.next_reading(self.model, stream.seed)
            self.decoder.start(reading)
            budget -= len(reading.prefix)

    def _decode(self, streams: Sequence[Stream]) -> bool:
        """One code for everybody who should have one; False when that is nobody."""
        group = [(s, s.decoding()) for s in streams]
        going = [
            (stream, speech)
            for stream, speech in group
            if speech is not None
            and speech.reading is not None
            and not self._is_ahead(stream, speech)
        ]
        self.decoder.step([sp.reading for _, sp in going if sp.reading is not None])
        for _, speech in going:
            if speech.reading is not None and speech.reading.ended:
                speech.judge()
        return bool(going)

    def _is_ahead(self, stream: Stream, speech: _Speech) -> bool:
        """Far enough before its renderer: a cancel would waste more, and others need the turn."""
        assert speech.reading is not None
        if not stream.live:
            return False
        done, chunk = 0, speech.task.plan.schedule[0]
        if speech.renderer is not None:
            done, chunk = speech.renderer.done_codes, speech.renderer.chunk
        if self.adaptive:  # any chunk of the schedule may be wanted
            chunk = max(speech.task.plan.schedule)
        if speech.window is not None:
            done += chunk
        return len(speech.reading.codes) >= done + _AHEAD * chunk + speech.task.plan.lookahead

    def _open_windows(self, streams: Sequence[Stream]) -> None:
        for stream in streams:
            speech = stream.rendering()
            if speech is None or speech.window is not None or speech.reading is None:
                continue
            reading, task = speech.reading, speech.task
            if reading.wanted_codes is not None and not speech.is_decoded:
                continue  # another candidate may be taken
            if speech.renderer is None:
                speech.renderer = SentenceRenderer(
                    self.model, task.voice, task.plan, seed=stream.seed, number=task.number
                )
            chunk = self._chunk(stream, speech.renderer, len(streams)) if self.adaptive else None
            ended = reading.ended is not None
            if speech.renderer.is_ready(len(reading.codes), ended, chunk=chunk):
                speech.window = speech.renderer.window(
                    reading.codes, reading.latents, ended, chunk=chunk
                )

    def _chunk(self, stream: Stream, renderer: SentenceRenderer, sharing: int) -> int:
        """The largest chunk that is made before the listener runs dry, or the schedule's.

        Decoding is part of the cost; `sharing` streams take turns on the device.
        """
        runway_s = stream.runway_s(self._clock())
        cost = self.load.cost * sharing
        affordable = [
            codes
            for codes in renderer.schedule
            if codes > renderer.chunk and _SAFETY * cost * codes / CODES_PER_S < runway_s
        ]
        return max(affordable, default=renderer.chunk)

    def _most_urgent(self, streams: Sequence[Stream]) -> list[tuple[Stream, Window]]:
        """The most urgent window and those that share its call."""
        waiting = [
            (stream, speech.window)
            for stream in streams
            if (speech := stream.rendering()) is not None and speech.window is not None
        ]
        size = bucket(waiting[0][1].frames) if waiting else 0
        return [(s, w) for s, w in waiting if bucket(w.frames) == size][: self._rows]

    def _render(self, group: Sequence[tuple[Stream, Window]]) -> int:
        """One step of windows of one size; returns samples made."""
        with torch.inference_mode():
            pad = None if self.decoder.exact else bucket(group[0][1].frames)
            self.model.solver.advance([w for _, w in group], frames=pad, calls=self.calls)
        return self._deliver([stream for stream, window in group if window.is_done])

    @torch.inference_mode()
    def _deliver(self, streams: Sequence[Stream]) -> int:
        """Sound of finished windows, by one call of the vocoder; returns samples made."""
        due: list[tuple[Stream, SentenceRenderer, Window]] = []
        for stream in streams:
            speech = stream.rendering()
            assert speech is not None and speech.window is not None and speech.renderer is not None
            due.append((stream, speech.renderer, speech.window))
            speech.window = None
        if not due:
            return 0
        strips = [renderer.strip(window) for _, renderer, window in due]
        made = 0
        for (stream, renderer, window), wave in zip(
            due, self.model.vocoder.render(strips, self.calls), strict=True
        ):
            samples = renderer.sound(window, wave)
            stream.deliver(samples, self._clock())
            made += len(samples)
        return made


class Load:
    """What sound costs, and how many live streams that allows.

    Streams share calls, so what one costs falls while there are more of them. Admission therefore
    counts in steps of windows: how many a stream needs per second once its chunks have grown, and
    what one costs in the best filled call so far.

    Args:
        most: predicted share of the device that live streams may need.
    """

    _MEMORY = 0.9  # weight of the past

    def __init__(self, most: float) -> None:
        self._most = most
        self._busy_s = 0.0
        self._sound_s = 0.0
        self._row_s: dict[int, float] = {}  # a window's step, by windows in the call
        self._steps_per_s = 0.0

    @property
    def cost(self) -> float:
        """Seconds of device per second of recent sound; 0 before there is any."""
        return self._busy_s / self._sound_s if self._sound_s else 0.0

    def spent(self, busy_s: float, sound_s: float) -> None:
        """Note one tick."""
        self._busy_s += busy_s
        self._sound_s += sound_s
        if self._sound_s > 20.0:  # forget: the last half minute or so decides
            self._busy_s *= self._MEMORY
            self._sound_s *= self._MEMORY

    def stepped(self, busy_s: float, *, rows: int, steps: int) -> None:
        """Note a tick that moved so many windows, each of which takes so many steps."""
        row_s = busy_s / rows
        before = self._row_s.get(rows, row_s)
        self._row_s[rows] = self._MEMORY * before + (1 - self._MEMORY) * row_s
        self._steps_per_s = steps * CODES_PER_S / SCHEDULE[-1]

    def allows(self, live: int) -> bool:
        """Whether this many live streams fit under the limit; all do before anything is known."""
        row_s = min(self._row_s.values(), default=0.0)
        return live * self._steps_per_s * row_s <= self._most
