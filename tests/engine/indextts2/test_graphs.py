"""Static calls give what plain ones give, bucket by bucket, and could be recorded as they are."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from engine.backends.indextts2 import cfm, vocoder  # noqa: E402
from engine.backends.indextts2.cfm import Solver, Window, bucket  # noqa: E402
from engine.backends.indextts2.config import HOP, SAMPLE_RATE_HZ  # noqa: E402
from engine.backends.indextts2.decode import Decoder, Reading  # noqa: E402
from engine.backends.indextts2.graphs import StaticCall, StaticCalls, at_least  # noqa: E402
from engine.backends.indextts2.render import (  # noqa: E402
    BLEND,
    LOOKAHEAD,
    MEL_CONTEXT,
    SCHEDULE,
)
from engine.backends.indextts2.s2mel import frame_count  # noqa: E402
from engine.backends.indextts2.sampling import Sampling  # noqa: E402
from engine.backends.indextts2.serve import Synthesiser  # noqa: E402
from engine.backends.indextts2.vocoder import CONTEXT_FRAMES  # noqa: E402
from engine.backends.indextts2.voice import PROMPT_S  # noqa: E402
from engine.resample import to_pcm  # noqa: E402

if TYPE_CHECKING:
    from engine.backends.indextts2.model import Model
    from engine.backends.indextts2.voice import VoiceFeatures


def readings(model: Model, voice: VoiceFeatures, count: int) -> list[Reading]:
    """Texts of different lengths with different settings."""
    made = []
    with torch.inference_mode():
        for i in range(count):
            prefix = model.gpt.prefix(voice.latents, voice.own_emotion, list(range(5, 9 + 3 * i)))
            sampling = Sampling(temperature=0.6 + 0.1 * i, top_k=5 + 7 * i)
            made.append(Reading(prefix, 4 + 3 * i, sampling, seed=i))
    return made


def finish(decoder: Decoder, group: list[Reading]) -> list[Reading]:
    for reading in group:
        decoder.start(reading)
    while any(r.ended is None for r in group):
        decoder.step(group)
    return group


def assert_same(ours: list[Reading], wanted: list[Reading]) -> None:
    for a, b in zip(ours, wanted, strict=True):
        assert (a.codes, a.ended) == (b.codes, b.ended)
        left, right = torch.stack(a.latents), torch.stack(b.latents)
        assert (left - right).abs().max() < 1e-5 * right.abs().max()


# decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_decoding_by_static_calls_draws_the_same_codes(
    tiny_model: Model, voice: VoiceFeatures, count: int
) -> None:
    wanted = finish(Decoder(tiny_model, slots=8), readings(tiny_model, voice, count))

    decoder = Decoder(tiny_model, slots=8, calls=StaticCalls("eager"))
    assert_same(finish(decoder, readings(tiny_model, voice, count)), wanted)


def test_slots_that_rest_are_left_as_they_were(tiny_model: Model, voice: VoiceFeatures) -> None:
    """Some wait for their renderer while others are stepped in the same call."""
    wanted = finish(Decoder(tiny_model, slots=8), readings(tiny_model, voice, 5))
    decoder = Decoder(tiny_model, slots=8, calls=StaticCalls("eager"))
    ours = readings(tiny_model, voice, 5)
    for reading in ours:
        decoder.start(reading)
    turns = np.random.default_rng(0)
    for _ in range(2000):
        if all(r.ended for r in ours):
            break
        decoder.step([r for r in ours if turns.random() < 0.4])

    assert_same(ours, wanted)


def test_slots_are_used_again(tiny_model: Model, voice: VoiceFeatures) -> None:
    wanted = finish(Decoder(tiny_model, slots=8), readings(tiny_model, voice, 6))
    decoder = Decoder(tiny_model, slots=2, calls=StaticCalls("eager"))
    ours = readings(tiny_model, voice, 6)
    for first in (0, 2, 4):
        finish(decoder, ours[first : first + 2])

    assert_same(ours, wanted)
    assert decoder.free_slots == 2


def test_upstream_positions_are_kept(tiny_model: Model, voice: VoiceFeatures) -> None:
    plain = Decoder(tiny_model, slots=2, positions="upstream")
    static = Decoder(tiny_model, slots=2, positions="upstream", calls=StaticCalls("eager"))

    assert_same(
        finish(static, readings(tiny_model, voice, 2)),
        finish(plain, readings(tiny_model, voice, 2)),
    )


# flow -----------------------------------------------------------------------------------------


def windows(model: Model, sizes: list[int], *, steps: int = 3) -> list[Window]:
    made = []
    for i, frames in enumerate(sizes):
        random = torch.Generator().manual_seed(frames)
        prompt = frames // 3
        made.append(
            Window(
                model.dit,
                prompt=torch.randn(80, prompt, generator=random),
                condition=torch.randn(frames, 32, generator=random),
                style=torch.randn(192, generator=random),
                noise=torch.randn(80, frames - prompt, generator=random),
                steps=steps + i % 2,
            )
        )
    return made


@pytest.mark.parametrize("sizes", [[128], [90, 128], [60, 100, 128], [40, 128, 77, 31, 99]])
@torch.inference_mode()
def test_flow_by_static_calls_gives_the_same_mel(tiny_model: Model, sizes: list[int]) -> None:
    """Also with empty rows, other lengths, and rows that are steps apart."""
    solver, calls = Solver(tiny_model.dit), StaticCalls("eager")
    wanted = [solver.solve(w) for w in windows(tiny_model, sizes)]

    ours = windows(tiny_model, sizes)
    solver.advance(ours[:1], frames=bucket(128), calls=calls)
    while any(not w.is_done for w in ours):
        solver.advance([w for w in ours if not w.is_done], frames=bucket(128), calls=calls)
    for window, mel in zip(ours, wanted, strict=True):
        assert (window.mel - mel).abs().max() < 1e-5 * mel.abs().max() + 1e-5


# vocoder --------------------------------------------------------------------------------------

STRIPS = (40, 57, 33, 64, 64, 61, 12, 5)


def strips() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    return [torch.randn(80, n, generator=random) * 0.1 for n in STRIPS]


@torch.inference_mode()
def test_padding_of_a_strip_acts_at_its_own_end(tiny_model: Model) -> None:
    """In float64, where a random network's amplification of rounding errors stays small."""
    wide = copy.deepcopy(tiny_model.vocoder).double()
    mel = torch.full((8, 80, 70), 7.0, dtype=torch.float64)  # what lies beyond an end is ignored
    for row, strip in zip(mel, strips(), strict=True):
        row[:, : strip.shape[1]] = strip
    together = wide(mel, torch.tensor(STRIPS))

    for row, strip in zip(together, strips(), strict=True):
        samples = strip.shape[1] * HOP
        alone = wide(strip[None].double())[0]
        assert (row[:samples] - alone).abs().max() < 1e-9 * alone.abs().max()
        assert not row[samples:].any()


@torch.inference_mode()
def test_eight_strips_together_sound_as_one_by_one(tiny_model: Model) -> None:
    """Shapes are fixed, so what is beside a strip changes no bit of it."""
    calls = StaticCalls("eager")
    together = tiny_model.vocoder.render(strips(), calls)

    filler = torch.zeros(80, 64)
    for i, strip in enumerate(strips()):
        beside: list[torch.Tensor] = [filler] * 7
        beside.insert(i, strip)
        alone = tiny_model.vocoder.render(beside, calls)[i]
        assert np.array_equal(to_pcm(together[i].numpy()), to_pcm(alone.numpy()))


@torch.inference_mode()
def test_vocoder_by_static_calls_gives_the_same_samples(tiny_model: Model) -> None:
    wanted = [tiny_model.vocoder.render([s])[0] for s in strips()]

    shared = tiny_model.vocoder.render(strips())
    static = tiny_model.vocoder.render(strips(), StaticCalls("eager"))
    for count in (1, 2, 3):
        static[:count] = tiny_model.vocoder.render(strips()[:count], StaticCalls("eager"))
    for ours in (shared, static):
        for wave, alone in zip(ours, wanted, strict=True):
            assert len(wave) == len(alone)
            assert (wave - alone).abs().max() < 2e-3  # of -1..1; random weights amplify rounding


# recording ------------------------------------------------------------------------------------


class Recorder(TorchDispatchMode):
    """Notes what a recording could not hold."""

    ASK_THE_HOST = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.wrong: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.__name__.partition(".")[0]
        self.seen += 1
        masks = name.startswith("index") and any(
            isinstance(a, (list, tuple)) and any(t is not None and t.dtype == torch.bool for t in a)
            for a in args[1:2]
        )
        if name in self.ASK_THE_HOST or masks:
            self.wrong.append(str(func))
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def test_regions_never_ask_the_host(tiny_model: Model, voice: VoiceFeatures) -> None:
    """Values copied from or to the host would be frozen into a recording, or break it."""
    made: dict[Any, StaticCall] = {}

    class Kept(StaticCalls):
        def get(self, bucket: Any, make: Any) -> StaticCall:
            made[bucket] = super().get(bucket, make)
            return made[bucket]

    calls = Kept("eager")
    finish(Decoder(tiny_model, slots=2, calls=calls), readings(tiny_model, voice, 2))
    Solver(tiny_model.dit).advance(windows(tiny_model, [40, 128]), frames=128, calls=calls)
    tiny_model.vocoder.render(strips()[:2], calls)

    assert {name for name, *_ in made} == {"decode", "flow", "vocoder"}
    for call in made.values():
        with Recorder() as recorder:
            call()
        assert recorder.seen > 50
        assert recorder.wrong == []


def test_the_judge_of_regions_finds_what_it_looks_for() -> None:
    with Recorder() as recorder:
        x = torch.arange(4)
        x[x > 2]
        x.sum().item()

    assert len(recorder.wrong) == 2


def test_recording_that_fails_is_told_once_and_done_without(
    tiny_model: Model, voice: VoiceFeatures, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine records")
    synthesiser = Synthesiser(tiny_model, slots=2, exact=False, graphs="cuda")
    with caplog.at_level(logging.WARNING):
        synthesiser.warm()

    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith("CUDA graphs stay off")
    assert synthesiser.calls is not None and synthesiser.calls.recorded == 0
    wanted = finish(Decoder(tiny_model, slots=2), readings(tiny_model, voice, 2))
    assert_same(finish(synthesiser.decoder, readings(tiny_model, voice, 2)), wanted)


def test_recording_beside_running_readings_changes_nothing(
    tiny_model: Model, voice: VoiceFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new voice is learnt, and static calls recorded, while others speak."""
    wanted = finish(Decoder(tiny_model, slots=4), readings(tiny_model, voice, 3))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(StaticCall, "record", lambda call, pool: call._region(**call.buffers))
    decoder = Decoder(tiny_model, slots=4, calls=StaticCalls("cuda"))
    ours = readings(tiny_model, voice, 3)
    for reading in ours:
        decoder.start(reading)
    for _ in range(4):
        decoder.step(ours)
    decoder.warm()
    while any(r.ended is None for r in ours):
        decoder.step(ours)

    assert_same(ours, wanted)


def test_warming_covers_the_live_schedule() -> None:
    """Windows: a short reference, up to half a second of context, a chunk, and the lookahead."""
    prompt, emitted = int(PROMPT_S * SAMPLE_RATE_HZ / HOP), 0
    for codes in SCHEDULE:
        frames = frame_count(codes + LOOKAHEAD) + 1
        assert bucket(prompt + min(MEL_CONTEXT, emitted) + frames) in cfm.LIVE_BUCKETS
        strip = min(CONTEXT_FRAMES + BLEND, emitted) + frames
        assert at_least(strip, vocoder.BUCKETS) in vocoder.LIVE_BUCKETS
        emitted += frame_count(codes)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_recorded_calls_give_what_plain_ones_give(tiny_dir: object) -> None:
    from pathlib import Path

    from engine.backends.indextts2.model import Model, Placement
    from engine.backends.indextts2.voice import VoiceCache

    assert isinstance(tiny_dir, Path)
    model = Model(tiny_dir, Placement(device="cuda", voice_device="cuda"))
    t = np.arange(5 * 24_000) / 24_000
    voice = VoiceCache(model).of_wave(np.sin(1000 * t).astype(np.float32) * 0.3, 24_000)
    synthesiser = Synthesiser(model, slots=4, graphs="cuda")
    synthesiser.warm()

    assert synthesiser.calls is not None and synthesiser.calls.recorded > 10
    wanted = finish(Decoder(model, slots=4, exact=True), readings(model, voice, 4))
    assert_same(finish(synthesiser.decoder, readings(model, voice, 4)), wanted)
    mel = [s.cuda() for s in strips()[:4]]
    for ours, alone in zip(
        model.vocoder.render(mel, synthesiser.calls), ([s] for s in mel), strict=True
    ):
        assert (ours - model.vocoder.render(alone)[0]).abs().max() < 2e-3
