"""Values that can be sent, with and without an annotation, and instances of classes with fields."""

from __future__ import annotations

import collections.abc as abc
import math
import os
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Literal, LiteralString
from uuid import UUID
from zoneinfo import ZoneInfo

from tests.unit.codec import kinds as k

PARIS = ZoneInfo("Europe/Paris")
CET = timezone(timedelta(hours=1), "CET")

SELF_DESCRIBING: list[Any] = [
    None, True, False,
    0, -1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400, -(10**400),
    0.0, -0.0, 1e308, 5e-324, math.inf, -math.inf, math.nan,
    "", "text", "é😀\x00", b"", b"\xff\x00", bytearray(b""), bytearray(b"\xff"),
    *map(Decimal, ("0", "-0", "1.10", "1E+999999", "-1E-999999", "NaN", "-sNaN123", "-Infinity")),
    UUID(int=0), UUID("12345678-1234-5678-1234-567812345678"),
    date.min, date.max, datetime.min, datetime.max, datetime(2024, 2, 29, 12, 30, 1, 5), datetime(2024, 1, 1, fold=1),
    *(datetime(2024, 2, 29, tzinfo=zone) for zone in (
        UTC, CET, timezone(timedelta(hours=-3, minutes=-30)), timezone(timedelta(seconds=1, microseconds=5)), timezone(timedelta(0), ""),
        timezone(timedelta(0), "[é]~"), timezone(timedelta(microseconds=5)), timezone(-timedelta(microseconds=5), "x"),
    )),
    datetime(2024, 7, 1, tzinfo=PARIS), datetime(1800, 1, 1, tzinfo=PARIS), datetime.min.replace(tzinfo=PARIS),
    *(datetime(2024, *at, 2, 30, tzinfo=PARIS, fold=fold) for at in ((10, 27), (3, 31)) for fold in (0, 1)),
    time(1, 2, 3, 4), time(1, 2, fold=1), time(1, tzinfo=UTC), time(1, tzinfo=CET), time(1, tzinfo=PARIS, fold=1),
    time(1, tzinfo=timezone(-timedelta(microseconds=5))),
    timedelta(0), timedelta.min, timedelta.max, timedelta.resolution, -timedelta.resolution,
    UTC, CET, timezone(timedelta(hours=-23, minutes=-59)), timezone(timedelta(hours=5, minutes=30), "UTC+05:30"),
    timezone(timedelta(microseconds=1)), PARIS, ZoneInfo("Etc/GMT+5"),
    Path("a/b.txt"), Path("/"), Path(), Path("é/\udcff"), {Path("a"): [Path("b")]},
    PurePosixPath("../a\\b"), PureWindowsPath("C:/Users/é"), PureWindowsPath("//host/share/\ud800"),
    k.Money(Decimal("1.10"), "EUR"), {k.Money(Decimal(1), "EUR"): [k.Node([k.Node([]), k.Node([])])]},
    [], [1, "a", [None]], (), (1, (2,), []), [[["deep"] * 3] * 3],
    set(), {1, 2.5, "a", (1, 2), frozenset({3}), None, Decimal(7), b"b"}, frozenset(), frozenset({date(2024, 1, 1)}),
    {}, {"a": 1, "": {"b": (1,)}}, {True: 1}, {math.nan: 1}, {date(2024, 1, 1): {UUID(int=1): {1: 2}}},
    {1: "int", "1": "str", (1, 2): "tuple", None: "none", 2.5: "float", b"b": "bytes", frozenset(): "frozenset"},
]  # fmt: skip

ANNOTATED: list[tuple[Any, Any]] = [
    (list, [1, "a"]),
    (list[list[str]], [["a"], []]),
    (tuple[()], ()),
    (tuple, (1, "a", None)),
    (set, {1, "a"}),
    (frozenset[tuple[int, str]], frozenset({(1, "a")})),
    (dict[int, str], {1: "a", 2**70: "b"}),
    (dict[date, list[Decimal]], {date(2024, 1, 1): [Decimal("1.0")]}),
    (dict[tuple[int, int], str], {(1, 2): "a"}),
    (dict[k.Mode, int], {k.Mode.FAST: 1}),
    (dict[k.Color | str, int], {k.Color.RED: 1, "red": 2}),
    (dict[bool, int], {True: 1}),
    (dict, {1: 2, "a": "b"}),
    (abc.MutableMapping[int, int], {1: 1}),
    (abc.Sequence[int], [1]),
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
    (k.T, [1, (2,)]),
    (k.N, 2**70),
    (k.Usual, date(2024, 1, 1)),
    (k.Either, "a"),
    (k.Json, {"a": [1, None, {"b": 1.5}]}),
    (list[k.Json], [[[[1]]]]),
    (k.Pair[int], (1, 2)),
    (Literal["a", 1, True, None, b"b"], True),
    (Literal["a", 1, True, None, b"b"], 1),
    (Literal["a", 1, True, None, b"b"], b"b"),
    (Literal[k.Color.RED, "red"], k.Color.RED),
    (k.Holiday, k.Holiday.LABOUR),
    (k.Holiday, k.Holiday.PAIR),
    (k.Holiday, k.Holiday.HALF),
    (k.Rights, k.Rights(0)),
    (k.Bits, k.Bits.ONE | k.Bits.FOUR),
    (PosixPath, PosixPath("/a")),
    (PurePath, Path("a/b")),
    (PurePosixPath, Path("a")),
    (os.PathLike[str], Path("a")),
    (dict[Path, list[PurePath]], {Path("a"): [PureWindowsPath("b")]}),
    (dict[k.Money, list[k.Money | None]], {k.Money(Decimal(1), "EUR"): [None, k.Money(Decimal(2), "USD")]}),
    (k.Node, k.Node([k.Node([k.Node([])])])),
]

ORDER = k.Order(
    id=UUID(int=1),
    day=date(2024, 1, 1),
    total=Decimal("1.10"),
    lines=[("a", 1)],
    extra={"any": (1, {2})},
    color=k.Color.BLUE,
    spot=k.Spot(1),
)

INSTANCES: list[tuple[Any, Any]] = [
    (k.Frozen, k.Frozen("a", frozenset({"x"}))),
    (k.Tree, k.Tree(1, [k.Tree(2, [k.Tree(3)])], k.Tree(0))),
    (k.Box[list[k.Point]], k.Box([k.Point(1)], [[]])),
    (k.Box, k.Box[Any]("anything", [1, (2,)])),
    (k.Labelled[date], k.Labelled(date(2024, 1, 1), label="x")),
    (k.IntBox, k.IntBox(1, [2], "cm")),
    (k.Nested[int], k.Nested([1], [[2]], 3)),
    (k.Order, ORDER),
    (k.Computed, k.Computed(3)),
    (k.Positive, k.Positive(3)),
    (k.Movie, {"title": "a", "year": 1}),
    (k.Partial, {"title": "a", "director": "b", "rating": 0.5}),
    (k.Guarded, {"name": "a", "tags": ["b"], "size": 1, "many": []}),
    (k.Branch, k.Tree(1)),
    (k.Holder[date], {"held": date(2024, 1, 1)}),
    (k.Pin, k.Pin(1)),
    (k.Loose, k.Loose((1, {2}))),
    (k.Wire, k.Wire(1, c=[2])),
    (k.Checked, k.Checked(value=1)),
    (k.Crate[tuple[int, int]], k.Crate((1, 2))),
    (k.Car, k.Car(4, "s2", 3)),
    (k.Lamp, k.Lamp(True, 1.5)),
    (k.User, k.User(id=1, userName="a", born=date(2024, 1, 1), tags={"x"})),
    (k.Team, k.Team(lead=k.User(id=1), members=(k.User(id=2),), any={1: (2,)})),
    (k.Site, k.Site(url="https://example.com/a?b=c")),  # type: ignore[arg-type]  # pydantic makes the URL
    (k.Place, k.Place(path=PurePath("a/b"))),
    (k.Open, k.Open(a=1)),
    (k.Numbers, k.Numbers([1, 2**70])),
    (k.Wrapped[date], k.Wrapped[date](content=date(2024, 1, 1))),
    (k.Model, k.Model(size=1)),
    (k.Bill, k.Bill(k.Money(Decimal(1), "EUR"), [k.Money(Decimal(2), "USD")], Path("a"))),
]
