"""Rules that replace what is written by what is said, in one pass over the text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Rule = tuple[str, Callable[[re.Match[str]], str | None]]
"""A pattern and what is said for its match. None: this rule does not apply after all.

Patterns must be linear: repeated parts are bounded or start with a character that cannot be part of
what came before, and a pattern that begins with digits carries `(?<!\\d)`. `\\w`, `\\d`, `\\s` and
`\\b` mean ASCII: an ideograph right before a number is no part of it.
"""

# A number as people write it: 12, 48,500, 4.75
NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
# Where a number may begin: not in the middle of another one
START = r"(?<!\d)(?<!\d[.,:/])"
# 2026-11-22, 2026/11/22, 2026.11.22; never 2026-11/22
YEAR_FIRST = r"[12]\d{3}(?:-[01]?\d-[0-3]?\d|/[01]?\d/[0-3]?\d|\.[01]?\d\.[0-3]?\d)(?![\d./-]*\d)"

_NAMED_GROUP = re.compile(r"\(\?P<\w+>")


class RuleBook:
    """Rules in order of preference: the leftmost match wins, at one place the earliest rule."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [(re.compile(pattern, re.ASCII), say) for pattern, say in rules]
        anonymous = (_NAMED_GROUP.sub("(?:", pattern) for pattern, _ in rules)
        self._any = re.compile(
            "|".join(f"(?P<r{i}>{p})" for i, p in enumerate(anonymous)), re.ASCII
        )

    def readings(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Each replaced stretch as (start, end, said), in order and without overlap.

        A rule that fails or says nothing leaves the written form in place: text is never lost. A
        full stop that ends both an abbreviation and the text is kept, for the voice to fall.
        """
        at, last = 0, len(text.rstrip())
        while (found := self._any.search(text, at)) is not None:
            first = int(str(found.lastgroup)[1:])
            at = max(found.end(), at + 1)
            for pattern, say in self._rules[first:]:
                match = pattern.match(text, found.start())
                said = _try(say, match) if match is not None else None
                if match is not None and said:
                    at = match.end()
                    stop = "." if at == last and text[at - 1] == "." and said[-1] != "." else ""
                    yield match.start(), at, said + stop
                    break


def _try(say: Callable[[re.Match[str]], str | None], match: re.Match[str]) -> str | None:
    try:
        return say(match)
    except (ValueError, LookupError, ArithmeticError):  # 32 March, a number of 5,000 digits
        return None


def year_first(date: str) -> tuple[int, int, int]:
    """Year, month and day of a YEAR_FIRST match; the caller checks that they exist."""
    year, month, day = re.split("[-/.]", date)
    return int(year), int(month), int(day)


def table(name: str) -> dict[str, Any]:
    """A data table of this package, `text_{name}.json`."""
    path = Path(__file__).parent.parent / "data" / f"text_{name}.json"
    loaded: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return loaded


def one_of(words: Sequence[str]) -> str:
    """A pattern for any of `words`, longest first so that `km/h` is not read as `km`."""
    return "(?:" + "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True)) + ")"
