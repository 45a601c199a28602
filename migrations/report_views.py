"""The report views: `views/NAME.sql`, one SELECT each, the same text for both databases.

`{now_ms}` in a file stands for the database's clock. Nothing else differs: percentile, date and
JSON functions have other names in each database, so the views use none. On PostgreSQL the role
`notecast_read`, if an administrator has made it, may read them.
"""

from __future__ import annotations

import sqlalchemy as sa

from migrations import DIRECTORY
from pipeline.database import now_ms

_PREFIX = "v_"


def names() -> list[str]:
    """All views, as `notecast sql` knows them."""
    return sorted(path.stem for path in DIRECTORY.glob(f"views/{_PREFIX}*.sql"))


def create(connection: sa.Connection) -> None:
    """Create every view; none may exist."""
    clock = str(now_ms().compile(dialect=connection.dialect))
    for name in names():
        select = (DIRECTORY / "views" / f"{name}.sql").read_text(encoding="utf-8")
        connection.exec_driver_sql(f"CREATE VIEW {name} AS\n{select.replace('{now_ms}', clock)}")
    if connection.dialect.name == "postgresql":
        _grant(connection)


def _grant(connection: sa.Connection) -> None:
    reader = sa.text("SELECT 1 FROM pg_roles WHERE rolname = 'notecast_read'")
    if connection.scalar(reader):
        connection.exec_driver_sql(f"GRANT SELECT ON {', '.join(names())} TO notecast_read")


def drop(connection: sa.Connection) -> None:
    """Drop every view there is, those of older builds too."""
    for name in sa.inspect(connection).get_view_names():
        if name.startswith(_PREFIX):
            connection.exec_driver_sql(f"DROP VIEW {name}")
