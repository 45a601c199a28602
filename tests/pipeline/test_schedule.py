import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ids, models, schedule
from pipeline.cron import last_fire, next_fire
from pipeline.database import Database, now_ms
from pipeline.errors import Misconfigured, NotFound, Refused
from pipeline.schedule import Order, parse_schedules

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


def at(text: str, zone: str = "UTC", *, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


def at_ms(text: str, zone: str = "UTC") -> int:
    return round(at(text, zone).timestamp() * 1000)


# arithmetic -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        # no changes of the clock: weekdays in Shanghai
        ("55 8 * * 1-5", "Asia/Shanghai", "2026-11-20T00:55", "2026-11-23T00:55"),
        ("55 8 * * 1-5", "Asia/Shanghai", "2026-11-20T00:54", "2026-11-20T00:55"),
        # Berlin skips 02:00-03:00 on 29 March 2026 at 01:00 UTC
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", "2026-03-29T01:00"),
        ("30 2 * * *", "Europe/Berlin", "2026-03-29T01:00", "2026-03-30T00:30"),
        ("0,30 2,3 * * *", "Europe/Berlin", "2026-03-29T01:00", "2026-03-29T01:30"),
        # Berlin shows 02:00-03:00 twice on 25 October 2026; the first is 00:00 UTC
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", "2026-10-25T00:30"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30", "2026-10-26T01:30"),
        ("45 2 * * *", "Europe/Berlin", "2026-10-25T01:30", "2026-10-26T01:45"),
        ("*/10 * * * *", "Europe/Berlin", "2026-10-25T00:50", "2026-10-25T02:00"),
        # New York, the other way round in the year
        ("15 2 * * 0", "America/New_York", "2026-03-07T12:00", "2026-03-08T07:00"),
        ("15 1 * * 0", "America/New_York", "2026-11-01T05:15", "2026-11-08T06:15"),
        # Lord Howe moves by half an hour: 02:00-02:30 is skipped on 4 October 2026
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00", "2026-10-03T15:30"),
        # Apia slept through 30 December 2011
        ("0 12 30 12 *", "Pacific/Apia", "2011-12-29T00:00", "2011-12-30T10:00"),
        ("0 0 29 2 *", "UTC", "2026-11-20T00:00", "2028-02-29T00:00"),
    ],
)
def test_fire_times_follow_the_clock_on_the_wall(
    cron: str, zone: str, after: str, expected: str
) -> None:
    assert next_fire(cron, zone, at(after)) == at(expected)


ZONES = {
    "Europe/Berlin": ("2026-03-28T20:00", "2026-10-24T20:00"),
    "America/New_York": ("2026-03-08T00:00", "2026-11-01T00:00"),
    "Australia/Lord_Howe": ("2026-04-04T10:00", "2026-10-03T10:00"),
    "Asia/Shanghai": ("2026-03-28T20:00", "2026-10-24T20:00"),
}


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    return st.one_of(
        st.just("*"),
        number.map(str),
        st.lists(number, min_size=2, max_size=3, unique=True).map(
            lambda found: ",".join(map(str, found))
        ),
        st.integers(2, 30).map(lambda step: f"*/{min(step, high)}"),
        st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}"),
    )


def numbers(text: str, low: int, high: int) -> set[int]:
    """What one field means, by trying every number."""
    if text.startswith("*/"):
        return {n for n in range(low, high + 1) if (n - low) % int(text[2:]) == 0}
    if text == "*":
        return set(range(low, high + 1))
    if "-" in text:
        first, last = map(int, text.split("-"))
        return set(range(first, last + 1))
    return {int(part) for part in text.split(",")}


def oracle(minute: str, hour: str, zone: str, start: datetime, hours: int) -> list[datetime]:
    """Naively: walk real minutes, note what the wall shows; a time shown before does not count.

    A wall-clock minute that is never shown counts at the minute that follows the jump.
    """
    minutes, hours_wanted = numbers(minute, 0, 59), numbers(hour, 0, 23)
    fires = []
    shown: set[datetime] = set()
    before = (start - timedelta(hours=30)).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    for n in range(-30 * 60, hours * 60 + 1):
        instant = start + timedelta(minutes=n)
        wall = instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        new = [wall] if wall not in shown else []
        skipped = before + timedelta(minutes=1)
        while skipped < wall:
            new.append(skipped)
            skipped += timedelta(minutes=1)
        shown.update(new)
        before = wall
        if n > 0 and any(one.minute in minutes and one.hour in hours_wanted for one in new):
            fires.append(instant)
    return fires


@settings(max_examples=60, deadline=None)
@given(
    minute=field(0, 59),
    hour=field(0, 23),
    zone=st.sampled_from(sorted(ZONES)),
    is_autumn=st.booleans(),
    offset=st.integers(0, 8 * 60),
)
def test_fire_times_are_those_of_a_minute_by_minute_walk(
    minute: str, hour: str, zone: str, is_autumn: bool, offset: int
) -> None:
    start = at(ZONES[zone][is_autumn]) + timedelta(minutes=offset)
    cron = f"{minute} {hour} * * *"
    expected = oracle(minute, hour, zone, start, hours=26)

    found = []
    fire = next_fire(cron, zone, start)
    while fire <= start + timedelta(hours=26):
        found.append(fire)
        fire = next_fire(cron, zone, fire)

    assert found == expected
    for earlier, later in pairwise(found):
        assert last_fire(cron, zone, later) == earlier
        assert last_fire(cron, zone, earlier + timedelta(milliseconds=1)) == earlier


# the file ---------------------------------------------------------------------------------------

DAILY = {"endpoint": "board", "cron": "0 8 * * *", "timezone": "UTC"}


def test_a_schedule_needs_three_lines() -> None:
    (spec,) = parse_schedules({"daily": DAILY})

    assert (spec.name, spec.combine, spec.catch_up, spec.select.since) == (
        "daily", "episode", "once", None,
    )  # fmt: skip
    assert spec.grace == 6 * HOUR


def test_lengths_are_read_with_their_units() -> None:
    (spec,) = parse_schedules({"daily": {**DAILY, "select": {"since": "7d"}, "grace": "90s"}})

    assert (spec.select.since, spec.grace) == (7 * DAY, 90_000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cron": "0 8 * *"},
            r"schedule\.daily\.cron: '0 8 \* \* ' needs five|cron: .* five fields",
        ),
        ({"cron": "0 0 8 * * *"}, r"schedule\.daily\.cron: .* needs five fields"),
        ({"cron": "61 8 * * *"}, r"schedule\.daily\.cron: '61 8 \* \* \*': bad minute"),
        ({"cron": "0 0 31 2 *"}, r"schedule\.daily\.cron: "),
        ({"cron": 5}, r"schedule\.daily\.cron: Input should be a valid string"),
        ({"timezone": "Berlin"}, r"schedule\.daily\.timezone: no zone 'Berlin'; write an IANA"),
        ({"timezone": "../etc/passwd"}, r"schedule\.daily\.timezone: no zone"),
        ({"timezone": ""}, r"schedule\.daily\.timezone: no zone"),
        (
            {"select": {"since": "1 day"}},
            r"schedule\.daily\.select\.since: must be a length like .*, or \"last_run\"",
        ),
        ({"select": {"colum": "S"}}, r"daily\.select\.colum: unknown key; did you mean 'column'"),
        ({"select": {"column": "S"}}, r"daily\.select: column and in belong together"),
        ({"select": {"in": ["Ready"]}}, r"daily\.select: column and in belong together"),
        ({"select": "all"}, r"schedule\.daily\.select: "),
        ({"jitter": 90}, r"schedule\.daily\.jitter: must be a length like"),
        ({"notify": "board"}, r"schedule\.daily\.notify: "),
        ({"grace": 6}, r"schedule\.daily\.grace: must be a length like"),
        ({"combine": "all"}, r"schedule\.daily\.combine: Input should be 'episode' or 'each'"),
        ({"catchup": "once"}, r"schedule\.daily\.catchup: unknown key; did you mean 'catch_up'"),
        ({"title": "{day}"}, r"schedule\.daily\.title: no \{day\} here; there are \{date\}"),
        ({"title": "{title}"}, r"schedule\.daily\.title: no \{title\} here"),
        ({"enabled": "perhaps"}, r"schedule\.daily\.enabled: "),
    ],
)
def test_a_mistake_in_the_file_names_its_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        parse_schedules({"daily": {**DAILY, **changes}})


def test_what_is_missing_is_named_too() -> None:
    with pytest.raises(Misconfigured, match=r"schedule\.daily\.cron: missing"):
        parse_schedules({"daily": {"endpoint": "board", "timezone": "UTC"}})
    with pytest.raises(Misconfigured, match=r"schedule\.daily: must be a table"):
        parse_schedules({"daily": "0 8 * * *"})


# rows -------------------------------------------------------------------------------------------


@pytest.fixture
def board(seed) -> dict[str, str]:
    """Arguments for notes and episodes of one endpoint."""
    tenant_id = seed.tenant()
    return {"tenant_id": tenant_id, "endpoint_id": seed.endpoint(tenant_id)}


def sync(database: Database, **changes: object) -> None:
    schedule.sync(database, parse_schedules({"daily": {**DAILY, **changes}}))


def row(database: Database) -> dict[str, object]:
    with database.read() as connection:
        return dict(connection.execute(sa.select(models.schedule)).mappings().one())


def set_next(database: Database, ms: int) -> None:
    with database.write() as connection:
        connection.execute(models.schedule.update().values(next_ms=ms))


def runs(database: Database) -> list[dict[str, object]]:
    with database.read() as connection:
        query = sa.select(models.batch_run).order_by(models.batch_run.c.fire_ms)
        return [dict(one) for one in connection.execute(query).mappings()]


def clock(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(sa.select(now_ms())).scalar_one())


def test_sync_computes_the_next_fire_time_of_a_new_schedule(database: Database, board) -> None:
    sync(database, cron="0 8 * * *", timezone="Asia/Shanghai")

    next_ms = row(database)["next_ms"]
    assert isinstance(next_ms, int)
    assert next_ms % DAY == 0  # 08:00 in Shanghai is 00:00 UTC
    assert 0 < next_ms - clock(database) <= DAY


def test_sync_again_changes_nothing(database: Database, board) -> None:
    sync(database)
    before = row(database)

    sync(database)

    assert row(database) == before


def test_sync_recomputes_only_when_the_clock_side_changed(database: Database, board) -> None:
    sync(database)
    set_next(database, 12345)

    sync(database, title="Notes of {date}", grace="1h")
    assert (row(database)["next_ms"], row(database)["grace_ms"]) == (12345, HOUR)
    sync(database, cron="5 8 * * *")
    assert row(database)["next_ms"] != 12345


def test_a_schedule_that_was_off_is_not_caught_up_with(database: Database, board) -> None:
    sync(database)
    sync(database, enabled=False)
    assert (row(database)["enabled"], row(database)["next_ms"]) == (0, None)

    sync(database, enabled=True)

    assert row(database)["next_ms"] > clock(database)


def test_a_schedule_that_left_the_file_is_switched_off(database: Database, board) -> None:
    sync(database)

    schedule.sync(database, [])

    assert (row(database)["enabled"], row(database)["next_ms"]) == (0, None)
    assert schedule.tick(database, now_ms=clock(database) + 10 * DAY) == 0


def test_an_unknown_endpoint_is_named(database: Database, board) -> None:
    with pytest.raises(Misconfigured, match=r"daily\.endpoint: no endpoint 'bord'; did you mean"):
        sync(database, endpoint="bord")


# ticking ----------------------------------------------------------------------------------------


def test_nothing_is_due_before_its_time(database: Database, board) -> None:
    sync(database)

    assert schedule.tick(database) == 0
    assert runs(database) == []


def test_a_due_schedule_makes_one_run_and_a_wake_up(database: Database, board) -> None:
    sync(database)
    fire = at_ms("2026-11-20T08:00")
    set_next(database, fire)

    made = [schedule.tick(database, now_ms=fire + 300) for _ in range(3)]

    (run,) = runs(database)
    assert made == [1, 0, 0]
    assert (run["fire_ms"], run["state"], run["forced"]) == (fire, "due", 0)
    assert (row(database)["next_ms"], row(database)["last_ms"]) == (fire + DAY, fire)
    with database.read() as connection:
        assert connection.scalar(sa.select(models.outbox.c.topic)) == "expand"


def test_tickers_at_the_same_moment_make_one_run(database: Database, board) -> None:
    sync(database)
    fire = at_ms("2026-11-20T08:00")
    set_next(database, fire)
    start, made = threading.Barrier(4), []

    def run() -> None:
        start.wait()
        made.append(schedule.tick(database, now_ms=fire))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(made) == [0, 0, 0, 1]
    assert len(runs(database)) == 1


def test_a_fire_time_that_has_its_run_gets_no_second_one(database: Database, board) -> None:
    sync(database)
    fire = at_ms("2026-11-20T08:00")
    for _ in range(2):
        set_next(database, fire)  # as after a restored backup, or a clock that was set back
        schedule.tick(database, now_ms=fire)

    assert len(runs(database)) == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # arithmetic only
@pytest.mark.parametrize(
    ("catch_up", "grace", "late", "expected"),
    [
        ("skip", "6h", timedelta(seconds=30), ["12:00"]),
        ("skip", "6h", timedelta(minutes=2), []),
        ("once", "6h", timedelta(minutes=20), ["12:00"]),
        ("once", "10m", timedelta(minutes=20), []),
        ("all", "6h", timedelta(minutes=20), ["09:00", "10:00", "11:00", "12:00"]),
        ("all", "90m", timedelta(minutes=20), ["11:00", "12:00"]),
        ("all", "1s", timedelta(seconds=30), ["12:00"]),
    ],
)
def test_missed_fire_times_are_caught_up_as_set(
    database: Database, board, catch_up: str, grace: str, late: timedelta, expected: list[str]
) -> None:
    sync(database, cron="0 * * * *", catch_up=catch_up, grace=grace)
    set_next(database, at_ms("2026-11-20T09:00"))

    now = at_ms("2026-11-20T12:00") + round(late.total_seconds() * 1000)
    schedule.tick(database, now_ms=now)

    assert [run["fire_ms"] for run in runs(database)] == [
        at_ms(f"2026-11-20T{clock}") for clock in expected
    ]
    assert row(database)["next_ms"] == at_ms("2026-11-20T13:00")


def test_years_of_missed_minutes_do_not_hold_the_ticker_up(database: Database, board) -> None:
    sync(database, cron="* * * * *", catch_up="once", grace="365d")
    set_next(database, at_ms("2016-01-01T00:00"))

    assert schedule.tick(database, now_ms=at_ms("2026-11-20T08:00")) == 1


def test_a_schedule_that_broke_does_not_stop_the_others(database: Database, board) -> None:
    spec = {**DAILY, "cron": "0 8 * * *"}
    schedule.sync(database, parse_schedules({"bad": spec, "good": spec}))
    fire = at_ms("2026-11-20T08:00")
    set_next(database, fire)
    with database.write() as connection:
        broken = models.schedule.update().where(models.schedule.c.name == "bad")
        connection.execute(broken.values(timezone="Atlantis/Capital"))

    assert schedule.tick(database, now_ms=fire) == 1


# runs -------------------------------------------------------------------------------------------


class Episodes:
    """Stands in for intake: inserts episodes for the notes of a run, and ends them."""

    def __init__(self, database: Database, seed) -> None:
        self._database, self._seed = database, seed
        self.made: list[tuple[Order, list[str]]] = []
        self.fail_at: int | None = None
        self.error: Exception = KeyboardInterrupt()

    def create(
        self, connection: sa.Connection, notes: Sequence[dict[str, object]], order: Order
    ) -> str:
        if len(self.made) == self.fail_at:
            raise self.error
        episode_id = ids.ulid()
        values = {
            "id": episode_id, "tenant_id": order.tenant_id, "endpoint_id": order.endpoint_id,
            "key": ids.session_key(), "wishes": {}, "queue": "batch", "priority": 7,
            "fair_at_ms": 0, "state": "queued", "state_ms": 0, "estimated_ms": 0,
            "text_chars": 0, "created_ms": 0, "day": "", "hour": "",
            "batch_run_id": order.run_id,
        }  # fmt: skip
        connection.execute(models.episode.insert().values(values))
        self.made.append((order, [str(one["id"]) for one in notes]))
        return episode_id

    def all_ids(self) -> list[str]:
        with self._database.read() as connection:
            return list(connection.execute(sa.select(models.episode.c.id).order_by("id")).scalars())

    def end(self, episode_id: str, state: str) -> None:
        with self._database.write() as connection:
            ended = connection.execute(
                models.episode.update()
                .where(models.episode.c.id == episode_id)
                .values(state=state)
                .returning(models.episode)
            ).one()
            schedule.episode_ended(connection, ended)


@pytest.fixture
def episodes(database: Database, seed) -> Episodes:
    return Episodes(database, seed)


FIRE = at_ms("2026-11-20T08:00")


def due_run(database: Database, fire: int = FIRE, **changes: object) -> str:
    sync(database, **changes)
    set_next(database, fire)
    schedule.tick(database, now_ms=fire)
    (run_id,) = [
        run["id"] for run in runs(database) if (run["fire_ms"], run["forced"]) == (fire, 0)
    ]
    return str(run_id)


def items(database: Database) -> list[tuple[str, int, str | None]]:
    columns = (
        models.batch_item.c.note_id,
        models.batch_item.c.position,
        models.batch_item.c.episode_id,
    )
    with database.read() as connection:
        return [tuple(one) for one in connection.execute(sa.select(*columns).order_by("position"))]


def add_notes(seed, board, count: int, **values: object) -> list[str]:
    return [
        seed.note(**board, **{"changed_ms": FIRE - (count - n) * MINUTE, **values})
        for n in range(count)
    ]


def test_a_digest_holds_all_notes_in_order(database: Database, seed, board, episodes) -> None:
    notes = add_notes(seed, board, 5)
    title = "Notes of {date} {time} ({count})"
    run_id = due_run(database, title=title, cron="0 16 * * *", timezone="Asia/Shanghai")

    progress = schedule.expand(database, run_id, create_episode=episodes.create, page=2)

    ((order, said),) = episodes.made
    assert said == notes
    assert order.title == "Notes of 2026-11-20 16:00 (5)"
    assert (order.run_id, order.endpoint, order.voice) == (run_id, "board", "")
    (made,) = episodes.all_ids()
    assert items(database) == [(note_id, n, made) for n, note_id in enumerate(notes)]
    assert (progress.state, progress.total, progress.is_ended) == ("running", 5, False)


def test_each_note_gets_its_own_episode(database: Database, seed, board, episodes) -> None:
    notes = add_notes(seed, board, 5, title="plan")
    run_id = due_run(database, combine="each", voice="anna")

    schedule.expand(database, run_id, create_episode=episodes.create, page=2)

    assert [said for _order, said in episodes.made] == [[note_id] for note_id in notes]
    assert {(order.title, order.voice) for order, _said in episodes.made} == {("plan", "anna")}
    assert sorted(str(made) for _note, _position, made in items(database)) == episodes.all_ids()


def test_only_notes_of_the_window_are_taken(database: Database, seed, board, episodes) -> None:
    other = {**board, "endpoint_id": seed.endpoint(board["tenant_id"], "other")}
    seed.note(**other, changed_ms=FIRE - 1)
    seed.note(**board, changed_ms=FIRE - 2 * HOUR)
    first = seed.note(**board, changed_ms=FIRE - 2 * HOUR + 1)
    last = seed.note(**board, changed_ms=FIRE)
    seed.note(**board, changed_ms=FIRE + 1)
    seed.note(**board, changed_ms=FIRE - 1, content=sa.null())
    run_id = due_run(database, select={"since": "2h"})

    schedule.expand(database, run_id, create_episode=episodes.create)

    assert episodes.made[0][1] == [first, last]


def test_only_notes_with_a_wanted_trigger_are_taken(
    database: Database, seed, board, episodes
) -> None:
    notes = [
        seed.note(**board, changed_ms=FIRE - 3 + n, content={"text": "x", "trigger": trigger})
        for n, trigger in enumerate(("Ready", "Digest", "ready", ""))
    ]
    run_id = due_run(database, select={"column": "Status", "in": ["Ready"]})

    schedule.expand(database, run_id, create_episode=episodes.create)

    assert episodes.made[0][1] == [notes[0], notes[2]]


def test_what_a_walk_finds_late_belongs_to_this_run_and_not_to_the_next(
    database: Database, seed, board, episodes
) -> None:
    before = due_run(database, FIRE - DAY)
    late = seed.note(**board, changed_ms=FIRE - DAY + MINUTE)
    schedule.walked(database, before, FIRE - DAY + 2 * MINUTE)
    today = seed.note(**board, changed_ms=FIRE - HOUR)
    run_id = due_run(database, FIRE)

    for one in (before, run_id):
        schedule.expand(database, one, create_episode=episodes.create)

    assert [said for _order, said in episodes.made] == [[late], [today]]


def test_a_run_begins_within_its_jitter_and_never_early(database: Database, board) -> None:
    for n in range(8):
        due_run(database, FIRE + n * DAY, jitter="90s")
    waits = {run["cursor"]["begin_ms"] - run["fire_ms"] for run in runs(database)}

    assert all(0 <= wait <= 90_000 for wait in waits)
    assert len(waits) > 4


def test_a_run_whose_time_has_not_come_waits(database: Database, board) -> None:
    by_hand = due_run_by_hand(database)
    with database.write() as connection:
        cursor = runs(database)[0]["cursor"]
        later = {**cursor, "begin_ms": clock(database) + HOUR}
        connection.execute(models.batch_run.update().values(cursor=later))
    ready, wait_ms = schedule.ready_runs(database)
    assert ready == []
    assert wait_ms is not None and 0 < wait_ms <= HOUR

    with database.write() as connection:
        connection.execute(models.batch_run.update().values(cursor=cursor))
    ready, wait_ms = schedule.ready_runs(database)
    assert ([one.id for one in ready], wait_ms) == ([by_hand], None)


def due_run_by_hand(database: Database) -> str:
    sync(database)
    return schedule.fire(database, "daily")


def test_an_unknown_endpoint_to_notify_is_named(database: Database, board) -> None:
    with pytest.raises(Misconfigured, match=r"daily\.notify: no endpoint 'bord'; did you mean"):
        sync(database, notify=["bord"])


def test_since_last_goes_on_where_the_run_before_ended(
    database: Database, seed, board, episodes
) -> None:
    yesterday = seed.note(**board, changed_ms=FIRE - DAY - HOUR)
    today = seed.note(**board, changed_ms=FIRE - DAY + HOUR)
    before = due_run(database, FIRE - DAY)
    by_hand = schedule.fire(database, "daily")
    run_id = due_run(database, FIRE)
    assert len({before, by_hand, run_id}) == 3

    for one in (before, run_id):
        schedule.expand(database, one, create_episode=episodes.create)

    assert [said for _order, said in episodes.made] == [[yesterday], [today]]


def test_a_run_without_notes_is_done_at_once(database: Database, board, episodes) -> None:
    run_id = due_run(database)

    progress = schedule.expand(database, run_id, create_episode=episodes.create)

    assert (progress.state, progress.total, episodes.made) == ("done", 0, [])


@pytest.mark.parametrize(
    ("combine", "killed_at"),
    [("each", 0), ("each", 1), ("each", 3), ("each", 6), ("episode", 0)],
)
def test_a_killed_expansion_goes_on_where_it_stopped(
    database: Database, seed, board, episodes, combine: str, killed_at: int
) -> None:
    notes = add_notes(seed, board, 7)
    run_id = due_run(database, combine=combine)
    episodes.fail_at = killed_at
    with pytest.raises(KeyboardInterrupt):
        schedule.expand(database, run_id, create_episode=episodes.create, page=3)
    episodes.fail_at = None

    progress = schedule.expand(database, run_id, create_episode=episodes.create, page=3)

    assert (progress.state, progress.total) == ("running", 7)
    found = items(database)
    assert [(note_id, position) for note_id, position, _made in found] == list(
        zip(notes, range(7), strict=True)
    )
    assert len({made for _note, _position, made in found}) == (7 if combine == "each" else 1)
    assert sorted({made for _note, _position, made in found}) == episodes.all_ids()


def test_expanding_again_does_nothing(database: Database, seed, board, episodes) -> None:
    add_notes(seed, board, 3)
    run_id = due_run(database, combine="each")

    for _ in range(3):
        schedule.expand(database, run_id, create_episode=episodes.create)

    assert len(episodes.made) == 3


def test_two_expansions_at_once_share_the_notes(database: Database, seed, board, episodes) -> None:
    add_notes(seed, board, 20)
    run_id = due_run(database, combine="each")
    start = threading.Barrier(2)

    def run() -> None:
        start.wait()
        schedule.expand(database, run_id, create_episode=episodes.create, page=3)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(episodes.all_ids()) == 20
    assert schedule.progress(database, run_id).total == 20


def test_a_note_that_comes_again_under_a_clock_set_back_is_not_said_twice(
    database: Database, seed, board, episodes
) -> None:
    notes = add_notes(seed, board, 4)
    run_id = due_run(database, combine="each")
    original = episodes.create

    def create(connection, found, order):
        if len(episodes.made) == 1:
            connection.execute(
                models.note.update().where(models.note.c.id == notes[0]).values(changed_ms=FIRE)
            )
        return original(connection, found, order)

    schedule.expand(database, run_id, create_episode=create, page=2)

    assert [said for _order, said in episodes.made] == [[note_id] for note_id in notes]


def test_a_run_that_cannot_be_made_fails_with_its_reason(
    database: Database, seed, board, episodes
) -> None:
    add_notes(seed, board, 2)
    run_id = due_run(database, voice="nobody")
    episodes.fail_at, episodes.error = 0, Refused("there is no voice 'nobody'")

    progress = schedule.expand(database, run_id, create_episode=episodes.create)

    assert progress.state == "failed"
    assert schedule.show_run(database, run_id)["error"] == "there is no voice 'nobody'"


def test_progress_counts_notes_until_the_run_is_done(
    database: Database, seed, board, episodes
) -> None:
    add_notes(seed, board, 3)
    run_id = due_run(database, combine="each")
    schedule.expand(database, run_id, create_episode=episodes.create)

    seen = []
    for episode_id in episodes.all_ids():
        episodes.end(episode_id, "done")
        progress = schedule.progress(database, run_id)
        seen.append((progress.state, progress.done, progress.failed))

    assert seen == [("running", 1, 0), ("running", 2, 0), ("done", 3, 0)]


def test_an_end_told_twice_is_counted_once(database: Database, seed, board, episodes) -> None:
    add_notes(seed, board, 2)
    run_id = due_run(database, combine="each")
    schedule.expand(database, run_id, create_episode=episodes.create)

    for _ in range(3):
        episodes.end(episodes.all_ids()[0], "done")

    progress = schedule.progress(database, run_id)
    assert (progress.state, progress.done) == ("running", 1)


def test_a_note_that_was_not_read_fails_the_run_until_it_is_revived(
    database: Database, seed, board, episodes
) -> None:
    add_notes(seed, board, 2)
    run_id = due_run(database, combine="each")
    schedule.expand(database, run_id, create_episode=episodes.create)
    first, second = episodes.all_ids()

    states = []
    for episode_id, state in [
        (first, "dead"), (second, "done"), (first, "queued"), (first, "done"),
    ]:  # fmt: skip
        episodes.end(episode_id, state)
        progress = schedule.progress(database, run_id)
        states.append((progress.state, progress.done, progress.failed))

    assert states == [("running", 0, 1), ("failed", 1, 1), ("running", 1, 0), ("done", 2, 0)]


def test_a_digest_counts_all_its_notes(database: Database, seed, board, episodes) -> None:
    add_notes(seed, board, 3)
    run_id = due_run(database)
    schedule.expand(database, run_id, create_episode=episodes.create)

    episodes.end(episodes.all_ids()[0], "done")

    progress = schedule.progress(database, run_id)
    assert (progress.state, progress.done, progress.total) == ("done", 3, 3)


def test_ends_at_the_same_moment_are_all_counted(database: Database, seed, board, episodes) -> None:
    add_notes(seed, board, 12)
    run_id = due_run(database, combine="each")
    schedule.expand(database, run_id, create_episode=episodes.create)
    made = episodes.all_ids()
    start = threading.Barrier(4)

    def run(mine: list[str]) -> None:
        start.wait()
        for episode_id in mine:
            episodes.end(episode_id, "done")

    threads = [threading.Thread(target=run, args=(made[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    progress = schedule.progress(database, run_id)
    assert (progress.state, progress.done) == ("done", 12)


def test_an_episode_without_a_run_counts_nowhere(database: Database, seed, board, episodes) -> None:
    episode_id = seed.episode(**board)

    episodes.end(episode_id, "done")

    assert runs(database) == []


def test_firing_by_hand_does_not_move_the_schedule(database: Database, board) -> None:
    sync(database)
    next_ms = row(database)["next_ms"]

    run_id = schedule.fire(database, "daily")

    assert row(database)["next_ms"] == next_ms
    assert schedule.show_run(database, run_id)["forced"] == 1
    assert schedule.tick(database, now_ms=next_ms) == 1


def test_names_that_do_not_exist_are_answered_with_those_that_do(
    database: Database, board, episodes
) -> None:
    with pytest.raises(NotFound, match=r"no schedule 'daily'; connectors.toml has no"):
        schedule.fire(database, "daily")
    sync(database)
    with pytest.raises(NotFound, match=r"no schedule 'dayly'; did you mean 'daily'"):
        schedule.fire(database, "dayly")
    for look in (schedule.progress, schedule.show_run):
        with pytest.raises(NotFound, match="no run 7"):
            look(database, "7")
    with pytest.raises(NotFound, match="no run 7"):
        schedule.expand(database, "7", create_episode=episodes.create)


def test_lists_show_times_as_people_write_them(database: Database, board) -> None:
    run_id = due_run(database, timezone="Asia/Shanghai", cron="0 16 * * *")

    (run,) = schedule.list_runs(database)
    assert (run["run"], run["fired"]) == (run_id, "2026-11-20T08:00:00+00:00")
    (listed,) = schedule.list_schedules(database)
    assert (listed["last"], listed["next"]) == (
        "2026-11-20T16:00:00+08:00",
        "2026-11-21T16:00:00+08:00",
    )
    since = schedule.show_run(database, run_id)["notes_since"]
    assert since == "2026-11-19T08:00:00+00:00"
