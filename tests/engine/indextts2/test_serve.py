"""Many streams at once: nobody's sound depends on anybody else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.backends.indextts2.render import Plan  # noqa: E402
from engine.backends.indextts2.serve import Load, Sound, Stream, Synthesiser, Task  # noqa: E402
from engine.resample import to_pcm  # noqa: E402

if TYPE_CHECKING:
    from engine.backends.indextts2.graphs import Mode
    from engine.backends.indextts2.model import Model
    from engine.backends.indextts2.voice import VoiceFeatures

STEPS = 2


def stream(
    voice: VoiceFeatures,
    seed: int,
    *,
    live: bool = True,
    sentences: int = 2,
    frames: int | None = None,
    candidates: int = 1,
    steps: int = STEPS,
) -> Stream:
    random = np.random.default_rng(seed)
    tasks = iter(
        [
            Task(
                number=i,
                ids=tuple(random.integers(3, 60, 12).tolist()),
                voice=voice,
                emotion=voice.own_emotion,
                plan=Plan(live=live, steps=steps, first_steps=steps, frames=frames),
                candidates=candidates,
            )
            for i in range(sentences)
        ]
    )
    return Stream(lambda: next(tasks, None), seed=seed, live=live)


def run(synthesiser: Synthesiser, streams: list[Stream]) -> list[list[Sound]]:
    sounds: list[list[Sound]] = [[] for _ in streams]
    for _ in range(5000):
        if all(s.is_done for s in streams):
            return sounds
        synthesiser.tick([s for s in streams if not s.is_done])
        for s, out in zip(streams, sounds, strict=True):
            out.extend(s.out)
            s.out.clear()
    raise AssertionError("streams never end")


def pcm(sounds: list[Sound]) -> np.ndarray:
    return to_pcm(np.concatenate([s.wave for s in sounds]))


def test_eight_requests_together_sound_as_one_by_one(
    tiny_model: Model, voice: VoiceFeatures
) -> None:
    kinds = [True, True, False, True, True, False, True, True]
    together = run(
        Synthesiser(tiny_model, slots=8),
        [stream(voice, i, live=live) for i, live in enumerate(kinds)],
    )
    alone = [
        run(Synthesiser(tiny_model, slots=1), [stream(voice, i, live=live)])[0]
        for i, live in enumerate(kinds)
    ]

    for ours, wanted in zip(together, alone, strict=True):
        assert np.array_equal(pcm(ours), pcm(wanted))
    assert len({pcm(s).tobytes() for s in together}) == 8


@pytest.mark.parametrize("graphs", [None, "eager"])
def test_shared_calls_give_the_same_codes_and_lengths(
    tiny_model: Model, voice: VoiceFeatures, graphs: Mode | None
) -> None:
    """What a GPU does: rows of one call, padded to a bucket; static calls or not."""
    shared = Synthesiser(tiny_model, slots=4, exact=False, adaptive=False, graphs=graphs)
    shared.warm()
    together = run(shared, [stream(voice, i, sentences=1) for i in range(4)])
    alone = [
        run(Synthesiser(tiny_model, slots=1), [stream(voice, i, sentences=1)])[0] for i in range(4)
    ]

    for ours, wanted in zip(together, alone, strict=True):
        assert [(s.number, len(s.wave), s.codes) for s in ours][-1] == [
            (s.number, len(s.wave), s.codes) for s in wanted
        ][-1]
        assert len(pcm(ours)) == len(pcm(wanted))


def test_more_streams_than_slots_all_get_their_turn(
    tiny_model: Model, voice: VoiceFeatures
) -> None:
    streams = [stream(voice, i, sentences=1) for i in range(5)]
    sounds = run(Synthesiser(tiny_model, slots=2), streams)

    assert all(out[-1].last for out in sounds)


def test_sentences_come_in_order_with_marks_at_their_ends(
    tiny_model: Model, voice: VoiceFeatures
) -> None:
    (sounds,) = run(Synthesiser(tiny_model, slots=1), [stream(voice, 1, sentences=3)])

    assert [s.number for s in sounds] == sorted(s.number for s in sounds)
    for number in range(3):
        own = [s for s in sounds if s.number == number]
        assert own[0].first and own[-1].last
        assert not any(s.first for s in own[1:]) and not any(s.last for s in own[:-1])


def test_cancelled_stream_frees_its_slot_before_the_next_tick(
    tiny_model: Model, voice: VoiceFeatures
) -> None:
    synthesiser = Synthesiser(tiny_model, slots=1)
    first, second = stream(voice, 1), stream(voice, 2, sentences=1)
    synthesiser.tick([first, second])
    assert synthesiser.decoder.free_slots == 0

    synthesiser.cancel(first)
    synthesiser.cancel(first)
    assert synthesiser.decoder.free_slots == 1
    assert first.is_done
    assert run(synthesiser, [second])[0][-1].last


def test_next_sentence_is_decoded_while_this_one_is_rendered(
    tiny_model: Model, voice: VoiceFeatures
) -> None:
    synthesiser = Synthesiser(tiny_model, slots=1)
    live = stream(voice, 1, steps=8)
    overlapped = False
    while not live.is_done:
        synthesiser.tick([live])
        overlapped |= len(live.readings()) == 2 and not any(s.number == 1 for s in live.out)

    assert overlapped


def test_wanted_length_is_exact_and_the_best_of_several_readings_is_taken(
    tiny_model: Model, voice: VoiceFeatures
) -> None:
    asked = stream(voice, 3, live=False, sentences=1, frames=77, candidates=3)
    (sounds,) = run(Synthesiser(tiny_model, slots=1), [asked])

    assert sum(len(s.wave) for s in sounds) == 77 * 256
    single = stream(voice, 3, live=False, sentences=1, frames=77)
    (first,) = run(Synthesiser(tiny_model, slots=1), [single])
    assert abs(sounds[-1].codes * 1.72 - 77) <= abs(first[-1].codes * 1.72 - 77)


def test_live_reading_does_not_run_far_ahead_of_its_renderer(
    tiny_model: Model, voice: VoiceFeatures
) -> None:
    """What a cancel would throw away stays small."""
    synthesiser = Synthesiser(tiny_model, slots=2, decode_steps=40)
    live = stream(voice, 1, sentences=1)
    synthesiser.tick([live])

    assert len(live.readings()[0].codes) <= 10 * 1.5 + 4


def test_new_live_streams_wait_while_the_device_is_full(
    tiny_model: Model, voice: VoiceFeatures
) -> None:
    synthesiser = Synthesiser(tiny_model, slots=4)
    synthesiser.load = Load(0.85)
    synthesiser.load.stepped(0.04, rows=1, steps=25)  # half a device per stream
    streams = [stream(voice, i, sentences=1) for i in range(3)]
    synthesiser.tick(streams)

    assert [s.has_begun for s in streams] == [True, False, False]


def test_room_is_counted_in_the_best_filled_call() -> None:
    """A lone stream uses the device badly; that must not keep the others out."""
    load = Load(0.85)
    assert load.allows(1000)

    load.stepped(0.010, rows=1, steps=25)  # 12.5 steps a second once chunks are 2 s long
    assert load.allows(6) and not load.allows(7)
    load.stepped(0.016, rows=16, steps=25)
    load.stepped(0.010, rows=1, steps=25)
    assert load.allows(68) and not load.allows(69)


def chunk_sizes(model: Model, voice: VoiceFeatures, *, adaptive: bool) -> list[int]:
    """Codes per chunk of an 80-code sentence for a listener whose clock stands still."""
    synthesiser = Synthesiser(model, slots=1, adaptive=adaptive, clock=lambda: 0.0)
    synthesiser.load.spent(0.2, 10.0)  # sound is cheap
    live = stream(voice, 7, sentences=1)
    record = Recorder(live)
    live.deliver = record  # type: ignore[method-assign,assignment]
    for _ in range(1000):
        if live.is_done:
            return record.chunks
        synthesiser.tick([live])
    raise AssertionError("the stream never ends")


def test_chunks_grow_with_the_listeners_runway(
    tiny_model: Model, voice: VoiceFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = replace(tiny_model.config, stop_bias=-1000.0)
    monkeypatch.setattr(tiny_model, "config", endless)

    assert chunk_sizes(tiny_model, voice, adaptive=False) == [10, 15, 25, 30]
    assert chunk_sizes(tiny_model, voice, adaptive=True) == [10, 70]


class Recorder:
    """Notes how many codes each chunk of a stream covered."""

    def __init__(self, stream: Stream) -> None:
        self._deliver = stream.deliver
        self._stream = stream
        self._done = 0
        self.chunks: list[int] = []

    def __call__(self, wave: np.ndarray, now: float) -> None:
        speech = self._stream.rendering()
        assert speech is not None and speech.renderer is not None
        self.chunks.append(speech.renderer.done_codes - self._done)
        self._done = speech.renderer.done_codes
        self._deliver(wave, now)
