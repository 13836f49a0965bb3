"""Every kind of value comes back as it was sent: same type, same value, including the sign of zero and the fold of a wall time."""

from __future__ import annotations

import collections.abc as abc
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest

from taskflow.model.codec import decode_value, encode_value
from taskflow.model.errors import EncodeError
from tests.support.ids import short_id, stable_id
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of, same, there_and_back
from tests.unit.codec.golden_cases import ARGUMENTS, CALL, EVERY_PARAMETER, FOLDER, NAMES, golden, payload_of
from tests.unit.codec.values import ANNOTATED, PARIS, SELF_DESCRIBING


@pytest.mark.parametrize("value", SELF_DESCRIBING, ids=short_id)
def test_without_annotation_all_is_exact(value: Any) -> None:
    assert same(decode_value(encode_value(value)), value)
    assert same(there_and_back(Any, value), value)
    assert same(there_and_back(object, [value]), [value])


SCALARS: dict[type, Any] = {type(value): value for value in SELF_DESCRIBING if not isinstance(value, list | tuple | set | frozenset | dict)}


@pytest.mark.parametrize("value", SCALARS.values(), ids=lambda value: type(value).__name__)
def test_the_encoding_of_a_value_does_not_depend_on_the_annotation(value: Any) -> None:
    """Everything that was sent can therefore be shown without the function, and an annotation may be added later."""
    annotated = codec_of(type(value)).encode_arguments((value,), {})
    assert annotated == codec_of(Any).encode_arguments((value,), {})
    assert same(decode_value(annotated), {"value": value})


@pytest.mark.parametrize(("annotation", "value"), ANNOTATED, ids=stable_id)
def test_annotated_values_are_exact(annotation: Any, value: Any) -> None:
    assert same(there_and_back(annotation, value), value)


class SafeString(str):
    """Django marks text that is safe in HTML this way."""

    __slots__ = ()

    def __str__(self) -> str:
        return self


CONVERTED: list[tuple[Any, Any, Any]] = [
    (Any, SafeString("<b>"), "<b>"),
    (Any, k.Level.HIGH, 2),
    (Any, {k.Mode.FAST: [k.Level.LOW]}, {"fast": [1]}),
    (Any | k.Point, type("Metres", (float,), {})(0.5), 0.5),
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
def test_a_value_that_type_checkers_accept_is_decoded_as_annotated(annotation: Any, value: Any, expected: Any) -> None:
    assert same(there_and_back(annotation, value), expected)


def test_a_reader_whose_zone_data_differ_keeps_the_instant() -> None:
    payload = encode_value(datetime(2024, 7, 1, 12, tzinfo=PARIS))
    elsewhere = payload.replace(b"+02:00", b"+03:00")
    decoded = decode_value(elsewhere)
    assert decoded == datetime(2024, 7, 1, 9, tzinfo=UTC)
    assert decoded.tzinfo is PARIS


@pytest.mark.parametrize("annotation", [Any, str])
def test_a_lazy_text_is_refused(annotation: Any) -> None:
    """Its text depends on the language that is active where it is evaluated, which may be the worker."""
    lazy = pytest.importorskip("django.utils.functional").lazystr("a")
    with pytest.raises(EncodeError, match="__proxy__"):
        codec_of(annotation).encode_arguments((lazy,), {})
    assert there_and_back(annotation, str(lazy)) == "a"


# --- golden files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_payloads_are_written_as_before(name: str) -> None:
    assert payload_of(name).hex(" ") == golden(name).hex(" ")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_payloads_written_before_are_still_read(name: str) -> None:
    annotation, value = ARGUMENTS[name]
    [decoded], _ = codec_of(annotation).decode_arguments(golden(name))
    assert decoded == value if name.endswith("_enum_unannotated") else same(decoded, value)  # arrives as plain text or number


def test_a_whole_call_is_still_read() -> None:
    assert EVERY_PARAMETER.decode_arguments(golden("every_parameter")) == CALL


def test_each_file_has_its_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.hex")} == set(NAMES)
