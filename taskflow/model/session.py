"""Sessions and heartbeats. A session represents a worker in a store, from the worker's registration until it leaves or dies."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgpack
import msgspec

from taskflow.model.clock import instant_of, to_seconds
from taskflow.model.envelope import ClaimId
from taskflow.model.stored_values import FieldReader, instant, octets, text, unpacked, whole
from taskflow.model.verdict import Progress

MAX_DIED_OF: Final = 200
"""The maximum length, in characters, of the text that says why a process died."""

UNKNOWN_DEATH: Final = "an unknown cause"

MAX_NAMES: Final = 1_000


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's session. It may be reaped after `ttl` seconds without a heartbeat.

    `id` is 16 random bytes, new for each session. `wants_ends` is True if the worker's upkeep asks for jobs that have ended without a
    settlement. The fields below are informational: no fence checks them, and stores only copy `name` to the jobs that the worker
    leases, and `deploy` to those that fail.

    `name`    "host:pid"
    `queues`  the queues from which the worker takes jobs; empty for all
    `concurrency` how many jobs it runs at once
    `jobs`    the names of the jobs that its code declares, aliases included; empty if there are more than `MAX_NAMES`
    `deploy`  the value of TASKFLOW_DEPLOY in its environment
    `trouble` why its claims or its upkeep keep failing; empty if they don't
    `surplus` how many of its leases need no slot, because their jobs are in a batch that has one
    """

    id: bytes
    name: str
    ttl: float = 20.0
    queues: tuple[str, ...] = ()
    concurrency: int = 0
    wants_ends: bool = False
    jobs: tuple[str, ...] = ()
    deploy: str = ""
    trouble: str = ""
    surplus: int = 0

    def pack_about(self) -> bytes:
        """Pack the fields that stores only display."""
        about = [self.queues, self.concurrency, self.jobs, self.deploy, self.trouble, self.surplus]
        return bytes(msgpack.packb(about, unicode_errors="replace") or b"")


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A session as its store shows it. `is_dying` is True if it was reaped, but some of its leases have not been released yet."""

    session: Session
    registered_at: datetime
    seconds_since_beat: float
    leases: int
    is_dying: bool

    @property
    def is_alive(self) -> bool:
        """False if the session was reaped, or has been silent for longer than its ttl. If no other worker runs, nothing reaps it."""
        return not self.is_dying and self.seconds_since_beat <= self.session.ttl

    @property
    def busy(self) -> int:
        """The number of slots in use. Leases whose runs haven't started, or share a batch's slot, don't count."""
        slots = self.session.concurrency or self.leases
        return min(max(0, self.leases - self.session.surplus), slots)


def session_record_of(
    *, id: bytes, name: Any, ttl: float, about: Any, registered_at: Any, silent_for: int, leases: int, is_dying: bool
) -> SessionRecord:
    """Return the record of a stored session. `ttl` is in seconds, other times in microseconds. Unreadable fields get their defaults."""
    reader = FieldReader()
    nothing: dict[str, Any] = {}
    return SessionRecord(
        session=Session(id=id, name=reader.read("name", name, text, ""), ttl=ttl, **reader.read("about", about, _about, nothing)),
        registered_at=reader.read("registered_at", registered_at, instant, instant_of(0)),
        seconds_since_beat=max(0.0, to_seconds(silent_for)),
        leases=leases,
        is_dying=is_dying,
    )


def deploy_of(about: Any) -> str:
    """Return the deploy in the fields that `Session.pack_about` packed, or an empty string if it cannot be read."""
    nothing: dict[str, Any] = {}
    deploy: str = FieldReader().read("about", about, _about, nothing).get("deploy", "")
    return deploy


def _about(stored: Any) -> dict[str, Any]:
    queues, concurrency, jobs, deploy, trouble, surplus, *_ = unpacked(octets(stored))
    return {
        "queues": tuple(map(text, queues)),
        "concurrency": whole(concurrency),
        "jobs": tuple(map(text, jobs)),
        "deploy": text(deploy),
        "trouble": text(trouble),
        "surplus": whole(surplus),
    }


class Report(msgspec.Struct, frozen=True):
    """A heartbeat's report on one run: how many seconds ago the run began, and the run's progress, or None if that has not changed."""

    claim: ClaimId
    running_for: float
    progress: Progress | None = None


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """A session's heartbeat, or a report that the session died.

    `claims`    every lease that the session holds. A lease is listed until its settlement is answered, even if its run has ended
    `seen`      the number of the last claim request whose answer the session has processed or given up on. A lease from a later request
                is never a ghost, so a delayed heartbeat cannot take it back
    `leaving`   True in the last heartbeat: the remaining leases are handed back, and the session ends
    `looks`     True to ask for the `WorkHint` as well, so that an idle worker needs no separate query
    `died_of`   why the session's process died ("signal SIGSEGV"), as reported by another process. This ends the session, and each of
                its leases counts as a crash with that cause. Such a heartbeat must carry nothing else: use `of_death` to make it
    """

    session: bytes
    claims: tuple[ClaimId, ...] = ()
    seen: int = 0
    reports: tuple[Report, ...] = ()
    leaving: bool = False
    looks: bool = False
    died_of: str = ""

    @classmethod
    def of_death(cls, session: bytes, died_of: str) -> Beat:
        """Return the report that a session died. `died_of` is truncated to `MAX_DIED_OF` characters; if empty, it is `UNKNOWN_DEATH`."""
        return cls(session=session, died_of=died_of[:MAX_DIED_OF] or UNKNOWN_DEATH)

    def __post_init__(self) -> None:
        if self.died_of and (self.claims or self.seen or self.reports or self.leaving or self.looks):
            raise ValueError(f"died_of={self.died_of!r}: a beat with died_of= must carry nothing else")
        if len(self.died_of) > MAX_DIED_OF:
            raise ValueError(f"died_of has {len(self.died_of)} characters, expected at most {MAX_DIED_OF}: Beat.of_death() shortens it")


class WorkHint(msgspec.Struct, frozen=True):
    """The work that a worker can expect to find in a store.

    `is_ready`  True if a claim may find jobs in some queue
    `due_in`    seconds until upkeep may have work to do; infinite if nothing is waiting for its time
    """

    is_ready: bool
    due_in: float


class BeatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a heartbeat.

    `lost`      the leases in the heartbeat that the session no longer has
    `stopping`  the leases whose runs should stop
    `ghosts`    how many leases were taken back because the heartbeat did not list them
    `work_hint`   set if the heartbeat asked for it
    `paused_jobs` the names of the paused jobs
    """

    lost: tuple[ClaimId, ...] = ()
    stopping: tuple[ClaimId, ...] = ()
    ghosts: int = 0
    work_hint: WorkHint | None = None
    paused_jobs: tuple[str, ...] = ()
