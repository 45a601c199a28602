"""Readings that writers put into a text, turned into the pinyin tokens the model knows.

Understood, all meaning the same: `之前你做DE5好` (in place of the character), `重(chóng)新` or
`重（chong2）新` (after it), `行[hang2]`, `<行|HANG2>`. The vocabulary has no token for some valid
syllables, so every reading is checked against it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_FINALS = (
    "i(?:ang|ong|an|ao|ng|n|a|e|u)?",
    "u(?:ang|ai|an|a|o|e|i|n)?",
    "[üv](?:an|e|n)?",
    "a(?:ng|i|o|n)?",
    "o(?:ng|u)?",
    "e(?:ng|i|n)?",
)
_SYLLABLE = rf"(?:(?:[zcs]h|[bpmfdtnlgkhjqxzcsryw])?(?:{'|'.join(_FINALS)})|er|ng)"
TOKEN = re.compile(rf"(?<![A-Za-z]){_SYLLABLE}[1-5]", re.IGNORECASE)
"""A syllable with its tone, where no Latin letter stands before it."""

_RUN = re.compile(
    rf"(?<![A-Za-z0-9])(?:(?=[A-Za-zü]{{2}}){_SYLLABLE}[1-5])+(?![A-Za-z0-9])", re.IGNORECASE
)
_ONE = re.compile(rf"{_SYLLABLE}[1-5]", re.IGNORECASE)
_JQX = re.compile(r"([jqx])[uü](n|e|an)?(\d)", re.IGNORECASE)
_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_MARKED = "a-zA-ZüÜāáǎàēéěèīíǐìōóǒòūúǔùǖǘǚǜńňǹḿ"
_NOTES = (
    re.compile(r"<(?P<text>[^|<>\n]+)\|(?P<reading>[^|<>\n]+)>"),
    re.compile(rf"(?P<text>[{_HAN}])\[(?P<reading>[{_MARKED}:]{{1,8}}[1-5]?)\]"),
    re.compile(rf"(?P<text>[{_HAN}])[(（](?P<reading>[{_MARKED}]{{1,8}}[1-5]?)[)）]"),
)
_ANY_HAN = re.compile(f"[{_HAN}]")
_TONES = {"\u0304": "1", "\u0301": "2", "\u030c": "3", "\u0300": "4"}
_UPPERCASED_JQX = frozenset("jqxJQX")


def correct(token: str) -> str:
    """Spell ü after j, q, x as the vocabulary does (`ju4` -> `JV4`); others come back unchanged."""
    if token[:1] not in _UPPERCASED_JQX:
        return token
    return _JQX.sub(r"\1v\2\3", token).upper()


def token_of(reading: str) -> str | None:
    """The vocabulary's spelling of one written syllable (`chóng`, `chong2`, `CHONG2`), or None."""
    tone = ""
    letters = []
    for char in unicodedata.normalize("NFD", reading.strip().replace("u:", "ü")):
        if char in _TONES:
            tone = _TONES[char]
        else:
            letters.append(char)
    spelled = unicodedata.normalize("NFC", "".join(letters))
    if not spelled[-1:].isdigit():
        spelled += tone or "5"  # no mark at all is the neutral tone
    elif tone:
        return None
    if not TOKEN.fullmatch(spelled):
        return None
    return correct(spelled).upper().replace("Ü", "V")


def resolve(
    text: str, is_known: Callable[[str], bool], put: Callable[[str], str]
) -> tuple[str, tuple[str, ...]]:
    """Replace every reading in a text.

    Args:
        text: as written.
        is_known: whether the vocabulary has a token.
        put: what stands in the text for a token from now on.

    Returns:
        The text, and the readings that were left out because nobody understands them: the annotated
        character is then read as usual.
    """
    unknown: list[str] = []

    def annotated(match: re.Match[str]) -> str:
        tokens = [token_of(part) for part in match["reading"].split()]
        if tokens and all(token is not None and is_known(token) for token in tokens):
            return "".join(put(token) for token in tokens if token)
        unknown.append(match.group())
        return match["text"]

    def inline(match: re.Match[str]) -> str:
        tokens = [token_of(part) for part in _ONE.findall(match.group())]
        if all(token is not None and is_known(token) for token in tokens):
            return "".join(put(token) for token in tokens if token)
        if is_chinese:  # in English text it is more likely a product name
            unknown.append(match.group())
        return match.group()

    is_chinese = _ANY_HAN.search(text) is not None
    for pattern in _NOTES:
        text = pattern.sub(annotated, text)
    return _RUN.sub(inline, text), tuple(unknown)
