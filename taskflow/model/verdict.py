"""Progress, verdicts on runs, and the settlements that carry them. Each outcome is a class, so no invalid combination can be expressed."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from enum import Enum, StrEnum
from typing import Any, ClassVar, Final, Self

import msgpack
import msgspec

from taskflow.model.envelope import ClaimId, Envelope
from taskflow.model.limits import Gate
from taskflow.model.rules import MAX_DURATION
from taskflow.model.stored_values import LATEST, number, octets, packed, text, unpacked, whole

MAX_NOTE: Final = 4_096
"""The maximum length of a progress note in characters. Longer notes are truncated."""


class Progress(msgspec.Struct, frozen=True):
    """The progress that a run reports: a fraction from 0 to 1, and a note."""

    fraction: float
    note: str = ""

    @classmethod
    def checked(cls, fraction: float, note: str) -> Self:
        """Create a Progress from a job's values, truncating a long note. Raises TypeError or ValueError for invalid values."""
        if not isinstance(note, str):
            raise TypeError(f"a progress note must be text, got {type(note).__name__}: convert it with str(...)")
        try:
            is_fraction = 0 <= fraction <= 1
        except TypeError:
            raise TypeError(f"progress must be a number between 0 and 1, got {type(fraction).__name__}") from None
        if not is_fraction:
            raise ValueError(f"progress must be between 0 and 1, got {fraction!r}")
        return cls(float(fraction), str.__getitem__(note, slice(MAX_NOTE)))  # converts a str subclass to plain str


def unpack_progress(packed: bytes | None) -> Progress | None:
    """Decode progress, stored as a msgpack array of its two fields. None stays None. Raises ValueError or TypeError for anything else."""
    if packed is None:
        return None
    stored = unpacked(packed)
    if not isinstance(stored, list) or len(stored) != 2:
        raise TypeError("expected fraction and note")
    return Progress(number(stored[0], 0.0, 1.0), text(stored[1]))


MAX_TRACEBACK: Final = 16_384
MAX_MESSAGE: Final = 4_096
MAX_ERRORS_BYTES: Final = 65_536


class RunEnding(StrEnum):
    """How a run ended that left an error in its job's history."""

    FAILED = "failed"
    TIMED_OUT = "timed out"
    CRASHED = "crashed"
    """Its worker was lost."""


class RunError(msgspec.Struct, frozen=True):
    """A run that failed, and the reason as text: the exception's full type name, its message and its traceback. A long message is truncated
    at the end. A long traceback is truncated at the start, because the last frames matter most: they show where the error was raised.

    The store adds the run's times, in microseconds since 1970 by its clock, and its worker. They are 0 and "" until then.

    `at`          when the run ended
    `ending`      how it ended
    `worker`      the name of its worker
    `started_at`  when it started, or when its worker claimed the job if the worker was lost before it reported the start
    """

    type: str
    message: str
    traceback: str = ""
    attempt: int = 1
    at: int = 0
    ending: RunEnding = RunEnding.FAILED
    worker: str = ""
    started_at: int = 0

    def __post_init__(self) -> None:
        _keep_head(self, "type")
        _keep_head(self, "message")
        _check("traceback", self.traceback, str)
        _check("attempt", self.attempt, int)
        _check("ending", self.ending, RunEnding)
        if len(self.traceback) > MAX_TRACEBACK:
            msgspec.structs.force_setattr(self, "traceback", self.traceback[-MAX_TRACEBACK:])

    def of_run(self, worker: str | None, started_at: int | None, ended_at: int) -> RunError:
        """Return this error with the worker and the times of its run."""
        error = copy(self)  # its fields are checked already
        for name, value in (("worker", worker or ""), ("started_at", started_at or 0), ("at", ended_at)):
            msgspec.structs.force_setattr(error, name, value)
        return error


# gc=False, here and below: thousands of these are created, and they never form a cycle, so the garbage collector can skip them.
class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The outcome of a run. The classes of verdicts, such as `Succeeded` and `Retried`, are its subclasses.

    `is_final`   True if it ends the job
    `exception`  the exception behind it, available to middleware and subscribers. None for a success, for a verdict made by middleware, and
                 for an error in a child process. It isn't stored, compared or sent
    """

    is_final: ClassVar[bool] = True
    exception: ClassVar[BaseException | None] = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if name in _CHECKS:
                _CHECKS[name](self, name)


class Succeeded(Verdict, frozen=True, dict=True, gc=True):
    """The run succeeded. `result` is the encoded return value."""

    _decode: ClassVar[Any] = None

    result: bytes

    def __post_init__(self) -> None:
        if type(self.result) is not bytes:
            _check("result", self.result, bytes)

    @property
    def value(self) -> Any:
        """The return value, decoded on each access: by the job's return annotation, or without it if middleware has made the verdict.
        None if the result is empty. Raises DecodeError if it cannot be decoded."""
        from taskflow.model.codec import decode_value

        return (self._decode or decode_value)(self.result) if self.result else None


def decodable(success: Succeeded, decode: Callable[[bytes], Any]) -> Succeeded:
    """Set `decode` as the decoder of the verdict's `value`, and return the verdict."""
    msgspec.structs.force_setattr(success, "_decode", decode)
    return success


class Failed(Verdict, frozen=True, dict=True, gc=True):
    """The job failed for good: it has no attempts left, the error is not retryable, or its input is unusable."""

    error: RunError


class Discarded(Verdict, frozen=True, dict=True, gc=True):
    """The job raised `Discard`. It ends as FAILED, without another attempt."""

    reason: str


class Cancelled(Verdict, frozen=True, dict=True, gc=True):
    """The run was asked to stop, or the job raised `Cancel`."""

    reason: str


class _Waits(Verdict, frozen=True):
    is_final: ClassVar[bool] = False


class Retried(_Waits, frozen=True, dict=True, gc=True):
    """The attempt failed. The next one starts after `after` seconds."""

    error: RunError
    after: float = 0.0


class Snoozed(_Waits, frozen=True):
    """The job asked to run again after `after` seconds. This uses no attempt. With `closes`, the job's rates let no job start until
    then."""

    after: float
    closes: bool = False


class Parked(_Waits, frozen=True):
    """This worker cannot run the job, for example because a newer version sent it. The job waits `after` seconds, and uses no attempt."""

    waiting_for: str
    after: float


class HandedBack(_Waits, frozen=True):
    """The job returns to its old place in the queue, because the worker is shutting down or never started it.

    `counts` is False if the job was never started, in which case this does not count as a hand-back. `is_paused` is True if it was not
    started because its job is paused: while the pause lasts, it's parked instead. If `limits` is given, the job must pass its gates again,
    and these limits too, before it starts.
    """

    counts: bool = True
    is_paused: bool = False
    limits: tuple[Gate, ...] | None = None


class Completed(Verdict, frozen=True, dict=True, gc=True):
    """The run has settled its job in a transaction (`JobContext.complete_in`). If the transaction committed, the job has succeeded; if it
    rolled back, `otherwise` takes effect."""

    otherwise: Verdict

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.otherwise, Succeeded | Completed):
            raise TypeError(f"otherwise={self.otherwise!r}: a run whose transaction rolled back has not succeeded")


def attach_exception(verdict: Verdict, error: BaseException) -> None:
    """Set the verdict's `exception`. The caller must detach it as soon as the run has ended, because the exception holds the run's
    variables, and the garbage collector does not see a cycle through a verdict."""
    msgspec.structs.force_setattr(verdict, "exception", error)


def detach_exception(verdict: Verdict) -> None:
    vars(verdict).pop("exception", None)


class Settlement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The verdict on the run of one lease, and its consequences. They take effect together, or not at all.

    `ran_for`    how many seconds the run took
    `keep_for`   how many seconds a successful job is kept
    `follow_ups` envelopes to add in the same transaction
    `progress`   the last progress that the run reported; None if it reported none
    `cause`      the cause of a run that ends its job as FAILED: see `fingerprint.cause_of`
    `key`        the job's key, from the lease; given so that a store can read everything it needs at once
    `limits`     the job's gates, from the lease; given for the same reason
    `arguments`  the job's payload, if it's kept with the result of a success; otherwise None
    `awaited_by` the id of the job in its flow that awaits it, if exactly one does; given for the same reason
    `notes`      the ids of the notes that the end of a job in a flow writes or drops; given for the same reason
    """

    id: bytes
    epoch: int
    claim: ClaimId
    verdict: Verdict
    ran_for: float = 0.0
    keep_for: float = 3600.0
    follow_ups: tuple[Envelope, ...] = ()
    progress: Progress | None = None
    cause: bytes | None = None
    key: bytes | None = None
    limits: tuple[Gate, ...] = ()
    arguments: bytes | None = None
    awaited_by: bytes | None = None
    notes: tuple[bytes, ...] = ()


def is_plain_success(settlement: Settlement) -> bool:
    """Return True for a success with nothing but a result. Stores settle many of these in one step."""
    return type(settlement.verdict) is Succeeded and not settlement.follow_ups and settlement.progress is None


class Settled(Enum):
    """A store's answer to a settlement."""

    OK = "ok"
    """It took effect, either now or when it was first sent."""
    STALE = "stale"
    """Nothing changed, because the lease is no longer valid."""
    COMMITTED = "committed"
    """Nothing changed, because the run has settled the job in a transaction, which has committed. Only a `Completed`, or a run
    that settles its job in a second transaction, is expected to get this answer."""
    HELD_UP = "held up"
    """Nothing changed, because another program's open transaction has locked the records. The worker sends the settlement again."""


# --- errors as stores keep them: a sequence of msgpack arrays ----------------------------------------------


def pack_error(error: RunError) -> bytes:
    sent_by_worker = (error.type, error.message, error.traceback, error.attempt, error.ending.value)
    return packed([*sent_by_worker, error.worker, error.started_at, error.at])


def append_error(errors: bytes | None, error: RunError) -> bytes:
    """Return the packed errors with `error` appended. If they would exceed `MAX_ERRORS_BYTES`, only `error` is kept."""
    last = pack_error(error)
    all_errors = (errors or b"") + last
    return all_errors if len(all_errors) <= MAX_ERRORS_BYTES else last


def unpack_errors(errors: bytes | None) -> tuple[RunError, ...]:
    """Unpack the errors that `append_error` packed, oldest first. Raises ValueError or TypeError for anything else."""
    if not errors:
        return ()
    unpacker = msgpack.Unpacker(unicode_errors="surrogatepass")
    unpacker.feed(octets(errors))
    found, end = list[RunError](), 0
    for stored in unpacker:
        found.append(_read_error(stored))
        end = unpacker.tell()  # after the loop, the position may be past an error that was cut off
    if end != len(errors):
        raise ValueError(f"found {len(errors) - end} bytes after the last complete error")
    return tuple(found)


def _read_error(stored: Any) -> RunError:
    if not isinstance(stored, list) or len(stored) != 8 or not all(isinstance(part, str) for part in stored[:3]):
        raise TypeError("expected type, message, traceback, attempt, ending, worker, start and end")
    kind, message, traceback, attempt, ending, worker, started_at, ended_at = stored
    started_at, ended_at = whole(started_at, 0, LATEST), whole(ended_at, 0, LATEST)
    return RunError(kind, message, traceback, whole(attempt), ended_at, RunEnding(ending), text(worker), started_at)


def _keep_head(struct: msgspec.Struct, field: str) -> None:
    """Truncate a field's text, which may come from a job or from middleware, to protect stores, logs and terminals."""
    text: str = getattr(struct, field)
    _check(field, text, str)
    if len(text) > MAX_MESSAGE:
        msgspec.structs.force_setattr(struct, field, text[:MAX_MESSAGE])


def _check_wait(struct: msgspec.Struct, field: str) -> None:
    seconds: float = getattr(struct, field)
    if not (math.isfinite(seconds) and 0 <= seconds <= MAX_DURATION):
        raise ValueError(f"{field}={seconds!r}: expected seconds, from 0 to a hundred years")


def _check(name: str, value: object, kind: type) -> None:
    """Raise TypeError if a verdict's field has the wrong type. Middleware can create verdicts too, even some that no store can write."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}={value!r}: expected {kind.__name__}")


_CHECKS: Final[dict[str, Callable[[Any, str], None]]] = {
    "error": lambda verdict, name: _check(name, verdict.error, RunError),
    "otherwise": lambda verdict, name: _check(name, verdict.otherwise, Verdict),
    "reason": _keep_head,
    "waiting_for": _keep_head,
    "after": _check_wait,
}
