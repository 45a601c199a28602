"""`notecast connectors fake`, as a person runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import requests

from pipeline.endpoints import load_endpoints
from pipeline.up import free_port

COMMAND = [sys.executable, "-m", "pipeline.cli", "connectors", "fake"]


def test_it_serves_tables_and_writes_endpoints_that_can_be_used(tmp_path: Path) -> None:
    port = free_port()
    command = [*COMMAND, "--port", str(port), "--write", str(tmp_path / "fake")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        state = _state(port, process)
        again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=30)

    assert [table["key"][0] for table in state["tables"]].count("feishu") == 1
    assert again.returncode == 2
    assert f"port {port} cannot be used" in again.stderr.replace("\n", " ")
    assert f"tables: http://127.0.0.1:{port}" in told
    path = tmp_path / "fake" / "connectors.toml"
    assert "zhou_hui" in load_endpoints(path, env={})
    assert all(
        file.stat().st_mode & 0o077 == 0
        for file in path.parent.iterdir()
        if file.suffix != ".toml" and os.name == "posix"
    )


def test_it_does_not_write_over_ones_own_endpoints(tmp_path: Path) -> None:
    (tmp_path / "connectors.toml").write_text("# mine\n")
    command = [*COMMAND, "--port", str(free_port()), "--write", str(tmp_path)]

    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode == 2
    assert "is there already" in ran.stderr.replace("\n", " ")
    assert (tmp_path / "connectors.toml").read_text() == "# mine\n"


def _state(port: int, process: subprocess.Popen[str]) -> dict[str, list[dict[str, list[str]]]]:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            return requests.get(f"http://127.0.0.1:{port}/_fake/state", timeout=5).json()
        except requests.ConnectionError:
            time.sleep(0.1)
    raise AssertionError("the fake did not start")
