"""Orders while an episode is spoken: a real worker, a paced voice, the recording as the judge."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends.tone import Tone, decode, sentence_code
from engine.engine import Engine
from pipeline import audio, control, leases, models
from pipeline.control import Wishes, place
from pipeline.database import Database
from pipeline.episodes import produce
from pipeline.errors import Ended, NotFound
from pipeline.signals import ORDERS
from pipeline.speaker import Speaker
from streaming.chunk_log import BEGINNING
from streaming.frames import unpack_header
from streaming.orders import Wish
from tests.pipeline.house import House, open_house

SENTENCES = [f"This is sentence number {n} of a note." for n in range(8)]
TEXT = " ".join(SENTENCES)
HUM_HZ = {"tone_a": 220, "tone_b": 277, "tone_c": 330, "tone_d": 392}


# Where an order takes effect --------------------------------------------------------------------

STARTS = {0: 0, 1: 2000, 2: 4000, 3: 6000}


@pytest.mark.parametrize(
    ("wish", "seg"),
    [
        (Wish("speed", 1.5, "playhead", 0), 1),
        (Wish("speed", 1.5, "playhead", 500), 1),
        (Wish("speed", 1.5, "playhead", 501), 2),
        (Wish("speed", 1.5, "playhead", 5000), 4),
        (Wish("speed", 1.5, "playhead"), 4),
        (Wish("speed", 1.5, "next", 0), 4),
        (Wish("speed", 1.5, "now", 0), 0),
        (Wish("speed", 1.5, "now", 3999), 1),
        (Wish("speed", 1.5, "now", 99_000), 3),
        (Wish("pause", at="now", play_ms=0), 4),
    ],
)
def test_an_order_takes_effect_at_a_sentence_border(wish: Wish, seg: int) -> None:
    assert place(wish, STARTS, 4) == seg


@given(
    skips=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), max_size=5),
    total=st.integers(1, 25),
)
def test_what_is_skipped_is_left_out_and_nothing_else(
    skips: list[tuple[int, int]], total: int
) -> None:
    wishes = Wishes()
    for start, count in skips:
        effect = {"from": start, "seg": start + count}
        wishes = wishes.after(Wish("skip", start + count), effect)
    left_out = {seg for start, target in wishes.skips.items() for seg in range(start, target)}
    spoken, seg = [], wishes.next(0)
    while seg < total:
        until = min(wishes.until(seg, total), total)
        spoken += range(seg, until)
        seg = wishes.next(until)

    assert spoken == sorted(set(spoken))
    assert {seg for seg in range(total) if seg not in spoken} <= left_out
    assert not any(seg in wishes.skips for seg in spoken)


# With a worker -----------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path) -> Iterator[House]:
    options = {"durable_after_s": 0, "look_s": 0.05, "lease_ms": 2_000, "renew_ms": 300}
    with open_house(tmp_path, sqlite_template, **options) as house:
        yield house


@contextmanager
def at_work(house: House, *, rtf: float = 0.1, hears: bool = True) -> Iterator[Speaker]:
    """A worker; without `hears` its signals get lost."""
    services = house.services
    with Engine(Tone(pace="paced", rtf=rtf)) as engine:
        vars(services)["engine"] = engine
        speaker = Speaker(
            house.database,
            engine,
            partial(produce, services),
            services.settings,
            house.worker,
            read_orders=partial(control.read_new, services),
        )
        if hears:
            services.signals.listen(
                ORDERS, lambda one: speaker.order_came(one["episode"], is_stop=one["op"] == "stop")
            )
        speaker.start()
        try:
            yield speaker
        finally:
            speaker.drain(5.0)


def wait_until(is_true: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := is_true()):
        assert time.monotonic() < deadline, "never became true"
        time.sleep(0.01)
    return found


_numbers = itertools.count()


def give(house: House, key: str, op: Any, value: Any = None, **more: Any) -> control.Ordered:
    order_key = more.pop("order_key", f"test-{next(_numbers)}")
    wish = Wish(op, value, **more)
    return control.order(
        house.services, key, wish, actor="lnk_1", role="owner", order_key=order_key
    )


def effect(house: House, ordered: control.Ordered) -> dict[str, Any]:
    """What came of an order, once it is known."""
    return wait_until(lambda: control.effect_of(house.services, ordered).effect)


def live(house: House, key: str) -> list[Any]:
    return house.services.chunks.read(key, BEGINNING, 100_000)


def events(house: House, key: str, *kinds: str) -> list[dict[str, Any]]:
    found = [json.loads(entry.body) for entry in live(house, key) if not entry.header]
    return [event for event in found if event["t"] in kinds]


def published(house: House, key: str, sentence: int) -> None:
    """Wait until listeners have a good part of a sentence."""
    wait_until(lambda: sum(seg >= sentence for _, seg, _ in effective(house, key)) > 2)


def effective(house: House, key: str) -> list[tuple[int, int, int]]:
    """(epoch, sentence, ticks) of the chunks that count, in order."""
    chunks: list[tuple[int, int, int]] = []
    for entry in live(house, key):
        if entry.header:
            header = unpack_header(entry.header)
            if entry.body:
                chunks.append((header.epoch, header.seg, header.dur))
        elif (event := json.loads(entry.body))["t"] == "cut":
            chunks = [chunk for chunk in chunks if chunk[1] < event["from_seg"]]
    return chunks


def sound(house: House, key: str) -> Any:
    """The one Opus recording of an episode."""
    row = house.row(key)
    (one,) = [
        one
        for one in house.all(models.recording)
        if one.format == "opus" and one.spec_hash == row.spec_hash
    ]
    return audio.decode(house.services.storage.get(one.object_key))


def hums(house: House, key: str) -> list[str]:
    """The voice of each effective sentence in the recording, heard by its hum."""
    pcm, at, voices = sound(house, key).astype(float), 0, []
    lengths: dict[int, int] = {}
    for _epoch, seg, ticks in effective(house, key):
        lengths[seg] = lengths.get(seg, 0) + ticks // 2
    for length in lengths.values():
        part = pcm[at + 8_500 : at + length - 900]
        power = np.abs(np.fft.rfft(part * np.hanning(len(part))))
        at += length
        loud = {
            name: power[round(hz * len(part) / 24_000) - 2 :][:5].sum()
            for name, hz in HUM_HZ.items()
        }
        voices.append(max(loud, key=lambda name: loud[name]))
    return voices


def assert_same(house: House, key: str, *segs: int) -> None:
    """The recording holds these sentences, once and in order, and listeners have the same."""
    chunks = effective(house, key)
    heard = list(dict.fromkeys(seg for _epoch, seg, _ticks in chunks))
    assert heard == list(segs) == sorted(segs)
    pcm = sound(house, key)
    assert decode(pcm) == [sentence_code(SENTENCES[seg]) for seg in segs]
    assert abs(len(pcm) - sum(ticks for _, _, ticks in chunks) // 2) < 480
    (end,) = events(house, key, "end")
    assert (end["chunks"], end["why"]) == (len(chunks), "done")


def done(house: House, key: str) -> Any:
    return wait_until(lambda: (row := house.row(key)).state == "done" and row)


def test_another_voice_is_heard_from_the_next_sentence_on(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    with at_work(house):
        published(house, key, 3)
        came = effect(house, give(house, key, "voice", "tone_c", play_ms=0))
        done(house, key)

    (cut,) = events(house, key, "cut")
    assert came["seg"] == cut["from_seg"] == 1, "the playhead is at the start, 0 is being heard"
    assert (cut["why"], cut["e"], cut["cut_ms"]) == ("voice", came["epoch"], came["ms"])
    assert came["epoch"] == 2
    assert_same(house, key, *range(8))
    assert hums(house, key) == ["tone_a"] + ["tone_c"] * 7
    epochs = {seg: epoch for epoch, seg, _ in effective(house, key)}
    assert epochs == {0: 1, **dict.fromkeys(range(1, 8), 2)}


def test_speed_changes_what_follows_and_leaves_what_was_heard(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    with at_work(house):
        published(house, key, 2)
        effect(house, give(house, key, "speed", 2.0, at="next"))
        effect(house, give(house, key, "speed", 0.5, play_ms=0))
        done(house, key)

    assert_same(house, key, *range(8))
    lengths: dict[int, int] = {}
    for _epoch, seg, ticks in effective(house, key):
        lengths[seg] = lengths.get(seg, 0) + ticks
    assert lengths[1] > 1.8 * lengths[0], "half the pace from sentence 1 on"
    assert len({lengths[seg] for seg in range(1, 8)}) == 1
    assert [cut["why"] for cut in events(house, key, "cut")] == ["speed", "speed"]
    assert [cut["e"] for cut in events(house, key, "cut")] == [2, 3]


def test_an_emotion_the_voice_does_not_have_is_followed_nearly_and_said(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    with at_work(house):
        published(house, key, 1)
        came = effect(house, give(house, key, "emotion", "sad"))
        done(house, key)

    assert came["degraded"] == ["emotion"]
    assert_same(house, key, *range(8))


def test_skipped_sentences_are_in_neither_timeline(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    with at_work(house):
        published(house, key, 2)
        came = effect(house, give(house, key, "skip", 6, play_ms=0))
        row = done(house, key)

    assert (came["from"], came["seg"]) == (1, 6)
    assert_same(house, key, 0, 6, 7)
    assert row.segments_done == row.segments_total == 8
    assert [one.n for one in house.all(models.segment, models.segment.c.n)] == [0, 6, 7]


@pytest.mark.parametrize(
    ("op", "value", "why"),
    [
        ("voice", "nobody", "no voice 'nobody'"),
        ("voice", {"speaker": "Maya", "voice": "tone_b"}, "nobody called 'Maya'"),
        ("skip", 0, "cannot be skipped to"),
        ("skip", 8, "cannot be skipped to"),
    ],
)
def test_what_the_voice_cannot_do_is_refused_and_the_speech_goes_on(
    house: House, op: str, value: Any, why: str
) -> None:
    key = house.accept(TEXT).accepted.episode
    with at_work(house):
        published(house, key, 2)
        came = effect(house, give(house, key, op, value, play_ms=0))
        done(house, key)

    assert came["code"] == "bad_message"
    assert why in came["message"]
    assert_same(house, key, *range(8))


def test_a_pause_ends_with_the_sentence_and_frees_the_slot_until_it_is_resumed(
    house: House,
) -> None:
    key = house.accept(TEXT).accepted.episode
    with at_work(house) as speaker:
        published(house, key, 1)
        came = effect(house, give(house, key, "pause"))
        wait_until(lambda: house.row(key).state == "queued")
        row, entries = house.row(key), len(live(house, key))
        speaker.wake()
        time.sleep(0.4)
        assert house.row(key).fence == row.fence, "nobody claims it"
        assert len(live(house, key)) == entries
        assert row.segments_done == came["seg"]
        resumed = effect(house, give(house, key, "resume"))
        done(house, key)

    assert [e["state"] for e in events(house, key, "state")] == [
        "generating", "paused", "generating",
    ]  # fmt: skip
    assert events(house, key, "state")[1]["by"] == "owner"
    assert resumed["seg"] == came["seg"]
    assert_same(house, key, *range(8))
    assert [one.outcome for one in house.all(models.attempt)] == ["paused", "stored"]


def test_a_short_episode_can_be_paused_as_well(house: House) -> None:
    vars(house.services)["settings"] = house.services.settings.model_copy(
        update={"durable_after_s": 600.0}
    )
    key = house.accept(TEXT).accepted.episode
    with at_work(house):
        published(house, key, 3)
        effect(house, give(house, key, "pause"))
        wait_until(lambda: house.row(key).state == "queued")
        stored = len(house.all(models.segment))
        give(house, key, "resume")
        done(house, key)

    assert stored >= 3, "what was spoken is kept, so that it is not spoken again"
    assert_same(house, key, *range(8))
    voided = [cut for cut in events(house, key, "cut") if cut["from_seg"] < stored]
    assert voided == []


def test_a_paused_episode_is_claimed_by_nobody(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    paused = give(house, key, "pause")
    assert paused.effect == {"seg": 0}
    with at_work(house):
        time.sleep(0.3)
        assert house.row(key).fence == 0
        give(house, key, "resume")
        done(house, key)

    assert_same(house, key, *range(8))


def test_orders_wait_for_whoever_speaks_it_next(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    waiting = give(house, key, "voice", "tone_d")
    with at_work(house):
        assert effect(house, waiting)["seg"] == 0
        done(house, key)

    assert_same(house, key, *range(8))
    assert set(hums(house, key)) == {"tone_d"}


def test_an_order_whose_signal_was_lost_is_followed_at_the_next_renewal(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    with at_work(house, rtf=0.3, hears=False):
        published(house, key, 1)
        came = effect(house, give(house, key, "voice", "tone_b", play_ms=0))
        done(house, key)

    assert came["seg"] == 1
    assert_same(house, key, *range(8))
    assert hums(house, key) == ["tone_a"] + ["tone_b"] * 7


def test_wishes_outlive_the_worker_that_followed_them(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    with at_work(house):
        published(house, key, 2)
        effect(house, give(house, key, "voice", "tone_b", play_ms=0))
        effect(house, give(house, key, "skip", 6))
        row = house.row(key)
        # as if this worker had died: somebody else owns it from now on
        house.change(
            models.episode,
            models.episode.c.id == row.id,
            state="queued",
            lease_owner=None,
            fence=row.fence + 1,
        )
        done(house, key)

    assert len(house.all(models.attempt)) == 2
    heard = list(dict.fromkeys(seg for _, seg, _ in effective(house, key)))
    assert heard[-2:] == [6, 7]
    assert_same(house, key, *heard)
    assert hums(house, key)[1:] == ["tone_b"] * (len(heard) - 1)


def test_a_stop_ends_the_episode_for_everybody_at_once(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    with at_work(house) as speaker:
        published(house, key, 1)
        stopped = give(house, key, "stop")
        wait_until(lambda: not speaker._held)

    (end,) = events(house, key, "end")
    assert end["why"] == "stopped"
    assert stopped.effect is not None
    assert (stopped.effect["ms"], stopped.effect["epoch"]) == (end["dur_ms"], end["e"])
    assert house.row(key).state == "cancelled"
    assert house.all(models.recording) == []
    with pytest.raises(Ended):
        give(house, key, "speed", 1.5)


def test_the_same_order_is_followed_once(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    with at_work(house):
        published(house, key, 1)
        first = give(house, key, "voice", "tone_b", order_key="conn:1")
        again = give(house, key, "voice", "tone_b", order_key="conn:1")
        done(house, key)

    assert again.number == first.number
    assert len(house.all(models.command)) == 1
    assert len(events(house, key, "cut")) == 1
    assert [one.action for one in house.all(models.audit)] == ["voice"]


def test_what_comes_too_late_is_said_to_be(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    with at_work(house):
        published(house, key, 7)
        late = give(house, key, "speed", 2.0, at="next")
        came = effect(house, late)
        done(house, key)

    assert came["code"] == "gone"
    assert events(house, key, "cut") == []
    with pytest.raises(Ended):
        give(house, key, "pause")


def test_nothing_is_ordered_for_an_episode_that_is_not_there(house: House) -> None:
    with pytest.raises(NotFound):
        give(house, "ses_nobody", "pause")


def test_every_order_is_in_the_audit_with_its_actor(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    give(house, key, "pause")
    give(house, key, "speed", 1.2, at="next")

    found = [(one.actor, one.action, one.object) for one in house.all(models.audit)]
    assert found == [("lnk_1", "pause", key), ("lnk_1", "speed", key)]
    assert house.all(models.audit)[1].detail["value"] == 1.2


def test_orders_from_all_sides_leave_recording_and_listeners_with_the_same(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    with at_work(house, rtf=0.05):
        published(house, key, 0)

        def meddle(op: Any, value: Any, at: Any) -> None:
            for play_ms in (0, 1500, 4000):
                try:
                    give(house, key, op, value, at=at, play_ms=play_ms)
                except Ended:
                    return
                time.sleep(0.05)

        hands = [
            threading.Thread(target=meddle, args=args)
            for args in (
                ("voice", "tone_b", "now"),
                ("speed", 1.3, "playhead"),
                ("pause", None, "next"),
            )
        ]
        for hand in hands:
            hand.start()
        for hand in hands:
            hand.join()
        if house.row(key).state != "done":
            give(house, key, "resume")
        done(house, key)

    assert_same(house, key, *range(8))


def test_orders_are_the_same_in_both_databases(
    database: Database, tmp_path: Path, sqlite_template: Path
) -> None:
    with open_house(tmp_path, sqlite_template, durable_after_s=0) as first:
        vars(first.services)["database"].close()
        vars(first.services)["database"] = database
        house = House(first.services, first.bell)
        key = house.accept(TEXT).accepted.episode
        give(house, key, "pause", order_key="a")
        assert give(house, key, "pause", order_key="a").number == 1
        assert leases.claim(database, house.worker, queue="realtime", limit=1, lease_ms=9_000) == []
        give(house, key, "resume")
        refused = give(house, key, "voice", "nobody")
        give(house, key, "skip", 3)
        with at_work(house, rtf=0.01):
            done(house, key)
        assert effect(house, refused)["code"] == "bad_message"
        assert_same(house, key, *range(3, 8))
        with pytest.raises(Ended):
            give(house, key, "stop")
