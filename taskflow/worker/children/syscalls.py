"""System calls for child processes: they start a child, make it end with its worker, handle signals, and measure memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

_PR_SET_PDEATHSIG: Final = 1  # <sys/prctl.h>
_OUT_OF_MEMORY: Final = Path("/proc/self/oom_score_adj")
# Signals within this many seconds count as one, because some parents (`timeout`, `npm`) signal both the process and its group.
SAME_SIGNAL: Final = 0.05
HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the signals that a worker and its children handle
CONNECTION: Final = 3  # the file descriptor, in the child, of the socket to the worker
_DEFAULTS: Final = (signal.SIGPIPE, signal.SIGXFSZ)  # signals that Python ignores, but whose default actions other programs expect
# Minimum seconds between two checks of the out-of-memory counter. A kill before the second-to-last check explains no later death.
KILL_COUNT_TTL: Final = 5.0


@cache
def _library() -> Any:
    import ctypes  # imported here because a worker without children does not need it

    return ctypes.CDLL(None)


def end_with_parent() -> None:
    """Make Linux kill this process when the thread that started it ends. On other systems, a child notices that its connection closes."""
    if sys.platform == "linux":
        _library().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def die_before_parent() -> None:
    """Make Linux kill this process before its parent if memory runs out, so that the parent can report the death."""
    with contextlib.suppress(OSError, ValueError):  # not Linux, or no /proc
        _OUT_OF_MEMORY.write_text(str(min(1_000, int(_OUT_OF_MEMORY.read_text()) + 100)))


def keep_handlers_from_forks(is_ours: Callable[[object], bool]) -> None:
    """In forked processes, restore the default handlers of `HANDLED` signals if `is_ours(handler)`: our handlers need the event loop."""
    os.register_at_fork(after_in_child=partial(_restore_handlers, is_ours))


def _restore_handlers(is_ours: Callable[[object], bool]) -> None:
    ours = [number for number in HANDLED if is_ours(signal.getsignal(number))]
    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    if ours:
        signal.set_wakeup_fd(-1)


def end_now() -> NoReturn:
    """End this process at once. If it leads a process group, kill the whole group."""
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


# This does not use `subprocess`, which forks, then reads a pipe until the new program is loaded. If a job in a thread forks meanwhile, its
# process inherits the other end of the pipe, and the worker's event loop would wait for that process.
def spawn_in_session(command: list[str], environment: Mapping[str, str], **options: Any) -> int:
    """Start a program in a new POSIX session, and return its pid. `options` are those of `os.posix_spawn`."""
    try:
        return os.posix_spawn(command[0], command, environment, setsid=True, **options)
    except NotImplementedError:  # some systems do not support setsid
        return os.posix_spawn(command[0], command, environment, setpgroup=0, **options)


class Process:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._has_ended = False

    def wait(self) -> int:
        """Wait for the process to end. Return its exit code, the negated number of the signal that killed it, or 0 if a job reaped it."""
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
            # Copy to higher numbers first, because a worker without stdout, for example, may already use one of the child's numbers.
            moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, CONNECTION + 1)
            stack.callback(os.close, moved)
            actions.append((os.POSIX_SPAWN_DUP2, moved, place))
        return Process(spawn_in_session(command, os.environ, file_actions=actions, setsigdef=_DEFAULTS))


class ExitStatus(NamedTuple):
    """How a process ended. `status` is an exit code or a negated signal number, as returned by `os.waitstatus_to_exitcode`."""

    status: int
    is_out_of_memory: bool = False

    @property
    def code(self) -> int:
        """The exit code that a shell reports: 128+n for signal n."""
        return self.status if self.status >= 0 else 128 - self.status

    @property
    def cause(self) -> str:
        """The cause in words, as in the records of lost jobs: "SIGSEGV", "exit code 7", "out of memory (SIGKILL)"."""
        if self.status >= 0:
            return f"exit code {self.status}"
        try:
            name = signal.Signals(-self.status).name
        except ValueError:  # real-time signals have no name
            name = f"signal {-self.status}"
        return f"out of memory ({name})" if self.is_out_of_memory else name


class OutOfMemory:
    """Counts the kernel's out-of-memory kills in the cgroup (version 1 or 2) of this process and its child processes."""

    def __init__(self, cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> None:
        self._file = next((file for file in _counters(cgroups, proc / "self" / "cgroup") if _count(file) is not None), None)
        self._checked_at = float("-inf")
        self.mark()

    def mark(self) -> None:
        """Ignore all kills so far."""
        self._older = self._newer = self._read()

    def check(self, now: float) -> None:
        """Check the counter, at most every `KILL_COUNT_TTL` seconds. Call this regularly, so that old kills are no longer considered."""
        if now - self._checked_at >= KILL_COUNT_TTL:
            self._checked_at = now
            self._older, self._newer = self._newer, self._read()

    def exit_status(self, status: int) -> ExitStatus:
        """Return how a process with this status ended. Each out-of-memory kill explains the end of one process."""
        if status != -signal.SIGKILL or self._read() <= self._older:
            return ExitStatus(status)
        self._older += 1
        self._newer = max(self._newer, self._older)
        return ExitStatus(status, is_out_of_memory=True)

    def _read(self) -> int:
        return (_count(self._file) if self._file is not None else None) or 0


def _counters(cgroups: Path, memberships: Path) -> Iterator[Path]:
    """Yield the files that may contain the counter. In a container, a reported path may be the host's, so the root is tried too."""
    parts = [line.split(":", 2) for line in _text(memberships).splitlines() if line.count(":") >= 2]
    folders = {name: folder for _, names, folder in parts for name in names.split(",")}  # "memory" for version 1, "" for version 2
    if "" in folders:
        for mount in (".", "unified"):
            for folder in (folders[""].strip("/"), "."):
                yield cgroups / mount / folder / "memory.events"
    if "memory" in folders:
        for folder in (folders["memory"].strip("/"), "."):
            yield cgroups / "memory" / folder / "memory.oom_control"


def _count(file: Path) -> int | None:
    """Return the number of kills in the file, or None if the file is missing or has no such number."""
    counts = {name: number for name, _, number in (line.partition(" ") for line in _text(file).splitlines())}
    try:
        return int(counts["oom_kill"])
    except (KeyError, ValueError):
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
