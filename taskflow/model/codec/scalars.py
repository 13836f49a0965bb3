"""Shapes for scalars and paths: None, bool, int, float, str, bytes, bytearray, Decimal, UUID and the classes of pathlib.

A concrete path belongs to a system. One from another system is read as a path of this system if it is relative. An absolute one is refused,
because it would lead elsewhere: `PureWindowsPath` and `PurePosixPath` carry such paths between systems.
"""

from __future__ import annotations

import binascii
import os
import re
from base64 import b64decode
from decimal import Decimal
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, Final
from uuid import UUID

from taskflow.model.codec import wire as codes
from taskflow.model.codec.shape import Misfit, Read, Shape, Write, type_name, unexpected
from taskflow.model.codec.wire import Ext, data_of, plain_number, wire_type

LEAST: Final = -(1 << 63)
MOST: Final = (1 << 64) - 1
"""The largest integer in msgpack. An integer outside `LEAST` to `MOST` is written as an extension, in two's complement."""


def write_none(value: Any, _levels: int) -> None:
    if value is not None:
        raise unexpected("None", value)


def read_none(wire: Any, _levels: int) -> None:
    if wire is not None:
        raise Misfit(f"expected None, got {wire_type(wire)}")


def write_bool(value: Any, _levels: int) -> bool:
    if type(value) is bool:
        return value
    raise unexpected("bool", value)


def read_bool(wire: Any, _levels: int) -> bool:
    if type(wire) is bool:
        return wire
    raise Misfit(f"expected bool, got {wire_type(wire)}")


def write_int(value: Any, levels: int) -> Any:
    if type(value) is int:
        return value if LEAST <= value <= MOST else Ext(codes.INT, signed_bytes(value))
    if isinstance(value, int) and type(value) is not bool:
        return write_int(int(value), levels)
    raise unexpected("int", value)


def read_int(wire: Any, _levels: int) -> int:
    if type(wire) is int:
        return wire
    return int.from_bytes(data_of(wire, codes.INT, "int"), "big", signed=True)


def read_json_int(wire: Any, _levels: int) -> int:
    """Read an int. A whole number is accepted in any notation, such as 1e3 or 5.0, because some languages have no integers."""
    if type(wire) is int:
        return wire
    if (type(wire) is float and wire.is_integer()) or (type(wire) is Decimal and wire == wire.to_integral_value()):
        return int(wire)
    raise Misfit(f"expected int, got {wire_type(wire)}")


def write_float(value: Any, levels: int) -> float:
    if type(value) is float:
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int) and type(value) is not bool:
        return exact_float(value)
    raise unexpected("float", value)


def read_float(wire: Any, levels: int) -> float:
    if type(wire) is float:
        return wire
    if type(wire) is int:
        return exact_float(wire)
    raise Misfit(f"expected float, got {wire_type(wire)}")


def read_json_float(wire: Any, levels: int) -> float:
    """Read any number as the nearest float, because JSON numbers have no type, and a database may write 1e300 with all its digits.

    JSON has no literals for values that are not finite, so the strings "NaN", "Infinity" and "-Infinity" stand for them.
    """
    if type(wire) is str and wire in ("NaN", "Infinity", "-Infinity"):
        return float(wire)
    if type(wire) is int:
        return _nearest_float(wire)
    return read_float(plain_number(wire), levels)


def exact_float(value: int) -> float:
    """Convert an int to a float. Raises Misfit if no float is exactly equal to it."""
    result = _nearest_float(value)
    if result != value:
        raise Misfit("is an int that no float represents exactly; pass float(...) to round it")
    return result


def _nearest_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise Misfit("is an int beyond the range of a float") from None


def write_str(value: Any, levels: int) -> str:
    if type(value) is str:
        return value if value.isascii() else encodable(value)
    if isinstance(value, str):
        return write_str(str.__str__(value), levels)
    raise unexpected("str", value)


def encodable(value: str) -> str:
    """Return the text unchanged. Raises Misfit if it cannot be encoded as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Misfit(
            f"has a lone surrogate at index {error.start}, which UTF-8 cannot encode; decode the text correctly, or pass bytes"
        ) from None
    return value


def read_str(wire: Any, _levels: int) -> str:
    if type(wire) is str:
        return wire
    raise Misfit(f"expected str, got {wire_type(wire)}")


def write_bytes(value: Any, _levels: int) -> bytes:
    if type(value) is bytes:
        return value
    if isinstance(value, bytes):
        return bytes(value)
    raise unexpected("bytes", value)


def read_bytes(wire: Any, _levels: int) -> bytes:
    if type(wire) is bytes:
        return wire
    raise Misfit(f"expected bytes, got {wire_type(wire)}")


def read_json_bytes(wire: Any, levels: int) -> bytes:
    """Read base64, with or without line breaks, or hexadecimal with the prefix ``\\x``, which is how PostgreSQL writes a bytea."""
    text = read_str(wire, levels)
    try:
        if text.startswith("\\x"):
            return bytes.fromhex(text[2:])
        return b64decode("".join(text.splitlines()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Misfit(f"expected bytes in base64: {error}") from None


def write_bytearray(value: Any, _levels: int) -> Ext:
    if isinstance(value, bytearray):
        return Ext(codes.BYTEARRAY, bytes(value))
    raise unexpected("bytearray", value)


def read_bytearray(wire: Any, _levels: int) -> bytearray:
    return bytearray(data_of(wire, codes.BYTEARRAY, "bytearray"))


def read_json_bytearray(wire: Any, levels: int) -> bytearray:
    return bytearray(read_json_bytes(wire, levels))


def write_decimal(value: Any, _levels: int) -> Ext:
    """Write a Decimal as text, which preserves its sign, digits and exponent, and the payload of a NaN."""
    if isinstance(value, Decimal):
        return Ext(codes.DECIMAL, Decimal.__str__(value).encode())
    raise unexpected("Decimal", value)


def read_decimal(wire: Any, _levels: int) -> Decimal:
    return _decimal(data_of(wire, codes.DECIMAL, "Decimal").decode("ascii", "replace"))


def read_json_decimal(wire: Any, _levels: int) -> Decimal:
    if type(wire) is str:
        return _decimal(wire)
    if type(wire) is Decimal:
        return wire
    if type(wire) is int or type(wire) is float:
        return _decimal(str(wire))
    raise Misfit(f"expected Decimal as a string or number, got {wire_type(wire)}")


def _decimal(text: str) -> Decimal:
    """Read a Decimal from text. The time and memory needed grow with the length of the text, not with the exponent."""
    if not _DECIMAL.fullmatch(text):
        raise Misfit("expected a Decimal, got other text")
    try:
        return Decimal(text)
    except ArithmeticError:
        raise Misfit("expected a Decimal, got one whose exponent is out of range") from None


def write_uuid(value: Any, _levels: int) -> Ext:
    if isinstance(value, UUID):
        return Ext(codes.UUID, value.bytes)
    raise unexpected("UUID", value)


def read_uuid(wire: Any, _levels: int) -> UUID:
    data = data_of(wire, codes.UUID, "UUID")
    if len(data) != 16:
        raise Misfit(f"expected the 16 bytes of a UUID, got {len(data)}")
    return UUID(bytes=data)


def read_json_uuid(wire: Any, levels: int) -> UUID:
    try:
        return UUID(read_str(wire, levels))
    except ValueError:
        raise Misfit("expected a UUID, got other text") from None


def signed_bytes(value: int) -> bytes:
    """Return the integer in big-endian two's complement, in as many bytes as its magnitude and a sign bit need."""
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def scalar(kind: type, form: object, write: Write, read: Read, read_json: Read | None = None, *more_forms: object) -> Shape:
    """Return the shape of a scalar type. Each of its wire values has the form `form` or one of `more_forms`."""
    forms = frozenset((form, *more_forms))
    return Shape(type_name(kind), write, read, read_json or read, types=frozenset((kind,)), forms=forms)


NONE: Final = Shape("None", write_none, read_none, read_none, types=frozenset((type(None),)), forms=frozenset((type(None),)))
SCALARS: Final[dict[type, Shape]] = {
    type(None): NONE,
    bool: scalar(bool, bool, write_bool, read_bool),
    int: scalar(int, int, write_int, read_int, read_json_int, codes.INT),
    float: scalar(float, float, write_float, read_float, read_json_float),
    str: scalar(str, str, write_str, read_str),
    bytes: scalar(bytes, bytes, write_bytes, read_bytes, read_json_bytes),
    bytearray: scalar(bytearray, codes.BYTEARRAY, write_bytearray, read_bytearray, read_json_bytearray),
    Decimal: scalar(Decimal, codes.DECIMAL, write_decimal, read_decimal, read_json_decimal),
    UUID: scalar(UUID, codes.UUID, write_uuid, read_uuid, read_json_uuid),
}
_DECIMAL: Final = re.compile(r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:E[+-]?[0-9]{1,20})?|s?NaN[0-9]*|Infinity)", re.IGNORECASE)


_LETTERS: Final[dict[type[PurePath], bytes]] = {PosixPath: b"P", WindowsPath: b"W", PurePosixPath: b"p", PureWindowsPath: b"w"}
"""The letter of each class. Subclasses come before their bases."""
_KINDS: Final = {letter: kind for kind, letter in _LETTERS.items()}
_ALL: Final[tuple[type[PurePath], ...]] = (Path, *_LETTERS, PurePath)
_HERE: Final = type(Path())


def write_path(value: Any, _levels: int) -> Ext:
    letter = next(letter for kind, letter in _LETTERS.items() if isinstance(value, kind))
    try:
        return Ext(codes.PATH, letter + PurePath.__str__(value).encode("utf-8", _on_error(letter)))
    except UnicodeEncodeError as error:
        raise Misfit(f"has a lone surrogate at index {error.start}, which no file name contains") from None


def read_path(wire: Any, _levels: int) -> PurePath:
    data = data_of(wire, codes.PATH, "path")
    letter = data[:1]
    kind = _KINDS.get(letter)
    if kind is None:
        raise Misfit("expected the letter of a class of paths")
    try:
        text = data[1:].decode("utf-8", _on_error(letter))
    except UnicodeDecodeError as error:
        raise Misfit(f"is not UTF-8: {error}") from None
    return _from_elsewhere(kind, text) if issubclass(kind, Path) and kind is not _HERE else kind(text)


def _on_error(letter: bytes) -> str:
    """Return how to encode a lone surrogate: on POSIX, it stands for a byte of a file name that is not UTF-8."""
    return "surrogateescape" if letter in b"Pp" else "surrogatepass"


def _from_elsewhere(kind: type[Path], text: str) -> Path:
    pure = PureWindowsPath(text) if issubclass(kind, WindowsPath) else PurePosixPath(text)
    here = Path(*pure.parts)
    if pure.anchor or here.parts != pure.parts:
        raise Misfit(f"is a {kind.__name__} that has no meaning on this system; send a relative path, or a {type(pure).__name__}")
    return here


def _writer(kind: type[Any], label: str) -> Write:
    def write(value: Any, levels: int) -> Ext:
        if not isinstance(value, kind):
            raise unexpected(label, value)
        return write_path(value, levels)

    return write


def _readers(kind: type[PurePath], label: str) -> tuple[Read, Read]:
    def read(wire: Any, levels: int) -> PurePath:
        path = read_path(wire, levels)
        if not isinstance(path, kind):
            raise Misfit(f"expected {label}, got {type(path).__name__}")
        return path

    def read_json(wire: Any, levels: int) -> PurePath:
        return kind(read_str(wire, levels))

    return read, read_json


def _shape(kind: type[PurePath], label: str) -> Shape:
    kinds = frozenset(each for each in _ALL if issubclass(each, kind))
    return Shape(label, _writer(kind, label), *_readers(kind, label), types=kinds, forms=frozenset((codes.PATH,)))


PATHS: Final[dict[type, Shape]] = {
    **{kind: _shape(kind, kind.__name__) for kind in _ALL},
    os.PathLike: _shape(PurePath, "PathLike"),
}
"""The shape of each class of paths. `os.PathLike` stands for any of them."""
