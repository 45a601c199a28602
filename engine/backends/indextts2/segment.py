"""Cutting text into what is synthesised at once.

Two policies. `upstream` repeats the reference's procedure on pieces, slips included, for parity.
`natural`, the default, works on the source text, so that captions keep their words: whole
sentences, none too short to sound like speech, none longer than the model holds, never a cut inside
a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from engine.text import Span, split_sentences

LIMIT = 120  # pieces; an ideograph is two
SHORTEST = 10  # characters; less comes out as noise
_CLAUSE_ENDS = (",", "\u2581,", "-")
_SENTENCE_ENDS = frozenset({".", "!", "?", "\u2581.", "\u2581?", "\u2581..."})
_QUOTES = frozenset({"'", "\u2581'"})


def upstream(pieces: Sequence[str], limit: int = LIMIT, quick: int = 0) -> list[list[str]]:
    """Cut pieces as the reference does.

    Args:
        pieces: of a whole text.
        limit: pieces in a segment.
        quick: pieces at the beginning within which segments stay short, for an early first sound.

    Returns:
        Segments. A quote after a sentence mark appears in two of them.
    """
    merged: list[list[str]] = []
    seen = 0
    for part in _closed_parts(pieces, limit):
        seen += len(part)
        total = len(merged[-1]) + len(part) if merged else limit + 1
        if (total <= limit and seen > quick) or total <= limit / 2:
            merged[-1] = merged[-1] + part
        else:
            merged.append(part)
    return merged


def _closed_parts(pieces: Sequence[str], limit: int) -> Iterator[list[str]]:
    part: list[str] = []
    for i, piece in enumerate(pieces):
        part.append(piece)
        if len(part) > limit:
            yield part[:limit]
            yield part[limit:]
        elif piece in _CLAUSE_ENDS:
            yield part
        elif piece in _SENTENCE_ENDS and len(part) > 2:
            following = pieces[i + 1 : i + 2]
            yield [*part, *following] if following and following[0] in _QUOTES else part
        else:
            continue
        part = []
    if part:
        yield part


def natural(text: str, measure: Callable[[str], int], limit: int = LIMIT) -> list[Span]:
    """Cut a source text into spans of at most `limit` pieces.

    Args:
        text: of one turn.
        measure: pieces that a stretch of source text makes.
        limit: pieces in a span.

    Returns:
        Spans in order. A stretch of few characters joins a neighbour on the same line where both
        fit.
    """
    spans: list[Span] = []
    for sentence in split_sentences(text):
        for span in _fitting(text, sentence, measure, limit):
            joined = _joined(text, spans[-1], span) if spans else None
            if joined is not None and measure(joined.text) <= limit:
                spans[-1] = joined
            else:
                spans.append(span)
    return spans


def _joined(text: str, before: Span, span: Span) -> Span | None:
    """Both as one, when either is too short to stand alone and no line break is between them."""
    is_short = min(_letters(before.text), _letters(span.text)) < SHORTEST
    if not is_short or "\n" in text[before.start : span.start].rstrip(" "):
        return None
    return Span(before.start, span.end, text[before.start : span.end])


def _letters(text: str) -> int:
    return sum(char.isalnum() for char in text)


def _fitting(text: str, span: Span, measure: Callable[[str], int], limit: int) -> Iterator[Span]:
    if measure(span.text) <= limit or len(span.text) < 2:
        yield span
        return
    cut = _best_cut(text, span)
    for start, end in ((span.start, cut), (cut, span.end)):
        stretch = text[start:end]
        if stretch.strip():
            start += len(stretch) - len(stretch.lstrip())
            end -= len(stretch) - len(stretch.rstrip())
            yield from _fitting(text, Span(start, end, text[start:end]), measure, limit)


def _best_cut(text: str, span: Span) -> int:
    """Where to halve: the clause mark nearest the middle, else space, else between ideographs."""
    middle = (span.start + span.end) // 2
    inner = range(span.start + 1, span.end)
    for is_cut in (_after_clause, _at_space, _beside_ideograph):
        places = [i for i in inner if is_cut(text, i)]
        if places:
            return min(places, key=lambda i: abs(i - middle))
    return middle


def _after_clause(text: str, i: int) -> bool:
    if text[i - 1] in "，；、：":
        return True
    return text[i - 1] in ",;:" and text[i] == " "


def _at_space(text: str, i: int) -> bool:
    return text[i].isspace()


def _beside_ideograph(text: str, i: int) -> bool:
    return "\u3400" <= text[i] <= "\u9fff" or "\u3400" <= text[i - 1] <= "\u9fff"
