from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("yaml")  # the package's configuration reader
from engine.backends.indextts2.resample import StreamResampler, to_pcm

WAVE = np.random.default_rng(0).standard_normal(3000).astype(np.float32)


@given(st.lists(st.integers(0, 900), max_size=12))
def test_pieces_make_the_same_samples_as_the_whole(cuts: list[int]) -> None:
    whole = StreamResampler().push(WAVE, last=True)
    stream, parts, at = StreamResampler(), [], 0
    for length in cuts:
        parts.append(stream.push(WAVE[at : at + length]))
        at = min(at + length, len(WAVE))
    parts.append(stream.push(WAVE[at:], last=True))

    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(("given_", "wanted"), [(22_050, 24_000), (256, 279), (1, 2), (0, 0)])
def test_length_is_that_of_the_sound(given_: int, wanted: int) -> None:
    assert len(StreamResampler().push(np.zeros(given_, np.float32), last=True)) == wanted


def test_tones_keep_their_pitch_and_level() -> None:
    for hz in (100, 1000, 9000):
        t_in, t_out = np.arange(22_050) / 22_050, np.arange(24_000) / 24_000
        out = StreamResampler().push(np.sin(2 * np.pi * hz * t_in).astype(np.float32), last=True)

        assert np.abs(out - np.sin(2 * np.pi * hz * t_out))[200:-200].max() < 1e-3


def test_little_is_held_back() -> None:
    assert len(StreamResampler().push(WAVE)) >= (3000 - 33) * 24_000 // 22_050


def test_loud_samples_are_clipped_not_wrapped() -> None:
    assert to_pcm(np.array([2.0, -2.0, 0.5], np.float32)).tolist() == [32767, -32768, 16384]
