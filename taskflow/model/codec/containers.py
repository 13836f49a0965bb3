"""Shapes for annotated containers: list, tuple, set, frozenset, dict and their abstract base classes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any

from taskflow.model.codec import wire as codes
from taskflow.model.codec.misfit import Misfit, one_of, too_deep, unexpected
from taskflow.model.codec.parts import elements, hashed, pairs_of, read_items, read_pairs, write_items, write_pairs, write_unordered
from taskflow.model.codec.shape import Read, Shape, Write
from taskflow.model.codec.wire import marker, marker_of, unpack_json, wire_type

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
