"""`notecast demo`, the first thing a stranger runs, with the tone voice."""

import json
import subprocess
import sys
from pathlib import Path

from pipeline.audio import decode

KEYS = {
    "key", "title", "lang", "listen_url", "ttfa_ms", "audio_s", "wall_s", "rtf", "chunks",
    "received_sha256", "end_sha256", "recording_url", "mp3", "ogg", "vtt", "text",
}  # fmt: skip


def test_the_demo_proves_the_whole_road(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "pipeline.cli", "demo", "--engine", "tone", "--out", str(out)]

    ran = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=180)

    assert ran.returncode == 0, ran.stderr
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert json.loads(ran.stdout) == summary
    assert [one["lang"] for one in summary["episodes"]] == ["zh", "en"]
    assert summary["machine"]["cores"]
    for one in summary["episodes"]:
        assert one.keys() >= KEYS
        assert one["received_sha256"] == one["end_sha256"]
        for name in ("mp3", "ogg"):
            heard_s = len(decode(Path(one[name]).read_bytes())) / 24_000
            assert abs(heard_s - one["audio_s"]) < 0.06
        assert Path(one["vtt"]).read_text("utf-8").startswith("WEBVTT")


def test_a_text_file_of_ones_own_is_spoken_instead(tmp_path: Path) -> None:
    note = tmp_path / "note.md"
    note.write_text("Only this is said.")
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "pipeline.cli", "demo", "--engine", "tone", "--s3", "folder"]

    ran = subprocess.run(
        [*command, "--text", str(note), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=180,
    )

    assert ran.returncode == 0, ran.stderr
    (one,) = json.loads((out / "summary.json").read_text("utf-8"))["episodes"]
    assert one["text"] == "Only this is said."
    assert "What happened" in ran.stdout


def test_a_row_of_a_faked_table_is_spoken_and_shows_it(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "pipeline.cli", "demo", "--engine", "tone", "--s3", "folder"]

    ran = subprocess.run(
        [*command, "--with", "feishu", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=180,
    )

    assert ran.returncode == 0, ran.stderr
    (one,) = json.loads((out / "summary.json").read_text("utf-8"))["episodes"]
    states = [step["status"] for step in one["row"]]
    assert (states[0], states[-1]) == ("待播报", "已完成")
    assert set(states) <= {"待播报", "排队中", "播报中", "已完成"}
    assert len(states) == len(set(states))
    assert one["received_sha256"] == one["end_sha256"]
    assert "in the group:" in ran.stdout
