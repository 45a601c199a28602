"""Any order of claims, crashes, late writers and cancellations keeps the books straight."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline import arrows, intake, leases, models
from pipeline.arrows import Stored
from pipeline.database import now_ms
from pipeline.errors import LostLease
from pipeline.job import Job, prepare
from pipeline.narration import Spoken
from pipeline.relay import retry_failed
from pipeline.speaker import Held
from tests.pipeline.house import House, open_house

WORKERS = 3
TEXT = "The first sentence. The second sentence. The third sentence."
FINAL = ("done", "dead", "cancelled")


class Actors(RuleBasedStateMachine):
    """Some workers, one of whom may be asleep at any time, and an episode they all want."""

    template: Path

    @initialize()
    def build(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="notecast-"))
        self.opening = open_house(self.directory, self.template, durable_after_s=0, reuse=False)
        self.house: House = self.opening.__enter__()
        self.key = self.house.accept(TEXT).accepted.episode
        self.claims: list[tuple[Held, Job]] = []
        self.written: list[tuple[int, int]] = []  # (segment, fence), as they were accepted
        self.stored: list[int] = []  # fences that stored a recording
        self.ended = ""

    def teardown(self) -> None:
        if hasattr(self, "opening"):
            self.opening.__exit__(None, None, None)
            shutil.rmtree(self.directory)

    @property
    def row(self) -> Any:
        return self.house.row(self.key)

    @rule(queue=st.sampled_from(["realtime", "quarantine"]))
    def claim(self, queue: str) -> None:
        taken = leases.claim(
            self.house.database, self.house.worker, queue=queue, limit=1, lease_ms=60_000
        )
        for one in taken:
            held = Held(one, 60.0)
            self.claims.append((held, prepare(self.house.services, held)))

    @precondition(lambda self: self.claims)
    @rule(who=st.integers(0, 20), ahead=st.integers(0, 1))
    def append(self, who: int, ahead: int) -> None:
        """Any owner, of now or of long ago, writes the sentence it believes to be next."""
        held, job = self.claims[who % len(self.claims)]
        seg = held.claim.segments_done + len(
            [one for one in self.written if one[1] == held.claim.fence]
        )
        seg = min(seg + ahead, len(job.plan.sentences) - 1)
        pcm = np.full(480, seg + 1, np.int16)
        one = Spoken(seg, job.plan.sentences[seg].text, 480, 0, [], "model", lambda: pcm)
        before = self.row.segments_done
        try:
            arrows.commit_segment(self.house.services, held, job, one)
        except LostLease:
            return
        if self.row.segments_done > before:
            self.written.append((seg, held.claim.fence))

    @precondition(lambda self: self.claims)
    @rule(who=st.integers(0, 20))
    def finish(self, who: int) -> None:
        held, job = self.claims[who % len(self.claims)]
        made = [Stored(name, f"rec/x/{name}", 1, "d" * 64, 1000) for name in ("opus", "mp3")]
        try:
            arrows.commit_stored(
                self.house.services, held, job, made, 1000, busy_ms=1, first_audio_ms=1
            )
        except LostLease:
            return
        self.stored.append(held.claim.fence)

    @precondition(lambda self: self.claims)
    @rule(who=st.integers(0, 20))
    def fail(self, who: int) -> None:
        held, _job = self.claims[who % len(self.claims)]
        try:
            arrows.commit_failure(self.house.services, held, RuntimeError("something"))
        except LostLease:
            return
        assert held.claim.fence == self.row.fence

    @precondition(lambda self: self.claims)
    @rule(who=st.integers(0, 20))
    def hand_over(self, who: int) -> None:
        arrows.hand_over(self.house.services, self.claims[who % len(self.claims)][0])

    @rule()
    def lease_runs_out(self) -> None:
        self.house.change(
            models.episode, models.episode.c.key == self.key, lease_until_ms=now_ms() - 1
        )
        leases.reap(self.house.database, on_dead=lambda *_: None)

    @rule()
    def time_passes(self) -> None:
        failed = sa.and_(models.episode.c.key == self.key, models.episode.c.state == "failed")
        self.house.change(models.episode, failed, next_ms=0)
        retry_failed(self.house.services)

    @rule(sure=st.integers(0, 9))
    def cancel(self, sure: int) -> None:
        if sure == 0:
            with self.house.database.write() as connection:
                intake.cancel(connection, models.episode.c.key == self.key, actor="t", reason="t")

    @invariant()
    def books_are_straight(self) -> None:
        if not hasattr(self, "house"):
            return
        row = self.row
        segments = self.house.all(models.segment, models.segment.c.n)
        fences = [one.fence for one in segments]
        assert [one.n for one in segments] == list(range(row.segments_done))
        assert fences == sorted(fences)
        assert len(self.stored) <= 1
        assert len(self.house.all(models.recording)) in (0, 2)
        assert (row.lease_owner is not None) == (row.state in models.LEASED)
        attempts = self.house.all(models.attempt)
        assert len({one.fence for one in attempts}) == len(attempts)
        assert all(one.fence <= row.fence for one in attempts)
        if self.ended:
            assert row.state == self.ended, "final states are final"
        self.ended = row.state if row.state in FINAL else ""


def test_late_writers_never_change_what_newer_owners_wrote(sqlite_template: Path) -> None:
    machine = type("Actors", (Actors,), {"template": sqlite_template})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
