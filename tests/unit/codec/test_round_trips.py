"""Every kind of value comes back as it went: same type, same value, to the sign of zero and the fold of a wall time."""

from __future__ import annotations

import collections.abc as abc
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from types import MappingProxyType
from typing import Annotated, Any

import pytest

from taskflow.model.codec import decode_value, encode_value
from tests.support.ids import short_id, stable_id
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of, same, there_and_back
from tests.unit.codec.values import ANNOTATED, PARIS, SELF_DESCRIBING


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
