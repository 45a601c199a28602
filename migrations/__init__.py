"""The database's history: a linear chain of Alembic revisions, and the report views."""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path(__file__).parent


def head() -> str:
    """The newest revision. Its file name says it, so that asking does not import Alembic."""
    newest = max(path.name for path in DIRECTORY.glob("versions/[0-9]*.py"))
    return newest.split("_", 1)[0]
