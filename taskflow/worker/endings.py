"""Finds out why a process ended: an exit code, a signal or a lack of memory. Used for workers and their child processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

FORGOTTEN_AFTER: Final = 5.0
"""Seconds between two checks of the counters. An increase before the last check but one does not count as a cause."""


class Want(Enum):
    """Whether the kernel killed a process for lack of memory. The kernel counts its kills, but does not say which processes."""

    NO = "{}"
    PERHAPS = "{}, perhaps for lack of memory: the kernel has killed processes for it on this machine"
    YES = "out of memory ({})"


class Ending(NamedTuple):
    """`status` is that of `os.waitstatus_to_exitcode`: an exit code, or a negative signal number."""

    status: int
    want: Want = Want.NO

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
        return self.want.value.format(name)


class OutOfMemory:
    """Counts the kernel's out-of-memory kills in the cgroups of this process, which its child processes share.

    The counter is `memory.events` in version 2 and `memory.oom_control` in version 1. Before Linux 4.13, `memory.failcnt` is used instead,
    which counts how often the limit was hit. Without cgroups, the count for the whole machine allows a guess. Without that, no kill is
    detected.
    """

    def __init__(self, cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> None:
        found = next((file for file in _counters(cgroups, proc / "self" / "cgroup") if _count(file) is not None), None)
        self._file = found or proc / "vmstat"
        self._found = Want.YES if found is not None else Want.PERHAPS
        self._looked_at = float("-inf")
        self.mark()

    def mark(self) -> None:
        """Ignore all kills until now."""
        self._older = self._newer = self._read()

    def look(self, now: float) -> None:
        """Check the counters. Call this regularly: an increase older than two checks does not count as a cause."""
        if now - self._looked_at >= FORGOTTEN_AFTER:
            self._looked_at = now
            self._older, self._newer = self._newer, self._read()

    def ending(self, status: int) -> Ending:
        """Return how a process with this wait status ended. One out-of-memory kill explains one process."""
        if status != -signal.SIGKILL or self._read() <= self._older:
            return Ending(status)
        self._older += 1
        self._newer = max(self._newer, self._older)
        return Ending(status, self._found)

    def _read(self) -> int:
        return _count(self._file) or 0


def _counters(cgroups: Path, memberships: Path) -> Iterator[Path]:
    """Yield the files that may contain the counter. In a container, the cgroup path may be the host's path of what is the root here."""
    folders = _folders(memberships)
    if "" in folders:
        for mount in (".", "unified"):
            for folder in (folders[""].strip("/"), "."):
                yield cgroups / mount / folder / "memory.events"
    if "memory" in folders:
        for folder in (folders["memory"].strip("/"), "."):
            yield cgroups / "memory" / folder / "memory.oom_control"


def _folders(memberships: Path) -> dict[str, str]:
    """Map each hierarchy, "memory" or "" for version 2, to the folder of this process."""
    parts = [line.split(":", 2) for line in _text(memberships).splitlines() if line.count(":") >= 2]
    return {name: folder for _, names, folder in parts for name in names.split(",") if name in ("memory", "")}


def _count(file: Path) -> int | None:
    """Return the count, or None if the file is missing or has none."""
    counts = {name: number for name, _, number in (line.partition(" ") for line in _text(file).splitlines())}
    try:
        if "oom_kill" not in counts and file.name == "memory.oom_control":
            return int(_text(file.parent / "memory.failcnt"))
        return int(counts["oom_kill"])
    except (KeyError, ValueError):
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
