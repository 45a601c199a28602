"""engine/resample.py: one rate to another, in pieces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.base import SAMPLE_RATE_HZ
from engine.resample import StreamResampler, to_pcm

RATES = [8_000, 16_000, 22_050, 32_000, 44_100, 48_000]


def sine(rate_hz: int, samples: int, hz: float = 440.0) -> np.ndarray:
    return 10_000 * np.sin(2 * np.pi * hz * np.arange(samples) / rate_hz)


@pytest.mark.parametrize("rate_hz", RATES)
def test_a_sine_stays_the_sine_it_was(rate_hz: int):
    out = StreamResampler(rate_hz).push(sine(rate_hz, rate_hz), last=True)
    inner = slice(SAMPLE_RATE_HZ // 50, -SAMPLE_RATE_HZ // 50)  # silence reaches into the ends

    assert len(out) == SAMPLE_RATE_HZ
    assert np.abs(out - sine(SAMPLE_RATE_HZ, len(out)))[inner].max() < 2


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
def test_what_the_new_rate_cannot_hold_is_taken_out(rate_hz: int):
    out = StreamResampler(rate_hz).push(sine(rate_hz, rate_hz, hz=15_000), last=True)

    assert np.abs(out[1_000:-1_000]).max() < 5


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(RATES), st.lists(st.integers(0, 700), min_size=1, max_size=8))
def test_cuts_change_no_sample(rate_hz: int, lengths: list[int]):
    sound = np.random.default_rng(0).integers(-9_000, 9_000, sum(lengths)).astype(np.int16)
    whole = StreamResampler(rate_hz).push(sound, last=True)
    resampler, ends = StreamResampler(rate_hz), np.cumsum(lengths)
    parts = [resampler.push(part) for part in np.split(sound, ends[:-1])]
    parts.append(resampler.push(sound[:0], last=True))

    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-9)


def test_nothing_waits_longer_than_the_filter_reaches():
    out = StreamResampler(22_050).push(sine(22_050, 22_050))

    assert len(out) > SAMPLE_RATE_HZ - SAMPLE_RATE_HZ // 500


@pytest.mark.parametrize("rate_hz", [0, 7_999, 192_001])
def test_rates_that_no_server_has_are_refused(rate_hz: int):
    with pytest.raises(ValueError, match="goes from 8000 to 192000"):
        StreamResampler(rate_hz)


@pytest.mark.parametrize(("given_", "wanted"), [(22_050, 24_000), (256, 279), (1, 2), (0, 0)])
def test_length_is_that_of_the_sound(given_: int, wanted: int):
    assert len(StreamResampler(22_050).push(np.zeros(given_), last=True)) == wanted


def test_loud_samples_are_clipped_not_wrapped():
    assert to_pcm(np.array([2.0, -2.0, 0.5])).tolist() == [32767, -32768, 16384]
