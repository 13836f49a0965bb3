"""The calendar of schedules: when each fires during seven days, in its own time zone and in the viewer's, with clock changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cache
from itertools import pairwise
from typing import Final

import msgspec

from taskflow.app.app import App
from taskflow.app.schedules import ScheduleInfo, schedule_info_of, timetable_of
from taskflow.model.printable import duration
from taskflow.model.schedule import ScheduleRecord
from taskflow.model.schedule_plan import SchedulePlan
from taskflow.model.timetable import CronTimes, EveryTimes, Timetable, first_change, zone_of

DAYS: Final = 7
MAX_TIMES: Final = 3  # maximum number of times in a cell; if there are more, only the first is shown
MAX_ROWS: Final = 25
MAX_AHEAD: Final = timedelta(days=3_660)
MOMENT: Final = timedelta(microseconds=1)


class Day(msgspec.Struct, frozen=True):
    """A day in the viewer's zone, from `start` to `end`. `change` describes a clock change on that day, or is empty."""

    date: date
    start: datetime
    end: datetime
    change: str

    @property
    def head(self) -> str:
        return f"{self.date:%a %d %b}" + (f", {self.change}" if self.change else "")


class Time(msgspec.Struct, frozen=True):
    """A scheduled time in the viewer's zone (`yours`) and, if it differs, in the schedule's (`own`). `note` is a clock change's effect."""

    at: datetime
    yours: str
    own: str
    note: str


class Cell(msgspec.Struct):
    """A schedule's times on one day; with `is_more`, only the first of many. `change` describes a clock change in the schedule's zone."""

    times: list[Time]
    is_more: bool = False
    change: str = ""


class Row(msgspec.Struct):
    """A schedule with a cell for each day. If its times are unknown, `problem` is the reason."""

    info: ScheduleInfo
    cells: list[Cell]
    problem: str = ""


def days_from(first: date, zone: tzinfo) -> list[Day]:
    bounds = [datetime.combine(first + timedelta(days=n), time(), zone).astimezone(UTC) for n in range(DAYS + 1)]
    return [Day(first + timedelta(days=n), start, end, change_between(zone, start, end)) for n, (start, end) in enumerate(pairwise(bounds))]


def change_between(zone: tzinfo, start: datetime, end: datetime) -> str:
    """Describe a clock change of a zone in [start, end), or return an empty string."""
    at = first_change(zone, start - MOMENT, end - MOMENT)
    if at is None:
        return ""
    before, after = ((moment.astimezone(zone).utcoffset() or timedelta()) for moment in (at - MOMENT, at))
    local = (at + before).replace(tzinfo=None), (at + after).replace(tzinfo=None)
    word = "forward" if after > before else "back"
    return f"clock {word} {duration(abs(after - before).total_seconds())}: {local[0]:%H:%M} → {local[1]:%H:%M}"


def rows_of(app: App, records: Sequence[ScheduleRecord], days: Sequence[Day], yours: tzinfo, now: datetime) -> list[Row]:
    """Compute the times of these schedules. Timetables defined by the application may be slow, so call this in a thread."""
    changes = cache(lambda own: [change_between(own, day.start, day.end) for day in days])
    return [_row(app, record, days, yours, now, changes) for record in records]


def _row(
    app: App, record: ScheduleRecord, days: Sequence[Day], yours: tzinfo, now: datetime, changes: Callable[[tzinfo], list[str]]
) -> Row:
    info = schedule_info_of(record)
    cells = [Cell([]) for _ in days]
    if info.problem or info.is_paused or info.asleep_since:
        return Row(info, cells, info.problem or "")
    try:
        plan = SchedulePlan.from_body(record.body)
        own = yours if isinstance(plan.times, EveryTimes) else zone_of(plan.zone)  # an interval has no zone
        if own != yours:
            for cell, change in zip(cells, changes(own), strict=True):
                cell.change = change
        times = timetable_of(app, record.name, plan)
        for cell, at in _times(times, days, cells, yours, now):
            cell.times.append(_time(times, at, own, yours))
    except Exception as error:  # including errors in the application's own timetables
        return Row(info, [Cell([]) for _ in days], f"{type(error).__name__}: {error}")
    return Row(info, cells)


def _times(times: Timetable, days: Sequence[Day], cells: Sequence[Cell], yours: tzinfo, now: datetime) -> Iterator[tuple[Cell, datetime]]:
    """Yield the times from now on, each with its day's cell. If a day has too many times, keep the first and skip to the next day."""
    after = max(now, days[0].start) - MOMENT
    while (at := times.next(after)) is not None and at < days[-1].end:
        if at <= after:
            raise ValueError(f"next({after}) of its timetable returned {at}, which is not later")
        place = min(max((at.astimezone(yours).date() - days[0].date).days, 0), len(days) - 1)
        if len(cells[place].times) < MAX_TIMES:
            yield cells[place], at
            after = at
        else:
            del cells[place].times[1:]
            cells[place].is_more = True
            after = max(at, days[place].end - MOMENT)


def _time(times: Timetable, at: datetime, own: tzinfo, yours: tzinfo) -> Time:
    here, there, note = at.astimezone(yours), at.astimezone(own), ""
    if isinstance(times, CronTimes) and (skipped := times.skipped_before(at)) is not None:
        note = f"{_clock(skipped)} is skipped"
    elif there.replace(fold=0).utcoffset() != there.replace(fold=1).utcoffset():
        note = "the clock shows it twice: " + ("second time" if there.fold else "first time")
    is_same = here.replace(tzinfo=None) == there.replace(tzinfo=None)
    return Time(there, _clock(here), "" if is_same else _clock(there), note)


def _clock(at: datetime) -> str:
    return f"{at:%H:%M:%S}" if at.second else f"{at:%H:%M}"
