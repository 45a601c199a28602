"""English: hibari's front end (lexicon, tagger, a small net for unknown words), which Kokoro
shares.

It needs neither spaCy nor espeak, and takes 2 to 5 ms a sentence once its lexicons are loaded.
"""

from __future__ import annotations

import functools
import re
import threading
from typing import Any

from engine.backends.kokoro.words import Reading, Word, realigned, to_source
from engine.text import PHONEME_NOTE, PINYIN_NOTE, Normalised, Piece, normalise

_UNIT = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|\s+|.", re.DOTALL)
_NOON = re.compile(r"\b([AP]) M\b")  # apart, its "A" would be read as the article
_loading = threading.Lock()


@functools.cache
def _front_end(british: bool) -> Any:
    from hibari.g2p import G2P

    return G2P(british=british)


def front_end(*, british: bool) -> Any:
    """The lexicons and the tagger, loaded once."""
    with _loading:
        return _front_end(british)


def read(text: str, *, offset: int = 0, british: bool = False) -> Reading:
    """Read a sentence that begins at `offset` in its turn."""
    ours = normalise(text, "en", offset=offset)
    said = _hibari_normalised(ours)
    words = to_source(to_source(_words(said.text, british=british), said), ours)
    unread = [word.text for word in words if not word.phonemes and not word.is_mark]
    return Reading(words, unread)


def read_said(text: str, *, british: bool = False) -> list[Word]:
    """Read English that is normalised already; spans point into `text`."""
    return _words(text, british=british)


def _hibari_normalised(ours: Normalised) -> Normalised:
    """Run hibari's normaliser (titles, units, Roman numbers) around the inline readings."""
    from hibari.g2p.normalize import normalize

    pieces: list[Piece] = []
    at = 0
    text = ours.text
    for note in [*PHONEME_NOTE.finditer(text), None]:
        end = note.start() if note else len(text)
        units = [(m.group(), (m.start(), m.end())) for m in _UNIT.finditer(text, at, end)]
        stretch = text[at:end]
        plain = PINYIN_NOTE.sub(r"\g<char>", stretch)
        said = normalize(_NOON.sub(r"\1M", plain))
        if said and stretch[-1:].isspace():
            said += " "
        if said and stretch[:1].isspace():
            said = f" {said}"
        pieces += realigned(
            [unit for unit, _ in units], _UNIT.findall(said), [at for _, at in units]
        )
        if note:
            pieces.append(Piece(note.group(), note.start(), note.end(), "note"))
            at = note.end()
    return Normalised(tuple(pieces))


def _words(text: str, *, british: bool) -> list[Word]:
    """hibari's tokens with their places in `text`."""
    g2p = front_end(british=british)
    words: list[Word] = []
    at = 0
    for token in g2p.phonemize_tokens(g2p.tokenize(text)):
        start, end, at = _place(text, token.text, at)
        words.append(Word(token.text, (start, end), token.phonemes or "", bool(token.whitespace)))
    return words


def _place(text: str, token: str, at: int) -> tuple[int, int, int]:
    """Where a token stands at or after `at`, and where to look for the next one."""
    while text[at : at + 1].isspace():
        at += 1
    note = PHONEME_NOTE.match(text, at)
    if note:
        return note.start(), note.end(), note.end()
    start = text.find(token, at)
    if start < 0:  # the tokenizer wrote it in another way: keep the place, it is a caption's only
        return at, min(at + len(token), len(text)), at
    return start, start + len(token), start + len(token)
