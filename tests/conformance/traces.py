"""Replays a counterexample of the protocol's model on a broker. `tests.protocol_model.traces` explains what the steps mean."""

from __future__ import annotations

from typing import Any, assert_never

from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import SessionLost
from taskflow.model.record import Status
from taskflow.model.session import BeatAnswer, Session
from tests.protocol_model import traces
from tests.protocol_model.traces import Step
from tests.support.verdicts import retried, succeeded
from tests.support.world import World

_STATUSES = {"READY": Status.READY, "RUNNING": Status.RUNNING, "ENDED": Status.SUCCEEDED}


async def replay(world: World, trace: tuple[Step, ...]) -> None:
    """Execute every step; AssertionError names the first one that the broker answers differently from a correct one."""
    # A trace has no waits and bounds no counts: a failure or a crash is READY again at once, however often.
    world = world.under(crash_backoff=(0.0,), max_crashes=1_000, hand_back_backoff=(0.0,))
    player = _Player(world, await world.add())
    for number, step in enumerate(trace, 1):
        answer, expected = await player.take(step)
        assert answer == expected, f"step {number}: {step}"


class _Player:
    """What the names in a trace refer to, and which sessions have lapsed."""

    def __init__(self, world: World, job: Envelope) -> None:
        self._world = world
        self._job = job
        self._sessions: dict[str, Session] = {}
        self._leases: dict[str, Lease] = {}
        self._lapsed = set[str]()
        self._snapshot: Any = None

    async def take(self, step: Step) -> tuple[object, object]:
        """Return the answer, and the expected one, in the trace's own words."""
        match step:
            case traces.Register(name, worker):
                session = self._sessions.setdefault(name, self._world.an_unregistered_session(worker))
                return await _or_lost(self._world.broker.register(session)), ()
            case traces.Claim():
                return await self._claim(step), step.expect
            case traces.Beat():
                return await self._beat(step)
            case traces.Settle(lease, verdict, expect):
                settlement = (succeeded if verdict == "success" else retried)(self._leases[lease])
                [settled] = await self._world.settle(settlement)
                return settled.name, expect
            case traces.Read(status, epoch):
                record = await self._world.record(self._job)
                return (record.status, record.epoch), (_STATUSES[status], epoch)
            case traces.Lapse() | traces.GhostTime() | traces.Upkeep() | traces.Snapshot() | traces.Restore():
                await self._pass(step)
                return None, None
        assert_never(step)

    async def _claim(self, step: traces.Claim) -> object:
        session = self._sessions[step.session]
        answer = await _or_lost(self._world.broker.claim(session.id, step.request, (), 1))
        if answer == traces.SESSION_LOST or step.expect == traces.SESSION_LOST:
            return answer
        for name, lease in zip(step.expect, answer, strict=False):
            self._leases.setdefault(name, lease)
        return tuple(self._name(lease) for lease in answer)

    def _name(self, found: Lease) -> str:
        return next((name for name, lease in self._leases.items() if (lease.epoch, lease.claim) == (found.epoch, found.claim)), "unknown")

    async def _beat(self, step: traces.Beat) -> tuple[object, object]:
        self._lapsed.discard(step.session)
        leases = [self._leases[name] for name in step.names]
        answer = await _or_lost(self._world.beat(self._sessions[step.session], *leases, seen=step.seen))
        if step.expect == traces.SESSION_LOST:
            return answer, traces.SESSION_LOST
        return answer, BeatAnswer(lost=tuple(self._leases[name].claim for name in step.lost), ghosts=len(step.ghosts))

    async def _pass(self, step: traces.Lapse | traces.GhostTime | traces.Upkeep | traces.Snapshot | traces.Restore) -> None:
        match step:
            case traces.Lapse(name):
                self._lapsed.add(name)
                await self._world.lapse(self._sessions[name], beside=self._beating())
            case traces.GhostTime():
                await self._world.let_others_beat(self._beating())
                self._world.clock.advance(self._world.rules.ghost_after + 0.001)
                await self._world.let_others_beat(self._beating())
            case traces.Upkeep(limit):
                while (await self._world.upkeep(limit or 10_000)).next_in == 0.0 and limit is None:
                    pass
            case traces.Snapshot():
                self._snapshot = self._world.snapshot()
            case traces.Restore():
                await self._world.restore(self._snapshot)

    def _beating(self) -> list[Session]:
        return [session for name, session in self._sessions.items() if name not in self._lapsed]


async def _or_lost(call: Any) -> Any:
    """Translate SessionLost into the trace's word for it."""
    try:
        return await call
    except SessionLost:
        return traces.SESSION_LOST
