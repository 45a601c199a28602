"""The command line as people use it: one process for each call, errors in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.backends.tone import decode, sentence_code
from pipeline import audio


@pytest.fixture
def data(tmp_path: Path, sqlite_template: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    shutil.copy(sqlite_template, directory / "notecast.db")
    return directory


def notecast(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NOTECAST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words],
        cwd=cwd,
        env={**clean, "NOTECAST_ENGINE": "tone", "PYTHONPATH": str(Path(__file__).parents[2])}
        | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_a_text_becomes_a_file_without_any_server(tmp_path: Path) -> None:
    done = notecast("say", "Hello there.", "-o", "hello.wav", "--json", cwd=tmp_path)

    assert done.returncode == 0
    assert json.loads(done.stdout)["audio_s"] > 0.5
    assert decode(audio.decode((tmp_path / "hello.wav").read_bytes())) == [
        sentence_code("Hello there.")
    ]


def test_an_unknown_setting_is_one_sentence(tmp_path: Path) -> None:
    done = notecast("config", cwd=tmp_path, NOTECAST_LEASE="5")

    assert done.returncode == 2
    assert "NOTECAST_LEASE" in done.stderr


def test_square_brackets_in_an_error_are_words(tmp_path: Path) -> None:
    done = notecast("say", "Hello.", "-o", "notes[bold].xyz", cwd=tmp_path)

    assert done.returncode == 2
    assert "notes[bold].xyz: unknown ending" in done.stderr


def test_secrets_are_masked(tmp_path: Path) -> None:
    done = notecast("config", "--json", cwd=tmp_path, NOTECAST_S3_SECRET_KEY="hunter2")

    assert json.loads(done.stdout)["engine"] == "tone"
    assert "hunter2" not in done.stdout


def test_a_directory_without_a_database_is_told(tmp_path: Path) -> None:
    done = notecast("episodes", "list", "--data", "nowhere", cwd=tmp_path)

    assert done.returncode == 2
    assert "notecast up" in done.stderr
    assert not (tmp_path / "nowhere" / "notecast.db").exists()


def test_speaking_to_nobody_says_how_to_start_somebody(data: Path) -> None:
    absent = notecast("speak", "Hello.", "--data", str(data), cwd=data)
    (data / "up.json").write_text('{"url": "http://127.0.0.1:9", "settings": {}, "pid": 1}')
    (data / "api-key").write_text("nck_x")
    killed = notecast("speak", "Hello.", "--data", str(data), cwd=data)

    for done in (absent, killed):
        assert done.returncode == 2
        assert "notecast up" in done.stderr


def test_a_key_is_shown_once_and_can_be_revoked(data: Path) -> None:
    key = notecast("keys", "add", "ci", "--data", str(data), cwd=data).stdout.strip()
    (listed,) = json.loads(notecast("keys", "list", "--json", "--data", str(data), cwd=data).stdout)
    revoked = notecast("keys", "revoke", key[:8], "--data", str(data), cwd=data)
    again = notecast("keys", "revoke", key[:8], "--data", str(data), cwd=data)

    assert key.startswith("nck_")
    assert (listed["prefix"], listed["name"]) == (key[:8], "ci")
    assert (revoked.returncode, again.returncode) == (0, 1)


def test_admin_sql_reads_and_does_not_write(data: Path) -> None:
    read = notecast(
        "sql", "select count(*) as n from episode", "--json", "--data", str(data), cwd=data
    )
    write = notecast("sql", "delete from episode", "--data", str(data), cwd=data)

    assert '"n"' in read.stdout
    assert write.returncode == 2


def test_an_unknown_episode_is_one_sentence(data: Path) -> None:
    for action in ("show", "retry", "cancel"):
        done = notecast("episodes", action, "ses_none", "--data", str(data), cwd=data)
        assert done.returncode == 2
        assert "ses_none" in done.stderr
