"""settle, cancel, read."""

from __future__ import annotations

from collections.abc import Sequence

from taskflow.broker import topics, words
from taskflow.broker.sqlite.enqueue import add_all
from taskflow.broker.sqlite.row import Job, pack_claim, pack_fence, storable, unpack_claim
from taskflow.broker.sqlite.shelf import Shelf
from taskflow.model.clock import to_microseconds
from taskflow.model.record import Event, Record, Status
from taskflow.model.verdict import (
    Cancelled,
    Discarded,
    Failed,
    HandedBack,
    Parked,
    Retried,
    RunError,
    Settled,
    Settlement,
    Snoozed,
    Succeeded,
    append_error,
)


def settle(shelf: Shelf, settlements: Sequence[Settlement]) -> list[Settled]:
    return [_settle_one(shelf, settlement) for settlement in settlements]


def _settle_one(shelf: Shelf, settlement: Settlement) -> Settled:
    job = shelf.job(settlement.id)
    if job is None:
        return Settled.STALE
    claim = pack_claim(settlement.claim)
    fence = pack_fence(settlement.epoch, claim)
    if job.status is not Status.RUNNING or job.claim != claim or job.epoch != settlement.epoch:
        return Settled.OK if job.settled == fence else Settled.STALE
    job.settled = fence
    job.started_at = shelf.now - to_microseconds(settlement.ran_for)
    _apply(shelf, job, settlement)
    add_all(shelf, settlement.follow_ups)
    return Settled.OK


def _apply(shelf: Shelf, job: Job, settlement: Settlement) -> None:
    verdict, now = settlement.verdict, shelf.now
    if not isinstance(verdict, HandedBack | Parked):
        _progressed(job)
    match verdict:
        case Succeeded(result):
            job.result, job.payload = result, None
            shelf.end(job, Event.SUCCEED, Status.SUCCEEDED, keep=settlement.keep_for)
        case Failed(error):
            _fail_once(shelf, job, error)
            shelf.end(job, Event.FAIL, Status.FAILED, f"{error.type}: {error.message}")
        case Discarded(reason):
            shelf.end(job, Event.DISCARD, Status.FAILED, reason)
        case Cancelled(reason):
            shelf.end(job, Event.CANCEL, Status.CANCELLED, reason)
        case Retried(error, after):
            _fail_once(shelf, job, error)
            shelf.wait_again(job, Event.RETRY, now + to_microseconds(after))
        case Snoozed(after):
            job.snoozes += 1
            shelf.wait_again(job, Event.SNOOZE, now + to_microseconds(after))
        case Parked(waiting_for, after):
            job.parked_at = now if job.parked_at is None else job.parked_at
            job.waiting_for = storable(waiting_for)
            shelf.wait_again(job, Event.PARK, now + to_microseconds(after))
        case HandedBack(counts):
            hand_back(shelf, job, counts=counts)
        case _:
            raise TypeError(f"{verdict!r} is no verdict that a store knows")


def _progressed(job: Job) -> None:
    """A run came to something: what counts lost leases in a row begins again."""
    job.crashes = job.hand_backs = 0
    job.parked_at = None


def _fail_once(shelf: Shelf, job: Job, error: RunError) -> None:
    job.failures += 1
    job.errors = append_error(job.errors, error, shelf.now)


def hand_back(shelf: Shelf, job: Job, *, counts: bool) -> None:
    job.hand_backs += counts
    if job.hand_backs > shelf.rules.max_hand_backs and job.cancel_requested is None:
        poison(shelf, job, Event.HAND_BACK, words.handed_back_in_vain(job.hand_backs))
    else:
        shelf.wait_again(job, Event.HAND_BACK)


def poison(shelf: Shelf, job: Job, event: Event, why: str) -> None:
    job.is_poison = 1
    shelf.end(job, event, Status.FAILED, words.poison(why))


# --- cancel, read ------------------------------------------------------------------------------------------------


def cancel(shelf: Shelf, ids: Sequence[bytes]) -> list[Status | None]:
    return [_cancel_one(shelf, shelf.job(job_id)) for job_id in ids]


def _cancel_one(shelf: Shelf, job: Job | None) -> Status | None:
    if job is None or not job.is_kept(shelf.now):
        return None
    found = job.status
    if found is not None and found.is_waiting:
        shelf.end(job, Event.CANCEL, Status.CANCELLED, words.CANCELLED)
    elif found is Status.RUNNING and job.claim is not None:
        job.cancel_requested = words.CANCELLED
        shelf.save(job)
        shelf.rung.add(topics.session(unpack_claim(job.claim).session))
    return found


def read(shelf: Shelf, ids: Sequence[bytes]) -> list[Record | None]:
    found = [shelf.job(job_id) for job_id in ids]
    return [shelf.record(job) if job is not None and job.is_kept(shelf.now) else None for job in found]
