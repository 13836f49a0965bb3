"""Checks that a value survives decoding, which means that encoding it again gives the same wire value.

Decoding runs code in users' classes: validators, converters, `__post_init__`. Code that is not idempotent would silently change the value
each time: from 3 to 300, then to 30,000.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from taskflow.model.codec import wire as codes
from taskflow.model.codec.misfit import Misfit, field_step, key_step
from taskflow.model.codec.shape import Shape
from taskflow.model.codec.wire import marker_of, pack, unpack


def check_stable(shape: Shape, body: bytes, levels: int) -> None:
    """Raise Misfit if the value in `body` cannot be decoded, or would change when it is encoded again."""
    decoded = shape.read(unpack(body), levels)
    try:
        again = pack(shape.write(decoded, levels))
    except Misfit as misfit:
        raise Misfit(f"{_CHANGES} (now it {misfit.message})").within(misfit.path) from misfit
    if again == body:
        return
    path = next(_differences(_sorted(unpack(body)), _sorted(unpack(again))), None)
    if path is not None:
        raise Misfit(_CHANGES).within(path)


def _differences(one: Any, other: Any) -> Iterator[str]:
    """Yield the paths of all parts in which two wire values differ."""
    if type(one) is not type(other):
        yield ""
    elif type(one) is dict and one.keys() == other.keys():
        for key in one:
            step = field_step(key) if key.isidentifier() else key_step(key)
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
