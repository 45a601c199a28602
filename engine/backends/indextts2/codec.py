"""Semantic codec (MaskGCT): w2v-bert states -> codes and back to vectors. Encoder and quantiser
only.

Letters: B rows, T frames (50 per second), N codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.backends.indextts2.config import SEMANTIC_DIM, CodecConfig

_EPS = 1e-6


class _ConvNext(nn.Module):
    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(cfg.width, cfg.width, 7, padding=3, groups=cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=_EPS)
        self.pwconv1 = nn.Linear(cfg.width, cfg.ffn)
        self.pwconv2 = nn.Linear(cfg.ffn, cfg.width)
        self.gamma = nn.Parameter(torch.ones(cfg.width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).transpose(1, 2))
        y = self.pwconv2(F.gelu(self.pwconv1(y))) * self.gamma
        out: Tensor = x + y.transpose(1, 2)
        return out


class _Backbone(nn.Module):
    """(B, 1024, T) -> (B, T, width)."""

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        self.embed = nn.Conv1d(SEMANTIC_DIM, cfg.width, 7, padding=3)
        self.norm = nn.LayerNorm(cfg.width, eps=_EPS)
        self.convnext = nn.ModuleList(_ConvNext(cfg) for _ in range(cfg.layers))
        self.final_layer_norm = nn.LayerNorm(cfg.width, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.embed(x).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            y = block(y)
        out: Tensor = self.final_layer_norm(y.transpose(1, 2))
        return out


class _Quantizer(nn.Module):
    """Nearest codebook row by angle; the row itself, not its direction, is what is looked up."""

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        self.in_project = nn.Conv1d(SEMANTIC_DIM, cfg.code_dim, 1)
        self.out_project = nn.Conv1d(cfg.code_dim, SEMANTIC_DIM, 1)
        self.codebook = nn.Embedding(cfg.codebook, cfg.code_dim)

    def nearest(self, x: Tensor) -> Tensor:
        """(B, 1024, T) -> (B, T) codes."""
        rows = F.normalize(self.codebook.weight)
        directions = F.normalize(self.in_project(x), dim=1).transpose(1, 2)
        return (directions @ rows.t()).argmax(-1)

    def vectors(self, codes: Tensor) -> Tensor:
        """(B, N) codes -> (B, N, 1024)."""
        out: Tensor = self.out_project(self.codebook(codes).transpose(1, 2)).transpose(1, 2)
        return out


class _Quantizers(nn.Module):
    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList([_Quantizer(cfg)])


class SemanticCodec(nn.Module):
    """Encoder and quantiser; the published decoder is not needed to speak."""

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        self.encoder = nn.Sequential(_Backbone(cfg), nn.Linear(cfg.width, SEMANTIC_DIM))
        self.quantizer = _Quantizers(cfg)

    def quantise(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 1024) semantic features -> (B, T) codes and (B, T, 1024) their vectors."""
        encoded = self.encoder(features.transpose(1, 2))  # (B, T, 1024)
        codes = self._only().nearest(encoded.transpose(1, 2))
        return codes, self.embed(codes)

    def embed(self, codes: Tensor) -> Tensor:
        """(B, N) codes -> (B, N, 1024) vectors."""
        return self._only().vectors(codes)

    def _only(self) -> _Quantizer:
        quantizer = self.quantizer.quantizers[0]
        assert isinstance(quantizer, _Quantizer)
        return quantizer
