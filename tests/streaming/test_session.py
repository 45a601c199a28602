from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.chunk_log import ChunkLog, MemoryLog
from streaming.errors import Fenced, LogLost, SessionExists
from streaming.frames import Flag, Kind, unpack_header
from streaming.session import EPOCHS_PER_FENCE, SEQS_PER_FENCE, LiveSession, stream_handle
from tests.streaming.speaking import CHUNK_TICKS, SID, create, entries, events, sha256, speak


def headers(log: ChunkLog) -> list:
    return [unpack_header(entry.header) for entry in entries(log) if entry.header]


def test_chunks_carry_growing_numbers_times_and_sentence_borders(chunk_log: ChunkLog) -> None:
    session = create(chunk_log)
    speak(session, 0)
    speak(session, 1, chunks=1)

    found = headers(chunk_log)
    assert [header.seq for header in found] == [0, 1, 2, 3]
    assert [header.pts for header in found] == [n * CHUNK_TICKS for n in range(4)]
    assert [header.seg for header in found] == [0, 0, 0, 1]
    first, last = Flag.SEGMENT_START, Flag.SEGMENT_END
    fresh = Flag.EPOCH_START | Flag.DISCONTINUITY
    assert [header.flags for header in found] == [fresh | first, Flag(0), last, first | last]
    assert {header.stream for header in found} == {stream_handle(SID)}


def test_a_sentence_is_announced_right_before_its_first_chunk(chunk_log: ChunkLog) -> None:
    session = create(chunk_log)
    speak(session, 0)
    session.sentence(1, "It waits for its sound.")
    before = list(entries(chunk_log))
    session.audio(1, CHUNK_TICKS, [b"x"], first=True, last=True)

    written = list(entries(chunk_log))[len(before) :]
    assert [entry.position for entry in written] == [(2, 2), (3, 0)]
    assert events(chunk_log)[-1]["ms"] == 600


def test_end_tells_digest_count_and_length_of_what_counts(chunk_log: ChunkLog) -> None:
    session = create(chunk_log)
    heard = speak(session, 0)
    speak(session, 1)
    session.cut(1, "speed")
    heard += speak(session, 1, take=1, chunks=2)
    session.silence(1, 4800)
    session.end("done", url="https://h/x.mp3")

    end = events(chunk_log)[-1]
    assert (end["t"], end["chunks"], end["dur_ms"]) == ("end", 6, 1100)
    assert end["sha256"] == sha256(heard)
    assert end["url"] == "https://h/x.mp3"
    last = headers(chunk_log)[-1]
    assert (last.kind, last.seq, last.dur) == (Kind.END, end["seq"], 0)


def test_a_sentence_says_which_chapter_it_begins(chunk_log: ChunkLog) -> None:
    session = create(chunk_log)
    for seg, chapter in enumerate(("Decisions", "")):
        session.sentence(seg, "Words.", chapter=chapter)
        session.silence(seg, 960, first=True, last=True)

    found = [event for event in events(chunk_log) if event["t"] == "seg"]
    assert found[0]["chapter"] == "Decisions"
    assert "chapter" not in found[1]


def test_a_cut_goes_back_to_the_start_of_its_sentence(chunk_log: ChunkLog) -> None:
    session = create(chunk_log)
    for seg in range(3):
        speak(session, seg)

    assert session.cut(1, "retry") == 2

    cut = events(chunk_log)[-1]
    assert (cut["e"], cut["from_seg"], cut["cut_ms"], cut["why"]) == (2, 1, 600, "retry")
    assert session.last_full_seg == 0
    speak(session, 1, take=1)
    again = headers(chunk_log)[9]
    assert (again.seq, again.pts, again.epoch) == (9, 3 * CHUNK_TICKS, 2)
    assert again.flags & Flag.EPOCH_START
    assert again.flags & Flag.DISCONTINUITY


def test_a_new_owner_knows_what_the_old_one_did(chunk_log: ChunkLog) -> None:
    old = create(chunk_log)
    heard = speak(old, 0) + speak(old, 1)
    old.cut(1, "emotion")
    heard = heard[:3] + speak(old, 1, take=1)
    old.audio(2, CHUNK_TICKS, [b"half a sentence"], first=True, last=False)

    new = LiveSession.take_over(chunk_log, SID, 2)

    assert (new.epoch, new.head_seq, new.last_full_seg) == (2, 9, 1)
    assert new.meta["title"] == "Weekly"
    assert {seg: place.pts for seg, place in new.segments.items()} == {
        seg: place.pts for seg, place in old.segments.items()
    }
    with pytest.raises(Fenced):
        old.audio(2, CHUNK_TICKS, [b"the rest"], first=False, last=True)
    new.cut(2, "retry")
    heard += speak(new, 2)
    new.end("done")
    assert events(chunk_log)[-1]["sha256"] == sha256(heard)


def test_going_on_at_a_border_resets_the_decoder_without_a_new_epoch(chunk_log: ChunkLog) -> None:
    speak(create(chunk_log), 0)

    new = LiveSession.take_over(chunk_log, SID, 2)
    speak(new, 1)

    flags = headers(chunk_log)[3].flags
    assert flags & Flag.DISCONTINUITY
    assert not flags & Flag.EPOCH_START
    assert new.epoch == 1


def test_a_finished_session_is_known_as_such(chunk_log: ChunkLog) -> None:
    session = create(chunk_log)
    speak(session, 0)
    session.end("done")

    assert LiveSession.take_over(chunk_log, SID, 2).ended


def test_a_lost_log_is_built_again_with_new_numbers(chunk_log: ChunkLog) -> None:
    session = create(chunk_log)
    speak(session, 0)
    chunk_log.forget(SID)
    with pytest.raises(LogLost):
        speak(session, 1)

    session.rebuild()
    heard = speak(session, 0) + speak(session, 1)
    session.end("done")

    cut = events(chunk_log)[0]
    assert (cut["t"], cut["from_seg"], cut["e"], cut["p"]) == ("cut", 0, 2, [3, 1])
    assert [header.seq for header in headers(chunk_log)] == list(range(4, 11))
    assert events(chunk_log)[-1]["sha256"] == sha256(heard)


def test_rebuilding_may_be_repeated(chunk_log: ChunkLog) -> None:
    session = create(chunk_log)
    speak(session, 0)

    session.rebuild()
    session.rebuild()
    speak(session, 0)

    assert [event["t"] for event in events(chunk_log)] == ["cut", "seg", "w"]
    assert headers(chunk_log)[0].seq == 5


def test_a_new_owner_builds_a_lost_log_above_all_earlier_numbers(chunk_log: ChunkLog) -> None:
    session = create(chunk_log, fence=3, rebuilt=True)
    speak(session, 0)

    assert headers(chunk_log)[0].seq == 3 * SEQS_PER_FENCE
    assert headers(chunk_log)[0].epoch == 3 * EPOCHS_PER_FENCE
    assert headers(chunk_log)[0].pts == 0
    assert LiveSession.take_over(chunk_log, SID, 4).head_seq == 3 * SEQS_PER_FENCE + 2


def test_creating_a_session_twice_is_refused(chunk_log: ChunkLog) -> None:
    create(chunk_log)

    with pytest.raises(SessionExists):
        create(chunk_log, fence=2)


def test_a_failure_is_told_with_its_cause(chunk_log: ChunkLog) -> None:
    session = create(chunk_log)
    session.fail("engine_failed", "the voice is missing")

    error, state = events(chunk_log)[-2:]
    assert (error["t"], error["code"], error["message"]) == (
        "error",
        "engine_failed",
        "the voice is missing",
    )
    assert (state["t"], state["state"]) == ("state", "failed")


def test_only_the_last_minute_of_pcm_is_kept() -> None:
    log = MemoryLog()
    session = create(log)
    for seg in range(40):
        speak(session, seg, chunks=10, pcm=True)

    kept = log.pcm(SID, -1)
    assert kept[-1][0] == session.head_seq
    assert len(kept) * CHUNK_TICKS / 48_000 == pytest.approx(60, abs=0.5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["speak", "cut", "take"]), st.integers(0, 5)), max_size=25)
)
def test_any_history_ends_with_the_digest_of_the_effective_chunks(
    steps: list[tuple[str, int]],
) -> None:
    log = MemoryLog()
    session, fence, take = create(log), 1, 0
    effective: list[tuple[int, bytes]] = []
    for step, number in steps:
        if step == "speak":
            seg, take = session.last_full_seg + 1, take + 1
            effective += [(seg, body) for body in speak(session, seg, chunks=1 + number, take=take)]
        elif step == "cut":
            session.cut(number, "retry")
            effective = [(seg, body) for seg, body in effective if seg < number]
        else:
            fence += 1
            session = LiveSession.take_over(log, SID, fence)
    session.end("done")

    end = events(log)[-1]
    digest = hashlib.sha256(b"".join(body for _, body in effective)).hexdigest()
    assert (end["sha256"], end["chunks"]) == (digest, len(effective))
    assert end["dur_ms"] == len(effective) * 200
