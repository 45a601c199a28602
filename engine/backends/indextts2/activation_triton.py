"""The vocoder's activation as one GPU kernel: each sample is read and written once.

A program takes BLOCK neighbouring samples of one channel of one row. A sample of the result needs
twelve of the doubled signal, and these need eleven of the input, five to either side; they are made
anew for every sample, which costs arithmetic instead of memory traffic.
"""

# mypy: ignore-errors
# the language of kernels has no types that mypy knows
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


def anti_aliased_snake(
    x: Tensor, slope: Tensor, height: Tensor, up: Tensor, down: Tensor, lengths: Tensor | None
) -> Tensor:
    """As `activation.anti_aliased_snake`."""
    x = x.contiguous()
    rows, channels, count = x.shape
    out = torch.empty_like(x)
    if lengths is None:
        lengths = torch.full((rows,), count, device=x.device)
    grid = (triton.cdiv(count, _BLOCK), rows * channels)
    with torch.cuda.device_of(x):
        _kernel[grid](x, out, slope, height, 2 * up, down, lengths, channels, count, BLOCK=_BLOCK)
    return out


@triton.jit
def _bent(a, b, c, d, e, f, t0, t1, t2, t3, t4, t5, slope, height):
    """One sample of the doubled signal from six neighbours, and the snake on it."""
    y = a * t0 + b * t1 + c * t2 + d * t3 + e * t4 + f * t5
    wave = tl.sin(y * slope)
    return y + height * wave * wave


@triton.jit
def _kernel(x_ptr, out_ptr, slope_ptr, height_ptr, up_ptr, down_ptr, length_ptr, channels, count,
            BLOCK: tl.constexpr):  # fmt: skip
    strip = tl.program_id(1)
    n = tl.load(length_ptr + strip // channels).to(tl.int32)
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x_ptr += strip.to(tl.int64) * count
    slope = tl.load(slope_ptr + strip % channels)
    height = tl.load(height_ptr + strip % channels)
    # even samples take the odd taps, last one first; odd samples the even ones
    e0, e1, e2 = tl.load(up_ptr + 11), tl.load(up_ptr + 9), tl.load(up_ptr + 7)
    e3, e4, e5 = tl.load(up_ptr + 5), tl.load(up_ptr + 3), tl.load(up_ptr + 1)
    o0, o1, o2 = tl.load(up_ptr + 10), tl.load(up_ptr + 8), tl.load(up_ptr + 6)
    o3, o4, o5 = tl.load(up_ptr + 4), tl.load(up_ptr + 2), tl.load(up_ptr)
    top = n - 1
    x0 = tl.load(x_ptr + tl.minimum(tl.maximum(t - 5, 0), top)).to(tl.float32)
    x1 = tl.load(x_ptr + tl.minimum(tl.maximum(t - 4, 0), top)).to(tl.float32)
    x2 = tl.load(x_ptr + tl.minimum(tl.maximum(t - 3, 0), top)).to(tl.float32)
    x3 = tl.load(x_ptr + tl.minimum(tl.maximum(t - 2, 0), top)).to(tl.float32)
    x4 = tl.load(x_ptr + tl.minimum(tl.maximum(t - 1, 0), top)).to(tl.float32)
    x5 = tl.load(x_ptr + tl.minimum(t, top)).to(tl.float32)
    x6 = tl.load(x_ptr + tl.minimum(t + 1, top)).to(tl.float32)
    x7 = tl.load(x_ptr + tl.minimum(t + 2, top)).to(tl.float32)
    x8 = tl.load(x_ptr + tl.minimum(t + 3, top)).to(tl.float32)
    x9 = tl.load(x_ptr + tl.minimum(t + 4, top)).to(tl.float32)
    x10 = tl.load(x_ptr + tl.minimum(t + 5, top)).to(tl.float32)
    # first and last sample of the doubled signal, which stand for all beyond them
    a = tl.load(x_ptr).to(tl.float32)
    b = tl.load(x_ptr + tl.minimum(1, top)).to(tl.float32)
    c = tl.load(x_ptr + tl.minimum(2, top)).to(tl.float32)
    first = _bent(a, a, a, a, b, c, e0, e1, e2, e3, e4, e5, slope, height)
    a = tl.load(x_ptr + top).to(tl.float32)
    b = tl.load(x_ptr + tl.maximum(top - 1, 0)).to(tl.float32)
    c = tl.load(x_ptr + tl.maximum(top - 2, 0)).to(tl.float32)
    last = _bent(c, b, a, a, a, a, o0, o1, o2, o3, o4, o5, slope, height)
    y0 = _bent(x0, x1, x2, x3, x4, x5, o0, o1, o2, o3, o4, o5, slope, height)
    y1 = _bent(x0, x1, x2, x3, x4, x5, e0, e1, e2, e3, e4, e5, slope, height)
    y2 = _bent(x1, x2, x3, x4, x5, x6, o0, o1, o2, o3, o4, o5, slope, height)
    y3 = _bent(x1, x2, x3, x4, x5, x6, e0, e1, e2, e3, e4, e5, slope, height)
    y4 = _bent(x2, x3, x4, x5, x6, x7, o0, o1, o2, o3, o4, o5, slope, height)
    y5 = _bent(x2, x3, x4, x5, x6, x7, e0, e1, e2, e3, e4, e5, slope, height)
    y6 = _bent(x3, x4, x5, x6, x7, x8, o0, o1, o2, o3, o4, o5, slope, height)
    y7 = _bent(x3, x4, x5, x6, x7, x8, e0, e1, e2, e3, e4, e5, slope, height)
    y8 = _bent(x4, x5, x6, x7, x8, x9, o0, o1, o2, o3, o4, o5, slope, height)
    y9 = _bent(x4, x5, x6, x7, x8, x9, e0, e1, e2, e3, e4, e5, slope, height)
    y10 = _bent(x5, x6, x7, x8, x9, x10, o0, o1, o2, o3, o4, o5, slope, height)
    y11 = _bent(x5, x6, x7, x8, x9, x10, e0, e1, e2, e3, e4, e5, slope, height)
    m = 2 * t - 5  # place of y0 in the doubled signal
    end = 2 * n
    out = tl.load(down_ptr) * _held(y0, m, end, first, last)
    out += tl.load(down_ptr + 1) * _held(y1, m + 1, end, first, last)
    out += tl.load(down_ptr + 2) * _held(y2, m + 2, end, first, last)
    out += tl.load(down_ptr + 3) * _held(y3, m + 3, end, first, last)
    out += tl.load(down_ptr + 4) * _held(y4, m + 4, end, first, last)
    out += tl.load(down_ptr + 5) * _held(y5, m + 5, end, first, last)
    out += tl.load(down_ptr + 6) * _held(y6, m + 6, end, first, last)
    out += tl.load(down_ptr + 7) * _held(y7, m + 7, end, first, last)
    out += tl.load(down_ptr + 8) * _held(y8, m + 8, end, first, last)
    out += tl.load(down_ptr + 9) * _held(y9, m + 9, end, first, last)
    out += tl.load(down_ptr + 10) * _held(y10, m + 10, end, first, last)
    out += tl.load(down_ptr + 11) * _held(y11, m + 11, end, first, last)
    out = tl.where(t < n, out, 0.0)
    tl.store(out_ptr + strip.to(tl.int64) * count + t, out, mask=t < count)


@triton.jit
def _held(y, m, end, first, last):
    """A sample, or the end of the signal where it lies beyond."""
    return tl.where(m < 0, first, tl.where(m >= end, last, y))
