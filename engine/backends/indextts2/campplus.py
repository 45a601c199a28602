"""CAMPPlus speaker encoder: 80-band fbank -> style vector of 192 (context-aware masking, dense
TDNN).

Letters: B rows, T fbank frames (100 per second), C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.backends.indextts2.config import STYLE_DIM

_GROWTH = 32
_BOTTLENECK = 128
_WINDOW = 100  # frames per context segment
_BLOCKS = ((12, 1), (24, 2), (16, 2))  # layers and dilation of the dense blocks


class _Norm(nn.Module):
    """Batch norm with a ReLU; published keys put it under `batchnorm`."""

    def __init__(self, channels: int, *, affine: bool = True, relu: bool = True) -> None:
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(channels, affine=affine)
        self._relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.batchnorm(x)
        return F.relu(y) if self._relu else y


class _Residual(nn.Module):
    """Two 3x3 convolutions; the stride, if any, is on the frequency axis only."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, (stride, 1), 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.append(nn.Conv2d(channels, channels, 1, (stride, 1), bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class _Head(nn.Module):
    """(B, 80, T) as a one-channel image -> (B, 320, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layer1 = nn.Sequential(_Residual(32, 2), _Residual(32, 1))
        self.layer2 = nn.Sequential(_Residual(32, 2), _Residual(32, 1))
        self.conv2 = nn.Conv2d(32, 32, 3, (2, 1), 1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x.unsqueeze(1))))
        y = F.relu(self.bn2(self.conv2(self.layer2(self.layer1(y)))))
        return y.flatten(1, 2)


class _ContextMask(nn.Module):
    """A convolution gated by what the whole clip and its surroundings sound like."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(
            _BOTTLENECK, _GROWTH, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.linear1 = nn.Conv1d(_BOTTLENECK, _BOTTLENECK // 2, 1)
        self.linear2 = nn.Conv1d(_BOTTLENECK // 2, _GROWTH, 1)

    def forward(self, h: Tensor) -> Tensor:
        # ceil_mode: the last window averages its real frames only
        window = F.avg_pool1d(h, _WINDOW, _WINDOW, ceil_mode=True)
        window = window.repeat_interleave(_WINDOW, -1)[..., : h.shape[-1]]
        context = h.mean(-1, keepdim=True) + window
        gate = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))
        out: Tensor = self.linear_local(h) * gate
        return out


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = _Norm(channels)
        self.linear1 = nn.Conv1d(channels, _BOTTLENECK, 1, bias=False)
        self.nonlinear2 = _Norm(_BOTTLENECK)
        self.cam_layer = _ContextMask(dilation)

    def forward(self, x: Tensor) -> Tensor:
        h = self.nonlinear2(self.linear1(self.nonlinear1(x)))
        return torch.cat([x, self.cam_layer(h)], 1)


class _Tdnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Conv1d(320, 128, 5, 2, 2, bias=False)
        self.nonlinear = _Norm(128)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.nonlinear(self.linear(x))
        return y


class _Transit(nn.Module):
    """Halve the channels after a dense block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nonlinear = _Norm(channels)
        self.linear = nn.Conv1d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.nonlinear(x))
        return y


class _Embed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, STYLE_DIM, 1, bias=False)
        self.nonlinear = _Norm(STYLE_DIM, affine=False, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.nonlinear(self.linear(x.unsqueeze(-1)))
        return y.squeeze(-1)


class _Xvector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tdnn = _Tdnn()
        channels = 128
        for number, (layers, dilation) in enumerate(_BLOCKS, 1):
            block = nn.Sequential()
            for i in range(layers):
                block.add_module(f"tdnnd{i + 1}", _DenseLayer(channels, dilation))
                channels += _GROWTH
            self.add_module(f"block{number}", block)
            self.add_module(f"transit{number}", _Transit(channels))
            channels //= 2
        self.out_nonlinear = _Norm(channels)
        self.dense = _Embed(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tdnn(x)  # (B, 128, ceil(T / 2))
        for number in range(1, len(_BLOCKS) + 1):
            y = self.get_submodule(f"transit{number}")(self.get_submodule(f"block{number}")(y))
        y = self.out_nonlinear(y)  # (B, 512, ceil(T / 2))
        pooled = torch.cat([y.mean(-1), y.std(-1, unbiased=True)], -1)  # (B, 1024)
        out: Tensor = self.dense(pooled)
        return out


class CamPlus(nn.Module):
    """Speaker encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.head = _Head()
        self.xvector = _Xvector()

    def forward(self, fbank: Tensor) -> Tensor:
        """(B, T, 80) log fbank, mean over time removed -> (B, 192) style."""
        y: Tensor = self.xvector(self.head(fbank.transpose(1, 2)))
        return y
