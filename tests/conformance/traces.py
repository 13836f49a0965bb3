"""Ways to break the lease protocol, as steps for a broker: each convicts one broken rule, and a correct broker answers as it says.

A search of a model found each as a shortest way to the harm that its broken rule does. To replay one, enqueue one job and take the steps
in order. Sessions and leases are names: `Register("s1")` makes a session, a `Claim` that expects ("l1",) binds "l1" to the lease it gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, assert_never

from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import SessionLost
from taskflow.model.record import Status
from taskflow.model.session import BeatAnswer, Session
from tests.support.verdicts import retried, succeeded
from tests.support.world import World

SESSION_LOST: Final = "SessionLost"
OK: Final = "OK"
STALE: Final = "STALE"

_STATUSES = {"READY": Status.READY, "RUNNING": Status.RUNNING, "ENDED": Status.SUCCEEDED}


@dataclass(frozen=True)
class Register:
    """`register` for a session with a fresh id, or, when it is known, once more for the same. Two lives of one worker bear its name."""

    session: str
    worker: str


@dataclass(frozen=True)
class Claim:
    """`claim` with that request number and limit 1. `expect`: names of the leases given, known names for known leases; or SESSION_LOST."""

    session: str
    request: int
    expect: tuple[str, ...] | Literal["SessionLost"]


@dataclass(frozen=True)
class Beat:
    """`beat` that names these leases and has seen the answers up to that request. Expected: `lost` and `ghosts`, or SESSION_LOST."""

    session: str
    names: tuple[str, ...] = ()
    seen: int = 0
    expect: Literal["OK", "SessionLost"] = OK
    lost: tuple[str, ...] = ()
    ghosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settle:
    """`settle` of one settlement, addressed to that lease's (id, epoch, claim id). "failure" asks for another run at once."""

    lease: str
    verdict: Literal["success", "failure"]
    expect: Literal["OK", "STALE"]


@dataclass(frozen=True)
class Lapse:
    """The session's ttl passes without a beat of it, while others beat (somebody must: else it is the store's outage)."""

    session: str


@dataclass(frozen=True)
class GhostTime:
    """The time passes after which an unknown lease counts as a ghost; every session beats meanwhile, or it is shorter than the ttl."""


@dataclass(frozen=True)
class Upkeep:
    """`upkeep`: one call with that limit, or, with None, until there is nothing more to do."""

    limit: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """The store's files are copied: what comes after may be lost."""


@dataclass(frozen=True)
class Restore:
    """The store loses its tail: it is again what it was at the Snapshot."""


@dataclass(frozen=True)
class Read:
    """`read` of the job: its status (ENDED stands for SUCCEEDED here) and its epoch, how often it has been leased."""

    status: Literal["READY", "RUNNING", "ENDED"]
    epoch: int


Step = Register | Claim | Beat | Settle | Lapse | GhostTime | Upkeep | Snapshot | Restore | Read


class Trace:
    """`rules`: the name of the broken rules that it convicts."""

    def __init__(self, rules: str, *steps: Step) -> None:
        self.rules = rules
        self.steps = steps


FENCE_BY_ID: Final = Trace(
    "fence by id",
    Register("s1", "w1"),
    Claim("s1", 1, expect=("l1",)),
    Lapse("s1"),
    Upkeep(),
    Settle("l1", "success", expect=STALE),
    Read("READY", 1),
)

FENCE_BY_ID_AND_STATE: Final = Trace(
    "fence by id and state",
    Register("s1", "w1"),
    Register("s2", "w1"),
    Claim("s2", 1, expect=("l1",)),
    Lapse("s2"),
    Upkeep(),
    Claim("s1", 2, expect=("l2",)),
    Settle("l1", "success", expect=STALE),
    Read("RUNNING", 2),
)

FENCE_BY_EPOCH: Final = Trace(
    "fence by epoch",
    Register("s1", "w1"),
    Snapshot(),
    Claim("s1", 1, expect=("l1",)),
    Restore(),
    Claim("s1", 2, expect=("l2",)),
    Settle("l1", "success", expect=STALE),
    Read("RUNNING", 1),
)

FENCE_BY_CLAIM_ID: Final = Trace(
    "fence by claim id",
    Register("s1", "w1"),
    Snapshot(),
    Claim("s1", 1, expect=("l1",)),
    Settle("l1", "failure", expect=OK),
    Claim("s1", 2, expect=("l2",)),
    Restore(),
    Claim("s1", 2, expect=("l3",)),
    Settle("l2", "success", expect=STALE),
    Read("RUNNING", 1),
)

ROW_REMOVED_FIRST: Final = Trace(
    "row removed first",
    Register("s1", "w1"),
    Claim("s1", 1, expect=("l1",)),
    Lapse("s1"),
    Upkeep(limit=1),
    Upkeep(),
    Read("READY", 1),
)

JOBS_RELEASED_FIRST: Final = Trace(
    "jobs released first",
    Register("s1", "w1"),
    Claim("s1", 1, expect=("l1",)),
    Lapse("s1"),
    Upkeep(limit=1),
    Claim("s1", 2, expect=SESSION_LOST),
    Upkeep(),
    Read("READY", 1),
)

CLAIM_WITHOUT_SESSION_CHECK: Final = Trace(
    "claim without session check",
    Register("s1", "w1"),
    Lapse("s1"),
    Upkeep(),
    Claim("s1", 1, expect=SESSION_LOST),
    Read("READY", 0),
)

CLAIM_WITHOUT_MEMORY: Final = Trace(
    "claim without memory",
    Register("s1", "w1"),
    Claim("s1", 1, expect=("l1",)),
    Claim("s1", 1, expect=("l1",)),
    Read("RUNNING", 1),
)

NO_GHOSTS: Final = Trace(
    "no ghosts",
    Register("s1", "w1"),
    Claim("s1", 1, expect=("l1",)),
    GhostTime(),
    Beat("s1", seen=1, ghosts=("l1",)),
    Upkeep(),
    Read("READY", 1),
)

OLD_REQUEST_CLAIMS: Final = Trace(
    "old request claims",
    Register("s1", "w1"),
    Claim("s1", 2, expect=("l1",)),
    Settle("l1", "failure", expect=OK),
    Claim("s1", 1, expect=()),
    Read("READY", 1),
)

GHOSTS_BY_NAME_ALONE: Final = Trace(
    "ghosts by name alone",
    Register("s1", "w1"),
    Claim("s1", 1, expect=("l1",)),
    GhostTime(),
    Beat("s1"),
    Read("RUNNING", 1),
)

SETTLE_WITHOUT_REPEAT: Final = Trace(
    "settle without repeat",
    Register("s1", "w1"),
    Claim("s1", 1, expect=("l1",)),
    Settle("l1", "success", expect=OK),
    Settle("l1", "success", expect=OK),
    Read("ENDED", 1),
)

BEAT_REVIVES: Final = Trace(
    "beat revives",
    Register("s1", "w1"),
    Lapse("s1"),
    Upkeep(),
    Beat("s1", expect=SESSION_LOST),
    Read("READY", 0),
)

LAPSE_BY_AGE: Final = Trace(
    "lapse by age",
    Register("s1", "w1"),
    Claim("s1", 1, expect=("l1",)),
    Lapse("s1"),
    Beat("s1", names=("l1",), seen=1),
    Upkeep(),
    Read("RUNNING", 1),
)

TRACES: Final = (
    FENCE_BY_ID,
    FENCE_BY_ID_AND_STATE,
    FENCE_BY_EPOCH,
    FENCE_BY_CLAIM_ID,
    ROW_REMOVED_FIRST,
    JOBS_RELEASED_FIRST,
    CLAIM_WITHOUT_SESSION_CHECK,
    CLAIM_WITHOUT_MEMORY,
    NO_GHOSTS,
    OLD_REQUEST_CLAIMS,
    GHOSTS_BY_NAME_ALONE,
    SETTLE_WITHOUT_REPEAT,
    BEAT_REVIVES,
    LAPSE_BY_AGE,
)


async def replay(world: World, trace: Trace) -> None:
    """Take every step; AssertionError names the first one that the broker answers otherwise than a correct one does."""
    # A trace has no waits and bounds no counts: a failure or a crash is READY again at once, however often.
    world = world.under(crash_backoff=(0.0,), max_crashes=1_000, hand_back_backoff=(0.0,))
    player = _Player(world, await world.add())
    for number, step in enumerate(trace.steps, 1):
        answer, expected = await player.take(step)
        assert answer == expected, f"step {number}: {step}"


class _Player:
    """What the names in a trace stand for, and who has lapsed."""

    def __init__(self, world: World, job: Envelope) -> None:
        self._world = world
        self._job = job
        self._sessions: dict[str, Session] = {}
        self._leases: dict[str, Lease] = {}
        self._lapsed = set[str]()
        self._snapshot: Any = None

    async def take(self, step: Step) -> tuple[object, object]:
        """The answer, and the one to be expected, in the trace's own words."""
        match step:
            case Register(name, worker):
                session = self._sessions.setdefault(name, self._world.an_unregistered_session(worker))
                return await _or_lost(self._world.broker.register(session)), None
            case Claim():
                return await self._claim(step), step.expect
            case Beat():
                return await self._beat(step)
            case Settle(lease, verdict, expect):
                settlement = (succeeded if verdict == "success" else retried)(self._leases[lease])
                [settled] = await self._world.settle(settlement)
                return settled.name, expect
            case Read(status, epoch):
                record = await self._world.record(self._job)
                return (record.status, record.epoch), (_STATUSES[status], epoch)
            case Lapse() | GhostTime() | Upkeep() | Snapshot() | Restore():
                await self._pass(step)
                return None, None
        assert_never(step)

    async def _claim(self, step: Claim) -> object:
        session = self._sessions[step.session]
        answer = await _or_lost(self._world.broker.claim(session.id, step.request, (), 1))
        if answer == SESSION_LOST or step.expect == SESSION_LOST:
            return answer
        for name, lease in zip(step.expect, answer, strict=False):
            self._leases.setdefault(name, lease)
        return tuple(self._name(lease) for lease in answer)

    def _name(self, found: Lease) -> str:
        return next((name for name, lease in self._leases.items() if (lease.epoch, lease.claim) == (found.epoch, found.claim)), "unknown")

    async def _beat(self, step: Beat) -> tuple[object, object]:
        self._lapsed.discard(step.session)
        leases = [self._leases[name] for name in step.names]
        answer = await _or_lost(self._world.beat(self._sessions[step.session], *leases, seen=step.seen))
        if step.expect == SESSION_LOST:
            return answer, SESSION_LOST
        return answer, BeatAnswer(lost=tuple(self._leases[name].claim for name in step.lost), ghosts=len(step.ghosts))

    async def _pass(self, step: Lapse | GhostTime | Upkeep | Snapshot | Restore) -> None:
        match step:
            case Lapse(name):
                self._lapsed.add(name)
                await self._world.lapse(self._sessions[name], beside=self._beating())
            case GhostTime():
                await self._world.let_others_beat(self._beating())
                self._world.clock.advance(self._world.rules.ghost_after + 0.001)
                await self._world.let_others_beat(self._beating())
            case Upkeep(limit):
                while (await self._world.upkeep(limit or 10_000)).next_in == 0.0 and limit is None:
                    pass
            case Snapshot():
                self._snapshot = self._world.snapshot()
            case Restore():
                await self._world.restore(self._snapshot)

    def _beating(self) -> list[Session]:
        return [session for name, session in self._sessions.items() if name not in self._lapsed]


async def _or_lost(call: Any) -> Any:
    """SessionLost as the trace's word for it."""
    try:
        return await call
    except SessionLost:
        return SESSION_LOST
