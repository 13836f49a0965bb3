"""The options of a call: the decorator declares them, and `.options()` overrides them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

import msgspec

from taskflow.app.execution_mode import RunsIn
from taskflow.app.option_names import unknown_option
from taskflow.model.backoff import Backoff
from taskflow.model.clock import instant_of, microseconds_of, to_microseconds
from taskflow.model.envelope import OWN_HEADERS, OnConflict
from taskflow.model.job_schema import DEFAULT_QUEUE, bare_text
from taskflow.model.printable import shown
from taskflow.model.rules import LONGEST

if TYPE_CHECKING:  # loaded only by jobs that have a schedule
    from taskflow.model.schedule_plan import CatchUp, Overlap
    from taskflow.model.timetable import Timetable

Conflict = Literal["keep", "replace", "raise"]

MOST_ATTEMPTS: Final = 1_000_000


class _SharedOptions(TypedDict, total=False):
    queue: str | None
    priority: int | None
    expires: float | timedelta | None
    max_attempts: int | None
    retry: Backoff | None
    timeout: float | timedelta | None
    keep_result: float | timedelta | None


class JobOptions(_SharedOptions, total=False):
    """The options of the decorator; see `job`."""

    name: str | None
    retry_on: Sequence[type[BaseException]] | None
    discard_on: Sequence[type[BaseException]] | None
    aliases: Sequence[str] | None
    runs_in: RunsIn | None
    schedule: Timetable | Sequence[Timetable | None] | None
    overlap: Overlap | None
    catch_up: CatchUp | None
    max_delay: float | timedelta | None


class EnqueueOptions(_SharedOptions, total=False):
    """The options of `.options()`. None means "not given", except for `expires` and `timeout`, where it removes the job's limit.

    `queue`         the queue's name
    `priority`      -100 to 100; higher runs first
    `after`, `at`   when the job may start: seconds or a timedelta from now, or an aware
                    datetime. Up to a hundred years from now; the past means now
    `expires`       seconds or a timedelta from now, after which no run starts
    `max_attempts`  the number of attempts, including the first
    `retry`         the `Backoff` between attempts
    `timeout`       seconds or a timedelta that one run may take
    `key`           up to 200 bytes; at most one live job with the same queue and name can have it
    `on_conflict`   what to do if a live job has the key: "keep" that job (default), "replace" it, or "raise" KeyConflict. A running job
                    that was asked to stop does not block the key: the new job waits until it has ended
    `keep_result`   seconds or a timedelta for which a successful job is kept
    `headers`       a dict of str to str, up to 4 KiB in all, which is sent with the job
    """

    after: float | timedelta | None
    at: datetime | None
    key: str | None
    on_conflict: Conflict | None
    headers: dict[str, str] | None


OF_THE_DECORATOR: Final = tuple(name for name in JobOptions.__annotations__ if name not in EnqueueOptions.__annotations__)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a call after checking. Durations are in seconds, and `at` is in microseconds since 1970."""

    queue: str = DEFAULT_QUEUE
    priority: int = 0
    after: float = 0.0
    at: int | None = None
    expires: float | None = None
    max_attempts: int = 10
    retry: Backoff | None = None
    timeout: float | None = None
    key: str | None = None
    on_conflict: OnConflict = OnConflict.KEEP
    raises_on_conflict: bool = False
    keep_result: float = 300.0
    headers: dict[str, str] = {}

    def replaced(self, given: EnqueueOptions) -> Options:
        """Return a copy with the given options. Raises TypeError or ValueError for an invalid option, naming it."""
        fields = plain_options(given)
        if "after" in fields:
            fields.setdefault("at", None)  # after= and at= exclude each other: the last one given counts
        return msgspec.structs.replace(self, **fields)


_CONFLICTS: dict[str, tuple[OnConflict, bool]] = {
    "keep": (OnConflict.KEEP, False),
    "replace": (OnConflict.REPLACE, False),
    "raise": (OnConflict.KEEP, True),
}
_DURATIONS = ("after", "expires", "timeout", "keep_result")
_LIFTED_BY_NONE = ("expires", "timeout")
_KINDS: dict[str, type] = {"priority": int, "max_attempts": int, "queue": str, "key": str, "headers": dict, "retry": Backoff}


def plain_options(given: EnqueueOptions) -> dict[str, Any]:
    """Convert options to fields of `Options`. Types are checked here; most ranges are checked by `check_envelope`."""
    for name in given:
        if name not in EnqueueOptions.__annotations__:
            raise TypeError(
                unknown_option(name, EnqueueOptions.__annotations__, OF_THE_DECORATOR, f"to the decorator, as in @job({name}=...)")
            )
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None or name in _LIFTED_BY_NONE}
    for name, value in fields.items():
        if name in _DURATIONS:
            fields[name] = None if value is None else seconds_of(name, value)
        elif name in _KINDS and (not isinstance(value, _KINDS[name]) or isinstance(value, bool)):
            kind = _KINDS[name].__name__
            raise TypeError(f"{name}={shown(value)}: expected {'an' if kind[0] in 'aeiou' else 'a'} {kind}")
        elif isinstance(value, int):
            fields[name] = int(value)  # converts members of an IntEnum too
        elif isinstance(value, str):
            fields[name] = bare_text(value)
    if "at" in fields and "after" in fields:
        raise ValueError("after= and at= exclude each other: give one of them")
    if "at" in fields:
        fields["at"] = _instant(fields["at"])
    if "on_conflict" in fields:
        fields["on_conflict"], fields["raises_on_conflict"] = _conflict(fields["on_conflict"])
    if "headers" in fields:
        fields["headers"] = _headers(fields["headers"])
    if "key" in fields:
        _check_text("key", fields["key"])
    if fields.get("max_attempts", 1) > MOST_ATTEMPTS:
        raise ValueError(f"max_attempts={shown(fields['max_attempts'])}: expected 1 to {MOST_ATTEMPTS:,}")
    return fields


def seconds_of(name: str, value: object) -> float:
    """Convert a number or a timedelta to seconds, up to a hundred years.
    Raises TypeError or ValueError for an invalid value, naming the option."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name}={shown(value)}: expected seconds, as a number or a timedelta")
    if not 0 <= seconds <= LONGEST:
        raise ValueError(f"{name}={shown(value)}: expected 0 to {LONGEST:,.0f} seconds, a hundred years")
    return float(seconds)


def _instant(value: object) -> int:
    """Convert an aware datetime to microseconds since 1970. An earlier time becomes 0, which every store can hold."""
    if not isinstance(value, datetime):
        raise TypeError(f"at={shown(value)}: expected an aware datetime; for seconds from now, use after=")
    try:
        microseconds = microseconds_of(value)
    except ValueError as error:
        raise ValueError(f"at={error}") from None
    latest = to_microseconds(time.time() + LONGEST)
    if microseconds > latest:
        raise ValueError(f"at={shown(value)}: expected a time up to a hundred years from now, {instant_of(latest):%Y-%m-%d}")
    return max(microseconds, 0)


def _headers(given: dict[str, str]) -> dict[str, str]:
    """Check headers and return a copy with names and values as plain str. The caller may change its own dict later."""
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"headers={{{shown(name)}: {shown(value)}}}: header names and values must be str")
        if name.startswith(OWN_HEADERS):
            raise ValueError(f"headers={{{name!r}: ...}}: names that begin with {OWN_HEADERS!r} are reserved for taskflow")
        _check_text("headers", name + value)
    return {bare_text(name): bare_text(value) for name, value in given.items()}


def _check_text(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{option}= has a lone surrogate, which is not valid text: {text!r}") from None


def _conflict(value: object) -> tuple[OnConflict, bool]:
    if not isinstance(value, str) or value not in _CONFLICTS:
        raise ValueError(f'on_conflict={shown(value)}: expected "keep", "replace" or "raise"')
    return _CONFLICTS[value]
