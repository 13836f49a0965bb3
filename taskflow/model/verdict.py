"""Verdicts of runs, and settlements that carry them. Each outcome is a class, so that no illegal combination can be written."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, ClassVar, Final

import msgpack
import msgspec

from taskflow.model.envelope import ClaimId, Envelope
from taskflow.model.progress import Progress
from taskflow.model.rules import LONGEST
from taskflow.model.stored import LATEST, octets, whole

MAX_TRACEBACK: Final = 16_384
MAX_MESSAGE: Final = 4_096
MAX_ERRORS_BYTES: Final = 65_536


class RunError(msgspec.Struct, frozen=True):
    """Describes in text why a run did not succeed: the full name of the exception's type, its message and traceback.

    A long message is cut at its end, and a long traceback at its beginning: the place of the error matters more.
    """

    type: str
    message: str
    traceback: str = ""
    attempt: int = 1
    at: int = 0
    """Microseconds since 1970 by the store's clock; 0 until it is stored."""

    def __post_init__(self) -> None:
        _keep_head(self, "type")
        _keep_head(self, "message")
        _check("traceback", self.traceback, str)
        _check("attempt", self.attempt, int)
        if len(self.traceback) > MAX_TRACEBACK:
            msgspec.structs.force_setattr(self, "traceback", self.traceback[-MAX_TRACEBACK:])


# gc=False, here and below: verdicts are created by the thousand and never form a cycle, so the collector can skip them.
class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The outcome of a run. `is_final` is True if it ends the job."""

    is_final: ClassVar[bool] = True


class Succeeded(Verdict, frozen=True):
    """Done; `result` is the encoded return value."""

    result: bytes

    def __post_init__(self) -> None:
        if type(self.result) is not bytes:
            _check("result", self.result, bytes)


class Failed(Verdict, frozen=True):
    """Failed for good: attempts used up, an error that is not retried, or input that no run can use."""

    error: RunError

    def __post_init__(self) -> None:
        _check("error", self.error, RunError)


class Discarded(Verdict, frozen=True):
    """The job gave itself up (`raise Discard`): FAILED, without another attempt."""

    reason: str

    def __post_init__(self) -> None:
        _keep_head(self, "reason")


class Cancelled(Verdict, frozen=True):
    """The run ended because it was asked to, or the job ended itself (`raise Cancel`)."""

    reason: str

    def __post_init__(self) -> None:
        _keep_head(self, "reason")


class _Waits(Verdict, frozen=True):
    is_final: ClassVar[bool] = False


class Retried(_Waits, frozen=True):
    """A failed attempt. The next one follows after `after` seconds."""

    error: RunError
    after: float = 0.0

    def __post_init__(self) -> None:
        _check("error", self.error, RunError)
        _check_wait(self.after)


class Snoozed(_Waits, frozen=True):
    """The job runs again after `after` seconds. Uses no attempt."""

    after: float

    def __post_init__(self) -> None:
        _check_wait(self.after)


class Parked(_Waits, frozen=True):
    """This worker cannot run it (yet): an unknown job, a newer version. Uses no attempt."""

    waiting_for: str
    after: float

    def __post_init__(self) -> None:
        _keep_head(self, "waiting_for")
        _check_wait(self.after)


class HandedBack(_Waits, frozen=True):
    """Returned to its old place because the worker winds down, or held it in reserve; the latter does not count."""

    counts: bool = True


class Settlement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A verdict for one lease, with its consequences. All of it takes effect, or nothing.

    `ran_for`    seconds from the run's start to its end
    `keep_for`   seconds that a success is kept
    `follow_ups` envelopes that are added in the same step
    `progress`   the progress that the run reported last; None if it reported none
    """

    id: bytes
    epoch: int
    claim: ClaimId
    verdict: Verdict
    ran_for: float = 0.0
    keep_for: float = 300.0
    follow_ups: tuple[Envelope, ...] = ()
    progress: Progress | None = None


def is_plain_success(settlement: Settlement) -> bool:
    """Return True for a success that has nothing beside its result: the stores settle many of them at once."""
    return type(settlement.verdict) is Succeeded and not settlement.follow_ups and settlement.progress is None


class Settled(Enum):
    """The answer of a store to a settlement."""

    OK = "ok"
    """It took effect, now or when it was sent before."""
    STALE = "stale"
    """The job no longer has this lease: nothing changed."""
    HELD_UP = "held up"
    """An open transaction of another program holds the rows: nothing changed, and the worker sends the settlement again."""


# --- errors as stores keep them: msgpack arrays, one after the other ---------------------------------------


def pack_error(error: RunError, at: int) -> bytes:
    packed = msgpack.packb([error.type, error.message, error.traceback, error.attempt, at], unicode_errors="surrogatepass")
    assert packed is not None
    return bytes(packed)


def append_error(errors: bytes | None, error: RunError, at: int) -> bytes:
    """Return the history with one more error. If it grows beyond `MAX_ERRORS_BYTES`, only the newest error stays."""
    packed = pack_error(error, at)
    whole = (errors or b"") + packed
    return whole if len(whole) <= MAX_ERRORS_BYTES else packed


def unpack_errors(errors: bytes | None) -> tuple[RunError, ...]:
    """Unpack the errors that `append_error` packed. Raises ValueError or TypeError for anything else."""
    if not errors:
        return ()
    unpacker = msgpack.Unpacker(unicode_errors="surrogatepass")
    unpacker.feed(octets(errors))
    found, end = list[RunError](), 0
    for stored in unpacker:
        found.append(_read_error(stored))
        end = unpacker.tell()  # after the loop the position is beyond an error that is cut off
    if end != len(errors):
        raise ValueError(f"{len(errors) - end} bytes after the last whole error")
    return tuple(found)


def _read_error(stored: Any) -> RunError:
    if not isinstance(stored, list) or len(stored) != 5 or not all(isinstance(part, str) for part in stored[:3]):
        raise TypeError("expected type, message, traceback, attempt and time")
    kind, message, traceback = stored[:3]
    return RunError(kind, message, traceback, whole(stored[3]), whole(stored[4], 0, LATEST))


def _keep_head(struct: msgspec.Struct, field: str) -> None:
    """Cut a long text of a job or a middleware, for the sake of stores, logs and terminals."""
    text: str = getattr(struct, field)
    _check(field, text, str)
    if len(text) > MAX_MESSAGE:
        msgspec.structs.force_setattr(struct, field, text[:MAX_MESSAGE])


def _check_wait(seconds: float) -> None:
    if not (math.isfinite(seconds) and 0 <= seconds <= LONGEST):
        raise ValueError(f"a wait of {seconds!r} seconds: it must be a finite number, 0 or more, and a hundred years at most")


def _check(name: str, value: object, kind: type) -> None:
    """Check a verdict, which middleware may create too: one that no store could write is refused here."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}={value!r}: a verdict takes {kind.__name__} here")
