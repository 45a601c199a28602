"""The door's one transaction, in SQLite and in PostgreSQL."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from connectors.base import Note, NoteEvent, NoteRef
from pipeline import ids, intake, models
from pipeline.database import Database
from pipeline.intake import Door, Taken, Terms
from pipeline.links import Links
from streaming.tokens import KeyRing


@pytest.fixture
def links() -> Links:
    return Links(KeyRing({"k1": b"k" * 32}, "k1"), base_url="http://house", days=30)


@pytest.fixture
def door(database: Database) -> Door:
    return intake.open_doors(database, {"board": "webhook"})["board"]


def event(text: str = "Words.", *, delivery: str = "d1", ref: str = "", **more: Any) -> NoteEvent:
    where = NoteRef("board", key=ref)
    note = Note(ref=where, text=text, title=f"About {text}") if text else None
    return NoteEvent(delivery, where, note=note, **more)


def take(database: Database, links: Links, door: Door, one: NoteEvent, **options: Any) -> Taken:
    return intake.accept(
        database, links, door, one, body_digest="0" * 64, casting={"default": "tone_a"}, **options
    )


def count(database: Database, *tables: sa.Table) -> list[int]:
    with database.read() as connection:
        return [
            connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in tables
        ]


def states(database: Database) -> list[str]:
    with database.read() as connection:
        query = sa.select(models.episode.c.state).order_by(models.episode.c.id)
        return list(connection.execute(query).scalars())


def test_an_event_becomes_all_its_rows_in_one_commit(
    database: Database, links: Links, door: Door
) -> None:
    taken = take(database, links, door, event(ref="row-1"))

    assert taken.accepted.status == "queued"
    assert taken.accepted.listen_url.startswith("http://house/l/")
    assert not taken.accepted.duplicate
    assert [topic for _id, topic in taken.wake_ups] == ["realtime"]
    everything = (
        models.delivery, models.note, models.episode, models.episode_note, models.listen_link,
        models.outbox, models.episode_log,
    )  # fmt: skip
    assert count(database, *everything) == [1] * len(everything)


def test_a_repeated_delivery_is_counted_and_answered_with_the_same_link(
    database: Database, links: Links, door: Door
) -> None:
    first = take(database, links, door, event())
    again = [take(database, links, door, event("Other words.")) for _ in range(3)]

    assert {one.accepted.listen_url for one in again} == {first.accepted.listen_url}
    assert all(one.accepted.duplicate and not one.wake_ups for one in again)
    assert count(database, models.episode, models.note) == [1, 1]
    with database.read() as connection:
        assert connection.execute(sa.select(models.delivery.c.repeats)).scalar_one() == 3


def test_threads_that_post_the_same_delivery_make_one_episode(
    database: Database, links: Links, door: Door
) -> None:
    taken: list[Taken] = []

    def post() -> None:
        for _ in range(5):
            taken.append(take(database, links, door, event()))

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({one.accepted for one in taken if one.accepted.duplicate}) == 1
    assert [one.accepted.duplicate for one in taken].count(False) == 1
    assert count(database, models.episode, models.delivery) == [1, 1]


def test_a_fault_in_the_middle_leaves_no_row_behind(
    database: Database, links: Links, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise RuntimeError("out of paper")

    monkeypatch.setattr(links, "create", broken)
    with pytest.raises(RuntimeError):
        take(database, links, door, event(ref="row-1"))

    everything = (models.delivery, models.note, models.episode, models.outbox, models.episode_log)
    assert count(database, *everything) == [0] * len(everything)


def test_a_newer_revision_ends_the_open_episodes_of_its_row_only(
    database: Database, links: Links, door: Door
) -> None:
    take(database, links, door, event("Old.", delivery="d1", ref="row-1"))
    take(database, links, door, event("Other.", delivery="d2", ref="row-2"))
    newer = take(database, links, door, event("New.", delivery="d3", ref="row-1"))

    assert states(database) == ["cancelled", "queued", "queued"]
    assert [fence for _key, fence in newer.cancelled] == [1]
    with database.read() as connection:
        notes = connection.execute(
            sa.select(models.note.c.revision, models.note.c.content).order_by(models.note.c.ref_key)
        ).all()
    assert [(one.revision, one.content["text"]) for one in notes] == [(2, "New."), (1, "Other.")]


def test_a_newer_revision_leaves_finished_episodes_alone(
    database: Database, links: Links, door: Door
) -> None:
    take(database, links, door, event("Old.", delivery="d1", ref="row-1"))
    with database.write() as connection:
        connection.execute(models.episode.update().values(state="stored"))
    newer = take(database, links, door, event("New.", delivery="d2", ref="row-1"))

    assert newer.cancelled == ()
    assert states(database) == ["stored", "queued"]


def test_a_thin_event_waits_until_its_note_was_read(
    database: Database, links: Links, door: Door
) -> None:
    taken = take(database, links, door, event("", ref="row-1"))

    assert states(database) == ["received"]
    assert [topic for _id, topic in taken.wake_ups] == ["read"]
    assert taken.accepted.status == "queued"


def test_a_deleted_row_ends_its_episode_and_makes_none(
    database: Database, links: Links, door: Door
) -> None:
    take(database, links, door, event(delivery="d1", ref="row-1"))
    gone = take(database, links, door, event("", delivery="d2", ref="row-1", kind="deleted"))
    unknown = take(database, links, door, event("", delivery="d3", ref="row-9", kind="deleted"))

    assert states(database) == ["cancelled"]
    assert len(gone.cancelled) == 1
    assert unknown.cancelled == ()
    assert gone.accepted.status == "ignored"


def test_a_note_for_a_schedule_is_kept_without_an_episode(
    database: Database, links: Links, door: Door
) -> None:
    kept = take(database, links, door, event(ref="row-1"), terms=Terms(speak_now=False))
    again = take(database, links, door, event(ref="row-1"), terms=Terms(speak_now=False))

    assert (kept.accepted.status, again.accepted.duplicate) == ("kept", True)
    assert count(database, models.note, models.episode) == [1, 0]


def test_doors_are_opened_once(database: Database) -> None:
    first = intake.open_doors(database, {"board": "webhook"})
    second = intake.open_doors(database, {"board": "webhook", "base": "feishu_automation"})

    assert second["board"] == first["board"]
    assert set(second) == {"board", "base", "api"}
    assert len({door.tenant_id for door in second.values()}) == 1


def test_two_teams_take_turns_however_much_one_of_them_sends(
    database: Database, links: Links, door: Door
) -> None:
    small = Door(door.endpoint_id, ids.ulid())
    with database.write() as connection:
        connection.execute(
            models.tenant.insert().values(id=small.tenant_id, name="small", created_ms=0)
        )
    for n in range(20):
        take(database, links, door, event("A long note. " * 50, delivery=f"many-{n}"))
    take(database, links, small, event("A short one.", delivery="one"))

    with database.read() as connection:
        teams = connection.execute(
            sa.select(models.episode.c.tenant_id).order_by(models.episode.c.fair_at_ms)
        ).scalars()
        assert list(teams).index(small.tenant_id) <= 1


def test_fair_share_is_counted_in_whole_milliseconds(
    database: Database, links: Links, door: Door
) -> None:
    with database.write() as connection:
        connection.execute(models.tenant.update().values(weight=7))
    take(database, links, door, event("Some words."))

    with database.read() as connection:
        turn = connection.execute(sa.select(models.episode.c.fair_at_ms)).scalar_one()
    assert isinstance(turn, int)


def test_every_state_has_a_word_for_the_outside() -> None:
    words = {intake.status_of(state) for state in models.EPISODE_STATES}

    assert words == {"queued", "live", "done", "failed", "cancelled"}


def test_a_revoked_key_is_revoked_once(database: Database, door: Door) -> None:
    intake.add_api_key(
        database, door, name="ci", digest="d" * 64, prefix="nck_abcd", scopes=["episodes"]
    )

    assert intake.revoke_api_key(database, "nck_abcd") == 1
    assert intake.revoke_api_key(database, "nck_abcd") == 0
