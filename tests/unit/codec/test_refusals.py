"""A value that cannot be sent is refused in the caller. The error names it, its place inside the argument, and a solution."""

from __future__ import annotations

import collections.abc as abc
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from taskflow.model.codec import Limits, encode_value
from taskflow.model.errors import DecodeError, EncodeError, TooLarge
from tests.support.ids import stable_id
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append({"a": (value,)})
    return value


WRONG_TYPES: list[tuple[Any, Any, str, str]] = [
    (int, "1", "value", "expected int, got str"),
    (int, True, "value", "expected int, got bool"),
    (int, 1.0, "value", "expected int, got float"),
    (bool, 1, "value", "expected bool, got int"),
    (float, True, "value", "expected float, got bool"),
    (float, 2**53 + 1, "value", "no float represents exactly"),
    (float, 10**400, "value", "beyond the range of a float"),
    (bytes, bytearray(b"a"), "value", "expected bytes, got bytearray"),
    (Decimal, 1, "value", "expected Decimal, got int"),
    (datetime, date(2024, 1, 1), "value", "expected datetime, got date"),
    (timedelta, 1, "value", "expected timedelta, got int"),
    (ZoneInfo, UTC, "value", "expected ZoneInfo, got timezone"),
    (list[int], [1, "2"], "value[1]", "expected int, got str"),
    (tuple[int, ...], [1], "value", "expected tuple[int, ...], got list"),
    (tuple[int, str], (1, "a", 2), "value", "with 2 items, got 3"),
    (set[int], {"a"}, "value.<item>", "expected int, got str"),
    (dict[str, int], {"a": "b"}, "value['a']", "expected int, got str"),
    (dict[str, int], {1: 1}, "value.<key>", "expected str, got int"),
    (dict[int, list[int]], {5: [1, None]}, "value[5][1]", "expected int, got NoneType"),
    (dict[tuple[int, int], int], {(1, 2): "a"}, "value[<tuple>]", "expected int, got str"),
    (dict[str, int], {"k" * 100: "a"}, f"value['{'k' * 60}'...]", "expected int, got str"),
    (abc.Sequence[str], "text", "value", "expected Sequence[str], which means list, tuple, got str"),
    (abc.Iterable[int], iter([1]), "value", "expected Iterable[int], which means list, tuple, set, frozenset, got list_iterator"),
    (k.Color, "red", "value", "expected tests.unit.codec.kinds.Color, got str"),
    (k.Rights, 1, "value", "expected tests.unit.codec.kinds.Rights, got int"),
    (k.Bits, k.Bits(2), "value", "unknown bits"),
    (k.Json, {"a": (1,)}, "value['a']", "got tuple"),
    (Any, object(), "value", "object cannot be sent as it is"),
    (Any, {"a": {k.Color.RED: 1}}, "value['a'].<key>", "tests.unit.codec.kinds.Color cannot be sent"),
    (Any, {(1, k.Color.RED)}, "value.<item>[1]", "tests.unit.codec.kinds.Color cannot be sent"),
    (Any, msgspec.msgpack.Ext(1, b""), "value", "Ext cannot be sent"),
    (Any, len, "value", "builtin_function_or_method cannot be sent"),
]


@pytest.mark.parametrize(("annotation", "value", "path", "message"), WRONG_TYPES, ids=stable_id)
def test_a_value_that_is_not_of_its_annotation(annotation: Any, value: Any, path: str, message: str) -> None:
    with pytest.raises(EncodeError) as caught:
        codec_of(annotation).encode_arguments((value,), {})
    assert caught.value.path == path
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert isinstance(caught.value, TypeError)


SURROGATES: list[tuple[Any, Any, str]] = [
    (Any, "a\ud800", "value"),
    (Any, {"a": ["b", ("\udfff",)]}, "value['a'][1][0]"),
    (Any, {"\ud800": 1}, "value['\\ud800']"),
    (dict[str, str], {"\ud800": "a"}, "value.<key>"),
    (list[str], ["é", "\ud800"], "value[1]"),
    (k.Frozen, k.Frozen("\ud800"), "value.name"),
    (datetime, datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), "\ud800")), "value"),
    (str, type("S", (str,), {})("\ud800"), "value"),
]


@pytest.mark.parametrize(("annotation", "value", "path"), SURROGATES, ids=stable_id)
def test_a_lone_surrogate_is_named_by_its_path(annotation: Any, value: Any, path: str) -> None:
    with pytest.raises(EncodeError, match="lone surrogate at index") as caught:
        codec_of(annotation).encode_arguments((value,), {})
    assert caught.value.path == path


def test_a_zone_that_no_other_process_can_find_is_refused(tmp_path: Any) -> None:
    import importlib.resources

    data = importlib.resources.files("tzdata.zoneinfo.Europe").joinpath("Paris").read_bytes()
    (tmp_path / "zone").write_bytes(data)
    with open(tmp_path / "zone", "rb") as file:
        keyless = ZoneInfo.from_file(file)
    with pytest.raises(EncodeError, match="without a key"):
        encode_value(keyless)
    payload = codec_of(datetime).encode_arguments((datetime(2024, 7, 1, tzinfo=keyless),), {})
    [decoded] = codec_of(datetime).decode_arguments(payload)[0]
    assert decoded.tzinfo == timezone(timedelta(hours=2))


@pytest.mark.parametrize("annotation", [Any, list, k.Json, list[k.Json], list[list[Any]]])
def test_depth_is_bounded(annotation: Any) -> None:
    codec = codec_of(annotation)
    payload = codec.encode_arguments((nested(64),), {})
    assert codec.decode_arguments(payload) == ((nested(64),), {})
    with pytest.raises(TooLarge, match="deeper than the limit") as caught:
        codec.encode_arguments((nested(65),), {})
    assert caught.value.path == "value" + "[0]" * 64


@pytest.mark.parametrize(
    ("annotation", "innermost"),
    [
        (set[int], {1}),
        (dict[str, int], {}),
        (k.Point, k.Point(1)),
        (k.Movie, {"title": "a"}),
        (Any, (1,)),
        (Any, {1: 1}),
    ],
    ids=stable_id,
)
def test_containers_of_every_kind_count_as_a_level(annotation: Any, innermost: Any) -> None:
    two, one = (codec_of(list[annotation], limits=Limits(depth=depth)) for depth in (2, 1))
    payload = two.encode_arguments(([innermost],), {})
    assert two.decode_arguments(payload) == (([innermost],), {})
    with pytest.raises(TooLarge, match=r"value\[0\]"):
        one.encode_arguments(([innermost],), {})
    with pytest.raises(DecodeError, match=r"value\[0\]: is nested deeper"):
        one.decode_arguments(payload)


def test_a_value_that_contains_itself_is_too_deep() -> None:
    with pytest.raises(TooLarge):
        encode_value(endless())
    tree = k.Tree(1)
    tree.children.append(tree)
    with pytest.raises(TooLarge, match=r"value\.children\[0\]\.children"):
        codec_of(k.Tree).encode_arguments((tree,), {})


def test_size_is_bounded() -> None:
    text = "x" * 100
    payload = encode_value(text, limits=Limits(size=106))
    assert len(payload) == 106
    with pytest.raises(TooLarge, match="has 106 bytes, but the limit is 105"):
        encode_value(text, limits=Limits(size=105))
    with pytest.raises(TooLarge, match="the limit is 1,048,576"):
        encode_value(b"x" * (1 << 20))


def test_the_number_of_values_is_bounded() -> None:
    limits = Limits(items=10)
    encode_value([1] * 9, limits=limits)
    values: list[Any] = [[1] * 10, [[]] * 10, {str(key): 1 for key in range(5)}, (1, "a" * 300, b"b" * 300, 1 << 100, 1.5, *range(5))]
    for value in values:
        with pytest.raises(TooLarge, match="more than 10 values"):
            encode_value(value, limits=limits)
    encode_value("x" * 1000, limits=limits)
    encode_value([b"x" * 70000, "x" * 70000, Decimal("1" * 300), Decimal("1" * 70000)], limits=limits)


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("nor this")


class BrokenList(list[Any]):
    def __iter__(self) -> Any:
        raise Broken


class BrokenDict(dict[str, Any]):
    def items(self) -> Any:
        raise OverflowError("too many")


class BrokenZone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        raise LookupError("no zone here")

    tzname = dst = utcoffset  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


@dataclass
class Lazy:
    x: int

    def __getattribute__(self, name: str) -> Any:
        raise MemoryError("gone")


ODD: list[tuple[Any, Any, str]] = [
    (list[int], BrokenList([1]), "cannot be encoded: an exception that cannot be shown"),
    (dict[str, int], BrokenDict(a=1), "cannot be encoded: OverflowError: too many"),
    (datetime, datetime(2024, 1, 1, tzinfo=BrokenZone()), "cannot be encoded: LookupError: no zone here"),
    (Lazy, object.__new__(Lazy), "cannot be encoded: MemoryError: gone"),
]


@pytest.mark.parametrize(("annotation", "value", "message"), ODD, ids=lambda each: type(each).__name__)
def test_a_value_whose_own_code_raises_is_refused_by_name(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(EncodeError, match=rf"{message} \(in a call of app\.job\)"):
        codec_of(annotation).encode_arguments((value,), {})
    with pytest.raises(EncodeError, match=rf"{message} \(in the result of app\.job\)"):
        codec_of(Any, annotation).encode_result(value)
