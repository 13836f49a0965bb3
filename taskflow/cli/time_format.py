"""Formats instants and durations for people. Instants are shown in a schedule's time zone and in local time."""

from __future__ import annotations

from datetime import datetime


def moment(at: datetime) -> str:
    """Return an aware datetime as text, followed by the local time if that differs."""
    text = f"{at:%a %Y-%m-%d} {_clock(at)} {at:%Z}"
    try:
        here = at.astimezone()
    except (OverflowError, ValueError, OSError):  # at the edge of the calendar
        return text
    if here.utcoffset() == at.utcoffset():
        return text
    day = "" if here.date() == at.date() else f"{here:%a %Y-%m-%d} "
    return f"{text}, here {day}{_clock(here)}"


def span(seconds: float) -> str:
    """Return a duration in its two largest units, for example 3d4h."""
    whole = max(0, round(seconds))
    for unit, name, smaller, smaller_name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit}{name}{f'{rest}{smaller_name}' if rest and whole < 10 * unit else ''}"
    return f"{whole}s"


def duration(seconds: float) -> str:
    """Return a duration for people, for example 12ms, 2.5s or 3m10s."""
    if abs(seconds) < 0.9995:
        return f"{1_000 * seconds:.0f}ms"
    return f"{seconds:.1f}s" if abs(seconds) < 10 else span(seconds) if seconds > 0 else f"-{span(-seconds)}"


def _clock(at: datetime) -> str:
    time = at.time()
    return time.isoformat("minutes" if not (time.second or time.microsecond) else "seconds" if not time.microsecond else "milliseconds")
