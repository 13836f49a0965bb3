"""The shape for values without an annotation. It preserves every self-describing type exactly, and rejects instances of other classes."""

from __future__ import annotations

from typing import Any, Final

from taskflow.model.codec import wire as codes
from taskflow.model.codec.datetimes import DATETIMES, read_zoneinfo, shape_of_zoneinfo
from taskflow.model.codec.misfit import Misfit, NeedsAnnotation, too_deep, type_name
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
from taskflow.model.codec.paths import PATHS, read_path
from taskflow.model.codec.scalars import SCALARS, encodable
from taskflow.model.codec.shape import Read, Shape, Write
from taskflow.model.codec.wire import Ext, form_of, marker, marker_of, plain_number, wire_type
from taskflow.model.errors import UnknownType


def write_any(value: Any, levels: int) -> Any:
    write = WRITERS.get(type(value))
    return write(value, levels) if write is not None else _write_rare(value, levels)


def _write_rare(value: Any, levels: int) -> Any:
    """Write a ZoneInfo, or the plain text or number that an instance of a subclass is equal to."""
    kind = type(value)
    if (late := shape_of_zoneinfo(kind)) is not None:
        return late.write(value, levels)
    for base in _PLAIN_BASES:
        if issubclass(kind, base):
            return SCALARS[base].write(value, levels)
    raise NeedsAnnotation(f"{type_name(kind)} cannot be sent by itself")


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
        raise Misfit(f"{wire_type(wire)} cannot be a value without an annotation")
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
    if all(issubclass(type(key), str) for key in value):
        return write_map({str.__str__(key): part for key, part in value.items()}, write_any, inside)
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
    if code == codes.NAMED:
        return _read_named(wire, levels)
    build = _ARRAYS.get(code)
    if build is None:
        raise Misfit(f"{wire_type(wire)} cannot be a value without an annotation")
    return hashed(build, read_items(wire[1:], read_any, inside))


def _read_named(wire: list[Any], levels: int) -> Any:
    name = wire[1] if len(wire) == 3 else None
    read = NAMED_READERS.get(name) if type(name) is str else None
    if read is None:
        raise not_named(wire, "the name of a registered type")
    return read(wire, levels)


def not_named(wire: Any, expected: str) -> Misfit:
    """Return the Misfit for a wire value that is not of the expected registered type. If its name is registered nowhere
    in this process, another version of the code wrote it."""
    form = form_of(wire)
    if type(form) is tuple and form[0] == "type" and form[1] not in NAMED_READERS:
        return Misfit(f"has the type {form[1][:200]!r}, which is not registered here", UnknownType)
    return Misfit(f"expected {expected}, got {wire_type(wire)}")


def without_unknown_names(wire: Any) -> Any:
    """Replace each value of a type that is not registered here by the value that was made of it."""
    if type(wire) is dict:
        return {key: without_unknown_names(part) for key, part in wire.items()}
    if type(wire) is not list:
        return wire
    form = form_of(wire)
    if type(form) is tuple and form[0] == "type" and form[1] not in NAMED_READERS:
        return without_unknown_names(wire[2])
    return [without_unknown_names(part) for part in wire]


def _is_tagged(wire: Any) -> bool:
    """Return True for a tagged value. A tag uses no level, so without this check, tags could be nested in tags without a limit."""
    return type(wire) is list and marker_of(wire) == codes.TAGGED


_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes))
_ARRAYS: Final[dict[int, type[tuple[Any, ...]] | type[set[Any]] | type[frozenset[Any]]]] = {
    codes.TUPLE: tuple,
    codes.SET: set,
    codes.FROZENSET: frozenset,
}
_PLAIN_BASES: Final = (str, int, float)
_LEAVES: Final = {**SCALARS, **DATETIMES, **PATHS}
WRITERS: Final[dict[type, Write]] = {
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
    codes.PATH: read_path,
}
NAMED_READERS: Final[dict[str, Read]] = {}
"""The reader of each registered type, by its name. `WRITERS` has the writers."""
ANY: Final = Shape(
    "Any",
    write_any,
    read_any,
    read_json_any,
    types=frozenset(WRITERS),
    forms=frozenset((*_PLAIN, *_READERS, list, dict, *_ARRAYS, codes.PAIRS)),
    wide=True,
    fits_json=lambda wire: True,
)
