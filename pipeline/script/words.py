"""Words the script adds, names it knows, and which language a text is in."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
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
SECTION_ROLES = ("decision", "todo", "summary", "meta", "attendees", "other")


@dataclass(frozen=True, slots=True)
class SectionNames:
    """What sections of notes are called, and which words are never a person.

    Attributes:
        roles: name as `plain_name` gives it -> `decision`, `todo`, `summary`, `meta`, `attendees`
            or `other`.
    """

    roles: Mapping[str, str]
    not_people: frozenset[str]

    def with_more(self, names: Mapping[str, Iterable[str]]) -> SectionNames:
        """These and a team's own: role -> names.

        Raises:
            ValueError: an unknown role.
        """
        unknown = names.keys() - set(SECTION_ROLES)
        if unknown:
            raise ValueError(f"{min(unknown)!r} is none of {', '.join(SECTION_ROLES)}")
        more = {plain_name(name): role for role, group in names.items() for name in group}
        return SectionNames({**self.roles, **more}, self.not_people | more.keys())


_ROLES = {name: role for role in SECTION_ROLES for name in NAMES[role]}
SECTION_NAMES = SectionNames(
    _ROLES, frozenset(_ROLES) | NAMES["stop"] | NAMES["owner"] | NAMES["due"]
)


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


def glue(before: str, after: str) -> str:
    """What stands between two pieces of one sentence: nothing in Chinese, else a space."""
    wide = all(one >= "\u2e80" for one in (before[-1:], after[:1]))
    return "" if wide else " "
