"""Decides a drill from what lies there at its end. Imports nothing of the project.

    python tests/drills/checker.py DIRECTORY

The directory holds what senders did (`history.jsonl`), what the tool was told (`tool.jsonl`) and
the data directory of `notecast up` (`data`): its database is read by plain SQL, its objects as
plain files.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

FORMATS = {"opus", "mp3", "vtt", "chapters"}


def check(directory: Path) -> dict[str, Any]:
    """Counts and faults; no faults is a pass."""
    said = [json.loads(line) for line in _lines(directory / "history.jsonl")]
    told = [json.loads(line) for line in _lines(directory / "tool.jsonl")]
    database = sqlite3.connect(directory / "data" / "notecast.db")
    database.row_factory = sqlite3.Row
    try:
        faults = [
            *_sound_database(database),
            *_nothing_lost(database, said),
            *_one_link(said),
            *_one_recording(database, directory / "data" / "objects"),
            *_whole_journals(database),
            *_rows_told(said, told),
        ]
        states = Counter(row["state"] for row in database.execute("SELECT state FROM episode"))
    finally:
        database.close()
    return {
        "posts": sum(one["op"] == "invoke" for one in said),
        "accepted": len(_accepted(said)),
        "episodes": dict(states),
        "write_backs": len(told),
        "lost": sum(fault.startswith("lost") for fault in faults),
        "double": sum(fault.startswith("double") for fault in faults),
        "faults": faults,
        "verdict": "fail" if faults else "pass",
    }


def _accepted(said: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The first yes to each key."""
    yes: dict[str, dict[str, Any]] = {}
    for one in said:
        if one["op"] == "ok":
            yes.setdefault(one["key"], one)
    return yes


def _sound_database(database: sqlite3.Connection) -> list[str]:
    (word,) = database.execute("PRAGMA integrity_check").fetchone()
    return [] if word == "ok" else [f"lost: the database is damaged: {word}"]


def _nothing_lost(database: sqlite3.Connection, said: list[dict[str, Any]]) -> list[str]:
    """Each accepted note is one delivery and one finished episode that holds its words."""
    found = defaultdict(list)
    for row in database.execute(
        "SELECT e.key, e.state, d.delivery_key, n.content FROM episode e "
        "JOIN delivery d ON d.id = e.delivery_id "
        "JOIN episode_note en ON en.episode_id = e.id JOIN note n ON n.id = en.note_id"
    ):
        found[row["delivery_key"]].append(row)
    faults = []
    for key, yes in _accepted(said).items():
        rows = found[key]
        if not rows:
            faults.append(f"lost: {key} was accepted and is not there")
        elif len(rows) > 1:
            faults.append(f"double: {key} has {len(rows)} episodes")
        elif rows[0]["key"] != yes["episode"]:
            faults.append(f"lost: {key} was answered with another episode")
        elif json.loads(rows[0]["content"])["text"] != yes["text"]:
            faults.append(f"lost: {key} has other words")
        elif rows[0]["state"] != "done":
            faults.append(f"lost: {key} is {rows[0]['state']}")
    invoked = {one["key"] for one in said}
    faults += [f"double: nobody sent {key}" for key in found if key not in invoked]
    return faults


def _one_link(said: list[dict[str, Any]]) -> list[str]:
    links = defaultdict(set)
    for one in said:
        if one["op"] == "ok":
            links[one["key"]].add(one["link"])
    return [
        f"double: {key} was given {len(given)} links"
        for key, given in links.items()
        if len(given) > 1
    ]


def _one_recording(database: sqlite3.Connection, objects: Path) -> list[str]:
    """Each finished episode has one file of each format, whole, and there are no others."""
    faults, named = [], set()
    formats = defaultdict(Counter[str])
    for row in database.execute(
        "SELECT e.key, r.format, r.object_key, r.size_bytes, r.digest FROM episode e "
        "LEFT JOIN episode_recording er ON er.episode_id = e.id "
        "LEFT JOIN recording r ON r.id = er.recording_id WHERE e.state = 'done'"
    ):
        if row["format"] is None:
            faults.append(f"lost: {row['key']} is done and has no recording")
            continue
        formats[row["key"]][row["format"]] += 1
        named.add(row["object_key"])
        path = objects / row["object_key"]
        body = path.read_bytes() if path.is_file() else b""
        if len(body) != row["size_bytes"] or hashlib.sha256(body).hexdigest() != row["digest"]:
            faults.append(f"lost: {row['object_key']} is not what its row says")
    for key, counts in formats.items():
        if set(counts) != FORMATS:
            faults.append(f"lost: {key} lacks {sorted(FORMATS - set(counts))}")
        if max(counts.values()) > 1:
            faults.append(f"double: {key} has two recordings")
    lying = {
        path.relative_to(objects).as_posix()
        for path in (objects / "rec").rglob("*")
        if path.is_file()
    }
    return faults + [f"double: {key} belongs to nobody" for key in sorted(lying - named)]


def _whole_journals(database: sqlite3.Connection) -> list[str]:
    """Stored sentences are numbered without gaps, and owners follow each other."""
    journals = defaultdict(list)
    for row in database.execute("SELECT episode_id, n, fence FROM segment ORDER BY episode_id, n"):
        journals[row["episode_id"]].append((row["n"], row["fence"]))
    faults = []
    for episode_id, rows in journals.items():
        numbers, fences = [n for n, _ in rows], [fence for _, fence in rows]
        if numbers != list(range(len(numbers))):
            faults.append(f"lost: sentences of {episode_id} are {numbers}")
        if fences != sorted(fences):
            faults.append(f"double: an older owner wrote for {episode_id}: {fences}")
    return faults


def _rows_told(said: list[dict[str, Any]], told: list[dict[str, Any]]) -> list[str]:
    """Each row of the tool shows the link of its recording, and never anything else."""
    shown = defaultdict(set)
    for one in told:
        shown[one["record"]].add((one["state"], one["link"]))
    faults = []
    for key, yes in _accepted(said).items():
        if not yes["record"]:
            continue
        if not shown[yes["record"]]:
            faults.append(f"lost: the row of {key} was never told")
        elif shown[yes["record"]] != {("done", yes["link"])}:
            faults.append(f"double: the row of {key} was told {sorted(shown[yes['record']])}")
    return faults


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.stdout.write(json.dumps(check(Path(sys.argv[1]))) + "\n")
