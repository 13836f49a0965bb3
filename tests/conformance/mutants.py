"""Broken brokers, to test the suite: each is the memory broker with one rule wrong, and must fail the clauses named for it and no other.

Most are mistakes of real queues; `because` names one that made it, or says how it comes about. Where a defect shows in two clauses
whatever one does, both are named.
"""

from __future__ import annotations

import heapq
from abc import ABC
from collections.abc import Sequence
from typing import ClassVar, Final

import msgspec

from taskflow.broker.console import JobFilter, Redone
from taskflow.broker.memory.console import OpenStore
from taskflow.broker.memory.job import Fence, Job
from taskflow.broker.memory.store import SessionState
from taskflow.broker.protocol import Added, Refused
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import ClaimId, Envelope, Lease, OnConflict
from taskflow.model.record import WAITING, Event, Status
from taskflow.model.session import Beat, BeatAnswer, Report, Session
from taskflow.model.verdict import Retried, Settled, Settlement, Snoozed
from tests.support.homes import MemoryHome


class Mutant(OpenStore, ABC):
    """A store with one rule broken. `breaks` names the clauses that must notice."""

    breaks: ClassVar[frozenset[str]]
    because: ClassVar[str]


def home_of(mutant: type[Mutant]) -> type[MemoryHome]:
    """The kind of store that has this defect."""
    return type(f"{mutant.__name__}Home", (MemoryHome,), {"name": mutant.__name__, "store_class": mutant})


def _readdressed(settlement: Settlement, job: Job) -> Settlement:
    """As if the settlement had named the job's present fence."""
    assert job.claim is not None
    return msgspec.structs.replace(settlement, epoch=job.epoch, claim=job.claim)


# --- the fence ------------------------------------------------------------------------------------------------------------


class SettlesById(Mutant):
    breaks = frozenset({"settle_stale", "settle_repeat", "settle_follow_ups"})
    because = "UPDATE ... WHERE id = $1, whatever its state: a zombie ends its successor's run (river#1302, solid_queue#589)"

    def _settle_one(self, settlement: Settlement) -> Settled:
        job = self.jobs.get(settlement.id)
        if job is not None and job.status is Status.READY:
            self.move(job, Event.CLAIM, Status.RUNNING)
            job.claim = settlement.claim
        if job is not None and job.status is Status.RUNNING:
            settlement = _readdressed(settlement, job)
        return super()._settle_one(settlement)


class SettlesByIdAndState(Mutant):
    breaks = frozenset({"settle_stale", "settle_repeat"})
    because = "WHERE id = $1 AND state = 'running': it runs, so it must be mine (Oban, Chancy, Procrastinate)"

    def _settle_one(self, settlement: Settlement) -> Settled:
        job = self.jobs.get(settlement.id)
        if job is not None and job.status is Status.RUNNING:
            settlement = _readdressed(settlement, job)
        return super()._settle_one(settlement)


class SettlesByEpoch(Mutant):
    breaks = frozenset({"settle_stale"})
    because = "a store that lost its tail hands the same epoch out again"

    def _settle_one(self, settlement: Settlement) -> Settled:
        job = self.jobs.get(settlement.id)
        if job is not None and job.status is Status.RUNNING and job.epoch == settlement.epoch:
            settlement = _readdressed(settlement, job)
        return super()._settle_one(settlement)


class SettlesByClaimId(Mutant):
    breaks = frozenset({"settle_stale"})
    because = "the epoch is not compared"

    def _settle_one(self, settlement: Settlement) -> Settled:
        job = self.jobs.get(settlement.id)
        if job is not None and job.status is Status.RUNNING and job.claim == settlement.claim:
            settlement = _readdressed(settlement, job)
        return super()._settle_one(settlement)


class RefusesTheLate(Mutant):
    breaks = frozenset({"settle_late"})
    because = "a run that has ended is thrown away because its session is past its ttl, though nobody else has the job"

    def _settle_one(self, settlement: Settlement) -> Settled:
        state = self.sessions.get(settlement.claim.session)
        if state is not None and (state.dead_at is not None or self._has_lapsed(state)) and settlement.claim in state.leases:
            return Settled.STALE
        return super()._settle_one(settlement)


# --- settling -------------------------------------------------------------------------------------------------------------


class RepeatIsStale(Mutant):
    breaks = frozenset({"settle_repeat"})
    because = "a lost reply turns into STALE, and the worker thinks that its run was in vain"

    def _took_effect(self, job: Job, fence: Fence) -> bool:
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
    breaks = frozenset({"settle_forgets_payload"})
    because = "the store grows by what no run will ever read again"

    def _apply(self, job: Job, settlement: Settlement) -> None:
        payload = job.payload
        super()._apply(job, settlement)
        job.payload = payload


class ForgetsTheMark(Mutant):
    breaks = frozenset({"settle_marked"})
    because = "a cancelled job is retried, since the mark lay on the run and not on the job"

    def _apply(self, job: Job, settlement: Settlement) -> None:
        if not settlement.verdict.is_final:
            job.cancel_requested = None
        super()._apply(job, settlement)


class OutcomesResetNothing(Mutant):
    breaks = frozenset({"settle_resets", "hand_back_bounded", "crash_backoff"})
    because = "a long-lived job that snoozes collects crashes over weeks until it is called poison"

    def _progressed(self, job: Job) -> None:
        job.parked_at = None


class SnoozeIsAFailure(Mutant):
    breaks = frozenset({"settle_outcomes", "settle_marked", "key_gives_way", "claim_fence"})
    because = "waiting on purpose uses attempts up"

    def _apply(self, job: Job, settlement: Settlement) -> None:
        if isinstance(settlement.verdict, Snoozed):
            job.failures += 1
        super()._apply(job, settlement)


class HandsBackToTheEnd(Mutant):
    breaks = frozenset({"hand_back_place", "settle_outcomes"})
    because = "every deploy sends what it interrupts to the end of the queue"

    def _hand_back(self, job: Job, *, counts: bool) -> None:
        if job.cancel_requested is None and self.waiting_behind(job) is None:
            job.due_at, job.seq = self.clock.wall(), self.next_seq()
        super()._hand_back(job, counts=counts)


class HandsBackForEver(Mutant):
    breaks = frozenset({"hand_back_bounded", "console_browse", "console_retry"})
    because = "the graceful hand-back went round every counter, and one job cycled a fleet for 17 hours (activepieces#15130)"

    def _hand_back(self, job: Job, *, counts: bool) -> None:
        job.hand_backs += counts
        self.wait_again(job, Event.HAND_BACK)


# --- claims ---------------------------------------------------------------------------------------------------------------


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

    def _answer_again(self, state: SessionState, request: int) -> list[Lease]:
        if request < state.request:
            for job in self.take_ready("default", 1):
                self._lease(state, job, ClaimId(state.session.id, request, 1_000 + len(state.answer)))
            request = state.request
        return super()._answer_again(state, request)


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

    def take_ready(self, queue: str, limit: int) -> list[Job]:
        taken = list[Job]()
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
                self._let_go(job)
                self.wait_again(job, Event.GHOST)
        return super().claim(session_id, request, queues, limit)


class RepeatsEpochs(Mutant):
    breaks = frozenset({"claim_fence", "console_retry"})
    because = "the epoch is raised by failures, not by leases"

    def _lease(self, state: SessionState, job: Job, claim: ClaimId) -> None:
        if job.epoch > job.failures:
            job.epoch -= 1
        super()._lease(state, job, claim)


class ServesOneQueueFirst(Mutant):
    breaks = frozenset({"claim_queues"})
    because = "every queue by name, always from the first: one that never runs dry starves the rest"

    def ready_queues(self) -> list[str]:
        return super().ready_queues()[:1]


class IgnoresPriority(Mutant):
    breaks = frozenset({"enqueue_order"})
    because = "first come, first served"

    def _enqueue_one(self, envelope: Envelope) -> Added | Refused:
        priority, plain = envelope.priority, msgspec.structs.replace(envelope, priority=0)
        answer = super()._enqueue_one(plain)
        job = self.jobs[envelope.id] if isinstance(answer, Added) else None
        if job is not None and priority in (1, 5, -5):
            job.envelope = plain
        elif job is not None:
            job.envelope = envelope
            if job.status is Status.READY:
                heapq.heappush(self.ready[job.queue], (job.place, job.id))
        return answer


# --- keys and joins -------------------------------------------------------------------------------------------------------


class KeyOutlivesItsJob(Mutant):
    breaks = frozenset({"key_released", "console_retry"})
    because = "a unique lock outlives its job (sidekiq-unique-jobs#379)"

    def _enqueue_one(self, envelope: Envelope) -> Added | Refused:
        dead = next((job for job in self.jobs.values() if envelope.key is not None and job.envelope.key == envelope.key), None)
        if (
            dead is not None
            and dead.id != envelope.id
            and envelope.on_conflict is OnConflict.KEEP
            and self.holders(envelope.key) == (None, None)
        ):
            return Refused(envelope.id, dead.id, "key")
        return super()._enqueue_one(envelope)


class KeyIsLostByARetry(Mutant):
    breaks = frozenset({"key_survives_retry"})
    because = "the lock is released at the end of the run, not of the job"

    def wait_again(self, job: Job, event: Event, due_at: int | None = None) -> None:
        super().wait_again(job, event, due_at)
        if job.status in WAITING and job.envelope.key is not None:
            self.keys.pop(job.envelope.key, None)


class KeepsWhatShouldBeReplaced(Mutant):
    breaks = frozenset({"key_replaces", "joins", "console_retry", "key_waits_behind"})
    because = "the first one wins, whatever was asked"

    def _enqueue_one(self, envelope: Envelope) -> Added | Refused:
        waiting, _ = self.holders(envelope.key)
        if waiting is not None:
            envelope = msgspec.structs.replace(envelope, on_conflict=OnConflict.KEEP)
        return super()._enqueue_one(envelope)


class RunsBesideItsHolder(Mutant):
    breaks = frozenset({"key_waits_behind", "key_gives_way"})
    because = "two of one key run at once when the first is replaced as it runs"

    def add(self, job: Job, behind: Job | None) -> None:
        super().add(job, behind=None)


class BlocksItsOwnRetry(Mutant):
    breaks = frozenset({"key_gives_way"})
    because = "a retry and the replacement that waits behind it both live on"

    def waiting_behind(self, job: Job) -> Job | None:
        return None


class CountsSuccessesOnly(Mutant):
    breaks = frozenset({"joins", "console_purge", "enqueue_order", "key_waits_behind"})
    because = "one failed member, and the workflow waits for ever"

    def end(self, job: Job, event: Event, status: Status, reason: str | None = None, *, keep: float | None = None) -> None:
        if status is not Status.SUCCEEDED:
            job.joins = ()
        super().end(job, event, status, reason, keep=keep)


class AddsWhatHasEnded(Mutant):
    breaks = frozenset({"enqueue_repeat", "console_metrics"})
    because = "the id is looked up among live jobs only, and a resend runs it twice"

    def _enqueue_one(self, envelope: Envelope) -> Added | Refused:
        job = self.jobs.get(envelope.id)
        if job is not None and job.status in (Status.SUCCEEDED, Status.FAILED):
            del self.jobs[envelope.id]
        return super()._enqueue_one(envelope)


# --- beats ----------------------------------------------------------------------------------------------------------------


class FindsNoGhosts(Mutant):
    breaks = frozenset({"beat_ghosts", "key_gives_way", "settle_marked"})
    because = "an answer that was lost for good leaves a lease that nobody holds, and its session lives on"

    def _is_ghost(self, job: Job, claim: ClaimId, beat: Beat) -> bool:
        return False


class TakesTheUnseenForGhosts(Mutant):
    breaks = frozenset({"beat_young"})
    because = "a beat long under way takes back what a later answer gave"

    def _is_ghost(self, job: Job, claim: ClaimId, beat: Beat) -> bool:
        return super()._is_ghost(job, claim, msgspec.structs.replace(beat, seen=claim.request))


class BeatRevives(Mutant):
    breaks = frozenset({"beat_dead"})
    because = "an upsert brings the reaped session back, with nothing of what it held"

    def beat(self, beat: Beat) -> BeatAnswer:
        state = self.sessions.get(beat.session)
        if state is not None:
            state.dead_at = None
        return super().beat(beat)


class BeatOfTheLateIsRefused(Mutant):
    breaks = frozenset({"beat_late"})
    because = "each slow moment of the store costs a worker its life"

    def beat(self, beat: Beat) -> BeatAnswer:
        self._spare_after_outage()
        state = self.sessions.get(beat.session)
        if state is not None and self._has_lapsed(state):
            self._kill(state)
        return super().beat(beat)


class BeatExtendsNothing(Mutant):
    breaks = frozenset({"beat_extends", "beat_late", "claim_exclusive", "console_workers", "outage"})
    because = "sessions are told dead by age (hexpm#1825)"

    def beat(self, beat: Beat) -> BeatAnswer:
        state = self.sessions.get(beat.session)
        before = None if state is None else state.beat_at
        answer = super().beat(beat)
        if state is not None and before is not None:
            state.beat_at = before
        return answer


class BeatNamesNothingLost(Mutant):
    breaks = frozenset({"beat_lost", "beat_stopping"})
    because = "a worker runs on for minutes what another has long begun again"

    def beat(self, beat: Beat) -> BeatAnswer:
        return msgspec.structs.replace(super().beat(beat), lost=())


class StopIsSaidOnce(Mutant):
    breaks = frozenset({"beat_stopping"})
    because = "the one answer that says it may be lost"

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._said = set[ClaimId]()

    def beat(self, beat: Beat) -> BeatAnswer:
        answer = super().beat(beat)
        stopping = tuple(claim for claim in answer.stopping if claim not in self._said)
        self._said.update(stopping)
        return msgspec.structs.replace(answer, stopping=stopping)


class ForgetsReports(Mutant):
    breaks = frozenset({"beat_reports"})
    because = "progress is a feature of the dashboard, which nobody looked at"

    def _take_report(self, job: Job | None, report: Report) -> None:
        pass


class LeavesItsLeases(Mutant):
    breaks = frozenset({"beat_leaving", "console_workers"})
    because = "what a worker had not handed back when it left waits for a reaper"

    def _leave(self, state: SessionState) -> None:
        self._kill(state)


class RegistrationRevives(Mutant):
    breaks = frozenset({"register_dead"})
    because = "a stable worker's name lets the abandoned incarnation come back (aegra#547)"

    def register(self, session: Session) -> None:
        state = self.sessions.get(session.id)
        if state is not None:
            state.dead_at = None
        super().register(session)


# --- upkeep ---------------------------------------------------------------------------------------------------------------


class SkipsTheExhausted(Mutant):
    breaks = frozenset({"crash_poison"})
    because = "the crash happens in the last attempt, and the reaper only looks at jobs with attempts left (liteque#4)"

    def _release_leases(self, limit: int) -> int:
        exhausted = [job for job in self.jobs.values() if job.status is Status.RUNNING and job.failures + 1 >= job.envelope.max_attempts]
        held = [(self.sessions[job.claim.session], job.claim, job) for job in exhausted if job.claim is not None]
        for state, claim, _ in held:
            state.leases.pop(claim, None)
        released = super()._release_leases(limit)
        for state, claim, job in held:
            state.leases[claim] = job
        return released


class ForgetsTheSessionFirst(Mutant):
    breaks = frozenset({"upkeep_bounded", "console_workers"})
    because = "its row goes in one step, its leases in the next: a crash between them, and they are looked up nowhere (procrastinate#307)"

    def _release_leases(self, limit: int) -> int:
        released = super()._release_leases(limit)
        for state in self.sessions.values():
            if state.dead_at is not None:
                state.leases.clear()
        return released


class DiesLast(Mutant):
    breaks = frozenset({"upkeep_bounded", "claim_session", "register_dead", "beat_dead", "console_workers"})
    because = "leases are released first, and what the session claims in between is nobody's"

    def _release_leases(self, limit: int) -> int:
        released = super()._release_leases(limit)
        for state in self.sessions.values():
            if state.dead_at is not None and state.leases:
                state.dead_at = None
        return released


class CrashIsAFailure(Mutant):
    breaks = frozenset({"crash_backoff"})
    because = "a deploy or a full memory uses up attempts of jobs that did nothing wrong"

    def _crash(self, job: Job) -> None:
        job.failures += 1
        super()._crash(job)


class CrashesForEver(Mutant):
    breaks = frozenset({"crash_poison", "key_released", "key_waits_behind", "joins"})
    because = "the counter lives in the process that is killed (sidekiq#3400, faktory#99)"

    def _crash(self, job: Job) -> None:
        rules, self.rules = self.rules, msgspec.structs.replace(self.rules, max_crashes=1_000_000)
        super()._crash(job)
        self.rules = rules


class CrashForgetsTheMark(Mutant):
    breaks = frozenset({"crash_marked"})
    because = "a cancelled job comes back with its worker's end"

    def _crash(self, job: Job) -> None:
        job.cancel_requested = None
        super()._crash(job)


class OutageIsADeath(Mutant):
    breaks = frozenset({"outage"})
    because = "a failover of half a minute, and the whole fleet is reaped"

    def _spare_after_outage(self) -> None:
        pass


class ReadiesAtTheEnd(Mutant):
    breaks = frozenset({"upkeep_due", "enqueue_order"})
    because = "a job's place depends on when upkeep came by"

    def enter(self, job: Job, event: Event) -> None:
        if event is Event.DUE:
            job.due_at = self.clock.wall()
        super().enter(job, event)


class ForgetsTombstones(Mutant):
    breaks = frozenset({"upkeep_drops", "console_purge", "settle_repeat"})
    because = "a job that is not kept is forgotten at once, and a resent enqueue runs it twice"

    def _is_forgettable(self, job: Job, now: int) -> bool:
        return True

    def bury(self, job: Job) -> None:
        super().bury(job)
        self.jobs.pop(job.id, None)


class DropsNothing(Mutant):
    breaks = frozenset({"upkeep_drops", "upkeep_bounded", "console_metrics", "console_queues"})
    because = "keys that never expire (bull#416, celery#436)"

    def _drop(self, limit: int) -> int:
        return self._drop_over_cap(limit)


class CapsAllTogether(Mutant):
    breaks = frozenset({"upkeep_caps"})
    because = "a flood of successes pushes the failures out that somebody has to look into"

    def _drop_over_cap(self, limit: int) -> int:
        moved = 0
        for job in sorted(self.jobs.values(), key=lambda job: job.ended_at or 0):
            ended = self.counts[job.queue][Status.SUCCEEDED] + self.counts[job.queue][Status.FAILED]
            if moved < limit and job.status in (Status.SUCCEEDED, Status.FAILED) and ended > self.rules.kept_per_queue:
                self.bury(job)
                self.totals[job.queue]["dropped over the cap"] += 1
                moved += 1
        return moved


class NeverExpires(Mutant):
    breaks = frozenset({"upkeep_expires", "upkeep_bounded", "key_released", "joins", "listen_ended"})
    because = "an expired job is passed over, and kept for ever"

    def _expire(self, limit: int) -> int:
        return 0


# --- cancelling, and the console ------------------------------------------------------------------------------------------


class CancelsTheEnded(Mutant):
    breaks = frozenset({"cancel_ended"})
    because = "a finished job turns CANCELLED, and its result is taken for nothing"

    def _cancel_one(self, job: Job | None) -> Status | None:
        found = None if job is None else job.status
        answer = super()._cancel_one(job)
        if job is not None and found in (Status.SUCCEEDED, Status.FAILED):
            job.status = Status.CANCELLED
        return answer


class CancelDoesNotNudge(Mutant):
    breaks = frozenset({"listen_session"})
    because = "a run goes on until its worker's next beat"

    def _cancel_one(self, job: Job | None) -> Status | None:
        found = super()._cancel_one(job)
        if found is Status.RUNNING:
            self.rung.clear()
        return found


class PurgesWhatRuns(Mutant):
    breaks = frozenset({"console_purge"})
    because = "DELETE FROM jobs: a worker settles what is not there"

    def purge(self, chosen: JobFilter, limit: int) -> int:
        purged = super().purge(chosen, limit)
        for job in list(self.jobs.values()):
            if job.status is Status.RUNNING and self._is_chosen(job, chosen):
                self._let_go(job)
                self.end(job, Event.CANCEL, Status.CANCELLED, "purged")
                self.bury(job)
        return purged


class RedoTakesTheKeyTwice(Mutant):
    breaks = frozenset({"console_retry"})
    because = "an operator's retry brings back a job whose key another has taken meanwhile"

    def _redo_one(self, job: Job | None) -> Redone:
        if job is not None and job.envelope.key is not None and job.status in (Status.FAILED, Status.CANCELLED):
            self.keys.pop(job.envelope.key, None)
        return super()._redo_one(job)


def _all() -> tuple[type[Mutant], ...]:
    return tuple(Mutant.__subclasses__())


MUTANTS: Final = _all()
