"""A complete release with random weights, small enough for tests: `python -m ...indextts2.tiny
OUT`.

Every file has the published format and key names, every module is there, and every value follows
the seed rule (`seeds.py`); only the sizes are small (or not: `--full`). What real weights know and
random ones do not (when to stop) is set in the `notecast` section of `config.yaml`, so that no
tensor breaks the rule. Speech from it is noise of the right shape.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from engine.backends.indextts2 import seeds
from engine.backends.indextts2.vocoder import lowpass_taps

Shapes = Iterator[tuple[str, tuple[int, ...]]]

_CONDITION = {"input_layer": "conv2d2", "perceiver_mult": 2}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Everything that differs between a tiny release and a full one.

    Attributes:
        gpt, codec: sections of `config.yaml`.
        width, heads, depth, waves: of the mel stage; condition, transformer and WaveNet are equally
        wide.
        channels: of the vocoder's first stage.
        w2v: settings of w2v-bert.
        w2v_layer: of them, the layer whose output is used.
        stop_bias: makes random weights stop.
    """

    gpt: Mapping[str, Any]
    codec: Mapping[str, int]
    width: int
    heads: int
    depth: int
    waves: int
    channels: int
    w2v: Mapping[str, int]
    w2v_layer: int
    stop_bias: float


TINY = Sizes(
    gpt={
        "model_dim": 64,
        "layers": 3,
        "heads": 2,
        "max_mel_tokens": 80,
        "max_text_tokens": 40,
        "number_text_tokens": 60,
        "number_mel_codes": 66,
        "start_mel_token": 64,
        "stop_mel_token": 65,
        "condition_module": {
            "output_size": 32,
            "linear_units": 48,
            "attention_heads": 2,
            "num_blocks": 2,
        },
        "emo_condition_module": {
            "output_size": 24,
            "linear_units": 40,
            "attention_heads": 2,
            "num_blocks": 1,
        },
    },
    codec={
        "codebook_size": 64,
        "hidden_size": 1024,
        "codebook_dim": 8,
        "vocos_dim": 24,
        "vocos_intermediate_dim": 40,
        "vocos_num_layers": 2,
    },
    width=32,
    heads=2,
    depth=5,
    waves=3,
    channels=128,
    w2v={
        "hidden_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
    w2v_layer=1,
    stop_bias=1.5,
)
FULL = Sizes(
    gpt={
        "model_dim": 1280,
        "layers": 24,
        "heads": 20,
        "max_mel_tokens": 1815,
        "max_text_tokens": 600,
        "number_text_tokens": 12000,
        "number_mel_codes": 8194,
        "start_mel_token": 8192,
        "stop_mel_token": 8193,
        "condition_module": {
            "output_size": 512,
            "linear_units": 2048,
            "attention_heads": 8,
            "num_blocks": 6,
        },
        "emo_condition_module": {
            "output_size": 512,
            "linear_units": 1024,
            "attention_heads": 4,
            "num_blocks": 4,
        },
    },
    codec={
        "codebook_size": 8192,
        "hidden_size": 1024,
        "codebook_dim": 8,
        "vocos_dim": 384,
        "vocos_intermediate_dim": 2048,
        "vocos_num_layers": 12,
    },
    width=512,
    heads=8,
    depth=13,
    waves=8,
    channels=1536,
    w2v={
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    w2v_layer=17,
    stop_bias=0.0,
)


def write(out: Path, *, seed: int = 0, latent_dim: int | None = None, sizes: Sizes = TINY) -> Path:
    """Write a release with random weights.

    Args:
        out: folder, made if it is not there; files in it are overwritten.
        seed: of the rule.
        latent_dim: width the mel stage expects of latents; the transformer's own by default. Parity
            fixtures use 1280, which cannot speak.
        sizes: TINY (140 MB), or FULL (7 GB) for benchmarks.

    Returns:
        `out`.
    """
    for folder in ("w2v-bert-2.0", "semantic_codec", "bigvgan_v2_22khz_80band_256x"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    width = sizes.gpt["model_dim"]
    latent_dim = latent_dim or width
    settings = config(sizes, latent_dim)
    (out / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (out / "bpe.model").write_bytes(_train_tokenizer())
    torch.save({"model": _fill(gpt_shapes(sizes), seed)}, out / "gpt.pth")
    torch.save({"net": _s2mel(seed, sizes, latent_dim)}, out / "s2mel.pth")
    mean = seeds.normal_input(seed, "w2v_mean", (1024,), 0.1)
    spread = seeds.normal_input(seed, "w2v_var", (1024,), 0.1)
    torch.save(
        {"mean": torch.from_numpy(mean), "var": torch.from_numpy(1.0 + np.abs(spread))},
        out / "wav2vec2bert_stats.pt",
    )
    for name, key, columns in (("feat1", "spk_matrix", 192), ("feat2", "emo_matrix", width)):
        rows = seeds.normal_input(seed, key, (73, columns))
        torch.save(torch.from_numpy(rows), out / f"{name}.pt")
    save_file(_fill(codec_shapes(sizes), seed), out / "semantic_codec" / "model.safetensors")
    torch.save(_fill(campplus_shapes(), seed), out / "campplus_cn_common.bin")
    vocoder = out / "bigvgan_v2_22khz_80band_256x"
    torch.save({"generator": _fill(vocoder_shapes(sizes), seed)}, vocoder / "bigvgan_generator.pt")
    (vocoder / "config.json").write_text(json.dumps(vocoder_config(sizes)), encoding="utf-8")
    _write_w2v(out / "w2v-bert-2.0", sizes, seed)
    return out


def vocoder_config(sizes: Sizes) -> dict[str, Any]:
    """`config.json` of BigVGAN."""
    return {
        "resblock": "1",
        "upsample_rates": [4, 4, 2, 2, 2, 2],
        "upsample_kernel_sizes": [8, 8, 4, 4, 4, 4],
        "upsample_initial_channel": sizes.channels,
        "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5]] * 3,
        "use_tanh_at_final": False,
        "use_bias_at_final": False,
        "activation": "snakebeta",
        "snake_logscale": True,
        "num_mels": 80,
        "hop_size": 256,
        "sampling_rate": 22050,
    }


def config(sizes: Sizes = TINY, latent_dim: int | None = None) -> dict[str, Any]:
    """`config.yaml` of a release."""
    gpt = dict(sizes.gpt)
    for name in ("condition_module", "emo_condition_module"):
        gpt[name] = gpt[name] | _CONDITION
    return {
        "version": 2.0,
        "dataset": {"bpe_model": "bpe.model"},
        "gpt": gpt
        | {
            "start_text_token": 0,
            "stop_text_token": 1,
            "use_mel_codes_as_input": True,
            "condition_type": "conformer_perceiver",
        },
        "semantic_codec": dict(sizes.codec),
        "s2mel": {
            "dit_type": "DiT",
            "style_encoder": {"dim": 192},
            "length_regulator": {
                "channels": sizes.width,
                "in_channels": 1024,
                "is_discrete": False,
                "sampling_ratios": [1, 1, 1, 1],
                "f0_condition": False,
            },
            "DiT": {
                "hidden_dim": sizes.width,
                "num_heads": sizes.heads,
                "depth": sizes.depth,
                "in_channels": 80,
                "content_dim": sizes.width,
                "style_condition": True,
                "final_layer_type": "wavenet",
                "is_causal": False,
                "long_skip_connection": True,
                "uvit_skip_connection": True,
                "time_as_token": False,
                "style_as_token": False,
                "f0_condition": False,
            },
            "wavenet": {
                "hidden_dim": sizes.width,
                "num_layers": sizes.waves,
                "kernel_size": 5,
                "dilation_rate": 1,
                "style_condition": True,
            },
        },
        "gpt_checkpoint": "gpt.pth",
        "s2mel_checkpoint": "s2mel.pth",
        "w2v_stat": "wav2vec2bert_stats.pt",
        "spk_matrix": "feat1.pt",
        "emo_matrix": "feat2.pt",
        "emo_num": [3, 17, 2, 8, 4, 5, 10, 24],
        "notecast": {
            "latent_dim": latent_dim or gpt["model_dim"],
            "w2v_layer": sizes.w2v_layer,
            "stop_bias": sizes.stop_bias,
        },
    }


# key names and shapes of the published files, at any size ------------------------------------


def _linear(key: str, out: int, inner: int) -> Shapes:
    yield f"{key}.weight", (out, inner)
    yield f"{key}.bias", (out,)


def _pair(key: str, width: int) -> Shapes:
    yield f"{key}.weight", (width,)
    yield f"{key}.bias", (width,)


def _conv(key: str, *shape: int) -> Shapes:
    yield f"{key}.weight", shape
    yield f"{key}.bias", (shape[0],)


def _normed(key: str, *shape: int, bias: int | None = None) -> Shapes:
    """A weight-normed layer; `bias` is its width where that is not the first dimension."""
    yield f"{key}.weight_g", (shape[0],) + (1,) * (len(shape) - 1)
    yield f"{key}.weight_v", shape
    if bias != 0:
        yield f"{key}.bias", (bias or shape[0],)


def _conformer(key: str, cfg: Mapping[str, int]) -> Shapes:
    width, inner = cfg["output_size"], cfg["linear_units"]
    yield from _conv(f"{key}.embed.conv.0", width, 1, 3, 3)
    yield from _linear(f"{key}.embed.out.0", width, width * 511)
    yield f"{key}.embed.pos_enc.pe", (1, 5000, width)
    yield from _pair(f"{key}.after_norm", width)
    for i in range(cfg["num_blocks"]):
        at = f"{key}.encoders.{i}"
        for bias in "uv":
            shape = (cfg["attention_heads"], width // cfg["attention_heads"])
            yield f"{at}.self_attn.pos_bias_{bias}", shape
        for name in ("q", "k", "v", "out"):
            yield from _linear(f"{at}.self_attn.linear_{name}", width, width)
        yield f"{at}.self_attn.linear_pos.weight", (width, width)
        yield from _linear(f"{at}.feed_forward.w_1", inner, width)
        yield from _linear(f"{at}.feed_forward.w_2", width, inner)
        yield from _conv(f"{at}.conv_module.pointwise_conv1", 2 * width, width, 1)
        yield from _conv(f"{at}.conv_module.depthwise_conv", width, 1, 15)
        yield from _pair(f"{at}.conv_module.norm", width)
        yield from _conv(f"{at}.conv_module.pointwise_conv2", width, width, 1)
        for name in ("ff", "mha", "conv", "final"):
            yield from _pair(f"{at}.norm_{name}", width)


def _perceiver(key: str, cfg: Mapping[str, int], dim: int, latents: int) -> Shapes:
    inner, heads = int(dim * 4 / 3), 64 * cfg["attention_heads"]
    yield f"{key}.latents", (latents, dim)
    yield from _linear(f"{key}.proj_context", dim, cfg["output_size"])
    for i in range(2):
        at = f"{key}.layers.{i}"
        yield f"{at}.0.to_q.weight", (heads, dim)
        yield f"{at}.0.to_kv.weight", (2 * heads, dim)
        yield f"{at}.0.to_out.weight", (dim, heads)
        yield from _linear(f"{at}.1.0", 2 * inner, dim)
        yield from _linear(f"{at}.1.2", dim, inner)
    yield f"{key}.norm.gamma", (dim,)


def gpt_shapes(sizes: Sizes = TINY) -> Shapes:
    """Entries of `gpt.pth`."""
    cfg = sizes.gpt
    width = cfg["model_dim"]
    speaker, emotion = cfg["condition_module"], cfg["emo_condition_module"]
    yield from _conformer("conditioning_encoder", speaker)
    yield from _perceiver("perceiver_encoder", speaker, width, 32)
    yield from _conformer("emo_conditioning_encoder", emotion)
    yield from _perceiver("emo_perceiver_encoder", emotion, 1024, 1)
    yield "text_embedding.weight", (cfg["number_text_tokens"] + 1, width)
    yield from _linear("emo_layer", width, width)
    yield from _linear("emovec_layer", width, 1024)
    yield "mel_embedding.weight", (cfg["number_mel_codes"], width)
    for i in range(cfg["layers"]):
        at = f"gpt.h.{i}"
        yield from _pair(f"{at}.ln_1", width)
        for name, inner, out in (("c_attn", 1, 3), ("c_proj", 1, 1)):
            yield f"{at}.attn.{name}.weight", (inner * width, out * width)
            yield f"{at}.attn.{name}.bias", (out * width,)
        yield from _pair(f"{at}.ln_2", width)
        for name, inner, out in (("c_fc", 1, 4), ("c_proj", 4, 1)):
            yield f"{at}.mlp.{name}.weight", (inner * width, out * width)
            yield f"{at}.mlp.{name}.bias", (out * width,)
    yield from _pair("gpt.ln_f", width)
    yield "mel_pos_embedding.emb.weight", (cfg["max_mel_tokens"] + 3, width)
    yield "text_pos_embedding.emb.weight", (cfg["max_text_tokens"] + 2, width)
    yield from _pair("final_norm", width)
    yield from _linear("text_head", cfg["number_text_tokens"] + 1, width)
    yield from _linear("mel_head", cfg["number_mel_codes"], width)
    yield "speed_emb.weight", (2, width)


def cfm_shapes(sizes: Sizes = TINY) -> Shapes:
    """Entries of the part `cfm`."""
    width, depth, waves = sizes.width, sizes.depth, sizes.waves
    inner = math.ceil(8 * width // 3 / 256) * 256
    yield "estimator.input_pos", (16_384,)
    for i in range(depth):
        at = f"estimator.transformer.layers.{i}"
        yield f"{at}.attention.wqkv.weight", (3 * width, width)
        yield f"{at}.attention.wo.weight", (width, width)
        for name, shape in (("w1", (inner, width)), ("w3", (inner, width)), ("w2", (width, inner))):
            yield f"{at}.feed_forward.{name}.weight", shape
        for name in ("ffn_norm", "attention_norm"):
            yield from _linear(f"{at}.{name}.project_layer", 2 * width, width)
            yield f"{at}.{name}.norm.weight", (width,)
        yield from _linear(f"{at}.skip_in_linear", width, 2 * width)
    yield from _linear("estimator.transformer.norm.project_layer", 2 * width, width)
    yield "estimator.transformer.norm.norm.weight", (width,)
    yield from _normed("estimator.x_embedder", width, 80)
    yield "estimator.cond_embedder.weight", (1024, width)
    yield from _linear("estimator.cond_projection", width, width)
    for name in ("t_embedder", "t_embedder2"):
        yield f"estimator.{name}.freqs", (128,)
        yield from _linear(f"estimator.{name}.mlp.0", width, 256)
        yield from _linear(f"estimator.{name}.mlp.2", width, width)
    yield from _linear("estimator.conv1", width, width)
    yield from _conv("estimator.conv2", 80, width, 1)
    for i in range(waves):
        yield from _normed(f"estimator.wavenet.in_layers.{i}.conv.conv", 2 * width, width, 5)
        out = 2 * width if i < waves - 1 else width
        yield from _normed(f"estimator.wavenet.res_skip_layers.{i}.conv.conv", out, width, 1)
    yield from _normed("estimator.wavenet.cond_layer.conv.conv", 2 * width * waves, width, 1)
    yield from _normed("estimator.final_layer.linear", width, width)
    yield from _linear("estimator.final_layer.adaLN_modulation.1", 2 * width, width)
    yield from _linear("estimator.res_projection", width, width)
    yield "estimator.content_mask_embedder.weight", (1, width)
    yield from _linear("estimator.skip_linear", width, width + 80)
    yield from _linear("estimator.cond_x_merge_linear", width, width + 80 + 80 + 192)


def regulator_shapes(sizes: Sizes = TINY) -> Shapes:
    """Entries of the part `length_regulator`."""
    width = sizes.width
    yield "mask_token", (1, width)
    for i in range(4):
        yield from _conv(f"model.{3 * i}", width, width, 3)
        yield from _pair(f"model.{3 * i + 1}", width)
    yield from _conv("model.12", width, width, 1)
    yield "embedding.weight", (2048, width)
    yield from _linear("content_in_proj", width, 1024)


def projection_shapes(latent_dim: int) -> Shapes:
    """Entries of the part `gpt_layer`."""
    yield from _linear("0", 256, latent_dim)
    yield from _linear("1", 128, 256)
    yield from _linear("2", 1024, 128)


def codec_shapes(sizes: Sizes = TINY) -> Shapes:
    """Entries of the semantic codec."""
    cfg = sizes.codec
    width, inner = cfg["vocos_dim"], cfg["vocos_intermediate_dim"]
    for side in ("encoder", "decoder"):
        yield from _conv(f"{side}.0.embed", width, 1024, 7)
        yield from _pair(f"{side}.0.norm", width)
        for i in range(cfg["vocos_num_layers"]):
            at = f"{side}.0.convnext.{i}"
            yield f"{at}.gamma", (width,)
            yield from _conv(f"{at}.dwconv", width, 1, 7)
            yield from _pair(f"{at}.norm", width)
            yield from _linear(f"{at}.pwconv1", inner, width)
            yield from _linear(f"{at}.pwconv2", width, inner)
        yield from _pair(f"{side}.0.final_layer_norm", width)
        yield from _linear(f"{side}.1", 1024, width)
    at = "quantizer.quantizers.0"
    yield from _normed(f"{at}.in_project", cfg["codebook_dim"], 1024, 1)
    yield from _normed(f"{at}.out_project", 1024, cfg["codebook_dim"], 1)
    yield f"{at}.codebook.weight", (cfg["codebook_size"], cfg["codebook_dim"])


def _batch_norm(key: str, width: int, *, affine: bool = True) -> Shapes:
    if affine:
        yield from _pair(key, width)
    yield f"{key}.running_mean", (width,)
    yield f"{key}.running_var", (width,)
    yield f"{key}.num_batches_tracked", ()


def campplus_shapes() -> Shapes:
    """Entries of CAMPPlus, which has one size."""
    yield "head.conv1.weight", (32, 1, 3, 3)
    yield from _batch_norm("head.bn1", 32)
    for layer in (1, 2):
        for i in (0, 1):
            at = f"head.layer{layer}.{i}"
            for n in (1, 2):
                yield f"{at}.conv{n}.weight", (32, 32, 3, 3)
                yield from _batch_norm(f"{at}.bn{n}", 32)
        yield f"head.layer{layer}.0.shortcut.0.weight", (32, 32, 1, 1)
        yield from _batch_norm(f"head.layer{layer}.0.shortcut.1", 32)
    yield "head.conv2.weight", (32, 32, 3, 3)
    yield from _batch_norm("head.bn2", 32)
    yield "xvector.tdnn.linear.weight", (128, 320, 5)
    yield from _batch_norm("xvector.tdnn.nonlinear.batchnorm", 128)
    channels = 128
    for block, layers in ((1, 12), (2, 24), (3, 16)):
        for i in range(layers):
            yield from _dense_layer(f"xvector.block{block}.tdnnd{i + 1}", channels)
            channels += 32
        yield from _batch_norm(f"xvector.transit{block}.nonlinear.batchnorm", channels)
        yield f"xvector.transit{block}.linear.weight", (channels // 2, channels, 1)
        channels //= 2
    yield from _batch_norm("xvector.out_nonlinear.batchnorm", 512)
    yield "xvector.dense.linear.weight", (192, 1024, 1)
    yield from _batch_norm("xvector.dense.nonlinear.batchnorm", 192, affine=False)


def _dense_layer(key: str, channels: int) -> Shapes:
    yield from _batch_norm(f"{key}.nonlinear1.batchnorm", channels)
    yield f"{key}.linear1.weight", (128, channels, 1)
    yield from _batch_norm(f"{key}.nonlinear2.batchnorm", 128)
    yield f"{key}.cam_layer.linear_local.weight", (32, 128, 3)
    yield from _conv(f"{key}.cam_layer.linear1", 64, 128, 1)
    yield from _conv(f"{key}.cam_layer.linear2", 32, 64, 1)


def vocoder_shapes(sizes: Sizes = TINY) -> Shapes:
    """Entries of BigVGAN with weight norm, kernels and rates as published."""
    channels = sizes.channels
    yield from _normed("conv_pre", channels, 80, 7)
    for i, kernel in enumerate((8, 8, 4, 4, 4, 4)):
        yield from _normed(f"ups.{i}.0", channels, channels // 2, kernel, bias=channels // 2)
        channels //= 2
        for j, size in enumerate((3, 7, 11)):
            at = f"resblocks.{3 * i + j}"
            for n in range(3):
                yield from _normed(f"{at}.convs1.{n}", channels, channels, size)
                yield from _normed(f"{at}.convs2.{n}", channels, channels, size)
            for n in range(6):
                yield from _activation(f"{at}.activations.{n}", channels)
    yield from _activation("activation_post", channels)
    yield from _normed("conv_post", 1, channels, 7, bias=0)


def _activation(key: str, channels: int) -> Shapes:
    yield f"{key}.act.alpha", (channels,)
    yield f"{key}.act.beta", (channels,)
    yield f"{key}.upsample.filter", (1, 1, 12)
    yield f"{key}.downsample.lowpass.filter", (1, 1, 12)


# values --------------------------------------------------------------------------------------


def _fill(shapes: Shapes, seed: int, *, part: str = "") -> dict[str, Tensor]:
    """Entries by the seed rule; buffers get what they hold in every release."""
    return {
        key: _buffer(key, shape)
        if key.rsplit(".", 1)[-1] in seeds.BUFFER_LEAVES
        else torch.from_numpy(seeds.weight(seed, part + key, shape))
        for key, shape in shapes
    }


def _buffer(key: str, shape: Sequence[int]) -> Tensor:
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "filter":
        return lowpass_taps()
    if leaf == "freqs":
        return torch.exp(-math.log(10_000) * torch.arange(shape[0]).float() / shape[0])
    if leaf == "input_pos":
        return torch.arange(shape[0])
    if leaf == "num_batches_tracked":
        return torch.zeros((), dtype=torch.long)
    assert leaf == "pe", key
    angles = torch.arange(shape[1]).float()[:, None] * torch.exp(
        torch.arange(0, shape[2], 2).float() * -(math.log(10_000.0) / shape[2])
    )
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[None]


def _s2mel(seed: int, sizes: Sizes, latent_dim: int) -> dict[str, dict[str, Tensor]]:
    shapes = {
        "cfm": cfm_shapes(sizes),
        "length_regulator": regulator_shapes(sizes),
        "gpt_layer": projection_shapes(latent_dim),
    }
    return {name: _fill(s, seed, part=f"{name}.") for name, s in shapes.items()}


def _write_w2v(folder: Path, sizes: Sizes, seed: int) -> None:
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel  # seconds: only when written

    sized: dict[str, Any] = dict(sizes.w2v)
    settings = Wav2Vec2BertConfig(**sized)
    with torch.device("meta"):
        wanted = Wav2Vec2BertModel(settings).state_dict()
    shapes = ((key, tuple(value.shape)) for key, value in wanted.items())
    save_file(_fill(shapes, seed), folder / "model.safetensors", metadata={"format": "pt"})
    settings.save_pretrained(folder)
    extractor = {
        "feature_extractor_type": "SeamlessM4TFeatureExtractor",
        "feature_size": 80,
        "num_mel_bins": 80,
        "padding_side": "right",
        "padding_value": 1,
        "return_attention_mask": True,
        "sampling_rate": 16000,
        "stride": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor), encoding="utf-8")


PINYIN_PIECES = ("HANG2", "XING2", "DE5", "NI3", "HAO3", "CHONG2", "ZHONG4")
_CORPUS = (
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG, AND THEN? IT RESTS! FINE. WE MEET - AT TEN...",
    "你 好 世 界 会 议 今 天 的 是 , . ! ? '",
)


def _train_tokenizer() -> bytes:
    """A SentencePiece model of 60 pieces: letters, marks, a few ideographs and readings."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=TINY.gpt["number_text_tokens"],
        hard_vocab_limit=False,
        character_coverage=1.0,
        bos_id=0,
        eos_id=1,
        unk_id=2,
        user_defined_symbols=[f"▁{piece}" for piece in PINYIN_PIECES],
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a tiny IndexTTS-2 release, random weights.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latent-dim", type=int, help="1280 for parity fixtures")
    parser.add_argument("--full", action="store_true", help="published sizes, 7 GB")
    args = parser.parse_args()
    sizes = FULL if args.full else TINY
    write(args.out, seed=args.seed, latent_dim=args.latent_dim, sizes=sizes)


if __name__ == "__main__":
    main()
