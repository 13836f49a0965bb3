"""From a path of the search to a trace: the same steps, with correct answers, up to where the broken rules answer otherwise.

Where they answer alike to the end of the path (a job is stuck, and nobody has noticed yet), what a world without mishaps would do next is
added: every living session beats, upkeep goes on until it is done. The job is read back at the end of every trace.
"""

from __future__ import annotations

from typing import Literal

from tests.protocol_model import traces, verbs
from tests.protocol_model.replay import first_deviation
from tests.protocol_model.rules import AT_ONCE, WRONG_STEPS, Rules
from tests.protocol_model.states import SESSION_LOST, BeatAnswer, Job, Lease, Session, SessionLost, Standing, Store
from tests.protocol_model.world import (
    Action,
    BeatArrived,
    BeatMessage,
    BeatSent,
    ClaimArrived,
    ClaimGivenUp,
    Lapsed,
    LapsedAndUpkept,
    RegisterArrived,
    SettlementArrived,
    Started,
    TailBegan,
    TailLost,
    Upkept,
)


def to_trace(rules: Rules, path: tuple[Action, ...]) -> traces.Trace:
    """The trace that convicts the rules of what they did along the path."""
    exporter = _Exporter(1 if rules.reaping in WRONG_STEPS else None)
    for action in path:
        if not exporter.agrees_after(action):
            break
    exporter.finish_upkeep()
    trace = exporter.trace(rules)
    if first_deviation(rules, trace) is not None:
        return trace
    exporter.calm_down()
    return exporter.trace(rules)


class _Exporter:
    """Takes the path's steps on a store with correct rules and writes down what they answer."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.steps: list[traces.Step] = []
        self._store = Store((Job(),))
        self._kept = self._store
        self._sessions: dict[Session, str] = {}
        self._leases: dict[Lease, str] = {}
        self._held: dict[Session, set[Lease]] = {}
        self._asked: dict[Session, int] = {}

    def agrees_after(self, action: Action) -> bool:
        """Write the action's step down; does the correct answer equal the one in the path?"""
        match action:
            case ClaimArrived():
                return self._claim(action)
            case BeatArrived(beat, answer, is_received):
                return self._beat(beat, answer, is_received)
            case SettlementArrived():
                return self._settle(action)
            case Started(session) | RegisterArrived(session):
                self._store, _ = verbs.register(self._store, session)
                name = self._sessions.setdefault(session, f"s{len(self._sessions) + 1}")
                self.steps.append(traces.Register(name, f"w{session.worker + 1}"))
            case ClaimGivenUp(session, request):
                self._asked[session] = request
            case Lapsed(session):
                self._lapse(session)
            case Upkept():
                self._upkeep(self._limit)
            case LapsedAndUpkept(session):
                self._lapse(session)
                self._upkeep(self._limit)
            case TailBegan():
                self._kept = self._store
                self.steps.append(traces.Snapshot())
            case TailLost():
                self._store = self._kept
                self.steps.append(traces.Restore())
            case BeatSent():
                pass
        return True

    def finish_upkeep(self) -> None:
        """Correct rules may take more calls of upkeep than the broken ones; what is read back should not depend on it."""
        if self._limit is not None and traces.Upkeep(self._limit) in self.steps:
            self._upkeep(None)

    def calm_down(self) -> None:
        """No further mishaps: living sessions beat, having given up what they have no answer to; upkeep does the rest."""
        for session in self._sessions:
            row = self._store.row(session)
            if row is not None and row.standing is Standing.ALIVE and not row.is_lapsed:
                self._beat(BeatMessage(session, tuple(sorted(self._held.get(session, ()))), self._asked.get(session, 0)), None, True)
        self._upkeep(None)

    def trace(self, rules: Rules) -> traces.Trace:
        """What was written down so far, with the job as it stands after it."""
        job = self._store.jobs[0]
        return traces.Trace(rules.name, (*self.steps, traces.Read(job.status.value, job.epoch)))

    def _claim(self, action: ClaimArrived) -> bool:
        session, request, answer, is_received = action
        self._store, correct = verbs.claim(AT_ONCE, self._store, session, request, 1)
        self._asked[session] = max(request, self._asked.get(session, 0))
        if is_received and answer is not SESSION_LOST:
            self._held.setdefault(session, set()).update(answer)
        expect: tuple[str, ...] | Literal["SessionLost"] = (
            traces.SESSION_LOST if correct is SESSION_LOST else tuple(self._name(lease) for lease in correct)
        )
        self.steps.append(traces.Claim(self._sessions[session], request, expect, not is_received))
        return correct == answer

    def _beat(self, beat: BeatMessage, answer: BeatAnswer | SessionLost | None, is_received: bool) -> bool:
        self._store, correct = verbs.beat(AT_ONCE, self._store, beat.session, beat.named, beat.seen)
        if any(isinstance(found, BeatAnswer) and found.ghosts for found in (answer, correct)):
            self.steps.append(traces.GhostTime())
        name, names, seen = self._sessions[beat.session], self._names(beat.named), min(beat.seen, self._asked.get(beat.session, 0))
        if correct is SESSION_LOST:
            self.steps.append(traces.Beat(name, names, seen, traces.SESSION_LOST, is_lost=not is_received))
        else:
            self.steps.append(
                traces.Beat(name, names, seen, traces.OK, self._names(correct.lost), self._names(correct.ghosts), not is_received)
            )
        return correct == answer

    def _settle(self, action: SettlementArrived) -> bool:
        lease, verdict, answer, is_received = action
        self._store, correct = verbs.settle(AT_ONCE, self._store, lease, verdict)
        if is_received:
            self._held[lease.session].discard(lease)
        self.steps.append(traces.Settle(self._name(lease), verdict.value, correct.value, not is_received))
        return correct == answer

    def _lapse(self, session: Session) -> None:
        row = self._store.row(session)
        if row is not None and row.standing is Standing.ALIVE:
            self._store = verbs.lapse(AT_ONCE, self._store, row)
        self.steps.append(traces.Lapse(self._sessions[session]))

    def _upkeep(self, limit: int | None) -> None:
        self._store = verbs.upkeep(AT_ONCE, self._store, limit)
        self.steps.append(traces.Upkeep(limit))

    def _names(self, leases: tuple[Lease, ...]) -> tuple[str, ...]:
        return tuple(self._name(lease) for lease in leases)

    def _name(self, lease: Lease) -> str:
        return self._leases.setdefault(lease, f"l{len(self._leases) + 1}")
