from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends.indextts2 import segment

STORED = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "indextts2" / "front_end.json").read_text()
)


@pytest.mark.parametrize("row", STORED["segments"], ids=lambda r: f"{r['tokens'][:4]}-{r['limit']}")
def test_upstream_policy_equals_the_reference(row: dict[str, object]) -> None:
    ours = segment.upstream(row["tokens"], row["limit"], row["quick"])  # type: ignore[arg-type]

    assert ours == row["segments"]


def test_natural_policy_keeps_sentences_whole() -> None:
    text = "今天的会议开了两个小时讨论了很多。明天我们继续讨论下一个很重要的问题。"

    assert [s.text for s in segment.natural(text, len)] == [
        "今天的会议开了两个小时讨论了很多。",
        "明天我们继续讨论下一个很重要的问题。",
    ]


def test_short_sentences_join_a_neighbour_on_their_line() -> None:
    text = "好的。我们现在开始今天上午的会议吧。行。\n再见。"

    spans = [s.text for s in segment.natural(text, len)]
    assert spans == ["好的。我们现在开始今天上午的会议吧。行。", "再见。"]


def test_long_sentences_are_cut_at_clauses_never_inside_words() -> None:
    text = "alpha beta gamma, delta epsilon zeta eta theta iota kappa lambda mu nu"

    spans = segment.natural(text, len, 30)
    assert all(len(s.text) <= 30 for s in spans)
    assert " ".join(s.text for s in spans).split() == text.split()


@given(st.text(alphabet="ab好的，。. \n!?", max_size=200), st.integers(4, 40))
def test_natural_policy_keeps_every_letter_in_order(text: str, limit: int) -> None:
    spans = segment.natural(text, len, limit)

    assert all(text[s.start : s.end] == s.text for s in spans)
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert all(len(s.text) <= limit for s in spans)
    kept = "".join(c for s in spans for c in s.text if c.isalnum())
    assert kept == "".join(c for c in text if c.isalnum())
