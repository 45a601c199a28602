"""Codes and latents of many sequences at once: slots, one batched step, guards.

A sequence never sees its neighbours: it has its own cache slot, settings, history and random
numbers. In `exact` mode each row is also computed in a call of its own, so that its floating-point
results are the same bits whatever runs beside it; on a GPU rows share calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from engine.backends.indextts2 import duration
from engine.backends.indextts2.beam import BeamSearch, silent_ids
from engine.backends.indextts2.gpt import KvCache, Positions, code_position
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
    _logits: Tensor | None = None
    _latent: Tensor | None = None
    _search: BeamSearch | None = None

    @property
    def is_truncated(self) -> bool:
        """A guard ended it, not the model."""
        return self.ended in ("limit", "loop")


class Decoder:
    """The slots of one model.

    Args:
        model: the release.
        slots: readings in flight.
        exact: one row per call; the default on a CPU.
        positions: `upstream` is for parity; its latents come from a second pass at the end, so
            nothing can be heard before.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int,
        exact: bool | None = None,
        positions: Positions = "aligned",
    ) -> None:
        cfg = model.config.gpt
        self._model, self._gpt, self._cfg = model, model.gpt, cfg
        self.exact = model.device.type == "cpu" if exact is None else exact
        self._positions = positions
        self.most_codes = min(MOST_CODES, cfg.max_mel)
        longest = cfg.latents + 5 + cfg.max_text + self.most_codes
        self.cache = KvCache(
            cfg,
            slots=slots,
            positions=longest,
            device=model.device,
            dtype=model.placement.gpt_dtype,
        )
        self._no_codes = silent_ids(model)
        self._free = list(range(slots))[::-1]
        device = model.device
        self._seen = torch.zeros(slots, cfg.mel_tokens, dtype=torch.bool, device=device)
        self._uniforms = torch.zeros(slots, self.most_codes + 1, device=device)
        self._settings = torch.ones(4, slots, device=device)  # in the order of _SETTINGS

    @property
    def free_slots(self) -> int:
        """Readings that could start now."""
        return len(self._free)

    @torch.inference_mode()
    def start(self, reading: Reading) -> None:
        """Take a slot and read the prefix; the caller has looked at `free_slots`."""
        reading._slot = self._free.pop()
        reading.prefix = reading.prefix.to(self._model.device, self._model.placement.gpt_dtype)
        place = reading.place[0] * _CANDIDATES + reading.place[1]
        stream = philox(reading.seed, _CODES, place)
        if reading.beams > 1:
            reading._search = BeamSearch(
                self._model,
                reading.prefix,
                reading.sampling,
                stream,
                beams=reading.beams,
                most_codes=self._most(reading),
                positions=self._positions,
            )
            return
        logits, latent = self._gpt.prefill(reading.prefix, self.cache, reading._slot)
        reading._logits, reading._latent = logits, latent
        seen = self._seen[reading._slot]
        seen.zero_()
        # ids that stand for the prefix in the history the model was tuned with
        seen[[1, self._cfg.start_mel]] = True
        uniforms = torch.from_numpy(stream.random(self.most_codes + 1))
        self._uniforms[reading._slot] = uniforms.to(self._uniforms)
        settings = [float(getattr(reading.sampling, name)) for name in _SETTINGS]
        self._settings[:, reading._slot] = torch.tensor(settings, device=self._model.device)

    def drop(self, reading: Reading) -> None:
        """Give the slot back; safe to repeat, and for readings that never started."""
        if reading._slot >= 0:
            self._free.append(reading._slot)
            reading._slot = -1
            reading._logits = reading._latent = None
            reading._search = None

    @torch.inference_mode()
    def step(self, readings: Sequence[Reading]) -> None:
        """Draw one code for each reading that goes on, and compute what the next draw needs."""
        for reading in readings:
            if reading.ended is None and reading._search is not None:
                self._search(reading, reading._search)
        going = [r for r in readings if r.ended is None and r.beams == 1]
        for group in [[r] for r in going] if self.exact else [going] if going else []:
            self._step(group)

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
        codes = self._draw(group)
        going: list[Reading] = []
        for reading, code in zip(group, codes.tolist(), strict=True):
            if code == self._cfg.stop_mel:
                self._end(reading, "stop")
                continue
            assert reading._latent is not None
            reading.codes.append(code)
            reading.latents.append(reading._latent)
            self._seen[reading._slot, code] = True
            end = self._guard(reading)
            if end is None:
                going.append(reading)
            else:
                self._end(reading, end)
        if not going:
            return
        device = self._model.device
        logits, latents = self._gpt.step(
            torch.tensor([r.codes[-1] for r in going], device=device),
            torch.tensor(
                [code_position(len(r.codes), self._positions) for r in going], device=device
            ),
            self.cache,
            [r._slot for r in going],
        )
        for i, reading in enumerate(going):
            reading._logits, reading._latent = logits[i], latents[i]

    def _draw(self, group: list[Reading]) -> Tensor:
        device = self._model.device
        logits = torch.stack([r._logits for r in group if r._logits is not None])
        logits[:, self._no_codes] = -torch.inf
        lead = [self._stop_lead(r) for r in group]
        logits[:, self._cfg.stop_mel] += torch.tensor(lead, device=device)
        place = torch.tensor([[r._slot, len(r.codes)] for r in group], device=device)
        slots, counts = place.unbind(1)
        penalty, heat, top_k, top_p = self._settings[:, slots]
        scores = penalise(logits, self._seen[slots], penalty)
        widest = max(r.sampling.top_k for r in group)
        chances, codes = keep(scores, heat.clamp_min(1e-3), top_k.long(), top_p, widest=widest)
        return draw(chances, codes, torch.where(heat > 0, self._uniforms[slots, counts], 0.0))

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
