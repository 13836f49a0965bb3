"""Size and number of items, checked before anything is built from bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from taskflow.model.codec.misfit import Misfit
from taskflow.model.codec.payload import Content
from taskflow.model.errors import TooLarge

if TYPE_CHECKING:
    from taskflow.model.codec.limits import Limits


def check_size(size: int, limits: Limits) -> None:
    """Misfit if a payload of `size` bytes is larger than allowed."""
    if size > limits.size:
        raise Misfit(f"has {size:,} bytes, the limit is {limits.size:,}; send a reference to the data, or raise max_payload=", TooLarge)


def check_items(body: bytes, content: Content, limits: Limits) -> None:
    """Misfit if `body` holds more values than allowed. Costs nothing for a body of no more bytes than that: a value takes one at least."""
    if len(body) <= limits.items:
        return
    found = _items_in_json(body) if content is Content.JSON else _items_in_msgpack(body, limits.items)
    if found > limits.items:
        raise Misfit(f"holds more than {limits.items:,} values; send fewer", TooLarge)


def _items_in_json(body: bytes) -> int:
    """An upper bound: each value but the first follows a comma, a colon or an opening bracket outside a string."""
    bare = _JSON_STRING.sub(b"", body)
    return 1 + sum(bare.count(mark) for mark in (b",", b":", b"[", b"{"))


def _items_in_msgpack(body: bytes, enough: int) -> int:
    """How many values lie in `body`, counted up to one above `enough`; of bytes that are not msgpack, any number."""
    position, found, end = 0, 0, len(body)
    while position < end and found <= enough:
        lead = body[position]
        width = _LENGTH_WIDTH[lead]
        if width:
            position += int.from_bytes(body[position + 1 : position + 1 + width], "big")
        position += _HEAD_WIDTH[lead]
        found += 1
    return found


# The closing quote is optional, so that every match succeeds at once: else a body of escaped quotes costs the square of its length.
_JSON_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)


def _head_width(lead: int) -> int:
    """Bytes that an item takes besides a payload whose length is written out; elements of arrays and maps are items themselves."""
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
