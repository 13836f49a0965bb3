"""The time line of a job: when it was sent, when each run that is known started and ended, and what comes next."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from taskflow.model.clock import instant_of
from taskflow.model.record import WAITING, Record, Status
from taskflow.model.verdict import RunEnding, RunError


class Moment(NamedTuple):
    """An event in the life of a job, which may be in the future."""

    at: datetime
    text: str


def timeline(record: Record, now: datetime) -> list[Moment]:
    """Return what is known of the job's life. Runs that were snoozed, parked or handed back leave no trace."""
    last = record.errors[-1] if record.errors else None
    ran_at = record.started_at or (record.claimed_at if record.status is Status.RUNNING else None)
    if record.status in WAITING or (last is not None and ran_at == instant_of(last.started_at)):
        ran_at = None  # the last run came back, or is the one that left the last error
    is_ready_at_once = last is None and record.due_at == record.created_at
    found = [Moment(record.created_at, "sent, and ready at once" if is_ready_at_once else "sent")]
    lost = record.failures - sum(error.ending is not RunEnding.CRASHED for error in record.errors)
    if lost > 0 and last is not None:
        found.append(Moment(record.created_at, f"{lost:,} earlier {'failures are' if lost > 1 else 'failure is'} no longer kept"))
    for error in record.errors:
        found += _failed_run(error)
    was_ready = record.status is Status.READY if ran_at is None else record.due_at <= ran_at
    if was_ready and not is_ready_at_once and record.due_at >= found[-1].at:
        found.append(Moment(record.due_at, "ready"))
    if ran_at is not None:
        found.append(_started(ran_at, record.attempt, record.worker))
    return [*found, *_what_follows(record, now)]


def _failed_run(error: RunError) -> Iterator[Moment]:
    if error.started_at:
        yield _started(instant_of(error.started_at), error.attempt, error.worker)
    is_crash = error.ending is RunEnding.CRASHED
    ending = f": {error.message}" if is_crash else f" {error.ending}: {error.type}: {error.message}"
    yield Moment(instant_of(error.at), f"attempt {error.attempt}{ending}")


def _started(at: datetime, attempt: int, worker: str | None) -> Moment:
    return Moment(at, f"attempt {attempt} started{f' on {worker}' if worker else ''}")


def _what_follows(record: Record, now: datetime) -> Iterator[Moment]:
    if record.ended_at is not None:
        error = record.last_error  # if there is one, the line before has shown it, and the reason is the same
        if error is not None and error.ending is RunEnding.FAILED and instant_of(error.at) == record.ended_at:
            return  # "attempt 2 failed" has told the end
        yield Moment(record.ended_at, f"{record.status}{f': {record.reason}' if record.reason and error is None else ''}")
        return
    if record.status is Status.RUNNING:
        yield Moment(now, "asked to stop, and still running" if record.cancel_requested else "still running")
    elif record.status is Status.SCHEDULED:
        yield Moment(record.due_at, f"attempt {record.attempt} is due")
    else:
        waits_for = record.waiting_for or ("a worker" if record.status is Status.READY else "other jobs")
        yield Moment(now, f"still waits for {waits_for}")
    if record.expires_at is not None and record.status is not Status.RUNNING:
        yield Moment(record.expires_at, "expires")
