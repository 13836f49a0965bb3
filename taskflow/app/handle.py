"""Defines the handle of a sent job, and the information that it returns."""

from __future__ import annotations

import asyncio
import math
from datetime import datetime
from typing import Any, Final, Generic, TypeVar, overload

import msgspec

from taskflow.app.app import App, default_app
from taskflow.app.job_type import AnyJob, JobType
from taskflow.broker import topics
from taskflow.model.clock import instant_of
from taskflow.model.codec import decode_value
from taskflow.model.errors import CodecError, JobCancelled, JobFailed, ResultExpired, UnknownJob
from taskflow.model.ids import id_text, parse_id
from taskflow.model.printable import message
from taskflow.model.progress import Progress
from taskflow.model.record import Record, Status
from taskflow.model.schedule import SCHEDULE
from taskflow.model.verdict import RunError

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

# Wake-ups may be lost, so a waiting caller also polls at this interval, in seconds.
LOOK_AGAIN: Final = 5.0

# The error type of a job that was discarded without another error.
DISCARDED: Final = "taskflow.Discard"


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The reason a run failed: the exception's full type name, its message and its traceback.

    `attempt`  the number of the attempt that failed
    `at`       when the error was stored, by the store's clock, as an aware datetime in UTC
    """

    type: str
    message: str
    traceback: str
    attempt: int
    at: datetime


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a job. Times are aware datetimes in UTC, by the store's clock.

    `attempt`      the number of the current or next attempt, or of the last one if the job has ended
    `errors`       one for each run that failed or was lost, oldest first
    `due_at`       when the job may start
    `started_at`   when the last run started; `ended_at` is when it ended
    `waiting_for`  why the job is waiting, unless it is only waiting for its time or for a worker
    `reason`       why the job ended, if a reason was recorded
    `worker`       "host:pid" of the worker that is running the job or ran it last
    `schedule`     the name of the schedule that added the job, or None; `scheduled_for` is the time for which it added the job
    `result`       the decoded return value. None until the job succeeds, and also if the value
                   cannot be decoded, in which case `JobHandle.result` raises the error
    """

    id: str
    job: str
    queue: str
    status: Status
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime
    due_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    failures: int
    crashes: int
    snoozes: int
    worker: str | None
    progress: Progress | None
    reason: str | None
    waiting_for: str | None
    errors: tuple[ErrorInfo, ...]
    headers: dict[str, str]
    cancel_requested: bool
    schedule: str | None = None
    scheduled_for: datetime | None = None
    result: Any = None


_SHARED: Final = tuple(name for name in JobInfo.__struct_fields__ if hasattr(Record, name) and name not in ("id", "errors", "result"))


class JobHandle(Generic[R_co]):
    """A reference to one job in the store. Handles of the same job are equal.

    `is_new`  True if the call added this job; False if this live job already had the call's key, or if `of` made the handle
    """

    __slots__ = ("_app", "_id", "_is_own", "_job", "is_new")

    def __init__(self, app: App, job_id: bytes, job: AnyJob | None, *, is_new: bool = True, is_own: bool = True) -> None:
        self._app = app
        self._id = job_id
        self._job = job
        self._is_own = is_own
        self.is_new = is_new

    @overload
    @staticmethod
    def of(job_id: str, job: JobType[T]) -> JobHandle[T]: ...

    @overload
    @staticmethod
    def of(job_id: str) -> JobHandle[Any]: ...

    @staticmethod
    def of(job_id: str, job: AnyJob | None = None) -> JobHandle[Any]:
        """Return the handle of the job with this id. If `job` is given, its annotations are used to decode
        the result. Raises InvalidJobId if the text is not an id."""
        return JobHandle(default_app(), parse_id(job_id), job, is_new=False, is_own=False)

    @property
    def id(self) -> str:
        """The job's id as text."""
        return id_text(self._id)

    async def status(self) -> Status | None:
        """Return the job's status, or None if the store does not know the job."""
        record = await self._read()
        return None if record is None else record.status

    async def info(self) -> JobInfo | None:
        """Return the job's record, or None if the store does not know the job."""
        record = await self._read()
        return None if record is None else self._to_info(record)

    async def cancel(self) -> Status | None:
        """Ask the job to stop, and return its previous status, or None if the store does not know the job. A waiting
        job is cancelled at once; a running one is stopped by its worker."""
        return await self._app.client().cancel(self._id)

    async def result(self, timeout: float | None = None) -> R_co:
        """Wait up to `timeout` seconds for the job to end, and return its result. 0 checks once; None waits without a limit.

        Raises JobFailed or JobCancelled if the job ended that way, and TimeoutError if it has not ended in time. Raises
        ResultExpired if the result is no longer kept, and UnknownJob if the store does not know the id.
        """
        if timeout is not None and math.isnan(timeout):
            raise ValueError("timeout=nan: expected seconds; 0 checks once, None waits without a limit")
        client = self._app.client()
        record: Record | None = None
        looks_once = timeout is not None and timeout <= 0
        try:
            async with asyncio.timeout(None if looks_once else timeout):
                with client.broker.listen([topics.job(self._id)]) as nudges:
                    while (record := await client.read(self._id)) is not None and not record.status.is_ended:
                        if looks_once:
                            raise TimeoutError
                        await nudges.wait(LOOK_AGAIN)
        except TimeoutError:
            stands = "could not be read from the broker" if record is None else f"is still {record.status}"
            raise TimeoutError(f"{self!r} {stands} after {timeout} s: the job is not affected; call result() again later") from None
        return self._outcome(record)

    def _outcome(self, record: Record | None) -> R_co:
        if record is None:
            raise self._missing()
        if record.status is Status.FAILED:
            raise self._failure(record)
        if record.status is Status.CANCELLED:
            reason = record.reason or "cancelled"
            raise JobCancelled(f"{self!r} was cancelled: {message(reason)}", job_id=self.id, reason=reason)
        value: R_co = self._decode(record)
        return value

    def _missing(self) -> ResultExpired | UnknownJob:
        if self._is_own:
            return ResultExpired(
                f"{self!r} has ended and its result is no longer kept: read it sooner, or raise keep_result=", job_id=self.id
            )
        return UnknownJob(f"the store does not know job {self.id}, or no longer keeps it", job_id=self.id)

    def _failure(self, record: Record) -> JobFailed:
        reason = record.reason or ""
        last = record.last_error or RunError(DISCARDED, reason, attempt=record.attempt)
        return JobFailed(
            f"{self!r} failed in attempt {last.attempt} of {record.max_attempts}: {message(reason)}",
            job_id=self.id,
            type=last.type,
            error_message=last.message,
            traceback=last.traceback,
        )

    def _decode(self, record: Record) -> Any:
        if record.result is None:
            return None
        return decode_value(record.result, limits=self._app.limits) if self._job is None else self._job.codec.decode_result(record.result)

    async def _read(self) -> Record | None:
        return await self._app.client().read(self._id)

    def _to_info(self, record: Record) -> JobInfo:
        fields = {name: getattr(record, name) for name in _SHARED}
        if SCHEDULE in record.headers:
            from taskflow.model.schedule_plan import scheduled_for

            fields |= {"schedule": record.headers[SCHEDULE], "scheduled_for": scheduled_for(record.headers)}
        try:
            result = self._decode(record)
        except CodecError:
            result = None
        return JobInfo(id=self.id, errors=tuple(map(_error_info, record.errors)), result=result, **fields)

    def __repr__(self) -> str:
        name = self._job.name if self._job is not None else "?"
        return f"<JobHandle {name} {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobHandle) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)


def _error_info(error: RunError) -> ErrorInfo:
    return ErrorInfo(type=error.type, message=error.message, traceback=error.traceback, attempt=error.attempt, at=instant_of(error.at))
