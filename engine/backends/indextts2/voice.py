"""Reference audio -> everything a voice needs to speak; computed once, kept in memory and on disk.

Letters: T semantic frames (50 per second), P mel frames (86.13 per second), D width of the GPT, C
condition width.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.backends.indextts2 import weights
from engine.backends.indextts2.campplus import CamPlus
from engine.backends.indextts2.config import HOP, SAMPLE_RATE_HZ
from engine.backends.indextts2.features import (
    SEMANTIC_RATE_HZ,
    log_mel,
    resample,
    style_features,
)
from engine.backends.indextts2.library import Wave, read_audio
from engine.backends.indextts2.model import Model
from engine.backends.indextts2.semantic import SemanticEncoder
from engine.errors import BadRequest

log = logging.getLogger(__name__)

LONGEST_S = 15.0  # the model uses no more of a reference
PROMPT_S = 2.5  # of the short prompt for live speech
_FILE_WIDTH = 32  # zero crossings of the resampler that files are read with
_RECIPE = "1"  # part of every cache key: change it when features change


@dataclass(frozen=True, slots=True)
class VoiceFeatures:
    """A voice, ready to speak; all float32 on the synthesis device.

    Attributes:
        latents: (32, D) speaker latents.
        base_emotion: (D,) emotion vector from the speaker's features.
        own_emotion: (D,) emotion vector of the same recording read as an emotion reference, which
            is resampled another way; what is used when no emotion is asked for.
        style: (192,).
        mel: (80, P) of the whole reference.
        condition: (P, C) of the whole reference.
        short_mel, short_condition: the same for the cleanest PROMPT_S seconds; the prompt of live
            speech, where every chunk pays for the prompt's length again.
    """

    latents: Tensor
    base_emotion: Tensor
    own_emotion: Tensor
    style: Tensor
    mel: Tensor
    condition: Tensor
    short_mel: Tensor
    short_condition: Tensor


class VoiceFrontEnd:
    """Runs reference audio through w2v-bert, codec, CAMPPlus, conformers and perceivers.

    Loaded on first use: a worker whose voices are cached never needs these parts in memory.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._device = torch.device(model.placement.voice_device)
        self._semantic = SemanticEncoder(model)
        self._style = model.part("campplus", CamPlus, weights.folded_state).to(self._device)

    @torch.inference_mode()
    def features(self, wave: Tensor, rate_hz: int) -> VoiceFeatures:
        """(N,) samples of a reference -> the voice; only the first 15 s are used."""
        model = self._model
        at_22k = resample(wave, rate_hz, SAMPLE_RATE_HZ, width=_FILE_WIDTH)
        at_22k = at_22k[: int(LONGEST_S * SAMPLE_RATE_HZ)].to(self._device)
        at_16k = resample(at_22k, SAMPLE_RATE_HZ, SEMANTIC_RATE_HZ)
        states = self._semantic(at_16k)
        _, vectors = model.codec.quantise(states.to(model.device))  # (1, T, 1024)
        mel = log_mel(at_22k[None])[0].to(model.device)
        condition = model.regulator(vectors, mel.shape[1])[0]
        first, last = quietest_edges(at_22k, int(PROMPT_S * SAMPLE_RATE_HZ / HOP))
        codes = slice(first * 100 // 172, max(first * 100 // 172 + 1, last * 100 // 172))
        for_gpt = states.to(model.device, model.placement.gpt_dtype)
        return VoiceFeatures(
            latents=model.gpt.speaker_latents(for_gpt)[0].float(),
            base_emotion=model.gpt.emotion_vector(for_gpt)[0].float(),
            own_emotion=self._emotion(wave, rate_hz),
            style=self._style(style_features(at_16k))[0].to(model.device),
            mel=mel,
            condition=condition,
            short_mel=mel[:, first:last].contiguous(),
            short_condition=model.regulator(vectors[:, codes], last - first)[0],
        )

    def _emotion(self, wave: Tensor, rate_hz: int) -> Tensor:
        """(D,) of a recording read straight at 16 kHz, as emotion references are."""
        at_16k = resample(wave, rate_hz, SEMANTIC_RATE_HZ, width=_FILE_WIDTH)
        at_16k = at_16k[: int(LONGEST_S * SEMANTIC_RATE_HZ)].to(self._device)
        states = self._semantic(at_16k)
        gpt = self._model.gpt
        device, dtype = self._model.device, self._model.placement.gpt_dtype
        return gpt.emotion_vector(states.to(device, dtype))[0].float()


def quietest_edges(wave: Tensor, frames: int) -> tuple[int, int]:
    """The mel frames [first, last) of the stretch with most speech that begins and ends in a pause.

    Args:
        wave: (N,) at 22,050 Hz.
        frames: wanted length; all of a shorter wave.
    """
    energy = wave[: len(wave) // HOP * HOP].view(-1, HOP).square().mean(1)
    total = len(energy)
    if total <= frames:
        return 0, total
    level = (energy + 1e-10).log10()
    speech = (level > level.max() - 3.5).float()
    sums = torch.cat([torch.zeros(1, device=wave.device), speech.cumsum(0)])
    inside = (sums[frames:] - sums[:-frames]) / frames
    edges = level[: total - frames + 1] + level[frames - 1 :]
    first = int((inside - 0.05 * edges[: len(inside)]).argmax())
    return first, first + frames


class VoiceCache:
    """Voices by content hash: the same recording under another name or path is the same voice.

    Args:
        model: whose features they are.
        folder: where they are kept across restarts; None keeps them in memory only.
        in_memory: voices held in memory, the least recently used leaves first.
    """

    def __init__(self, model: Model, folder: Path | None = None, *, in_memory: int = 64) -> None:
        self._model = model
        self._folder = folder
        self._most = in_memory
        self._held: OrderedDict[str, VoiceFeatures] = OrderedDict()
        self._front_end: VoiceFrontEnd | None = None

    def of_file(self, clip: Path) -> VoiceFeatures:
        """Features of a recording.

        Raises:
            BadRequest: it is no audio file.
        """
        key = self.key(clip.read_bytes())
        return self._recall(key) or self._learn(key, *read_audio(clip))

    def of_wave(self, wave: Wave, rate_hz: int) -> VoiceFeatures:
        """Features of samples that are not in a file."""
        key = self.key(wave.tobytes() + str(rate_hz).encode())
        return self._recall(key) or self._learn(key, wave, rate_hz)

    def key(self, content: bytes) -> str:
        """What the features of a recording are kept under."""
        of_model = f"{self._model.digest}:{_RECIPE}:{LONGEST_S}:{PROMPT_S}:".encode()
        return hashlib.sha256(of_model + content).hexdigest()[:40]

    def _recall(self, key: str) -> VoiceFeatures | None:
        if key not in self._held and self._folder is not None:
            path = self._folder / f"{key}.safetensors"
            if path.is_file():
                device = str(self._model.device)
                self._held[key] = VoiceFeatures(**load_file(path, device=device))
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def _learn(self, key: str, wave: Wave, rate_hz: int) -> VoiceFeatures:
        if len(wave) < rate_hz // 2:
            raise BadRequest("a reference needs at least half a second of sound", field="voice")
        if self._front_end is None:
            self._front_end = VoiceFrontEnd(self._model)
        features = self._front_end.features(torch.from_numpy(wave), rate_hz)
        self._held[key] = features
        while len(self._held) > self._most:
            self._held.popitem(last=False)
        if self._folder is not None:
            self._keep(key, features)
        log.info("voice learnt", extra={"key": key})
        return features

    def _keep(self, key: str, features: VoiceFeatures) -> None:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = self._folder / f".{key}.{os.getpid()}"
        parts = {f.name: getattr(features, f.name).cpu().contiguous() for f in fields(features)}
        save_file(parts, fresh)
        fresh.replace(self._folder / f"{key}.safetensors")
