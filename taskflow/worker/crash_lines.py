"""Keeps the crash of a child process in one record of the log."""

from __future__ import annotations

from typing import Final

from taskflow.model.envelope import ClaimId, Lease
from taskflow.worker.events import ChildPrinted

BEGINNING: Final = "Fatal Python error: "
"""The beginning of what Python's fault handler prints when a process crashes."""

MOST_HELD: Final = 500


class CrashLines:
    """Holds back what a child process prints while it crashes, until its run has ended. The error that ends the run contains it, too."""

    def __init__(self) -> None:
        self.held: dict[ClaimId, list[ChildPrinted]] = {}

    def holds(self, event: ChildPrinted, lease: Lease) -> bool:
        """Return True if the line is held back: it, or an earlier one of the same run, begins a crash."""
        lines = self.held.get(lease.claim)
        if lines is None:
            if event.stream != "stderr" or not event.line.startswith(BEGINNING):
                return False
            lines = self.held[lease.claim] = []
        if event.stream != "stderr" or len(lines) >= MOST_HELD:
            return False
        lines.append(event)
        return True

    def release(self, lease: Lease) -> list[ChildPrinted]:
        """Return the lines that were held back for a run that has ended."""
        return self.held.pop(lease.claim, [])
