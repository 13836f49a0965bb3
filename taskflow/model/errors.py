"""All errors that taskflow raises. A message says what happened, to what, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import taskflow


class TaskflowError(Exception):
    """The base class of all errors that taskflow raises."""


# --- settings and declarations -------------------------------------------------------------------


class ConfigurationError(TaskflowError):
    """A setting, a URL or a declaration is wrong. Nothing was started or sent."""


class BrokerUrlError(ConfigurationError, ValueError):
    """A broker URL is malformed or has an unknown scheme. The message names the part, never a password."""


class DriverMissing(ConfigurationError, ImportError):
    """The broker needs a package that is not installed. The message names the extra that installs it."""


class DeclarationError(ConfigurationError, TypeError):
    """A job is declared in a way that cannot work. Raised at the declaration."""


# --- values ----------------------------------------------------------------------------------------


class CodecError(TaskflowError):
    """A value cannot be written, or bytes cannot be read. `path` gives the place inside the argument.

    `path` is written like code: ``"data.address.lines[2]"``. It is "" for the whole value.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class EncodeError(CodecError, TypeError):
    """A value does not fit its annotation, or cannot be encoded exactly. Raised where the job is sent."""


class TooLarge(EncodeError):
    """A payload or a result is larger or deeper than the settings allow."""


class DecodeError(CodecError, ValueError):
    """Stored bytes do not fit the annotation or the format."""


class NewerFormat(DecodeError):
    """The bytes have a version or a flag that this taskflow does not know. A newer version wrote them."""


class UnknownArgument(DecodeError):
    """The payload names a parameter that the function does not have: another version of the code sent it."""


class MissingArgument(DecodeError):
    """The payload lacks a parameter that the function requires: another version of the code sent it."""


# --- brokers -----------------------------------------------------------------------------------------


class BrokerError(TaskflowError):
    """The base class of errors between taskflow and the store."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """The store does not answer, or not in time. Every call can be repeated safely."""


class BrokerRefused(BrokerError):
    """The store answers but cannot be used: it does not belong to taskflow, is not writable, or has a newer version."""


class StoreFull(BrokerError):
    """The store has no room for new jobs. Workers can still run the queued ones."""


class SessionLost(BrokerError):
    """The session was declared dead or never registered. All its leases are gone. Register a new session."""


# --- what callers of jobs see ------------------------------------------------------------------------


class JobError(TaskflowError):
    """The base class of errors that `result()` raises."""

    def __init__(self, message: str, *, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobFailed(JobError):
    """The job has failed for good. `type`, `message` and `traceback` are those of its last error, as text."""

    def __init__(self, message: str, *, job_id: str, type: str, error_message: str, traceback: str) -> None:
        super().__init__(message, job_id=job_id)
        self.type = type
        self.message = error_message
        self.traceback = traceback


class JobCancelled(JobError):
    """The job was cancelled. `reason` is "cancelled", "expired", "replaced by ID", or the reason that the job gave."""

    def __init__(self, message: str, *, job_id: str, reason: str) -> None:
        super().__init__(message, job_id=job_id)
        self.reason = reason


class ResultExpired(JobError):
    """The job has ended and its result is no longer kept. Raise `keep_result=`, or read the result sooner."""


class UnknownJob(JobError, LookupError):
    """The store does not know the job, or no longer keeps it."""


class InvalidJobId(TaskflowError, ValueError):
    """The text is not a valid job id."""


class KeyConflict(JobError):
    """A live job already has the key, and `on_conflict="raise"` was given. `job_id` is the id of that job."""


class EnqueueFailed(TaskflowError):
    """Some calls of an `enqueue([...])` were not sent. `handles` are those of the sent calls, in order. The cause is chained."""

    def __init__(self, message: str, *, handles: Sequence[Any], conflicts: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.handles = list(handles)
        self.conflicts = list(conflicts)


def name_as_public(defined: dict[str, Any]) -> None:
    """Name the public errors of a module as users import them: a traceback or a stored error says `taskflow.Retry`.

    Other public classes keep their module, because tools look there for the names in their annotations.
    """
    for name in getattr(taskflow, "__all__", ()):  # the other distribution of this name has overwritten ours: see app/namesake.py
        if name in defined:
            defined[name].__module__ = "taskflow"


name_as_public(globals())
