"""Groups of failed jobs."""

from __future__ import annotations

from taskflow.broker.console import FailureGroupRecord
from taskflow.model.record import Status
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob


class CountsAsMayBe(Mutant):
    breaks = frozenset({"console_failures"})
    because = "the largest groups are chosen before the filter, as by a cached list of them"

    def failure_groups(self, queue: str | None, job: str | None, limit: int) -> list[FailureGroupRecord]:
        largest = {group.fingerprint for group in super().failure_groups(None, None, 1)}
        return [group for group in super().failure_groups(queue, job, limit) if group.fingerprint in largest or not (queue or job)]


class KeepsTheRetriedInTheirGroup(Mutant):
    breaks = frozenset({"console_failures_exact"})
    because = "counters that are raised at each failure, and lowered only when a job is dropped"

    def leave_group(self, job: StoredJob) -> None:
        if job.status is not Status.FAILED or (job.fade_at or 0) <= self.now:
            super().leave_group(job)

    def failed_ids(self, fingerprint: bytes) -> list[bytes]:
        return [job_id for job_id in super().failed_ids(fingerprint) if self.jobs[job_id].status is Status.FAILED]


class DoesNotKnowWhereAWorkerDied(Mutant):
    breaks = frozenset({"console_failures_poison"})
    because = "a crash has no settlement, so nobody thinks of the deploy"

    def deploy_of(self, job: StoredJob) -> str:
        return ""


class ListsOtherCausesToo(Mutant):
    breaks = frozenset({"console_failures_ids"})
    because = "a range of an index that ends too late"

    def failed_ids(self, fingerprint: bytes) -> list[bytes]:
        return [job_id for (cause, *_), jobs in self.failed.items() if cause >= fingerprint for job_id in jobs]
