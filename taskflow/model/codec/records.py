"""Shapes for classes with named fields. Instances are written as maps keyed by field name; a `ClassFields` describes each class.

Decoding calls the class, so all checks in its constructor apply. A payload names no class; the annotation decides which one is called. An
unknown field raises UnknownArgument: another version of the class wrote it. A missing required field raises MissingArgument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, TypeVar

import msgspec

from taskflow.model.codec.shape import Form, Misfit, Read, Shape, Write, name_step, one_of, raised, too_deep, unexpected
from taskflow.model.codec.wire import wire_type
from taskflow.model.errors import MissingArgument, UnknownArgument

_C = TypeVar("_C", bound=Callable[[Any, int], Any])


class ClassField(msgspec.Struct, frozen=True):
    """A field of a class, with its uncompiled annotation."""

    name: str
    annotation: Any
    required: bool = True
    """False if the class can fill in the value when it is missing on the wire."""
    metadata: tuple[Any, ...] = ()
    """The metadata of the annotation, if the class has taken it out of there."""


class ClassFields(msgspec.Struct, frozen=True):
    """Describes how to write and read instances of a class with fields."""

    kind: type
    fields: tuple[ClassField, ...]
    make: Callable[[dict[str, Any]], Any]
    """Makes an instance from its fields, which are given by name. It may raise any exception."""
    parts: Callable[[Any], Mapping[str, Any] | None] | None = None
    """Maps an instance to its fields, keyed by name, and any other object to None. If this is not given, the fields are attributes."""
    runs_code: bool = False
    """True if making an instance runs the author's code. Only decoding shows whether that code accepts a value and leaves it unchanged."""
    has_tag: bool = True
    """True if a union can mark values with the name of the class. False for a TypedDict, whose values are plain dicts."""
    forms: frozenset[Form] = frozenset((dict,))
    """The forms of the wire values, including any that `around` adds."""
    around: Callable[[Shape], Shape] | None = None
    """Takes the shape of the fields, and returns a shape that also includes whatever else an instance stores."""
    foreign: Callable[[Any], Shape] | None = None
    """Makes the shape of a field whose annotation only the library behind the class understands."""
    undeclared: Shape | None = None
    """The shape of fields that an instance has but the class does not declare; None if such fields are rejected."""

    def step(self, name: str) -> str:
        """Return the path step that leads to a field, written like code."""
        return f".{name}" if self.has_tag else name_step(name)

    def unknown(self, undeclared: Set[Any]) -> list[Any]:
        """Return those undeclared names that the class does not allow."""
        return [name for name in undeclared if self.undeclared is None or not _is_text(name)]


def record_of(record: ClassFields, promised: Shape, shapes: Mapping[str, Shape]) -> Shape:
    """Return the shape that was promised for a class, given the shapes of its fields, keyed by name."""
    label, known = promised.label, frozenset(shapes)
    required = frozenset(field.name for field in record.fields if field.required)
    write = (
        _mapping_writer(record, record.parts, label, required, {name: shape.write for name, shape in shapes.items()})
        if record.parts
        else _attribute_writer(record.kind, label, [(name, shape.write) for name, shape in shapes.items()])
    )
    shape = msgspec.structs.replace(
        promised,
        write=write,
        read=_reader(record, label, required, {name: shape.read for name, shape in shapes.items()}, lambda shape: shape.read),
        read_json=_reader(
            record, label, required, {name: shape.read_json for name, shape in shapes.items()}, lambda shape: shape.read_json
        ),
        fits_json=lambda wire: type(wire) is dict and required <= wire.keys() and (record.undeclared is not None or wire.keys() <= known),
    )
    return record.around(shape) if record.around else shape


class _Open(dict[str, _C]):
    """Maps the names of declared fields to their converters, and any other name to the converter of undeclared fields."""

    def __init__(self, declared: Mapping[str, _C], undeclared: _C) -> None:
        super().__init__(declared)
        self._undeclared = undeclared

    def __missing__(self, _name: str) -> _C:
        return self._undeclared


def _attribute_writer(kind: type, label: str, writes: list[tuple[str, Write]]) -> Write:
    def write(value: Any, levels: int) -> dict[str, Any]:
        if type(value) is not kind:
            raise unexpected(label, value)
        if levels < 1:
            raise too_deep()
        levels -= 1
        wires: dict[str, Any] = {}
        name = ""
        try:
            for name, write_part in writes:
                wires[name] = write_part(getattr(value, name), levels)
        except Misfit as misfit:
            misfit.within(f".{name}")
            raise
        except AttributeError:
            raise Misfit("has no value").within(f".{name}") from None
        return wires

    return write


def _mapping_writer(
    record: ClassFields, parts_of: Callable[[Any], Mapping[str, Any] | None], label: str, required: Set[str], by_name: dict[str, Write]
) -> Write:
    if record.undeclared is not None:
        by_name = _Open(by_name, record.undeclared.write)

    def write(value: Any, levels: int) -> dict[str, Any]:
        fields = parts_of(value)
        if fields is None:
            raise unexpected(label, value)
        if levels < 1:
            raise too_deep()
        if not fields.keys() >= required:
            raise Misfit(f"lacks {_names(required - fields.keys())}, which {label} requires")
        if unknown := record.unknown(fields.keys() - by_name.keys()):
            raise Misfit(f"has {_names(unknown)}, which {label} does not know")
        wires: dict[str, Any] = {}
        for name, field in fields.items():
            try:
                wires[name] = by_name[name](field, levels - 1)
            except Misfit as misfit:
                misfit.within(record.step(name))
                raise
        return wires

    return write


def _reader(record: ClassFields, label: str, required: Set[str], by_name: dict[str, Read], read_of: Callable[[Shape], Read]) -> Read:
    if record.undeclared is not None:
        by_name = _Open(by_name, read_of(record.undeclared))

    def read(wire: Any, levels: int) -> Any:
        if type(wire) is not dict:
            raise Misfit(f"expected {label}, got {wire_type(wire)}")
        if levels < 1:
            raise too_deep()
        if unknown := record.unknown(wire.keys() - by_name.keys()):
            raise Misfit(f"has {_names(unknown)}, which {label} does not know", UnknownArgument)
        if not wire.keys() >= required:
            raise Misfit(f"lacks {_names(required - wire.keys())}, which {label} requires", MissingArgument)
        fields: dict[str, Any] = {}
        name = ""
        try:
            for name, part in wire.items():
                fields[name] = by_name[name](part, levels - 1)
        except Misfit as misfit:
            misfit.within(record.step(name))
            raise
        try:
            return record.make(fields)
        except Exception as error:
            raise Misfit(f"{label} refuses its fields: {raised(error)}") from error

    return read


def _is_text(name: Any) -> bool:
    return type(name) is str and (name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name))


def _names(names: Iterable[Any]) -> str:
    return one_of(sorted(repr(name)[:60] for name in names))
