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
    breaks = frozenset({"beat_ghosts", "settle_marked"})
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


class LooksAtPlansAlone(Mutant):
    breaks = frozenset({"beat_looks", "ends_told"})
    because = "what expires or fades stays until somebody has something else to do"

    def _outlook(self, session_id: bytes) -> Outlook:
        return msgspec.structs.replace(super()._outlook(session_id), due_in=min(self._waits(), default=math.inf))


class ForgetsReports(Mutant):
    breaks = frozenset({"beat_reports", "settle_history", "settle_progress"})
    because = "progress is a feature of the dashboard, which nobody looked at"

    def _take_report(self, job: StoredJob | None, report: Report) -> None:
        pass


class LeavesItsLeases(Mutant):
    breaks = frozenset({"beat_leaving", "hand_back_backoff"})
    because = "what a worker had not handed back when it left waits for a reaper"

    def _leave(self, state: SessionState) -> None:
        self._kill_session(state)


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
