"""The host's strip: orders through the real gateway, answers in words, cuts that are heard."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest

from streaming import listener
from streaming.errors import NotDone
from streaming.orders import Order, Outcome
from streaming.session import LiveSession
from streaming.tokens import Role
from tests.browser.cdp import Tab
from tests.browser.feed import Writer, sentences
from tests.browser.page import SCRIPT, SCRIPT_MS, events, set_value, spoken, stats, text, wait
from tests.browser.stage import Stage


class Reader:
    """Reads a script and follows orders, as a worker does."""

    def __init__(self, stage: Stage, *, chunks: int = 6) -> None:
        self.script = sentences(chunks=chunks)
        self.session: LiveSession = stage.session()
        self.degraded: tuple[str, ...] = ()
        self.fork_url = ""
        self.done = threading.Event()
        stage.desk.follow[self.session.sid] = self.follow
        Writer(self.session).speak(self.script, pace=0, end=False)

    def follow(self, order: Order) -> Outcome:
        wish = order.wish
        try:
            match wish.op:
                case "pause":
                    self.session.state("paused", "owner")
                case "resume":
                    self.session.state("generating", "owner")
                case "stop":
                    self.session.end("stopped")
                case "fork":
                    return Outcome({"sid": "ses_own", "seg": 1, "listen_url": self.fork_url})
                case _:
                    return self._revise(order)
            return Outcome({"seg": 3, "ms": self.session.dur_ms, "epoch": self.session.epoch})
        finally:
            self.done.set()

    def _revise(self, order: Order) -> Outcome:
        starts = {seg: place.pts // 48 for seg, place in self.session.segments.items()}
        play_ms = order.wish.play_ms or 0
        if order.wish.at == "now":
            seg = max(seg for seg, ms in starts.items() if ms <= play_ms)
        else:
            seg = min(seg for seg, ms in starts.items() if ms >= play_ms + 1_500)
        target = order.wish.value if order.wish.op == "skip" else seg
        self.session.cut(seg, order.wish.op)  # type: ignore[arg-type]
        effect = {"seg": target, "ms": self.session.dur_ms, "epoch": self.session.epoch}
        Writer(self.session).speak(self.script[target:], from_seg=target, pace=0, end=False)
        return Outcome(effect, self.degraded)


@pytest.fixture
def host(stage: Stage, tab: Tab) -> Callable[[Reader], Tab]:
    """Opens a session as its owner, and plays it."""

    def open(reader: Reader) -> Tab:
        tab.open(stage.link(reader.session.sid, role="owner"))
        tab.wait("!document.querySelector('#host').hidden")
        wait(tab, "s.buf_ms > 4000")
        tab.click("#play")
        wait(tab, "s.play_ms > 200")
        return tab

    return open


def answered(tab: Tab) -> str:
    """The answer to the last order, once it is there."""
    return str(
        tab.wait(
            "(() => { const t = document.querySelector('#host-answer').textContent;"
            " return t && !t.endsWith('…') && t; })()"
        )
    )


@pytest.mark.parametrize("role", ["listener", "owner", "admin"])
def test_strip_is_shown_to_those_who_may_order(stage: Stage, tab: Tab, role: Role) -> None:
    session = stage.session()
    Writer(session).speak(SCRIPT, pace=0, end=False)
    tab.open(stage.link(session.sid, role=role))
    wait(tab, f"s.role === '{role}' && s.buf_ms > 4000")
    if role != "listener":
        tab.wait("!document.querySelector('#host').hidden")
    shown = tab.evaluate(
        "[...document.querySelectorAll('#host button, #host select')]"
        ".filter((e) => e.offsetWidth).map((e) => e.id.slice(5))"
    )

    groups = "[...document.querySelectorAll('#host-voice optgroup')].map((g) => g.label)"
    assert tab.evaluate(groups) == ([] if role == "listener" else ["English", "Chinese"])
    everything = ["pause", "skip", "stop", "speed", "emotion", "voice"]
    assert shown == {"listener": [], "owner": everything, "admin": ["stop"]}[role]


def test_new_pace_is_ordered_told_and_heard_from_the_next_sentence_on(
    stage: Stage, host: Callable[[Reader], Tab]
) -> None:
    reader = Reader(stage)
    tab = host(reader)
    set_value(tab, "#host-speed", "1.25")
    told = answered(tab)
    reader.session.end("done")
    wait(tab, "s.state === 'ended'")

    [order] = [one for one in stage.desk.orders if one.sid == reader.session.sid]
    assert (order.wish.op, order.wish.value, order.wish.at) == ("speed", 1.25, "playhead")
    assert order.wish.play_ms is not None and order.wish.play_ms > 100
    [cut] = events(tab, "cut")
    assert cut["why"] == "speed"
    assert told == f"Pace: 1.25× from 0:0{cut['cut_ms'] // 1000} on, for everybody."
    assert text(tab, "#announce") != ""
    after = stats(tab)
    assert after["received_sha256"] == after["end_sha256"]
    # Nothing twice and nothing left out, but for the decoder's delay at the two ends.
    assert int(after["tap"].split(":")[1]) == pytest.approx(SCRIPT_MS * 48, abs=1_000)


def test_what_the_voice_can_do_only_in_part_is_said(
    stage: Stage, host: Callable[[Reader], Tab]
) -> None:
    reader = Reader(stage)
    reader.degraded = ("emotion",)
    tab = host(reader)
    set_value(tab, "#host-emotion", "sad")

    assert answered(tab).endswith("The voice has no exact match, so its nearest is used (Emotion).")
    assert tab.evaluate("document.querySelector('#host-emotion').value") == "sad"


def test_skipped_sentence_falls_silent_at_once(stage: Stage, host: Callable[[Reader], Tab]) -> None:
    reader = Reader(stage, chunks=20)  # 4 s each
    tab = host(reader)
    wait(tab, "s.play_ms > 800")
    tab.click("#host-skip")
    assert answered(tab) == "Skipped."
    reader.session.end("done")
    wait(tab, "s.state === 'ended'", limit_s=40)

    order = stage.desk.orders[-1]
    assert (order.wish.op, order.wish.value, order.wish.at) == ("skip", 1, "now")
    shown = tab.evaluate("[...document.querySelectorAll('#transcript p')].map(p => p.textContent)")
    assert shown == [sentence.text for sentence in reader.script[1:]]
    # About one second of the first sentence, then the three others.
    samples = int(stats(tab)["tap"].split(":")[1])
    assert 3 * 4_000 * 48 < samples < (3 * 4_000 + 3_500) * 48


def test_pause_goes_on_and_stop_asks_first(stage: Stage, host: Callable[[Reader], Tab]) -> None:
    reader = Reader(stage)
    tab = host(reader)
    assert text(tab, "#host-pause span") == "Pause all"
    tab.click("#host-pause")
    tab.wait("document.querySelector('#host-pause span').textContent === 'Go on'")
    wait(tab, "s.state === 'hostPaused'")
    assert stats(tab)["underruns"] == {"n": 0, "ms": 0}  # silence on purpose is none
    tab.click("#host-pause")
    tab.wait("document.querySelector('#host-pause span').textContent === 'Pause all'")
    tab.click("#host-stop")
    tab.wait("document.querySelector('#stop-dialog').open")
    tab.click("#stop-no")
    tab.wait("!document.querySelector('#stop-dialog').open")
    tab.click("#host-stop")
    tab.click("#stop-yes")
    wait(tab, "s.end_sha256 !== null")

    ops = [one.wish.op for one in stage.desk.orders if one.sid == reader.session.sid]
    assert ops == ["pause", "resume", "stop"]
    tab.wait("document.querySelector('#host-pause').hidden")
    wait(tab, "s.state === 'ended'")
    assert text(tab, "#status") == "The host ended the reading here."
    assert "the reading is over" in text(tab, "#host-facts")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("forbidden", "This link may listen, but not direct the reading."),
        ("rate_limited", "Too many changes at once. Wait a moment."),
        ("gone", "This was not possible: the rest was spoken already"),
    ],
)
def test_order_that_comes_to_nothing_says_why_and_the_field_goes_back(
    stage: Stage, host: Callable[[Reader], Tab], code: str, told: str
) -> None:
    reader = Reader(stage)
    tab = host(reader)

    def refuse(order: Order) -> Outcome:
        raise NotDone(code, "the rest was spoken already")

    stage.desk.follow[reader.session.sid] = refuse
    set_value(tab, "#host-speed", "2")

    assert answered(tab) == told
    assert tab.evaluate("document.querySelector('#host-speed').value") == "1"


def test_strip_rests_while_the_connection_is_down(
    stage: Stage, host: Callable[[Reader], Tab]
) -> None:
    tab = host(Reader(stage, chunks=40))
    stage.cut_wire()
    tab.wait("document.querySelector('#host-pause').disabled")
    stage.mend_wire()
    tab.evaluate("dispatchEvent(new Event('online'))")

    tab.wait("!document.querySelector('#host-pause').disabled")


# The page's own connection, and what it hears.
SOCKET = """
const send = WebSocket.prototype.send;
window.heard = [];
WebSocket.prototype.send = function (message) {
  if (window.socket !== this) {
    window.socket = this;
    this.addEventListener("message", ({ data }) => {
      if (typeof data === "string") window.heard.push(JSON.parse(data));
    });
  }
  send.call(this, message);
};
"""


def test_host_sees_how_many_listen_and_the_place_in_line(stage: Stage, tab: Tab) -> None:
    session = stage.session()
    Writer(session).speak(SCRIPT, pace=0, end=False)
    tab.on_load(SOCKET)
    tab.open(stage.link(session.sid, role="owner"))
    wait(tab, "s.buf_ms > 4000")
    tab.wait("document.querySelector('#host-facts').textContent === '1 listening'")
    message = {"t": "listeners", "sid": session.sid, "n": 12}
    tab.evaluate(f"socket.onmessage({{ data: {json.dumps(json.dumps(message))} }})")
    tab.wait("document.querySelector('#host-facts').textContent === '12 listening'")
    message = {"t": "queued", "sid": session.sid, "pos": 3, "eta_ms": 1000}
    tab.evaluate(f"socket.onmessage({{ data: {json.dumps(json.dumps(message))} }})")

    facts = "document.querySelector('#host-facts').textContent"
    tab.wait(f"{facts} === '12 listening · number 3 in line'")


def test_page_pings_as_often_as_the_server_wishes(
    stage: Stage, tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "PING_MS", 300)
    session = spoken(stage)
    tab.on_load(SOCKET)
    tab.open(stage.link(session.sid))

    tab.wait("heard.filter(({ t }) => t === 'pong').length > 2")


def test_listener_who_orders_by_hand_is_refused(stage: Stage, tab: Tab) -> None:
    session = spoken(stage)
    tab.on_load(SOCKET)
    tab.open(stage.link(session.sid))
    wait(tab, "s.received_sha256 !== null")
    tab.evaluate(
        f"socket.send(JSON.stringify({{t: 'control', req: 'x', sid: '{session.sid}', op: 'stop'}}))"
    )
    error = tab.wait("heard.find((m) => m.t === 'error')")

    assert (error["code"], error["req"]) == ("forbidden", "x")
    assert stats(tab)["state"] == "ready"


@pytest.mark.parametrize("role", ["owner", "listener"])
def test_rest_is_read_anew_for_whoever_asks(stage: Stage, tab: Tab, role: Role) -> None:
    """An owner when the session is over, a listener whose link allows it at any time."""
    reader, own = Reader(stage), stage.session()
    Writer(own).speak(SCRIPT, pace=0, end=False)
    reader.fork_url = stage.link(own.sid, role="owner").replace("127.0.0.1", "elsewhere.example")
    if role == "owner":
        reader.session.end("done")
    tab.open(stage.link(reader.session.sid, role=role, scopes=("fork",)))
    tab.wait("!document.querySelector('#host').hidden")
    wait(tab, "s.buf_ms > 4000")
    tab.click("#play")
    wait(tab, "s.play_ms > 900")
    shown = tab.evaluate(
        "[...document.querySelectorAll('#host button, #host select')]"
        ".filter((e) => e.offsetWidth && !e.disabled).map((e) => e.id.slice(5))"
    )
    assert shown == ["speed", "emotion", "voice", "fork"]
    label = "Your own reading" if role == "listener" else "Host"
    assert text(tab, "#host-label") == label
    set_value(tab, "#host-speed", "1.25")
    tab.click("#host-fork")
    tab.wait(f"location.hash === '#{reader.fork_url.partition('#')[2]}'")
    tab.wait("Boolean(window.__nc)")  # the other page is loaded
    wait(tab, "s.role === 'owner' && s.buf_ms > 4000")

    [order] = [one for one in stage.desk.orders if one.sid == reader.session.sid]
    assert (order.wish.op, order.wish.value, order.wish.at) == ("fork", {"speed": 1.25}, "now")
    assert order.wish.play_ms is not None and order.wish.play_ms > 500
    assert tab.evaluate("location.host") == stage.origin.removeprefix("http://")
