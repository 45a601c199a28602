"""Pictures of the player for the documentation: `python -m tests.browser.shots docs`.

What is heard in them is spoken by the embedded engine.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.base import SpeechRequest, Turn
from engine.engine import Engine
from pipeline.services import make_engine
from pipeline.settings import Settings
from streaming.orders import Order, Outcome
from streaming.session import LiveSession
from streaming.tokens import Role
from tests.browser.cdp import Browser, Tab, find_chromium
from tests.browser.feed import Sentence, Writer
from tests.browser.page import set_value, wait
from tests.browser.stage import Stage

ENGLISH = (
    "Good morning. Here are the notes from Monday's product meeting.",
    "The release moves from Tuesday to Thursday, the ninth.",
    "Mei finishes the import of the old contracts today, and Jonas checks the totals.",
    "Two questions stay open: who signs the data agreement, and whether the trial may run for"
    " six weeks.",
    "The support team asked for a shorter answer time on weekends.",
    "Sales wants the new price list before the fair in Hangzhou.",
    "Decision: the price list is frozen on Wednesday at noon.",
    "Next meeting: Monday, half past nine, same room.",
)
CHINESE = (
    "大家早上好，以下是周一产品会的纪要。",
    "发布时间从周二改到周四，也就是九号。",
    "小梅今天完成旧合同的导入，乔纳斯核对总额。",
    "还有两个问题没有定：数据协议由谁签，试用期能不能延长到六周。",
    "客服团队希望周末的响应时间再缩短一些。",
    "销售希望在杭州展会之前拿到新的价目表。",
    "决定：价目表在周三中午冻结。",
    "下次会议：周一九点半，地点不变。",
)
Samples = npt.NDArray[np.int16]
CHUNK_SAMPLES = 4_800
CHAPTERS = {"en": ("Welcome", "Release", "Decisions"), "zh": ("开场", "发布", "决定")}


@dataclass(frozen=True)
class Shot:
    """One picture: a window, a colour scheme, and who looks at what."""

    name: str
    size: tuple[int, int]
    dark: bool = False
    lang: str = "en"
    role: Role = "listener"


SHOTS = (
    Shot("player-phone-light", (390, 844)),
    Shot("player-phone-dark", (390, 844), dark=True, lang="zh"),
    Shot("player-desktop-light", (1280, 800)),
    Shot("player-desktop-dark", (1280, 800), dark=True),
    Shot("player-host-phone", (390, 844), dark=True, role="owner"),
    Shot("player-host-desktop", (1280, 800), role="owner"),
)


def read_aloud(text: str, lang: str) -> Samples:
    """Whole chunks of 24 kHz samples."""
    request = SpeechRequest((Turn(text, lang=lang),))
    pcm = np.concatenate([chunk.pcm for chunk in engine().speak(request) if chunk.kept])
    return np.pad(pcm, (0, -len(pcm) % CHUNK_SAMPLES)).astype(np.int16)


@cache
def engine() -> Engine:
    """The engine that needs nothing."""
    return make_engine(Settings())


def speak(stage: Stage, lang: str) -> LiveSession:
    """A session in the middle of being spoken, with chapters."""
    texts = ENGLISH if lang == "en" else CHINESE
    title = "Product meeting, Monday 9 March" if lang == "en" else "产品周会纪要（三月九日）"
    session = stage.session(title=title, lang=lang)
    sounds = {text: read_aloud(text, lang) for text in texts}
    script = [Sentence(text, len(sounds[text]) // CHUNK_SAMPLES) for text in texts]
    Writer(session, sounds=sounds).speak(script, pace=0, end=False)
    starts = [session.segments[seg].pts / 48_000 for seg in (0, 1, 6)]
    marks = zip(starts, CHAPTERS[lang], strict=True)
    chapters = [{"startTime": start, "title": name} for start, name in marks]
    (stage.recordings / f"{lang}.json").write_text(json.dumps({"chapters": chapters}))
    session.file("/recordings/1.mp3", "mp3", 1, "/recordings/1.vtt", f"/recordings/{lang}.json")
    return session


def agree(session: LiveSession, _order: Order) -> Outcome:
    """An order takes effect at the fourth sentence."""
    return Outcome({"seg": 3, "ms": session.segments[3].pts // 48, "epoch": 2})


def take(tab: Tab, link: str, shot: Shot, out: Path) -> None:
    """Play, go to the third sentence, and take the picture."""
    tab.send("Emulation.setScrollbarsHidden", hidden=True)
    tab.emulate(width=shot.size[0], height=shot.size[1], scale=2, dark=shot.dark)
    tab.open(link)
    wait(tab, "s.buf_ms > 20000")
    tab.click("#play")
    set_value(tab, "#seek", 9_500)
    wait(tab, "s.state === 'playing' && s.play_ms > 10500")
    if shot.role == "owner":
        tab.evaluate("document.querySelector('#host').open = true")
        set_value(tab, "#host-emotion", "happy")
        tab.wait("document.querySelector('#host-answer').textContent.length > 20")
        tab.evaluate("scrollTo(0, 0)")
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    time.sleep(0.8)  # what moves smoothly comes to rest
    tab.screenshot(out / f"{shot.name}.png")


def main(out: Path) -> None:
    """Take all pictures."""
    program = find_chromium()
    if program is None:
        raise SystemExit("no Chromium here; `apt-get install chromium` brings one")
    with tempfile.TemporaryDirectory() as recordings:
        stage = Stage(Path(recordings))
        browser = Browser(program, **os.environ)
        try:
            for shot in SHOTS:
                session = speak(stage, shot.lang)
                stage.desk.follow[session.sid] = partial(agree, session)
                tab = browser.tab()
                take(tab, stage.link(session.sid, role=shot.role), shot, out)
                tab.close()
        finally:
            browser.close()
            stage.close()
            engine().close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
