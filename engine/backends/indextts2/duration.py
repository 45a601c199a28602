"""How long speech gets: natural, at a speed, or as long as wanted.

The dependable means, in order: stretch mel frames (exact, any request), lead the stop code
(before), take the best of several readings (offline). The weights' own duration embedding was never
released.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from engine.backends.indextts2.config import HOP, SAMPLE_RATE_HZ
from engine.backends.indextts2.s2mel import FRAMES_PER_CODE

CODES_PER_S = 50
SENSIBLE = (0.75, 1.35)  # stretch that does not hurt; outside, people are told
ACCEPTED = (0.6, 1.8)  # outside, `force` is needed
_SUPPRESSED, _INVITED = -5.0, 10.0
_IDEOGRAPH_MS, _PIECE_MS, _LEAST_MS = 210, 150, 400


def natural_ms(pieces: Sequence[str]) -> int:
    """Guess of the natural length of a text, from its pieces."""
    wide = sum(any(char >= "\u2e80" for char in piece) for piece in pieces)
    lone = sum(piece == "\u2581" for piece in pieces)  # set before each ideograph; says nothing
    return max(_LEAST_MS, wide * _IDEOGRAPH_MS + (len(pieces) - wide - lone) * _PIECE_MS)


def stretch(frames: int, codes: int) -> float:
    """How long a sentence of so many codes is in so many frames, against its natural length."""
    return frames / (FRAMES_PER_CODE * max(1, codes))


def is_sensible(ratio: float) -> bool:
    """Whether a length is near enough to the natural one."""
    low, high = SENSIBLE
    return low - 1e-6 <= ratio <= high + 1e-6


def frames_of(seconds: float) -> int:
    """Mel frames nearest to a length."""
    return max(1, round(seconds * SAMPLE_RATE_HZ / HOP))


def share_frames(natural: Sequence[int], seconds: float) -> list[int]:
    """Hand a length out to sentences in proportion to their natural ones; exact to half a frame.

    Args:
        natural: lengths, in any unit.
        seconds: of speech in all.

    Returns:
        Frames of each sentence, at least one.
    """
    total, weight = frames_of(seconds), sum(natural)
    edges = [0]
    done = 0
    for length in natural:
        done += length
        edges.append(max(edges[-1] + 1, round(total * done / weight)))
    return [b - a for a, b in pairwise(edges)]


def codes_for(frames: int) -> int:
    """Codes whose natural length is a number of frames."""
    return max(1, round(frames / FRAMES_PER_CODE))


def stop_bias(k: int, wanted: int) -> float:
    """What is added to the stop logit at the k-th code when `wanted` are asked for.

    Ends early readings later and late ones earlier; neutral between 0.8 and 1.2 of the way, so that
    the model picks its own end there.
    """
    progress = k / wanted
    if progress < 0.8:
        return _SUPPRESSED * min(1.0, (0.8 - progress) / 0.3)
    if progress <= 1.2:
        return 0.0
    return min(_INVITED, _INVITED * (progress - 1.2) / 0.8)


def is_forced_to_stop(k: int, wanted: int) -> bool:
    """Twice the wanted length: the reading is ended here."""
    return k >= 2 * wanted
