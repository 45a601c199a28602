"""Signal processing of reference audio, in torch alone: resampling, log-mel, kaldi filterbank.

Letters: N samples, T frames.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.backends.indextts2.config import HOP, MEL_BANDS, SAMPLE_RATE_HZ

SEMANTIC_RATE_HZ = 16_000
_N_FFT = 1024


def resample(
    wave: Tensor, rate_hz: int, to_hz: int, *, width: int = 6, rolloff: float = 0.99
) -> Tensor:
    """Change the sampling rate by Hann-windowed sinc interpolation.

    Args:
        wave: (..., N).
        rate_hz, to_hz: any whole rates.
        width: zero crossings of the sinc to either side; 6 is what the model's 16 kHz features were
            made with, files are read with more.
        rolloff: cut-off as a share of the lower Nyquist rate.

    Returns:
        (..., ceil(N * to_hz / rate_hz)).
    """
    if rate_hz == to_hz:
        return wave
    shrink = math.gcd(rate_hz, to_hz)
    old, new = rate_hz // shrink, to_hz // shrink
    kernel, reach = _sinc_kernel(old, new, width, rolloff)
    flat = F.pad(wave.reshape(-1, 1, wave.shape[-1]), (reach, reach + old))
    out = F.conv1d(flat, kernel.to(wave), stride=old)  # (rows, new, steps)
    out = out.transpose(1, 2).flatten(1)[:, : -(-new * wave.shape[-1] // old)]
    return out.reshape(*wave.shape[:-1], -1)


@lru_cache(maxsize=8)
def _sinc_kernel(old: int, new: int, width: int, rolloff: float) -> tuple[Tensor, int]:
    """(new, 1, taps) one filter per output phase, and how far it reaches back."""
    cutoff = min(old, new) * rolloff
    reach = math.ceil(width * old / cutoff)
    at = torch.arange(-reach, reach + old, dtype=torch.float64)[None] / old
    phase = (torch.arange(0, -new, -1) / new)[:, None]  # float32, as in the reference's features
    t = ((phase + at) * cutoff).clamp(-width, width)
    window = torch.cos(t * math.pi / width / 2) ** 2
    kernel = torch.sinc(t) * window * (cutoff / old)
    return kernel[:, None].float(), reach


def log_mel(wave: Tensor) -> Tensor:
    """(B, N) samples at 22,050 Hz -> (B, 80, N // 256) log-mel, the vocoder's kind."""
    edge = (_N_FFT - HOP) // 2
    padded = F.pad(wave[:, None], (edge, edge), mode="reflect")[:, 0]
    window = torch.hann_window(_N_FFT, device=wave.device)
    spectrum = torch.stft(
        padded, _N_FFT, HOP, _N_FFT, window, center=False, onesided=True, return_complex=True
    )
    magnitude = torch.sqrt(torch.view_as_real(spectrum).square().sum(-1) + 1e-9)
    return (_slaney_bank().to(wave) @ magnitude).clamp_min(1e-5).log()


@lru_cache(maxsize=1)
def _slaney_bank() -> Tensor:
    """(80, 513) triangles on the Slaney scale, 0 to 11,025 Hz, each of unit area."""
    step, knee = 200.0 / 3, 1000.0  # linear below the knee, logarithmic above
    log_step = math.log(6.4) / 27

    def to_hz(mel: Tensor) -> Tensor:
        above = knee * torch.exp(log_step * (mel - knee / step))
        return torch.where(mel < knee / step, mel * step, above)

    top = knee / step + math.log(SAMPLE_RATE_HZ / 2 / knee) / log_step
    edges = to_hz(torch.linspace(0, top, MEL_BANDS + 2, dtype=torch.float64))
    bins = torch.linspace(0, SAMPLE_RATE_HZ / 2, _N_FFT // 2 + 1, dtype=torch.float64)
    bank = _triangles(edges, bins) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return bank.float()


def _triangles(edges: Tensor, bins: Tensor) -> Tensor:
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp_min(0)


def kaldi_fbank(wave: Tensor) -> Tensor:
    """(N,) samples at 16 kHz in -1..1 -> (T, 80) log filterbank, 100 frames per second."""
    frame, hop, n_fft = 400, 160, 512
    if len(wave) < frame:
        raise ValueError(f"{len(wave)} samples are less than one frame of {frame}")
    frames = wave.unfold(0, frame, hop)  # (T, 400)
    frames = frames - frames.mean(1, keepdim=True)
    before = F.pad(frames[:, None], (1, 0), mode="replicate")[:, 0, :-1]
    window = torch.hann_window(frame, periodic=False, device=wave.device).pow(0.85)
    spectrum = torch.fft.rfft((frames - 0.97 * before) * window, n_fft).abs().square()
    energies: Tensor = spectrum[:, : n_fft // 2] @ _kaldi_bank().to(wave).T
    return energies.clamp_min(torch.finfo(torch.float32).eps).log()


@lru_cache(maxsize=1)
def _kaldi_bank() -> Tensor:
    """(80, 256) triangles that are straight on the kaldi mel scale, 20 to 8,000 Hz."""

    def mel(hz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hz / 700.0)

    ends = mel(torch.tensor([20.0, SEMANTIC_RATE_HZ / 2], dtype=torch.float64))
    edges = torch.linspace(float(ends[0]), float(ends[1]), MEL_BANDS + 2, dtype=torch.float64)
    bins = mel(torch.arange(256, dtype=torch.float64) * SEMANTIC_RATE_HZ / 512)
    return _triangles(edges, bins).float()


def style_features(wave: Tensor) -> Tensor:
    """(N,) samples at 16 kHz -> (1, T, 80): what CAMPPlus takes."""
    bands = kaldi_fbank(wave)
    return (bands - bands.mean(0, keepdim=True))[None]
