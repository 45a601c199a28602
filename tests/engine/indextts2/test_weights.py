from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import yaml  # noqa: E402

from engine.backends.indextts2 import release, seeds, shapes, sizes, weights  # noqa: E402
from engine.backends.indextts2.campplus import CamPlus  # noqa: E402
from engine.backends.indextts2.cfm import Dit  # noqa: E402
from engine.backends.indextts2.codec import SemanticCodec  # noqa: E402
from engine.backends.indextts2.config import Config, config_from  # noqa: E402
from engine.backends.indextts2.errors import (  # noqa: E402
    FilesMissing,
    ModelUnusable,
    UnsupportedModel,
    WeightsWrong,
)
from engine.backends.indextts2.gpt import Gpt  # noqa: E402
from engine.backends.indextts2.model import Model  # noqa: E402
from engine.backends.indextts2.s2mel import LatentProjection, LengthRegulator  # noqa: E402
from engine.backends.indextts2.vocoder import BigVgan  # noqa: E402

STORED = Path(__file__).parents[2] / "fixtures" / "indextts2"
PARTS = {
    "gpt.pth": shapes.gpt_shapes,
    "s2mel.pth net.cfm": shapes.cfm_shapes,
    "s2mel.pth net.length_regulator": shapes.regulator_shapes,
    "semantic_codec/model.safetensors": shapes.codec_shapes,
    "bigvgan_generator.pt generator": shapes.vocoder_shapes,
}


def published(part: str) -> dict[str, list[int]]:
    """Keys and shapes of the published files, patterns written out."""
    raw = json.loads((STORED / "keys_full.json").read_text())[part]["keys"]
    return {key: shape for pattern, shape, _ in raw for key in expanded(pattern)}


def expanded(pattern: str) -> Iterator[str]:
    found = re.search(r"\{([^}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    if ".." in found[1]:
        first, last = found[1].split("..")
        numbers = range(int(first), int(last) + 1)
    else:
        numbers = [int(n) for n in found[1].split(",")]  # type: ignore[assignment]
    for number in numbers:
        yield from expanded(pattern[: found.start()] + str(number) + pattern[found.end() :])


def full_config() -> Config:
    return config_from(sizes.config(sizes.FULL), sizes.vocoder_config(sizes.FULL))


@pytest.mark.parametrize("part", sorted(PARTS))
def test_full_size_release_has_the_published_keys_and_shapes(part: str) -> None:
    ours = {key: list(shape) for key, shape in PARTS[part](sizes.FULL)}

    assert ours == published(part)


def test_speaker_encoder_and_projection_have_the_published_keys_and_shapes() -> None:
    assert {k: list(s) for k, s in shapes.campplus_shapes()} == published("campplus_cn_common.bin")
    projection = {k: list(s) for k, s in shapes.projection_shapes(1280)}
    assert projection == published("s2mel.pth net.gpt_layer")


def test_full_size_modules_have_the_published_parameter_counts() -> None:
    cfg = full_config()
    with torch.device("meta"):
        parts = {
            "gpt": Gpt(cfg.gpt),
            "cfm": Dit(cfg.s2mel),
            "regulator": LengthRegulator(cfg.s2mel),
            "projection": LatentProjection(cfg.s2mel),
            "codec": SemanticCodec(cfg.codec),
            "campplus": CamPlus(),
            "vocoder": BigVgan(cfg.vocoder),
        }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    # published counts, less what inference does not need, less the g of folded weight norms
    assert counts["gpt"] == 865_980_639 - 15_373_281
    unused = 566_784 + 7 * (512 * 1024 + 512)
    norms = 8 * 1024 + 7 * 1024 + 512 + 8192 + 512
    assert counts["cfm"] == 98_187_344 - unused - norms
    assert counts["regulator"] == 4_988_416 - 1_048_576 - 512
    assert counts["projection"] == 492_928
    assert counts["codec"] == 44_289_808 - 22_102_912 - (8 + 1024)
    assert counts["campplus"] == 6_848_544
    assert counts["vocoder"] == 112_199_472


def test_tiny_files_hold_the_values_of_the_seed_rule(tiny_dir: Path) -> None:
    gpt = weights.read_state(tiny_dir / "gpt.pth")["model"]
    key = "gpt.h.1.attn.c_attn.weight"

    wanted = seeds.weight(0, key, (64, 192))
    assert np.array_equal(gpt[key].numpy(), wanted)
    assert not np.array_equal(seeds.weight(1, key, (64, 192)), wanted)


@pytest.fixture
def broken_dir(tiny_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_dir, tmp_path / "release")


def change_gpt(folder: Path, change: Any) -> None:
    state = weights.read_state(folder / "gpt.pth")["model"]
    state = {key: value.clone() for key, value in state.items()}
    change(state)
    torch.save({"model": state}, folder / "gpt.pth")


def test_missing_key_is_named(broken_dir: Path) -> None:
    change_gpt(broken_dir, lambda s: s.pop("gpt.h.2.mlp.c_fc.bias"))

    with pytest.raises(WeightsWrong, match=r"gpt\.h\.2\.mlp\.c_fc\.bias \[256\] is missing"):
        Model(broken_dir)


def test_ill_shaped_key_is_named_with_both_shapes(broken_dir: Path) -> None:
    change_gpt(broken_dir, lambda s: s.update({"speed_emb.weight": torch.zeros(3, 64)}))

    with pytest.raises(WeightsWrong, match=r"speed_emb\.weight has shape \[3, 64\], \[2, 64\]"):
        Model(broken_dir)


def test_keys_that_inference_does_not_need_may_be_missing(broken_dir: Path) -> None:
    change_gpt(broken_dir, lambda s: s.pop("text_head.weight"))

    assert Model(broken_dir).config.gpt.width == 64


def test_flat_checkpoints_and_folded_vocoders_load_too(broken_dir: Path, tiny_model: Model) -> None:
    state = weights.read_state(broken_dir / "gpt.pth")["model"]
    torch.save({k: v.clone() for k, v in state.items()}, broken_dir / "gpt.pth")
    path = broken_dir / "bigvgan_v2_22khz_80band_256x" / "bigvgan_generator.pt"
    folded = weights.vocoder_state(weights.read_state(path), path)
    torch.save({"generator": {k: v.clone() for k, v in folded.items()}}, path)

    model = Model(broken_dir)
    mel = torch.randn(1, 80, 12)
    assert torch.equal(model.vocoder(mel), tiny_model.vocoder(mel))
    assert torch.equal(model.gpt.mel_head.weight, tiny_model.gpt.mel_head.weight)


def test_positions_come_from_the_file(broken_dir: Path) -> None:
    key = "conditioning_encoder.embed.pos_enc.pe"
    change_gpt(broken_dir, lambda s: s.update({key: s[key].bfloat16().float()}))

    table = Model(broken_dir).gpt.conditioning_encoder.embed.pos_enc.pe
    assert torch.equal(table, table.bfloat16().float())


@pytest.mark.parametrize("version", ["2.5", 2.5, "1.5", None])
def test_other_versions_are_refused(broken_dir: Path, version: object) -> None:
    path = broken_dir / "config.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["version"] = version
    path.write_text(yaml.safe_dump(raw))

    with pytest.raises(UnsupportedModel, match=r"version"):
        Model(broken_dir)


def test_settings_this_engine_does_not_implement_are_refused() -> None:
    raw = sizes.config()
    raw["s2mel"]["DiT"]["time_as_token"] = True

    with pytest.raises(UnsupportedModel, match="time_as_token is True"):
        config_from(raw, sizes.vocoder_config(sizes.TINY))


def test_missing_files_are_listed_with_their_publishers(broken_dir: Path) -> None:
    (broken_dir / "campplus_cn_common.bin").unlink()
    (broken_dir / "gpt.pth").unlink()

    with pytest.raises(
        FilesMissing, match=r"lacks 2 file\(s\)[\s\S]*gpt\.pth[\s\S]*funasr/campplus"
    ):
        Model(broken_dir)


def test_optional_files_are_told_apart(tiny_dir: Path) -> None:
    assert release.missing_files(tiny_dir) == []
    lost = {f.name: f.optional for f in release.missing_files(tiny_dir, optional=True)}
    assert set(lost) == {"qwen", "glossary"} and all(lost.values())


def test_publishers_own_folder_names_are_found(broken_dir: Path) -> None:
    (broken_dir / "facebook").mkdir()
    (broken_dir / "w2v-bert-2.0").rename(broken_dir / "facebook" / "w2v-bert-2.0")

    assert release.find(broken_dir, "w2v").parent.parent.name == "facebook"
    assert release.missing_files(broken_dir) == []


def test_file_that_is_no_checkpoint_is_an_error_not_a_traceback(broken_dir: Path) -> None:
    (broken_dir / "feat1.pt").write_bytes(b"<html>not found</html>")

    with pytest.raises(ModelUnusable, match=r"feat1\.pt cannot be read"):
        _ = Model(broken_dir).emotion_matrices


@pytest.mark.slow
def test_full_size_random_weights_load_and_run() -> None:
    """Six gigabytes of memory and a minute: the published sizes through the real loader."""
    cfg = full_config()

    def random_state(entries: shapes.Shapes) -> weights.State:
        state = {k: torch.randn(s).mul_(0.02) for k, s in entries}
        return weights.fold_weight_norm(state)

    gpt = weights.build(
        lambda: Gpt(cfg.gpt),
        weights.gpt_state(random_state(shapes.gpt_shapes(sizes.FULL)), Path("gpt.pth")),
        part="gpt.pth",
    )
    features = torch.randn(1, 100, 1024)
    prefix = gpt.prefix(
        gpt.speaker_latents(features)[0], gpt.emotion_vector(features)[0], [5, 6, 7]
    )
    latents = gpt.latents(prefix, torch.arange(10))
    del gpt
    vocoder = weights.build(
        lambda: BigVgan(cfg.vocoder),
        random_state(shapes.vocoder_shapes(sizes.FULL)),
        part="vocoder",
    )
    wave = vocoder(torch.randn(1, 80, 8))
    del vocoder
    cfm = random_state(shapes.cfm_shapes(sizes.FULL))
    dit = weights.build(
        lambda: Dit(cfg.s2mel),
        {k.removeprefix("estimator."): v for k, v in cfm.items()},
        part="cfm",
    )
    constant = dit.constant(torch.randn(1, 80, 64), torch.randn(1, 64, 512), torch.randn(1, 192))
    velocity = dit(torch.randn(1, 80, 64), constant, dit.modulation(torch.tensor([0.5])))

    assert prefix.shape == (34 + 5, 1280)
    assert latents.shape == (10, 1280) and latents.isfinite().all()
    assert wave.shape == (1, 2048) and wave.isfinite().all()
    assert velocity.shape == (1, 80, 64) and velocity.isfinite().all()
