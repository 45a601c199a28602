"""Reference speech -> 32 speaker latents and one emotion vector (conformer, then perceiver).

Letters: B rows, T semantic frames (50 per second), S frames after subsampling ((T - 1) // 2), D
width of the conformer, H heads, L latents, G width of the GPT.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.backends.indextts2.config import SEMANTIC_DIM, ConditionConfig

MAX_POSITIONS = 5000  # rows of the stored position table
_KERNEL = 15
_EPS = 1e-5


class _Subsample(nn.Module):
    """Halve the frame rate: a 3x3 convolution over the (time, feature) image, then a projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, width, 3, stride=2), nn.ReLU())
        self.out = nn.Sequential(nn.Linear(width * ((SEMANTIC_DIM - 1) // 2), width))
        self.pos_enc = _Positions(width)

    def forward(self, x: Tensor) -> Tensor:
        image = self.conv(x.unsqueeze(1))  # (B, D, S, 511)
        flat = image.transpose(1, 2).flatten(2)  # (B, S, D * 511)
        projected: Tensor = self.out(flat)
        return projected * math.sqrt(projected.shape[-1])


class _Positions(nn.Module):
    """The stored sinusoid table: files may hold rounded values, so it is never computed."""

    pe: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("pe", torch.zeros(1, MAX_POSITIONS, width))


class _Attention(nn.Module):
    """Self-attention with learnt content and position biases; positions are never shifted."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self._split(layer(x)) for layer in (self.linear_q, self.linear_k, self.linear_v))
        p = self._split(self.linear_pos(positions))  # (1, H, S, d)
        content = (q + self.pos_bias_u[:, None]) @ k.transpose(-1, -2)
        position = (q + self.pos_bias_v[:, None]) @ p.transpose(-1, -2)
        scores = (content + position) / math.sqrt(q.shape[-1])  # (B, H, S, S)
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)  # (B, S, D)
        out: Tensor = self.linear_out(mixed)
        return out

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)


class _Convolution(nn.Module):
    """Gated depthwise convolution.

    Frames beyond a row's length are zeroed after the gate, not before the first projection: its
    bias would make them non-zero again and the depthwise kernel would carry them into real frames.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1)
        self.depthwise_conv = nn.Conv1d(width, width, _KERNEL, padding=_KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        keep = mask[:, None]  # (B, 1, S)
        y = F.glu(self.pointwise_conv1(x.transpose(1, 2)), dim=1) * keep
        y = self.norm(self.depthwise_conv(y).transpose(1, 2))
        y = self.pointwise_conv2(F.silu(y).transpose(1, 2)) * keep
        out: Tensor = y.transpose(1, 2)
        return out


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w_2(F.silu(self.w_1(x)))
        return out


class _Block(nn.Module):
    def __init__(self, cfg: ConditionConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(cfg.width, cfg.heads)
        self.feed_forward = _FeedForward(cfg.width, cfg.ffn)
        self.conv_module = _Convolution(cfg.width)
        self.norm_mha = nn.LayerNorm(cfg.width, eps=_EPS)
        self.norm_conv = nn.LayerNorm(cfg.width, eps=_EPS)
        self.norm_ff = nn.LayerNorm(cfg.width, eps=_EPS)
        self.norm_final = nn.LayerNorm(cfg.width, eps=_EPS)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, mask)
        x = x + self.conv_module(self.norm_conv(x), mask)
        x = x + self.feed_forward(self.norm_ff(x))
        out: Tensor = self.norm_final(x)
        return out


class Conformer(nn.Module):
    """Encoder in front of a perceiver."""

    def __init__(self, cfg: ConditionConfig) -> None:
        super().__init__()
        self.embed = _Subsample(cfg.width)
        self.encoders = nn.ModuleList(_Block(cfg) for _ in range(cfg.blocks))
        self.after_norm = nn.LayerNorm(cfg.width, eps=_EPS)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode semantic frames.

        Args:
            x: (B, T, 1024), zero-padded on the right.
            lengths: (B,) real frames of each row; None means all.

        Returns:
            (B, S, D) states and (B, S) mask, True on real frames.
        """
        frames = torch.arange(x.shape[1], device=x.device)
        real = frames < (
            torch.full((x.shape[0], 1), x.shape[1], device=x.device)
            if lengths is None
            else lengths[:, None]
        )
        mask = real[:, 2::2]  # (B, S): a subsampled frame is real when its last source frame is
        y = self.embed(x)  # (B, S, D)
        positions = self.embed.pos_enc.pe[:, : y.shape[1]].to(y.dtype)
        for block in self.encoders:
            y = block(y, positions, mask)
        return self.after_norm(y), mask


class _Resample(nn.Module):
    """Perceiver cross-attention: heads of 64, latents see themselves and the context."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * 64, bias=False)
        self.to_kv = nn.Linear(dim, heads * 128, bias=False)
        self.to_out = nn.Linear(heads * 64, dim, bias=False)

    def forward(self, z: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        q = self._split(self.to_q(z))
        k, v = (self._split(half) for half in self.to_kv(torch.cat([z, context], 1)).chunk(2, -1))
        visible = F.pad(mask, (z.shape[1], 0), value=True)[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, 64)).transpose(1, 2)


class _GeluGate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return value * F.gelu(gate)


class _RootNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * math.sqrt(x.shape[-1]) * self.gamma


class Perceiver(nn.Module):
    """Any number of context frames -> a fixed number of latents, in two rounds."""

    def __init__(self, cfg: ConditionConfig, *, dim: int, latents: int) -> None:
        super().__init__()
        inner = int(dim * cfg.perceiver_mult * 2 / 3)
        self.latents = nn.Parameter(torch.zeros(latents, dim))
        self.proj_context = nn.Linear(cfg.width, dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _Resample(dim, cfg.heads),
                    nn.Sequential(nn.Linear(dim, 2 * inner), _GeluGate(), nn.Linear(inner, dim)),
                ]
            )
            for _ in range(2)
        )
        self.norm = _RootNorm(dim)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B, S, D) states and (B, S) mask -> (B, latents, dim)."""
        context = self.proj_context(states)
        z = self.latents.expand(states.shape[0], -1, -1)
        layers: Iterable[Any] = self.layers
        for attend, feed in layers:
            z = z + attend(z, context, mask)
            z = z + feed(z)
        out: Tensor = self.norm(z)
        return out
