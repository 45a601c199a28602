"""Spanish, French, Italian, Portuguese and Hindi, through espeak-ng.

espeak-ng and its wrapper are GPL-3.0: they come with the extra `notecast[espeak]` only.
"""

from __future__ import annotations

import functools
import re
import threading
from typing import Any

from engine.backends.kokoro.words import Reading, Word, to_source
from engine.text import PHONEME_NOTE, PINYIN_NOTE, normalise

ESPEAK_NAMES = {"es": "es", "fr": "fr-fr", "it": "it", "pt": "pt-br", "hi": "hi"}

_UNIT = re.compile(r"\S+")
_one_at_a_time = threading.Lock()  # espeak-ng keeps its voice in a global


def read(text: str, *, lang: str, offset: int = 0) -> Reading:
    """Read a sentence that begins at `offset` in its turn."""
    said = normalise(text, lang, offset=offset)
    words: list[Word] = []
    at = 0
    for note in [*PHONEME_NOTE.finditer(said.text), None]:
        words += _stretch(said.text, at, note.start() if note else len(said.text), lang)
        if note:
            words.append(Word(note["word"], note.span(), note["phonemes"], True))
            at = note.end()
    unread = [word.text for word in words if not word.phonemes and not word.is_mark]
    return Reading(to_source(words, said), unread)


def _stretch(text: str, start: int, end: int, lang: str) -> list[Word]:
    """Words of text[start:end]; espeak may join two words into one group of phonemes."""
    units = [match.span() for match in _UNIT.finditer(text, start, end)]
    if not units:
        return []
    with _one_at_a_time:
        phonemes, _ = _front_end(lang)(PINYIN_NOTE.sub(r"\g<char>", text[start:end]))
    groups = phonemes.split()
    words = []
    for index, group in enumerate(groups):
        first, last = (
            min(k * len(units) // len(groups), len(units) - 1) for k in (index, index + 1)
        )
        span = (units[first][0], units[max(first, last - 1)][1])
        if len(groups) == len(units):
            span = units[index]
        words.append(Word(text[slice(*span)], span, group, True))
    return words


@functools.cache
def _front_end(lang: str) -> Any:
    from misaki.espeak import EspeakG2P

    return EspeakG2P(language=ESPEAK_NAMES[lang])
