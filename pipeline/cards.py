"""What people and systems are told of an episode: cards in the note's language, events as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connectors.base import Card, EpisodeState
from connectors.fields import Seconds
from connectors.reasons import reason
from connectors.webhook import EVENT_OF

_TITLES: Mapping[str, Mapping[EpisodeState, str]] = {
    "zh": {
        "queued": "{title} 排队中",
        "live": "{title} 正在播报",
        "done": "{title} 播报完成",
        "failed": "{title} 播报失败",
    },
    "en": {
        "queued": "{title} is queued",
        "live": "{title} is live",
        "done": "{title} is ready",
        "failed": "{title} failed",
    },
}
_BUTTONS: Mapping[str, Mapping[EpisodeState, str]] = {
    "zh": {"queued": "收听", "live": "立即收听", "done": "收听", "failed": "查看"},
    "en": {"queued": "Listen", "live": "Listen now", "done": "Listen", "failed": "Open"},
}


@dataclass(frozen=True, slots=True)
class News:
    """An episode came into a new state.

    Attributes:
        key: of the episode, as the outside knows it.
        ref: the row's key, or what a sender called its note.
        lang: of the note; `zh` or anything else for English.
        chapters: how many, 0 while nobody knows.
        length_ms: measured once it is done, a guess before; 0 while nobody knows.
        audio: address of the recording.
        error_code: of a failure.
    """

    key: str
    state: EpisodeState
    at: datetime
    title: str = ""
    ref: str = ""
    lang: str = ""
    link: str = ""
    chapters: int = 0
    length_ms: int = 0
    audio: str = ""
    error_code: str = ""


def card(news: News, key: str) -> Card:
    """What a group is shown."""
    lang = "zh" if news.lang == "zh" else "en"
    title = news.title or ("会议纪要" if lang == "zh" else "Meeting notes")
    text = reason(news.error_code or "failed", lang) if news.state == "failed" else _size(news)
    return Card(
        title=_TITLES[lang][news.state].format(title=title),
        text=text,
        link=news.link,
        button=_BUTTONS[lang][news.state],
        state=news.state,
        lang=lang,
        key=key,
    )


def _size(news: News) -> str:
    """`3 chapters, about 4 minutes`; `3 个章节，约 4 分钟`."""
    parts = []
    minutes = max(1, round(news.length_ms / 60_000))
    clock = Seconds(news.length_ms / 1000).clock
    if news.lang == "zh":
        if news.chapters:
            parts.append(f"{news.chapters} 个章节")
        if news.length_ms:
            parts.append(f"时长 {clock}" if news.state == "done" else f"约 {minutes} 分钟")
        return "，".join(parts)
    if news.chapters:
        parts.append("1 chapter" if news.chapters == 1 else f"{news.chapters} chapters")
    if news.length_ms:
        about = "about a minute" if minutes == 1 else f"about {minutes} minutes"
        parts.append(clock if news.state == "done" else about)
    return ", ".join(parts)


def event(news: News) -> dict[str, Any]:
    """`note.finished` and its like, as a system is told."""
    data: dict[str, Any] = {
        "ref": news.ref,
        "episode": news.key,
        "status": news.state,
        "title": news.title,
        "listen_url": news.link,
    }
    if news.state == "done":
        data |= {"audio_url": news.audio, "duration_s": news.length_ms / 1000}
    if news.state == "failed":
        code = news.error_code or "failed"
        data["error"] = {"code": code, "message": reason(code, "en").partition(": ")[2]}
    return {
        "type": EVENT_OF[news.state],
        "timestamp": news.at.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "data": data,
    }
