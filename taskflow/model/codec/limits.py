"""Limits on the size of a payload, its depth and its number of values. They are checked before any value is built from bytes."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from taskflow.model.codec.misfit import Misfit
from taskflow.model.codec.payload import Content
from taskflow.model.errors import TooLarge

DEEPEST: Final = 200
"""The highest value that `depth` may have. Each level takes up to three of the 1,000 frames to which Python limits recursion."""


class Limits(msgspec.Struct, frozen=True):
    """The limits on one payload. Any value that can be encoded within them can also be decoded within them.

    `size` limits the bytes of the whole payload. `depth` limits how deeply containers are nested in an argument: ``[[1]]`` is two deep.
    `items` limits the number of values of any kind, because a million empty lists fit into 1 MiB but take sixty times that when decoded.
    Raises ValueError for a limit below 1, or a depth above `DEEPEST`.
    """

    size: int = 1 << 20
    depth: int = 64
    items: int = 1 << 17
    unchecked_size: int = 0
    """Computed. A payload of at most this many bytes needs no check, because each value takes at least one byte."""

    def __post_init__(self) -> None:
        if min(self.size, self.depth, self.items) < 1:
            raise ValueError(f"limits must be at least 1: {self}")
        if self.depth > DEEPEST:
            raise ValueError(f"depth must be at most {DEEPEST}, got {self.depth}")
        msgspec.structs.force_setattr(self, "unchecked_size", min(self.size, self.items))


def check_size(size: int, limits: Limits) -> None:
    """Raise Misfit if a payload of `size` bytes is larger than allowed."""
    if size > limits.size:
        raise Misfit(f"has {size:,} bytes, but the limit is {limits.size:,}; send a reference to the data, or raise max_payload=", TooLarge)


def check_items(body: bytes, content: Content, limits: Limits) -> None:
    """Raise Misfit if `body` holds too many values. A body of up to `limits.items` bytes cannot, because each value takes at least one."""
    if len(body) <= limits.items:
        return
    found = _items_in_json(body) if content is Content.JSON else _items_in_msgpack(body, limits.items)
    if found > limits.items:
        raise Misfit(f"holds more than {limits.items:,} values; send fewer", TooLarge)


def _items_in_json(body: bytes) -> int:
    """Return an upper bound on the number of values. Each but the first follows a comma, colon or opening bracket outside a string."""
    bare = re.sub(_JSON_STRING, b"", body)
    return 1 + sum(bare.count(mark) for mark in (b",", b":", b"[", b"{"))


def _items_in_msgpack(body: bytes, enough: int) -> int:
    """Count the values in `body`, but stop after `enough` + 1. For bytes that are not msgpack, the result is arbitrary."""
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


def _head_width(lead: int) -> int:
    """Return how many bytes an item takes, not counting data whose length
    follows `lead`. Elements of arrays and maps are counted separately."""
    if 0xA0 <= lead <= 0xBF:
        return 1 + (lead & 0x1F)
    return _WIDTHS.get(lead, 1)


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
_HEAD_WIDTH: Final = tuple(_head_width(lead) for lead in range(256))
_LENGTH_WIDTH: Final = tuple(_LENGTHS.get(lead, 0) for lead in range(256))
