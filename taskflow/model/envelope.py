"""Envelopes, which are serialized calls to jobs; leases, which are envelopes held by sessions; and the calls that `on_failure` names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import IntEnum
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgpack
import msgspec

from taskflow.model.flow import MAX_FLOW_BYTES, MAX_MEMBERS, MAX_NOTES_AT_ONCE, Member, Tie, check_member, numbered
from taskflow.model.ids import id_text
from taskflow.model.job_schema import NOT_PLAIN, OPAQUE, PRIORITIES, SentAndShown, check_headers, check_tags
from taskflow.model.limits import Gate
from taskflow.model.printable import shown
from taskflow.model.rules import MAX_DURATION, Backoff
from taskflow.model.stored_values import Unreadable, unpacked

NAMESPACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")
MAX_JOB_NAME: Final = 200
OWN_HEADERS: Final = "tf-"


class OnConflict(IntEnum):
    """How to handle an envelope whose key already belongs to a live job."""

    KEEP = 0
    """Keep the existing job, and return it to the caller."""
    REPLACE = 1
    """Cancel the existing job if it is waiting. If it is running, hold the new job until that run ends."""
    DEBOUNCE = 2
    """Give the existing job the call's arguments if it is waiting, and move its due time. If it's running, do the same as REPLACE."""


class Envelope(SentAndShown, frozen=True, kw_only=True, gc=False):
    """An immutable call to a job. Check user input with `check_envelope`; stores create envelopes without checks.

    `id`        16 bytes, made by the client
    `payload`   the encoded arguments
    `after`     the delay in seconds before the job may start; ignored if `at` is given
    `at`        when the job may start, in microseconds since 1970 (UTC); an instant in the past means now
    `expires`   seconds after sending at which the job expires; no run starts after that
    `key`       a digest made by `ids.key_digest`; a new job with the key of a live job is a conflict
    `throttle`  seconds for which the added job represents later calls with its key and `throttle`, even after it has ended
    `at_most`   with DEBOUNCE, the latest due time to which calls can move the waiting job, in seconds after its creation
    `timeout`   seconds after which a run is stopped; None for no limit
    `keep_result` seconds for which the job is kept after it has succeeded
    `awaits`    how many jobs with this job's id in their `joins` must end before this one leaves HELD
    `joins`     the ids of the HELD jobs that await this one. Without `ties`, they await its end, whatever the outcome
    `limits`    the gates (limits) that the job must pass before it's READY, without duplicates
    `member`    the job's place in its flow, or None
    `ties`      for a job in a flow, how its end affects each of the jobs in `joins`
    `fair`      a digest of the job's tenant, or None; the jobs of a queue's tenants take turns
    `on_failure` the call to send if the job ends FAILED, as `pack_follow_up` packs it
    """

    payload: bytes
    after: float = 0.0
    at: int | None = None
    expires: float | None = None
    key: bytes | None = None
    on_conflict: OnConflict = OnConflict.KEEP
    throttle: float | None = None
    at_most: float | None = None
    timeout: float | None = None
    retry: Backoff | None = None
    keep_result: float = 3600.0
    awaits: int = 0
    joins: tuple[bytes, ...] = ()
    limits: tuple[Gate, ...] = ()
    member: Member | None = None
    ties: tuple[Tie, ...] = ()


def notes_of(envelope: Envelope) -> tuple[bytes, ...]:
    """Return the ids of the notes that a job's success writes for other jobs, and of the job's own notes, which it drops. A note is an
    input of a job in a flow. If the job has more than `MAX_NOTES_AT_ONCE` inputs, its own notes are left out."""
    member = envelope.member
    inputs = 0 if member is None or member.inputs > MAX_NOTES_AT_ONCE else member.inputs
    ties = zip(envelope.joins, envelope.ties, strict=False)
    written = [numbered(job_id, tie.number) for job_id, tie in ties if tie.number is not None]
    return (*written, *[numbered(envelope.id, number) for number in range(inputs)]) if inputs else tuple(written)


class ClaimId(NamedTuple):
    """Identifies a lease by the session's id, the number of the claim request, and the lease's number in the answer."""

    session: bytes
    request: int
    number: int


class Lease(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An envelope held by a session. `epoch` and `claim` form its fence, which rejects outdated settlements. The store sets the counters.

    `created_at`  microseconds since 1970
    `waited`      microseconds between the time when the job became due and this claim
    `parked_for`  seconds since the job was parked; parking it again before its next outcome does not restart the count
    `expires_in`  seconds from the claim until the job expires, by the store's clock; None if it does not expire
    `unreadable`  the stored fields that could not be read; if there are any, the worker ends the job as FAILED without running it
    `poison`      why the job is poison, or None; the worker ends such a job as FAILED without running it, and sends its follow-up
    """

    envelope: Envelope
    epoch: int
    claim: ClaimId
    created_at: int
    waited: int = 0
    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    hand_backs: int = 0
    parked_for: float = 0.0
    expires_in: float | None = None
    unreadable: tuple[Unreadable, ...] = ()
    poison: str | None = None

    @property
    def attempt(self) -> int:
        """The number of this attempt: the failures so far plus one. Crashes, snoozes and hand-backs do not count."""
        return self.failures + 1

    @property
    def is_last_attempt(self) -> bool:
        return self.attempt >= self.envelope.max_attempts


def check_envelope(envelope: Envelope) -> Envelope:
    """Return the envelope if it is valid. Otherwise raise ValueError, naming the field, its value and the allowed values."""
    check_queue(envelope.queue)
    check_job_name(envelope.job)
    check_headers(envelope.headers)
    check_tags(envelope.tags)
    if envelope.priority not in PRIORITIES:
        raise ValueError(f"priority={shown(envelope.priority)}: expected a whole number from -100 to 100; higher runs first")
    if envelope.max_attempts < 1:
        raise ValueError(f"max_attempts={shown(envelope.max_attempts)}: expected at least 1")
    for name in ("after", "keep_result", "timeout", "expires", "throttle", "at_most"):
        seconds = getattr(envelope, name)
        if seconds is not None and not 0 <= seconds <= MAX_DURATION:
            raise ValueError(f"{name}={shown(seconds)}: expected seconds, from 0 to a hundred years")
    if envelope.member is not None:
        check_member(envelope.member, envelope.joins, envelope.ties)
    return envelope


def check_queue(name: str) -> str:
    if not QUEUE_NAME.fullmatch(name):
        raise ValueError(f"queue {shown(name)}: expected 1 to 100 of the characters A-Z a-z 0-9 _ . - : /")
    return name


def check_namespace(name: str) -> str:
    if not NAMESPACE.fullmatch(name):
        raise ValueError(f"namespace {shown(name)}: expected 1 to 100 of the characters A-Z a-z 0-9 _ . -")
    return name


def check_job_name(name: str) -> str:
    if not 0 < len(name) <= MAX_JOB_NAME or not name.isprintable():
        raise ValueError(f"job name {shown(name)}: expected 1 to {MAX_JOB_NAME} printable characters")
    return name


_PLAIN: Final = Envelope(id=b"", job="", payload=b"")


def _has_more() -> str:
    """Return an expression that is true if the envelope `e` sets a field that plain jobs lack. When compiled, it is faster than a loop."""
    names = [*NOT_PLAIN, *(field.name for field in OPAQUE if not field.is_plain)]
    return " or ".join(f"e.{name} is not None" if getattr(_PLAIN, name) is None else f"e.{name}" for name in names)


is_plain: Final[Callable[[Envelope], bool]] = eval(f"lambda e: not ({_has_more()})")
"""Return True if the envelope's job is plain: ready at once, independent of other jobs, and with only fields that the fast paths handle."""

# --- the opaque fields --------------------------------------------------------------------------------------------

_opaque: Final = attrgetter(*(field.name for field in OPAQUE))
_NOTHING_OPAQUE: Final = _opaque(_PLAIN)
_BY_LETTER: Final = {field.letter: field for field in OPAQUE}

_last_packed: tuple[Any, bytes | None] = (_NOTHING_OPAQUE, None)
"""The opaque fields that were packed last, and their packed form. Jobs that are sent together mostly have the same values in them."""


def pack_extras(envelope: Envelope) -> bytes | None:
    """Pack the opaque fields into a msgpack map. Return None if all have their defaults."""
    global _last_packed
    values, (last, packed) = _opaque(envelope), _last_packed
    if values == last:
        return packed
    given = {f.letter: f.write(value) for f, value, default in zip(OPAQUE, values, _NOTHING_OPAQUE, strict=True) if value != default}
    packed = msgpack.packb(given) if given else None
    _last_packed = values, packed
    return packed


def unpack_extras(packed: bytes | None) -> dict[str, Any]:
    """Unpack the result of `pack_extras` as keyword arguments for `Envelope`. Unknown letters, which a newer version wrote, are ignored.

    Raises ValueError, TypeError or a msgpack error for invalid data or values.
    """
    if packed is None:
        return {}
    raw = unpacked(packed)
    if not isinstance(raw, dict):
        raise TypeError(f"expected a map, got {type(raw).__name__}")
    extras: dict[str, Any] = {}
    for letter, stored in raw.items():
        if letter in _BY_LETTER:
            field = _BY_LETTER[letter]
            try:
                extras[field.name] = field.read(stored)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{field.name}: {error}") from error
    return extras


def check_flow(envelopes: Sequence[Envelope]) -> None:
    """Raise ValueError, naming the number, if a flow has too many jobs or too many bytes."""
    if len(envelopes) > MAX_MEMBERS:
        raise ValueError(f"the flow has {len(envelopes):,} jobs, expected at most {MAX_MEMBERS:,}: send several flows")
    size = sum(len(envelope.payload) + len(pack_extras(envelope) or b"") for envelope in envelopes)
    if size > MAX_FLOW_BYTES:
        raise ValueError(
            f"the jobs of the flow have {size:,} bytes of arguments and options, expected at most {MAX_FLOW_BYTES:,}: "
            "pass references to large data, such as ids"
        )


CAUSED_BY: Final = "tf-caused-by"
"""The header in which a follow-up (an `on_failure` call) carries the id of the job that failed."""

MAX_FOLLOW_UP: Final = 32_768
"""The maximum size in bytes of an `on_failure` call, which is stored with its job. This size includes the call's own `on_failure`."""

_NO_ID: Final = bytes(16)
_DECODER: Final = msgspec.msgpack.Decoder(Envelope)


def pack_follow_up(envelope: Envelope) -> bytes:
    """Pack a call without its id. Raises ValueError if the call is invalid or too large, or its headers leave no room for `CAUSED_BY`."""
    caused = _caused_by(envelope, _NO_ID, _NO_ID)
    try:
        check_envelope(caused)
    except ValueError as error:
        raise ValueError(f"the call to {envelope.job}: {error} (including the 48 bytes that taskflow adds for {CAUSED_BY})") from None
    given = {name: getattr(envelope, name) for name in Envelope.__struct_fields__}
    packed = msgspec.msgpack.encode({name: value for name, value in given.items() if value != getattr(_PLAIN, name)} | {"id": b""})
    if len(packed) > MAX_FOLLOW_UP:
        raise ValueError(
            f"the call to {envelope.job} has {len(packed):,} bytes with its arguments and options, expected at most {MAX_FOLLOW_UP:,}: "
            "pass a reference to large data, such as an id"
        )
    return packed


def follow_up_of(packed: bytes, new_id: bytes, cause: bytes) -> Envelope:
    """Return the envelope to send for a packed call. `cause` is the id of the job that failed. Raises ValueError for an invalid call."""
    try:
        return check_envelope(_caused_by(_DECODER.decode(packed), new_id, cause))
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


def job_of(packed: bytes) -> str:
    """Return the name of the job that a packed call is for. Raises ValueError for an invalid call."""
    return follow_up_of(packed, _NO_ID, _NO_ID).job


def _caused_by(envelope: Envelope, new_id: bytes, cause: bytes) -> Envelope:
    return msgspec.structs.replace(envelope, id=new_id, headers={**envelope.headers, CAUSED_BY: id_text(cause)})
