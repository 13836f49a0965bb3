"""Groups of failed jobs."""

from __future__ import annotations

from taskflow.broker.console import FailureGroupRecord
from tests.conformance.mutants.mutant import Mutant


class CountsAsMayBe(Mutant):
    breaks = frozenset({"console_failures"})
    because = "the largest groups are chosen before the filter, as by a cached list of them"

    def failure_groups(self, queue: str | None, job: str | None, limit: int) -> list[FailureGroupRecord]:
        largest = {group.fingerprint for group in super().failure_groups(None, None, 1)}
        return [group for group in super().failure_groups(queue, job, limit) if group.fingerprint in largest or not (queue or job)]


class ListsOtherCausesToo(Mutant):
    breaks = frozenset({"console_failures_ids"})
    because = "a range of an index that ends too late"

    def failed_ids(self, fingerprint: bytes) -> list[bytes]:
        return [job_id for (cause, *_), jobs in self.failed.items() if cause >= fingerprint for job_id in jobs]
