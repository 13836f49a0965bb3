"""Decodes stored values. Stored bytes may be damaged or hostile, but an unreadable field affects only the job that has it."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeVar

import msgpack
import msgspec

from taskflow.model.clock import instant_of

T = TypeVar("T")

_encode: Final = msgspec.msgpack.Encoder().encode

LATEST: Final = 253_402_300_799_999_999
"""The last instant that `datetime` can express, in microseconds since 1970."""

MAX_RAW: Final = 256
"""The maximum number of bytes that a record shows of an unreadable field. The store keeps all bytes."""


class Unreadable(msgspec.Struct, frozen=True):
    """A stored field that could not be read.

    `column`   the field's name in the store
    `problem`  why it could not be read
    `raw`      the first `MAX_RAW` bytes of its value; other values are converted to text and then encoded
    """

    column: str
    problem: str
    raw: bytes

    def __str__(self) -> str:
        return f"{self.column}: {self.problem}"


class FieldReader:
    """Reads the fields of one stored row. A field that cannot be read gets a default and is listed in `unreadable`."""

    def __init__(self) -> None:
        self._found: list[Unreadable] = []

    @property
    def unreadable(self) -> tuple[Unreadable, ...]:
        return tuple(self._found)

    def read(self, column: str, stored: Any, decode: Callable[[Any], T], default: T) -> T:
        """Return `decode(stored)`. If that raises, record the field as unreadable and return `default`."""
        try:
            return decode(stored)
        except Exception as error:  # includes RecursionError, OverflowError and msgpack's own errors
            self.note(column, stored, f"{type(error).__name__}: {error}"[:MAX_RAW])
            return default

    def note(self, column: str, stored: Any, problem: str) -> None:
        self._found.append(Unreadable(column, problem, _raw(stored)))


def _raw(stored: Any) -> bytes:
    if isinstance(stored, bytes | bytearray | memoryview):
        return bytes(stored[:MAX_RAW])
    text = stored[:MAX_RAW] if isinstance(stored, str) else repr(stored)[:MAX_RAW]
    return text.encode(errors="surrogatepass")[:MAX_RAW]


# --- decoders: each takes a stored value, and raises ValueError or TypeError if it has the wrong type or range ----


def whole(stored: Any, least: int = 0, most: int = (1 << 63) - 1) -> int:
    if type(stored) is not int:
        raise TypeError(f"expected a whole number, got {type(stored).__name__}")
    if not least <= stored <= most:
        raise ValueError(f"expected a whole number from {least} to {most}, got {stored}")
    return stored


def number(stored: Any, least: float, most: float) -> float:
    if type(stored) not in (int, float):
        raise TypeError(f"expected a number, got {type(stored).__name__}")
    if not (math.isfinite(stored) and least <= stored <= most):
        raise ValueError(f"expected a number from {least:g} to {most:g}, got {stored!r}")
    return float(stored)


def text(stored: Any) -> str:
    """Decode text from UTF-8, which may contain lone surrogates. A str is returned unchanged."""
    if isinstance(stored, str):
        return stored
    if not isinstance(stored, bytes):
        raise TypeError(f"expected text, got {type(stored).__name__}")
    return stored.decode(errors="surrogatepass")


def octets(stored: Any, length: int | None = None) -> bytes:
    """Return the value if it is bytes of the given length (None allows any length). Otherwise raise TypeError or ValueError."""
    if not isinstance(stored, bytes):
        raise TypeError(f"expected bytes, got {type(stored).__name__}")
    if length is not None and len(stored) != length:
        raise ValueError(f"expected {length} bytes, got {len(stored)}")
    return stored


def instant(stored: Any) -> datetime:
    """Decode microseconds since 1970 to an aware datetime in UTC."""
    return instant_of(whole(stored, 0, LATEST))


def maybe(stored: Any, decode: Callable[[Any], T]) -> T | None:
    return None if stored is None else decode(stored)


def maybe_text(stored: Any) -> str | None:
    return None if stored is None else text(stored)


def maybe_octets(stored: Any) -> bytes | None:
    return None if stored is None else octets(stored)


def maybe_instant(stored: Any) -> datetime | None:
    return None if stored is None else instant_of(stored)


def packed(value: Any) -> bytes:
    """Encode a value as msgpack. Its texts may contain lone surrogates, which occur in exceptions' messages."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        encoded = msgpack.packb(value, unicode_errors="surrogatepass")
        assert encoded is not None
        return bytes(encoded)


def unpacked(stored: Any, *, raw: bool = False) -> Any:
    """Decode bytes that contain a single msgpack value."""
    return msgpack.unpackb(octets(stored), raw=raw, unicode_errors="surrogatepass", strict_map_key=False)
