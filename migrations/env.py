"""What Alembic runs: revisions on the connection `pipeline.migrate` hands over, then the views."""

from __future__ import annotations

from alembic import context

from migrations import report_views
from pipeline.models import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes a column only by rebuilding its table
    transactional_ddl=True,  # also on SQLite: a failed upgrade leaves nothing behind
)

# PostgreSQL refuses to change a column under a view, and the files describe the newest tables only.
report_views.drop(connection)
context.run_migrations()
if context.get_context().get_current_revision() == context.get_head_revision():
    report_views.create(connection)
