"""Shapes for containers: list, tuple, set, frozenset, dict and their abstract base classes.

`levels` is how many more levels of nesting are allowed *inside* the container. A mapping whose keys are all encoded as str becomes a
msgpack map. Any other becomes an array: the marker PAIRS, then keys and values in turn, so that keys of any type are encoded exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeVar

from taskflow.model.codec import wire as codes
from taskflow.model.codec.scalars import encodable
from taskflow.model.codec.shape import Misfit, Read, Shape, Write, key_step, one_of, too_deep, unexpected
from taskflow.model.codec.wire import marker, marker_of, unpack_json, wire_type

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


_KINDS: dict[type, tuple[int, object]] = {
    list: (0, list),
    tuple: (codes.TUPLE, codes.TUPLE),
    set: (codes.SET, codes.SET),
    frozenset: (codes.FROZENSET, codes.FROZENSET),
}
"""The marker (0 for none) and the wire form of each concrete collection."""


def collection_of(kind: type, item: Shape) -> Shape:
    """Return the shape of `list[item]`, `tuple[item, ...]`, `set[item]` or `frozenset[item]`.

    An instance of a subclass is decoded as the plain type.
    """
    label = f"{kind.__name__}[{item.label}{', ...' if kind is tuple else ''}]"
    _, form = _KINDS[kind]

    def write(value: Any, levels: int) -> list[Any]:
        if not isinstance(value, kind):
            raise unexpected(label, value)
        if levels < 1:
            raise too_deep()
        return _write_as(kind, value, item.write, levels - 1)

    return Shape(
        label,
        write,
        _reader(kind, label, item.read),
        _reader(kind, label, item.read_json),
        types=frozenset((kind,)),
        forms=frozenset((form,)),
        fits_json=lambda wire: type(wire) is list,
    )


def _write_as(kind: type, value: Any, write: Write, levels: int) -> list[Any]:
    code = _KINDS[kind][0]
    if kind is list or kind is tuple:
        return write_items(value, write, levels, [marker(code)] if code else [])
    return write_unordered(value, write, levels, [marker(code)])


def _reader(kind: type, label: str, read_item: Read) -> Read:
    build: Callable[[list[Any]], Any] | None = None if kind is list else kind

    def read(wire: Any, levels: int) -> Any:
        if levels < 1:
            raise too_deep()
        items = read_items(elements(wire, label), read_item, levels - 1)
        return hashed(build, items) if build else items

    return read


def fixed_tuple(items: Sequence[Shape]) -> Shape:
    """Return the shape of a tuple such as `tuple[A, B]`, in which each position has a separate shape."""
    label = f"tuple[{', '.join(item.label for item in items) or '()'}]"
    count = len(items)

    def write(value: Any, levels: int) -> list[Any]:
        if not isinstance(value, tuple) or len(value) != count:
            raise _wrong_length(label, count, len(value)) if isinstance(value, tuple) else unexpected(label, value)
        if levels < 1:
            raise too_deep()
        return [marker(codes.TUPLE), *_placed(value, [item.write for item in items], levels - 1)]

    def reader(reads: list[Read]) -> Read:
        def read(wire: Any, levels: int) -> tuple[Any, ...]:
            if levels < 1:
                raise too_deep()
            wires = elements(wire, label)
            if len(wires) != count:
                raise _wrong_length(label, count, len(wires))
            return tuple(_placed(wires, reads, levels - 1))

        return read

    return Shape(
        label,
        write,
        reader([item.read for item in items]),
        reader([item.read_json for item in items]),
        types=frozenset((tuple,)),
        forms=frozenset((codes.TUPLE,)),
        fits_json=lambda wire: type(wire) is list and len(wire) == count,
    )


def _placed(parts: Sequence[Any], converts: Sequence[Write], levels: int) -> list[Any]:
    done: list[Any] = []
    try:
        for convert, part in zip(converts, parts, strict=True):
            done.append(convert(part, levels))
    except Misfit as misfit:
        misfit.within(f"[{len(done)}]")
        raise
    return done


def _wrong_length(label: str, expected: int, got: int) -> Misfit:
    return Misfit(f"expected {label} with {expected} items, got {got}")


def mapping_of(key: Shape, value: Shape, *, abstract: bool) -> Shape:
    """Return the shape of `dict[key, value]`, or, if `abstract`, of `Mapping[key, value]`,
    which accepts any mapping. Both are decoded as a dict."""
    kind: Any = Mapping if abstract else dict
    label = f"{kind.__name__}[{key.label}, {value.label}]"

    def write(mapping: Any, levels: int) -> Any:
        if not isinstance(mapping, kind):
            raise unexpected(label, mapping)
        if levels < 1:
            raise too_deep()
        return _write_mapping(mapping, key.write, value.write, levels - 1)

    def read(wire: Any, levels: int) -> dict[Any, Any]:
        if levels < 1:
            raise too_deep()
        if type(wire) is list and marker_of(wire) == codes.PAIRS:
            return read_pairs(pairs_of(wire), key.read, value.read, levels - 1)
        if type(wire) is dict:
            return read_pairs(wire.items(), key.read, value.read, levels - 1)
        raise Misfit(f"expected {label}, got {wire_type(wire)}")

    def read_json(wire: Any, levels: int) -> dict[Any, Any]:
        if type(wire) is not dict:
            raise Misfit(f"expected {label}, got {wire_type(wire)}")
        if levels < 1:
            raise too_deep()
        return read_pairs(wire.items(), _json_key(key.read_json), value.read_json, levels - 1)

    forms = frozenset((dict, codes.PAIRS))
    return Shape(label, write, read, read_json, types=frozenset((dict,)), forms=forms, fits_json=lambda wire: type(wire) is dict)


def _write_mapping(mapping: Mapping[Any, Any], write_key: Write, write: Write, levels: int) -> Any:
    """Write a msgpack map if all keys are str on the wire, otherwise pairs. This depends on the actual keys, not on the annotation."""
    wires = write_pairs(mapping, write_key, write, levels)
    keys = wires[1::2]
    return dict(zip(keys, wires[2::2], strict=True)) if all(type(key) is str for key in keys) else wires


def _json_key(read: Read) -> Read:
    """Return a reader for JSON keys, which are always strings. If `read` rejects a
    key, it is tried again with the JSON value that the key spells, such as 5."""

    def read_key(wire: Any, levels: int) -> Any:
        try:
            return read(wire, levels)
        except Misfit:
            return read(unpack_json(wire.encode()), levels)

    return read_key


def abstract_collection(kind: type, item: Shape) -> Shape:
    """Return the shape of `Sequence[item]` or a similar abstract type.

    A list or tuple keeps its type, and so does a set or frozenset if `kind` allows it. Any other collection is decoded as a list or set.
    Text, bytes and mappings are rejected, although they are sequences or iterables, because sending them as such is usually a mistake.
    """
    label = f"{kind.__name__}[{item.label}]"
    concrete = tuple(each for each in _KINDS if issubclass(each, kind))
    otherwise: type = set if issubclass(kind, Set) else list
    read_as = {_KINDS[each][0]: _reader(each, label, item.read) for each in concrete}

    def write(value: Any, levels: int) -> list[Any]:
        if not isinstance(value, kind) or not isinstance(value, Collection) or isinstance(value, str | bytes | bytearray | Mapping):
            raise unexpected(f"{label}, which means {one_of([each.__name__ for each in concrete])}", value)
        if levels < 1:
            raise too_deep()
        return _write_as(next((each for each in concrete if isinstance(value, each)), otherwise), value, item.write, levels - 1)

    def read(wire: Any, levels: int) -> Any:
        by_marker = read_as.get(marker_of(wire)) if type(wire) is list else None
        if by_marker is None:
            raise Misfit(f"expected {label}, got {wire_type(wire)}")
        return by_marker(wire, levels)

    return Shape(
        label,
        write,
        read,
        _reader(otherwise, label, item.read_json),
        types=frozenset(concrete),
        forms=frozenset(_KINDS[each][1] for each in concrete),
        fits_json=lambda wire: type(wire) is list,
    )
