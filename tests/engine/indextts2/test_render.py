"""Acceptance of streaming: what is heard live against what is made at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.backends.indextts2 import render  # noqa: E402
from engine.backends.indextts2.cfm import Window  # noqa: E402
from engine.backends.indextts2.config import HOP  # noqa: E402
from engine.backends.indextts2.render import Plan, SentenceRenderer  # noqa: E402
from engine.backends.indextts2.s2mel import frame_count, source_codes  # noqa: E402

if TYPE_CHECKING:
    from engine.backends.indextts2.model import Model
    from engine.backends.indextts2.voice import VoiceFeatures

CODES = np.random.default_rng(0).integers(0, 64, 70).tolist()
STEPS = 3


@pytest.fixture(scope="module")
def latents() -> list[torch.Tensor]:
    return list(torch.randn(len(CODES), 64, generator=torch.Generator().manual_seed(0)))


def play(
    model: Model, voice: VoiceFeatures, latents: list[torch.Tensor], plan: Plan, codes: int = 70
) -> list[np.ndarray]:
    """Chunks of a sentence whose codes arrive one by one."""
    renderer = SentenceRenderer(model, voice, plan, seed=5)
    chunks = []
    for count in range(1, codes + 1):
        ended = count == codes
        while not renderer.is_done and renderer.is_ready(count, ended):
            window = renderer.window(CODES[:count], latents[:count], ended)
            model.solver.solve(window)
            (wave,) = model.vocoder.render([renderer.strip(window)])
            chunks.append(renderer.sound(window, wave))
    return chunks


def live(**changes: object) -> Plan:
    return Plan(live=True, steps=STEPS, first_steps=STEPS, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", [(10, 15, 25), (10,), (40,), (7, 11)])
@pytest.mark.parametrize("ratio", [1.0, 0.8, 1.3])
def test_sample_count_does_not_depend_on_the_schedule(
    tiny_model: Model,
    voice: VoiceFeatures,
    latents: list[torch.Tensor],
    schedule: tuple[int, ...],
    ratio: float,
) -> None:
    plan = Plan(live=True, steps=1, first_steps=1, schedule=schedule, ratio=ratio)
    with torch.inference_mode():
        chunks = play(tiny_model, voice, latents, plan)

    assert sum(map(len, chunks)) == HOP * frame_count(70, ratio)
    assert len(chunks) >= 2


@torch.inference_mode()
def test_waiting_for_everything_equals_rendering_the_whole(
    tiny_model: Model, voice: VoiceFeatures, latents: list[torch.Tensor]
) -> None:
    """Streaming with endless lookahead, against the stages called one after the other."""
    (streamed,) = play(tiny_model, voice, latents, live(schedule=(10_000,)))

    frames = frame_count(70)
    semantic = tiny_model.code_vectors[CODES] + tiny_model.projection(torch.stack(latents))
    condition = tiny_model.regulator.mapped(semantic[None], source_codes(0, frames, 70))[0]
    renderer = SentenceRenderer(tiny_model, voice, live(), seed=5)
    window = Window(
        tiny_model.dit,
        prompt=voice.short_mel,
        condition=torch.cat([voice.short_condition, condition]),
        style=voice.style,
        noise=renderer._noise(0, frames),
        steps=STEPS,
    )
    whole = tiny_model.vocoder(tiny_model.solver.solve(window)[None])[0].numpy()
    inner = slice(500, -500)  # between the fades
    assert np.array_equal(streamed[inner], whole[inner])


@torch.inference_mode()
def test_first_sound_needs_fourteen_codes(tiny_model: Model, voice: VoiceFeatures) -> None:
    renderer = SentenceRenderer(tiny_model, voice, live(), seed=5)

    assert not renderer.is_ready(13, ended=False)
    assert renderer.is_ready(14, ended=False)
    assert renderer.is_ready(6, ended=True)
    offline = SentenceRenderer(tiny_model, voice, Plan(), seed=5)
    assert not offline.is_ready(1000, ended=False)


@torch.inference_mode()
def test_vocoder_windows_with_true_context_are_exact(tiny_model: Model) -> None:
    mel = torch.randn(1, 80, 120, generator=torch.Generator().manual_seed(1)) * 0.02
    whole = tiny_model.vocoder(mel)[0]

    middle = tiny_model.vocoder(mel[..., 8:112])[0][32 * HOP : -32 * HOP]
    scale = whole.abs().max()
    assert (middle - whole[40 * HOP : 80 * HOP]).abs().max() < 2e-3 * scale


@torch.inference_mode()
def test_joins_are_as_smooth_as_the_rest(
    tiny_model: Model,
    voice: VoiceFeatures,
    latents: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a vocoder that is gentle to random mel, joins are like the rest."""

    def gentle(mel: torch.Tensor, lengths: object) -> torch.Tensor:
        level = torch.nn.functional.interpolate(
            mel.mean(1, keepdim=True), scale_factor=HOP, mode="linear", align_corners=False
        )
        phase = torch.arange(level.shape[-1]) / 22_050 * 2 * torch.pi * (22_050 / HOP)
        return 0.1 * level[:, 0] * torch.sin(phase)

    monkeypatch.setattr(tiny_model.vocoder, "forward", gentle)
    chunks = play(tiny_model, voice, latents, live())
    wave = np.concatenate(chunks)
    jumps = np.abs(np.diff(wave))

    joins = np.cumsum([len(c) for c in chunks])[:-1]
    usual = np.median([jumps[i : i + HOP].max() for i in range(0, len(jumps), HOP)])
    assert len(joins) >= 3
    for join in joins:
        assert jumps[join - HOP : join + HOP].max() <= max(1.5 * usual, 0.1)


@torch.inference_mode()
def test_blend_gives_each_side_its_share(tiny_model: Model, voice: VoiceFeatures) -> None:
    renderer = SentenceRenderer(tiny_model, voice, live(), seed=5)
    renderer.samples = 1
    renderer._tail = np.full(2 * HOP, -1.0, np.float32)
    out = renderer._joined(np.ones(6 * HOP, np.float32))

    assert out[0] == pytest.approx(-1, abs=1e-3)
    assert out[HOP] == pytest.approx(0, abs=0.01)
    assert out[2 * HOP] == 1
    assert len(out) == 4 * HOP and len(renderer._tail) == 2 * HOP


def test_noise_belongs_to_absolute_frames(tiny_model: Model, voice: VoiceFeatures) -> None:
    renderer = SentenceRenderer(tiny_model, voice, live(), seed=5, number=2)
    whole = renderer._noise(0, 200)

    assert torch.equal(renderer._noise(50, 150), whole[:, 50:150])
    other = SentenceRenderer(tiny_model, voice, live(), seed=5, number=3)
    assert not torch.equal(other._noise(0, 200), whole)


def hissing(frames: int, *, dip: bool) -> np.ndarray:
    mel = np.full((80, 60), -4.0, np.float32)
    mel[:32] += 2  # speech: more energy in the low bands
    if dip:
        mel[:, -frames - 3 : -frames] -= 4
    mel[:, -frames:] = -4.0
    mel[-32:, -frames:] = -1.0
    return mel


def test_hiss_at_the_end_is_found_and_muted_without_losing_samples() -> None:
    mel = hissing(8, dip=True)
    wave = np.ones(60 * HOP, np.float32)

    assert render.hiss_start(mel) == 52
    quiet = render.mute_hiss(wave, mel, lead=0)
    assert len(quiet) == len(wave)
    assert (quiet[: 52 * HOP] == 1).all() and (quiet[53 * HOP :] == 0).all()


@pytest.mark.parametrize(
    "mel", [hissing(8, dip=False), hissing(2, dip=True), hissing(40, dip=True)]
)
def test_word_final_fricatives_short_and_long_noises_stay(mel: np.ndarray) -> None:
    assert render.hiss_start(mel) is None
