"""What must never happen, in words and as code. Each invariant checks one step of the world; `violated` returns the first that it breaks.

A restored store begins a new history: comparisons over a step do not apply to the loss of the tail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.protocol_model import verbs
from tests.protocol_model.rules import Rules
from tests.protocol_model.states import SESSION_LOST, Lease, ListenerState, Settled, Status, Store
from tests.protocol_model.world import Action, BeatArrived, ClaimArrived, SettlementArrived, TailLost, UpkeepResult, World

Invariant = Callable[[Rules, World, Action, World], bool]


def a_settlement_ends_its_own_run(rules: Rules, before: World, action: Action, after: World) -> bool:
    """When a settlement takes effect, the job runs, and its present lease is the settled run's."""
    return all(before.store.jobs[lease.job].lease == lease for lease in _took_effect(before, action, after))


def nothing_takes_effect_twice(rules: Rules, before: World, action: Action, after: World) -> bool:
    """However often a settlement is sent, it takes effect (and a failure counts) once in a history: the epochs of outcomes rise."""
    outcomes = [(lease, before.store.jobs[lease.job].outcome) for lease in _took_effect(before, action, after)]
    return all(last is None or lease.epoch > last.epoch for lease, last in outcomes)


def the_reaped_settle_nothing(rules: Rules, before: World, action: Action, after: World) -> bool:
    """A lease whose session was reaped and whose job was released settles nothing."""
    return all(_stands(before.store, lease) is not ListenerState.GONE for lease in _took_effect(before, action, after))


def the_living_keep_their_jobs(rules: Rules, before: World, action: Action, after: World) -> bool:
    """A lease is withdrawn only from a session that lapsed and has not beaten since; a beat takes back only leases that no worker can come
    to hold."""
    for lease in _released(before, action, after):
        if isinstance(action, BeatArrived) and _is_known(before, lease):
            return False
        if isinstance(action, UpkeepResult) and not _may_be_taken_from(before.store, lease):
            return False
    return True


def the_dead_stay_dead(rules: Rules, before: World, action: Action, after: World) -> bool:
    """A reaped session does not live again."""
    alive = {row.session for row in after.store.rows if row.standing is ListenerState.ALIVE}
    return all(row.session not in alive for row in before.store.rows if row.standing is not ListenerState.ALIVE)


def epochs_only_rise(rules: Rules, before: World, action: Action, after: World) -> bool:
    """Within one history of a store, no job's epoch goes down."""
    return all(new.epoch >= old.epoch for old, new in zip(before.store.jobs, after.store.jobs, strict=True))


def a_request_is_granted_once(rules: Rules, before: World, action: Action, after: World) -> bool:
    """A request that the store has answered is granted nothing more: the last one gets its leases again, an older one nothing."""
    if not isinstance(action, ClaimArrived) or action.answer is SESSION_LOST:
        return True
    row = before.store.row(action.session)
    if row is None or action.request > row.request:
        return True
    return action.answer == (before.store.answer_to(action.session, action.request) if action.request == row.request else ())


def an_answer_tells_the_truth(rules: Rules, before: World, action: Action, after: World) -> bool:
    """A settlement is answered OK if it is the job's last outcome, now or before, otherwise STALE."""
    if not isinstance(action, SettlementArrived):
        return True
    outcome = after.store.jobs[action.lease.job].outcome
    return (outcome == action.lease) == (action.answer is Settled.OK)


def every_lease_is_in_hands(rules: Rules, before: World, action: Action, after: World) -> bool:
    """No job is lost: a worker holds a running one, or will learn of it, or a beat or upkeep gives it back."""
    return all(job.lease is None or _is_in_hands(rules, after, job.lease) for job in after.store.jobs)


def every_running_job_has_its_lease(rules: Rules, before: World, action: Action, after: World) -> bool:
    """RUNNING means leased under the job's epoch; READY and ENDED mean not leased."""
    return all(
        (job.status is Status.RUNNING) == (job.lease is not None) and (job.lease is None or job.lease.epoch == job.epoch)
        for job in after.store.jobs
    )


IN_A_HISTORY: Final[tuple[Invariant, ...]] = (
    a_settlement_ends_its_own_run,
    nothing_takes_effect_twice,
    the_reaped_settle_nothing,
    the_living_keep_their_jobs,
    the_dead_stay_dead,
    epochs_only_rise,
)
OF_ANSWERS: Final[tuple[Invariant, ...]] = (a_request_is_granted_once, an_answer_tells_the_truth)
OF_STATES: Final[tuple[Invariant, ...]] = (every_lease_is_in_hands, every_running_job_has_its_lease)


def violated(rules: Rules, before: World, action: Action, after: World, *, is_new: bool) -> Invariant | None:
    """Return the first invariant that the step breaks. Those of states are checked only in new states."""
    if isinstance(action, ClaimArrived | SettlementArrived):
        for holds in OF_ANSWERS:
            if not holds(rules, before, action, after):
                return holds
    if before.store is not after.store and not isinstance(action, TailLost):
        for holds in IN_A_HISTORY:
            if not holds(rules, before, action, after):
                return holds
    if is_new:
        for holds in OF_STATES:
            if not holds(rules, before, action, after):
                return holds
    return None


# --- what they look at ---------------------------------------------------------------------------------------------


def _took_effect(before: World, action: Action, after: World) -> list[Lease]:
    """Return the lease whose settlement took effect in this step: a list of none or one."""
    return [action.lease] if isinstance(action, SettlementArrived) and before.store is not after.store else []


def _released(before: World, action: Action, after: World) -> list[Lease]:
    """Return the leases that ended without a settlement."""
    if isinstance(action, SettlementArrived):
        return []
    pairs = zip(before.store.jobs, after.store.jobs, strict=True)
    return [old.lease for old, new in pairs if old.lease is not None and old.lease != new.lease]


def _stands(store: Store, lease: Lease) -> ListenerState | None:
    row = store.row(lease.session)
    return None if row is None else row.standing


def _may_be_taken_from(store: Store, lease: Lease) -> bool:
    row = store.row(lease.session)
    return row is not None and (row.is_lapsed or row.standing is ListenerState.DYING)


def _is_known(world: World, lease: Lease) -> bool:
    """Return True if the worker holds it, or still waits for the answer with it."""
    process = world.process_in(lease.session)
    return process is not None and (lease in process.holds or process.seen < lease.request)


def _is_in_hands(rules: Rules, world: World, lease: Lease) -> bool:
    standing = _stands(world.store, lease)
    if standing is not ListenerState.ALIVE:
        return standing is not None and verbs.upkeep(rules, world.store).jobs[lease.job].lease != lease
    process = world.process_in(lease.session)
    if process is None or lease in process.holds:
        return True  # it will lapse, since nobody beats; or it will settle, or hear that it may not
    if process.seen < lease.request and _will_be_told(rules, world.store, lease):
        return True
    seen = max(process.seen, lease.request)
    after, _ = verbs.beat(rules, world.store, lease.session, process.holds, seen)
    return after.jobs[lease.job].lease != lease


def _will_be_told(rules: Rules, store: Store, lease: Lease) -> bool:
    _, answer = verbs.claim(rules, store, lease.session, lease.request, 1)
    return answer is not SESSION_LOST and lease in answer
