"""The counterexamples as traces: actions of a client, time and mishaps on a broker, step by step, and the answers of a CORRECT one.

The search found every trace as a shortest way to the harm that one broken set of rules does; there, a broker with those rules answers
differently from the trace. A real broker must answer as the trace says at every step. This module is independent of the model.

How to replay one on a broker: enqueue one job (no retry wait: a failure is READY again at once), then take the steps in order. Sessions and
leases are names: `Register("s1")` creates a session, a `Claim` that expects ("l1",) binds "l1" to the lease that it got. All steps are
awaited one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

SESSION_LOST: Final = "SessionLost"
OK: Final = "OK"
STALE: Final = "STALE"


@dataclass(frozen=True)
class Register:
    """`register` for a session with a fresh id, or again for a known one. Two lives of one worker have the same name."""

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
    """The session's ttl passes without a beat, while others beat (at least one must: otherwise it counts as the store's outage)."""

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
    """The store's files are copied: later changes may be lost."""


@dataclass(frozen=True)
class Restore:
    """The store loses its latest changes: it is again as it was at the Snapshot."""


@dataclass(frozen=True)
class Read:
    """`read` of the job: its status (ENDED means SUCCEEDED here) and its epoch, which counts its leases."""

    status: Literal["READY", "RUNNING", "ENDED"]
    epoch: int


Step = Register | Claim | Beat | Settle | Lapse | GhostTime | Upkeep | Snapshot | Restore | Read


TRACES: Final[dict[str, tuple[Step, ...]]] = {
    "fence by id": (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",)),
        Lapse("s1"),
        Upkeep(),
        Settle("l1", "success", expect=STALE),
        Read("READY", 1),
    ),
    "fence by id and state": (
        Register("s1", "w1"),
        Register("s2", "w1"),
        Claim("s2", 1, expect=("l1",)),
        Lapse("s2"),
        Upkeep(),
        Claim("s1", 2, expect=("l2",)),
        Settle("l1", "success", expect=STALE),
        Read("RUNNING", 2),
    ),
    "fence by worker name": (
        Register("s1", "w1"),
        Register("s2", "w1"),
        Claim("s2", 1, expect=("l1",)),
        Lapse("s2"),
        Upkeep(),
        Claim("s1", 2, expect=("l2",)),
        Settle("l1", "success", expect=STALE),
        Read("RUNNING", 2),
    ),
    "fence by epoch": (
        Register("s1", "w1"),
        Snapshot(),
        Claim("s1", 1, expect=("l1",)),
        Restore(),
        Claim("s1", 2, expect=("l2",)),
        Settle("l1", "success", expect=STALE),
        Read("RUNNING", 1),
    ),
    "fence by claim id": (
        Register("s1", "w1"),
        Snapshot(),
        Claim("s1", 1, expect=("l1",)),
        Settle("l1", "failure", expect=OK),
        Claim("s1", 2, expect=("l2",)),
        Restore(),
        Claim("s1", 2, expect=("l3",)),
        Settle("l2", "success", expect=STALE),
        Read("RUNNING", 1),
    ),
    "row removed first": (Register("s1", "w1"), Claim("s1", 1, expect=("l1",)), Lapse("s1"), Upkeep(limit=1), Upkeep(), Read("READY", 1)),
    "jobs released first": (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",)),
        Lapse("s1"),
        Upkeep(limit=1),
        Claim("s1", 2, expect=SESSION_LOST),
        Upkeep(),
        Read("READY", 1),
    ),
    "claim without session check": (Register("s1", "w1"), Lapse("s1"), Upkeep(), Claim("s1", 1, expect=SESSION_LOST), Read("READY", 0)),
    "claim without memory": (Register("s1", "w1"), Claim("s1", 1, expect=("l1",)), Claim("s1", 1, expect=("l1",)), Read("RUNNING", 1)),
    "claim without memory or ghosts": (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",)),
        GhostTime(),
        Beat("s1", seen=1, ghosts=("l1",)),
        Upkeep(),
        Read("READY", 1),
    ),
    "old request claims": (
        Register("s1", "w1"),
        Claim("s1", 2, expect=("l1",)),
        Settle("l1", "failure", expect=OK),
        Claim("s1", 1, expect=()),
        Read("READY", 1),
    ),
    "no ghosts": (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",)),
        GhostTime(),
        Beat("s1", seen=1, ghosts=("l1",)),
        Upkeep(),
        Read("READY", 1),
    ),
    "ghosts by name alone": (Register("s1", "w1"), Claim("s1", 1, expect=("l1",)), GhostTime(), Beat("s1"), Read("RUNNING", 1)),
    "settle without repeat": (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",)),
        Settle("l1", "success", expect=OK),
        Settle("l1", "success", expect=OK),
        Read("ENDED", 1),
    ),
    "beat revives": (Register("s1", "w1"), Lapse("s1"), Upkeep(), Beat("s1", expect=SESSION_LOST), Read("READY", 0)),
    "lapse by age": (
        Register("s1", "w1"),
        Claim("s1", 1, expect=("l1",)),
        Lapse("s1"),
        Beat("s1", names=("l1",), seen=1),
        Upkeep(),
        Read("RUNNING", 1),
    ),
}
"""By the name of the broken rules that each trace detects: found by search, not written."""
