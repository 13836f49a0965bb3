"""A store's contents, as hashable tuples: two stores with the same contents are the same state of the search.

Time does not occur. That a session has not beaten for its ttl is a fact in its row (`is_lapsed`), which may become true at any moment: a
paused, slow or cut-off worker is one that has no turn.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final, NamedTuple


class Session(NamedTuple):
    """One incarnation of a worker process. Workers keep their name (`worker`) over a restart, but never their `life`."""

    worker: int
    life: int


class Lease(NamedTuple):
    """A job given to a session. (session, request, place) is the claim id; with the epoch it is the fence."""

    job: int
    epoch: int
    session: Session
    request: int
    place: int

    @property
    def claim_id(self) -> tuple[Session, int, int]:
        return self.session, self.request, self.place


class Status(StrEnum):
    """SCHEDULED is left out: a wait before READY adds orders of events, but no move that the protocol forbids."""

    READY = "READY"
    RUNNING = "RUNNING"
    ENDED = "ENDED"


class Job(NamedTuple):
    """`outcome`: the lease whose settlement took effect last."""

    status: Status = Status.READY
    epoch: int = 0
    lease: Lease | None = None
    outcome: Lease | None = None


class ListenerState(StrEnum):
    """DYING: dead, with leases that upkeep still has to release. GONE: dead, and ignored by upkeep."""

    ALIVE = "ALIVE"
    DYING = "DYING"
    GONE = "GONE"


class Row(NamedTuple):
    """A session as the store knows it, with the last claim request that it answered.

    The answer is the leases that remain of that request. `is_marked` serves only broken ways of reaping: a note on which such a reaper
    later acts without checking again.
    """

    session: Session
    standing: ListenerState = ListenerState.ALIVE
    is_lapsed: bool = False
    request: int = 0
    is_marked: bool = False


class Store(NamedTuple):
    """One store: the jobs that were enqueued (durably, before the search begins) and the sessions, in order."""

    jobs: tuple[Job, ...]
    rows: tuple[Row, ...] = ()

    def row(self, session: Session) -> Row | None:
        for row in self.rows:
            if row.session == session:
                return row
        return None

    def with_row(self, new: Row) -> Store:
        others = [row for row in self.rows if row.session != new.session]
        return Store(self.jobs, tuple(sorted([*others, new])))

    def with_job(self, index: int, new: Job) -> Store:
        return Store((*self.jobs[:index], new, *self.jobs[index + 1 :]), self.rows)

    def answer_to(self, session: Session, request: int) -> tuple[Lease, ...]:
        """Return the leases of the request: its answer, without those that are no longer the session's."""
        return tuple(lease for lease in self.leases_of(session) if lease.request == request)

    def leases_of(self, session: Session) -> list[Lease]:
        return [job.lease for job in self.jobs if job.lease is not None and job.lease.session == session]

    def released(self, lease: Lease) -> Store:
        """Return the store without the lease: its job is READY again, its epoch is unchanged."""
        return self.with_job(lease.job, self.jobs[lease.job]._replace(status=Status.READY, lease=None))


class Verdict(StrEnum):
    """A run's outcome. FAILURE requests another run at once; handing back is the same to the fence."""

    SUCCESS = "success"
    FAILURE = "failure"


class Settled(StrEnum):
    OK = "OK"
    STALE = "STALE"


class _Lost(Enum):
    SESSION_LOST = "SessionLost"

    def __repr__(self) -> str:
        return self.value


SESSION_LOST: Final = _Lost.SESSION_LOST
SessionLost = _Lost


class BeatAnswer(NamedTuple):
    """`lost`: claims named that are not leased under that fence; `ghosts`: leases that went back because no session knows them."""

    lost: tuple[Lease, ...] = ()
    ghosts: tuple[Lease, ...] = ()


Granted = tuple[Lease, ...]
