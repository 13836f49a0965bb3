"""Envelopes and leases: a serialized call of a job, and the same call leased to a session."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgpack
import msgspec

from taskflow.model.backoff import Backoff
from taskflow.model.rules import LONGEST
from taskflow.model.shown import shown
from taskflow.model.stored import Unreadable, maybe, number, unpacked, whole

QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
MAX_JOB_NAME: Final = 200
PRIORITIES: Final = range(-100, 101)
MAX_HEADER_BYTES: Final = 4096
OWN_HEADERS: Final = "tf-"
DEFAULT_QUEUE: Final = "default"


class OnConflict(IntEnum):
    """How to handle an envelope whose key a live job already has."""

    KEEP = 0
    """Keep the existing job, and return it to the caller."""
    REPLACE = 1
    """Cancel the waiting job in favour of the new one. Behind a running job the new one waits."""


# gc=False, here and below: they are made by the thousand and cannot lie in a circle, so that the collector need not look at them.
class Envelope(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One call of a job, immutable. Build user input with `check_envelope`; stores build it unchecked.

    `id`           16 bytes, made by the client
    `after`, `at`  seconds from now, or microseconds since 1970 in UTC, which wins; the past means now
    `expires`      seconds from now after which no run begins
    `key`          a digest (`ids.key_digest`); at most one live job has it
    `awaits`       held until so many jobs that name this one in their `joins` have ended
    `joins`        ids of held jobs that count this one's end, however it ends
    """

    id: bytes
    job: str
    payload: bytes
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    after: float = 0.0
    at: int | None = None
    expires: float | None = None
    key: bytes | None = None
    on_conflict: OnConflict = OnConflict.KEEP
    max_attempts: int = 10
    timeout: float | None = None
    retry: Backoff | None = None
    keep_result: float = 300.0
    headers: dict[str, str] = {}
    awaits: int = 0
    joins: tuple[bytes, ...] = ()


class ClaimId(NamedTuple):
    """Names one lease for ever: the session's id, the number of its claim request, its number in the answer."""

    session: bytes
    request: int
    number: int


class Lease(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An envelope held by a session. `epoch` and `claim` together are the fence; the counters are the store's.

    `created_at` is in microseconds since 1970; `parked_for` in seconds since the job was first parked without a run since; `expires_in` in
    seconds from the claim, by the store's clock, None for a job that does not expire. `unreadable` are the stored fields that could not be
    read: such a job is not run, its worker ends it FAILED.
    """

    envelope: Envelope
    epoch: int
    claim: ClaimId
    created_at: int
    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    hand_backs: int = 0
    parked_for: float = 0.0
    expires_in: float | None = None
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def attempt(self) -> int:
        """Failures so far + 1: crashes, snoozes and hand-backs cost none."""
        return self.failures + 1

    @property
    def is_last_attempt(self) -> bool:
        return self.attempt >= self.envelope.max_attempts


def check_envelope(envelope: Envelope) -> Envelope:
    """Return the envelope if it may be sent. Raise ValueError that names the field, its value and what is allowed."""
    check_queue(envelope.queue)
    check_job_name(envelope.job)
    check_headers(envelope.headers)
    if envelope.priority not in PRIORITIES:
        raise ValueError(f"priority={shown(envelope.priority)}: allowed are whole numbers from -100 to 100, higher runs first")
    if envelope.max_attempts < 1:
        raise ValueError(f"max_attempts={shown(envelope.max_attempts)}: a job has at least one attempt")
    for name in ("after", "keep_result", "timeout", "expires"):
        seconds = getattr(envelope, name)
        if seconds is not None and not 0 <= seconds <= LONGEST:
            raise ValueError(f"{name}={shown(seconds)}: it is in seconds, 0 or more and a hundred years at most")
    return envelope


def check_queue(name: str) -> str:
    if not QUEUE_NAME.fullmatch(name):
        raise ValueError(f"queue {shown(name)}: a queue's name has 1 to 100 of the characters A-Z a-z 0-9 _ . -")
    return name


def check_job_name(name: str) -> str:
    if not 0 < len(name) <= MAX_JOB_NAME or not name.isprintable():
        raise ValueError(f"job name {shown(name)}: a job's name has 1 to {MAX_JOB_NAME} printable characters")
    return name


def plain(text: str) -> str:
    """Return the text itself where a member of a str enum, or of another class of str, was given: stores are to show it alike."""
    return str.__str__(text)


def check_headers(headers: dict[str, str]) -> dict[str, str]:
    """Return a copy with plain texts."""
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"header {shown(name)}: {shown(value)}: headers are str to str")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in headers.items())
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"headers are {size} bytes in all, allowed are {MAX_HEADER_BYTES}")
    return {plain(name): plain(value) for name, value in headers.items()}


# --- what stores keep of an envelope without looking into it ------------------------------------------

# Field, its one-letter name in the stored map; defaults are left out, so that a plain envelope costs nothing.
_EXTRAS: Final = (("max_attempts", "m"), ("timeout", "t"), ("keep_result", "k"), ("headers", "h"))
_PLAIN: Final = Envelope(id=b"", job="", payload=b"")


_PLAIN_EXTRAS: Final = tuple(getattr(_PLAIN, name) for name, _ in _EXTRAS)


def pack_extras(envelope: Envelope) -> bytes | None:
    """Pack the fields that no store uses for decisions into a msgpack map. Return None if all have their defaults."""
    present = (envelope.max_attempts, envelope.timeout, envelope.keep_result, envelope.headers)
    if envelope.retry is None and present == _PLAIN_EXTRAS:
        return None
    values = zip(_EXTRAS, present, _PLAIN_EXTRAS, strict=True)
    extras: dict[str, Any] = {letter: value for (_, letter), value, default in values if value != default}
    if envelope.retry is not None:
        extras["r"] = [envelope.retry.base, envelope.retry.factor, envelope.retry.max, envelope.retry.jitter]
    packed = msgpack.packb(extras)
    assert packed is not None
    return bytes(packed)


def unpack_extras(packed: bytes | None) -> dict[str, Any]:
    """Return the keyword arguments of `Envelope` that `pack_extras` packed. Letters of a newer version are ignored.

    Raises ValueError, TypeError or an error of msgpack for a value that `check_envelope` would refuse.
    """
    if packed is None:
        return {}
    raw = unpacked(packed)
    if not isinstance(raw, dict):
        raise TypeError(f"expected a map, got {type(raw).__name__}")
    extras: dict[str, Any] = {}
    for letter, stored in raw.items():
        if letter in _READERS:
            name, read = _READERS[letter]
            try:
                extras[name] = read(stored)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: {error}") from error
    return extras


def _read_max_attempts(stored: Any) -> int:
    return whole(stored, 1)


def _read_timeout(stored: Any) -> float | None:
    return maybe(stored, _read_seconds)


def _read_seconds(stored: Any) -> float:
    return number(stored, 0.0, LONGEST)


def _read_headers(stored: Any) -> dict[str, str]:
    if not isinstance(stored, dict):
        raise TypeError(f"expected a map, got {type(stored).__name__}")
    return check_headers(stored)


def _read_retry(stored: Any) -> Backoff:
    if not isinstance(stored, list) or len(stored) < 4 or type(stored[3]) is not bool:
        raise TypeError("expected base, factor, max and jitter")
    base, factor, longest = (number(part, 0.0, sys.float_info.max) for part in stored[:3])
    return Backoff(base=base, factor=factor, max=longest, jitter=stored[3])


_READERS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "m": ("max_attempts", _read_max_attempts),
    "t": ("timeout", _read_timeout),
    "k": ("keep_result", _read_seconds),
    "h": ("headers", _read_headers),
    "r": ("retry", _read_retry),
}
