"""All errors that taskflow raises. Each message says what happened, to what, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import taskflow


class TaskflowError(Exception):
    """The base class of all errors that taskflow raises."""


# --- settings and declarations -------------------------------------------------------------------


class ConfigurationError(TaskflowError):
    """A setting, a URL or a declaration is wrong. Nothing was started or sent."""


class BrokerUrlError(ConfigurationError, ValueError):
    """A broker URL is malformed or has an unknown scheme. The message names the offending part, but never a password."""


class DriverMissing(ConfigurationError, ImportError):
    """The broker needs a package that is not installed. The message names the extra that installs it."""


class DeclarationError(ConfigurationError, TypeError):
    """A job is declared in a way that cannot work. Raised at the declaration or, if an annotation is unresolved then, at first use."""


# --- values ----------------------------------------------------------------------------------------


class CodecError(TaskflowError):
    """A value cannot be encoded, or bytes cannot be decoded.

    `path`  where the problem is, written like code: ``"data.address.lines[2]"``. It is "" if the problem concerns the whole value
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class EncodeError(CodecError, TypeError):
    """A value does not fit its annotation, or cannot be encoded exactly. For arguments, this is raised by the call that sends the job."""


class TooLarge(EncodeError):
    """A payload or a result is larger or more deeply nested than the settings allow."""


class DecodeError(CodecError, ValueError):
    """Stored bytes do not match the annotation or the payload format."""


class NewerFormat(DecodeError):
    """The bytes have a version or a flag that this version of taskflow does not know: a newer version wrote them."""


class UnknownArgument(DecodeError):
    """The payload contains an argument that the function does not accept: another version of the code sent it."""


class MissingArgument(DecodeError):
    """The payload lacks an argument that the function requires: another version of the code sent it."""


class UnknownType(DecodeError):
    """The payload contains a type that is not registered in this process: another version of the code sent it."""


# --- brokers -----------------------------------------------------------------------------------------


class BrokerError(TaskflowError):
    """The base class of errors raised by the store, or by the connection to it."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """The store cannot be reached, or does not answer in time. Any call can safely be repeated."""


class BrokerRefused(BrokerError):
    """The store answers but cannot be used: for example, it does not belong to taskflow, is not writable, or has a newer version."""


class StoreFull(BrokerError):
    """The store has no room for new jobs. Workers can still run the queued ones."""


class WrongConnection(TaskflowError, ValueError):
    """The connection cannot be used for the job: it is closed, in autocommit mode, or connected to a database other than the broker's.
    Nothing was sent, and the transaction is not affected."""


class LeaseLost(TaskflowError):
    """The run no longer holds its job, and can't complete it. Let the transaction roll back: the job is running elsewhere, or has ended."""


class SessionLost(BrokerError):
    """The session was declared dead or was never registered. It no longer holds any leases; register a new session."""


# --- what callers of jobs see ------------------------------------------------------------------------


class JobError(TaskflowError):
    """The base class of errors that `result()` raises."""

    def __init__(self, message: str, *, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobFailed(JobError):
    """The job has failed for good. `type`, `message` and `traceback` describe its last error as text."""

    def __init__(self, message: str, *, job_id: str, type: str, error_message: str, traceback: str) -> None:
        super().__init__(message, job_id=job_id)
        self.type = type
        self.message = error_message
        self.traceback = traceback


class JobCancelled(JobError):
    """The job was cancelled. `reason` is "cancelled", "expired", "replaced by ID", or the reason given by the job."""

    def __init__(self, message: str, *, job_id: str, reason: str) -> None:
        super().__init__(message, job_id=job_id)
        self.reason = reason


class ResultExpired(JobError):
    """The job has ended and its result is no longer kept. Increase `keep_result=`, or read the result sooner."""


class UnknownJob(JobError, LookupError):
    """The store never had the job, or no longer keeps it."""


class UnknownSchedule(TaskflowError, LookupError):
    """The store has no schedule with this name."""


class ScheduleConflict(TaskflowError):
    """The schedule is declared by a job's decorator. `put` can't replace it, and `remove` fails while a running worker declares it."""


class InvalidJobId(TaskflowError, ValueError):
    """The text is not a valid job id."""


class WrongBatchResult(TaskflowError):
    """A batch job's function did not return a list with one element for each job. The jobs fail without a retry, because the call has
    already had its effects."""


class KeyConflict(JobError):
    """The call was sent with `on_conflict="raise"`, and another job has its key. That job is live or, if the call has `throttle`, was sent
    within its period. `job_id` is that job's id."""


class EnqueueFailed(TaskflowError):
    """Some of the calls passed to `enqueue([...])` were not sent.

    `handles` holds the handles of the calls that were sent, and of the jobs whose keys prevented a call, in the order of the calls.
    `conflicts` holds only the handles of the jobs whose keys prevented a call. `__cause__` is the first error, if there was one.
    """

    def __init__(self, message: str, *, handles: Sequence[Any], conflicts: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.handles = list(handles)
        self.conflicts = list(conflicts)


# --- what a running job sees ---------------------------------------------------------------------------

StopReason = Literal["cancelled", "timeout", "shutdown", "lost"]


class JobStopping(BaseException):
    """Raised inside a plain function when its run is asked to stop. In a child process, this requires a `stop_grace`. With
    `timeout_raises`, a timeout raises it too, even in a thread. It isn't an Exception, so `except Exception` does not catch it.

    `reason`  "cancelled", "timeout", "shutdown" if the worker's grace period is over, or "lost" if the worker has lost the lease, in which
              case the job may already be running elsewhere
    """

    def __init__(self, reason: StopReason = "timeout") -> None:  # a thread can only be interrupted by a class, without arguments
        super().__init__(reason)
        self.reason: StopReason = reason

    def __str__(self) -> str:
        return f"the run was asked to stop: {_STOP_REASONS.get(self.reason, self.reason)}"


_STOP_REASONS = {
    "cancelled": "its job was cancelled",
    "timeout": "it has exceeded its timeout",
    "shutdown": "its worker is shutting down",
    "lost": "its worker has lost the lease",
}


def name_as_public(defined: dict[str, Any]) -> None:
    """Set `__module__` of a module's public errors to "taskflow", so that tracebacks show the name under which users import them, such as
    `taskflow.Retry`.

    Public classes in other modules keep their `__module__`, because tools resolve the names in their annotations there.
    """
    for name in getattr(taskflow, "__all__", ()):  # it is missing if another distribution has overwritten ours: see app/package_conflict.py
        if name in defined:
            defined[name].__module__ = "taskflow"


name_as_public(globals())
