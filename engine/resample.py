"""Any sampling rate -> SAMPLE_RATE_HZ for a stream that comes in pieces, without seams."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from engine.base import SAMPLE_RATE_HZ, Pcm

LOWEST_HZ, HIGHEST_HZ = 8_000, 192_000

_CROSSINGS = 32  # zero crossings of the filter to either side
_BETA = 9.0  # Kaiser window: stop band about -90 dB
_ROLLOFF = 0.95  # of the lower Nyquist frequency: images fall into the filter's slope

Samples = npt.NDArray[np.float64]


class StreamResampler:
    """Resamples one stream; the same samples come out however the input is cut.

    Every output sample is one dot product with the input around it, so a piece is held back only as
    far as the filter reaches ahead (about 1.5 ms).

    Args:
        rate_hz: of the input, LOWEST_HZ to HIGHEST_HZ.
    """

    def __init__(self, rate_hz: int) -> None:
        if not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
            raise ValueError(f"rate_hz is {rate_hz}; it goes from {LOWEST_HZ} to {HIGHEST_HZ}")
        common = math.gcd(SAMPLE_RATE_HZ, rate_hz)
        self._up, self._down = SAMPLE_RATE_HZ // common, rate_hz // common
        self._kernels = _kernels(self._up, self._down)
        self._reach = self._kernels.shape[1] // 2
        self._held = np.zeros(self._reach - 1)  # silence before the first sample
        self._spent = 0  # input samples that have left `_held` on its left side
        self._given = 0
        self._made = 0

    def push(self, wave: npt.NDArray[np.integer | np.floating], *, last: bool = False) -> Samples:
        """Take (n,) input, give the output that it completes; with `last`, all of the rest."""
        self._given += len(wave)
        self._held = np.concatenate([self._held, wave])
        if last:
            self._held = np.concatenate([self._held, np.zeros(self._reach)])
            end = -(-self._given * self._up // self._down)
        else:
            end = max(self._made, (self._given - self._reach) * self._up // self._down)
        if end <= self._made:
            return np.zeros(0)
        at = np.arange(self._made, end, dtype=np.int64) * self._down
        windows = np.lib.stride_tricks.sliding_window_view(self._held, 2 * self._reach)
        taps = windows[at // self._up - self._spent]  # (made, 2 reach)
        out: Samples = np.einsum("nt,nt->n", taps, self._kernels[at % self._up])
        self._made = end
        done = end * self._down // self._up - self._spent
        self._held, self._spent = self._held[done:], self._spent + done
        return out


def to_pcm(wave: npt.NDArray[np.floating]) -> Pcm:
    """(n,) in -1..1 -> int16, clipped."""
    return np.clip(np.round(wave * 32767.0), -32768, 32767).astype(np.int16)


@lru_cache(maxsize=8)
def _kernels(up: int, down: int) -> Samples:
    """(up, 2 reach) windowed sincs, one for each place between two input samples."""
    cutoff = min(1.0, up / down) * _ROLLOFF
    reach = math.ceil(_CROSSINGS / cutoff)
    t = np.arange(-reach + 1, reach + 1) - np.arange(up)[:, None] / up
    window = np.i0(_BETA * np.sqrt(np.clip(1 - (t / reach) ** 2, 0, None))) / np.i0(_BETA)
    kernels = np.sinc(t * cutoff) * window
    return np.asarray(kernels / kernels.sum(axis=1, keepdims=True))
