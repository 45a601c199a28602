"""Codes and latents -> frames of mel condition: projection and length regulator.

Letters: B rows, N codes (50 per second), F frames (86.13 per second), C condition width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.backends.indextts2.config import SEMANTIC_DIM, S2MelConfig

FRAMES_PER_CODE = 1.72


def frame_count(codes: int, ratio: float = 1.0) -> int:
    """Mel frames of a number of codes, `ratio` times as long as natural."""
    if ratio == 1.0:
        return 172 * codes // 100
    return math.floor(FRAMES_PER_CODE * codes * ratio + 1e-9)


def source_codes(first: int, last: int, codes: int, ratio: float = 1.0) -> Tensor:
    """Index of the code behind each of frames [first, last), by a mapping that never changes.

    The reference's own mapping depends on the final number of codes, which a stream does not know;
    this one differs from it by at most one code.
    """
    frames = torch.arange(first, last)
    if ratio == 1.0:
        index = 100 * frames // 172
    else:
        index = (frames.double() / (FRAMES_PER_CODE * ratio)).floor().long()
    return index.clamp(max=codes - 1)


class LengthRegulator(nn.Module):
    """Stretch semantic vectors to mel frames and smooth them.

    The group norms take their statistics over all frames, so a call on a prefix differs slightly
    from the same frames of a call on the whole.
    """

    def __init__(self, cfg: S2MelConfig) -> None:
        super().__init__()
        self.content_in_proj = nn.Linear(SEMANTIC_DIM, cfg.content)
        layers: list[nn.Module] = []
        for _ in range(4):
            layers += [nn.Conv1d(cfg.content, cfg.content, 3, padding=1)]
            layers += [nn.GroupNorm(1, cfg.content), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(cfg.content, cfg.content, 1))

    def forward(self, semantic: Tensor, frames: int) -> Tensor:
        """(B, N, 1024) -> (B, F, C), by the reference's mapping (nearest neighbour)."""
        content = self.content_in_proj(semantic).transpose(1, 2)  # (B, C, N)
        return self._smooth(F.interpolate(content, size=frames, mode="nearest"))

    def mapped(self, semantic: Tensor, index: Tensor) -> Tensor:
        """(B, N, 1024) and (F,) source indices -> (B, F, C)."""
        content = self.content_in_proj(semantic)[:, index.to(semantic.device)]
        return self._smooth(content.transpose(1, 2))

    def _smooth(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x).transpose(1, 2)
        return out


class LatentProjection(nn.Sequential):
    """GPT latents (..., D) -> (..., 1024); three linear layers without activations between them."""

    def __init__(self, cfg: S2MelConfig) -> None:
        super().__init__(
            nn.Linear(cfg.latent_dim, 256), nn.Linear(256, 128), nn.Linear(128, SEMANTIC_DIM)
        )
