"""Content 2: JSON that a SQL trigger or another language writes, decoded leniently by the annotations."""

from __future__ import annotations

import base64
import collections.abc as abc
import json
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from taskflow.model.codec import FunctionCodec, Limits, decode_value, seal_json
from taskflow.model.errors import DecodeError, MissingArgument, UnknownArgument
from tests.support.ids import short_id
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of, same


@dataclass
class Left:
    left: Left | Right | None


@dataclass
class Right:
    right: Left | Right | None


class Alike(Enum):
    TEXT = "1"
    NUMBER = 1
    HALF = 0.5
    DAY = date(2024, 1, 1)
    LISTED = [1, "a"]


def from_json(annotation: Any, value: Any) -> Any:
    [decoded], by_name = codec_of(annotation).decode_arguments(seal_json(json.dumps({"value": value}).encode()))
    assert by_name == {}
    return decoded


READ: list[tuple[Any, Any, Any]] = [
    (int, 2**100, 2**100),
    (int, 1.0, 1),
    (int, 1e300, int(1e300)),
    (float, 1.5, 1.5),
    (float, 10**300, 1e300),
    (float, "Infinity", float("inf")),
    (float, "NaN", float("nan")),
    (bytes, "AP8=", b"\x00\xff"),
    (bytes, base64.encodebytes(bytes(100)).decode(), bytes(100)),
    (bytes, "\\x00fF", b"\x00\xff"),
    (bytearray, "\\x01", bytearray(b"\x01")),
    (Decimal, "1.10", Decimal("1.10")),
    (Decimal, 1.5, Decimal("1.5")),
    (Decimal, "-sNaN1", Decimal("-sNaN1")),
    (UUID, "12345678-1234-5678-1234-567812345678", UUID("12345678-1234-5678-1234-567812345678")),
    (time, "12:30", time(12, 30)),
    (datetime, "2024-02-29T12:30:00.5", datetime(2024, 2, 29, 12, 30, 0, 500000)),
    (datetime, "2024-07-01T12:30:00+02:00[Europe/Paris]", datetime(2024, 7, 1, 12, 30, tzinfo=ZoneInfo("Europe/Paris"))),
    (timedelta, 1.5, timedelta(seconds=1.5)),
    (timedelta, "01:30:00", timedelta(hours=1.5)),
    (timedelta, "-00:00:01.000001", -timedelta(seconds=1, microseconds=1)),
    (timedelta, "-3 days +02:03:04.12", timedelta(days=-3, hours=2, minutes=3, seconds=4.12)),
    (timezone, "+02:00", timezone(timedelta(hours=2))),
    (ZoneInfo, "Europe/Paris", ZoneInfo("Europe/Paris")),
    (tzinfo, "+02:00", timezone(timedelta(hours=2))),
    (list[date], ["2024-01-01"], [date(2024, 1, 1)]),
    (tuple[int, date], [1, "2024-01-01"], (1, date(2024, 1, 1))),
    (set[int], [1, 1], {1}),
    (abc.Set[int], [1], {1}),
    (dict[int, date], {"1": "2024-01-01"}, {1: date(2024, 1, 1)}),
    (dict[bool, float], {"true": 1}, {True: 1.0}),
    (abc.Mapping[Decimal, int], {"1.0": 1}, {Decimal("1.0"): 1}),
    (k.Holiday, "2024-05-01", k.Holiday.LABOUR),
    (k.Wide, 2**70 + 1, k.Wide.LOW | k.Wide.HIGH),
    (k.Wide | int, 2**100, 2**100),
    (Literal[1180591620717411303424, "a"], 2**70, 2**70),
    *((Alike, value, member) for value, member in ((1, Alike.NUMBER), ("1", Alike.TEXT), (0.5, Alike.HALF), ([1, "a"], Alike.LISTED))),
    (Alike, "2024-01-01", Alike.DAY),
    (k.Rights, 3, k.Rights.READ | k.Rights.WRITE),
    (Literal["a", 1, None], 1, 1),
    (Any, {"a": [1, 1.5, None, True, "x", {}]}, {"a": [1, 1.5, None, True, "x", {}]}),
    (date | None, "2024-01-01", date(2024, 1, 1)),
    (date | UUID | int, "12345678-1234-5678-1234-567812345678", UUID("12345678-1234-5678-1234-567812345678")),
    (str | list[date] | dict[str, date], ["2024-01-01"], [date(2024, 1, 1)]),
    (str | list[date] | dict[str, date], {"a": "2024-01-01"}, {"a": date(2024, 1, 1)}),
    (tuple[int, int] | list[int], [1, 2, 3], [1, 2, 3]),
    (k.Lamp | k.Point, {"x": 1}, k.Point(1)),
    (k.Tree | k.Point | int, {"x": 1, "y": 2}, k.Point(1, 2.0)),
    (k.Tree, {"value": 1, "children": [{"value": 2}]}, k.Tree(1, [k.Tree(2)])),
    (k.Tree | None, {"value": 1, "parent": {"value": 2}}, k.Tree(1, [], k.Tree(2))),
    (k.Tree | k.Point, {"value": 1, "parent": {"value": 2}}, k.Tree(1, [], k.Tree(2))),
    (k.User, {"id": 1, "born": "2024-01-01", "tags": ["x"]}, k.User(id=1, born=date(2024, 1, 1), tags={"x"})),
]


@pytest.mark.parametrize(("annotation", "value", "expected"), READ, ids=short_id)
def test_json_is_read_as_annotated(annotation: Any, value: Any, expected: Any) -> None:
    assert same(from_json(annotation, value), expected)


BAD: list[tuple[Any, Any, str, str]] = [
    (int, 1.5, "value", "expected int, got float"),
    (int, True, "value", "expected int, got bool"),
    (float, "inf", "value", "expected float, got str"),
    (float, 10**400, "value", "beyond the range of a float"),
    (bytes, "!", "value", "base64"),
    (bytes, "\\x0", "value", "base64"),
    (bytes, "é", "value", "base64"),
    (Decimal, "1_0", "value", "expected a Decimal"),
    (Decimal, "\u0661", "value", "expected a Decimal"),
    (Decimal, "1E99999999999999999999", "value", "exponent is out of range"),
    (Decimal, None, "value", "expected Decimal as a string or number"),
    (datetime, "x", "value", "expected a datetime"),
    (timedelta, "1", "value", "number of seconds"),
    (timedelta, "1 mon", "value", "number of seconds"),
    (timedelta, "1 day02:00:00", "value", "number of seconds"),
    (timedelta, "999999999 days 24:00:00", "value", "beyond a billion days"),
    (timedelta, 1e300, "value", "beyond a billion days"),
    (timezone, "Europe/Paris", "value", "expected the offset"),
    (ZoneInfo, "../etc/passwd", "value", "expected the key"),
    (list[int], ["a"], "value[0]", "expected int"),
    (set[tuple[int, list[int]]], [[1, [2]]], "value", "cannot be a key"),
    (dict[int, int], {"a": 1}, "value.<key>", "is not JSON"),
    (dict[str, int], {"a": "b"}, "value[<str>]", "expected int"),
    (dict[str, int], [], "value", "expected dict[str, int], got list"),
    (k.Rights, 4, "value", "unknown bits"),
    (k.Wide, 1 << 65, "value", "unknown bits"),
    (k.Wide, -(1 << 300), "value", "unknown bits"),
    (Alike, 2**64, "value", "expected "),
    (Literal[1, "a"], [2**70], "value", "expected "),
    (Literal["a"] | None, {"a": [10**300]}, "value", "expected "),
    (k.Rights, "4", "value", "as an int"),
    (int | date, "x", "value", "expected int | date, got str"),
    (k.Lamp | k.Point, {"z": 1}, "value", "expected"),
    (k.Point, {"x": "a"}, "value.x", "expected int"),
    (k.User, {"id": 0}, "value", "rejected its fields: ValidationError"),
]


@pytest.mark.parametrize(("annotation", "value", "path", "message"), BAD, ids=short_id)
def test_json_that_does_not_fit_is_a_decode_error(annotation: Any, value: Any, path: str, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        from_json(annotation, value)
    assert caught.value.path == path
    assert message in str(caught.value)


WRITTEN: list[tuple[Any, str, Any]] = [
    (Decimal, "1.10", Decimal("1.10")),
    (Decimal, "0.12345678901234567890123", Decimal("0.12345678901234567890123")),
    (Decimal, "1e-400", Decimal("1e-400")),
    (Decimal, "1" + "0" * 400, Decimal("1" + "0" * 400)),
    (float, "1.10", 1.1),
    (float, "1e-400", 0.0),
    (float, "1e-99999999999999999999", 0.0),
    (float, "-0.00", -0.0),
    (int, "1.00", 1),
    (int, "100000000000000000001.0", 10**20 + 1),
    (Any, "[1.10, 1e2]", [1.1, 100.0]),
    (int | float, "1.0", 1.0),
    (float | Decimal, "1.10", 1.1),
    (str | Decimal, "1.10", Decimal("1.10")),
    (dict[str, Decimal] | None, '{"a": 1.10}', {"a": Decimal("1.10")}),
    (k.Ratio, "0.50", k.Ratio.HALF),
]


@pytest.mark.parametrize(("annotation", "text", "expected"), WRITTEN, ids=short_id)
def test_a_number_is_read_by_what_is_written(annotation: Any, text: str, expected: Any) -> None:
    """A Decimal keeps every digit; all other types get what a float would be."""
    [decoded], _ = codec_of(annotation).decode_arguments(seal_json(b'{"value": %s}' % text.encode()))
    assert same(decoded, expected)


def function(a: int, b: date | None = None, /, *numbers: Decimal, **options: bytes) -> None: ...


def test_json_carries_every_kind_of_parameter() -> None:
    codec = FunctionCodec(function, name="app.job")
    payload = seal_json(b'{"a": 1, "b": "2024-01-01", "numbers": ["1.0"], "options": {"x": "AA=="}}')
    assert codec.decode_arguments(payload) == ((1, date(2024, 1, 1), Decimal("1.0")), {"x": b"\x00"})
    with pytest.raises(UnknownArgument):
        codec.decode_arguments(seal_json(b'{"a": 1, "c": 1}'))
    with pytest.raises(MissingArgument):
        codec.decode_arguments(seal_json(b"{}"))


NO_JSON = [
    *(b"", b"[]", b"1", b"{", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": %s}' % (b"1" * 5000), b'{"a": "\\ud800"}', b"\xff", b'{"a": 1} x'),
    *(b"[" * 100_000, b'"' + b"\\" * 9999),
]


@pytest.mark.parametrize("body", NO_JSON, ids=lambda body: repr(body[:20]))
def test_anything_but_a_json_object_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(DecodeError, match=r"is not JSON|expected a map by parameter name"):
        FunctionCodec(function, name="app.job").decode_arguments(seal_json(body))


def test_json_has_the_same_bounds() -> None:
    limits = Limits(size=5000, depth=3, items=100)
    assert decode_value(seal_json(b"[[[1]]]"), limits=limits) == [[[1]]]
    text = b'["' + b",[{:" * 1000 + b'\\""]'
    assert decode_value(seal_json(text), limits=limits) == [",[{:" * 1000 + '"']
    for body, message in (
        (b"[[[[1]]]]", "deeper than"),
        (b'{"a":{"a":{"a":{}}}}', "deeper than"),
        (b"[" + b"0," * 100 + b"0]", "more than 100 values"),
        (b"[" + b"[]," * 100 + b"0]", "more than 100 values"),
        (b" " * 5000, "the limit is 5,000"),
    ):
        with pytest.raises(DecodeError, match=message):
            decode_value(seal_json(body), limits=limits)


def test_a_body_of_quotes_costs_no_more_than_its_length() -> None:
    """A pattern that searches the closing quote from each opening one would take hours over this."""
    with pytest.raises(DecodeError):
        decode_value(seal_json(b'"' + b'\\"' * 500_000))


def test_recursive_unions_are_read_without_trial_and_error() -> None:
    """Trying each member in turn would cost 2**60 here."""
    body: Any = "wrong"
    for _ in range(60):
        body = {"left": body}
    with pytest.raises(DecodeError):
        from_json(Left | Right, body)
    assert from_json(Left | Right, {"left": {"right": None}}) == Left(Right(None))
