"""durations.py, sound.py, windows.py, manners.py: numbers about sound, without a model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends.kokoro import sound, windows
from engine.backends.kokoro.durations import (
    check_ratio,
    exact_frames,
    natural_frames,
    share_out,
    word_times,
)
from engine.backends.kokoro.manners import PRESETS, manner_of, nearest_preset
from engine.backends.kokoro.stages import Score
from engine.backends.kokoro.words import Word, line_of
from engine.base import SAMPLE_RATE_HZ, Controls
from engine.errors import BadRequest

raw_durations = st.lists(st.floats(0.0625, 40, width=32), min_size=3, max_size=120).map(
    lambda values: np.array(values, np.float32)
)


@given(raw_durations, st.floats(0.3, 3))
def test_exact_frames_add_up_and_keep_proportions(raw, ratio):
    total = max(len(raw), round(float(raw.sum()) * ratio))

    frames = exact_frames(raw, total)

    assert frames.sum() == total
    assert frames.min() >= 1
    ordered = frames[np.argsort(raw, kind="stable")]
    assert (np.diff(ordered) >= -1).all()  # rounding may swap neighbours by one frame, no more


def test_fewer_frames_than_tokens_are_refused():
    with pytest.raises(BadRequest, match="too short for 10 phonemes"):
        exact_frames(np.ones(10, np.float32), 9)


def test_natural_frames_round_halves_to_even_and_never_to_nothing():
    raw = np.array([0.1, 0.5, 1.5, 2.5, 9.6], np.float32)

    assert natural_frames(raw).tolist() == [1, 1, 2, 2, 10]
    assert natural_frames(raw, 2.0).tolist() == [1, 1, 1, 1, 5]


@given(
    st.lists(st.tuples(st.integers(1, 500_000), st.integers(0, 50_000)), min_size=1, max_size=40),
    st.floats(0.6, 1.8),
)
def test_a_shared_out_length_adds_up_to_the_sample(parts, ratio):
    natural, pauses = [a for a, _ in parts], [b for _, b in parts]
    total = round(sum(natural) * ratio) + sum(pauses)

    speech, silence, stretched = share_out(natural, pauses, total)

    assert sum(speech) + sum(silence) == total
    assert min(speech) >= 0
    assert min(silence) >= 0
    assert stretched == pytest.approx(sum(speech) / sum(natural))


def test_pauses_take_their_part_of_a_correction_first():
    speech, silence, ratio = share_out([100_000, 100_000], [0, 50_000], 270_000)

    assert silence == [0, 56_000]  # 30 % of 20 000
    assert ratio == pytest.approx(1.07)
    assert speech == [107_000, 107_000]


def test_a_ratio_far_from_natural_is_refused_unless_forced():
    with pytest.raises(BadRequest, match=r"0\.50 times its natural length"):
        check_ratio(0.5, 4.0, force=False)
    check_ratio(0.5, 4.0, force=True)
    check_ratio(1.79, 4.0, force=False)


def test_word_times_follow_the_frames():
    words = [Word("go", (0, 2), "ɡ", True), Word("on", (3, 5), "n"), Word(".", (5, 6), ".")]
    line = line_of(words)  # pad, g, space, n, mark, pad
    frames = np.array([4, 3, 1, 5, 6, 2])

    times = word_times("go on.", [(line, frames)])

    assert [(t.text, t.start_ms, t.end_ms) for t in times] == [("go", 60, 175), ("on", 200, 325)]


def test_a_word_after_a_pause_begins_earlier_but_not_before_the_last_one_ended():
    words = [Word("a", (0, 1), "a"), Word(",", (1, 2), ","), Word("b", (2, 3), "b")]

    slow = word_times("a,b", [(line_of(words), np.array([4, 3, 8, 5, 2]))])
    quick = word_times("a,b", [(line_of(words), np.array([1, 3, 1, 5, 2]))])

    assert slow[1].start_ms == (4 + 3 + 8) * 25 - 40
    assert quick[0].start_ms == 0
    assert quick[1].start_ms == quick[0].end_ms


def test_the_second_line_of_a_sentence_goes_on_where_the_first_ended():
    one, two = line_of([Word("a", (0, 1), "a")]), line_of([Word("b", (2, 3), "b")])

    times = word_times("a b", [(one, np.array([2, 2, 2])), (two, np.array([4, 2, 2]))])

    assert times[1].start_ms == (6 + 4) * 25 - 40


# sound ------------------------------------------------------------------------------------------


def test_loudness_is_that_of_the_standard():
    """BS.1770: a 997 Hz sine at full scale reads -3.01 LUFS; level and loudness go together."""
    t = np.arange(SAMPLE_RATE_HZ * 2) / SAMPLE_RATE_HZ
    sine = np.sin(2 * np.pi * 997 * t).astype(np.float32)

    assert sound.loudness_lufs(sine) == pytest.approx(-3.01, abs=0.1)
    assert sound.loudness_lufs(sine * 0.1) == pytest.approx(-23.01, abs=0.1)


def test_silence_around_speech_does_not_lower_its_loudness():
    t = np.arange(SAMPLE_RATE_HZ * 2) / SAMPLE_RATE_HZ
    tone = 0.1 * np.sin(2 * np.pi * 500 * t).astype(np.float32)
    padded = np.concatenate([np.zeros(SAMPLE_RATE_HZ * 2, np.float32), tone])

    assert sound.loudness_lufs(padded) == pytest.approx(sound.loudness_lufs(tone), abs=0.6)


def test_peaks_bend_below_the_ceiling_and_quiet_samples_pass():
    audio = np.linspace(-2, 2, 1001, dtype=np.float32)

    out = sound.level(audio, 0.0)

    assert np.abs(out).max() < 10 ** (-1 / 20)
    assert (np.diff(out) >= 0).all()
    quiet = np.abs(audio) <= sound.KNEE
    np.testing.assert_array_equal(out[quiet], audio[quiet])


def test_gain_is_in_decibels_and_leaves_its_input_alone():
    audio = np.full(100, 0.1, np.float32)

    np.testing.assert_allclose(sound.level(audio, 6.0206), 0.2, rtol=1e-4)
    assert (audio == np.float32(0.1)).all()


def test_fades_are_5_ms_at_the_ends_asked_for():
    audio = np.ones(1000, np.float32)

    start, both = sound.fade(audio, end=False), sound.fade(audio)

    assert start[0] == 0
    assert (start[120:] == 1).all()
    assert both[-1] == 0
    assert (both[120:-120] == 1).all()
    assert len(sound.fade(np.ones(7, np.float32))) == 7


# windows ----------------------------------------------------------------------------------------


def _score(frames: int, quiet_at: int | None = None) -> Score:
    energy = np.ones((1, 1, 2 * frames), np.float32)
    if quiet_at is not None:
        energy[:, :, 2 * quiet_at : 2 * quiet_at + 2] = 0
    empty = np.zeros((1, 22, 120 * frames + 1), np.float32)
    sound_ = np.zeros((1, 512, frames), np.float32)
    return Score(np.zeros((1, 256), np.float32), np.array([frames]), sound_, energy, energy, empty)


@pytest.mark.parametrize("frames", [1, 10, 31, 63, 64, 65, 130, 400])
def test_windows_cover_a_sentence_without_stubs(frames):
    edges = windows.boundaries(_score(frames))

    assert edges[0] == 0
    assert edges[-1] == frames
    sizes = np.diff(edges)
    assert (sizes > 0).all()
    if len(sizes) > 1:
        assert sizes[0] <= windows.FIRST_FRAMES + windows.SEARCH_FRAMES
        assert sizes.min() >= windows.CONTEXT_FRAMES


def test_a_boundary_moves_to_the_quietest_frame_nearby():
    assert windows.boundaries(_score(300, quiet_at=27))[1] == 27


# manners ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("emotion", "preset"),
    [
        ("calm and gentle", "calm"),
        ("HAPPY", "lively"),
        ("a little sad", "sad"),
        ("angry", "urgent"),
        ("有点着急", "urgent"),
        ("开心地", "lively"),
        ("悲しい", "sad"),
        ("like a robot", "neutral"),
        ("unhappy", "neutral"),
    ],
)
def test_words_for_an_emotion_find_the_nearest_preset(emotion, preset):
    assert nearest_preset(emotion) == preset


def test_controls_multiply_a_preset_within_what_is_possible():
    manner = manner_of(Controls(manner="urgent", rate=2.0, pitch=1.0, gain_db=2.0))

    assert manner.rate == 2.0
    assert manner.pitch == PRESETS["urgent"].pitch
    assert manner.gain_db == PRESETS["urgent"].gain_db + 2.0


def test_a_manner_that_is_no_preset_is_a_voice():
    assert manner_of(Controls(manner="am_puck")).voice == "am_puck"
    assert manner_of(Controls(manner="am_puck")).bends_pitch
    assert not manner_of(Controls(rate=1.3, gain_db=3)).bends_pitch
