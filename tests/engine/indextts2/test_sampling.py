from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.backends.indextts2 import seeds  # noqa: E402
from engine.backends.indextts2.sampling import (  # noqa: E402
    Sampling,
    draw,
    keep,
    penalise,
    philox,
)

STORED = Path(__file__).parents[2] / "fixtures" / "indextts2" / "sampling.npz"


@pytest.mark.parametrize(("name", "at_least"), [("single", 1), ("beam", 2)])
def test_surviving_codes_equal_the_reference(name: str, at_least: int) -> None:
    logits = torch.from_numpy(seeds.normal_input(0, "logits", (2, 8194), 3.0))
    with np.load(STORED) as stored:
        history = torch.from_numpy(stored["history"])
        wanted = [set(row[row >= 0].tolist()) for row in stored[f"kept_{name}"]]
        top = stored[f"kept_{name}_scores"]
    seen = torch.zeros(2, 8194, dtype=torch.bool).scatter_(1, history, True)
    if name == "beam":
        logits = logits.log_softmax(-1)
    both = torch.ones(2)
    chances, codes = keep(
        penalise(logits, seen, both * 10),
        both * 0.8,
        (both * 30).long(),
        both * 0.8,
        widest=30,
        at_least=at_least,
    )

    ours = [set(c[p > 0].tolist()) for c, p in zip(codes, chances, strict=True)]
    assert ours == wanted
    assert chances.max(-1).values.numpy() == pytest.approx(top, abs=1e-5)


def test_rows_keep_their_own_settings() -> None:
    scores = torch.linspace(0, 1, 50).repeat(2, 1)
    ones, top_k = torch.ones(2), torch.tensor([3, 10])
    chances, _ = keep(scores, ones, top_k, ones, widest=10)

    assert (chances > 0).sum(-1).tolist() == [3, 10]


def test_draws_follow_the_chances() -> None:
    count = 20_000
    chances = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).repeat(count, 1)
    codes = torch.tensor([[7, 3, 9, 1]]).repeat(count, 1)
    uniforms = torch.from_numpy(philox(1, 5).random(count)).float()

    drawn = draw(chances, codes, uniforms)
    shares = [(drawn == code).float().mean().item() for code in (7, 3, 9, 1)]
    assert shares == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.015)


def test_largest_uniform_never_draws_a_code_without_a_chance() -> None:
    chances, codes = torch.tensor([[0.9, 0.1, 0.0]]), torch.tensor([[4, 5, 6]])

    assert draw(chances, codes, torch.tensor([1.0 - 1e-9])).tolist() == [5]


def test_random_numbers_depend_on_their_place_alone() -> None:
    late = philox(3, 1, 8).random(5)
    philox(3, 1, 7).random(100)

    assert np.array_equal(philox(3, 1, 8).random(5), late)
    assert not np.array_equal(philox(3, 1, 9).random(5), late)
    assert not np.array_equal(philox(4, 1, 8).random(5), late)


@pytest.mark.parametrize("bad", [{"top_p": 0.0}, {"top_k": 0}, {"repetition_penalty": 0.0}])
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Sampling(**bad)  # type: ignore[arg-type]
