"""Orders to a real installation: its worker dies between order and effect, or while it pauses."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engine.backends.tone import sentence_code
from tests.acceptance.ears import Audience, Heard
from tests.acceptance.stack import Stack, send, wait_for

OPTIONS = {
    "tone_pace": "paced",
    "tone_rtf": 0.15,
    "durable_after_s": 0,
    "lease_ms": 3000,
    "renew_ms": 500,
    "drain_s": 8,
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("control"), OPTIONS)
    stack.start()
    key = stack.data / "api-key"
    wait_for("the admin's key", lambda: key.exists() and key.read_text())
    yield stack
    stack.close()


def create(stack: Stack, name: str, count: int = 7) -> tuple[dict[str, Any], list[str]]:
    texts = [f"This is {name}, sentence number {n}, which takes its time." for n in range(count)]
    made = stack.api("POST", "episodes", json={"text": " ".join(texts)}).json()
    return made, texts


def wait_segments(stack: Stack, key: str, at_least: int) -> None:
    wait_for(
        f"{at_least} stored sentences", lambda: stack.episode(key)["segments_done"] >= at_least
    )


def assert_same(stack: Stack, key: str, heard: Heard, texts: list[str]) -> None:
    """Recording and listener hold every sentence once, and the same ones."""
    stack.assert_complete(key, *texts)
    heard.assert_exact()
    assert heard.codes() == [sentence_code(text) for text in texts]


def test_an_order_is_followed_while_everybody_listens(stack: Stack) -> None:
    made, texts = create(stack, "a change of voice")
    with Audience(made["listen_url"], made["owner_url"]) as audience:
        wait_segments(stack, made["id"], 2)
        answer = stack.api(
            "POST", f"episodes/{made['id']}/control", json={"op": "voice", "value": "tone_c"}
        ).json()
        stack.wait_done(made["id"])

    effect = answer["effect"]
    for heard in audience.heard:
        (cut,) = heard.cuts
        assert (cut["why"], cut["from_seg"], cut["e"]) == ("voice", effect["seg"], effect["epoch"])
        assert_same(stack, made["id"], heard, texts)
    (command,) = stack.query("SELECT * FROM command")
    assert command["applied_fence"] == 1, "whoever spoke it then followed it"
    assert stack.count("audit", "action = 'voice'") == 1


def test_an_order_outlives_the_worker_that_should_have_followed_it(stack: Stack) -> None:
    made, texts = create(stack, "a dead worker")
    key = made["id"]
    answers: list[Any] = []

    def order() -> None:
        order = {"op": "skip", "value": 5, "at": "next"}
        answers.append(stack.api("POST", f"episodes/{key}/control", json=order))

    with Audience(made["listen_url"]) as audience:
        wait_segments(stack, key, 1)
        victim = stack.pid("worker gpu")
        send(victim, signal.SIGSTOP)
        hand = threading.Thread(target=order)
        hand.start()
        wait_for("the order to be stored", lambda: stack.episode(key)["command_head"] == 1)
        assert stack.count("command", "applied_ms IS NOT NULL AND op = 'skip'") == 0
        send(victim, signal.SIGKILL)
        stack.wait_done(key)
        hand.join()
    (heard,) = audience.heard

    (row,) = stack.query("SELECT * FROM command WHERE op = 'skip'")
    assert row["applied_fence"] == 2 + 1, "claim, loss, claim"
    codes = heard.codes()
    left_out = [text for text in texts if sentence_code(text) not in codes]
    assert 0 < len(left_out) < 5
    assert texts[5] not in left_out
    kept = [text for text in texts if text not in left_out]
    assert_same(stack, key, heard, kept)
    assert answers[0].status_code == 200


def test_a_pause_holds_across_the_death_of_the_worker(stack: Stack) -> None:
    made, texts = create(stack, "a long pause")
    key = made["id"]
    with Audience(made["listen_url"]) as audience:
        wait_segments(stack, key, 2)
        assert stack.api("POST", f"episodes/{key}/pause").json()["paused"] is True
        paused = stack.wait_state(key, "queued")
        victim = stack.pid("worker gpu")
        send(victim, signal.SIGKILL)
        wait_for("another worker", lambda: stack.pid("worker gpu") != victim)
        other = stack.accept("Somebody else's note.", key="key-else")
        stack.wait_done(other["episode"])
        time.sleep(1.0)
        assert stack.episode(key)["fence"] == paused["fence"], "nobody has claimed it"
        assert stack.api("GET", f"episodes/{key}").json()["paused"] is True
        assert stack.api("POST", f"episodes/{key}/resume").json()["paused"] is False
        stack.wait_done(key)
    (heard,) = audience.heard

    assert_same(stack, key, heard, texts)
    assert [row["outcome"] for row in attempts(stack, key)] == ["paused", "stored"]
    fences = [
        row["fence"]
        for row in stack.query(
            "SELECT fence FROM segment WHERE episode_id = :id ORDER BY n", id=paused["id"]
        )
    ]
    assert len(set(fences)) == 2, "what was spoken before the pause is not spoken again"


def test_a_stop_reaches_listeners_and_worker_at_once(stack: Stack) -> None:
    made, _texts = create(stack, "a stop")
    key = made["id"]
    with Audience(made["listen_url"]) as audience:
        wait_segments(stack, key, 1)
        assert stack.api("POST", f"episodes/{key}/stop").json()["status"] == "cancelled"
    (heard,) = audience.heard

    assert heard.end["why"] == "stopped"
    assert stack.recordings(key) == {}
    assert stack.api("POST", f"episodes/{key}/pause").status_code == 410


def attempts(stack: Stack, key: str) -> list[dict[str, Any]]:
    return stack.query(
        "SELECT * FROM attempt WHERE episode_id = :id ORDER BY fence", id=stack.episode(key)["id"]
    )
