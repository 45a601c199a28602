"""Key names and shapes of the published files, at any size.

Written down apart from the modules that load them: a module whose names or shapes drift is found
out by the tests instead of being followed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from engine.backends.indextts2.sizes import TINY, Sizes

Shapes = Iterator[tuple[str, tuple[int, ...]]]


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
