"""Why a process has died, as far as its parent can know: a signal, an exit code, the end of memory."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from taskflow.model.errors import TaskflowError


class ChildFailed(TaskflowError):
    """A child process could not do its part for a run: it did not get ready, or does not find the job.

    It is no error of the job's own, so that `retry_on`, which names those, is not asked: the run is a failed attempt that is retried, with
    the job's back-off, up to its last. It is no *crash* either, as the loss of a lease is: the worker lives, knows the cause, and reports
    it; a job that kills every child that it is given must come to its last attempt, and have the causes in its history.
    """

    __module__ = "taskflow"  # a job's errors have their type by name


class ChildDied(ChildFailed):
    """It has died in the middle of a run: of a segfault, of `os._exit()`, for want of memory."""

    __module__ = "taskflow"


_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")


class OutOfMemory:
    """How often the kernel has killed for want of memory, in this cgroup and in all of the machine, since `mark`.

    It says no names: a process that was killed while the count rose was killed by it, as far as anybody can tell.
    """

    def __init__(self, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> None:
        self._proc = proc
        self._cgroups = cgroups
        self._of_group = next((file for file in self._files() if _count(file) is not None), None)
        self.mark()

    def mark(self) -> None:
        self._marked = self._counts()

    def since(self) -> str | None:
        """What has happened; None when nothing has, or the system does not tell."""
        here, anywhere = (now > before for now, before in zip(self._counts(), self._marked, strict=True))
        if here:
            return "out of memory: its cgroup's limit"
        return "perhaps out of memory: the kernel has killed for it on this machine" if anywhere else None

    def _counts(self) -> tuple[int, int]:
        of_group = _count(self._of_group) if self._of_group is not None else None
        return of_group or 0, _count(self._proc / "vmstat") or 0

    def _files(self) -> Iterator[Path]:
        """Of version 2, then 1. Inside a container the path may be the host's, and the root is the container's own group."""
        for line in _lines(self._proc / "self" / "cgroup"):
            number, controllers, path = [*line.split(":", 2), "", ""][:3]
            if number == "0" and not controllers:
                yield self._cgroups / path.lstrip("/") / "memory.events"
                yield self._cgroups / "unified" / path.lstrip("/") / "memory.events"
                yield self._cgroups / "memory.events"
            elif "memory" in controllers.split(","):
                yield self._cgroups / "memory" / path.lstrip("/") / "memory.oom_control"
                yield self._cgroups / "memory" / "memory.oom_control"


def cause_of(code: int, out_of_memory: str | None = None) -> str:
    """In words, from the code as `subprocess` gives it: below 0 it is a signal's number."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = _signal_name(-code)
    if -code == signal.SIGKILL:
        return f"was killed by {name} ({out_of_memory or 'and not by the worker'})"
    return f"was killed by {name} ({signal.strsignal(-code) or 'no known signal'})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _count(file: Path) -> int | None:
    """The line ``oom_kill 3`` of a file."""
    for line in _lines(file):
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.isdecimal():
            return int(value)
    return None


def _lines(file: Path) -> list[str]:
    if sys.platform != "linux":
        return []
    try:
        return file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
