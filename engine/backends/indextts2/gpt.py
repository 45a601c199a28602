"""Text and conditioning -> codes and latents: a GPT-2 style transformer with a slotted KV cache.

Letters: B rows, L text ids, K positions of one call, C cached positions, D model width, H heads, V
codes.

The sequence is: 32 speaker latents plus emotion, two duration slots, start, text, stop, then the
start code and the codes. All linear layers are stored [in, out] in the file and transposed at load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.backends.indextts2.conditioning import Conformer, Perceiver
from engine.backends.indextts2.config import SEMANTIC_DIM, GptConfig

Positions = Literal["aligned", "upstream"]
_EPS = 1e-5
SLOT_COUNT = 2  # duration slots between conditioning and text


class KvCache:
    """Keys and values of every slot: (layers, 2, slots, H, positions, 64).

    A slot belongs to one sequence from prefill to its last code; what an earlier sequence left
    behind `lengths` is never read.
    """

    def __init__(
        self,
        cfg: GptConfig,
        *,
        slots: int,
        positions: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (cfg.layers, 2, slots, cfg.heads, positions, cfg.width // cfg.heads)
        self.data = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * slots
        self.positions = positions

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return self.data.numel() * self.data.element_size()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a call's keys and values go, and what its queries see; the same for every layer.

    Attributes:
        rows: (B, K) slots.
        at: (B, K) positions in them.
        visible: cached positions the call looks at, its own included.
        mask: (B, 1, K, C) True where a query may look; None when it may look at all of them.
        side_by_side: the slots, when they are neighbours: their cache is then read in place.
    """

    cache: KvCache
    rows: Tensor
    at: Tensor
    visible: int
    mask: Tensor | None
    side_by_side: slice | None


def _place(cache: KvCache, slots: list[int], count: int, device: torch.device) -> _Place:
    starts = [cache.lengths[slot] for slot in slots]
    visible = max(starts) + count
    if visible > cache.positions:
        raise ValueError(f"sequence of {visible} positions; a slot holds {cache.positions}")
    at = torch.tensor(starts, device=device)[:, None] + torch.arange(count, device=device)
    is_alone = len(slots) == 1
    mask = None
    if not (is_alone and count == 1):
        mask = torch.arange(visible, device=device) <= at[:, None, :, None]
    rows = torch.tensor(slots, device=device)[:, None].expand_as(at)
    in_place = slice(slots[0], slots[0] + 1) if is_alone else None
    return _Place(cache, rows, at, visible, mask, in_place)


def _first_slots(cache: KvCache, starts: Tensor, visible: int) -> _Place:
    """One position for each of the first slots, without a question to the host."""
    at = starts.clamp(max=cache.positions - 1)[:, None]  # (B, 1)
    mask = torch.arange(visible, device=at.device) <= at[:, None, :, None]
    rows = torch.arange(len(at), device=at.device)[:, None]
    return _Place(cache, rows, at, visible, mask, slice(0, len(at)))


class _Attention(nn.Module):
    def __init__(self, cfg: GptConfig) -> None:
        super().__init__()
        self.heads = cfg.heads
        self.c_attn = nn.Linear(cfg.width, 3 * cfg.width)
        self.c_proj = nn.Linear(cfg.width, cfg.width)

    def forward(self, x: Tensor, place: _Place | None, layer: int) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, K, 64)
            for part in self.c_attn(x).chunk(3, -1)
        )
        if place is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mixed = _cached_attention(q, k, v, place, layer)
        out: Tensor = self.c_proj(mixed.transpose(1, 2).flatten(2))
        return out


def _cached_attention(q: Tensor, k: Tensor, v: Tensor, place: _Place, layer: int) -> Tensor:
    stored = place.cache.data[layer]  # (2, slots, H, positions, 64)
    for kept, fresh in zip(stored, (k, v), strict=True):
        kept.transpose(1, 2)[place.rows, place.at] = fresh.transpose(1, 2).to(kept.dtype)
    neighbours = place.rows[:, 0] if place.side_by_side is None else place.side_by_side
    seen = stored[:, neighbours, :, : place.visible]
    keys, values = seen.to(q.dtype).unbind(0)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=place.mask)


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class _Block(nn.Module):
    def __init__(self, cfg: GptConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(cfg.width, eps=_EPS)
        self.attn = _Attention(cfg)
        self.ln_2 = nn.LayerNorm(cfg.width, eps=_EPS)
        self.mlp = _Mlp(cfg.width)

    def forward(self, x: Tensor, place: _Place | None, layer: int) -> Tensor:
        x = x + self.attn(self.ln_1(x), place, layer)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class _Transformer(nn.Module):
    def __init__(self, cfg: GptConfig) -> None:
        super().__init__()
        self.h = nn.ModuleList(_Block(cfg) for _ in range(cfg.layers))
        self.ln_f = nn.LayerNorm(cfg.width, eps=_EPS)

    def forward(self, x: Tensor, place: _Place | None) -> Tensor:
        for layer, block in enumerate(self.h):
            x = block(x, place, layer)
        out: Tensor = self.ln_f(x)
        return out


class _Table(nn.Module):
    """A position table; published keys put it under `emb`."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(rows, width)


class Gpt(nn.Module):
    """Conditioning, text and codes in; code logits and latents out."""

    def __init__(self, cfg: GptConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.conditioning_encoder = Conformer(cfg.speaker)
        self.perceiver_encoder = Perceiver(cfg.speaker, dim=cfg.width, latents=cfg.latents)
        self.emo_conditioning_encoder = Conformer(cfg.emotion)
        self.emo_perceiver_encoder = Perceiver(cfg.emotion, dim=SEMANTIC_DIM, latents=1)
        self.emovec_layer = nn.Linear(SEMANTIC_DIM, cfg.width)
        self.emo_layer = nn.Linear(cfg.width, cfg.width)
        self.speed_emb = nn.Embedding(2, cfg.width)
        self.text_embedding = nn.Embedding(cfg.text_tokens + 1, cfg.width)
        self.text_pos_embedding = _Table(cfg.max_text + 2, cfg.width)
        self.mel_embedding = nn.Embedding(cfg.mel_tokens, cfg.width)
        self.mel_pos_embedding = _Table(cfg.max_mel + 3, cfg.width)
        self.gpt = _Transformer(cfg)
        self.final_norm = nn.LayerNorm(cfg.width, eps=_EPS)
        self.mel_head = nn.Linear(cfg.width, cfg.mel_tokens)

    # conditioning ----------------------------------------------------------------------------

    def speaker_latents(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T, 1024) semantic features -> (B, 32, D)."""
        out: Tensor = self.perceiver_encoder(*self.conditioning_encoder(features, lengths))
        return out

    def emotion_vector(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T, 1024) semantic features -> (B, D)."""
        latent = self.emo_perceiver_encoder(*self.emo_conditioning_encoder(features, lengths))
        out: Tensor = self.emo_layer(self.emovec_layer(latent[:, 0]))
        return out

    # sequences -------------------------------------------------------------------------------

    def prefix(self, latents: Tensor, emotion: Tensor, text: list[int]) -> Tensor:
        """Embeddings in front of the codes.

        Args:
            latents: (32, D) speaker latents.
            emotion: (D,) emotion vector, added to each of them.
            text: piece ids; ids equal to the start or stop mark are dropped, in this pass and in
                every other, so that prefix and latents always belong together.

        Returns:
            (34 + 2 + len(text), D).

        Raises:
            ValueError: more ids than the model has positions for.
        """
        marks = (self.cfg.start_text, self.cfg.stop_text)
        inner = [i for i in text if i not in marks]
        if len(inner) > self.cfg.max_text:
            raise ValueError(f"{len(inner)} text pieces; the model takes {self.cfg.max_text}")
        device = latents.device
        ids = torch.tensor([marks[0], *inner, marks[1]], device=device)
        embedded = self.text_embedding(ids) + self.text_pos_embedding.emb.weight[: len(ids)]
        slots = self.speed_emb.weight.flip(0)
        return torch.cat([latents + emotion, slots, embedded])

    def code_embeddings(self, codes: Tensor, positions: Tensor) -> Tensor:
        """Codes and their positions, both (...), -> (..., D)."""
        out: Tensor = self.mel_embedding(codes) + self.mel_pos_embedding.emb(positions)
        return out

    def latents(self, prefix: Tensor, codes: Tensor) -> Tensor:
        """Latents of known codes, by one pass over the whole sequence.

        Args:
            prefix: (36 + L, D), as made by `prefix`.
            codes: (N,).

        Returns:
            (N, D): row i is the normed output at the input before code i.
        """
        ends = [codes.new_tensor([mark]) for mark in (self.cfg.start_mel, self.cfg.stop_mel)]
        sequence = torch.cat([ends[0], codes, ends[1]])
        positions = torch.arange(len(sequence), device=codes.device)
        x = torch.cat([prefix, self.code_embeddings(sequence, positions)])[None]
        hidden = self.final_norm(self.gpt(x, None))[0, len(prefix) :]
        out: Tensor = hidden[: len(codes)]
        return out

    def prefill(self, prefix: Tensor, cache: KvCache, slot: int) -> tuple[Tensor, Tensor]:
        """Read prefix and start code into a slot.

        Returns:
            (V,) float32 logits of the first code, and (D,) its latent.
        """
        start = torch.tensor([self.cfg.start_mel], device=prefix.device)
        x = torch.cat([prefix, self.code_embeddings(start, torch.zeros_like(start))])[None]
        cache.lengths[slot] = 0
        hidden = self._cached(x, cache, [slot])[:, -1]
        return self._logits(hidden)[0], hidden[0]

    def step(
        self, codes: Tensor, positions: Tensor, cache: KvCache, slots: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Append one code to each of several slots.

        Args:
            codes: (B,) the codes just drawn.
            positions: (B,) their indices into the position table (see `code_position`).
            slots: their slots, all different.

        Returns:
            (B, V) float32 logits of the next codes, and (B, D) their latents.
        """
        hidden = self._cached(self.code_embeddings(codes, positions)[:, None], cache, slots)[:, 0]
        return self._logits(hidden), hidden

    def step_first_slots(
        self, codes: Tensor, positions: Tensor, cache: KvCache, starts: Tensor, *, visible: int
    ) -> tuple[Tensor, Tensor]:
        """As `step`, for slots 0 to B - 1 and with shapes that depend on B and `visible` alone.

        Nothing is asked of the host and `cache.lengths` stays as it is. A slot whose result is not
        wanted is left as it was: what is written at `starts` lies beyond its length.

        Args:
            codes, positions: (B,).
            cache: of at least B slots.
            starts: (B,) lengths of the slots.
            visible: cached positions to look at, above the longest start.
        """
        place = _first_slots(cache, starts, visible)
        x = self.code_embeddings(codes, positions)[:, None]
        hidden: Tensor = self.final_norm(self.gpt(x, place))[:, 0]
        return self._logits(hidden), hidden

    def _cached(self, x: Tensor, cache: KvCache, slots: list[int]) -> Tensor:
        place = _place(cache, slots, x.shape[1], x.device)
        hidden: Tensor = self.final_norm(self.gpt(x, place))
        for slot in slots:
            cache.lengths[slot] += x.shape[1]
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.mel_head(hidden).float()
        return out


def code_position(k: int, positions: Positions) -> int:
    """Index into the position table of the k-th generated code (k from 1); the start code has 0.

    `aligned` is the layout the model was trained with, so the hidden states of decoding are the
    latents that the mel stage needs. `upstream` repeats a slip of the reference's decoder, which
    skips index 1; it is there for parity tests.
    """
    return k if positions == "aligned" else k + 1
