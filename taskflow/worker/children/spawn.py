"""The start of a child's process, in one call of the system that waits for nobody.

`subprocess` forks, and then reads a pipe until the new program has been loaded: what a job forks in a thread at that moment has the pipe's
other end, and the worker's event loop would wait for it to end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from typing import Final

WIRE: Final = 3
"""The descriptor of the wire to the worker, in the child."""

_DEFAULTS: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores, and other programs do not."""


class Process:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._has_ended = False

    def wait(self) -> int:
        """Until it has ended. Its exit code, negative a signal's number; 0 when a job has waited for all processes that there are."""
        try:
            status = os.waitpid(self.pid, 0)[1]
        except ChildProcessError:
            status = 0
        self._has_ended = True  # its number may be another's from now on
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        if not self._has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def spawn(command: list[str], *, wire: int, stdout: int, stderr: int) -> Process:
    """In a session of its own, with these descriptors, which stay the caller's, and no other that is not meant to be inherited. OSError."""
    with contextlib.ExitStack() as stack:
        moved = [_above_the_childs(descriptor, stack) for descriptor in (stdout, stderr, wire)]
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            *((os.POSIX_SPAWN_DUP2, descriptor, place) for descriptor, place in zip(moved, (1, 2, WIRE), strict=True)),
        ]
        try:
            pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsid=True, setsigdef=_DEFAULTS)
        except NotImplementedError:  # some systems have no such flag
            pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setpgroup=0, setsigdef=_DEFAULTS)
    return Process(pid)


def _above_the_childs(descriptor: int, stack: contextlib.ExitStack) -> int:
    """A worker without a stdout, for example, may have been given its number, which is another's in the child."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, WIRE + 1)
    stack.callback(os.close, moved)
    return moved
