"""`notecast up`: one parent that starts everything, restarts what dies, and stops it in order.

The parent does little, so that it lives: it owns the data directory's lock, starts the embedded
servers, upgrades the database, frees what a crashed run left leased, and then watches. When a
worker dies it frees that worker's episodes at once instead of waiting for their leases to run out.
Children die with the parent, so a kill of the parent leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from pipeline import effects, leases, migrate, servers
from pipeline.errors import DatabaseUnavailable, Misconfigured, PipelineError
from pipeline.services import Services
from pipeline.settings import Settings
from pipeline.write_backs import buried, tell_dead

log = logging.getLogger(__name__)

_TICK_S = 0.1
_BACKOFF_S = (0.5, 30.0)
_LOOP_RESTARTS, _LOOP_WINDOW_S = 5, 60.0
_LOG_BYTES = 4 << 20

Tell = Callable[[str], None]
"""Shows a person one line about what happens."""


@dataclass
class _Child:
    """One process that must run: how to start it, and how often it died lately."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    stop_s: float
    process: subprocess.Popen[bytes] | None = None
    restarts: list[float] = field(default_factory=list)
    start_at: float = 0.0
    stop_signal: signal.Signals = signal.SIGTERM

    def backoff_s(self, now: float) -> float:
        """Longer with every death within the last minute."""
        self.restarts = [at for at in self.restarts if now - at < _LOOP_WINDOW_S] + [now]
        first, longest = _BACKOFF_S
        return min(longest, first * 2.0 ** (len(self.restarts) - 2)) if self.restarts[1:] else 0.0


@contextmanager
def data_lock(data: Path) -> Iterator[None]:
    """Own a data directory: one `up` per directory.

    Raises:
        Misconfigured: another `up` runs on it; the message names its process.
    """
    data.mkdir(parents=True, exist_ok=True)
    with (data / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Misconfigured(
                f"{data} is in use by another notecast up (process {lock.read().strip()}); "
                "stop that one, or give this one its own --data directory"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


class Supervisor:
    """Starts, watches and stops the processes of one installation.

    Args:
        settings: what the children run with; embedded servers' addresses are filled in.
        embedded: servers to start first, in order.
        roles: arguments of the `notecast` command line, one list for each child.
        tell: shows progress to a person.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        embedded: Sequence[servers.Server],
        roles: Sequence[Sequence[str]],
        tell: Tell,
    ) -> None:
        self._settings = settings
        self._embedded = embedded
        self._roles = roles
        self._tell = tell
        self._children: list[_Child] = []
        self._stop_asked = 0
        self._services = Services(settings)

    def run(self, ready: Callable[[], bool], on_ready: Callable[[], None]) -> None:
        """Start everything, call `on_ready` once `ready` says so, and watch until told to stop.

        Returns after SIGTERM or SIGINT, or when `stop` is called; a second signal kills at once.
        """
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        try:
            self._start_servers()
            migrate.upgrade(self._services.database)
            self._free_stale()
            for role in self._roles:
                self._add_role(role)
            self._watch(ready, on_ready)
        finally:
            self._stop_all()
            self._services.close()

    def stop(self) -> None:
        """Ask `run` to return; from any thread or signal handler."""
        self._stop_asked += 1

    def _on_signal(self, _signum: int, _frame: object) -> None:
        self.stop()

    def _start_servers(self) -> None:
        """All at once: SeaweedFS takes seconds, and nobody needs it before the first recording."""
        for server in self._embedded:
            child = _Child(
                name=server.name,
                start=lambda server=server: servers.start(server),  # type: ignore[misc]
                stop_s=server.stop_s,
                stop_signal=server.stop_signal,
            )
            child.process = child.start()
            self._children.append(child)
        for server, child in zip(self._embedded, list(self._children), strict=True):
            assert child.process is not None
            servers.wait_ready(server, child.process)

    def _free_stale(self) -> None:
        """After a crash of everything: no incarnation of this host is alive, we hold the lock."""
        stale = leases.workers_of(self._services.database, host=self._settings.host_name)
        if stale:
            freed = self._release(stale)
            if freed:
                self._tell(f"{freed} episodes of the last run go on")

    def _add_role(self, role: Sequence[str]) -> None:
        name = "-".join(role)
        child = _Child(
            name=name,
            start=lambda: start_role(role, self._settings),
            stop_s=self._settings.drain_s + 5,
        )
        child.process = child.start()
        self._children.append(child)

    def _watch(self, ready: Callable[[], bool], on_ready: Callable[[], None]) -> None:
        is_ready = False
        while not self._stop_asked:
            if not is_ready and ready():
                is_ready = True
                on_ready()
            now = time.monotonic()
            for child in self._children:
                if child.process is None:
                    if now >= child.start_at:
                        self._restart(child, now)
                elif child.process.poll() is not None:
                    self._bury(child, now)
            time.sleep(_TICK_S)

    def _restart(self, child: _Child, now: float) -> None:
        """Start it again; what hinders that may pass, and the others go on meanwhile."""
        try:
            child.process = child.start()
        except (PipelineError, OSError) as error:
            child.start_at = now + max(_BACKOFF_S[0], child.backoff_s(now))
            self._tell(f"{child.name} cannot be started, trying again: {error}")

    def _bury(self, child: _Child, now: float) -> None:
        assert child.process is not None
        status, pid = child.process.returncode, child.process.pid
        child.process = None
        wait_s = child.backoff_s(now)
        child.start_at = now + wait_s
        if child.name.startswith("worker"):
            self._free(pid)
        what = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
        again = f"again in {wait_s:g} s" if wait_s else "starting again"
        self._tell(f"{child.name} {what}; {again}")
        if len(child.restarts) == _LOOP_RESTARTS:
            self._tell(
                f"crash loop: {child.name} died {_LOOP_RESTARTS} times in a minute; "
                f"see {log_path(self._settings, child.name)}"
            )

    def _release(self, worker_ids: Sequence[str]) -> int:
        database = self._services.database
        effects.release_owners(database, worker_ids)
        freed = leases.release_owners(
            database, worker_ids, actor="up", on_dead=partial(buried, self._services)
        )
        tell_dead(self._services, freed)
        return len(freed)

    def _free(self, pid: int) -> None:
        """Give back what a dead worker held, without waiting for its leases to run out."""
        try:
            host = self._settings.host_name
            dead = leases.workers_of(self._services.database, host=host, pid=pid)
            if dead:
                self._release(dead)
        except DatabaseUnavailable as error:
            log.warning("leases of process %s run out by themselves: %s", pid, error)

    def _stop_all(self) -> None:
        """Workers and doors first and together, servers last in reverse order."""
        count = len(self._embedded)
        own, embedded = self._children[count:], self._children[:count]
        _terminate(own, lambda: self._stop_asked > 1)
        for child in reversed(embedded):
            _terminate([child], lambda: False)


def start_role(role: Sequence[str], settings: Settings) -> subprocess.Popen[bytes]:
    """Start `notecast ROLE` as a child that dies with this process; its output goes to a log."""
    with open_log(log_path(settings, "-".join(role))) as out:
        return subprocess.Popen(  # noqa: S603  # our own command line
            [sys.executable, "-m", "pipeline.cli", *role, "--parent", str(os.getpid())],
            env={**os.environ, **settings.environment()},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C is for the parent, which stops them in order
        )


def log_path(settings: Settings, name: str) -> Path:
    """Where a child's log lines go."""
    return settings.data / "logs" / f"{name}.log"


def open_log(path: Path) -> IO[bytes]:
    """Open a log for appending; one that has grown large is put aside as `.1` first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def _terminate(children: Sequence[_Child], impatient: Callable[[], bool]) -> None:
    alive = [child for child in children if child.process and child.process.poll() is None]
    for child in alive:
        assert child.process is not None
        child.process.send_signal(child.stop_signal)
    deadline = time.monotonic() + max((child.stop_s for child in alive), default=0.0)
    while alive and time.monotonic() < deadline and not impatient():
        alive = [child for child in alive if child.process and child.process.poll() is None]
        time.sleep(0.02)
    for child in alive:
        assert child.process is not None
        child.process.kill()
        child.process.wait()
