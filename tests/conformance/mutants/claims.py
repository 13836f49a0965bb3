"""What is leased, and to whom."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.record import Status
from taskflow.model.transitions import Event, Transition
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob
from tests.reference.store import SessionState


class ForgetsItsClaims(Mutant):
    breaks = frozenset({"claim_memory"})
    because = "the resent request claims anew, and what the lost answer gave is held by nobody"

    def claim(self, session_id: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        state = self.sessions.get(session_id)
        if state is not None and state.request == request:
            state.request -= 1
        return super().claim(session_id, request, queues, limit)


class AnswersOldRequests(Mutant):
    breaks = frozenset({"claim_old_request"})
    because = "a delayed copy of an answered request claims anew"

    def _repeat_claim(self, state: SessionState, request: int) -> list[Lease]:
        if request < state.request:
            for job in self.take_ready("default", 1):
                self._lease(state, job, ClaimId(state.session.id, request, 1_000 + len(state.answer)))
            request = state.request
        return super()._repeat_claim(state, request)


class ClaimsForTheDead(Mutant):
    breaks = frozenset({"claim_session"})
    because = "a claim is committed by a process whose row was just reaped (solid_queue#159)"

    def claim(self, session_id: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        state = self.sessions.get(session_id)
        if state is None or state.dead_at is None:
            return super().claim(session_id, request, queues, limit)
        dead_at, state.dead_at = state.dead_at, None
        leases = super().claim(session_id, request, queues, limit)
        state.dead_at = dead_at
        return leases


class CutsAnswersShort(Mutant):
    breaks = frozenset({"claim_fewer"})
    because = "who got a portion of what was there takes it for all, and waits for a nudge"

    def take_ready(self, queue: str, limit: int) -> list[StoredJob]:
        taken, size = list[StoredJob](), 0
        for job in super().take_ready(queue, limit):
            if size < 1 << 20:
                taken.append(job)
                size += len(job.envelope.payload)
            elif job.entry is not None:
                heapq.heappush(self.ready[queue], job.entry)
        return taken


class ClaimsWhatIsPaused(Mutant):
    breaks = frozenset({"claim_eligible", "console_pause"})
    because = "the pause is looked up by the fetcher, once"

    def _order(self, queues: Sequence[str], request: int) -> Sequence[str]:
        paused, self.paused = self.paused, set()
        order = super()._order(queues, request)
        self.paused = paused
        return order


class ClaimsWhatHasExpired(Mutant):
    breaks = frozenset({"claim_eligible"})
    because = "expiry is upkeep's alone: between its calls an expired job is run"

    def take_ready(self, queue: str, limit: int) -> list[StoredJob]:
        taken = list[StoredJob]()
        while len(taken) < limit and (job := self.first_ready(queue)) is not None:
            heapq.heappop(self.ready[queue])
            taken.append(job)
        return taken


class ClaimsTwice(Mutant):
    breaks = frozenset({"claim_exclusive"})
    because = "a job is delivered again because it has been running for long (celery#5935, hexpm#1825)"

    def claim(self, session_id: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        for job in list(self.jobs.values()):
            if job.status is Status.RUNNING and self.clock.steady() - job.claimed_steady > to_microseconds(60.0):
                self.requeue(job, Transition(Event.GHOST, job.counters))
        return super().claim(session_id, request, queues, limit)


class RepeatsEpochs(Mutant):
    breaks = frozenset({"claim_fence", "console_retry"})
    because = "the epoch is raised by failures, not by leases"

    def _lease(self, state: SessionState, job: StoredJob, claim: ClaimId) -> Lease:
        if job.epoch > job.failures:
            job.epoch -= 1
        return super()._lease(state, job, claim)


class ServesOneQueueFirst(Mutant):
    breaks = frozenset({"claim_queues"})
    because = "every queue by name, always from the first: one that never runs dry starves the rest"

    def ready_queues(self) -> list[str]:
        return super().ready_queues()[:1]
