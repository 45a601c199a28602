"""From logits to a code: repetition penalty, temperature, top-k, top-p, one draw per row.

Letters: B rows, V codes. Every row carries its own settings and its own random numbers, so what is
drawn for it never depends on the other rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How codes are drawn; the defaults are the release's.

    Attributes:
        temperature: above 0; 0 takes the likeliest code always.
        top_k: how many codes stay in the draw.
        top_p: their least total probability, 0..1.
        repetition_penalty: divides the score of codes that were used before; 1 switches it off.
    """

    temperature: float = 0.8
    top_k: int = 30
    top_p: float = 0.8
    repetition_penalty: float = 10.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 1 and 0 < self.top_p <= 1):
            raise ValueError(f"out of range: {self}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty {self.repetition_penalty} is not above 0")


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Make codes that were used before less likely.

    Args:
        logits: (B, V) float32.
        seen: (B, V) True for codes in the row's history.
        penalty: (B,).
    """
    by = penalty[:, None]
    return torch.where(seen, torch.where(logits < 0, logits * by, logits / by), logits)


def keep(
    scores: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    *,
    widest: int,
    at_least: int = 1,
) -> tuple[Tensor, Tensor]:
    """Cut a row's codes down to those that may be drawn.

    Args:
        scores: (B, V) float32, penalised.
        temperature, top_k, top_p: (B,).
        widest: the largest top_k (given, so that nobody waits for the device to tell).
        at_least: codes that stay whatever top-k and top-p say.

    Returns:
        (B, K) probabilities in falling order, 0 for codes that are out, and (B, K) their codes; K
        is the largest top_k.
    """
    widest = min(max(widest, at_least), scores.shape[-1])
    values, codes = (scores / temperature[:, None]).topk(widest, dim=-1)
    rank = torch.arange(widest, device=scores.device)
    is_in = rank < top_k[:, None].clamp_min(at_least)
    chances = values.masked_fill(~is_in, -torch.inf).softmax(-1)
    # probability of this code and all less likely ones: the tail whose total is <= 1 - top_p goes
    tail = chances.flip(-1).cumsum(-1).flip(-1)
    is_in &= (tail > 1 - top_p[:, None]) | (rank < at_least)
    chances = chances.masked_fill(~is_in, 0)
    return chances / chances.sum(-1, keepdim=True), codes


def draw(chances: Tensor, codes: Tensor, uniforms: Tensor) -> Tensor:
    """Invert the cumulated chances at `uniforms`.

    Args:
        chances, codes: (B, K) from `keep`.
        uniforms: (B,) in [0, 1).

    Returns:
        (B,) codes.
    """
    edges = chances.cumsum(-1)
    rank = (edges <= uniforms[:, None] * edges[:, -1:]).sum(-1, keepdim=True)
    last = (chances > 0).sum(-1, keepdim=True) - 1
    return codes.gather(-1, torch.minimum(rank, last))[:, 0]


def philox(seed: int, *counter: int) -> np.random.Generator:
    """Random numbers at a place of a request's own counter-based stream.

    Args:
        seed: the request's.
        counter: up to three numbers that say what for; the same ones give the same numbers, on any
            machine and in any order of asking.
    """
    words = [0, *counter, *([0] * (3 - len(counter)))]
    return np.random.Generator(
        np.random.Philox(key=seed & 0xFFFF_FFFF_FFFF_FFFF, counter=np.array(words, dtype=np.uint64))
    )
