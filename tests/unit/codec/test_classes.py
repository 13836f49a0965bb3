"""Instances of classes with fields come back as instances, created by their own constructors."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import PurePath
from typing import Any

import pytest
from msgspec import Struct, structs

from taskflow.model.errors import EncodeError, MissingArgument, UnknownArgument
from tests.support.ids import stable_id
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of, same, there_and_back
from tests.unit.codec.values import INSTANCES


@pytest.mark.parametrize(("annotation", "value"), INSTANCES, ids=stable_id)
def test_an_instance_comes_back_from_inside_others(annotation: Any, value: Any) -> None:
    assert same(there_and_back(dict[str, list[annotation | None]], {"a": [value, None]}), {"a": [value, None]})
    assert same(there_and_back(tuple[annotation, int], (value, 1)), (value, 1))


def test_fields_that_a_constructor_does_not_take_keep_their_state() -> None:
    value = k.Computed(3)
    value.double, value.note = 7, "changed"
    car = k.Car(4)
    car.serial = 99
    assert same(there_and_back(k.Computed, value), value)
    assert same(there_and_back(k.Car, car), car)


REFUSED: list[tuple[Any, Any, str, str]] = [
    (k.Point, {"x": 1, "y": 2.0}, "value", "expected tests.unit.codec.kinds.Point, got dict"),
    (k.Point, k.Spot(1), "value", "expected tests.unit.codec.kinds.Point, got tests.unit.codec.kinds.Spot"),
    (k.Box[int], k.IntBox(1), "value", "got tests.unit.codec.kinds.IntBox"),
    (k.Point, k.Point("1"), "value.x", "expected int, got str"),  # type: ignore[arg-type]
    (k.Tree, k.Tree(1, [k.Tree(2), k.Tree("3")]), "value.children[1].value", "expected int, got str"),  # type: ignore[arg-type]
    (k.Box[int], k.Box[Any](1, ["a"]), "value.more[0]", "expected int"),
    (k.IntBox, k.IntBox("a"), "value.content", "expected int"),  # type: ignore[arg-type]
    (k.Nested[int], k.Nested[Any]([1], [["a"]]), "value.more[0][0]", "expected int"),
    (k.Holder[int], {"held": "a"}, "value['held']", "expected int"),
    (k.Movie, {"year": 1}, "value", "lacks 'title'"),
    (k.Movie, {"title": "a", "yeer": 1}, "value", "has 'yeer'"),
    (k.Partial, {"title": "a", "rating": 1.0}, "value", "lacks 'director'"),
    (k.Guarded, {"name": "a", "tags": []}, "value", "lacks 'many', 'size'"),
    (k.Movie, k.Point(1), "value", "expected tests.unit.codec.kinds.Movie"),
    (k.Pin, (1, "a"), "value", "expected tests.unit.codec.kinds.Pin, got tuple"),
    (k.Open, k.Open.model_construct(a=1, **{"\ud800": 2}), "value", r"has '\ud800'"),  # type: ignore[arg-type]
    (k.User, k.Open(a=1, b=2), "value", "expected tests.unit.codec.kinds.User"),  # type: ignore[call-arg]
    (k.User, k.Point(1), "value", "expected tests.unit.codec.kinds.User"),
    (k.Wrapped[date], k.Wrapped(content=date(2024, 1, 1)), "value", "expected"),
    (k.Site, k.Site(url="https://a.b", secret="s"), "value.secret", "does not survive a round trip"),  # type: ignore[arg-type]
    (k.Place, k.Place(path=PurePath("\ud800")), "value.path", "lone surrogate"),
    (k.Site, k.Site.model_construct(url=object()), "value.url", "cannot be sent as"),
    (Any, k.Point(1), "value", "annotate the parameter"),
    (list, [{"a": k.Point(1)}], "value[0]['a']", "annotate the parameter"),
    (k.Box, k.Box(k.Plain()), "value.content", "tests.unit.codec.kinds.Plain cannot be sent as it is"),
]


@pytest.mark.parametrize(("annotation", "value", "path", "fragment"), REFUSED, ids=stable_id)
def test_a_value_that_is_not_an_instance_is_refused_when_it_is_sent(annotation: Any, value: Any, path: str, fragment: str) -> None:
    with pytest.raises(EncodeError) as caught:
        codec_of(annotation).encode_arguments((value,), {})
    assert caught.value.path == path
    assert fragment in str(caught.value)
    assert "in a call of app.job" in str(caught.value)


def spoiled(instance: Any, **fields: Any) -> Any:
    """Return an instance whose fields were changed without its constructor."""
    for name, value in fields.items():
        if isinstance(instance, Struct):
            structs.force_setattr(instance, name, value)
        else:
            object.__setattr__(instance, name, value)
    return instance


@pytest.mark.parametrize(
    ("kind", "instance"),
    [
        (k.Positive, spoiled(k.Positive(1), value=-1)),
        (k.Model, spoiled(k.Model(size=1), size=-1)),
        (k.Checked, spoiled(k.Checked(value=1), value=-1)),
        (k.Car, spoiled(k.Car(4), doors=-1)),
        (k.User, k.User.model_construct(id=0, name="", born=None, tags=set())),
    ],
    ids=stable_id,
)
def test_an_instance_that_its_class_would_refuse_is_refused_where_it_is_sent(kind: Any, instance: Any) -> None:
    """Validation really runs at enqueue; otherwise the worker would be the first to notice."""
    for annotation in (kind, list[kind], kind | None, dict[str, kind | int]):
        wrapped = {kind: instance, list[kind]: [instance], dict[str, kind | int]: {"a": instance}}.get(annotation, instance)
        with pytest.raises(EncodeError, match="rejected its fields") as caught:
            codec_of(annotation).encode_arguments((wrapped,), {})
        assert caught.value.__cause__ is not None
        with pytest.raises(EncodeError, match=r"in the result of app\.job"):
            codec_of(Any, annotation).encode_result(wrapped)


def test_a_field_without_a_value_is_named() -> None:
    with pytest.raises(EncodeError, match=r"value\.base: has no value"):
        codec_of(k.Computed).encode_arguments((object.__new__(k.Computed),), {})


def test_a_newer_class_is_distinguished_from_a_broken_payload() -> None:
    """An old worker parks an instance with an extra field; a missing required field fails at once."""

    @dataclass
    class Newer:
        x: int
        z: int

    newer = codec_of(Newer).encode_arguments((Newer(1, 2),), {})
    with pytest.raises(UnknownArgument) as unknown:
        codec_of(k.Point).decode_arguments(newer)
    assert unknown.value.path == "value"
    assert "'z'" in str(unknown.value)
    older = codec_of(k.Point).encode_arguments((k.Point(1),), {}).replace(b"\xa1y", b"\xa1z")
    with pytest.raises(MissingArgument, match="lacks 'x'"):
        codec_of(Newer).decode_arguments(older.replace(b"\x82\xa1x\x01", b"\x81"))
