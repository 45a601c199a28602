"""Sizes of the published release and of the tiny one, and the files that tell them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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


def _condition(width: int, ffn: int, heads: int, blocks: int) -> dict[str, Any]:
    return {
        "output_size": width,
        "linear_units": ffn,
        "attention_heads": heads,
        "num_blocks": blocks,
        "input_layer": "conv2d2",
        "perceiver_mult": 2,
    }


FULL = Sizes(
    gpt={
        "model_dim": 1280,
        "layers": 24,
        "heads": 20,
        "max_mel_tokens": 1815,
        "max_text_tokens": 600,
        "mel_length_compression": 1024,
        "number_text_tokens": 12000,
        "start_text_token": 0,
        "stop_text_token": 1,
        "number_mel_codes": 8194,
        "start_mel_token": 8192,
        "stop_mel_token": 8193,
        "train_solo_embeddings": False,
        "use_mel_codes_as_input": True,
        "condition_type": "conformer_perceiver",
        "condition_module": _condition(512, 2048, 8, 6),
        "emo_condition_module": _condition(512, 1024, 4, 4),
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
TINY = Sizes(
    gpt={
        **FULL.gpt,
        "model_dim": 64,
        "layers": 3,
        "heads": 2,
        "max_mel_tokens": 80,
        "max_text_tokens": 40,
        "number_text_tokens": 60,
        "number_mel_codes": 66,
        "start_mel_token": 64,
        "stop_mel_token": 65,
        "condition_module": _condition(32, 48, 2, 2),
        "emo_condition_module": _condition(24, 40, 2, 1),
    },
    codec={
        **FULL.codec,
        "codebook_size": 64,
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


def config(sizes: Sizes = TINY, latent_dim: int | None = None) -> dict[str, Any]:
    """`config.yaml` of a release; `latent_dim` is the width that the mel stage expects."""
    return {
        "version": 2.0,
        "dataset": {"bpe_model": "bpe.model", "sample_rate": 24000},
        "gpt": {name: _plain(value) for name, value in sizes.gpt.items()},
        "semantic_codec": dict(sizes.codec),
        "s2mel": {
            "preprocess_params": {
                "sr": 22050,
                "spect_params": {
                    "n_fft": 1024,
                    "win_length": 1024,
                    "hop_length": 256,
                    "n_mels": 80,
                    "fmin": 0,
                    "fmax": "None",
                },
            },
            "dit_type": "DiT",
            "reg_loss_type": "l1",
            "style_encoder": {"dim": 192},
            "length_regulator": {
                "channels": sizes.width,
                "is_discrete": False,
                "in_channels": 1024,
                "content_codebook_size": 2048,
                "sampling_ratios": [1, 1, 1, 1],
                "vector_quantize": False,
                "n_codebooks": 1,
                "quantizer_dropout": 0.0,
                "f0_condition": False,
                "n_f0_bins": 512,
            },
            "DiT": {
                "hidden_dim": sizes.width,
                "num_heads": sizes.heads,
                "depth": sizes.depth,
                "class_dropout_prob": 0.1,
                "block_size": 8192,
                "in_channels": 80,
                "style_condition": True,
                "final_layer_type": "wavenet",
                "target": "mel",
                "content_dim": sizes.width,
                "content_codebook_size": 1024,
                "content_type": "discrete",
                "f0_condition": False,
                "n_f0_bins": 512,
                "content_codebooks": 1,
                "is_causal": False,
                "long_skip_connection": True,
                "zero_prompt_speech_token": False,
                "time_as_token": False,
                "style_as_token": False,
                "uvit_skip_connection": True,
                "add_resblock_in_transformer": False,
            },
            "wavenet": {
                "hidden_dim": sizes.width,
                "num_layers": sizes.waves,
                "kernel_size": 5,
                "dilation_rate": 1,
                "p_dropout": 0.2,
                "style_condition": True,
            },
        },
        "gpt_checkpoint": "gpt.pth",
        "s2mel_checkpoint": "s2mel.pth",
        "w2v_stat": "wav2vec2bert_stats.pt",
        "spk_matrix": "feat1.pt",
        "emo_matrix": "feat2.pt",
        "emo_num": [3, 17, 2, 8, 4, 5, 10, 24],
        "qwen_emo_path": "qwen0.6bemo4-merge/",
        "vocoder": {"type": "bigvgan", "name": "nvidia/bigvgan_v2_22khz_80band_256x"},
        "notecast": {
            "latent_dim": latent_dim or sizes.gpt["model_dim"],
            "w2v_layer": sizes.w2v_layer,
            "stop_bias": sizes.stop_bias,
        },
    }


def _plain(value: Any) -> Any:
    """A copy, so that YAML writes no references."""
    return dict(value) if isinstance(value, Mapping) else value


def vocoder_config(sizes: Sizes = TINY) -> dict[str, Any]:
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
        "n_fft": 1024,
        "hop_size": 256,
        "win_size": 1024,
        "sampling_rate": 22050,
        "fmin": 0,
        "fmax": None,
    }
