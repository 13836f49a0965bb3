"""Joins the TypedDicts of a union into one shape, which chooses among them by the keys of a dict.

Two TypedDicts can be told apart if no dict fits both. This is so if one requires a key that the other does not have, or if both require a
key whose Literals have no value in common. A dict that fits none of them goes to the one that its tags name, or else to the nearest one,
so that the error says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from taskflow.model.codec.misfit import Misfit, unexpected
from taskflow.model.codec.shape import DictKeys, Read, Shape, Tag, Unsupported
from taskflow.model.codec.wire import wire_type
from taskflow.model.errors import UnknownArgument


def with_dicts_joined(members: Sequence[Shape]) -> list[Shape]:
    """Return the members with all TypedDicts joined into one, if there are several. Raises Unsupported if they cannot be told apart."""
    keyed = [(member, member.keys) for member in members if member.keys is not None]
    if len(keyed) < 2:
        return list(members)
    for (one, its_keys), (other, other_keys) in combinations(keyed, 2):
        if not (_needs_another(its_keys, other_keys) or _needs_another(other_keys, its_keys) or _has_another_tag(its_keys, other_keys)):
            raise Unsupported(
                f"the union of {one.label} and {other.label} is ambiguous: a dict may fit both; give each a required key whose Literal "
                "differs, or make each a dataclass, which is sent with its name"
            )
    joined = _joined(keyed)
    return [joined if member is keyed[0][0] else member for member in members if member.keys is None or member is keyed[0][0]]


def _needs_another(one: DictKeys, other: DictKeys) -> bool:
    return not one.required <= other.known


def _has_another_tag(one: DictKeys, other: DictKeys) -> bool:
    return any(
        not any(_accepts(other.tags[name].shape.write, value) for value in tag.values)
        for name, tag in one.tags.items()
        if name in other.tags
    )


def _accepts(convert: Callable[[Any, int], Any], value: Any) -> bool:
    try:
        convert(value, 1)
    except Misfit:
        return False
    return True


def _joined(keyed: Sequence[tuple[Shape, DictKeys]]) -> Shape:
    label = " | ".join(member.label for member, _ in keyed)
    choose = _chooser(label, keyed, lambda tag: tag.shape.write)

    def write(value: Any, levels: int) -> Any:
        if not isinstance(value, dict):
            raise unexpected(label, value)
        return choose(value).write(value, levels)

    def reader(convert: Callable[[Shape], Read]) -> Read:
        choose = _chooser(label, keyed, lambda tag: convert(tag.shape))

        def read(wire: Any, levels: int) -> Any:
            if type(wire) is not dict:
                raise Misfit(f"expected {label}, got {wire_type(wire)}")
            return convert(choose(wire))(wire, levels)

        return read

    return Shape(
        label,
        write,
        reader(lambda shape: shape.read),
        reader(lambda shape: shape.read_json),
        types=frozenset((dict,)),
        forms=frozenset((dict,)),
        fits_json=lambda wire: any(member.fits_json(wire) for member, _ in keyed),
    )


def _chooser(
    label: str, keyed: Sequence[tuple[Shape, DictKeys]], convert_of: Callable[[Tag], Callable[[Any, int], Any]]
) -> Callable[[dict[Any, Any]], Shape]:
    tests = [(member, keys, [(name, convert_of(tag)) for name, tag in keys.tags.items()]) for member, keys in keyed]

    def choose(fields: dict[Any, Any]) -> Shape:
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
                return fitting[0]
        raise Misfit(f"expected {label}, got a dict that fits none of them", UnknownArgument)

    return choose
