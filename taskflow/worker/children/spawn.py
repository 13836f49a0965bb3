"""Starts a child process with one system call that cannot block.

`subprocess` forks, then reads a pipe until the new program is loaded. If a job in a thread forks at that moment,
the forked process inherits the other end of the pipe. The worker's event loop would then wait for that process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from typing import Final

from taskflow.worker.children.syscalls import spawn_in_session

CONNECTION: Final = 3
"""The file descriptor, in the child, of the socket to the worker."""

_DEFAULTS: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores, but whose default actions other programs expect."""


class Process:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._has_ended = False

    def wait(self) -> int:
        """Wait until the process ends. Return its exit code, the negated number
        of the signal that killed it, or 0 if a job has already reaped it."""
        try:
            status = os.waitpid(self.pid, 0)[1]
        except ChildProcessError:
            status = 0
        self._has_ended = True  # from now on, another process may have its pid
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        if not self._has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def spawn(command: list[str], *, connection: int, stdout: int, stderr: int) -> Process:
    """Start a program in a new POSIX session. It gets copies of these descriptors, and any other inheritable
    ones. The caller's descriptors stay open. Raises OSError if the program cannot be started."""
    with contextlib.ExitStack() as stack:
        moved = [_above_the_childs(descriptor, stack) for descriptor in (stdout, stderr, connection)]
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            *((os.POSIX_SPAWN_DUP2, descriptor, place) for descriptor, place in zip(moved, (1, 2, CONNECTION), strict=True)),
        ]
        pid = spawn_in_session(command, os.environ, file_actions=actions, setsigdef=_DEFAULTS)
    return Process(pid)


def _above_the_childs(descriptor: int, stack: contextlib.ExitStack) -> int:
    """Return a copy of the descriptor with a number above the three that the child uses.
    A worker without stdout, for example, may itself be using one of those numbers."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, CONNECTION + 1)
    stack.callback(os.close, moved)
    return moved
