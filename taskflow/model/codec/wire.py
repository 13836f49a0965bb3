"""Converts wire values to bytes and back: msgpack with taskflow's extension codes (`docs/reference/wire-format.md`).

A wire value is None, a bool, an int of 64 bits, a float, a str, bytes, a list, a dict with str keys, an `Ext` or, from JSON, a Decimal.

msgspec is faster than `msgpack`, and raises only ValueError or RecursionError for invalid bytes. Its typed decoding is not used: it
confuses str-like members of a union, has no tuple in Any, and rounds numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from math import isinf
from typing import Any, Final

import msgspec

from taskflow.model.codec.shape import ShapeError

Ext = msgspec.msgpack.Ext

# Never change the number of an extension: payloads contain it.
# Markers: extensions without data. As the first element of an array, a marker shows what the other elements mean.
TUPLE, SET, FROZENSET, PAIRS, TAGGED, MODEL, NAMED, FAILURE = range(1, 9)
LAST_MARKER: Final = 15
# Values: extensions whose data represents a value.
INT, DECIMAL, UUID, DATE, TIME, DATETIME, TIMEDELTA, TIMEZONE, BYTEARRAY, ZONEINFO, PATH = range(16, 27)

_decode = msgspec.msgpack.Decoder().decode


pack: Final[Callable[[Any], bytes]] = msgspec.msgpack.Encoder().encode
"""Encode a wire value as msgpack."""


def unpack(body: bytes) -> Any:
    """Return the single wire value in `body`. Raises ShapeError if `body` is not msgpack."""
    try:
        return _decode(body)
    except (ValueError, RecursionError) as error:
        raise ShapeError(f"is not msgpack: {error}") from error


def unpack_json(body: bytes) -> Any:
    """Parse JSON strictly. Raises ShapeError for invalid JSON, NaN, lone surrogates, and numbers beyond a float's range.

    A number that Python would write differently as a float, such as 1.10, becomes a Decimal: see `plain_number`.
    """
    try:
        return _decode_json(body)
    except (ValueError, RecursionError) as error:
        raise ShapeError(f"is not JSON: {error}") from error


def _number(text: str) -> float | Decimal:
    number = float(text)
    if repr(number) == text:
        return number
    if isinf(number):
        raise ValueError("a number is out of range")
    try:
        return Decimal(text)
    except ArithmeticError:  # a number close to zero with an enormous exponent
        return number


_decode_json = msgspec.json.Decoder(float_hook=_number).decode


def plain_number(wire: Any) -> Any:
    """Convert a Decimal from `unpack_json` to a float. Any other value is returned unchanged."""
    return float(wire) if type(wire) is Decimal else wire


def marker(code: int) -> Ext:
    return Ext(code, b"")


def marker_of(wire: list[Any]) -> int:
    """Return the code of the marker at the beginning of an array, or 0 if there is none."""
    if wire:
        first = wire[0]
        if type(first) is Ext and 0 < first.code <= LAST_MARKER and not first.data:
            return first.code
    return 0


def form_of(wire: Any) -> object:
    """Return the form of a wire value: its type, the code of its extension or marker, ("tag", name) or ("type", name)."""
    kind = type(wire)
    if kind is list:
        code = marker_of(wire)
        if code in _WITH_NAME and len(wire) == 3 and type(wire[1]) is str:
            return (_WITH_NAME[code], wire[1])
        return code or kind
    return wire.code if kind is Ext else kind


_WITH_NAME: Final = {TAGGED: "tag", NAMED: "type"}


def data_of(wire: Any, code: int, expected: str) -> bytes:
    """Return the data of an extension with the given code. Raises ShapeError if `wire` is anything else."""
    if type(wire) is Ext and wire.code == code:
        return bytes(wire.data)
    raise ShapeError(f"expected {expected}, got {wire_type(wire)}")


def wire_type(wire: Any) -> str:
    """Return the name of a wire value's type, for messages."""
    if type(wire) is Ext:
        return _NAMES.get(wire.code, f"extension {wire.code}")
    if type(wire) is list:
        return _NAMES.get(marker_of(wire), "list")
    return type(plain_number(wire)).__name__


_NAMES: Final = {
    **dict(enumerate(("tuple", "set", "frozenset", "dict", "tagged object", "model", "registered type", "failure"), TUPLE)),
    **dict(enumerate(("int", "Decimal", "UUID", "date", "time", "datetime"), INT)),
    **dict(enumerate(("timedelta", "timezone", "bytearray", "ZoneInfo", "path"), TIMEDELTA)),
}
