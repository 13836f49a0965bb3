"""The verbs of the memory broker, as plain methods. Small ones say the rules: what each decides is what the contract names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from taskflow.broker import topics
from taskflow.broker.memory.job import Fence, StoredJob
from taskflow.broker.memory.transitions import MemoryTransitions
from taskflow.broker.protocol import Added, Refused
from taskflow.model import wording
from taskflow.model.clock import Clock, instant_of, to_microseconds, to_seconds
from taskflow.model.envelope import ClaimId, Envelope, Lease, OnConflict
from taskflow.model.errors import SessionLost, StoreFull
from taskflow.model.record import WAITING, Event, Record, Status
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, BeatAnswer, Report, Session, SessionRecord
from taskflow.model.verdict import (
    Cancelled,
    Discarded,
    Failed,
    HandedBack,
    Parked,
    Retried,
    RunError,
    Settled,
    Settlement,
    Snoozed,
    Succeeded,
    append_error,
    unpack_errors,
)

NO_OUTCOMES: Final = (HandedBack, Parked)


class SessionState:
    """A session and what it holds. `answer` is the memory of its last claim."""

    def __init__(self, session: Session, now: int, steady: int, boot_id: str) -> None:
        self.session = session
        self.registered_at = now
        self.beat_at = steady
        self.boot_id = boot_id
        self.is_spared = False
        self.dead_at: int | None = None
        self.request = 0
        self.answer: list[tuple[bytes, Fence]] = []
        self.leases: dict[ClaimId, StoredJob] = {}

    @property
    def ttl(self) -> int:
        return to_microseconds(self.session.ttl)

    def to_record(self, steady: int) -> SessionRecord:
        return SessionRecord(
            session=self.session,
            registered_at=instant_of(self.registered_at),
            seconds_since_beat=max(0.0, to_seconds(steady - self.beat_at)),
            leases=len(self.leases),
            is_dying=self.dead_at is not None,
        )


class Store(MemoryTransitions):
    """The verbs of a broker in one process. The caller holds the lock."""

    def __init__(self, clock: Clock, rules: Rules, capacity: int | None = None) -> None:
        super().__init__(clock, rules)
        self.sessions: dict[bytes, SessionState] = {}
        self.pulse = clock.steady()
        self._capacity = capacity

    # --- enqueue -----------------------------------------------------------------------------------------

    def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        if self._capacity is not None:
            fresh = sum(envelope.id not in self.jobs for envelope in envelopes)
            if fresh and self.live_count() + fresh > self._capacity:
                raise StoreFull(f"the memory broker holds {self.live_count()} live jobs of at most {self._capacity}: let workers catch up")
        return [self._enqueue_one(envelope) for envelope in envelopes]

    def _enqueue_one(self, envelope: Envelope) -> Added | Refused:
        if envelope.id in self.jobs:
            return Refused(envelope.id, envelope.id, "id")
        waiting, running = self.holders(envelope.key)
        standing = waiting or (running if running is not None and running.cancel_requested is None else None)
        if standing is not None and envelope.on_conflict is OnConflict.KEEP:
            return Refused(envelope.id, standing.id, "key")
        if waiting is not None:
            self.end(waiting, Event.REPLACE, Status.CANCELLED, wording.replaced_by(envelope.id))
        self.add(StoredJob.of(envelope, self.next_seq(), self.now), behind=running)
        return Added(envelope.id, None if waiting is None else waiting.id)

    # --- sessions and claims -----------------------------------------------------------------------------

    def register(self, session: Session) -> None:
        self._spare_after_outage()
        known = self.sessions.get(session.id)
        if known is None:
            self.sessions[session.id] = SessionState(session, self.now, self.steady, self.clock.boot_id())
        elif known.dead_at is not None:
            raise SessionLost(wording.session_reaped(session.name))
        self.pulse = self.steady

    def claim(self, session_id: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        state = self._living(session_id)
        if request <= state.request:
            return self._answer_again(state, request)
        state.request, state.answer = request, []
        leases = list[Lease]()
        for queue in self._order(queues, request):
            if len(leases) >= limit:
                break
            for job in self.take_ready(queue, limit - len(leases)):
                leases.append(self._lease(state, job, ClaimId(session_id, request, len(leases))))
        return leases

    def _living(self, session_id: bytes) -> SessionState:
        state = self.sessions.get(session_id)
        if state is None or not self._lives(state):
            raise SessionLost(wording.SESSION_LOST)
        return state

    def _lives(self, state: SessionState) -> bool:
        return state.dead_at is None

    def _order(self, queues: Sequence[str], request: int) -> Sequence[str]:
        if queues:
            return [queue for queue in queues if queue not in self.paused]
        names = self.ready_queues()
        turn = request % len(names) if names else 0
        return names[turn:] + names[:turn]

    def _lease(self, state: SessionState, job: StoredJob, claim: ClaimId) -> Lease:
        self.move(job, Event.CLAIM, Status.RUNNING)
        job.lease_to(state.session, claim, self.now, self.steady)
        state.leases[claim] = job
        state.answer.append((job.id, Fence(job.epoch, claim)))
        return job.to_lease(self.now)

    def _answer_again(self, state: SessionState, request: int) -> list[Lease]:
        """The leases of the last request that are still the session's; none for an older one, whose asker has moved on."""
        if request < state.request:
            return []
        now = self.now
        jobs = [(self.jobs.get(job_id), fence) for job_id, fence in state.answer]
        return [job.to_lease(now) for job, fence in jobs if job is not None and self._holds(job, fence)]

    def _holds(self, job: StoredJob, fence: Fence) -> bool:
        """The fence. Every settlement goes by it."""
        return job.status is Status.RUNNING and job.epoch == fence.epoch and job.claim == fence.claim

    def _spare_after_outage(self) -> None:
        """When nobody has beaten for a session's whole ttl, the store was away, not the workers: one more ttl, once."""
        steady = self.steady
        for state in self.sessions.values():
            if self._lives(state) and not state.is_spared and steady - self.pulse > state.ttl:
                state.is_spared = True
                state.beat_at = steady

    # --- beat ------------------------------------------------------------------------------------------------

    def beat(self, beat: Beat) -> BeatAnswer:
        self._spare_after_outage()
        state = self._living(beat.session)
        state.beat_at = self.pulse = self.steady
        state.is_spared = False
        if beat.died_of:
            self._die(state, beat.died_of)
        for report in beat.reports:
            self._take_report(state.leases.get(report.claim), report)
        named = set(beat.claims)
        ghosts = [job for claim, job in state.leases.items() if claim not in named and self._is_ghost(job, claim, beat)]
        for job in ghosts:
            self._let_go(job)
            self.wait_again(job, Event.GHOST)
        if beat.leaving:
            self._leave(state)
        return BeatAnswer(
            lost=tuple(claim for claim in beat.claims if claim not in state.leases),
            stopping=tuple(claim for claim in beat.claims if claim in state.leases and state.leases[claim].cancel_requested is not None),
            ghosts=len(ghosts),
        )

    def _take_report(self, job: StoredJob | None, report: Report) -> None:
        if job is not None:
            job.started_at = self.now - to_microseconds(report.running_for)
            job.progress = report.progress or job.progress

    def _is_ghost(self, job: StoredJob, claim: ClaimId, beat: Beat) -> bool:
        age = self.steady - job.claimed_steady
        return claim.request <= beat.seen and age >= to_microseconds(self.rules.ghost_after)

    def _leave(self, state: SessionState) -> None:
        self._kill(state)
        for job in list(state.leases.values()):
            self._let_go(job)
            self._hand_back(job, counts=True)

    def _die(self, state: SessionState, cause: str) -> None:
        self._kill(state)
        for job in list(state.leases.values()):
            self._let_go(job)
            self._crash(job, cause)

    def _kill(self, state: SessionState) -> None:
        state.dead_at = self.now

    def _let_go(self, job: StoredJob) -> None:
        """Take the lease off its session; what becomes of the job is the next step of the same verb."""
        assert job.claim is not None
        state = self.sessions.get(job.claim.session)
        if state is not None:
            state.leases.pop(job.claim, None)

    # --- settle ----------------------------------------------------------------------------------------------

    def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return [self._settle_one(settlement) for settlement in settlements]

    def _settle_one(self, settlement: Settlement) -> Settled:
        job = self.jobs.get(settlement.id)
        if job is None:
            return Settled.STALE
        fence = Fence(settlement.epoch, settlement.claim)
        if not self._holds(job, fence):
            return Settled.OK if self._took_effect(job, fence) else Settled.STALE
        job.settled = fence
        job.started_at = self.now - to_microseconds(settlement.ran_for)
        job.progress = settlement.progress or job.progress
        self._let_go(job)
        self._apply(job, settlement)
        for follow_up in settlement.follow_ups:
            self._enqueue_one(follow_up)
        return Settled.OK

    def _took_effect(self, job: StoredJob, fence: Fence) -> bool:
        return job.settled == fence

    def _apply(self, job: StoredJob, settlement: Settlement) -> None:
        verdict = settlement.verdict
        if not isinstance(verdict, NO_OUTCOMES):
            job.reset_losses()
        match verdict:
            case Succeeded(result):
                job.result, job.payload = result, None
                self.end(job, Event.SUCCEED, Status.SUCCEEDED, keep=settlement.keep_for)
            case Failed(error):
                self._fail_once(job, error)
                self.end(job, Event.FAIL, Status.FAILED, f"{error.type}: {error.message}")
            case Discarded(reason):
                self.end(job, Event.DISCARD, Status.FAILED, reason)
            case Cancelled(reason):
                self.end(job, Event.CANCEL, Status.CANCELLED, reason)
            case Retried(error, after):
                self._fail_once(job, error)
                self.wait_again(job, Event.RETRY, self.now + to_microseconds(after))
            case Snoozed(after):
                job.snoozes += 1
                self.wait_again(job, Event.SNOOZE, self.now + to_microseconds(after))
            case Parked(waiting_for, after):
                now = self.now
                job.parked_at = now if job.parked_at is None else job.parked_at
                job.waiting_for = waiting_for
                self.wait_again(job, Event.PARK, now + to_microseconds(after))
            case HandedBack(counts):
                self._hand_back(job, counts=counts)
            case _:
                raise TypeError(f"{verdict!r} is no verdict that a store knows")

    def _fail_once(self, job: StoredJob, error: RunError) -> None:
        job.failures += 1
        self._note(job, error)

    def _note(self, job: StoredJob, error: RunError) -> None:
        packed = b"".join(append_error(None, noted, noted.at) for noted in job.errors)
        job.errors = unpack_errors(append_error(packed, error, self.now))

    def _hand_back(self, job: StoredJob, *, counts: bool) -> None:
        job.hand_backs += counts
        wait = to_microseconds(self.rules.hand_back_wait(job.hand_backs)) if counts else 0
        if wait:
            job.waiting_for = wording.handed_back_in_vain(job.hand_backs)
        self.wait_again(job, Event.HAND_BACK, self.now + wait if wait else None)

    def _crash(self, job: StoredJob, cause: str = "") -> None:
        job.crashes += 1
        self._note(job, RunError(wording.CRASHED, wording.worker_lost(job.worker, job.crashes, cause), "", job.failures + 1))
        if job.crashes > self.rules.max_crashes and job.cancel_requested is None:
            self._poison(job, wording.lost_in_a_row(job.crashes, cause))
        else:
            wait = to_microseconds(self.rules.crash_wait(job.crashes))
            self.wait_again(job, Event.CRASH, self.now + wait if wait else None)

    def _poison(self, job: StoredJob, why: str) -> None:
        job.is_poison = True
        self.end(job, Event.CRASH, Status.FAILED, wording.poison(why))

    # --- cancel, read ------------------------------------------------------------------------------------------

    def cancel(self, ids: Sequence[bytes]) -> list[Status | None]:
        return [self._cancel_one(self.jobs.get(job_id)) for job_id in ids]

    def _cancel_one(self, job: StoredJob | None) -> Status | None:
        if job is None or not job.is_kept(self.now):
            return None
        found = job.status
        if found in WAITING:
            self.end(job, Event.CANCEL, Status.CANCELLED, wording.CANCELLED)
        elif found is Status.RUNNING:
            job.cancel_requested = wording.CANCELLED
            if job.claim is not None:
                self.rung.add(topics.session(job.claim.session))
        return found

    def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        now = self.now
        found = [self.jobs.get(job_id) for job_id in ids]
        return [job.to_record() if job is not None and job.is_kept(now) else None for job in found]
