"""Ends of jobs without a settlement."""

from __future__ import annotations

from taskflow.broker import topics
from taskflow.model.record import Status
from taskflow.model.transitions import Event
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob


class HearsSettlementsToo(Mutant):
    breaks = frozenset({"ends_settled", "ends_heard"})
    because = "the worker that settled the job calls the hook, and so does upkeep: the customer gets two mails"

    def finish(self, job: StoredJob, event: Event, status: Status, reason: str | None = None, *, keep: float | None = None) -> None:
        settled, job.settled = job.settled, None
        super().finish(job, event, status, reason, keep=keep)
        job.settled = settled


class HearsWithoutEars(Mutant):
    breaks = frozenset({"ends_unheard", "console_purge", "console_purge_tag", "tags_dropped", "ends_purged"})
    because = "ends are noted for a hook that no application has, and never taken"

    def has_end_subscriber(self) -> bool:
        return True


class NotesWithoutBound(Mutant):
    breaks = frozenset({"ends_bounded"})
    because = "the workers that hear are stuck, and the list fills the store"

    def note_end(self, job_id: bytes) -> None:
        if not self.ends:
            self.to_wake.add(topics.DUE)
        self.ends.append(job_id)
