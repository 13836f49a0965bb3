"""Well-formed msgpack that is no value of the annotation: each says what was expected, and where."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PosixPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest

from taskflow.model.codec import decode_value
from taskflow.model.codec.payload import seal
from taskflow.model.errors import DecodeError
from tests.support.ids import short_id
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of

Ext = msgspec.msgpack.Ext
pack = msgspec.msgpack.encode

MALFORMED: list[tuple[Any, Any, str]] = [
    (Decimal, Ext(17, b""), "expected a Decimal"),
    (Decimal, Ext(17, b"1_000"), "expected a Decimal"),
    (Decimal, Ext(17, b"\xff"), "expected a Decimal"),
    (Decimal, Ext(17, b"1E+99999999999999999999"), "exponent is out of range"),
    (UUID, Ext(18, b"1"), "16 bytes"),
    (date, Ext(19, b"2024-13-01"), "expected a date"),
    (date, Ext(19, b"\xff"), "is not UTF-8"),
    (time, Ext(20, b"25:00"), "expected a time"),
    (time, Ext(20, b"12:00[=x]"), "expected an offset before the name"),
    (time, Ext(20, b"12:00[UTC"), "expected a zone in brackets"),
    (datetime, Ext(21, b"2024-01-01T00:00:00[UTC]"), "expected an offset before the zone"),
    (datetime, Ext(21, b"2024-01-01T00:00:00+25:00"), "expected a datetime"),
    (datetime, Ext(21, b"0001-01-01T00:00:00+10:00[UTC]"), "expected a datetime"),
    (datetime, Ext(21, b"2024-01-01T00:00:00+01:00[../../etc/passwd]"), "expected the key of a time zone"),
    (datetime, Ext(21, b"2024-01-01T00:00:00+01:00[Europe]"), "is not known here"),
    (datetime, Ext(21, b"2024-01-01T00:00:00+01:00[Europe/Nowhere]"), "is not known here"),
    (datetime, Ext(-1, b"\x00\x00\x00\x01"), "expected datetime, got datetime"),
    (timedelta, Ext(22, b"\x7f" * 16), "beyond a billion days"),
    (timezone, Ext(23, b""), "expected the offset"),
    (timezone, Ext(23, b"x"), "expected the offset"),
    (timezone, Ext(23, b"+01:00[UTC]"), "fixed offset"),
    (timezone, Ext(25, b"UTC"), "expected timezone, got ZoneInfo"),
    (ZoneInfo, Ext(25, b"/etc/passwd"), "expected the key"),
    (ZoneInfo, Ext(25, b"a" * 101), "expected the key"),
    (ZoneInfo, Ext(25, b"tzdata/.."), "expected the key"),
    (ZoneInfo, Ext(25, b""), "expected the key"),
    (tzinfo, Ext(24, b""), "got bytearray"),
    (float, 2**60 + 1, "no float represents exactly"),
    (float, "1", "expected float, got str"),
    (bytes, "1", "expected bytes, got str"),
    (str, b"1", "expected str, got bytes"),
    (bool, 1, "expected bool, got int"),
    (None, 1, "expected None, got int"),
    (int, Ext(99, b""), "expected int, got extension 99"),
    (list[int], [Ext(4, b""), 1, 2], "expected list[int], got dict"),
    (tuple[int, int], 1, "expected tuple[int, int], got int"),
    (dict[int, int], [Ext(4, b""), 1], "a key without a value"),
    (dict[int, int], [1, 2], "expected dict[int, int], got list"),
    (dict[int, int], {"a": 1}, "expected int, got str"),
    (dict[Any, int], [Ext(4, b""), [], 1], "cannot be a key"),
    (set, [Ext(2, b""), Ext(17, b"sNaN")], "cannot be a key"),
    (k.Json, [Ext(1, b""), 1], "got tuple"),
    (Any, Ext(99, b""), "extension 99 cannot be"),
    (Any, Ext(1, b"x"), "tuple cannot be"),
    (Any, [1, Ext(1, b"")], "tuple cannot be"),
    (Any, [Ext(8, b"")], "list cannot be"),
    (Any, [Ext(7, b"")], "expected the name of a registered type"),
    (Any, [Ext(7, b""), 1, 2], "expected the name of a registered type"),
    (Any, [Ext(7, b""), "tests.none", 2], "has the type 'tests.none', which is not registered here"),
    (k.Money, [Ext(7, b""), "money", 2], "decode= of tests.unit.codec.kinds.Money raised TypeError"),
    (k.Money, (2, "EUR"), "expected tests.unit.codec.kinds.Money, got list"),
    (Any, Ext(26, b""), "expected the letter of a class of paths"),
    (Any, Ext(26, b"xa"), "expected the letter of a class of paths"),
    (Any, Ext(26, b"w\xff"), "is not UTF-8"),
    (PosixPath, Ext(26, b"wa"), "expected PosixPath, got PureWindowsPath"),
    (Path, Ext(26, b"WC:\\a"), "is a WindowsPath that has no meaning on this system; send a relative path, or a PureWindowsPath"),
    (Any, [Ext(6, b""), {}], "model cannot be"),
    (Any, [Ext(6, b""), {1: 2}, {}, {}], "the key of a map to be str, got int"),
    (k.Open, [Ext(6, b""), {"a": 1}], "got something else after its marker"),
    (k.Open, [Ext(6, b""), {"a": 1}, {}, []], "got something else after its marker"),
    (k.Open, [Ext(6, b""), {1: 1}, {}, {}], "does not know"),
    (k.Open, [Ext(6, b""), {"a": 1}, {}, {"_cache": 1}], "the private attribute '_cache', which tests.unit.codec.kinds.Open does not know"),
    (k.Point, [Ext(6, b""), {"x": 1}, {}, {}], "expected tests.unit.codec.kinds.Point, got model"),
    (Any, [Ext(5, b""), "a"], "tagged object cannot be"),
    (Any, Ext(-1, b"\x00\x00\x00\x01"), "datetime cannot be"),
    (Any, {1: 2}, "the key of a map to be str, got int"),
    (Any, {None: 2}, "got NoneType"),
    (k.Point, {1: 2}, "does not know"),
    (k.Point, [1, 2], "expected tests.unit.codec.kinds.Point, got list"),
    (k.Color, ["red"], "expected one of"),
    (k.Color, Ext(19, b"2024"), "expected one of"),
    (k.Rights, 2**63, "unknown bits"),
    (k.Picky, 3, "an unknown combination of bits"),
    (k.Rights, -1, "unknown bits"),
    (k.Site, {"url": "no url"}, "expected HttpUrl"),
]


@pytest.mark.parametrize(("annotation", "value", "message"), MALFORMED, ids=short_id)
def test_malformed_values_say_what_was_expected(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        codec_of(annotation).decode_arguments(seal(pack({"value": value})))
    assert message in str(caught.value)
    assert caught.value.path.startswith("value")


@pytest.mark.parametrize("code", [1, 2, 3])
def test_an_array_of_any_kind_reads_as_the_annotated_one(code: int) -> None:
    """So that jobs queued before `list[int]` became `tuple[int, ...]` still run."""
    payload = seal(pack({"value": [Ext(code, b""), 1, 2]}))
    assert codec_of(list[int]).decode_arguments(payload) == (([1, 2],), {})
    assert codec_of(tuple[int, ...]).decode_arguments(payload) == (((1, 2),), {})
    assert codec_of(tuple[int, int]).decode_arguments(payload) == (((1, 2),), {})
    assert codec_of(frozenset[int]).decode_arguments(payload) == ((frozenset({1, 2}),), {})


def test_no_class_is_called_that_no_annotation_names() -> None:
    payload = seal(pack({"value": [Ext(5, b""), "Point", {"x": 1, "y": 0.0}]}))
    assert decode_value(payload) == {"value": {"x": 1, "y": 0.0}}
    with pytest.raises(DecodeError):
        codec_of(k.Spot | k.Lamp).decode_arguments(payload)
