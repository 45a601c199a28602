"""The vocoder's activation: SnakeBeta at twice the rate, between two low-pass filters.

Twice the rate is never laid out as one signal. Its even and its odd samples are two signals at the
plain rate, so that no zeros are multiplied, nothing is interleaved and every filter is a short
depthwise convolution; a GPU does all of it in one kernel that reads and writes each sample once.

Letters: B rows, C channels, T samples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

TAPS = 12
_HALF = TAPS // 2
_EDGE = _HALF - 1  # samples that the filters reach beyond an end


def lowpass_taps() -> Tensor:
    """(1, 1, 12) Kaiser-windowed sinc, cutoff 0.25, half width 0.3."""
    attenuation = 2.285 * (_HALF - 1) * math.pi * 4 * 0.3 + 7.95
    window = torch.kaiser_window(TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7))
    time = torch.arange(TAPS) - TAPS / 2 + 0.5
    taps = 0.5 * window * torch.sinc(0.5 * time)
    return (taps / taps.sum()).view(1, 1, TAPS)


class _Filter(nn.Module):
    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", torch.zeros(1, 1, TAPS))


class _Down(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lowpass = _Filter()


class _SnakeBeta(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))


class Activation(nn.Module):
    """x + sin^2(x e^a) / (e^b + 1e-9) at twice the rate; module names are those of the file."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = _SnakeBeta(channels)
        self.upsample = _Filter()
        self.downsample = _Down()

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Activate.

        Args:
            x: (B, C, T).
            lengths: (B,) real samples of each row, which may be followed by anything; None when all
                rows are full.

        Returns:
            (B, C, T), zero beyond each row's end: what a convolution pads a lone row with.
        """
        slope = self.act.alpha.exp()
        height = 1.0 / (self.act.beta.exp() + 1e-9)
        up, down = self.upsample.filter.view(-1), self.downsample.lowpass.filter.view(-1)
        run = _kernel(x.device) if x.is_cuda else anti_aliased_snake
        return run(x, slope, height, up, down, lengths)


Snake = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]


@lru_cache(maxsize=8)
def _kernel(device: torch.device) -> Snake:
    """The one-pass kernel where it runs, else the operations of torch."""
    try:
        from engine.backends.indextts2.activation_triton import anti_aliased_snake as fused

        one = torch.ones(1, 1, 8, device=device)
        taps = lowpass_taps().view(-1).to(device)
        fused(one, one[0, 0, :1], one[0, 0, :1], taps, taps, None)
    except Exception as error:  # no triton, no C compiler, a GPU it does not know
        log.warning("the vocoder's fused kernel does not run, it will be slower: %s", error)
        return anti_aliased_snake
    return fused


def anti_aliased_snake(
    x: Tensor, slope: Tensor, height: Tensor, up: Tensor, down: Tensor, lengths: Tensor | None
) -> Tensor:
    """The activation in torch; the kernel's reference.

    Args:
        x: (B, C, T).
        slope, height: (C,) of the snake.
        up, down: (12,) taps.
        lengths: as in `Activation.forward`.
    """
    channels, count = x.shape[1:]
    real = None if lengths is None else torch.arange(count, device=x.device) < lengths[:, None]
    if real is not None and lengths is not None:
        ends = x.gather(2, (lengths[:, None, None] - 1).expand(-1, channels, 1))
        x = torch.where(real[:, None], x, ends)
    x = F.pad(x, (_EDGE, _EDGE), mode="replicate")
    rise = 2 * up.flip(0)
    even, odd = _depthwise(x, rise[0::2]), _depthwise(x, rise[1::2])
    for half in (even, odd):
        half.add_((half * slope[:, None]).sin_().square_().mul_(height[:, None]))
    _hold_ends(even, odd, lengths)
    out = _depthwise(even, down[1::2]).add_(_depthwise(odd, down[0::2]))
    return out if real is None else out * real[:, None]


def _depthwise(x: Tensor, taps: Tensor) -> Tensor:
    """(B, C, T) and (6,) -> (B, C, T - 5)."""
    return F.conv1d(x, taps.expand(x.shape[1], 1, -1), groups=x.shape[1])


def _hold_ends(even: Tensor, odd: Tensor, lengths: Tensor | None) -> None:
    """Repeat first and last sample of the doubled signal beyond its ends, in place.

    `even` begins two samples before the start, `odd` three; both reach beyond the end.
    """
    even[..., :2] = even[..., 2:3]
    odd[..., :3] = even[..., 2:3]
    if lengths is None:
        last = odd[..., -3:-2]
        even[..., -3:] = last
        odd[..., -2:] = last
        return
    ends = lengths[:, None, None]
    last = odd.gather(2, (ends + 2).expand(-1, odd.shape[1], 1))
    at = torch.arange(even.shape[-1], device=even.device)
    torch.where(at >= ends + 2, last, even, out=even)
    torch.where(at >= ends + 3, last, odd, out=odd)
