"""The fields of an envelope: fields that records share, fields that plain jobs lack, and opaque fields, which are stored packed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import msgspec

from taskflow.model.printable import shown
from taskflow.model.rules import MAX_DURATION, Backoff
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
    fair: bytes | None = None


class Counters(NamedTuple):
    """The counters of a job's runs that the rules in `transitions.py` need, and when it was parked (microseconds since 1970), or None."""

    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    hand_backs: int = 0
    parked_at: int | None = None


SMALL: Final = 1 << 20
LARGE: Final = 64 << 20
MAX_PAYLOAD: Final = 60 << 20
"""The highest value of the setting `max_payload`. Every store can keep arguments and results of this size, with its own overhead."""

# --- fields that stores act on ------------------------------------------------------------------------------------

NOT_PLAIN: Final = ("after", "at", "expires", "key", "awaits", "joins", "limits", "member", "ties")
"""The fields of an envelope that stores act on, and that the fast paths do not handle. A job that sets one of them is not plain."""

# --- opaque fields ------------------------------------------------------------------------------------------------


class Opaque(NamedTuple):
    """A field that no store interprets. It is packed into the extras under its letter, unless its value is the default.

    `write` encodes a value. `read` decodes and checks a stored one, which may be damaged; it raises ValueError or TypeError.
    `is_plain` is False if adding a job with this field takes more than storing its extras.
    """

    name: str
    letter: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = lambda value: value
    is_plain: bool = True


def _read_seconds(stored: Any) -> float:
    return number(stored, 0.0, MAX_DURATION)


def _read_headers(stored: Any) -> dict[str, str]:
    if not isinstance(stored, dict):
        raise TypeError(f"expected a map, got {type(stored).__name__}")
    return dict(check_headers(stored))  # a copy, because a run may change its headers


def _read_retry(stored: Any) -> Backoff:
    if not isinstance(stored, list) or len(stored) < 4 or type(stored[3]) is not bool:
        raise TypeError("expected base, factor, max and jitter")
    base, factor, longest = (number(part, 0.0, sys.float_info.max) for part in stored[:3])
    return Backoff(base=base, factor=factor, max=longest, jitter=stored[3])


_last_headers: dict[str, str] = {}
"""The headers that were checked last. Jobs that are sent together mostly have the same headers."""


def check_headers(headers: dict[str, str]) -> dict[str, str]:
    """Validate headers, and return them as a dict of plain `str`. The dict is cached and may be shared between calls, so callers must not
    modify it. Raises TypeError or ValueError for an invalid header."""
    global _last_headers
    if headers == (last := _last_headers):
        return last
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"headers={{{shown(name)}: {shown(value)}}}: header names and values must be str")
    try:
        size = sum(len(name.encode()) + len(value.encode()) for name, value in headers.items())
    except UnicodeEncodeError:
        raise ValueError(f"headers {shown(headers)}: a lone surrogate is not valid text") from None
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"headers have {size} bytes in all, expected at most {MAX_HEADER_BYTES}")
    _last_headers = checked = {bare_text(name): bare_text(value) for name, value in headers.items()}
    return checked


def check_tag(tag: str) -> str:
    if not TAG.fullmatch(tag):
        raise ValueError(f"tag {shown(tag)}: expected 1 to 100 of the characters A-Z a-z 0-9 _ . - : /")
    return tag


TAG: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags without duplicates. Raises ValueError for an invalid tag or too many tags."""
    different = tuple(dict.fromkeys(map(check_tag, tags)))
    if len(different) > MAX_TAGS:
        raise ValueError(f"{len(different)} tags: a job can have at most {MAX_TAGS}")
    return different


def _read_secrets(stored: Any) -> tuple[str, ...]:
    if not isinstance(stored, list):
        raise TypeError(f"expected a list, got {type(stored).__name__}")
    return tuple(map(text, stored))


def bare_text(given: str) -> str:
    """Convert an instance of a str subclass, such as a StrEnum member, to plain str, so that all stores show it in the same way."""
    return str.__str__(given)


OPAQUE: Final = (
    # These two come first, in this order, so that the first bytes of the extras show which of them a job has: see `has_tags` and
    # `has_follow_up`.
    Opaque("tags", "g", lambda stored: check_tags(text(stored).split(" ")), " ".join, is_plain=False),
    Opaque("on_failure", "f", maybe_octets),
    Opaque("max_attempts", "m", lambda stored: whole(stored, 1)),
    Opaque("timeout", "t", lambda stored: maybe(stored, _read_seconds)),
    Opaque("keep_result", "k", _read_seconds),
    Opaque("headers", "h", _read_headers),
    Opaque("key_text", "u", maybe_text),  # for people: the key itself is a digest
    Opaque("retry", "r", _read_retry, lambda retry: [retry.base, retry.factor, retry.max, retry.jitter]),
    Opaque("throttle", "w", lambda stored: maybe(stored, _read_seconds)),  # for calls in transactions, which a worker admits later
    Opaque("fair", "q", maybe_octets, is_plain=False),  # a digest of the tenant: see broker/engine/turns.py
    Opaque("secrets", "s", _read_secrets),  # the names in arguments and result whose values are not shown
)

TAGGED: Final = b"\xa1g"
FOLLOWED_UP: Final = b"\xa1f"
"""The first bytes (after the map's header) of the extras of a job with `tags`, and of a job with `on_failure` but no tags: the letter of
that field, as msgpack."""


def has_tags(extras: bytes | None) -> bool:
    return extras is not None and extras[1:3] == TAGGED


def has_follow_up(extras: bytes | None) -> bool:
    """Return True if a job with these extras has `on_failure`. Extras are unpacked only if the job has tags; invalid ones give False."""
    if extras is None or not has_tags(extras):
        return extras is not None and extras[1:3] == FOLLOWED_UP
    try:
        return "f" in unpacked(extras)
    except Exception:  # includes msgpack's own errors
        return False
