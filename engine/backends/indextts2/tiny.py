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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from engine.backends.indextts2 import seeds, shapes
from engine.backends.indextts2.activation import lowpass_taps
from engine.backends.indextts2.shapes import Shapes
from engine.backends.indextts2.sizes import FULL, TINY, Sizes, config, vocoder_config


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
    torch.save({"model": _fill(shapes.gpt_shapes(sizes), seed)}, out / "gpt.pth")
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
    save_file(_fill(shapes.codec_shapes(sizes), seed), out / "semantic_codec" / "model.safetensors")
    torch.save(_fill(shapes.campplus_shapes(), seed), out / "campplus_cn_common.bin")
    vocoder = out / "bigvgan_v2_22khz_80band_256x"
    torch.save(
        {"generator": _fill(shapes.vocoder_shapes(sizes), seed)}, vocoder / "bigvgan_generator.pt"
    )
    (vocoder / "config.json").write_text(json.dumps(vocoder_config(sizes)), encoding="utf-8")
    _write_w2v(out / "w2v-bert-2.0", sizes, seed)
    return out


def _fill(entries: Shapes, seed: int, *, part: str = "") -> dict[str, Tensor]:
    """Entries by the seed rule; buffers get what they hold in every release."""
    return {
        key: _buffer(key, shape)
        if key.rsplit(".", 1)[-1] in seeds.BUFFER_LEAVES
        else torch.from_numpy(seeds.weight(seed, part + key, shape))
        for key, shape in entries
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
    parts = {
        "cfm": shapes.cfm_shapes(sizes),
        "length_regulator": shapes.regulator_shapes(sizes),
        "gpt_layer": shapes.projection_shapes(latent_dim),
    }
    return {name: _fill(part, seed, part=f"{name}.") for name, part in parts.items()}


def _write_w2v(folder: Path, sizes: Sizes, seed: int) -> None:
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel  # seconds: only when written

    sized: dict[str, Any] = dict(sizes.w2v)
    settings = Wav2Vec2BertConfig(**sized)
    with torch.device("meta"):
        wanted = Wav2Vec2BertModel(settings).state_dict()
    entries = ((key, tuple(value.shape)) for key, value in wanted.items())
    save_file(_fill(entries, seed), folder / "model.safetensors", metadata={"format": "pt"})
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
