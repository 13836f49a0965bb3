"""The shape for values without an annotation. It preserves every self-describing type exactly, and rejects instances of other classes."""

from __future__ import annotations

from typing import Any, Final

from taskflow.model.codec import wire as codes
from taskflow.model.codec.misfit import Misfit, NeedsAnnotation, too_deep, type_name
from taskflow.model.codec.moments import MOMENTS, late_moment, read_zoneinfo
from taskflow.model.codec.parts import (
    hashed,
    pairs_of,
    read_items,
    read_map,
    read_pairs,
    write_items,
    write_map,
    write_pairs,
    write_unordered,
)
from taskflow.model.codec.scalars import SCALARS, encodable
from taskflow.model.codec.shape import Read, Shape, Write
from taskflow.model.codec.wire import Ext, marker, marker_of, named, plain_number


def write_any(value: Any, levels: int) -> Any:
    write = _WRITERS.get(type(value))
    if write is None:
        if (late := late_moment(type(value))) is None:
            raise _refusal(value)
        write = late.write
    return write(value, levels)


def read_any(wire: Any, levels: int) -> Any:
    kind = type(wire)
    if kind in _PLAIN:
        return wire
    if kind is list:
        return _read_array(wire, levels)
    if kind is dict:
        return read_map(wire, read_any, _inside(levels))
    read = _READERS.get(wire.code) if kind is Ext else None
    if read is None:
        raise Misfit(f"{named(wire)} cannot be a value without an annotation")
    return read(wire, levels)


def read_json_any(wire: Any, levels: int) -> Any:
    """Read a JSON value as it is, with each Decimal converted to a float."""
    if type(wire) is list:
        return read_items(wire, read_json_any, _inside(levels))
    if type(wire) is dict:
        return read_map(wire, read_json_any, _inside(levels))
    return plain_number(wire)


def _inside(levels: int) -> int:
    """Return how many levels of nesting are left inside a container. Raises Misfit if the container is already too deep."""
    if levels < 1:
        raise too_deep()
    return levels - 1


def _write_str(value: str, _levels: int) -> str:
    return value if value.isascii() else encodable(value)


def _write_list(value: list[Any], levels: int) -> list[Any]:
    return write_items(value, write_any, _inside(levels), [])


def _write_tuple(value: tuple[Any, ...], levels: int) -> list[Any]:
    return write_items(value, write_any, _inside(levels), [marker(codes.TUPLE)])


def _write_set(value: set[Any], levels: int) -> list[Any]:
    return write_unordered(value, write_any, _inside(levels), [marker(codes.SET)])


def _write_frozenset(value: frozenset[Any], levels: int) -> list[Any]:
    return write_unordered(value, write_any, _inside(levels), [marker(codes.FROZENSET)])


def write_any_dict(value: dict[Any, Any], levels: int) -> Any:
    inside = _inside(levels)
    if all(type(key) is str for key in value):
        return write_map(value, write_any, inside)
    return write_pairs(value, write_any, write_any, inside)


def _read_array(wire: list[Any], levels: int) -> Any:
    inside = _inside(levels)
    code = marker_of(wire)
    if not code:
        return read_items(wire, read_any, inside)
    if code == codes.PAIRS:
        return read_pairs(pairs_of(wire), read_any, read_any, inside)
    if code == codes.TAGGED and len(wire) == 3 and not _is_tagged(wire[2]):
        return read_any(wire[2], levels)
    if code == codes.MODEL and len(wire) == 4 and type(wire[1]) is type(wire[2]) is dict:
        return read_map({**wire[1], **wire[2]}, read_any, inside)
    build = _ARRAYS.get(code)
    if build is None:
        raise Misfit(f"{named(wire)} cannot be a value without an annotation")
    return hashed(build, read_items(wire[1:], read_any, inside))


def _is_tagged(wire: Any) -> bool:
    """Return True for a tagged value. A tag uses no level, so without this check, tags could be nested in tags without a limit."""
    return type(wire) is list and marker_of(wire) == codes.TAGGED


def _refusal(value: Any) -> Misfit:
    return NeedsAnnotation(f"{type_name(type(value))} cannot be sent by itself")


_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes))
_ARRAYS: Final[dict[int, type[tuple[Any, ...]] | type[set[Any]] | type[frozenset[Any]]]] = {
    codes.TUPLE: tuple,
    codes.SET: set,
    codes.FROZENSET: frozenset,
}
_LEAVES: Final = {**SCALARS, **MOMENTS}
_WRITERS: Final[dict[type, Write]] = {
    **{kind: shape.write for kind, shape in _LEAVES.items()},
    str: _write_str,
    list: _write_list,
    tuple: _write_tuple,
    set: _write_set,
    frozenset: _write_frozenset,
    dict: write_any_dict,
}
_READERS: Final[dict[object, Read]] = {
    **{form: shape.read for shape in _LEAVES.values() for form in shape.forms if type(form) is int},
    codes.ZONEINFO: read_zoneinfo,
}
ANY: Final = Shape(
    "Any",
    write_any,
    read_any,
    read_json_any,
    types=frozenset(_WRITERS),
    forms=frozenset((*_PLAIN, *_READERS, list, dict, *_ARRAYS, codes.PAIRS)),
    wide=True,
    fits_json=lambda wire: True,
)
