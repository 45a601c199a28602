"""Emotion, four roads: the reference's own, another recording, eight weights, a description.

All end in one vector (D,) that is added to every speaker latent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.backends.indextts2.model import Model
from engine.backends.indextts2.voice import VoiceFeatures
from engine.errors import BadRequest, UnsupportedFeature

NAMES = ("happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm")
CHINESE = ("高兴", "愤怒", "悲伤", "恐惧", "反感", "低落", "惊讶", "自然")
DEFAULT_STRENGTH = 0.65
MOST_TOTAL = 0.8  # a larger sum drowns the speaker
_BIAS = (0.9375, 0.875, 1.0, 1.0, 0.9375, 0.9375, 0.6875, 0.5625)
_MOST_SCORE = 1.2
_PRESETS: Mapping[str, Mapping[str, float]] = {
    "neutral": {},
    "calm": {"calm": 0.6},
    "serious": {"calm": 0.4, "angry": 0.1},
    "lively": {"happy": 0.5, "surprised": 0.15},
    "urgent": {"surprised": 0.35, "angry": 0.2, "afraid": 0.1},
    "sad": {"sad": 0.6},
}
_WEIGHTS = re.compile(r"[\w ]+:\s*[\d.]+(?:\s*,\s*[\w ]+:\s*[\d.]+)*")
_GLOOMY = re.compile("低落|melanchol(?:y|ic)|depress(?:ion|ed)|gloomy", re.IGNORECASE)

Vector = tuple[float, ...]
"""Eight weights in the order of NAMES."""


@dataclass(frozen=True, slots=True)
class Emotion:
    """What was asked for; at most one of the three roads, none is the reference's own emotion.

    Attributes:
        vector: eight weights, limited already.
        voice: id of a voice whose recording is the emotion reference.
        text: a description for the emotion model.
        strength: 0..1 of `voice` and `text`.
    """

    vector: Vector | None = None
    voice: str = ""
    text: str = ""
    strength: float = DEFAULT_STRENGTH


OWN = Emotion()


def limit(vector: Sequence[float], *, bias: bool = True) -> Vector:
    """Weights as the model is meant to get them.

    Args:
        vector: eight weights, 0 or more.
        bias: weaken emotions that the model overdoes.

    Returns:
        Eight weights whose sum is at most 0.8.
    """
    weights = [w * b for w, b in zip(vector, _BIAS, strict=True)] if bias else list(vector)
    total = sum(weights)
    if total > MOST_TOTAL:
        weights = [w * MOST_TOTAL / total for w in weights]
    return tuple(weights)


def weaken(vector: Sequence[float], strength: float) -> Vector:
    """Weights times a strength of 0..1, cut to four places as the reference does."""
    by = min(max(strength, 0.0), 1.0)
    if by == 1.0:
        return tuple(vector)
    return tuple(math.trunc(w * by * 10_000) / 10_000 for w in vector)


def parse(emotion: str, manner: str, is_voice: Callable[[str], bool]) -> Emotion:
    """Read the controls of a turn.

    Args:
        emotion: empty; a name (`happy`, `高兴`), weights (`happy:0.6, sad:0.2`), eight numbers
            (`[0.6,0,0,0,0,0,0,0]`), or a description in words; `...@0.5` weakens it.
        manner: a preset, or a voice id whose prosody is borrowed, `id@0.8` with a strength.
        is_voice: tells whether a name is a voice.

    Raises:
        BadRequest: weights that make no sense, or a manner nobody knows.
    """
    words, _, strength = emotion.strip().partition("@")
    if words:
        by = _number(strength) if strength else 1.0
        vector = _vector_of(words.strip())
        if vector is None:
            return Emotion(text=words.strip(), strength=by)
        return Emotion(vector=weaken(limit(vector), by))
    if manner in _PRESETS:
        weights = _PRESETS[manner]
        return Emotion(vector=tuple(weights.get(n, 0.0) for n in NAMES)) if weights else OWN
    name, _, strength = manner.partition("@")
    if not is_voice(name):
        raise BadRequest(
            f"manner '{manner}' is neither a preset ({', '.join(_PRESETS)}) nor a voice",
            field="manner",
        )
    return Emotion(voice=name, strength=_number(strength) if strength else DEFAULT_STRENGTH)


def _vector_of(text: str) -> Vector | None:
    if text.startswith("["):
        numbers = [_number(n) for n in text.strip("[] ").split(",")]
        if len(numbers) != len(NAMES):
            raise BadRequest(
                f"{len(numbers)} emotion weights; there are {len(NAMES)}: {', '.join(NAMES)}",
                field="emotion",
            )
        return tuple(numbers)
    if _WEIGHTS.fullmatch(text):
        return _named({n.strip(): _number(v) for n, v in (p.split(":") for p in text.split(","))})
    if text.lower() in NAMES or text in CHINESE:
        return _named({text: 1.0})
    return None


def _named(weights: Mapping[str, float]) -> Vector:
    vector = [0.0] * len(NAMES)
    for name, weight in weights.items():
        table = CHINESE if name in CHINESE else NAMES
        if name.lower() not in table:
            raise BadRequest(
                f"no emotion is called '{name}'; there are: {', '.join(NAMES)}", field="emotion"
            )
        vector[table.index(name.lower())] = weight
    return tuple(vector)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _MOST_SCORE:
        raise BadRequest(
            f"emotion weight '{text.strip()}' is not between 0 and {_MOST_SCORE}", field="emotion"
        )
    return value


def merge(base: Tensor, emotion: Tensor, strength: float) -> Tensor:
    """Move the speaker's own emotion vector towards another by `strength` (0 none, 1 all)."""
    return base + strength * (emotion - base)


def nearest_rows(style: Tensor, speaker_rows: Tensor, counts: Sequence[int]) -> list[int]:
    """For each emotion the row, among its own, whose speaker sounds most like this one.

    Args:
        style: (192,).
        speaker_rows: (73, 192), the rows of each emotion together.
        counts: rows of each emotion.

    Returns:
        Indices within each emotion's rows.
    """
    closeness = torch.nn.functional.cosine_similarity(style[None], speaker_rows, dim=-1)
    return [int(part.argmax()) for part in torch.split(closeness, list(counts))]


def apply(model: Model, voice: VoiceFeatures, vector: Vector) -> Tensor:
    """(D,) emotion of eight weights; what they leave of 1 is the speaker's own."""
    speaker_rows, emotion_rows = model.emotion_matrices
    counts = model.config.emotion_rows
    picks = nearest_rows(voice.style.cpu(), speaker_rows, counts)
    rows = torch.stack(
        [rows[i] for rows, i in zip(torch.split(emotion_rows, list(counts)), picks, strict=True)]
    )
    weights = torch.tensor(vector)
    asked = (weights[:, None] * rows).sum(0).to(voice.own_emotion)
    return asked + (1 - float(weights.sum())) * voice.own_emotion


# descriptions ---------------------------------------------------------------------------------


class Describer:
    """Words -> eight weights, by the language model in the release's `qwen0.6bemo4-merge` folder.

    Raises:
        UnsupportedFeature: the folder is not there; names the roads that work without it.
    """

    _SYSTEM = "文本情感分类"
    _END_OF_THOUGHT = 151_668
    _MOST_TOKENS = 256

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.check(folder)
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        self._model = model.to(device)

    @staticmethod
    def check(folder: Path) -> None:
        """Raise UnsupportedFeature unless the folder holds a model."""
        if not (folder / "config.json").is_file():
            raise UnsupportedFeature(
                f"emotion from a description needs the folder {folder.name} of the release in the "
                "model directory; without it use a name or weights (happy:0.6, sad:0.2), or "
                "another voice as manner",
                field="emotion",
            )

    @torch.inference_mode()
    def __call__(self, text: str) -> Vector:
        """Eight weights for a description."""
        messages = [{"role": "system", "content": self._SYSTEM}, {"role": "user", "content": text}]
        prompt = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        inputs = self._tokenizer([prompt], return_tensors="pt").to(self._model.device)
        out = self._model.generate(**inputs, max_new_tokens=self._MOST_TOKENS, do_sample=False)
        ids = out[0, inputs["input_ids"].shape[1] :].tolist()
        if self._END_OF_THOUGHT in ids:
            ids = ids[len(ids) - ids[::-1].index(self._END_OF_THOUGHT) :]
        scores = read_scores(self._tokenizer.decode(ids, skip_special_tokens=True))
        return to_vector(swap_gloom(text, scores))


def read_scores(answer: str) -> dict[str, float]:
    """Scores in the emotion model's answer: JSON, else `name: number` pairs, else a bare label."""
    try:
        raw = json.loads(answer)
    except ValueError:
        raw = {}
    if isinstance(raw, dict):
        scores = {k: float(v) for k, v in raw.items() if isinstance(v, int | float)}
        labels = [v for v in raw.values() if isinstance(v, str) and v in CHINESE]
        if scores or labels:
            return scores or dict.fromkeys(labels, 1.0)
    pairs = re.findall(rf"({'|'.join(CHINESE)})\"?\s*[:：]\s*([\d.]+)", answer)
    if pairs:
        return {name: float(value) for name, value in pairs}
    return {name: 1.0 for name in CHINESE if answer.strip(" \"'。.\n") == name}


def swap_gloom(text: str, scores: Mapping[str, float]) -> dict[str, float]:
    """For gloomy descriptions exchange sad and melancholic: the model never answers the latter."""
    swapped = dict(scores)
    if _GLOOMY.search(text):
        swapped["悲伤"], swapped["低落"] = scores.get("低落", 0.0), scores.get("悲伤", 0.0)
    return swapped


def to_vector(scores: Mapping[str, float]) -> Vector:
    """Scores by Chinese name -> eight weights of 0..1.2; calm when there is nothing."""
    vector = [min(max(scores.get(name, 0.0), 0.0), _MOST_SCORE) for name in CHINESE]
    if not any(vector):
        vector[NAMES.index("calm")] = 1.0
    return tuple(vector)
