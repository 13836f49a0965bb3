"""The counterexamples as traces: what a client, time and mishap do to a broker, one step after the other, and what a CORRECT one answers.

Every trace was found by the search as a shortest way to the harm that one broken set of rules does; there, a broker with those rules
answers otherwise than the trace says. A real broker must answer as it says at every step. This module knows nothing of the model.

How to replay one on a broker: enqueue one job (no retry wait: a failure is READY again at once), then take the steps in order.
Sessions and leases are names: `Register("s1")` makes a fresh session, a `Claim` that expects ("l1",) binds "l1" to the lease it gave.
All steps are awaited one by one; `is_lost` says that a client would not have received that answer (the broker answers all the same).
`python -m tests.protocol_model --traces` prints the constants below anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

SESSION_LOST: Final = "SessionLost"
OK: Final = "OK"
STALE: Final = "STALE"


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
    is_lost: bool = False


@dataclass(frozen=True)
class Beat:
    """`beat` that names these leases and has seen the answers up to that request. Expected: `lost` and `ghosts`, or SESSION_LOST."""

    session: str
    names: tuple[str, ...] = ()
    seen: int = 0
    expect: Literal["OK", "SessionLost"] = OK
    lost: tuple[str, ...] = ()
    ghosts: tuple[str, ...] = ()
    is_lost: bool = False


@dataclass(frozen=True)
class Settle:
    """`settle` of one settlement, addressed to that lease's (id, epoch, claim id). "failure" asks for another run at once."""

    lease: str
    verdict: Literal["success", "failure"]
    expect: Literal["OK", "STALE"]
    is_lost: bool = False


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


@dataclass(frozen=True)
class Trace:
    """`rules`: the name of the broken rules that it convicts."""

    rules: str
    steps: tuple[Step, ...]


def constant_name(rules: str) -> str:
    """The name of the trace's constant below."""
    return rules.upper().replace(" ", "_")


# --- one for each broken set of rules; found by search, not written ------------------------------------------------

FENCE_BY_ID: Final = Trace(
    "fence by id",
    (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",)),
        Lapse("s1"),
        Upkeep(),
        Settle("l1", "success", expect=STALE, is_lost=True),
        Read("READY", 1),
    ),
)

FENCE_BY_ID_AND_STATE: Final = Trace(
    "fence by id and state",
    (
        Register("s1", "w1"),
        Register("s2", "w1"),
        Claim("s2", 1, expect=("l1",)),
        Lapse("s2"),
        Upkeep(),
        Claim("s1", 2, expect=("l2",), is_lost=True),
        Settle("l1", "success", expect=STALE, is_lost=True),
        Read("RUNNING", 2),
    ),
)

FENCE_BY_WORKER_NAME: Final = Trace(
    "fence by worker name",
    (
        Register("s1", "w1"),
        Register("s2", "w1"),
        Claim("s2", 1, expect=("l1",)),
        Lapse("s2"),
        Upkeep(),
        Claim("s1", 2, expect=("l2",), is_lost=True),
        Settle("l1", "success", expect=STALE, is_lost=True),
        Read("RUNNING", 2),
    ),
)

FENCE_BY_EPOCH: Final = Trace(
    "fence by epoch",
    (
        Register("s1", "w1"),
        Snapshot(),
        Claim("s1", 1, expect=("l1",)),
        Restore(),
        Claim("s1", 2, expect=("l2",)),
        Settle("l1", "success", expect=STALE, is_lost=True),
        Read("RUNNING", 1),
    ),
)

FENCE_BY_CLAIM_ID: Final = Trace(
    "fence by claim id",
    (
        Register("s1", "w1"),
        Snapshot(),
        Claim("s1", 1, expect=("l1",)),
        Settle("l1", "failure", expect=OK, is_lost=True),
        Claim("s1", 2, expect=("l2",)),
        Restore(),
        Claim("s1", 2, expect=("l3",), is_lost=True),
        Settle("l2", "success", expect=STALE, is_lost=True),
        Read("RUNNING", 1),
    ),
)

ROW_REMOVED_FIRST: Final = Trace(
    "row removed first",
    (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",)),
        Lapse("s1"),
        Upkeep(limit=1),
        Upkeep(),
        Read("READY", 1),
    ),
)

JOBS_RELEASED_FIRST: Final = Trace(
    "jobs released first",
    (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",)),
        Lapse("s1"),
        Upkeep(limit=1),
        Claim("s1", 2, expect=SESSION_LOST),
        Upkeep(),
        Read("READY", 1),
    ),
)

CLAIM_WITHOUT_SESSION_CHECK: Final = Trace(
    "claim without session check",
    (
        Register("s1", "w1"),
        Lapse("s1"),
        Upkeep(),
        Claim("s1", 1, expect=SESSION_LOST, is_lost=True),
        Read("READY", 0),
    ),
)

CLAIM_WITHOUT_MEMORY: Final = Trace(
    "claim without memory",
    (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",)),
        Claim("s1", 1, expect=("l1",), is_lost=True),
        Read("RUNNING", 1),
    ),
)

CLAIM_WITHOUT_MEMORY_OR_GHOSTS: Final = Trace(
    "claim without memory or ghosts",
    (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",), is_lost=True),
        GhostTime(),
        Beat("s1", seen=1, ghosts=("l1",)),
        Upkeep(),
        Read("READY", 1),
    ),
)

OLD_REQUEST_CLAIMS: Final = Trace(
    "old request claims",
    (
        Register("s1", "w1"),
        Claim("s1", 2, expect=("l1",)),
        Settle("l1", "failure", expect=OK, is_lost=True),
        Claim("s1", 1, expect=(), is_lost=True),
        Read("READY", 1),
    ),
)

NO_GHOSTS: Final = Trace(
    "no ghosts",
    (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",), is_lost=True),
        GhostTime(),
        Beat("s1", seen=1, ghosts=("l1",)),
        Upkeep(),
        Read("READY", 1),
    ),
)

GHOSTS_BY_NAME_ALONE: Final = Trace(
    "ghosts by name alone",
    (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",), is_lost=True),
        GhostTime(),
        Beat("s1", is_lost=True),
        Read("RUNNING", 1),
    ),
)

SETTLE_WITHOUT_REPEAT: Final = Trace(
    "settle without repeat",
    (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",)),
        Settle("l1", "success", expect=OK, is_lost=True),
        Settle("l1", "success", expect=OK, is_lost=True),
        Read("ENDED", 1),
    ),
)

BEAT_REVIVES: Final = Trace(
    "beat revives",
    (
        Register("s1", "w1"),
        Lapse("s1"),
        Upkeep(),
        Beat("s1", expect=SESSION_LOST, is_lost=True),
        Read("READY", 0),
    ),
)

LAPSE_BY_AGE: Final = Trace(
    "lapse by age",
    (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",)),
        Lapse("s1"),
        Beat("s1", names=("l1",), seen=1, is_lost=True),
        Upkeep(),
        Read("RUNNING", 1),
    ),
)

TRACES: Final = (
    FENCE_BY_ID,
    FENCE_BY_ID_AND_STATE,
    FENCE_BY_WORKER_NAME,
    FENCE_BY_EPOCH,
    FENCE_BY_CLAIM_ID,
    ROW_REMOVED_FIRST,
    JOBS_RELEASED_FIRST,
    CLAIM_WITHOUT_SESSION_CHECK,
    CLAIM_WITHOUT_MEMORY,
    CLAIM_WITHOUT_MEMORY_OR_GHOSTS,
    OLD_REQUEST_CLAIMS,
    NO_GHOSTS,
    GHOSTS_BY_NAME_ALONE,
    SETTLE_WITHOUT_REPEAT,
    BEAT_REVIVES,
    LAPSE_BY_AGE,
)
