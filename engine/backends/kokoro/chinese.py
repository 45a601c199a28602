"""Chinese, with English and other Latin words in it.

jieba cuts words, pypinyin reads them, and each syllable is spelled in the model's phonemes the way
the romaniser did that Kokoro v1.0 learned from: initial, glide, vowel, tone arrow, coda. `字[pin1]`
forces the reading of one character. English words inside go to the English front end.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.backends.kokoro import english
from engine.backends.kokoro.words import Reading, Word, to_source
from engine.text import HAN, PHONEME_NOTE, PINYIN_NOTE, normalise

TONES = {"1": "→", "2": "↗", "3": "↓", "4": "↘", "5": ""}

INITIALS = {
    "b": "p", "p": "pʰ", "m": "m", "f": "f", "d": "t", "t": "tʰ", "n": "n", "l": "l",
    "g": "k", "k": "kʰ", "h": "x", "j": "ʨ", "q": "ʨʰ", "x": "ɕ",
    "zh": "ꭧ", "ch": "ꭧʰ", "sh": "ʂ", "r": "ɻ", "z": "ʦ", "c": "ʦʰ", "s": "s", "": "",
}  # fmt: skip

# The bar is where the tone goes.
FINALS = {
    "a": "a|", "ai": "ai|", "an": "a|n", "ang": "a|ŋ", "ao": "au|",
    "e": "ɤ|", "ei": "ei|", "en": "ə|n", "eng": "ə|ŋ", "er": "ɚ|", "ê": "ɛ|",
    "o": "wo|", "ou": "ou|", "ong": "ʊ|ŋ",
    "i": "i|", "ia": "ja|", "ian": "jɛ|n", "iang": "ja|ŋ", "iao": "jau|", "ie": "je|",
    "in": "i|n", "ing": "i|ŋ", "iong": "jʊ|ŋ", "iu": "jou|", "iou": "jou|",
    "u": "u|", "ua": "wa|", "uai": "wai|", "uan": "wa|n", "uang": "wa|ŋ", "ueng": "wə|ŋ",
    "uei": "wei|", "ui": "wei|", "uen": "wə|n", "un": "wə|n", "uo": "wo|",
    "v": "y|", "ve": "ɥe|", "van": "ɥɛ|n", "vn": "y|n",
}  # fmt: skip

# Interjections and syllables that are spelled as no rule would have it.
WHOLE = {
    "o": "ɔ|", "yo": "wo|", "wong": "ʊ|ŋ",
    "m": "m|", "n": "n|", "ng": "ŋ|", "hm": "hm|", "hng": "hŋ|",
}  # fmt: skip

BUZZED = frozenset({"zh", "ch", "sh", "r", "z", "c", "s"})  # their "i" is a buzz, not a vowel

MARKS = {
    "，": ",", "。": ".", "、": ",", "：": ":", "；": ";", "！": "!", "？": "?", "．": ".", "·": "",
    "（": "(", "）": ")", "【": "“", "】": "”", "「": "“", "」": "”", "『": "“", "』": "”",
    "《": "“", "》": "”", "〈": "“", "〉": "”", "‘": "“", "’": "”",
    "～": "—", "~": "—", "-": "—", "–": "—",
}  # fmt: skip

_SYLLABLE = re.compile(r"(zh|ch|sh|[bpmfdtnlgkhjqxrzcs]?)([a-zê]+)")
_NOTE = re.sub(r"\?P<\w+>", "?:", PINYIN_NOTE.pattern)
_LATIN = r"[A-Za-z\u00c0-\u024f][A-Za-z\u00c0-\u024f0-9'’.&+-]*"
_STRETCH = re.compile(
    rf"(?P<han>(?:{_NOTE}|[{HAN}])+)"
    rf"|(?P<latin>{re.sub(r'[?]P<[a-z]+>', '?:', PHONEME_NOTE.pattern)}|{_LATIN}(?:\s+{_LATIN})*)"
    r"|(?P<digit>[0-9])|(?P<space>\s+)|(?P<foreign>[^\W\d_]+)|(?P<mark>.)",
    re.DOTALL,
)
_DIGITS = "零一二三四五六七八九"
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Character:
    text: str
    span: tuple[int, int]
    note: str  # pinyin with tone, or empty


def read(text: str, *, offset: int = 0, british: bool = False, numbers: str = "zh") -> Reading:
    """Read a sentence that begins at `offset` in its turn.

    `numbers`: the language of everything written in digits and signs; `en` for an English sentence
    with a Chinese name in it.
    """
    said = normalise(text, numbers, offset=offset)
    words: list[Word] = []
    odd_notes: list[str] = []
    for match in _STRETCH.finditer(said.text):
        if match["han"]:
            if words and words[-1].text.isascii():
                _space_before(words)
            words += _han(match.start(), match["han"], odd_notes)
        elif match["digit"]:
            words.append(Word(match[0], match.span(), _digit(match[0])))
        elif match["latin"]:
            _space_before(words)
            words += _latin(match.start(), match["latin"], british=british)
        elif match["space"]:
            _space_before(words)
        elif match["foreign"]:
            words.append(Word(match[0], match.span(), "", True))
        else:
            words.append(Word(match[0], match.span(), MARKS.get(match[0], match[0]), True))
    unread = [word.text for word in words if not word.phonemes and not word.is_mark]
    return Reading(to_source(words, said), unread, odd_notes)


def syllable(pinyin: str) -> str:
    """Phonemes of one syllable with its tone digit (`zhong1`, `lv4` or `lü4`, `ma5`); empty if
    none.

    The same strings as misaki 0.9.4's legacy Chinese path gives, U+032F left out.
    """
    plain, tone = pinyin[:-1].lower().replace("ü", "v").replace("u:", "v"), pinyin[-1:]
    if tone not in TONES:
        return ""
    spelled = WHOLE.get(plain) or _spelled(plain)
    return spelled.replace("|", TONES[tone])


def _spelled(plain: str) -> str:
    match = _SYLLABLE.fullmatch(_without_y_and_w(plain))
    if match is None:
        return ""
    initial, final = match.groups()
    if initial in ("j", "q", "x") and final.startswith("u"):
        final = f"v{final[1:]}"
    if final == "i" and initial in BUZZED:
        return f"{INITIALS[initial]}ɨ|"
    return INITIALS[initial] + FINALS[final] if final in FINALS else ""


def _without_y_and_w(plain: str) -> str:
    """A spelling with a glide as the final it stands for: yan -> ian, yu -> v, wei -> uei."""
    if plain.startswith("yu"):
        return f"v{plain[2:]}"
    if plain.startswith("y"):
        return plain[1:] if plain[1:2] == "i" else f"i{plain[1:]}"
    if plain.startswith("w"):
        return plain[1:] if plain[1:2] == "u" else f"u{plain[1:]}"
    return plain


@functools.cache
def _dictionaries() -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba imports pkg_resources and has invalid escapes
        import jieba
        import pypinyin
    jieba.setLogLevel(logging.WARNING)
    jieba.initialize()
    return jieba, pypinyin


def _load() -> tuple[Any, Any]:
    with _loading:
        return _dictionaries()


def _han(start: int, stretch: str, odd_notes: list[str]) -> list[Word]:
    """Words of a stretch of hanzi and pinyin notes that begins at `start`."""
    jieba, pypinyin = _load()
    chars = list(_characters(start, stretch))
    plain = "".join(char.text for char in chars)
    cut = jieba.lcut(plain)
    words: list[Word] = []
    at = 0
    for text in cut:
        own = chars[at : at + len(text)]
        readings = pypinyin.lazy_pinyin(
            text, style=pypinyin.Style.TONE3, neutral_tone_with_five=True, errors=list
        )
        if len(readings) != len(
            text
        ):  # cannot be, but a shifted reading would be worse than a plain one
            readings = [pypinyin.lazy_pinyin(char, style=pypinyin.Style.TONE3)[0] for char in text]
        phonemes = [
            _reading(char, plain_reading, odd_notes)
            for char, plain_reading in zip(own, readings, strict=True)
        ]
        at += len(text)
        span = (own[0].span[0], own[-1].span[1])
        words.append(Word(text, span, "".join(phonemes), at < len(plain)))
    return words


def _reading(char: _Character, dictionary: str, odd_notes: list[str]) -> str:
    if char.note:
        forced = syllable(char.note)
        if forced:
            return forced
        odd_notes.append(f"{char.text}[{char.note}]")
    return syllable(dictionary)


def _characters(start: int, stretch: str) -> Iterator[_Character]:
    at = 0
    while at < len(stretch):
        note = PINYIN_NOTE.match(stretch, at)
        end = note.end() if note else at + 1
        pinyin = f"{note['syllable']}{note['tone']}" if note else ""
        yield _Character(stretch[at], (start + at, start + end), pinyin)
        at = end


def _latin(start: int, text: str, *, british: bool) -> list[Word]:
    words = english.read_said(text, british=british)
    return [
        Word(
            word.text, (word.span[0] + start, word.span[1] + start), word.phonemes, word.space_after
        )
        for word in words
    ]


def _digit(digit: str) -> str:
    """A digit no rule has read: it stands in an odd token, where digits are named one by one."""
    _, pypinyin = _load()
    (pinyin,) = pypinyin.lazy_pinyin(_DIGITS[int(digit)], style=pypinyin.Style.TONE3)
    return syllable(pinyin)


def _space_before(words: list[Word]) -> None:
    """Put a space after the last word so far."""
    if words and not words[-1].space_after:
        last = words[-1]
        words[-1] = Word(last.text, last.span, last.phonemes, True)
