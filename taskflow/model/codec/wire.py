"""Converts wire values to bytes and back. The bytes are msgpack with taskflow's extension codes (`docs/reference/wire-format.md`).

A wire value is None, a bool, an int of 64 bits, a float, a str, bytes, a list, a dict with str keys, or an `Ext`. A wire value from JSON
may also be a Decimal: see `unpack_json`.

msgspec is faster here than the `msgpack` package. Bytes that announce 2**31 items allocate nothing, and invalid bytes raise only ValueError
or RecursionError. Its typed decoding is not used: it confuses str-like members of a union, has no tuple in Any, and rounds numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from math import isinf
from typing import Any, Final

import msgspec

from taskflow.model.codec.shape import ShapeError

Ext = msgspec.msgpack.Ext

# Markers: extensions without data. As the first element of an array, a marker tells what the other elements mean.
TUPLE: Final = 1
SET: Final = 2
FROZENSET: Final = 3
PAIRS: Final = 4
TAGGED: Final = 5
MODEL: Final = 6
NAMED: Final = 7
LAST_MARKER: Final = 15

# Values: extensions whose data represents a value.
INT: Final = 16
DECIMAL: Final = 17
UUID: Final = 18
DATE: Final = 19
TIME: Final = 20
DATETIME: Final = 21
TIMEDELTA: Final = 22
TIMEZONE: Final = 23
BYTEARRAY: Final = 24
ZONEINFO: Final = 25
PATH: Final = 26

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
    """Parse JSON strictly. Raises ShapeError for NaN, lone surrogates, and numbers beyond a float's range, as for any other invalid JSON.

    A number with a fraction or an exponent becomes a float if Python writes that float in the same way. Otherwise, as for 1.10 or a number
    with more digits than a float has, it becomes a Decimal. `plain_number` converts it for readers that do not need a Decimal.
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
    TUPLE: "tuple",
    SET: "set",
    FROZENSET: "frozenset",
    PAIRS: "dict",
    TAGGED: "tagged object",
    MODEL: "model",
    NAMED: "registered type",
    INT: "int",
    DECIMAL: "Decimal",
    UUID: "UUID",
    DATE: "date",
    TIME: "time",
    DATETIME: "datetime",
    TIMEDELTA: "timedelta",
    TIMEZONE: "timezone",
    BYTEARRAY: "bytearray",
    ZONEINFO: "ZoneInfo",
    PATH: "path",
}
