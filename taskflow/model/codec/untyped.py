"""The shape for values without an annotation, and the types that the application registers.

An instance of a registered type is an array: the marker NAMED, the type's name, and the result of `encode`. The application maps the name
to a class, so a payload can't make a worker call anything but the `decode` of a registered type.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeGuard, TypeVar
from weakref import WeakSet

from taskflow.model.batch import Failure
from taskflow.model.codec import wire as codes
from taskflow.model.codec.containers import (
    convert_items,
    hashed,
    inside,
    pairs_of,
    read_map,
    read_pairs,
    write_collection,
    write_map,
    write_pairs,
)
from taskflow.model.codec.datetimes import DATETIMES, read_zoneinfo, shape_of_zoneinfo
from taskflow.model.codec.failure import FAILURE
from taskflow.model.codec.scalars import PATHS, SCALARS
from taskflow.model.codec.shape import Convert, Shape, ShapeError, raised, type_name, unexpected
from taskflow.model.codec.wire import Ext, form_of, marker, marker_of, plain_number, wire_type
from taskflow.model.errors import DeclarationError, UnknownType
from taskflow.model.printable import shown


def write_any(value: Any, levels: int) -> Any:
    write = WRITERS.get(type(value))
    if write is not None:
        return write(value, levels)
    for base in _PLAIN_BASES:  # an instance of a subclass is written as the plain text or number that it equals
        if issubclass(type(value), base):
            return SCALARS[base].write(value, levels)
    if (zone := shape_of_zoneinfo(type(value))) is not None:
        return zone.write(value, levels)
    raise ShapeError(f"{type_name(type(value))} cannot be sent as it is", needs_annotation=True)


def read_any(wire: Any, levels: int) -> Any:
    kind = type(wire)
    if kind in _PLAIN:
        return wire
    if kind is list:
        return _read_array(wire, levels)
    if kind is dict:
        return read_map(wire, read_any, inside(levels))
    read = _READERS.get(wire.code) if kind is Ext else None
    if read is None:
        raise ShapeError(f"{wire_type(wire)} cannot be a value without an annotation")
    return read(wire, levels)


def read_json_any(wire: Any, levels: int) -> Any:
    """Read a JSON value as it is, except that each Decimal becomes a float."""
    if type(wire) is list:
        return convert_items(wire, read_json_any, inside(levels))
    if type(wire) is dict:
        return read_map(wire, read_json_any, inside(levels))
    return plain_number(wire)


def _writer(kind: type) -> Convert:
    return lambda value, levels: write_collection(kind, value, write_any, levels)


def write_any_dict(value: dict[Any, Any], levels: int) -> Any:
    within = inside(levels)
    if all(type(key) is str for key in value):
        return write_map(value, write_any, within)
    if all(issubclass(type(key), str) for key in value):
        return write_map({str.__str__(key): part for key, part in value.items()}, write_any, within)
    return write_pairs(value, write_any, write_any, within)


def _read_array(wire: list[Any], levels: int) -> Any:
    within = inside(levels)
    code = marker_of(wire)
    if not code:
        return convert_items(wire, read_any, within)
    if code == codes.PAIRS:
        return read_pairs(pairs_of(wire), read_any, read_any, within)
    # A tag doesn't count as a level of nesting, so a tag directly inside a tag is rejected.
    if code == codes.TAGGED and len(wire) == 3 and not (type(wire[2]) is list and marker_of(wire[2]) == codes.TAGGED):
        return read_any(wire[2], levels)
    if code == codes.MODEL and len(wire) == 4 and type(wire[1]) is dict and type(wire[2]) is dict:
        return read_map({**wire[1], **wire[2]}, read_any, within)
    if code == codes.NAMED:
        read = NAMED_READERS.get(wire[1]) if len(wire) == 3 and type(wire[1]) is str else None
        if read is None:
            raise not_named(wire, "the name of a registered type")
        return read(wire, levels)
    if code == codes.FAILURE:
        return FAILURE.read(wire, levels)
    build = _ARRAYS.get(code)
    if build is None:
        raise ShapeError(f"{wire_type(wire)} cannot be a value without an annotation")
    return hashed(build, convert_items(wire[1:], read_any, within))


def not_named(wire: Any, expected: str) -> ShapeError:
    """Return the ShapeError for a value that is not of the expected registered type: UnknownType if its name is not registered here."""
    if _has_unknown_name(form := form_of(wire)):
        return ShapeError(f"has the type {form[1][:200]!r}, which is not registered here", UnknownType)
    return ShapeError(f"expected {expected}, got {wire_type(wire)}")


def _has_unknown_name(form: object) -> TypeGuard[tuple[str, str]]:
    return type(form) is tuple and form[0] == "type" and form[1] not in NAMED_READERS


def without_unknown_names(wire: Any) -> Any:
    """Replace each value of a type that isn't registered here with what the sender's `encode=` returned."""
    if type(wire) is dict:
        return {key: without_unknown_names(part) for key, part in wire.items()}
    if type(wire) is not list:
        return wire
    return without_unknown_names(wire[2]) if _has_unknown_name(form_of(wire)) else [without_unknown_names(part) for part in wire]


_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes))
_ARRAYS: Final[dict[int, type[tuple[Any, ...]] | type[set[Any]] | type[frozenset[Any]]]] = {
    codes.TUPLE: tuple,
    codes.SET: set,
    codes.FROZENSET: frozenset,
}
_PLAIN_BASES: Final = (str, int, float)
LEAVES: Final[dict[type, Shape]] = {**SCALARS, **DATETIMES, **PATHS, Failure: FAILURE}
WRITERS: Final[dict[type, Convert]] = {
    **{kind: shape.write for kind, shape in LEAVES.items()},
    **{kind: _writer(kind) for kind in (list, tuple, set, frozenset)},
    dict: write_any_dict,
}
_READERS: Final[dict[object, Convert]] = {
    **{form: shape.read for shape in LEAVES.values() for form in shape.forms if type(form) is int},
    codes.ZONEINFO: read_zoneinfo,
}
NAMED_READERS: Final[dict[str, Convert]] = {}
"""The reader of each registered type, by its name. `WRITERS` has the writers, by class."""
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


T = TypeVar("T")

MAX_NAME: Final = 200


class _Registered(NamedTuple):
    kind: type
    name: str
    file: str
    place: str
    shape: Shape


_by_name: dict[str, _Registered] = {}
_without: WeakSet[type] = WeakSet()
"""The classes whose instances a declared job already sends by their fields."""


def register_type(kind: type[T], *, encode: Callable[[T], object], decode: Callable[[Any], T], name: str | None = None) -> None:
    """Register a class so that arguments and results can contain its instances, which taskflow couldn't send otherwise.

    `encode`  returns a value that can be sent without an annotation: plain data, or instances of other registered types
    `decode`  makes an instance from that value. The sender calls it too: encoding the instance again must give the same value
    `name`    identifies the class in stored arguments (default: its module and qualified name). Choose a name that stays valid if the
              class moves

    Register a class next to its definition, before jobs whose annotations mention it are declared. This applies to instances of exactly
    this class, not of subclasses. A worker in which the name is not registered parks the job, as it does with an unknown job.

    Registering again from the same file replaces the registration. Raises DeclarationError if an argument is invalid, if the class or
    the name is registered elsewhere, if the type needs no registration, or if a declared job already sends the class by its fields.
    """
    frame = sys._getframe(1)
    file, place = frame.f_code.co_filename, f"{frame.f_code.co_filename}:{frame.f_lineno}"
    _check(kind, encode, decode)
    name, label = _name_of(kind, name), type_name(kind)
    replaced = [other for other in _by_name.values() if (other.file, type_name(other.kind)) == (file, label)]
    for other in _by_name.values():
        if other not in replaced and (other.name == name or other.kind is kind):
            both = f"{type_name(other.kind)} at {other.place}, and {label} at {place}"
            raise DeclarationError(
                f"two types are registered as {name!r}: {both}; give one of them another name="
                if other.name == name
                else f"{label} is registered twice: at {other.place} and at {place}; remove one of them"
            )
    if kind in _without:
        raise DeclarationError(
            f"register_type({label}) at {place} comes after a job that sends this class by its fields: "
            "register it before the job is declared"
        )
    for other in replaced:
        del _by_name[other.name], NAMED_READERS[other.name], WRITERS[other.kind]
    found = _Registered(kind, name, file, place, _shape(kind, name, encode, decode))
    _by_name[name] = found
    NAMED_READERS[name] = found.shape.read
    WRITERS[kind] = found.shape.write


def registered_shape(kind: type) -> Shape | None:
    """Return the shape of a registered class, or None for any other."""
    return next((each.shape for each in _by_name.values() if each.kind is kind), None)


def record_unregistered(kind: type) -> None:
    """Record that a job sends instances of the class by their fields, so that the class can no longer be registered."""
    _without.add(kind)


def _check(kind: object, encode: object, decode: object) -> None:
    if not isinstance(kind, type):
        raise DeclarationError(f"register_type({shown(kind)}): expected a class")
    if kind is object or (kind in WRITERS and registered_shape(kind) is None):
        raise DeclarationError(f"register_type({type_name(kind)}): this type needs no registration; remove this call")
    for option, function in (("encode", encode), ("decode", decode)):
        if not callable(function):
            raise DeclarationError(f"register_type({type_name(kind)}, {option}={shown(function)}): expected a function")


def _name_of(kind: type, name: object) -> str:
    if name is None:
        return f"{kind.__module__}.{kind.__qualname__}"
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise DeclarationError(f"register_type({type_name(kind)}, name={shown(name)}): expected up to {MAX_NAME} printable characters")
    return str.__str__(name)


def _shape(kind: type, name: str, encode: Callable[[Any], object], decode: Callable[[Any], object]) -> Shape:
    label = type_name(kind)
    head = [marker(codes.NAMED), name]

    def write(value: Any, levels: int) -> list[Any]:
        if type(value) is not kind:
            raise unexpected(label, value)
        within = inside(levels)
        try:
            plain = encode(value)
        except Exception as error:
            raise ShapeError(f"cannot be encoded: encode= of {label} raised {raised(error)}") from error
        return [*head, write_any(plain, within)]

    def made(plain: Any) -> Any:
        try:
            value = decode(plain)
        except Exception as error:
            raise ShapeError(f"cannot be decoded: decode= of {label} raised {raised(error)}") from error
        if type(value) is not kind:
            raise ShapeError(f"cannot be decoded: decode= of {label} returned {type_name(type(value))}")
        return value

    def read(wire: Any, levels: int) -> Any:
        if type(wire) is not list or wire[:2] != head or len(wire) != 3:
            raise not_named(wire, label)
        return made(read_any(wire[2], inside(levels)))

    def read_json(wire: Any, levels: int) -> Any:
        return made(read_json_any(wire, levels - 1))

    return Shape(label, write, read, read_json, types=frozenset((kind,)), forms=frozenset((("type", name),)), fits_json=lambda wire: True)
