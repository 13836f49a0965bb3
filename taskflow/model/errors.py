"""All errors that taskflow raises. A message says what happened, to what, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TaskflowError(Exception):
    """The root: catch this to catch all that taskflow raises by itself."""


# --- settings and declarations -------------------------------------------------------------------


class ConfigurationError(TaskflowError):
    """A setting, a URL or a declaration is wrong; nothing was started or sent."""


class BrokerUrlError(ConfigurationError, ValueError):
    """A broker URL is malformed or of an unknown scheme; the message names the part, never a password."""


class DriverMissing(ConfigurationError, ImportError):
    """The broker asked for needs a package that is not installed; the message names the extra."""


class DeclarationError(ConfigurationError, TypeError):
    """A job is declared in a way that cannot work; raised where it is declared."""


# --- values ----------------------------------------------------------------------------------------


class CodecError(TaskflowError):
    """A value cannot be written, or bytes cannot be read; `path` says where inside the argument.

    `path` reads like code: ``"data.address.lines[2]"``; it is "" when the whole is meant.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class EncodeError(CodecError, TypeError):
    """A value does not fit its annotation, or has no exact form; raised in the caller, at enqueue."""


class TooLarge(EncodeError):
    """A payload or a result is larger or deeper than the settings allow."""


class DecodeError(CodecError, ValueError):
    """Bytes are not what the annotation, or the format, says."""


class NewerFormat(DecodeError):
    """Bytes of a version, or with a flag, that this taskflow does not know: a newer one wrote them."""


class UnknownArgument(DecodeError):
    """The payload names a parameter that the function does not have: another version of the code sent it."""


class MissingArgument(DecodeError):
    """The payload lacks a parameter that the function requires: another version of the code sent it."""


# --- brokers -----------------------------------------------------------------------------------------


class BrokerError(TaskflowError):
    """Something between us and the store."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """The store does not answer, or not in time. Any verb may be repeated after it without harm."""


class BrokerRefused(BrokerError):
    """The store answers, and will not do: it is not ours, not writable, or of a newer version."""


class StoreFull(BrokerError):
    """The store has no room for new jobs; what is queued can still be worked off."""


class SessionLost(BrokerError):
    """The session was reaped, or never registered: all its leases are gone. Register a new one."""


# --- what callers of jobs see ------------------------------------------------------------------------


class JobError(TaskflowError):
    """What became of a job, told to whoever asked for its result."""

    def __init__(self, message: str, *, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobFailed(JobError):
    """The job has failed for good: `type`, `message` and `traceback` are its last error's, as text."""

    def __init__(self, message: str, *, job_id: str, type: str, error_message: str, traceback: str) -> None:
        super().__init__(message, job_id=job_id)
        self.type = type
        self.message = error_message
        self.traceback = traceback


class JobCancelled(JobError):
    """The job was cancelled; `reason` says by what: "cancelled", "expired", "replaced by ID", or the job's own word."""

    def __init__(self, message: str, *, job_id: str, reason: str) -> None:
        super().__init__(message, job_id=job_id)
        self.reason = reason


class ResultExpired(JobError):
    """The job has ended, and what it came to is no longer kept: raise `keep_result=`, or ask sooner."""


class UnknownJob(JobError, LookupError):
    """The store knows no such job, or no longer."""


class InvalidJobId(TaskflowError, ValueError):
    """A text that is not a job's id was given as one."""


class KeyConflict(JobError):
    """`on_conflict="raise"`: a live job has the key already; `job_id` names it."""


class EnqueueFailed(TaskflowError):
    """Not all of an `enqueue([...])` was sent. `handles` are those of the calls that were, in order; the cause is chained."""

    def __init__(self, message: str, *, handles: Sequence[Any], conflicts: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.handles = list(handles)
        self.conflicts = list(conflicts)
