"""What a player with the page's buffering rules must do with given arrivals: the tests' own model.

It is written from the rules (docs/listening-protocol.md and the comments of `jitter.js`), in whole
milliseconds, and shares nothing with the page.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

CHUNK_MS = 200
WINDOW = 200
LEAST_MS, MOST_MS, START_MS, MARGIN_MS = 160.0, 2000.0, 240.0, 60.0
PATIENCE_MS, LITTLE_MS = 1500, 200


@dataclass(frozen=True)
class Played:
    """Underruns: how many, and how much silence in ms."""

    underruns: int
    silence_ms: int


def simulate(
    times: Sequence[float], *, pre_ms: float = 0.0, ends: bool = True, chunk_ms: int = CHUNK_MS
) -> Played:
    """Play chunks of `chunk_ms` that arrive at `times` (ms since the press on play, ascending).

    Args:
        pre_ms: the server's advice.
        ends: the end of the session is known with the last chunk.
    """
    extra = max(START_MS, pre_ms)
    received = 0  # chunks
    played = waited = underruns = silence = 0
    playing = starved = False
    for now in range(60_000):
        while received < len(times) and times[received] <= now:
            received += 1
        held = received * chunk_ms - played
        is_over = ends and received == len(times)
        if not playing:
            waited += 1
            target = max(extra, _measured(times[:received], chunk_ms))
            if is_over or held >= target or (waited >= PATIENCE_MS and held >= LITTLE_MS):
                playing, starved = True, False
        if playing and held == 0:
            if is_over:
                break
            target = max(extra, _measured(times[:received], chunk_ms))
            extra = min(MOST_MS, max(1.5 * target, target + 200))
            playing, starved, waited = False, True, 0
            underruns += 1
        if playing:
            played += 1
        elif starved:
            silence += 1
    return Played(underruns, silence)


def _measured(times: Sequence[float], chunk_ms: int) -> float:
    """p97 of how late chunks came, against the best schedule up to then, and a margin."""
    offsets = [at - i * chunk_ms for i, at in enumerate(times)][-WINDOW:]
    late = sorted(offset - min(offsets[: i + 1]) for i, offset in enumerate(offsets))
    p97 = late[int(0.97 * (len(late) - 1))] if late else 0.0
    return min(MOST_MS, max(LEAST_MS, p97 + MARGIN_MS))


def steady(count: int, *, pace: float = 1.0) -> list[float]:
    """A chunk each `CHUNK_MS * pace`."""
    return [i * CHUNK_MS * pace for i in range(count)]


def jittered(count: int, *, share: float, by_ms: float, seed: int) -> list[float]:
    """A steady trace of which `share` is late; nobody overtakes on a TCP connection."""
    chance = random.Random(seed)
    times: list[float] = []
    for at in steady(count):
        late = by_ms if chance.random() < share else 0.0
        times.append(max(at + late, times[-1] if times else 0.0))
    return times


def stalled(count: int, *, chunk: int, by_ms: float) -> list[float]:
    """The engine stops before `chunk`, and goes on at its old pace `by_ms` later."""
    return [at + (by_ms if i >= chunk else 0.0) for i, at in enumerate(steady(count))]


def disconnected(count: int, *, chunk: int, for_ms: float) -> list[float]:
    """Nothing from `chunk` on for a while, then all that was missed at once."""
    back = chunk * CHUNK_MS + for_ms
    return [max(at, back) if i >= chunk else at for i, at in enumerate(steady(count))]
