import csv
import io
import json

import pytest
import sqlalchemy as sa
from rich.console import Console

from migrations import report_views
from pipeline import ids, models, reports
from pipeline.database import Database, now_ms
from pipeline.errors import Refused
from pipeline.reports import Result


def ask(database: Database, view: str) -> list[dict[str, object]]:
    result = reports.run_sql(database, f"SELECT * FROM {view}", actor="test")
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def audits(database: Database) -> list[dict[str, object]]:
    with database.read() as connection:
        query = sa.select(models.audit).order_by(models.audit.c.id)
        return [dict(row) for row in connection.execute(query).mappings()]


@pytest.fixture
def board(seed) -> dict[str, str]:
    """Arguments for notes and episodes of one endpoint."""
    tenant_id = seed.tenant()
    return {"tenant_id": tenant_id, "endpoint_id": seed.endpoint(tenant_id)}


# views ------------------------------------------------------------------------------------------


def test_every_view_has_a_report_and_every_report_a_view(database: Database) -> None:
    assert {f"v_{name}" for name in reports.REPORTS} == set(report_views.names())

    for name in reports.REPORTS:
        assert reports.report(database, name).rows == ()


def test_minutes_are_counted_per_day_and_endpoint(database: Database, seed, board) -> None:
    day = {**board, "day": "2026-11-20", "engine": "kokoro"}
    seed.row(
        models.usage_day, **day, episodes=3, audio_ms=90_000, busy_ms=45_000, chars=700,
        stored_bytes=3 << 20,
    )  # fmt: skip
    seed.row(models.usage_day, **{**day, "day": "2026-11-21"}, episodes=1)

    result = reports.report(database, "minutes_day", day="2026-11-20")

    assert dict(zip(result.columns, result.rows[0], strict=True)) == {
        "tenant": "main",
        "day": "2026-11-20",
        "endpoint": "board",
        "engine": "kokoro",
        "episodes": 3,
        "minutes": 1.5,
        "chars": 700,
        "busy_minutes": 0.75,
        "real_time_factor": 2.0,
        "stored_mib": 3.0,
    }
    assert len(result.rows) == 1


def test_latency_percentiles_are_nearest_ranks(database: Database, seed, board) -> None:
    for ms in range(1, 201):  # queued to started 1..200 ms
        seed.episode(
            **board, state="done", queued_ms=1_000, started_ms=1_000 + ms,
            first_audio_ms=2_000, stored_ms=5_000,
        )  # fmt: skip

    stages = {row["stage"]: row for row in ask(database, "v_queue_latency")}

    start = stages["queued to started"]
    found = [start[name] for name in ("episodes", "p50_ms", "p95_ms", "p99_ms", "max_ms")]
    assert found == [200, 100, 190, 198, 200]
    assert stages["first audio to stored"]["p50_ms"] == 3_000
    assert stages["started to first audio"]["max_ms"] == 999


def test_backlog_counts_states_and_speech_to_come(database: Database, seed, board) -> None:
    seed.episode(**board, queued_ms=now_ms() - 5_000)
    seed.episode(**board)
    seed.episode(**board, state="synthesising")
    seed.episode(**board, state="done")
    seed.episode(**board, queue="batch", state="failed", next_ms=0)

    batch, realtime = sorted(ask(database, "v_backlog"), key=lambda row: str(row["queue"]))

    assert (realtime["queued"], realtime["speaking"], realtime["estimated_minutes"]) == (2, 1, 2)
    assert 5 <= realtime["oldest_s"] < 60
    assert (batch["to_retry"], batch["oldest_s"]) == (1, None)


def test_failures_are_told_by_connector_and_reason(database: Database, seed, board) -> None:
    for _ in range(3):
        seed.episode(**board, state="done")
    dead = seed.episode(**board, state="dead", error_code="text_refused")
    attempt = {"worker_id": "w", "first_segment": 0, "started_ms": 0}
    seed.row(models.attempt, episode_id=dead, fence=1, **attempt, outcome="reaped")
    seed.row(
        models.attempt, episode_id=dead, fence=2, **attempt, outcome="dead",
        error_code="text_refused",
    )  # fmt: skip

    crash, refused = sorted(
        ask(database, "v_failures_connector"), key=lambda row: str(row["error_code"])
    )

    assert (crash["error_code"], crash["crashes"], crash["dead"]) == ("crash", 1, 0)
    assert (refused["connector"], refused["episodes"], refused["share_lost"]) == (
        "webhook",
        4,
        0.25,
    )
    assert (refused["dead"], refused["attempts_failed"]) == (1, 1)


def test_nothing_is_stuck_while_work_goes_its_way(database: Database, seed, board) -> None:
    for state in ("received", "queued", "encoding", "stored", "done", "dead", "cancelled"):
        seed.episode(**board, state=state, lease_until_ms=now_ms() + 15_000)
    seed.episode(**board, state="failed", next_ms=now_ms() + 900_000)
    seed.row(models.outbox, topic="expand", created_ms=now_ms(), due_ms=now_ms())
    worker(seed, state="ready", seen_ms=now_ms())
    worker(seed, state="gone", seen_ms=0)

    assert ask(database, "v_stuck") == []


@pytest.mark.parametrize(
    ("reason", "values"),
    [
        ("lease overdue, nobody reaped it", {"state": "synthesising", "lease_until_ms": 1}),
        ("not read for a day", {"state": "received", "state_ms": 1}),
        ("queued for too long", {"state": "queued", "state_ms": now_ms() - 700_000}),
        ("failed and not queued again", {"state": "failed", "next_ms": 1}),
        ("stored and not ended for a day", {"state": "stored", "state_ms": 1}),
        (
            "spoken for over two hours",
            {"state": "synthesising", "state_ms": 1, "lease_until_ms": now_ms() + 9_000},
        ),
        (
            "encoded for over half an hour",
            {"state": "encoding", "state_ms": 1, "lease_until_ms": now_ms() + 9_000},
        ),
    ],
)
def test_an_episode_that_nobody_moves_is_stuck(
    database: Database, seed, board, reason: str, values: dict[str, object]
) -> None:
    seed.episode(**board, key="ses_stuck", **values)

    assert [(row["object"], row["reason"]) for row in ask(database, "v_stuck")] == [
        ("ses_stuck", reason)
    ]


def test_effects_wake_ups_workers_and_schedules_get_stuck_too(
    database: Database, seed, board
) -> None:
    episode_id = seed.episode(**board)
    effect(seed, board, episode_id, state="uncertain", next_ms=now_ms())
    effect(seed, board, episode_id, state="running", lease_until_ms=1, next_ms=now_ms())
    effect(seed, board, episode_id, state="due", next_ms=1)
    seed.row(models.outbox, topic="expand", created_ms=1, due_ms=1)
    worker(seed, state="ready", seen_ms=1)
    schedule_id = seed.row(
        models.schedule, tenant_id=board["tenant_id"], name="daily", cron="* * * * *",
        timezone="UTC", plan={}, catch_up="once", grace_ms=0, enabled=1, next_ms=1, changed_ms=0,
    )  # fmt: skip
    seed.row(
        models.batch_run, tenant_id=board["tenant_id"], schedule_id=schedule_id, fire_ms=1,
        state="selecting", created_ms=1,
    )  # fmt: skip

    assert sorted(str(row["reason"]) for row in ask(database, "v_stuck")) == [
        "due and not carried out",
        "due and not fired",
        "lease overdue, nobody reaped it",
        "not expanded",
        "silent and not marked gone",
        "uncertain: sent or not, a person must look",
        "wake-up not sent",
    ]


def test_the_dead_come_with_their_reason_and_the_command_that_revives_them(
    database: Database, seed, board
) -> None:
    episode_id = seed.episode(
        **board, key="ses_one", state="dead", tries=3, error_code="poison", ended_ms=5
    )
    effect(seed, board, episode_id, state="dead", error_code="tool_refused", done_ms=7)

    newest, oldest = reports.report(database, "dead").rows

    assert newest[0] == "effect" and "tool_refused" in newest
    assert oldest[:2] == ("episode", "ses_one") and "poison" in oldest
    assert newest[-1] == oldest[-1] == "notecast episodes revive ses_one"


def test_workers_show_what_they_speak(database: Database, seed, board) -> None:
    worker_id = worker(seed, state="ready", seen_ms=now_ms() - 2_000)
    seed.episode(**board, state="synthesising", lease_owner=worker_id)
    seed.episode(**board, state="done", lease_owner=worker_id)

    (row,) = ask(database, "v_workers")

    assert (row["speaking"], row["state"], row["took_s_ago"]) == (1, "ready", None)
    assert 2 <= row["seen_s_ago"] < 60


def test_the_path_of_an_episode_is_told_in_order(database: Database, seed, board) -> None:
    delivery_id = seed.row(
        models.delivery, **board, delivery_key="k", body_digest="d", received_ms=10, repeats=2
    )
    episode_id = seed.episode(**board, key="ses_one", delivery_id=delivery_id)
    seed.episode(**board, key="ses_two")
    log = {"episode_id": episode_id, "fence": 1}
    seed.row(models.episode_log, **log, ms=10, to_state="queued", actor="intake")
    seed.row(models.episode_log, **log, ms=20, to_state="synthesising", actor="w", reason="due")
    seed.row(
        models.attempt, episode_id=episode_id, fence=1, worker_id="w", first_segment=0,
        started_ms=20, ended_ms=40, outcome="failed", error_code="tool",
    )  # fmt: skip
    seed.row(
        models.segment, episode_id=episode_id, n=0, fence=1, object_key="o", samples=1,
        pcm_digest="d", text_digest="d", pause_ms=0, words=[], committed_ms=30,
    )  # fmt: skip
    effect(seed, board, episode_id, state="done", done_ms=50)

    assert [(row["at_ms"], row["detail"]) for row in reports.episode_path(database, "ses_one")] == [
        (10, "received, repeated 2 times"),
        (10, "queued by intake"),
        (20, "synthesising by w: due"),
        (20, "fence 1 started at sentence 0"),
        (30, "0 stored under fence 1"),
        (40, "fence 1 ended: failed, tool"),
        (50, "write_back done, tries 0"),
    ]
    assert len(reports.report(database, "episode_path", episode="ses_one").rows) == 7


def test_no_view_shows_what_a_note_says_or_where_it_can_be_heard(
    sqlite_database: Database,
) -> None:
    """A view that reads a private column is refused by the wall that refuses free queries."""
    for view in report_views.names():
        assert ask(sqlite_database, view) == []


# free queries -----------------------------------------------------------------------------------


def test_a_query_gives_columns_and_rows(database: Database, seed) -> None:
    seed.tenant("甲")

    result = reports.run_sql(database, "SELECT name, weight FROM tenant;", actor="test")

    assert result == Result(("name", "weight"), (("甲", 100),), truncated=False)


def test_more_rows_than_the_limit_are_cut_and_said(database: Database, seed) -> None:
    for name in "abc":
        seed.tenant(name)

    query = "WITH n AS (SELECT name FROM tenant) SELECT name FROM n ORDER BY name"
    cut = reports.run_sql(database, query, actor="test", limit=2)
    whole = reports.run_sql(database, query, actor="test", limit=3)

    assert (cut.rows, cut.truncated) == ((("a",), ("b",)), True)
    assert (len(whole.rows), whole.truncated) == (3, False)


@pytest.mark.parametrize(
    "text",
    [
        "DELETE FROM tenant",
        "INSERT INTO tenant (id, name, created_ms) VALUES ('x', 'x', 0)",
        "UPDATE tenant SET name = 'other'",
        "DROP TABLE segment",
        "DROP VIEW v_stuck",
        "CREATE TABLE mine (x INTEGER)",
        "CREATE TEMP TABLE mine (x INTEGER)",
        "SELECT 1; DELETE FROM tenant",
        "SELECT 1; COMMIT; DELETE FROM tenant",
        "COMMIT",
        "BEGIN",
        "VACUUM",
        "WITH gone AS (DELETE FROM tenant RETURNING 1) SELECT * FROM gone",
        "",
        "  ;  ",
        "-- nothing",
        "SELECT 'a\0b'",
        "SELECT '\udc80'",
    ],
)
def test_only_one_query_is_possible(database: Database, seed, text: str) -> None:
    seed.tenant("main")

    with pytest.raises(Refused):
        reports.run_sql(database, text, actor="test")

    assert ask(database, "tenant")[0]["name"] == "main"
    assert ask(database, "v_stuck") == []
    assert audits(database)[0]["detail"] == {"rows": 0, "refused": "bad_request"}


@pytest.mark.parametrize(
    "text",
    [
        "ATTACH DATABASE '{other}' AS other",
        "VACUUM INTO '{other}'",
        "PRAGMA query_only=OFF",
        "PRAGMA journal_mode=DELETE",
        "SELECT * FROM pragma_table_info('tenant')",
        "SELECT load_extension('{other}')",
        "CREATE TEMP VIEW mine AS SELECT 1",
    ],
)
def test_sqlite_attaches_sets_and_loads_nothing(sqlite_database: Database, text: str, tmp_path):
    other = tmp_path / "other.db"

    with pytest.raises(Refused, match=r"only a SELECT is possible"):
        reports.run_sql(sqlite_database, text.format(other=other), actor="test")
    assert not other.exists()


@pytest.mark.parametrize(
    "text",
    [
        "SELECT content FROM note",
        "SELECT * FROM note",
        "SELECT n.title FROM note AS n",
        "WITH v_backlog AS (SELECT digest FROM api_key) SELECT * FROM v_backlog",
        "SELECT name FROM tenant WHERE EXISTS (SELECT 1 FROM listen_link WHERE slug LIKE 'a%')",
    ],
)
def test_sqlite_does_not_show_private_columns(sqlite_database: Database, text: str) -> None:
    with pytest.raises(Refused, match="is private and cannot be queried"):
        reports.run_sql(sqlite_database, text, actor="test")


def test_sqlite_builds_no_giant_values(sqlite_database: Database) -> None:
    with pytest.raises(Refused, match="too big"):
        reports.run_sql(sqlite_database, "SELECT zeroblob(100000000)", actor="test")


@pytest.mark.parametrize(
    "text",
    [
        "COPY (SELECT 1) TO '/dev/null'",
        "COPY (SELECT 1) TO PROGRAM 'cat'",
        "SET default_transaction_read_only = off",
        "SET ROLE postgres",
        "DO $$ BEGIN DELETE FROM tenant; END $$",
        "SELECT nextval('outbox_id_seq')",
        "SELECT * FROM tenant FOR UPDATE",
        "LISTEN x",
    ],
)
def test_postgresql_copies_sets_and_locks_nothing(postgres_database: Database, text: str) -> None:
    with pytest.raises(Refused):
        reports.run_sql(postgres_database, text, actor="test")


def test_postgresql_settings_of_a_query_do_not_outlive_it(postgres_database: Database) -> None:
    query = "SELECT set_config('default_transaction_read_only', 'off', false)"
    reports.run_sql(postgres_database, query, actor="test")

    with pytest.raises(Refused):
        reports.run_sql(postgres_database, "DELETE FROM tenant", actor="test")
    with postgres_database.write() as connection:
        assert connection.scalar(sa.text("SHOW statement_timeout")) == "30s"


def test_postgresql_role_reads_views_and_nothing_else(postgres_database: Database) -> None:
    with postgres_database.write() as connection:
        connection.execute(sa.text("CREATE ROLE notecast_read"))
        connection.execute(sa.text("GRANT SELECT ON v_backlog TO notecast_read"))
    try:
        assert ask(postgres_database, "v_backlog") == []
        for text in ("SELECT content FROM note", "SELECT * FROM api_key"):
            with pytest.raises(Refused, match="permission denied"):
                reports.run_sql(postgres_database, text, actor="test")
    finally:
        with postgres_database.write() as connection:
            connection.execute(sa.text("DROP OWNED BY notecast_read"))
            connection.execute(sa.text("DROP ROLE notecast_read"))


def test_a_query_that_takes_too_long_is_stopped(database: Database) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"

    with pytest.raises(Refused, match=r"ran for 0\.2 s and was stopped"):
        reports.run_sql(database, endless, actor="test", timeout_s=0.2)


def test_a_wrong_name_is_answered_with_the_views(database: Database) -> None:
    with pytest.raises(Refused) as refused:
        ask(database, "v_minuets")

    assert "v_minuets" in str(refused.value)
    assert "views are: v_alarms, v_backlog, " in str(refused.value)


def test_a_mistake_is_told_in_the_databases_words(database: Database) -> None:
    with pytest.raises(Refused, match="nonsense"):
        reports.run_sql(database, "SELECT nonsense FROM tenant", actor="test")


def test_a_percent_sign_is_only_a_percent_sign(database: Database) -> None:
    result = reports.run_sql(database, "SELECT 'a%s' AS a WHERE 'abc' LIKE 'a%'", actor="test")

    assert result.rows == (("a%s",),)


def test_every_call_is_audited_by_digest(database: Database) -> None:
    reports.run_sql(database, "SELECT 'what was asked'", actor="cli:anna")
    reports.report(database, "dead", actor="cli:anna", day="2026-11-20")

    query, named = audits(database)

    assert (query["actor"], query["action"]) == ("cli:anna", "sql")
    assert (len(str(query["object"])), query["detail"]) == (64, {"rows": 1})
    assert "what was asked" not in str(query)
    assert (named["action"], named["object"]) == ("report", "dead")
    assert named["detail"] == {"rows": 0, "day": "2026-11-20"}


def test_reports_and_filters_that_do_not_exist_are_named(database: Database) -> None:
    with pytest.raises(Refused, match="no such report: deaths; reports are: minutes_day, "):
        reports.report(database, "deaths")
    with pytest.raises(Refused, match="report stuck has no day to filter by"):
        reports.report(database, "stuck", day="2026-11-20")


# rendering --------------------------------------------------------------------------------------

ANSWER = Result(
    ("name", "died_at_ms", "n"), (("甲,[b]", 1_795_300_000_123, 1), ("x", None, 2)), True
)


def test_json_has_one_object_per_row() -> None:
    assert json.loads(reports.to_json(ANSWER))[0] == {
        "name": "甲,[b]",
        "died_at_ms": 1_795_300_000_123,
        "n": 1,
    }


def test_csv_reads_back_the_same() -> None:
    assert list(csv.reader(io.StringIO(reports.to_csv(ANSWER)))) == [
        ["name", "died_at_ms", "n"],
        ["甲,[b]", "1795300000123", "1"],
        ["x", "", "2"],
    ]


def test_a_table_shows_instants_as_times_and_markup_as_text() -> None:
    console = Console(width=100, file=io.StringIO())

    console.print(reports.to_table(ANSWER))

    printed = console.file.getvalue()
    assert "甲,[b]" in printed
    assert "2026-11-21 22:26:40.123" in printed
    assert "first 2 rows; there are more" in printed


def worker(seed, **values: object) -> str:
    ordinary = {"host": "here", "pid": 1, "kind": "gpu", "started_ms": 0, "build": "b", "slots": 4}
    return seed.row(models.worker, **ordinary, **values)


def effect(seed, board: dict[str, str], episode_id: str, **values: object) -> str:
    ordinary = {
        "tenant_id": board["tenant_id"],
        "episode_id": episode_id,
        "kind": "write_back",
        "lane": "board",
        "effect_key": ids.ulid(),
        "body": {"token": "secret"},
        "policy": "repeat",
        "next_ms": 0,
        "created_ms": now_ms(),
    }
    return seed.row(models.effect, **{**ordinary, **values})
