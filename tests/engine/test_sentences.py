"""engine/sentences.py: where sentences end, and that nothing is lost."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.sentences import LIMIT, split_sentences

SENTENCES = [
    (
        "Dr. Smith paid $3.50 in the U.S. on Jan. 5. He left at 9:30 a.m. The team stayed.",
        [
            "Dr. Smith paid $3.50 in the U.S. on Jan. 5.",
            "He left at 9:30 a.m.",
            "The team stayed.",
        ],
    ),
    (
        "Use a proxy, e.g. This one. See https://a.b/c?d=e. Done!",
        ["Use a proxy, e.g. This one.", "See https://a.b/c?d=e.", "Done!"],
    ),
    ("J. R. R. Tolkien wrote it. Yes.", ["J. R. R. Tolkien wrote it.", "Yes."]),
    ("Is it No. 5? No. It is no. 6.", ["Is it No. 5?", "No.", "It is no. 6."]),
    ("Acme Inc. announced it. Bye.", ["Acme Inc. announced it.", "Bye."]),
    ("1. First item\n2. Second item. More.", ["1. First item", "2. Second item.", "More."]),
    ("Version 2.0. Then 3.1!", ["Version 2.0.", "Then 3.1!"]),
    (
        "“Are you ok? Tell me.” he asked. She left (see p. 3. It is good). End",
        ["“Are you ok? Tell me.” he asked.", "She left (see p. 3. It is good).", "End"],
    ),
    (
        'He said "it is fine. We can wait." and left.',
        ['He said "it is fine. We can wait." and left.'],
    ),
    ("Wait... what? Wait... Then go.", ["Wait... what?", "Wait...", "Then go."]),
    ("今天发布。大家同意！真的？？好", ["今天发布。", "大家同意！", "真的？？", "好"]),
    (
        "他说：“今天发布。大家同意。”然后走了。“好吗？”他问。",
        ["他说：“今天发布。大家同意。”", "然后走了。", "“好吗？”他问。"],
    ),
    ("共3.5万元，见https://a.b/x。走吧。", ["共3.5万元，见https://a.b/x。", "走吧。"]),
    ("单[shan4]主任来了！嗯……我想想。", ["单[shan4]主任来了！", "嗯……我想想。"]),
    ("用Slack跟进。OK. 没问题。", ["用Slack跟进。", "OK.", "没问题。"]),
    (
        "日本語です。「はい。そうです。」と言った。",
        ["日本語です。", "「はい。そうです。」", "と言った。"],
    ),
    ("Hello!\n\n---\n👍\nBye", ["Hello!", "Bye"]),
    (" … \n", []),
]


@pytest.mark.parametrize(("text", "sentences"), SENTENCES)
def test_sentences_end_where_a_reader_breathes(text: str, sentences: list[str]):
    assert [span.text for span in split_sentences(text)] == sentences


def _width(text: str) -> int:
    return sum(5 if char >= "\u2e80" else 2 for char in text)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("我们今天讨论了很多问题，" * 20, "我们今天讨论了很多问题，" * 6),
        ("and so on, " * 40, ("and so on, " * 18).strip()),
        ("word " * 90, ("word " * 40).strip()),
        ("字" * 300, "字" * 80),
        ("我们共花了1,200,000元" * 20, None),
        ("On March 14, 2026 we met and " * 20, None),
    ],
)
def test_long_sentences_are_cut_at_clauses_then_spaces(text: str, first: str | None):
    spans = split_sentences(text)

    assert all(_width(span.text) <= LIMIT for span in spans)
    if first is not None:
        assert spans[0].text == first
    for kept in ("1,200,000", "March 14, 2026"):
        assert sum(span.text.count(kept) for span in spans) == text.count(kept)


def test_notes_and_addresses_are_never_cut():
    link = "https://example.com/" + "a" * 300
    text = f"{'字' * 70}{'重[chong2]' * 30} {'word ' * 35}{link} end"
    spans = split_sentences(text)

    assert sum(span.text.count("重[chong2]") for span in spans) == 30
    assert any(link in span.text for span in spans)


_ALPHABET = "aB1 2.,:;!?\n\"'()“”「」[]/-@%$¥~。，！？…字单今あアé０％\u3000　kmvNo["
_TEXT = st.one_of(
    st.text(st.sampled_from(_ALPHABET), max_size=300),
    st.text(max_size=100),
    st.lists(
        st.sampled_from(
            [
                "Dr. ",
                "3.5",
                "https://a.b/c ",
                "单[shan4]",
                "e.g. ",
                "“",
                "”",
                "。",
                ". ",
                "U.S.",
                "\n",
            ]
        )
    ).map("".join),
)


@settings(deadline=None)
@given(_TEXT)
@example("x" * 1000)
@example("1" * 1000)
def test_every_letter_and_digit_is_in_one_sentence(text: str):
    spans = split_sentences(text)

    assert spans == split_sentences(text)
    covered = bytearray(len(text))
    last_end = 0
    for span in spans:
        assert last_end <= span.start < span.end <= len(text)
        assert span.text == text[span.start : span.end]
        assert span.text == span.text.strip()
        assert any(map(str.isalnum, span.text))
        covered[span.start : span.end] = b"\1" * (span.end - span.start)
        last_end = span.end
    assert all(covered[at] for at, char in enumerate(text) if char.isalnum())


@pytest.mark.parametrize(
    "unit", ["Dr. Li paid $3.50. ", "“a。”", "((", "\"'", "http://", "a@", "字[", "1.", " ", "\n"]
)
def test_a_full_cell_of_anything_is_cut(unit: str):
    text = unit * (100_000 // len(unit))

    assert "".join(s.text for s in split_sentences(text)).count("a") == text.count("a")
