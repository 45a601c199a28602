"""For everybody: screen readers, keyboards, small and zoomed windows, colours, scripts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.browser.cdp import Tab
from tests.browser.feed import Sentence, Writer, sentences
from tests.browser.page import SCRIPT, spoken, stats, text, wait
from tests.browser.stage import Stage

CHAPTERS = {"chapters": [{"startTime": 0, "title": "Opening"}, {"startTime": 6, "title": "News"}]}


@pytest.fixture
def full(stage: Stage, tab: Tab) -> Tab:
    """The owner's page with everything that it can show, playing."""
    (stage.recordings / "chapters.json").write_text(json.dumps(CHAPTERS))
    session = stage.session(title="Donaudampfschifffahrtsgesellschaftskapitänsmütze " * 2)
    Writer(session).speak(sentences(chunks=30), pace=0, end=False)
    session.file("/recordings/1.mp3", "mp3", 1, "/recordings/1.vtt", "/recordings/chapters.json")
    tab.open(stage.link(session.sid, role="owner"))
    tab.wait("!document.querySelector('#host').hidden")
    tab.wait("!document.querySelector('#chapters').hidden")
    tab.click("#play")
    wait(tab, "s.state === 'playing'")
    tab.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    return tab


def tree(tab: Tab) -> list[dict[str, Any]]:
    """What a screen reader is given: role, name and properties of each node that counts."""
    nodes = []
    for node in tab.send("Accessibility.getFullAXTree")["nodes"]:
        if node.get("ignored"):
            continue
        properties = {one["name"]: one["value"].get("value") for one in node.get("properties", [])}
        name = node.get("name", {}).get("value", "")
        nodes.append({"role": node["role"]["value"], "name": name, **properties})
    return nodes


def test_everything_that_can_be_used_has_a_name_and_a_role(full: Tab) -> None:
    nodes = tree(full)
    usable = ("button", "slider", "combobox", "link", "DisclosureTriangle")
    names: dict[str, set[str]] = {role: set() for role in usable}
    for node in nodes:
        if node["role"] in usable:
            assert node["name"].strip(), node
            names[node["role"]].add(node["name"])

    assert {
        "Pause",
        "Back 15 seconds",
        "Forward 30 seconds",
        "Previous sentence",
        "Next sentence",
    } <= names["button"]
    assert names["slider"] == {"Position"}
    assert names["combobox"] == {"Speed", "Pace", "Emotion", "Voice"}
    assert names["link"] == {"Recording", "Captions", "Chapters"}
    roles = [node["role"] for node in nodes]
    assert (roles.count("main"), roles.count("heading")) == (1, 1)
    assert [node["name"] for node in nodes if node["role"] == "region"] == ["Transcript"]


def test_there_is_one_polite_live_region_and_the_moving_word_is_not_in_it(full: Tab) -> None:
    live = [node for node in tree(full) if node.get("live") not in (None, "off")]

    assert [(node["role"], node["live"]) for node in live] == [("status", "polite")]
    assert full.evaluate("document.querySelectorAll('[aria-live], [role=alert]').length") == 0


def test_slider_says_place_received_and_spoken_in_words(full: Tab) -> None:
    said = full.wait("document.querySelector('#seek').getAttribute('aria-valuetext')")

    assert said.endswith("spoken so far")
    assert "seconds" in said and "received" in said


def test_tab_reaches_every_control_and_shows_where_it_is(full: Tab) -> None:
    full.evaluate("document.querySelector('#chapters summary').focus()")
    reached: dict[str, list[Any]] = {}
    for _ in range(60):
        full.key("Tab")
        name, *outline = full.evaluate(
            "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
            " return [e.id || e.textContent, s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
        )
        reached[name] = outline
        if name == "live":
            break
    controls = full.evaluate(
        "[...document.querySelectorAll('button, select, input')]"
        ".filter((e) => e.offsetWidth && !e.disabled && e.id).map((e) => e.id)"
    )

    assert set(controls) <= set(reached)
    for name, (style, width) in reached.items():
        assert (style, width >= 2) == ("solid", True), name


@pytest.mark.parametrize("size", [(320, 568), (390, 844), (640, 400), (1280, 800)])
def test_page_fits_its_window_with_targets_for_thumbs(full: Tab, size: tuple[int, int]) -> None:
    width, height = size
    full.emulate(width=width, height=height)
    wide = full.evaluate(
        "[...document.querySelectorAll('body *')].filter((e) => e.offsetWidth"
        " && !e.closest('.unseen, .speed > span')"
        " && (e.getBoundingClientRect().right > innerWidth + 1"
        "  || e.getBoundingClientRect().left < -1)).map((e) => e.id || e.className || e.tagName)"
    )
    small = full.evaluate(
        "[...document.querySelectorAll('button, select, input, summary, a')].filter((e) => {"
        " const b = e.getBoundingClientRect(); return b.width && (b.width < 44 || b.height < 44);"
        " }).map((e) => e.id || e.textContent)"
    )

    assert full.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert wide == []
    assert small == []


def test_page_before_the_first_press_fits_a_small_phone(stage: Stage, tab: Tab) -> None:
    session = stage.session(title="Donaudampfschifffahrtsgesellschaftskapitänsmütze " * 2)
    Writer(session).speak(sentences(chunks=30), pace=0, end=False)
    tab.emulate(width=320, height=568)
    tab.open(stage.link(session.sid))
    tab.wait("!document.querySelector('#live').hidden")

    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.parametrize("role", ["listener", "owner"])
def test_zoomed_page_keeps_the_controls_in_reach_and_room_to_read(
    stage: Stage, tab: Tab, role: Any
) -> None:
    session = stage.session()
    Writer(session).speak(sentences(chunks=30), pace=0, end=False)
    tab.emulate(width=640, height=400)  # what 1280 x 800 is at 200 %
    tab.open(stage.link(session.sid, role=role))
    wait(tab, f"s.role === '{role}'")
    tab.click("#play")
    wait(tab, "s.state === 'playing'")
    box = tab.evaluate("document.querySelector('#dock').getBoundingClientRect().toJSON()")

    assert box["bottom"] == 400
    assert box["height"] < 400 / 2
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


# Every piece of text that is seen: its colour, what lies behind it, its size, and what it says.
TEXTS = """
(() => {
  const seen = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const e = node.parentElement;
    if (!node.textContent.trim() || !e.checkVisibility()) continue;
    if (e.closest(".unseen, noscript, option")) continue;
    const style = getComputedStyle(e);
    if (style.clipPath !== "none") continue;
    let behind = e;
    while (behind && /, 0\\)$|transparent/.test(getComputedStyle(behind).backgroundColor)) {
      behind = behind.parentElement;
    }
    const size = parseFloat(style.fontSize);
    seen.push({
      text: node.textContent.trim().slice(0, 30), colour: style.color,
      back: getComputedStyle(behind ?? document.body).backgroundColor,
      isLarge: size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700),
    });
  }
  return seen;
})()
"""
WAVE = """
(() => { const style = getComputedStyle(document.querySelector("#waveform"));
  const mix = (name) => { const e = document.createElement("i");
    e.style.color = style.getPropertyValue(name); document.body.append(e);
    const c = getComputedStyle(e).color; e.remove(); return c; };
  return ["--wave-spoken", "--wave-received", "--wave-ink"].map(mix); })()
"""


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two `rgb(r, g, b)` colours."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        red, green, blue = (
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_follow_the_system_and_every_text_keeps_its_contrast(full: Tab, dark: bool) -> None:
    full.emulate(width=1280, height=800, dark=dark)
    full.click("#next")
    full.wait("document.querySelector('#transcript p.said') !== null")
    full.evaluate(
        "for (const id of ['problem', 'host-answer']) { const e = document.getElementById(id);"
        " e.hidden = false; e.textContent = 'Something to tell.'; }"
    )
    full.evaluate("document.querySelector('#stop-dialog').showModal()")
    full.wait("document.getAnimations().every((a) => !(a instanceof CSSTransition))")
    texts = full.evaluate(TEXTS)
    paper = full.evaluate("getComputedStyle(document.body).backgroundColor")

    assert (contrast(paper, "rgb(0, 0, 0)") < 3) is dark
    said = {one["text"] for one in texts}
    assert {"Something to tell.", "Live", "Stop", "Opening"} <= said
    poor = [
        one
        for one in texts
        if contrast(one["colour"], one["back"]) < (3 if one["isLarge"] else 4.5)
    ]
    assert poor == []
    for colour in full.evaluate(WAVE):
        assert contrast(colour, paper) >= 3


def test_nothing_moves_by_itself_for_those_who_do_not_want_it(stage: Stage, tab: Tab) -> None:
    session = stage.session()
    Writer(session).speak(SCRIPT, pace=0, end=False)
    tab.send(
        "Emulation.setEmulatedMedia",
        features=[{"name": "prefers-reduced-motion", "value": "reduce"}],
    )
    tab.open(stage.link(session.sid))
    tab.wait("!document.querySelector('#badge').hidden")

    assert tab.evaluate("document.getAnimations({subtree: true}).length") == 0


def test_each_sentence_runs_in_its_own_direction(stage: Stage, tab: Tab) -> None:
    session = stage.session(title="اجتماع الفريق", lang="ar")
    script = [Sentence("اجتمعنا يوم الاثنين.", 3), Sentence("The release moved.", 3)]
    Writer(session).speak(script, pace=0)
    tab.open(stage.link(session.sid))
    wait(tab, "s.received_sha256 !== null")
    directions = tab.evaluate(
        "[...document.querySelectorAll('#title, #transcript p')]"
        ".map((e) => getComputedStyle(e).direction)"
    )

    assert directions == ["rtl", "rtl", "ltr"]
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_system_media_controls_know_title_place_and_length(stage: Stage, tab: Tab) -> None:
    tab.on_load(
        "window.actions = {}; window.places = [];"
        "navigator.mediaSession.setActionHandler = (name, act) => { actions[name] = act; };"
        "navigator.mediaSession.setPositionState = (place) => places.push(place);"
    )
    session = spoken(stage, script=sentences(chunks=50))  # 40 s
    tab.open(stage.link(session.sid))
    wait(tab, "s.received_sha256 !== null")
    tab.click("#play")
    tab.wait("navigator.mediaSession.playbackState === 'playing'")
    place = tab.wait("places.at(-1)")
    assert tab.evaluate("navigator.mediaSession.metadata.title") == "Weekly sync"
    assert place["duration"] == 40
    tab.evaluate("actions.seekto({ seekTime: 20 })")
    wait(tab, "s.play_ms >= 20000 && s.play_ms < 25000")
    tab.evaluate("actions.seekbackward({})")
    wait(tab, "s.play_ms >= 5000 && s.play_ms < 12000")
    tab.evaluate("actions.nexttrack({})")
    wait(tab, "s.play_ms >= 10000 && s.play_ms < 13000")
    tab.evaluate("actions.stop({})")
    wait(tab, "s.state === 'paused'")
    tab.wait("navigator.mediaSession.playbackState === 'paused'")
    assert {"play", "pause", "seekforward", "previoustrack"} <= set(
        tab.evaluate("Object.keys(actions)")
    )


def test_sound_that_was_taken_away_comes_back_or_asks_for_a_tap(stage: Stage, tab: Tab) -> None:
    tab.on_load(
        "navigator.audioSession = { type: 'auto' };"
        "const Real = AudioContext;"
        "window.AudioContext = class extends Real {"
        " constructor(o) { window.typeBefore = navigator.audioSession.type; super(o);"
        "  window.context = this; }"
        " resume() { return window.isTaken ? Promise.reject(Error('taken')) : super.resume(); } };"
    )
    session = spoken(stage, script=sentences(chunks=50))
    tab.open(stage.link(session.sid))
    wait(tab, "s.received_sha256 !== null")
    tab.click("#play")
    wait(tab, "s.play_ms > 300")
    assert tab.evaluate("window.typeBefore") == "playback"
    tab.evaluate("window.isTaken = true; context.suspend()")
    wait(tab, "s.state === 'suspended'")
    assert text(tab, "#status") == "The sound was interrupted. Tap to go on."
    assert text(tab, "#announce") == "The sound was interrupted. Tap to go on."
    tab.evaluate("dispatchEvent(new Event('focus'))")
    wait(tab, "s.state === 'suspended'")
    held_ms = stats(tab)["play_ms"]
    tab.evaluate("window.isTaken = false; document.dispatchEvent(new Event('visibilitychange'))")
    wait(tab, f"s.state === 'playing' && s.play_ms > {held_ms + 200}")
    tab.evaluate("window.isTaken = true; context.suspend()")
    wait(tab, "s.state === 'suspended'")
    tab.evaluate("window.isTaken = false")
    tab.click("#play")

    wait(tab, f"s.state === 'playing' && s.play_ms > {held_ms + 400}")
