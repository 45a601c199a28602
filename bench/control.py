"""How soon an owner's order is heard: from the order to its answer, and to the first new frame.

    python -m bench.control            # 30 orders of each kind, paced tone engine
    python -m bench.control --engine kokoro

An episode is spoken while its owner listens; two seconds into it the owner changes the speed, or
the voice. The clock runs from the message to the `ctl` answer and to the first frame of the new
epoch. What was published and is void then is the wasted sound.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from typing import Any

from bench.first_packet import api_key
from bench.report import Report, percentile
from bench.stack import BenchFailed, Stack, run, running
from streaming.client import Audio
from streaming.frames import TICKS_PER_MS
from streaming.talk import Talk, Utterance

_SENTENCE = "Item {n} of run {k} says that part {m} of the plan is done, and that nothing is late."
_VOICES = {"tone": ("tone_b", "tone_a"), "kokoro": ("bf_emma", "af_heart")}
_LISTEN_S = 2.0
_WARM = 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.control", description=__doc__)
    parser.add_argument("-n", type=int, default=30, help="orders of each kind")
    parser.add_argument("--engine", choices=tuple(_VOICES), default="tone")
    wanted = parser.parse_args()
    title = f"an order over the socket, {wanted.engine}, warm"
    report = Report("control", title, method=_METHOD.format(n=wanted.n), packages=("websockets",))
    options = {"tone_pace": "paced", "tone_rtf": 0.2} if wanted.engine == "tone" else {}
    everything: dict[str, dict[str, list[float]]] = {}
    with running(engine=wanted.engine, **options) as stack:
        for op in ("speed", "voice"):
            took = run(_orders(stack, op, wanted.n + _WARM, _VOICES[wanted.engine]))
            everything[op] = took
            for name, label in _LABELS.items():
                values = [percentile(took[name], share) for share in (0.05, 0.5, 0.95)]
                report.add(f"{op}: {label}", values, "ms")
    report.finish(took_ms=everything)


_LABELS = {
    "answer": "order sent -> `ctl` received",
    "frame": "order sent -> first frame of the new epoch received",
    "void": "published sound that is void",
}
_METHOD = (
    "{n} orders of each kind after a warm-up, each for an episode of its own, two seconds after "
    "its first frame, at its playhead; a row's three figures are p5, p50 and p95. Loopback."
)


async def _orders(
    stack: Stack, op: str, count: int, voices: tuple[str, str]
) -> dict[str, list[float]]:
    took: dict[str, list[float]] = defaultdict(list)
    run_number = int(time.time() * 10) % 1_000_000
    async with Talk(f"ws://127.0.0.1:{stack.port}/v1/live", api_key(stack)) as talk:
        for number in range(count):
            text = " ".join(_SENTENCE.format(n=number, k=run_number, m=m) for m in range(12))
            utterance = await talk.say(text, voice=voices[1])
            value: Any = 1.5 if op == "speed" else voices[0]
            one = await _order(talk, utterance, op, value)
            await talk.control(utterance.sid, "stop")
            async for _ in utterance:
                pass
            if number >= _WARM:
                for name, value in one.items():
                    took[name].append(value)
    return took


async def _order(talk: Talk, utterance: Utterance, op: str, value: Any) -> dict[str, float]:
    """Order something two seconds into an utterance; gives what `_LABELS` names, in ms."""
    began = sent = 0.0
    asked: asyncio.Task[float] | None = None
    ends: dict[int, int] = {}  # of each sentence, in ms
    void = 0.0
    is_cut = False
    async for item in utterance:
        now = time.perf_counter()
        if isinstance(item, Audio):
            if is_cut:
                assert asked is not None
                return {
                    "answer": (await asked - sent) * 1000,
                    "frame": (now - sent) * 1000,
                    "void": void,
                }
            end_ms = (item.header.pts + item.header.dur) // TICKS_PER_MS
            ends[item.header.seg] = end_ms
            began = began or now
            if asked is None and now > began + _LISTEN_S:
                sent = time.perf_counter()
                asked = asyncio.create_task(_answer(talk, utterance.sid, op, value))
        elif item["t"] == "cut":
            is_cut = True
            void = max(0, max(ends.values()) - item["cut_ms"])
    raise BenchFailed(f"the {op} order came too late: the voice was done already")


async def _answer(talk: Talk, sid: str, op: str, value: Any) -> float:
    """Give an order at the playhead; gives the time of its answer."""
    play_ms = int(_LISTEN_S * 1000)
    answer = await talk.control(sid, op, value, at="playhead", play_ms=play_ms)
    if answer["effect"] is None:
        raise BenchFailed("the order waits for somebody to follow it")
    return time.perf_counter()


if __name__ == "__main__":
    main()
