from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.backends.indextts2.decode import (  # noqa: E402
    Decoder,
    Reading,
    _is_looping,
    slot_bytes,
)
from engine.backends.indextts2.sampling import Sampling  # noqa: E402

if TYPE_CHECKING:
    from engine.backends.indextts2.model import Model
    from engine.backends.indextts2.voice import VoiceFeatures


@pytest.fixture
def prefix(tiny_model: Model, voice: VoiceFeatures) -> torch.Tensor:
    with torch.inference_mode():
        return tiny_model.gpt.prefix(voice.latents, voice.own_emotion, list(range(5, 20)))


def finish(decoder: Decoder, readings: list[Reading]) -> list[Reading]:
    for reading in readings:
        decoder.start(reading)
    while any(r.ended is None for r in readings):
        decoder.step(readings)
    return readings


def test_latents_of_decoding_equal_a_second_pass(tiny_model: Model, prefix: torch.Tensor) -> None:
    (reading,) = finish(Decoder(tiny_model, slots=1), [Reading(prefix, 15, Sampling(), seed=1)])

    with torch.inference_mode():
        whole = tiny_model.gpt.latents(prefix, torch.tensor(reading.codes))
    assert len(reading.codes) >= 5
    assert (torch.stack(reading.latents) - whole).abs().max() < 1e-5 * whole.abs().max()


def test_upstream_positions_get_their_latents_from_the_second_pass(
    tiny_model: Model, prefix: torch.Tensor
) -> None:
    aligned = finish(Decoder(tiny_model, slots=1), [Reading(prefix, 15, Sampling(), seed=1)])[0]
    decoder = Decoder(tiny_model, slots=1, positions="upstream")
    upstream = finish(decoder, [Reading(prefix, 15, Sampling(), seed=1)])[0]

    assert upstream.codes != aligned.codes
    assert len(upstream.latents) == len(upstream.codes)


def test_codes_do_not_depend_on_neighbours_slots_or_time_of_joining(
    tiny_model: Model, prefix: torch.Tensor
) -> None:
    alone = [
        finish(Decoder(tiny_model, slots=1), [Reading(prefix, 15, Sampling(), seed=s)])[0]
        for s in range(4)
    ]
    for exact in (True, False):
        decoder = Decoder(tiny_model, slots=4, exact=exact)
        together = [Reading(prefix, 15, Sampling(), seed=s) for s in range(4)]
        for count, reading in enumerate(together):
            decoder.start(reading)
            for _ in range(3):
                decoder.step(together[: count + 1])
        while any(r.ended is None for r in together):
            decoder.step(together)

        assert [r.codes for r in together] == [r.codes for r in alone]


def test_other_places_of_a_request_draw_other_codes(
    tiny_model: Model, prefix: torch.Tensor
) -> None:
    readings = [Reading(prefix, 15, Sampling(), seed=1, place=p) for p in ((0, 0), (0, 1), (1, 0))]
    finish(Decoder(tiny_model, slots=3), readings)

    assert len({tuple(r.codes) for r in readings}) == 3


def test_slots_come_back_at_the_end_and_on_a_drop(tiny_model: Model, prefix: torch.Tensor) -> None:
    decoder = Decoder(tiny_model, slots=2)
    first, second = (Reading(prefix, 15, Sampling(), seed=s) for s in (1, 2))
    decoder.start(first)
    decoder.start(second)
    assert decoder.free_slots == 0

    decoder.drop(first)
    decoder.drop(first)
    assert decoder.free_slots == 1
    while second.ended is None:
        decoder.step([second])
    assert decoder.free_slots == 2


def test_runaway_readings_are_ended_and_say_so(
    tiny_model: Model, prefix: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_model, "config", replace(tiny_model.config, stop_bias=-1000.0))
    reading = finish(Decoder(tiny_model, slots=1), [Reading(prefix, 15, Sampling(), seed=1)])[0]

    assert reading.ended in ("limit", "loop")
    assert len(reading.codes) <= tiny_model.config.gpt.max_mel


def test_loops_are_told_from_speech() -> None:
    speech = np.random.default_rng(0).integers(0, 8192, 200).tolist()

    assert not _is_looping(speech)
    assert not _is_looping([5] * 49)
    assert _is_looping(speech + [5] * 50)
    assert _is_looping(speech + [1, 2, 3] * 17)
    assert not _is_looping(list(range(25)) * 4)


def test_wanted_length_is_met_within_a_factor_of_two(
    tiny_model: Model, prefix: torch.Tensor
) -> None:
    readings = [Reading(prefix, 15, Sampling(), seed=s, wanted_codes=30) for s in range(4)]
    finish(Decoder(tiny_model, slots=4), readings)

    assert all(15 <= len(r.codes) <= 60 for r in readings)


def test_start_mark_is_never_drawn(tiny_model: Model, prefix: torch.Tensor) -> None:
    hot = Sampling(temperature=50.0, top_k=66, top_p=1.0, repetition_penalty=1.0)
    readings = [Reading(prefix, 15, hot, seed=s) for s in range(4)]
    finish(Decoder(tiny_model, slots=4), readings)

    assert all(0 <= code < 64 for r in readings for code in r.codes)


def test_text_longer_than_the_model_has_positions_for_is_refused(
    tiny_model: Model, voice: VoiceFeatures
) -> None:
    with pytest.raises(ValueError, match="takes 40"):
        tiny_model.gpt.prefix(voice.latents, voice.own_emotion, [5] * 41)


def test_memory_of_a_slot_is_known_before_it_is_taken(tiny_model: Model) -> None:
    assert Decoder(tiny_model, slots=3).cache.size_bytes == 3 * slot_bytes(tiny_model)
