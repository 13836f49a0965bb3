"""Finds out why a process ended: by itself, by a signal, or for lack of memory. Used for workers and their child processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

# Minimum seconds between two checks of the counter. Kills counted before the second-to-last check are no longer considered as a cause.
FORGOTTEN_AFTER: Final = 5.0


class OomKill(Enum):
    """How likely it is that the kernel killed a process for lack of memory.
    The kernel counts its kills, but does not say which processes it killed."""

    NO = "{}"
    PERHAPS = "{}, perhaps for lack of memory: the kernel has killed processes for it on this machine"
    YES = "out of memory ({})"


class ExitStatus(NamedTuple):
    """How a process ended. `status` is an exit code or a negated signal number, as returned by `os.waitstatus_to_exitcode`."""

    status: int
    oom_kill: OomKill = OomKill.NO

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
        except ValueError:  # a real-time signal
            name = f"signal {-self.status}"
        return self.oom_kill.value.format(name)


class OutOfMemory:
    """Counts the kernel's out-of-memory kills in the cgroup of this process, which its child processes share.

    The counter is in `memory.events` for cgroups version 2 and in `memory.oom_control` for version 1. Without cgroups, the count for the
    whole machine only allows a guess. If that is missing too, no kill is detected.
    """

    def __init__(self, cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> None:
        found = next((file for file in _counters(cgroups, proc / "self" / "cgroup") if _count(file) is not None), None)
        self._file = found or proc / "vmstat"
        self._found = OomKill.YES if found is not None else OomKill.PERHAPS
        self._looked_at = float("-inf")
        self.mark()

    def mark(self) -> None:
        """Ignore all kills so far."""
        self._older = self._newer = self._read()

    def look(self, now: float) -> None:
        """Check the counter, at most every `FORGOTTEN_AFTER` seconds. Call this regularly, so that old kills are no longer considered."""
        if now - self._looked_at >= FORGOTTEN_AFTER:
            self._looked_at = now
            self._older, self._newer = self._newer, self._read()

    def exit_status(self, status: int) -> ExitStatus:
        """Return how a process with this status ended. Each out-of-memory kill explains the end of one process."""
        if status != -signal.SIGKILL or self._read() <= self._older:
            return ExitStatus(status)
        self._older += 1
        self._newer = max(self._newer, self._older)
        return ExitStatus(status, self._found)

    def _read(self) -> int:
        return _count(self._file) or 0


def _counters(cgroups: Path, memberships: Path) -> Iterator[Path]:
    """Yield the files that may contain the counter. In a container, the path reported
    for a cgroup may be its path on the host, although it is the root here."""
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
