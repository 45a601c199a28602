"""Codes and latents of many sequences at once: slots, one batched step, guards.

A sequence never sees its neighbours: it has its own cache slot, settings, history and random
numbers. In `exact` mode each row is also computed in a call of its own, so that its floating-point
results are the same bits whatever runs beside it; on a GPU rows share calls, and a whole step,
drawing included, is one static call of which only the codes drawn come back to the host.

Letters: B rows, V codes, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from engine.backends.indextts2 import duration
from engine.backends.indextts2.beam import BeamSearch, silent_ids
from engine.backends.indextts2.config import GptConfig
from engine.backends.indextts2.gpt import KvCache, Positions, code_position
from engine.backends.indextts2.graphs import Outputs, StaticCall, StaticCalls, at_least
from engine.backends.indextts2.model import Model
from engine.backends.indextts2.sampling import Sampling, draw, keep, penalise, philox

End = Literal["stop", "limit", "loop", "target"]

LEAST_CODES = 5  # a tenth of a second: a reading never ends before it began
MOST_CODES = 1500  # per sequence, whatever the model has positions for
CODES_PER_PIECE = 20  # 4 s of sound per 10 pieces, above which a reading has run away
SPARE_CODES = 100
_LOOP_CODES, _LOOP_PERIOD = 50, 10  # a second of codes that repeat every 0.2 s or faster
_SETTINGS = ("repetition_penalty", "temperature", "top_k", "top_p")
_CODES, _CANDIDATES = 1, 1 << 8  # places in a request's random stream (see philox)
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)  # buckets of static calls
VISIBLE = (256, 512, 1024, 2304)  # cached positions they look at; the last one holds any reading
_WIDEST = (32, 64, 128, 512, 2048, 8192)  # top-k


@dataclass(eq=False)
class Reading:
    """One attempt at speaking a text: what goes in, and what has come out so far.

    Attributes:
        prefix: (n, D) embeddings in front of the codes.
        pieces: of the text, for the run-away limit.
        sampling: how codes are drawn.
        seed: of the request.
        place: sentence and candidate; with the seed it decides every random number.
        wanted_codes: length to be led to, or None.
        beams: above 1, `codes` and `latents` stay empty until the end; `wanted_codes` only chooses
            among readings then.
        codes, latents: as many of each, final as soon as they are here.
        ended: why it ended, None while it goes on.
    """

    prefix: Tensor
    pieces: int
    sampling: Sampling
    seed: int
    place: tuple[int, int] = (0, 0)
    wanted_codes: int | None = None
    beams: int = 1
    codes: list[int] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    ended: End | None = None
    _slot: int = -1
    _search: BeamSearch | None = None


def _longest(cfg: GptConfig) -> int:
    """Positions of the longest sequence."""
    return cfg.latents + 5 + cfg.max_text + min(MOST_CODES, cfg.max_mel)


def slot_bytes(model: Model) -> int:
    """Memory of one slot's keys and values."""
    cfg = model.config.gpt
    return 2 * cfg.layers * cfg.width * _longest(cfg) * model.placement.gpt_dtype.itemsize


class _Slots:
    """What the device keeps of every slot between two steps.

    Attributes:
        logits: (slots, V) float32, of the next code.
        latents: (slots, D) that belong to it.
        seen: (slots, V) codes drawn so far.
        uniforms: (slots, codes) every random number a reading may need.
        settings: (4, slots) in the order of _SETTINGS.
    """

    def __init__(self, model: Model, count: int, most_codes: int) -> None:
        cfg, device = model.config.gpt, model.device
        self.logits = torch.zeros(count, cfg.mel_tokens, device=device)
        self.latents = torch.zeros(count, cfg.width, device=device, dtype=model.placement.gpt_dtype)
        self.seen = torch.zeros(count, cfg.mel_tokens, dtype=torch.bool, device=device)
        self.uniforms = torch.zeros(count, most_codes + 1, device=device)
        self.settings = torch.ones(4, count, device=device)
        self._stop, self._start = cfg.stop_mel, cfg.start_mel
        self._no_code = torch.zeros(cfg.mel_tokens, dtype=torch.bool, device=device)
        self._no_code[silent_ids(model)] = True

    def begin(self, slot: int, sampling: Sampling, random: np.random.Generator) -> None:
        """Forget an earlier reading."""
        seen = self.seen[slot]
        seen.zero_()
        # ids that stand for the prefix in the history the model was tuned with
        seen[[1, self._start]] = True
        uniforms = torch.from_numpy(random.random(self.uniforms.shape[1]))
        self.uniforms[slot] = uniforms.to(self.uniforms)
        settings = [float(getattr(sampling, name)) for name in _SETTINGS]
        self.settings[:, slot] = torch.tensor(settings, device=self.settings.device)

    def draw(self, rows: Tensor | slice, counts: Tensor, lead: Tensor, *, widest: int) -> Tensor:
        """One code for each row; asks nothing of the host.

        Args:
            rows: slots.
            counts: (B,) codes drawn so far.
            lead: (B,) added to the stop logit.
            widest: largest top_k among them, or more.

        Returns:
            (B,) codes.
        """
        logits = self.logits[rows].masked_fill(self._no_code, -torch.inf)
        logits[:, self._stop] += lead
        penalty, heat, top_k, top_p = self.settings[:, rows]
        scores = penalise(logits, self.seen[rows], penalty)
        chances, codes = keep(scores, heat.clamp_min(1e-3), top_k.long(), top_p, widest=widest)
        uniforms = self.uniforms[rows].gather(1, counts[:, None])[:, 0]
        return draw(chances, codes, torch.where(heat > 0, uniforms, 0.0))


class Decoder:
    """The slots of one model.

    Args:
        model: the release.
        slots: readings in flight.
        exact: one row per call; the default on a CPU.
        positions: `upstream` is for parity; its latents come from a second pass at the end, so
            nothing can be heard before.
        calls: static calls to make steps with; None computes exactly the rows that are asked for.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int,
        exact: bool | None = None,
        positions: Positions = "aligned",
        calls: StaticCalls | None = None,
    ) -> None:
        cfg = model.config.gpt
        self._model, self._gpt, self._cfg = model, model.gpt, cfg
        self.exact = (model.device.type == "cpu" and calls is None) if exact is None else exact
        self._positions = positions
        self._calls = calls
        self.most_codes = min(MOST_CODES, cfg.max_mel)
        self.cache = KvCache(
            cfg,
            slots=slots,
            positions=_longest(cfg),
            device=model.device,
            dtype=model.placement.gpt_dtype,
        )
        self._slots = _Slots(model, slots, self.most_codes)
        self._free = list(range(slots))  # a heap: low slots first keeps static calls small

    @property
    def free_slots(self) -> int:
        """Readings that could start now."""
        return len(self._free)

    @torch.inference_mode()
    def start(self, reading: Reading) -> None:
        """Take a slot and read the prefix; the caller has looked at `free_slots`."""
        reading._slot = heappop(self._free)
        reading.prefix = reading.prefix.to(self._model.device, self._model.placement.gpt_dtype)
        place = reading.place[0] * _CANDIDATES + reading.place[1]
        random = philox(reading.seed, _CODES, place)
        if reading.beams > 1:
            reading._search = BeamSearch(
                self._model,
                reading.prefix,
                reading.sampling,
                random,
                beams=reading.beams,
                most_codes=self._most(reading),
                positions=self._positions,
            )
            return
        logits, latent = self._gpt.prefill(reading.prefix, self.cache, reading._slot)
        self._slots.logits[reading._slot], self._slots.latents[reading._slot] = logits, latent
        self._slots.begin(reading._slot, reading.sampling, random)

    def drop(self, reading: Reading) -> None:
        """Give the slot back; safe to repeat, and for readings that never started."""
        if reading._slot >= 0:
            heappush(self._free, reading._slot)
            reading._slot = -1
            reading._search = None

    @torch.inference_mode()
    def step(self, readings: Sequence[Reading]) -> None:
        """Draw one code for each reading that goes on, and compute what the next draw needs."""
        for reading in readings:
            if reading.ended is None and reading._search is not None:
                self._search(reading, reading._search)
        going = [r for r in readings if r.ended is None and r.beams == 1]
        if going and self._calls is not None:
            self._static_step(going, self._calls)
            return
        for group in [[r] for r in going] if self.exact else [going] if going else []:
            self._step(group)

    @torch.inference_mode()
    def warm(self) -> None:
        """Record the static calls of usual size, where that is asked for."""
        if self._calls is None:
            return
        slots, longest = len(self.cache.lengths), self.cache.positions
        # large ones first: the others then fit into memory that is there
        for rows in sorted({min(r, slots) for r in ROWS if r < 2 * slots}, reverse=True):
            for visible in sorted({min(v, longest) for v in VISIBLE}, reverse=True):
                bucket = ("decode", rows, visible, min(_WIDEST[0], self._cfg.mel_tokens))
                self._calls.warm(bucket, partial(self._static_call, *bucket[1:]))

    def _search(self, reading: Reading, search: BeamSearch) -> None:
        search.step()
        if search.is_done:
            reading.codes, is_stopped = search.best()
            codes = torch.tensor(reading.codes, dtype=torch.long, device=self._model.device)
            reading.latents = list(self._gpt.latents(reading.prefix, codes))
            reading.ended = "stop" if is_stopped else "limit"
            self.drop(reading)

    def _most(self, reading: Reading) -> int:
        """Codes above which a reading has run away."""
        return min(self.most_codes, SPARE_CODES + CODES_PER_PIECE * reading.pieces)

    def _step(self, group: list[Reading]) -> None:
        """Rows as they are: the drawn codes come back before the next logits are computed."""
        device, slots = self._model.device, [r._slot for r in group]
        place = torch.tensor([slots, [len(r.codes) for r in group]], device=device)
        lead = torch.tensor([self._stop_lead(r) for r in group], device=device)
        widest = max(r.sampling.top_k for r in group)
        codes = self._slots.draw(place[0], place[1], lead, widest=widest)
        latents = self._slots.latents[place[0]]
        going = self._take(group, codes.tolist(), latents)
        if not going:
            return
        for reading in going:
            self._slots.seen[reading._slot, reading.codes[-1]] = True
        slots = [r._slot for r in going]
        logits, latents = self._gpt.step(
            torch.tensor([r.codes[-1] for r in going], device=device),
            torch.tensor(
                [code_position(len(r.codes), self._positions) for r in going], device=device
            ),
            self.cache,
            slots,
        )
        self._slots.logits[slots], self._slots.latents[slots] = logits, latents

    def _static_step(self, group: list[Reading], calls: StaticCalls) -> None:
        """The same by one static call for the lowest slots; rows that are not in `group` rest."""
        limit, lengths = len(self.cache.lengths), self.cache.lengths
        rows = min(limit, at_least(max(r._slot for r in group) + 1, ROWS))
        longest = max(lengths[r._slot] for r in group) + 1
        visible = min(self.cache.positions, at_least(longest, VISIBLE))
        widest = min(at_least(max(r.sampling.top_k for r in group), _WIDEST), self._cfg.mel_tokens)
        bucket = ("decode", rows, visible, widest)
        call = calls.get(bucket, partial(self._static_call, rows, visible, widest))
        state = torch.zeros(3, rows)  # counts, starts, active; in one piece to the device
        lead = torch.zeros(1, rows)
        state[1] = torch.tensor(lengths[:rows])
        for reading in group:
            state[0, reading._slot] = len(reading.codes)
            state[2, reading._slot] = 1
            lead[0, reading._slot] = self._stop_lead(reading)
        call.buffers["state"].copy_(torch.cat([state, lead]))
        codes, latents = call()
        latents = latents.clone()
        drawn = codes.tolist()
        slots = [r._slot for r in group]
        for slot in slots:
            lengths[slot] += 1
        self._take(group, [drawn[s] for s in slots], [latents[s] for s in slots])

    def _static_call(self, rows: int, visible: int, widest: int) -> StaticCall:
        slots, gpt, cache, stop = self._slots, self._gpt, self.cache, self._cfg.stop_mel
        first = slice(0, rows)
        skip = code_position(1, self._positions)
        farthest = gpt.mel_pos_embedding.emb.num_embeddings - 1

        def region(state: Tensor) -> Outputs:
            counts, starts, active = state[:3].long()
            is_active = active > 0
            codes = slots.draw(first, counts, state[3], widest=widest)
            latents = slots.latents[first].clone()
            seen, at = slots.seen[first], codes[:, None]
            seen.scatter_(1, at, seen.gather(1, at) | (is_active & (codes != stop))[:, None])
            logits, after = gpt.step_first_slots(
                codes, (counts + skip).clamp(max=farthest), cache, starts, visible=visible
            )
            keep = is_active[:, None]
            slots.logits[first] = torch.where(keep, logits, slots.logits[first])
            slots.latents[first] = torch.where(keep, after, slots.latents[first])
            return codes, latents

        state = torch.zeros(4, rows, device=self._model.device)
        state[1] = torch.tensor(cache.lengths[:rows])
        return StaticCall({"state": state}, region)

    def _take(
        self, group: list[Reading], codes: Sequence[int], latents: Sequence[Tensor] | Tensor
    ) -> list[Reading]:
        """Give each reading its code and latent; those that go on."""
        going = []
        for reading, code, latent in zip(group, codes, latents, strict=True):
            if code == self._cfg.stop_mel:
                self._end(reading, "stop")
                continue
            reading.codes.append(code)
            reading.latents.append(latent)
            end = self._guard(reading)
            if end is None:
                going.append(reading)
            else:
                self._end(reading, end)
        return going

    def _stop_lead(self, reading: Reading) -> float:
        if len(reading.codes) < LEAST_CODES:
            return -torch.inf
        lead = self._model.config.stop_bias
        if reading.wanted_codes is not None:
            lead += duration.stop_bias(len(reading.codes) + 1, reading.wanted_codes)
        return lead

    def _guard(self, reading: Reading) -> End | None:
        count = len(reading.codes)
        wanted = reading.wanted_codes
        if wanted is not None and duration.is_forced_to_stop(count, wanted):
            return "target"
        if count >= self._most(reading):
            return "limit"
        return "loop" if _is_looping(reading.codes) else None

    def _end(self, reading: Reading, end: End) -> None:
        reading.ended = end
        if self._positions == "upstream" and reading.codes:
            codes = torch.tensor(reading.codes, device=self._model.device)
            reading.latents = list(self._gpt.latents(reading.prefix, codes))
        self.drop(reading)


def _is_looping(codes: Sequence[int]) -> bool:
    """Whether the last second of codes repeats with a short period."""
    if len(codes) < _LOOP_CODES:
        return False
    recent = codes[-_LOOP_CODES:]
    return any(recent[p:] == recent[:-p] for p in range(1, _LOOP_PERIOD + 1))
