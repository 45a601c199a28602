"""engine/readings: what is said for what is written, per language."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.readings.numerals import en_cardinal, en_ordinal, en_year, zh_cardinal
from engine.readings.rules import RuleBook
from engine.text import normalise

ENGLISH = [
    ("$48,500, 4.75%", "forty-eight thousand five hundred dollars, four point seven five percent"),
    ("$4.5M", "four point five million dollars"),
    ("$3-5 million", "three to five million dollars"),
    ("US$1.50", "one US dollar and fifty cents"),
    ("¥1,200.50", "one thousand two hundred yuan and fifty fen"),
    ("1 USD, 20 EUR", "one US dollar, twenty euros"),
    ("from 3% to 10-15%", "from three percent to ten to fifteen percent"),
    ("room 3-05", "room three oh five"),
    ("3-5 days", "three to five days"),
    ("2019-2021", "twenty nineteen to twenty twenty-one"),
    ("at 9:30", "at nine thirty"),
    ("at 9:05 or 12:00", "at nine oh five or twelve o'clock"),
    ("9:30-10:15", "nine thirty to ten fifteen"),
    ("9:30 a.m. sharp", "nine thirty A M sharp"),
    ("He left at 9:30 a.m.", "He left at nine thirty A M."),
    ("apples, pears, etc.", "apples, pears, et cetera."),
    ("at 9:30:15", "at nine thirty and fifteen seconds"),
    ("50/50 on 11/22", "fifty fifty on eleven twenty-two"),
    ("3-4pm", "three to four P M"),
    ("on March 14, 2026, we", "on March fourteenth, twenty twenty-six, we"),
    ("22 Nov 2026", "November twenty-second, twenty twenty-six"),
    ("2026-11-22", "November twenty-second, twenty twenty-six"),
    ("3/14/2026", "March fourteenth, twenty twenty-six"),
    ("the 21st", "the twenty-first"),
    ("the 1990s, '80s", "the nineteen nineties, eighties"),
    ("20,000 requests", "twenty thousand requests"),
    ("(555) 123-4567", "five five five, one two three, four five six seven"),
    ("v2.3.1", "version two point three point one"),
    ("PROJ-1234, GPT-4", "PROJ one two three four, GPT four"),
    ("#7 and #4821", "number seven and number four eight two one"),
    ("anna.b@example.com", "anna dot b at example dot com"),
    ("See https://www.example.com/a?b=1.", "See example dot com."),
    ("1/2, 3/4, 9/10, 24/7", "one half, three quarters, nine tenths, twenty-four seven"),
    ("5km, 1 GB, 3x", "five kilometers, one gigabyte, three times"),
    (
        "+12.5%, -3%, -$500",
        "plus twelve point five percent, minus three percent, minus five hundred dollars",
    ),
    ("the H200s, < 200 ms", "the H two hundred s, less than two hundred milliseconds"),
    ("-5°C", "minus five degrees Celsius"),
    ("10k users", "ten thousand users"),
    ("score 3:2", "score three to two"),
    ("Q3 R&D", "Q three R and D"),
    ("Dr. Li vs. No. 5", "Doctor Li versus number five"),
    ("agent 007", "agent zero zero seven"),
    ("２０ people", "twenty people"),
]

CHINESE = [
    ("¥1,200.50", "一千二百点五元"),
    ("$48,500, 4.75%", "四万八千五百美元, 百分之四点七五"),
    ("预算3.5万", "预算三点五万"),
    ("¥3-5万", "三到五万元"),
    ("3-05会议室", "三杠零五会议室"),
    ("9:30开始", "九点三十分开始"),
    ("10:05-11:00", "十点零五分到十一点"),
    ("2:00", "两点"),
    ("3~4点", "三到四点"),
    ("2-3天", "两到三天"),
    ("第2-3页", "第二到三页"),
    ("2个人，22个，第2次", "两个人，二十二个，第二次"),
    ("电话13812345678", "电话幺三八幺二三四五六七八"),
    ("拨打400-820-8820", "拨打四零零八二零八八二零"),
    ("请找138 1234 5678", "请找幺三八，幺二三四，五六七八"),
    ("2026年3月14日上午9点30分", "二零二六年三月十四日上午九点三十分"),
    ("2026-11-22", "二零二六年十一月二十二日"),
    ("11/22交付", "十一月二十二日交付"),
    ("2025-2026财年", "二零二五到二零二六财年"),
    ("+12.5%，同比-3%", "加百分之十二点五，同比负百分之三"),
    ("H200s，<200ms", "H二百s，小于二百毫秒"),
    ("2026Q3", "二零二六Q三"),
    ("提高到了4.75%", "提高到了百分之四点七五"),
    ("10-20%", "百分之十到百分之二十"),
    ("-5℃", "零下五摄氏度"),
    ("5km，100ms", "五公里，一百毫秒"),
    ("v2.3.1", "版本二点三点一"),
    ("NC-1234", "NC 一二三四"),
    ("验证码123456", "验证码幺二三四五六"),
    ("3:2获胜，1/3", "三比二获胜，三分之一"),
    ("１２３，４５６人", "十二万三千四百五十六人"),
    ("邮件a@b.com", "邮件a at b点com"),
    ("单[shan4]主任2次", "单[shan4]主任两次"),
]

JAPANESE = [
    ("¥1,200です", "1200円です"),
    ("2026-11-22の9:30〜10:00", "2026年11月22日の9時30分から10時"),
    ("50%、03-1234-5678", "50パーセント、ゼロサンのイチニサンヨンのゴロクナナハチ"),
]


@pytest.mark.parametrize(("written", "said"), ENGLISH)
def test_english_is_said_as_a_careful_reader_would(written: str, said: str):
    assert normalise(written, "en").text == said


@pytest.mark.parametrize(("written", "said"), CHINESE)
def test_chinese_is_said_as_a_careful_reader_would(written: str, said: str):
    assert normalise(written, "zh").text == said


@pytest.mark.parametrize(("written", "said"), JAPANESE)
def test_japanese_is_left_with_what_its_front_end_reads(written: str, said: str):
    assert normalise(written, "ja").text == said


def test_languages_without_rules_have_addresses_rewritten_only():
    assert normalise("a@b.org, 25 €", "es").text == "a @ b.org, 25 €"


@pytest.mark.parametrize(
    ("n", "english", "chinese"),
    [
        (0, "zero", "零"),
        (14, "fourteen", "十四"),
        (200, "two hundred", "二百"),
        (2_022, "two thousand twenty-two", "两千零二十二"),
        (10_050, "ten thousand fifty", "一万零五十"),
        (20_000, "twenty thousand", "两万"),
        (120_000, "one hundred twenty thousand", "十二万"),
        (100_010_000, "one hundred million ten thousand", "一亿零一万"),
        (
            1_234_500_000_000,
            "one trillion two hundred thirty-four billion five hundred million",
            "一万二千三百四十五亿",
        ),
    ],
)
def test_numbers_in_words(n: int, english: str, chinese: str):
    assert (en_cardinal(n), zh_cardinal(n)) == (english, chinese)


def test_ordinals_and_years():
    assert [en_ordinal(n) for n in (1, 12, 20, 21, 100)] == [
        "first",
        "twelfth",
        "twentieth",
        "twenty-first",
        "one hundredth",
    ]
    assert [en_year(n) for n in (1900, 1905, 1999, 2007, 2026)] == [
        "nineteen hundred",
        "nineteen oh five",
        "nineteen ninety-nine",
        "two thousand seven",
        "twenty twenty-six",
    ]


def _value(said: str) -> int:
    """The number behind Chinese numerals, by the grammar of the language."""
    total = section = digit = 0
    for char in said.replace("两", "二"):
        if char in "零一二三四五六七八九":
            digit = "零一二三四五六七八九".index(char)
        elif char in "十百千":
            section += (digit or 1) * {"十": 10, "百": 100, "千": 1000}[char]
            digit = 0
        elif char == "万":
            section, digit = (section + digit) * 10_000, 0
        else:
            total, section, digit = total + (section + digit) * 10**8, 0, 0
    return total + section + digit


@given(st.integers(0, 10**12 - 1))
def test_chinese_numbers_mean_what_they_say(n: int):
    said = zh_cardinal(n)

    assert _value(said) == n
    assert not re.search("零零|零$|^零.", said) or n == 0


def test_a_rule_that_fails_leaves_the_text_in_place():
    def broken(match: re.Match[str]) -> str | None:
        raise ValueError

    book = RuleBook([("a+", broken), ("aa", lambda m: "two"), ("b", lambda m: "")])

    assert list(book.readings("aaab aa")) == [(0, 2, "two"), (5, 7, "two")]
