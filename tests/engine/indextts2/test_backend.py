"""The backend under the real engine, on the tiny release."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("av")

from engine.backends.indextts2.backend import IndexTTS2  # noqa: E402
from engine.backends.indextts2.errors import FilesMissing, UnsupportedModel  # noqa: E402
from engine.backends.indextts2.library import Consent, VoiceLibrary, read_audio  # noqa: E402
from engine.base import AudioChunk, Controls, SpeechRequest, Turn  # noqa: E402
from engine.engine import Engine  # noqa: E402
from engine.errors import (  # noqa: E402
    BadRequest,
    UnknownVoice,
    UnsupportedFeature,
    UnsupportedLanguage,
)
from engine.utterance import Utterance  # noqa: E402

TEXT = "Hello there my good old friend. How is the weather today?"


@pytest.fixture(scope="module")
def backend(tiny_dir: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> IndexTTS2:
    folder = tmp_path_factory.mktemp("voices")
    consent = Consent("Ann", "own_voice", given_by="Ann", given_on="2026-11-22")
    VoiceLibrary(folder).add("ann", clip, consent, lang="en")
    other = folder / "other.wav"
    samples, rate_hz = read_audio(clip)
    write_wav(other, samples[::-1] * 0.5, rate_hz)
    VoiceLibrary(folder).add("bao", other, consent, lang="zh")
    return IndexTTS2(tiny_dir, voices_dir=folder, device="cpu", steps=2)


@pytest.fixture(scope="module")
def engine(backend: IndexTTS2) -> Iterator[Engine]:
    with Engine(backend) as running:
        yield running


def request(text: str = TEXT, **changes: object) -> SpeechRequest:
    controls = changes.pop("controls", Controls())
    turn = Turn(text, controls=controls)  # type: ignore[arg-type]
    return replace(SpeechRequest(turns=(turn,)), **changes)  # type: ignore[arg-type]


def write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def joined(chunks: list[AudioChunk]) -> np.ndarray:
    return np.concatenate([c.pcm for c in chunks])


@pytest.mark.parametrize("live", [True, False])
def test_speaks_every_sentence_in_order(engine: Engine, live: bool) -> None:
    chunks = list(engine.speak(request(live=live)))

    assert [c.seg for c in chunks if c.last] == [0, 1]
    assert [c.seg for c in chunks if c.first] == [0, 1]
    assert all(len(c.pcm) for c in chunks)
    assert chunks[0].quality == "estimate"
    assert [w.text for w in chunks[0].words] == TEXT.split(".")[0].split()


def test_same_seed_same_sound_other_seed_other_sound(engine: Engine) -> None:
    first, again, other = (list(engine.speak(request(seed=s))) for s in (1, 1, 2))

    assert np.array_equal(joined(first), joined(again))
    assert not np.array_equal(joined(first)[:4000], joined(other)[:4000])


def test_neighbours_change_nothing(engine: Engine) -> None:
    alone = [joined(list(engine.speak(request(seed=s, live=True)))) for s in range(3)]
    utterances = [engine.submit(request(seed=s, live=True)) for s in range(3)]

    for utterance, wanted in zip(utterances, alone, strict=True):
        assert np.array_equal(joined(list(utterance)), wanted)


def test_beginning_at_a_later_sentence_gives_the_same_sentence(engine: Engine) -> None:
    whole = [c for c in engine.speak(request()) if c.seg == 1]
    late = list(engine.speak(request(first_seg=1)))

    assert np.array_equal(joined(late), joined(whole))


def test_wanted_length_is_met_to_a_frame(engine: Engine) -> None:
    chunks = list(engine.speak(request(target_s=4.0)))

    assert len(joined(chunks)) / 24_000 == pytest.approx(4.0, abs=256 / 22_050)


def test_length_out_of_range_is_refused_unless_forced(engine: Engine) -> None:
    with pytest.raises(BadRequest, match="only with force"):
        engine.plan(request(target_s=60.0))
    plan = engine.plan(request(target_s=60.0, force=True))
    assert any("may sound unnatural" in w for w in plan.warnings)


def test_rate_changes_the_length_by_its_inverse(engine: Engine) -> None:
    slow, fast = (
        len(joined(list(engine.speak(request(controls=Controls(rate=r)))))) for r in (0.8, 1.6)
    )

    pause = 200 * 24
    assert (slow - pause) / (fast - pause) == pytest.approx(2, rel=0.03)


def test_gain_changes_the_level_alone(engine: Engine) -> None:
    loud, quiet = (
        joined(list(engine.speak(request(controls=Controls(gain_db=g))))) for g in (0.0, -6.0)
    )

    whole = np.abs(loud.astype(int)) < 32767  # peaks that were clipped come back
    assert np.abs(quiet - loud * 10 ** (-6 / 20))[whole].max() <= 1


def test_emotion_changes_the_reading(engine: Engine) -> None:
    plain, happy, borrowed = (
        joined(list(engine.speak(request(controls=c, seed=3))))
        for c in (Controls(), Controls(emotion="happy:0.7"), Controls(manner="bao@1.0"))
    )

    assert not np.array_equal(plain[:4000], happy[:4000])
    assert not np.array_equal(plain[:4000], borrowed[:4000])


def test_pauses_are_silence_before_their_sentence(engine: Engine) -> None:
    text = "One two three four five [pause 0.5s] six seven eight nine ten."
    chunks = list(engine.speak(request(text)))

    (second,) = [c for c in chunks if c.seg == 1 and c.first]
    assert second.pause_ms == 500
    assert not second.pcm[: 500 * 24].any() and second.pcm[500 * 24 :].any()


def test_plan_points_into_the_source_and_is_the_same_each_time(engine: Engine) -> None:
    text = "好的。今天的会议花了$48,500。\nThe next one is at 9:30 on Monday."
    plan = engine.plan(request(text))

    assert plan == engine.plan(request(text))
    assert [s.text for s in plan.sentences] == [
        text[a:b] for a, b in (s.span for s in plan.sentences)
    ]
    assert [s.lang for s in plan.sentences] == ["zh", "en"]
    assert any("cannot read" in w for w in plan.warnings)  # the tiny vocabulary has few ideographs


def test_cancelled_utterance_frees_its_slot(backend: IndexTTS2, engine: Engine) -> None:
    utterances = [engine.submit(request(TEXT * 5, live=True)) for _ in range(3)]
    next(iter(utterances[0]))
    for utterance in utterances:
        utterance.cancel()
    list(engine.speak(request("Good bye to you all.")))

    assert backend._synthesiser.decoder.free_slots == backend.info().slots


# live control: cancel, plan again, go on at a sentence ------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    text=st.text("你好世界会议今天的是，。！？\n hello WORLD,.!?'“” 3", min_size=1, max_size=300),
    voice=st.sampled_from(["ann", "bao"]),
    rate=st.sampled_from([0.5, 0.9, 2.0]),
    emotion=st.sampled_from(["", "happy:0.8", "sad@0.5", "[0.1,0,0,0,0,0,0.3,0]"]),
)
def test_sentences_keep_their_numbers_whatever_the_controls(
    backend: IndexTTS2, text: str, voice: str, rate: float, emotion: str
) -> None:
    """Else a listener who changes the voice would hear a sentence twice, or never."""
    plain = backend.plan(SpeechRequest((Turn(text),)))
    controls = Controls(rate=rate, emotion=emotion, gain_db=-3.0, manner="lively")
    other = backend.plan(SpeechRequest((Turn(text, voice=voice, controls=controls),), seed=9))

    assert [(s.seg, s.turn, s.span, s.text) for s in other.sentences] == [
        (s.seg, s.turn, s.span, s.text) for s in plain.sentences
    ]


def test_another_voice_and_pace_from_the_next_sentence(engine: Engine) -> None:
    """What the pipeline does when somebody who listens asks for them."""
    text = TEXT + " It was a long day for all of us. Now we rest and have some tea."
    before = request(text, live=True, seed=4)
    utterance = engine.submit(before)
    for chunk in utterance:
        if chunk.last:
            break
    utterance.cancel()
    turn = replace(before.turns[0], voice="bao", controls=Controls(rate=1.5, emotion="sad"))
    after = replace(before, turns=(turn,), first_seg=chunk.seg + 1)
    rest = list(engine.speak(after))

    assert sorted({c.seg for c in rest}) == [1, 2, 3]
    usual = list(engine.speak(replace(before, first_seg=1)))
    assert len(joined(rest)) < len(joined(usual))
    alone = list(engine.speak(replace(after, first_seg=2)))
    assert np.array_equal(joined([c for c in rest if c.seg > 1]), joined(alone))


def test_cancel_frees_the_slot_at_the_next_step(backend: IndexTTS2, engine: Engine) -> None:
    utterance = engine.submit(request(TEXT * 4, live=True))
    next(iter(utterance))
    utterance.cancel()
    steps = engine.steps
    decoder, patience = backend._synthesiser.decoder, time.monotonic() + 30
    while decoder.free_slots < backend.info().slots and time.monotonic() < patience:
        time.sleep(0.005)

    assert decoder.free_slots == backend.info().slots
    assert engine.steps <= steps + 1  # the step that ran just then


def test_plan_that_is_exchanged_is_heard_from_the_next_sentence_on(
    backend: IndexTTS2, engine: Engine
) -> None:
    """A backend asks for a sentence when its decoding begins, not before."""
    asked = request(TEXT + " Now we rest and have some tea.", seed=4)
    quiet = replace(asked.turns[0], controls=Controls(gain_db=-12.0))
    utterance = Utterance(asked, backend.plan(asked))
    wanted = [c for c in engine.speak(asked) if c.seg == 0]
    utterance_plan = backend.plan(replace(asked, turns=(quiet,)))
    while utterance.state is None:
        backend.step([utterance])
    utterance.plan = utterance_plan
    while not utterance.is_done:
        backend.step([utterance])
    backend.forget(utterance)
    chunks = list(utterance)

    assert np.array_equal(joined([c for c in chunks if c.seg == 0]), joined(wanted))
    last = [c for c in chunks if c.seg == 2]
    loud = list(engine.speak(replace(asked, first_seg=2)))
    assert np.std(joined(last)) < 0.5 * np.std(joined(loud))


# remarks ----------------------------------------------------------------------------------------


def test_sentence_that_found_no_end_says_so(
    backend: IndexTTS2, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = replace(backend._model.config, stop_bias=-1000.0)
    monkeypatch.setattr(backend._model, "config", endless)
    for live in (True, False):
        chunks = list(engine.speak(request(live=live)))

        said = [(c.seg, c.last, c.remarks) for c in chunks if c.remarks]
        assert [(seg, last) for seg, last, _ in said] == [(0, True), (1, True)]
        assert said[0][2][0].startswith("sentence 1 may be cut off: the voice ")


def test_length_far_from_the_one_that_was_read_says_so(engine: Engine) -> None:
    """The plan can only guess the natural length; the reading knows it."""
    far = list(engine.speak(request(target_s=9.0, force=True)))

    remark = far[-1].remarks[-1]
    assert "times the length it was read in" in remark and remark.startswith("sentence 2 ")
    assert not any(c.remarks for c in engine.speak(request()))


def test_pace_out_of_range_is_a_warning_of_the_plan(engine: Engine) -> None:
    assert engine.plan(request(controls=Controls(rate=1.2))).warnings == ()
    plan = engine.plan(request(controls=Controls(rate=1.8)))
    assert plan.warnings == ("at 1.8 times the pace speech may sound unnatural",)


@pytest.mark.parametrize(
    ("turn", "error", "said"),
    [
        (Turn("Hello", voice="nobody"), UnknownVoice, "there are: "),
        (Turn("Hello", voice="ann:0.5,bao:0.5"), UnsupportedFeature, "is a blend"),
        (Turn("Bonjour", lang="fr"), UnsupportedLanguage, "Chinese and English"),
        (Turn("Hi", controls=Controls(emotion="full of hope")), UnsupportedFeature, "happy:0.6"),
        (Turn("Hi", controls=Controls(manner="nobody")), BadRequest, "neither a preset"),
    ],
)
def test_what_cannot_be_spoken_is_refused_with_the_cure(
    engine: Engine, turn: Turn, error: type[BadRequest], said: str
) -> None:
    with pytest.raises(error, match=said):
        engine.plan(SpeechRequest(turns=(turn,)))


def test_controls_the_model_lacks_are_reported(engine: Engine) -> None:
    plan = engine.plan(request(controls=Controls(pitch=1.2)))

    assert plan.degraded == ("pitch",)


def test_default_voice_is_one_of_the_language(backend: IndexTTS2) -> None:
    assert backend.default_voice("zh") == "bao"
    assert backend.default_voice("en") == "ann"
    assert backend.default_voice("") == "ann"


def test_voice_that_vanished_fails_its_request_alone(
    engine: Engine, backend: IndexTTS2, clip: Path
) -> None:
    consent = Consent("Cy", "own_voice", given_by="Cy", given_on="2026-11-22")
    backend._library.add("cy", clip, consent)
    asked = SpeechRequest(turns=(Turn(TEXT, voice="cy"),))
    plan = engine.plan(asked)
    backend._library.remove("cy")
    lost, fine = engine.submit(asked, plan=plan), engine.submit(request())

    with pytest.raises(UnknownVoice):
        list(lost)
    assert list(fine)[-1].last


def test_build_changes_with_what_changes_the_sound(tiny_dir: Path, backend: IndexTTS2) -> None:
    other = IndexTTS2(tiny_dir, device="cpu", steps=3)

    assert other.info().build != backend.info().build
    assert other.voices() == []


def test_incomplete_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FilesMissing, match="is not a folder"):
        IndexTTS2(tmp_path / "nothing")
    with pytest.raises(FilesMissing, match=r"gpt\.pth: published in"):
        IndexTTS2(tmp_path)


def test_parity_release_is_refused(parity_model: object, one_thread: None) -> None:
    with pytest.raises(UnsupportedModel, match="cannot speak"):
        IndexTTS2(parity_model.dir, device="cpu")  # type: ignore[attr-defined]


def test_gpu_that_is_not_there_is_a_clear_error(tiny_dir: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BadRequest, match="no CUDA GPU"):
        IndexTTS2(tiny_dir, device="cuda")


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, engine.backends.indextts2, engine.backends.indextts2.release; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numbers_are_finite_and_not_silent(engine: Engine) -> None:
    pcm = joined(list(engine.speak(request())))

    assert 1 < math.sqrt(float(np.mean(pcm.astype(np.float64) ** 2))) < 32768


def test_beams_are_for_whole_sentences_alone(
    tiny_dir: Path, backend: IndexTTS2, engine: Engine
) -> None:
    folder = backend._library.folder
    with Engine(
        IndexTTS2(tiny_dir, voices_dir=folder, device="cpu", steps=2, beams=2)
    ) as searching:
        whole = joined(list(searching.speak(request(seed=1))))
        live = joined(list(searching.speak(request(seed=1, live=True))))

    assert not np.array_equal(whole[:4000], joined(list(engine.speak(request(seed=1))))[:4000])
    assert np.array_equal(live, joined(list(engine.speak(request(seed=1, live=True)))))
