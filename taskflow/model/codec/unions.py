"""Shapes for unions. A union chooses the member that can write a value or read a wire value, without trying each in turn.

The choice depends on the exact type of the value, or on the form of the wire value. If two members look alike on the wire (two dataclasses,
or an Enum and str), each instance is written as an array that begins with the marker TAGGED and the name of the class. If even that is not
enough, the union is ambiguous, and is rejected when it is declared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import msgspec

from taskflow.model.codec import wire as codes
from taskflow.model.codec.dict_unions import with_dicts_joined
from taskflow.model.codec.misfit import Misfit, type_name, unexpected
from taskflow.model.codec.scalars import NONE
from taskflow.model.codec.shape import Read, Shape, Unsupported, Write
from taskflow.model.codec.untyped import not_named
from taskflow.model.codec.wire import form_of, marker, plain_number, wire_type


def union_of(members: Sequence[Shape]) -> Shape:
    """Return the shape of a union of `members`, none of which is itself a union. Raises Unsupported if the union is ambiguous."""
    told_apart = _told_apart(with_dicts_joined(_without_covered(members)))
    if len(told_apart) == 1:
        return told_apart[0]
    if len(told_apart) == 2 and NONE in told_apart:
        [member] = [each for each in told_apart if each is not NONE]
        return _optional(member)
    return _union(told_apart)


def _without_covered(members: Sequence[Shape]) -> list[Shape]:
    """Leave out the members that `Any` covers, if `Any` is a member. Classes, and members that may contain one, are kept."""
    wide = next((member for member in members if member.wide), None)
    if wide is None:
        return list(members)
    return [wide, *(member for member in members if member.tag or not (member.types <= _LEAVES or member is wide))]


_LEAVES = frozenset((type(None), bool, int, float, str, bytes))


def _told_apart(members: list[Shape]) -> list[Shape]:
    """Return the members, tagged where necessary. Raises Unsupported if even tags cannot distinguish them."""
    told_apart = [_tagged(member) if member.tag and _looks_like_another(member, members) else member for member in members]
    for one, other in combinations(told_apart, 2):
        if one.forms & other.forms:
            raise Unsupported(f"the union of {one.label} and {other.label} is ambiguous: {_why_ambiguous(one, other)}")
    return told_apart


def _why_ambiguous(one: Shape, other: Shape) -> str:
    if one.tag and one.tag == other.tag:
        return f"both are sent with the name {one.tag}; give one of the classes another name"
    return (
        "their values look alike when sent (a TypedDict is sent as a plain dict); make each a dataclass, "
        "which is sent with its name, or use one type that covers both"
    )


def _looks_like_another(member: Shape, members: list[Shape]) -> bool:
    return any(member.forms & other.forms for other in members if other is not member)


def _tagged(member: Shape) -> Shape:
    """Return a shape that writes the member's values together with the name of their class."""

    def write(value: Any, levels: int) -> list[Any]:
        return [marker(codes.TAGGED), member.tag, member.write(value, levels)]

    def read(wire: Any, levels: int) -> Any:
        return member.read(wire[2], levels)

    return msgspec.structs.replace(member, write=write, read=read, forms=frozenset((("tag", member.tag),)))


def _optional(member: Shape) -> Shape:
    """Return the shape of `member | None`, which is the most frequent union. It needs no table of members."""

    def around(convert: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
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


def _union(members: Sequence[Shape]) -> Shape:
    label = " | ".join(member.label for member in members)
    return Shape(
        label,
        _writer(label, members),
        _reader(label, members),
        _json_reader(label, members),
        types=frozenset().union(*(member.types for member in members)),
        forms=frozenset().union(*(member.forms for member in members)),
    )


def _writer(label: str, members: Sequence[Shape]) -> Write:
    by_type = {kind: member.write for member in members for kind in member.types}
    wide = next((member for member in members if member.wide), None)
    if float in by_type:
        by_type.setdefault(int, by_type[float])

    def write(value: Any, levels: int) -> Any:
        chosen = by_type.get(type(value)) or write_of_base(value)
        return chosen(value, levels)

    def write_of_base(value: Any) -> Write:
        """Return the writer for an instance of a subclass: the writer of the first member that matches."""
        for kind, chosen in by_type.items():
            if isinstance(value, kind) and type(value) is not bool:
                return chosen
        if wide is not None:
            return wide.write
        raise unexpected(label, value)

    return write


def _reader(label: str, members: Sequence[Shape]) -> Read:
    by_form = {form: member.read for member in members for form in member.forms}
    wide = next((member for member in members if member.wide), None)
    if float in by_form:
        by_form.setdefault(int, by_form[float])

    def read(wire: Any, levels: int) -> Any:
        form = form_of(wire)
        chosen = by_form.get(form)
        if chosen is None:
            if type(form) is not tuple or form[0] != "type":
                raise Misfit(f"expected {label}, got {wire_type(wire)}")
            if wide is None:
                raise not_named(wire, label)
            chosen = wide.read
        return chosen(wire, levels)

    return read


def _json_reader(label: str, members: Sequence[Shape]) -> Read:
    """Return a reader for JSON. An array or object is read as the first member that it appears to fit.

    Trying each member in turn could take 2**depth steps on hostile input."""

    def read_parts(wire: Any, levels: int) -> Any:
        for member in members:
            if member.fits_json(wire):
                return member.read_json(wire, levels)
        raise Misfit(f"expected {label}, got {type_name(type(wire))}")

    def read_json(wire: Any, levels: int) -> Any:
        if type(wire) in (list, dict):
            return read_parts(wire, levels)
        own_type = type(plain_number(wire))
        for member in sorted(members, key=lambda each: own_type not in each.types):
            try:
                return member.read_json(wire, levels)
            except Misfit:
                continue
        raise Misfit(f"expected {label}, got {wire_type(wire)}")

    return read_json
