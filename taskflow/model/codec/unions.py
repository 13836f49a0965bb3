"""Shapes for annotations that give a choice: Enum, Flag, Literal, and unions.

A union chooses a member by the exact type of the value, or by the form of the wire value. If two members look alike on the wire, instances
are written as arrays: the marker TAGGED, the class name, and the value. TypedDicts are told apart by their keys. An ambiguous union is
rejected when it is declared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from enum import Enum, Flag
from functools import reduce
from itertools import combinations
from operator import or_
from typing import Any

import msgspec

from taskflow.model.codec import wire as codes
from taskflow.model.codec.scalars import NONE, SCALARS, read_int, write_int
from taskflow.model.codec.shape import Convert, DictKeys, Shape, ShapeError, Unsupported, one_of, type_name, unexpected
from taskflow.model.codec.untyped import not_named, read_json_any, write_any
from taskflow.model.codec.wire import form_of, marker, pack, plain_number, wire_type
from taskflow.model.errors import UnknownArgument

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
            raise ShapeError(f"expected {expected}")
        return wires[value]

    def read(wire: Any, _levels: int) -> Any:
        key = _key(wire)
        if key not in by_wire:
            raise ShapeError(f"expected {expected}")
        return by_wire[key]

    def read_json(wire: Any, levels: int) -> Any:
        key = _key(write_any(read_json_any(wire, _LEVELS), _LEVELS))
        if key in by_wire:
            return by_wire[key]
        if type(wire) is str and wire in by_text:  # JSON cannot express some values, such as a date
            return by_text[wire]
        raise ShapeError(f"expected {expected}")

    forms = frozenset(form_of(wire) for wire in wires.values())
    return Shape(label, write, read, read_json, types=frozenset((kind,)), forms=forms, tag=kind.__name__ if issubclass(kind, Enum) else "")


def _flag_of(kind: type[Flag]) -> Shape:
    label = type_name(kind)
    known = reduce(or_, (member.value for member in kind.__members__.values()), 0)

    def checked(bits: int) -> int:
        if bits & ~known:  # a Flag caches every combination of bits, so hostile payloads could exhaust the memory
            raise ShapeError(f"expected {label}, got unknown bits")
        return bits

    def write(value: Any, levels: int) -> Any:
        if type(value) is not kind:
            raise unexpected(label, value)
        return write_int(checked(value.value), levels)

    def read(wire: Any, levels: int) -> Flag:
        if form_of(wire) not in _INTEGERS:
            raise ShapeError(f"expected {label} as an int, got {wire_type(wire)}")
        try:
            return kind(checked(read_int(wire, levels)))
        except ValueError:
            raise ShapeError(f"expected {label}, got an unknown combination of bits") from None

    return Shape(label, write, read, read, types=frozenset((kind,)), forms=_INTEGERS, tag=kind.__name__)


_INTEGERS = SCALARS[int].forms


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _wire_of(label: str, value: Any) -> Any:
    try:
        return write_any(_plain(value), _LEVELS)
    except ShapeError as error:
        raise Unsupported(f"{label} has a value that cannot be sent ({error.message}); give its members plain values") from None


def _key(wire: Any) -> Hashable:
    """Return a dict key that is equal only for equal wire values of the same type, so that 1, True and 1.0 differ."""
    kind = type(wire)
    return (kind, wire) if kind in (str, int, bool, bytes, type(None)) else pack(wire)


def _shown(value: Any) -> str:
    return f"{type(value).__name__}.{value.name}" if isinstance(value, Enum) else repr(value)


# --- TypedDicts, which are told apart by their keys ---------------------------------------------------------------


def _with_dicts_joined(members: Sequence[Shape]) -> list[Shape]:
    """Return the members, with all TypedDicts joined into one. Raises Unsupported if keys or Literals can't tell two of them apart."""
    keyed = [(member, member.keys) for member in members if member.keys is not None]
    if len(keyed) < 2:
        return list(members)
    for (one, its), (other, others) in combinations(keyed, 2):
        shared = [(tag, others.tags[name].shape) for name, tag in its.tags.items() if name in others.tags]
        has_another_tag = any(not any(_accepts(shape.write, value) for value in tag.values) for tag, shape in shared)
        if its.required <= others.known and others.required <= its.known and not has_another_tag:
            raise Unsupported(
                f"the union of {one.label} and {other.label} is ambiguous: a dict may fit both; give each a required key whose Literal "
                "differs, or make each a dataclass, which is sent with its name"
            )
    joined = _joined(keyed)
    return [joined if member is keyed[0][0] else member for member in members if member.keys is None or member is keyed[0][0]]


def _accepts(convert: Convert, value: Any) -> bool:
    with suppress(ShapeError):
        convert(value, 1)
        return True
    return False


def _joined(keyed: Sequence[tuple[Shape, DictKeys]]) -> Shape:
    """Return a shape that chooses among TypedDicts. A dict that fits none is converted as the nearest one, to get its error."""
    label = " | ".join(member.label for member, _ in keyed)

    def converter(of: Callable[[Shape], Convert], got: Callable[[Any], str]) -> Convert:
        tests = [(member, keys, [(name, of(tag.shape)) for name, tag in keys.tags.items()]) for member, keys in keyed]

        def convert(fields: Any, levels: int) -> Any:
            if not isinstance(fields, dict):
                raise ShapeError(f"expected {label}, got {got(fields)}")
            names = fields.keys()
            left = [
                (member, keys) for member, keys, tags in tests if all(name in names and _accepts(test, fields[name]) for name, test in tags)
            ]
            for fitting in (
                [member for member, keys in left if keys.required <= names <= keys.known],
                [member for member, _ in left],
                [member for member, keys in left if keys.required <= names],
                [member for member, keys in left if names <= keys.known],
            ):
                if len(fitting) == 1:
                    return of(fitting[0])(fields, levels)
            raise ShapeError(f"expected {label}, got a dict that fits none of them", UnknownArgument)

        return convert

    return Shape(
        label,
        converter(lambda shape: shape.write, lambda value: type_name(type(value))),
        converter(lambda shape: shape.read, wire_type),
        converter(lambda shape: shape.read_json, wire_type),
        types=frozenset((dict,)),
        forms=frozenset((dict,)),
        fits_json=lambda wire: any(member.fits_json(wire) for member, _ in keyed),
    )


# --- unions -------------------------------------------------------------------------------------------------------


def union_of(members: Sequence[Shape]) -> Shape:
    """Return the shape of a union of `members`, none of which is itself a union. Raises Unsupported if the union is ambiguous."""
    told_apart = _told_apart(_with_dicts_joined(_without_covered(members)))
    if len(told_apart) == 1:
        return told_apart[0]
    if len(told_apart) == 2 and NONE in told_apart:
        [member] = [each for each in told_apart if each is not NONE]
        return _optional(member)
    label = " | ".join(member.label for member in told_apart)
    return Shape(
        label,
        _writer(label, told_apart),
        _reader(label, told_apart),
        _json_reader(label, told_apart),
        types=frozenset().union(*(member.types for member in told_apart)),
        forms=frozenset().union(*(member.forms for member in told_apart)),
    )


def _without_covered(members: Sequence[Shape]) -> list[Shape]:
    """If `Any` is among the members, leave out the members that it covers. Classes, and members that may contain classes, are kept."""
    wide = next((member for member in members if member.wide), None)
    if wide is None:
        return list(members)
    return [wide, *(member for member in members if member.tag or not (member.types <= _LEAVES or member is wide))]


_LEAVES = frozenset((type(None), bool, int, float, str, bytes))


def _told_apart(members: list[Shape]) -> list[Shape]:
    """Return the members, tagged where necessary. Raises Unsupported if even tags cannot distinguish them."""
    told_apart = [
        _tagged(member) if member.tag and any(member.forms & other.forms for other in members if other is not member) else member
        for member in members
    ]
    for one, other in combinations(told_apart, 2):
        if one.forms & other.forms:
            why = f"both are sent with the name {one.tag}; give one of the classes another name"
            if not one.tag or one.tag != other.tag:
                why = (
                    "their values look alike when sent (a TypedDict is sent as a plain dict); make each a dataclass, "
                    "which is sent with its name, or use one type that covers both"
                )
            raise Unsupported(f"the union of {one.label} and {other.label} is ambiguous: {why}")
    return told_apart


def _tagged(member: Shape) -> Shape:
    """Return a shape that writes the member's values together with the name of their class."""
    return msgspec.structs.replace(
        member,
        write=lambda value, levels: [marker(codes.TAGGED), member.tag, member.write(value, levels)],
        read=lambda wire, levels: member.read(wire[2], levels),
        forms=frozenset((("tag", member.tag),)),
    )


def _optional(member: Shape) -> Shape:
    """Return the shape of `member | None`, the most common union, which needs no table of members."""

    def around(convert: Convert) -> Convert:
        return lambda value, levels: None if value is None else convert(value, levels)

    return msgspec.structs.replace(
        member,
        label=f"{member.label} | None",
        write=around(member.write),
        read=around(member.read),
        read_json=around(member.read_json),
        types=member.types | NONE.types,
        forms=member.forms | NONE.forms,
        tag="",
    )


def _writer(label: str, members: Sequence[Shape]) -> Convert:
    by_type = {kind: member.write for member in members for kind in member.types}
    wide = next((member for member in members if member.wide), None)
    if float in by_type:
        by_type.setdefault(int, by_type[float])

    def write(value: Any, levels: int) -> Any:
        chosen = by_type.get(type(value))
        if chosen is None:  # an instance of a subclass
            bases = (write_one for kind, write_one in by_type.items() if isinstance(value, kind) and type(value) is not bool)
            chosen = next(bases, wide.write if wide is not None else None)
            if chosen is None:
                raise unexpected(label, value)
        return chosen(value, levels)

    return write


def _reader(label: str, members: Sequence[Shape]) -> Convert:
    by_form = {form: member.read for member in members for form in member.forms}
    wide = next((member for member in members if member.wide), None)
    if float in by_form:
        by_form.setdefault(int, by_form[float])

    def read(wire: Any, levels: int) -> Any:
        form = form_of(wire)
        chosen = by_form.get(form)
        if chosen is None:
            if type(form) is not tuple or form[0] != "type":
                raise ShapeError(f"expected {label}, got {wire_type(wire)}")
            if wide is None:
                raise not_named(wire, label)
            chosen = wide.read
        return chosen(wire, levels)

    return read


def _json_reader(label: str, members: Sequence[Shape]) -> Convert:
    """Return a reader. For arrays and objects, it uses the first member that seems to fit: trying all could take 2**depth steps."""

    def read_json(wire: Any, levels: int) -> Any:
        if type(wire) in (list, dict):
            member = next((each for each in members if each.fits_json(wire)), None)
            if member is not None:
                return member.read_json(wire, levels)
            raise ShapeError(f"expected {label}, got {type_name(type(wire))}")
        own_type = type(plain_number(wire))
        for member in sorted(members, key=lambda each: own_type not in each.types):
            with suppress(ShapeError):
                return member.read_json(wire, levels)
        raise ShapeError(f"expected {label}, got {wire_type(wire)}")

    return read_json
