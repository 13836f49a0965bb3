"""The times of schedules: cron expressions in time zones, and intervals."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest

from taskflow import Cron
from taskflow.model import timetable
from taskflow.model.timetable import CronTimes, EveryTimes, Timetable
from tests.support.calendars import Calendar

ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Africa/Cairo", "Africa/Casablanca", "UTC"]
EXPRESSIONS = ["0 0 * * *", "30 2 * * *", "*/15 * * * *", "45 */6 * * *", "0,30 1-3 * * 0,6", "15 0 1,15 * 1", "0 0 29 2 *", "*/30 0 * * *"]


def times(timetable: Timetable, start: datetime, end: datetime) -> list[datetime]:
    found, at = list[datetime](), timetable.next(start)
    while at is not None and at <= end:
        found.append(at)
        at = timetable.next(at)
    return found


def local(expression: str, tz: str, start: str, number: int) -> list[str]:
    """Return the next times after a local time, as a wall clock shows them."""
    at: datetime | None = datetime.fromisoformat(start).replace(tzinfo=ZoneInfo(tz))
    found = list[str]()
    for _ in range(number):
        assert at is not None
        at = CronTimes(expression, tz).next(at)
        assert at is not None
        found.append(f"{at.astimezone(ZoneInfo(tz)):%m-%d %H:%M %z}")
    return found


@pytest.mark.parametrize("tz", ZONES)
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_times_of_a_year_are_those_of_a_plain_calendar(expression: str, tz: str) -> None:
    """The days are those around each clock change, and a few at random."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    changes = [day for day in (start + timedelta(days=n) for n in range(365)) if _changes(day, tz)]
    for day in [*changes, *(start + timedelta(days=random.Random(1).randrange(365)) for _ in range(3))]:
        begin, end = day - timedelta(days=1), day + timedelta(days=3)
        assert times(CronTimes(expression, tz), begin, end) == Calendar(expression, tz).between(begin, end)


def _changes(day: datetime, tz: str) -> bool:
    return day.astimezone(ZoneInfo(tz)).utcoffset() != (day + timedelta(days=1)).astimezone(ZoneInfo(tz)).utcoffset()


@pytest.mark.parametrize("expression", ["0 0 * * *", "30 */6 * * *", "0 12 29,30,31 * *"])
def test_a_day_that_a_zone_skips_does_not_fire(expression: str) -> None:
    """Samoa had no 30 December 2011."""
    start, end = datetime(2011, 12, 27, tzinfo=UTC), datetime(2012, 1, 2, tzinfo=UTC)
    found = times(CronTimes(expression, "Pacific/Apia"), start, end)
    assert found == Calendar(expression, "Pacific/Apia").between(start, end)
    assert all(at.astimezone(ZoneInfo("Pacific/Apia")).day != 30 for at in found)


def test_a_skipped_time_fires_when_the_clock_has_been_set_forward() -> None:
    assert local("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", 2) == ["03-29 03:00 +0200", "03-30 02:30 +0200"]
    assert local("0 0 * * *", "Africa/Cairo", "2026-04-23T12:00", 2) == ["04-24 01:00 +0300", "04-25 00:00 +0300"]
    assert local("10 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00", 1) == ["10-04 02:30 +1100"]


def test_a_repeated_time_fires_the_first_time() -> None:
    assert local("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 2) == ["10-25 02:30 +0200", "10-26 02:30 +0100"]


@pytest.mark.parametrize(
    ("expression", "day"),
    [("0 0 L * *", 31), ("0 0 LW * *", 30), ("0 0 * * 5#2", 9), ("0 0 * * MON-FRI", 4), ("0 0 * FEB,jan *", 1), ("0 0 * * 5L", 30)],
)
def test_names_last_days_and_numbered_weekdays(expression: str, day: int) -> None:
    start = datetime(2025, 12, 31, 12, tzinfo=UTC) if "FEB" in expression else datetime(2026, 1, 3, tzinfo=UTC)
    at = CronTimes.checked(expression, "UTC").next(start)
    assert at is not None
    if expression == "0 0 * * MON-FRI":
        assert at.day == 5
    else:
        assert at.day == day


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("0 25 * * *", "hour '25' is invalid; the fields are minute hour day-of-month month day-of-week"),
        ("61 0 25 * * *", "second '61' is invalid; the fields are second minute hour day-of-month month day-of-week"),
        ("0 9 * *", "expected the five fields minute hour day-of-month month day-of-week, or second before them, got 4 fields"),
        ("@reboot", "expected one of @yearly"),
        ("0 0 30 2 *", "day-of-month '30' is invalid"),
        ("* * */20 * 1L", "no time in the next 50 years matches it"),
    ],
)
def test_a_wrong_expression_says_where(expression: str, says: str) -> None:
    with pytest.raises(ValueError, match="cron expression") as error:
        CronTimes.checked(expression, "UTC")
    assert repr(expression) in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("5-5/10 * * * *", "5 * * * *"),
        ("0,05-5/10 0-0/7 * * *", "0,5 0 * * *"),
        ("0 0 * mar-3/2 mon-MON/3", "0 0 * 3 1"),
        ("0-0/1 5-6/10 * * 1-5/2", "0 5 * * 1,3,5"),
        ("5/10 * * * *", "5,15,25,35,45,55 * * * *"),
    ],
)
def test_a_range_of_one_value_ends_there(expression: str, same: str) -> None:
    start, end = datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 20, tzinfo=UTC)
    assert times(CronTimes(expression), start, end) == times(CronTimes(same), start, end)


@pytest.mark.parametrize("timetable", [CronTimes("0 9 * * *"), CronTimes("0 9 * * *", "Europe/Paris"), EveryTimes(5.0)])
def test_a_naive_datetime_is_refused(timetable: Timetable) -> None:
    with pytest.raises(ValueError, match="is naive: give it a time zone"):
        timetable.next(datetime(2026, 1, 1))


@pytest.mark.parametrize("tz", ["UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize("expression", ["0 9 * * *", "* * * * *", "0 0 29 2 *"])
def test_there_are_no_times_beyond_the_calendar(expression: str, tz: str) -> None:
    for at in (datetime.max, datetime(9999, 12, 31, 23, 59)):
        assert CronTimes(expression, tz).next(at.replace(tzinfo=UTC)) is None
    assert EveryTimes(60.0).next(datetime.max.replace(tzinfo=UTC)) is None
    assert EveryTimes(60.0).next(datetime(9999, 12, 31, 23, 58, tzinfo=UTC)) == datetime(9999, 12, 31, 23, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "tz", "says"),
    [(",".join(["*/1"] * 3_000) + " * * * *", "UTC", "at most 200 characters"), ("0 9 * * *", "N" * 65, "at most 64 characters")],
)
def test_long_text_is_refused_unread(expression: str, tz: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timetable, "_parsed", None)
    monkeypatch.setattr(timetable, "_zone_or_problem", None)
    for times_of in (lambda: CronTimes.checked(expression, tz), lambda: Cron(expression, tz=tz)):
        with pytest.raises(ValueError, match=says) as caught:
            times_of()
        assert len(str(caught.value)) < 400


def test_a_wrong_zone_says_which_was_meant() -> None:
    with pytest.raises(ValueError, match=r"tz='Europe/Pari': there is no such time zone; did you mean 'Europe/Paris'\?"):
        CronTimes.checked("@daily", "Europe/Pari")
    with pytest.raises(TypeError, match="expected the name of a time zone"):
        CronTimes.checked("@daily", timezone(timedelta(hours=1)))
    with pytest.raises(ValueError, match="no such time zone"):
        CronTimes.checked("@daily", "../etc/passwd")


def test_an_interval_does_not_depend_on_when_it_is_asked() -> None:
    times_of_30 = EveryTimes.checked(timedelta(seconds=30))
    start = datetime(2026, 5, 1, 12, 0, 7, tzinfo=UTC)
    assert times_of_30.next(start) == datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)
    assert times_of_30.next(datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)) == datetime(2026, 5, 1, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(("seconds", "error"), [(0, ValueError), (float("nan"), ValueError), (True, TypeError), ("5", TypeError)])
def test_a_wrong_interval_is_refused(seconds: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="seconds="):
        EveryTimes.checked(seconds)


def test_utc_needs_no_database_of_time_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(ZoneInfo):
        def __new__(cls, key: str) -> Missing:
            raise ZoneInfoNotFoundError(key)

    monkeypatch.setattr("taskflow.model.timetable.ZoneInfo", Missing)
    monkeypatch.setattr("taskflow.model.timetable.available_timezones", set)
    for cached in ("_zone_or_problem", "_zone_names"):
        monkeypatch.setattr(timetable, cached, getattr(timetable, cached).__wrapped__)
    start = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert CronTimes.checked("@daily", "UTC").next(start) == datetime(2026, 1, 2, tzinfo=UTC)
    with pytest.raises(ValueError, match=r"this machine has no time zones: install the package tzdata"):
        CronTimes.checked("@daily", "Europe/Berlin")
