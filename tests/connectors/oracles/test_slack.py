"""slack-sdk as judge: its requests are ours, it takes our signature, and our fake suits it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.base import Card, NotePatch, NoteRef
from connectors.errors import Rejected
from connectors.fake.faults import Seen
from connectors.fake.server import Fake
from connectors.fake.slack import CHANNEL, TEAM, FakeSlack
from connectors.fake.tool import read_content
from connectors.registry import make_connector
from connectors.signing import sign_slack, verify_slack
from connectors.slack import MARK, Origin, Slack

pytestmark = pytest.mark.oracle

AT = 1_700_000_000
NOW = datetime.fromtimestamp(AT, UTC)
SECRET = "demo-signing-secret"
LINK = "https://notes.example/l/8f2c"


@pytest.fixture(scope="module")
def sdk() -> ModuleType:
    return pytest.importorskip("slack_sdk")


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake([FakeSlack], retry_s=()).running() as fake:
        fake.tool(FakeSlack).posts.limit = 100
        yield fake


@pytest.fixture
def ours(fake: Fake) -> Iterator[Slack]:
    config = {
        "base_url": fake.url,
        "secrets": {"signing": [SECRET], "bot_token": "xoxb-demo-token"},
        "channel": CHANNEL,
    }
    connector = make_connector("slack", "desk", config)
    assert isinstance(connector, Slack)
    yield connector
    connector._api.close()
    connector._responses.close()


@pytest.fixture
def theirs(sdk: ModuleType, fake: Fake) -> Any:
    return sdk.WebClient("xoxb-demo-token", base_url=f"{fake.url}/api/")


def asked(seen: Seen) -> tuple[Any, ...]:
    """What two clients must agree on; reading methods take a form."""
    content = read_content(seen.headers["content-type"], seen.body)
    return seen.method, seen.path, seen.query, content, seen.headers["authorization"]


def last(fake: Fake, call: Callable[[], Any]) -> tuple[Any, ...]:
    call()
    return asked(fake.seen[-1])


def test_card_is_posted_alike(fake: Fake, ours: Slack, theirs: Any):
    text = f"*Sync*\n3 chapters\n<{LINK}|Listen now>"

    assert last(
        fake,
        lambda: theirs.chat_postMessage(
            channel=CHANNEL, text=text, unfurl_links=False, unfurl_media=False
        ),
    ) == last(fake, lambda: ours.notify(Card("Sync", "3 chapters", LINK, "Listen now")))


def test_thread_is_read_and_answered_alike(fake: Fake, ours: Slack, theirs: Any):
    tool = fake.tool(FakeSlack)
    ts = tool.say("U0ALICE", "hello")
    ref = NoteRef("desk", TEAM, CHANNEL, str(Origin("mention", ts, ts)))
    ours.write_back(ref, NotePatch("a", "queued", LINK))
    ours.write_back(ref, NotePatch("b", "live", LINK))
    replies, post, _, update = (asked(seen) for seen in fake.seen)
    mine = tool.channels[CHANNEL][-1]
    metadata = {"event_type": MARK, "event_payload": {"note": ref.key}}

    assert replies == last(
        fake,
        lambda: theirs.conversations_replies(
            channel=CHANNEL, ts=ts, limit=200, include_all_metadata=True
        ),
    )
    assert post == last(
        fake,
        lambda: theirs.chat_postMessage(
            channel=CHANNEL,
            text=f"Queued. <{LINK}|Listen live> as soon as it begins.",
            thread_ts=ts,
            metadata=metadata,
            unfurl_links=False,
        ),
    )
    assert update == last(
        fake,
        lambda: theirs.chat_update(
            channel=CHANNEL, ts=mine["ts"], text=mine["text"], metadata=metadata
        ),
    )


def test_people_are_asked_for_alike(fake: Fake, ours: Slack, theirs: Any):
    ts = fake.tool(FakeSlack).say("U0ALICE", "hello")
    ref = NoteRef("desk", TEAM, CHANNEL, str(Origin("link", ts, "")))

    assert last(fake, lambda: list(ours.read([ref]))) == last(
        fake, lambda: theirs.users_info(user="U0ALICE")
    )


def test_response_address_is_used_alike(sdk: ModuleType, fake: Fake, ours: Slack):
    from slack_sdk.webhook import WebhookClient

    tool = fake.tool(FakeSlack)
    tool.command("hello")
    (path,) = tool.responses
    ref = NoteRef("desk", TEAM, CHANNEL, str(Origin("text", "1.2", path)))
    ours.write_back(ref, NotePatch("c", "done", LINK))
    ours_posted = fake.seen[-1].json

    answer = WebhookClient(f"{fake.url}{path}").send(
        text=ours_posted["text"], response_type="ephemeral", replace_original=True
    )

    assert answer.status_code == 200
    assert fake.seen[-1].json == ours_posted


def test_it_understands_the_refusals_of_the_fake(sdk: ModuleType, fake: Fake, theirs: Any):
    from slack_sdk.errors import SlackApiError

    with pytest.raises(SlackApiError, match="channel_not_found"):
        theirs.chat_postMessage(channel="C0NONE", text="x")
    fake.tool(FakeSlack).posts.limit = 1
    theirs.chat_postMessage(channel=CHANNEL, text="x")
    with pytest.raises(SlackApiError, match="ratelimited") as caught:
        theirs.chat_postMessage(channel=CHANNEL, text="x")

    assert caught.value.response.headers["Retry-After"] == "1"


class Clock:
    """Time for its verifier."""

    def now(self) -> float:
        return float(AT)


def verifier(secret: str) -> Any:
    from slack_sdk.signature import SignatureVerifier

    return SignatureVerifier(secret, Clock())  # type: ignore[arg-type]


@given(body=st.text(), secret=st.text(min_size=1).filter(str.strip))
def test_each_takes_what_the_other_signed(sdk: ModuleType, body: str, secret: str):
    judge = verifier(secret)
    theirs = {
        "x-slack-request-timestamp": str(AT),
        "x-slack-signature": judge.generate_signature(timestamp=str(AT), body=body),
    }
    ours = sign_slack(secret, AT, body.encode())

    assert ours == theirs
    assert judge.is_valid_request(body.encode(), ours)
    verify_slack([secret], theirs, body.encode(), now=NOW)


_ODD = st.text(max_size=20) | st.sampled_from([str(AT), f"0{AT}", "1e9", f" {AT}", "v0=é"])


@given(timestamp=_ODD, signature=_ODD, body=st.binary(max_size=30))
def test_what_it_refuses_or_stumbles_over_is_rejected_by_us(
    sdk: ModuleType, timestamp: str, signature: str, body: bytes
):
    headers = {"x-slack-request-timestamp": timestamp, "x-slack-signature": signature}
    try:
        genuine = verifier(SECRET).is_valid_request(body, headers)
    except (ValueError, TypeError):  # a number that is none, a body that is no text, ...
        genuine = False

    assert not genuine
    with pytest.raises(Rejected):
        verify_slack([SECRET], headers, body, now=NOW)
