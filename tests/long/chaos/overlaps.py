"""Runs that overlapped, although only one of them can have held the lease."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.long.chaos.history import History, Run

SLACK: Final = 0.05
"""Seconds between the end of a run and its line in the ledger."""

OUTLIVES: Final = 8.0
"""Seconds within which a stopped worker learns that its session has ended: it may try one more heartbeat, which takes a few."""

PROMPT: Final = 2.0
"""Seconds, after the ttl, within which a worker that is cut off has stopped its runs: it waits for no answer, but the machine is busy."""


@dataclass
class Zombies:
    """The excused overlaps, for the report: how many, and the longest in seconds."""

    number: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)

    def add(self, cause: str, seconds: float) -> None:
        self.number[cause] += 1
        self.longest[cause] = max(seconds, self.longest.get(cause, 0.0))


def overlaps(history: History, ttl: float, zombies: Zombies | None = None) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """Yield pairs of runs of one job, or of jobs with one key, that overlap, unless the lease of the first can have lapsed before the
    second began, and its worker could not know that in time."""
    for name, runs in _groups(history).items():
        for number, first in enumerate(runs):
            for second in runs[number + 1 :]:
                if second.begin >= first.end - SLACK:
                    continue
                if why := _fault(history, first, second, ttl, zombies or Zombies()):
                    ids = tuple(dict.fromkeys((first.id, second.id)))
                    yield f"{name}: {first} and {second} overlap: {why}", ids, (first.pid, second.pid, 0)


def _groups(history: History) -> dict[str, Sequence[Run]]:
    groups: dict[str, list[Run]] = {}
    for id, runs in history.runs.items():
        sent = history.sent.get(id)
        groups.setdefault(f"key {sent.key}" if sent and sent.key else f"job {id}", []).extend(runs)
    return {name: sorted(runs, key=lambda run: run.begin) for name, runs in groups.items()}


def _fault(history: History, first: Run, second: Run, ttl: float, zombies: Zombies) -> str:
    """Return why the overlap is not excused, or an empty text. Of a job's two runs, the one with the lower epoch is the zombie."""
    zombie, holder = (second, first) if first.id == second.id and second.epoch < first.epoch else (first, second)
    block = history.impaired_at(zombie.pid, max(holder.begin, zombie.begin), ttl)
    if block is None:
        return f"{zombie} was well, so its lease cannot have lapsed"
    knew_at = max(holder.begin, block.end if block.is_stopped else block.begin + ttl)
    if zombie.end > knew_at + (OUTLIVES if block.is_stopped else PROMPT):
        return f"{zombie} went on for {zombie.end - knew_at:.1f} s after it could know better"
    zombies.add("stopped" if block.is_stopped else "cut off", min(zombie.end, holder.end) - max(zombie.begin, holder.begin))
    return ""
