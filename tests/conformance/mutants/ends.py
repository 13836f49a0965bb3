"""Ends of jobs without a settlement."""

from __future__ import annotations

from taskflow.broker import topics
from taskflow.broker.protocol import MAX_ENDS, PURGED_FOR, Upkept
from taskflow.model.record import Status
from taskflow.model.transitions import Event
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob


class HearsNoExpiry(Mutant):
    breaks = frozenset({"ends_heard"})
    because = "a signal for each verb that a client sends, and none for what the clock does (celery's task_revoked)"

    def finish(self, job: StoredJob, event: Event, status: Status, reason: str | None = None, *, keep: float | None = None) -> None:
        was_due = topics.DUE in self.to_wake
        super().finish(job, event, status, reason, keep=keep)
        if event is Event.EXPIRE and self.ends:
            self.ends.pop()
            if not self.ends and not was_due:
                self.to_wake.discard(topics.DUE)


class HearsSettlementsToo(Mutant):
    breaks = frozenset({"ends_settled", "ends_heard"})
    because = "the worker that settled the job calls the hook, and so does upkeep: the customer gets two mails"

    def finish(self, job: StoredJob, event: Event, status: Status, reason: str | None = None, *, keep: float | None = None) -> None:
        settled, job.settled = job.settled, None
        super().finish(job, event, status, reason, keep=keep)
        job.settled = settled


class HearsWithoutEars(Mutant):
    breaks = frozenset({"ends_unheard", "ends_purged", "console_purge", "console_purge_tag", "tags_dropped"})
    because = "ends are noted for a hook that no application has, and never taken"

    def has_end_subscriber(self) -> bool:
        return True


class TellsEveryone(Mutant):
    breaks = frozenset({"ends_unheard"})
    because = "another worker's upkeep takes the ends, and has no one to tell"

    def upkeep(self, limit: int, *, ends: bool = False) -> Upkept:
        if not ends:
            self.ends.clear()
        return super().upkeep(limit, ends=ends)


class TellsInNoHurry(Mutant):
    breaks = frozenset({"ends_heard"})
    because = "a hundred ends a turn: a purge of a million jobs is told for hours"

    def upkeep(self, limit: int, *, ends: bool = False) -> Upkept:
        left = [self.ends.pop() for _ in range(max(0, len(self.ends) - MAX_ENDS))] if ends else []
        upkept = super().upkeep(limit, ends=ends)
        self.ends.extend(reversed(left))
        return upkept


class NotesWithoutBound(Mutant):
    breaks = frozenset({"ends_bounded"})
    because = "the workers that hear are stuck, and the list fills the store"

    def note_end(self, job_id: bytes) -> None:
        if not self.ends:
            self.to_wake.add(topics.DUE)
        self.ends.append(job_id)


class NotesInSilence(Mutant):
    breaks = frozenset({"ends_told"})
    because = "a fleet at rest hears of a cancelled job a minute later"

    def note_end(self, job_id: bytes) -> None:
        was_due = topics.DUE in self.to_wake
        super().note_end(job_id)
        if not was_due:
            self.to_wake.discard(topics.DUE)


class PurgesBeforeItIsRead(Mutant):
    breaks = frozenset({"ends_purged"})
    because = "the hook is told an id, and the record is gone"

    def finish(self, job: StoredJob, event: Event, status: Status, reason: str | None = None, *, keep: float | None = None) -> None:
        super().finish(job, event, status, reason, keep=0.0 if keep == PURGED_FOR else keep)
