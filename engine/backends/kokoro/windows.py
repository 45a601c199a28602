"""Decode a sentence in windows, for early sound.

F0, energy and source are those of the whole sentence, so pitch and phase run on across windows. The
decoder's norms see only the window, though, so its level differs from the whole decode's: each
window is levelled to its predecessor on the stretch both decoded, and joined by a short crossfade
where the sentence is quiet. Good enough to listen to once; recordings are decoded whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from engine.backends.kokoro.model import FRAME_SAMPLES
from engine.backends.kokoro.stages import Score, Stages

Floats = npt.NDArray[np.float32]

FIRST_FRAMES = 32  # 0.8 s of sound from about 0.2 s of work
NEXT_FRAMES = 96
CONTEXT_FRAMES = 16  # decoded on each side and thrown away
SEARCH_FRAMES = 10  # how far a boundary may move to a quieter place
FADE_SAMPLES = 240  # 10 ms
GAIN_RANGE = (0.6, 1.6)
SILENT = 1e-3


def boundaries(score: Score) -> list[int]:
    """Frames at which windows begin and end, 0 and F included."""
    loudness = score.energy[0, 0].reshape(-1, 2).mean(axis=1)
    edges = [0]
    size = FIRST_FRAMES
    while score.length - edges[-1] >= size + NEXT_FRAMES // 3:
        low = max(edges[-1] + size // 2, edges[-1] + size - SEARCH_FRAMES)
        high = min(score.length - 1, edges[-1] + size + SEARCH_FRAMES)
        edges.append(low + int(np.argmin(loudness[low:high])))
        size = NEXT_FRAMES
    return [*edges, score.length]


def decode(stages: Stages, score: Score) -> Iterator[Floats]:
    """Yield the sentence window by window: 600 * F samples in all."""
    edges = boundaries(score)
    overlap = CONTEXT_FRAMES * FRAME_SAMPLES
    half = FADE_SAMPLES // 2
    ramp = np.linspace(0.0, 1.0, FADE_SAMPLES, dtype=np.float32)
    shared: Floats | None = None  # what the window before decoded of the next one's surroundings
    held: Floats | None = None  # its last 10 ms, waiting for the crossfade
    for start, end in itertools.pairwise(edges):
        is_last = end == score.length
        low, high = max(0, start - CONTEXT_FRAMES), min(score.length, end + CONTEXT_FRAMES)
        audio = stages.voice(score, low, high)
        if shared is not None:
            audio = _levelled(audio, shared)
        own_start, own_end = (start - low) * FRAME_SAMPLES, (end - low) * FRAME_SAMPLES
        shared = audio[own_end - min(overlap, own_end) :]
        body = audio[own_start - half * (start > 0) : own_end + half * (not is_last)].copy()
        if held is not None:
            body[:FADE_SAMPLES] = body[:FADE_SAMPLES] * ramp + held * (1.0 - ramp)
        if not is_last:
            held = body[-FADE_SAMPLES:]
            body = body[:-FADE_SAMPLES]
        yield body


def _levelled(audio: Floats, shared: Floats) -> Floats:
    """Begin as loud as the neighbour was on the same stretch, ease to this window's own level."""
    length = min(len(shared), len(audio))
    before, here = _rms(shared[:length]), _rms(audio[:length])
    if here < SILENT:
        return audio
    gain = float(np.clip(before / here, *GAIN_RANGE))
    return audio * np.linspace(gain, 1.0, len(audio), dtype=np.float32)


def _rms(audio: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)) + 1e-10))
