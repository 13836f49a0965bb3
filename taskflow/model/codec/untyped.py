"""The shape for values without an annotation, and the types that the application registers.

Every self-describing type is preserved exactly. Instances of other classes are rejected, unless their class is registered. An instance of a
registered type is an array: the marker NAMED, the type's name, and what `encode` makes of it. The application connects the name with a
class, so a payload cannot make a worker call anything but the `decode` of a registered type.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar
from weakref import WeakSet

import msgspec

from taskflow.model.codec import wire as codes
from taskflow.model.codec.containers import (
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
from taskflow.model.codec.datetimes import DATETIMES, read_zoneinfo, shape_of_zoneinfo
from taskflow.model.codec.scalars import PATHS, SCALARS, encodable, read_path
from taskflow.model.codec.shape import Misfit, NeedsAnnotation, Read, Shape, Write, raised, too_deep, type_name, unexpected
from taskflow.model.codec.wire import Ext, form_of, marker, marker_of, plain_number, wire_type
from taskflow.model.errors import DeclarationError, UnknownType
from taskflow.model.printable import shown


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


T = TypeVar("T")

LONGEST_NAME: Final = 200


class _Registered(msgspec.Struct, frozen=True):
    kind: type
    name: str
    file: str
    line: int
    shape: Shape

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def owner(self) -> tuple[str, str]:
        return (self.file, type_name(self.kind))


_by_name: dict[str, _Registered] = {}
_without: WeakSet[type] = WeakSet()
"""The classes whose instances some job already sends in another way."""


def register_type(kind: type[T], *, encode: Callable[[T], object], decode: Callable[[Any], T], name: str | None = None) -> None:
    """Let arguments and results contain instances of a class that taskflow cannot send by itself.

    `encode`  makes a value that can be sent without an annotation: plain data, or instances of other registered types
    `decode`  makes an instance from that value. It is also called where the value is sent: encoding the instance again must give the same
    `name`    stands for the class in stored arguments (default: its module and qualified name). Give one that outlives a move of the class

    Register a class beside its definition, before jobs whose annotations mention it are declared. Only instances of exactly this class are
    concerned, not those of subclasses. A worker in which the name is not registered parks the job, as it does with an unknown job.

    Registering again from the same file replaces the registration. Raises DeclarationError if the class or the name is already registered
    elsewhere, and for a type that needs no registration.
    """
    code, line = sys._getframe(1).f_code, sys._getframe(1).f_lineno
    _check(kind, encode, decode)
    name = _name_of(kind, name)
    found = _Registered(kind, name, code.co_filename, line, _shape(kind, name, encode, decode))
    replaced = [standing for standing in _by_name.values() if standing.owner == found.owner]
    for standing in _by_name.values():
        if standing not in replaced:
            _refuse_two(standing, found)
    if kind in _without:
        raise DeclarationError(
            f"register_type({type_name(kind)}) at {found.place} comes after a job that sends this class by its fields: "
            "register it before the job is declared"
        )
    for standing in replaced:
        del _by_name[standing.name], NAMED_READERS[standing.name], WRITERS[standing.kind]
    _by_name[name] = found
    NAMED_READERS[name] = found.shape.read
    WRITERS[kind] = found.shape.write


def _refuse_two(standing: _Registered, found: _Registered) -> None:
    if standing.name == found.name:
        raise DeclarationError(
            f"two types are registered as {found.name!r}: {type_name(standing.kind)} at {standing.place}, and {type_name(found.kind)} at "
            f"{found.place}; give one of them another name="
        )
    if standing.kind is found.kind:
        raise DeclarationError(f"{type_name(found.kind)} is registered twice: at {standing.place} and at {found.place}; remove one of them")


def registered_shape(kind: type) -> Shape | None:
    """Return the shape of a registered class, or None for any other."""
    return next((each.shape for each in _by_name.values() if each.kind is kind), None)


def note_unregistered(kind: type) -> None:
    """Note that a job sends instances of the class by their fields, so that it cannot be registered any more."""
    _without.add(kind)


def _check(kind: object, encode: object, decode: object) -> None:
    if not isinstance(kind, type):
        raise DeclarationError(f"register_type({shown(kind)}): expected a class")
    if kind is object or (kind in WRITERS and all(each.kind is not kind for each in _by_name.values())):
        raise DeclarationError(f"register_type({type_name(kind)}): this type needs no registration; remove this call")
    for option, function in (("encode", encode), ("decode", decode)):
        if not callable(function):
            raise DeclarationError(f"register_type({type_name(kind)}, {option}={shown(function)}): expected a function")


def _name_of(kind: type, name: object) -> str:
    if name is None:
        return f"{kind.__module__}.{kind.__qualname__}"
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise DeclarationError(f"register_type({type_name(kind)}, name={shown(name)}): expected up to {LONGEST_NAME} printable characters")
    return str.__str__(name)


def _shape(kind: type, name: str, encode: Callable[[Any], object], decode: Callable[[Any], object]) -> Shape:
    label = type_name(kind)
    head = [marker(codes.NAMED), name]

    def write(value: Any, levels: int) -> list[Any]:
        if type(value) is not kind:
            raise unexpected(label, value)
        if levels < 1:
            raise too_deep()
        try:
            plain = encode(value)
        except Exception as error:
            raise Misfit(f"cannot be encoded: encode= of {label} raised {raised(error)}") from error
        return [*head, write_any(plain, levels - 1)]

    def made(plain: Any) -> Any:
        try:
            value = decode(plain)
        except Exception as error:
            raise Misfit(f"cannot be decoded: decode= of {label} raised {raised(error)}") from error
        if type(value) is not kind:
            raise Misfit(f"cannot be decoded: decode= of {label} returned {type_name(type(value))}")
        return value

    def read(wire: Any, levels: int) -> Any:
        if type(wire) is not list or wire[:2] != head or len(wire) != 3:
            raise not_named(wire, label)
        if levels < 1:
            raise too_deep()
        return made(read_any(wire[2], levels - 1))

    def read_json(wire: Any, levels: int) -> Any:
        return made(read_json_any(wire, levels - 1))

    return Shape(label, write, read, read_json, types=frozenset((kind,)), forms=frozenset((("type", name),)), fits_json=lambda wire: True)
