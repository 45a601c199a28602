"""22,050 Hz -> 24,000 Hz for a stream that comes in pieces, without seams."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from engine.backends.indextts2.config import SAMPLE_RATE_HZ
from engine.base import SAMPLE_RATE_HZ as OUT_RATE_HZ

Samples = npt.NDArray[np.float32]

_UP = OUT_RATE_HZ // math.gcd(OUT_RATE_HZ, SAMPLE_RATE_HZ)  # 160
_DOWN = SAMPLE_RATE_HZ // math.gcd(OUT_RATE_HZ, SAMPLE_RATE_HZ)  # 147
_REACH = 32  # input samples to either side
_BETA = 9.0  # Kaiser: stop band about -90 dB


def _kernels() -> npt.NDArray[np.float64]:
    """(160, 64) windowed sincs, one per position of an output sample between two input samples."""
    phase = np.arange(_UP)[:, None] / _UP
    t = np.arange(-_REACH + 1, _REACH + 1)[None] - phase
    window = np.i0(_BETA * np.sqrt(np.clip(1 - (t / _REACH) ** 2, 0, None))) / np.i0(_BETA)
    return np.asarray(np.sinc(t) * window)


_KERNELS = _kernels()


class StreamResampler:
    """Resamples one sentence; the same samples come out however the input is cut.

    Every output sample is one dot product with the input around it, so a piece is held back only as
    far as the filter reaches ahead (1.5 ms).
    """

    def __init__(self) -> None:
        self._held = np.zeros(_REACH - 1, np.float64)  # silence before the first sample
        self._taken = 0  # input samples that lie before `_held`'s own first _REACH - 1
        self._made = 0
        self._given = 0

    def push(self, wave: Samples, *, last: bool = False) -> Samples:
        """Take some input, give the output it completes; with `last`, all of the rest."""
        self._given += len(wave)
        self._held = np.concatenate([self._held, wave.astype(np.float64)])
        if last:
            self._held = np.concatenate([self._held, np.zeros(_REACH)])
            end = -(-self._given * _UP // _DOWN)
        else:
            end = max(self._made, ((self._given - _REACH) * _UP) // _DOWN)
        at = np.arange(self._made, end, dtype=np.int64) * _DOWN
        if not len(at):
            return np.zeros(0, np.float32)
        first = at // _UP - self._taken  # place in _held of the leftmost tap
        windows = np.lib.stride_tricks.sliding_window_view(self._held, 2 * _REACH)
        out = (windows[first] * _KERNELS[at % _UP]).sum(axis=1)
        self._made = end
        spent = max(0, end * _DOWN // _UP - self._taken)
        self._held, self._taken = self._held[spent:], self._taken + spent
        return np.asarray(out, dtype=np.float32)


def to_pcm(wave: Samples) -> npt.NDArray[np.int16]:
    """-1..1 -> int16, clipped."""
    return np.clip(np.round(wave * 32767.0), -32768, 32767).astype(np.int16)
