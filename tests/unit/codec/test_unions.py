"""A union gives back the member that was sent, or is refused when it is declared."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID

import pytest

from taskflow.model.errors import DeclarationError, DecodeError, EncodeError
from tests.support.ids import stable_id
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of, same, there_and_back

STRINGS = str | date | datetime | time | timedelta | UUID | Decimal | bytes | bytearray
ARRAYS = list[int] | tuple[int, ...] | set[int] | frozenset[int] | dict[int, int]
CLASSES = k.Point | k.Spot | k.Wire | k.Car | k.User | k.Pin | dict[str, Any] | None
NUMBERS = bool | int | float | Decimal

MEMBERS: list[tuple[Any, list[Any]]] = [
    (
        STRINGS,
        ["2024-01-01", date(2024, 1, 1), datetime(2024, 1, 1), time(1), timedelta(1), UUID(int=1), Decimal(1), b"a", bytearray(b"a")],
    ),
    (ARRAYS, [[1], (1,), {1}, frozenset({1}), {1: 1}, [], (), set(), frozenset(), {}]),
    (CLASSES, [k.Point(1), k.Spot(1), k.Wire(1), k.Car(1), k.User(id=1), k.Pin(1), {"x": 1, "y": 0.0}, None]),
    (NUMBERS, [True, 1, 1.0, Decimal(1), 2**70]),
    (k.Color | str | k.Mode | None, [k.Color.RED, "red", k.Mode.FAST, None]),
    (k.Level | int | k.Rights | bool, [k.Level.LOW, 1, k.Rights.READ, True]),
    (Literal["auto"] | int, ["auto", 1]),
    (Literal["auto"] | str, ["auto", "other"]),
    (Literal["a", 1] | Literal["b", 2] | None, ["a", 1, "b", 2, None]),
    (Literal[k.Color.RED] | str, [k.Color.RED, "red"]),
    (k.UserId | str | int, [1, "a"]),
    (k.Movie | k.Point, [{"title": "a"}, k.Point(1)]),
    (Any | k.Point, [k.Point(1), {"x": 1}, (1,), "a"]),
    (Any | int | None, [1, None, "a"]),
    (k.Json | date, [{"a": [1]}, date(2024, 1, 1), None]),
    (k.Box[int] | k.Crate[str], [k.Box(1), k.Crate("a")]),
    (tuple[int, str] | list[str], [(1, "a"), ["a"]]),
    (list[k.Point | k.Spot] | k.Point, [[k.Point(1), k.Spot(1)], k.Point(1)]),
]
CASES = [(annotation, member) for annotation, members in MEMBERS for member in members]


@pytest.mark.parametrize(("annotation", "value"), CASES, ids=stable_id)
def test_each_member_comes_back_as_itself(annotation: Any, value: Any) -> None:
    assert same(there_and_back(annotation, value), value)
    assert same(there_and_back(list[annotation], [value, value]), [value, value])
    codec = codec_of(Any, annotation)
    assert same(codec.decode_result(codec.encode_result(value)), value)


def test_an_instance_of_a_subclass_is_written_as_the_member_that_it_belongs_to() -> None:
    assert same(there_and_back(str | int | None, k.Mode.FAST), "fast")
    assert same(there_and_back(int | str | None, k.Level.LOW), 1)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (int | str, True, r"expected int \| str, got bool"),
        (int | str | None, 1.5, r"got float"),
        (k.Point | k.Spot, k.Wire(1), r"got tests\.unit\.codec\.kinds\.Wire"),
        (Literal["a"] | int, "b", r"expected one of 'a'"),
        (Literal["a"] | None, "b", r"expected one of 'a'"),
        (date | str, datetime(2024, 1, 1), r"expected date, got datetime"),
    ],
    ids=stable_id,
)
def test_what_is_no_member_is_refused(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        codec_of(annotation).encode_arguments((value,), {})


@pytest.mark.parametrize("other", [int | str, k.Point | k.Spot, bool | bytes])
def test_a_payload_of_another_union_is_refused(other: Any) -> None:
    payload = codec_of(date | k.Lamp | k.Wire).encode_arguments((k.Lamp(True),), {})
    with pytest.raises(DecodeError, match=r"value: expected .*, got tagged object"):
        codec_of(other).decode_arguments(payload)


def namesake() -> type:
    @dataclass
    class Point:
        a: int

    return Point


class Other(Enum):
    RED = "red"


Other.__name__ = "Color"


@pytest.mark.parametrize(
    ("annotation", "fragment"),
    [
        (k.Point | namesake(), "ambiguous: both are sent with the name Point; give one of the classes another name"),
        (k.Color | Other, "ambiguous"),
        (k.Box[int] | k.Box[str], "ambiguous"),
        (list[int] | list[str], "list.int. and list.str. is ambiguous"),
        (dict[str, int] | dict[str, str], "ambiguous"),
        (k.Movie | dict[str, int], "ambiguous"),
        (
            k.Movie | k.Partial,
            r"ambiguous: their values look alike when sent \(a TypedDict is .*\); make each a dataclass",
        ),
        (Literal["a", "b"] | Literal["b", "c"], "'b' is in two"),
        (Literal["a", "b"] | Literal["b"] | None, "'b' is in two"),
        (Any | list[k.Point], "ambiguous"),
        (tuple[int, ...] | tuple[str, str], "ambiguous"),
    ],
    ids=stable_id,
)
def test_an_ambiguous_union_is_refused_when_it_is_declared(annotation: Any, fragment: str) -> None:
    with pytest.raises(DeclarationError, match=f"app.job: value: .*{fragment}"):
        codec_of(annotation)


@dataclass
class Film:
    title: str


@dataclass
class Series:
    title: str


def test_the_advice_for_a_result_of_two_typed_dicts_helps_when_it_is_followed() -> None:
    with pytest.raises(DeclarationError, match=r"app.job: return: the union of .*Movie and .*Partial .*make each a dataclass"):
        codec_of(Any, k.Movie | k.Partial)
    codec = codec_of(Any, Film | Series)
    assert codec.decode_result(codec.encode_result(Series("a"))) == Series("a")
