from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("av")

from engine.backends.indextts2 import features  # noqa: E402
from engine.backends.indextts2.voice import (  # noqa: E402
    VoiceCache,
    VoiceFrontEnd,
    quietest_edges,
)

if TYPE_CHECKING:
    from engine.backends.indextts2.model import Model
    from engine.backends.indextts2.voice import VoiceFeatures


def test_features_have_the_shapes_the_stages_expect(voice: VoiceFeatures) -> None:
    frames = (5 * 22_050) // 256

    assert voice.latents.shape == (32, 64)
    assert voice.own_emotion.shape == voice.base_emotion.shape == (64,)
    assert voice.style.shape == (192,)
    assert voice.mel.shape == (80, frames) and voice.condition.shape == (frames, 32)
    assert voice.short_mel.shape == (80, 215) and voice.short_condition.shape == (215, 32)


def test_the_same_recording_is_one_voice_whatever_its_name(
    tiny_model: Model, clip: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "other-name.wav"
    copy.write_bytes(clip.read_bytes())
    cache = VoiceCache(tiny_model)

    assert cache.of_file(clip) is cache.of_file(copy)


def test_new_content_under_an_old_path_is_a_new_voice(
    tiny_model: Model, clip: Path, tmp_path: Path, reference: np.ndarray
) -> None:
    path = tmp_path / "voice.wav"
    path.write_bytes(clip.read_bytes())
    cache = VoiceCache(tiny_model)
    before = cache.of_file(path)
    path.write_bytes(path.read_bytes()[:-40_000])

    assert not torch.equal(cache.of_file(path).latents, before.latents)


def test_disk_keeps_voices_across_restarts(
    tiny_model: Model, reference: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = VoiceCache(tiny_model, tmp_path).of_wave(reference, 24_000)
    monkeypatch.setattr(VoiceFrontEnd, "__init__", None)  # must not be needed again
    recalled = VoiceCache(tiny_model, tmp_path).of_wave(reference, 24_000)

    for field in fields(learnt):
        assert torch.equal(getattr(recalled, field.name), getattr(learnt, field.name))


def test_least_recently_used_voice_leaves_memory(tiny_model: Model, reference: np.ndarray) -> None:
    cache = VoiceCache(tiny_model, in_memory=1)
    first = cache.of_wave(reference, 24_000)
    cache.of_wave(reference[:60_000], 24_000)

    assert len(cache._held) == 1
    assert cache.of_wave(reference, 24_000) is not first


def test_only_the_first_fifteen_seconds_count(tiny_model: Model, reference: np.ndarray) -> None:
    long = np.tile(reference, 4)
    cache = VoiceCache(tiny_model)

    voice = cache.of_wave(long, 24_000)
    assert voice.mel.shape[1] == 15 * 22_050 // 256


def test_short_prompt_is_taken_from_the_speech() -> None:
    wave = torch.zeros(22_050 * 6)
    wave[22_050 * 3 : 22_050 * 5] = torch.randn(22_050 * 2) * 0.1
    first, last = quietest_edges(wave, 200)

    assert last - first == 200
    assert first * 256 / 22_050 <= 3.1 and last * 256 / 22_050 >= 4.9
    assert quietest_edges(wave[:2560], 200) == (0, 10)


@pytest.mark.parametrize(("rate", "to"), [(44_100, 16_000), (8_000, 22_050), (48_000, 22_050)])
def test_resampling_keeps_a_tone(rate: int, to: int) -> None:
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate)
    out = features.resample(tone, rate, to, width=32)

    wanted = torch.sin(2 * torch.pi * 440 * torch.arange(to) / to)
    assert len(out) == to
    assert (out - wanted)[200:-200].abs().max() < 1e-3


@torch.inference_mode()
def test_padded_rows_condition_as_alone(tiny_model: Model) -> None:
    """The reference leaks a bias from padded frames into real ones; ours does not."""
    random = torch.Generator().manual_seed(0)
    long, short = (torch.randn(1, n, 1024, generator=random) for n in (41, 27))
    both = torch.cat([long, torch.nn.functional.pad(short, (0, 0, 0, 14))])

    together = tiny_model.gpt.speaker_latents(both, torch.tensor([41, 27]))
    assert (together[1] - tiny_model.gpt.speaker_latents(short)[0]).abs().max() < 1e-5
    assert (together[0] - tiny_model.gpt.speaker_latents(long)[0]).abs().max() < 1e-5
