"""A connector's `Note` as JSON and back, for the note table."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from connectors.base import Note, NoteRef


def note_to_json(note: Note) -> dict[str, Any]:
    """Everything a note says, as plain JSON values."""
    content = asdict(note)
    for name in ("schedule", "modified_at"):
        instant = content[name]
        content[name] = instant.isoformat() if instant is not None else None
    return content


def note_from_json(content: Mapping[str, Any]) -> Note:
    """The inverse of `note_to_json`."""
    values = dict(content)
    values["ref"] = NoteRef(**values["ref"])
    for name in ("schedule", "modified_at"):
        if values[name] is not None:
            values[name] = datetime.datetime.fromisoformat(values[name])
    values["warnings"] = tuple(values.get("warnings", ()))
    return Note(**values)
