"""Job statuses, the records with which stores describe jobs, and the timeline of a record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from taskflow.model import wording
from taskflow.model.clock import instant_of
from taskflow.model.fingerprint import deploy_in, fingerprint_in
from taskflow.model.flow import Member
from taskflow.model.job_schema import OPAQUE, SentAndShown
from taskflow.model.stored_values import FieldReader, Unreadable, maybe_instant, maybe_octets, maybe_text
from taskflow.model.verdict import Progress, RunEnding, RunError, unpack_errors, unpack_progress


class Status(StrEnum):
    """The status of a job. A HELD job is waiting for other jobs, a SCHEDULED one for its time, and a READY one for a worker."""

    HELD = "held"
    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __hash__ = str.__hash__
    """Enum defines its hash in Python, which would add a call to each dict look-up. The hash of str is implemented in C."""

    @property
    def is_waiting(self) -> bool:
        return self in WAITING

    @property
    def is_ended(self) -> bool:
        return self in ENDED


WAITING: Final = frozenset({Status.HELD, Status.SCHEDULED, Status.READY})
LIVE: Final = WAITING | {Status.RUNNING}
ENDED: Final = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})

# Stores write these numbers instead of the names. Databases contain them, so the order of the statuses above never changes.
BY_CODE: Final = dict(enumerate(Status))
CODES: Final = {status: code for code, status in BY_CODE.items()}


class Record(SentAndShown, frozen=True, kw_only=True, gc=True):
    """The state of a job. Times are aware datetimes in UTC, by the store's clock. `result` and `payload` are encoded bytes.

    `due_at`        when the job may start: the planned time while it is HELD or SCHEDULED, otherwise the time at which it became READY
    `waiting_for`   what the job is waiting for, other than its time or a worker: code that knows the job, a running job with its key, or
                    the end of a back-off after too many hand-backs
    `reason`        why the job ended, if there is a reason: "expired", "replaced by ID", "poison: ...", or a user's text. A poison job that
                    waits for its follow-up already has its reason
    `behind`        the id of the running job with the same key for which this job waits, or None
    `awaits`        how many jobs a HELD job awaits; 0 for others
    `member`        the job's place in its flow, or None
    `joins`         the ids of the jobs of its flow that await it
    `cancelled_by`  the id of the job whose failure cancelled this one, or of the flow if the flow was cancelled; otherwise None
    `errors`        one entry for each run that failed or crashed, oldest first; if there are too many, the earlier ones are dropped
    `epoch`         how many times a worker has claimed the job
    `worker`        the name of the worker that is running the job, or ran it last
    `cause`         the cause of a failed job, as it is stored
    `unreadable`    the stored fields that could not be read; they have their defaults here, and the store keeps their bytes
    """

    status: Status
    created_at: datetime
    due_at: datetime
    claimed_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    hand_backs: int = 0
    epoch: int = 0
    worker: str | None = None
    progress: Progress | None = None
    result: bytes | None = None
    payload: bytes | None = None
    reason: str | None = None
    waiting_for: str | None = None
    errors: tuple[RunError, ...] = ()
    cancel_requested: bool = False
    behind: bytes | None = None
    awaits: int = 0
    member: Member | None = None
    joins: tuple[bytes, ...] = ()
    cancelled_by: bytes | None = None
    cause: bytes | None = None
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def queue_wait(self) -> float | None:
        """How many seconds the job was ready before its last run started. None if it's still waiting, or ended while waiting."""
        ends = [instant_of(error.at) for error in self.errors]
        return queue_wait(self.status, self.due_at, self.started_at or self.claimed_at, ends)

    @property
    def attempt(self) -> int:
        """The number of the current or next attempt, or of the last one if the job has ended."""
        last = self.last_error
        return last.attempt if last is not None else min(self.failures + 1, self.max_attempts)

    @property
    def fingerprint(self) -> bytes:
        """The fingerprint of a failed job's cause, by which `Admin.failure_groups` groups it."""
        return fingerprint_in(self.cause)

    @property
    def deploy(self) -> str:
        """The deploy on which a failed job failed, or an empty string."""
        return deploy_in(self.cause)

    @property
    def last_error(self) -> RunError | None:
        """The error that ended the job, or None. Also None if the job discarded itself, since any recorded errors are from earlier runs."""
        if self.status is not Status.FAILED or not self.errors:
            return None
        last, reason = self.errors[-1], self.reason or ""
        return last if reason == f"{last.type}: {last.message}" or reason.startswith(wording.POISON) else None


def queue_wait(status: Status, due_at: datetime, started_at: datetime | None, ends: Iterable[datetime]) -> float | None:
    """Return the seconds from when a job became ready until its last run started, or None if it has not run since. `ends` are the
    ends of runs that failed or crashed. They matter after a crash, which leaves the job's due time unchanged."""
    if status.is_waiting or started_at is None or (status is Status.CANCELLED and started_at < due_at):
        return None
    ready_at = max([due_at, *(end for end in ends if end <= started_at)])
    return max(0.0, (started_at - ready_at).total_seconds())  # the clocks of the worker and the store may differ a little


_OPAQUE: Final = tuple(field.name for field in OPAQUE if field.name in Record.__struct_fields__)


def record_of(job: Any, reader: FieldReader, *, id: bytes, name: str, queue: str, status: Status, extras: Mapping[str, Any]) -> Record:
    """Return the record of a stored job. `job` is any object that has the record's other fields as attributes."""
    read = reader.read
    no_errors: tuple[RunError, ...] = ()
    return Record(
        id=id,
        job=name,
        queue=queue,
        priority=job.priority,
        status=status,
        created_at=instant_of(job.created_at),
        due_at=instant_of(job.due_at),
        claimed_at=maybe_instant(job.claimed_at),
        started_at=maybe_instant(job.started_at),
        ended_at=maybe_instant(job.ended_at),
        expires_at=maybe_instant(job.expires_at),
        failures=job.failures,
        crashes=job.crashes,
        snoozes=job.snoozes,
        hand_backs=job.hand_backs,
        epoch=job.epoch,
        worker=read("worker", job.worker, maybe_text, None),
        progress=read("progress", job.progress, unpack_progress, None),
        result=read("result", job.result, maybe_octets, None),
        payload=read("payload", job.payload, maybe_octets, None),
        reason=read("reason", job.reason, maybe_text, None),
        waiting_for=read("waiting_for", job.waiting_for, maybe_text, None),
        errors=read("errors", job.errors, unpack_errors, no_errors),
        cancel_requested=job.cancel_requested is not None,
        behind=job.behind,
        awaits=job.awaited,
        **job.in_flow,
        cause=read("cause", job.cause, maybe_octets, None),
        unreadable=reader.unreadable,
        **{field: extras[field] for field in _OPAQUE if field in extras},
    )


def waits_at_limit(record: Record) -> bool:
    """Return True if the job waits at a limit: for a slot, or for the time that a rate gave it."""
    return _waits_for(record, wording.WAITS_AT_GATE)


def is_parked(record: Record) -> bool:
    """Return True if the job is waiting because every worker that claimed it lacked its code or could not read its arguments."""
    return any(_waits_for(record, text) for text in (wording.UNKNOWN_JOB, wording.OTHER_CODE))


def _waits_for(record: Record, pattern: str) -> bool:
    return record.status is Status.SCHEDULED and (record.waiting_for or "").startswith(pattern.partition("%")[0])


class Moment(NamedTuple):
    """An event in the life of a job, which may be in the future."""

    at: datetime
    text: str


def timeline(record: Record, now: datetime) -> list[Moment]:
    """Return the known events of the job's life, and the expected ones. Runs that were snoozed, parked or handed back leave no trace."""
    last = record.errors[-1] if record.errors else None
    ran_at = record.started_at or (record.claimed_at if record.status is Status.RUNNING else None)
    if record.status in WAITING or (last is not None and ran_at == instant_of(last.started_at)):
        ran_at = None  # the job waits again, or its last run is the one that left the last error
    is_ready_at_once = last is None and record.due_at == record.created_at
    sent = f"sent; waits for {record.waiting_for}" if waits_at_limit(record) else "sent, and ready at once" if is_ready_at_once else "sent"
    found = [Moment(record.created_at, sent)]
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
        error = record.last_error  # if there is one, the previous moment shows it, with the same reason
        if error is not None and error.ending is RunEnding.FAILED and instant_of(error.at) == record.ended_at:
            return  # "attempt 2 failed" already shows the end
        yield Moment(record.ended_at, f"{record.status}{f': {record.reason}' if record.reason and error is None else ''}")
        return
    if record.status is Status.RUNNING:
        yield Moment(now, "asked to stop, and still running" if record.cancel_requested else "still running")
    elif record.status is Status.SCHEDULED:
        if record.waiting_for:
            parked = "parked: no worker can run it. It " if is_parked(record) else "still "
            yield Moment(now, f"{parked}waits for {record.waiting_for.removesuffix(f'; {wording.WAYS_OUT}')}")
        if not record.waiting_for or record.due_at > now:
            yield Moment(record.due_at, f"attempt {record.attempt} is due")
    else:
        waits_for = record.waiting_for or ("a worker" if record.status is Status.READY else "other jobs")
        yield Moment(now, f"still waits for {waits_for}")
    if record.expires_at is not None and record.status is not Status.RUNNING:
        yield Moment(record.expires_at, "expires")
