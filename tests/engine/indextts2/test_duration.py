from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from engine.backends.indextts2 import duration  # noqa: E402
from engine.backends.indextts2.s2mel import frame_count, source_codes  # noqa: E402


def test_shares_add_up_to_the_wanted_length() -> None:
    shares = duration.share_frames([1000, 250, 3333], 10.0)

    assert sum(shares) == duration.frames_of(10.0)
    assert shares[2] > shares[0] > shares[1] >= 1


def test_stop_is_held_back_before_the_end_and_pushed_after_it() -> None:
    biases = [duration.stop_bias(k, 100) for k in (10, 60, 90, 110, 150, 250)]

    assert biases[0] == -5.0
    assert -5.0 < biases[1] < 0
    assert biases[2] == biases[3] == 0.0
    assert 0 < biases[4] < biases[5] == 10.0
    assert duration.is_forced_to_stop(200, 100)


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.25])
def test_stretching_is_exact_and_monotonic(ratio: float) -> None:
    frames = frame_count(50, ratio)
    index = source_codes(0, frames, 50, ratio)

    assert frames == int(1.72 * 50 * ratio + 1e-9)
    assert index[0] == 0 and index[-1] >= 48
    assert (index.diff() >= 0).all()


def test_fixed_mapping_is_never_more_than_a_code_from_the_reference() -> None:
    for codes in (1, 7, 60, 333):
        frames = frame_count(codes)
        if not frames:
            continue
        positions = torch.arange(codes).float()[None, None]
        theirs = torch.nn.functional.interpolate(positions, size=frames, mode="nearest")[0, 0]
        assert (source_codes(0, frames, codes) - theirs).abs().max() <= 1


def test_mapping_of_a_stretch_is_part_of_the_mapping_of_the_whole() -> None:
    whole = source_codes(0, 172, 100)

    assert torch.equal(source_codes(60, 120, 100), whole[60:120])
