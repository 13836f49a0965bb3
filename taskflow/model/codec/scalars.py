"""Shapes for scalars and paths: None, bool, int, float, str, bytes, bytearray, Decimal, UUID and the classes of pathlib.

A relative path of another system is read as one of this system. An absolute path is rejected, because it would lead elsewhere.
"""

from __future__ import annotations

import binascii
import os
import re
from base64 import b64decode
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, Final
from uuid import UUID

from taskflow.model.codec import wire as codes
from taskflow.model.codec.shape import Convert, Shape, ShapeError, type_name, unexpected
from taskflow.model.codec.wire import Ext, data_of, plain_number, wire_type

MIN_INT: Final = -(1 << 63)
MAX_INT: Final = (1 << 64) - 1
"""The largest integer in msgpack. An integer outside `MIN_INT` to `MAX_INT` is written as an extension, in two's complement."""

# --- kinds of scalars ---------------------------------------------------------------------------------------------


def scalar(kind: type, write: Convert, read: Convert, read_json: Convert | None = None, *, forms: tuple[object, ...]) -> Shape:
    return Shape(_label(kind), write, read, read_json or read, types=frozenset((kind,)), forms=frozenset(forms))


def _label(kind: type) -> str:
    return "None" if kind is type(None) else type_name(kind)


def _native(kind: type, write: Convert | None = None, read_json: Convert | None = None) -> Shape:
    """Return the shape of a type that msgpack also has. By default, instances of subclasses are rejected."""
    label = _label(kind)

    def write_same(value: Any, _levels: int) -> Any:
        if type(value) is not kind:
            raise unexpected(label, value)
        return value

    def read(wire: Any, _levels: int) -> Any:
        if type(wire) is not kind:
            raise ShapeError(f"expected {label}, got {wire_type(wire)}")
        return wire

    return scalar(kind, write or write_same, read, read_json, forms=(kind,))


def extension(kind: type, code: int, pack: Callable[[Any], bytes], parse: Callable[[bytes], Any], read_json: Convert) -> Shape:
    """Return the shape of a type whose values are extensions with this code. An instance of a subclass is read as the type itself."""
    label = type_name(kind)

    def write(value: Any, _levels: int) -> Ext:
        if not isinstance(value, kind):
            raise unexpected(label, value)
        return Ext(code, pack(value))

    def read(wire: Any, _levels: int) -> Any:
        return parse(data_of(wire, code, label))

    return scalar(kind, write, read, read_json, forms=(code,))


# --- numbers ------------------------------------------------------------------------------------------------------


def write_int(value: Any, levels: int) -> Any:
    if type(value) is int:
        return value if MIN_INT <= value <= MAX_INT else Ext(codes.INT, signed_bytes(value))
    if isinstance(value, int) and type(value) is not bool:
        return write_int(int(value), levels)
    raise unexpected("int", value)


def signed_bytes(value: int) -> bytes:
    """Return the integer in big-endian two's complement, in as many bytes as its magnitude and a sign bit need."""
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def read_int(wire: Any, _levels: int) -> int:
    if type(wire) is int:
        return wire
    return int.from_bytes(data_of(wire, codes.INT, "int"), "big", signed=True)


def _read_json_int(wire: Any, _levels: int) -> int:
    """Read an int. A whole number is accepted in any notation, such as 1e3 or 5.0, because some languages have no integers."""
    if type(wire) is int:
        return wire
    if (type(wire) is float and wire.is_integer()) or (type(wire) is Decimal and wire == wire.to_integral_value()):
        return int(wire)
    raise ShapeError(f"expected int, got {wire_type(wire)}")


def _write_float(value: Any, _levels: int) -> float:
    if type(value) is float:
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int) and type(value) is not bool:
        return _float_of(value, exactly=True)
    raise unexpected("float", value)


def _read_float(wire: Any, _levels: int) -> float:
    if type(wire) is float:
        return wire
    if type(wire) is int:
        return _float_of(wire, exactly=True)
    raise ShapeError(f"expected float, got {wire_type(wire)}")


def _read_json_float(wire: Any, levels: int) -> float:
    """Read any number as the nearest float. The strings "NaN", "Infinity" and "-Infinity" represent values that JSON lacks."""
    if type(wire) is str and wire in ("NaN", "Infinity", "-Infinity"):
        return float(wire)
    return _float_of(wire, exactly=False) if type(wire) is int else _read_float(plain_number(wire), levels)


def _float_of(value: int, *, exactly: bool) -> float:
    try:
        result = float(value)
    except OverflowError:
        raise ShapeError("is an int beyond the range of a float") from None
    if exactly and result != value:
        raise ShapeError("is an int that no float represents exactly; pass float(...) to round it")
    return result


def _read_json_decimal(wire: Any, _levels: int) -> Decimal:
    if type(wire) is Decimal:
        return wire
    if type(wire) in (str, int, float):
        return _decimal(str(wire))
    raise ShapeError(f"expected Decimal as a string or number, got {wire_type(wire)}")


def _decimal(text: str) -> Decimal:
    """Read a Decimal from text. The time and memory needed grow with the length of the text, not with the exponent."""
    if not _DECIMAL.fullmatch(text):
        raise ShapeError("expected a Decimal, got other text")
    try:
        return Decimal(text)
    except ArithmeticError:
        raise ShapeError("expected a Decimal, got one whose exponent is out of range") from None


_DECIMAL: Final = re.compile(r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:E[+-]?[0-9]{1,20})?|s?NaN[0-9]*|Infinity)", re.IGNORECASE)

# --- text and bytes -----------------------------------------------------------------------------------------------


def write_str(value: Any, levels: int) -> str:
    if type(value) is str:
        return value if value.isascii() else encodable(value)
    if isinstance(value, str):
        return write_str(str.__str__(value), levels)
    raise unexpected("str", value)


def encodable(value: str) -> str:
    """Return the text unchanged. Raises ShapeError if it cannot be encoded as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ShapeError(
            f"has a lone surrogate at index {error.start}, which UTF-8 cannot encode; decode the text correctly, or pass bytes"
        ) from None
    return value


def text_of(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ShapeError(f"is not UTF-8: {error}") from None


def _write_bytes(value: Any, _levels: int) -> bytes:
    if isinstance(value, bytes):
        return bytes(value)
    raise unexpected("bytes", value)


def _read_json_bytes(wire: Any, levels: int) -> bytes:
    """Read base64, with or without line breaks, or hexadecimal with the prefix ``\\x``, which is how PostgreSQL writes a bytea."""
    text = read_str(wire, levels)
    try:
        return bytes.fromhex(text[2:]) if text.startswith("\\x") else b64decode("".join(text.splitlines()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ShapeError(f"expected bytes in base64: {error}") from None


def _uuid(data: bytes) -> UUID:
    if len(data) != 16:
        raise ShapeError(f"expected the 16 bytes of a UUID, got {len(data)}")
    return UUID(bytes=data)


def _read_json_uuid(wire: Any, levels: int) -> UUID:
    try:
        return UUID(read_str(wire, levels))
    except ValueError:
        raise ShapeError("expected a UUID, got other text") from None


NONE: Final = _native(type(None))
_STR: Final = _native(str, write_str)
read_str: Final = _STR.read
SCALARS: Final[dict[type, Shape]] = {
    type(None): NONE,
    bool: _native(bool),
    int: scalar(int, write_int, read_int, _read_json_int, forms=(int, codes.INT)),
    float: scalar(float, _write_float, _read_float, _read_json_float, forms=(float,)),
    str: _STR,
    bytes: _native(bytes, _write_bytes, _read_json_bytes),
    bytearray: extension(bytearray, codes.BYTEARRAY, bytes, bytearray, lambda wire, levels: bytearray(_read_json_bytes(wire, levels))),
    # As text, which preserves the sign, the digits, the exponent, and the payload of a NaN.
    Decimal: extension(
        Decimal,
        codes.DECIMAL,
        lambda value: Decimal.__str__(value).encode(),
        lambda data: _decimal(data.decode("ascii", "replace")),
        _read_json_decimal,
    ),
    UUID: extension(UUID, codes.UUID, lambda value: value.bytes, _uuid, _read_json_uuid),
}

# --- paths --------------------------------------------------------------------------------------------------------

_LETTERS: Final[dict[type[PurePath], bytes]] = {PosixPath: b"P", WindowsPath: b"W", PurePosixPath: b"p", PureWindowsPath: b"w"}
"""The letter of each class, which precedes a path's text. Subclasses come before their bases."""
_KINDS: Final = {letter: kind for kind, letter in _LETTERS.items()}
_ALL: Final[tuple[type[PurePath], ...]] = (Path, *_LETTERS, PurePath)


def _pack_path(path: PurePath) -> bytes:
    letter = next(letter for kind, letter in _LETTERS.items() if isinstance(path, kind))
    try:
        return letter + PurePath.__str__(path).encode("utf-8", _on_error(letter))
    except UnicodeEncodeError as error:
        raise ShapeError(f"has a lone surrogate at index {error.start}, which no file name contains") from None


def _parse_path(data: bytes) -> PurePath:
    letter = data[:1]
    kind = _KINDS.get(letter)
    if kind is None:
        raise ShapeError("expected the letter of a path class")
    try:
        text = data[1:].decode("utf-8", _on_error(letter))
    except UnicodeDecodeError as error:
        raise ShapeError(f"is not UTF-8: {error}") from None
    if not issubclass(kind, Path) or kind is type(Path()):
        return kind(text)
    pure = PureWindowsPath(text) if issubclass(kind, WindowsPath) else PurePosixPath(text)
    here = Path(*pure.parts)
    if pure.anchor or here.parts != pure.parts:
        raise ShapeError(f"is a {kind.__name__} that has no meaning on this system; send a relative path, or a {type(pure).__name__}")
    return here


def _on_error(letter: bytes) -> str:
    """Return the error handler for lone surrogates. On POSIX, each represents a byte of a file name that is not UTF-8."""
    return "surrogateescape" if letter in b"Pp" else "surrogatepass"


def _path(kind: type[PurePath], label: str) -> Shape:
    def write(value: Any, _levels: int) -> Ext:
        if not isinstance(value, kind):
            raise unexpected(label, value)
        return Ext(codes.PATH, _pack_path(value))

    def read(wire: Any, _levels: int) -> PurePath:
        path = _parse_path(data_of(wire, codes.PATH, label))
        if not isinstance(path, kind):
            raise ShapeError(f"expected {label}, got {type(path).__name__}")
        return path

    kinds = frozenset(each for each in _ALL if issubclass(each, kind))
    return Shape(label, write, read, lambda wire, levels: kind(read_str(wire, levels)), types=kinds, forms=frozenset((codes.PATH,)))


PATHS: Final[dict[type, Shape]] = {**{kind: _path(kind, kind.__name__) for kind in _ALL}, os.PathLike: _path(PurePath, "PathLike")}
"""The shape of each path class. `os.PathLike` covers all of them."""
