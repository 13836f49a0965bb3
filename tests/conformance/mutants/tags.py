"""Tags."""

from __future__ import annotations

from taskflow.model.record import Status
from taskflow.model.transitions import Event
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob


class AnEndLosesTheTags(Mutant):
    breaks = frozenset({"page_tag", "console_purge_tag", "tags_kept", "tags_dropped"})
    because = "the index holds live jobs only, and nobody finds the failed ones of an import"

    def finish(self, job: StoredJob, event: Event, status: Status, reason: str | None = None, *, keep: float | None = None) -> None:
        super().finish(job, event, status, reason, keep=keep)
        for tag in job.envelope.tags:
            self.tagged[tag].pop(job.id)

    def bury(self, job: StoredJob) -> None:
        for tag in job.envelope.tags:
            self.tagged[tag][job.id] = job
        super().bury(job)
