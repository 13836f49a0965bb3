"""Types that the application registers. A value is written as an array: the marker NAMED, the type's name, and what `encode` makes of it.

The bytes contain only the name of the type. The application connects it with a class, so a payload cannot make a worker call anything but
the `decode` of a registered type.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar
from weakref import WeakSet

import msgspec

from taskflow.model.codec import wire as codes
from taskflow.model.codec.misfit import Misfit, raised, too_deep, type_name, unexpected
from taskflow.model.codec.shape import Shape
from taskflow.model.codec.untyped import NAMED_READERS, WRITERS, not_named, read_any, read_json_any, write_any
from taskflow.model.codec.wire import marker
from taskflow.model.errors import DeclarationError
from taskflow.model.printable import shown

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
