"""D1, the storm: notes come in while a process is killed every one to three seconds."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from connectors.signing import sign_webhook
from tests.acceptance.base import BASE, WRITE_BACK_TOKEN, Base
from tests.acceptance.stack import (
    CONNECTORS,
    FEISHU_TOKEN,
    SECRET,
    Stack,
    command_line,
    note_body,
    send,
)

CHECKER = Path(__file__).with_name("checker.py")
_OPTIONS = {
    "tone_pace": "paced",
    "tone_rtf": 0.1,
    "durable_after_s": 0,
    "lease_ms": 4000,
    "renew_ms": 1000,
}
_EVERYTHING = 0.12  # how often the whole tree dies, the parent included
_NOTES_PER_S = 4.0


class Senders:
    """Tools that post rows, again until they hear yes, a third of them once more; and write down
    what they did."""

    def __init__(self, stack: Stack, path: Path, seed: int, threads: int = 3) -> None:
        self._stack = stack
        self._file = path.open("a")
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._send_forever, args=(n, random.Random(f"{seed}-{n}")))
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No new notes; those begun are sent until they are accepted."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._file.close()

    def _send_forever(self, n: int, chance: random.Random) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            record = f"rec-{n}-{count}" if chance.random() < 0.3 else ""
            key = f"{record}:1" if record else f"note-{n}-{count}"
            text = " ".join(
                f"Sentence {one} of note {count} from sender {n}."
                for one in range(chance.randint(1, 4))
            )
            times = 2 if chance.random() < 1 / 3 else 1
            for _ in range(times):
                while not self._post(key, text, record):
                    time.sleep(0.2)
            self._stop.wait(chance.uniform(0, 2 * len(self._threads) / _NOTES_PER_S))

    def _post(self, key: str, text: str, record: str) -> bool:
        """True once it is accepted."""
        said = {"key": key, "text": text, "record": record}
        self._write(op="invoke", **said)
        try:
            answer = self._post_row(text, record) if record else self._post_note(key, text)
        except requests.RequestException as error:
            self._write(op="unknown", error=type(error).__name__, **said)
            return False
        if answer.status_code not in (200, 202):
            self._write(op="fail", status=answer.status_code, **said)
            return False
        content = answer.json()
        self._write(op="ok", episode=content["episode"], link=content["listen_url"], **said)
        return True

    def _post_note(self, key: str, text: str) -> requests.Response:
        body = note_body(text)
        return self._stack.hook(body, sign_webhook(SECRET, key, int(time.time()), body))

    def _post_row(self, text: str, record: str) -> requests.Response:
        row = {"base": "b", "table": "t", "record": record, "at": "1", "text": text}
        headers = {"Authorization": f"Bearer {FEISHU_TOKEN}"}
        return self._stack.hook(json.dumps(row).encode(), headers, "base")

    def _write(self, **what: Any) -> None:
        with self._lock:
            self._file.write(json.dumps({"at": time.time(), **what}) + "\n")


class Nemesis:
    """Kills one process at a time, and now and then all of them."""

    def __init__(self, stack: Stack, seed: int, tell: Callable[[str], None]) -> None:
        self.kills = 0
        self._stack = stack
        self._chance = random.Random(seed)
        self._tell = tell

    def rage(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, self._chance.uniform(1, 3)))
            if self._chance.random() < _EVERYTHING:
                self._tell("kill -9 of everything")
                self.kills += len(self._stack.pids()) + 1
                self._stack.kill()
                self._stack.start()
                continue
            victims = sorted(self._stack.pids(), key=command_line)
            if victims:
                victim = self._chance.choice(victims)
                self._tell(f"kill -9 of {_name(victim)}")
                send(victim, signal.SIGKILL)
                self.kills += 1


def storm(directory: Path, *, seconds: float, seed: int, tell: Callable[[str], None]) -> Any:
    """Run the drill in an empty directory; what the checker says about it, and how it went."""
    tool = Base(busy=0)
    stack = Stack(
        directory / "data",
        _OPTIONS,
        variables={"NC_FEISHU_WRITE_BACK": WRITE_BACK_TOKEN},
        connectors=CONNECTORS + BASE.format(url=tool.url),
    )
    try:
        stack.start()
        senders = Senders(stack, directory / "history.jsonl", seed)
        nemesis = Nemesis(stack, seed, tell)
        try:
            nemesis.rage(seconds)
        finally:
            senders.stop()
        settled_s = _settle(stack, 60 + seconds)
        stack.stop()
    finally:
        stack.close()
        tool.close()
    lines = (json.dumps(body) + "\n" for _headers, body in tool.calls)
    (directory / "tool.jsonl").write_text("".join(lines))
    done = subprocess.run(
        [sys.executable, "-I", str(CHECKER), str(directory)],
        capture_output=True,
        text=True,
        check=True,
    )
    verdict = json.loads(done.stdout)
    return {
        "drill": "storm",
        "seed": seed,
        "seconds": seconds,
        "kills": nemesis.kills,
        "settled_s": settled_s,
        **verdict,
    }


def _settle(stack: Stack, at_most_s: float) -> float:
    """Seconds until nothing is open any more; at most so many."""
    began = time.monotonic()
    while time.monotonic() < began + at_most_s:
        if not stack.count("episode", "state NOT IN ('done', 'dead', 'cancelled')"):
            break
        time.sleep(0.5)
    return round(time.monotonic() - began, 1)


def _name(pid: int) -> str:
    words = command_line(pid).split(" --parent")[0].split()
    return " ".join(word.rsplit("/", 1)[-1] for word in words if word != "-m")[:60]
