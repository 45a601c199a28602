"""The seven shapes of meeting notes, Chinese and English, as they are spoken.

Each note in `fixtures/scripts` has its script beside it, line by line as a listener hears it. A
changed rule shows here as a changed line: look at it, then write the file anew with
`python -m tests.pipeline.test_script_shapes`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from connectors.base import Note, NoteRef
from connectors.cells import text_of
from pipeline.script import Script, compose

FOLDER = Path(__file__).parent.parent / "fixtures" / "scripts"
NOTES = sorted(path for path in FOLDER.glob("s?-*") if path.suffix in (".md", ".json"))


def heard(path: Path) -> str:
    """The script of a note, a line for each segment."""
    source = path.read_text("utf-8")
    text = text_of(json.loads(source)) if path.suffix == ".json" else source
    return as_heard(compose(Note(NoteRef("board", key="1"), text)))


def as_heard(script: Script) -> str:
    lines = [f"{script.title} ({script.lang})"]
    for chapter in script.chapters:
        lines += ["", f"== {chapter.title}"]
        lines += [
            f"{segment.kind:8} {segment.pause_ms:3} ms  {segment.speaker or '-'}: {segment.text}"
            for segment in chapter.segments
        ]
    left_out = [f"{part.reason}: {part.text}" for part in script.skipped]
    return "\n".join([*lines, "", "-- not said", *left_out, ""])


@pytest.mark.parametrize("path", NOTES, ids=lambda path: path.stem)
def test_a_note_is_heard_as_written_down(path: Path) -> None:
    assert heard(path) == path.with_suffix(".script.txt").read_text("utf-8")


def test_every_shape_is_there_in_both_languages() -> None:
    found = {(path.name[:2], path.stem[-2:]) for path in NOTES}
    assert found == {(f"s{n}", lang) for n in range(1, 8) for lang in ("en", "zh")}


if __name__ == "__main__":
    for note in NOTES:
        note.with_suffix(".script.txt").write_text(heard(note), "utf-8")
