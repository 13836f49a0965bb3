"""Shapes for containers: list, tuple, set, frozenset, dict and their abstract base classes.

`levels` is how many more levels of nesting are allowed inside. A mapping whose keys are all encoded as str becomes a msgpack map. Any other
mapping becomes an array: the marker PAIRS, then keys and values in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Any, TypeVar

from taskflow.model.codec import wire as codes
from taskflow.model.codec.scalars import encodable
from taskflow.model.codec.shape import Convert, Shape, ShapeError, key_step, one_of, too_deep, unexpected
from taskflow.model.codec.wire import marker, marker_of, unpack_json, wire_type

_T = TypeVar("_T")
UNCHECKED_KEYS = 1_000
"""Collections with at most this many keys are not checked for hash collisions: half a million comparisons do no harm."""
MAX_COLLISIONS = 100

# --- parts --------------------------------------------------------------------------------------------------------


def inside(levels: int) -> int:
    """Return how many levels of nesting are left inside a container. Raises ShapeError if the container is already too deep."""
    if levels < 1:
        raise too_deep()
    return levels - 1


def convert_items(parts: Iterable[Any], convert: Convert, levels: int, head: Sequence[Any] = (), *, ordered: bool = True) -> list[Any]:
    """Return a list of `head` followed by a collection's converted items. In the path of a ShapeError, items of a set have no index."""
    done = [*head]
    try:
        for part in parts:
            done.append(convert(part, levels))  # noqa: PERF401  # the length of the list shows where the conversion failed
    except ShapeError as error:
        error.within(f"[{len(done) - len(head)}]" if ordered else ".<item>")
        raise
    return done


def write_map(mapping: Mapping[Any, Any], write: Convert, levels: int, step_to: Callable[[str], str] = key_step) -> dict[str, Any]:
    """Write a mapping with only str keys as a msgpack map."""
    wires: dict[str, Any] = {}
    key = ""
    try:
        for key, value in mapping.items():
            wires[key if key.isascii() else encodable(key)] = write(value, levels)
    except ShapeError as error:
        error.within(step_to(key))
        raise
    return wires


def read_map(wires: Mapping[str, Any], read: Convert, levels: int, step_to: Callable[[str], str] = key_step) -> dict[str, Any]:
    """Read a msgpack map. A key that is not a str is rejected, because taskflow never writes one."""
    values: dict[str, Any] = {}
    key = ""
    try:
        for key, wire in wires.items():
            if type(key) is not str:
                raise ShapeError(f"expected map keys to be str, got {wire_type(key)}")
            values[key] = read(wire, levels)
    except ShapeError as error:
        error.within(step_to(key))
        raise
    return values


def write_pairs(mapping: Mapping[Any, Any], write_key: Convert, write: Convert, levels: int) -> list[Any]:
    return [marker(codes.PAIRS), *chain.from_iterable(_converted_pairs(mapping.items(), write_key, write, levels))]


def read_pairs(wires: Iterable[tuple[Any, Any]], read_key: Convert, read: Convert, levels: int) -> dict[Any, Any]:
    return hashed(dict, _converted_pairs(wires, read_key, read, levels, is_reading=True))


def _converted_pairs(
    pairs: Iterable[tuple[Any, Any]], convert_key: Convert, convert: Convert, levels: int, *, is_reading: bool = False
) -> list[tuple[Any, Any]]:
    converted: list[tuple[Any, Any]] = []
    for key, value in pairs:
        step, new_key = ".<key>", None
        try:
            new_key = convert_key(key, levels)
            step = ""
            converted.append((new_key, convert(value, levels)))
        except ShapeError as error:
            error.within(step or key_step(new_key if is_reading else key))
            raise
    return converted


def pairs_of(wires: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Return the (key, value) pairs of an array that begins with the marker PAIRS. Raises ShapeError if the last key has no value."""
    if len(wires) % 2 == 0:
        raise ShapeError("has a key without a value")
    parts = iter(wires[1:])
    return zip(parts, parts, strict=True)


def hashed(build: Callable[[list[Any]], _T], values: list[Any]) -> _T:
    """Build a set, a dict (from pairs) or a tuple. Raises ShapeError if values can't be hashed or compared, or too many share a hash."""
    try:
        if len(values) > UNCHECKED_KEYS and build is not tuple:
            _refuse_collisions(key for key, _ in values) if build is dict else _refuse_collisions(values)
        return build(values)
    except ShapeError:
        raise
    except Exception as error:
        raise ShapeError(f"cannot be a key or an item of a set: {error}") from error


def _refuse_collisions(keys: Iterable[Any]) -> None:
    """Raise ShapeError for many unequal keys with one hash. Attackers can choose numbers that collide, and comparing 32,000 takes 4 s."""
    first_of: dict[int, Any] = {}
    alike: dict[int, int] = {}
    for key in keys:
        number = hash(key)
        first = first_of.setdefault(number, key)
        if first is not key and first != key:
            alike[number] = alike.get(number, 0) + 1
            if alike[number] > MAX_COLLISIONS:
                raise ShapeError(f"has more than {MAX_COLLISIONS} keys or items with the same hash, which may be an attack")


def _elements(wire: Any, expected: str) -> list[Any]:
    """Return the elements of a list, tuple or set on the wire. Any of these is accepted, because the annotation may have changed since."""
    code = marker_of(wire) if type(wire) is list else codes.PAIRS
    if code >= codes.PAIRS:
        raise ShapeError(f"expected {expected}, got {wire_type(wire)}")
    elements: list[Any] = wire[1:] if code else wire
    return elements


# --- collections --------------------------------------------------------------------------------------------------

_KINDS: dict[type, int] = {list: 0, tuple: codes.TUPLE, set: codes.SET, frozenset: codes.FROZENSET}
"""The marker of each concrete collection, or 0 for none."""


def collection_of(kind: type, item: Shape) -> Shape:
    """Return the shape of `list[item]`, `tuple[item, ...]`, `set[item]` or `frozenset[item]`. Instances of subclasses lose their class."""
    label = f"{kind.__name__}[{item.label}{', ...' if kind is tuple else ''}]"

    def write(value: Any, levels: int) -> list[Any]:
        if not isinstance(value, kind):
            raise unexpected(label, value)
        return write_collection(kind, value, item.write, levels)

    read, read_json = (_reader(kind, label, each) for each in (item.read, item.read_json))
    return Shape(
        label,
        write,
        read,
        read_json,
        types=frozenset((kind,)),
        forms=frozenset((_KINDS[kind] or list,)),
        fits_json=lambda wire: type(wire) is list,
    )


def write_collection(kind: type, value: Any, write: Convert, levels: int) -> list[Any]:
    code = _KINDS[kind]
    return convert_items(value, write, inside(levels), (marker(code),) if code else (), ordered=kind in (list, tuple))


def _reader(kind: type, label: str, read_item: Convert) -> Convert:
    def read(wire: Any, levels: int) -> Any:
        within = inside(levels)
        items = convert_items(_elements(wire, label), read_item, within)
        return items if kind is list else hashed(kind, items)

    return read


def fixed_tuple(items: Sequence[Shape]) -> Shape:
    """Return the shape of a tuple such as `tuple[A, B]`, in which each position has a separate shape."""
    label = f"tuple[{', '.join(item.label for item in items) or '()'}]"
    count = len(items)

    def placed(parts: Sequence[Any], converts: Sequence[Convert], levels: int) -> list[Any]:
        if len(parts) != count:
            raise ShapeError(f"expected {label} with {count} items, got {len(parts)}")
        return convert_items(zip(converts, parts, strict=True), lambda pair, levels: pair[0](pair[1], levels), inside(levels))

    def write(value: Any, levels: int) -> list[Any]:
        if not isinstance(value, tuple):
            raise unexpected(label, value)
        return [marker(codes.TUPLE), *placed(value, [item.write for item in items], levels)]

    return Shape(
        label,
        write,
        lambda wire, levels: tuple(placed(_elements(wire, label), [item.read for item in items], levels)),
        lambda wire, levels: tuple(placed(_elements(wire, label), [item.read_json for item in items], levels)),
        types=frozenset((tuple,)),
        forms=frozenset((codes.TUPLE,)),
        fits_json=lambda wire: type(wire) is list and len(wire) == count,
    )


def mapping_of(key: Shape, value: Shape, *, abstract: bool) -> Shape:
    """Return the shape of `dict[key, value]`, or, if `abstract`, of `Mapping[key, value]`, which writes any mapping and reads a dict."""
    kind: Any = Mapping if abstract else dict
    label = f"{kind.__name__}[{key.label}, {value.label}]"

    def write(mapping: Any, levels: int) -> Any:
        if not isinstance(mapping, kind):
            raise unexpected(label, mapping)
        wires = write_pairs(mapping, key.write, value.write, inside(levels))
        keys = wires[1::2]
        return dict(zip(keys, wires[2::2], strict=True)) if all(type(each) is str for each in keys) else wires

    def read(wire: Any, levels: int) -> dict[Any, Any]:
        within = inside(levels)
        if type(wire) is list and marker_of(wire) == codes.PAIRS:
            return read_pairs(pairs_of(wire), key.read, value.read, within)
        if type(wire) is dict:
            return read_pairs(wire.items(), key.read, value.read, within)
        raise ShapeError(f"expected {label}, got {wire_type(wire)}")

    def read_json_key(wire: Any, levels: int) -> Any:
        """Read a JSON key, which is always a string. If it does not fit, try the JSON value that it spells, such as 5."""
        try:
            return key.read_json(wire, levels)
        except ShapeError:
            return key.read_json(unpack_json(wire.encode()), levels)

    def read_json(wire: Any, levels: int) -> dict[Any, Any]:
        if type(wire) is not dict:
            raise ShapeError(f"expected {label}, got {wire_type(wire)}")
        return read_pairs(wire.items(), read_json_key, value.read_json, inside(levels))

    forms = frozenset((dict, codes.PAIRS))
    return Shape(label, write, read, read_json, types=frozenset((dict,)), forms=forms, fits_json=lambda wire: type(wire) is dict)


def abstract_collection(kind: type, item: Shape) -> Shape:
    """Return the shape of `Sequence[item]` or a similar type. Instances of classes that are not built in become a list or, for `Set`,
    a set. Text and mappings are rejected."""
    label = f"{kind.__name__}[{item.label}]"
    concrete = tuple(each for each in _KINDS if issubclass(each, kind))
    otherwise: type = set if issubclass(kind, Set) else list
    read_as = {_KINDS[each]: _reader(each, label, item.read) for each in concrete}

    def write(value: Any, levels: int) -> list[Any]:
        if not isinstance(value, kind) or not isinstance(value, Collection) or isinstance(value, str | bytes | bytearray | Mapping):
            raise unexpected(f"{label}, which means {one_of([each.__name__ for each in concrete])}", value)
        return write_collection(next((each for each in concrete if isinstance(value, each)), otherwise), value, item.write, levels)

    def read(wire: Any, levels: int) -> Any:
        by_marker = read_as.get(marker_of(wire)) if type(wire) is list else None
        if by_marker is None:
            raise ShapeError(f"expected {label}, got {wire_type(wire)}")
        return by_marker(wire, levels)

    forms = frozenset(_KINDS[each] or list for each in concrete)
    read_json = _reader(otherwise, label, item.read_json)
    return Shape(label, write, read, read_json, types=frozenset(concrete), forms=forms, fits_json=lambda wire: type(wire) is list)
