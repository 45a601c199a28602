"""Where sentences end: Chinese, English, Japanese and mixtures of them. Linear in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from engine.readings.addresses import EMAIL, URL
from engine.readings.notes import NOTE
from engine.readings.rules import table


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a source text: `source[start:end] == text`."""

    start: int
    end: int
    text: str


LIMIT = 400
"""Longest sentence: a wide character (hanzi, kana) counts 5, another 2; 80 or 200 of them."""
_WIDE, _NARROW, _WIDE_FROM = 5, 2, "\u2e80"
_LONGEST_QUOTE = 160  # characters; a quote longer than this may be cut inside

_EN = table("en")
_NEVER_ENDS = frozenset(_EN["titles"]) | frozenset(_EN["never_end"])
_MAY_END = frozenset(_EN["may_end"])
_STARTERS = frozenset(_EN["starters"])
_MONTH_NAMES = "|".join(month[:3] for month in _EN["months"])

# What is never cut, each pattern behind a string without which it cannot match
_UNCUT = (
    ("[", NOTE),
    ("://", re.compile(URL)),
    ("www.", re.compile(URL)),
    ("@", re.compile(EMAIL)),
    (
        " ",
        re.compile(rf"(?:{_MONTH_NAMES})[a-z]{{0,6}}\.?\s\d{{1,2}}[a-z]{{0,2}}(?:,?\s\d{{4}})?\b"),
    ),
    ("", re.compile(r"[0-9]+(?:\s?[.,:/~～\-–年月][0-9]+)*(?:\s?[年月日号%])?")),
)
_OPENS = {
    '"': '"',
    "“": "”",
    "「": "」",
    "『": "』",
    "《": "》",
    "〈": "〉",
    "（": "）",
    "(": ")",
    "【": "】",
    "[": "]",
}
_MARKS = re.compile(r"[“”「」『』《》〈〉（）()【】\[\]\"\n\r\u2028\u2029]")
_CLOSING = "”\"'’」』）)】》〉]"
_BREAKS = "\n\r\u2028\u2029"
_CLOSE = f"[{re.escape(_CLOSING)}]*"
_ENDS = re.compile(rf"(?:[。！？｡]|[!?]+|\.+|…+|．)+{_CLOSE}|[\n\r\u2028\u2029]")
_SAYS = re.compile(r"[他她我你您它][们]?[^。！？\n]{0,6}[说问道答喊]")
_BEFORE = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]?$|[A-Za-z.]+$|[0-9]{1,3}$")
_CLAUSE = re.compile(r"[，；：、]+|—{2,}|…+|[,;:](?=\s)|\s[-–—]\s")
_SPACE = re.compile(r"\s+")


def split_sentences(text: str, lang: str = "auto") -> list[Span]:
    """Cut a text into sentences; every letter and digit is in exactly one of them, in order.

    A line break always ends a sentence. Nothing is cut inside a number, date, abbreviation, short
    quote or bracket, address or inline note. Sentences above LIMIT are cut at the last clause mark,
    else the last space, else hard. Stretches without a letter or digit join the one before.
    """
    del lang  # marks tell the languages apart; the parameter keeps room for one that needs it
    whole = _uncut_mask(text)
    spans: list[Span] = []
    start = 0
    for end in _sentence_ends(text, whole):
        for a, b in _shorten(text, start, end, whole):
            _add(spans, text, a, b)
        start = end
    return spans


def _uncut_mask(text: str) -> bytearray:
    """1 at each index before which no cut may fall."""
    mask = bytearray(len(text) + 1)
    stretches = chain(
        (m.span() for needle, pattern in _UNCUT if needle in text for m in pattern.finditer(text)),
        _quotes(text),
    )
    for start, end in stretches:
        mask[start + 1 : end] = b"\1" * (end - start - 1)
    return mask


def _quotes(text: str) -> Iterator[tuple[int, int]]:
    """Quotes and brackets that open and close within a line and are not too long."""
    opened: list[tuple[str, int]] = []
    for match in _MARKS.finditer(text):
        mark, at = match.group(), match.start()
        if mark in _BREAKS:
            opened.clear()
        elif opened and mark == opened[-1][0]:
            start = opened.pop()[1]
            if at - start <= _LONGEST_QUOTE:
                yield start, at + 1
        elif mark in _OPENS:
            opened.append((_OPENS[mark], at))


def _sentence_ends(text: str, whole: bytearray) -> Iterator[int]:
    """Where a sentence ends, before any cut for length; the last one is the end of the text."""
    start = 0
    for match in _ENDS.finditer(text):
        end = match.end()
        if not whole[end] and _ends_here(text, start, match):
            yield end
            start = end
    yield len(text)


def _ends_here(text: str, start: int, match: re.Match[str]) -> bool:
    mark, end = match.group().strip(), match.end()
    if match.group() in _BREAKS:
        return True
    after = text[end : end + 24]
    if mark[0] in "。！？｡．" or "？" in mark or "！" in mark:
        return not (mark[-1] in "”」』" and _SAYS.match(after))
    upcoming = after[:1]
    if upcoming and not upcoming.isspace() and upcoming < _WIDE_FROM:
        return False  # 3.5, example.com, file.py, Yahoo!Inc
    if mark[0] in "!?":
        return not (mark[-1] in _CLOSING and after.lstrip()[:1].islower())
    return _full_stop(text, start, match, after.lstrip())


def _full_stop(text: str, start: int, match: re.Match[str], after: str) -> bool:
    """Whether `.` or an ellipsis ends a sentence, judged by the word before and the one after."""
    if not after:
        return True
    if after[0].islower() and match.group()[-1] in _CLOSING:
        return False  # "We can wait." and left
    if match.group()[0] == "…" or match.group().startswith(".."):
        return after[0].isupper()
    before = _BEFORE.search(text, max(start, match.start() - 24), match.start())
    word = before.group().strip().lstrip(".") if before else ""
    if word.lower() in _NEVER_ENDS:
        return False
    if word.lower() in _MAY_END or re.fullmatch(r"(?:[A-Za-z]\.)+[A-Za-z]", word):
        return re.split(r"[\s,.'’]", after, maxsplit=1)[0] in _STARTERS
    if len(word) == 1 and word.isupper() and word != "I":
        return False  # an initial: J. Smith
    opening = text[start : match.start()] if match.start() - start < 16 else ""
    if opening.strip() == word and re.fullmatch(r"\d{1,3}|[a-zA-Z]", word):
        return False  # 1. First item
    return not after[0].islower() or len(word) >= 4 or not word


def _shorten(text: str, start: int, end: int, whole: bytearray) -> Iterator[tuple[int, int]]:
    """Cut one sentence until no part is above LIMIT."""
    while end - start > LIMIT // _WIDE:
        reach = _reach(text, start, end)
        if reach == end:
            break
        cut = _last(_CLAUSE, text, start, reach, whole) or _last(_SPACE, text, start, reach, whole)
        cut = cut or _hard_cut(text, start, reach, end, whole)
        yield start, cut
        start = cut
    yield start, end


def _reach(text: str, start: int, end: int) -> int:
    """As far as LIMIT allows, at most `end`."""
    width = 0
    for at in range(start, min(end, start + LIMIT // _NARROW + 1)):
        width += _WIDE if text[at] >= _WIDE_FROM else _NARROW
        if width > LIMIT:
            return at
    return end


def _last(pattern: re.Pattern[str], text: str, start: int, reach: int, whole: bytearray) -> int:
    """The last allowed cut, none in the first eighth (that would leave a stub); 0 for none."""
    cuts = [m.end() for m in pattern.finditer(text, start + (reach - start) // 8, reach)]
    return next((cut for cut in reversed(cuts) if not whole[cut]), 0)


def _hard_cut(text: str, start: int, reach: int, end: int, whole: bytearray) -> int:
    """Not inside a kept stretch or a Latin word if that can be helped."""
    for at in range(reach, start, -1):
        if not whole[at] and not (is_latin(text[at - 1]) and is_latin(text[at])):
            return at
    after = whole.find(0, reach, end)
    return reach if after < 0 or after - reach > LIMIT else after


def is_latin(char: str) -> bool:
    """A letter or digit of a script that puts spaces between words."""
    return char.isalnum() and char < _WIDE_FROM


def _add(spans: list[Span], text: str, start: int, end: int) -> None:
    """Append a trimmed span; one without letters or digits extends the one before."""
    piece = text[start:end]
    left = start + len(piece) - len(piece.lstrip())
    right = start + len(piece.rstrip())
    if left >= right:
        return
    if not any(map(str.isalnum, piece)):
        if spans and text.find("\n", spans[-1].end, left) < 0:
            spans[-1] = Span(spans[-1].start, right, text[spans[-1].start : right])
        return
    spans.append(Span(left, right, text[left:right]))
