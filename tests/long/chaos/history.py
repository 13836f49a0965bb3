"""A ledger's contents, sorted: how each job was sent, its runs, and when each process could not send heartbeats."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from tests.long.chaos.ledger import Line

Fate = Literal["added", "kept", "refused", "rolled back", "unknown"]
"""What the job's sender knows. "kept" means that a live job had the key, so that this one was not added."""

BEATS: Final = 1 / 3
"""The maximum share of a ttl between two heartbeats of a healthy worker."""

NEAR: Final = 20.0
"""Seconds before and after a job within which faults of processes matter to it."""


@dataclass
class Run:
    """One run of a job. If its end is unknown, `end` is infinite, and `status` empty."""

    id: str
    epoch: int
    attempt: int
    pid: int
    begin: float
    at: float
    note: str = ""
    end: float = math.inf
    status: str = ""

    def __str__(self) -> str:
        return f"epoch {self.epoch} in process {self.pid}"


@dataclass(frozen=True)
class Window:
    """A time in which a process could not send heartbeats. `is_stopped` means that it did nothing at all."""

    begin: float
    end: float
    is_stopped: bool


@dataclass
class History:
    """An index of the lines of a ledger."""

    lines: Sequence[Line]
    of_job: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))
    sent: dict[str, Line] = field(default_factory=dict)
    fates: dict[str, Fate] = field(default_factory=dict)
    standing: dict[str, str] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    killed: dict[int, float] = field(default_factory=dict)
    _windows: dict[int, list[Window]] = field(default_factory=lambda: defaultdict(list))
    _since: dict[tuple[int, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.lines:
            if line.id:
                self.of_job[line.id].append(line)
                self._record_job(line)
            else:
                self._record_process(line)
        for (pid, event), begin in self._since.items():
            self._windows[pid].append(Window(begin, math.inf, event == "stopped"))
        for runs in self.runs.values():
            for run in runs:
                run.end = run.end if run.status else self.killed.get(run.pid, math.inf)

    def _record_job(self, line: Line) -> None:
        match line.event:
            case "send":
                self.sent.setdefault(line.id, line)
                self.fates.setdefault(line.id, "unknown")
            case "accepted":
                self.standing[line.id] = line.standing
                if self.sent[line.id].kind != "transactional" or line.standing:  # of a job in a transaction, only the commit decides
                    self.fates[line.id] = "kept" if line.standing else "added"
            case "committed":
                self.fates[line.id] = "kept" if line.status == "kept" else "added"
            case "unknown" if self.fates[line.id] == "kept":
                pass
            case "refused" | "rolled back" | "unknown":
                self.fates[line.id] = line.event
            case "begin":
                self.runs[line.id].append(Run(line.id, line.epoch, line.attempt, line.pid, line.mono, line.at, line.note))
            case "end":
                self._end_run(line)

    def _record_process(self, line: Line) -> None:
        windows = self._windows[line.pid]
        match line.event:
            case "killed":
                self.killed[line.pid] = line.mono
            case "stopped" | "cut off":
                self._since[line.pid, line.event] = line.mono
            case "continued":
                windows.append(Window(self._since.pop((line.pid, "stopped"), line.mono), line.mono, is_stopped=True))
            case "healed":
                windows.append(Window(self._since.pop((line.pid, "cut off"), line.mono), line.mono, is_stopped=False))
            case "starved":
                windows.append(Window(line.mono - line.after, line.mono, is_stopped=True))

    def _end_run(self, line: Line) -> None:
        for run in self.runs[line.id]:
            if (run.epoch, run.pid, run.status) == (line.epoch, line.pid, ""):
                run.end, run.status = line.mono, line.status
                return

    def windows(self, pid: int) -> list[Window]:
        """Return when this process could not reach the store, in the order of time. 0 means all processes."""
        return sorted([*self._windows[pid], *(self._windows[0] if pid else ())], key=lambda window: window.begin)

    def impaired_at(self, pid: int, instant: float, ttl: float) -> Window | None:
        """Return the time for which the process had been impaired before this instant, with windows in close succession joined, if one of
        its leases can have lapsed by then."""
        for block in _blocks(self.windows(pid), ttl * BEATS):
            if block.begin + ttl * (1 - BEATS) - 0.2 <= instant and instant <= block.end + ttl:
                return block
        return None

    def is_stopped_in(self, pid: int, begin: float, end: float) -> bool:
        """Return True if the process did nothing at all for a part of this time."""
        return any(window.is_stopped and window.begin <= end and begin <= window.end for window in self.windows(pid))

    def lines_of(self, ids: Iterable[str], pids: Iterable[int] = ()) -> list[Line]:
        """Return the lines about these jobs, and about the faults of these processes at that time, in order."""
        jobs, processes = set(ids), set(pids)
        times = [line.mono for id in jobs for line in self.of_job.get(id, ())]
        begin, end = min(times, default=0.0) - NEAR, max(times, default=0.0) + NEAR
        return [line for line in self.lines if line.id in jobs or (not line.id and line.pid in processes and begin <= line.mono <= end)]


def _blocks(windows: list[Window], gap: float) -> list[Window]:
    joined = list[Window]()
    for window in windows:
        if joined and window.begin <= joined[-1].end + gap:
            last = joined.pop()
            window = Window(last.begin, max(last.end, window.end), last.is_stopped or window.is_stopped)
        joined.append(window)
    return joined
