"""The tables. What each is for, in the order a note meets them.

tenant, api_key, endpoint     who may send, and through which door
endpoint_secret               when each secret last proved something; pending ones, sealed
duty                          an endpoint's walk over its rows, and its subscription's upkeep
alarm                         what of an endpoint needs a person, until it works again
delivery                      one accepted message; UNIQUE (endpoint, delivery_key) is the dedupe
reading                       rows that thin events named, to be read; a burst is one row
note                          one row of somebody's table, in its newest revision
episode                       one recording being made: state, lease, fence
attempt, episode_log          who tried, and every change of state
segment                       a sentence whose sound is stored
command                       what somebody ordered while an episode is spoken, and what came of it
recording                     finished objects, shared by episodes that sound the same
listen_link                   live links and their revocation
effect                        what leaves the house (row, card, event), with lease and retry
budget                        how often tools may be called, over all workers
outbox                        wake-ups that must not be forgotten
worker                        process incarnations that hold leases
schedule, batch_run, batch_item   batch runs; UNIQUE (schedule, fire time)
usage_day                     what was spoken, per day; holds no person, outlives retention
audit                         who looked or changed by hand

Instants are BIGINT epoch milliseconds of the database's clock and end in `_ms`. Identifiers are
ULID text. Enumerations are text with a named CHECK.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

EPISODE_STATES = (
    "received",  # durable; its note must still be read from the tool
    "waiting",  # for the time its row names
    "queued",  # due; any worker may claim
    "synthesising",  # a worker speaks
    "encoding",  # all sound is durable, recordings are being made
    "stored",  # the recording can be fetched
    "written_back",  # the source row shows it
    "done",
    "failed",  # tries again at next_ms
    "dead",  # no automatic try left; a person may revive it
    "cancelled",
)
LEASED = ("synthesising", "encoding")
OPEN = ("received", "waiting", "queued", "synthesising", "encoding", "failed")
QUEUES = ("realtime", "batch", "quarantine")
WANTED = ("run", "pause")  # the owner's will; whether an episode may be claimed
OPS = ("pause", "resume", "speed", "emotion", "voice", "skip", "stop")
EFFECT_STATES = ("due", "running", "done", "failed", "uncertain", "dead", "dropped")

Json = sa.JSON().with_variant(JSONB(), "postgresql")
Id = sa.String(26)
# SQLite gives out row numbers only for a column declared INTEGER
Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _ms(name: str, *, nullable: bool = True, **options: object) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable, **options)  # type: ignore[arg-type]


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default="0")


def _one_of(column: str, values: tuple[str, ...]) -> sa.CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=column)


def _ref(name: str, target: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, Id, sa.ForeignKey(target), nullable=nullable)


tenant = sa.Table(
    "tenant",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("name", sa.String(80), nullable=False, unique=True),
    sa.Column("weight", sa.Integer, nullable=False, server_default="100"),
    _ms("fair_at_ms", nullable=False, server_default="0"),
    _ms("created_ms", nullable=False),
)

api_key = sa.Table(
    "api_key",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _ref("tenant_id", "tenant.id"),
    sa.Column("name", sa.String(80), nullable=False),
    sa.Column("prefix", sa.String(8), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("scopes", Json, nullable=False),
    _ms("created_ms", nullable=False),
    _ms("revoked_ms"),
    sa.Index(None, "tenant_id"),
)

endpoint = sa.Table(
    "endpoint",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _ref("tenant_id", "tenant.id"),
    sa.Column("connector", sa.String(24), nullable=False),
    sa.Column("name", sa.String(80), nullable=False),
    _ms("created_ms", nullable=False),
    _ms("heard_ms"),  # the last authentic hook
    sa.UniqueConstraint("tenant_id", "name"),
)

endpoint_secret = sa.Table(
    "endpoint_secret",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _ref("endpoint_id", "endpoint.id"),
    sa.Column("label", sa.String(8), nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("sealed", sa.Text),  # NULL for those that connectors.toml refers to
    _ms("created_ms", nullable=False),
    _ms("verified_ms"),
    sa.UniqueConstraint("endpoint_id", "label"),
    _one_of("state", ("pending", "active")),
)

duty = sa.Table(
    "duty",
    metadata,
    sa.Column("endpoint_id", Id, sa.ForeignKey("endpoint.id"), primary_key=True),
    sa.Column("kind", sa.String(8), primary_key=True),
    sa.Column("state", Json),  # a walk's cursor; what upkeep remembers, its secrets sealed
    sa.Column("config_digest", sa.String(64), nullable=False, server_default=""),
    _ms("next_ms", nullable=False),
    _ms("lease_until_ms", nullable=False, server_default="0"),
    sa.Column("fence", sa.BigInteger, nullable=False, server_default="0"),
    _count("tries"),
    _count("found"),
    _ms("begun_ms"),
    _ms("done_ms"),
    sa.Column("error", sa.String(500)),
    _one_of("kind", ("walk", "upkeep")),
    sa.Index(None, "next_ms"),
)

alarm = sa.Table(
    "alarm",
    metadata,
    sa.Column("endpoint_id", Id, sa.ForeignKey("endpoint.id"), primary_key=True),
    sa.Column("kind", sa.String(12), primary_key=True),
    sa.Column("about", sa.String(64), primary_key=True, server_default=""),
    sa.Column("message", sa.String(500), nullable=False),
    _ms("first_ms", nullable=False),
    _ms("last_ms", nullable=False),
    sa.Column("times", sa.Integer, nullable=False, server_default="1"),
    _one_of("kind", ("walk", "upkeep", "events", "columns")),
)

delivery = sa.Table(
    "delivery",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _ref("tenant_id", "tenant.id"),
    _ref("endpoint_id", "endpoint.id"),
    sa.Column("delivery_key", sa.String(200), nullable=False),
    sa.Column("body_digest", sa.String(64), nullable=False),
    _ms("received_ms", nullable=False),
    _count("repeats"),
    _ms("last_repeat_ms"),
    sa.Column("error", sa.String(500)),  # why an authentic message could not be understood
    sa.UniqueConstraint("endpoint_id", "delivery_key"),
    sa.Index(None, "tenant_id", "received_ms"),
)

reading = sa.Table(
    "reading",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _ref("endpoint_id", "endpoint.id"),
    sa.Column("ref_container", sa.String(200), nullable=False, server_default=""),
    sa.Column("ref_table", sa.String(200), nullable=False, server_default=""),
    sa.Column("ref_key", sa.String(200), nullable=False),
    sa.Column("changed", Json),  # columns, NULL when the tool did not say
    sa.Column("wanted", sa.Integer, nullable=False, server_default="1"),
    _count("tries"),
    _ms("next_ms"),  # NULL: nobody tries any more
    _ms("lease_until_ms", nullable=False, server_default="0"),
    _ms("created_ms", nullable=False),
    sa.Column("error_code", sa.String(32)),
    sa.Column("error", sa.String(500)),
    sa.UniqueConstraint("endpoint_id", "ref_container", "ref_table", "ref_key"),
    sa.Index(None, "next_ms"),
)

note = sa.Table(
    "note",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _ref("tenant_id", "tenant.id"),
    _ref("endpoint_id", "endpoint.id"),
    sa.Column("ref_container", sa.String(200), nullable=False, server_default=""),
    sa.Column("ref_table", sa.String(200), nullable=False, server_default=""),
    sa.Column("ref_key", sa.String(200)),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("title", sa.String(400), nullable=False, server_default=""),
    sa.Column("content", Json),  # connectors.Note as JSON; NULL until it was read, or after erasure
    _ms("created_ms", nullable=False),
    _ms("changed_ms", nullable=False),
    sa.Index(
        "uq_note_ref",
        "endpoint_id",
        "ref_container",
        "ref_table",
        "ref_key",
        unique=True,
        sqlite_where=sa.text("ref_key IS NOT NULL"),
        postgresql_where=sa.text("ref_key IS NOT NULL"),
    ),
    sa.Index(None, "endpoint_id", "changed_ms"),
)

episode = sa.Table(
    "episode",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _ref("tenant_id", "tenant.id"),
    sa.Column("key", sa.String(40), nullable=False, unique=True),
    _ref("endpoint_id", "endpoint.id"),
    _ref("delivery_id", "delivery.id", nullable=True),
    _ref("batch_run_id", "batch_run.id", nullable=True),
    sa.Column("take", sa.Integer, nullable=False, server_default="1"),
    sa.Column("title", sa.String(400), nullable=False, server_default=""),
    sa.Column("lang", sa.String(8), nullable=False, server_default=""),
    sa.Column("wishes", Json, nullable=False),  # what the sender asked for: voice, speed, ...
    sa.Column("script", Json),  # composed by the first attempt; later ones speak the same words
    sa.Column("spec_hash", sa.String(64)),
    sa.Column("queue", sa.String(12), nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    _ms("fair_at_ms", nullable=False),
    sa.Column("state", sa.String(14), nullable=False),
    _ms("state_ms", nullable=False),
    sa.Column("wanted", sa.String(8), nullable=False, server_default="run"),
    _count("command_head"),  # number of the last command
    sa.Column("asked_by", sa.String(80)),  # who asked for it with `say`
    _ms("next_ms"),
    _ms("estimated_ms", nullable=False),
    sa.Column("text_chars", sa.Integer, nullable=False),
    sa.Column("lease_owner", sa.String(26)),
    _ms("lease_until_ms", nullable=False, server_default="0"),
    sa.Column("fence", sa.BigInteger, nullable=False, server_default="0"),
    _count("tries"),
    _count("crash_count"),
    _count("segments_done"),
    sa.Column("segments_total", sa.Integer),
    sa.Column("samples", sa.BigInteger, nullable=False, server_default="0"),
    _ms("created_ms", nullable=False),
    _ms("queued_ms"),
    _ms("started_ms"),
    _ms("first_audio_ms"),
    _ms("stored_ms"),
    _ms("ended_ms"),
    sa.Column("day", sa.String(10), nullable=False),  # UTC, so that views compute no dates
    sa.Column("hour", sa.String(13), nullable=False),
    sa.Column("error_code", sa.String(32)),
    sa.Column("error", sa.String(500)),
    sa.UniqueConstraint("delivery_id", "take"),
    _one_of("state", EPISODE_STATES),
    _one_of("queue", QUEUES),
    _one_of("wanted", WANTED),
    sa.Index(
        "ix_episode_asked_by",
        "asked_by",
        "state",
        sqlite_where=sa.text("asked_by IS NOT NULL"),
        postgresql_where=sa.text("asked_by IS NOT NULL"),
    ),
    sa.Index(
        "ix_episode_claim",
        "queue",
        "priority",
        "fair_at_ms",
        "id",
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    ),
    sa.Index(
        "ix_episode_lease",
        "lease_until_ms",
        sqlite_where=sa.text("state IN ('synthesising', 'encoding')"),
        postgresql_where=sa.text("state IN ('synthesising', 'encoding')"),
    ),
    sa.Index(
        "ix_episode_next",
        "next_ms",
        sqlite_where=sa.text("state IN ('failed', 'waiting')"),
        postgresql_where=sa.text("state IN ('failed', 'waiting')"),
    ),
    sa.Index(None, "lease_owner"),
    sa.Index(None, "tenant_id", "day"),
    sa.Index(None, "state", "state_ms"),
    sa.Index(None, "batch_run_id"),
)

episode_note = sa.Table(
    "episode_note",
    metadata,
    sa.Column("episode_id", Id, sa.ForeignKey("episode.id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    _ref("note_id", "note.id"),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Index(None, "note_id"),
)

attempt = sa.Table(
    "attempt",
    metadata,
    sa.Column("episode_id", Id, sa.ForeignKey("episode.id"), primary_key=True),
    sa.Column("fence", sa.BigInteger, primary_key=True),
    sa.Column("worker_id", Id, nullable=False),
    sa.Column("first_segment", sa.Integer, nullable=False),
    _ms("started_ms", nullable=False),
    _ms("ended_ms"),
    sa.Column("outcome", sa.String(12)),
    sa.Column("error_code", sa.String(32)),
    _one_of(
        "outcome", ("stored", "failed", "dead", "reaped", "handed_over", "paused", "cancelled")
    ),
)

episode_log = sa.Table(
    "episode_log",
    metadata,
    sa.Column("id", Serial, primary_key=True, autoincrement=True),
    sa.Column("episode_id", Id, sa.ForeignKey("episode.id"), nullable=False),
    _ms("ms", nullable=False),
    sa.Column("to_state", sa.String(14), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.String(40), nullable=False),
    sa.Column("reason", sa.String(200)),
    sa.Index(None, "episode_id", "id"),
)

segment = sa.Table(
    "segment",
    metadata,
    sa.Column("episode_id", Id, sa.ForeignKey("episode.id"), primary_key=True),
    sa.Column("n", sa.Integer, primary_key=True),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("object_key", sa.String(200), nullable=False),
    sa.Column("samples", sa.BigInteger, nullable=False),
    sa.Column("pcm_digest", sa.String(64), nullable=False),
    sa.Column("text_digest", sa.String(64), nullable=False),
    _ms("pause_ms", nullable=False),
    sa.Column("words", Json, nullable=False),
    _ms("committed_ms", nullable=False),
)

command = sa.Table(
    "command",
    metadata,
    sa.Column("episode_id", Id, sa.ForeignKey("episode.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),  # in the order given, from 1
    sa.Column("op", sa.String(8), nullable=False),
    sa.Column("value", Json),
    sa.Column("at", sa.String(8), nullable=False),
    _ms("play_ms"),
    sa.Column("actor", sa.String(80), nullable=False),
    sa.Column("role", sa.String(10), nullable=False),
    sa.Column("order_key", sa.String(200), nullable=False),
    _ms("received_ms", nullable=False),
    _ms("applied_ms"),
    sa.Column("applied_fence", sa.BigInteger),
    sa.Column("effect", Json),  # where it took effect, or code and message of why it did not
    sa.UniqueConstraint("episode_id", "order_key"),
    _one_of("op", OPS),
)

recording = sa.Table(
    "recording",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _ref("tenant_id", "tenant.id"),
    sa.Column("spec_hash", sa.String(64), nullable=False),
    sa.Column("take", sa.Integer, nullable=False),
    sa.Column("format", sa.String(8), nullable=False),
    sa.Column("object_key", sa.String(200), nullable=False, unique=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    _ms("duration_ms", nullable=False),
    _ms("created_ms", nullable=False),
    sa.UniqueConstraint("tenant_id", "spec_hash", "take", "format"),
    _one_of("format", ("opus", "mp3", "wav", "vtt", "chapters")),
)

episode_recording = sa.Table(
    "episode_recording",
    metadata,
    sa.Column("episode_id", Id, sa.ForeignKey("episode.id"), primary_key=True),
    sa.Column("recording_id", Id, sa.ForeignKey("recording.id"), primary_key=True),
)

listen_link = sa.Table(
    "listen_link",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("episode_id", Id, sa.ForeignKey("episode.id"), nullable=False),
    sa.Column("slug", sa.String(16), nullable=False, unique=True),
    sa.Column("role", sa.String(10), nullable=False),
    _ms("expires_ms", nullable=False),
    _ms("revoked_ms"),
    _ms("created_ms", nullable=False),
    _one_of("role", ("owner", "listener")),
    sa.Index(None, "episode_id"),
)

effect = sa.Table(
    "effect",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _ref("tenant_id", "tenant.id"),
    _ref("episode_id", "episode.id"),
    sa.Column("kind", sa.String(12), nullable=False),
    sa.Column("lane", sa.String(300)),  # effects of one lane keep their order; NULL has none
    sa.Column("effect_key", sa.String(200), nullable=False, unique=True),
    sa.Column("body", Json, nullable=False),
    sa.Column("policy", sa.String(8), nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    _count("tries"),
    _ms("next_ms", nullable=False),
    _ms("created_ms", nullable=False),
    sa.Column("lease_owner", sa.String(26)),
    _ms("lease_until_ms", nullable=False, server_default="0"),
    sa.Column("fence", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("error_code", sa.String(32)),
    sa.Column("error", sa.String(500)),
    _ms("done_ms"),
    _one_of("kind", ("write_back", "card", "event")),
    _one_of("policy", ("repeat", "keyed", "once")),
    _one_of("state", EFFECT_STATES),
    sa.Index(
        "ix_effect_next",
        "next_ms",
        sqlite_where=sa.text("state IN ('due', 'failed')"),
        postgresql_where=sa.text("state IN ('due', 'failed')"),
    ),
    sa.Index(
        "ix_effect_lane",
        "lane",
        "id",
        sqlite_where=sa.text("state IN ('due', 'failed', 'running')"),
        postgresql_where=sa.text("state IN ('due', 'failed', 'running')"),
    ),
    sa.Index(None, "episode_id"),
)

budget = sa.Table(
    "budget",
    metadata,
    sa.Column("name", sa.String(300), primary_key=True),
    _ms("next_us", nullable=False, server_default="0"),  # when the bucket is full again, in µs
    _ms("hold_ms", nullable=False, server_default="0"),  # no call before: the tool's own wish
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", Serial, primary_key=True, autoincrement=True),
    sa.Column("topic", sa.String(12), nullable=False),
    _ms("created_ms", nullable=False),
    _ms("due_ms", nullable=False),
    _ms("claimed_until_ms", nullable=False, server_default="0"),
    _one_of("topic", (*QUEUES, "effect", "read", "walk", "expand")),
    sa.Index(None, "due_ms", "id"),
)

worker = sa.Table(
    "worker",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("host", sa.String(300), nullable=False),  # host name and data directory
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("engine", sa.String(80), nullable=False, server_default=""),
    sa.Column("slots", sa.Integer, nullable=False, server_default="0"),
    sa.Column("state", sa.String(10), nullable=False),
    _ms("started_ms", nullable=False),
    _ms("seen_ms", nullable=False),
    _ms("took_ms"),
    sa.Column("build", sa.String(40), nullable=False),
    _one_of("state", ("starting", "ready", "draining", "gone")),
    sa.Index(None, "state", "seen_ms"),
)

schedule = sa.Table(
    "schedule",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _ref("tenant_id", "tenant.id"),
    sa.Column("name", sa.String(80), nullable=False),
    sa.Column("cron", sa.String(120), nullable=False),
    sa.Column("timezone", sa.String(60), nullable=False),
    sa.Column("plan", Json, nullable=False),
    sa.Column("catch_up", sa.String(6), nullable=False),
    _ms("grace_ms", nullable=False),
    sa.Column("enabled", sa.SmallInteger, nullable=False),
    _ms("next_ms"),
    _ms("last_ms"),
    _ms("changed_ms", nullable=False),
    sa.UniqueConstraint("tenant_id", "name"),
    _one_of("catch_up", ("skip", "once", "all")),
    sa.Index(None, "enabled", "next_ms"),
)

batch_run = sa.Table(
    "batch_run",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _ref("tenant_id", "tenant.id"),
    _ref("schedule_id", "schedule.id"),
    _ms("fire_ms", nullable=False),
    sa.Column("forced", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("cursor", Json),
    sa.Column("total", sa.Integer, nullable=False, server_default="0"),
    _count("done"),
    _count("failed"),
    _ms("created_ms", nullable=False),
    _ms("started_ms"),
    _ms("ended_ms"),
    sa.Column("error", sa.String(500)),
    sa.UniqueConstraint("schedule_id", "fire_ms", "forced"),
    _one_of("state", ("due", "selecting", "running", "done", "failed", "cancelled")),
    sa.Index(None, "state"),
)

batch_item = sa.Table(
    "batch_item",
    metadata,
    sa.Column("batch_run_id", Id, sa.ForeignKey("batch_run.id"), primary_key=True),
    sa.Column("note_id", Id, sa.ForeignKey("note.id"), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    _ref("episode_id", "episode.id", nullable=True),
)

usage_day = sa.Table(
    "usage_day",
    metadata,
    sa.Column("tenant_id", Id, sa.ForeignKey("tenant.id"), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("endpoint_id", Id, sa.ForeignKey("endpoint.id"), primary_key=True),
    sa.Column("engine", sa.String(24), primary_key=True),
    _count("episodes"),
    sa.Column("audio_ms", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("busy_ms", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("chars", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("stored_bytes", sa.BigInteger, nullable=False, server_default="0"),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", Serial, primary_key=True, autoincrement=True),
    _ms("ms", nullable=False),
    sa.Column("actor", sa.String(80), nullable=False),
    sa.Column("action", sa.String(40), nullable=False),
    sa.Column("object", sa.String(80), nullable=False),
    sa.Column("detail", Json),
)
