"""Defines the handle of a sent job, and converts the job's record to the `JobInfo` that the handle returns."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from enum import Enum
from typing import Any, Final, Generic, TypeVar, overload

import msgspec

from taskflow.app.app import App, default_app
from taskflow.app.job_info import ErrorInfo, JobInfo, StoredArguments
from taskflow.app.job_type import AnyJob, JobType
from taskflow.app.portal import wait
from taskflow.broker import topics
from taskflow.model.clock import instant_of
from taskflow.model.codec import decode_value
from taskflow.model.errors import CodecError, JobCancelled, JobFailed, ResultExpired, UnknownJob
from taskflow.model.ids import id_text, parse_id
from taskflow.model.printable import MAX_SHOWN, message, one_line, shown
from taskflow.model.record import Record, Status
from taskflow.model.rules import MAX_DURATION
from taskflow.model.schedule import SCHEDULE
from taskflow.model.verdict import RunError
from taskflow.model.wording import CANCELLED, DISCARDED

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

POLL_INTERVAL: Final = 5.0  # seconds: wake-ups may be lost, so a waiting caller also polls
NOTEBOOK_TIMEOUT: Final = 2.0  # seconds after which a notebook shows a handle without the store's answer
_SHARED: Final = tuple(name for name in JobInfo.__struct_fields__ if hasattr(Record, name) and name not in ("id", "errors", "result"))


class Origin(Enum):
    """How a handle was made. It determines which error is raised if the store does not know the job."""

    SENT = "sent"
    TRANSACTION = "sent in a transaction"
    ID = "made from an id"


class JobHandle(Generic[R_co]):
    """A reference to one job in the store. Handles of the same job are equal.

    `is_new`  True if the call added this job; False if this job already had the call's key, or if `JobHandle.of` made the handle
    """

    __slots__ = ("_app", "_id", "_job", "_origin", "is_new")

    def __init__(self, app: App, job_id: bytes, job: AnyJob | None, *, is_new: bool = True, origin: Origin = Origin.SENT) -> None:
        self._app = app
        self._id = job_id
        self._job = job
        self._origin = origin
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
        return JobHandle(default_app(), parse_id(job_id), job, is_new=False, origin=Origin.ID)

    @property
    def id(self) -> str:
        """The job's id as text."""
        return id_text(self._id)

    async def status(self) -> Status | None:
        """Return the job's status, or None if the store does not know the job."""
        record = await self._app.client().read(self._id)
        return None if record is None else record.status

    async def info(self) -> JobInfo | None:
        """Return the job's record as a `JobInfo`, or None if the store does not know the job."""
        record = await self._app.client().read(self._id)
        return None if record is None else self._to_info(record)

    async def cancel(self) -> Status | None:
        """Ask the job to stop, and return its previous status, or None if the store does not know the job. A waiting
        job is cancelled at once; a running one is stopped by its worker."""
        [found] = await self._app.client().call(lambda broker: broker.cancel([self._id]))
        return found

    async def run_now(self) -> Status | None:
        """Make the job ready if it waits for its time or for its next attempt, and return its previous status, or None if the store does
        not know the job. Any other job is left as it is, including one that waits for other jobs, for a running job with its key, or
        at a limit."""
        [found] = await self._app.client().call(lambda broker: broker.admin.run_now([self._id]))
        return found

    async def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait up to `timeout` (seconds or a timedelta) for the job to end, and return its result. 0 checks once; None waits forever.

        Raises JobFailed or JobCancelled if the job ended that way, and TimeoutError if it has not ended in time. Raises
        ResultExpired if the result is no longer kept, and UnknownJob if the store does not know the id.
        """
        seconds = None if timeout is None else seconds_to_wait(timeout)
        client = self._app.client()
        record: Record | None = None
        looks_once = seconds is not None and seconds <= 0
        try:
            async with asyncio.timeout(None if looks_once else seconds):
                with client.broker.listen([topics.job(self._id)]) as waiter:
                    while (record := await client.read(self._id)) is not None and not record.status.is_ended:
                        if looks_once:
                            raise TimeoutError
                        await waiter.wait(POLL_INTERVAL)
        except TimeoutError:
            stands = "could not be read from the broker" if record is None else f"is still {record.status}"
            waited = f"{round(seconds or 0, 3):g} s"
            raise TimeoutError(f"{self!r} {stands} after {waited}: the job is not affected; call result() again later") from None
        return self._outcome(record)

    def _outcome(self, record: Record | None) -> R_co:
        if record is None:
            raise self._missing()
        if record.status is Status.FAILED:
            raise self._failure(record)
        if record.status is Status.CANCELLED:
            reason = record.reason or CANCELLED
            why = "" if reason == CANCELLED else f": {message(reason)}"
            raise JobCancelled(f"{self!r} was cancelled{why}", job_id=self.id, reason=reason)
        return self._decode(record)  # type: ignore[no-any-return]

    async def _cause_of(self, error: JobFailed | JobCancelled) -> JobFailed | JobCancelled:
        """If another job of the flow caused this job to be cancelled, return that job's error, otherwise the given error."""
        client = self._app.client()
        record = await client.read(self._id)
        found = None if record is None or record.cancelled_by is None else await client.read(record.cancelled_by)
        if found is not None and found.status in (Status.FAILED, Status.CANCELLED):
            try:
                JobHandle[Any](self._app, found.id, self._app.registry.get(found.job))._outcome(found)
            except (JobFailed, JobCancelled) as cause:
                return cause
        return error

    def _missing(self) -> ResultExpired | UnknownJob:
        if self._origin is Origin.SENT:
            why = f"{self!r} has ended and its result is no longer kept: read it sooner, or raise keep_result="
            return ResultExpired(why, job_id=self.id)
        if self._origin is Origin.TRANSACTION:
            not_there = "its transaction has not committed or was rolled back, or the job has ended and is no longer kept"
            return UnknownJob(f"the store does not know {self!r}: {not_there}", job_id=self.id)
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
        if not record.result:  # empty if middleware returned Succeeded(b"")
            return None
        return decode_value(record.result, limits=self._app.limits) if self._job is None else self._job.codec.decode_result(record.result)

    def _to_info(self, record: Record) -> JobInfo:
        fields: dict[str, Any] = {name: getattr(record, name) for name in _SHARED} | {"key": record.key_text}
        if record.behind is not None:
            fields["key_holder"] = id_text(record.behind)
        if record.member is not None:
            fields["flow"] = id_text(record.member.flow)
        if SCHEDULE in record.headers:
            from taskflow.model.schedule_plan import scheduled_for

            fields |= {"schedule": record.headers[SCHEDULE], "scheduled_for": scheduled_for(record.headers)}
        try:
            result = self._decode(record)
        except CodecError:
            result = None
        if record.payload is not None:
            job = self._job or self._app.registry.get(record.job)
            fields["_arguments"] = StoredArguments(record.payload, self._app.limits, job)
        return JobInfo(id=self.id, errors=tuple(map(_error_info, record.errors)), result=result, **fields)

    def __repr__(self) -> str:
        name = self._job.name if self._job is not None else "?"
        return f"<JobHandle {name} {self.id}>"

    def _repr_html_(self) -> str:
        """Return a table of the job's current state for notebooks. If the store does not answer within 2 s, the table says so."""
        from html import escape

        facts: dict[str, object] = {"job": "?" if self._job is None else self._job.name, "id": self.id}
        try:
            info = wait(self._current_info())
        except Exception as error:
            facts["status"] = f"unknown: the store could not be read ({type(error).__name__})"
        else:
            facts |= {"status": "unknown to the store"} if info is None else _facts(info)
        rows = (f"<tr><th>{name}</th><td>{escape(one_line(fact, MAX_SHOWN))}</td></tr>" for name, fact in facts.items())
        return f"<table>{''.join(rows)}</table>"

    async def _current_info(self) -> JobInfo | None:
        async with asyncio.timeout(NOTEBOOK_TIMEOUT):
            return await self.info()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobHandle) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)


def _error_info(error: RunError) -> ErrorInfo:
    times: dict[str, Any] = {"at": instant_of(error.at), "worker": error.worker or None}
    times["started_at"] = instant_of(error.started_at) if error.started_at else None
    return ErrorInfo(**{**msgspec.structs.asdict(error), **times})


def _facts(info: JobInfo) -> dict[str, object]:
    """Return the most important facts about a job as rows, without the result, which may be long or secret."""
    facts: dict[str, object] = {"job": info.job, "status": info.status, "attempt": f"{info.attempt} of {info.max_attempts}"}
    if info.progress is not None:
        facts["progress"] = f"{info.progress.fraction:.0%} {info.progress.note}"
    if info.waiting_for or info.reason:
        facts["reason"] = info.waiting_for or info.reason
    return facts


def seconds_to_wait(timeout: float | timedelta) -> float:
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"timeout={shown(timeout)}: expected seconds, as a number or a timedelta; None waits without a limit")
    seconds = min(seconds, MAX_DURATION)  # a larger int may not fit into a float
    if math.isnan(seconds):
        raise ValueError("timeout=nan: expected seconds; 0 checks once, None waits without a limit")
    return seconds


def info_of(app: App, record: Record) -> JobInfo:
    """Convert a record to a `JobInfo`. If the application knows the job, the result is decoded by its annotation."""
    return JobHandle[Any](app, record.id, app.registry.get(record.job))._to_info(record)
