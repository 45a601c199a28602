from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("wetext")
from engine.backends.indextts2 import pinyin
from engine.backends.indextts2.errors import ModelUnusable
from engine.backends.indextts2.normalise import (
    Lang,
    Normaliser,
    WeText,
    choose_lang,
    read_glossary,
)
from engine.backends.indextts2.tokenizer import split_cjk

STORED = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "indextts2" / "front_end.json").read_text()
)
GLOSSARY = {"M.2": {"en": "M dot two", "zh": "M 二"}, "C++": "C plus plus"}


def identity(text: str, lang: Lang) -> str:
    return text


@pytest.fixture(scope="module")
def wetext() -> WeText:
    return WeText()


@pytest.mark.parametrize("row", STORED["normalize"], ids=lambda row: row["text"])
def test_parity_mode_equals_the_reference(row: dict[str, object]) -> None:
    normalise = Normaliser(identity, mode="parity", glossary=GLOSSARY)
    text = str(row["text"])

    ours = normalise(text).text
    assert ours == row["normalized_identity_tn"]
    assert split_cjk(ours) == row["cjk_split"]
    assert (choose_lang(text) == "zh") is row["use_chinese"]


@pytest.mark.parametrize(("written", "spelled"), STORED["correct_pinyin"].items())
def test_pinyin_is_spelled_as_in_the_vocabulary(written: str, spelled: str) -> None:
    assert pinyin.correct(written) == spelled


@pytest.mark.parametrize(
    ("reading", "token"),
    [
        ("chóng", "CHONG2"),
        ("chong2", "CHONG2"),
        ("lǚ", "LV3"),
        ("nu:3", "NV3"),
        ("nüe4", "NVE4"),
        ("qu4", "QV4"),
        ("de", "DE5"),
        ("er2", "ER2"),
        ("zhuang4", "ZHUANG4"),
        ("xiong2", "XIONG2"),
        ("beta1", None),
        ("hang6", None),
        ("chóng2", None),
    ],
)
def test_readings_in_every_spelling_give_one_token(reading: str, token: str | None) -> None:
    assert pinyin.token_of(reading) == token


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("银行<行|HANG2>", "银行 HANG2"),
        ("重(chóng)新来", "CHONG2 新来"),
        ("重（chong2）新来", "CHONG2 新来"),
        ("银行[hang2]", "银 HANG2"),
        ("之前你做DE5好", "之前你做 DE5 好"),
        ("ni3hao3", "NI3  HAO3"),
        ("部署beta1版本", "部署beta一版本"),
        ("ju4说", "JV4 说"),
    ],
)
def test_annotations_become_pinyin_tokens(wetext: WeText, text: str, wanted: str) -> None:
    assert Normaliser(wetext)(text).text == wanted


def test_reading_without_a_token_is_reported_and_the_character_read_as_usual(
    wetext: WeText,
) -> None:
    normalise = Normaliser(wetext, is_known=lambda token: token != "CAO4")

    answer = normalise("草<草|CAO4>地")
    assert answer.text == "草草地"
    assert any("<草|CAO4>" in warning for warning in answer.warnings)


def test_more_than_26_readings_and_names_in_one_text_survive(wetext: WeText) -> None:
    text = "".join(f"{name}<行|HANG2>" for name in ["安娜·贝尔"] * 40)

    said = Normaliser(wetext)(text).text
    assert said.count("HANG2") == 40
    assert said.count("安娜-贝尔") == 40


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "现在14:30，收入$48,500，增长4.75%",
            "现在十四点三十分,收入四万八千五百美元,增长百分之四点七五",
        ),
        ("共1,234人", "共一千二百三十四人"),
        ("2024年6月15日", "二零二四年六月十五日"),
        ("2024-06-15发布", "二零二四年六月十五日发布"),
        ("电话13812345678", "电话幺三八幺二三四五六七八"),
        ("温度-5℃", "温度零下五摄氏度"),
        ("长5cm", "长五厘米"),
        ("1/2", "二分之一"),
    ],
)
def test_chinese_figures_are_spelled_out(wetext: WeText, text: str, wanted: str) -> None:
    assert Normaliser(wetext)(text).text == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "It is 14:30, revenue $48,500, up 4.75%",
            "It is fourteen thirty, revenue forty-eight thousand five hundred dollars, "
            "up four point seven five percent",
        ),
        ("$1,200.50", "one thousand two hundred dollars and fifty cents"),
        ("That's 10% of it", "That is ten percent of it"),
        ("3.5 kg and 5 cm", "three point five kilograms and five centimeters"),
    ],
)
def test_english_figures_are_spelled_out(wetext: WeText, text: str, wanted: str) -> None:
    assert Normaliser(wetext)(text, "en").text == wanted


def test_mixed_text_is_read_in_chinese_and_keeps_its_english(wetext: WeText) -> None:
    answer = Normaliser(wetext)("我们用GPU跑了3次benchmark")

    assert answer.lang == "zh"
    assert answer.text == "我们用GPU跑了三次benchmark"


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_failing_verbaliser_never_empties_the_text(lang: Lang) -> None:
    def failing(text: str, lang: Lang) -> str:
        raise RuntimeError("no grammar")

    answer = Normaliser(failing)("会议在A7举行" if lang == "zh" else "meet in A7", lang)

    assert answer.text in ("会议在A七举行", "meet in A seven")
    assert answer.warnings


def test_verbaliser_that_swallows_the_text_is_not_believed() -> None:
    answer = Normaliser(lambda text, lang: "")("会议结束了")

    assert answer.text == "会议结束了"
    assert answer.warnings


def test_no_digit_ever_reaches_the_tokenizer(wetext: WeText) -> None:
    normalise = Normaliser(wetext)
    for text in ("x9q7z", "房间A3-05", "v2.5.1", "B2B 5G", "20240615", "①②", "x²y", "1e9"):
        said = normalise(text).text
        assert said and not any(char.isdigit() for char in said)


def test_glossary_takes_the_longest_term_and_the_language_of_the_text(wetext: WeText) -> None:
    normalise = Normaliser(wetext, glossary={"AI": "A I", "AI Lab": {"zh": "人工智能实验室"}})

    assert normalise("在ai lab工作").text == "在人工智能实验室工作"
    assert normalise("an AI lab here").text == "an AI lab here"
    assert normalise("an AI tool").text == "an A I tool"


def test_glossary_file_with_another_shape_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    path = tmp_path / "glossary.yaml"
    path.write_text("C++: [1, 2]\n")

    with pytest.raises(ModelUnusable, match="maps each term"):
        read_glossary(path)
    path.write_text("C++: C plus plus\n")
    assert read_glossary(path) == {"C++": "C plus plus"}


def test_private_use_characters_of_the_writer_do_no_harm(wetext: WeText) -> None:
    assert Normaliser(wetext)("你\ue000好\ue801世界").text == "你好世界"
