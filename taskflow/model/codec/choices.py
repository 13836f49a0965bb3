"""Shapes for annotations that list their values: Enum, Flag and Literal."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum, Flag
from functools import reduce
from operator import or_
from typing import Any

from taskflow.model.codec.misfit import Misfit, one_of, type_name, unexpected
from taskflow.model.codec.scalars import NONE, SCALARS, read_int, write_int
from taskflow.model.codec.shape import Shape, Unsupported
from taskflow.model.codec.untyped import read_json_any, write_any
from taskflow.model.codec.wire import form_of, pack, wire_type

_LEVELS = 8
"""How deeply a value of an Enum or a Literal may be nested."""


def enum_of(kind: type[Enum]) -> Shape:
    """Return the shape of an Enum, whose members are sent as their values. Raises Unsupported if a value cannot be sent."""
    if issubclass(kind, Flag):
        return _flag_of(kind)
    return _choice(type_name(kind), kind, list(kind.__members__.values()))


def literals_of(values: Sequence[Any]) -> list[Shape]:
    """Return one shape for each type among the values of a `Literal[...]`. Their union is the whole Literal."""
    by_type: dict[type, list[Any]] = {}
    for value in values:
        by_type.setdefault(type(value), []).append(value)
    label = f"Literal[{', '.join(_shown(value) for value in values)}]"
    return [NONE if kind is type(None) else _choice(label, kind, group) for kind, group in by_type.items()]


def _choice(label: str, kind: type, values: Sequence[Any]) -> Shape:
    """Return a shape that accepts only `values`, which all have exactly the type `kind`. An Enum member is sent as its `.value`."""
    wires = {value: _wire_of(label, value) for value in values}
    by_wire = {_key(wire): value for value, wire in wires.items()}
    by_text = {str(_plain(value)): value for value in values}
    expected = f"one of {one_of([_shown(value) for value in values])}"

    def write(value: Any, _levels: int) -> Any:
        if type(value) is not kind:
            raise unexpected(label, value)
        if value not in wires:
            raise Misfit(f"expected {expected}")
        return wires[value]

    def read(wire: Any, _levels: int) -> Any:
        key = _key(wire)
        if key not in by_wire:
            raise Misfit(f"expected {expected}")
        return by_wire[key]

    def read_json(wire: Any, levels: int) -> Any:
        """Read one of the values. JSON cannot express some of them, such as a date; these are recognized by their text."""
        key = _key(write_any(read_json_any(wire, _LEVELS), _LEVELS))
        if key in by_wire:
            return by_wire[key]
        if type(wire) is str and wire in by_text:
            return by_text[wire]
        raise Misfit(f"expected {expected}")

    forms = frozenset(form_of(wire) for wire in wires.values())
    return Shape(label, write, read, read_json, types=frozenset((kind,)), forms=forms, tag=kind.__name__ if issubclass(kind, Enum) else "")


def _flag_of(kind: type[Flag]) -> Shape:
    label = type_name(kind)
    known = reduce(or_, (member.value for member in kind.__members__.values()), 0)

    def checked(bits: int) -> int:
        """Return the bits unchanged. Raises Misfit if any of them has no name.

        A Flag caches every combination of bits, so hostile payloads could otherwise exhaust the memory.
        """
        if bits & ~known:
            raise Misfit(f"expected {label}, got unknown bits")
        return bits

    def write(value: Any, levels: int) -> Any:
        if type(value) is not kind:
            raise unexpected(label, value)
        return write_int(checked(value.value), levels)

    def read(wire: Any, levels: int) -> Flag:
        if form_of(wire) not in _INTEGERS:
            raise Misfit(f"expected {label} as an int, got {wire_type(wire)}")
        try:
            return kind(checked(read_int(wire, levels)))
        except ValueError:
            raise Misfit(f"expected {label}, got an unknown combination of bits") from None

    return Shape(label, write, read, read, types=frozenset((kind,)), forms=_INTEGERS, tag=kind.__name__)


_INTEGERS = SCALARS[int].forms


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _wire_of(label: str, value: Any) -> Any:
    try:
        return write_any(_plain(value), _LEVELS)
    except Misfit as misfit:
        raise Unsupported(f"{label} has a value that cannot be sent ({misfit.message}); give its members plain values") from None


def _key(wire: Any) -> Hashable:
    """Return a dict key that is equal only for equal wire values of the same type, so that 1, True and 1.0 differ."""
    kind = type(wire)
    return (kind, wire) if kind in (str, int, bool, bytes, type(None)) else pack(wire)


def _shown(value: Any) -> str:
    return f"{type(value).__name__}.{value.name}" if isinstance(value, Enum) else repr(value)
