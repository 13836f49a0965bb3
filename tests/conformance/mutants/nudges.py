"""Whom a store wakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskflow.broker import topics
from taskflow.model.envelope import Lease
from taskflow.model.record import Status
from taskflow.model.transitions import Event
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob


class NudgesEverybody(Mutant):
    breaks = frozenset({"nudge_few", "nudge_full", "nudge_paused"})
    because = "a lone job costs as many claims as there are idle workers"

    def take_nudges(self) -> Mapping[str, int]:
        return dict.fromkeys(super().take_nudges(), 1_000_000)


class NudgesOne(Mutant):
    breaks = frozenset({"nudge_few", "nudge_paused"})
    because = "one worker is told of a thousand jobs, and the others sleep until they look"

    def take_nudges(self) -> Mapping[str, int]:
        return dict.fromkeys(super().take_nudges(), 1)


class KeepsTheRestToItself(Mutant):
    breaks = frozenset({"nudge_next"})
    because = "a worker with little room takes the nudge for many jobs"

    def claim(self, session_id: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        leases = super().claim(session_id, request, queues, limit)
        self.readied.clear()
        return leases


class TellsEverybodyOfEachEnd(Mutant):
    breaks = frozenset({"ended_told"})
    because = "every process that waits for some result hears of every job"

    def finish(self, job: StoredJob, event: Event, status: Status, reason: str | None = None, *, keep: float | None = None) -> None:
        super().finish(job, event, status, reason, keep=keep)
        self.to_wake |= {topics.job(other) for other in self.jobs}
