"""Emotion, four roads: the reference's own, another recording, eight weights, a description.

All end in one vector that is added to every speaker latent.
"""

from __future__ import annotations

from torch import Tensor


def merge(base: Tensor, emotion: Tensor, strength: float) -> Tensor:
    """Move the speaker's own emotion vector towards another by `strength` (0 none, 1 all)."""
    return base + strength * (emotion - base)
