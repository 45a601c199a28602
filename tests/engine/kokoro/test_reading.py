"""english.py, chinese.py, japanese.py, words.py: from text to phonemes with a way back."""

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.kokoro import chinese, english
from engine.backends.kokoro.model import MAX_TOKENS, vocabulary
from engine.backends.kokoro.words import Word, line_of, lines_of, unknown_share

SYLLABLES = json.loads(Path(__file__).with_name("pinyin.json").read_text("utf-8"))


def spoken(words: list[Word]) -> str:
    return "".join(word.phonemes + " " * word.space_after for word in words).strip()


def test_every_pinyin_syllable_is_spelled_as_the_model_learned_it():
    """The table was made with misaki 0.9.4: 426 syllables, five tones each."""
    assert len(SYLLABLES) == 426
    for plain, tones in SYLLABLES.items():
        assert [chinese.syllable(f"{plain}{tone}") for tone in "12345"] == tones, plain


def test_u_with_dots_may_be_written_three_ways():
    assert chinese.syllable("lv4") == chinese.syllable("lü4") == chinese.syllable("lu:4") != ""


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("单[shan4]主任", "ʂa↘n ꭧu↓ɻə↘n"),
        ("银行[xing2]", "i↗nɕi↗ŋ"),
        ("重[chong2]新[xin1]", "ꭧʰʊ↗ŋɕi→n"),
        ("吕[lü3]", "ly↓"),
    ],
)
def test_a_pinyin_note_decides_the_reading(text, phonemes):
    reading = chinese.read(text)

    assert spoken(reading.words) == phonemes
    assert reading.odd_notes == []


def test_an_unreadable_note_is_reported_and_the_usual_reading_spoken():
    reading = chinese.read("仇[xyz2]经理")

    assert spoken(reading.words) == spoken(chinese.read("仇经理").words)
    assert reading.odd_notes == ["仇[xyz2]"]


def test_chinese_words_are_jiebas_and_point_into_the_source():
    text = "大家同意推迟发布。"

    words = chinese.read(text, offset=10).words

    assert [word.text for word in words] == ["大家", "同意", "推迟", "发布", "。"]
    assert [word.span for word in words] == [(10, 12), (12, 14), (14, 16), (16, 18), (18, 19)]


def test_english_words_in_chinese_are_read_as_english():
    words = chinese.read("请王芳在Slack上跟进这个bug，用API。").words
    read = {word.text: word.phonemes for word in words}

    assert read["Slack"] == "slˈæk"
    assert read["bug"] == "bˈʌɡ"
    assert read["API"].count("ˈ") == 1  # spelled letter by letter
    assert spoken(words).count("  ") == 0


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "The budget is $48,500, 4.75% of it spent.",
            "fˈɔɹTiˌAt θˈWzᵊnd fˈIv hˈʌndɹəd dˈɑləɹz, fˈɔɹ p",
        ),
        ("We start at 9:30.", "nˈIn θˈɜɹTi"),
        ("We start at 9:30 a.m. today.", "nˈIn θˈɜɹTi ˌAˈɛm tədˈA"),
        ("Dr. Alvarez lives on 5 km of road.", "dˈɑktəɹ"),
        ("Say [Priya](/pɹˈiə/) again.", "sˈA pɹˈiə əɡˈɛn"),
    ],
)
def test_english_traps_are_read_right(text, part):
    assert part in spoken(english.read(text).words)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("价格是¥1,200.50。", "i→ʨʰjɛ→nɚ↘pai↓tjɛ↓nu↓ɥɛ↗n"),
        ("时间是9:30。", "ʨjou↓tjɛ↓n"),
        ("3~4点开始", "sa→ntau↘"),
        ("电话13800138000", "jau→"),
        ("涨了3.2%", "pai↓fə→n"),
    ],
)
def test_chinese_traps_are_read_right(text, part):
    assert part in spoken(chinese.read(text).words).replace(" ", "")


def test_a_written_form_that_becomes_many_words_keeps_one_span():
    text = "Send $48,500 today."

    amount = [word for word in english.read(text).words if word.span == (5, 12)]

    assert [word.text for word in amount] == [
        "forty-eight",
        "thousand",
        "five",
        "hundred",
        "dollars",
    ]


def test_british_voices_read_british():
    assert spoken(english.read("The dance after half past.", british=True).words) != spoken(
        english.read("The dance after half past.").words
    )


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab Zé9$%.,!?“”()[]/'-–—…中文行单，。[ā1]\n\t😀ー", max_size=60))
def test_no_text_breaks_a_front_end_and_spans_stay_inside(text):
    for read in (english.read, chinese.read):
        starts = [0]
        for word in read(text, offset=5).words:
            assert 5 <= word.span[0] <= word.span[1] <= 5 + len(text)
            assert word.span[0] >= starts[-1] or word.span[1] >= starts[-1]
            starts.append(word.span[0])


def test_what_cannot_be_read_is_reported():
    assert chinese.read("这是한글。").unread == ["한글"]


def test_a_chinese_name_in_an_english_sentence_is_read_as_chinese():
    words = chinese.read("Ask 王芳 for $20.", numbers="en").words

    assert spoken(words) == "ˈæsk wa↗ŋfa→ŋ fɔɹ twˈɛnti dˈɑləɹz."


def test_long_sentences_are_cut_after_a_clause_mark():
    words = english.read("one two three four five six seven, " * 20).words

    lines = lines_of(words)

    assert len(lines) > 1
    assert all(0 < len(line.tokens) <= MAX_TOKENS for line in lines)
    assert all(line.words[-1].text == "," for line in lines[:-1])
    assert [word for line in lines for word in line.words] == words


@pytest.mark.parametrize("size", [509, 510, 511, 1021])
def test_one_endless_word_is_cut_hard(size):
    lines = lines_of([Word("a" * size, (0, size), "a" * size)])

    assert sum(len(line.tokens) for line in lines) == size
    assert max(len(line.tokens) for line in lines) <= MAX_TOKENS


def test_unknown_phonemes_are_left_out_and_counted():
    words = [Word("ok", (0, 2), "ˈOkˈA", True), Word("?", (3, 4), "☃")]

    assert unknown_share(words) == pytest.approx(1 / 6)
    assert len(line_of(words).tokens) == 6  # five and the space
    assert set(line_of(words).tokens) <= set(vocabulary().values())


@pytest.mark.skipif(not importlib.util.find_spec("pyopenjtalk"), reason="needs notecast[ja]")
def test_japanese_words_come_from_the_analyser():
    from engine.backends.kokoro import japanese

    text = "定例会議は3月14日に始まりました！"

    words = japanese.read(text).words

    assert spoken(words).startswith("teːɾeː kaiɡʲi βa")
    assert spoken(words).endswith("haʥimaɾʲi maɕita!")
    assert text[slice(*words[0].span)] == "定例"
    assert text[slice(*words[-2].span)] == "ました"
