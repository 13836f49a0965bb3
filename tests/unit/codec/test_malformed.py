"""Well-formed msgpack that is no value of the annotation: each error says what was expected, and where."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PosixPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest

from taskflow.model.codec import Content, Limits, decode_value, encode_value, open_payload, seal_json
from taskflow.model.codec.payload import seal
from taskflow.model.errors import DecodeError, NewerFormat
from tests.support.ids import short_id
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of

Ext = msgspec.msgpack.Ext
pack = msgspec.msgpack.encode

MALFORMED: list[tuple[Any, Any, str]] = [
    (Decimal, Ext(17, b""), "expected a Decimal"),
    (Decimal, Ext(17, b"1_000"), "expected a Decimal"),
    (Decimal, Ext(17, b"1E+99999999999999999999"), "exponent is out of range"),
    (UUID, Ext(18, b"1"), "16 bytes"),
    (date, Ext(19, b"\xff"), "is not UTF-8"),
    (time, Ext(20, b"12:00[=x]"), "expected an offset before the name"),
    (time, Ext(20, b"12:00[UTC"), "expected a zone in brackets"),
    (datetime, Ext(21, b"2024-01-01T00:00:00[UTC]"), "expected a UTC offset before"),
    (datetime, Ext(21, b"0001-01-01T00:00:00+10:00[UTC]"), "expected a datetime"),
    (datetime, Ext(21, b"2024-01-01T00:00:00+01:00[../../etc/passwd]"), "expected the key of a time zone"),
    (datetime, Ext(-1, b"\x00\x00\x00\x01"), "expected datetime, got datetime"),
    (timedelta, Ext(22, b"\x7f" * 16), "beyond a billion days"),
    (timezone, Ext(23, b"x"), "expected the offset"),
    (timezone, Ext(23, b"+01:00[UTC]"), "fixed offset"),
    (ZoneInfo, Ext(25, b"tzdata/.."), "expected the key"),
    (tzinfo, Ext(24, b""), "got bytearray"),
    (float, 2**60 + 1, "no float represents exactly"),
    (int, Ext(99, b""), "expected int, got extension 99"),
    (list[int], [Ext(4, b""), 1, 2], "expected list[int], got dict"),
    (dict[int, int], [Ext(4, b""), 1], "a key without a value"),
    (dict[int, int], [1, 2], "expected dict[int, int], got list"),
    (dict[Any, int], [Ext(4, b""), [], 1], "cannot be a key"),
    (set, [Ext(2, b""), Ext(17, b"sNaN")], "cannot be a key"),
    (k.Json, [Ext(1, b""), 1], "got tuple"),
    (Any, Ext(99, b""), "extension 99 cannot be"),
    (Any, Ext(1, b"x"), "tuple cannot be"),
    (Any, [Ext(7, b"")], "expected the name of a registered type"),
    (Any, [Ext(7, b""), "tests.none", 2], "has the type 'tests.none', which is not registered here"),
    (k.Money, [Ext(7, b""), "money", 2], "decode= of tests.unit.codec.kinds.Money raised TypeError"),
    (k.Money, (2, "EUR"), "expected tests.unit.codec.kinds.Money, got list"),
    (Any, Ext(26, b"w\xff"), "is not UTF-8"),
    (PosixPath, Ext(26, b"wa"), "expected PosixPath, got PureWindowsPath"),
    *((Path, Ext(26, stored), "is a WindowsPath that has no meaning") for stored in (b"WC:a", b"W\\a", b"W\\\\host\\share\\a")),
    (Path, Ext(26, b"WC:\\a"), "is a WindowsPath that has no meaning on this system; send a relative path, or a PureWindowsPath"),
    (Any, [Ext(6, b""), {}], "model cannot be"),
    (Any, [Ext(6, b""), {1: 2}, {}, {}], "expected map keys to be str, got int"),
    (k.Open, [Ext(6, b""), {"a": 1}], "got malformed data after its type marker"),
    (k.Open, [Ext(6, b""), {1: 1}, {}, {}], "does not define"),
    (k.Open, [Ext(6, b""), {"a": 1}, {}, {"_cache": 1}], "private attribute '_cache', which tests.unit.codec.kinds.Open does not define"),
    (Any, [Ext(5, b""), "a"], "tagged object cannot be"),
    (Any, {1: 2}, "expected map keys to be str, got int"),
    (k.Point, [1, 2], "expected tests.unit.codec.kinds.Point, got list"),
    (k.Rights, 2**63, "unknown bits"),
    (k.Picky, 3, "an unknown combination of bits"),
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
    """Jobs queued before `list[int]` became `tuple[int, ...]` therefore still run."""
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


def test_a_relative_path_of_another_system_becomes_one_of_this_system() -> None:
    for stored, here in ((b"Wa\\b", Path("a/b")), (b"W", Path())):
        assert decode_value(seal(pack(Ext(26, stored)))) == here


# --- headers of payloads ----------------------------------------------------------------------------------------------


CODEC = codec_of(int)
MEGABYTE = 1 << 20


def test_content_and_body_come_apart() -> None:
    assert open_payload(encode_value(None)) == (Content.MSGPACK, b"\xc0")
    assert open_payload(seal_json(b"null")) == (Content.JSON, b"null")


NEWER = ["02000001", "00000001", "ff", "ff0000", "01010001", "01020001", "01040001", "01800001", "01000101", "01000000", "01000003"]


@pytest.mark.parametrize("header", NEWER)
def test_a_payload_of_a_newer_taskflow_raises_newer_format(header: str) -> None:
    for decode in (CODEC.decode_arguments, CODEC.decode_result, decode_value, open_payload):
        with pytest.raises(NewerFormat):
            decode(bytes.fromhex(header) + b"\x80")


@pytest.mark.parametrize("header", ["", "01", "010000"])
def test_bytes_too_short_for_a_payload_are_refused(header: str) -> None:
    with pytest.raises(DecodeError, match="a payload has at least 4 bytes") as caught:
        decode_value(bytes.fromhex(header))
    assert type(caught.value) is DecodeError


def test_a_payload_larger_than_the_limit_is_not_read() -> None:
    with pytest.raises(DecodeError, match="has 1,048,581 bytes, but the limit is 1,048,576"):
        decode_value(encode_value(b"x" * (MEGABYTE - 4), limits=Limits(size=2 * MEGABYTE)))
