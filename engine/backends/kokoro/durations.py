"""From the model's durations to frames, word times and exact lengths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.backends.kokoro.model import FRAME_SAMPLES
from engine.backends.kokoro.words import Line
from engine.base import SAMPLE_RATE_HZ, WordTiming
from engine.errors import BadRequest

Floats = npt.NDArray[np.float32]
Frames = npt.NDArray[np.int64]

FRAME_MS = 1000 * FRAME_SAMPLES // SAMPLE_RATE_HZ
HIBARI_LEAD_FRAMES = 4
KOKORO_LEAD_FRAMES = 15  # with fewer its first word comes late all the same, and word times lie
LATE_AFTER_PAUSE_MS = 40
"""After a pause a word is heard this much before its first phoneme's frame (median, measured)."""

SENSIBLE = (0.8, 1.4)
POSSIBLE = (0.6, 1.8)
PAUSE_SHARE = 0.3  # of a correction, taken by the pauses: silence stretches unnoticed
SHORTEST_PAUSE = 0.3


def begun_soon(raw: Floats, lead_frames: int) -> Floats:
    """Durations with at most `lead_frames` before the first phoneme.

    The models begin every sentence with 0.3 to 0.5 s of silence; listeners wait for it each time,
    and for the first sound of a live stream.
    """
    begun = raw.copy()
    begun[0] = min(begun[0], lead_frames)
    return begun


def natural_frames(raw: Floats, rate: float = 1.0) -> Frames:
    """Whole frames per token at a pace, rounded as the shipped graph does (halves to even)."""
    frames: Frames = np.maximum(np.round(raw / np.float32(rate)), 1).astype(np.int64)
    return frames


def exact_frames(raw: Floats, total: int) -> Frames:
    """Frames in proportion to `raw` that add up to `total`, at least one a token.

    Raises:
        BadRequest: fewer frames than tokens.
    """
    if total < len(raw):
        raise BadRequest(
            f"{total * FRAME_MS / 1000:.2f} s is too short for {len(raw)} phonemes: "
            f"they need at least {len(raw) * FRAME_MS / 1000:.2f} s",
            field="target_s",
        )
    wanted = np.maximum(raw.astype(np.float64), 1e-3)
    low, high = 0.0, total / wanted.min()
    for _ in range(64):
        middle = (low + high) / 2
        if np.maximum(wanted * middle, 1.0).sum() < total:
            low = middle
        else:
            high = middle
    ideal = np.maximum(wanted * high, 1.0)
    frames: Frames = np.floor(ideal + 1e-9).astype(np.int64)
    missing = total - int(frames.sum())
    frames[np.argsort(frames - ideal, kind="stable")[:missing]] += 1  # the largest remainders
    assert frames.sum() == total
    return frames


def share_out(
    natural: Sequence[int], pauses: Sequence[int], total: int
) -> tuple[list[int], list[int], float]:
    """Divide a length among sentences and the pauses before them.

    Args:
        natural: samples of each sentence at its natural length.
        pauses: samples before each.
        total: samples of the whole.

    Returns:
        Samples of each sentence, samples of each pause, and the ratio by which speech was
        stretched. Everything adds up to `total` exactly.
    """
    speech, silence = sum(natural), sum(pauses)
    change = PAUSE_SHARE * (total - speech - silence)
    new_silence = min(max(silence + change, SHORTEST_PAUSE * silence), 2.0 * silence)
    new_pauses = _in_proportion(pauses, round(new_silence))
    left = total - sum(new_pauses)
    return _in_proportion(natural, left), new_pauses, left / max(speech, 1)


def check_ratio(ratio: float, wanted_s: float, *, force: bool) -> None:
    """Refuse a length that speech cannot be stretched or pressed to.

    Raises:
        BadRequest: outside 0.6 to 1.8 times the natural length, unless forced.
    """
    low, high = POSSIBLE
    if low <= ratio <= high or force:
        return
    raise BadRequest(
        f"{wanted_s:g} s would make the speech {ratio:.2f} times its natural length; "
        f"{low} to {high} is possible, {SENSIBLE[0]} to {SENSIBLE[1]} sounds natural "
        "(force=True overrides)",
        field="target_s",
    )


def _in_proportion(parts: Sequence[int], total: int) -> list[int]:
    """Whole numbers like `parts` that add up to `total`; rounding never drifts by more than one."""
    whole = sum(parts)
    if not whole:
        return [0] * len(parts)
    edges = [round(total * edge / whole) for edge in np.cumsum([0, *parts]).tolist()]
    return [b - a for a, b in itertools.pairwise(edges)]


def word_times(text: str, lines: Sequence[tuple[Line, Frames]]) -> tuple[WordTiming, ...]:
    """When each word of a sentence is heard, from the start of its speech.

    Args:
        text: the turn's text, in which spans count.
        lines: with the frames they are spoken with.

    Words made of one written form ("$48,500") are one entry.
    """
    timings: list[WordTiming] = []
    start_of_line = 0
    for line, frames in lines:
        edges = np.concatenate([[0], np.cumsum(frames)]) * FRAME_MS + start_of_line
        owners = np.array(line.owners)
        after_pause = True
        for index, word in enumerate(line.words):
            places = np.flatnonzero(owners == index)
            if word.is_mark or not len(places):
                after_pause = after_pause or bool(len(places))
                continue
            # The pad before the first token shifts places by one.
            start, end = int(edges[places[0] + 1]), int(edges[places[-1] + 2])
            if after_pause:
                start -= LATE_AFTER_PAUSE_MS
            _add(timings, text, word.span, max(start, 0), end)
            after_pause = False
        start_of_line = int(edges[-1])
    return tuple(timings)


def _add(timings: list[WordTiming], text: str, span: tuple[int, int], start: int, end: int) -> None:
    if timings and span[0] < timings[-1].span[1]:  # another word of the same written form
        last = timings.pop()
        span = (last.span[0], max(span[1], last.span[1]))
        start = last.start_ms
    elif timings:
        start = max(start, timings[-1].end_ms)
    timings.append(WordTiming(text[slice(*span)], start, max(start, end), span))
