"""Encodes values as payloads and decodes them, using a shape and within limits. `docs/reference/wire-format.md` describes the bytes.

An unknown version, flag, key or content raises `NewerFormat`: a newer taskflow wrote the payload, and the job waits for a newer worker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, Final

import msgspec

from taskflow.model.codec import wire as codes
from taskflow.model.codec.shape import Shape, ShapeError, key_step, raised, shown_cause, too_deep
from taskflow.model.codec.untyped import ANY, NAMED_READERS, without_unknown_names
from taskflow.model.codec.wire import NAMED, marker, marker_of, pack, unpack, unpack_json
from taskflow.model.errors import DecodeError, EncodeError, NewerFormat, TooLarge, UnknownType

VERSION = 1
HEADER_SIZE = 4


class Content(IntEnum):
    """The encoding of a payload's body."""

    MSGPACK = 1
    JSON = 2


_MSGPACK_HEADER = bytes((VERSION, 0, 0, Content.MSGPACK))
_JSON_HEADER = bytes((VERSION, 0, 0, Content.JSON))


def seal(body: bytes) -> bytes:
    """Add the header to a msgpack body."""
    return _MSGPACK_HEADER + body


def seal_json(body: bytes) -> bytes:
    """Add the header to a JSON body: an object in UTF-8 that maps argument names to values. SQL triggers send jobs in this form."""
    return _JSON_HEADER + body


def open_payload(payload: bytes) -> tuple[Content, bytes]:
    """Return the body's encoding, and the body. Raises NewerFormat for a newer taskflow's payload, and DecodeError for invalid bytes."""
    if payload.startswith(_MSGPACK_HEADER):
        return Content.MSGPACK, payload[HEADER_SIZE:]
    if payload.startswith(_JSON_HEADER):
        return Content.JSON, payload[HEADER_SIZE:]
    header = payload[:HEADER_SIZE]
    if header and header[0] != VERSION:
        raise NewerFormat(f"payload version {header[0]} is not known; this taskflow reads version {VERSION}")
    if len(header) < HEADER_SIZE:
        lost = "" if header else ": it is missing"
        raise DecodeError(f"a payload has at least {HEADER_SIZE} bytes, this one has {len(header)}{lost}")
    _, flags, key_id, content = header
    raise NewerFormat(f"payload with flags {flags:#04x}, key {key_id}, content {content} is not known; a newer taskflow wrote it")


def with_argument(payload: bytes, name: str, values: Sequence[bytes], *, is_list: bool) -> bytes:
    """Return the payload of a call with one more argument, without decoding anything.

    `values` are bodies of payloads. If `is_list`, the argument is a list of them, otherwise the only one. Raises DecodeError.
    """
    content, body = open_payload(payload)
    lead = body[0] if body else 0
    if content is not Content.MSGPACK or not (0x80 <= lead <= 0x8F or lead in (0xDE, 0xDF)):
        raise DecodeError("the arguments are not from a call that taskflow sent: expected a map in msgpack")
    begins = {0xDE: 3, 0xDF: 5}.get(lead, 1)
    size = int.from_bytes(body[1:begins], "big") if begins > 1 else lead & 0x0F
    value = [_head(0x90, 0xDC, len(values)), *values] if is_list else values
    return b"".join([_MSGPACK_HEADER, _head(0x80, 0xDE, size + 1), body[begins:], pack(name), *value])


def _head(least: int, wide: int, size: int) -> bytes:
    """Return the msgpack header of an array or a map of this size. `least` is the header of an empty one; `wide` precedes 16-bit sizes."""
    if size < 16:
        return bytes((least + size,))
    return bytes((wide,)) + size.to_bytes(2, "big") if size < 1 << 16 else bytes((wide + 1,)) + size.to_bytes(4, "big")


class Limits(msgspec.Struct, frozen=True):
    """The limits on one payload. Any value that can be encoded within them can also be decoded within them.

    `size`   the bytes of the whole payload
    `depth`  how deeply containers are nested in an argument: ``[[1]]`` is two deep. At most 200: a level takes 3 of Python's 1,000 frames
    `items`  the number of values of any kind: a million empty lists fit into 1 MiB, but take 60 times as much memory when decoded
    """

    size: int = 1 << 20
    depth: int = 64
    items: int = 1 << 17
    unchecked_size: int = 0  # computed: a smaller payload needs no check, because each value takes at least one byte

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "unchecked_size", min(self.size, self.items))


def _check_limits(payload: bytes, content: Content, limits: Limits) -> None:
    size, body = len(payload), payload[HEADER_SIZE:]
    if size > limits.size:
        raise ShapeError(
            f"has {size:,} bytes, but the limit is {limits.size:,}; send a reference to the data, or raise max_payload=", TooLarge
        )
    count = _items_in_json if content is Content.JSON else _items_in_msgpack
    if len(body) > limits.items and count(body, limits.items) > limits.items:
        raise ShapeError(f"holds more than {limits.items:,} values; send fewer", TooLarge)


def _items_in_json(body: bytes, _enough: int) -> int:
    """Return an upper bound on the number of values. All but the first follow a comma, colon or opening bracket outside a string."""
    bare = re.sub(_JSON_STRING, b"", body)
    return 1 + sum(bare.count(mark) for mark in (b",", b":", b"[", b"{"))


def _items_in_msgpack(body: bytes, enough: int) -> int:
    """Count the values in `body`, but stop after `enough` + 1. For bytes that aren't msgpack, the result is meaningless."""
    position, found, end = 0, 0, len(body)
    while position < end and found <= enough:
        lead = body[position]
        width = _LENGTH_WIDTH[lead]
        if width:
            position += int.from_bytes(body[position + 1 : position + 1 + width], "big")
        position += _HEAD_WIDTH[lead]
        found += 1
    return found


# The closing quote is optional, so that a match never has to backtrack. Otherwise, a body of escaped quotes would take quadratic time.
_JSON_STRING: Final = rb'(?s)"[^"\\]*(?:\\.[^"\\]*)*"?'


# fmt: off
_WIDTHS: Final = {
    0xC4: 2, 0xC5: 3, 0xC6: 5,  # bin
    0xC7: 3, 0xC8: 4, 0xC9: 6,  # ext
    0xCA: 5, 0xCB: 9,  # float
    0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,  # int
    0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18,  # fixext
    0xD9: 2, 0xDA: 3, 0xDB: 5,  # str
    0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5,  # array, map
}
_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
# fmt: on
_HEAD_WIDTH: Final = tuple(1 + (lead & 0x1F) if 0xA0 <= lead <= 0xBF else _WIDTHS.get(lead, 1) for lead in range(256))
"""How many bytes an item takes, by its first byte, excluding data whose length follows. Elements of arrays and maps are counted
separately."""
_LENGTH_WIDTH: Final = tuple(_LENGTHS.get(lead, 0) for lead in range(256))


def check_stable(shape: Shape, body: bytes, levels: int) -> None:
    """Raise ShapeError if the value in `body` cannot be decoded, or would change when it is encoded again."""
    decoded = shape.read(unpack(body), levels)
    try:
        again = pack(shape.write(decoded, levels))
    except ShapeError as error:
        raise ShapeError(f"{_CHANGES} (now it {error.message})").within(error.path) from error
    if again == body:
        return
    path = next(_differences(_sorted(unpack(body)), _sorted(unpack(again))), None)
    if path is not None:
        raise ShapeError(_CHANGES).within(path)


def _differences(one: Any, other: Any) -> Iterator[str]:
    """Yield the paths of all parts where two wire values differ."""
    if type(one) is not type(other):
        yield ""
    elif type(one) is dict and one.keys() == other.keys():
        for key in one:
            step = f".{key}" if key.isidentifier() else key_step(key)
            yield from (step + rest for rest in _differences(one[key], other[key]))
    elif type(one) is list and len(one) == len(other):
        code = marker_of(one)
        offset = int(code > 0)
        for index, (mine, its) in enumerate(zip(one, other, strict=True)):
            step = "" if code in _SAME_VALUE else f"[{index - offset}]"
            yield from (step + rest for rest in _differences(mine, its))
    elif pack(one) != pack(other):
        yield ""


def _sorted(wire: Any) -> Any:
    """Return the wire value with the items of each set sorted, because equal sets may have different iteration orders."""
    if type(wire) is dict:
        return {key: _sorted(part) for key, part in wire.items()}
    if type(wire) is not list:
        return wire
    parts = [_sorted(part) for part in wire]
    return [parts[0], *sorted(parts[1:], key=pack)] if marker_of(wire) in _SETS else parts


_CHANGES: Final = (
    "is changed by its class when it is decoded, by a validator, a converter, __post_init__ or decode=; "
    "make that code leave its own result unchanged, or send plain data"
)
_SAME_VALUE: Final = (codes.TAGGED, codes.MODEL, codes.NAMED)
"""The markers of arrays whose elements together represent one value, so that they add no step to a path."""
_SETS: Final = (codes.SET, codes.FROZENSET)


DEFAULT_LIMITS = Limits()
_NAMED = pack(marker(NAMED))


def encode(shape: Shape, value: Any, limits: Limits, *, where: str = "", annotated: str = "the parameter (or field)") -> bytes:
    """Encode a value as a payload. Raises EncodeError, or TooLarge beyond the limits.

    If the shape's classes check or convert their fields, the payload is also decoded and encoded again, and must not change. The same
    applies to a payload with a registered type. `where` ends every message; `annotated` names what the user should annotate.
    """
    try:
        payload = seal(pack(shape.write(value, limits.depth)))
        if len(payload) > limits.unchecked_size:
            _check_limits(payload, Content.MSGPACK, limits)
        if shape.runs_code or (NAMED_READERS and _NAMED in payload):
            check_stable(shape, payload[HEADER_SIZE:], limits.depth)
    except ShapeError as error:
        raise error.as_encode_error(where, annotated) from error.__cause__
    except RecursionError:
        raise too_deep().as_encode_error(where) from None
    except Exception as error:  # raised by the class's code: a property, or a mapping's items()
        raise EncodeError(f"cannot be encoded: {raised(error)}{where}") from error
    return payload


def decode(shape: Shape, payload: bytes, limits: Limits, *, where: str = "") -> Any:
    """Decode a payload. Raises only DecodeError or a subclass (NewerFormat, UnknownArgument, MissingArgument), whatever the bytes are."""
    content, body = open_payload(payload)
    try:
        if len(payload) > limits.unchecked_size:
            _check_limits(payload, content, limits)
        if content is Content.JSON:
            return shape.read_json(unpack_json(body), limits.depth)
        return shape.read(unpack(body), limits.depth)
    except ShapeError as error:
        raise error.as_decode_error(where) from shown_cause(error.__cause__)
    except RecursionError:
        raise too_deep().as_decode_error(where) from None
    except Exception as error:  # raised by the class's code, or for a number that its type cannot hold
        raise DecodeError(f"cannot be decoded: {raised(error)}{where}") from shown_cause(error)


def encode_value(value: object, *, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Encode a value without an annotation. Only self-describing types are allowed. Raises EncodeError, or TooLarge beyond the limits."""
    return encode(ANY, value, limits)


def decode_value(payload: bytes, *, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Decode a payload without an annotation. Raises DecodeError if the payload is invalid or exceeds a limit.

    Returns instances of classes as dicts, Enum members as their values, and unregistered types as the sender's `encode=` made them.
    """
    return decode_plain(ANY, payload, limits)


def decode_plain(shape: Shape, payload: bytes, limits: Limits) -> Any:
    """Decode a payload by a shape that has no annotations. Types that are not registered here stay as the sender's `encode=` made them."""
    try:
        return decode(shape, payload, limits)
    except UnknownType:
        known = msgspec.structs.replace(shape, read=lambda wire, levels: shape.read(without_unknown_names(wire), levels))
        return decode(known, payload, limits)
