"""A store's operations: each is atomic, and returns the next store and an answer."""

from __future__ import annotations

from tests.protocol_model.rules import Rules
from tests.protocol_model.states import (
    SESSION_LOST,
    BeatAnswer,
    Granted,
    Job,
    Lease,
    ListenerState,
    Row,
    Session,
    SessionLost,
    Settled,
    Status,
    Store,
    Verdict,
)


def register(store: Store, session: Session) -> tuple[Store, SessionLost | None]:
    """The session is known from now on; a dead session remains dead."""
    row = store.row(session)
    if row is None:
        return store.with_row(Row(session)), None
    return store, None if row.standing is ListenerState.ALIVE else SESSION_LOST


def claim(rules: Rules, store: Store, session: Session, request: int, limit: int) -> tuple[Store, Granted | SessionLost]:
    """Lease up to `limit` ready jobs to a living session; the last request, repeated, gets its answer again, and an older one nothing."""
    row = store.row(session)
    if row is None or (rules.claims_check_session and row.standing is not ListenerState.ALIVE):
        return store, SESSION_LOST
    if rules.claims_are_remembered and request == row.request:
        return store, store.answer_to(session, request)
    if rules.old_requests_get_nothing and request < row.request:
        return store, ()
    return _grant(store, row, request, limit)


def _grant(store: Store, row: Row, request: int, limit: int) -> tuple[Store, Granted]:
    ready = [index for index, job in enumerate(store.jobs) if job.status is Status.READY][:limit]
    granted = tuple(Lease(job, store.jobs[job].epoch + 1, row.session, request, index) for index, job in enumerate(ready))
    for lease in granted:
        job = store.jobs[lease.job]
        store = store.with_job(lease.job, job._replace(status=Status.RUNNING, epoch=lease.epoch, lease=lease))
    return store.with_row(row._replace(request=request)), granted


def beat(rules: Rules, store: Store, session: Session, named: tuple[Lease, ...], seen: int) -> tuple[Store, BeatAnswer | SessionLost]:
    """The session has not lapsed any more. Return which of the named leases are lost, and take back leases that the session does not
    know."""
    row = store.row(session)
    if row is None or (row.standing is not ListenerState.ALIVE and not rules.beats_revive):
        return store, SESSION_LOST
    if row.is_lapsed or row.standing is not ListenerState.ALIVE:
        store = store.with_row(row._replace(is_lapsed=False, standing=ListenerState.ALIVE))
    lost = tuple(lease for lease in named if store.jobs[lease.job].lease != lease)
    ghosts = tuple(lease for lease in store.leases_of(session) if rules.ghosts(lease, named, seen))
    for lease in ghosts:
        store = store.released(lease)
    return store, BeatAnswer(lost, ghosts)


def settle(rules: Rules, store: Store, lease: Lease, verdict: Verdict) -> tuple[Store, Settled]:
    """The verdict takes effect if the fence allows it. The last one that took effect, sent again, is OK and changes nothing."""
    job = store.jobs[lease.job]
    if rules.repeats_are_known and job.outcome == lease:
        return store, Settled.OK
    if not rules.fence(job, lease):
        return store, Settled.STALE
    status = Status.ENDED if verdict is Verdict.SUCCESS else Status.READY
    return store.with_job(lease.job, Job(status, job.epoch, None, lease)), Settled.OK


def lapse(rules: Rules, store: Store, row: Row) -> Store:
    """The ttl passes without a beat. This is no operation: time does it."""
    return store.with_row(row._replace(is_lapsed=True, is_marked=row.is_marked or rules.lapses_are_marked))


def upkeep(rules: Rules, store: Store, calls: int | None = None) -> Store:
    """Make this many bounded calls of upkeep, each one move for one session; if `calls` is None, until there is nothing more to do."""
    while calls is None or calls > 0:
        after = next((moved for row in store.rows if (moved := rules.reaping(store, row)) is not None), None)
        if after is None:
            return store
        store = after
        calls = None if calls is None else calls - 1
    return store
