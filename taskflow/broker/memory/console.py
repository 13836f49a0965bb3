"""Adds the console's operations, as plain methods, to the memory broker's store."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

from taskflow.broker.console import Finding, JobFilter, Metrics, QueueRecord, Redone
from taskflow.broker.memory.job import StoredJob
from taskflow.broker.memory.upkeep import UpkeepStore
from taskflow.model import wording
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.record import ENDED, WAITING, Record, Status
from taskflow.model.session import SessionRecord
from taskflow.model.transitions import Event


class MemoryStore(UpkeepStore):
    """The complete store, with all verbs and the console's operations."""

    def queue_records(self) -> list[QueueRecord]:
        names = sorted(set(self.counts) | self.paused)
        return [
            QueueRecord(
                name=name,
                is_paused=name in self.paused,
                counts={status: self.counts.get(name, Counter())[status] for status in Status},
                oldest_ready_for=self._oldest_ready_for(name),
                next_due_in=self._next_due_in(name),
            )
            for name in names
        ]

    def _count(self, queue: str, status: Status) -> int:
        """Return the count without adding an entry for a queue that is only paused."""
        return self.counts[queue][status] if queue in self.counts else 0

    def _oldest_ready_for(self, queue: str) -> float | None:
        """Return the age of the oldest ready job in seconds, or None if there is none.
        It is not necessarily the first in the queue, which is ordered by priority."""
        due = [entry[1] for entry in self.ready.get(queue, ()) if self.is_ready(entry)]
        return to_seconds(self.now - min(due)) if due else None

    def _next_due_in(self, queue: str) -> float | None:
        if not self._count(queue, Status.SCHEDULED):
            return None
        due = min(job.due_at for job in self.jobs.values() if job.status is Status.SCHEDULED and job.queue == queue)
        return to_seconds(due - self.now)

    def browse(self, job_filter: JobFilter, *, before: bytes | None = None, limit: int = 100) -> list[Record]:
        found = (job for job in self.jobs.values() if self._matches(job, job_filter) and (before is None or job.id < before))
        return [job.to_record() for job in heapq.nlargest(limit, found, key=lambda job: job.id)]

    def _matches(self, job: StoredJob, job_filter: JobFilter) -> bool:
        now = self.now
        before = None if job_filter.ended_before is None else to_microseconds(job_filter.ended_before)
        return (
            job.is_kept(now)
            and job_filter.queue in (None, job.queue)
            and job_filter.job in (None, job.envelope.job)
            and (not job_filter.statuses or job.status in job_filter.statuses)
            and (before is None or (job.ended_at is not None and job.ended_at <= now - before))
            and (not job_filter.poison or bool(job.is_poison))
        )

    def session_records(self) -> list[SessionRecord]:
        shown = [state for state in self.sessions.values() if state.dead_at is None or state.leases]
        return sorted((state.to_record(self.steady) for state in shown), key=lambda record: (record.session.name, record.session.id))

    def redo(self, ids: Sequence[bytes]) -> list[Redone]:
        return [self._redo_one(self.jobs.get(job_id)) for job_id in ids]

    def _redo_one(self, job: StoredJob | None) -> Redone:
        if job is None or not job.is_kept(self.now):
            return Redone.UNKNOWN
        if job.status not in ENDED:
            return Redone.LIVE
        if job.status is Status.SUCCEEDED:
            return Redone.SUCCEEDED
        if self.keys.get(job.key or b""):
            return Redone.KEY_TAKEN
        job.make_fresh(self.now)
        if job.key is not None:
            self.keys[job.key] = [job]
        self.enter(job, Event.REDO)
        return Redone.OK

    def purge(self, job_filter: JobFilter, *, limit: int = 1_000) -> int:
        found = [job for job in self.jobs.values() if job.status is not Status.RUNNING and self._matches(job, job_filter)]
        purged = found[:limit]
        for job in purged:
            if job.status in WAITING:
                self.finish(job, Event.CANCEL, Status.CANCELLED, wording.PURGED)
            if job.status in ENDED:
                self.bury(job)
        return len(purged)

    def pause(self, queue: str) -> None:
        self.paused.add(queue)

    def resume(self, queue: str) -> None:
        self.paused.discard(queue)
        self.readied[queue] += len(self.ready[queue])

    def metrics(self) -> Metrics:
        return Metrics(totals={queue: {str(event): count for event, count in events.items()} for queue, events in self.totals.items()})

    def findings(self) -> list[Finding]:
        return [
            Finding(
                "persistence", "note", "jobs are in this process's memory and end with it: use it for tests, and for jobs that may be lost"
            )
        ]
