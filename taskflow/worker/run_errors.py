"""Describes raised errors for the store, and builds `on_failure` jobs. No function here raises, even if an error's own methods do."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import DecodeError, EncodeError, TaskflowError
from taskflow.model.ids import IdFactory, id_text
from taskflow.model.verdict import Completed, Discarded, Failed, RunEnding, RunError, Verdict
from taskflow.worker.children.messages import ChildFailed

# An error's metaclass may hide or break these attributes. `error.__class__`, which `isinstance` reads, may be wrong too: use `type(error)`.
_MODULE: Final = type.__dict__["__module__"]
_QUALNAME: Final = type.__dict__["__qualname__"]


ROLLED_BACK: Final = "taskflow.RolledBack"
log: Final = logging.getLogger("taskflow")
_new_id: Final = IdFactory()


class RolledBack(TaskflowError):
    """The error of a run whose transaction with `complete_in` was rolled back. The run is retried, whatever `retry_on` says."""

    __module__ = "taskflow"  # the name that a job's record shows

    def __init__(self) -> None:
        super().__init__("complete_in() was called, but its transaction was rolled back: commit it before the function returns")


def failure_of(
    error: BaseException, attempt: int, function: Callable[..., Any] | None = None, ending: RunEnding = RunEnding.FAILED
) -> RunError:
    """Describe `error` for the store. The traceback begins in `function` if that's on the stack. The codec's own errors have none."""
    is_ours = issubclass(type(error), (DecodeError, EncodeError)) and error.__cause__ is None
    shown = "" if is_ours else _traceback(error, function)
    return RunError(_type_name(type(error)), _message(error), shown, attempt, ending=ending)


def unencodable(error: BaseException, attempt: int) -> RunError:
    """Describe why a result cannot be encoded, always as an EncodeError."""
    if issubclass(type(error), EncodeError):
        return failure_of(error, attempt)
    message = f"the result cannot be encoded: {_type_name(type(error))}: {_message(error)}"
    return RunError(_type_name(EncodeError), message, _traceback(error, None), attempt)


def stored_cause(verdict: Verdict, deploy: str) -> bytes | None:
    """Return the cause to store if this verdict ends the job as FAILED, otherwise None."""
    if not isinstance(verdict, Failed | Discarded | Completed):
        return None
    from taskflow.model import fingerprint  # loaded only at the first failure

    return fingerprint.cause_of(verdict, deploy)


def _type_name(kind: type) -> str:
    name = _QUALNAME.__get__(kind)
    try:
        module = _MODULE.__get__(kind)
    except AttributeError:  # exec() defined the class, with globals that have no `__name__`
        return str(name)
    return str(name) if module == "builtins" else f"{module}.{name}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:
        return f"<its message cannot be shown: {_type_name(type(broken))}>"


def _traceback(error: BaseException, function: Callable[..., Any] | None) -> str:
    """Format the traceback, starting at the job's first line: taskflow's frames above it don't help the user."""
    frames = error.__traceback__
    try:
        if isinstance(error, ChildFailed):  # its notes describe what happened in the child, and the frames here add nothing
            return "".join(traceback.format_exception_only(error))
        own = frames if function is None else frames_from(function, error)
        return "".join(traceback.format_exception(type(error), error, own))
    except BaseException as broken:
        # Formatting reads the error's attributes, which run the user's code. The frames alone do not.
        lines = traceback.format_tb(frames)
        return "".join([*lines, f"<the error itself cannot be formatted: {_type_name(type(broken))}: {_message(broken)}>\n"])


def frames_from(function: Callable[..., Any], error: BaseException) -> TracebackType | None:
    """Return the error's frames, starting at the function or, if it has that attribute, at its `begins_at`. If that function isn't on the
    stack, return all frames. None if the error has no traceback."""
    code = getattr(inspect.unwrap(getattr(function, "begins_at", function)), "__code__", None)
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code is not code:
        frames = frames.tb_next
    return frames or error.__traceback__


def follow_ups_of(lease: Lease, verdict: Verdict) -> tuple[Envelope, ...]:
    """Return the envelope of the job's `on_failure` call if the verdict is a final failure. Otherwise, or if the call
    cannot be read, return ()."""
    packed = lease.envelope.on_failure
    if isinstance(verdict, Completed):
        verdict = verdict.otherwise
    if packed is None or not isinstance(verdict, Failed | Discarded):
        return ()
    from taskflow.model.envelope import follow_up_of

    try:
        return (follow_up_of(packed, _new_id(), lease.envelope.id),)
    except ValueError as error:  # another program has changed the stored call
        log.error("job %s failed, but its on_failure call cannot be read, and is not sent: %s", id_text(lease.envelope.id), error)
        return ()
