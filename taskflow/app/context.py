"""The `JobContext` that a job's function uses while it runs, and the exceptions that control the outcome of the run."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextvars import ContextVar
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, overload

from taskflow.model.clock import SystemClock, instant_of, to_seconds
from taskflow.model.codec.function import CallArguments
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.errors import TaskflowError, name_as_public
from taskflow.model.ids import IdFactory, id_text
from taskflow.model.rules import seconds_of
from taskflow.model.verdict import Progress

if TYPE_CHECKING:
    from taskflow.app.connections import Connection

D = TypeVar("D")

_RAISE: Final = object()


class ActiveRun(Protocol):
    """The run of a `JobContext`. Any thread may call its methods. `child_headers` has headers for its child process; None without one."""

    child_headers: dict[str, str] | None

    def report(self, progress: Progress) -> None: ...

    def complete_in(self, connection: object, result: object) -> Awaitable[None]: ...


class NamesArguments(Protocol):
    """The job that a `JobContext` belongs to, which knows the names of its arguments."""

    def named_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Mapping[str, Any]: ...

    def decoded_arguments(self, payload: bytes, /) -> Mapping[str, Any]: ...

    def arguments_beside(self, takes: str, payload: bytes, /) -> Mapping[str, Any]: ...


def arguments_of(job: NamesArguments, given: CallArguments | None, payload: bytes) -> Mapping[str, Any]:
    """Return a call's arguments by parameter name: those in `given`, or those decoded from `payload` if `given` is None."""
    return job.decoded_arguments(payload) if given is None else job.named_arguments(*given)


class JobContext:
    """The context of a running job. A job's function receives it if its first parameter is annotated
    with this class. Elsewhere, `current_job()` returns it.

    `state`  the value that the worker's lifespan (in a child process, its `child_lifespan`) yielded, or None if there is none
    """

    __slots__ = ("_arguments", "_cancelled", "_given", "_job", "_lease", "_run", "state")

    def __init__(
        self,
        lease: Lease | None = None,
        *,
        job_name: str = "",
        queue: str = "default",
        state: Any = None,
        run: ActiveRun | None = None,
        job: NamesArguments | None = None,
        given: CallArguments | None = None,
    ) -> None:
        if lease is None:  # outside a run: as if in the first and only attempt
            envelope = Envelope(id=_new_id(), job=job_name, payload=b"", queue=queue, max_attempts=1)
            lease = Lease(envelope=envelope, epoch=1, claim=ClaimId(b"", 0, 0), created_at=_clock.wall())
        self._lease = lease
        self._run = run
        self._job = job
        self._given = given
        self._arguments: Mapping[str, Any] | None = None
        self._cancelled: threading.Event | None = None
        self.state = state

    @property
    def job_name(self) -> str:
        """The job's name."""
        return self._lease.envelope.job

    @property
    def queue(self) -> str:
        """The queue from which the job was taken."""
        return self._lease.envelope.queue

    @property
    def job_id(self) -> str:
        """The job's id as text. Use it as an idempotency key for external systems."""
        return id_text(self._lease.envelope.id)

    @property
    def epoch(self) -> int:
        """A number that rises with every lease of the job. Use it as a fencing token for external systems."""
        return self._lease.epoch

    @property
    def attempt(self) -> int:
        """The number of this attempt, starting at 1."""
        return self._lease.attempt

    @property
    def max_attempts(self) -> int:
        """The maximum number of attempts. If the last one fails, the job fails."""
        return self._lease.envelope.max_attempts

    @property
    def created_at(self) -> datetime:
        """When the job was enqueued, by the store's clock, as an aware datetime in UTC."""
        return instant_of(self._lease.created_at)

    @property
    def scheduled_for(self) -> datetime | None:
        """The time for which a schedule added this job, in the schedule's time zone, or None if no schedule
        added it. It stays the same if the job runs late or is retried."""
        from taskflow.model.schedule_plan import scheduled_for

        return scheduled_for(self._lease.envelope.headers)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the call by parameter name, with the defaults of those that were not given; read-only.

        The function gets the same objects, except in a child process (``runs_in="process"``): middleware, which runs in the worker,
        gets copies that are decoded on first use.
        """
        if self._arguments is None:
            if self._job is None:
                self._arguments = MappingProxyType({})
            else:
                self._arguments = arguments_of(self._job, self._given, self._lease.envelope.payload)
        return self._arguments

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that were sent with the job and, in a child process, those that middleware gave to `pass_on`."""
        return self._lease.envelope.headers

    @property
    def caused_by(self) -> str | None:
        """The id, as text, of the failed job whose ``on_failure`` sent this job, or None."""
        from taskflow.model.envelope import CAUSED_BY

        return self._lease.envelope.headers.get(CAUSED_BY)

    def pass_on(self, headers: Mapping[str, str]) -> None:
        """Give this run's child process these headers, in addition to those that were sent. Middleware may call this before `call_next`. It
        has no effect if the function runs in the worker."""
        if self._run is not None and self._run.child_headers is not None:
            self._run.child_headers.update(headers)

    @property
    def runs_in_child(self) -> bool:
        """True in the worker's middleware if the job's function runs in a child process."""
        return self._run is not None and self._run.child_headers is not None

    @property
    def waited(self) -> float:
        """The seconds from the job's due time to its claim, by the store's clock."""
        return to_seconds(max(0, self._lease.waited))

    @property
    def tags(self) -> tuple[str, ...]:
        """The job's tags."""
        return self._lease.envelope.tags

    @property
    def cancelled(self) -> threading.Event:
        """An event that is set when the run is asked to stop. Plain functions should check it: cancelling a run doesn't stop its thread."""
        if self._cancelled is None:
            with _making:  # the event loop may read the event while a thread creates it
                self._cancelled = self._cancelled or threading.Event()
        return self._cancelled

    def progress(self, fraction: float, note: str = "") -> DoneAwaitable:
        """Report the progress of the run.

        `fraction`  how much of the work is done, from 0 to 1
        `note`      text to show with it; anything beyond 4,096 characters is cut off

        The report takes effect at once, even from a thread, so `await` is optional. Other processes see it within about a second. Raises
        ValueError if `fraction` is out of range, and TypeError for an argument of the wrong type.
        """
        progress = Progress.checked(fraction, note)
        if self._run is not None:
            self._run.report(progress)
        return DONE

    def complete_in(self, connection: Connection, *, result: object = None) -> Awaitable[None]:
        """Complete the job in a database transaction, so that the effect of the run and the success of the job are committed together.

        `connection`  a connection or session with an open transaction in the broker's own database, as for ``.options(connection=...)``
        `result`      the job's result; the value that the function returns is ignored

        Call it last in the transaction. Once the transaction commits, the job has succeeded, whatever the run does afterwards. If the
        transaction rolls back, the run fails with the error that the function raised or, if it returned, with ``taskflow.RolledBack``.

        With a synchronous connection, the call takes effect at once, and `await` is optional. In tests with `taskflow_jobs`, any connection
        is accepted: the job succeeds if the function returns, and fails if it raises.

        Raises LeaseLost if the run no longer holds its job, WrongConnection if the connection is unsuitable, and EncodeError for an
        unsuitable result. Raises BrokerUnavailable if another open transaction holds the job or its key, and ConfigurationError if the
        broker is not PostgreSQL or SQLite. Raises TaskflowError outside of a run, or after an earlier transaction completed the job.
        """
        if self._run is None:
            raise TaskflowError("complete_in() was called outside of a run: a job can be completed only while a worker is running it")
        return self._run.complete_in(connection, result)

    def __repr__(self) -> str:
        return f"<JobContext {self.job_name} {self.job_id} attempt {self.attempt} of {self.max_attempts}>"


class DoneAwaitable:
    """An awaitable that is already done, so that awaiting it is optional."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


@overload
def current_job() -> JobContext: ...
@overload
def current_job(default: D) -> JobContext | D: ...
def current_job(default: Any = _RAISE) -> Any:
    """Return the context of the running job. Outside of a job, return `default` if it is given, and raise TaskflowError otherwise."""
    context = running.get()
    if context is None:
        if default is not _RAISE:
            return default
        raise TaskflowError(
            "current_job() was called outside of a running job: call it in a job's function, or in code that the function calls; "
            "current_job(default=None) returns None there"
        )
    return context


running: Final[ContextVar[JobContext | None]] = ContextVar("taskflow_running_job", default=None)
DONE: Final = DoneAwaitable()
_new_id: Final = IdFactory()
_clock: Final = SystemClock()
_making: Final = threading.Lock()


class JobException(Exception):
    """The base class of the exceptions in this module."""


class Retry(JobException):
    """Raise this to retry the job after `after` seconds (or a timedelta); by default,
    after the job's back-off. It counts as a failed attempt."""

    def __init__(self, message: str = "the job asked for another attempt", *, after: float | timedelta | None = None) -> None:
        super().__init__(message)
        self.after = None if after is None else seconds_of("after", after)


class Snooze(JobException):
    """Raise this to run the job again after `after` seconds (or a timedelta). It uses no attempt."""

    def __init__(self, message: str = "snoozed", *, after: float | timedelta) -> None:
        super().__init__(message)
        self.after = seconds_of("after", after)


class RateLimited(Snooze):
    """Raise this when the service that the job's rates protect has refused a call. For `retry_after` seconds (or a timedelta) the whole
    fleet starts no job under these rates; then this job runs again. It uses no attempt."""

    def __init__(self, message: str = "rate limited", *, retry_after: float | timedelta) -> None:
        super().__init__(message, after=seconds_of("retry_after", retry_after))


class Discard(JobException):
    """Raise this to fail the job for good, without another attempt."""

    def __init__(self, reason: str = "discarded") -> None:
        super().__init__(reason)
        self.reason = str(reason)  # users also pass exceptions as the reason


class Cancel(JobException):
    """Raise this to end the job as CANCELLED."""

    def __init__(self, reason: str = "cancelled by the job itself") -> None:
        super().__init__(reason)
        self.reason = str(reason)  # users also pass exceptions as the reason


name_as_public({"Retry": Retry, "Snooze": Snooze, "RateLimited": RateLimited, "Discard": Discard, "Cancel": Cancel})


def takes_context(function: Callable[..., Any]) -> bool:
    """Return True if the function's first parameter is annotated with JobContext, even by a string that cannot be resolved yet."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        return False
    annotation = first.annotation
    if isinstance(annotation, str):
        namespace = getattr(inspect.unwrap(function), "__globals__", {})
        head, _, rest = annotation.strip("'\" ").partition(".")
        annotation = namespace.get(head, JobContext if head == JobContext.__name__ else None)
        for attribute in rest.split(".") if rest else ():
            annotation = getattr(annotation, attribute, None)
    return annotation is JobContext
