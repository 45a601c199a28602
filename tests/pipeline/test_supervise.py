"""The parent: one for a directory, patient with what dies, and gone when it is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import up
from pipeline.errors import Misconfigured
from pipeline.settings import Settings
from pipeline.supervise import _Child, data_lock, open_log


def test_a_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    told = rf"process {os.getpid()}.*--data"
    with data_lock(tmp_path), pytest.raises(Misconfigured, match=told), data_lock(tmp_path):
        pass
    with data_lock(tmp_path):
        pass


def test_a_killed_owner_leaves_no_lock_behind(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.supervise import data_lock\n"
        "with data_lock(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"mine\n"
        with pytest.raises(Misconfigured), data_lock(tmp_path):
            pass
        owner.kill()
        owner.wait()

    with data_lock(tmp_path):
        pass


def test_a_child_that_dies_again_and_again_is_started_less_and_less_often() -> None:
    child = _Child("web", start=lambda: None, stop_s=1.0)  # type: ignore[arg-type,return-value]
    waits = [child.backoff_s(now=float(n)) for n in range(8)]

    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert child.backoff_s(now=1000.0) == 0.0, "long ago is forgiven"


def test_a_log_that_has_grown_large_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "web.log"
    with open_log(path) as log:
        log.truncate(5 << 20)
    with open_log(path) as log:
        log.write(b"new\n")

    assert path.read_bytes() == b"new\n"
    assert (tmp_path / "logs" / "web.log.1").stat().st_size == 5 << 20


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings(data=tmp_path, engine="tone", port=port)
        with pytest.raises(Misconfigured, match=rf"port {port}.*--port"):
            run(settings)

    assert not (tmp_path / "notecast.db").exists()


def test_a_mistake_in_connectors_toml_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "connectors.toml").write_text('[endpoint.x]\nconnector = "webhok"\n')

    with pytest.raises(Exception, match=r"connectors\.toml.*webhook"):
        run(Settings(data=tmp_path, engine="tone", port=up.free_port()))


def test_a_port_is_waited_for_when_the_predecessor_was_killed(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text("{}")
    taken = socket.create_server(("127.0.0.1", 0))
    settings = Settings(data=tmp_path, port=taken.getsockname()[1])
    leaving = threading.Timer(0.3, taken.close)
    leaving.start()
    began = time.monotonic()
    up._check_port(settings)
    leaving.join()

    assert time.monotonic() - began >= 0.25


def run(settings: Settings) -> None:
    up.run_up(settings, db="sqlite", s3="folder", tell=lambda _line: None, on_ready=lambda *_: None)
