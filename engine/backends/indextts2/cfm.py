"""Conditional flow matching: mel condition -> mel, by Euler steps of a diffusion transformer.

Letters: R rows of a call (two per window: with and without condition), T frames of a window, P of
them prompt, D model width, S steps.

What does not change within a window is computed once: the part of the merged input that comes from
prompt, condition and style, and everything that depends on time alone (norm scales, WaveNet gates).
Rows of one call may have different lengths and be at different times; each gives what it would give
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.backends.indextts2.config import MEL_BANDS, STYLE_DIM, S2MelConfig
from engine.backends.indextts2.graphs import Outputs, StaticCall, StaticCalls, at_least

GUIDANCE = 0.7
STEPS = 25
MAX_FRAMES = 16_384  # positions the model was built for
# frames a window is padded to when it shares a call
BUCKETS = (128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560)
ROWS = (1, 2, 4, 8, 16)  # windows of a static call
LIVE_BUCKETS = (256, 320, 384, 448, 512)  # what windows of the live schedule fall into
_TIME_BANDS = 128
_NORM_EPS = 1e-5


class _TimeEmbedding(nn.Module):
    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * _TIME_BANDS, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.register_buffer("freqs", torch.zeros(_TIME_BANDS))

    def forward(self, t: Tensor) -> Tensor:
        """(S,) times in 0..1 -> (S, D)."""
        angles = 1000.0 * t[:, None] * self.freqs  # (S, 128)
        out: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], -1))
        return out


class _RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class _AdaptiveNorm(nn.Module):
    """RMS norm whose scale and shift come from the time embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project_layer = nn.Linear(width, 2 * width)
        self.norm = _RmsNorm(width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """(R, T, D) frames and (R, 2 D) scale and shift -> (R, T, D)."""
        scale, shift = modulation[:, None].chunk(2, -1)
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + _NORM_EPS)
        return scale * (normed.to(x.dtype) * self.norm.weight) + shift


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (torch.unflatten(p, -1, (self.heads, -1)) for p in self.wqkv(x).chunk(3, -1))
        q, k = _rotate(q, rotary), _rotate(k, rotary)  # (R, T, H, 64)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
        )
        out: Tensor = self.wo(mixed.transpose(1, 2).flatten(2))
        return out


@lru_cache(maxsize=8)
def _rotary(head: int, device: torch.device) -> Tensor:
    """(MAX_FRAMES, head / 2, 2) cosines and sines."""
    with torch.inference_mode(False):  # kept, so it must be an ordinary tensor
        rates = 1.0 / 10_000 ** (torch.arange(0, head, 2, device=device).float() / head)
        angles = torch.outer(torch.arange(MAX_FRAMES, device=device).float(), rates)
        return torch.stack([angles.cos(), angles.sin()], -1)


def _rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate neighbouring pairs of the last dimension of (R, T, H, d) in float32."""
    even, odd = torch.unflatten(x.float(), -1, (-1, 2)).unbind(-1)
    cos, sin = rotary[:, None].unbind(-1)  # (T, 1, d / 2)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
    return turned.flatten(-2).to(x.dtype)


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, _inner(width), bias=False)
        self.w2 = nn.Linear(_inner(width), width, bias=False)
        self.w3 = nn.Linear(width, _inner(width), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


def _inner(width: int) -> int:
    """Two thirds of four times the width, up to the next multiple of 256."""
    return -(-(8 * width // 3) // 256) * 256


class _Block(nn.Module):
    def __init__(self, cfg: S2MelConfig, *, receives: bool) -> None:
        super().__init__()
        self.attention = _Attention(cfg.width, cfg.heads)
        self.feed_forward = _FeedForward(cfg.width)
        self.attention_norm = _AdaptiveNorm(cfg.width)
        self.ffn_norm = _AdaptiveNorm(cfg.width)
        if receives:
            self.skip_in_linear = nn.Linear(2 * cfg.width, cfg.width)


class _Layers(nn.Module):
    def __init__(self, cfg: S2MelConfig) -> None:
        super().__init__()
        half = cfg.depth // 2
        self.layers = nn.ModuleList(_Block(cfg, receives=i > half) for i in range(cfg.depth))
        self.norm = _AdaptiveNorm(cfg.width)


class _Wrapped(nn.Module):
    """A convolution under the two levels of names the published keys have."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.conv = nn.Module()
        self.conv.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = self.conv.conv
        out: Tensor = conv(x)
        return out


class _WaveNet(nn.Module):
    def __init__(self, cfg: S2MelConfig) -> None:
        super().__init__()
        width, count = cfg.wavenet_width, cfg.wavenet_layers
        self.pad = cfg.wavenet_kernel // 2
        self.cond_layer = _Wrapped(nn.Conv1d(cfg.width, 2 * width * count, 1))
        self.in_layers = nn.ModuleList(
            _Wrapped(nn.Conv1d(width, 2 * width, cfg.wavenet_kernel)) for _ in range(count)
        )
        self.res_skip_layers = nn.ModuleList(
            _Wrapped(nn.Conv1d(width, 2 * width if i < count - 1 else width, 1))
            for i in range(count)
        )

    def forward(self, y: Tensor, gates: Tensor, shape: _Shape) -> Tensor:
        """(R, W, T) and (R, 2 W layers) gates -> (R, W, T)."""
        total = torch.zeros_like(y)
        per_layer = gates[:, :, None].chunk(len(self.in_layers), 1)
        for i, (inner, outer) in enumerate(zip(self.in_layers, self.res_skip_layers, strict=True)):
            a, b = (inner(shape.reflect(y, self.pad)) + per_layer[i]).chunk(2, 1)
            z = outer(a.tanh() * b.sigmoid())
            if i == len(self.in_layers) - 1:
                total = total + z
            else:
                residual, skip = z.chunk(2, 1)
                y, total = shape.masked(y + residual), total + skip
        return shape.masked(total)


class _Final(nn.Module):
    def __init__(self, cfg: S2MelConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(cfg.wavenet_width, cfg.wavenet_width)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(cfg.width, 2 * cfg.wavenet_width)
        )

    def forward(self, u: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation[:, None].chunk(2, -1)
        normed = F.layer_norm(u, u.shape[-1:], eps=1e-6)
        out: Tensor = self.linear(normed * (1 + scale) + shift)
        return out


class _Shape:
    """Lengths of the rows of a call, and what follows from them."""

    def __init__(self, lengths: Tensor | None, frames: int) -> None:
        self._n = None if lengths is None else lengths[:, None]  # (R, 1)
        self._real: Tensor | None = None
        if self._n is not None:
            self._real = torch.arange(frames, device=self._n.device) < self._n  # (R, T)

    @property
    def attention_mask(self) -> Tensor | None:
        return None if self._real is None else self._real[:, None, None]

    def masked(self, x: Tensor) -> Tensor:
        """(R, W, T) with zeros beyond each row's end."""
        return x if self._real is None else x * self._real[:, None]

    def reflect(self, x: Tensor, pad: int) -> Tensor:
        """Pad both ends by reflection at each row's own end, not at the end of the batch."""
        if self._n is None:
            return F.pad(x, (pad, pad), mode="reflect")
        frames = x.shape[-1]
        index = torch.arange(-pad, frames + pad, device=x.device).abs()
        index = torch.where(index >= self._n, 2 * (self._n - 1) - index, index)  # (R, T + 2 pad)
        return x.gather(2, index.clamp(0, frames - 1)[:, None].expand(-1, x.shape[1], -1))


@dataclass(frozen=True, slots=True)
class Modulation:
    """Everything in the transformer that depends on time alone, for a number of times.

    Attributes:
        norms: (S, 2 depth + 1, 2 D) scales and shifts of the adaptive norms, in order of use.
        gates: (S, 2 W layers) of the WaveNet.
        final: (S, 2 W).
    """

    norms: Tensor
    gates: Tensor
    final: Tensor

    def rows(self, index: Tensor) -> Modulation:
        """Those of the given times, one per row of a call."""
        return Modulation(self.norms[index], self.gates[index], self.final[index])


class Dit(nn.Module):
    """One evaluation of the flow's velocity field."""

    def __init__(self, cfg: S2MelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        merged = 2 * MEL_BANDS + cfg.width + STYLE_DIM
        self.transformer = _Layers(cfg)
        self.t_embedder = _TimeEmbedding(cfg.width)
        self.t_embedder2 = _TimeEmbedding(cfg.width)
        self.cond_projection = nn.Linear(cfg.content, cfg.width)
        self.cond_x_merge_linear = nn.Linear(merged, cfg.width)
        self.skip_linear = nn.Linear(cfg.width + MEL_BANDS, cfg.width)
        self.conv1 = nn.Linear(cfg.width, cfg.wavenet_width)
        self.conv2 = nn.Conv1d(cfg.wavenet_width, MEL_BANDS, 1)
        self.res_projection = nn.Linear(cfg.width, cfg.wavenet_width)
        self.wavenet = _WaveNet(cfg)
        self.final_layer = _Final(cfg)

    def modulation(self, t: Tensor) -> Modulation:
        """Time-dependent parts for times (S,) in 0..1."""
        t1, t2 = self.t_embedder(t), self.t_embedder2(t)
        layers: Iterable[Any] = self.transformer.layers
        norms = [
            norm.project_layer(t1)
            for block in layers
            for norm in (block.attention_norm, block.ffn_norm)
        ]
        norms.append(self.transformer.norm.project_layer(t1))
        gates = self.wavenet.cond_layer(t2[:, :, None])[:, :, 0]
        return Modulation(torch.stack(norms, 1), gates, self.final_layer.adaLN_modulation(t1))

    def constant(self, prompt: Tensor, condition: Tensor, style: Tensor) -> Tensor:
        """The part of the merged input that stays the same over all steps of a window.

        Args:
            prompt: (R, 80, T) prompt mel, zero outside the prompt.
            condition: (R, T, C).
            style: (R, 192).

        Returns:
            (R, T, D).
        """
        parts = [MEL_BANDS, MEL_BANDS, self.cfg.width, STYLE_DIM]
        _, for_prompt, for_condition, for_style = torch.split(
            self.cond_x_merge_linear.weight, parts, 1
        )
        merged = F.linear(prompt.transpose(1, 2), for_prompt, self.cond_x_merge_linear.bias)
        merged = merged + F.linear(self.cond_projection(condition), for_condition)
        return merged + F.linear(style, for_style)[:, None]

    def forward(
        self, x: Tensor, constant: Tensor, modulation: Modulation, lengths: Tensor | None = None
    ) -> Tensor:
        """Velocity at x.

        Args:
            x: (R, 80, T).
            constant: (R, T, D) from `constant`.
            modulation: one time per row.
            lengths: (R,) real frames of each row, None when all are full; what lies beyond is
                ignored and its result meaningless.

        Returns:
            (R, 80, T).
        """
        shape = _Shape(lengths, x.shape[-1])
        tokens = x.transpose(1, 2)
        h = constant + F.linear(tokens, self.cond_x_merge_linear.weight[:, :MEL_BANDS])
        h = self._blocks(h, modulation.norms, shape)
        r = self.skip_linear(torch.cat([h, tokens], -1))  # (R, T, D)
        y = self.wavenet(self.conv1(r).transpose(1, 2), modulation.gates, shape)
        u = y.transpose(1, 2) + self.res_projection(r)
        out: Tensor = self.conv2(self.final_layer(u, modulation.final).transpose(1, 2))
        return out

    def _blocks(self, h: Tensor, norms: Tensor, shape: _Shape) -> Tensor:
        half = self.cfg.depth // 2
        rotary = _rotary(self.cfg.width // self.cfg.heads, h.device)[: h.shape[1]]
        mask = shape.attention_mask
        skips: list[Tensor] = []
        layers: Iterable[Any] = self.transformer.layers
        for i, block in enumerate(layers):
            if i > half:
                h = block.skip_in_linear(torch.cat([h, skips.pop()], -1))
            h = h + block.attention(block.attention_norm(h, norms[:, 2 * i]), rotary, mask)
            h = h + block.feed_forward(block.ffn_norm(h, norms[:, 2 * i + 1]))
            if i < half:
                skips.append(h)
        out: Tensor = self.transformer.norm(h, norms[:, -1])
        return out


class Window:
    """A stretch of mel on its way from noise to sound.

    Attributes:
        frames: T, prompt included.
        prompt_frames: P.
        step, steps: how far it is.
        x: (80, T) current estimate, zero over the prompt.
    """

    def __init__(
        self,
        dit: Dit,
        *,
        prompt: Tensor,
        condition: Tensor,
        style: Tensor,
        noise: Tensor,
        steps: int = STEPS,
    ) -> None:
        """Prepare a window.

        Args:
            dit: the velocity field.
            prompt: (80, P) mel that is given.
            condition: (T, C) for prompt and new frames.
            style: (192,).
            noise: (80, T - P) start of the new frames.
            steps: Euler steps.
        """
        self.prompt_frames, self.frames = prompt.shape[1], condition.shape[0]
        if self.frames > MAX_FRAMES:
            raise ValueError(f"window of {self.frames} frames; the model takes {MAX_FRAMES}")
        self.step, self.steps = 0, steps
        self.x = F.pad(noise, (self.prompt_frames, 0))
        given = F.pad(prompt, (0, self.frames - self.prompt_frames))
        zeros = torch.zeros_like
        self.constant = dit.constant(  # (2, T, D): with condition, without
            torch.stack([given, zeros(given)]),
            torch.stack([condition, zeros(condition)]),
            torch.stack([style, zeros(style)]),
        )

    @property
    def is_done(self) -> bool:
        """All steps are made."""
        return self.step >= self.steps

    @property
    def mel(self) -> Tensor:
        """(80, T - P) the new frames."""
        return self.x[:, self.prompt_frames :]


class Solver:
    """Moves windows along the flow; they may be at different steps and of different lengths."""

    def __init__(self, dit: Dit) -> None:
        self.dit = dit
        self._grids: dict[int, tuple[list[float], Modulation]] = {}

    def advance(
        self,
        windows: Sequence[Window],
        *,
        frames: int | None = None,
        calls: StaticCalls | None = None,
    ) -> None:
        """One Euler step for each window.

        Args:
            windows: none of them done.
            frames: pad all to this many (a bucket); None pads to the longest.
            calls: make the step with a static call of that bucket.
        """
        if not windows:
            return
        size = max(frames or 0, *(w.frames for w in windows))
        if calls is not None:
            self._static_advance(windows, size, calls)
            return
        modulation = _stack([self._modulation(w) for w in windows for _ in range(2)])
        x = torch.stack([F.pad(w.x, (0, size - w.frames)) for w in windows for _ in range(2)])
        constant = torch.cat([F.pad(w.constant, (0, 0, 0, size - w.frames)) for w in windows])
        lengths = None
        if any(w.frames != size for w in windows):
            lengths = torch.tensor([w.frames for w in windows for _ in range(2)], device=x.device)
        velocity = self.dit(x, constant, modulation, lengths)
        for i, window in enumerate(windows):
            v = _guided(velocity[2 * i : 2 * i + 2, :, : window.frames])
            window.x = window.x + self._grid(window.steps)[0][window.step] * v
            window.x[:, : window.prompt_frames] = 0
            window.step += 1

    @torch.inference_mode()
    def warm(self, calls: StaticCalls, *, rows: int) -> None:
        """Record the static calls that live windows need, up to so many windows in a call."""
        for count in sorted((r for r in ROWS if r < 2 * rows), reverse=True):
            for frames in reversed(LIVE_BUCKETS):
                calls.warm(("flow", count, frames), partial(self._static_call, count, frames))

    def _static_advance(self, windows: Sequence[Window], size: int, calls: StaticCalls) -> None:
        rows = at_least(len(windows), ROWS)
        call = calls.get(("flow", rows, size), partial(self._static_call, rows, size))
        buffers = call.buffers
        shape = torch.zeros(3, rows)  # length, prompt, width of the step
        shape[0] = size
        for i, window in enumerate(windows):
            buffers["x"][i, :, : window.frames] = window.x
            buffers["constant"][2 * i : 2 * i + 2, : window.frames] = window.constant
            width = self._grid(window.steps)[0][window.step]
            shape[:, i] = torch.tensor([window.frames, window.prompt_frames, width])
        buffers["shape"].copy_(shape)
        modulation = _stack([self._modulation(w) for w in windows])
        for name in ("norms", "gates", "final"):
            buffers[name][: len(windows)] = getattr(modulation, name)
        (x,) = call()
        for i, window in enumerate(windows):
            window.x = x[i, :, : window.frames].clone()
            window.step += 1

    def _static_call(self, rows: int, frames: int) -> StaticCall:
        cfg, device = self.dit.cfg, self.dit.conv1.weight.device

        def region(
            x: Tensor, constant: Tensor, shape: Tensor, norms: Tensor, gates: Tensor, final: Tensor
        ) -> Outputs:
            lengths, prompts = shape[:2].long()
            modulation = Modulation(_twice(norms), _twice(gates), _twice(final))
            velocity = self.dit(_twice(x), constant, modulation, _twice(lengths))
            moved = x + shape[2][:, None, None] * _guided(velocity.unflatten(0, (rows, 2)))
            at = torch.arange(frames, device=device)
            is_new = (at >= prompts[:, None]) & (at < lengths[:, None])
            return (torch.where(is_new[:, None], moved, 0.0),)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device)

        shape = zeros(3, rows)
        shape[0] = frames
        buffers = {
            "x": zeros(rows, MEL_BANDS, frames),
            "constant": zeros(2 * rows, frames, cfg.width),
            "shape": shape,
            "norms": zeros(rows, 2 * cfg.depth + 1, 2 * cfg.width),
            "gates": zeros(rows, 2 * cfg.wavenet_width * cfg.wavenet_layers),
            "final": zeros(rows, 2 * cfg.wavenet_width),
        }
        return StaticCall(buffers, region)

    def solve(self, window: Window) -> Tensor:
        """All steps of one window; returns its mel (80, T - P)."""
        while not window.is_done:
            self.advance([window])
        return window.mel

    def _modulation(self, window: Window) -> Modulation:
        table = self._grid(window.steps)[1]
        return Modulation(
            table.norms[window.step], table.gates[window.step], table.final[window.step]
        )

    def _grid(self, steps: int) -> tuple[list[float], Modulation]:
        """Step widths and time-dependent parts of an even grid of `steps`."""
        if steps not in self._grids:
            marks = torch.linspace(0, 1, steps + 1)
            widths = marks[1:] - marks[:-1]
            times = torch.cat([torch.zeros(1), widths.cumsum(0)[:-1]])
            device = self.dit.conv1.weight.device
            table = self.dit.modulation(times.to(device))
            self._grids[steps] = ([float(w) for w in widths], table)
        return self._grids[steps]


def _guided(velocity: Tensor) -> Tensor:
    """(..., 2, 80, T) with and without condition -> (..., 80, T)."""
    with_condition, without = velocity.unbind(-3)
    return (1 + GUIDANCE) * with_condition - GUIDANCE * without


def _twice(x: Tensor) -> Tensor:
    """(W, ...) -> (2 W, ...), each entry twice in a row."""
    return x[:, None].expand(-1, 2, *x.shape[1:]).flatten(0, 1)


def _stack(rows: list[Modulation]) -> Modulation:
    return Modulation(
        torch.stack([r.norms for r in rows]),
        torch.stack([r.gates for r in rows]),
        torch.stack([r.final for r in rows]),
    )


def bucket(frames: int) -> int:
    """Frames a window is padded to when it shares a call."""
    return at_least(frames, BUCKETS)
