"""The cause of a process's end: an exit code, a signal or a lack of memory. For workers and their child processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

FORGOTTEN_AFTER: Final = 5.0
"""Seconds between two looks at the counters: what has grown before the last look but one is no cause any more."""


class Want(Enum):
    """Whether a process was killed for want of memory, as far as can be known: the kernel counts its kills, and says no names."""

    NO = "{}"
    PERHAPS = "{}, perhaps for want of memory: the kernel has killed for it on this machine"
    YES = "out of memory ({})"


class Ending(NamedTuple):
    """`status` as `os.waitstatus_to_exitcode` has it: an exit code, or a signal's number, negative."""

    status: int
    want: Want = Want.NO

    @property
    def code(self) -> int:
        """As a shell has it: 128+n by signal n."""
        return self.status if self.status >= 0 else 128 - self.status

    @property
    def cause(self) -> str:
        """For people, and for the record of the jobs that were lost with it: "SIGSEGV", "exit code 7", "out of memory (SIGKILL)"."""
        if self.status >= 0:
            return f"exit code {self.status}"
        try:
            name = signal.Signals(-self.status).name
        except ValueError:  # one of the real-time signals
            name = f"signal {-self.status}"
        return self.want.value.format(name)


class OutOfMemory:
    """How often the kernel has killed for want of memory in this process's cgroups, where the processes that it starts are too.

    Version 2 counts in `memory.events`; version 1 in `memory.oom_control`, or, before Linux 4.13, not at all: then `memory.failcnt`, how
    often the limit was hit, has to do. Where there is none of these the kernel's count of all the machine allows a guess, and where there
    is not even that nothing is ever found to have grown.
    """

    def __init__(self, cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> None:
        found = next((file for file in _counters(cgroups, proc / "self" / "cgroup") if _count(file) is not None), None)
        self._file = found or proc / "vmstat"
        self._found = Want.YES if found is not None else Want.PERHAPS
        self._looked_at = float("-inf")
        self.mark()

    def mark(self) -> None:
        """What has grown until now is nobody's cause of death."""
        self._older = self._newer = self._read()

    def look(self, now: float) -> None:
        """Call this now and then: nor is what has grown long ago."""
        if now - self._looked_at >= FORGOTTEN_AFTER:
            self._looked_at = now
            self._older, self._newer = self._newer, self._read()

    def ending(self, status: int) -> Ending:
        """That of a process which has ended so. Each growth is the cause of one."""
        if status != -signal.SIGKILL or self._read() <= self._older:
            return Ending(status)
        self._older += 1
        self._newer = max(self._newer, self._older)
        return Ending(status, self._found)

    def _read(self) -> int:
        return _count(self._file) or 0


def _counters(cgroups: Path, memberships: Path) -> Iterator[Path]:
    """Where they may lie. In a container the folder that a process is told to be in may be another's view of what is the root here."""
    folders = _folders(memberships)
    if "" in folders:
        for mount in (".", "unified"):
            for folder in (folders[""].strip("/"), "."):
                yield cgroups / mount / folder / "memory.events"
    if "memory" in folders:
        for folder in (folders["memory"].strip("/"), "."):
            yield cgroups / "memory" / folder / "memory.oom_control"


def _folders(memberships: Path) -> dict[str, str]:
    """Of each hierarchy, "memory" or "" for version 2, the folder that this process is in."""
    parts = [line.split(":", 2) for line in _text(memberships).splitlines() if line.count(":") >= 2]
    return {name: folder for _, names, folder in parts for name in names.split(",") if name in ("memory", "")}


def _count(file: Path) -> int | None:
    """None where the file is not there, or tells nothing of it."""
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
