"""Questions to the player page, and sessions for it."""

from __future__ import annotations

from typing import Any

from streaming.session import LiveSession
from tests.browser.cdp import Tab
from tests.browser.feed import CHUNK_MS, Sentence, Writer, sentences
from tests.browser.stage import Stage

SCRIPT = sentences(chunks=6)  # 4.8 s
SCRIPT_MS = sum(sentence.chunks for sentence in SCRIPT) * CHUNK_MS


def stats(tab: Tab) -> dict[str, Any]:
    found: dict[str, Any] = tab.evaluate("window.__nc.stats()")
    return found


def events(tab: Tab, kind: str) -> list[dict[str, Any]]:
    return [event for event in tab.evaluate("window.__nc.events()") if event["type"] == kind]


def wait(tab: Tab, condition: str, *, limit_s: float = 20.0) -> None:
    """Wait until `condition`, written over the page's statistics `s`, is true."""
    tab.wait(f"(() => {{ const s = window.__nc.stats(); return {condition}; }})()", limit_s=limit_s)


def text(tab: Tab, selector: str) -> str:
    found: str = tab.evaluate(f"document.querySelector({selector!r}).textContent")
    return found


def spoken(stage: Stage, *, script: list[Sentence] | None = None, **options: Any) -> LiveSession:
    """A session that is spoken and over."""
    session = stage.session()
    Writer(session, pcm=True).speak(script or SCRIPT, pace=0, **options)
    return session


def set_value(tab: Tab, selector: str, value: object) -> None:
    """Set a slider or a choice, as a person would."""
    tab.evaluate(
        f"(() => {{ const e = document.querySelector({selector!r}); e.value = {value!r};"
        " e.dispatchEvent(new Event('change')); })()"
    )
