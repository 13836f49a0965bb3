"""The stored fields of a job, each declared once.

`FIELDS` defines SQLite's columns, placeholders and checks, and Redis's field numbers and constants. The packed extras, the fields that a
move clears, and `is_plain` are also derived from it. `tests/unit/model/test_job_schema.py` fails if a store or struct lacks a field. The
engine declares the headers of records in `broker/engine/records.py`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import msgspec

from taskflow.model.backoff import Backoff
from taskflow.model.failure_cause import FINGERPRINT_BYTES, MOST_BYTES
from taskflow.model.printable import shown
from taskflow.model.rules import LONGEST
from taskflow.model.stored_values import maybe, maybe_octets, maybe_text, number, text, unpacked, whole

DEFAULT_QUEUE: Final = "default"
PRIORITIES: Final = range(-100, 101)
MAX_HEADER_BYTES: Final = 4096
MAX_TAGS: Final = 10

# --- structs that share fields ------------------------------------------------------------------------------------


# gc=False, here and below: thousands of these are created, and they never form a cycle, so the garbage collector can skip them.
class SentAndShown(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fields that envelopes and records share."""

    id: bytes
    job: str
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    max_attempts: int = 10
    key_text: str | None = None
    headers: dict[str, str] = {}
    on_failure: bytes | None = None
    tags: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


class JobState(msgspec.Struct, gc=False, eq=False):
    """The job fields that SQLite and the reference broker work on in Python. Times are microseconds since 1970, except `claimed_steady`."""

    seq: int = 0
    id: bytes = b""
    priority: int = 0
    created_at: int = 0
    due_at: int = 0
    expires_at: int | None = None
    key: bytes | None = None
    awaits: int = 0
    behind: bytes | None = None
    epoch: int = 0
    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    hand_backs: int = 0
    claimed_at: int | None = None
    claimed_steady: int = 0
    started_at: int | None = None
    parked_at: int | None = None
    is_poison: int = 0
    cause: bytes | None = None
    ended_at: int | None = None

    def make_fresh(self, now: int) -> None:
        """Reset the job as if it had just been enqueued, but keep its errors."""
        for name, default in cleared_by(REDO).items():
            if name in self.__struct_fields__:
                setattr(self, name, default)
        self.due_at = now

    @property
    def run_started_at(self) -> int | None:
        """When the run started, or when it was claimed if its worker has not reported the start."""
        return self.claimed_at if self.started_at is None else self.started_at

    @property
    def counters(self) -> Counters:
        return Counters(self.failures, self.crashes, self.snoozes, self.hand_backs, self.parked_at)


class Counters(NamedTuple):
    """The counters of a job's runs that the rules in `transitions.py` need, and the time at which the job was parked, if it was."""

    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    hand_backs: int = 0
    parked_at: int | None = None


# --- the declaration ----------------------------------------------------------------------------------------------


class FieldKind(NamedTuple):
    """The type and range of a field. `least` and `most` limit the value of a number, or the length of bytes or text."""

    type: type[int] | type[bytes] | type[str]
    least: int = 0
    most: int = (1 << 63) - 1


SMALL: Final = 1 << 20
LARGE: Final = 64 << 20
MAX_PAYLOAD: Final = 60 << 20
"""The highest value of the setting `max_payload`. Every store keeps arguments and results of this size, with what it adds to them."""

NAME: Final = FieldKind(int, 1)
"""A number that stands for a queue name or job name. PostgreSQL stores the name itself."""
ORDINAL: Final = FieldKind(int, -(1 << 63))
STATUS: Final = FieldKind(int, most=6)
PRIORITY: Final = FieldKind(int, PRIORITIES[0], PRIORITIES[-1])
COUNT: Final = FieldKind(int, most=1 << 53)
FLAG: Final = FieldKind(int, most=1)
INSTANT: Final = FieldKind(int, most=1 << 62)
"""Microseconds since 1970, to which a duration can be added without an overflow."""
ID: Final = FieldKind(bytes, 16, 16)
CLAIM: Final = FieldKind(bytes, 28, 28)
FENCE: Final = FieldKind(bytes, 36, 36)
CAUSE: Final = FieldKind(bytes, FINGERPRINT_BYTES, MOST_BYTES)
BYTES: Final = FieldKind(bytes, most=SMALL)
LARGE_BYTES: Final = FieldKind(bytes, most=LARGE)
TEXT: Final = FieldKind(str, most=SMALL)

CLAIMED, OUTCOME, REDO, DROP = "claim", "outcome", "redo", "drop"
"""The moves that clear fields: a claim, any verdict except HandedBack and Parked, an operator's retry, and dropping an ended job."""


class Field(NamedTuple):
    """A stored field of a job.

    `default`     its value if nothing sets it; a field whose default is None may be absent
    `sent`        the fields of `Envelope` from which it is set
    `is_packed`   whether each store converts it in its own way; other fields are stored as they were sent
    `is_plain`    whether a plain job may have it: plain jobs take the fast paths, which handle only such fields
    `is_decided`  whether a store acts on its value; other fields are only kept and shown
    `cleared_by`  the moves that reset it to its default; all other moves leave it alone
    """

    name: str
    kind: FieldKind
    default: Any = None
    sent: tuple[str, ...] = ()
    is_packed: bool = False
    is_plain: bool = False
    is_decided: bool = True
    cleared_by: tuple[str, ...] = ()


FIELDS: Final = (
    # Redis stores fields under their position in this list, so add new ones at the end.
    Field("id", ID, b"", sent=("id",), is_plain=True),
    Field("status", STATUS),
    Field("queue", NAME, 0, sent=("queue",), is_packed=True, is_plain=True),
    Field("name", NAME, 0, sent=("job",), is_packed=True, is_plain=True),
    Field("priority", PRIORITY, 0, sent=("priority",), is_plain=True),
    Field("seq", ORDINAL, 0),  # the order of arrival
    Field("created_at", INSTANT, 0),
    Field("due_at", INSTANT, 0, sent=("after", "at"), is_packed=True),
    Field("payload", LARGE_BYTES, sent=("payload",), is_plain=True, is_decided=False, cleared_by=(DROP,)),
    Field("epoch", COUNT, 0),  # rises by one with each lease
    Field("claim", CLAIM),
    Field("claimed_at", INSTANT),
    Field("claimed_steady", INSTANT, 0),
    Field("worker", TEXT, is_decided=False, cleared_by=(REDO, DROP)),
    Field("started_at", INSTANT, cleared_by=(CLAIMED, REDO)),
    Field("settled", FENCE),  # the fence of the last settlement that took effect
    Field("result", LARGE_BYTES, is_decided=False, cleared_by=(DROP,)),
    Field("ended_at", INSTANT, cleared_by=(REDO,)),
    Field("fade_at", INSTANT, cleared_by=(REDO,)),  # the job is dropped then
    Field("extras", BYTES, is_plain=True, is_decided=False, cleared_by=(DROP,)),  # the opaque fields
    Field(
        "expires_at", INSTANT, sent=("expires",), is_packed=True, cleared_by=(REDO,)
    ),  # the job is cancelled if it has not started by then
    Field("key", BYTES, sent=("key",)),  # at most one waiting and one running job have the same key
    Field("awaits", COUNT, 0, sent=("awaits",), cleared_by=(REDO,)),  # the job is HELD until this many jobs have ended
    Field("joins", BYTES, sent=("joins",), is_packed=True),  # ids of jobs that are waiting for this one
    Field("behind", ID, cleared_by=(REDO,)),  # the running job with the same key, whose end this one is waiting for
    Field("failures", COUNT, 0, cleared_by=(REDO,)),
    Field("crashes", COUNT, 0, cleared_by=(OUTCOME, REDO)),
    Field("snoozes", COUNT, 0, cleared_by=(REDO,)),
    Field("hand_backs", COUNT, 0, cleared_by=(OUTCOME, REDO)),
    Field("parked_at", INSTANT, cleared_by=(OUTCOME, REDO)),
    Field("errors", BYTES, is_decided=False, cleared_by=(DROP,)),
    Field("progress", BYTES, is_decided=False, cleared_by=(CLAIMED, REDO, DROP)),
    Field("cancel_requested", TEXT, is_decided=False, cleared_by=(REDO,)),
    Field("reason", TEXT, is_decided=False, cleared_by=(REDO, DROP)),
    Field("waiting_for", TEXT, is_decided=False, cleared_by=(CLAIMED, REDO, DROP)),
    Field("is_poison", FLAG, 0, cleared_by=(REDO,)),
    Field("spoilt", LARGE_BYTES, is_decided=False, cleared_by=(DROP,)),  # the unreadable fields, with their first bytes
    Field("cause", CAUSE, is_decided=False, cleared_by=(REDO, DROP)),  # of a failed job: see `failure_cause.py`
)

BY_NAME: Final = {field.name: field for field in FIELDS}

AS_SENT: Final = tuple(field.name for field in FIELDS if field.sent and not field.is_packed)
"""The fields that stores keep unchanged from the envelope."""


def cleared_by(move: str) -> dict[str, Any]:
    """Return the fields that the move clears, each with its default."""
    return {field.name: field.default for field in FIELDS if move in field.cleared_by}


# --- opaque fields ------------------------------------------------------------------------------------------------


class Opaque(NamedTuple):
    """A field that no store interprets. It is packed into the extras under its letter, unless its value is the default.

    `write` encodes a value. `read` decodes and checks a stored one, which may be damaged; it raises ValueError or TypeError.
    `is_plain`, as in `Field`, is False if adding a job with this field takes more than storing its extras.
    """

    name: str
    letter: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = lambda value: value
    is_plain: bool = True


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


def _write_retry(retry: Backoff) -> list[Any]:
    return [retry.base, retry.factor, retry.max, retry.jitter]


def check_headers(headers: dict[str, str]) -> dict[str, str]:
    """Return a copy of the headers with plain str names and values. Raises TypeError or ValueError for invalid headers."""
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"header {shown(name)}: {shown(value)}: header names and values must be str")
    try:
        size = sum(len(name.encode()) + len(value.encode()) for name, value in headers.items())
    except UnicodeEncodeError:
        raise ValueError(f"headers {shown(headers)}: a lone surrogate is not valid text") from None
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"headers have {size} bytes in all, expected at most {MAX_HEADER_BYTES}")
    return {bare_text(name): bare_text(value) for name, value in headers.items()}


def check_tag(tag: str) -> str:
    if not TAG.fullmatch(tag):
        raise ValueError(f"tag {shown(tag)}: expected 1 to 100 of the characters A-Z a-z 0-9 _ . - : /")
    return tag


TAG: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags without repeated ones. Raises ValueError for an invalid tag or too many tags."""
    different = tuple(dict.fromkeys(map(check_tag, tags)))
    if len(different) > MAX_TAGS:
        raise ValueError(f"{len(different)} tags: a job can have at most {MAX_TAGS}")
    return different


def _read_tags(stored: Any) -> tuple[str, ...]:
    return check_tags(text(stored).split(" "))


def _read_secrets(stored: Any) -> tuple[str, ...]:
    if not isinstance(stored, list):
        raise TypeError(f"expected a list, got {type(stored).__name__}")
    return tuple(map(text, stored))


def bare_text(given: str) -> str:
    """Convert an instance of a str subclass, such as a StrEnum member, to plain str, so that all stores show it in the same way."""
    return str.__str__(given)


OPAQUE: Final = (
    # These two come first, in this order, so that the extras show by their first bytes which of them a job has: see `has_tags` and
    # `has_follow_up`.
    Opaque("tags", "g", _read_tags, " ".join, is_plain=False),
    Opaque("on_failure", "f", maybe_octets),
    Opaque("max_attempts", "m", lambda stored: whole(stored, 1)),
    Opaque("timeout", "t", lambda stored: maybe(stored, _read_seconds)),
    Opaque("keep_result", "k", _read_seconds),
    Opaque("headers", "h", _read_headers),
    Opaque("key_text", "u", maybe_text),  # for people: the key itself is a digest
    Opaque("retry", "r", _read_retry, _write_retry),
    Opaque("secrets", "s", _read_secrets),  # the names in arguments and result whose values are not shown
)

TAGGED: Final = b"\xa1g"
FOLLOWED_UP: Final = b"\xa1f"
"""The bytes after the first one of the extras of a job with `tags`, and of one with `on_failure` and without tags: the letter of that
field, as msgpack."""


def has_tags(extras: bytes | None) -> bool:
    """Return True if a job with these extras has tags."""
    return extras is not None and extras[1:3] == TAGGED


def has_follow_up(extras: bytes | None) -> bool:
    """Return True if a job with these extras has `on_failure`. A store looks at nothing else in the extras."""
    if extras is None or not has_tags(extras):
        return extras is not None and extras[1:3] == FOLLOWED_UP
    try:
        return "f" in unpacked(extras)
    except Exception:  # includes msgpack's own errors
        return False
