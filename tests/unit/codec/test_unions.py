"""A union returns the member that was sent, or is refused when it is declared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
from typing_extensions import TypedDict

from taskflow.model.codec import seal_json
from taskflow.model.errors import DeclarationError, EncodeError, MissingArgument, UnknownArgument
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
    (Literal["auto"] | str, ["auto", "other"]),
    (Literal["a", 1] | Literal["b", 2] | None, ["a", 1, "b", 2, None]),
    (Literal[k.Color.RED] | str, [k.Color.RED, "red"]),
    (k.Movie | k.Point, [{"title": "a"}, k.Point(1)]),
    (Any | k.Point, [k.Point(1), {"x": 1}, (1,), "a"]),
    (k.Json | date, [{"a": [1]}, date(2024, 1, 1), None]),
    (list[k.Point | k.Spot] | k.Point, [[k.Point(1), k.Spot(1)], k.Point(1)]),
    (Path | str, [Path("a"), "a"]),
    (k.Money | k.Node | str | list[int] | None, [k.Money(Decimal(1), "EUR"), k.Node([]), "a", [1], None]),
    (Any | k.Money, [k.Money(Decimal(1), "EUR"), k.Node([]), 1]),
    (Any | k.Point, [k.Point(1), k.Money(Decimal(1), "EUR"), Path("a")]),
    (k.Movie | k.Partial, [{"title": "a"}, {"title": "a", "year": 1}, {"title": "a", "director": "b"}]),
    (k.Created | k.Deleted, [{"kind": "restored", "id": 1}, {"kind": "created", "id": 1, "by": "a"}, {"kind": "deleted", "id": 1}]),
    (
        k.Created | k.Deleted | k.Renamed | k.Point | None,
        [{"kind": "deleted", "id": 1}, {"id": 1, "name": "a", "parts": [{"kind": "created", "id": 2}]}, k.Point(1), None],
    ),
]
CASES = [(annotation, member) for annotation, members in MEMBERS for member in members]


@pytest.mark.parametrize(("annotation", "value"), CASES, ids=stable_id)
def test_each_member_comes_back_as_itself(annotation: Any, value: Any) -> None:
    assert same(there_and_back(annotation, value), value)
    assert same(there_and_back(list[annotation], [value, value]), [value, value])
    codec = codec_of(Any, annotation)
    assert same(codec.decode_result(codec.encode_result(value)), value)


class Series(TypedDict):
    title: str
    year: int


class Restored(TypedDict):
    kind: Literal["restored"]
    id: int


def namesake() -> type:
    @dataclass
    class Point:
        a: int

    return Point


@pytest.mark.parametrize(
    ("annotation", "fragment"),
    [
        (k.Point | namesake(), "ambiguous: both are sent with the name Point; give one of the classes another name"),
        (k.Box[int] | k.Box[str], "ambiguous"),
        (list[int] | list[str], "list.int. and list.str. is ambiguous"),
        (k.Movie | dict[str, Any], r"ambiguous: their values look alike when sent \(a TypedDict is .*\); make each a dataclass"),
        (k.Movie | Series, "a dict may fit both; give each a required key whose Literal differs, or make each a dataclass"),
        (k.Created | Restored, "a dict may fit both"),
        (k.Holder[int] | k.Holder[str], "a dict may fit both"),
        (Literal["a", "b"] | Literal["b", "c"], "'b' is in two"),
        (Any | list[k.Point], "ambiguous"),
        (tuple[int, ...] | tuple[str, str], "ambiguous"),
    ],
    ids=stable_id,
)
def test_an_ambiguous_union_is_refused_when_it_is_declared(annotation: Any, fragment: str) -> None:
    with pytest.raises(DeclarationError, match=f"app.job: value: .*{fragment}"):
        codec_of(annotation)


EVENTS = k.Created | k.Deleted | k.Renamed


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        ({"kind": "created", "id": "1"}, "value['id']", "expected int, got str"),
        ({"kind": "created"}, "value", "lacks 'id', which .*Created requires"),
        ({"kind": "deleted", "id": 1, "by": "a"}, "value", "has 'by', which .*Deleted does not define"),
        ({"kind": "lost", "id": 1}, "value", "has 'kind', which .*Renamed does not define"),
        ({"id": 1, "name": "a", "parts": [{"kind": "deleted", "id": None}]}, "value['parts'][0]['id']", "expected int, got NoneType"),
        (5, "value", "got int"),
        ({1: 2}, "value", "has 1, which .*Renamed does not define"),
    ],
    ids=stable_id,
)
def test_a_dict_that_fits_no_typed_dict_is_refused_for_the_one_that_it_is_nearest_to(value: Any, path: str, message: str) -> None:
    with pytest.raises(EncodeError, match=message) as refused:
        codec_of(EVENTS).encode_arguments((value,), {})
    assert refused.value.path == path


class Newer(TypedDict):
    kind: Literal["created"]
    id: int
    since: date


class Untagged(TypedDict):
    title: str
    length: int


@pytest.mark.parametrize(
    ("union", "sent_as", "value"),
    [
        (EVENTS, Newer, {"kind": "created", "id": 1, "since": date(2024, 1, 1)}),
        (EVENTS, dict[str, str], {"kind": "created"}),
        (k.Movie | Untagged, dict[str, int], {"length": 1, "year": 1}),
    ],
    ids=stable_id,
)
def test_a_dict_of_another_version_of_a_typed_dict_waits_for_its_worker(union: Any, sent_as: Any, value: Any) -> None:
    """It raises an error for which the job parks."""
    payload = codec_of(sent_as).encode_arguments((value,), {})
    with pytest.raises((UnknownArgument, MissingArgument)):
        codec_of(union).decode_arguments(payload)


def test_json_distinguishes_typed_dicts_too() -> None:
    codec = codec_of(list[EVENTS])
    events = [{"kind": "deleted", "id": 1}, {"id": 2, "name": "a", "parts": [{"kind": "restored", "id": 3}]}]
    assert codec.decode_arguments(seal_json(json.dumps({"value": events}).encode())) == ((events,), {})
