"""The player page in a real browser, fed by real sessions through the real gateway."""

from __future__ import annotations

import json
import time
import wave
from collections.abc import Callable, Iterator

import pytest

from streaming.gateway import SessionInfo
from streaming.session import LiveSession
from tests.browser.cdp import Tab
from tests.browser.feed import (
    CHINESE,
    CHUNK_MS,
    ENGLISH,
    RATE_HZ,
    Sentence,
    Writer,
    in_background,
    sentences,
    tone,
)
from tests.browser.page import SCRIPT, SCRIPT_MS, events, set_value, spoken, stats, text, wait
from tests.browser.playout import simulate
from tests.browser.stage import Stage

FULL_CUSHION_MS = 1_500
CHAPTERS = ((0, "Opening"), (2_400, "Decisions"))


def expected_words(script: list[Sentence], writer: Writer) -> Iterator[tuple[str, int, int]]:
    start_ms = 0
    for sentence in script:
        yield from sentence.words(start_ms)
        start_ms += sentence.chunks * CHUNK_MS


def test_steady_stream_plays_without_underrun_and_lights_up_the_word_that_is_heard(
    stage: Stage, tab: Tab
) -> None:
    session = stage.session()
    writer = Writer(session)
    thread = in_background(lambda: writer.speak(SCRIPT, pace=0.8))
    sounds = stage.counters.click_to_sound
    counted = sum(sounds.counts), sounds.total
    tab.open(stage.link(session.sid))
    wait(tab, f"s.buf_ms >= {FULL_CUSHION_MS}")
    tab.click("#play")
    samples = []
    for place_ms in (700, 1_500, 2_500, 3_500, 4_300):
        wait(tab, f"s.play_ms >= {place_ms}")
        samples.append(
            tab.evaluate(
                "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => "
                "done([document.querySelector('#transcript span.now')?.textContent,"
                " window.__nc.stats().play_ms]))))"
            )
        )
    wait(tab, "s.state === 'ended'")
    thread.join()

    timed = list(expected_words(SCRIPT, writer))
    for word, ms in samples:
        # One frame may lie between the painting and the question.
        near = {w for w, start, end in timed if start - 100 <= ms < end + 150}
        assert word in near, (word, ms)
    shown = tab.evaluate("[...document.querySelectorAll('#transcript p')].map(p => p.textContent)")
    assert shown == list(ENGLISH)
    after = stats(tab)
    assert after["underruns"] == {"n": 0, "ms": 0}
    assert after["received_sha256"] == after["end_sha256"]
    assert sum(sounds.counts) == counted[0] + 1
    assert sounds.total == pytest.approx(counted[1] + after["ttfa_ms"] / 1000)
    assert after["delay_ms"] and all(-50 <= delay < 5_000 for delay in after["delay_ms"])


def test_silence_of_the_engine_is_one_underrun_and_the_voice_goes_on(
    stage: Stage, tab: Tab
) -> None:
    session = stage.session()
    writer = Writer(session)
    writer.speak(SCRIPT[:1], pace=0, end=False)
    tab.open(stage.link(session.sid))
    tab.click("#play")
    wait(tab, "s.underruns.n === 1")
    assert tab.evaluate("document.querySelector('#status').textContent") == "Waiting for the voice…"
    target_ms = stats(tab)["target_ms"]
    writer.speak(SCRIPT[1:], from_seg=1, pace=0.2)
    wait(tab, "s.state === 'ended'")

    after = stats(tab)
    assert after["underruns"]["n"] == 1
    assert after["underruns"]["ms"] > 0
    assert target_ms >= 440  # from 240: half as much again, and at least 200 more
    assert after["play_ms"] == pytest.approx(SCRIPT_MS, abs=50)


# When frames came, as the page's own clock saw it.
ARRIVALS = """
window.arrivals = [];
const Socket = WebSocket;
window.WebSocket = class extends Socket {
  set onmessage(hear) {
    super.onmessage = (event) => {
      if (typeof event.data !== "string") arrivals.push(performance.now());
      hear(event);
    };
  }
};
"""


def assert_as_predicted(tab: Tab) -> None:
    """The underruns are what the rules say about the frames that came, and when they did.

    `test_playout.py` asks for this to the sample; here a busy machine may decode a chunk late, and
    sound starts again with whole chunks.
    """
    [pressed, *_] = [e["at"] for e in events(tab, "voice") if e["state"] == "waiting"]
    *chunks, _end = tab.evaluate("window.arrivals")
    expected = simulate([max(0.0, at - pressed) for at in chunks])
    found = stats(tab)["underruns"]
    assert found["n"] == pytest.approx(expected.underruns, abs=1)
    assert found["ms"] == pytest.approx(expected.silence_ms, abs=2 * CHUNK_MS)


def test_stall_of_the_engine_costs_what_the_rules_predict(stage: Stage, tab: Tab) -> None:
    session = stage.session()
    writer = Writer(session)
    tab.on_load(ARRIVALS)
    tab.open(stage.link(session.sid))
    wait(tab, "s.state !== 'connecting'")
    thread = in_background(lambda: writer.speak(SCRIPT, pace=1, stall=(10, 2.0)))
    tab.click("#play")
    wait(tab, "s.state === 'ended'", limit_s=30)
    thread.join()

    after = stats(tab)
    assert after["underruns"]["n"] >= 1
    assert_as_predicted(tab)
    assert after["received_sha256"] == after["end_sha256"]


def test_disconnect_at_chunk_7_costs_what_the_rules_predict(stage: Stage, tab: Tab) -> None:
    session = stage.session()
    writer = Writer(session)
    tab.on_load(ARRIVALS)
    tab.open(stage.link(session.sid))
    wait(tab, "s.state !== 'connecting'")
    thread = in_background(lambda: writer.speak(SCRIPT, pace=1))
    tab.click("#play")
    wait(tab, "s.recv_seq === 6")
    stage.cut_wire()
    wait(tab, "s.underruns.n === 1")
    stage.mend_wire()
    tab.evaluate("dispatchEvent(new Event('online'))")
    wait(tab, "s.state === 'ended'", limit_s=30)
    thread.join()

    after = stats(tab)
    assert after["reconnects"] >= 1
    assert after["underruns"]["n"] >= 1
    assert_as_predicted(tab)
    assert after["received_sha256"] == after["end_sha256"]


def test_lost_connection_is_bridged_by_the_buffer_and_resumed_sample_exactly(
    stage: Stage, new_tab: Callable[[], Tab]
) -> None:
    session = stage.session()
    writer = Writer(session)
    writer.speak(SCRIPT[:3], pace=0, end=False)
    tab = new_tab()
    tab.open(stage.link(session.sid))
    wait(tab, "s.recv_seq === 17")
    tab.click("#play")
    wait(tab, "s.play_ms > 200")
    stage.cut_wire()
    writer.speak(SCRIPT[3:], from_seg=3, pace=0)
    wait(tab, "s.state === 'reconnecting'")
    status = tab.evaluate("document.querySelector('#status').textContent")
    at_loss_ms = stats(tab)["play_ms"]
    wait(tab, f"s.play_ms > {at_loss_ms + 300}")
    stage.mend_wire()
    tab.evaluate("dispatchEvent(new Event('online'))")
    wait(tab, "s.state === 'ended'")
    unbroken = new_tab()
    unbroken.open(stage.link(session.sid))
    wait(unbroken, f"s.buf_ms > {SCRIPT_MS - 100}")
    unbroken.click("#play")
    wait(unbroken, "s.state === 'ended'")

    after = stats(tab)
    assert status.startswith("Reconnecting, ") and status.endswith(" s buffered")
    assert after["reconnects"] >= 1
    assert after["underruns"]["n"] == 0
    assert after["received_sha256"] == after["end_sha256"] == stats(unbroken)["end_sha256"]
    assert after["tap"] == stats(unbroken)["tap"]


def test_slider_keys_buttons_and_words_all_seek(stage: Stage, tab: Tab) -> None:
    script = sentences(chunks=50)  # 40 s
    session = spoken(stage, script=script)
    tab.open(stage.link(session.sid))
    wait(tab, "s.received_sha256 !== null")
    tab.click("#play")
    wait(tab, "s.state === 'playing'")

    def play_ms() -> int:
        return int(stats(tab)["play_ms"])

    tab.click("#forward")
    assert 30_000 <= play_ms() < 32_000
    tab.click("#back")
    assert 15_000 <= play_ms() < 17_000
    tab.click("#next")
    assert 20_000 <= play_ms() < 22_000
    tab.click("#previous")
    assert 10_000 <= play_ms() < 12_000
    tab.key("ArrowRight")
    assert play_ms() >= 39_000  # not beyond the end
    set_value(tab, "#seek", 5000)
    assert 5_000 <= play_ms() < 7_000
    tab.click("#transcript p:nth-of-type(2) span:nth-of-type(3)")
    assert 14_000 <= play_ms() < 16_000
    tab.evaluate("document.querySelector('#transcript p:nth-of-type(2) span').focus()")
    tab.key("ArrowRight")
    tab.key("Enter")
    assert 12_000 <= play_ms() < 14_000
    wait(tab, "s.state === 'playing'")
    value_text = tab.wait("document.querySelector('#seek').getAttribute('aria-valuetext')")
    assert value_text.endswith(" of 40 seconds")
    assert stats(tab)["underruns"]["n"] == 0


def test_joining_live_and_going_back_fetches_what_was_not_received(stage: Stage, tab: Tab) -> None:
    session = stage.session()
    writer = Writer(session)
    writer.speak(sentences(chunks=40), pace=0, end=False)  # 32 s
    news = [Sentence("This is news.", 30)]
    tab.open(stage.link(session.sid))
    tab.wait("document.querySelector('#play').textContent === 'Listen from the start'")
    assert tab.evaluate("document.querySelector('#live').textContent") == "Join live"
    tab.click("#live")
    writer.speak(news, from_seg=4, pace=0.2, end=False)
    wait(tab, "s.state === 'playing' && s.play_ms > 31500")
    assert stats(tab)["policy"] == "live"
    set_value(tab, "#seek", 20000)
    wait(tab, "s.state === 'playing' && s.play_ms > 20200 && s.play_ms < 29000")
    session.end("done")
    wait(tab, "s.buf_ms > 10000")
    set_value(tab, "#seek", 0)
    wait(tab, "s.received_sha256 !== null")  # what was skipped came before it was needed
    assert stats(tab)["policy"] == "complete"

    after = stats(tab)
    assert after["received_sha256"] == after["end_sha256"]


def test_faster_tempo_gets_through_more_without_underrun(stage: Stage, tab: Tab) -> None:
    session = spoken(stage, script=sentences(chunks=15))  # 12 s
    tab.open(stage.link(session.sid))
    wait(tab, "s.received_sha256 !== null")
    tab.evaluate("document.querySelector('#play').click()")
    wait(tab, "s.state === 'playing'")
    tab.key("ArrowUp")
    tab.key("ArrowUp")
    assert tab.evaluate("document.querySelector('#speed').value") == "1.5"
    progress = tab.evaluate(
        "new Promise((done) => {"
        " const place = () => [performance.now(), window.__nc.stats().play_ms];"
        " setTimeout(() => { const [t, p] = place();"
        " setTimeout(() => { const [u, q] = place(); done((q - p) / (u - t)); }, 3000); }, 300); })"
    )

    assert progress == pytest.approx(1.5, abs=0.15)
    assert stats(tab)["underruns"]["n"] == 0


def test_browser_without_webcodecs_plays_pcm(stage: Stage, tab: Tab) -> None:
    session = spoken(stage, script=SCRIPT[:2])
    tab.on_load("delete window.AudioDecoder")
    tab.open(stage.link(session.sid))
    wait(tab, "s.buf_ms > 2300")
    tab.click("#play")
    wait(tab, "s.state === 'ended'")

    after = stats(tab)
    assert after["codec"] == 1
    assert after["underruns"]["n"] == 0
    assert after["tap"].endswith(f":{2 * SCRIPT[0].chunks * CHUNK_MS * 48}")


@pytest.mark.parametrize(
    ("fragment", "advice"),
    [
        ("expired", "This link has expired. Ask whoever sent it for a new one."),
        ("", "This link is incomplete. Open the whole address, including the part after #, "),
        ("#t=nc1.eyJzIjoic2VzXzEifQ.AAAA", "This link is not valid. Copy it again in full"),
    ],
)
def test_link_that_opens_nothing_says_why_and_what_to_do(
    stage: Stage, tab: Tab, fragment: str, advice: str
) -> None:
    expired = stage.link(stage.session().sid, expires_in_s=-3600)
    tab.open(expired if fragment == "expired" else f"{stage.origin}/l/notes{fragment}")
    shown = tab.wait("document.querySelector('#problem').textContent")

    assert shown.startswith(advice)
    assert tab.evaluate("document.querySelector('#play').disabled") is True
    assert tab.evaluate("document.querySelector('#title').textContent") == "Nothing to play"


def test_sentence_that_a_crash_broke_off_is_heard_again_from_its_start(
    stage: Stage, tab: Tab
) -> None:
    session = stage.session()
    writer = Writer(session)
    writer.speak(SCRIPT[:1], pace=0, end=False)
    for chunk in list(writer.chunks(1, SCRIPT[1]))[:4]:
        chunk()
    tab.open(stage.link(session.sid))
    tab.click("#play")
    wait(tab, "s.play_ms > 1500")
    session.cut(1, "retry")
    Writer(session).speak([Sentence("Mei finished it, again.", 6), *SCRIPT[2:]], from_seg=1, pace=0)
    wait(tab, "s.state === 'ended'")

    [cut] = events(tab, "cut")
    assert cut["cut_ms"] == 1_200
    shown = tab.evaluate("[...document.querySelectorAll('#transcript p')].map(p => p.textContent)")
    assert shown == [ENGLISH[0], "Mei finished it, again.", *ENGLISH[2:]]
    after = stats(tab)
    assert after["received_sha256"] == after["end_sha256"]
    # 1.2 s, the broken piece from there to where the cut came, then all from 1.2 s on.
    samples = int(after["tap"].split(":")[1])
    assert samples > (SCRIPT_MS + 250) * 48


def test_session_spoken_again_goes_on_at_the_sentence_that_was_heard(
    stage: Stage, tab: Tab
) -> None:
    session = stage.session()
    Writer(session).speak(SCRIPT, pace=0, end=False)
    tab.open(stage.link(session.sid))
    wait(tab, f"s.buf_ms > {SCRIPT_MS - 100}")
    set_value(tab, "#seek", 2600)
    tab.click("#play")
    wait(tab, "s.play_ms > 2700")
    stage.log.forget(session.sid)
    session.rebuild()
    Writer(session).speak(SCRIPT, pace=0)
    wait(tab, "s.state === 'ended'")

    after = stats(tab)
    assert after["received_sha256"] == after["end_sha256"]
    # From 2.6 s to the loss, then the third sentence from its beginning at 2.4 s.
    samples = int(after["tap"].split(":")[1])
    assert 2_400 * 48 < samples < 4_000 * 48


def test_change_of_emotion_takes_effect_at_the_next_sentence(stage: Stage, tab: Tab) -> None:
    session = stage.session()
    writer = Writer(session)
    writer.speak(SCRIPT, pace=0, end=False)
    tab.open(stage.link(session.sid))
    wait(tab, f"s.buf_ms > {SCRIPT_MS - 100}")
    tab.click("#play")
    wait(tab, "s.play_ms > 300")
    session.cut(2, "emotion")
    Writer(session).speak(SCRIPT[2:], from_seg=2, pace=0)
    wait(tab, "s.state === 'ended'")

    after = stats(tab)
    assert after["underruns"]["n"] == 0
    assert after["received_sha256"] == after["end_sha256"]
    # Nothing twice and nothing left out, but for the decoder's delay at the two ends.
    assert int(after["tap"].split(":")[1]) == pytest.approx(SCRIPT_MS * 48, abs=1_000)


def test_space_starts_and_pauses(stage: Stage, tab: Tab) -> None:
    session = spoken(stage)
    tab.open(stage.link(session.sid))
    wait(tab, "s.received_sha256 !== null")
    tab.key(" ", text=" ")
    wait(tab, "s.state === 'playing' && s.play_ms > 200")
    tab.key(" ", text=" ")
    wait(tab, "s.state === 'paused'")
    held_ms = stats(tab)["play_ms"]
    time.sleep(0.3)
    assert stats(tab)["play_ms"] - held_ms < 100
    assert tab.evaluate("document.querySelector('#play').getAttribute('aria-label')") == "Play"
    tab.key(" ", text=" ")
    wait(tab, f"s.state === 'playing' && s.play_ms > {held_ms + 200}")


@pytest.mark.parametrize(
    ("said", "phrases"),
    [
        ("First a part, then another one.", ["First a part,", "then another one."]),
        ("发布改到周四，上午再开会。", ["发布改到周四，", "上午再开会"]),
    ],
)
def test_words_with_estimated_times_light_up_as_phrases(
    stage: Stage, tab: Tab, said: str, phrases: list[str]
) -> None:
    session = stage.session()
    Writer(session, quality="estimate").speak([Sentence(said, 6)], pace=0)
    tab.open(stage.link(session.sid))
    wait(tab, "s.received_sha256 !== null")

    shown = tab.evaluate("[...document.querySelectorAll('#transcript span')].map(s => s.innerText)")
    assert shown == phrases
    assert text(tab, "#transcript p") == said


def test_chinese_note_has_a_chinese_page(stage: Stage, tab: Tab) -> None:
    session = stage.session(title="周会纪要", lang="zh")
    Writer(session).speak(sentences(CHINESE, chunks=6), pace=0)
    tab.open(stage.link(session.sid))
    wait(tab, "s.received_sha256 !== null")

    assert tab.evaluate("document.documentElement.lang") == "zh"
    assert tab.evaluate("document.querySelector('#transcript').lang") == "zh"
    assert tab.evaluate("document.querySelector('#play').textContent") == "收听"
    assert tab.evaluate("document.title") == "周会纪要 · Notecast"


def test_recording_and_its_chapters_are_offered_once_they_are_there(stage: Stage, tab: Tab) -> None:
    session = spoken(stage)
    chapters = [{"startTime": ms / 1000, "title": title} for ms, title in CHAPTERS]
    made = json.dumps({"version": "1.2.0", "chapters": chapters})
    (stage.recordings / "1.chapters.json").write_text(made)
    files = ["/recordings/1.mp3", "/recordings/1.vtt", "/recordings/1.chapters.json"]
    session.file(files[0], "mp3", 1000, files[1], files[2])
    tab.open(stage.link(session.sid))
    tab.wait("!document.querySelector('#chapters').hidden")

    links = tab.evaluate("[...document.querySelectorAll('#files a')].map((a) => a.pathname)")
    assert links == files
    tab.click("#play")
    tab.click("#chapters summary")
    tab.click("#chapter-list li:nth-child(2) button")
    wait(tab, "s.play_ms >= 2400")
    current = "document.querySelector('#chapter-list [aria-current] bdi').textContent"
    tab.wait(f"{current} === 'Decisions'")
    assert text(tab, "#chapters summary") == "Chapter 2 of 2Decisions"


def test_chapters_appear_while_the_session_is_spoken(stage: Stage, tab: Tab) -> None:
    session = stage.session()
    Writer(session).speak(SCRIPT, pace=0, end=False)
    tab.on_load(
        "const send = WebSocket.prototype.send;"
        "WebSocket.prototype.send = function (m) { window.socket = this; send.call(this, m); };"
    )
    tab.open(stage.link(session.sid))
    wait(tab, "s.buf_ms > 4000")
    for seg, (ms, title) in enumerate(CHAPTERS):
        head = {"t": "seg", "sid": session.sid, "p": [100, seg], "e": 1, "seg": 10 + seg}
        news = json.dumps(head | {"text": "News.", "ms": ms, "chapter": title})
        tab.evaluate(f"socket.onmessage({{ data: {json.dumps(news)} }})")

    listed = "[...document.querySelectorAll('#chapter-list bdi')].map((e) => e.textContent)"
    assert tab.evaluate(listed) == [title for _, title in CHAPTERS]
    assert tab.evaluate("document.querySelector('#chapters').hidden") is False


def test_session_in_the_queue_tells_its_place_and_begins_by_itself(stage: Stage, tab: Tab) -> None:
    sid = "ses_in_the_queue"
    stage.known[sid] = SessionInfo("queued", pos=2, eta_ms=65_000)
    tab.open(stage.link(sid))
    tab.wait("document.querySelector('#status').textContent.startsWith('Waiting')")
    status = tab.evaluate("document.querySelector('#status').textContent")
    session = LiveSession.create(stage.log, sid, 1, meta={"title": "At last", "lang": "en"})
    Writer(session).speak(SCRIPT[:1], pace=0)
    tab.wait("document.querySelector('#title').textContent === 'At last'")
    tab.click("#play")
    wait(tab, "s.state === 'ended'")

    assert status == "Waiting for its turn: number 2 in line, about 1 minute 5"


def test_session_that_is_gone_is_heard_from_its_recording(stage: Stage, tab: Tab) -> None:
    with wave.open(str(stage.recordings / "1.wav"), "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(RATE_HZ)
        recording.writeframes(tone(0, 50).tobytes())  # 10 s
    stage.known["ses_gone"] = SessionInfo("done", url="/recordings/1.wav")
    tab.open(stage.link("ses_gone"))
    tab.wait("document.querySelector('#total').textContent === '0:10'")
    tab.click("#play")
    wait(tab, "s.play_ms > 200")
    tab.key("ArrowUp")
    tab.key("ArrowRight")
    wait(tab, "s.play_ms > 9700 && s.state === 'ended'")

    assert tab.evaluate("document.querySelector('#speed').value") == "1.25"
    assert tab.evaluate("document.querySelector('#files a').pathname") == "/recordings/1.wav"
    assert tab.evaluate("document.querySelector('#problem').hidden") is True


def test_captions_of_a_recording_become_the_transcript(stage: Stage, tab: Tab) -> None:
    vtt = (
        "WEBVTT\n\nNOTE voice: af_heart\n\n1\n00:00:01.000 --> 00:00:03.500\n"
        "R&amp;D <00:00:02.000>moved <00:00:02.750>on.\n\n01:00:04.000 --> 01:00:05.000\nBye"
    )
    tab.open(f"{stage.origin}/l/notes")
    cues = tab.evaluate(
        f"import('/static/vtt.js').then(({{parseVtt}}) => parseVtt({json.dumps(vtt)}))"
    )

    assert cues == [
        {
            "sentence": {"seg": 0, "e": 1, "text": "R&D moved on.", "ms": 1_000},
            "words": {
                "seg": 0,
                "e": 1,
                "w": [["R&D", 1_000, 2_000], ["moved", 2_000, 2_750], ["on.", 2_750, 3_500]],
            },
        },
        {
            "sentence": {"seg": 1, "e": 1, "text": "Bye", "ms": 3_604_000},
            "words": {"seg": 1, "e": 1, "w": [["Bye", 3_604_000, 3_605_000]]},
        },
    ]


def test_text_of_a_note_is_never_markup(stage: Stage, tab: Tab) -> None:
    nasty = "<img src=x onerror=alert(1)> & <b>bold</b>"
    session = stage.session(title=nasty)
    Writer(session).speak([Sentence(nasty, 2)], pace=0)
    tab.open(stage.link(session.sid))
    tab.wait("document.querySelector('#transcript p') !== null")

    assert tab.evaluate("document.querySelector('#title').textContent") == nasty
    assert tab.evaluate("document.querySelector('#transcript p').textContent") == nasty
    assert tab.evaluate("document.querySelectorAll('main img, main b').length") == 0


def test_page_reads_the_protocols_frames(stage: Stage, tab: Tab) -> None:
    vectors = {
        "opus": "4e110205a1b2c3d4000300110000032c000000000076f2000000078019aabbcc"
        "020003f8fffe0003f8fffe",
        "pcm": "4e110100a1b2c3d4000300110000032d000000000076f9800000000819aabc9400000100ffffff7f",
        "end": "4e130000a1b2c3d4000300110000032e000000000076f9880000000019aabc95",
    }
    tab.open(f"{stage.origin}/l/notes")
    frames = tab.evaluate(
        "import('/static/protocol.js').then(({parseFrame}) => Object.fromEntries(Object.entries("
        f"{json.dumps(vectors)}).map(([name, hex]) => {{"
        " const bytes = Uint8Array.from(hex.match(/../g), (b) => parseInt(b, 16));"
        " const frame = parseFrame(bytes.buffer);"
        " return [name, {...frame, payload: null, pcm: frame.pcm && [...frame.pcm],"
        " packets: frame.packets?.map((p) => [...p])}]; })))"
    )

    assert frames["opus"]["packets"] == [[0xF8, 0xFF, 0xFE]] * 2
    expected = {"flags": 5, "epoch": 3, "seg": 17, "seq": 812, "pts": 7_795_200, "dur": 1_920}
    assert expected.items() <= frames["opus"].items()
    assert frames["pcm"]["pcm"] == [0, 1, -1, 32_767]
    assert frames["end"]["end"] is True and frames["end"]["seq"] == 814
