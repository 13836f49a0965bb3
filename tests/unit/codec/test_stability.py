"""A value that its class would change on the way is refused where it is sent; one that only looks different passes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import attrs
import msgspec
import pydantic
import pytest

from taskflow.model.codec import payload
from taskflow.model.errors import EncodeError
from tests.unit.codec import exactly, kinds as k
from tests.unit.codec.exactly import codec_of, there_and_back


class Cents(pydantic.BaseModel):
    amount: int

    @pydantic.field_validator("amount")
    @classmethod
    def to_cents(cls, value: int) -> int:
        return value * 100


def _times_hundred(value: int) -> int:
    return value * 100


@attrs.define
class Converted:
    amount: int = attrs.field(converter=_times_hundred)


@dataclass
class Doubled:
    amount: int

    def __post_init__(self) -> None:
        self.amount *= 2


@dataclass
class OwnInit:
    amount: int

    def __init__(self, amount: int) -> None:
        self.amount = amount * 2


class Struct(msgspec.Struct):
    amount: int

    def __post_init__(self) -> None:
        self.amount *= 2


class Sized(NamedTuple("Sized", [("amount", int)])):
    def __new__(cls, amount: int) -> Sized:
        return super().__new__(cls, amount * 2)


@dataclass
class Texting:
    """When created a second time, it no longer matches its own annotation."""

    amount: Any

    def __post_init__(self) -> None:
        self.amount = Unsendable() if self.amount == "twice" else "twice"


class Unsendable:
    pass


CHANGING: list[tuple[Any, Any]] = [
    (Cents, Cents(amount=3)),
    (Converted, Converted(3)),
    (Doubled, Doubled(3)),
    (OwnInit, OwnInit(3)),
    (Struct, Struct(3)),
    (Sized, Sized(3)),
    (Texting, Texting("once")),
]


@pytest.mark.parametrize(("kind", "value"), CHANGING, ids=[kind.__name__ for kind, _ in CHANGING])
def test_a_value_that_its_class_changes_is_refused_where_it_is_sent(kind: Any, value: Any) -> None:
    """3, then 300, then 30,000: the change would go unnoticed."""
    for annotation, wrapped in ((kind, value), (list[kind], [value]), (dict[str, kind | None], {"a": value})):
        with pytest.raises(EncodeError, match=r"is changed by its class when it is decoded, .*in a call of app\.job") as caught:
            codec_of(annotation).encode_arguments((wrapped,), {})
        assert caught.value.path.endswith((".amount", ".name"))
        assert caught.value.path.startswith("value")
        with pytest.raises(EncodeError, match=r"is changed by its class .*in the result of app\.job"):
            codec_of(Any, annotation).encode_result(wrapped)


@dataclass
class Normal:
    """Its constructor changes its input, but not its own output."""

    words: set[str]
    ratio: float = math.nan
    any: Any = None

    def __post_init__(self) -> None:
        self.words = {word.lower() for word in self.words}


def test_a_value_that_its_class_leaves_alone_passes() -> None:
    value = Normal({"A", "B"})
    assert there_and_back(Normal, value).words == {"a", "b"}
    assert there_and_back(list[Normal], [Normal({"A"}, -0.0)])[0].ratio == 0.0


def test_plain_types_are_not_decoded_where_they_are_sent() -> None:
    """Only user code can change values, so plain types skip the check."""
    plain: list[tuple[Any, Any]] = [
        (int, 1), (Any, {"a": [1]}), (k.Point, k.Point(1)), (k.Frozen, k.Frozen("a")), (k.Wire, k.Wire(1)), (k.Lamp, k.Lamp(True)),
        (k.Pin, k.Pin(1)), (k.Movie, {"title": "a"}), (k.Color, k.Color.RED), (k.Box[int], k.Box(1)), (k.IntBox, k.IntBox(1)),
    ]  # fmt: skip
    with (
        mock.patch.object(payload, "unpack", side_effect=AssertionError),
        mock.patch.object(payload, "check_stable", side_effect=AssertionError),
    ):
        for annotation, value in plain:
            codec_of(annotation).encode_arguments((value,), {})


# --- pydantic: what a model knows besides its fields --------------------------------------------------------------------


COUNTER: Iterator[int] = iter(range(1_000_000))


class Patch(pydantic.BaseModel):
    name: str | None = None
    email: str | None = None
    tags: list[str] = []
    stamp: int = pydantic.Field(default_factory=lambda: next(COUNTER))
    _seen: int = pydantic.PrivateAttr(0)
    _notes: dict[str, Any] = pydantic.PrivateAttr(default_factory=dict)


@pytest.mark.parametrize("given", [{}, {"name": None}, {"name": "a", "email": None}, {"tags": []}, {"stamp": -1}], ids=str)
def test_a_model_knows_which_fields_were_given(given: dict[str, Any]) -> None:
    """Otherwise a PATCH overwrites fields that it never named with None."""
    patch = Patch(**given)
    for annotation, value in ((Patch, patch), (Patch | None, patch), (Patch | k.Point, patch)):
        back = there_and_back(annotation, value)
        assert back.model_fields_set == patch.model_fields_set == set(given)
        assert back.model_dump(exclude_unset=True) == given
        assert back == patch
        assert back.stamp == patch.stamp, "what a factory made is not made again"


class Client:
    """Has no equality, and cannot be sent: the class creates its own."""


class WithClient(pydantic.BaseModel):
    name: str
    _client: Client = pydantic.PrivateAttr(default_factory=Client)


class WithPoint(pydantic.BaseModel):
    name: str
    _point: k.Point = pydantic.PrivateAttr(default_factory=lambda: k.Point(1))


def test_a_private_attribute_without_a_form_is_made_anew_or_refused() -> None:
    back = there_and_back(WithClient, WithClient(name="a"))
    assert isinstance(back._client, Client)
    with pytest.raises(EncodeError, match=r"value\._point: is a private attribute of a model and cannot be sent: make it a field"):
        codec_of(WithPoint).encode_arguments((WithPoint(name="a"),), {})


@pytest.mark.parametrize("extra", [{}, {"z": 1}, {"b": (1, {2}), "c": {"d": b"e"}, "not a name": None}], ids=str)
def test_extra_fields_travel_where_the_model_allows_them(extra: dict[str, Any]) -> None:
    model = k.Open(a=1, **extra)
    for annotation, value in ((k.Open, model), (k.Open | None, model), (k.Open | k.Point, model)):
        back = there_and_back(annotation, value)
        assert exactly.same(back.model_extra, extra)
        assert back == model
        assert back.model_fields_set == model.model_fields_set
