"""engine/backends/tone.py and the registry: beeps that say which sentence they are."""

import io
import os
import signal
import subprocess
import sys
import threading

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends import BACKENDS, make_backend
from engine.backends.tone import UNREADABLE, Tone, decode, sentence_code
from engine.base import SAMPLE_RATE_HZ, Backend, Controls, SpeechRequest, Turn
from engine.engine import Engine
from engine.errors import BadRequest, EngineFailed, EngineStopped, UnknownVoice
from engine.utterance import Utterance

NOTES = SpeechRequest(
    turns=(
        Turn("The team agreed to postpone the launch. Priya sends the budget of $48,500."),
        Turn("大家同意推迟发布。法务也没有签字！好。", voice="tone_b", pause_before_ms=500),
        Turn("Ok. Bye.", voice="tone_d", pause_before_ms=250),
    )
)


def spoken(request: SpeechRequest, **options) -> list:
    backend = Tone(**options)
    utterance = Utterance(request, backend.plan(request), ahead_s=1e6)
    while not utterance.is_done:
        backend.step([utterance])
    return list(utterance)


def pcm(chunks: list) -> np.ndarray:
    return np.concatenate([c.pcm for c in chunks])


def codes(request: SpeechRequest) -> list[int]:
    return [sentence_code(s.text) for s in Tone().plan(request).sentences]


def through(sound: np.ndarray, container: str, codec: str, rate_hz: int, kbps: int) -> np.ndarray:
    """Encode and decode, back at SAMPLE_RATE_HZ."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate_hz, bit_rate=kbps * 1000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        resampler = av.AudioResampler(stream.format, "mono", rate_hz, stream.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as back:
        resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE_HZ)
        frames = [f for part in back.decode(audio=0) for f in resampler.resample(part)]
        frames += resampler.resample(None)
    return np.concatenate([f.to_ndarray()[0] for f in frames])


def test_the_codes_of_a_request_are_heard_in_order():
    assert len(codes(NOTES)) == 7
    assert decode(pcm(spoken(NOTES))) == codes(NOTES)


@pytest.mark.parametrize(
    ("container", "codec", "rate_hz", "kbps"),
    [
        ("ogg", "libopus", 48_000, 24),
        ("ogg", "libopus", 24_000, 24),
        ("mp3", "libmp3lame", 44_100, 64),
        ("mp3", "libmp3lame", 24_000, 32),
    ],
)
def test_the_codes_survive_lossy_coding(container: str, codec: str, rate_hz: int, kbps: int):
    many = "".join(f"第{n}条意见。" for n in range(100))
    request = SpeechRequest(turns=(*NOTES.turns, Turn(many)))

    assert decode(through(pcm(spoken(request)), container, codec, rate_hz, kbps)) == codes(request)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=1, max_size=5))
def test_any_text_is_heard(lines: list[str]):
    request = SpeechRequest(turns=tuple(Turn(line) for line in lines))

    assert decode(pcm(spoken(request, sentence_ms=400))) == codes(request)


@pytest.mark.parametrize("sound", [np.zeros(0, np.int16), np.zeros(100_000, np.int16)])
def test_silence_holds_no_codes(sound: np.ndarray):
    assert decode(sound) == []


def test_noise_holds_no_codes():
    noise = np.random.default_rng(1).integers(-9000, 9000, 20 * SAMPLE_RATE_HZ)

    assert decode(noise.astype(np.int16)) == []


def test_codes_are_heard_across_long_recordings():
    request = SpeechRequest(turns=(Turn("".join(f"Item {n}! " for n in range(300))),))
    sound = pcm(spoken(request))

    assert len(sound) > 150 * SAMPLE_RATE_HZ
    assert decode(sound) == codes(request)


def test_a_torn_code_is_unreadable_not_wrong():
    first, second, *_ = spoken(NOTES)
    torn = np.concatenate([first.pcm[: SAMPLE_RATE_HZ // 5], second.pcm])

    assert decode(torn) == [UNREADABLE, sentence_code("Priya sends the budget of $48,500.")]
    assert decode(first.pcm[: SAMPLE_RATE_HZ // 5]) == [UNREADABLE]


def test_same_request_same_sound():
    assert np.array_equal(pcm(spoken(NOTES)), pcm(spoken(NOTES)))


def test_paced_sound_is_the_instant_one_in_chunks_of_200_ms():
    paced = spoken(NOTES, pace="paced", rtf=0.0)

    assert np.array_equal(pcm(paced), pcm(spoken(NOTES)))
    for chunk in paced:
        assert len(chunk.pcm) / SAMPLE_RATE_HZ <= 0.2 + chunk.pause_ms / 1000
    assert [c.seg for c in paced if c.first] == [c.seg for c in paced if c.last] == list(range(7))


def test_instant_makes_a_sentence_per_step():
    chunks = spoken(NOTES)

    assert [(c.seg, c.first, c.last) for c in chunks] == [(n, True, True) for n in range(7)]
    assert [c.pause_ms for c in chunks] == [0, 0, 500, 0, 0, 250, 0]
    assert not chunks[2].pcm[: SAMPLE_RATE_HZ // 2].any()


def test_one_step_advances_all_utterances():
    backend = Tone(pace="paced", rtf=0.0)
    batch = [Utterance(NOTES, backend.plan(NOTES)) for _ in range(8)]

    backend.step(batch)

    assert all(next(u).first for u in batch)


def test_cancel_ends_the_wait_of_a_paced_step():
    with Engine(Tone(pace="paced", rtf=100.0)) as engine:
        utterance = engine.submit(NOTES)  # its first step would take 20 s
        threading.Timer(0.05, utterance.cancel).start()
        with pytest.raises(EngineStopped):
            next(utterance)


def test_rate_divides_the_length():
    text = "A sentence that is long enough for its code at any rate, by far."
    plain = Turn(text)
    fast = Turn(text, controls=Controls(rate=2.0))

    lengths = [len(pcm(spoken(SpeechRequest(turns=(t,))))) for t in (plain, fast)]

    assert lengths[0] == 2 * lengths[1] == len(text) * 65 * SAMPLE_RATE_HZ // 1000


@settings(deadline=None)
@given(st.floats(5.0, 60.0))
def test_a_wanted_length_is_met_to_the_sample(target_s: float):
    sound = pcm(spoken(SpeechRequest(turns=NOTES.turns, target_s=target_s)))

    assert len(sound) == round(target_s * SAMPLE_RATE_HZ)
    assert decode(sound) == codes(NOTES)


def test_a_length_too_short_for_the_codes_is_refused():
    with pytest.raises(BadRequest, match=r"at least \d+\.\d\d s") as refusal:
        Tone().plan(SpeechRequest(turns=NOTES.turns, target_s=1.0))
    assert refusal.value.field == "target_s"


def test_words_carry_their_place_in_the_source_and_stay_in_the_sentence():
    for chunk in spoken(NOTES):
        sentence = Tone().plan(NOTES).sentences[chunk.seg]
        source = NOTES.turns[sentence.turn].text
        speech_ms = len(chunk.pcm) * 1000 / SAMPLE_RATE_HZ - chunk.pause_ms
        assert chunk.words
        assert all(source[w.span[0] : w.span[1]] == w.text for w in chunk.words)
        edges = [t for w in chunk.words for t in (w.start_ms, w.end_ms)]
        assert edges == sorted(edges)
        assert edges[-1] <= speech_ms


def test_plan_resolves_voice_and_language_and_reports_what_beeps_lack():
    plan = Tone().plan(
        SpeechRequest(turns=(Turn("Hi."), Turn("你好。", controls=Controls(emotion="happy"))))
    )

    assert [(s.voice, s.lang) for s in plan.sentences] == [("tone_a", "en"), ("tone_a", "zh")]
    assert plan.degraded == ("emotion",)


def test_unknown_voices_are_refused_by_name():
    with pytest.raises(UnknownVoice, match="'af_heart'"):
        Tone().plan(SpeechRequest(turns=(Turn("x", voice="af_heart"),)))


def test_fault_marks_are_plain_text_unless_asked_for():
    request = SpeechRequest(turns=(Turn("Now [[fail]] and [[crash]] and [[hang]]."),))

    assert decode(pcm(spoken(request))) == codes(request)


def test_fail_raises_and_hang_waits():
    with Engine(Tone(faults=True)) as engine:
        with pytest.raises(EngineFailed):
            list(engine.speak(SpeechRequest(turns=(Turn("[[fail]]"),))))
        hung = engine.submit(SpeechRequest(turns=(Turn("Now [[hang]]."),)))
        assert engine.in_flight == 1
        backend = engine._backend
        assert isinstance(backend, Tone)
        backend.unhang.set()

        assert len(list(hung)) == 1


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_crash_kills_the_process():
    script = (
        "from engine.backends.tone import Tone\n"
        "from engine.base import SpeechRequest, Turn\n"
        "from engine.engine import Engine\n"
        "r = SpeechRequest(turns=(Turn('Fine. Now [[crash]].'),))\n"
        "for c in Engine(Tone(faults=True)).speak(r): print(c.seg, flush=True)\n"
    )
    died = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)

    assert died.returncode == -signal.SIGKILL


def test_the_registry_makes_what_it_lists():
    tone = make_backend("tone", slots=3, sentence_ms=500)

    assert isinstance(tone, Backend)
    assert tone.info().slots == tone.info().batch == 3
    assert all(entry.help for entry in BACKENDS.values())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tome", {}, "did you mean 'tone'"),
        ("?", {}, "there are: .*tone"),
        ("tone", {"speed": 3}, "speed"),
        ("tone", {"pace": "slow"}, "'instant' or 'paced'"),
        ("tone", {"rtf": -1.0}, "rtf"),
    ],
)
def test_wrong_choices_are_refused_with_the_cure(name: str, options: dict, message: str):
    with pytest.raises(BadRequest, match=message):
        make_backend(name, **options)


def test_a_missing_package_names_what_to_install(monkeypatch: pytest.MonkeyPatch):
    entry = BACKENDS["tone"]._replace(module="not_installed_here.backend", extra="gpu")
    monkeypatch.setitem(BACKENDS, "far", entry)

    with pytest.raises(BadRequest, match=r"'not_installed_here'.*pip install 'notecast\[gpu\]'"):
        make_backend("far")
