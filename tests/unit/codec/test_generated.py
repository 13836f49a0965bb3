"""Generated values, with and without annotations: an encoded value decodes to the same value, and always decodes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from types import UnionType
from typing import Any, Literal, Optional, Union, get_args, get_origin
from uuid import UUID

import pytest
from hypothesis import given, settings, strategies as st

from taskflow.model.codec import decode_value, encode_value
from taskflow.model.codec.compiler import Compiler
from taskflow.model.codec.shape import ShapeError
from taskflow.model.codec.wire import pack, unpack
from taskflow.model.errors import DeclarationError
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of, quick, same, there_and_back

pytestmark = pytest.mark.slow

offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
zones = st.none() | st.timezones() | st.builds(timezone, offsets) | st.builds(timezone, offsets, st.text(max_size=5))
folded = st.builds(
    lambda moment, fold: moment.replace(fold=fold), st.datetimes(timezones=zones) | st.times(timezones=zones), st.integers(0, 1)
)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    int: st.integers() | st.integers(-(2**200), 2**200) | st.sampled_from([2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1]),
    float: st.floats(),
    str: st.text(),
    bytes: st.binary(),
    bytearray: st.binary().map(bytearray),
    Decimal: st.decimals(),
    UUID: st.uuids(),
    timedelta: st.timedeltas(),
    PurePath: st.builds(lambda kind, text: kind(text), st.sampled_from([Path, PurePosixPath, PureWindowsPath]), st.text()),
}
scalars = st.one_of(*BY_TYPE.values(), st.dates(), folded, st.builds(timezone, offsets))
keys = scalars.filter(lambda value: not isinstance(value, bytearray) and not (isinstance(value, Decimal) and value.is_snan()))
hashable = st.recursive(keys, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=5)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(hashable, max_size=3)
        | st.frozensets(hashable, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(quick, max_examples=600)
@given(values)
def test_any_nested_value_comes_back_the_same(value: Any) -> None:
    assert same(decode_value(encode_value(value)), value)
    assert same(there_and_back(list[Any], [value]), [value])


atoms: st.SearchStrategy[Any] = st.sampled_from(
    [*BY_TYPE, k.Color, k.Level, k.Mode, k.Rights, k.Point, k.Pin, k.Lamp, k.Wire, k.User, Literal["a", 1, True]]
)
key_types: st.SearchStrategy[Any] = st.sampled_from(
    [bool, int, float, str, bytes, UUID, timedelta, k.Color, k.Mode, k.Pin, tuple[int, str], Literal["a", 1, True]]
)
generated: st.SearchStrategy[Any] = st.recursive(
    atoms,
    lambda inner: (
        st.builds(lambda each: list[each], inner)  # type: ignore[valid-type]
        | st.builds(lambda each: tuple[each, ...], inner)  # type: ignore[valid-type]
        | st.builds(lambda one, other: tuple[one, other], inner, inner)  # type: ignore[valid-type]
        | st.builds(lambda each: set[each], key_types)  # type: ignore[valid-type]
        | st.builds(lambda each: frozenset[each], key_types)  # type: ignore[valid-type]
        | st.builds(lambda key, each: dict[key, each], key_types, inner)  # type: ignore[valid-type]
        | st.builds(lambda each: k.Box[each], inner)  # type: ignore[valid-type]
        | st.builds(lambda each: k.Crate[each], inner)  # type: ignore[valid-type]
        | st.builds(lambda each: Optional[each], inner)  # noqa: UP045
        | st.builds(lambda one, other: one | other, inner, inner)
    ),
    max_leaves=6,
)
USERS = st.builds(lambda number, name: k.User(id=number, userName=name), st.integers(1, 100), st.text(max_size=3))
st.register_type_strategy(k.User, USERS)
st.register_type_strategy(k.Wire, st.builds(k.Wire, st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2)))
st.register_type_strategy(k.Rights, st.integers(0, 3).map(k.Rights))


def instances(annotation: Any) -> st.SearchStrategy[Any]:
    """Return values of a generated annotation; hypothesis itself does not know generic dataclasses and Structs."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return st.sampled_from(arguments)
    parts = [instances(argument) for argument in arguments if argument is not ...]
    if origin in (Union, UnionType):
        return st.one_of(parts)
    if origin is tuple and ... not in arguments:
        return st.tuples(*parts)
    if origin in BUILDERS:
        return BUILDERS[origin](*parts)
    return BY_TYPE[annotation] if annotation in BY_TYPE else st.from_type(annotation)


BUILDERS: dict[Any, Callable[..., st.SearchStrategy[Any]]] = {
    list: lambda each: st.lists(each, max_size=3),
    tuple: lambda each: st.lists(each, max_size=3).map(tuple),
    set: lambda each: st.sets(each, max_size=3),
    frozenset: lambda each: st.frozensets(each, max_size=3),
    dict: lambda key, each: st.dictionaries(key, each, max_size=3),
    k.Box: lambda each: st.builds(k.Box, each, st.lists(each, max_size=2)),
    k.Crate: lambda each: st.builds(k.Crate, each),
}


@settings(quick, max_examples=400)
@given(st.data())
def test_instances_of_generated_annotations_come_back_the_same(data: st.DataObject) -> None:
    annotation = data.draw(generated)
    try:
        codec = codec_of(annotation)
    except DeclarationError as error:
        assert "ambiguous" in str(error)  # noqa: PT017
        return
    value = data.draw(instances(annotation))
    [decoded], _ = codec.decode_arguments(codec.encode_arguments((value,), {}))
    assert same(decoded, value)


@settings(quick, max_examples=600)
@given(st.data())
def test_the_encoder_accepts_only_values_that_decode(data: st.DataObject) -> None:
    """The checking encoder is as good as really decoding: for a value of any type under any annotation, both agree."""
    annotation = data.draw(generated)
    compiler = Compiler()
    try:
        codec_of(annotation)
    except DeclarationError:
        return
    shape = compiler.shape(annotation)
    value = data.draw(values | instances(data.draw(generated)))
    try:
        written = shape.write(value, 64)
    except ShapeError:
        return
    shape.read(unpack(pack(written)), 64)


texts = st.lists(st.text(max_size=3), max_size=3)
given_fields = st.fixed_dictionaries({}, optional={"title": st.none() | st.text(), "body": st.text(), "tags": texts, "words": st.just([2])})


@quick
@given(given_fields, st.integers(), st.dictionaries(st.text(max_size=3), values, max_size=2), texts)
def test_a_model_comes_back_with_all_that_it_knows(fields: dict[str, Any], seen: int, notes: dict[str, Any], more_tags: list[str]) -> None:
    draft = k.Draft(**fields)
    draft._seen = seen
    draft._notes.update(notes)
    draft.tags.extend(more_tags)  # changed in place: this sets no field
    for annotation, value in ((k.Draft, draft), (list[k.Draft | k.Point], [draft, k.Point(1)])):
        assert same(there_and_back(annotation, value), value)
