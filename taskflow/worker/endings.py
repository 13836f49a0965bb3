"""What a worker process has ended by, and whether the system was out of memory then."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FORGOTTEN_AFTER: Final = 5.0
"""Seconds between two looks at the counters: what has grown before the last look but one is no cause any more."""


@dataclass(frozen=True)
class Ending:
    """`status` as `os.waitstatus_to_exitcode` has it: an exit code, or a signal's number, negative."""

    status: int
    was_out_of_memory: bool = False

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
        return f"out of memory ({name})" if self.was_out_of_memory else name


class OutOfMemory:
    """How often the kernel has killed for want of memory in this process's cgroups, where its workers are too.

    Version 2 counts in `memory.events`; version 1 in `memory.oom_control`, or, before Linux 4.13, not at all: then `memory.failcnt`, how
    often the limit was hit, has to do. Where there is none of these nothing is ever found to have grown.
    """

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), memberships: Path = Path("/proc/self/cgroup")) -> None:
        self._files = list(_counters(root, _folders(memberships)))
        self._older = self._newer = self._read()
        self._looked_at = float("-inf")

    def look(self, now: float) -> None:
        """Call this now and then: what has grown long ago is nobody's cause of death."""
        if now - self._looked_at >= FORGOTTEN_AFTER:
            self._looked_at = now
            self._older, self._newer = self._newer, self._read()

    def killed(self, status: int) -> bool:
        """Whether a process that ended so was killed for want of memory. Of each growth this is true once."""
        if status != -signal.SIGKILL or self._read() <= self._older:
            return False
        self._older += 1
        self._newer = max(self._newer, self._older)
        return True

    def _read(self) -> int:
        return sum(map(_count, self._files))


def _folders(memberships: Path) -> dict[str, str]:
    """Of each hierarchy, "memory" or "" for version 2, the folder that this process is in."""
    try:
        lines = memberships.read_text().splitlines()
    except OSError:
        return {}
    parts = [line.split(":", 2) for line in lines]
    return {name: folder for _, names, folder in parts for name in names.split(",") if name in ("memory", "")}


def _counters(root: Path, folders: dict[str, str]) -> list[Path]:
    """In a container the folder may be another's view of what is the root here."""
    candidates: list[Path] = []
    if "" in folders:
        candidates += [root / mount / folder / "memory.events" for mount in (".", "unified") for folder in (folders[""].strip("/"), ".")]
    if "memory" in folders:
        candidates += [root / "memory" / folder / "memory.oom_control" for folder in (folders["memory"].strip("/"), ".")]
    return [file for file in candidates if file.is_file()][:1]


def _count(file: Path) -> int:
    try:
        counts = dict(line.split() for line in file.read_text().splitlines())
        if "oom_kill" in counts:
            return int(counts["oom_kill"])
        return int((file.parent / "memory.failcnt").read_text())
    except (OSError, ValueError):
        return 0
