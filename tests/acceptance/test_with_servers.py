"""The same promises with PostgreSQL and S3: the embedded ones, killed and kept away."""

from __future__ import annotations

import concurrent.futures
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from engine.backends.tone import sentence_code
from tests.acceptance.ears import Audience
from tests.acceptance.stack import Stack, send, wait_for

OPTIONS = {"tone_pace": "paced", "tone_rtf": 0.15, "durable_after_s": 0}
SERVERS = ("--db", "postgres", "--s3", "embedded")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    # not under `tmp_path`: PostgreSQL, which is not root even where we are, must reach it
    directory = Path(tempfile.mkdtemp(prefix="notecast-"))
    directory.chmod(0o711)
    stack = Stack(directory, OPTIONS, SERVERS)
    stack.start()
    yield stack
    stack.close()
    shutil.rmtree(directory)


@contextmanager
def away(stack: Stack, server: str) -> Iterator[None]:
    """Keep a server down: killed, and the parent that would start it again stands still."""
    assert stack.process is not None
    victim = stack.pid(server)
    send(stack.process.pid, signal.SIGSTOP)
    try:
        send(victim, signal.SIGKILL)
        yield
    finally:
        send(stack.process.pid, signal.SIGCONT)


def test_a_delivery_posted_from_four_threads_makes_one_episode(stack: Stack) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(stack.send_note, "Said once.", key="once") for _ in range(20)]
        answers = [one.result() for one in sent]

    contents = [answer.json() for answer in answers]
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [202]
    assert len({(one["episode"], one["listen_url"]) for one in contents}) == 1
    assert (stack.count("episode"), stack.count("delivery")) == (1, 1)


def test_without_its_database_the_door_says_come_back_later_and_stores_nothing(
    stack: Stack,
) -> None:
    before = stack.count("delivery")
    with away(stack, "postgres"):
        refused = stack.send_note("Sent too early.", key="early")
        ready = requests.get(f"{stack.url}/readyz", timeout=30)
        alive = requests.get(f"{stack.url}/healthz", timeout=30)

    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert "postgres" not in refused.text.lower(), "a stranger learns nothing about our insides"
    assert (ready.status_code, alive.status_code) == (503, 200)
    wait_for("the database", lambda: requests.get(f"{stack.url}/readyz", timeout=30).ok)
    assert stack.count("delivery") == before
    accepted = stack.accept("Sent too early.", key="early")
    assert accepted["duplicate"] is False
    stack.wait_done(accepted["episode"])
    stack.assert_complete(accepted["episode"], "Sent too early.")


def test_speech_goes_on_while_the_database_is_away_for_a_moment(stack: Stack) -> None:
    texts = [f"While the database rests, sentence {n} is spoken." for n in range(6)]
    accepted = stack.accept(" ".join(texts), key="rests")
    with Audience(accepted["listen_url"]) as audience:
        wait_for("sound", lambda: len(audience.heard[0].chunks) > 3)
        send(stack.pid("postgres"), signal.SIGKILL)
    stack.wait_done(accepted["episode"])
    (heard,) = audience.heard

    heard.assert_exact()
    assert heard.codes() == [sentence_code(text) for text in texts]
    assert heard.cuts == [], "the voice never stopped"
    stack.assert_complete(accepted["episode"], *texts)


def test_notes_are_accepted_while_the_broker_is_away(stack: Stack) -> None:
    with away(stack, "valkey-server"):
        sent = [stack.send_note(f"Without a broker {n}.", key=f"broker-{n}") for n in range(5)]

    assert [answer.status_code for answer in sent] == [202] * 5
    for n, answer in enumerate(sent):
        stack.wait_done(answer.json()["episode"])
        stack.assert_complete(answer.json()["episode"], f"Without a broker {n}.")


def test_a_killed_worker_and_a_killed_store_leave_one_whole_recording(stack: Stack) -> None:
    texts = [f"The store is gone before sentence {n} of the note." for n in range(6)]
    accepted = stack.accept(" ".join(texts), key="store")
    key = accepted["episode"]
    with Audience(accepted["listen_url"]) as audience:
        wait_for("a stored sentence", lambda: stack.episode(key)["segments_done"] >= 1)
        send(stack.pid("weed"), signal.SIGKILL)
        send(stack.pid("worker gpu"), signal.SIGKILL)
        stack.wait_done(key, timeout_s=120)
    (heard,) = audience.heard

    stack.assert_complete(key, *texts)
    heard.assert_exact()
    assert [cut["why"] for cut in heard.cuts] == ["retry"]


def test_everything_killed_at_once_goes_on_at_the_next_start(stack: Stack) -> None:
    texts = [f"Sentence {n} outlives the power cut." for n in range(6)]
    accepted = stack.accept(" ".join(texts), key="power")
    wait_for("a stored sentence", lambda: stack.episode(accepted["episode"])["segments_done"] >= 1)
    stack.kill()
    stack.start()
    stack.wait_done(accepted["episode"], timeout_s=90)

    stack.assert_complete(accepted["episode"], *texts)
    url = stack.settings().storage
    assert url.startswith("s3://")
    with stack.storage() as storage:
        lying = {one.key for one in storage.list("rec/")}
    assert lying == {row["object_key"] for row in stack.query("SELECT object_key FROM recording")}
