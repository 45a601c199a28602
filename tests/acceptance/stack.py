"""A real `notecast up` on a directory of its own, and a stranger's means to use and to hurt it."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import sqlalchemy as sa

from connectors.signing import sign_webhook
from engine.backends.tone import decode, sentence_code
from pipeline import audio
from pipeline.database import Database
from pipeline.settings import Settings
from pipeline.storage import Storage, make_storage
from pipeline.up import free_port, running_settings

SECRET = "whsec_" + "bm90ZWNhc3QgYWNjZXB0YW5jZSBzZWNyZXQ="
FEISHU_TOKEN = "acceptance-token-of-the-base"
CONNECTORS = """
[endpoint.board]
connector = "webhook"
secrets = { webhook = ["env:NC_BOARD_SECRET"] }
"""
ENDED = ("done", "failed", "cancelled")


def wait_for(what: str, look: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """The first true answer of `look`."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.05)
    return found


@dataclass
class Stack:
    """One data directory and the `up` that runs on it, if one does.

    Attributes:
        options: further settings, by their names.
        arguments: further arguments of `up`.
        variables: further environment variables.
    """

    data: Path
    options: Mapping[str, object] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    connectors: str = CONNECTORS
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    # its life

    def start(self) -> None:
        """Start, and return once it says that it is ready."""
        self.launch()
        wait_for("notecast up to be ready", self._is_ready, 60)

    def launch(self) -> None:
        """Start and return at once."""
        self.data.mkdir(parents=True, exist_ok=True)
        (self.data / "connectors.toml").write_text(self.connectors)
        with (self.data / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command("up", "--port", str(self.port), *self.arguments),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def command(self, *words: str) -> list[str]:
        """A `notecast` command on this directory."""
        return [sys.executable, "-m", "pipeline.cli", *words, "--data", str(self.data)]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a `notecast` command to its end."""
        return subprocess.run(
            self.command(*words),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def stop(self, signum: signal.Signals = signal.SIGINT, timeout_s: float = 40.0) -> int:
        """Ask it to leave; its exit status."""
        assert self.process is not None
        self.process.send_signal(signum)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """kill -9 of everything at once, the parent first so that it restarts nothing."""
        assert self.process is not None
        family = self.pids()
        self.process.kill()
        for pid in family:
            send(pid, signal.SIGKILL)
        self.process.wait()
        wait_for("the children to be gone", lambda: not any(is_alive(pid) for pid in family))

    def close(self) -> None:
        """Leave nothing running."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def pids(self) -> list[int]:
        """All children of the parent."""
        assert self.process is not None
        return [pid for pid in all_pids() if parent_of(pid) == self.process.pid]

    def pid(self, role: str) -> int:
        """The child whose command line holds `role`: `worker gpu`, `web`, `valkey-server`, ..."""

        def look() -> int | None:
            return next((pid for pid in self.pids() if role in command_line(pid)), None)

        return int(wait_for(f"a process {role}", look))

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.data / "up.log").read_text()
        state = self._state()
        return bool(state and state["pid"] == self.process.pid)

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.data / "up.json").read_text())
        except (OSError, ValueError):
            return {}
        return state

    def environment(self) -> dict[str, str]:
        """What `up` and all other commands run with."""
        own = {f"NOTECAST_{name.upper()}": str(value) for name, value in self.options.items()}
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("NOTECAST_")},
            "NOTECAST_ENGINE": "tone",
            "NC_BOARD_SECRET": SECRET,
            "NC_FEISHU_TOKEN": FEISHU_TOKEN,
            **own,
            **self.variables,
        }

    # its doors

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def hook(self, body: bytes, headers: Mapping[str, str], address: str = "board") -> Any:
        return requests.post(f"{self.url}/hooks/{address}", body, headers=headers, timeout=30)

    def send_note(
        self, text: str, *, key: str, ref: str = "", title: str = "", address: str = "board"
    ) -> Any:
        """Post a signed note once; the HTTP answer."""
        body = note_body(text, ref=ref, title=title)
        return self.hook(body, sign_webhook(SECRET, key, int(time.time()), body), address)

    def accept(self, text: str, *, key: str, ref: str = "", title: str = "") -> dict[str, Any]:
        """Post a signed note, again until it is accepted; the answer."""

        def try_once() -> Any:
            try:
                answer = self.send_note(text, key=key, ref=ref, title=title)
            except requests.ConnectionError:
                return None
            return answer if answer.status_code in (200, 202) else None

        found: dict[str, Any] = wait_for(f"{key} to be accepted", try_once, 60).json()
        return found

    def api(self, method: str, path: str, **options: Any) -> Any:
        """Call `/v1` with the admin's key."""
        key = (self.data / "api-key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}", **options.pop("headers", {})}
        return requests.request(
            method, f"{self.url}/v1/{path}", headers=headers, timeout=30, **options
        )

    # its truth

    @contextmanager
    def database(self) -> Iterator[sa.Connection]:
        """A reading transaction on its database."""
        database = Database(self.settings().effective_database_url)
        try:
            with database.read() as connection:
                yield connection
        finally:
            database.close()

    def settings(self) -> Settings:
        """What its processes run with."""
        return running_settings(self.data)

    def query(self, statement: str, **values: object) -> list[dict[str, Any]]:
        with self.database() as connection:
            found = connection.execute(sa.text(statement), values).mappings()
            return [dict(row) for row in found]

    def count(self, table: str, where: str = "1 = 1", **values: object) -> int:
        return int(self.query(f"SELECT count(*) AS n FROM {table} WHERE {where}", **values)[0]["n"])

    def episode(self, key: str) -> dict[str, Any]:
        (row,) = self.query("SELECT * FROM episode WHERE key = :key", key=key)
        return row

    def wait_state(self, key: str, *states: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """The episode's row once it is in one of the states."""

        def look() -> dict[str, Any] | None:
            row = self.episode(key)
            return row if row["state"] in states else None

        row: dict[str, Any] = wait_for(f"episode {key} to be {states}", look, timeout_s)
        return row

    def wait_done(self, key: str, *, timeout_s: float = 60.0) -> dict[str, Any]:
        return self.wait_state(key, "done", timeout_s=timeout_s)

    @contextmanager
    def storage(self) -> Iterator[Storage]:
        settings = self.settings()
        where = settings.storage
        if where == "folder":
            where = f"folder:{self.data / 'objects'}"
        store = make_storage(
            where,
            access_key=settings.s3_access_key.get_secret_value() or None,
            secret_key=settings.s3_secret_key.get_secret_value() or None,
        )
        with store:
            yield store

    def recordings(self, key: str) -> dict[str, dict[str, Any]]:
        """Rows of an episode's files by format."""
        found = self.query(
            "SELECT r.* FROM recording r JOIN episode_recording er ON er.recording_id = r.id "
            "JOIN episode e ON e.id = er.episode_id WHERE e.key = :key",
            key=key,
        )
        by_format = {row["format"]: row for row in found}
        assert len(by_format) == len(found), "two recordings of one format"
        return by_format

    def heard(self, key: str, format_: str = "opus") -> list[int]:
        """The sentence codes in an episode's recording, whose digest must be as its row says."""
        row = self.recordings(key)[format_]
        with self.storage() as storage:
            body = storage.get(row["object_key"])
        assert hashlib.sha256(body).hexdigest() == row["digest"]
        return decode(audio.decode(body))

    def sentences(self, key: str) -> list[int]:
        """The sentence codes that an episode's recording should hold, from its captions."""
        row = self.recordings(key)["vtt"]
        with self.storage() as storage:
            return caption_codes(storage.get(row["object_key"]).decode())

    def assert_complete(self, key: str, *texts: str) -> None:
        """One recording, in which every sentence is heard once and in order."""
        meant = [sentence_code(text) for text in texts]
        assert self.heard(key, "opus") == meant
        assert self.heard(key, "mp3") == meant


def note_body(text: str, *, ref: str = "", title: str = "") -> bytes:
    data = {"text": text, "ref": ref, "title": title}
    return json.dumps({"type": "note.ready", "data": data}, ensure_ascii=False).encode()


def caption_codes(vtt: str) -> list[int]:
    """Sentence codes of the cues of a WebVTT file."""
    blocks = [block.splitlines() for block in vtt.split("\n\n")[1:]]
    cues = [lines for lines in blocks if any("-->" in line for line in lines)]
    found = []
    for lines in cues:
        at = next(n for n, line in enumerate(lines) if "-->" in line)
        found.append(sentence_code(html.unescape(re.sub(r"<[^>]*>", "", "".join(lines[at + 1 :])))))
    return found


# processes ---------------------------------------------------------------------------------------


def all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def parent_of(pid: int) -> int:
    return int((_stat(pid) or ["", "0"])[1])


def is_alive(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def send(pid: int, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def _stat(pid: int) -> list[str]:
    """State, parent, ... of a process; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
