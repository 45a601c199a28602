"""Notes in, scripts out: shapes, languages, spoken forms, and that nothing is lost."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connectors.base import Note, NoteRef
from engine.base import Voice
from pipeline.script import (
    NARRATOR,
    SECTION_NAMES,
    Script,
    ScriptError,
    TooLong,
    Unspeakable,
    cast,
    chapter_starts,
    compose,
    merge,
    speaker_languages,
    to_request,
)

REF = NoteRef("board", key="1")

VOICES = [
    Voice("af_heart", "Heart", "en", "female", "A"),
    Voice("af_bella", "Bella", "en", "female", "A-"),
    Voice("am_adam", "Adam", "en", "male", "F+"),
    Voice("am_fenrir", "Fenrir", "en", "male", "C+"),
    Voice("zf_xiaobei", "Xiaobei", "zh", "female", "D"),
    Voice("zm_yunxi", "Yunxi", "zh", "male", "D"),
]

ENGLISH = """\
# Weekly sync
Date: 2026-11-20
Attendees: Alice, Bob

## Budget
Alice: We are over by 3.5%. See https://x.example/a?b=1.
Bob: I will cut travel. Alice: Thanks! :smile: 🎉

| Team | Cost |
|---|---|
| Ops | 10 |
| Dev | 20 |

## Decisions
- Ship **v2** on Friday
- Freeze `main`

## Action items
- [ ] Alice: Send the draft (due Friday)
- [x] Bob to book a room
- Fix CI (owner: Carol, by Monday)
"""

CHINESE = """\
会议纪要
时间：2026年11月20日
参会人：李雷、韩梅梅

一、项目进展
李雷：接口延期两天。韩梅梅：我来跟进。
结论：可以接受。

二、决议
1、周五发布
2、下周复盘

待办：
- 写接口文档（负责人：李雷，截止：11月25日）
- 韩梅梅：更新排期
"""


def note(text: str, **fields: object) -> Note:
    return Note(ref=REF, text=text, **fields)  # type: ignore[arg-type]


def said(script: Script, kind: str | None = None) -> list[str]:
    return [segment.text for segment in script.segments() if kind in (None, segment.kind)]


def turns(script: Script) -> list[tuple[str, str]]:
    return [(s.speaker, s.text) for s in script.segments() if s.kind == "speech"]


def test_english_minutes_become_chapters_in_the_order_of_listening():
    script = compose(note(ENGLISH))

    assert (script.title, script.lang) == ("Weekly sync", "en")
    assert [chapter.title for chapter in script.chapters] == [
        "Weekly sync",
        "Decisions",
        "Action items",
        "Budget",
    ]
    assert said(script, "decision") == [
        "Decision one: Ship v2 on Friday",
        "Decision two: Freeze main",
    ]
    assert said(script, "todo") == [
        "Alice to send the draft, due Friday.",
        "Done: Bob to book a room",
        "Carol to fix CI, due Monday.",
    ]


def test_chinese_minutes_become_chapters_in_the_order_of_listening():
    script = compose(note(CHINESE))

    assert (script.title, script.lang) == ("会议纪要", "zh")
    assert [chapter.title for chapter in script.chapters] == [
        "会议纪要",
        "决议",
        "待办",
        "项目进展",
    ]
    assert said(script, "decision") == ["决议一：周五发布", "决议二：下周复盘"]
    assert said(script, "todo") == [
        "待办：写接口文档，负责人李雷，11月25日前。",
        "待办：更新排期，负责人韩梅梅。",
    ]
    assert "结论：可以接受。" in [s.text for s in script.chapters[3].segments]


def test_links_and_emoji_are_not_read_and_are_reported():
    script = compose(note(ENGLISH))

    assert ("Alice", "We are over by 3.5%. See link in the notes.") in turns(script)
    assert ("Alice", "Thanks!") in turns(script)
    reasons = {skipped.text: skipped.reason for skipped in script.skipped}
    assert reasons["https://x.example/a?b=1"] == "link"
    assert reasons[":smile:"] == "symbol"


def test_table_rows_are_read_as_pairs():
    script = compose(note("| Team | Cost |\n|---|---:|\n| Ops | 10 |\n| Dev | |"))

    assert said(script) == ["Team Ops, Cost 10", "Team Dev"]


def test_table_of_tasks_is_read_as_to_dos():
    script = compose(note("|事项|负责人|截止日期|\n|---|---|---|\n|写文档|李雷|周五|"))

    assert said(script) == ["待办：写文档，负责人李雷，周五前。"]


def test_label_without_a_task_is_not_an_owner():
    assert said(compose(note("待办：Alice: #")), "todo") == ["待办：Alice: #。"]


def test_pace_stays_in_the_range_of_engines():
    script = compose(note("## Decisions\n- go"))
    request = to_request(script, {NARRATOR: "af_heart"}, duration="speed:0.5")

    assert {turn.controls.rate for turn in request.turns} == {0.5}


def test_code_is_announced_and_not_read():
    script = compose(note("Run this:\n```sh\nrm -r build\n```\nThen wait."))

    assert said(script) == ["Run this:", "Code in the notes.", "Then wait."]
    assert script.skipped[0].reason == "code"


def test_unclosed_code_fence_hides_nothing():
    assert "all of it" in compose(note("```\nall of it")).chapters[0].segments[0].text


def test_roster_lets_one_line_hold_two_speakers():
    script = compose(note("李雷：接口延期两天。韩梅梅：我来跟进。"), roster=["李雷", "韩梅梅"])

    assert turns(script) == [("李雷", "接口延期两天。"), ("韩梅梅", "我来跟进。")]


@pytest.mark.parametrize(
    "text",
    [
        "结论：可以接受。",
        "Note: bring a laptop.",
        "http://a.example is down",
        "Ratio: one to two",
        "备注：无",
        "Status: fine\nStatus: still fine",
    ],
)
def test_a_colon_alone_makes_no_speaker(text: str):
    assert turns(compose(note(text))) == []


@pytest.mark.parametrize(
    "text",
    [
        "Alice: Hello\nBob: Hi\nAlice: Bye",
        "**Alice**: Hello\n**Bob**: Hi\n**Alice**: Bye",
        "[00:01] Alice: Hello\n[00:05] Bob: Hi\n[01:12:05] Alice: Bye",
        "Alice 00:01\nHello\nBob 00:05\nHi\n\nAlice 00:09\nBye",
        "- Alice: Hello\n- Bob: Hi\n- Alice: Bye",
    ],
)
def test_transcripts_of_all_forms_give_the_same_turns(text: str):
    script = compose(note(text))

    assert turns(script) == [("Alice", "Hello"), ("Bob", "Hi"), ("Alice", "Bye")]


def test_a_name_is_said_before_the_first_turn_only():
    script = compose(note("Alice: One\nBob: Two\nAlice: Three"))

    assert said(script) == ["Alice:", "One", "Bob:", "Two", "Three"]


def test_a_paragraph_after_a_transcript_is_the_narrators_again():
    script = compose(note("Alice: One\nBob: Two\nAlice: Three\n\nThe meeting ended."))

    last = list(script.segments())[-1]
    assert (last.speaker, last.text) == (NARRATOR, "The meeting ended.")


def test_the_speaker_of_the_row_reads_plain_text():
    script = compose(note("接口延期两天。", speaker="李雷"))

    assert [segment.speaker for segment in script.segments()] == ["李雷"]


def test_one_line_section_ends_with_its_line():
    script = compose(note("We met.\nDecisions: ship on Friday\nThen we left.", title="Sync"))

    assert [(chapter.title, [s.text for s in chapter.segments]) for chapter in script.chapters] == [
        ("Sync", ["Sync"]),
        ("Decisions", ["Decisions", "Decision: ship on Friday"]),
        ("Discussion", ["Discussion", "We met.", "Then we left."]),
    ]


def test_a_speaker_after_a_bare_section_speaks_again():
    script = compose(note("决议\n周五发布\n\n李雷：我不同意。"), roster=["李雷"])

    assert said(script, "decision") == ["决议：周五发布"]
    assert turns(script) == [("李雷", "我不同意。")]


def test_the_emotion_of_a_row_is_for_its_text_and_not_for_headings():
    script = compose(note("# One\nText.\n## Decisions\n- go", emotion="happy"))

    emotions = {segment.kind: segment.emotion for segment in script.segments()}
    assert emotions == {"title": "", "heading": "", "decision": "", "prose": "happy"}


def test_heading_that_repeats_the_title_is_said_once():
    script = compose(note("# Weekly sync\nHello.", title="Weekly Sync"))

    assert said(script) == ["Weekly sync", "Hello."]


def test_lines_broken_by_a_mail_program_are_joined():
    text = "We talked about the plan for the next quarter and\nagreed to go on. Good.\nNew line."

    assert said(compose(note(text))) == [text.replace("and\n", "and ").split("\n")[0], "New line."]


def test_verbatim_keeps_the_order_and_the_words():
    script = compose(note("Hello.\nDecisions: ship\n# Next\n- Alice: go", detail="verbatim"))

    assert said(script) == ["Hello.", "Decisions: ship", "Next", "Alice: go"]


def test_brief_says_decisions_and_to_dos_and_offers_the_rest():
    script = compose(note(ENGLISH, detail="brief"))

    assert [c.title for c in script.chapters] == ["Weekly sync", "Decisions", "Action items"]
    assert [c.title for c in script.offered] == ["Budget"]
    opened = script.opened(0)
    assert opened.title == "Budget"
    assert "I will cut travel." in said(opened)
    with pytest.raises(Unspeakable, match="not offered"):
        script.opened(1)


def test_a_team_may_name_its_own_sections():
    text = "拍板事项：\n- 周五发布\n讨论\n李雷：好。"
    plain, own = (
        compose(note(text)),
        compose(note(text), names=SECTION_NAMES.with_more({"decision": ["拍板事项"]})),
    )

    assert "决议：周五发布" not in said(plain)
    assert "决议：周五发布" in said(own)
    with pytest.raises(ValueError, match="decision, todo"):
        SECTION_NAMES.with_more({"decisions": []})


def test_brief_without_anything_brief_says_everything():
    assert said(compose(note("Just this.", detail="brief"))) == ["Just this."]


def test_other_languages_get_no_english_words():
    script = compose(note("Décisions prises hier. Voir https://a.example\n- [x] fini", lang="fr"))

    assert said(script) == ["Décisions prises hier. Voir", "fini"]


@pytest.mark.parametrize(
    "text", ["", "   \n\n", "https://a.example/b", "🎉🎉", "---\n***", "```\ncode\n```\n"]
)
def test_nothing_to_say_is_an_error_with_a_reason(text: str):
    if "code" in text:
        assert said(compose(note(text))) == ["Code in the notes."]
    elif text.startswith("https"):
        assert said(compose(note(text))) == ["link in the notes"]
    else:
        with pytest.raises(Unspeakable, match="nothing that can be spoken"):
            compose(note(text))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 200_001,
        "\n".join(f"# Chapter {n}\nText." for n in range(201)),
        "\n".join(f"[00:01] Person {n}: Hello" for n in range(41)),
    ],
    ids=["characters", "chapters", "speakers"],
)
def test_too_much_for_one_episode_is_an_error(text: str):
    with pytest.raises(TooLong) as caught:
        compose(note(text))

    assert caught.value.code == "too_long"


def test_script_survives_the_trip_through_json():
    script = compose(note(CHINESE))

    assert Script.from_dict(json.loads(json.dumps(script.to_dict()))) == script


def test_notes_of_a_batch_become_one_episode_with_a_chapter_each():
    scripts = [
        compose(note("Ship on Friday.", title="Sync")),
        compose(note("No title here.")),
        compose(note("Costs rose.\nDecisions: cut", title="Budget")),
    ]

    script = merge("Morning digest", scripts)

    assert [chapter.title for chapter in script.chapters] == [
        "Morning digest",
        "Sync",
        "No title here.",
        "Budget",
        "Decisions",
        "Discussion",
    ]
    assert said(script)[:4] == ["Morning digest", "Sync", "Ship on Friday.", "No title here."]
    with pytest.raises(TooLong):
        merge("Digest", scripts * 70)


def test_digest_is_about_what_is_heard():
    first = compose(note("Alice: One\nBob: Two\nAlice: Three"))
    same = compose(note("Alice: One\r\nBob:  Two\r\nAlice: Three 🎉"))
    other = compose(note("Alice: One\nBob: Two\nAlice: Four"))

    assert first.digest() == same.digest()
    assert first.digest() != other.digest()


def test_casting_gives_each_speaker_a_voice_of_their_language():
    text = "Alice: Hello there\n李雷：你们好\nAlice: Bye now\nBob: Bye\n李雷：再见"
    script = compose(note(text, lang="en"))

    casting = cast(script, VOICES, {}, "zf_xiaobei")

    assert speaker_languages(script)["李雷"] == "zh"
    assert casting[NARRATOR] == "af_heart"
    assert casting["李雷"].startswith("z")
    assert casting["Alice"] == "am_fenrir"  # the narrator is a woman
    assert len(set(casting.values())) == 4


def test_casting_honours_wishes_and_is_the_same_every_time():
    script = compose(note("Alice: One\nBob: Two\nAlice: Three"))

    casting = cast(script, VOICES, {"alice": "am_adam", "default": "af_bella"}, "af_heart")

    assert casting == {NARRATOR: "af_bella", "Alice": "am_adam", "Bob": "af_heart"}
    assert casting == cast(script, VOICES, {"alice": "am_adam", "default": "af_bella"}, "af_heart")


def test_more_speakers_than_voices_share_them():
    lines = [f"[00:01] P{n}: Hello" for n in range(12)]
    casting = cast(compose(note("\n".join(lines))), VOICES, {}, "af_heart")

    assert len(casting) == 13
    assert set(casting.values()) == {v.id for v in VOICES if v.lang == "en"}


def test_speaker_of_a_language_without_voices_gets_the_narrators():
    script = compose(note("Ana: Hola\nAna: Adiós", lang="es"))

    assert cast(script, VOICES, {}, "af_heart") == {NARRATOR: "af_heart", "Ana": "af_heart"}


def test_request_has_a_turn_for_each_segment_and_chapters_begin_at_turns():
    script = compose(note(ENGLISH))
    request = to_request(script, cast(script, VOICES, {}, "af_heart"), live=True)

    assert [turn.text for turn in request.turns] == said(script)
    assert request.live
    for start, chapter in zip(chapter_starts(script), script.chapters, strict=True):
        assert request.turns[start.turn].text == chapter.title == start.title
    decision = next(turn for turn in request.turns if turn.text.startswith("Decision one"))
    assert (decision.controls.rate, decision.controls.manner) == (0.95, "serious")
    heading = next(turn for turn in request.turns if turn.text == "Decisions")
    assert heading.pause_before_ms == 700


@pytest.mark.parametrize(
    ("duration", "rate", "target_s"),
    [
        ("", 1.0, None),
        ("free", 1.0, None),
        ("fixed:90s", 1.0, 90.0),
        ("max:5m", 1.0, None),
        ("speed:1.1", 1.1, None),
        ("max:1s", 1.0, 1.0),
    ],
)
def test_duration_rules_set_pace_or_length(duration: str, rate: float, target_s: float | None):
    script = compose(note("A paragraph that takes about three seconds to say."))
    request = to_request(script, {NARRATOR: "af_heart"}, duration=duration)

    assert request.turns[0].controls.rate == rate
    assert request.target_s == target_s


def characters(text: str) -> Counter[str]:
    return Counter(c for c in text.casefold() if c.isalnum())


_PIECES = [
    "# ", "## 决议\n", "Decisions:", "待办：", "- ", "- [ ] ", "- [x] ", "1. ", "一、", "> ",
    "| a | b |\n|---|---|\n| 1 | 2 |\n", "|事项|负责人|\n|--|--|\n", "|", "Alice: ", "李雷：",
    "[00:12] ", "Bob 10:31\n", "**bold**", "_x_", "https://a.example/b?c=d.", "<br>", "&amp;",
    "[words](https://u.example)", "![alt](pic.png)", ":smile:", "🎉", "@Ann ", "```\n", "。",
    "（负责人：李雷，截止：周五）", "(owner: Bob, due Friday)", "参会人：李雷、王五", "\n", "\n\n",
    ". ", " ", "Summary", "TODO: ", "550e8400-e29b-41d4-a716-446655440000", "1️⃣", "ß", "\u200b",
    "Date: 2026-11-20", "３", "\x07", "WEBVTT\n\n", "7\n00:00:01.000 --> 00:00:02.500\n",
    "00:01,000 --> 00:02,500 align:start\n", "<v Ann Lee (Guest)>", "</v>", "NOTE x\n",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    text=st.lists(st.sampled_from(_PIECES) | st.text(max_size=12), max_size=40).map("".join),
    title=st.sampled_from(["", "Sync", "周会 🎉"]),
    detail=st.sampled_from(["", "full", "brief", "verbatim"]),
    lang=st.sampled_from(["", "zh", "en", "fr"]),
)
@example(text="待办：Alice: # ", title="", detail="", lang="")
@example(text="0||事项|负责人|\n|--|--|\n| - | - |\n", title="", detail="", lang="")
@example(text="- [x] ", title="", detail="", lang="")
def test_every_letter_is_said_or_accounted_for(text: str, title: str, detail: str, lang: str):
    try:
        script = compose(note(text, title=title, detail=detail, lang=lang), roster=["Alice"])
    except ScriptError:
        return

    kept = [f"{s.speaker} {s.text}" for s in script.segments()]
    chapters = [*script.chapters, *script.offered]
    kept += [chapter.title for chapter in chapters if not chapter.segments]
    kept += [f"{s.speaker} {s.text}" for chapter in script.offered for s in chapter.segments]
    kept += [skipped.text for skipped in script.skipped]
    assert characters(f"{title} {text}") - characters(" ".join(kept)) == Counter()
    assert Script.from_dict(json.loads(json.dumps(script.to_dict()))) == script


@pytest.mark.parametrize(
    "unit", ["*", "_a", "[", "<", "# ", "|-", "![", "A:\n", "> ", "&a", "``` "]
)
def test_hostile_repetition_is_read_to_the_end(unit: str):
    text = (unit * 50_000)[:100_000] + " end"

    assert said(compose(note(text)))[-1].endswith("end")


def test_a_named_section_in_one_line_keeps_its_wrapped_words() -> None:
    text = (
        "Summary: the migration finished on Tuesday, and since then the\n"
        "monthly bill is down.\nBudget talk came next."
    )

    script = compose(Note(ref=NoteRef("board"), text=text))

    said = {chapter.title: [one.text for one in chapter.segments] for chapter in script.chapters}
    assert said["Summary"][-1].endswith("since then the monthly bill is down.")
    assert "Budget talk came next." not in said["Summary"]
