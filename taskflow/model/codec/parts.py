"""Encodes and decodes the parts of containers. If a part does not fit, its position is added to the path of the Misfit.

`levels` is how many more levels of nesting are allowed *inside* the container. A mapping whose keys are all encoded as str becomes a
msgpack map. Any other becomes an array: the marker PAIRS, then keys and values in turn, so that keys of any type are encoded exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from taskflow.model.codec import wire as codes
from taskflow.model.codec.misfit import Misfit, key_step
from taskflow.model.codec.scalars import encodable
from taskflow.model.codec.shape import Read, Write
from taskflow.model.codec.wire import marker, marker_of, wire_type

_T = TypeVar("_T")
LARGE = 1_000
"""Collections with at most this many keys are not checked for hash collisions.
Even if all hashes are equal, half a million comparisons do no harm."""
ALIKE = 100


def write_items(values: Iterable[Any], write: Write, levels: int, wires: list[Any]) -> list[Any]:
    """Write the items of an ordered collection, appending them to `wires`."""
    offset = len(wires)
    try:
        for value in values:
            wires.append(write(value, levels))  # noqa: PERF401  # the length of the list shows where it failed
    except Misfit as misfit:
        misfit.within(f"[{len(wires) - offset}]")
        raise
    return wires


def read_items(wires: Iterable[Any], read: Read, levels: int) -> list[Any]:
    values: list[Any] = []
    try:
        for wire in wires:
            values.append(read(wire, levels))  # noqa: PERF401  # the length of the list shows where it failed
    except Misfit as misfit:
        misfit.within(f"[{len(values)}]")
        raise
    return values


def write_unordered(values: Iterable[Any], write: Write, levels: int, wires: list[Any]) -> list[Any]:
    """Write the items of a set, appending them to `wires`. They have no index, so a Misfit's path cannot identify the item."""
    try:
        for value in values:
            wires.append(write(value, levels))  # noqa: PERF401  # the length of the list shows where it failed
    except Misfit as misfit:
        misfit.within(".<item>")
        raise
    return wires


def write_map(mapping: Mapping[Any, Any], write: Write, levels: int) -> dict[str, Any]:
    """Write a mapping with only str keys as a msgpack map."""
    wires: dict[str, Any] = {}
    for key, value in mapping.items():
        try:
            wires[key if key.isascii() else encodable(key)] = write(value, levels)
        except Misfit as misfit:
            misfit.within(key_step(key))
            raise
    return wires


def read_map(wires: Mapping[str, Any], read: Read, levels: int, step_to: Callable[[str], str] = key_step) -> dict[str, Any]:
    """Read a msgpack map. A key that is not a str is rejected, because taskflow never writes one."""
    values: dict[str, Any] = {}
    for key, wire in wires.items():
        if type(key) is not str:
            raise Misfit(f"expected the key of a map to be str, got {wire_type(key)}")
        try:
            values[key] = read(wire, levels)
        except Misfit as misfit:
            misfit.within(step_to(key))
            raise
    return values


def write_pairs(mapping: Mapping[Any, Any], write_key: Write, write: Write, levels: int) -> list[Any]:
    wires: list[Any] = [marker(codes.PAIRS)]
    for key, value in mapping.items():
        wires.append(_keyed(write_key, key, levels, ".<key>"))
        wires.append(_keyed(write, value, levels, key_step(key)))
    return wires


def read_pairs(wires: Iterable[tuple[Any, Any]], read_key: Read, read: Read, levels: int) -> dict[Any, Any]:
    pairs: list[tuple[Any, Any]] = []
    for wire_key, wire in wires:
        key = _keyed(read_key, wire_key, levels, ".<key>")
        pairs.append((key, _keyed(read, wire, levels, key_step(key))))
    return hashed(dict, pairs)


def pairs_of(wires: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and values of an array that begins with the marker PAIRS."""
    if len(wires) % 2 == 0:
        raise Misfit("has a key without a value")
    parts = iter(wires[1:])
    return zip(parts, parts, strict=True)


def hashed(build: Callable[[list[Any]], _T], values: list[Any]) -> _T:
    """Build a set, a dict (from pairs) or a tuple. Raises Misfit if a value cannot be hashed or compared (a list, a signalling NaN)."""
    try:
        if len(values) > LARGE and build is not tuple:
            _refuse_collisions(key for key, _ in values) if build is dict else _refuse_collisions(values)
        return build(values)
    except Misfit:
        raise
    except Exception as error:
        raise Misfit(f"cannot be a key or an item of a set: {error}") from error


def _refuse_collisions(keys: Iterable[Any]) -> None:
    """Raise Misfit if many unequal keys have the same hash. Attackers can choose numbers that collide, and comparing 32,000 takes 4 s."""
    first_of: dict[int, Any] = {}
    alike: dict[int, int] = {}
    for key in keys:
        number = hash(key)
        first = first_of.setdefault(number, key)
        if first is not key and first != key:
            alike[number] = alike.get(number, 0) + 1
            if alike[number] > ALIKE:
                raise Misfit(f"has more than {ALIKE} keys or items with the same hash, which looks like an attack")


def elements(wire: Any, expected: str) -> list[Any]:
    """Return the elements of a list, tuple or set on the wire, without the marker.

    This way, a value that was written as a list can still be read after its annotation has been changed to a tuple.
    """
    if type(wire) is not list:
        raise Misfit(f"expected {expected}, got {wire_type(wire)}")
    code = marker_of(wire)
    if code >= codes.PAIRS:
        raise Misfit(f"expected {expected}, got {wire_type(wire)}")
    return wire[1:] if code else wire


def _keyed(convert: Write, value: Any, levels: int, step: str) -> Any:
    try:
        return convert(value, levels)
    except Misfit as misfit:
        misfit.within(step)
        raise
