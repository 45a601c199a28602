"""A release in memory: every part built, checked against its file, and put where it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from engine.backends.indextts2 import release, weights
from engine.backends.indextts2.cfm import Dit, Solver
from engine.backends.indextts2.codec import SemanticCodec
from engine.backends.indextts2.config import STYLE_DIM, read_config
from engine.backends.indextts2.errors import UnsupportedModel
from engine.backends.indextts2.gpt import Gpt
from engine.backends.indextts2.s2mel import LatentProjection, LengthRegulator
from engine.backends.indextts2.vocoder import BigVgan

PartT = TypeVar("PartT", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the model runs.

    Attributes:
        device: of everything on the way from text to sound.
        voice_device: of what runs once per voice (w2v-bert, codec encoder, CAMPPlus).
        gpt_dtype: of the transformer's weights and cache; everything else is float32.
    """

    device: str = "cpu"
    voice_device: str = "cpu"
    gpt_dtype: torch.dtype = torch.float32

    @classmethod
    def best(cls) -> Placement:
        """The GPU where there is one (bfloat16 where it has it, else float16); else the CPU."""
        if not torch.cuda.is_available():
            return cls()
        has_bf16 = torch.cuda.get_device_capability()[0] >= 8
        dtype = torch.bfloat16 if has_bf16 else torch.float16
        return cls(device="cuda", voice_device="cuda", gpt_dtype=dtype)


class Model:
    """The synthesis path of a release; what only new voices need is loaded by
    `voice.VoiceFrontEnd`.

    Raises:
        ModelUnusable: files are missing, tensors are missing or ill-shaped, or the version is not
            2.0.
    """

    def __init__(self, model_dir: Path, placement: Placement | None = None) -> None:
        release.check_files(model_dir)
        self.dir = model_dir
        self.placement = placement or Placement()
        self.device = torch.device(self.placement.device)
        self.config = cfg = read_config(model_dir, release.find(model_dir, "vocoder_config"))
        if cfg.gpt.start_mel < cfg.codec.codebook:
            raise UnsupportedModel(
                f"config.yaml: start_mel_token {cfg.gpt.start_mel} lies inside the "
                f"{cfg.codec.codebook} codes of the codec"
            )
        self.gpt = self.part("gpt", lambda: Gpt(cfg.gpt), weights.gpt_state)
        self.gpt = self.gpt.to(self.device, self.placement.gpt_dtype)
        path = release.find(model_dir, "s2mel")
        parts = weights.s2mel_states(weights.read_state(path), path)

        def of_s2mel(make: Callable[[], PartT], key: str) -> PartT:
            return weights.build(make, parts[key], part=f"{path}, net.{key}").to(self.device)

        self.dit = of_s2mel(lambda: Dit(cfg.s2mel), "cfm")
        self.regulator = of_s2mel(lambda: LengthRegulator(cfg.s2mel), "length_regulator")
        self.projection = of_s2mel(lambda: LatentProjection(cfg.s2mel), "gpt_layer")
        self.solver = Solver(self.dit)
        self.codec = self.part("codec", lambda: SemanticCodec(cfg.codec), weights.folded_state)
        self.codec = self.codec.to(self.device)
        self.vocoder = self.part("vocoder", lambda: BigVgan(cfg.vocoder), weights.vocoder_state)
        self.vocoder = self.vocoder.to(self.device)

    @cached_property
    def code_vectors(self) -> Tensor:
        """(codes, 1024) vector of every code."""
        every = torch.arange(self.config.codec.codebook, device=self.device)
        return self.codec.embed(every[None])[0]

    @cached_property
    def emotion_matrices(self) -> tuple[Tensor, Tensor]:
        """(73, 192) speaker rows and (73, D) emotion rows, on the CPU."""
        rows = sum(self.config.emotion_rows)
        return (
            self._tensor("speaker_rows", (rows, STYLE_DIM)),
            self._tensor("emotion_rows", (rows, self.config.gpt.width)),
        )

    @cached_property
    def digest(self) -> str:
        """Changes when a weight file is exchanged."""
        return release.digest(self.dir)

    def part(
        self,
        name: str,
        make: Callable[[], PartT],
        to_state: Callable[[Any, Path], weights.State],
    ) -> PartT:
        """Build one part from the file called `name` in the release, on the CPU."""
        path = release.find(self.dir, name)
        return weights.build(make, to_state(weights.read_state(path), path), part=str(path))

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        path = release.find(self.dir, name)
        return weights.tensor(weights.read_state(path), path, shape)
