"""Captions are judged by a reader of their own and by libav's WebVTT demuxer."""

from __future__ import annotations

import html
import io
import json
import re
import unicodedata
from dataclasses import dataclass

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.captions import ChapterMark, Cue, TimedWord, chapters_json, webvtt

STAMP = r"(\d\d+):(\d\d):(\d\d)\.(\d\d\d)"


@dataclass
class Read:
    start_ms: int
    end_ms: int
    lines: list[str]
    stamps: list[tuple[int, str]]
    """(ms, what stands behind the stamp up to the next one)"""

    @property
    def text(self) -> str:
        return " ".join(self.lines)


def ms(parts: tuple[str, ...]) -> int:
    hours, minutes, seconds, rest = map(int, parts)
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def read(text: str) -> tuple[list[str], list[Read]]:
    """A small WebVTT reader after the specification's grammar: comments, then cues."""
    head, *blocks = text.rstrip("\n").split("\n\n")
    assert head == "WEBVTT"
    comments, cues = [], []
    for block in blocks:
        first, *payload = block.split("\n")
        if first == "NOTE":
            comments.append("\n".join(payload))
            continue
        timing = re.fullmatch(f"{STAMP} --> {STAMP}", first)
        assert timing is not None, first
        start, end = ms(timing.groups()[:4]), ms(timing.groups()[4:])
        body = "\n".join(payload)
        assert body.strip()
        assert "-->" not in body
        pieces = re.split(f"<{STAMP}>", body)
        assert not re.search("[<>]", "".join(pieces[::5]))
        stamps = [
            (ms(tuple(pieces[at : at + 4])), html.unescape(pieces[at + 4]).replace("\n", " "))
            for at in range(1, len(pieces), 5)
        ]
        lines = html.unescape("".join(pieces[::5])).split("\n")
        cues.append(Read(start, end, lines, stamps))
    return comments, cues


def timed(text: str, *, start_ms: int = 0, word_ms: int = 200) -> Cue:
    """A sentence whose space-separated words are timed one after another."""
    words: list[TimedWord] = []
    at = start_ms
    for word in text.split():
        words.append((word.strip(".,"), at, at + word_ms))
        at += word_ms
    return Cue(start_ms, at, text, words)


LONG = (
    "We agreed that the first release leaves on Friday, that Anna writes the notes for it, "
    "and that nobody touches the database before Monday morning."
)


def test_short_sentence_is_one_cue_with_a_time_before_each_later_word() -> None:
    _, cues = read(webvtt([timed("Good morning, everyone.", start_ms=1230)]))

    assert cues == [
        Read(
            1230,
            1830,
            ["Good morning, everyone."],
            [(1430, "morning, "), (1630, "everyone.")],
        )
    ]


def test_long_sentence_becomes_phrases_of_two_lines_that_follow_each_other() -> None:
    sentence = timed(LONG, start_ms=5000)

    _, cues = read(webvtt([sentence]))

    assert " ".join(cue.text for cue in cues) == LONG
    assert all(len(cue.lines) <= 2 for cue in cues)
    assert all(len(line) <= 42 for cue in cues for line in cue.lines)
    assert [cue.start_ms for cue in cues] == [5000, *(cue.end_ms for cue in cues[:-1])]
    assert cues[-1].end_ms == sentence.end_ms


def test_phrase_begins_when_its_first_word_is_heard() -> None:
    sentence = timed(LONG)
    heard = {word: start for word, start, _ in sentence.words}

    _, cues = read(webvtt([sentence]))

    assert len(cues) > 1
    for cue in cues:
        assert cue.start_ms == heard[cue.lines[0].split()[0]]


def test_phrase_ends_where_the_speaker_breathes() -> None:
    text = (
        "We agreed that the first release of the year leaves on Friday, because Anna writes the "
        "notes tomorrow."
    )

    _, cues = read(webvtt([timed(text)]))

    assert cues[0].text.endswith("on Friday,")


def test_chinese_lines_hold_18_characters_and_never_begin_with_punctuation() -> None:
    text = (
        "本周我们讨论了三个问题，第一是数据库迁移的时间，第二是「新版本」的发布，"
        "第三是API key的轮换以及谁来写会议记录。"
    )

    _, cues = read(webvtt([Cue(0, 9000, text)]))

    lines = [line for cue in cues for line in cue.lines]
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    for line in lines:
        wide = sum(unicodedata.east_asian_width(one) in "WF" for one in line)
        assert wide + (len(line) - wide) * 18 / 42 <= 18
        assert line[0] not in "，。、」"
        assert line[-1] not in "「"
    assert any("API key" in line for line in lines)


def test_words_of_a_chinese_sentence_keep_their_times() -> None:
    words = [("今天", 100, 400), ("开会", 400, 800), ("很", 800, 900), ("顺利", 900, 1500)]

    _, (cue,) = read(webvtt([Cue(100, 1600, "今天开会很顺利。", words)]))

    assert cue.stamps == [(400, "开会"), (800, "很"), (900, "顺利。")]


def test_sentence_without_words_is_shared_out_by_length() -> None:
    _, cues = read(webvtt([Cue(0, 10_000, LONG)]))

    for cue in cues:
        share = (cue.end_ms - cue.start_ms) / 10_000
        assert abs(share - len(cue.text) / len(LONG)) < 0.05
        assert cue.stamps == []


def test_markup_in_the_text_stays_text() -> None:
    text = "if a < b && c --> d then <b>stop</b> &amp; go"

    file = webvtt([Cue(0, 1000, text)])

    _, (cue,) = read(file)
    assert cue.text == text


def test_note_names_voice_and_model_and_cannot_be_broken_out_of() -> None:
    comments, cues = read(
        webvtt(
            [Cue(0, 1000, "Hello.")],
            title="a\n\n00:00.000 --> 00:01.000\nb",
            voice="af_heart",
            model="kokoro-82m",
            lang="en",
        )
    )

    assert comments == [
        "Title: a 00:00.000 -> 00:01.000 b\nLanguage: en\nVoice: af_heart\nModel: kokoro-82m"
    ]
    assert [cue.text for cue in cues] == ["Hello."]


def test_times_that_make_no_sense_are_left_out() -> None:
    words = [("one", 900, 950), ("two", 100, 200), ("gone", 300, 400), ("three", 5000, 5100)]

    _, (cue,) = read(webvtt([Cue(500, 1000, "one two three", words)]))

    assert [at for at, _ in cue.stamps] == [900]


def test_address_wider_than_a_line_is_broken() -> None:
    address = "https://example.com/" + "a" * 90

    _, cues = read(webvtt([Cue(0, 1000, f"See {address} please.")]))

    lines = [line for cue in cues for line in cue.lines]
    assert all(len(line) <= 42 for line in lines)
    assert "".join(lines).replace(" ", "") == f"See{address}please."


def test_hours_are_counted() -> None:
    assert "27:46:40.001 --> 27:46:41.000" in webvtt([Cue(100_000_001, 100_001_000, "Late.")])


def test_libav_reads_the_same_cues() -> None:
    file = webvtt([timed(LONG), timed("第二 句 话。", start_ms=60_000)], title="x", voice="y")
    _, cues = read(file)

    with av.open(io.BytesIO(file.encode()), format="webvtt") as container:
        packets = [packet for packet in container.demux() if packet.size]
        base = float(packets[0].time_base or 0) * 1000
        found = [(round((p.pts or 0) * base), round((p.duration or 0) * base)) for p in packets]

    assert found == [(cue.start_ms, cue.end_ms - cue.start_ms) for cue in cues]


@given(
    text=st.text(
        st.sampled_from("ab cde,. 我们的，。「」“”&<>-é\u0301\n\t\u3000😀한글テスト—123"),
        max_size=200,
    ),
    length_ms=st.integers(1, 20_000),
    data=st.data(),
)
def test_any_text_comes_back_whole_in_order_and_in_time(
    text: str, length_ms: int, data: st.DataObject
) -> None:
    words = [
        (word, *sorted(data.draw(st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)))))
        for word in text.split()[:6]
    ]

    _, cues = read(webvtt([Cue(0, length_ms, text, words)]))

    last_ms = 0
    for cue in cues:
        assert len(cue.lines) <= 2
        assert last_ms <= cue.start_ms < cue.end_ms <= length_ms
        last_ms = cue.end_ms
        stamps = [at for at, _ in cue.stamps]
        assert stamps == sorted(set(stamps))
        assert all(cue.start_ms < at < cue.end_ms for at in stamps)
    if length_ms > 1000 and not words:
        shown = "".join("".join(cue.lines) for cue in cues)
        assert "".join(shown.split()) == "".join(text.split())


@pytest.mark.parametrize("title", ["Ziele", '"数据" & <b>'])
def test_chapters_are_json_1_2_0_in_seconds(title: str) -> None:
    found = json.loads(chapters_json([ChapterMark(0, 1500, title), ChapterMark(1500, 2000, "x")]))

    assert found == {
        "version": "1.2.0",
        "chapters": [
            {"startTime": 0.0, "endTime": 1.5, "title": title},
            {"startTime": 1.5, "endTime": 2.0, "title": "x"},
        ],
    }
