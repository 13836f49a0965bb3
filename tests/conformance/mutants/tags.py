"""Tags."""

from __future__ import annotations

from collections.abc import Iterable

from taskflow.broker.console import View
from taskflow.model.record import Status
from taskflow.model.transitions import Event
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob


class TagsOutliveTheirJob(Mutant):
    breaks = frozenset({"tags_dropped"})
    because = "the job is deleted, but not its entries in the index, which grows for ever"

    def bury(self, job: StoredJob) -> None:
        tags = job.envelope.tags
        super().bury(job)
        for tag in tags:
            self.tagged.setdefault(tag, {})[job.id] = job


class ARetryLosesTheTags(Mutant):
    breaks = frozenset({"tags_kept"})
    because = "an operator's retry sends the job anew, without its tags"

    def enter(self, job: StoredJob, event: Event) -> None:
        super().enter(job, event)
        if event is Event.REDO:
            for tag in job.envelope.tags:
                self.tagged[tag].pop(job.id)


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


class PurgeForgetsTheTag(Mutant):
    breaks = frozenset({"console_purge_tag"})
    because = "a filter that purge does not know selects everything"

    def purge(self, view: View, *, limit: int = 1_000) -> int:
        self._is_purging = True
        try:
            return super().purge(view, limit=limit)
        finally:
            self._is_purging = False

    _is_purging = False

    def _candidates(self, view: View) -> Iterable[StoredJob]:
        return self.jobs.values() if self._is_purging else super()._candidates(view)
