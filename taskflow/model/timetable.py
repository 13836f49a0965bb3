"""Computes the instants of schedules: cron expressions in a time zone, and intervals."""

from __future__ import annotations

import math
import re
from bisect import bisect
from copy import copy
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import msgspec

from taskflow.model.clock import MICROSECONDS, instant_of, microseconds_of
from taskflow.model.printable import nearest, shown
from taskflow.model.rules import MAX_DURATION

if TYPE_CHECKING:
    from cronsim import CronSim

NICKNAMES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
FIELDS: Final = ("second", "minute", "hour", "day-of-month", "month", "day-of-week")

MAX_EXPRESSION: Final = 200
MAX_ZONE: Final = 64
"""The maximum length of a cron expression and of a zone's name, in characters. Stored values, which may be longer, are checked too."""

MAX_GAP: Final = timedelta(hours=3)
"""If a zone sets the clock forward by more than this, as when it skips a whole day, the skipped local times do not fire."""

MIN_INTERVAL: Final = 1.0
"""The shortest interval, in seconds."""


class Timetable(Protocol):
    """An object that computes the instants of a schedule."""

    def next(self, after: datetime) -> datetime | None:
        """Return the first instant later than `after`, as an aware datetime, or None if there is none. `after` is aware, in UTC."""
        ...


class CronTimes(msgspec.Struct, frozen=True, tag="cron"):
    """The instants of a cron expression with five fields, or six with seconds first, in the time zone with the IANA name `tz`.

    If the hour field begins with ``*``, the schedule follows real time: an hour that the clock skips does not fire, and one that it
    repeats fires twice. Other schedules follow local time: a local time that is skipped fires at the moment the clock is set forward,
    and one that is repeated fires only the first time.
    """

    expression: str
    tz: str = "UTC"

    @classmethod
    def checked(cls, expression: object, tz: object) -> CronTimes:
        """Create and check a `CronTimes`. Raises a TypeError or ValueError that says which part is wrong."""
        if not isinstance(expression, str):
            raise TypeError(f"{shown(expression)}: expected a cron expression as a str, such as '0 9 * * MON-FRI'")
        if len(expression) > MAX_EXPRESSION:
            raise ValueError(f"cron expression {shown(expression)}: expected at most {MAX_EXPRESSION} characters")
        times = cls(expression.strip(), _zone_name(tz))
        zone_of(times.tz)
        if (problem := _problem(times)) is not None:
            raise ValueError(problem)
        return times

    @property
    def fields(self) -> str:
        """The fields of the expression. A nickname such as "@daily" is expanded."""
        return NICKNAMES.get(self.expression.lower(), self.expression)

    def next(self, after: datetime) -> datetime | None:
        """Return the first instant later than `after`, or None if there is none within 50 years and before the year 10000."""
        microseconds_of(after)  # raises for a naive datetime, which `astimezone` would take for local time
        search = _next_real_time if self.is_real_time else _next_local_time
        try:
            return search(self.fields, zone_of(self.tz), after.astimezone(UTC))
        except OverflowError:
            if after.year == 1:
                raise ValueError(f"{after!r} is too close to the earliest time that Python supports: start a day later") from None
            return None

    @property
    def is_real_time(self) -> bool:
        """True if the schedule follows real time instead of local time: its hour field begins with ``*``."""
        return self.fields.split()[-4].startswith("*")

    def skipped_before(self, at: datetime) -> datetime | None:
        """If `at` fires because the clock skipped a matching local time, return the first such time, otherwise None."""
        if self.is_real_time:
            return None
        end, start = (moment.astimezone(zone_of(self.tz)).replace(tzinfo=None) for moment in (at, at - timedelta(seconds=1)))
        local = next(_search(self.fields, start), end)
        return local if local < end else None

    def __str__(self) -> str:
        return self.expression if self.tz == "UTC" else f"{self.expression} {self.tz}"


class EveryTimes(msgspec.Struct, frozen=True, tag="every"):
    """Instants `seconds` apart, counted from 1970-01-01 00:00 UTC, so they are the same in every process."""

    seconds: float

    @classmethod
    def checked(cls, seconds: object) -> EveryTimes:
        """Create and check an `EveryTimes`. Raises TypeError or ValueError for an invalid interval."""
        value = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"seconds={shown(seconds)}: expected seconds, as a number or a timedelta")
        if not MIN_INTERVAL <= value <= MAX_DURATION:
            raise ValueError(f"seconds={shown(seconds)}: expected at least {MIN_INTERVAL:g} second, and at most a hundred years")
        return cls(float(value))

    def next(self, after: datetime) -> datetime | None:
        """Return the first instant later than `after`, or None if it is beyond the year 9999."""
        period = round(self.seconds * MICROSECONDS)
        following = (microseconds_of(after) // period + 1) * period
        at = instant_of(following)
        return at if microseconds_of(at) == following else None

    def __str__(self) -> str:
        return f"every {self.seconds:g} s"


class OwnTimes(msgspec.Struct, frozen=True, tag="own"):
    """A placeholder for a timetable that the application defines. Only workers that declare the schedule can compute the timetable's
    instants. `kind` is the qualified name of its class."""

    kind: str

    def __str__(self) -> str:
        return self.kind


def zone_of(name: str) -> tzinfo:
    """Return the zone with this IANA name. Raises ValueError, suggesting a similar name, if there is none."""
    if len(name) > MAX_ZONE:
        raise ValueError(f"tz={shown(name)}: expected the name of a time zone, at most {MAX_ZONE} characters")
    found = _zone_or_problem(name)
    if isinstance(found, str):
        raise ValueError(found)
    return found


@lru_cache(maxsize=1_000)
def _zone_or_problem(name: str) -> tzinfo | str:
    """Return the zone, or a message if there is none. The result is cached, because workers keep checking a stored schedule with an unknown
    zone."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        names = _zone_names()
    if not names:
        return f"tz={name!r}: this machine has no time zones: install the package tzdata, from your system or from PyPI"
    near = nearest(name, names)
    return f"tz={name!r}: there is no such time zone" + (f"; did you mean {near!r}?" if near else "")


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones())


def _zone_name(tz: object) -> str:
    if tz is UTC:
        return "UTC"
    name = tz.key if isinstance(tz, ZoneInfo) else tz
    if not isinstance(name, str):
        raise TypeError(f"tz={shown(tz)}: expected the name of a time zone, such as 'Europe/Paris', or a ZoneInfo")
    return name


@lru_cache(maxsize=1_000)
def _problem(times: CronTimes) -> str | None:
    """Return a message if the expression is invalid or matches no time in the next 50 years, otherwise None."""
    from cronsim import CronSimError

    start, fields = f"cron expression {times.expression!r}:", times.fields
    if fields.startswith("@"):
        return f"{start} expected one of {', '.join(NICKNAMES)}, or five or six fields"
    given = fields.split()
    names = FIELDS[-len(given) :] if len(given) in (5, 6) else FIELDS[1:]
    try:
        _parsed(fields)
    except CronSimError as error:
        for name, value in zip(names, given, strict=False):
            if str(error) == f"Bad {name}":
                return f"{start} {name} {value!r} is invalid; the fields are {' '.join(names)}"
        return f"{start} expected the five fields {' '.join(names)}, or second before them, got {len(given)} fields"
    return f"{start} no time in the next 50 years matches it" if times.next(datetime.now(UTC)) is None else None


@lru_cache(maxsize=1_000)
def _parsed(fields: str) -> CronSim:
    """Return an iterator to copy. A range like "5-5/10" becomes "5", its meaning in Debian's cron; cronsim would read it as "5/10"."""
    from cronsim import CronSim

    return CronSim(_RANGE_WITH_STEP.sub(_without_needless_step, fields.upper()), datetime(2000, 1, 1))


_RANGE_WITH_STEP: Final = re.compile(r"(?<![^\s,])(\w+)-(\w+)/0*[1-9][0-9]*(?![^\s,])", re.ASCII)
_NAMED: Final = {
    name: str(number)
    for first, names in ((0, "SUN MON TUE WED THU FRI SAT"), (1, "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"))
    for number, name in enumerate(names.split(), first)
}


def _without_needless_step(found: re.Match[str]) -> str:
    start, end = (_NAMED.get(name, name).lstrip("0") for name in found.groups())
    return found[1] if start == end else found[0]


def _search(fields: str, local: datetime) -> CronSim:
    """Return an iterator over the matching local times after `local`. It has no zone, because cronsim handles clock changes differently."""
    times = copy(_parsed(fields))
    times.dt = local.replace(microsecond=0)
    return times


def _next_local_time(fields: str, zone: tzinfo, after: datetime) -> datetime | None:
    for local in _search(fields, after.astimezone(zone).replace(tzinfo=None)):
        at = _instant(local, zone)
        if at is not None and at > after:
            return at
    return None


def _instant(local: datetime, zone: tzinfo) -> datetime | None:
    """Return the instant of a local time: the first one if it is repeated; if it is skipped, the end of the gap, or None for a long gap."""
    aware = local.replace(tzinfo=zone)
    at = aware.astimezone(UTC)
    if at.astimezone(zone).replace(tzinfo=None) == local:
        return at
    before, after = _offset(aware), _offset(aware.replace(fold=1))
    if after - before > MAX_GAP:
        return None
    return first_change(zone, at - (after - before), at)


def _next_real_time(fields: str, zone: tzinfo, after: datetime) -> datetime | None:
    """Return the next instant in real time, or None. From one change of the clock to the next, search in local time with a fixed offset."""
    start = begins_at = after
    while True:
        offset = _offset(begins_at.astimezone(zone))
        local = next(_search(fields, start.replace(tzinfo=None) + offset), None)
        if local is None:
            return None
        at = (local - offset).replace(tzinfo=UTC)
        changes_at = first_change(zone, begins_at, at)
        if changes_at is None:
            return at
        start, begins_at = changes_at - timedelta(seconds=1), changes_at


def first_change(zone: tzinfo, start: datetime, end: datetime) -> datetime | None:
    """Return the first second in (start, end] at which the zone's offset changes, or None. Assumes at most one change a day."""
    before = _offset(start.astimezone(zone))
    while start < end:
        later = min(start + timedelta(days=1), end)
        if _offset(later.astimezone(zone)) != before:
            seconds = range(int(start.timestamp()), math.ceil(later.timestamp()) + 1)
            changed = bisect(seconds, False, key=lambda second: _offset(datetime.fromtimestamp(second, zone)) != before)
            return datetime.fromtimestamp(seconds[changed], UTC)
        start = later
    return None


def _offset(moment: datetime) -> timedelta:
    return moment.utcoffset() or timedelta()
