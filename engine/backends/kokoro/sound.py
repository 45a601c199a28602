"""What is done to samples after a model has made them: level, peaks, fades.

Gain is a constant per voice, from a table, so a sentence sounds the same whichever sentences were
spoken before it, and a stretch of it the same as the whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.base import SAMPLE_RATE_HZ, Pcm

Floats = npt.NDArray[np.float32]
Response = npt.NDArray[np.complexfloating[Any, Any]]

TARGET_LUFS = -20.0
CEILING = 10 ** (-1 / 20)  # -1 dBFS
KNEE = 0.7  # samples below it pass unchanged
FADE_SAMPLES = 120  # 5 ms

BLOCK_SAMPLES = SAMPLE_RATE_HZ * 2 // 5
STEP_SAMPLES = BLOCK_SAMPLES // 4
RELATIVE_GATE_LU = 10.0


def level(audio: Floats, gain_db: float) -> Floats:
    """Apply a gain; peaks bend below -1 dBFS instead of being cut off."""
    scaled = audio * np.float32(10 ** (gain_db / 20))
    size = np.abs(scaled)
    over = size > KNEE
    if over.any():
        room = CEILING - KNEE
        bent = KNEE + room * np.tanh((size[over] - KNEE) / room)
        scaled[over] = np.copysign(bent, scaled[over])
    return scaled


def fade(audio: Floats, *, start: bool = True, end: bool = True) -> Floats:
    """Ramp the first and last 5 ms, so that a cut does not click."""
    length = min(FADE_SAMPLES, len(audio))
    ramp = np.linspace(0.0, 1.0, length, dtype=np.float32)
    faded = audio.copy()
    if start:
        faded[:length] *= ramp
    if end and length:
        faded[-length:] *= ramp[::-1]
    return faded


def to_pcm(audio: Floats) -> Pcm:
    """Full scale 1 -> int16."""
    return np.round(np.clip(audio, -1.0, 1.0) * 32767.0).astype(np.int16)


def loudness_lufs(audio: Floats) -> float:
    """Loudness after ITU-R BS.1770 with its relative gate, for a stretch of at least 0.4 s."""
    weighted = _k_weighted(audio)
    starts = range(0, max(len(weighted) - BLOCK_SAMPLES, 0) + 1, STEP_SAMPLES)
    powers = np.array([np.mean(weighted[at : at + BLOCK_SAMPLES] ** 2) for at in starts])
    loud = powers > powers.mean() * 10 ** (-RELATIVE_GATE_LU / 10)
    return float(-0.691 + 10 * np.log10(powers[loud].mean() + 1e-12))


def _k_weighted(audio: Floats) -> npt.NDArray[np.float64]:
    """The K filter (head shelf, then low cut) applied in the frequency domain."""
    size = len(audio) + SAMPLE_RATE_HZ // 10  # room for the tail, so that it does not wrap around
    s = 1j * np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    # The analogue prototypes: what bilinear warping would change lies above 10 kHz.
    shelf = _shelf(s / 1681.97, q=0.7072, boost=10 ** (4 / 20))
    low_cut = (s / 38.135) ** 2 / _resonance(s / 38.135, q=0.5003)
    weighted = np.fft.irfft(np.fft.rfft(audio, size) * shelf * low_cut, size)
    return np.asarray(weighted[: len(audio)], np.float64)


def _shelf(s: Response, *, q: float, boost: float) -> Response:
    raised: Response = boost * s**2 + np.sqrt(boost) * s / q + 1
    return raised / _resonance(s, q=q)


def _resonance(s: Response, *, q: float) -> Response:
    response: Response = s**2 + s / q + 1
    return response
