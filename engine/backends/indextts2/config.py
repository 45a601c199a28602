"""Sizes of a release, read from its `config.yaml` and `bigvgan/config.json`, checked once.

Only what inference needs is kept. Everything that the published 2.0 files fix (attention without
relative shift, guidance, WaveNet head, ...) is code, so a file that asks for something else is
refused here, with the key in the message, instead of being run wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.backends.indextts2.errors import FilesMissing, UnsupportedModel

SUPPORTED_VERSION = "2.0"
SAMPLE_RATE_HZ = 22_050
HOP = 256  # samples per mel frame
MEL_BANDS = 80
SEMANTIC_DIM = 1024  # width of w2v-bert states and of codec vectors
STYLE_DIM = 192  # width of a CAMPPlus embedding
EMOTION_ROWS = (3, 17, 2, 8, 4, 5, 10, 24)


@dataclass(frozen=True, slots=True)
class ConditionConfig:
    """One conformer in front of a perceiver."""

    width: int
    ffn: int
    heads: int
    blocks: int
    perceiver_mult: int


@dataclass(frozen=True, slots=True)
class GptConfig:
    """The text-to-codes transformer and its conditioning."""

    width: int
    layers: int
    heads: int
    text_tokens: int
    mel_tokens: int
    max_text: int
    max_mel: int
    start_text: int
    stop_text: int
    start_mel: int
    stop_mel: int
    latents: int
    speaker: ConditionConfig
    emotion: ConditionConfig


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """The semantic codec (encoder and quantiser)."""

    codebook: int
    code_dim: int
    width: int
    ffn: int
    layers: int


@dataclass(frozen=True, slots=True)
class S2MelConfig:
    """Codes to mel: projection, length regulator, flow-matching transformer with a WaveNet head."""

    latent_dim: int
    content: int
    width: int
    heads: int
    depth: int
    wavenet_width: int
    wavenet_layers: int
    wavenet_kernel: int


@dataclass(frozen=True, slots=True)
class VocoderConfig:
    """BigVGAN v2."""

    channels: int
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    block_kernels: tuple[int, ...]
    dilations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Config:
    """Everything about a release that is not a tensor.

    Attributes:
        files: names given in `config.yaml`, by key (`gpt_checkpoint`, ...).
        w2v_layer: number of w2v-bert layers whose output is used.
        stop_bias: added to the stop logit; 0 for real weights, above for random ones, which never
            stop.
    """

    gpt: GptConfig
    codec: CodecConfig
    s2mel: S2MelConfig
    vocoder: VocoderConfig
    files: Mapping[str, str] = field(default_factory=dict)
    emotion_rows: tuple[int, ...] = EMOTION_ROWS
    w2v_layer: int = 17
    stop_bias: float = 0.0


DEFAULT_FILES = {
    "gpt_checkpoint": "gpt.pth",
    "s2mel_checkpoint": "s2mel.pth",
    "w2v_stat": "wav2vec2bert_stats.pt",
    "spk_matrix": "feat1.pt",
    "emo_matrix": "feat2.pt",
    "qwen_emo_path": "qwen0.6bemo4-merge/",
    "bpe_model": "bpe.model",
}


def read_config(model_dir: Path, vocoder_config: Path) -> Config:
    """Read and check the two configuration files of a release.

    Raises:
        FilesMissing: one of them is not there.
        UnsupportedModel: not version 2.0, or a setting this engine does not implement.
    """
    import yaml

    path = model_dir / "config.yaml"
    for wanted in (path, vocoder_config):
        if not wanted.is_file():
            raise FilesMissing(
                f"{wanted} is missing; see docs/indextts2.md for what the folder must hold"
            )
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(raw, Mapping):
        raise UnsupportedModel(f"{path} is not a YAML map")
    return config_from(raw, json.loads(vocoder_config.read_text(encoding="utf-8")))


def config_from(raw: Mapping[str, Any], vocoder: Mapping[str, Any]) -> Config:
    """Check the parsed files and keep what inference needs; see `read_config`."""
    _check_version(raw.get("version"))
    top = _Section(raw, "config.yaml")
    gpt, codec, s2mel = top.section("gpt"), top.section("semantic_codec"), top.section("s2mel")
    ours = raw.get("notecast") or {}
    files = DEFAULT_FILES | {k: str(raw[k]) for k in DEFAULT_FILES if raw.get(k)}
    dataset = raw.get("dataset")
    if isinstance(dataset, Mapping) and dataset.get("bpe_model"):
        files["bpe_model"] = str(dataset["bpe_model"])
    rows = tuple(int(n) for n in raw.get("emo_num", EMOTION_ROWS))
    if len(rows) != 8:
        raise UnsupportedModel(
            f"config.yaml: emo_num has {len(rows)} entries, 8 emotions are known"
        )
    width = gpt.int("model_dim")
    return Config(
        gpt=_gpt(gpt),
        codec=_codec(codec),
        s2mel=_s2mel(s2mel, int(ours.get("latent_dim", width))),
        vocoder=_vocoder(_Section(vocoder, "BigVGAN config.json")),
        files=files,
        emotion_rows=rows,
        w2v_layer=int(ours.get("w2v_layer", 17)),
        stop_bias=float(ours.get("stop_bias", 0.0)),
    )


def _check_version(version: object) -> None:
    if version is None:
        raise UnsupportedModel(
            f"config.yaml names no version; this engine runs IndexTTS-2 {SUPPORTED_VERSION}. "
            "Take config.yaml from the same release as the weights."
        )
    if str(version) != SUPPORTED_VERSION:
        raise UnsupportedModel(
            f"config.yaml is for IndexTTS version {version}; this engine runs version "
            f"{SUPPORTED_VERSION} only: others have another code rate and speaker condition."
        )


class _Section:
    """A map with a name, so that errors can say which key is wrong."""

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self._values, self._name = values, name

    def section(self, key: str) -> _Section:
        value = self._values.get(key)
        if not isinstance(value, Mapping):
            raise UnsupportedModel(f"{self._name}: section '{key}' is missing")
        return _Section(value, f"{self._name}: {key}")

    def int(self, key: str, default: int | None = None) -> int:
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UnsupportedModel(f"{self._name}: {key} is {value!r}, a whole number is needed")
        return value

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def must_be(self, **wanted: object) -> None:
        """Settings that, when given, have one value this engine implements."""
        for key, value in wanted.items():
            if key in self._values and self._values[key] != value:
                raise UnsupportedModel(
                    f"{self._name}: {key} is {self._values[key]!r}; "
                    f"this engine implements {value!r}"
                )


def _condition(section: _Section) -> ConditionConfig:
    section.must_be(input_layer="conv2d2")
    return ConditionConfig(
        width=section.int("output_size"),
        ffn=section.int("linear_units"),
        heads=section.int("attention_heads"),
        blocks=section.int("num_blocks"),
        perceiver_mult=section.int("perceiver_mult", 2),
    )


def _gpt(section: _Section) -> GptConfig:
    section.must_be(condition_type="conformer_perceiver", use_mel_codes_as_input=True)
    return GptConfig(
        width=section.int("model_dim"),
        layers=section.int("layers"),
        heads=section.int("heads"),
        text_tokens=section.int("number_text_tokens"),
        mel_tokens=section.int("number_mel_codes"),
        max_text=section.int("max_text_tokens"),
        max_mel=section.int("max_mel_tokens"),
        start_text=section.int("start_text_token", 0),
        stop_text=section.int("stop_text_token", 1),
        start_mel=section.int("start_mel_token"),
        stop_mel=section.int("stop_mel_token"),
        latents=section.int("condition_num_latent", 32),
        speaker=_condition(section.section("condition_module")),
        emotion=_condition(section.section("emo_condition_module")),
    )


def _codec(section: _Section) -> CodecConfig:
    section.must_be(hidden_size=SEMANTIC_DIM)
    return CodecConfig(
        codebook=section.int("codebook_size"),
        code_dim=section.int("codebook_dim"),
        width=section.int("vocos_dim"),
        ffn=section.int("vocos_intermediate_dim"),
        layers=section.int("vocos_num_layers"),
    )


def _s2mel(section: _Section, latent_dim: int) -> S2MelConfig:
    section.must_be(dit_type="DiT")
    regulator, dit = section.section("length_regulator"), section.section("DiT")
    wavenet = section.section("wavenet")
    section.section("style_encoder").must_be(dim=STYLE_DIM)
    regulator.must_be(
        is_discrete=False,
        in_channels=SEMANTIC_DIM,
        sampling_ratios=[1, 1, 1, 1],
        f0_condition=False,
    )
    dit.must_be(
        in_channels=MEL_BANDS,
        style_condition=True,
        final_layer_type="wavenet",
        is_causal=False,
        long_skip_connection=True,
        uvit_skip_connection=True,
        time_as_token=False,
        style_as_token=False,
        f0_condition=False,
        content_dim=regulator.int("channels"),
    )
    wavenet.must_be(dilation_rate=1, style_condition=True)
    return S2MelConfig(
        latent_dim=latent_dim,
        content=regulator.int("channels"),
        width=dit.int("hidden_dim"),
        heads=dit.int("num_heads"),
        depth=dit.int("depth"),
        wavenet_width=wavenet.int("hidden_dim"),
        wavenet_layers=wavenet.int("num_layers"),
        wavenet_kernel=wavenet.int("kernel_size"),
    )


def _vocoder(section: _Section) -> VocoderConfig:
    section.must_be(
        resblock="1",
        activation="snakebeta",
        snake_logscale=True,
        num_mels=MEL_BANDS,
        hop_size=HOP,
        sampling_rate=SAMPLE_RATE_HZ,
        use_tanh_at_final=False,
        use_bias_at_final=False,
    )
    rates = tuple(section.get("upsample_rates") or ())
    product = 1
    for rate in rates:
        product *= rate
    if product != HOP:
        raise UnsupportedModel(
            f"BigVGAN config.json: upsample_rates {list(rates)} do not make {HOP}"
        )
    return VocoderConfig(
        channels=section.int("upsample_initial_channel"),
        rates=rates,
        kernels=tuple(section.get("upsample_kernel_sizes") or ()),
        block_kernels=tuple(section.get("resblock_kernel_sizes") or ()),
        dilations=tuple(tuple(d) for d in section.get("resblock_dilation_sizes") or ()),
    )
