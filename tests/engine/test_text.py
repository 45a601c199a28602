"""engine/text.py: languages, said text, and the way back to the source."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.text import detect_lang, normalise

_TEXT = st.one_of(
    st.text(st.sampled_from("aB1 2.,:;\n()[]/-@%$¥~。，：字单あé０％\u3000kmvNo#+"), max_size=200),
    st.text(max_size=100),
)


@settings(deadline=None)
@given(_TEXT, st.sampled_from(["en", "zh", "ja", "fr"]), st.integers(0, 50))
@example("１２３，４５６人㎏ﬁか\u3099", "zh", 3)
@example("9" * 5000, "en", 0)
def test_said_text_knows_its_source(text: str, lang: str, offset: int):
    said = normalise(text, lang, offset=offset)

    assert said.text == "".join(piece.text for piece in said.pieces)
    assert "".join(text[p.start - offset : p.end - offset] for p in said.pieces) == text
    assert any(map(str.isalnum, said.text)) >= any(c.isalnum() and c.isascii() for c in text)
    for piece in said.pieces:
        if piece.kind == "plain":
            assert len(piece.text) == piece.end - piece.start
        if piece.kind == "note":
            assert piece.text == text[piece.start - offset : piece.end - offset]
    at = 0
    for piece in said.pieces:
        end = at + len(piece.text)
        assert piece.start <= said.source_span(at, end)[0]
        assert said.source_span(at, end)[1] <= piece.end
        at = end


def test_each_said_word_points_at_what_was_written():
    text = "Priya sent $48,500 to Li."
    said = normalise(text, "en", offset=10)
    at = said.text.index("five hundred")

    assert said.source_span(at, at + 4) == (10 + 11, 10 + 18)
    assert text[11:18] == "$48,500"
    at = said.text.index("Li")
    assert said.source_span(at, at + 2) == (10 + 22, 10 + 24)


def test_notes_stay_as_written_in_pieces_of_their_own():
    said = normalise("重[chong2]新 [Notecast](/ˈnoʊtkæst/) 3", "zh")

    notes = [piece.text for piece in said.pieces if piece.kind == "note"]
    assert notes == ["重[chong2]", "[Notecast](/ˈnoʊtkæst/)"]
    assert said.text.endswith(" 三")


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("The weekly sync started late.", "en"),
        ("Priya and 王芳 will send the budget.", "en"),
        ("请王芳在Slack上跟进这个bug，今天之内回复客户。", "zh"),
        ("deploy Kubernetes cluster 到 production environment 之后 rollback", "zh"),
        ("単[shan4]", "zh"),
        ("定例会議は三月十四日に始まりました。", "ja"),
        ("我们喜欢の这个字，大家都这么写，没有问题。", "zh"),
        ("안녕하세요 여러분", "ko"),
        ("Привет всем", "ru"),
        ("", "en"),
        ("2026", "en"),
    ],
)
def test_language_goes_by_script(text: str, lang: str):
    assert detect_lang(text) == lang
