"""Where WebSockets, worklets or decoders are missing, the session is heard all the same."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.browser.cdp import Tab
from tests.browser.feed import ENGLISH, Writer, in_background, sentences
from tests.browser.page import SCRIPT, SCRIPT_MS, events, set_value, spoken, stats, text, wait
from tests.browser.stage import Stage

# What an `<audio>` element has decoded, from the outside.
LOUDNESS = """
window.loudness = async (audio) => {
  const context = new AudioContext();
  const tap = context.createAnalyser();
  context.createMediaElementSource(audio).connect(tap);
  await context.resume();
  const data = new Float32Array(tap.fftSize);
  window.peak = 0;
  setInterval(() => { tap.getFloatTimeDomainData(data);
    window.peak = Math.max(window.peak, ...data.map(Math.abs)); }, 50);
};
const Real = Audio;
window.Audio = function (...args) { return (window.element = new Real(...args)); };
"""


@pytest.mark.parametrize("how", ["silence", "reset"])
def test_blocked_websockets_give_way_to_the_http_stream(
    stage: Stage, tab: Tab, how: Literal["silence", "reset"]
) -> None:
    session = stage.session()
    writer = Writer(session)
    stage.block_websockets(how)
    thread = in_background(lambda: writer.speak(SCRIPT, pace=0.8))
    tab.on_load(LOUDNESS)
    tab.open(stage.link(session.sid))
    wait(tab, "s.transport === 'http'")
    tab.click("#play")
    tab.evaluate("loudness(element)")
    wait(tab, "s.play_ms > 1500")
    assert text(tab, "#status").startswith("Something on the way blocks the live channel")
    tab.wait("document.querySelector('#transcript span.now') !== null")
    wait(tab, "s.state === 'ended'", limit_s=30)
    thread.join()

    assert tab.evaluate("window.peak") > 0.1
    shown = tab.evaluate("[...document.querySelectorAll('#transcript p')].map(p => p.textContent)")
    assert shown == list(ENGLISH)
    after = stats(tab)
    assert after["play_ms"] == pytest.approx(SCRIPT_MS, abs=300)
    assert after["ttfa_ms"] is not None
    [http] = events(tab, "http")
    assert http["format"] == "ogg"


def test_browser_without_audio_worklet_hears_the_http_stream(stage: Stage, tab: Tab) -> None:
    session = spoken(stage)
    tab.on_load("delete window.AudioWorkletNode")
    tab.open(stage.link(session.sid))
    tab.click("#play")
    wait(tab, "s.transport === 'http' && s.play_ms > 500")

    assert not events(tab, "opened")
    tab.wait("document.title === 'Weekly sync · Notecast'")


def test_browser_without_opus_in_ogg_gets_mp3(stage: Stage, tab: Tab) -> None:
    session = spoken(stage)
    tab.on_load(
        "delete window.AudioWorkletNode;"
        "const can = HTMLMediaElement.prototype.canPlayType;"
        "HTMLMediaElement.prototype.canPlayType = function (t) {"
        " return t.includes('opus') ? '' : can.call(this, t); };"
    )
    tab.open(stage.link(session.sid))
    tab.click("#play")
    wait(tab, "s.play_ms > 500")

    [http] = events(tab, "http")
    assert http["format"] == "mp3"


def test_seeking_and_speed_work_without_websocket(stage: Stage, tab: Tab) -> None:
    session = spoken(stage, script=sentences(chunks=50))  # 40 s
    stage.block_websockets("reset")
    tab.open(stage.link(session.sid))
    tab.click("#play")
    wait(tab, "s.play_ms > 300")
    tab.wait("document.querySelectorAll('#transcript p').length === 4")
    set_value(tab, "#seek", 25_000)
    wait(tab, "s.state === 'playing' && s.play_ms > 25200 && s.play_ms < 29000")
    set_value(tab, "#speed", "2")
    tab.click("#back")
    wait(tab, "s.state === 'playing' && s.play_ms > 10200 && s.play_ms < 16000")

    word = tab.wait("document.querySelector('#transcript span.now')?.textContent")
    assert word in ENGLISH[1]


def test_broken_http_stream_goes_on_where_it_broke(stage: Stage, tab: Tab) -> None:
    script = sentences(chunks=20)  # 16 s
    session = stage.session()
    writer = Writer(session)
    stage.block_websockets("reset")
    writer.speak(script[:2], pace=0, end=False)
    tab.open(stage.link(session.sid))
    tab.click("#play")
    wait(tab, "s.play_ms > 800")
    stage.cut_wire()
    writer.speak(script[2:], from_seg=2, pace=0)
    wait(tab, "s.state === 'reconnecting'")
    stage.mend_wire()
    stage.block_websockets("reset")
    wait(tab, "s.state === 'ended'", limit_s=40)

    assert stats(tab)["play_ms"] == pytest.approx(16_000, abs=300)
    shown = tab.evaluate("[...document.querySelectorAll('#transcript p')].map(p => p.textContent)")
    assert shown == list(ENGLISH)


def test_link_that_opens_nothing_says_so_over_http_too(stage: Stage, tab: Tab) -> None:
    stage.block_websockets("reset")
    tab.open(stage.link(stage.session().sid, expires_in_s=-3600))

    tab.wait("document.querySelector('#problem').textContent.startsWith('This link has expired.')")
    assert tab.evaluate("document.querySelector('#play').disabled") is True
