from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from engine.backends.indextts2.cfm import Solver, Window, bucket  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from engine.backends.indextts2.model import Model


def window(model: Model, frames: int, seed: int, *, steps: int = 4) -> Window:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    prompt = frames // 3
    return Window(
        model.dit,
        prompt=normal(80, prompt),
        condition=normal(frames, 32),
        style=normal(192),
        noise=normal(80, frames - prompt),
        steps=steps,
    )


@torch.inference_mode()
def test_windows_of_other_lengths_and_times_share_calls_exactly(tiny_model: Model) -> None:
    solver = Solver(tiny_model.dit)
    sizes = (44, 31, 60)
    alone = [solver.solve(window(tiny_model, n, n)) for n in sizes]

    together = [window(tiny_model, n, n) for n in sizes]
    solver.advance(together[:1])  # one is a step ahead
    while any(not w.is_done for w in together):
        solver.advance([w for w in together if not w.is_done], frames=bucket(60))
    for ours, wanted in zip(together, alone, strict=True):
        assert (ours.mel - wanted).abs().max() < 1e-5 * wanted.abs().max() + 1e-5


@torch.inference_mode()
def test_padding_without_reflection_at_each_rows_end_would_not_be_exact(
    tiny_model: Model,
) -> None:
    """The mechanism matters: told that the padded row is longer, its last frames differ."""
    ours = window(tiny_model, 44, 1)
    dit = tiny_model.dit
    rows = dit.modulation(torch.tensor([0.36, 0.36]))
    x = torch.nn.functional.pad(ours.x, (0, 9))[None].repeat(2, 1, 1)
    constant = torch.nn.functional.pad(ours.constant, (0, 0, 0, 9))

    right = dit(x, constant, rows, torch.tensor([44, 44]))[..., :44]
    wrong = dit(x, constant, rows, torch.tensor([53, 53]))[..., :44]
    alone = dit(x[..., :44], constant[:, :44], rows)
    assert (right - alone).abs().max() < 1e-5
    assert (wrong - alone).abs().max() > 0.01


@torch.inference_mode()
def test_prompt_stays_out_of_the_estimate(tiny_model: Model) -> None:
    ours = window(tiny_model, 30, 2)
    Solver(tiny_model.dit).advance([ours])

    assert (ours.x[:, : ours.prompt_frames] == 0).all()
    assert ours.step == 1 and not ours.is_done
    assert ours.mel.shape == (80, 20)


def test_windows_longer_than_the_model_was_built_for_are_refused(tiny_model: Model) -> None:
    with pytest.raises(ValueError, match="16384"):
        Window(
            tiny_model.dit,
            prompt=torch.zeros(80, 1),
            condition=torch.zeros(16_385, 32),
            style=torch.zeros(192),
            noise=torch.zeros(80, 16_384),
        )


def test_buckets_waste_little() -> None:
    assert bucket(129) == 192 and bucket(128) == 128
    assert bucket(5000) == 5120
    assert all(bucket(n) <= 1.25 * n for n in range(257, 16_000))
