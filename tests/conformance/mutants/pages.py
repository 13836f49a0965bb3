"""Pages of jobs."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from taskflow.broker.paging import Position, ScanRequest
from taskflow.model.record import ENDED, Status
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob


class PagesAreCountedOff(Mutant):
    breaks = frozenset({"page_cursor"})
    because = "a page is found by OFFSET: jobs that have left the list meanwhile shift it, and as many are skipped"

    def _placed(self, request: ScanRequest) -> Iterable[tuple[Position, StoredJob]]:
        placed = super()._placed(request)
        if request.status is not Status.FAILED:
            return placed
        return [((0, number), job) for number, (_, job) in enumerate(sorted(placed, key=itemgetter(0)))]


class OldEndsComeFirst(Mutant):
    breaks = frozenset({"page_order", "page_bounded"})
    because = "the index is read from its beginning, so the failures of an hour ago hide those of now"

    def _placed(self, request: ScanRequest) -> Iterable[tuple[Position, StoredJob]]:
        placed = super()._placed(request)
        return [((job.ended_at or 0, job.seq), job) for _, job in placed] if request.status in ENDED else placed
