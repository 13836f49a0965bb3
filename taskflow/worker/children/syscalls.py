"""System calls for child processes: they start a child, make it end with its worker, handle signals, and measure memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, NoReturn

# <sys/prctl.h>
_PR_SET_PDEATHSIG: Final = 1


@cache
def _library() -> Any:
    import ctypes  # imported here because a worker without children does not need it

    return ctypes.CDLL(None)


def end_with_parent() -> None:
    """Make Linux kill this process when the thread that started it ends, even while C code holds the interpreter lock. That thread runs the
    worker's event loop, which outlives its children. On other systems, the child notices that the connection is closed."""
    if sys.platform == "linux":
        _library().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


_OUT_OF_MEMORY: Final = Path("/proc/self/oom_score_adj")


def die_before_parent() -> None:
    """If memory runs out, make Linux kill this process and its descendants before the parent, which then reports the death.

    An adjustment of 100 counts as a tenth of the total memory: https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html
    """
    with contextlib.suppress(OSError, ValueError):  # another system, or no /proc
        _OUT_OF_MEMORY.write_text(str(min(1_000, int(_OUT_OF_MEMORY.read_text()) + 100)))


# Signals within this many seconds count as one, because some parents (`timeout`, `npm`) signal both the process and its group.
SAME_SIGNAL: Final = 0.05

HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the signals that a worker and its children handle


def keep_handlers_from_forks(is_ours: Callable[[object], bool]) -> None:
    """Restore the default actions of the `HANDLED` signals in processes that jobs fork. With our handlers, these signals would never end
    such a process, because the event loop that the handlers notify does not exist there."""
    os.register_at_fork(after_in_child=partial(_restore_handlers, is_ours))


def _restore_handlers(is_ours: Callable[[object], bool]) -> None:
    ours = [number for number in HANDLED if is_ours(signal.getsignal(number))]
    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    if ours:
        signal.set_wakeup_fd(-1)


def end_now() -> NoReturn:
    """End this process and everything it started that is still in its process group."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def flush_native() -> None:
    """Flush the output of C code, which the C library buffers if stdout is not a terminal."""
    _library().fflush(None)


def resident_memory(pid: int | None = None) -> int:
    """Return the resident memory of a process (default: this one) in bytes, or 0 if it has ended or the system does not report it."""
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


# Not by `subprocess`, which forks, then reads a pipe until the new program is loaded. If a job in a thread forks at that moment, the forked
# process inherits the other end of the pipe, and the worker's event loop would wait for that process.
def spawn_in_session(command: list[str], environment: Mapping[str, str], **options: Any) -> int:
    """Start a program in a new POSIX session, and return its pid. `options` are those of `os.posix_spawn`."""
    try:
        return os.posix_spawn(command[0], command, environment, setsid=True, **options)
    except NotImplementedError:  # some systems do not support setsid
        return os.posix_spawn(command[0], command, environment, setpgroup=0, **options)


CONNECTION: Final = 3  # the file descriptor, in the child, of the socket to the worker
_DEFAULTS: Final = (signal.SIGPIPE, signal.SIGXFSZ)  # signals that Python ignores, but whose default actions other programs expect


class Process:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._has_ended = False

    def wait(self) -> int:
        """Return the exit code, the negated number of the signal that killed it, or 0 if a job has already reaped it."""
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
    """Start a program in a new POSIX session with copies of these descriptors. Raises OSError if it cannot be started."""
    with contextlib.ExitStack() as stack:
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        for descriptor, place in ((stdout, 1), (stderr, 2), (connection, CONNECTION)):
            # Copied above the child's numbers first: a worker without stdout, for example, may itself be using one of these.
            moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, CONNECTION + 1)
            stack.callback(os.close, moved)
            actions.append((os.POSIX_SPAWN_DUP2, moved, place))
        return Process(spawn_in_session(command, os.environ, file_actions=actions, setsigdef=_DEFAULTS))
