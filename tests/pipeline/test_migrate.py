import logging
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import alembic.command
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import migrations
from migrations import report_views
from pipeline import ids, migrate, models
from pipeline.database import Database, now_ms
from pipeline.errors import DatabaseUnavailable, Misconfigured, Refused

TABLES = {*models.metadata.tables, "alembic_version"}


def downgrade(database: Database, revision: str) -> None:
    with database.engine.begin() as connection:
        alembic.command.downgrade(migrate.config(connection), revision)


def tables(database: Database) -> set[str]:
    return set(sa.inspect(database.engine).get_table_names())


def schema(database: Database) -> dict[str, object]:
    """Everything about the tables that matters, CHECKs included, which autogenerate leaves out."""
    seen = sa.inspect(database.engine)
    found = {}
    for table in sorted(set(seen.get_table_names()) - {"alembic_version"}):
        found[table] = {
            "columns": [
                (column["name"], str(column["type"]), column["nullable"], column["default"])
                for column in seen.get_columns(table)
            ],
            "key": seen.get_pk_constraint(table),
            "foreign": sorted(map(repr, seen.get_foreign_keys(table))),
            "checks": sorted(map(repr, seen.get_check_constraints(table))),
            "unique": sorted(map(repr, seen.get_unique_constraints(table))),
            "indexes": sorted(
                f"{index['name']} {index['column_names']} {index['unique']} "
                f"{[str(option) for option in index.get('dialect_options', {}).values()]}"
                for index in seen.get_indexes(table)
            ),
        }
    return found


def put_worker(database: Database, *, state: str, age_ms: int = 0) -> None:
    with database.write() as connection:
        connection.execute(
            models.worker.insert().values(
                id=ids.ulid(),
                host="here",
                pid=1,
                kind="gpu",
                state=state,
                started_ms=now_ms() - age_ms,
                seen_ms=now_ms() - age_ms,
                build="test",
            )
        )


def set_revision(database: Database, revision: str) -> None:
    with database.write() as connection:
        connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{revision}'"))


@pytest.fixture
def next_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A chain with a revision 0002 that adds a column and may not run under live workers."""
    copy = tmp_path / "history"
    (copy / "versions").mkdir(parents=True)
    for name in ("env.py", "versions/0001_notes_and_outbox.py"):
        (copy / name).write_text((migrations.DIRECTORY / name).read_text())
    (copy / "views").symlink_to(migrations.DIRECTORY / "views")
    (copy / "versions/0002_colour.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        "revision, down_revision, live = '0002', '0001', False\n"
        "def upgrade():\n"
        "    recreate = 'always' if op.get_bind().dialect.name == 'sqlite' else 'never'\n"
        "    with op.batch_alter_table('tenant', recreate=recreate) as table:\n"
        "        table.add_column(sa.Column('colour', sa.String(10)))\n"
    )
    monkeypatch.setattr(migrations, "DIRECTORY", copy)
    return copy


def test_upgrade_makes_all_tables_and_views_and_says_so(empty_database: Database) -> None:
    assert migrate.status(empty_database) == migrate.Status(None, "0001")

    assert migrate.upgrade(empty_database) == ["0001"]

    assert migrate.status(empty_database).is_current
    assert tables(empty_database) == TABLES
    assert sorted(sa.inspect(empty_database.engine).get_view_names()) == report_views.names()


def test_upgrading_twice_changes_nothing(database: Database) -> None:
    before = schema(database)

    assert migrate.upgrade(database) == []
    assert schema(database) == before


def test_autogenerate_finds_no_difference(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection)

        assert compare_metadata(context, models.metadata) == []


def test_migrated_tables_are_those_of_models(database: Database) -> None:
    migrated = schema(database)
    with database.engine.begin() as connection:
        report_views.drop(connection)
    models.metadata.drop_all(database.engine)
    models.metadata.create_all(database.engine)

    assert migrated == schema(database)


def test_down_and_up_again(database: Database) -> None:
    before = schema(database)

    downgrade(database, "base")
    assert tables(database) == {"alembic_version"}
    assert sa.inspect(database.engine).get_view_names() == []
    assert migrate.status(database).current is None
    assert migrate.upgrade(database) == ["0001"]

    assert schema(database) == before


def test_file_names_tell_the_head_that_alembic_finds(sqlite_database: Database) -> None:
    with sqlite_database.engine.connect() as connection:
        script = ScriptDirectory.from_config(migrate.config(connection))

        assert migrations.head() == script.get_current_head()
        assert all(isinstance(one.module.live, bool) for one in script.walk_revisions())


def test_nothing_to_do_does_not_import_alembic(sqlite_database: Database) -> None:
    program = (
        "import sys\n"
        "from pipeline import migrate\n"
        "from pipeline.database import Database\n"
        f"database = Database({sqlite_database.url!r})\n"
        "assert migrate.upgrade(database) == []\n"
        "print('alembic' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout.strip() == "False", done.stderr


def test_two_upgrades_at_once_are_one(empty_database: Database) -> None:
    applied: list[list[str]] = []
    start = threading.Barrier(3)

    def run() -> None:
        own = Database(empty_database.url)
        start.wait()
        applied.append(migrate.upgrade(own))
        own.close()

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(applied) == [[], [], ["0001"]]
    assert tables(empty_database) == TABLES


def test_foreign_tables_are_left_alone(empty_database: Database) -> None:
    with empty_database.write() as connection:
        connection.execute(sa.text("CREATE TABLE note (mine INTEGER)"))

    with pytest.raises(Misconfigured, match="has a table 'note' that no upgrade made"):
        migrate.upgrade(empty_database)

    assert tables(empty_database) == {"note"}


def test_a_newer_database_is_not_touched(database: Database) -> None:
    set_revision(database, "0999")

    with pytest.raises(Misconfigured, match="0999, this build knows revisions up to 0001"):
        migrate.upgrade(database)
    assert migrate.status(database).current == "0999"


def test_status_reads_like_a_sentence(database: Database) -> None:
    assert str(migrate.status(database)) == "the database is at revision 0001, the newest"
    assert str(migrate.Status("0001", "0002")).endswith("0002: run `notecast db upgrade`")
    assert str(migrate.Status(None, "0001")).startswith("the database is empty")


def test_an_upgrade_with_data_keeps_the_data(database: Database, next_revision: Path) -> None:
    with database.write() as connection:
        connection.execute(models.tenant.insert().values(id="t", name="main", created_ms=now_ms()))
        connection.execute(
            models.endpoint.insert().values(
                id="e", tenant_id="t", connector="webhook", name="board", created_ms=now_ms()
            )
        )

    assert migrate.upgrade(database) == ["0002"]

    columns = [one["name"] for one in sa.inspect(database.engine).get_columns("tenant")]
    assert "colour" in columns
    with database.read() as connection:
        assert connection.scalar(sa.select(models.endpoint.c.tenant_id)) == "t"
        assert connection.scalar(sa.text("SELECT count(*) FROM v_backlog")) == 0


def test_sqlite_is_copied_before_an_upgrade(
    sqlite_database: Database, next_revision: Path, tmp_path: Path
) -> None:
    migrate.upgrade(sqlite_database)

    (copy,) = tmp_path.glob("notecast.before-0002.*.db")
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [
            ("0001",)
        ]


def test_the_first_upgrade_copies_nothing(sqlite_database: Database, tmp_path: Path) -> None:
    assert list(tmp_path.glob("*before*")) == []


def test_foreign_keys_are_on_again_after_an_upgrade(
    sqlite_database: Database, next_revision: Path
) -> None:
    migrate.upgrade(sqlite_database)

    with sqlite_database.read() as connection:
        assert connection.scalar(sa.text("PRAGMA foreign_keys")) == 1


def test_an_upgrade_that_breaks_references_is_taken_back(
    sqlite_database: Database, next_revision: Path
) -> None:
    with sqlite_database.write() as connection:
        connection.execute(models.tenant.insert().values(id="t", name="main", created_ms=now_ms()))
        connection.execute(
            models.endpoint.insert().values(
                id="e", tenant_id="t", connector="webhook", name="board", created_ms=now_ms()
            )
        )
    file = next_revision / "versions/0002_colour.py"
    file.write_text(file.read_text() + "    op.execute('DELETE FROM tenant')\n")

    with pytest.raises(Misconfigured, match="rows of endpoint point to nothing"):
        migrate.upgrade(sqlite_database)
    assert migrate.status(sqlite_database).current == "0001"
    with sqlite_database.read() as connection:
        assert connection.scalar(sa.select(models.tenant.c.name)) == "main"
    assert sorted(sa.inspect(sqlite_database.engine).get_view_names()) == report_views.names()


def test_a_breaking_upgrade_waits_for_live_workers(database: Database, next_revision: Path) -> None:
    put_worker(database, state="ready")

    with pytest.raises(Refused, match=r"workers are running \(1\) .* stop them"):
        migrate.upgrade(database)
    assert migrate.status(database).current == "0001"


def test_workers_that_are_gone_do_not_block(database: Database, next_revision: Path) -> None:
    put_worker(database, state="gone")
    put_worker(database, state="ready", age_ms=60_000)

    assert migrate.upgrade(database) == ["0002"]


def test_postgresql_upgrade_gives_up_on_held_tables(
    postgres_database: Database,
    next_revision: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(migrate, "_LOCK_TRIES", 1)
    other = Database(postgres_database.url)
    with other.read() as holder:
        holder.execute(sa.select(models.tenant)).all()
        with pytest.raises(DatabaseUnavailable, match="nothing was changed"):
            migrate.upgrade(postgres_database)
    other.close()

    assert "waiting for the tables" in caplog.text
    assert migrate.upgrade(postgres_database) == ["0002"]


def test_views_are_renewed_for_the_role_that_may_only_read_them(
    postgres_url: str,
) -> None:
    empty_database = Database(postgres_url)
    with empty_database.write() as connection:
        connection.execute(sa.text("CREATE ROLE notecast_read"))
    try:
        migrate.upgrade(empty_database)
        with empty_database.read() as connection:
            granted = sa.text("SELECT has_table_privilege('notecast_read', 'v_backlog', 'SELECT')")
            assert connection.scalar(granted) is True
    finally:
        with empty_database.write() as connection:
            connection.execute(sa.text("DROP OWNED BY notecast_read"))
            connection.execute(sa.text("DROP ROLE notecast_read"))
        empty_database.close()
