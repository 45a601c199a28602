from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base import AudioChunk, WordTiming
from pipeline.audio import Encoder
from pipeline.errors import LostLease
from pipeline.leases import Claim
from pipeline.narration import Broadcast, KeptOrder, Spoken
from pipeline.speaker import Held
from streaming.chunk_log import BEGINNING, MemoryLog
from streaming.errors import LogUnavailable
from streaming.frames import Flag, unpack_header

PACKET = 480  # samples in 20 ms


def pcm(samples: int, value: int = 1) -> Any:
    return np.full(samples, value, np.int16)


# KeptOrder ---------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 3 * PACKET), min_size=1, max_size=8),
    first=st.integers(0, 3),
    seed=st.integers(),
)
def test_kept_sentences_come_out_whole_and_in_order(
    lengths: list[int], first: int, seed: int
) -> None:
    """Pieces of one sentence keep their order; sentences overlap in any way."""
    chance = random.Random(seed)
    pieces: dict[int, list[AudioChunk]] = {}
    for n, length in enumerate(lengths):
        seg, cut = first + n, chance.randint(0, length - 1)
        spans = [(0, cut), (cut, length)] if cut else [(0, length)]
        pieces[seg] = [
            AudioChunk(seg, pcm(b - a, seg + 1), first=a == 0, last=b == length, pause_ms=seg)
            for a, b in spans
        ]
    order, out = KeptOrder(first), []
    while left := [seg for seg, rest in pieces.items() if rest]:
        out += order.add(pieces[chance.choice(left)].pop(0))

    assert [seg for seg, _pcm, _pause in out] == [first + n for n in range(len(lengths))]
    for (seg, sound, pause_ms), length in zip(out, lengths, strict=True):
        assert len(sound) % PACKET == 0
        assert 0 <= len(sound) - length < PACKET
        assert list(sound[:length]) == [seg + 1] * length
        assert not sound[length:].any()
        assert pause_ms == seg


# Broadcast ---------------------------------------------------------------------------------------


@pytest.fixture
def encoder() -> Iterator[Encoder]:
    encoder = Encoder()
    yield encoder
    encoder.close()


class Moody(MemoryLog):
    """A real log that is away, or empty, at chosen moments."""

    def __init__(self) -> None:
        super().__init__()
        self.away = 0

    def append(self, *arguments: Any, **options: Any) -> None:
        if self.away:
            self.away -= 1
            raise LogUnavailable("the log is away")
        super().append(*arguments, **options)


def hold(fence: int = 1, segments_done: int = 0) -> Held:
    return Held(Claim("e", fence, "realtime", segments_done, 0), 15.0)


def broadcast(
    log: MemoryLog, encoder: Encoder, held: Held, earlier: list[Spoken], **options: Any
) -> Broadcast:
    return Broadcast(
        log,
        encoder,
        held,
        key="ses_a",
        title="T",
        lang="en",
        first_seg=held.claim.segments_done,
        earlier=lambda: earlier,
        **options,
    )


def spoken(seg: int) -> Spoken:
    return Spoken(seg, f"Text {seg}.", 9600, 0, [["Text", 0, 200]], "model", lambda: pcm(9600))


def chunk(seg: int) -> AudioChunk:
    words = (WordTiming("Text", 0, 200, (0, 4)),)
    return AudioChunk(seg, pcm(9600), first=True, last=True, words=words)


def told(log: MemoryLog) -> list[str]:
    """What is in the log: events by name, sound by its sentence."""
    found = []
    for entry in log.read("ses_a", BEGINNING, 10_000):
        if entry.header:
            header = unpack_header(entry.header)
            if header.flags & Flag.SEGMENT_START:
                found.append(f"sound {header.seg}")
        else:
            event = json.loads(entry.body)
            found.append(event["t"] + (f" {event['seg']}" if "seg" in event else ""))
    return found


def test_a_sentence_is_announced_before_its_sound_and_its_words_follow_the_first_frame(
    encoder: Encoder,
) -> None:
    log = MemoryLog()
    one = broadcast(log, encoder, hold(), [])
    one.chunk(chunk(0), "Text 0.")
    one.end("done")

    assert told(log) == ["state", "seg 0", "sound 0", "w 0", "end"]


def test_a_new_owner_voids_what_the_old_one_left_unfinished(encoder: Encoder) -> None:
    log = MemoryLog()
    old = broadcast(log, encoder, hold(), [])
    old.chunk(chunk(0), "Text 0.")
    old.chunk(chunk(1), "Text 1.")
    new = broadcast(log, encoder, hold(fence=2, segments_done=1), [spoken(0)])
    new.chunk(chunk(1), "Text 1.")

    assert [line for line in told(log) if line.startswith(("cut", "sound"))] == [
        "sound 0", "sound 1", "cut", "sound 1",
    ]  # fmt: skip
    with pytest.raises(LostLease):
        old.chunk(chunk(2), "Text 2.")


def test_a_log_that_is_away_is_waited_for_while_the_episode_is_ours(encoder: Encoder) -> None:
    log = Moody()
    one = broadcast(log, encoder, hold(), [])
    log.away = 2
    one.chunk(chunk(0), "Text 0.")

    assert "sound 0" in told(log)


def test_waiting_for_the_log_ends_when_the_lease_does(encoder: Encoder) -> None:
    log, held = Moody(), hold()
    one = broadcast(log, encoder, held, [])
    log.away = 1_000
    held.lose()

    with pytest.raises(LostLease):
        one.chunk(chunk(0), "Text 0.")


def test_a_log_lost_in_the_middle_is_built_again_with_what_was_spoken(encoder: Encoder) -> None:
    log, earlier = MemoryLog(), [spoken(0)]
    one = broadcast(log, encoder, hold(), earlier)
    one.chunk(chunk(0), "Text 0.")
    one.kept(0)
    log.forget("ses_a")
    one.chunk(chunk(1), "Text 1.")
    one.end("done")

    lines = told(log)
    assert lines[0] == "cut"
    assert [line for line in lines if line.startswith("sound")] == ["sound 0", "sound 1"]
    assert lines[-1] == "end"


def chapters_told(log: MemoryLog) -> list[tuple[int, str]]:
    """Sentence and title of what was announced as the begin of a chapter."""
    found = [json.loads(e.body) for e in log.read("ses_a", BEGINNING, 10_000) if not e.header]
    return [(one["seg"], one["chapter"]) for one in found if one.get("chapter")]


def test_chapters_are_announced_with_their_first_sentence_also_in_a_log_built_again(
    encoder: Encoder,
) -> None:
    """Sentences 0 and 1 are a chapter, 2 to 4 another one; 2 is skipped."""

    def begun(seg: int, last: int | None) -> str:
        return f"Chapter {seg >= 2}" if last is None or (seg >= 2) != (last >= 2) else ""

    earlier: list[Spoken] = []
    log = MemoryLog()
    one = broadcast(log, encoder, hold(), earlier, chapter=begun)
    for seg in (0, 1, 3, 4):
        one.chunk(chunk(seg), f"Text {seg}.")
    before = chapters_told(log)
    earlier += [spoken(0), spoken(1)]
    one.kept(1)
    log.forget("ses_a")
    one.chunk(chunk(5), "Text 5.")
    one.cut(3)
    one.chunk(chunk(3), "Text 3.")

    assert before == [(0, "Chapter False"), (3, "Chapter True")]
    assert chapters_told(log) == [*before, before[-1]]


def test_a_lost_log_at_the_end_is_no_fault(encoder: Encoder) -> None:
    log = MemoryLog()
    one = broadcast(log, encoder, hold(), [])
    log.forget("ses_a")
    one.end("done")
    one.file(url="u", size_bytes=1, vtt="v", chapters="c")

    assert log.read("ses_a", BEGINNING, 10) == []
