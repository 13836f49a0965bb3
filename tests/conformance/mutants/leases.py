"""Claims, beats, settlements, and the fence: whose report of a run counts."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import msgspec

from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.record import Status
from taskflow.model.session import Beat, BeatAnswer, Report, Session, WorkHint
from taskflow.model.transitions import Event, Transition
from taskflow.model.verdict import Retried, Settled, Settlement, Succeeded
from taskflow.model.wording import poison
from tests.conformance.mutants.mutant import Mutant
from tests.reference.admin import ReferenceStore
from tests.reference.job import Fence, StoredJob
from tests.reference.store import SessionState


class ForgetsItsClaims(Mutant):
    breaks = frozenset({"claim_memory"})
    because = "the resent request claims again, and no worker has the leases of the lost answer"

    def claim(self, session_id: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        state = self.sessions.get(session_id)
        if state is not None and state.request == request:
            state.request -= 1
        return super().claim(session_id, request, queues, limit)


class AnswersOldRequests(Mutant):
    breaks = frozenset({"claim_old_request"})
    because = "a delayed copy of an answered request claims again"

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


class ForgetsHowLongAJobWaited(Mutant):
    breaks = frozenset({"claim_waited"})
    because = "a worker cannot tell a backlog from slow jobs"

    def claim(self, session_id: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        return [msgspec.structs.replace(lease, waited=0) for lease in super().claim(session_id, request, queues, limit)]


class CutsAnswersShort(Mutant):
    breaks = frozenset({"claim_fewer"})
    because = "a worker that got a portion of the jobs takes it for all, and waits for a nudge"

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
    breaks = frozenset({"claim_eligible", "admin_pause"})
    because = "the fetcher reads the pause only once"

    def _order(self, queues: Sequence[str], request: int) -> Sequence[str]:
        paused, self.paused = self.paused, set()
        order = super()._order(queues, request)
        self.paused = paused
        return order


class ClaimsWhatHasExpired(Mutant):
    breaks = frozenset({"claim_eligible"})
    because = "only upkeep expires jobs: between its calls an expired job is run"

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
    breaks = frozenset({"claim_fence", "admin_retry"})
    because = "the epoch is raised by failures, not by leases"

    def _lease(self, state: SessionState, job: StoredJob, claim: ClaimId) -> Lease:
        if job.epoch > job.failures:
            job.epoch -= 1
        return super()._lease(state, job, claim)


class ServesOneQueueFirst(Mutant):
    breaks = frozenset({"claim_queues"})
    because = "queues are read by name, always from the first: one that never runs dry starves the others"

    def ready_queues(self) -> list[str]:
        return super().ready_queues()[:1]


class FindsNoGhosts(Mutant):
    breaks = frozenset({"beat_ghosts", "settle_marked"})
    because = "a lost answer leaves a lease that no worker knows, and its session lives on"

    def _is_ghost(self, job: StoredJob, claim: ClaimId, beat: Beat) -> bool:
        return False


class TakesTheUnseenForGhosts(Mutant):
    breaks = frozenset({"beat_extends", "beat_young"})
    because = "a beat that was long under way takes back a later answer's leases"

    def _is_ghost(self, job: StoredJob, claim: ClaimId, beat: Beat) -> bool:
        return super()._is_ghost(job, claim, msgspec.structs.replace(beat, seen=claim.request))


class BeatRevives(Mutant):
    breaks = frozenset({"beat_dead"})
    because = "an upsert restores the reaped session, without its leases"

    def beat(self, beat: Beat) -> BeatAnswer:
        state = self.sessions.get(beat.session)
        if state is not None:
            state.dead_at = None
        return super().beat(beat)


class BeatExtendsNothing(Mutant):
    breaks = frozenset({"beat_extends", "beat_late", "claim_exclusive", "admin_workers", "outage"})
    because = "sessions are declared dead by their age (hexpm#1825)"

    def beat(self, beat: Beat) -> BeatAnswer:
        state = self.sessions.get(beat.session)
        before = None if state is None else state.beat_at
        answer = super().beat(beat)
        if state is not None and before is not None:
            state.beat_at = before
        return answer


class BeatNamesNothingLost(Mutant):
    breaks = frozenset({"beat_lost", "beat_stopping"})
    because = "a worker goes on for minutes with a job that another has long begun again"

    def beat(self, beat: Beat) -> BeatAnswer:
        return msgspec.structs.replace(super().beat(beat), lost=())


class LooksAtPlansAlone(Mutant):
    breaks = frozenset({"beat_looks", "ends_told"})
    because = "a job that expires, or a session that lapses, waits until a worker has something else to do"

    def _work_hint(self, session_id: bytes) -> WorkHint:
        return msgspec.structs.replace(super()._work_hint(session_id), due_in=min(self._waits(), default=math.inf))


class ForgetsReports(Mutant):
    breaks = frozenset({"beat_reports", "settle_history", "settle_progress"})
    because = "progress is a feature of the dashboard, which no one checked"

    def _take_report(self, job: StoredJob | None, report: Report) -> None:
        pass


class LeavesItsLeases(Mutant):
    breaks = frozenset({"beat_leaving", "hand_back_backoff"})
    because = "the jobs that a worker did not hand back when it left wait for a reaper"

    def _leave(self, state: SessionState) -> None:
        self._kill_session(state)


class RegistrationRevives(Mutant):
    breaks = frozenset({"register_dead"})
    because = "a worker with a fixed name lets its abandoned incarnation come back (aegra#547)"

    def register(self, session: Session) -> tuple[str, ...]:
        state = self.sessions.get(session.id)
        if state is not None:
            state.dead_at = None
        return super().register(session)


class RegistersAnew(Mutant):
    breaks = frozenset({"register_repeat"})
    because = "a registration whose answer was lost, sent again, forgets what was leased meanwhile"

    def register(self, session: Session) -> tuple[str, ...]:
        state = self.sessions.get(session.id)
        if state is not None and state.dead_at is None:
            del self.sessions[session.id]
        return super().register(session)


class _Forwarding(ReferenceStore):
    """Treats a settlement that it `accepts` as one of the job's present run."""

    def accepts(self, job: StoredJob, settlement: Settlement) -> bool:
        return True

    def _settle_one(self, settlement: Settlement) -> Settled:
        job = self.jobs.get(settlement.id)
        if job is not None and job.status is Status.RUNNING and self.accepts(job, settlement):
            assert job.claim is not None
            settlement = msgspec.structs.replace(settlement, epoch=job.epoch, claim=job.claim)
        return super()._settle_one(settlement)


class SettlesByIdAndState(_Forwarding, Mutant):
    breaks = frozenset({"settle_stale", "settle_repeat"})
    because = "WHERE id = $1 AND state = 'running': it runs, so it must be mine (Oban, Chancy, Procrastinate)"


class SettlesById(_Forwarding, Mutant):
    breaks = frozenset({"settle_stale", "settle_repeat", "settle_follow_ups"})
    because = "UPDATE ... WHERE id = $1, whatever its state: a zombie ends its successor's run (river#1302, solid_queue#589)"

    def _settle_one(self, settlement: Settlement) -> Settled:
        job = self.jobs.get(settlement.id)
        if job is not None and job.status is Status.READY:
            self.move(job, Event.CLAIM, Status.RUNNING)
            job.claim = settlement.claim
        return super()._settle_one(settlement)


class SettlesByEpoch(_Forwarding, Mutant):
    breaks = frozenset({"settle_stale"})
    because = "a store that lost its tail hands the same epoch out again"

    def accepts(self, job: StoredJob, settlement: Settlement) -> bool:
        return job.epoch == settlement.epoch


class SettlesByClaimId(_Forwarding, Mutant):
    breaks = frozenset({"settle_stale"})
    because = "the epoch is not compared"

    def accepts(self, job: StoredJob, settlement: Settlement) -> bool:
        return job.claim == settlement.claim


class RefusesTheLate(Mutant):
    breaks = frozenset({"settle_late"})
    because = "a run that has ended is discarded because its session is past its ttl, though no other worker has the job"

    def _settle_one(self, settlement: Settlement) -> Settled:
        state = self.sessions.get(settlement.claim.session)
        if state is not None and (state.dead_at is not None or self._has_lapsed(state)) and settlement.claim in state.leases:
            return Settled.STALE
        return super()._settle_one(settlement)


class RepeatIsStale(Mutant):
    breaks = frozenset({"settle_keeps_arguments", "settle_repeat"})
    because = "a lost reply turns into STALE, and the worker assumes that its run was in vain"

    def _took_effect(self, job: StoredJob, fence: Fence) -> bool:
        return False


class RepeatCountsAgain(Mutant):
    breaks = frozenset({"settle_repeat"})
    because = "the client resends, and one failure uses two attempts (redis-py#261: one INCR ran three times)"

    def _settle_one(self, settlement: Settlement) -> Settled:
        job = self.jobs.get(settlement.id)
        fence = Fence(settlement.epoch, settlement.claim)
        if job is not None and not self._holds(job, fence) and self._took_effect(job, fence) and isinstance(settlement.verdict, Retried):
            job.failures += 1
        return super()._settle_one(settlement)


class BatchFailsTogether(Mutant):
    breaks = frozenset({"settle_batch", "settle_repeat"})
    because = "one stale item makes the whole batch stale"

    def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        jobs = [self.jobs.get(settlement.id) for settlement in settlements]
        held = [
            job is not None and (self._holds(job, fence) or self._took_effect(job, fence))
            for job, fence in zip(jobs, (Fence(settlement.epoch, settlement.claim) for settlement in settlements), strict=True)
        ]
        return super().settle(settlements) if all(held) else [Settled.STALE] * len(held)


class FollowsUpWhenStale(Mutant):
    breaks = frozenset({"settle_follow_ups"})
    because = "follow-ups are sent apart from the settlement (streaq): a zombie's go out as well"

    def _settle_one(self, settlement: Settlement) -> Settled:
        settled = super()._settle_one(settlement)
        if settled is Settled.STALE:
            for follow_up in settlement.follow_ups:
                self._enqueue_one(follow_up)
        return settled


class KeepsPayloads(Mutant):
    breaks = frozenset({"settle_keeps_arguments", "settle_forgets_payload"})
    because = "the store fills with payloads that no run will read again"

    def apply_verdict(self, job: StoredJob, settlement: Settlement) -> None:
        payload = job.payload
        super().apply_verdict(job, settlement)
        job.payload = payload


class DropsArguments(Mutant):
    breaks = frozenset({"settle_keeps_arguments"})
    because = "a client that later asks for a success learns that it is gone"

    def apply_verdict(self, job: StoredJob, settlement: Settlement) -> None:
        super().apply_verdict(job, settlement)
        if isinstance(settlement.verdict, Succeeded):
            job.payload = None


class OutcomesResetNothing(Mutant):
    breaks = frozenset({"settle_resets"})
    because = "a long-lived job that snoozes collects crashes over weeks until it is called poison"

    def apply(self, job: StoredJob, transition: Transition, *, keep: float | None = None) -> None:
        resets = ("crashes", "hand_backs")
        counters = transition.counters._replace(**{name: max(getattr(job, name), getattr(transition.counters, name)) for name in resets})
        super().apply(job, transition._replace(counters=counters), keep=keep)


class HandsBackToTheEnd(Mutant):
    breaks = frozenset({"hand_back_place", "settle_outcomes"})
    because = "every deploy sends the jobs that it interrupts to the end of the queue"

    def apply(self, job: StoredJob, transition: Transition, *, keep: float | None = None) -> None:
        if transition.event is Event.HAND_BACK and job.cancel_requested is None and self.waiting_behind(job) is None:
            job.due_at, job.seq = self.clock.wall(), self.next_seq()
        super().apply(job, transition, keep=keep)


class HandBacksArePoison(Mutant):
    breaks = frozenset({"outage"})
    because = "eleven deploys during one long job failed it, though each run went well until then"

    def apply(self, job: StoredJob, transition: Transition, *, keep: float | None = None) -> None:
        if transition.event is Event.HAND_BACK and transition.counters.hand_backs > 10 and job.cancel_requested is None:
            why = poison(transition.counters.hand_backs, "handed back too often")
            transition = transition._replace(event=Event.CRASH, ends_as=Status.FAILED, reason=why, is_poison=True)
        super().apply(job, transition, keep=keep)
