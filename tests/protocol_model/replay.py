"""A trace replayed on a store of the model: the pattern for an interpreter that replays it on a broker."""

from __future__ import annotations

from typing import assert_never

from tests.protocol_model import traces, verbs
from tests.protocol_model.rules import Rules
from tests.protocol_model.states import SESSION_LOST, Job, Lease, Session, Store, Verdict


def first_deviation(rules: Rules, trace: tuple[traces.Step, ...]) -> int | None:
    """The index of the first step that the rules answer otherwise than the trace expects; None when they answer all as expected."""
    replay = Replay(rules)
    return next((index for index, step in enumerate(trace) if not replay.goes_as_expected(step)), None)


class Replay:
    """A store of one job, and what the names in a trace stand for."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._store = Store((Job(),))
        self._kept = self._store
        self._sessions: dict[str, Session] = {}
        self._leases: dict[str, Lease] = {}

    def goes_as_expected(self, step: traces.Step) -> bool:
        """Take the step; is the answer the expected one?"""
        match step:
            case traces.Register(name, worker):
                self._store, refusal = verbs.register(self._store, self._sessions.setdefault(name, self._new_life(worker)))
                return refusal is None
            case traces.Claim():
                return self._claims(step)
            case traces.Beat():
                return self._beats(step)
            case traces.Settle(lease, verdict, expect):
                self._store, settled = verbs.settle(self._rules, self._store, self._leases[lease], Verdict(verdict))
                return settled == expect
            case traces.Read(status, epoch):
                return (self._store.jobs[0].status, self._store.jobs[0].epoch) == (status, epoch)
            case traces.Lapse() | traces.GhostTime() | traces.Upkeep() | traces.Snapshot() | traces.Restore():
                self._passes(step)
                return True
        assert_never(step)

    def _new_life(self, worker: str) -> Session:
        """Trace names are w1, w2, ...; lives are counted over all, so that each is new."""
        return Session(int(worker.removeprefix("w")) - 1, len(self._sessions) + 1)

    def _claims(self, step: traces.Claim) -> bool:
        self._store, answer = verbs.claim(self._rules, self._store, self._sessions[step.session], step.request, 1)
        if answer is SESSION_LOST or step.expect == traces.SESSION_LOST:
            return answer is SESSION_LOST and step.expect == traces.SESSION_LOST
        return len(answer) == len(step.expect) and all(
            self._leases.setdefault(name, lease) == lease for name, lease in zip(step.expect, answer, strict=True)
        )

    def _beats(self, step: traces.Beat) -> bool:
        named = self._named(step.names)
        self._store, answer = verbs.beat(self._rules, self._store, self._sessions[step.session], named, step.seen)
        if answer is SESSION_LOST:
            return step.expect == traces.SESSION_LOST
        return step.expect == traces.OK and answer == (self._named(step.lost), self._named(step.ghosts))

    def _named(self, names: tuple[str, ...]) -> tuple[Lease, ...]:
        return tuple(self._leases[name] for name in names)

    def _passes(self, step: traces.Lapse | traces.GhostTime | traces.Upkeep | traces.Snapshot | traces.Restore) -> None:
        match step:
            case traces.Lapse(name):
                row = self._store.row(self._sessions[name])
                assert row is not None
                self._store = verbs.lapse(self._rules, self._store, row)
            case traces.Upkeep(limit):
                self._store = verbs.upkeep(self._rules, self._store, limit)
            case traces.Snapshot():
                self._kept = self._store
            case traces.Restore():
                self._store = self._kept
            case traces.GhostTime():
                pass
