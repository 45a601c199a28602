"""Beam search with sampling: better readings at several times the cost, for offline speech.

Beams are exchanged while they grow, so no code is final before the end: it cannot be streamed.

Letters: K beams, V codes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.backends.indextts2.gpt import KvCache, Positions, code_position
from engine.backends.indextts2.model import Model
from engine.backends.indextts2.sampling import Sampling, keep, penalise

_NEVER = -1e9  # score of a beam that does not exist yet


def silent_ids(model: Model) -> list[int]:
    """Ids that stand for nothing the codec has: only the start mark, in the published files."""
    cfg = model.config.gpt
    return sorted(set(range(model.config.codec.codebook, cfg.mel_tokens)) - {cfg.stop_mel})


class BeamSearch:
    """One search; finished beams compete by their total log-probability (length penalty 0).

    Args:
        model: the release.
        prefix: (n, D).
        sampling: how codes are drawn; temperature 0 takes the best ones always.
        random: of this reading.
        beams: K.
        most_codes: where the search is cut off.
        positions: of codes.
    """

    def __init__(
        self,
        model: Model,
        prefix: Tensor,
        sampling: Sampling,
        random: np.random.Generator,
        *,
        beams: int,
        most_codes: int,
        positions: Positions = "aligned",
    ) -> None:
        cfg = model.config.gpt
        self._model, self._cfg, self._sampling, self._random = model, cfg, sampling, random
        self._most, self._positions = most_codes, positions
        self._silent = silent_ids(model)
        self._cache = KvCache(
            cfg,
            slots=beams,
            positions=len(prefix) + most_codes + 1,
            device=model.device,
            dtype=model.placement.gpt_dtype,
        )
        logits, _ = model.gpt.prefill(prefix, self._cache, 0)
        self._logits = logits.repeat(beams, 1)  # (K, V)
        self._reorder([0] * beams)
        self._scores = [0.0] + [_NEVER] * (beams - 1)
        self._codes: list[list[int]] = [[] for _ in range(beams)]
        self._finished: list[tuple[float, list[int]]] = []
        self._seen = torch.zeros(beams, cfg.mel_tokens, dtype=torch.bool, device=model.device)
        self._seen[:, [1, cfg.start_mel]] = True
        self.is_done = False

    @torch.inference_mode()
    def step(self) -> None:
        """Grow all beams by one code."""
        beams = len(self._codes)
        candidates = self._candidates(2 * beams)
        chosen: list[tuple[float, int, int]] = []
        for rank, (score, beam, code) in enumerate(candidates):
            if code != self._cfg.stop_mel:
                chosen.append((score, beam, code))
            elif rank < beams:
                self._finish(score, self._codes[beam])
            if len(chosen) == beams:
                break
        while len(chosen) < beams:  # fewer codes than beams were left to draw from
            chosen.append((_NEVER, *(chosen[0][1:] if chosen else (0, 0))))
        self._scores = [score for score, _, _ in chosen]
        self._codes = [[*self._codes[beam], code] for _, beam, code in chosen]
        count = len(self._codes[0])
        worst = self._finished[-1][0] if len(self._finished) >= beams else -np.inf
        self.is_done = worst >= candidates[0][0] or count >= self._most
        if not self.is_done:
            self._advance([beam for _, beam, _ in chosen], count)

    def best(self) -> tuple[list[int], bool]:
        """Codes of the best beam, and whether it came to an end of its own."""
        if len(self._finished) < len(self._codes):
            growing = [(s, c, False) for s, c in zip(self._scores, self._codes, strict=True)]
        else:
            growing = []
        every = [(s, c, True) for s, c in self._finished] + growing
        _, codes, is_stopped = max(every, key=lambda entry: entry[0])
        return codes, is_stopped

    def _candidates(self, count: int) -> list[tuple[float, int, int]]:
        """(score, beam, code) of the codes drawn, best first."""
        beams, setting = len(self._codes), self._sampling
        logits = self._logits.clone()
        logits[:, self._cfg.stop_mel] += self._model.config.stop_bias

        def every(value: float) -> Tensor:
            return torch.full((beams,), value, device=logits.device)

        scores = penalise(logits.log_softmax(-1), self._seen, every(setting.repetition_penalty))
        scores[:, self._silent] = -torch.inf
        if not self._codes[0]:
            scores[:, self._cfg.stop_mel] = -torch.inf
        if setting.temperature > 0:
            chances, codes = keep(
                scores,
                every(setting.temperature),
                every(setting.top_k).long(),
                every(setting.top_p),
                widest=setting.top_k,
                at_least=2,
            )
            scores = scores.gather(-1, codes) / setting.temperature
            scores = scores.masked_fill(chances == 0, -torch.inf)
        else:
            scores, codes = scores.topk(min(count, scores.shape[-1]), -1)
        total = scores + torch.tensor(self._scores, device=scores.device)[:, None]
        ranked = total.flatten()
        if setting.temperature > 0:  # the largest of these are a draw without replacement
            noise = self._random.gumbel(size=len(ranked))
            ranked = ranked + torch.from_numpy(noise).to(ranked)
        picks = ranked.topk(min(count, int(total.isfinite().sum()))).indices
        picks = picks[total.flatten()[picks].argsort(descending=True, stable=True)]
        width = codes.shape[-1]
        return [
            (float(total.flatten()[i]), int(i) // width, int(codes.flatten()[i]))
            for i in picks.tolist()
        ]

    def _finish(self, score: float, codes: list[int]) -> None:
        self._finished.append((score, codes))
        self._finished.sort(key=lambda entry: -entry[0])
        del self._finished[len(self._codes) :]

    def _advance(self, sources: list[int], count: int) -> None:
        self._reorder(sources)
        self._seen = self._seen[sources]
        last = [codes[-1] for codes in self._codes]
        self._seen[range(len(last)), last] = True
        device = self._model.device
        self._logits, _ = self._model.gpt.step(
            torch.tensor(last, device=device),
            torch.full((len(last),), code_position(count, self._positions), device=device),
            self._cache,
            list(range(len(last))),
        )

    def _reorder(self, sources: list[int]) -> None:
        length = self._cache.lengths[sources[0]]
        data = self._cache.data[..., :length, :]
        data.copy_(data[:, :, sources])
        self._cache.lengths = [length] * len(sources)
