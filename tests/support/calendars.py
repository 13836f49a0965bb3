"""A simple, slow calendar to compare schedules with: it checks each quarter of an hour of real time."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

STEP = timedelta(minutes=15)
MAX_GAP = timedelta(hours=3)


def parsed(field: str, least: int, most: int) -> frozenset[int]:
    """Return the values of a field of numbers, ranges, lists and steps."""
    values = set[int]()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = (f"{least}-{most}" if span == "*" else span).partition("-")
        values.update(range(int(first), int(last or first) + 1, int(step or 1)))
    return frozenset(values)


class Calendar:
    """The times of an expression with five fields whose minutes are multiples of 15."""

    def __init__(self, expression: str, tz: str) -> None:
        minutes, hours, days, months, weekdays = expression.split()
        self._follows_real_time = hours.startswith("*")
        self._takes_both_days = days.startswith("*") or weekdays.startswith("*")
        self._minutes, self._hours = parsed(minutes, 0, 59), parsed(hours, 0, 23)
        self._days, self._months = parsed(days, 1, 31), parsed(months, 1, 12)
        self._weekdays = frozenset(day % 7 for day in parsed(weekdays, 0, 7))
        self._zone = ZoneInfo(tz)

    def between(self, start: datetime, end: datetime) -> list[datetime]:
        """Return all times later than `start`, up to and including `end`."""
        found, seen = list[datetime](), set[datetime]()
        at, before = start, self._local(start)
        while at < end:
            at += STEP
            now = self._local(at)
            if self._fires(before, now, seen):
                found.append(at)
            before = now
            if not self._follows_real_time:
                seen.add(now)
        return found

    def _fires(self, before: datetime, now: datetime, seen: set[datetime]) -> bool:
        if self._follows_real_time:
            return self._matches(now)
        skipped = now - before - STEP
        if timedelta() < skipped <= MAX_GAP and any(self._matches(before + STEP * n) for n in range(1, skipped // STEP + 1)):
            return True
        return now not in seen and self._matches(now)

    def _matches(self, local: datetime) -> bool:
        day, weekday = local.day in self._days, local.isoweekday() % 7 in self._weekdays
        return (
            local.minute in self._minutes
            and local.hour in self._hours
            and local.month in self._months
            and (day and weekday if self._takes_both_days else day or weekday)
        )

    def _local(self, at: datetime) -> datetime:
        return at.astimezone(self._zone).replace(tzinfo=None, fold=0)
