"""Defines `Cron` and `Every`, which say when a schedule fires."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from taskflow.app.option_checks import seconds_of
from taskflow.app.options import EnqueueOptions
from taskflow.model.printable import shown
from taskflow.model.timetable import CronTimes, EveryTimes

LOOKED_AT: Final = 50


class _Timed:
    """The base of `Cron` and `Every`: the times, and the arguments and options of the jobs that the schedule adds."""

    __slots__ = ("args", "jitter", "kwargs", "name", "options", "times")

    def __init__(
        self,
        times: CronTimes | EveryTimes,
        jitter: float | timedelta,
        name: str | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        options: EnqueueOptions | None,
    ) -> None:
        if isinstance(args, str) or not isinstance(args, Sequence):
            raise TypeError(f"args={shown(args)}: expected a tuple of arguments, as in args=({shown(args)},)")
        self.times = times
        self.jitter = seconds_of("jitter", jitter)
        self.name = name
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.options = EnqueueOptions(**(options or {}))

    def next(self, after: datetime) -> datetime | None:
        """Return the first instant later than `after`, or None if there is none before the year 10000. Raises ValueError if `after` is
        naive."""
        return self.times.next(after)

    def __str__(self) -> str:
        return str(self.times)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.times}>"


class Cron(_Timed):
    """A schedule that fires when a cron expression matches.

    `expression`  five fields, or six with seconds first: ``"0 9 * * MON-FRI"``; or @hourly, @daily, @weekly, @monthly or @yearly. The
                  fields are those of Debian's cron, with ``L`` for the last day of a month and ``5#2`` for its second Friday. At most
                  200 characters
    `tz`          the IANA name of the time zone in which the expression is read, or a ZoneInfo (default "UTC")
    `jitter`      the longest delay, in seconds or as a timedelta; each instant has a fixed delay between 0 and this (default 0). It must be
                  less than the time between two times
    `name`        the schedule's name (default: the job's name, followed by the expression if the job has several schedules)
    `args`, `kwargs`  the arguments of its calls (default none)
    `options`     the options of its calls, as for `.options()`, except `after` and `at`

    `name`, `args`, `kwargs` and `options` are only for the decorator: `schedules.put` takes a name and a call.
    Raises a TypeError or ValueError that says which part of the expression, or which argument, is invalid.
    """

    __slots__ = ()

    def __init__(
        self,
        expression: str,
        *,
        tz: str | ZoneInfo = "UTC",
        jitter: float | timedelta = 0.0,
        name: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: EnqueueOptions | None = None,
    ) -> None:
        times = CronTimes.checked(expression, tz)
        super().__init__(times, jitter, name, args, kwargs, options)
        if self.jitter and self.jitter >= (shortest := _shortest_gap(times)):
            raise ValueError(f"jitter={shown(jitter)}: expected less than the time between two of its times, here {shortest:g} s")


def _shortest_gap(times: CronTimes) -> float:
    """Return the shortest time, in seconds, between two of the next `LOOKED_AT` times."""
    gaps, at = [math.inf], times.next(datetime.now(UTC))
    for _ in range(LOOKED_AT):
        following = None if at is None else times.next(at)
        if at is None or following is None:
            break
        gaps.append((following - at).total_seconds())
        at = following
    return min(gaps)


class Every(_Timed):
    """A schedule that fires at a fixed interval, counted from 1970-01-01 00:00 UTC, so a deploy does not shift it.

    `seconds`  the interval in seconds, or as a timedelta; at least 1

    The other arguments and the errors are as for `Cron`. `jitter` must be less than the interval.
    """

    __slots__ = ()

    def __init__(
        self,
        seconds: float | timedelta,
        *,
        jitter: float | timedelta = 0.0,
        name: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: EnqueueOptions | None = None,
    ) -> None:
        times = EveryTimes.checked(seconds)
        super().__init__(times, jitter, name, args, kwargs, options)
        if self.jitter >= times.seconds:
            raise ValueError(f"jitter={shown(jitter)}: expected less than the interval, {times.seconds:g} s")
