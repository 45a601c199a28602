"""kill -9 of anything, at any time: nothing accepted is lost, nothing is there twice.

One stack for all of it, with a paced voice, so that there is a middle of a sentence to die in.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.backends.tone import sentence_code
from tests.acceptance.ears import Audience
from tests.acceptance.stack import Stack, is_alive, send, wait_for

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
    stack = Stack(tmp_path_factory.mktemp("crashes"), OPTIONS)
    stack.start()
    yield stack
    stack.close()


def sentences(name: str, count: int = 6) -> list[str]:
    """So many sentences of about three seconds each, all different."""
    return [f"This is {name}, sentence number {n}, which takes its time." for n in range(count)]


def send_sentences(stack: Stack, name: str, count: int = 6) -> tuple[dict[str, str], list[str]]:
    texts = sentences(name, count)
    return stack.accept(" ".join(texts), key=name.replace(" ", "-")), texts


def wait_segments(stack: Stack, key: str, at_least: int) -> None:
    wait_for(
        f"{at_least} stored sentences", lambda: stack.episode(key)["segments_done"] >= at_least
    )


def test_an_episode_goes_on_after_the_last_stored_sentence_when_its_worker_is_killed(
    stack: Stack,
) -> None:
    accepted, texts = send_sentences(stack, "a killed worker")
    key = accepted["episode"]
    with Audience(accepted["listen_url"]) as audience:
        wait_segments(stack, key, 2)
        victim = stack.pid("worker gpu")
        send(victim, signal.SIGKILL)
        stack.wait_done(key)
    (heard,) = audience.heard

    assert stack.pid("worker gpu") != victim
    stack.assert_complete(key, *texts)
    fences = [row["fence"] for row in stack.query("SELECT * FROM segment ORDER BY n")]
    assert fences == sorted(fences)
    assert len(set(fences)) == 2, "sentences that were stored are not spoken again"
    assert [cut["why"] for cut in heard.cuts] == ["retry"]
    assert heard.cuts[0]["from_seg"] == fences.count(fences[0])
    heard.assert_exact()
    assert heard.codes() == [sentence_code(text) for text in texts]
    assert stack.episode(key)["crash_count"] == 0, "it made progress, so nobody suspects it"


def test_killing_valkey_loses_nothing_and_the_listener_hears_all(stack: Stack) -> None:
    accepted, texts = send_sentences(stack, "a killed broker")
    with Audience(accepted["listen_url"]) as audience:
        wait_segments(stack, accepted["episode"], 1)
        send(stack.pid("valkey-server"), signal.SIGKILL)
        while_away = stack.accept("Accepted while the broker was away.", key="key-away")
        stack.wait_done(accepted["episode"])
    (heard,) = audience.heard

    stack.wait_done(while_away["episode"])
    stack.assert_complete(accepted["episode"], *texts)
    stack.assert_complete(while_away["episode"], "Accepted while the broker was away.")
    heard.assert_exact()
    assert heard.codes() == [sentence_code(text) for text in texts]


def test_killing_the_web_process_interrupts_listeners_and_senders_only_for_a_moment(
    stack: Stack,
) -> None:
    accepted, texts = send_sentences(stack, "a killed door")
    with Audience(accepted["listen_url"]) as audience:
        wait_segments(stack, accepted["episode"], 1)
        send(stack.pid("pipeline.cli web"), signal.SIGKILL)
        again = stack.accept(" ".join(texts), key="a-killed-door")
        stack.wait_done(accepted["episode"])
    (heard,) = audience.heard

    assert again["duplicate"] is True
    assert again["listen_url"] == accepted["listen_url"]
    stack.assert_complete(accepted["episode"], *texts)
    assert heard.cuts == [], "nothing was spoken twice"
    heard.assert_exact()


def test_everything_killed_at_once_goes_on_at_the_next_start(stack: Stack) -> None:
    spoken, texts = send_sentences(stack, "a power cut")
    waiting = [stack.accept(f"Waiting note {n}.", key=f"key-wait-{n}") for n in range(12)]
    with Audience(spoken["listen_url"]) as audience:
        wait_segments(stack, spoken["episode"], 2)
        stack.kill()
        stack.start()
        stack.wait_done(spoken["episode"])
    (heard,) = audience.heard

    for one in waiting:
        stack.wait_done(one["episode"])
    stack.assert_complete(spoken["episode"], *texts)
    heard.assert_exact()
    assert heard.codes() == [sentence_code(text) for text in texts]


def test_a_killed_parent_takes_its_children_along_and_a_new_one_can_start_at_once(
    stack: Stack,
) -> None:
    accepted, texts = send_sentences(stack, "an orphan")
    wait_segments(stack, accepted["episode"], 1)
    assert stack.process is not None
    children = stack.pids()
    send(stack.process.pid, signal.SIGKILL)
    stack.process.wait()
    stack.start()

    wait_for("the orphans to be gone", lambda: not any(is_alive(pid) for pid in children))
    stack.wait_done(accepted["episode"])
    stack.assert_complete(accepted["episode"], *texts)


def test_ctrl_c_ends_everything_within_seconds_and_the_next_start_goes_on(stack: Stack) -> None:
    accepted, texts = send_sentences(stack, "an interruption", count=8)
    wait_segments(stack, accepted["episode"], 1)
    children = stack.pids()
    status = stack.stop(signal.SIGINT, timeout_s=30)
    left = stack.episode(accepted["episode"])

    assert status == 0
    assert not any(is_alive(pid) for pid in children)
    assert left["state"] == "queued", "handed over, not waiting for its lease to run out"
    assert 0 < left["segments_done"] < len(texts)
    assert left["crash_count"] == 0
    stack.start()
    stack.wait_done(accepted["episode"])
    stack.assert_complete(accepted["episode"], *texts)


def test_a_worker_that_wakes_up_after_its_lease_changes_nothing(stack: Stack) -> None:
    accepted, texts = send_sentences(stack, "a sleeper")
    key = accepted["episode"]
    wait_segments(stack, key, 1)
    sleeper = stack.pid("worker gpu")
    send(sleeper, signal.SIGSTOP)
    other = subprocess.Popen(
        stack.command("worker", "gpu"),
        env=stack.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        stack.wait_done(key)
        before = history(stack, key)
        send(sleeper, signal.SIGCONT)
        again = stack.accept("The sleeper is awake and works on.", key="key-awake")
        stack.wait_done(again["episode"])
        time.sleep(2 * OPTIONS["renew_ms"] / 1000)  # it has renewed, and learned of its loss
    finally:
        other.terminate()
        other.wait()
        send(sleeper, signal.SIGCONT)

    outcomes = [row["outcome"] for row in before if "outcome" in row]
    assert outcomes == ["reaped", "stored"]
    assert history(stack, key) == before
    stack.assert_complete(key, *texts)
    assert stack.pid("worker gpu") == sleeper, "it needed no restart"


def history(stack: Stack, key: str) -> list[dict[str, object]]:
    """Every row that tells about an episode."""
    row = stack.episode(key)
    tables = ("attempt", "segment", "episode_log", "episode_recording")
    return [row] + [
        found
        for table in tables
        for found in stack.query(
            f"SELECT * FROM {table} WHERE episode_id = :id ORDER BY 1, 2", id=row["id"]
        )
    ]


def test_a_newer_revision_of_a_row_ends_the_older_one_while_it_is_spoken(stack: Stack) -> None:
    texts = sentences("an old row")
    old = stack.accept(" ".join(texts), key="revision-1", ref="row-7")
    with Audience(old["listen_url"]) as audience:
        wait_segments(stack, old["episode"], 1)
        new = stack.accept("New words of the row.", key="revision-2", ref="row-7")
    stack.wait_done(new["episode"])

    assert stack.episode(old["episode"])["state"] == "cancelled"
    assert audience.heard[0].end["why"] == "stopped"
    stack.assert_complete(new["episode"], "New words of the row.")


def test_fifty_listeners_who_come_and_go_all_hear_exactly_what_was_spoken(stack: Stack) -> None:
    accepted, texts = send_sentences(stack, "a crowd", count=5)
    with Audience(*[accepted["listen_url"]] * 50, restless=30) as audience:
        stack.wait_done(accepted["episode"])

    for heard in audience.heard:
        heard.assert_exact()
    assert {heard.sha256 for heard in audience.heard} == {audience.heard[0].end["sha256"]}
    assert max(heard.connections for heard in audience.heard) > 3
    assert audience.heard[0].codes() == [sentence_code(text) for text in texts]


def test_the_directory_holds_one_object_for_each_recording_and_no_other(stack: Stack) -> None:
    wait_for(
        "everything to end",
        lambda: not stack.count("episode", "state NOT IN ('done', 'cancelled')"),
    )
    named = {row["object_key"] for row in stack.query("SELECT object_key FROM recording")}
    root = Path(stack.data / "objects")
    lying = {str(path.relative_to(root)) for path in (root / "rec").rglob("*") if path.is_file()}

    assert lying == named
