"""The first steps of a child process: end with its parent, own its directory, become its program.

`die_with_parent` is for our own Python children, called first thing in their `main`. A foreign
program (Valkey, PostgreSQL, SeaweedFS) cannot call it, so it is started through this file as a
script, which takes these steps and then `exec`s. A `preexec_fn` would save the 10 ms of an
interpreter's start, but it runs Python between fork and exec, where a lock that another thread of
the supervisor held hangs the child for ever. The file imports little, and nothing of the project,
to start fast under `python -I -S`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pwd
import signal
import sys
import time

LOCK_WAIT_S = 20.0
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, signum: int = signal.SIGTERM) -> None:
    """From now on this process gets `signum` when its parent ends, however the parent ends.

    On Linux the kernel sends it when the *thread* that started this process ends, so a supervisor
    starts its children from a thread that lives as long as itself. Elsewhere a forked watcher sends
    it within half a second; call this before the process has threads.

    Args:
        parent: process id of the parent, as the parent knows it; it may be gone already.
        signum: what this process takes as the order to leave.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
        if os.getppid() != parent:  # it ended before we asked
            os.kill(os.getpid(), signum)
    else:
        _watch(parent, signum)


def _watch(parent: int, signum: int) -> None:
    """Fork a process that sends us `signum` once `parent` is gone."""
    child = os.getpid()
    if os.fork():
        return
    while os.getppid() == child:
        if not _is_alive(parent):
            os.kill(child, signum)
            break
        time.sleep(0.5)
    os._exit(0)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def own(lock: str) -> None:
    """Take the directory's lock and keep it over `exec`, until the last heir of it ends.

    So a server started again waits for its predecessor to be gone, and two supervisors never run
    two servers on the same files.

    Raises:
        SystemExit: another process kept the lock for `LOCK_WAIT_S`.
    """
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                sys.exit(f"{os.path.dirname(lock)} is in use by another process")
            time.sleep(0.02)
    os.set_inheritable(handle, True)


def become(user: str) -> None:
    """Drop from root to `user` for good."""
    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def main(spec: str) -> None:
    """Take the steps that `spec` (JSON, written by `servers.start`) lists, then run its `argv`."""
    steps = json.loads(spec)
    own(steps["lock"])
    for path in steps["stale"]:  # left by a predecessor that, as the lock proves, is gone
        if os.path.lexists(path):
            os.unlink(path)
    if steps["user"]:
        become(steps["user"])
    die_with_parent(steps["parent"], steps["signal"])  # after setuid, which would clear it
    os.execv(steps["argv"][0], steps["argv"])  # noqa: S606  # no shell is the point


if __name__ == "__main__":
    main(sys.argv[1])
