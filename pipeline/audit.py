"""Who changed what by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from pipeline.database import now_ms
from pipeline.models import audit


def write_audit(
    connection: sa.Connection,
    *,
    actor: str,
    action: str,
    about: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Note who changed what by hand, in the commit that changes it."""
    connection.execute(
        audit.insert().values(
            ms=now_ms(), actor=actor[:80], action=action, object=about[:80], detail=detail
        )
    )
