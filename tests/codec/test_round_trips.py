"""Every kind of value comes back as it went: same type, same value, to the sign of zero and the fold of a wall time."""

from __future__ import annotations

import collections.abc as abc
import math
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Any, Literal, LiteralString
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from taskflow.model.codec import decode_value, encode_value
from tests.codec import kinds as k
from tests.codec.exactly import codec_of, same, there_and_back
from tests.support.ids import short_id, stable_id

PARIS = ZoneInfo("Europe/Paris")
CET = timezone(timedelta(hours=1), "CET")

SELF_DESCRIBING: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    -(2**63),
    -(2**63) - 1,
    10**400,
    -(10**400),
    0.0,
    -0.0,
    1e308,
    5e-324,
    math.inf,
    -math.inf,
    math.nan,
    "",
    "text",
    "é😀\x00",
    b"",
    b"\xff\x00",
    bytearray(b""),
    bytearray(b"\xff"),
    Decimal("0"),
    Decimal("-0"),
    Decimal("1.10"),
    Decimal("1E+999999"),
    Decimal("-1E-999999"),
    Decimal("NaN"),
    Decimal("-sNaN123"),
    Decimal("-Infinity"),
    UUID(int=0),
    UUID("12345678-1234-5678-1234-567812345678"),
    date.min,
    date.max,
    datetime.min,
    datetime.max,
    datetime(2024, 2, 29, 12, 30, 1, 5),
    datetime(2024, 2, 29, tzinfo=UTC),
    datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    datetime(2024, 2, 29, tzinfo=timezone(timedelta(seconds=1, microseconds=5))),
    datetime(2024, 2, 29, tzinfo=CET),
    datetime(2024, 2, 29, tzinfo=timezone(timedelta(0), "")),
    datetime(2024, 2, 29, tzinfo=timezone(timedelta(0), "[é]~")),
    datetime(2024, 7, 1, tzinfo=PARIS),
    datetime(2024, 10, 27, 2, 30, tzinfo=PARIS, fold=0),
    datetime(2024, 10, 27, 2, 30, tzinfo=PARIS, fold=1),
    datetime(2024, 3, 31, 2, 30, tzinfo=PARIS, fold=0),
    datetime(2024, 3, 31, 2, 30, tzinfo=PARIS, fold=1),
    datetime(1800, 1, 1, tzinfo=PARIS),
    datetime.min.replace(tzinfo=PARIS),
    datetime(2024, 1, 1, fold=1),
    datetime(2024, 2, 29, tzinfo=timezone(timedelta(microseconds=5))),
    datetime(2024, 2, 29, tzinfo=timezone(-timedelta(microseconds=5), "x")),
    time(1, tzinfo=timezone(-timedelta(microseconds=5))),
    timezone(timedelta(microseconds=1)),
    time(1, 2, 3, 4),
    time(1, 2, fold=1),
    time(1, tzinfo=UTC),
    time(1, tzinfo=CET),
    time(1, tzinfo=PARIS, fold=1),
    timedelta(0),
    timedelta.min,
    timedelta.max,
    timedelta.resolution,
    -timedelta.resolution,
    UTC,
    CET,
    timezone(timedelta(hours=-23, minutes=-59)),
    timezone(timedelta(hours=5, minutes=30), "UTC+05:30"),
    PARIS,
    ZoneInfo("Etc/GMT+5"),
    [],
    [1, "a", [None]],
    (),
    (1, (2,), []),
    set(),
    {1, 2.5, "a", (1, 2), frozenset({3}), None, Decimal(7), b"b"},
    frozenset(),
    frozenset({date(2024, 1, 1)}),
    {},
    {"a": 1, "": {"b": (1,)}},
    {1: "int", "1": "str", (1, 2): "tuple", None: "none", 2.5: "float", b"b": "bytes", frozenset(): "frozenset"},
    {True: 1},
    {math.nan: 1},
    {date(2024, 1, 1): {UUID(int=1): {1: 2}}},
    [[["deep"] * 3] * 3],
]


@pytest.mark.parametrize("value", SELF_DESCRIBING, ids=short_id)
def test_without_annotation_all_is_exact(value: Any) -> None:
    assert same(decode_value(encode_value(value)), value)
    assert same(there_and_back(Any, value), value)
    assert same(there_and_back(object, [value]), [value])


SCALARS: dict[type, Any] = {type(value): value for value in SELF_DESCRIBING if not isinstance(value, list | tuple | set | frozenset | dict)}


@pytest.mark.parametrize("value", SCALARS.values(), ids=lambda value: type(value).__name__)
def test_what_a_type_writes_does_not_depend_on_the_annotation(value: Any) -> None:
    """So whatever was sent can be shown, and an annotation may be added later, without knowing the function."""
    annotated = codec_of(type(value)).encode_arguments((value,), {})
    assert annotated == codec_of(Any).encode_arguments((value,), {})
    assert same(decode_value(annotated), {"value": value})


@pytest.mark.parametrize("value", [value for value in SELF_DESCRIBING if type(value) in SCALARS], ids=short_id)
def test_annotated_scalars_are_exact(value: Any) -> None:
    kind: Any = type(value)
    for annotation in (kind, kind | None, kind | int | str, Annotated[kind, "why"]):
        assert same(there_and_back(annotation, value), value)
    assert same(there_and_back(list[kind], [value]), [value])


ANNOTATED: list[tuple[Any, Any]] = [
    (list[int], [1, 2**70]),
    (list, [1, "a"]),
    (list[list[str]], [["a"], []]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (tuple[()], ()),
    (tuple, (1, "a", None)),
    (set[int], {1, 2}),
    (set, {1, "a"}),
    (frozenset[tuple[int, str]], frozenset({(1, "a")})),
    (dict[str, int], {"a": 1}),
    (dict[int, str], {1: "a", 2**70: "b"}),
    (dict[date, list[Decimal]], {date(2024, 1, 1): [Decimal("1.0")]}),
    (dict[tuple[int, int], str], {(1, 2): "a"}),
    (dict[k.Mode, int], {k.Mode.FAST: 1}),
    (dict[k.Color | str, int], {k.Color.RED: 1, "red": 2}),
    (dict[bool, int], {True: 1}),
    (dict, {1: 2, "a": "b"}),
    (abc.Mapping[str, int], {"a": 1}),
    (abc.MutableMapping[int, int], {1: 1}),
    (abc.Sequence[int], [1]),
    (abc.Sequence[int], (1,)),
    (abc.Iterable[int], {1}),
    (abc.Iterable, frozenset({1})),
    (abc.Collection[int], [1]),
    (abc.Set[int], frozenset({1})),
    (abc.MutableSet[int], {1}),
    (abc.MutableSequence[int], [1]),
    (abc.Reversible[int], (1, 2)),
    (tzinfo, PARIS),
    (tzinfo, CET),
    (LiteralString, "a"),
    (k.UserId, 7),
    (k.T, [1, (2,)]),
    (k.N, 2**70),
    (k.Usual, date(2024, 1, 1)),
    (k.Either, "a"),
    (k.Json, {"a": [1, None, {"b": 1.5}]}),
    (list[k.Json], [[[[1]]]]),
    (k.Pair[int], (1, 2)),
    (Literal["a", 1, True, None, b"b"], True),
    (Literal["a", 1, True, None, b"b"], 1),
    (Literal["a", 1, True, None, b"b"], None),
    (Literal["a", 1, True, None, b"b"], b"b"),
    (Literal[k.Color.RED, "red"], k.Color.RED),
    (Literal[k.Color.RED, "red"], "red"),
    (k.Color, k.Color.CRIMSON),
    (k.Holiday, k.Holiday.LABOUR),
    (k.Holiday, k.Holiday.NOTHING),
    (k.Holiday, k.Holiday.PAIR),
    (k.Holiday, k.Holiday.HALF),
    (k.Level, k.Level.HIGH),
    (k.Mode, k.Mode.SLOW),
    (k.Rights, k.Rights.READ | k.Rights.WRITE),
    (k.Rights, k.Rights(0)),
    (k.Bits, k.Bits.ONE | k.Bits.FOUR),
    (None, None),
]


@pytest.mark.parametrize(("annotation", "value"), ANNOTATED, ids=stable_id)
def test_annotated_values_are_exact(annotation: Any, value: Any) -> None:
    assert same(there_and_back(annotation, value), value)


@pytest.mark.parametrize(("annotation", "value"), ANNOTATED, ids=stable_id)
def test_results_are_exact_as_arguments_are(annotation: Any, value: Any) -> None:
    codec = codec_of(Any, annotation)
    assert same(codec.decode_result(codec.encode_result(value)), value)


CONVERTED: list[tuple[Any, Any, Any]] = [
    (float, 3, 3.0),
    (float | None, 3, 3.0),
    (float | str, 3, 3.0),
    (int | float, 3, 3),
    (list[float], [1, 2.5], [1.0, 2.5]),
    (float, 2**60, float(2**60)),
    (int, k.Level.HIGH, 2),
    (str, k.Mode.FAST, "fast"),
    (str | int, k.Mode.FAST, "fast"),
    (float, type("F", (float,), {})(1.5), 1.5),
    (bytes, type("B", (bytes,), {})(b"b"), b"b"),
    (list[int], type("L", (list,), {})([1]), [1]),
    (tuple[int, ...], k.Pin(1)[:1], (1,)),
    (dict[str, int], type("D", (dict,), {})({"a": 1}), {"a": 1}),
    (abc.Sequence[int], range(3), [0, 1, 2]),
    (abc.Set[str], {"a": 1}.keys(), {"a"}),
    (abc.Iterable[str], {"a": 1}.keys(), ["a"]),
    (abc.Mapping[str, int], MappingProxyType({"a": 1}), {"a": 1}),
    (datetime, type("Later", (datetime,), {})(2024, 1, 1), datetime(2024, 1, 1)),
]


@pytest.mark.parametrize(("annotation", "value", "expected"), CONVERTED, ids=stable_id)
def test_what_a_type_checker_lets_pass_comes_back_as_annotated(annotation: Any, value: Any, expected: Any) -> None:
    assert same(there_and_back(annotation, value), expected)


def test_another_kind_of_zone_is_kept_as_its_offset() -> None:
    """dateutil's and pytz's zones have no key that is certain to be known elsewhere."""

    class Foreign(tzinfo):
        def utcoffset(self, moment: datetime | None) -> timedelta:
            return timedelta(hours=3)

        def tzname(self, moment: datetime | None) -> str:
            return "MSK"

        def dst(self, moment: datetime | None) -> None:
            return None

    moment = datetime(2024, 1, 1, tzinfo=Foreign())
    decoded = there_and_back(datetime, moment)
    assert decoded == moment
    assert same(decoded, datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=3))))


def test_a_reader_whose_zone_data_differ_keeps_the_instant() -> None:
    payload = encode_value(datetime(2024, 7, 1, 12, tzinfo=PARIS))
    elsewhere = payload.replace(b"+02:00", b"+03:00")
    decoded = decode_value(elsewhere)
    assert decoded == datetime(2024, 7, 1, 9, tzinfo=UTC)
    assert decoded.tzinfo is PARIS
