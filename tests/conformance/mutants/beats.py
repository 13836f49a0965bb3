"""Beats and sessions."""

from __future__ import annotations

import math

import msgspec

from taskflow.model.envelope import ClaimId
from taskflow.model.session import Beat, BeatAnswer, Outlook, Report, Session
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob
from tests.reference.store import SessionState


class FindsNoGhosts(Mutant):
    breaks = frozenset({"beat_ghosts", "key_gives_way", "settle_marked"})
    because = "an answer that was lost for good leaves a lease that nobody holds, and its session lives on"

    def _is_ghost(self, job: StoredJob, claim: ClaimId, beat: Beat) -> bool:
        return False


class TakesTheUnseenForGhosts(Mutant):
    breaks = frozenset({"beat_young"})
    because = "a beat long under way takes back what a later answer gave"

    def _is_ghost(self, job: StoredJob, claim: ClaimId, beat: Beat) -> bool:
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
            self._kill_session(state)
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


class LooksAtOneQueueAlone(Mutant):
    breaks = frozenset({"beat_looks"})
    because = "a worker of the others sleeps on beside what nobody has told it of"

    def ready_queues(self) -> list[str]:
        return [queue for queue in super().ready_queues() if queue == "default" or not self._is_looking]

    _is_looking = False

    def _outlook(self, session_id: bytes) -> Outlook:
        self._is_looking = True
        try:
            return super()._outlook(session_id)
        finally:
            self._is_looking = False


class LooksAtPlansAlone(Mutant):
    breaks = frozenset({"beat_looks", "upkeep_bounded", "ends_told"})
    because = "what expires or fades stays until somebody has something else to do"

    def _outlook(self, session_id: bytes) -> Outlook:
        return msgspec.structs.replace(super()._outlook(session_id), due_in=min(self._waits(), default=math.inf))


class ForgetsReports(Mutant):
    breaks = frozenset({"beat_reports", "settle_progress", "settle_history"})
    because = "progress is a feature of the dashboard, which nobody looked at"

    def _take_report(self, job: StoredJob | None, report: Report) -> None:
        pass


class LeavesItsLeases(Mutant):
    breaks = frozenset({"beat_leaving", "console_workers", "hand_back_backoff"})
    because = "what a worker had not handed back when it left waits for a reaper"

    def _leave(self, state: SessionState) -> None:
        self._kill_session(state)


class DeathIsALeave(Mutant):
    breaks = frozenset({"beat_died", "page_lists", "console_retry", "ends_heard", "poison_follow_up", "console_failures_poison"})
    because = "the job that kills its worker comes back as if nothing had been (the graceful hand-back of activepieces#15130)"

    def _die(self, state: SessionState, died_of: str) -> None:
        self._leave(state)


class DeathHasNoCause(Mutant):
    breaks = frozenset({"beat_died", "poison_follow_up", "console_failures_poison", "page_lists"})
    because = "that a worker was lost is all that the record says, and of what stands in the log of another machine"

    def crash(self, job: StoredJob, died_of: str = "") -> None:
        super().crash(job)


class RegistrationRevives(Mutant):
    breaks = frozenset({"register_dead"})
    because = "a stable worker's name lets the abandoned incarnation come back (aegra#547)"

    def register(self, session: Session) -> None:
        state = self.sessions.get(session.id)
        if state is not None:
            state.dead_at = None
        super().register(session)


class RegistersAnew(Mutant):
    breaks = frozenset({"register_repeat"})
    because = "a registration whose answer was lost, sent again, forgets what was leased meanwhile"

    def register(self, session: Session) -> None:
        state = self.sessions.get(session.id)
        if state is not None and state.dead_at is None:
            del self.sessions[session.id]
        super().register(session)


class LapsesByTheWallClock(Mutant):
    breaks = frozenset({"upkeep_reaps"})
    because = "an operator sets the clock, and the fleet is dead"

    def _has_lapsed(self, state: SessionState) -> bool:
        slept = self.clock.wall() - state.registered_at - (self.clock.steady() - self._born(state))
        return slept > state.ttl or super()._has_lapsed(state)

    def _born(self, state: SessionState) -> int:
        return self._steady_at.setdefault(state.session.id, self.clock.steady())

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._steady_at = dict[bytes, int]()

    def register(self, session: Session) -> None:
        super().register(session)
        self._born(self.sessions[session.id])
