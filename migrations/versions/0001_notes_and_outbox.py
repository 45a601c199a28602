"""Notes, episodes, their wake-ups, and what operations need: the first tables.

Revision 0001, the first.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
live = True  # old and new code may run side by side while this is applied

Id = sa.String(26)
Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "audit",
        sa.Column("id", Serial, nullable=False),
        sa.Column("ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(80), nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("object", sa.String(80), nullable=False),
        sa.Column("detail", Json),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", Serial, nullable=False),
        sa.Column("topic", sa.String(12), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("due_ms", sa.BigInteger, nullable=False),
        sa.Column("claimed_until_ms", sa.BigInteger, server_default="0", nullable=False),
        sa.CheckConstraint(
            "topic IN ('realtime', 'batch', 'quarantine', 'effect', 'read', 'walk', 'expand')",
            name=op.f("ck_outbox_topic"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_index(op.f("ix_outbox_due_ms_id"), "outbox", ["due_ms", "id"])
    op.create_table(
        "budget",
        sa.Column("name", sa.String(300), nullable=False),
        sa.Column("next_us", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("hold_ms", sa.BigInteger, server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_budget")),
    )
    op.create_table(
        "tenant",
        sa.Column("id", Id, nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("weight", sa.Integer, server_default="100", nullable=False),
        sa.Column("fair_at_ms", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenant")),
        sa.UniqueConstraint("name", name=op.f("uq_tenant_name")),
    )
    op.create_table(
        "worker",
        sa.Column("id", Id, nullable=False),
        sa.Column("host", sa.String(300), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("engine", sa.String(80), server_default="", nullable=False),
        sa.Column("slots", sa.Integer, server_default="0", nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("seen_ms", sa.BigInteger, nullable=False),
        sa.Column("took_ms", sa.BigInteger),
        sa.Column("build", sa.String(40), nullable=False),
        sa.CheckConstraint(
            "state IN ('starting', 'ready', 'draining', 'gone')", name=op.f("ck_worker_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
    )
    op.create_index(op.f("ix_worker_state_seen_ms"), "worker", ["state", "seen_ms"])
    op.create_table(
        "api_key",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("prefix", sa.String(8), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scopes", Json, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_ms", sa.BigInteger),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_api_key_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_key_digest")),
    )
    op.create_index(op.f("ix_api_key_tenant_id"), "api_key", ["tenant_id"])
    op.create_table(
        "endpoint",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("connector", sa.String(24), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("heard_ms", sa.BigInteger),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_endpoint_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_endpoint")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_endpoint_tenant_id_name")),
    )
    op.create_table(
        "endpoint_secret",
        sa.Column("id", Id, nullable=False),
        sa.Column("endpoint_id", Id, nullable=False),
        sa.Column("label", sa.String(8), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("sealed", sa.Text),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("verified_ms", sa.BigInteger),
        sa.CheckConstraint("state IN ('pending', 'active')", name=op.f("ck_endpoint_secret_state")),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["endpoint.id"], name=op.f("fk_endpoint_secret_endpoint_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_endpoint_secret")),
        sa.UniqueConstraint(
            "endpoint_id", "label", name=op.f("uq_endpoint_secret_endpoint_id_label")
        ),
    )
    op.create_table(
        "duty",
        sa.Column("endpoint_id", Id, nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("state", Json),
        sa.Column("config_digest", sa.String(64), server_default="", nullable=False),
        sa.Column("next_ms", sa.BigInteger, nullable=False),
        sa.Column("lease_until_ms", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("fence", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("tries", sa.Integer, server_default="0", nullable=False),
        sa.Column("found", sa.Integer, server_default="0", nullable=False),
        sa.Column("begun_ms", sa.BigInteger),
        sa.Column("done_ms", sa.BigInteger),
        sa.Column("error", sa.String(500)),
        sa.CheckConstraint("kind IN ('walk', 'upkeep')", name=op.f("ck_duty_kind")),
        sa.ForeignKeyConstraint(["endpoint_id"], ["endpoint.id"], name=op.f("fk_duty_endpoint_id")),
        sa.PrimaryKeyConstraint("endpoint_id", "kind", name=op.f("pk_duty")),
    )
    op.create_index(op.f("ix_duty_next_ms"), "duty", ["next_ms"])
    op.create_table(
        "alarm",
        sa.Column("endpoint_id", Id, nullable=False),
        sa.Column("kind", sa.String(12), nullable=False),
        sa.Column("about", sa.String(64), server_default="", nullable=False),
        sa.Column("message", sa.String(500), nullable=False),
        sa.Column("first_ms", sa.BigInteger, nullable=False),
        sa.Column("last_ms", sa.BigInteger, nullable=False),
        sa.Column("times", sa.Integer, server_default="1", nullable=False),
        sa.CheckConstraint(
            "kind IN ('walk', 'upkeep', 'events', 'columns')", name=op.f("ck_alarm_kind")
        ),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["endpoint.id"], name=op.f("fk_alarm_endpoint_id")
        ),
        sa.PrimaryKeyConstraint("endpoint_id", "kind", "about", name=op.f("pk_alarm")),
    )
    op.create_table(
        "reading",
        sa.Column("id", Id, nullable=False),
        sa.Column("endpoint_id", Id, nullable=False),
        sa.Column("ref_container", sa.String(200), server_default="", nullable=False),
        sa.Column("ref_table", sa.String(200), server_default="", nullable=False),
        sa.Column("ref_key", sa.String(200), nullable=False),
        sa.Column("changed", Json),
        sa.Column("wanted", sa.Integer, server_default="1", nullable=False),
        sa.Column("tries", sa.Integer, server_default="0", nullable=False),
        sa.Column("next_ms", sa.BigInteger),
        sa.Column("lease_until_ms", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("error_code", sa.String(32)),
        sa.Column("error", sa.String(500)),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["endpoint.id"], name=op.f("fk_reading_endpoint_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reading")),
        sa.UniqueConstraint(
            "endpoint_id",
            "ref_container",
            "ref_table",
            "ref_key",
            name=op.f("uq_reading_endpoint_id_ref_container_ref_table_ref_key"),
        ),
    )
    op.create_index(op.f("ix_reading_next_ms"), "reading", ["next_ms"])
    op.create_table(
        "recording",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("spec_hash", sa.String(64), nullable=False),
        sa.Column("take", sa.Integer, nullable=False),
        sa.Column("format", sa.String(8), nullable=False),
        sa.Column("object_key", sa.String(200), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("duration_ms", sa.BigInteger, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.CheckConstraint(
            "format IN ('opus', 'mp3', 'wav', 'vtt', 'chapters')", name=op.f("ck_recording_format")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_recording_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recording")),
        sa.UniqueConstraint("object_key", name=op.f("uq_recording_object_key")),
        sa.UniqueConstraint(
            "tenant_id",
            "spec_hash",
            "take",
            "format",
            name=op.f("uq_recording_tenant_id_spec_hash_take_format"),
        ),
    )
    op.create_table(
        "schedule",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("cron", sa.String(120), nullable=False),
        sa.Column("timezone", sa.String(60), nullable=False),
        sa.Column("plan", Json, nullable=False),
        sa.Column("catch_up", sa.String(6), nullable=False),
        sa.Column("grace_ms", sa.BigInteger, nullable=False),
        sa.Column("enabled", sa.SmallInteger, nullable=False),
        sa.Column("next_ms", sa.BigInteger),
        sa.Column("last_ms", sa.BigInteger),
        sa.Column("changed_ms", sa.BigInteger, nullable=False),
        sa.CheckConstraint(
            "catch_up IN ('skip', 'once', 'all')", name=op.f("ck_schedule_catch_up")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_schedule_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedule")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_schedule_tenant_id_name")),
    )
    op.create_index(op.f("ix_schedule_enabled_next_ms"), "schedule", ["enabled", "next_ms"])
    op.create_table(
        "batch_run",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("schedule_id", Id, nullable=False),
        sa.Column("fire_ms", sa.BigInteger, nullable=False),
        sa.Column("forced", sa.SmallInteger, server_default="0", nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("cursor", Json),
        sa.Column("total", sa.Integer, server_default="0", nullable=False),
        sa.Column("done", sa.Integer, server_default="0", nullable=False),
        sa.Column("failed", sa.Integer, server_default="0", nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("error", sa.String(500)),
        sa.CheckConstraint(
            "state IN ('due', 'selecting', 'running', 'done', 'failed', 'cancelled')",
            name=op.f("ck_batch_run_state"),
        ),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedule.id"], name=op.f("fk_batch_run_schedule_id")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_batch_run_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch_run")),
        sa.UniqueConstraint(
            "schedule_id", "fire_ms", "forced", name=op.f("uq_batch_run_schedule_id_fire_ms_forced")
        ),
    )
    op.create_index(op.f("ix_batch_run_state"), "batch_run", ["state"])
    op.create_table(
        "delivery",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("endpoint_id", Id, nullable=False),
        sa.Column("delivery_key", sa.String(200), nullable=False),
        sa.Column("body_digest", sa.String(64), nullable=False),
        sa.Column("received_ms", sa.BigInteger, nullable=False),
        sa.Column("repeats", sa.Integer, server_default="0", nullable=False),
        sa.Column("last_repeat_ms", sa.BigInteger),
        sa.Column("error", sa.String(500)),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["endpoint.id"], name=op.f("fk_delivery_endpoint_id")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_delivery_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sa.UniqueConstraint(
            "endpoint_id", "delivery_key", name=op.f("uq_delivery_endpoint_id_delivery_key")
        ),
    )
    op.create_index(
        op.f("ix_delivery_tenant_id_received_ms"), "delivery", ["tenant_id", "received_ms"]
    )
    op.create_table(
        "note",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("endpoint_id", Id, nullable=False),
        sa.Column("ref_container", sa.String(200), server_default="", nullable=False),
        sa.Column("ref_table", sa.String(200), server_default="", nullable=False),
        sa.Column("ref_key", sa.String(200)),
        sa.Column("revision", sa.BigInteger, server_default="1", nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("title", sa.String(400), server_default="", nullable=False),
        sa.Column("content", Json),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("changed_ms", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["endpoint_id"], ["endpoint.id"], name=op.f("fk_note_endpoint_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_note_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_note")),
    )
    op.create_index(op.f("ix_note_endpoint_id_changed_ms"), "note", ["endpoint_id", "changed_ms"])
    op.create_index(
        "uq_note_ref",
        "note",
        ["endpoint_id", "ref_container", "ref_table", "ref_key"],
        unique=True,
        **_where("ref_key IS NOT NULL"),
    )
    op.create_table(
        "usage_day",
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("endpoint_id", Id, nullable=False),
        sa.Column("engine", sa.String(24), nullable=False),
        sa.Column("episodes", sa.Integer, server_default="0", nullable=False),
        sa.Column("audio_ms", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("busy_ms", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("chars", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["endpoint.id"], name=op.f("fk_usage_day_endpoint_id")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_usage_day_tenant_id")),
        sa.PrimaryKeyConstraint(
            "tenant_id", "day", "endpoint_id", "engine", name=op.f("pk_usage_day")
        ),
    )
    op.create_table(
        "episode",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("key", sa.String(40), nullable=False),
        sa.Column("endpoint_id", Id, nullable=False),
        sa.Column("delivery_id", Id),
        sa.Column("batch_run_id", Id),
        sa.Column("take", sa.Integer, server_default="1", nullable=False),
        sa.Column("title", sa.String(400), server_default="", nullable=False),
        sa.Column("lang", sa.String(8), server_default="", nullable=False),
        sa.Column("wishes", Json, nullable=False),
        sa.Column("script", Json),
        sa.Column("spec_hash", sa.String(64)),
        sa.Column("queue", sa.String(12), nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("fair_at_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(14), nullable=False),
        sa.Column("state_ms", sa.BigInteger, nullable=False),
        sa.Column("wanted", sa.String(8), server_default="run", nullable=False),
        sa.Column("command_head", sa.Integer, server_default="0", nullable=False),
        sa.Column("asked_by", sa.String(80)),
        sa.Column("next_ms", sa.BigInteger),
        sa.Column("estimated_ms", sa.BigInteger, nullable=False),
        sa.Column("text_chars", sa.Integer, nullable=False),
        sa.Column("lease_owner", Id),
        sa.Column("lease_until_ms", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("fence", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("tries", sa.Integer, server_default="0", nullable=False),
        sa.Column("crash_count", sa.Integer, server_default="0", nullable=False),
        sa.Column("segments_done", sa.Integer, server_default="0", nullable=False),
        sa.Column("segments_total", sa.Integer),
        sa.Column("samples", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("queued_ms", sa.BigInteger),
        sa.Column("started_ms", sa.BigInteger),
        sa.Column("first_audio_ms", sa.BigInteger),
        sa.Column("stored_ms", sa.BigInteger),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("hour", sa.String(13), nullable=False),
        sa.Column("error_code", sa.String(32)),
        sa.Column("error", sa.String(500)),
        sa.CheckConstraint(
            "queue IN ('realtime', 'batch', 'quarantine')", name=op.f("ck_episode_queue")
        ),
        sa.CheckConstraint(
            "state IN ('received', 'waiting', 'queued', 'synthesising', 'encoding', 'stored', "
            "'written_back', 'done', 'failed', 'dead', 'cancelled')",
            name=op.f("ck_episode_state"),
        ),
        sa.CheckConstraint("wanted IN ('run', 'pause')", name=op.f("ck_episode_wanted")),
        sa.ForeignKeyConstraint(
            ["batch_run_id"], ["batch_run.id"], name=op.f("fk_episode_batch_run_id")
        ),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["delivery.id"], name=op.f("fk_episode_delivery_id")
        ),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["endpoint.id"], name=op.f("fk_episode_endpoint_id")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_episode_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_episode")),
        sa.UniqueConstraint("delivery_id", "take", name=op.f("uq_episode_delivery_id_take")),
        sa.UniqueConstraint("key", name=op.f("uq_episode_key")),
    )
    op.create_index(
        "ix_episode_asked_by", "episode", ["asked_by", "state"], **_where("asked_by IS NOT NULL")
    )
    op.create_index(op.f("ix_episode_batch_run_id"), "episode", ["batch_run_id"])
    op.create_index(
        "ix_episode_claim",
        "episode",
        ["queue", "priority", "fair_at_ms", "id"],
        **_where("state = 'queued'"),
    )
    op.create_index(
        "ix_episode_lease",
        "episode",
        ["lease_until_ms"],
        **_where("state IN ('synthesising', 'encoding')"),
    )
    op.create_index(op.f("ix_episode_lease_owner"), "episode", ["lease_owner"])
    op.create_index(
        "ix_episode_next", "episode", ["next_ms"], **_where("state IN ('failed', 'waiting')")
    )
    op.create_index(op.f("ix_episode_state_state_ms"), "episode", ["state", "state_ms"])
    op.create_index(op.f("ix_episode_tenant_id_day"), "episode", ["tenant_id", "day"])
    op.create_table(
        "attempt",
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("worker_id", Id, nullable=False),
        sa.Column("first_segment", sa.Integer, nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("outcome", sa.String(12)),
        sa.Column("error_code", sa.String(32)),
        sa.CheckConstraint(
            "outcome IN ('stored', 'failed', 'dead', 'reaped', 'handed_over', 'paused', "
            "'cancelled')",
            name=op.f("ck_attempt_outcome"),
        ),
        sa.ForeignKeyConstraint(["episode_id"], ["episode.id"], name=op.f("fk_attempt_episode_id")),
        sa.PrimaryKeyConstraint("episode_id", "fence", name=op.f("pk_attempt")),
    )
    op.create_table(
        "batch_item",
        sa.Column("batch_run_id", Id, nullable=False),
        sa.Column("note_id", Id, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("episode_id", Id),
        sa.ForeignKeyConstraint(
            ["batch_run_id"], ["batch_run.id"], name=op.f("fk_batch_item_batch_run_id")
        ),
        sa.ForeignKeyConstraint(
            ["episode_id"], ["episode.id"], name=op.f("fk_batch_item_episode_id")
        ),
        sa.ForeignKeyConstraint(["note_id"], ["note.id"], name=op.f("fk_batch_item_note_id")),
        sa.PrimaryKeyConstraint("batch_run_id", "note_id", name=op.f("pk_batch_item")),
    )
    op.create_table(
        "command",
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("op", sa.String(8), nullable=False),
        sa.Column("value", Json),
        sa.Column("at", sa.String(8), nullable=False),
        sa.Column("play_ms", sa.BigInteger),
        sa.Column("actor", sa.String(80), nullable=False),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("order_key", sa.String(200), nullable=False),
        sa.Column("received_ms", sa.BigInteger, nullable=False),
        sa.Column("applied_ms", sa.BigInteger),
        sa.Column("applied_fence", sa.BigInteger),
        sa.Column("effect", Json),
        sa.CheckConstraint(
            "op IN ('pause', 'resume', 'speed', 'emotion', 'voice', 'skip', 'stop')",
            name=op.f("ck_command_op"),
        ),
        sa.ForeignKeyConstraint(["episode_id"], ["episode.id"], name=op.f("fk_command_episode_id")),
        sa.PrimaryKeyConstraint("episode_id", "number", name=op.f("pk_command")),
        sa.UniqueConstraint(
            "episode_id", "order_key", name=op.f("uq_command_episode_id_order_key")
        ),
    )
    op.create_table(
        "effect",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("kind", sa.String(12), nullable=False),
        sa.Column("lane", sa.String(300)),
        sa.Column("effect_key", sa.String(200), nullable=False),
        sa.Column("body", Json, nullable=False),
        sa.Column("policy", sa.String(8), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("tries", sa.Integer, server_default="0", nullable=False),
        sa.Column("next_ms", sa.BigInteger, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("lease_owner", Id),
        sa.Column("lease_until_ms", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("fence", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("error_code", sa.String(32)),
        sa.Column("error", sa.String(500)),
        sa.Column("done_ms", sa.BigInteger),
        sa.CheckConstraint("kind IN ('write_back', 'card', 'event')", name=op.f("ck_effect_kind")),
        sa.CheckConstraint("policy IN ('repeat', 'keyed', 'once')", name=op.f("ck_effect_policy")),
        sa.CheckConstraint(
            "state IN ('due', 'running', 'done', 'failed', 'uncertain', 'dead', 'dropped')",
            name=op.f("ck_effect_state"),
        ),
        sa.ForeignKeyConstraint(["episode_id"], ["episode.id"], name=op.f("fk_effect_episode_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_effect_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_effect")),
        sa.UniqueConstraint("effect_key", name=op.f("uq_effect_effect_key")),
    )
    op.create_index(op.f("ix_effect_episode_id"), "effect", ["episode_id"])
    op.create_index(
        "ix_effect_lane",
        "effect",
        ["lane", "id"],
        **_where("state IN ('due', 'failed', 'running')"),
    )
    op.create_index("ix_effect_next", "effect", ["next_ms"], **_where("state IN ('due', 'failed')"))
    op.create_table(
        "episode_log",
        sa.Column("id", Serial, nullable=False),
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("ms", sa.BigInteger, nullable=False),
        sa.Column("to_state", sa.String(14), nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(40), nullable=False),
        sa.Column("reason", sa.String(200)),
        sa.ForeignKeyConstraint(
            ["episode_id"], ["episode.id"], name=op.f("fk_episode_log_episode_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_episode_log")),
    )
    op.create_index(op.f("ix_episode_log_episode_id_id"), "episode_log", ["episode_id", "id"])
    op.create_table(
        "episode_note",
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("note_id", Id, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(
            ["episode_id"], ["episode.id"], name=op.f("fk_episode_note_episode_id")
        ),
        sa.ForeignKeyConstraint(["note_id"], ["note.id"], name=op.f("fk_episode_note_note_id")),
        sa.PrimaryKeyConstraint("episode_id", "position", name=op.f("pk_episode_note")),
    )
    op.create_index(op.f("ix_episode_note_note_id"), "episode_note", ["note_id"])
    op.create_table(
        "episode_recording",
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("recording_id", Id, nullable=False),
        sa.ForeignKeyConstraint(
            ["episode_id"], ["episode.id"], name=op.f("fk_episode_recording_episode_id")
        ),
        sa.ForeignKeyConstraint(
            ["recording_id"], ["recording.id"], name=op.f("fk_episode_recording_recording_id")
        ),
        sa.PrimaryKeyConstraint("episode_id", "recording_id", name=op.f("pk_episode_recording")),
    )
    op.create_table(
        "listen_link",
        sa.Column("id", Id, nullable=False),
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("slug", sa.String(16), nullable=False),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_ms", sa.BigInteger),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.CheckConstraint("role IN ('owner', 'listener')", name=op.f("ck_listen_link_role")),
        sa.ForeignKeyConstraint(
            ["episode_id"], ["episode.id"], name=op.f("fk_listen_link_episode_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_listen_link")),
        sa.UniqueConstraint("slug", name=op.f("uq_listen_link_slug")),
    )
    op.create_index(op.f("ix_listen_link_episode_id"), "listen_link", ["episode_id"])
    op.create_table(
        "segment",
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("object_key", sa.String(200), nullable=False),
        sa.Column("samples", sa.BigInteger, nullable=False),
        sa.Column("pcm_digest", sa.String(64), nullable=False),
        sa.Column("text_digest", sa.String(64), nullable=False),
        sa.Column("pause_ms", sa.BigInteger, nullable=False),
        sa.Column("words", Json, nullable=False),
        sa.Column("committed_ms", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["episode_id"], ["episode.id"], name=op.f("fk_segment_episode_id")),
        sa.PrimaryKeyConstraint("episode_id", "n", name=op.f("pk_segment")),
    )


def downgrade() -> None:
    """Drop everything; indexes fall with their tables."""
    op.drop_table("segment")
    op.drop_table("listen_link")
    op.drop_table("episode_recording")
    op.drop_table("episode_note")
    op.drop_table("episode_log")
    op.drop_table("effect")
    op.drop_table("command")
    op.drop_table("batch_item")
    op.drop_table("attempt")
    op.drop_table("episode")
    op.drop_table("usage_day")
    op.drop_table("note")
    op.drop_table("reading")
    op.drop_table("alarm")
    op.drop_table("duty")
    op.drop_table("endpoint_secret")
    op.drop_table("budget")
    op.drop_table("delivery")
    op.drop_table("batch_run")
    op.drop_table("schedule")
    op.drop_table("recording")
    op.drop_table("endpoint")
    op.drop_table("api_key")
    op.drop_table("worker")
    op.drop_table("tenant")
    op.drop_table("outbox")
    op.drop_table("audit")
