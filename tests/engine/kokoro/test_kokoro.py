"""The backend as callers see it, with real models: planner.py, backend.py, hibari.py."""

import importlib.util
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from engine.backends import make_backend
from engine.backends.kokoro import Kokoro
from engine.backends.kokoro.sound import loudness_lufs
from engine.base import SAMPLE_RATE_HZ, Controls, SpeechRequest, Turn
from engine.engine import Engine
from engine.errors import (
    BadRequest,
    EngineStopped,
    UnknownVoice,
    UnsupportedFeature,
    UnsupportedLanguage,
)
from engine.utterance import Utterance

ENGLISH = "Priya sends the budget of $48,500 today. Thanks!"
CHINESE = "张伟问我们的API网关能不能承受每秒两万次请求。好。"


def plan(backend: Kokoro, *turns: Turn, **options):
    return backend.plan(SpeechRequest(turns, **options))


def voices_of(backend: Kokoro, *turns: Turn) -> list[str]:
    return [sentence.voice for sentence in plan(backend, *turns).sentences]


# planning ---------------------------------------------------------------------------------------


def test_importing_and_planning_load_no_model_runtime():
    code = (
        "import sys, engine.backends.kokoro as k;"
        "heavy = {'onnxruntime', 'onnx', 'jieba', 'pypinyin', 'hibari', 'misaki', 'torch'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "from engine.base import SpeechRequest, Turn;"
        "b = k.Kokoro(); b.voices(); b.info(); b.plan(SpeechRequest((Turn('开会。'),)));"
        "assert 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_english_without_a_voice_goes_to_hibari_whole(backend):
    assert voices_of(backend, Turn(ENGLISH), Turn("Bye.")) == ["heart"] * 3
    assert voices_of(backend, Turn("Hi.", voice="heart")) == ["heart"]


def test_a_seriously_read_decision_keeps_the_english_voice(backend):
    serious = Turn("We ship on Friday.", controls=Controls(manner="serious"))
    bent = Turn("We ship on Friday.", controls=Controls(pitch=1.1))
    moved = Turn("We ship on Friday.", controls=Controls(emotion="serious"))

    plan = backend.plan(SpeechRequest((Turn("Hello."), serious)))
    assert [one.voice for one in plan.sentences] == ["heart", "heart"]
    assert plan.degraded == ("manner",)
    for turn in (bent, moved):
        plan = backend.plan(SpeechRequest((Turn("Hello."), turn)))
        assert {one.voice for one in plan.sentences} == {"af_heart"}


def test_chinese_and_mixed_text_stays_with_one_voice(backend):
    assert set(voices_of(backend, Turn(CHINESE))) == {"zf_xiaoxiao"}
    assert set(voices_of(backend, Turn(CHINESE), Turn(CHINESE), Turn("Thanks!"))) == {"zf_xiaoxiao"}
    assert set(voices_of(backend, Turn(ENGLISH * 6), Turn("好。"))) == {"af_heart"}
    named = Turn("Please ask 王芳 about the new budget before Friday.")
    assert voices_of(backend, named) == ["af_heart"]


def test_pitch_control_in_one_turn_moves_the_whole_speaker_to_kokoro(backend):
    turns = (Turn("Hi there."), Turn("Bye.", controls=Controls(pitch=1.1)))

    assert set(voices_of(backend, *turns)) == {"af_heart"}


def test_two_speakers_keep_their_own_voices(backend):
    turns = (Turn("Hello.", voice="am_michael"), Turn("Hi.", voice="bf_emma"), Turn("Bye."))

    assert voices_of(backend, *turns) == ["am_michael", "bf_emma", "heart"]


def test_a_named_language_brings_its_default_voice(backend):
    assert voices_of(backend, Turn("OK。", lang="zh")) == ["zf_xiaoxiao"]
    assert voices_of(backend, Turn("Good.", lang="en-US")) == ["heart"]


def test_a_plan_is_the_same_every_time_and_covers_the_text(backend):
    turns = (Turn(ENGLISH, pause_before_ms=300), Turn(CHINESE))
    first, second = plan(backend, *turns), plan(backend, *turns, first_seg=2)

    assert first == second
    assert [sentence.seg for sentence in first.sentences] == [0, 1, 2, 3]
    assert [sentence.pause_before_ms for sentence in first.sentences] == [300, 0, 0, 0]
    for sentence in first.sentences:
        source = turns[sentence.turn].text
        assert source[slice(*sentence.span)].strip() == sentence.text
        assert sentence.estimated_ms > 300


def test_emotion_becomes_a_manner_and_is_reported(backend):
    happy = plan(backend, Turn("Great news.", controls=Controls(emotion="happy")))

    assert happy.degraded == ("emotion",)
    assert happy.sentences[0].voice == "af_heart"
    assert plan(backend, Turn("Great news.")).degraded == ()


def test_odd_notes_and_unreadable_letters_are_reported(backend):
    warnings = plan(backend, Turn("仇[xyz2]经理。这是한글。")).warnings

    assert any("仇[xyz2]" in warning for warning in warnings)
    assert any("한" in warning for warning in warnings)


def test_a_length_far_from_natural_is_announced(backend):
    assert plan(backend, Turn("Good morning."), target_s=60).warnings
    assert not plan(backend, Turn("Good morning.")).warnings


@pytest.mark.parametrize(
    ("turn", "error", "message"),
    [
        (Turn("Hi.", voice="af_haert"), UnknownVoice, "af_heart"),
        (Turn("Hi.", voice="clone:ada.wav"), UnsupportedFeature, "GPU engine"),
        (Turn("Hi.", voice="voices/ada.wav"), UnsupportedFeature, "indextts2"),
        (Turn("Hi.", controls=Controls(manner="jolly")), BadRequest, "neutral"),
        (Turn("Привет всем.", lang="ru"), UnsupportedLanguage, "it speaks en"),
        (Turn("Привет всем, это встреча."), UnsupportedLanguage, "ru"),
    ],
)
def test_what_it_cannot_do_is_refused_with_a_way_out(backend, turn, error, message):
    with pytest.raises(error, match=message):
        plan(backend, turn)


@pytest.mark.skipif(bool(importlib.util.find_spec("pyopenjtalk")), reason="the extra is installed")
def test_japanese_without_its_extra_names_it(backend):
    with pytest.raises(UnsupportedLanguage, match=r"pip install 'notecast\[ja\]'"):
        plan(backend, Turn("会議は三時に始まります。"))


@pytest.mark.skipif(bool(importlib.util.find_spec("phonemizer")), reason="the extra is installed")
@pytest.mark.parametrize("lang", ["es", "fr", "it", "pt", "hi"])
def test_languages_of_the_gpl_extra_name_it(backend, lang):
    with pytest.raises(UnsupportedLanguage, match=r"pip install 'notecast\[espeak\]'"):
        plan(backend, Turn("Hola.", lang=lang))


@pytest.mark.skipif(not importlib.util.find_spec("pyopenjtalk"), reason="needs notecast[ja]")
def test_japanese_is_spoken_by_its_own_voice(backend, speak, recording):
    chunks = speak("会議は三時に始まります。")

    assert len(recording(chunks)) > SAMPLE_RATE_HZ
    assert chunks[0].words[0].text == "会議"


def test_the_registry_builds_it_and_names_wrong_options(cache_dir):
    assert make_backend("kokoro", cache_dir=cache_dir, threads=1).info().name == "kokoro"
    with pytest.raises(BadRequest, match="threads"):
        make_backend("kokoro", threads=0)


# speaking ---------------------------------------------------------------------------------------


def test_a_batch_request_gives_one_chunk_a_sentence(speak):
    chunks = speak(Turn(ENGLISH, pause_before_ms=200), CHINESE)

    assert [chunk.seg for chunk in chunks] == [0, 1, 2, 3]
    assert all(c.first and c.last and c.live and c.kept for c in chunks)
    assert [chunk.pause_ms for chunk in chunks] == [200, 0, 0, 0]
    assert not chunks[0].pcm[: SAMPLE_RATE_HZ // 5].any()


def test_the_same_request_sounds_the_same_to_the_bit(speak, recording):
    for text in (ENGLISH, "好的，谢谢。"):
        np.testing.assert_array_equal(recording(speak(text)), recording(speak(text)))


def test_starting_at_a_later_sentence_changes_nothing_in_it(speak):
    whole, rest = speak(ENGLISH), speak(ENGLISH, first_seg=1)

    assert [chunk.seg for chunk in rest] == [1]
    np.testing.assert_array_equal(rest[0].pcm, whole[1].pcm)


def test_a_live_sentence_comes_in_windows_and_once_more_whole(speak, recording, by_sentence):
    live, batch = speak(CHINESE, live=True), speak(CHINESE)

    first = by_sentence(live)[0]
    assert len(first) > 2
    assert not any(chunk.kept for chunk in first)
    assert [chunk.first for chunk in first] == [True] + [False] * (len(first) - 1)
    assert [chunk.last for chunk in first] == [False] * (len(first) - 1) + [True]
    assert first[0].words
    assert not any(chunk.words for chunk in first[1:])
    assert len(first[0].pcm) < SAMPLE_RATE_HZ  # early sound is the point of it
    whole = [chunk for chunk in live if chunk.kept and not chunk.live]
    assert {chunk.seg for chunk in whole} == {
        seg for seg, own in by_sentence(live).items() if not own[0].kept
    }
    assert sum(len(chunk.pcm) for chunk in first) == len(whole[0].pcm)
    np.testing.assert_array_equal(recording(live), recording(batch))


def test_windows_sound_like_the_whole_decode(speak, by_sentence):
    live = speak(CHINESE, live=True)

    heard = np.concatenate([chunk.pcm for chunk in by_sentence(live)[0]]).astype(np.float64)
    kept = next(c.pcm for c in live if c.kept and c.seg == 0).astype(np.float64)

    assert np.abs(np.diff(heard)).max() < 2.0 * np.abs(np.diff(kept)).max()  # no clicks
    envelope = [
        np.sqrt(np.mean(x[: len(x) // 600 * 600].reshape(-1, 600) ** 2, 1)) for x in (heard, kept)
    ]
    assert np.corrcoef(*envelope)[0, 1] > 0.9


def test_live_hibari_gives_whole_sentences_at_once(speak):
    chunks = speak(ENGLISH, live=True)

    assert [(c.seg, c.live, c.kept) for c in chunks] == [(0, True, True), (1, True, True)]


def test_word_times_grow_and_stay_inside_the_sentence(speak):
    for text in (ENGLISH, CHINESE):
        for chunk in speak(text):
            length_ms = len(chunk.pcm) * 1000 / SAMPLE_RATE_HZ
            times = [t for word in chunk.words for t in (word.start_ms, word.end_ms)]
            assert times == sorted(times)
            assert times[-1] <= length_ms
            assert all(text[slice(*word.span)] == word.text for word in chunk.words)
    assert "$48,500" in [word.text for word in speak(ENGLISH)[0].words]


def test_a_word_after_a_pause_is_heard_when_its_time_says(speak):
    """Energy onset against the computed start, at the first word of each sentence."""
    text = "Today we decide. Before lunch, everyone votes. 大家都同意。 Good."
    off_ms = []
    for chunk in speak(Turn(text, voice="af_bella")) + speak(text, CHINESE):
        audio = chunk.pcm.astype(np.float64)
        envelope = np.sqrt(np.convolve(audio**2, np.ones(120) / 120, "same"))
        onset = np.flatnonzero(envelope > 0.02 * envelope.max())[0] * 1000 / SAMPLE_RATE_HZ
        off_ms.append(abs(onset - chunk.words[0].start_ms))

    assert np.median(off_ms) <= 40
    assert np.percentile(off_ms, 90) <= 80


def test_default_voices_are_equally_loud(speak, recording):
    text = "Thanks everyone, the notes will be in the shared folder tonight."
    hibari = recording(speak(text))
    chinese = recording(speak("谢谢各位，会议录音和纪要今晚会放到共享文件夹里。"))

    for pcm in (hibari, chinese):
        assert loudness_lufs(pcm.astype(np.float32) / 32768) == pytest.approx(-20, abs=1.5)


def test_rate_and_gain_do_what_they_say(speak, recording):
    text = "Thanks everyone, the notes will be there tonight."
    plain = recording(speak(text)).astype(np.float32) / 32768

    fast = recording(speak(Turn(text, controls=Controls(rate=1.5))))
    soft = recording(speak(Turn(text, controls=Controls(gain_db=-6)))).astype(np.float32) / 32768

    assert len(fast) / len(plain) == pytest.approx(1 / 1.5, rel=0.1)
    assert loudness_lufs(plain) - loudness_lufs(soft) == pytest.approx(6, abs=0.3)


def test_a_voice_of_the_users_own_is_levelled_like_the_others(cache_dir, tmp_path, backend, speak):
    loud = backend._pack.table("af_nova")
    np.save(tmp_path / "af_mine.npy", loud)
    own = Kokoro(cache_dir=cache_dir, voices_dir=tmp_path)

    mine = speak(Turn("Good morning everyone.", voice="af_mine"), backend=own)[0].pcm
    stock = speak(Turn("Good morning everyone.", voice="af_nova"))[0].pcm

    levels = [20 * np.log10(np.sqrt(np.mean(pcm.astype(np.float64) ** 2))) for pcm in (mine, stock)]
    assert levels[0] == pytest.approx(levels[1], abs=1.5)
    own.close()


def test_50_wanted_lengths_come_out_to_the_sample(speak, recording):
    text = "Thanks all, the notes are in the folder."
    natural_s = len(recording(speak(text))) / SAMPLE_RATE_HZ
    for ratio in np.random.default_rng(7).uniform(0.7, 1.7, 50):
        target_s = natural_s * float(ratio)

        samples = len(recording(speak(text, target_s=target_s)))

        assert samples == round(target_s * SAMPLE_RATE_HZ)


@pytest.mark.parametrize("live", [False, True])
def test_a_document_with_pauses_fills_its_wanted_length(speak, recording, live):
    turns = (Turn(CHINESE), Turn("谢谢。", pause_before_ms=900))

    chunks = speak(*turns, target_s=8.12345, live=live)

    assert len(recording(chunks)) == round(8.12345 * SAMPLE_RATE_HZ)
    assert sum(len(c.pcm) for c in chunks if c.live) == round(8.12345 * SAMPLE_RATE_HZ)
    assert chunks[-1].seg == 2 or live


def test_a_wanted_length_is_shared_out_alike_when_resumed(speak):
    turns = (Turn(ENGLISH), Turn("Good bye.", pause_before_ms=500))
    whole, rest = speak(*turns, target_s=7.0), speak(*turns, target_s=7.0, first_seg=2)

    np.testing.assert_array_equal(rest[0].pcm, whole[2].pcm)


def test_an_impossible_length_fails_with_its_reason(speak):
    with pytest.raises(BadRequest, match="times its natural length"):
        speak(ENGLISH, target_s=1.5)
    assert speak(ENGLISH, target_s=2.6, force=True)


# in the engine ----------------------------------------------------------------------------------


def test_a_reader_can_leave_in_mid_sentence(backend):
    request = SpeechRequest((Turn(CHINESE),), live=True)
    utterance = Utterance(request, backend.plan(request))
    backend.step([utterance])

    first = next(utterance)
    utterance.cancel()
    backend.forget(utterance)

    assert first.first
    assert not first.last
    assert utterance.is_done
    assert utterance.state is None
    with pytest.raises(EngineStopped):
        next(utterance)


def test_two_requests_take_turns_and_sound_as_if_alone(cache_dir, speak, recording):
    texts = ["好的，我们开始吧。谢谢。", ENGLISH]
    alone = [recording(speak(text)) for text in texts]
    together: dict[int, list] = {}
    with Engine(Kokoro(cache_dir=cache_dir)) as engine:

        def read(number: int) -> None:
            request = SpeechRequest((Turn(texts[number]),))
            together[number] = list(engine.speak(request))

        threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for number, expected in enumerate(alone):
        np.testing.assert_array_equal(recording(together[number]), expected)


def test_warming_loads_what_a_language_needs(cache_dir):
    kokoro = Kokoro(cache_dir=cache_dir)

    kokoro.warm(["en", "zh"])

    assert {"_hibari", "_stages"} <= set(vars(kokoro))
    kokoro.close()
    assert not {"_hibari", "_stages"} & set(vars(kokoro))
    with pytest.raises(UnsupportedLanguage):
        kokoro.warm(["tlh"])


def test_info_names_a_build_that_follows_the_voices(cache_dir, tmp_path, backend):
    np.save(tmp_path / "mine.npy", backend._pack.table("af_heart"))

    info = backend.info()

    assert (info.name, info.batch) == ("kokoro", 1)
    assert info == Kokoro(cache_dir=tmp_path).info()
    assert info.build != Kokoro(voices_dir=tmp_path).info().build
    names = [voice.id for voice in backend.voices()]
    assert len(names) == len(set(names)) == 55
    assert list(itertools.islice(names, 1)) == ["heart"]
