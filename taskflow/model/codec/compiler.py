"""Compiles annotations into shapes, and finds the names that they mark as `Secret`."""

from __future__ import annotations

import collections.abc as abc
import datetime
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from inspect import Parameter
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NewType,
    NotRequired,
    ParamSpecArgs,
    ParamSpecKwargs,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import typing_extensions
from typing_extensions import ReadOnly, TypeAliasType

from taskflow.model.codec.classes import ClassField, ClassFields, record_for, record_of
from taskflow.model.codec.containers import abstract_collection, collection_of, fixed_tuple, mapping_of
from taskflow.model.codec.datetimes import DATETIMES, shape_of_zoneinfo, zoneinfo_shape
from taskflow.model.codec.hints import stands_for, substitute
from taskflow.model.codec.shape import DictKeys, Shape, Tag, Unresolved, Unsupported, type_name
from taskflow.model.codec.unions import enum_of, literals_of, union_of
from taskflow.model.codec.untyped import ANY, LEAVES, record_unregistered, registered_shape

_NO_FEATURES: Final[dict[str, Any]] = {}


class Compiler:
    """Compiles annotations into shapes, each class once. `runs_code` is True if decoding runs code in users' classes. Raises Unsupported
    for an annotation that has no shape, and Unresolved for one that contains an undefined name."""

    def __init__(self) -> None:
        self.runs_code = False
        self._finished: dict[Any, Shape] = {}
        self._promised: dict[Any, Shape] = {}

    def shape(self, annotation: Any) -> Shape:
        if _alias_value(annotation) is not None:
            return self._once(annotation, "...", lambda _: self._unaliased(annotation))
        return self._unaliased(annotation)

    def _unaliased(self, annotation: Any) -> Shape:
        members = _members(annotation)
        if len(members) == 1:
            return self._single(members[0])
        try:
            hash(key := ("union", *members))
        except TypeError:  # unhashable, e.g. an Annotated with a list in its metadata; it could be recursive only through an alias
            return self._union(members)
        return self._once(key, "...", lambda _: self._union(members))

    def _union(self, members: Sequence[Any]) -> Shape:
        shapes = [self._single(member) for member in members if get_origin(member) is not Literal]
        choices = literals_of(_literal_values(members))
        return union_of([*shapes, *(choice for choice in choices if not any(choice.types <= shape.types for shape in shapes))])

    def _single(self, annotation: Any) -> Shape:
        """Return the shape of an annotation that is neither a union nor a wrapper."""
        if any(annotation is each for each in _UNTYPED):
            return ANY
        origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
        if origin is Literal:
            return union_of(literals_of(_literal_values([annotation])))
        if not isinstance(origin, type):
            raise Unsupported(f"{annotation!r} cannot be sent; {_ADVICE}")
        if (registered := registered_shape(origin)) is not None:
            self.runs_code = True
            return registered
        if origin is datetime.tzinfo:
            return union_of([DATETIMES[datetime.timezone], zoneinfo_shape()])
        return (
            LEAVES.get(origin)
            or shape_of_zoneinfo(origin)
            or self._container(annotation, origin, arguments)
            or self._class(annotation, origin, arguments)
        )

    def _container(self, annotation: Any, origin: type, arguments: tuple[Any, ...]) -> Shape | None:
        if origin is tuple:
            return self._tuple(annotation, arguments)
        if origin in _COLLECTIONS or origin in _ABSTRACT:
            build = collection_of if origin in _COLLECTIONS else abstract_collection
            return build(origin, self.shape(arguments[0] if arguments else Any))
        if origin in _MAPPINGS:
            key, value = arguments or (Any, Any)
            return mapping_of(self.shape(key), self.shape(value), abstract=origin is not dict)
        return None

    def _tuple(self, annotation: Any, arguments: tuple[Any, ...]) -> Shape:
        if annotation is tuple or annotation is typing.Tuple:  # noqa: UP006  # the bare type, which has no arguments, unlike tuple[()]
            arguments = (Any, ...)
        if len(arguments) == 2 and arguments[1] is ...:
            return collection_of(tuple, self.shape(arguments[0]))
        return fixed_tuple([self.shape(item) for item in _items_of_tuple(annotation, arguments)])

    def _class(self, annotation: Any, origin: type, arguments: tuple[Any, ...]) -> Shape:
        if issubclass(origin, Enum) and origin.__members__:
            record_unregistered(origin)
            return enum_of(origin)
        record = record_for(origin, arguments)
        if record is None:
            raise Unsupported(f"{type_name(origin)} cannot be sent; {_ADVICE}")
        record_unregistered(origin)
        label = type_name(origin)
        self.runs_code |= record.runs_code
        features: dict[str, Any] = {
            "types": frozenset((record.kind if record.has_tag else dict,)),
            "forms": record.forms,
            "tag": record.kind.__name__ if record.has_tag else "",
            "keys": None if record.has_tag else _keys_of(record),
        }
        return self._once(
            annotation,
            label,
            lambda promised: record_of(record, promised, {field.name: self._field(record, field) for field in record.fields}),
            features,
        )

    def _field(self, record: ClassFields, field: ClassField) -> Shape:
        try:
            try:
                return self.shape(field.annotation)
            except Unsupported:
                if record.foreign is None:
                    raise
                return record.foreign(field.annotation)
        except Unsupported as unsupported:
            unsupported.within(f".{field.name}")
            raise

    def _once(self, key: Any, label: str, build: Callable[[Shape], Shape], features: dict[str, Any] = _NO_FEATURES) -> Shape:
        """Return the shape for `key`, built on first use. An annotation that refers to itself gets a placeholder with these features."""
        known = self._finished.get(key) or self._promised.get(key)
        if known is not None:
            return known
        finished = self._finished
        self._promised[key] = promised = Shape(
            label,
            lambda value, levels: finished[key].write(value, levels),
            lambda wire, levels: finished[key].read(wire, levels),
            lambda wire, levels: finished[key].read_json(wire, levels),
            fits_json=lambda wire: finished[key].fits_json(wire),
            **features,
        )
        try:
            finished[key] = build(promised)
        finally:
            del self._promised[key]
        return finished[key]


def _keys_of(record: ClassFields) -> DictKeys:
    """Return the keys of a TypedDict, read from the annotations, because in a recursive type the fields are not compiled yet."""
    required = [field for field in record.fields if field.required]
    values = {field.name: _values_of_literal(field.annotation) for field in required}
    return DictKeys(
        known=frozenset(field.name for field in record.fields),
        required=frozenset(field.name for field in required),
        tags={name: Tag(values=each, shape=union_of(literals_of(each))) for name, each in values.items() if each},
    )


def _values_of_literal(annotation: Any) -> tuple[Any, ...]:
    try:
        members = _members(annotation)
    except Unsupported:  # compiling the field raises it again, with the field's name
        return ()
    return tuple(_literal_values(members)) if all(get_origin(member) is Literal for member in members) else ()


def _members(annotation: Any, around: tuple[Any, ...] = ()) -> list[Any]:
    """Unwrap an annotation, and return the distinct members of the union, or a single member. `around` holds the enclosing type aliases."""
    while (inner := unwrapped(annotation)) is not annotation:
        if _alias_value(annotation) is not None:
            if annotation in around:
                raise Unsupported(f"the type alias {annotation} refers to itself directly; put it inside a list or a dict")
            around = (*around, annotation)
        annotation = inner
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    members: list[Any] = []
    for each in get_args(annotation):
        members += [member for member in _members(each, around) if member not in members]
    return members


def _items_of_tuple(annotation: Any, arguments: tuple[Any, ...]) -> list[Any]:
    """Return the item types of a fixed-length tuple, including those of tuples that are unpacked inside it."""
    items: list[Any] = []
    for each in arguments:
        [unpacked] = get_args(each) if get_origin(each) in UNPACK else [each if getattr(each, "__unpacked__", False) else None]
        if unpacked is None:
            items.append(each)
        elif get_origin(unpacked) is tuple and ... not in get_args(unpacked):
            items += _items_of_tuple(annotation, get_args(unpacked))
        else:
            raise Unsupported(f"{annotation!r} mixes items with a part of variable length; put that part into a separate list")
    return items


def unwrapped(annotation: Any) -> Any:
    """Return the content of the annotation's outermost wrapper, or the annotation itself if it has none."""
    if get_origin(annotation) in _WRAPPERS:
        return get_args(annotation)[0]
    if isinstance(annotation, NewType):
        return stands_for(annotation, lambda: annotation.__supertype__)
    if isinstance(annotation, TypeVar):
        return _of_type_variable(annotation)
    if isinstance(annotation, _VARIADIC) or get_origin(annotation) in UNPACK:
        return Any
    value = _alias_value(annotation)
    if value is not None:
        return value
    return next((plain for special, plain in _PLAINLY if annotation is special), annotation)


def _of_type_variable(variable: Any) -> Any:
    """Return the replacement for an unsolved type variable: its default, a union of its constraints, its bound, or Any."""
    if getattr(variable, "has_default", lambda: False)():
        return stands_for(variable, lambda: variable.__default__)
    if variable.__constraints__:
        return stands_for(variable, lambda: Union[variable.__constraints__])  # noqa: UP007  # the only way to build a union from a tuple
    return Any if variable.__bound__ is None else stands_for(variable, lambda: variable.__bound__)


def _alias_value(annotation: Any) -> Any:
    """Return the value of a `type` alias, or None for anything else."""
    alias: Any = get_origin(annotation) or annotation
    if not isinstance(alias, _ALIASES):
        return None
    return substitute(stands_for(alias, lambda: alias.__value__), dict(zip(alias.__type_params__, get_args(annotation), strict=False)))


def _literal_values(members: Sequence[Any]) -> list[Any]:
    """Return the values of all Literals in `members`. Raises Unsupported if a value is listed twice."""
    values: list[Any] = []
    for member in members:
        for value in get_args(member) if get_origin(member) is Literal else ():
            if any(type(value) is type(other) and value == other for other in values):
                raise Unsupported(f"the union of Literals is ambiguous: {value!r} is in two of them; write one Literal")
            values.append(value)
    return values


_ADVICE = (
    "make it a dataclass, TypedDict, NamedTuple, Enum, msgspec Struct, attrs class or pydantic model, "
    "call taskflow.register_type() before this job is declared, or send plain data"
)
_UNTYPED = (Any, object, Parameter.empty)
UNPACK = (typing.Unpack, typing_extensions.Unpack)
"""Both forms of Unpack. On Python 3.11, these are two different objects."""
_VARIADIC = (ParamSpecArgs, ParamSpecKwargs, typing.TypeVarTuple, typing_extensions.TypeVarTuple)
_ALIASES: tuple[Any, ...] = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))
_WRAPPERS = (Annotated, Required, NotRequired, ReadOnly, Final, ClassVar)
_PLAINLY: tuple[tuple[Any, Any], ...] = (
    (None, NoneType),
    (typing.NoReturn, NoneType),
    (typing.Never, NoneType),
    (typing.LiteralString, str),
    (typing_extensions.Any, Any),
)
_COLLECTIONS = (list, set, frozenset)
_MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)
_ABSTRACT = (
    *(abc.Sequence, abc.MutableSequence, abc.Set, abc.MutableSet),
    *(abc.Collection, abc.Iterable, abc.Container, abc.Reversible),
)


RETURNED: Final = "return"
"""The name of the result among the names of secrets."""


class Secret:
    """Marks a parameter, a field or a result whose value is not shown: ``token: Annotated[str, Secret]``.

    The command line prints "[hidden]" in its place. The value itself is sent, stored and passed to the function like any other. The mark
    may be inside another annotation, as in ``list[Annotated[str, Secret]]``, which hides the whole list. It also applies to fields of
    dataclasses, TypedDicts and other classes. Each job carries the marked names, which are hidden wherever they occur in its arguments and
    its result.
    """

    def __init__(self) -> None:
        raise TypeError("Secret cannot be called: write Annotated[str, Secret]")


def secret_names(annotations: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names that are marked as `Secret`, among these annotations and the fields in their types. A mark on an inner part without
    a name, such as the items of a list, counts for the name of the whole."""
    found = set[str]()
    _walk(annotations.items(), found, set())
    return tuple(sorted(found))


def _walk(annotations: Iterable[tuple[str, Any]], found: set[str], seen: set[Any]) -> None:
    for owner, annotation in annotations:
        with suppress(TypeError):  # unhashable metadata is not in `seen`, but every cycle contains a hashable class or alias
            if (owner, annotation) in seen:
                continue
            seen.add((owner, annotation))
        if get_origin(annotation) is Annotated and any(each is Secret for each in annotation.__metadata__):
            found.add(owner)
        else:
            _walk(_parts(owner, annotation), found, seen)


def _parts(owner: str, annotation: Any) -> list[tuple[str, Any]]:
    """Return the annotations directly inside this one, each with the name to which it belongs."""
    inner = unwrapped(annotation)
    if inner is not annotation:
        return [(owner, inner)]
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Literal:
        return []
    try:
        record = record_for(origin, arguments) if isinstance(origin, type) else None
    except (Unsupported, Unresolved):  # only the library behind the class understands this annotation
        record = None
    if record is None:
        return [(owner, argument) for argument in arguments]
    return [(field.name, Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation) for field in record.fields]
