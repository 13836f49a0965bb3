"""The `settle`, `cancel` and `read` verbs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from taskflow.broker.sqlite.enqueue import add_all
from taskflow.broker.sqlite.lease_cache import StaleCache
from taskflow.broker.sqlite.row import JobRow, is_possible, pack_claim, pack_fence, pack_progress, unpack_claim
from taskflow.broker.sqlite.size_limits import check_payloads, check_result
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.model import wording
from taskflow.model.clock import to_microseconds
from taskflow.model.record import CODES, Record, Status
from taskflow.model.transitions import Event, apply_verdict
from taskflow.model.verdict import Settled, Settlement, Succeeded


def settle(transitions: Transitions, settlements: Sequence[Settlement]) -> list[Settled]:
    """Settle runs that affect no other job as a batch, and the rest one by one. The order makes no difference."""
    if len({settlement.id for settlement in settlements}) < len(settlements):
        # Later settlements of the same job are repeats, and find what the first one left.
        return [_settle_one(transitions, settlement) for settlement in settlements]
    if _settle_cached(transitions, settlements):
        return [Settled.OK] * len(settlements)
    settled = _settle_lone_runs(transitions, settlements)
    return [
        Settled.OK if is_settled else _settle_one(transitions, settlement)
        for settlement, is_settled in zip(settlements, settled, strict=True)
    ]


# --- as a batch --------------------------------------------------------------------------------------------------


def _settle_cached(transitions: Transitions, settlements: Sequence[Settlement]) -> bool:
    """If all settlements are plain successes (without follow-ups or progress) of cached
    leases, settle them without a look-up and return True. Otherwise settle none and return False.

    Raises StaleCache if one of these leases has been lost.
    """
    rows, queues = list[tuple[object, ...]](), list[int]()
    for settlement in settlements:
        cached = transitions.lease_cache.find(settlement)
        # `is_plain_success` inlined, because a function call per job is too slow
        if cached is None or type(settlement.verdict) is not Succeeded or settlement.follow_ups or settlement.progress is not None:
            return False
        rows.append((cached.seq, *_success(transitions.now, settlement, settlement.verdict, cached.fence)))
        queues.append(cached.queue)
    before = transitions.connection.total_changes  # a cursor's rowcount does not count the rows of statements that begin with WITH
    transitions.execute_rows("settle_cached", rows, transitions.now)
    if transitions.connection.total_changes - before < len(rows):
        raise StaleCache
    _count_successes(transitions, [settlement.id for settlement in settlements], Counter(queues))
    return True


def _count_successes(transitions: Transitions, ids: Sequence[bytes], by_queue: Counter[int]) -> None:
    for queue, number in by_queue.items():
        transitions.tally.move(queue, Event.SUCCEED, CODES[Status.RUNNING], CODES[Status.SUCCEEDED], number)
    transitions.lease_cache.drop(ids)
    transitions.announcement.ended.update(ids)


def _success(now: int, settlement: Settlement, verdict: Succeeded, fence: bytes) -> tuple[object, ...]:
    """Return the values to store for a success: settled, started_at, result, fade_at."""
    return (fence, now - to_microseconds(settlement.ran_for), check_result(verdict.result), now + to_microseconds(settlement.keep_for))


def _settle_lone_runs(transitions: Transitions, settlements: Sequence[Settlement]) -> list[bool]:
    """Settle, as one batch, the runs that affect no other job. Return for each settlement whether it was settled.

    A run is settled here if its job has no key and no other job waits for it, its fence matches, it has
    neither follow-ups nor progress, and it was not asked to stop. Unsound rows are left out.
    """
    claims = {
        number: pack_claim(settlement.claim)
        for number, settlement in enumerate(settlements)
        if not settlement.follow_ups and settlement.progress is None and is_possible(settlement)
    }
    fences = [(number, claim, settlements[number].id, settlements[number].epoch) for number, claim in claims.items()]
    states = {
        state.number: state for (packed,) in transitions.fetch_rows("states_of_lone_runs", fences) for state in _STATES.decode(packed)
    }
    succeeded, rows = list[int](), list[tuple[object, ...]]()
    for number in states:
        settlement = settlements[number]
        if isinstance(settlement.verdict, Succeeded):
            fence = pack_fence(settlement.epoch, claims[number])
            rows.append((claims[number], *_success(transitions.now, settlement, settlement.verdict, fence)))
            succeeded.append(number)
    transitions.execute_rows("settle_lone_successes", rows, transitions.now)
    _count_successes(transitions, [settlements[number].id for number in succeeded], Counter(states[number].queue for number in succeeded))
    with transitions.saving_together():
        for number in sorted(states.keys() - set(succeeded)):
            job = states[number].to_job(settlements[number], claims[number])
            _apply_verdict(transitions, job, settlements[number], pack_fence(job.epoch, claims[number]))
    return [number in states for number in range(len(settlements))]


class _State(msgspec.Struct, array_like=True):
    """The state of one run, from `states_of_lone_runs`: no key or join ties its job to another, and no one asked it to stop."""

    number: int
    seq: int
    queue: int
    due_at: int
    failures: int
    crashes: int
    snoozes: int
    hand_backs: int
    parked_at: int | None
    errors: str
    worker: str

    def to_job(self, settlement: Settlement, claim: bytes) -> JobRow:
        """Return a row with the columns that the end of a run uses. The others are neither read nor saved."""
        return JobRow(
            seq=self.seq,
            id=settlement.id,
            code=CODES[Status.RUNNING],
            queue=self.queue,
            due_at=self.due_at,
            epoch=settlement.epoch,
            claim=claim,
            failures=self.failures,
            crashes=self.crashes,
            snoozes=self.snoozes,
            hand_backs=self.hand_backs,
            parked_at=self.parked_at,
            errors=bytes.fromhex(self.errors) or None,
            worker=bytes.fromhex(self.worker).decode(errors="replace"),
        )


_STATES: Final = msgspec.json.Decoder(list[_State])


# --- one by one --------------------------------------------------------------------------------------------------


def complete(transitions: Transitions, settlement: Settlement) -> Settled:
    """Settle a run in a caller's transaction. Once that has committed, `settle` answers COMMITTED."""
    return _settle_one(transitions, settlement, is_callers=True)


def _settle_one(transitions: Transitions, settlement: Settlement, *, is_callers: bool = False) -> Settled:
    job = transitions.job(settlement.id) if is_possible(settlement) else None
    if job is None:
        return Settled.STALE
    claim = pack_claim(settlement.claim)
    fence = pack_fence(settlement.epoch, claim, is_callers=is_callers)
    if job.status is not Status.RUNNING or job.claim != claim or job.epoch != settlement.epoch:
        if job.settled == fence:
            return Settled.OK
        is_committed = not is_callers and job.settled == pack_fence(settlement.epoch, claim, is_callers=True)
        return Settled.COMMITTED if is_committed else Settled.STALE
    _apply_verdict(transitions, job, settlement, fence)
    check_payloads(settlement.follow_ups)
    add_all(transitions, settlement.follow_ups)
    return Settled.OK


def _apply_verdict(transitions: Transitions, job: JobRow, settlement: Settlement, fence: bytes) -> None:
    job.settled = fence
    job.started_at = transitions.now - to_microseconds(settlement.ran_for)
    job.progress = pack_progress(settlement.progress) or job.progress
    transition = apply_verdict(job.counters, settlement.verdict, transitions.rules, transitions.now, settlement.cause)
    if job.is_poison:  # no run has reported an outcome
        transition = transition._replace(counters=job.counters)
    transitions.settled_seq = job.seq
    if isinstance(settlement.verdict, Succeeded):
        job.result, job.payload = check_result(settlement.verdict.result), None
        transitions.apply(job, transition, keep=settlement.keep_for)
    else:
        transitions.apply(job, transition)
    transitions.settled_seq = None


# --- cancel, read ------------------------------------------------------------------------------------------------


def cancel(transitions: Transitions, ids: Sequence[bytes]) -> list[Status | None]:
    return [_cancel_one(transitions, transitions.job(job_id)) for job_id in ids]


def _cancel_one(transitions: Transitions, job: JobRow | None) -> Status | None:
    if job is None or not job.is_kept(transitions.now):
        return None
    found = job.status
    if found is not None and found.is_waiting:
        transitions.finish(job, Event.CANCEL, Status.CANCELLED, wording.CANCELLED)
    elif found is Status.RUNNING and job.claim is not None:
        job.cancel_requested = wording.CANCELLED
        transitions.save(job)
        transitions.announcement.stopping.add(unpack_claim(job.claim).session)
    return found


def live_holders(transitions: Transitions, keys: Sequence[bytes]) -> list[bytes | None]:
    found = [waiting or running for waiting, running in map(transitions.holders, keys)]
    return [None if job is None else job.id for job in found]


def read(transitions: Transitions, ids: Sequence[bytes]) -> list[Record | None]:
    found = [transitions.job(job_id) for job_id in ids]
    return [transitions.record(job) if job is not None and job.is_kept(transitions.now) else None for job in found]
