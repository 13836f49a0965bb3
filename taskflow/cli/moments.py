"""Formats instants for people: in a schedule's time zone, and in local time."""

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


def _clock(at: datetime) -> str:
    time = at.time()
    return time.isoformat("minutes" if not (time.second or time.microsecond) else "seconds" if not time.microsecond else "milliseconds")
