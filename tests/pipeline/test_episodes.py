"""One episode after another, spoken in this process: crashed, resumed, fenced, refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends.tone import decode, sentence_code
from engine.base import AudioChunk
from engine.utterance import Utterance
from pipeline import audio, episode_view, models
from pipeline.audio import AudioBroken
from pipeline.episodes import produce
from pipeline.relay import retry_failed
from pipeline.speaker import Held
from pipeline.storage import FolderStorage, StorageUnavailable
from streaming.chunk_log import BEGINNING, Entry
from tests.pipeline.house import LEASE_MS, House, open_house

SENTENCES = tuple(f"This is sentence number {n} of the note." for n in range(5))
TEXT = " ".join(SENTENCES)
CODES = [sentence_code(text) for text in SENTENCES]


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template, durable_after_s=0, tone_faults=True) as house:
        yield house


class Moody(FolderStorage):
    """A real folder that is away at chosen moments."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.away: list[str] = []  # prefixes of keys; each is refused once
        self.on_put: Any = lambda key: None

    def put_if_absent(self, key: str, body: bytes, *, content_type: str = "") -> bool:
        for prefix in self.away:
            if key.startswith(prefix):
                self.away.remove(prefix)
                raise StorageUnavailable("the store is away")
        self.on_put(key)
        return super().put_if_absent(key, body, content_type=content_type)


@pytest.fixture
def store(house: House, tmp_path: Path) -> Moody:
    store = Moody(tmp_path / "objects")
    vars(house.services)["storage"] = store
    return store


def speak(house: House, text: str = TEXT, **note: Any) -> str:
    key = house.accept(text, **note).accepted.episode
    produce(house.services, house.hold())
    return key


def heard(house: House, key: str) -> list[int]:
    """The codes in the one Opus recording that an episode has."""
    rows = [one for one in house.all(models.recording) if one.format == "opus"]
    row = next(one for one in rows if one.spec_hash == house.row(key).spec_hash)
    return decode(audio.decode(house.services.storage.get(row.object_key)))


def live(house: House, key: str) -> list[Entry]:
    return house.services.chunks.read(key, BEGINNING, 100_000)


def events(house: House, key: str, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(entry.body) for entry in live(house, key) if not entry.header]
    return [event for event in found if event["t"] == kind]


def lose_after(store: Moody, held: Held, segments: int) -> None:
    """The owner loses its lease as it stores a certain sentence."""

    def on_put(key: str) -> None:
        if f"/{segments:05}-" in key:
            held.lose()

    store.on_put = on_put


def test_an_episode_is_spoken_recorded_and_done(house: House) -> None:
    key = speak(house, title="Weekly")
    row = house.row(key)

    assert (row.state, row.title, row.lang) == ("done", "Weekly", "en")
    assert row.segments_done == row.segments_total == len(SENTENCES) + 1
    assert heard(house, key) == [sentence_code("Weekly"), *CODES]
    formats = {one.format: one for one in house.all(models.recording)}
    assert set(formats) == {"opus", "mp3", "vtt", "chapters"}
    assert formats["opus"].duration_ms == row.samples * 1000 // 24_000
    states = [one.to_state for one in house.all(models.episode_log, models.episode_log.c.id)]
    assert states == [
        "queued", "synthesising", "encoding", "stored", "written_back", "done",
    ]  # fmt: skip


def test_listeners_get_every_chunk_and_its_digest(house: House) -> None:
    key = speak(house)
    (end,) = events(house, key, "end")
    frames = [entry for entry in live(house, key) if entry.header and entry.body]
    digest = hashlib.sha256(b"".join(entry.body for entry in frames)).hexdigest()

    assert (end["why"], end["sha256"], end["chunks"]) == ("done", digest, len(frames))
    assert [event["text"] for event in events(house, key, "seg")] == list(SENTENCES)
    (file,) = events(house, key, "file")
    assert f"/episodes/{key}.mp3?ticket=" in file["url"]


def test_captions_and_chapters_lie_on_the_recordings_timeline(house: House) -> None:
    key = speak(house, "# One\n\nFirst words here.\n\n# Two\n\nSecond words here.\n")
    by_format = {one.format: one for one in house.all(models.recording)}
    vtt = house.services.storage.get(by_format["vtt"].object_key).decode()
    chapters = json.loads(house.services.storage.get(by_format["chapters"].object_key))["chapters"]

    assert [chapter["title"] for chapter in chapters] == ["One", "Two"]
    told = [one for one in events(house, key, "seg") if "chapter" in one]
    assert [one["chapter"] for one in told] == ["One", "Two"]
    assert [one["ms"] / 1000 for one in told] == [one["startTime"] for one in chapters]
    assert chapters[0]["startTime"] == 0
    assert chapters[1]["startTime"] == chapters[0]["endTime"]
    assert round(chapters[1]["endTime"] * 1000) == by_format["opus"].duration_ms
    assert vtt.startswith("WEBVTT")
    assert heard(house, key) != []


def test_a_second_attempt_goes_on_after_the_last_stored_sentence(
    house: House, store: Moody
) -> None:
    key = house.accept(TEXT).accepted.episode
    first = house.hold()
    lose_after(store, first, 2)
    produce(house.services, first)
    assert (house.row(key).state, house.row(key).segments_done) == ("synthesising", 2)
    house.change(models.episode, models.episode.c.key == key, state="queued", lease_owner=None)

    produce(house.services, house.hold())

    fences = [one.fence for one in house.all(models.segment, models.segment.c.n)]
    assert fences == [1, 1, 2, 2, 2]
    assert house.row(key).state == "done"
    assert heard(house, key) == CODES
    (cut,) = events(house, key, "cut")
    assert (cut["why"], cut["from_seg"]) == ("retry", 2)


def test_a_lost_live_log_is_built_again_from_what_was_stored(house: House, store: Moody) -> None:
    key = house.accept(TEXT).accepted.episode
    first = house.hold()
    lose_after(store, first, 3)
    produce(house.services, first)
    house.services.chunks.forget(key)
    house.change(models.episode, models.episode.c.key == key, state="queued", lease_owner=None)

    produce(house.services, house.hold())

    assert [event["text"] for event in events(house, key, "seg")] == list(SENTENCES)
    (end,) = events(house, key, "end")
    frames = [entry.body for entry in live(house, key) if entry.header and entry.body]
    assert end["sha256"] == hashlib.sha256(b"".join(frames)).hexdigest()
    assert heard(house, key) == CODES


def test_an_owner_that_was_replaced_writes_nothing_more(house: House, store: Moody) -> None:
    key = house.accept(TEXT).accepted.episode
    old = house.hold()

    def on_put(object_key: str) -> None:
        """As the old owner stores its second sentence, a new one takes over and finishes."""
        if "/00001-" in object_key and house.row(key).fence == 1:
            house.change(
                models.episode, models.episode.c.key == key, state="queued", lease_owner=None
            )
            produce(house.services, house.hold())

    store.on_put = on_put
    produce(house.services, old)

    assert house.row(key).state == "done"
    assert heard(house, key) == CODES
    assert len(house.all(models.recording)) == 4
    assert len(events(house, key, "end")) == 1
    assert {one.fence for one in house.all(models.segment)} == {1, 2}
    assert sum(one.episodes for one in house.all(models.usage_day)) == 1


@pytest.mark.parametrize("prefix", ["seg/", "rec/"])
def test_speech_waits_for_a_store_that_is_away_for_a_moment(
    house: House, store: Moody, prefix: str
) -> None:
    store.away = [prefix, prefix]
    key = speak(house)

    assert (house.row(key).state, house.row(key).tries) == ("done", 0)
    assert heard(house, key) == CODES


def test_stored_sentences_of_other_words_are_dropped(house: House, store: Moody) -> None:
    key = house.accept(TEXT).accepted.episode
    first = house.hold()
    lose_after(store, first, 3)
    produce(house.services, first)
    house.change(models.segment, models.segment.c.n == 1, text_digest="0" * 64)
    house.change(models.episode, models.episode.c.key == key, state="queued", lease_owner=None)

    produce(house.services, house.hold())

    fences = [one.fence for one in house.all(models.segment, models.segment.c.n)]
    assert fences == [1, 2, 2, 2, 2]
    assert heard(house, key) == CODES


def test_short_episodes_store_no_sentences_and_are_spoken_again_after_a_crash(
    tmp_path: Path, sqlite_template: Path
) -> None:
    with open_house(tmp_path, sqlite_template, durable_after_s=60) as house:
        key = house.accept(TEXT).accepted.episode
        crashed = house.hold()
        crashed.lose()
        produce(house.services, crashed)
        house.change(models.episode, models.episode.c.key == key, state="queued", lease_owner=None)
        produce(house.services, house.hold())

        assert house.row(key).state == "done"
        assert house.all(models.segment) == []
        assert heard(house, key) == CODES


def test_a_failure_is_tried_again_later_and_then_told(house: House) -> None:
    key = house.accept("Good. This one [[fail]] is bad.").accepted.episode
    for _ in range(3):
        produce(house.services, house.hold())
        house.change(models.episode, models.episode.c.state == "failed", next_ms=0)
        retry_failed(house.services)
    row = house.row(key)

    assert (row.state, row.tries, row.error_code) == ("dead", 3, "engine_failed")
    (error,) = events(house, key, "error")
    assert error["message"] == row.error
    assert [one.outcome for one in house.all(models.attempt)] == ["failed", "failed", "dead"]


def test_text_that_cannot_be_spoken_is_dead_at_once_with_the_reason(house: House) -> None:
    key = speak(house, "🎉🎉🎉")
    row = house.row(key)

    assert (row.state, row.tries, row.error_code) == ("dead", 1, "unspeakable")
    assert row.error


def test_an_unknown_voice_is_named(house: House) -> None:
    taken = house.accept(TEXT, voice="nobody")
    house.change(
        models.episode,
        models.episode.c.id == taken.episode_id,
        wishes={"casting": {"default": "nobody"}},
    )
    produce(house.services, house.hold())

    row = house.row(taken.accepted.episode)
    assert row.state == "dead"
    assert "nobody" in row.error


def test_the_same_words_take_the_recording_that_is_there(house: House) -> None:
    first = speak(house)
    second = speak(house)

    assert house.row(second).state == "done"
    assert len(house.all(models.recording)) == 4
    assert len(house.all(models.episode_recording)) == 8
    assert live(house, second) == []
    assert house.row(first).spec_hash == house.row(second).spec_hash


def test_other_words_or_another_voice_are_another_recording(house: House) -> None:
    speak(house)
    speak(house, TEXT + " And more.")
    taken = house.accept(TEXT)
    house.change(
        models.episode,
        models.episode.c.id == taken.episode_id,
        wishes={"casting": {"default": "tone_b"}},
    )
    produce(house.services, house.hold())

    assert len({one.spec_hash for one in house.all(models.recording)}) == 3


def test_what_another_attempt_stored_first_is_the_recording(house: House, store: Moody) -> None:
    """Two attempts may sound differently; whoever was first wins everywhere."""
    key = house.accept(TEXT).accepted.episode
    other = audio.to_flac(np.zeros(4800, np.int16))

    def on_put(object_key: str) -> None:
        if object_key.endswith(".mp3"):
            store.on_put = lambda key: None
            FolderStorage.put_if_absent(store, object_key, other)

    store.on_put = on_put
    produce(house.services, house.hold())
    row = next(one for one in house.all(models.recording) if one.format == "mp3")

    assert house.row(key).state == "done"
    assert (row.digest, row.size_bytes) == (hashlib.sha256(other).hexdigest(), len(other))
    assert store.get(row.object_key) == other


def test_a_draining_owner_hands_over_after_its_sentence(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    held = house.hold()
    held.drain()
    produce(house.services, held)
    row = house.row(key)

    assert (row.state, row.segments_done, row.crash_count, row.fence) == ("queued", 1, 0, 2)
    assert row.lease_owner is None
    produce(house.services, house.hold())
    assert heard(house, key) == CODES
    assert house.all(models.attempt)[0].outcome == "handed_over"


def test_usage_counts_what_was_spoken(house: House) -> None:
    key = speak(house)
    (usage,) = house.all(models.usage_day)

    assert (usage.episodes, usage.chars, usage.engine) == (1, len(TEXT), "tone")
    assert usage.audio_ms == house.row(key).samples * 1000 // 24_000
    assert usage.stored_bytes == sum(one.size_bytes for one in house.all(models.recording))


def test_an_episode_that_was_cancelled_before_its_claim_is_left(house: House) -> None:
    key = house.accept(TEXT).accepted.episode
    claim = house.claim()
    house.change(models.episode, models.episode.c.key == key, state="cancelled", fence=9)
    produce(house.services, Held(claim, LEASE_MS / 1000))

    assert house.row(key).state == "cancelled"
    assert live(house, key) == []


def test_a_broken_stored_sentence_is_no_endless_loop(house: House, store: Moody) -> None:
    key = house.accept(TEXT).accepted.episode
    first = house.hold()
    lose_after(store, first, 2)
    produce(house.services, first)
    damaged = house.all(models.segment, models.segment.c.n)[0].object_key
    (store.root / damaged).write_bytes(b"not a flac file")
    house.change(models.episode, models.episode.c.key == key, state="queued", lease_owner=None)

    produce(house.services, house.hold())

    row = house.row(key)
    assert row.state == "failed"
    assert row.error_code == AudioBroken.code
    assert row.next_ms is not None


def test_what_is_not_said_is_told(house: House) -> None:
    key = speak(house, "Look at https://notes.example/a?b=1 for the 🎉 budget.")

    shown = episode_view.show(house.services, key)
    assert shown["status"] == "done"
    assert any("notes.example" in one["text"] for one in shown["remarks"]["skipped"])


def test_what_the_engine_remarks_is_kept_with_the_episode(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit = Utterance.emit

    def remarking(utterance: Utterance, chunk: AudioChunk) -> None:
        said = ("sentence 1 may be cut off",) if chunk.last and chunk.seg == 0 else ()
        emit(utterance, replace(chunk, remarks=said))

    monkeypatch.setattr(Utterance, "emit", remarking)
    key = speak(house)

    shown = episode_view.show(house.services, key)
    assert shown["remarks"]["warnings"] == ["sentence 1 may be cut off"]
