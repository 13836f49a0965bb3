"""`taskflow schedules next`: computes the times of a cron expression or an interval."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta, tzinfo

from taskflow.cli.exit_codes import Exit
from taskflow.cli.json_text import print_json
from taskflow.cli.time_format import moment
from taskflow.model.errors import ConfigurationError
from taskflow.model.timetable import CronTimes, EveryTimes, zone_of


def run(arguments: argparse.Namespace) -> int:
    try:
        zone = zone_of(arguments.tz)
        times = _timetable(arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from error
    found = [(at.astimezone(zone), _note(times, at, zone)) for at in _following(times, _start(arguments.start, zone), arguments.count)]
    if arguments.json:
        print_json([{"at": at, "here": at.astimezone(), "note": note} for at, note in found])
        return Exit.OK
    for at, note in found:
        print(f"{moment(at)}{note and f'  ({note})'}")
    return Exit.OK


def _timetable(arguments: argparse.Namespace) -> CronTimes | EveryTimes:
    if bool(arguments.expression) == (arguments.every is not None):
        raise ConfigurationError('schedules next takes either an expression in quotes, such as "0 9 * * MON-FRI", or --every SECONDS')
    if arguments.every is not None:
        return EveryTimes.checked(arguments.every)
    if len(arguments.expression) > 1:
        raise ConfigurationError(f"schedules next takes one expression, got {len(arguments.expression)} arguments: put it in quotes")
    return CronTimes.checked(arguments.expression[0], arguments.tz)


def _start(given: datetime | None, zone: tzinfo) -> datetime:
    """Return the instant after which to search, so that a time equal to `--from` is found."""
    if given is None:
        return datetime.now(UTC)
    aware = given if given.tzinfo is not None else given.replace(tzinfo=zone)
    return aware.astimezone(UTC) - timedelta(microseconds=1)


def _following(times: CronTimes | EveryTimes, after: datetime, count: int) -> list[datetime]:
    found = list[datetime]()
    at = times.next(after)
    while at is not None and len(found) < count:
        found.append(at)
        at = times.next(at)
    return found


def _note(times: CronTimes | EveryTimes, at: datetime, zone: tzinfo) -> str:
    """Describe how a change of the clock affects the time. Return "" if none does."""
    if not isinstance(times, CronTimes):
        return ""
    if (skipped := times.skipped_before(at)) is not None:
        return f"for {skipped:%H:%M}, which the clock skips"
    local = at.astimezone(zone)
    first, second = local.replace(fold=0).utcoffset(), local.replace(fold=1).utcoffset()
    if first == second or first is None or second is None or first < second:
        return ""
    if not times.is_real_time:
        return f"the clock repeats {local:%H:%M}; it fires only the first time"
    return f"the {'second' if local.fold else 'first'} {local:%H:%M}, which the clock repeats"
