"""w2v-bert: samples -> semantic states, 50 per second (the library's, cut to the layers used)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

from engine.backends.indextts2 import release, weights
from engine.backends.indextts2.config import SEMANTIC_DIM
from engine.backends.indextts2.errors import UnsupportedModel, WeightsWrong
from engine.backends.indextts2.features import SEMANTIC_RATE_HZ
from engine.backends.indextts2.model import Model


class SemanticEncoder:
    """Loads only the layers whose output is used; the others never leave the file."""

    def __init__(self, model: Model) -> None:
        settings_path = release.find(model.dir, "w2v_config")
        settings = Wav2Vec2BertConfig.from_json_file(str(settings_path))
        layer = model.config.w2v_layer
        if layer > settings.num_hidden_layers or settings.hidden_size != SEMANTIC_DIM:
            raise UnsupportedModel(
                f"{settings_path}: {settings.num_hidden_layers} layers of {settings.hidden_size}; "
                f"{layer} of {SEMANTIC_DIM} are needed"
            )
        settings.num_hidden_layers = layer
        self.device = torch.device(model.placement.voice_device)
        self.extract = SeamlessM4TFeatureExtractor.from_pretrained(settings_path.parent)
        net: Any = model.part("w2v", lambda: Wav2Vec2BertModel(settings), weights.folded_state)
        self.net = net.to(self.device)
        self.mean, self.std = (s.to(self.device) for s in _statistics(model.dir))

    def features(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) samples at 16 kHz -> (1, T, 160) stacked filterbank and (1, T) mask."""
        batch = self.extract(
            wave.cpu().numpy(), sampling_rate=SEMANTIC_RATE_HZ, return_tensors="pt"
        )
        return batch["input_features"], batch["attention_mask"]

    def states(self, features: Tensor, mask: Tensor) -> Tensor:
        """Filterbank and mask -> (1, T, 1024) raw states of the last layer that is used."""
        out = self.net(input_features=features.to(self.device), attention_mask=mask.to(self.device))
        states: Tensor = out.last_hidden_state
        return states

    def __call__(self, wave: Tensor) -> Tensor:
        """(N,) samples at 16 kHz -> (1, T, 1024) states, normalised by the release's statistics."""
        return (self.states(*self.features(wave)) - self.mean) / self.std


def _statistics(model_dir: Path) -> tuple[Tensor, Tensor]:
    path = release.find(model_dir, "stats")
    raw = weights.flat_state(weights.read_state(path), path)
    for key in ("mean", "var"):
        if key not in raw or raw[key].numel() != SEMANTIC_DIM:
            raise WeightsWrong(f"{path}: '{key}' of {SEMANTIC_DIM} values is missing")
    return raw["mean"].float(), raw["var"].float().sqrt()
