"""Shapes for dates and times: date, time, datetime, timedelta, timezone and ZoneInfo.

A zone is written after the time: ``+02:00``, ``+02:00[=CEST]`` for an offset with a name, ``+02:00[Europe/Paris]`` for a ZoneInfo. A reader
with different zone data gets the same instant. `zoneinfo` takes memory and time to load, so it is loaded only when needed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from taskflow.model.codec import wire as codes
from taskflow.model.codec.scalars import encodable, extension, read_str, signed_bytes, text_of
from taskflow.model.codec.shape import Shape, ShapeError, unexpected
from taskflow.model.codec.wire import data_of, plain_number

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

T = TypeVar("T")

MICROSECOND: Final = timedelta(microseconds=1)
_LATER_FOLD: Final = "~"
"""Precedes the text if `fold` is 1, which marks the second of two equal wall times."""


def _date_text(value: date) -> str:
    if isinstance(value, datetime):  # a subclass of date, whose time would be lost
        raise unexpected("date", value)
    return value.isoformat()


def _parsed(kind: type[T], iso: str, expected: str) -> T:
    """Parse a date or time. An offset smaller than a second is set afterwards, because `fromisoformat` mistakes it for UTC."""
    try:
        value: Any = kind.fromisoformat(iso)  # type: ignore[attr-defined]
    except ValueError as error:
        raise ShapeError(f"expected {expected}: {error}") from None
    if kind is not date and value.tzinfo is UTC and (found := _SHORT_OFFSET.search(iso)):
        delta = timedelta(microseconds=int(found[2]))
        value = value.replace(tzinfo=timezone(-delta if found[1] == "-" else delta))
    return value  # type: ignore[no-any-return]


def _moment_text(value: datetime | time) -> str:
    iso = datetime.isoformat(value) if isinstance(value, datetime) else value.isoformat()
    return f"{_LATER_FOLD if value.fold else ''}{iso}{_zone_suffix(value.tzinfo, value)}"


def _datetime(text: str) -> datetime:
    iso, _, name = text.removeprefix(_LATER_FOLD).partition("[")
    value = _parsed(datetime, iso, "a datetime in ISO 8601")
    if text.startswith(_LATER_FOLD):
        value = value.replace(fold=1)
    try:
        return _in_zone(value, name) if name else value
    except (ValueError, OverflowError) as error:
        raise ShapeError(f"expected a datetime in ISO 8601: {error}") from None


def _in_zone(value: datetime, name: str) -> datetime:
    """Return the instant `value` in the zone named in brackets after the offset. `name` is the text after the opening bracket."""
    offset = value.utcoffset()
    if offset is None:
        raise ShapeError("expected a UTC offset before the datetime's time zone")
    zone = _zone_of(offset, name)
    there = value.replace(tzinfo=zone)
    if there.utcoffset() == offset:
        return there
    return (value.replace(tzinfo=None) - offset).replace(tzinfo=UTC).astimezone(zone)


def _time(text: str) -> time:
    iso, _, name = text.removeprefix(_LATER_FOLD).partition("[")
    value = _parsed(time, iso, "a time in ISO 8601")
    if name:
        value = value.replace(tzinfo=_zone_of(value.utcoffset(), name))
    return value.replace(fold=1) if text.startswith(_LATER_FOLD) else value


def _parse_timedelta(data: bytes) -> timedelta:
    return _timedelta(int.from_bytes(data[:16], "big", signed=True) if len(data) <= 16 else 1 << 127)


def _read_json_timedelta(wire: Any, _levels: int) -> timedelta:
    """Read a number of seconds, or an interval in PostgreSQL's format, such as "-1 days +02:03:04.5"."""
    number = plain_number(wire)
    if type(number) is int or type(number) is float:
        return _timedelta(number, unit=timedelta(seconds=1))
    if type(wire) is str and (found := _INTERVAL.fullmatch(wire)):
        days, sign, hours, minutes, seconds, fraction = found.groups(default="")
        of_day = (int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)) * 1_000_000 + int(fraction.ljust(6, "0"))
        return _timedelta(int(days or 0) * 86_400_000_000 + (-of_day if sign == "-" else of_day))
    raise ShapeError("expected a timedelta as a number of seconds")


def _timedelta(count: float, unit: timedelta = MICROSECOND) -> timedelta:
    try:
        return count * unit
    except (OverflowError, ValueError):
        raise ShapeError("expected a timedelta, got one beyond a billion days") from None


def _timezone_text(value: timezone) -> str:
    return time(tzinfo=value).isoformat()[len("00:00:00") :] + _zone_suffix(value, None)


def _timezone(text: str) -> timezone:
    offset, _, name = text.partition("[")
    delta = _time("00:00:00" + offset).utcoffset() if offset.startswith(("+", "-")) else None
    if delta is None:
        raise ShapeError("expected the offset of a timezone")
    zone = _zone_of(delta, name) if name else timezone(delta)
    if type(zone) is not timezone:
        raise ShapeError("expected a timezone with a fixed offset")
    return zone


def _key_of_zone(value: ZoneInfo) -> str:
    if value.key is None:
        raise ShapeError("is a ZoneInfo without a key, so no other process can load it")
    return value.key


def _zone_suffix(zone: tzinfo | None, value: datetime | time | None) -> str:
    """Return the zone's name in brackets, or "" if there is none, or if only its offset is stored, as for zones of pytz or dateutil."""
    if zone is None:
        return ""
    key: str | None = getattr(zone, "key", None) if isinstance(zone, _loaded_zoneinfo()) else None
    if key is not None:
        return f"[{key}]"
    if type(zone) is timezone:
        name = zone.tzname(None)
        return "" if name == timezone(zone.utcoffset(None)).tzname(None) else f"[={encodable(name)}]"
    if value is not None and value.utcoffset() is None:
        raise ShapeError(f"has a tzinfo without an offset, {type(zone).__name__}; use a timezone or a ZoneInfo")
    return ""


def _zone_of(offset: timedelta | None, name: str) -> tzinfo:
    """Return the zone that the text in brackets names. `name` includes the closing bracket, but not the opening one."""
    if not name.endswith("]"):
        raise ShapeError("expected a zone in brackets")
    if not name.startswith("="):
        return _zone_by_key(name[:-1])
    if offset is None:
        raise ShapeError("expected an offset before the name of a timezone")
    return timezone(offset, name[1:-1])


def _zone_by_key(key: str) -> ZoneInfo:
    if not _ZONE_KEY.fullmatch(key) or len(key) > 100:  # ZoneInfo would open a file of this name
        raise ShapeError("expected the key of a time zone")
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(key)
    except (KeyError, ValueError, OSError):
        raise ShapeError(f"the time zone {key!r} is not known here; install tzdata") from None


_SHORT_OFFSET: Final = re.compile(r"([+-])00:00:00\.([0-9]{6})\Z")
_INTERVAL: Final = re.compile(
    r"(?=.)(?:([+-]?[0-9]{1,12}) days?)?(?:(?:^|(?<=.) )([+-]?)([0-9]{1,12}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,6}))?)?"
)
_ZONE_KEY: Final = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")


def _textual(kind: type, code: int, text: Callable[[Any], str], parse: Callable[[str], Any]) -> Shape:
    """Return the shape of a type whose values are sent as text, in JSON too."""
    return extension(
        kind,
        code,
        lambda value: text(value).encode(),
        lambda data: parse(text_of(data)),
        lambda wire, levels: parse(read_str(wire, levels)),
    )


DATETIMES: Final = {
    date: _textual(date, codes.DATE, _date_text, lambda text: _parsed(date, text, "a date as YYYY-MM-DD")),
    time: _textual(time, codes.TIME, _moment_text, _time),
    datetime: _textual(datetime, codes.DATETIME, _moment_text, _datetime),
    timedelta: extension(
        timedelta, codes.TIMEDELTA, lambda value: signed_bytes(value // MICROSECOND), _parse_timedelta, _read_json_timedelta
    ),
    timezone: _textual(timezone, codes.TIMEZONE, _timezone_text, _timezone),
}


def read_zoneinfo(wire: Any, _levels: int) -> ZoneInfo:
    return _zone_by_key(text_of(data_of(wire, codes.ZONEINFO, "ZoneInfo")))


def shape_of_zoneinfo(kind: type) -> Shape | None:
    """Return the shape of ZoneInfo if `kind` is ZoneInfo, otherwise None. `DATETIMES` lacks ZoneInfo, which is loaded only when needed."""
    return zoneinfo_shape() if kind is _loaded_zoneinfo() else None


def _loaded_zoneinfo() -> Any:
    """Return the ZoneInfo class, or () if it is not loaded, in which case no value can be a ZoneInfo."""
    return getattr(sys.modules.get("zoneinfo"), "ZoneInfo", ())


@cache
def zoneinfo_shape() -> Shape:
    from zoneinfo import ZoneInfo

    return _textual(ZoneInfo, codes.ZONEINFO, _key_of_zone, _zone_by_key)
