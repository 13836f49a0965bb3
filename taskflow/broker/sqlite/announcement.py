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
    `stopping`       the ids of sessions that have runs to stop
    `due_at`         the earliest due time of the newly scheduled jobs
    `has_ends`       True if the first ends without a settlement were noted: upkeep is due
    `full_claims`    the number of claims that reached their limit, by their queues (empty for all queues): more jobs may be ready
    `is_periodical`  True for a heartbeat or upkeep, after which nudges that were not answered are passed on
    `cleans`         True for upkeep, after which the files of listeners that are gone are removed
    """

    ready: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    ended: set[bytes] = field(default_factory=set)
    stopping: set[bytes] = field(default_factory=set)
    due_at: int | None = None
    has_ends: bool = False
    full_claims: defaultdict[tuple[str, ...], int] = field(default_factory=lambda: defaultdict(int))
    is_periodical: bool = False
    cleans: bool = False

    def __bool__(self) -> bool:
        return bool(self.ended or self.full_claims) or self.is_for_noted

    @property
    def is_for_noted(self) -> bool:
        """True if the transaction may concern any listener that has a note (see wake_folder.py), whatever its state."""
        return bool(self.ready or self.is_periodical or self.is_due or self.stopping)

    @property
    def is_due(self) -> bool:
        """True if listeners that wait for the next upkeep may have to call it earlier."""
        return self.due_at is not None or self.has_ends

    def add(self, other: Announcement) -> None:
        """Add the jobs that became ready, ended, stopping or scheduled according to another announcement."""
        for queue, number in other.ready.items():
            self.ready[queue] += number
        self.ended |= other.ended
        self.stopping |= other.stopping
        self.has_ends |= other.has_ends
        if other.due_at is not None:
            self.add_due(other.due_at)

    def add_due(self, due_at: int) -> None:
        self.due_at = due_at if self.due_at is None else min(self.due_at, due_at)

    def topics(self) -> set[str]:
        found = {*map(topics.job, self.ended), *map(topics.session, self.stopping), *map(topics.queue, self.ready)}
        if self.ready:
            found.add(topics.ANY_QUEUE)
        if self.is_due:
            found.add(topics.DUE)
        return found
