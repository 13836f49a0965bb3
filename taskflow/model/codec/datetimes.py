"""Shapes for dates and times: date, time, datetime, timedelta, timezone and ZoneInfo.

A zone is written as text after the time: ``+02:00`` for a fixed offset, ``+02:00[=CEST]`` for a fixed offset with a name, and
``+02:00[Europe/Paris]`` for a ZoneInfo. The offset is included so that a reader with different zone data gets the same instant.

`zoneinfo` takes 0.8 MB of memory per process and a fortieth of a worker's start-up time, so it is loaded only when needed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from taskflow.model.codec import wire as codes
from taskflow.model.codec.scalars import encodable, read_str, scalar, signed_bytes
from taskflow.model.codec.shape import Misfit, Read, Shape, unexpected
from taskflow.model.codec.wire import Ext, data_of, plain_number

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from typing_extensions import TypeIs

MICROSECOND: Final = timedelta(microseconds=1)
_LATER_FOLD: Final = "~"
"""Precedes the text if `fold` is 1, which marks the second of two equal wall times."""


def write_date(value: Any, _levels: int) -> Ext:
    """Write a date. A datetime is rejected, although datetime is a subclass of date, because its time would be lost."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return Ext(codes.DATE, value.isoformat().encode())
    raise unexpected("date", value)


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Misfit("expected a date as YYYY-MM-DD") from None


def write_datetime(value: Any, _levels: int) -> Ext:
    if not isinstance(value, datetime):
        raise unexpected("datetime", value)
    return Ext(codes.DATETIME, _with_fold(value.fold, datetime.isoformat(value) + _zone_suffix(value.tzinfo, value)).encode())


def _datetime(text: str) -> datetime:
    iso, _, name = text.removeprefix(_LATER_FOLD).partition("[")
    try:
        value = datetime.fromisoformat(iso)
        if value.tzinfo is UTC and (zone := _short_of_utc(iso)):
            value = value.replace(tzinfo=zone)
        if text.startswith(_LATER_FOLD):
            value = value.replace(fold=1)
        return _in_zone(value, name) if name else value
    except (ValueError, OverflowError) as error:
        raise Misfit(f"expected a datetime in ISO 8601: {error}") from None


def _in_zone(value: datetime, name: str) -> datetime:
    """Return the same instant in the zone named in brackets after the offset. `name` is the text after the opening bracket."""
    offset = value.utcoffset()
    if offset is None:
        raise Misfit("expected an offset before the zone of a datetime")
    zone = _zone_of(offset, name)
    there = value.replace(tzinfo=zone)
    if there.utcoffset() == offset:
        return there
    return (value.replace(tzinfo=None) - offset).replace(tzinfo=UTC).astimezone(zone)


def write_time(value: Any, _levels: int) -> Ext:
    if not isinstance(value, time):
        raise unexpected("time", value)
    return Ext(codes.TIME, _with_fold(value.fold, value.isoformat() + _zone_suffix(value.tzinfo, value)).encode())


def _time(text: str) -> time:
    iso, _, name = text.removeprefix(_LATER_FOLD).partition("[")
    try:
        value = time.fromisoformat(iso)
    except ValueError as error:
        raise Misfit(f"expected a time in ISO 8601: {error}") from None
    if value.tzinfo is UTC and (zone := _short_of_utc(iso)):
        value = value.replace(tzinfo=zone)
    if name:
        value = value.replace(tzinfo=_zone_of(value.utcoffset(), name))
    return value.replace(fold=1) if text.startswith(_LATER_FOLD) else value


def write_timedelta(value: Any, _levels: int) -> Ext:
    if isinstance(value, timedelta):
        return Ext(codes.TIMEDELTA, signed_bytes(value // MICROSECOND))
    raise unexpected("timedelta", value)


def read_timedelta(wire: Any, _levels: int) -> timedelta:
    data = data_of(wire, codes.TIMEDELTA, "timedelta")
    return _timedelta(int.from_bytes(data[:16], "big", signed=True) if len(data) <= 16 else 1 << 127)


def read_json_timedelta(wire: Any, _levels: int) -> timedelta:
    """Read a number of seconds, or an interval in PostgreSQL's format, such as "-1 days +02:03:04.5"."""
    number = plain_number(wire)
    if type(number) is int or type(number) is float:
        return _timedelta(number, unit=timedelta(seconds=1))
    if type(wire) is str and (found := _INTERVAL.fullmatch(wire)):
        days, sign, hours, minutes, seconds, fraction = found.groups(default="")
        of_day = (int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)) * 1_000_000 + int(fraction.ljust(6, "0"))
        return _timedelta(int(days or 0) * 86_400_000_000 + (-of_day if sign == "-" else of_day))
    raise Misfit("expected a timedelta as a number of seconds")


def _timedelta(count: float, unit: timedelta = MICROSECOND) -> timedelta:
    try:
        return count * unit
    except (OverflowError, ValueError):
        raise Misfit("expected a timedelta, got one beyond a billion days") from None


def write_timezone(value: Any, _levels: int) -> Ext:
    if type(value) is not timezone:
        raise unexpected("timezone", value)
    return Ext(codes.TIMEZONE, (time(tzinfo=value).isoformat()[len("00:00:00") :] + _zone_suffix(value, None)).encode())


def _timezone(text: str) -> timezone:
    offset, _, name = text.partition("[")
    delta = _time("00:00:00" + offset).utcoffset() if offset.startswith(("+", "-")) else None
    if delta is None:
        raise Misfit("expected the offset of a timezone")
    zone = _zone_of(delta, name) if name else timezone(delta)
    if type(zone) is not timezone:
        raise Misfit("expected a timezone of fixed offset")
    return zone


def write_zoneinfo(value: Any, _levels: int) -> Ext:
    if not _is_zoneinfo(value):
        raise unexpected("ZoneInfo", value)
    if value.key is None:
        raise Misfit("is a ZoneInfo without a key, so no other process can load it")
    return Ext(codes.ZONEINFO, value.key.encode())


def _short_of_utc(iso: str) -> timezone | None:
    """Return the zone if its offset is smaller than a second, which `fromisoformat` mistakes for UTC. Otherwise return None."""
    found = _SHORT_OFFSET.search(iso)
    if found is None:
        return None
    delta = timedelta(microseconds=int(found[2]))
    return timezone(-delta if found[1] == "-" else delta)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Misfit(f"is not UTF-8: {error}") from None


def _readers(parse: Callable[[str], Any], code: int, name: str) -> tuple[Read, Read]:
    """Return a function that reads a value from msgpack, and one that reads it from JSON."""

    def read(wire: Any, _levels: int) -> Any:
        return parse(_text(data_of(wire, code, name)))

    def read_json(wire: Any, levels: int) -> Any:
        return parse(read_str(wire, levels))

    return read, read_json


def _with_fold(fold: int, text: str) -> str:
    return _LATER_FOLD + text if fold else text


def _zone_suffix(zone: tzinfo | None, value: datetime | time | None) -> str:
    """Return the zone's name in brackets, to be appended to the ISO text of
    `value`. Return "" if there is no zone, or if only its offset is stored.

    Only the offset is stored for a `timezone` without a custom name, a
    ZoneInfo without a key, and zones from other libraries (pytz, dateutil).
    """
    if zone is None:
        return ""
    if _is_zoneinfo(zone) and zone.key is not None:
        return f"[{zone.key}]"
    if type(zone) is timezone:
        name = zone.tzname(None)
        return "" if name == timezone(zone.utcoffset(None)).tzname(None) else f"[={encodable(name)}]"
    if value is not None and value.utcoffset() is None:
        raise Misfit(f"has a tzinfo without an offset, {type(zone).__name__}; use a timezone or a ZoneInfo")
    return ""


def _zone_of(offset: timedelta | None, name: str) -> tzinfo:
    """Return the zone that the text in brackets names. `name` includes the closing bracket, but not the opening one."""
    if not name.endswith("]"):
        raise Misfit("expected a zone in brackets")
    if not name.startswith("="):
        return _zone_by_key(name[:-1])
    if offset is None:
        raise Misfit("expected an offset before the name of a timezone")
    return timezone(offset, name[1:-1])


def _is_zoneinfo(value: object) -> TypeIs[ZoneInfo]:
    loaded = _loaded_zoneinfo()
    return loaded is not None and isinstance(value, loaded)


def _loaded_zoneinfo() -> type[ZoneInfo] | None:
    """Return the ZoneInfo class, or None if it is not loaded, in which case no value can be a ZoneInfo."""
    return getattr(sys.modules.get("zoneinfo"), "ZoneInfo", None)


def _zone_by_key(key: str) -> ZoneInfo:
    """Return the ZoneInfo with this key. Keys with dots are rejected first, because ZoneInfo opens a file with the key as its name."""
    if not _ZONE_KEY.fullmatch(key) or len(key) > 100:
        raise Misfit("expected the key of a time zone")
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(key)
    except (KeyError, ValueError, OSError):
        raise Misfit(f"the time zone {key!r} is not known here; install tzdata") from None


_SHORT_OFFSET: Final = re.compile(r"([+-])00:00:00\.([0-9]{6})\Z")
_INTERVAL: Final = re.compile(
    r"(?=.)(?:([+-]?[0-9]{1,12}) days?)?(?:(?:^|(?<=.) )([+-]?)([0-9]{1,12}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,6}))?)?"
)
_ZONE_KEY: Final = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")

read_zoneinfo, _read_json_zoneinfo = _readers(_zone_by_key, codes.ZONEINFO, "ZoneInfo")
DATETIMES: Final = {
    date: scalar(date, codes.DATE, write_date, *_readers(_date, codes.DATE, "date")),
    time: scalar(time, codes.TIME, write_time, *_readers(_time, codes.TIME, "time")),
    datetime: scalar(datetime, codes.DATETIME, write_datetime, *_readers(_datetime, codes.DATETIME, "datetime")),
    timedelta: scalar(timedelta, codes.TIMEDELTA, write_timedelta, read_timedelta, read_json_timedelta),
    timezone: scalar(timezone, codes.TIMEZONE, write_timezone, *_readers(_timezone, codes.TIMEZONE, "timezone")),
}


def shape_of_zoneinfo(kind: object) -> Shape | None:
    """Return the shape of ZoneInfo if `kind` is ZoneInfo, otherwise None. `DATETIMES` lacks ZoneInfo, which is loaded only when needed."""
    return zoneinfo_shape() if (loaded := _loaded_zoneinfo()) is not None and kind is loaded else None


@cache
def zoneinfo_shape() -> Shape:
    from zoneinfo import ZoneInfo

    return scalar(ZoneInfo, codes.ZONEINFO, write_zoneinfo, read_zoneinfo, _read_json_zoneinfo)
