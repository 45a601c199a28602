"""How something is said: numbers for pace, pitch, range and level, and presets of them.

Kokoro has no model of emotion. A preset is a manner of reading; words for an emotion are answered
with the nearest preset, and the plan says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.base import Controls


@dataclass(frozen=True, slots=True)
class Manner:
    """Factors on top of a voice.

    Attributes:
        rate: divides durations.
        pitch, span: multiply F0 and its distance from its mean.
        gain_db: added after the graph; the energy curve inside hardly moves the level.
        voice: whose prosody is borrowed, or empty.
    """

    rate: float = 1.0
    pitch: float = 1.0
    span: float = 1.0
    gain_db: float = 0.0
    voice: str = ""

    @property
    def bends_pitch(self) -> bool:
        """Does it need the engine that can bend pitch?"""
        return bool(self.voice) or self.pitch != 1.0 or self.span != 1.0


PRESETS = {
    "neutral": Manner(),
    "calm": Manner(rate=0.93, pitch=0.97, span=0.8, gain_db=-1.0),
    "serious": Manner(rate=0.95, pitch=0.95, span=0.75),
    "lively": Manner(rate=1.06, pitch=1.05, span=1.3),
    "urgent": Manner(rate=1.15, pitch=1.04, span=1.15, gain_db=1.0),
    "sad": Manner(rate=0.88, pitch=0.94, span=0.65, gain_db=-1.5),
}

# Beginnings of words; Chinese and Japanese ones may stand anywhere.
_SOUNDS_LIKE = {
    "calm": """calm relax gentl soft peace sooth tender warm whisper
        平静 冷静 温柔 温和 轻声 放松 穏やか 静か 優し""",
    "serious": """serious formal stern firm sober solemn
        严肃 认真 正式 庄重 郑重 真剣 厳し""",
    "lively": """live happ joy cheer excit enthus glad delight amus playful surpris proud
        开心 高兴 快乐 兴奋 活泼 喜悦 惊讶 惊喜 骄傲 嬉し 楽し 元気 驚""",
    "urgent": """urgent ang fur rage alarm hurr stress afraid fear scar panic anx
        着急 紧急 紧张 愤怒 生气 害怕 恐惧 焦虑 怒 急い 怖""",
    "sad": """sad sorrow melanch depress griev disappoint tired gloom disgust
        悲伤 难过 伤心 忧郁 低落 失望 沮丧 疲惫 厌恶 悲し 寂し 疲れ""",
}

LIMITS = {"rate": (0.5, 2.0), "pitch": (0.75, 1.33), "span": (0.5, 1.5)}


def nearest_preset(emotion: str) -> str:
    """The preset that comes nearest to words for an emotion; `neutral` if none does."""
    text = emotion.casefold()
    found: dict[str, int] = {}
    for preset, words in _SOUNDS_LIKE.items():
        for word in words.split():
            pattern = rf"\b{re.escape(word)}" if word.isascii() else re.escape(word)
            match = re.search(pattern, text)
            if match:
                found[preset] = min(found.get(preset, len(text)), match.start())
    return min(found, key=lambda preset: found[preset]) if found else "neutral"


def manner_of(controls: Controls) -> Manner:
    """Preset or borrowed voice, times the controls, within what still sounds like speech."""
    preset = nearest_preset(controls.emotion) if controls.emotion else controls.manner or "neutral"
    base = PRESETS.get(preset)
    if base is None:
        base = Manner(voice=preset)
    return Manner(
        rate=_within("rate", base.rate * controls.rate),
        pitch=_within("pitch", base.pitch * controls.pitch),
        span=_within("span", base.span * controls.range),
        gain_db=base.gain_db + controls.gain_db,
        voice=base.voice,
    )


def asks_for_pitch(controls: Controls) -> bool:
    """Does somebody want pitch bent: by a number, an emotion or a borrowed voice?"""
    is_preset = not controls.emotion and (controls.manner or "neutral") in PRESETS
    return not is_preset or controls.pitch != 1.0 or controls.range != 1.0


def _within(name: str, value: float) -> float:
    low, high = LIMITS[name]
    return min(max(value, low), high)
