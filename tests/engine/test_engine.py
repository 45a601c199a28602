"""engine/engine.py on the tone backend, with real threads."""

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from engine.backends.tone import Tone, decode, sentence_code
from engine.base import Controls, SpeechRequest, Turn
from engine.engine import Engine
from engine.errors import (
    BadRequest,
    EngineFailed,
    EngineOverloaded,
    EngineStopped,
    UnknownVoice,
)
from engine.utterance import Utterance

THREE = SpeechRequest(turns=(Turn("First one. Second one. Third one."),))


class Gated(Tone):
    """A tone that steps only while its gate is open, and remembers what it did."""

    def __init__(self, *, slots: int = 8) -> None:
        super().__init__(slots=slots)
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[Utterance]] = []
        self.forgotten: list[Utterance] = []
        self.warmed: list[tuple[str, ...]] = []
        self.threads: set[str] = set()
        self.closed = False

    def step(self, batch: Sequence[Utterance]) -> None:
        self.batches.append(list(batch))
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.gate.wait(10)
        super().step(batch)

    def warm(self, langs: Sequence[str] = ()) -> None:
        if "xx" in langs:
            raise BadRequest("no such language", field="lang")
        self.threads.add(threading.current_thread().name)
        self.warmed.append(tuple(langs))

    def forget(self, utterance: Utterance) -> None:
        self.forgotten.append(utterance)

    def close(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.closed = True


def codes(request: SpeechRequest) -> list[int]:
    return [sentence_code(s.text) for s in Tone().plan(request).sentences]


def heard(chunks) -> list[int]:
    return decode(np.concatenate([c.pcm for c in chunks]))


def wait_until(condition) -> None:
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up, "nothing happened within 10 s"
        time.sleep(0.002)


def test_speak_yields_every_sentence_in_order():
    with Engine(Tone()) as engine:
        assert heard(engine.speak(THREE)) == codes(THREE)


def test_many_requests_at_once_each_get_their_own_sound():
    requests = [SpeechRequest(turns=(Turn(f"Note {n}. Its end {n}."),)) for n in range(30)]
    with Engine(Tone(slots=4)) as engine:
        utterances = [engine.submit(request) for request in requests]

        assert [heard(u) for u in utterances] == [codes(r) for r in requests]


def test_first_seg_skips_what_was_spoken_before():
    request = SpeechRequest(turns=THREE.turns, first_seg=2)
    with Engine(Tone()) as engine:
        chunks = list(engine.speak(request))
        nothing = list(engine.speak(SpeechRequest(turns=THREE.turns, first_seg=3)))

        empty = list(engine.speak(SpeechRequest(turns=(Turn(" … "),))))

    assert [c.seg for c in chunks] == [2]
    assert nothing == empty == []


def test_everything_but_plan_runs_on_the_engines_thread():
    backend = Gated()
    backend.gate.set()
    with Engine(backend) as engine:
        engine.warm(["en", "zh"])
        list(engine.speak(THREE))

    assert backend.warmed == [("en", "zh")]
    assert backend.closed
    assert backend.threads == {"engine"}


def test_a_failing_warm_reaches_its_caller_and_the_engine_lives():
    backend = Gated()
    backend.gate.set()
    with Engine(backend) as engine:
        with pytest.raises(BadRequest, match="no such language"):
            engine.warm(["xx"])

        assert heard(engine.speak(THREE)) == codes(THREE)


def test_leaving_the_iteration_cancels():
    backend = Gated()
    backend.gate.set()
    with Engine(backend, ahead_s=0.1) as engine:
        stream = engine.speak(THREE)
        next(stream)
        stream.close()
        wait_until(lambda: len(backend.forgotten) == 1)

        assert backend.forgotten[0].is_cancelled
        assert engine.in_flight == 0


def test_cancel_is_served_before_the_next_step():
    backend = Gated()
    with Engine(backend) as engine:
        utterance = engine.submit(THREE)
        assert backend.entered.wait(10)
        utterance.cancel()
        backend.gate.set()
        wait_until(lambda: backend.forgotten == [utterance])

        assert len(backend.batches) == 1
        with pytest.raises(EngineStopped):
            next(utterance)


def test_a_parked_request_does_not_count_as_in_flight_and_goes_on_when_read():
    backend = Gated()
    backend.gate.set()
    with Engine(backend, ahead_s=0.1) as engine:
        utterance = engine.submit(THREE)
        wait_until(lambda: utterance.is_parked and engine.in_flight == 0)
        steps = engine.steps
        assert steps == 1

        assert heard(utterance) == codes(THREE)
        wait_until(lambda: engine.steps == 3)


def test_an_idle_engine_uses_no_cpu():
    with Engine(Tone(), ahead_s=0.1) as engine:
        parked = engine.submit(THREE)
        wait_until(lambda: parked.is_parked and engine.in_flight == 0)
        rounds = []
        engine._scheduler.settle = lambda now: rounds.append(now) or ([], [])  # type: ignore[method-assign,func-returns-value]
        time.sleep(0.1)

        assert len(rounds) <= 1  # at most the round that was under way
        parked.cancel()


def test_a_failing_step_fails_its_utterances_only(caplog):
    with Engine(Tone(faults=True, slots=1)) as engine:
        bad = engine.submit(SpeechRequest(turns=(Turn("Fine. Now [[fail]]. After."),)))
        good = engine.submit(THREE)

        assert next(bad).seg == 0
        with pytest.raises(EngineFailed) as failure:
            next(bad)
        assert isinstance(failure.value.__cause__, RuntimeError)
        assert heard(good) == codes(THREE)
        assert "engine step failed" in caplog.text
        assert "Fine" not in caplog.text


def test_a_full_queue_refuses():
    backend = Gated(slots=1)
    with Engine(backend, queue=1) as engine:
        kept = [engine.submit(THREE), engine.submit(THREE)]
        with pytest.raises(EngineOverloaded) as refusal:
            engine.submit(THREE)
        assert refusal.value.retry
        backend.gate.set()

        assert [heard(u) for u in kept] == [codes(THREE)] * 2
        assert heard(engine.submit(THREE)) == codes(THREE)


def test_waiting_for_a_slot_has_an_end():
    with Engine(Tone(slots=1), ahead_s=0.1) as engine:
        first = engine.submit(THREE)
        second = engine.submit(THREE, timeout_s=0.01)

        with pytest.raises(EngineOverloaded, match="no slot"):
            next(second)
        assert heard(first) == codes(THREE)


def test_live_requests_overtake_batch_requests_that_wait():
    backend = Gated(slots=1)
    live = SpeechRequest(turns=THREE.turns, live=True)
    with Engine(backend) as engine:
        first = engine.submit(THREE)
        assert backend.entered.wait(10)
        batch, urgent = engine.submit(THREE), engine.submit(live)
        backend.gate.set()
        for utterance in (first, batch, urgent):
            list(utterance)

    order = [b[0] for b in backend.batches]
    assert order == [first] * 3 + [urgent] * 3 + [batch] * 3


def test_closing_tells_every_reader():
    backend = Gated(slots=1)
    engine = Engine(backend)
    running, waiting = engine.submit(THREE), engine.submit(THREE)
    assert backend.entered.wait(10)
    closer = threading.Thread(target=engine.close)
    closer.start()
    wait_until(lambda: engine._closing)
    backend.gate.set()
    closer.join(10)

    for utterance in (running, waiting):
        with pytest.raises(EngineStopped, match="shutting down"):
            list(utterance)
    with pytest.raises(EngineStopped):
        engine.submit(THREE)
    with pytest.raises(EngineStopped):
        engine.warm()
    engine.close()
    assert backend.closed


def test_a_hanging_step_does_not_hold_up_close(caplog):
    backend = Gated()
    engine = Engine(backend)
    utterance = engine.submit(THREE)
    assert backend.entered.wait(10)
    steps = engine.steps

    engine.close(timeout_s=0.05)

    assert "did not stop" in caplog.text
    assert engine.steps == steps  # what a watchdog sees
    assert engine.in_flight == 1
    backend.gate.set()
    with pytest.raises(EngineStopped):
        list(utterance)
    engine.close()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (SpeechRequest(turns=(Turn("x", controls=Controls(rate=3)),)), "rate"),
        (SpeechRequest(turns=(Turn("x", controls=Controls(pitch=float("nan"))),)), "pitch"),
        (SpeechRequest(turns=(Turn("x", pause_before_ms=-1),)), "pause_before_ms"),
        (SpeechRequest(turns=(Turn("x"),), first_seg=-1), "first_seg"),
        (SpeechRequest(turns=(Turn("x"),), target_s=0), "target_s"),
        (SpeechRequest(turns=(Turn("x", voice="nobody"),)), "voice"),
    ],
)
def test_bad_requests_name_the_field(request_: SpeechRequest, field: str):
    with Engine(Tone()) as engine:
        with pytest.raises(BadRequest) as refusal:
            engine.submit(request_)
        assert refusal.value.field == field


def test_voices_and_info_are_the_backends():
    with Engine(Tone(slots=3)) as engine:
        assert engine.info().name == "tone"
        assert engine.info().slots == 3
        assert [v.id for v in engine.voices()] == ["tone_a", "tone_b", "tone_c", "tone_d"]
        with pytest.raises(UnknownVoice, match="tone_b"):
            engine.plan(SpeechRequest(turns=(Turn("x", voice="tone-b"),)))
