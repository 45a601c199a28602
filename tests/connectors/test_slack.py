"""Slack against the fake: commands, shortcuts, mentions, replies that are edited, cards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.base import Accepted, Card, Hook, NoteEvent, NotePatch, NoteRef, Reply
from connectors.errors import (
    ConnectorError,
    Malformed,
    Rejected,
    ToolRefused,
    ToolUnavailable,
)
from connectors.fake.courier import Delivery
from connectors.fake.server import Fake
from connectors.fake.slack import CHANNEL, TEAM, FakeSlack
from connectors.fake.world import World
from connectors.registry import make_connector
from connectors.signing import sign_slack, verify_slack
from connectors.slack import Origin, Slack, escape, plain

NOW = datetime(2026, 11, 20, 1, 30, 6, tzinfo=UTC)
SECRET = "demo-signing-secret"
LINK = "https://notes.example/l/8f2c"
CARD = Card("Sync <b> & co", "3 chapters", LINK, "Listen now")


class Clock:
    """The world's time; moved by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now.timestamp()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> Iterator[Fake]:
    with Fake([FakeSlack], world=World(clock), retry_s=()).running() as fake:
        fake.tool(FakeSlack).posts.limit = 100
        yield fake


@pytest.fixture
def tool(fake: Fake) -> FakeSlack:
    return fake.tool(FakeSlack)


@pytest.fixture
def slack(fake: Fake) -> Iterator[Slack]:
    connector = connect(base_url=fake.url)
    yield connector
    connector._api.close()
    connector._responses.close()


def connect(**more: Any) -> Slack:
    config = {
        "secrets": {"signing": [SECRET], "bot_token": "xoxb-demo-token"},
        "channel": CHANNEL,
    } | more
    connector = make_connector("slack", "desk", config)
    assert isinstance(connector, Slack)
    return connector


def hook_of(delivery: Delivery) -> Hook:
    return Hook("POST", delivery.headers, delivery.body, NOW)


def events_of(slack: Slack, delivery: Delivery) -> list[NoteEvent]:
    hook = hook_of(delivery)
    body = slack.verify(hook, now=NOW)
    assert isinstance(body, bytes)
    return slack.events(body, hook)


def only(slack: Slack, delivery: Delivery) -> NoteEvent:
    (event,) = events_of(slack, delivery)
    return event


def said(tool: FakeSlack) -> list[str]:
    """What the app wrote into the channel."""
    return [message["text"] for message in tool.channels[CHANNEL] if "bot_id" in message]


def text_of(reply: Reply) -> str:
    content = json.loads(reply.body)
    assert (reply.status, content["response_type"]) == (200, "ephemeral")
    return str(content["text"])


def test_frozen_vector():
    headers = sign_slack("demo-signing", 1_700_000_000, b"command=%2Fnotecast")

    assert headers == {
        "x-slack-request-timestamp": "1700000000",
        "x-slack-signature": "v0=29b15fd8135f66a6de2c317f9c85a0b3ef290b53e35aaee091de4a818dc320e0",
    }


@pytest.mark.parametrize(
    ("age_s", "genuine"), [(299, True), (-299, True), (301, False), (-301, False)]
)
def test_signature_counts_for_five_minutes(slack: Slack, tool, age_s: int, genuine: bool):
    hook = hook_of(tool.command("Alice: ship Friday"))
    at = NOW.replace(microsecond=0) + timedelta(seconds=age_s)

    if genuine:
        assert slack.verify(hook, now=at) == hook.body
    else:
        with pytest.raises(Rejected, match="tolerance"):
            slack.verify(hook, now=at)


def test_handshake_is_answered_if_it_is_signed(slack: Slack, tool: FakeSlack):
    delivery = tool.deliver({"type": "url_verification", "challenge": 'a"b', "token": "t"})

    reply = slack.verify(hook_of(delivery), now=NOW)

    assert isinstance(reply, Reply)
    assert json.loads(reply.body) == {"challenge": 'a"b'}
    with pytest.raises(Rejected):
        slack.verify(Hook("POST", {}, delivery.body, NOW), now=NOW)


def test_command_carries_its_note_and_the_answer_the_link(slack: Slack, tool: FakeSlack):
    delivery = tool.command("Alice: ship &lt;Friday&gt; &amp; test")

    event = only(slack, delivery)
    answer = slack.answer(Accepted("ep_1", "queued", LINK), hook_of(delivery))

    assert event.note is not None
    assert event.note.text == "Alice: ship <Friday> & test"
    form = parse_qs(delivery.body.decode())
    assert event.delivery_key == form["trigger_id"][0]
    assert (event.ref.container, event.ref.table) == (TEAM, CHANNEL)
    assert text_of(answer) == f"Queued. <{LINK}|Listen live> as soon as it begins."


def test_anything_but_a_command_is_answered_without_words(slack: Slack, tool: FakeSlack):
    accepted = Accepted("ep_1", "queued", LINK)
    for body in (b"payload=%7B%7D", b'{"type": "event_callback", "command": "/x"}'):
        answer = slack.answer(accepted, Hook("POST", {}, body, NOW))
        assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize("text", ["", "   ", "https://a.example/notes", "<https://a.example>"])
def test_command_without_text_is_answered_with_help(slack: Slack, tool: FakeSlack, text: str):
    with pytest.raises(Malformed) as caught:
        only(slack, tool.command(text))

    assert "Write the text" in text_of(slack.refuse(caught.value))


def test_command_tells_its_author_when_it_is_done_and_only_then(slack: Slack, tool: FakeSlack):
    event = only(slack, tool.command("Alice: ship Friday"))
    (response,) = tool.responses.values()

    slack.write_back(event.ref, NotePatch("a", "queued", LINK))
    slack.write_back(event.ref, NotePatch("b", "live", LINK))
    slack.write_back(event.ref, NotePatch("c", "done", LINK, duration_s=63.2))

    (posted,) = response.posted
    assert posted["text"] == f"Read aloud (1:03): <{LINK}|listen to the recording>."
    assert posted["response_type"] == "ephemeral"
    assert said(tool) == []


def test_response_address_that_is_used_up_is_no_error(slack: Slack, tool: FakeSlack, clock: Clock):
    event = only(slack, tool.command("Alice: ship Friday"))
    clock.now += timedelta(hours=1)

    assert slack.write_back(event.ref, NotePatch("c", "done", LINK)) is None

    (response,) = tool.responses.values()
    assert response.posted == []


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/commands/T1/1/x",
        "https://hooks.slack.com.evil.example/commands/T1/1/x",
        "https://hooks.slack.com@evil.example/",
        "http://hooks.slack.com/commands/T1/1/x",
        "https://hooks.slack.com/../x",
        "https://hooks.slack.com",
        "",
    ],
)
def test_only_slacks_own_response_addresses_are_used(slack: Slack, fake: Fake, url: str):
    body = urlencode(
        {"command": "/notecast", "text": "hello", "channel_id": CHANNEL, "trigger_id": "1.2"}
        | {"response_url": url}
    ).encode()
    headers = sign_slack(SECRET, int(NOW.timestamp()), body)
    event = only(slack, Delivery("", headers, body))

    slack.write_back(event.ref, NotePatch("c", "done", LINK))

    assert Origin.of(event.ref.key).reply == ""
    assert fake.seen == []


def test_link_of_a_message_is_read_with_its_thread(slack: Slack, tool: FakeSlack):
    root = tool.say("U0ALICE", "*Release* is on <https://a.example|Friday>.")
    tool.say("U0BOB", "Then I write the note, <@U0ALICE|alice>.", thread=root)
    tool.say("U0GONE", "Fine.", thread=root)
    seconds, _, micros = root.partition(".")
    link = f"https://demo.slack.com/archives/{CHANNEL}/p{seconds}{micros}?thread_ts={root}&cid=C1"

    event = only(slack, tool.command(f"<{link}|a message>"))
    (note,) = slack.read([event.ref])

    assert (event.note, event.asked) == (None, True)
    assert note.text == (
        "Alice: **Release** is on Friday.\n\nBob: Then I write the note, alice.\n\nFine."
    )


def test_single_message_is_spoken_by_its_author(slack: Slack, tool: FakeSlack):
    ts = tool.say("U0BOB", "Ship it.")
    ref = NoteRef("desk", TEAM, CHANNEL, str(Origin("link", ts, "")))

    (note,) = slack.read([ref])

    assert (note.speaker, note.text) == ("Bob", "Ship it.")


def test_long_thread_is_read_page_by_page(slack: Slack, tool: FakeSlack, fake: Fake):
    root = tool.say("U0ALICE", "0")
    for n in range(1, 450):
        tool.say("U0ALICE", str(n), thread=root)

    (note,) = slack.read([NoteRef("desk", TEAM, CHANNEL, str(Origin("link", root, "")))])

    assert note.text.count("Alice: ") == 450
    assert sum(seen.path == "/api/conversations.replies" for seen in fake.seen) == 3


def test_message_that_is_gone_is_left_out(slack: Slack):
    assert list(slack.read([NoteRef("desk", TEAM, CHANNEL, str(Origin("link", "1.2", "")))])) == []


def test_shortcut_reads_the_message_and_answers_its_user(slack: Slack, tool: FakeSlack):
    ts = tool.say("U0BOB", "Decisions: ship on Friday")

    event = only(slack, tool.shortcut(ts))
    slack.write_back(event.ref, NotePatch("a", "queued", LINK))

    assert event.note is not None and event.note.text == "Decisions: ship on Friday"
    (response,) = tool.responses.values()
    assert LINK in response.posted[0]["text"]


def test_mention_is_answered_in_its_thread_by_one_message_that_is_edited(
    slack: Slack, tool: FakeSlack, fake: Fake
):
    event = only(slack, tool.mention("Alice: ship Friday"))
    queued = NotePatch("a", "queued", LINK)
    for patch in (
        queued,
        queued,
        NotePatch("b", "live", LINK),
        NotePatch("c", "done", LINK, duration_s=63.2),
        NotePatch("c", "done", LINK, duration_s=63.2),
    ):
        slack.write_back(event.ref, patch)

    assert event.note is not None and event.note.text == "Alice: ship Friday"
    assert said(tool) == [f"Read aloud (1:03): <{LINK}|listen to the recording>."]
    reply = tool.channels[CHANNEL][-1]
    assert reply["thread_ts"] == tool.channels[CHANNEL][0]["ts"]
    posts = [seen for seen in fake.seen if seen.path == "/api/chat.postMessage"]
    assert len(posts) == 1


def test_mention_in_a_thread_reads_the_thread_without_itself_and_our_replies(
    slack: Slack, tool: FakeSlack
):
    root = tool.say("U0ALICE", "Ship on Friday?")
    tool.say("U0BOB", "Yes.", thread=root)
    first = only(slack, tool.mention("", thread=root))
    slack.write_back(first.ref, NotePatch("a", "queued", LINK))
    second = only(slack, tool.mention("", thread=root))
    slack.write_back(second.ref, NotePatch("a", "queued", f"{LINK}2"))

    (note,) = slack.read([second.ref])

    assert note.text.startswith("Alice: Ship on Friday?\n\nBob: Yes.")
    assert LINK not in note.text
    assert len(said(tool)) == 2


def test_mention_without_text_or_thread_is_malformed(slack: Slack, tool: FakeSlack):
    with pytest.raises(Malformed, match="no text and stands in no thread"):
        events_of(slack, tool.mention(""))


@pytest.mark.parametrize(
    "content",
    [
        {"type": "event_callback", "event_id": "E", "event": {"type": "message", "text": "x"}},
        {
            "type": "event_callback",
            "event_id": "E",
            "event": {
                "type": "app_mention", "bot_id": "B1", "text": "x", "ts": "1.2", "channel": "C1",
            },
        },
        {"type": "app_rate_limited"},
        {"type": "event_callback", "event": [1]},
    ],
)  # fmt: skip
def test_other_events_and_robots_are_ignored(slack: Slack, tool: FakeSlack, content: Any):
    assert events_of(slack, tool.deliver(content)) == []


def test_failure_is_told_in_fixed_words(slack: Slack, tool: FakeSlack):
    event = only(slack, tool.mention("hello"))

    slack.write_back(event.ref, NotePatch("a", "failed", LINK, error="too_long"))

    assert said(tool) == ["Not read aloud. too_long: the notes are too long for one recording"]


def test_card_is_escaped_and_shown(slack: Slack, tool: FakeSlack, fake: Fake):
    slack.notify(CARD)

    assert said(tool) == [f"*Sync &lt;b&gt; &amp; co*\n3 chapters\n<{LINK}|Listen now>"]
    (message,) = fake.world.messages
    assert (message.link, message.button) == (LINK, "Listen now")


def test_escaped_text_cannot_call_everybody():
    assert escape("<!channel> & <@U1>") == "&lt;!channel&gt; &amp; &lt;@U1&gt;"


@given(text=st.text())
def test_escaped_text_is_read_back_as_it_was(text: str):
    stripped = text.strip()
    if "*" not in stripped:
        assert plain(escape(stripped)) == stripped


@pytest.mark.parametrize(
    ("mrkdwn", "markdown"),
    [
        ("<https://a.example|words> here", "words here"),
        ("<https://a.example>", "https://a.example"),
        ("<@U1> and <@U2|bob> in <#C1|general>", "and bob in general"),
        ("<!here> <!date^1^{date}|today>", "here today"),
        ("*Decisions*\n• ship", "**Decisions**\n• ship"),
        ("2*3*4 and **kept**", "2*3*4 and **kept**"),
        ("&amp;lt;", "&lt;"),
    ],
)
def test_mrkdwn_becomes_markdown(mrkdwn: str, markdown: str):
    assert plain(mrkdwn) == markdown


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        ("not_in_channel", "/invite it there"),
        ("invalid_auth", "OAuth & Permissions"),
        ("missing_scope", "lacks a scope"),
        ("something_new", "something_new"),
    ],
)
def test_refusals_name_the_cure(slack: Slack, fake: Fake, error: str, cure: str):
    fake.fail("POST *", status=200, body={"ok": False, "error": error, "needed": "chat:write"})

    with pytest.raises(ToolRefused, match=cure):
        slack.notify(CARD)


def test_channel_is_called_once_a_second(slack: Slack, tool: FakeSlack):
    tool.posts.limit = 1
    slack.notify(CARD)

    with pytest.raises(ToolUnavailable) as caught:
        slack.notify(CARD)

    ref = NoteRef("desk", TEAM, "C0OTHER", "mention 1.2 1.2")
    assert caught.value.after_s == 1.0
    assert slack.bucket(None, "notify").name != slack.bucket(ref, "write").name
    assert slack.bucket(ref, "write").per_s == 1


def test_check_asks_slack_about_the_token(slack: Slack, tool: FakeSlack):
    assert slack.problems() == []
    tool.bot_token = "xoxb-another"

    with pytest.raises(ToolRefused, match="copy it again"):
        slack.problems()

    missing = connect(secrets={}).problems()
    assert [sentence.partition(" ")[0] for sentence in missing] == [
        "secrets.signing",
        "secrets.bot_token",
    ]


def test_busy_slack_is_unavailable(slack: Slack, fake: Fake):
    fake.fail("POST *", status=200, body={"ok": False, "error": "internal_error"})

    with pytest.raises(ToolUnavailable):
        slack.notify(CARD)


def test_card_without_a_channel_is_explained():
    with pytest.raises(ToolRefused, match="set channel"):
        connect(channel="").notify(CARD)


def test_without_a_token_links_are_not_read():
    slack = connect(secrets={"signing": [SECRET]})
    body = urlencode(
        {"command": "/notecast", "channel_id": CHANNEL, "trigger_id": "1.2"}
        | {"text": "https://demo.slack.com/archives/C1AAA/p1700000000000100"}
    ).encode()

    with pytest.raises(Malformed):
        slack.events(body, Hook("POST", {}, body, NOW))


_SMALL = st.text(max_size=30)


@given(
    headers=st.fixed_dictionaries(
        {},
        optional={
            "x-slack-request-timestamp": _SMALL | st.just(str(int(NOW.timestamp()))),
            "x-slack-signature": _SMALL,
        },
    ),
    body=st.binary(max_size=50),
)
def test_hostile_requests_are_rejected_and_nothing_else(headers: dict[str, str], body: bytes):
    with pytest.raises(Rejected):
        verify_slack([SECRET, "other"], headers, body, now=NOW)


@given(
    body=st.binary()
    | st.dictionaries(
        st.sampled_from(["command", "text", "payload", "trigger_id", "channel_id"]), st.text()
    ).map(lambda form: urlencode(form, errors="surrogatepass").encode())
    | st.dictionaries(
        st.sampled_from(["type", "event", "event_id"]),
        st.sampled_from(["event_callback", 1, None, {"type": "app_mention"}, {"type": "x"}]),
    ).map(lambda content: json.dumps(content).encode())
)
def test_odd_bodies_are_events_or_answered_in_words(body: bytes):
    slack = connect()

    try:
        events = slack.events(body, Hook("POST", {}, body, NOW))
    except ConnectorError as error:
        assert text_of(slack.refuse(error))
    else:
        assert all(len(event.delivery_key) <= 200 for event in events)
