"""`connectors.toml`: what it may say, and what is said when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.base import Note, NoteRef
from pipeline.endpoints import BadEndpoints, Endpoint, load_endpoints, load_section_names
from pipeline.script import SECTION_NAMES

SECRET = "whsec_bm90ZWNhc3QtZGVtby1zZWNyZXQtMDAwMQ=="
ENV = {"NC_BOARD_SECRET": SECRET, "NC_TOKEN": "a-token-of-the-automation", "EMPTY": ""}
BOARD = '[endpoint.board]\nconnector = "webhook"\nsecrets = { webhook = ["env:NC_BOARD_SECRET"] }\n'


def load(folder: Path, text: str) -> dict[str, Endpoint]:
    path = folder / "connectors.toml"
    path.write_text(text, "utf-8")
    return load_endpoints(path, env=ENV)


def test_three_lines_make_an_endpoint(tmp_path):
    (board,) = load(tmp_path, BOARD).values()

    assert (board.name, board.address, board.connector.name) == ("board", "board", "webhook")


def test_notes_may_be_kept_for_a_schedule(tmp_path):
    assert load(tmp_path, BOARD)["board"].speaks_now
    assert not load(tmp_path, BOARD + 'speak = "schedule"')["board"].speaks_now


def test_full_endpoint(tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "base.txt").write_text("token-of-the-base\n")
    text = """
[voices]
anna = "af_heart"

[endpoint.zhou_hui]
connector = "feishu_automation"
id = "8f2c-hook"
secrets = { token = ["env:NC_TOKEN"], write_back = "file:secrets/base.txt" }
write_back_url = "https://base.example/hook"
labels = { done = "Done" }

[endpoint.zhou_hui.fields]
lang = { const = "zh" }
detail = { const = "brief" }

[endpoint.zhou_hui.voices]
"李雷" = "zm_yunxi"
Alice = "anna"
default = "zf_xiaobei"
"""
    endpoint = load(tmp_path, text)["zhou_hui"]

    assert endpoint.address == "8f2c-hook"
    assert endpoint.voices == {"李雷": "zm_yunxi", "Alice": "af_heart", "default": "zf_xiaobei"}
    note = endpoint.complete(Note(NoteRef("zhou_hui"), "x", lang="en"))
    assert (note.lang, note.detail) == ("en", "brief")
    assert "token-of-the-base" not in repr(endpoint)


def test_the_notes_own_voices_win_over_the_endpoints(tmp_path):
    text = BOARD + '[endpoint.board.voices]\nAlice = "af_bella"\n[voices]\nanna = "af_heart"\n'
    board = load(tmp_path, text)["board"]
    note = Note(NoteRef("board"), "x", voice="bm_george", speakers={"Alice": "anna"})

    assert board.casting(note) == {"Alice": "af_heart", "default": "bm_george"}
    assert board.casting(Note(NoteRef("board"), "x")) == {"Alice": "af_bella"}


def test_the_voice_of_a_row_with_a_speaker_is_the_speakers(tmp_path):
    board = load(tmp_path, BOARD)["board"]
    note = Note(NoteRef("board"), "x", voice="bm_george", speaker="Bob")

    assert board.casting(note)["Bob"] == "bm_george"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[endpoint", "not TOML"),
        ("[endpoints.a]", "endpoints: unknown key; did you mean 'endpoint'"),
        ("endpoint = 1", "endpoint: must be a table"),
        ("[endpoint.a]", 'endpoint.a.connector: missing: write connector = "webhook"'),
        ('[endpoint."A B"]\nconnector = "webhook"', "stands in an address"),
        (BOARD.replace('"webhook"', '"webhok"'), "endpoint.board.connector: unknown 'webhok'"),
        (BOARD.replace("secrets", "secret"), "endpoint.board.secret: .*did you mean 'secrets'"),
        (BOARD + 'voice = "x"', "endpoint.board.voice: unknown key; did you mean 'voices'"),
        (BOARD.replace("env:NC_BOARD_SECRET", SECRET), "write env:NAME or file:path"),
        (BOARD.replace("NC_BOARD_SECRET", "NC_NONE"), "NC_NONE is not set: export NC_NONE"),
        (BOARD.replace("NC_BOARD_SECRET", "EMPTY"), "EMPTY is not set"),
        (BOARD.replace("NC_BOARD_SECRET", "NC_TOKEN"), "secrets.webhook: not a webhook secret"),
        (BOARD.replace("env:NC_BOARD_SECRET", "file:none"), "file:none cannot be read"),
        (BOARD.replace("env:NC_BOARD_SECRET", "file:../x"), "must lie in the folder"),
        (BOARD + 'speak = "later"', "speak: must be"),
        (BOARD + '[endpoint.board.fields]\ntitle = "Title"', "fields.title: unknown key"),
        (BOARD + '[endpoint.board.fields]\nlang = "zh"', 'write lang = { const = "..." }'),
        (BOARD + '[endpoint.board.fields]\nduration = { const = "long" }', "fields.duration"),
        (BOARD + '[endpoint.board.voices]\nA = "https://a/b.wav"', "voices.A: must name a voice"),
        (BOARD + BOARD.replace("board]", "b]") + 'id = "board"', "has the address of endpoint.bo"),
    ],
)
def test_mistake_is_named_with_file_key_and_cure(tmp_path, text, message):
    with pytest.raises(BadEndpoints, match=message) as caught:
        load(tmp_path, text)

    assert "connectors.toml" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert ENV["NC_TOKEN"] not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(BadEndpoints, match=r"nowhere\.toml: cannot be read"):
        load_endpoints(tmp_path / "nowhere.toml", env={})


NOTIFY = """
    [endpoint.board]
    connector = "webhook"
    secrets = { webhook = ["env:S"] }
"""


def board_of(tmp_path: Path, text: str) -> Endpoint:
    path = tmp_path / "connectors.toml"
    path.write_text(text)
    env = {"S": "whsec_" + "A" * 40, "URL": "https://crm.example/x?token=hush"}
    return load_endpoints(path, env=env)["board"]


def test_groups_and_systems_that_hear_of_notes(tmp_path: Path) -> None:
    board = board_of(
        tmp_path,
        NOTIFY
        + """
        daily_cap = 5
        [[endpoint.board.notify]]
        connector = "wecom_robot"
        url = "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=demo"
        [[endpoint.board.notify]]
        connector = "wecom_robot"
        url = "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=demo"
        on = ["done"]
        [endpoint.board.events]
        url = "env:URL"
        secret = "env:S"
        """,
    )

    assert [one.on for one in board.notify] == [("live", "failed"), ("done",)]
    assert board.daily_cap == 5
    assert board.events is not None
    assert board.events.url.get_secret_value().endswith("hush")
    assert "hush" not in repr(board)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('notify = { connector = "webhook" }', "endpoint.board.notify.connector: webhook posts no"),
        ("notify = { }", "endpoint.board.notify.connector: missing"),
        ('events = { url = "https://x.example" }', "endpoint.board.events.secret: Field required"),
        (
            'events = { url = "https://x.example", secret = "whsec_plain" }',
            "may not stand in this file",
        ),
        ('events = { url = "ftp://x", secret = "env:S" }', "endpoint.board.events.url: must be an"),
        (
            'events = { url = "https://x.example", secret = "env:S", urll = [] }',
            "endpoint.board.events.urll: unknown key; did you mean 'url'?",
        ),
        ("daily_cap = 0", "endpoint.board.daily_cap: must be a number of episodes, 1 or more"),
    ],
)
def test_what_hears_of_notes_is_checked(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadEndpoints) as refused:
        board_of(tmp_path, NOTIFY + text)

    assert message in str(refused.value)


def test_teams_add_their_own_names_of_sections(tmp_path: Path) -> None:
    (tmp_path / "connectors.toml").write_text('[sections]\ndecision = ["拍板事项"]\n', "utf-8")

    names = load_section_names(tmp_path / "connectors.toml")

    assert (names.roles["拍板事项"], names.roles["决议"]) == ("decision", "decision")
    assert load(tmp_path, "") == {}
    assert load_section_names(tmp_path / "connectors.toml") == SECTION_NAMES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[sections]\nverdict = ["Verdict"]',
            "sections.verdict: no kind of section; known: decision, todo, summary, meta, attendees,"
            " other",
        ),
        ('[sections]\ndecision = "Verdict"', "sections.decision: must list names"),
        ('[sections]\ndecision = ["Verdict", 7]', "sections.decision: must list names"),
        ('[sections]\ndecision = ["**"]', "sections.decision: must list names"),
        ('sections = ["Verdict"]', "sections: must be a table"),
        ("[sektions]", "sektions: unknown key; did you mean 'sections'?"),
    ],
)
def test_sections_that_cannot_be_used_are_refused_at_the_start(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(BadEndpoints) as refused:
        load(tmp_path, text)

    assert message in str(refused.value)
