"""Does sound run on at every listener? Play-out of 8 streams at 50 listeners each, tone engine.

The whole road: signed hooks, `notecast up`, the paced tone voice, Opus, Valkey, the web process,
WebSockets. For each listener the play-out is simulated over the arrivals: play starts with the
first chunk (or 240 ms later, as our player does at least); a chunk that comes after what came
before has been used up is an underrun of that length, and the clock waits for it. C100 is the share
of streams whose worst underrun is at most 100 ms.

    python -m bench.continuity [--streams 8] [--listeners 50] [--seconds 20] [--passes 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from typing import Any

from bench.gateway import listeners
from bench.report import Report
from bench.stack import Poster, Stack, paused, run, running, signed_hook, wait_for
from pipeline.models import episode
from streaming.links import socket_url
from streaming.tokens import token_sid

BOUNDS = (0, 50, 100, 200)
WORDS = (
    "This sentence says that in pass {p} the work of stream {n} goes on, part {k} of it is done. "
)
SENTENCE_S = 5.0


def measure(stack: Stack, args: argparse.Namespace, number: int) -> dict[str, list[Any]]:
    """One pass: what each stream's load client printed.

    Each has texts of its own: the same ones would not be spoken again, but taken from before.
    """
    parts = range(round(args.seconds / SENTENCE_S))
    texts = ["".join(WORDS.format(p=number, n=n, k=k) for k in parts) for n in range(args.streams)]
    with contextlib.ExitStack() as everybody:
        loads = []
        with paused(stack.pid("worker gpu")):  # until everybody waits for the first word
            answers = run(post(stack.port, texts))
            for answer in answers:
                _, token = socket_url(answer["listen_url"])
                options = {"tok": token, "sid": token_sid(token), "ack_s": 15, "by_emit": True}
                load = listeners(stack.port, args.listeners, **options)
                loads.append(everybody.enter_context(load))
        wait_for("the episodes to be spoken", lambda: is_spoken(stack), 60 + 4 * args.seconds)
        found = [load.result() for load in loads]
    return {name: [one[name] for one in found] for name in found[0]}


async def post(port: int, texts: list[str]) -> list[dict[str, Any]]:
    """Send all notes at once."""

    async def one(text: str) -> dict[str, Any]:
        poster = await Poster.connect(port)
        answer = await poster.post(signed_hook(text))
        await poster.close()
        return answer

    return await asyncio.gather(*map(one, texts))


def is_spoken(stack: Stack) -> bool:
    """Whether nothing waits or is being spoken."""
    with stack.database.read() as connection:
        states = connection.execute(episode.select()).all()
    return all(row.state in ("done", "encoding") for row in states)


def share(counts: list[list[int]], at_most_ms: int) -> float:
    """Percent of the streams at listeners whose worst underrun is no longer."""
    at = BOUNDS.index(at_most_ms) + 1
    return 100 * sum(sum(one[:at]) for one in counts) / sum(map(sum, counts))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--listeners", type=int, default=50, help="of each stream")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each stream, about")
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    options: dict[str, Any] = {"engine": "tone", "tone_pace": "paced", "tone_rtf": 0.5}
    options |= {"connections_per_address": 10**6, "connections_per_link": 10**6}
    with running(**options) as stack:
        passes = [measure(stack, args, number) for number in range(args.passes)]
    report = Report(
        "continuity",
        f"Continuity: {args.streams} streams x {args.listeners} listeners, tone engine",
        method="Play-out simulated over the arrivals at each listener; real-time factor of the "
        "voice 0.5; server and load share the machine. Delay: chunk made to chunk received.",
        packages=("websockets", "uvloop"),
    )
    for prebuffer in (0, 240):
        for bound in (50, 100, 200):
            values = [share(one[f"stall_{prebuffer}"], bound) for one in passes]
            bar = 100 if bound == 100 else None
            report.add(f"C{bound}, {prebuffer} ms held first", values, "%", at_least=bar)
    for name in ("p50_ms", "p99_ms"):
        values = [max(one[name]) for one in passes]
        report.add(f"chunk delay {name[:3]}, worst stream", values, "ms")
    report.finish()


if __name__ == "__main__":
    main()
