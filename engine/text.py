"""Text before it becomes sound: which language, where sentences end, how written forms are said.

Everything keeps its way back to the source: a `Span` is cut out of it, and each `Piece` of a
normalised text knows the stretch it came from, so that a caption can light up "$48,500" while five
words are said. All functions are deterministic and linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from engine.readings import book_for
from engine.readings.notes import HAN, KANA, NOTE, PHONEME_NOTE, PINYIN_NOTE
from engine.sentences import LIMIT, Span, is_latin, split_sentences

__all__ = [
    "HAN",
    "KANA",
    "LIMIT",
    "PHONEME_NOTE",
    "PINYIN_NOTE",
    "Normalised",
    "Piece",
    "Span",
    "detect_lang",
    "normalise",
    "split_sentences",
]

PieceKind = Literal["plain", "said", "note"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of normalised text.

    Attributes:
        text: what is said.
        start, end: the source characters it stands for.
        kind: `plain` stands there character by character, `said` replaces its source as a whole,
            `note` is an inline reading kept as written (PINYIN_NOTE, PHONEME_NOTE).
    """

    text: str
    start: int
    end: int
    kind: PieceKind


@dataclass(frozen=True, slots=True)
class Normalised:
    """A text as it is said, with the way back.

    Attributes:
        pieces: in order; their source spans do not overlap and cover the source without gaps.
        text: the pieces joined.
    """

    pieces: tuple[Piece, ...]
    text: str = field(init=False)
    _starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts, at = [], 0
        for piece in self.pieces:
            starts.append(at)
            at += len(piece.text)
        object.__setattr__(self, "text", "".join(piece.text for piece in self.pieces))
        object.__setattr__(self, "_starts", tuple(starts))

    def source_span(self, start: int, end: int) -> tuple[int, int]:
        """The source behind `text[start:end]`; a part of a replacement gives all of it."""
        if not self.pieces:
            return 0, 0
        end = max(end, start + 1)
        return self._source(start)[0], self._source(end - 1)[1]

    def _source(self, at: int) -> tuple[int, int]:
        index = max(0, bisect_right(self._starts, at) - 1)
        piece = self.pieces[index]
        if piece.kind != "plain":
            return piece.start, piece.end
        here = min(piece.start + at - self._starts[index], max(piece.start, piece.end - 1))
        return here, min(here + 1, piece.end)


# Languages ------------------------------------------------------------------------------------

_SCRIPTS = (
    ("ko", re.compile("[\uac00-\ud7a3]")),
    ("ru", re.compile("[\u0400-\u04ff]+")),
    ("hi", re.compile("[\u0900-\u097f]+")),
    ("ar", re.compile("[\u0600-\u06ff]+")),
    ("th", re.compile("[\u0e00-\u0e7f]+")),
    ("el", re.compile("[\u0370-\u03ff]+")),
    ("he", re.compile("[\u0590-\u05ff]+")),
)
_HAN_CHAR = re.compile(f"[{HAN}]")
_KANA_CHAR = re.compile(f"[{KANA}]")
_LATIN_WORD = re.compile("[A-Za-z\u00c0-\u024f]+")


def detect_lang(text: str) -> str:
    """The language a text is mostly read in, by script: `zh`, `ja`, `ko`, ..., else `en`.

    Latin script is English: Spanish or French must be asked for by name. A Chinese text full of
    English product names is Chinese; an English text with a Chinese name in it is English.
    """
    text = PHONEME_NOTE.sub(r"\g<word>", PINYIN_NOTE.sub(r"\g<char>", text))
    han, kana = len(_HAN_CHAR.findall(text)), len(_KANA_CHAR.findall(text))
    latin = len(_LATIN_WORD.findall(text))
    # About 1.5 ideographs are a word; five words of another language may surround each of them.
    if (han + kana) / 1.5 > (latin + (han + kana) / 1.5) * 0.2:
        return "ja" if kana > 0.1 * (han + kana) else "zh"
    counts = {lang: len(pattern.findall(text)) for lang, pattern in _SCRIPTS}
    best = max(counts, key=lambda lang: counts[lang])
    return best if counts[best] > latin else "en"


# Reading forms ----------------------------------------------------------------------------------

# What NFKC may touch: letters, digits and signs in other widths and shapes, loose accents, odd
# spaces. Full-width marks stay: they are how Chinese and Japanese write pauses.
_FOLDED = re.compile(
    "[0-9A-Za-z\u3041-\u30fe\u00c0-\u024f][\u0300-\u036f\u3099\u309a]+"
    "|[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff03-\uff06\uff0b\uff0d-\uff0f\uff1d\uff20\uff3f\uffe0-\uffe6]"
    "|(?<=[0-9\uff10-\uff19])\uff1a(?=[0-9\uff10-\uff19])"
    "|(?<![0-9\uff10-\uff19]{4})(?<=[0-9\uff10-\uff19])\uff0c"
    "(?=[0-9\uff10-\uff19]{3}(?![0-9\uff10-\uff19\\-]))"
    "|[\u00a0\u2002-\u200a\u202f\u3000]"
    "|[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209c\u2100-\u214f\u2150-\u218b\u2460-\u249b\u3200-\u33ff"
    "\ufb00-\ufb06\uff66-\uff9f\U0001d400-\U0001d7ff]"
)


def normalise(text: str, lang: str, *, offset: int = 0) -> Normalised:
    """Replace written forms by what is said: addresses, money, dates, times, ranges, numbers.

    Args:
        text: a sentence, or any stretch of text.
        lang: `en`, `zh` and `ja` have rules of their own; elsewhere only addresses are rewritten.
        offset: added to every source position, for a sentence that begins there in its turn.

    Returns:
        The text as said. In English and Chinese no digits are left but those inside odd tokens.
    """
    pieces: list[Piece] = []
    at = 0
    for note in NOTE.finditer(text):
        pieces.extend(_read(text, at, note.start(), lang))
        pieces.append(Piece(note.group(), note.start(), note.end(), "note"))
        at = note.end()
    pieces.extend(_read(text, at, len(text), lang))
    if offset:
        pieces = [Piece(p.text, p.start + offset, p.end + offset, p.kind) for p in pieces]
    return Normalised(tuple(pieces))


def _read(text: str, start: int, end: int, lang: str) -> Iterator[Piece]:
    """The stretch between two notes."""
    folded, origin = _fold(text[start:end])

    def piece(a: int, b: int, said: str | None = None) -> Iterator[Piece]:
        source = (start + origin[a], start + origin[b])
        if said is not None:
            yield Piece(said, *source, "said")
        elif source[1] - source[0] == b - a:
            yield Piece(folded[a:b], *source, "plain")
        else:  # folding changed the length: go by runs that did not
            yield from _runs(folded, origin, a, b, start)

    at = 0
    for a, b, said in book_for(lang).readings(folded):
        if at < a:
            yield from piece(at, a)
        yield from piece(a, b, _spaced(folded, a, b, said))
        at = b
    if at < len(folded):
        yield from piece(at, len(folded))


def _fold(text: str) -> tuple[str, list[int] | range]:
    """NFKC where it helps reading; origin[i] is the source index of folded character i."""
    if text.isascii():
        return text, range(len(text) + 1)
    parts: list[str] = []
    origin: list[int] = []
    at = 0
    for match in _FOLDED.finditer(text):
        plain = unicodedata.normalize("NFKC", match.group()).replace("\u2044", "/")
        parts += (text[at : match.start()], plain)
        origin.extend(range(at, match.start()))
        origin.extend([match.start()] * len(plain))
        at = match.end()
    parts.append(text[at:])
    origin.extend(range(at, len(text) + 1))
    return "".join(parts), origin


def _runs(folded: str, origin: list[int] | range, a: int, b: int, start: int) -> Iterator[Piece]:
    """Pieces of folded[a:b]: plain where characters map one to one, said where they do not."""
    at = a
    while at < b:
        end = at + 1
        if origin[end] - origin[at] == 1:
            while end < b and origin[end + 1] - origin[end] == 1:
                end += 1
            kind: PieceKind = "plain"
        else:
            while end < b and origin[end] == origin[at]:
                end += 1
            kind = "said"
        yield Piece(folded[at:end], start + origin[at], start + origin[end], kind)
        at = end


def _spaced(text: str, a: int, b: int, said: str) -> str:
    """Keep words apart: `Q3` is said as `Q three`."""
    before = " " if a and is_latin(text[a - 1]) and is_latin(said[0]) else ""
    after = " " if b < len(text) and is_latin(text[b]) and is_latin(said[-1]) else ""
    return f"{before}{said}{after}"
