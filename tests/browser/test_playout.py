"""The play-out processor on a clock of the test's own: each sample, each underrun, each pitch."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.browser.cdp import Tab
from tests.browser.playout import CHUNK_MS, disconnected, jittered, simulate, stalled, steady
from tests.browser.stage import Stage

RATE_HZ = 48_000
QUANTUM_MS = 128 / 48

TRACES = {
    "steady": steady(40),
    "faster than it plays": steady(40, pace=0.4),
    "a replay": [0.0] * 10 + [25.0 * i for i in range(30)],
    "5 % late by 300 ms": jittered(150, share=0.05, by_ms=300, seed=11),
    "20 % late by 500 ms": jittered(150, share=0.2, by_ms=500, seed=12),
    "a stall of 2 s": stalled(40, chunk=20, by_ms=2_000),
    "two stalls": [
        at + (1_000 if i >= 30 else 0) for i, at in enumerate(stalled(60, chunk=10, by_ms=500))
    ],
    "cut at chunk 7, back after 0.3 s": disconnected(40, chunk=7, for_ms=300),
    "cut at chunk 7, back after 1.2 s": disconnected(40, chunk=7, for_ms=1_200),
}


@pytest.fixture
def rig(stage: Stage, tab: Tab) -> Tab:
    """A page with the processor and nothing that plays."""
    tab.open(f"{stage.origin}/rig")
    return tab


def play(rig: Tab, times: list[float], **options: Any) -> dict[str, Any]:
    """Play a sine that arrives in chunks at `times`."""
    end_at_ms = options.pop("endAtMs", times[-1])
    length_ms = times[-1] + len(times) * CHUNK_MS * 2 + 5_000
    options = {"lengthMs": length_ms, "endAtMs": end_at_ms, **options}
    found: dict[str, Any] = rig.evaluate(
        "import('/rig.js').then((r) => { const { out, rates, ...rest } = r.play("
        f"r.chunks(r.sine(440, {len(times) * CHUNK_MS}), {CHUNK_MS}, {json.dumps(times)}),"
        f" {json.dumps(options)}); return {{ ...rest, fastest: Math.max(...rates) }}; }})"
    )
    return found


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("pre_ms", [0, 900])
def test_underruns_are_those_that_the_rules_predict(rig: Tab, name: str, pre_ms: int) -> None:
    times = TRACES[name]
    expected = simulate(times, pre_ms=pre_ms)
    got = play(rig, times, preMs=pre_ms)

    assert got["state"] == "done"
    assert got["playedMs"] == pytest.approx(len(times) * CHUNK_MS, abs=QUANTUM_MS)
    assert got["underruns"]["n"] == expected.underruns
    tolerance = 4 * QUANTUM_MS * (1 + expected.underruns)
    assert got["underruns"]["ms"] == pytest.approx(expected.silence_ms, abs=tolerance)


@pytest.mark.parametrize(
    ("name", "most"),
    [("steady", 0), ("faster than it plays", 0), ("a replay", 0), ("5 % late by 300 ms", 1)],
)
def test_ordinary_networks_are_not_heard(rig: Tab, name: str, most: int) -> None:
    assert play(rig, TRACES[name])["underruns"]["n"] <= most


def test_cushion_is_given_back_when_it_was_calm_for_long(rig: Tab) -> None:
    targets = rig.evaluate(
        "import('/static/jitter.js').then(({ Cushion }) => { const c = new Cushion();"
        " c.target(0); c.underrun(1000); c.underrun(2000);"
        " for (let i = 0; i < 300; i++) c.arrive(i * 200, i * 200);"
        " return [31e3, 33e3, 38e3, 60e3, 300e3].map((ms) => c.target(ms)); })"
    )

    # 240 -> 440 -> 660; a tenth less every 5 s after 30 s of calm; never less than measured
    assert targets[:3] == pytest.approx([660, 594, 534.6])
    assert targets[2] > targets[3] > targets[4] == 160


def test_path_that_became_longer_for_good_needs_no_cushion_for_ever(rig: Tab) -> None:
    target = rig.evaluate(
        "import('/static/jitter.js').then(({ Cushion }) => { const c = new Cushion(); c.target(0);"
        " for (let i = 0; i < 100; i++) c.arrive(i * 200, i * 200);"
        " for (let i = 100; i < 400; i++) c.arrive(i * 200 + 700, i * 200);"
        " return c.target(1e6); })"
    )

    assert target == 160


@pytest.mark.parametrize("live", [False, True])
def test_only_who_wants_the_live_edge_catches_up(rig: Tab, live: bool) -> None:
    times = [0.0] * 25 + steady(25)  # 5 s in hand
    got = play(rig, times, live=live, endAtMs=1e9, lengthMs=9_000)

    assert got["fastest"] == (1.04 if live else 1)


def pcm(rig: Tab, script: str) -> npt.NDArray[np.float32]:
    return np.array(rig.evaluate(script), np.float32)


def test_every_sample_comes_out_once_in_its_order_and_as_it_was(rig: Tab) -> None:
    # A counter in the samples: no two within 2.7 s are alike. 24 kHz PCM as it comes on the wire.
    samples = 24_000
    out = pcm(
        rig,
        "Promise.all([import('/rig.js'), import('/static/decoder.js')]).then(async ([r, d]) => {"
        f" const pcm = Int16Array.from({{ length: {samples} }}, (_, i) => (i * 7919) << 16 >> 16);"
        " const made = []; const to = d.decoderFor({ codec: 1 }, 0,"
        " { emit: (s) => made.push(s), fail: null });"
        " for (let i = 0; i < pcm.length; i += 4800) to.decode({ pcm: pcm.subarray(i, i + 4800) });"
        " await to.flush();"
        " let pts = 0; const arrivals = made.map((samples, i) => {"
        "  const one = { atMs: i * 150, ptsMs: pts / 48, samples }; pts += samples.length;"
        "  return one; });"
        " const { out } = r.play(arrivals, { lengthMs: 3000, endAtMs: 1000 });"
        " return [...out]; })",
    )

    expected = (np.arange(samples) * 7919 + 32_768) % 65_536 - 32_768
    even = out[0::2] * 32_768  # the samples between are interpolated
    start = int(np.flatnonzero(np.rint(even) == expected[500])[0]) - 500
    middle = slice(start + 240, start + samples - 240)  # but for the two fades of 5 ms
    assert np.array_equal(np.rint(even[middle]), expected[240 : samples - 240])
    assert not np.any(out[2 * (start + samples) + 64 :])


@pytest.mark.parametrize("speed", [0.5, 0.75, 1.25, 1.5, 2, 2.5])
def test_tempo_changes_the_length_and_keeps_the_pitch(rig: Tab, speed: float) -> None:
    hz, length_ms = 220.0, 4_000
    out = pcm(
        rig,
        f"import('/rig.js').then((r) => [...r.play([{{ atMs: 0, ptsMs: 0,"
        f" samples: r.sine({hz}, {length_ms}) }}],"
        f" {{ lengthMs: 10000, endAtMs: 0, speed: {speed} }}).out])",
    )

    sounding = np.flatnonzero(np.abs(out) > 0.01)
    heard_ms = (sounding[-1] - sounding[0]) / 48
    assert heard_ms == pytest.approx(length_ms / speed, rel=0.03)
    part = out[sounding[0] + 4_800 : sounding[-1] - 4_800]
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 19))
    loudest = int(np.argmax(spectrum)) * RATE_HZ / (1 << 19)
    assert loudest == pytest.approx(hz, rel=0.005)
    # A smooth tone stays smooth: no click is louder than the steepest slope of the sine.
    steepest = 0.5 * 2 * np.pi * hz / RATE_HZ
    assert np.max(np.abs(np.diff(part))) < 2 * steepest


def test_dry_ends_and_seams_are_faded_not_clicked(rig: Tab) -> None:
    times = stalled(20, chunk=8, by_ms=1_500)
    out = pcm(
        rig,
        f"import('/rig.js').then((r) => [...r.play(r.chunks(r.sine(220, 4000), 200,"
        f" {json.dumps(times)}), {{ lengthMs: 9000, endAtMs: {times[-1]} }}).out])",
    )

    steepest = 0.5 * 2 * np.pi * 220 / RATE_HZ + 1 / 240
    assert np.max(np.abs(np.diff(out))) < steepest
