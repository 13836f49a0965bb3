"""Implements the reference broker's operations in small, plain methods that follow the clauses of the contract."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from taskflow.broker import topics
from taskflow.broker.protocol import Added, Refused
from taskflow.model import wording
from taskflow.model.clock import Clock, instant_of, to_microseconds, to_seconds
from taskflow.model.envelope import ClaimId, Envelope, Lease, OnConflict
from taskflow.model.errors import SessionLost, StoreFull
from taskflow.model.record import WAITING, Record, Status
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, BeatAnswer, Report, Session, SessionRecord
from taskflow.model.transitions import Event, Transition, apply_verdict, refused_for
from taskflow.model.verdict import HandedBack, Settled, Settlement, Succeeded
from tests.reference.job import Fence, StoredJob
from tests.reference.transitions import ReferenceTransitions


class SessionState:
    """A session and its leases. `beat_at` moves on if it is spared. `answer` holds the leases of its last claim, and `declares` the names
    of the schedules that it declares."""

    def __init__(self, session: Session, now: int, steady: int, boot_id: str) -> None:
        self.session = session
        self.registered_at = now
        self.beat_at = self.last_beat_at = steady
        self.boot_id = boot_id
        self.is_spared = False
        self.dead_at: int | None = None
        self.request = 0
        self.answer: list[tuple[bytes, Fence]] = []
        self.leases: dict[ClaimId, StoredJob] = {}
        self.declares: set[str] = set()

    @property
    def ttl(self) -> int:
        return to_microseconds(self.session.ttl)

    def to_record(self, steady: int, boot_id: str) -> SessionRecord:
        beat_at = self.beat_at if self.dead_at is None else self.last_beat_at
        if self.boot_id != boot_id:  # silent since the machine has booted again
            beat_at = 0
        return SessionRecord(
            session=self.session,
            registered_at=instant_of(self.registered_at),
            seconds_since_beat=max(0.0, to_seconds(steady - beat_at)),
            leases=len(self.leases),
            is_dying=self.dead_at is not None,
        )


class Store(ReferenceTransitions):
    """A store with every operation except upkeep. The caller must hold the lock."""

    def __init__(self, clock: Clock, rules: Rules, capacity: int | None = None) -> None:
        super().__init__(clock, rules)
        self.sessions: dict[bytes, SessionState] = {}
        self.pulse = clock.steady()
        self.noticed: int | None = None
        self.paused_jobs: set[str] = set()
        self.places: dict[bytes, int] = {}
        self.answers: dict[bytes, tuple[bytes, int]] = {}
        self._capacity = capacity

    # --- enqueue -----------------------------------------------------------------------------------------

    def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        self.refuse_if_full(envelopes)
        return [self._enqueue_one(envelope) for envelope in envelopes]

    def refuse_if_full(self, envelopes: Sequence[Envelope]) -> None:
        if self._capacity is not None:
            fresh = sum(envelope.id not in self.jobs for envelope in envelopes)
            if fresh and self.live_count() + fresh > self._capacity:
                raise StoreFull(wording.STORE_FULL % self._capacity)

    def _enqueue_one(self, envelope: Envelope) -> Added | Refused:
        if (known := self.jobs.get(envelope.id)) is not None:
            return Refused.as_known(envelope, known.to_record() if known.is_kept(self.now) else None)
        waiting, running = self.holders(envelope.key)
        if (holder := refused_for(waiting, running, envelope.on_conflict)) is not None:
            return Refused(envelope.id, holder.id, "key")
        if (standing := self._standing(envelope)) is not None:
            return Refused(envelope.id, standing, "key")
        if waiting is not None and envelope.on_conflict is OnConflict.DEBOUNCE and not waiting.is_poison:
            return self.debounce(waiting, envelope)
        if waiting is not None:
            self.finish(waiting, Event.REPLACE, Status.CANCELLED, wording.replaced_by(envelope.id))
        self.add(StoredJob.of(envelope, self.next_seq(), self.now), behind=running)
        return Added(envelope.id, None if waiting is None else waiting.id)

    def _standing(self, envelope: Envelope) -> bytes | None:
        """Return the job that stands for the call. A throttled call without one begins a window."""
        ref = envelope.key if envelope.throttle else envelope.id
        standing, until = self.answers.get(ref or b"", (None, 0))
        if until > self.now:
            return standing
        if envelope.throttle and ref is not None:
            self.answers[ref] = (envelope.id, self.now + to_microseconds(envelope.throttle))
        return None

    def debounce(self, job: StoredJob, envelope: Envelope) -> Refused:
        """Give a waiting job the call's arguments and options, and move its due time."""
        new = StoredJob.of(envelope, job.seq, self.now)
        self.untag(job)
        job.envelope = replace(envelope, id=job.id, queue=job.queue, priority=job.priority)
        self.tag(job)
        job.payload, job.expires_at = new.payload, new.expires_at
        job.failures = job.crashes = job.snoozes = job.hand_backs = 0
        job.parked_at = None
        if self.places.pop(job.id, None) is not None:
            job.waiting_for = None
        if job.status is not Status.READY:
            latest = new.due_at if envelope.at_most is None else job.created_at + to_microseconds(envelope.at_most)
            before, job.due_at = job.due_at, max(self.now, min(new.due_at, latest))
            heapq.heappush(self.due, (job.due_at, job.seq, job.id))
            if job.due_at < before:
                self.to_wake.add(topics.DUE)
        self.watch_expiry(job)
        self.answers[envelope.id] = (job.id, self.now + to_microseconds(self.rules.repeat_for))
        return Refused(envelope.id, job.id, "key")

    def take_nudges(self) -> Mapping[str, int]:
        """Return how many listeners to nudge for each queue, and reset the counts."""
        if not self.readied:
            return {}
        readied, self.readied = self.readied, Counter()
        return {queue: jobs for queue, jobs in readied.items() if queue not in self.paused}

    # --- sessions and claims -----------------------------------------------------------------------------

    def register(self, session: Session) -> tuple[str, ...]:
        self._notice_silence(to_microseconds(session.ttl))
        known = self.sessions.get(session.id)
        if known is None:
            self.sessions[session.id] = SessionState(session, self.now, self.steady, self.clock.boot_id())
            self.pulse, self.noticed = self.steady, None
        elif known.dead_at is not None:
            raise SessionLost(wording.session_reaped(session.name))
        else:
            known.session = replace(session, name=known.session.name, ttl=known.session.ttl, wants_ends=known.session.wants_ends)
        return tuple(self.paused_jobs)

    def claim(self, session_id: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        state = self._living(session_id)
        if request <= state.request:
            return self._repeat_claim(state, request)
        state.request, state.answer = request, []
        leases = list[Lease]()
        for queue in self._order(queues, request):
            if len(leases) >= limit:
                break
            for job in self.take_ready(queue, limit - len(leases)):
                leases.append(self._lease(state, job, ClaimId(session_id, request, len(leases))))
            if len(leases) >= limit and self.ready[queue]:
                self.readied[queue] += 1  # for another worker
        return leases

    def claim_one(self, session_id: bytes, request: int, job_id: bytes) -> Lease | None:
        """Claim a job if it is READY or SCHEDULED, whatever is before it in its queue."""
        state, job = self._living(session_id), self.jobs.get(job_id)
        if job is None or job.status not in (Status.READY, Status.SCHEDULED) or job.queue in self.paused:
            return None
        if job.status is Status.SCHEDULED:
            job.due_at = self.now
            self.enter(job, Event.DUE)
        state.request, state.answer = request, []
        return self._lease(state, job, ClaimId(session_id, request, 0))

    def _living(self, session_id: bytes) -> SessionState:
        state = self.sessions.get(session_id)
        if state is None or not self._lives(state):
            raise SessionLost(wording.SESSION_LOST)
        return state

    def _lives(self, state: SessionState) -> bool:
        return state.dead_at is None

    def has_end_subscriber(self) -> bool:
        return any(state.session.wants_ends and self._lives(state) for state in self.sessions.values())

    def deploy_of(self, job: StoredJob) -> str:
        state = None if job.claim is None else self.sessions.get(job.claim.session)
        return "" if state is None else state.session.deploy

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

    def _repeat_claim(self, state: SessionState, request: int) -> list[Lease]:
        """Return those leases of the last request that the session still
        holds. An older request gets none: its sender is no longer waiting."""
        if request < state.request:
            return []
        now = self.now
        jobs = [(self.jobs.get(job_id), fence) for job_id, fence in state.answer]
        return [job.to_lease(now) for job, fence in jobs if job is not None and self._holds(job, fence)]

    def _holds(self, job: StoredJob, fence: Fence) -> bool:
        """Return True if this is the fence of the job's current lease."""
        return job.status is Status.RUNNING and job.epoch == fence.epoch and job.claim == fence.claim

    def _notice_silence(self, ttl: int) -> None:
        """Give a session one more ttl if it has lapsed while no session at all sent a heartbeat for two thirds of its ttl: the store must
        have been unavailable. A session is spared only once between heartbeats."""
        silence = self.steady - self.pulse
        lapsed = [state for state in self.sessions.values() if self._lives(state) and self.steady - state.beat_at > state.ttl]
        ttl = min([ttl, *(state.ttl for state in lapsed)])
        if self.noticed is None and silence > ttl * 2 // 3:
            self.noticed = self.steady
        for state in lapsed:
            if self.noticed is not None and not state.is_spared and silence > state.ttl * 2 // 3:
                state.is_spared = True
                state.beat_at = max(self.noticed, state.beat_at + state.ttl)

    # --- beat ------------------------------------------------------------------------------------------------

    def beat(self, beat: Beat) -> BeatAnswer:
        known = self.sessions.get(beat.session)
        self._notice_silence(to_microseconds(self.rules.session_ttl) if known is None else known.ttl)
        state = self._living(beat.session)
        state.beat_at = state.last_beat_at = self.pulse = self.steady
        state.is_spared, self.noticed = False, None
        if beat.died_of:
            self._die(state, beat.died_of)
        for report in beat.reports:
            self._take_report(state.leases.get(report.claim), report)
        named = set(beat.claims)
        ghosts = [job for claim, job in state.leases.items() if claim not in named and self._is_ghost(job, claim, beat)]
        for job in ghosts:
            self.requeue(job, Transition(Event.GHOST, job.counters))
        if beat.leaving:
            self._leave(state)
        return BeatAnswer(
            lost=tuple(claim for claim in beat.claims if claim not in state.leases),
            stopping=tuple(claim for claim in beat.claims if claim in state.leases and state.leases[claim].cancel_requested is not None),
            ghosts=len(ghosts),
            paused_jobs=tuple(self.paused_jobs),
        )

    def _take_report(self, job: StoredJob | None, report: Report) -> None:
        if job is not None:
            job.started_at = self.now - to_microseconds(report.running_for)
            job.progress = report.progress or job.progress

    def _is_ghost(self, job: StoredJob, claim: ClaimId, beat: Beat) -> bool:
        age = self.steady - job.claimed_steady
        return claim.request <= beat.seen and age >= to_microseconds(self.rules.ghost_after)

    def _leave(self, state: SessionState) -> None:
        self._kill_session(state)
        for job in list(state.leases.values()):
            self.hand_back(job, counts=True)

    def _die(self, state: SessionState, died_of: str) -> None:
        self._kill_session(state)
        for job in list(state.leases.values()):
            self.crash(job, died_of)

    def _kill_session(self, state: SessionState) -> None:
        state.dead_at = self.now

    def release_lease(self, job: StoredJob) -> None:
        if job.claim is not None and (state := self.sessions.get(job.claim.session)) is not None:
            state.leases.pop(job.claim, None)
        super().release_lease(job)

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
        self.apply_verdict(job, settlement)
        for follow_up in settlement.follow_ups:
            self._enqueue_one(follow_up)
        return Settled.OK

    def _took_effect(self, job: StoredJob, fence: Fence) -> bool:
        return job.settled == fence

    def apply_verdict(self, job: StoredJob, settlement: Settlement) -> None:
        transition = apply_verdict(job.counters, settlement.verdict, self.rules, self.now, settlement.cause)
        if isinstance(settlement.verdict, HandedBack) and settlement.verdict.is_paused:
            transition = self.park(job, transition)
        if job.is_poison:  # no run has reported an outcome
            transition = transition._replace(counters=job.counters)
        if isinstance(settlement.verdict, Succeeded):
            job.result, job.payload = settlement.verdict.result, settlement.arguments
            self.apply(job, transition, keep=settlement.keep_for)
        else:
            self.apply(job, transition)

    def park(self, job: StoredJob, handed_back: Transition) -> Transition:
        """Return the transition of a job that was handed back because of a pause, which may be over."""
        if job.envelope.job not in self.paused_jobs:
            job.due_at = self.places.pop(job.id, job.due_at)
            return handed_back
        self.places.setdefault(job.id, job.due_at)
        recheck = self.now + to_microseconds(3_600.0)
        return handed_back._replace(event=Event.PARK, due_at=recheck, waiting_for=wording.job_paused(job.envelope.job))

    def pause_job(self, name: str) -> None:
        self.paused_jobs.add(name)
        self.to_wake.update(topics.session(state.session.id) for state in self.sessions.values() if self._lives(state))

    def resume_job(self, name: str) -> bool:
        self.paused_jobs.discard(name)
        for job in [self.jobs[job_id] for job_id in self.places if job_id in self.jobs]:
            if job.status is Status.SCHEDULED and job.waiting_for == wording.job_paused(name):
                job.due_at, job.waiting_for = self.places.pop(job.id), None
                self.make_ready(job, Event.DUE)
        return False

    # --- cancel, read ------------------------------------------------------------------------------------------

    def cancel(self, ids: Sequence[bytes]) -> list[Status | None]:
        return [self._cancel_one(self.jobs.get(job_id)) for job_id in ids]

    def _cancel_one(self, job: StoredJob | None) -> Status | None:
        if job is None or not job.is_kept(self.now):
            return None
        found = job.status
        if found in WAITING:
            self.finish(job, Event.CANCEL, Status.CANCELLED, wording.CANCELLED)
        elif found is Status.RUNNING:
            job.cancel_requested = wording.CANCELLED
            if job.claim is not None:
                self.to_wake.add(topics.session(job.claim.session))
        return found

    def live_holders(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found = [waiting or running for waiting, running in map(self.holders, keys)]
        return [None if job is None else job.id for job in found]

    def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        now = self.now
        found = [self.jobs.get(job_id) for job_id in ids]
        return [job.to_record() if job is not None and job.is_kept(now) else None for job in found]
