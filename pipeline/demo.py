"""`notecast demo`: the whole road with real parts, and the proof.

Starts a stack of its own as any user would (`notecast up`), posts signed notes, listens to their
live links like a stranger, waits for the recordings, fetches and decodes them. Exit status 0 only
if what was heard is what was said.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Protocol

import requests
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from connectors.fake.endpoints import Endpoint, write_endpoints
from connectors.signing import sign_webhook
from engine.text import detect_lang
from pipeline import reports
from pipeline.arrows import EXTENSIONS
from pipeline.audio import duration_ms
from pipeline.client import admin_key
from pipeline.errors import Misconfigured, PipelineError
from pipeline.services import Services
from pipeline.settings import Settings, load_settings
from pipeline.supervise import log_path
from pipeline.up import free_port, running_settings
from streaming.client import Audio, Event, Listening

_START_S = 180.0
_EPISODE_S = 600.0
_TOLERANCE_MS = 60
_SAMPLES = {"zh": "demo_zh.md", "en": "demo_en.md"}


class Sending(Protocol):
    """A note on its way in, and what a person sees of it while it is spoken."""

    def send(self) -> str:
        """Send it; gives the live link."""

    def lines(self) -> list[RenderableType]:
        """What to show above the caption."""


@dataclass
class _Heard:
    """What came over one live link."""

    key: str = ""
    title: str = ""
    state: str = "queued"
    caption: str = ""
    first_at: float | None = None
    ended_at: float | None = None
    chunks: int = 0
    bytes: int = 0
    ticks: int = 0
    sentences: int = 0
    received_sha256: str = ""
    end: dict[str, Any] = field(default_factory=dict)


def run_demo(
    *,
    out: Path,
    text: Path | None,
    engine: str | None,
    s3: str,
    as_json: bool,
    with_tool: Literal["feishu"] | None = None,
) -> int:
    """Run the demo; gives the exit status.

    Args:
        out: directory of the results; its `data` is the stack's, made anew.
        text: one text file to speak instead of the two samples.
        with_tool: a tool that is faked beside the stack; a row of its table is spoken.
    """
    console = Console(quiet=as_json)
    notes = _notes(text)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if with_tool is not None:
        episodes = [_row_is_spoken(notes, out, engine, s3, console)]
    else:
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        with _stack(out, engine, s3, console, _signed_endpoint(secret)) as settings:
            episodes = [
                _one(settings, lang, note, out, console, _Posting(settings, secret, note))
                for lang, note in notes.items()
            ]
    summary = {"episodes": episodes, "machine": machine()}
    (out / "summary.json").write_text(json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))  # noqa: T201  # what --json is for
    _show(episodes, out, console)
    return 0 if all(one["ok"] for one in episodes) else 1


def machine() -> dict[str, Any]:
    """What the figures were made on."""
    return {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "processor": _processor(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _notes(text: Path | None) -> dict[str, str]:
    if text is not None:
        try:
            return {detect_lang(content := text.read_text("utf-8")): content}
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(f"{text} cannot be read: {error}") from None
    data = resources.files("pipeline") / "data"
    return {lang: (data / name).read_text("utf-8") for lang, name in _SAMPLES.items()}


def _row_is_spoken(
    notes: dict[str, str], out: Path, engine: str | None, s3: str, console: Console
) -> dict[str, Any]:
    """A person sets a row ready in the fake; everything else happens by itself."""
    from pipeline.demo_table import FakeTable  # loads a web framework

    with FakeTable(notes["zh"] if "zh" in notes else next(iter(notes.values()))) as row:
        with _stack(out, engine, s3, console, [row.endpoint]) as settings:
            row.connect(settings.effective_public_url)
            console.print(f"the table: {row.url}", highlight=False)
            lang, note = detect_lang(row.text), row.text
            made = _one(settings, lang, note, out, console, row)
            row.wait("已完成")
        row.show(console)
    return made | {"row": row.history}


def _signed_endpoint(secret: str) -> list[Endpoint]:
    toml = '[endpoint.demo]\nconnector = "webhook"\nsecrets = { webhook = ["file:demo-secret"] }\n'
    return [Endpoint("demo", toml, {"demo-secret": secret})]


@contextmanager
def _stack(
    out: Path, engine: str | None, s3: str, console: Console, endpoints: Sequence[Endpoint]
) -> Iterator[Settings]:
    """A `notecast up` of its own, with these endpoints."""
    data = (out / "data").absolute()
    write_endpoints(endpoints, data)
    port = free_port()
    command = [sys.executable, "-m", "pipeline.cli", "up", "--data", str(data)]
    command += ["--port", str(port), "--s3", s3, *(["--engine", engine] if engine else [])]
    with (out / "up.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603  # ourselves
    try:
        with console.status("starting SQLite, Valkey, S3 and the voice ..."):
            _wait_ready(process, port, data, out)
        yield running_settings(data)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], port: int, data: Path, out: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Misconfigured(f"notecast up ended: {(out / 'up.log').read_text().strip()}")
        try:
            answer = requests.get(f"http://127.0.0.1:{port}/readyz", timeout=2)
            if answer.ok and answer.json()["voices"] and (data / "up.json").exists():
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    settings = load_settings(data=data)
    raise Misconfigured(
        f"the voice was not ready after {_START_S:.0f} s; see {log_path(settings, 'worker-gpu')}"
    )


def _one(
    settings: Settings, lang: str, note: str, out: Path, console: Console, sending: Sending
) -> dict[str, Any]:
    """Send a note, listen to it, collect what became of it."""
    began = time.monotonic()
    link = sending.send()
    link_ms = (time.monotonic() - began) * 1000
    heard = _listen(link, console, sending)
    key = heard.key
    view = _wait_done(settings, key)
    files = _fetch(settings, key, view, out)
    assert heard.first_at is not None and heard.ended_at is not None
    audio_s = heard.ticks / 48_000
    wall_s = heard.ended_at - began
    lengths_ok = all(
        abs(length_s - audio_s) * 1000 <= _TOLERANCE_MS for length_s in files["lengths_s"].values()
    )
    hashes_ok = heard.received_sha256 == heard.end["sha256"]
    return {
        "key": key,
        "title": view["title"],
        "lang": lang,
        "listen_url": link,
        "link_ms": round(link_ms, 1),
        "ttfa_ms": round((heard.first_at - began) * 1000, 1),
        "audio_s": round(audio_s, 3),
        "wall_s": round(wall_s, 3),
        "rtf": round(wall_s / audio_s, 4),
        "chunks": heard.chunks,
        "bytes": heard.bytes,
        "captions": heard.sentences,
        "received_sha256": heard.received_sha256,
        "end_sha256": heard.end["sha256"],
        "recording_url": files["url"],
        "recording": files["object"],
        "mp3": files["mp3"],
        "ogg": files["opus"],
        "vtt": files["vtt"],
        "text": note,
        "sql": _row(settings, key),
        "ok": hashes_ok and lengths_ok,
    }


@dataclass(frozen=True)
class _Posting:
    """A note sent as a tool sends it: signed, through the webhook door."""

    settings: Settings
    secret: str
    text: str

    def send(self) -> str:
        body = json.dumps({"type": "note.ready", "data": {"text": self.text}}, ensure_ascii=False)
        message_id = f"msg_{uuid.uuid4().hex}"
        headers = sign_webhook(self.secret, message_id, int(time.time()), body.encode())
        answer = requests.post(
            f"{self.settings.effective_public_url}/hooks/demo",
            data=body.encode(),
            headers={**headers, "content-type": "application/json"},
            timeout=10,
        )
        if answer.status_code != 202:
            raise PipelineError(f"the hook answered {answer.status_code}: {answer.text[:200]}")
        link: str = answer.json()["listen_url"]
        return link

    def lines(self) -> list[RenderableType]:
        return []


def _listen(link: str, console: Console, sending: Sending) -> _Heard:
    """Follow the link to its end, showing one line that moves."""
    heard = _Heard()

    async def run(live: Live) -> None:
        async with Listening(link) as listening:
            async for item in listening:
                _note(heard, item)
                live.update(Group(*sending.lines(), _line(heard)))
            heard.key = listening.sid
            heard.ended_at = time.monotonic()
            heard.received_sha256 = listening.digest
            heard.chunks = listening.chunks

    with Live(_line(heard), console=console, refresh_per_second=10) as live:
        asyncio.run(run(live))
    return heard


def _note(heard: _Heard, item: Audio | Event) -> None:
    if isinstance(item, Audio):
        heard.first_at = heard.first_at or time.monotonic()
        heard.ticks = item.header.pts + item.header.dur
        heard.bytes += len(item.payload)
        heard.state = "live"
    elif item["t"] == "opened":
        heard.title = item.get("title") or heard.title
    elif item["t"] == "seg":
        heard.caption = item["text"]
        heard.sentences += 1
    elif item["t"] == "end":
        heard.end = item
        heard.state = "end"


def _line(heard: _Heard) -> Group:
    state = {"queued": "yellow", "live": "red", "end": "green"}[heard.state]
    head = Text.assemble(
        (f" {heard.state.upper()} ", f"bold white on {state}"),
        f"  {heard.title}  ",
        (f"{heard.ticks / 48_000:6.1f} s  {heard.bytes / 1024:6.0f} KiB", "dim"),
    )
    return Group(head, Text(f"  {heard.caption}", no_wrap=True, overflow="ellipsis"))


def _wait_done(settings: Settings, key: str) -> dict[str, Any]:
    deadline = time.monotonic() + _EPISODE_S
    while time.monotonic() < deadline:
        view = requests.get(
            f"{settings.effective_public_url}/v1/episodes/{key}",
            headers={"Authorization": f"Bearer {admin_key(settings.data)}"},
            timeout=10,
        ).json()
        if view["status"] == "done":
            found: dict[str, Any] = view
            return found
        if view["status"] in ("failed", "cancelled"):
            raise PipelineError(f"episode {key} {view['status']}: {view['error']}")
        time.sleep(0.1)
    raise PipelineError(f"episode {key} did not end within {_EPISODE_S:.0f} s")


def _fetch(settings: Settings, key: str, view: dict[str, Any], out: Path) -> dict[str, Any]:
    """Fetch the files, the MP3 through a signed address of the store where it can sign."""
    services = Services(settings)
    found: dict[str, Any] = {"lengths_s": {}}
    try:
        for format_, made in view["recordings"].items():
            url = services.storage.sign(made["object"], 3600)
            address = url or services.links.file_url(key, EXTENSIONS[format_], now_s=time.time())
            body = requests.get(address, timeout=30).content
            if hashlib.sha256(body).hexdigest() != made["sha256"]:
                raise PipelineError(f"{address} gave other bytes than were stored")
            path = out / f"{key}.{EXTENSIONS[format_]}"
            path.write_bytes(body)
            found[format_] = str(path)
            if format_ in ("opus", "mp3"):
                found["lengths_s"][format_] = duration_ms(body) / 1000
            if format_ == "mp3":
                found["url"] = address
                found["object"] = services.storage.address(made["object"])
    finally:
        services.close()
    return found


def _row(settings: Settings, key: str) -> dict[str, Any]:
    """The episode in the admin's view."""
    services = Services(settings)
    try:
        result = reports.run_sql(
            services.database,
            "SELECT key, state, segments_total, samples, tries, first_audio_ms - created_ms "  # noqa: S608
            f"AS first_audio_after_ms FROM episode WHERE key = '{key}'",
            actor="demo",
        )
    finally:
        services.close()
    return dict(zip(result.columns, result.rows[0], strict=True))


def _show(episodes: list[dict[str, Any]], out: Path, console: Console) -> None:
    table = Table(title="What happened", title_justify="left", show_lines=True)
    table.add_column("")
    for one in episodes:
        table.add_column(escape(f"{one['lang']}: {one['title']}"), overflow="fold")
    sent = "ready" if "row" in episodes[0] else "POST"
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        f"{sent} to link": lambda one: f"{one['link_ms']:.0f} ms",
        f"{sent} to first sound": lambda one: f"{one['ttfa_ms']:.0f} ms",
        "sound": lambda one: f"{one['audio_s']:.1f} s",
        "real-time factor": lambda one: f"{one['rtf']:.2f}",
        "live chunks": lambda one: f"{one['chunks']}, {one['bytes'] / 1024:.0f} KiB",
        "sentences": lambda one: str(one["captions"]),
        "heard = spoken": lambda one: (
            "yes, SHA-256 " + one["end_sha256"][:12] if one["ok"] else "NO"
        ),
        "recording": lambda one: one["recording"],
        "in SQL": lambda one: ", ".join(f"{k} {v}" for k, v in one["sql"].items() if k != "key"),
        "files": lambda one: "\n".join((one["mp3"], one["ogg"], one["vtt"])),
    }
    for name, cell in rows.items():
        table.add_row(name, *(escape(cell(one)) for one in episodes))
    console.print(table)
    console.print(f"hear it: open {episodes[0]['mp3']}", highlight=False)
    console.print(f"figures: {out / 'summary.json'}", highlight=False)
    console.print("go on:   make up, then http://localhost:8080/docs", highlight=False)
