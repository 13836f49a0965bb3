"""The protocol's choices as data: `Rules` is one complete set of them. CORRECT ones hold; each BROKEN one is known from a real queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from tests.protocol_model.states import Job, Lease, ListenerState, Row, Session, Status, Store

Fence = Callable[[Job, Lease], bool]
"""May this settlement, addressed to that lease, take effect on the job in its current state?"""

Reaping = Callable[[Store, Row], Store | None]
"""One bounded call of upkeep, used for one session: the store after it, or None when there is nothing to do for the session."""

Ghosts = Callable[[Lease, tuple[Lease, ...], int], bool]
"""Is the session's lease a ghost, according to a beat that names these leases and has seen the answers up to that request?"""


@dataclass(frozen=True)
class Rules:
    """How a store decides. The defaults are the protocol of the design."""

    name: str
    because: str
    fence: Fence
    reaping: Reaping
    ghosts: Ghosts
    claims_check_session: bool = True
    claims_are_remembered: bool = True
    old_requests_get_nothing: bool = True
    repeats_are_known: bool = True
    lapses_are_marked: bool = False
    beats_revive: bool = False


# --- fences ------------------------------------------------------------------------------------------------------


def by_epoch_and_claim_id(job: Job, lease: Lease) -> bool:
    return job.status is Status.RUNNING and job.lease == lease


def by_id(job: Job, lease: Lease) -> bool:
    return True


def by_id_and_state(job: Job, lease: Lease) -> bool:
    return job.status is Status.RUNNING


def by_worker_name(job: Job, lease: Lease) -> bool:
    return job.status is Status.RUNNING and job.lease is not None and job.lease.session.worker == lease.session.worker


def by_epoch(job: Job, lease: Lease) -> bool:
    return job.status is Status.RUNNING and job.epoch == lease.epoch


def by_claim_id(job: Job, lease: Lease) -> bool:
    return job.status is Status.RUNNING and job.lease is not None and job.lease.claim_id == lease.claim_id


# --- reaping -----------------------------------------------------------------------------------------------------


def dead_first_in_steps(store: Store, row: Row) -> Store | None:
    """Mark the session dead, then release one lease a call; it counts as dying until the last is released, so any later call goes on with
    it."""
    if _may_be_reaped(row):
        return store.with_row(_dead(row, ListenerState.DYING))
    if row.standing is not ListenerState.DYING:
        return None
    leases = store.leases_of(row.session)
    after = store.released(leases[0]) if leases else store
    return after if len(leases) > 1 else after.with_row(_dead(row, ListenerState.GONE))


def in_one_atom(store: Store, row: Row) -> Store | None:
    return _release_all(store, row.session).with_row(_dead(row, ListenerState.GONE)) if _may_be_reaped(row) else None


def row_removed_first(store: Store, row: Row) -> Store | None:
    """Remove the row in one step, its jobs in the next, which looks them up by sessions that no longer exist."""
    if not _may_be_reaped(row):
        return None
    if store.leases_of(row.session):
        return store.with_row(_dead(row, ListenerState.GONE))
    return in_one_atom(store, row)


def jobs_released_first(store: Store, row: Row) -> Store | None:
    """Release the jobs in one step, and the row in the next, whatever the session claimed in between."""
    if not _may_be_reaped(row):
        return None
    if store.leases_of(row.session) and not row.is_marked:
        return _release_all(store, row.session).with_row(row._replace(is_marked=True))
    return store.with_row(_dead(row, ListenerState.GONE))


def by_age(store: Store, row: Row) -> Store | None:
    """Reap each session that was late once, however often it has beaten since."""
    return in_one_atom(store, row._replace(is_lapsed=True)) if row.is_marked else None


def _may_be_reaped(row: Row) -> bool:
    return row.standing is ListenerState.ALIVE and row.is_lapsed


def _dead(row: Row, standing: ListenerState) -> Row:
    return Row(row.session, standing)


def _release_all(store: Store, session: Session) -> Store:
    for lease in store.leases_of(session):
        store = store.released(lease)
    return store


# --- ghosts ------------------------------------------------------------------------------------------------------


def unnamed_and_seen(lease: Lease, named: tuple[Lease, ...], seen: int) -> bool:
    """Age is left out: a store that waits longer before it takes a ghost back only does so less often."""
    return lease not in named and lease.request <= seen


def unnamed(lease: Lease, named: tuple[Lease, ...], seen: int) -> bool:
    return lease not in named


def none_at_all(lease: Lease, named: tuple[Lease, ...], seen: int) -> bool:
    return False


# --- the sets ----------------------------------------------------------------------------------------------------

IN_STEPS: Final = Rules("correct, reaping in steps", "the design", by_epoch_and_claim_id, dead_first_in_steps, unnamed_and_seen)
AT_ONCE: Final = replace(IN_STEPS, name="correct, reaping in one atom", reaping=in_one_atom)

CORRECT: Final = (IN_STEPS, AT_ONCE)

BROKEN: Final = (
    replace(AT_ONCE, name="fence by id", because="UPDATE ... WHERE id = $1 (river#1302, solid_queue#589)", fence=by_id),
    replace(AT_ONCE, name="fence by id and state", because="it runs, so it must be mine", fence=by_id_and_state),
    replace(AT_ONCE, name="fence by worker name", because="a stable name outlives the process (aegra#547)", fence=by_worker_name),
    replace(AT_ONCE, name="fence by epoch", because="a store that loses its tail hands the number out again", fence=by_epoch),
    replace(AT_ONCE, name="fence by claim id", because="a store that loses its tail gives the same request another run", fence=by_claim_id),
    replace(AT_ONCE, name="row removed first", because="jobs of a removed session are looked up nowhere", reaping=row_removed_first),
    replace(AT_ONCE, name="jobs released first", because="a claim slips in before the session dies", reaping=jobs_released_first),
    replace(AT_ONCE, name="claim without session check", because="a reaped session claims (solid_queue#159)", claims_check_session=False),
    replace(AT_ONCE, name="claim without memory", because="the resent request claims anew", claims_are_remembered=False),
    replace(
        AT_ONCE,
        name="claim without memory or ghosts",
        because="what the lost answer gave is held by nobody, for ever",
        claims_are_remembered=False,
        ghosts=none_at_all,
    ),
    replace(
        AT_ONCE, name="old request claims", because="a delayed copy of an answered request claims anew", old_requests_get_nothing=False
    ),
    replace(AT_ONCE, name="no ghosts", because="an answer given up on leaves a lease that nobody holds", ghosts=none_at_all),
    replace(AT_ONCE, name="ghosts by name alone", because="a beat long under way takes back what a later answer gave", ghosts=unnamed),
    replace(AT_ONCE, name="settle without repeat", because="a lost reply turns into STALE", repeats_are_known=False),
    replace(IN_STEPS, name="beat revives", because="an upsert brings the reaped session back", beats_revive=True),
    replace(
        AT_ONCE,
        name="lapse by age",
        because="rescued by age although its worker beats (hexpm#1825)",
        reaping=by_age,
        lapses_are_marked=True,
    ),
)
