"""BigVGAN v2: mel (80 bands, 86.13 frames per second) -> samples at 22,050 Hz.

Letters: B rows, C channels, T samples of a stage, F mel frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.backends.indextts2.activation import Activation
from engine.backends.indextts2.config import HOP, MEL_BANDS, VocoderConfig
from engine.backends.indextts2.graphs import Outputs, StaticCall, StaticCalls, at_least

CONTEXT_FRAMES = 32  # the receptive field is 31.9 frames to either side
BUCKETS = (32, 64, 96, 128, 160, 224, 320, 448, 640, 896, 1280, 1792, 2560)  # frames of a call
LIVE_BUCKETS = BUCKETS[:6]  # what strips of the live schedule fall into
ROWS = (1, 2, 4, 8, 16)  # strips of a static call


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
        self.activations = nn.ModuleList(Activation(channels) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        # what is beyond a row's end stays out: activations do not read it and give zeros there
        for i, (wide, plain) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            y = wide(self.activations[2 * i](x, lengths))
            x = x + plain(self.activations[2 * i + 1](y, lengths))
        return x


class BigVgan(nn.Module):
    """The vocoder; weight norm is folded at load."""

    def __init__(self, cfg: VocoderConfig) -> None:
        super().__init__()
        self.rates = cfg.rates
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
        self.activation_post = Activation(channels)
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3, bias=False)

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Render.

        Args:
            mel: (B, 80, F) log-mel.
            lengths: (B,) real frames of each row, None when all rows are full. A row gives what it
                would give alone, because padding acts at its own end.

        Returns:
            (B, 256 F) samples in -1..1, zero beyond each row's end.
        """
        x = self.conv_pre(_cut(mel, lengths))
        per_stage = len(self.resblocks) // len(self.ups)
        for i, (up, rate) in enumerate(zip(self.ups, self.rates, strict=True)):
            x = up[0](_cut(x, lengths))  # type: ignore[index]  # a ModuleList of one
            lengths = None if lengths is None else lengths * rate
            blocks = self.resblocks[i * per_stage : (i + 1) * per_stage]
            total = blocks[0](x, lengths)
            for block in blocks[1:]:
                total = total + block(x, lengths)
            x = total / per_stage
        y = self.conv_post(self.activation_post(x, lengths))
        return _cut(y, lengths)[:, 0].clamp(-1, 1)

    @torch.inference_mode()
    def render(self, strips: Sequence[Tensor], calls: StaticCalls | None = None) -> list[Tensor]:
        """Several strips of mel in one call.

        Args:
            strips: (80, F_i) each.
            calls: make the call with a static one.

        Returns:
            (256 F_i,) samples of each strip, what it would give alone.
        """
        longest = max(strip.shape[1] for strip in strips)
        if calls is None:
            is_ragged = any(strip.shape[1] != longest for strip in strips)
            mel = torch.stack([F.pad(s, (0, longest - s.shape[1])) for s in strips])
            lengths = torch.tensor([s.shape[1] for s in strips], device=mel.device)
            waves = self(mel, lengths if is_ragged else None)
            return [wave[: s.shape[1] * HOP] for wave, s in zip(waves, strips, strict=True)]
        rows, size = at_least(len(strips), ROWS), at_least(longest, BUCKETS)
        call = calls.get(("vocoder", rows, size), partial(self._static_call, rows, size))
        lengths = torch.full((rows,), size)
        for i, strip in enumerate(strips):
            call.buffers["mel"][i, :, : strip.shape[1]] = strip
            lengths[i] = strip.shape[1]
        call.buffers["lengths"].copy_(lengths)
        (waves,) = call()
        return [wave[: s.shape[1] * HOP].clone() for wave, s in zip(waves, strips, strict=False)]

    @torch.inference_mode()
    def warm(self, calls: StaticCalls, *, rows: int) -> None:
        """Record the static calls that live chunks need, up to so many strips in a call."""
        for count in sorted((r for r in ROWS if r < 2 * rows), reverse=True):
            for frames in reversed(LIVE_BUCKETS):
                calls.warm(("vocoder", count, frames), partial(self._static_call, count, frames))

    def _static_call(self, rows: int, frames: int) -> StaticCall:
        device = self.conv_pre.weight.device

        def region(mel: Tensor, lengths: Tensor) -> Outputs:
            return (self(mel, lengths),)

        mel = torch.zeros(rows, MEL_BANDS, frames, device=device)
        lengths = torch.full((rows,), frames, device=device)
        return StaticCall({"mel": mel, "lengths": lengths}, region)


def _cut(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, C, T) with zeros beyond each row's end."""
    if lengths is None:
        return x
    real = torch.arange(x.shape[-1], device=x.device) < lengths[:, None]
    return torch.where(real[:, None], x, 0.0)
