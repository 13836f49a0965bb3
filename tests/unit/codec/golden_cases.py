"""The contents of the golden files, one value per type; `python -m tests.unit.codec.golden_cases` writes missing ones, and changes none.

A golden file that no longer fits means that payloads in users' queues no longer fit: the version byte must then be raised."""

from __future__ import annotations

import collections.abc as abc
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PosixPath, PurePath, PureWindowsPath
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from taskflow.model.codec import FunctionCodec
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of

FOLDER = Path(__file__).parent / "golden"
PARIS = ZoneInfo("Europe/Paris")


def drafted() -> k.Draft:
    draft = k.Draft(title=None)
    draft._seen = 3
    return draft


def every_parameter(a: int, /, b: str, *rest: int, c: bool, d: int = 0, **extra: float) -> None: ...


EVERY_PARAMETER = FunctionCodec(every_parameter, name="app.job")
CALL: tuple[tuple[Any, ...], dict[str, Any]] = ((1, "b", 2, 3), {"c": True, "x": 0.5})

ARGUMENTS: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "bool": (bool, True),
    "int": (int, -300),
    "int_beyond_64_bits": (int, -(2**64)),
    "float": (float, -0.0),
    "float_nan": (float, float("nan")),
    "str": (str, "é😀"),
    "bytes": (bytes, b"\x00\xff"),
    "bytearray": (bytearray, bytearray(b"\x00\xff")),
    "decimal": (Decimal, Decimal("-1.10E+3")),
    "decimal_nan": (Decimal, Decimal("-sNaN12")),
    "uuid": (UUID, UUID("12345678-1234-5678-1234-567812345678")),
    "date": (date, date(2024, 2, 29)),
    "time": (time, time(1, 2, 3, 4, fold=1)),
    "time_in_a_zone": (time, time(1, 2, tzinfo=PARIS)),
    "datetime_naive": (datetime, datetime(2024, 2, 29, 1, 2, 3, 4)),
    "datetime_utc": (datetime, datetime(2024, 2, 29, tzinfo=UTC)),
    "datetime_named_offset": (datetime, datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=1), "CET"))),
    "datetime_in_a_zone": (datetime, datetime(2024, 10, 27, 2, 30, tzinfo=PARIS, fold=1)),
    "timedelta": (timedelta, timedelta(days=-1, microseconds=5)),
    "timezone": (timezone, timezone(timedelta(hours=-3, minutes=-30))),
    "zoneinfo": (ZoneInfo, PARIS),
    "path": (Path, PosixPath("a/é\udcff")),
    "path_windows": (PurePath, PureWindowsPath("C:/a")),
    "registered": (k.Money, k.Money(Decimal("1.10"), "EUR")),
    "registered_unannotated": (Any, [k.Money(Decimal("1.10"), "EUR")]),
    "union_of_typed_dicts": (k.Created | k.Deleted, {"kind": "deleted", "id": 1}),
    "str_enum_unannotated": (Any, {k.Mode.FAST: k.Mode.SLOW}),
    "int_enum_unannotated": (Any, k.Level.HIGH),
    "list": (list[int], [1, 2]),
    "tuple": (tuple[int, str], (1, "a")),
    "tuple_variadic": (tuple[int, ...], (1, 2)),
    "set": (set[int], {1}),
    "frozenset": (frozenset[str], frozenset({"a"})),
    "dict_of_str": (dict[str, int], {"a": 1}),
    "dict_of_int": (dict[int, str], {1: "a"}),
    "mapping": (abc.Mapping[str, int], {"a": 1}),
    "sequence": (abc.Sequence[int], (1,)),
    "enum": (k.Color, k.Color.BLUE),
    "int_enum": (k.Level, k.Level.HIGH),
    "str_enum": (k.Mode, k.Mode.FAST),
    "flag": (k.Rights, k.Rights.READ | k.Rights.WRITE),
    "literal": (Literal["a", 1], 1),
    "optional": (int | None, None),
    "union_of_scalars": (str | date | UUID, date(2024, 2, 29)),
    "union_of_classes": (k.Point | k.Spot, k.Spot(1, 2.0)),
    "union_of_enum_and_str": (k.Color | str, k.Color.RED),
    "new_type": (k.UserId, 7),
    "dataclass": (k.Point, k.Point(1, 2.0)),
    "dataclass_nested": (k.Tree, k.Tree(1, [k.Tree(2)], None)),
    "dataclass_generic": (k.Box[int], k.Box(1, [2])),
    "typed_dict": (k.Movie, {"title": "a", "year": 1}),
    "named_tuple": (k.Pin, k.Pin(1, "a")),
    "struct": (k.Wire, k.Wire(1, "b", [2])),
    "attrs": (k.Car, k.Car(4, "s", 3)),
    "flag_beyond_64_bits": (k.Wide, k.Wide.LOW | k.Wide.HIGH),
    "pydantic_unset": (k.Draft, k.Draft(title=None, words=[2])),
    "pydantic_with_state": (k.Draft, drafted()),
    "pydantic": (k.User, k.User(id=1, userName="a", born=date(2024, 2, 29), tags={"x"})),
    "unannotated": (
        Any,
        {
            "a": [1, (2.5, None), {3}, frozenset({4}), b"b"],
            "b": {1: Decimal(1), (2,): date(2024, 2, 29)},
            "c": [True, bytearray(b""), 2**64],
        },
    ),
}


def payload_of(name: str) -> bytes:
    """Return what today's encoder writes."""
    if name == "every_parameter":
        return EVERY_PARAMETER.encode_arguments(*CALL)
    annotation, value = ARGUMENTS[name]
    return codec_of(annotation).encode_arguments((value,), {})


def golden(name: str) -> bytes:
    return bytes.fromhex((FOLDER / f"{name}.hex").read_text())


NAMES = [*ARGUMENTS, "every_parameter"]

if __name__ == "__main__":
    for each in NAMES:
        path = FOLDER / f"{each}.hex"
        if not path.exists():
            path.write_text(payload_of(each).hex(" ") + "\n")
            print("wrote", path.name)
