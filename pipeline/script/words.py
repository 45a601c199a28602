"""Words the script adds, names it knows, and which language a text is in."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Phrases:
    """Fixed words of one language; other languages get none, rather than English between French."""

    decision: str
    numbered_decision: str
    done: str
    link: str
    code: str
    decisions: str
    todos: str
    discussion: str
    colon: str


PHRASES: Mapping[str, Phrases] = {
    "zh": Phrases(
        decision="决议：{text}",
        numbered_decision="决议{number}：{text}",
        done="已完成：{text}",
        link="链接见文稿",
        code="代码见文稿。",
        decisions="决议",
        todos="待办事项",
        discussion="讨论",
        colon="：",
    ),
    "en": Phrases(
        decision="Decision: {text}",
        numbered_decision="Decision {number}: {text}",
        done="Done: {text}",
        link="link in the notes",
        code="Code in the notes.",
        decisions="Decisions",
        todos="To-dos",
        discussion="Discussion",
        colon=":",
    ),
}
NO_PHRASES = Phrases("{text}", "{text}", "{text}", "", "", "", "", "", ":")
_EN_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ZH_DIGITS = "零一二三四五六七八九"


def number_word(n: int, lang: str) -> str:
    """1 -> `one`, `一`; beyond the words, digits."""
    if lang == "en" and n <= len(_EN_NUMBERS):
        return _EN_NUMBERS[n - 1]
    if lang == "zh" and n < 100:
        tens, ones = divmod(n, 10)
        head = ("" if tens == 1 else _ZH_DIGITS[tens]) + "十" if tens else ""
        return head + (_ZH_DIGITS[ones] if ones or not tens else "")
    return str(n)


def _load_names() -> dict[str, frozenset[str]]:
    text = resources.files("pipeline").joinpath("data/sections.toml").read_text("utf-8")
    return {
        role: frozenset(plain_name(name) for names in table.values() for name in names)
        for role, table in tomllib.loads(text).items()
    }


def plain_name(text: str) -> str:
    """The name of a section as it is compared: without marks and case."""
    return text.strip(" \t*_#【】[]「」:：").casefold()


NAMES = _load_names()
SECTIONS: Mapping[str, str] = {
    name: role
    for role in ("decision", "todo", "summary", "meta", "attendees", "other")
    for name in NAMES[role]
}
NOT_PEOPLE = frozenset(SECTIONS) | NAMES["stop"] | NAMES["owner"] | NAMES["due"]


_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_KANA = re.compile(r"[\u3041-\u30fa]")
_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+")


def language_of(text: str, main: str) -> str:
    """The language of a text: by its script, and by `main` where the script does not tell."""
    han, kana = len(_HAN.findall(text)), len(_KANA.findall(text))
    words = len(_LATIN_WORD.findall(text))
    if han + kana > words / 2:
        # Kana settles it; a name in kana inside Chinese does not.
        return "ja" if kana * 5 > han or main == "ja" else "zh"
    if words and main in ("", "zh", "ja"):
        return "en"
    return main or "en"


def is_han(character: str) -> bool:
    """Whether a character is a Chinese one."""
    return bool(_HAN.match(character))
