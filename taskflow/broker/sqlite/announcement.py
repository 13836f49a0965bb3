"""Collects what a transaction does that somebody may wait for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from taskflow.broker import topics


@dataclass(slots=True)
class Announcement:
    """`ready` counts the jobs that became ready by queue, `ended` has the ids of jobs, `stopping` the sessions that have runs to stop.

    `due_at`        when the first of the newly scheduled jobs is due
    `full_claims`   counts claims that got as many jobs as they wanted by their queues, none for all queues: more jobs may be ready
    `is_periodical` True for a heartbeat or maintenance, which also looks after nudges that nobody has answered
    `cleans`        True for maintenance, which also removes the files of listeners that are gone
    """

    ready: Counter[str] = field(default_factory=Counter)
    ended: set[bytes] = field(default_factory=set)
    stopping: set[bytes] = field(default_factory=set)
    due_at: int | None = None
    full_claims: Counter[tuple[str, ...]] = field(default_factory=Counter)
    is_periodical: bool = False
    cleans: bool = False

    def __bool__(self) -> bool:
        return bool(self.ended or self.ready or self.full_claims or self.is_periodical or self.due_at is not None or self.stopping)

    def add_due(self, due_at: int) -> None:
        self.due_at = due_at if self.due_at is None else min(self.due_at, due_at)

    def topics(self) -> set[str]:
        found = {*map(topics.job, self.ended), *map(topics.session, self.stopping), *map(topics.queue, self.ready)}
        if self.ready:
            found.add(topics.ANY_QUEUE)
        if self.due_at is not None:
            found.add(topics.DUE)
        return found
