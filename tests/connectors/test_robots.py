"""Cards in groups: signatures, codes in the body, budgets; against the fakes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from connectors.base import Card
from connectors.errors import ConfigError, ToolRefused, ToolUnavailable
from connectors.fake.feishu import FakeFeishu
from connectors.fake.robots import FakeDingTalk, FakeWeCom
from connectors.fake.server import Fake
from connectors.registry import make_connector
from connectors.signing import sign_dingtalk_robot, sign_feishu_robot

CARD = Card(
    "周例会 正在播报", "3 个章节，约 4 分钟", "https://notes.example/l/8f2c", "立即收听", lang="zh"
)
PATHS = {
    "feishu_robot": "/open-apis/bot/v2/hook/demo",
    "dingtalk_robot": "/robot/send?access_token=demo",
    "wecom_robot": "/cgi-bin/webhook/send?key=demo",
}
SECRETS = {"feishu_robot": "demo-robot-secret", "dingtalk_robot": "SECdemo"}


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake([FakeFeishu, FakeDingTalk, FakeWeCom], retry_s=()).running() as fake:
        yield fake


def robot(fake: Fake, name: str, **changes: Any):
    config: dict[str, Any] = {"url": fake.url + PATHS[name]}
    if name in SECRETS:
        config["secret"] = SECRETS[name]
    return make_connector(name, "group", config | changes)


def test_frozen_vectors_of_the_two_signatures_that_are_mixed_up():
    feishu = sign_feishu_robot("demo-secret", 1_700_000_000)
    dingtalk = sign_dingtalk_robot("SECdemo", 1_700_000_000_000)

    assert feishu == "mYHw2R2SOm8Rw/sne3lQdmz4sOfntKR+1P/8RKKTwmA="
    assert quote(dingtalk, safe="") == "lOvVf9TQCVugV68mGbSZCg0gzOl1SVjxWi1MyVZCUuA%3D"


@pytest.mark.parametrize("name", PATHS)
def test_a_card_says_title_text_and_link(fake, name):
    robot(fake, name).notify(CARD)

    (message,) = fake.world.messages
    assert message.title == CARD.title
    assert "3 个章节，约 4 分钟" in message.text
    assert message.link == CARD.link
    assert CARD.button in (message.button, message.text.splitlines()[-1].removeprefix("▶ "))


@pytest.mark.parametrize("name", PATHS)
def test_what_people_wrote_is_no_markup(fake, name):
    text = "<at id=all></at> [click](https://evil.example) <font color='red'>`x`</font>\n**b**"
    card = Card(text, text, CARD.link, "Listen", "failed")

    robot(fake, name).notify(card)

    sent = json.loads(fake.seen[0].body)
    if name == "feishu_robot":
        tags = re.findall(r"'tag': '(\w+)'", str(sent))
        assert set(tags) == {"plain_text", "div", "action", "button"}
    if name == "dingtalk_robot":
        shown = sent["actionCard"]["title"] + sent["actionCard"]["text"]
        assert not set("<>[]`") & set(shown)
    assert len(fake.world.messages) == 1


@pytest.mark.parametrize("name", PATHS)
def test_long_titles_and_texts_are_cut_to_what_the_robot_takes(fake, name):
    robot(fake, name).notify(Card("题" * 500, "文" * 9_000, CARD.link, "Listen"))

    (message,) = fake.world.messages
    assert message.title.endswith("…")
    assert len(fake.seen[0].body) < 20_000


@pytest.mark.parametrize(
    ("name", "secret", "message"),
    [
        ("feishu_robot", "SECdemo", "19021: the signature does not fit"),
        ("dingtalk_robot", "demo-robot-secret", "310000: the robot's security settings"),
    ],
)
def test_the_secret_of_another_robot_is_named_as_the_cause(fake, name, secret, message):
    with pytest.raises(ToolRefused, match=message) as caught:
        robot(fake, name, secret=secret).notify(CARD)

    assert secret not in str(caught.value)
    assert fake.world.messages == []


@pytest.mark.parametrize("name", SECRETS)
def test_a_robot_without_a_secret_is_not_signed(fake, name):
    fake.tool(FakeFeishu).robots["demo"] = fake.tool(FakeDingTalk).robots["demo"] = ""

    robot(fake, name, secret=[] if name == "feishu_robot" else None).notify(CARD)

    assert "sign" not in (fake.seen[0].json | dict(fake.seen[0].query))


def test_both_secrets_of_a_feishu_robot_are_tried_while_it_is_changed(fake):
    robot(fake, "feishu_robot", secret=["new-secret", "demo-robot-secret"]).notify(CARD)

    assert len(fake.world.messages) == 1
    with pytest.raises(ToolRefused, match="19021"):
        robot(fake, "feishu_robot", secret=["new-secret", "other"]).notify(CARD)


@pytest.mark.parametrize(
    ("name", "least_s", "most_s"),
    [("feishu_robot", 30.0, 90.0), ("dingtalk_robot", 600.0, 600.0), ("wecom_robot", 60.0, 60.0)],
)
def test_too_many_cards_are_refused_with_a_wait(fake, name, least_s, most_s):
    sender = robot(fake, name)

    with pytest.raises(ToolUnavailable, match="asks for fewer") as caught:
        for _ in range(21):
            sender.notify(CARD)

    assert caught.value.after_s is not None
    assert least_s <= caught.value.after_s <= most_s
    assert not caught.value.unanswered


@pytest.mark.parametrize("name", PATHS)
def test_an_address_that_is_no_robots_says_so(fake, name):
    url = fake.url + PATHS[name].replace("demo", "gone")

    with pytest.raises(ToolRefused, match="copy it anew") as caught:
        robot(fake, name, url=url).notify(CARD)

    assert "gone" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "url", "message"),
    [
        ("feishu_robot", "https://oapi.dingtalk.com/robot/send?access_token=a", "dingtalk_robot"),
        ("wecom_robot", "https://open.feishu.cn/open-apis/bot/v2/hook/a", "feishu_robot"),
        ("wecom_robot", "http://qyapi.weixin.qq.com/x?key=hunter2", "must be the https address"),
        ("dingtalk_robot", "hunter2", "must be the https address"),
    ],
)
def test_an_address_in_the_wrong_place_is_caught_at_once(name, url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_connector(name, "group", {"url": url})

    assert "hunter2" not in str(caught.value)


def test_budgets_are_shared_by_address_and_keep_it_secret(fake):
    first, again = robot(fake, "feishu_robot"), robot(fake, "feishu_robot")
    other = robot(fake, "wecom_robot")

    one, two, three = (made.bucket(None, "notify") for made in (first, again, other))

    assert one == two
    assert (one.per_min, three.per_min) == (90.0, 18.0)
    assert "demo" not in one.name + three.name
    assert "demo" not in repr(first)
