"""BigVGAN v2: mel (80 bands, 86.13 frames per second) -> samples at 22,050 Hz.

Letters: B rows, C channels, T samples of a stage, F mel frames.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.backends.indextts2.config import MEL_BANDS, VocoderConfig

CONTEXT_FRAMES = 32  # the receptive field is 31.9 frames to either side
TAPS = 12


def lowpass_taps() -> Tensor:
    """(1, 1, 12) Kaiser-windowed sinc, cutoff 0.25, half width 0.3, of the activations."""
    attenuation = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * 0.3 + 7.95
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


class _Activation(nn.Module):
    """SnakeBeta at twice the rate: x + sin^2(x e^a) / (e^b + 1e-9) between two filters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = _SnakeBeta(channels)
        self.upsample = _Filter()
        self.downsample = _Down()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        channels = x.shape[1]
        up = self.upsample.filter.expand(channels, -1, -1)
        down = self.downsample.lowpass.filter.expand(channels, -1, -1)
        edge = TAPS // 2 - 1
        y = F.pad(x, (edge, edge), mode="replicate")
        # `padding` crops what the replicated edges made, so those samples are never computed
        y = 2 * F.conv_transpose1d(y, up, stride=2, padding=3 * edge, groups=channels)
        slope = self.act.alpha.exp()[:, None]
        height = 1.0 / (self.act.beta.exp() + 1e-9)[:, None]
        y = y + height * (y * slope).sin_().square_()
        return F.conv1d(
            F.pad(y, (edge, edge + 1), mode="replicate"), down, stride=2, groups=channels
        )


class _Block(nn.Module):
    """Three dilated residual rounds of activation, convolution, activation, convolution."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2)
            for d in dilations
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations
        )
        self.activations = nn.ModuleList(_Activation(channels) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        for i, (wide, plain) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            y = wide(self.activations[2 * i](x))
            x = x + plain(self.activations[2 * i + 1](y))
        return x


class BigVgan(nn.Module):
    """The vocoder; weight norm is folded at load."""

    def __init__(self, cfg: VocoderConfig) -> None:
        super().__init__()
        self.conv_pre = nn.Conv1d(MEL_BANDS, cfg.channels, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        channels = cfg.channels
        for rate, kernel in zip(cfg.rates, cfg.kernels, strict=True):
            up = nn.ConvTranspose1d(
                channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2
            )
            self.ups.append(nn.ModuleList([up]))
            channels //= 2
            self.resblocks.extend(
                _Block(channels, k, d)
                for k, d in zip(cfg.block_kernels, cfg.dilations, strict=True)
            )
        self.activation_post = _Activation(channels)
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3, bias=False)

    def forward(self, mel: Tensor) -> Tensor:
        """(B, 80, F) log-mel -> (B, 256 F) samples in -1..1."""
        x = self.conv_pre(mel)
        per_stage = len(self.resblocks) // len(self.ups)
        for i, up in enumerate(self.ups):
            x = up[0](x)  # type: ignore[index]  # a ModuleList of one
            blocks = self.resblocks[i * per_stage : (i + 1) * per_stage]
            total = blocks[0](x)
            for block in blocks[1:]:
                total = total + block(x)
            x = total / per_stage
        y: Tensor = self.conv_post(self.activation_post(x))
        return y[:, 0].clamp(-1, 1)
