"""Random weights and inputs that depend only on (seed, key, shape).

Any implementation that names its tensors as the published files do gets the same values bit for
bit, so a parity fixture stores outputs only. Pure numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

# Entries of a checkpoint that are computed, not learned.
BUFFER_LEAVES = frozenset(
    {"filter", "freqs", "input_pos", "pe", "num_batches_tracked", "mask", "inv_freq"}
)
_WIDE = (  # tables whose rows are looked up: scaled by one half instead of by fan-in
    "embedding",
    "emb.weight",
    "speed_emb",
    "latents",
    "codebook",
    "mask_token",
    "pos_bias",
    "embedder.weight",
    "embedding_table",
)


def generator(seed: int, key: str) -> np.random.Generator:
    """PCG64 seeded with the first eight bytes of SHA-256("seed:key"), little-endian."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))


def weight(seed: int, key: str, shape: Sequence[int]) -> FloatArray:
    """Value of one checkpoint entry: a standard normal, scaled by the role its key tells.

    Raises:
        ValueError: the key names a buffer, which keeps its computed value.
    """
    leaf = key.rsplit(".", 1)[-1]
    if leaf in BUFFER_LEAVES:
        raise ValueError(f"{key} is a buffer")
    x = generator(seed, key).standard_normal(tuple(shape), dtype=np.float32)
    if leaf in ("running_var", "weight_g"):
        return (1.0 + 0.1 * np.abs(x)).astype(np.float32)
    is_snake = leaf in ("alpha", "beta") and len(shape) == 1 and "activation" in key
    if leaf == "running_mean" or is_snake:
        return (0.1 * x).astype(np.float32)
    if leaf in ("bias", "beta"):
        return (0.02 * x).astype(np.float32)
    if len(shape) <= 1:
        return (1.0 + 0.1 * x).astype(np.float32)
    if any(part in key for part in _WIDE):
        return (0.5 * x).astype(np.float32)
    stored_in_out = ".attn.c_" in key or ".mlp.c_" in key
    fan_in = shape[0] if stored_in_out else int(np.prod(shape[1:]))
    return np.asarray(x / np.sqrt(fan_in), dtype=np.float32)


def normal_input(seed: int, name: str, shape: Sequence[int], scale: float = 1.0) -> FloatArray:
    """A test input: `scale` times a standard normal keyed "input:name"."""
    x = generator(seed, f"input:{name}").standard_normal(tuple(shape), dtype=np.float32)
    return np.asarray(scale * x, dtype=np.float32)


def integer_input(
    seed: int, name: str, shape: Sequence[int], low: int, high: int
) -> npt.NDArray[np.int64]:
    """A test input of integers in [low, high)."""
    return generator(seed, f"input:{name}").integers(low, high, tuple(shape))
