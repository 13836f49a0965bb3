"""Collects the events of a transaction that a listener may be waiting for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from taskflow.broker import topics


@dataclass(slots=True)
class Announcement:
    """The events of a transaction that concern listeners.

    `ready`          the number of jobs that became ready, by queue
    `ended`          the ids of jobs that ended
    `woken`          the topics that steps announce, other than `topics.DUE`
    `is_due`         True if listeners that wait for the next upkeep may have to call it earlier
    `full_claims`    the number of claims that reached their limit, by their queues (empty for all queues): more jobs may be ready
    `is_upkeep`      True for upkeep, after which the file may shrink
    """

    ready: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    ended: set[bytes] = field(default_factory=set)
    woken: set[str] = field(default_factory=set)
    is_due: bool = False
    full_claims: defaultdict[tuple[str, ...], int] = field(default_factory=lambda: defaultdict(int))
    is_upkeep: bool = False

    def __bool__(self) -> bool:
        return bool(self.ready or self.ended or self.full_claims or self.woken or self.is_due)

    def add(self, other: Announcement) -> None:
        """Add the events of another announcement."""
        for queue, number in other.ready.items():
            self.ready[queue] += number
        for queues, number in other.full_claims.items():
            self.full_claims[queues] += number
        self.ended |= other.ended
        self.woken |= other.woken
        self.is_due |= other.is_due
        self.is_upkeep |= other.is_upkeep

    def topics(self) -> set[str]:
        found = {*map(topics.job, self.ended), *self.woken, *map(topics.queue, self.ready)}
        if self.ready:
            found.add(topics.ANY_QUEUE)
        if self.is_due:
            found.add(topics.DUE)
        return found
