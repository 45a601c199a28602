from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.backends.indextts2.beam import BeamSearch  # noqa: E402
from engine.backends.indextts2.decode import Decoder, Reading  # noqa: E402
from engine.backends.indextts2.sampling import Sampling, philox  # noqa: E402
from engine.backends.indextts2.trace import trace  # noqa: E402

if TYPE_CHECKING:
    from engine.backends.indextts2.model import Model
    from engine.backends.indextts2.voice import VoiceFeatures

STORED = Path(__file__).parents[2] / "fixtures" / "indextts2" / "gpt_generate.npz"
GREEDY = Sampling(temperature=0.0)


@torch.inference_mode()
def test_search_without_chance_equals_the_reference(
    parity_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity_model, "config", replace(parity_model.config, stop_bias=0.0))
    prefix = torch.from_numpy(trace("gpt_generate", 0, parity_model)["prefix_embeds"])[0]
    search = BeamSearch(
        parity_model, prefix, GREEDY, philox(0), beams=3, most_codes=40, positions="upstream"
    )
    while not search.is_done:
        search.step()

    with np.load(STORED) as stored:
        assert search.best()[0] == stored["beam3_greedy_codes"][0].tolist()


@pytest.fixture
def prefix(tiny_model: Model, voice: VoiceFeatures) -> torch.Tensor:
    with torch.inference_mode():
        return tiny_model.gpt.prefix(voice.latents, voice.own_emotion, list(range(5, 20)))


def search(model: Model, prefix: torch.Tensor, seed: int, beams: int = 3) -> Reading:
    decoder = Decoder(model, slots=1)
    reading = Reading(prefix, 15, Sampling(), seed=seed, beams=beams)
    decoder.start(reading)
    assert decoder.free_slots == 0
    while reading.ended is None:
        decoder.step([reading])
    assert decoder.free_slots == 1
    return reading


def test_searched_readings_have_latents_and_depend_on_their_seed(
    tiny_model: Model, prefix: torch.Tensor
) -> None:
    first, again, other = (search(tiny_model, prefix, seed) for seed in (1, 1, 2))

    assert first.codes == again.codes != other.codes
    assert len(first.latents) == len(first.codes) > 0
    assert all(0 <= code < 64 for code in first.codes)


def test_dropped_search_frees_its_slot(tiny_model: Model, prefix: torch.Tensor) -> None:
    decoder = Decoder(tiny_model, slots=1)
    reading = Reading(prefix, 15, Sampling(), seed=1, beams=3)
    decoder.start(reading)
    decoder.step([reading])
    decoder.drop(reading)

    assert decoder.free_slots == 1
