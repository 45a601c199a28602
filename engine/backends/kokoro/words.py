"""Words with phonemes and their place in the source: one record through the whole pipeline."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.backends.kokoro.model import MAX_TOKENS, vocabulary
from engine.text import Normalised, Piece

CLAUSE_MARKS = frozenset(",;:—…")


@dataclass(frozen=True, slots=True)
class Word:
    """A word or a mark.

    Attributes:
        text: as it is said.
        span: character offsets into the turn's text; a part of "$48,500" has the span of all of it.
        phonemes: in the model's alphabet; a mark is its own phoneme.
        space_after: is a space spoken after it?
    """

    text: str
    span: tuple[int, int]
    phonemes: str
    space_after: bool = False

    @property
    def is_mark(self) -> bool:
        """Punctuation, or nothing that can be said."""
        return not any(char.isalnum() for char in self.text)


@dataclass(frozen=True, slots=True)
class Line:
    """What the model takes at once.

    Attributes:
        words: in order.
        tokens: phoneme ids, at most 510, without the pads.
        owners: for each token the index of its word; -1 for a space between words.
    """

    words: tuple[Word, ...]
    tokens: tuple[int, ...]
    owners: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a front end makes of a sentence.

    Attributes:
        words: in order.
        unread: what got no phonemes although it holds letters or digits.
        odd_notes: pinyin notes whose syllable there is none of.
    """

    words: list[Word]
    unread: list[str]
    odd_notes: list[str] = field(default_factory=list)


def line_of(words: Sequence[Word]) -> Line:
    """Words as ids; what the model has no id for is left out."""
    ids = vocabulary()
    tokens: list[int] = []
    owners: list[int] = []
    for index, word in enumerate(words):
        known = [ids[char] for char in word.phonemes if char in ids]
        tokens += known
        owners += [index] * len(known)
        if word.space_after and index + 1 < len(words):
            tokens.append(ids[" "])
            owners.append(-1)
    return Line(tuple(words), tuple(tokens), tuple(owners))


def lines_of(words: Sequence[Word]) -> list[Line]:
    """Words in as few lines as fit the model, cut after clause marks where there are any."""
    line = line_of(words)
    if len(line.tokens) <= MAX_TOKENS:
        return [line] if line.tokens else []
    if len(words) == 1:
        return _pieces(words[0])
    fits = max(_fitting(line), 1)
    marks = (i + 1 for i in range(fits - 1, fits // 3, -1) if words[i].text[-1:] in CLAUSE_MARKS)
    cut = next(marks, min(fits, len(words) - 1))
    return lines_of(words[:cut]) + lines_of(words[cut:])


def unknown_share(words: Sequence[Word]) -> float:
    """Share of phoneme characters the model has no id for."""
    ids = vocabulary()
    chars = [char for word in words for char in word.phonemes if not char.isspace()]
    return sum(char not in ids for char in chars) / len(chars) if chars else 0.0


def realigned(
    source: Sequence[str], said: Sequence[str], origin: Sequence[tuple[int, int]]
) -> list[Piece]:
    """Find the way back after a normaliser that does not keep one.

    Args:
        source: units before (words, marks and spaces, or characters).
        said: units after.
        origin: for each unit of `source` its (start, end).

    Returns:
        Pieces in order; a changed stretch points at the whole stretch it was made from.
    """
    matcher = difflib.SequenceMatcher(None, source, said, autojunk=False)
    pieces: list[Piece] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            pieces += [Piece(said[c + i], *origin[a + i], "plain") for i in range(b - a)]
        elif c < d:
            near = origin[a:b] or origin[max(a - 1, 0) : a + 1]
            pieces.append(Piece("".join(said[c:d]), near[0][0], near[-1][1], "said"))
    return pieces


def to_source(words: Sequence[Word], way_back: Normalised) -> list[Word]:
    """Words whose spans point into a normalised text, with spans that point into its source."""
    return [replace(word, span=way_back.source_span(*word.span)) for word in words]


def _fitting(line: Line) -> int:
    """How many leading words fit."""
    last = next(owner for owner in reversed(line.owners[:MAX_TOKENS]) if owner >= 0)
    complete = line.owners[MAX_TOKENS] != last
    return last + complete


def _pieces(word: Word) -> list[Line]:
    """One word of more than 510 phonemes, cut hard."""
    step = MAX_TOKENS
    parts = [word.phonemes[at : at + step] for at in range(0, len(word.phonemes), step)]
    return [line_of([replace(word, phonemes=part)]) for part in parts]
