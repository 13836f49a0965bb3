"""Any bytes lead to a value of the annotation or a DecodeError, in bounded time and memory; never to an unrequested class."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable
from datetime import datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from taskflow.model.codec import FunctionCodec, decode_value, encode_value, seal_json
from taskflow.model.codec.payload import seal
from taskflow.model.errors import DecodeError
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of, quick
from tests.unit.codec.golden_cases import ARGUMENTS
from tests.unit.codec.values import ANNOTATED, INSTANCES, SELF_DESCRIBING

pytestmark = pytest.mark.slow

Ext = msgspec.msgpack.Ext
pack = msgspec.msgpack.encode
MEGABYTE = 1 << 20


def everything(
    a: k.Tree | k.Point | k.Spot | str | None,
    b: dict[Any, set[Decimal]] | list[datetime],
    /,
    c: tuple[k.Order, k.User | k.Car] | int = 0,
    *rest: time | timedelta | timezone | ZoneInfo | UUID,
    d: frozenset[k.Color | k.Rights | k.Holiday | k.Lamp] = frozenset(),
    **extra: k.Json,
) -> Any: ...


CODEC = FunctionCodec(everything, name="app.job")
ORDER = next(value for kind, value in INSTANCES if kind is k.Order)
SEEDS = [
    CODEC.encode_arguments(
        (k.Tree(1, [k.Tree(2)]), {(1, b"b"): {Decimal("1.0")}}, (ORDER, k.User(id=1)), time(1), timedelta(1)), {"x": [1]}
    ),
    CODEC.encode_arguments((k.Spot(1), [datetime(2024, 7, 1, tzinfo=ZoneInfo("Europe/Paris"))], (ORDER, k.Car(4)), UUID(int=1)), {}),
    CODEC.encode_arguments(
        (None, {"title": {Decimal(1)}}, 1, ZoneInfo("UTC"), timezone(timedelta(1) / 24, "x")),
        {"d": frozenset({k.Color.RED, k.Rights.READ, k.Holiday.PAIR, k.Lamp(True)}), "y": {"a": [None]}},
    ),
    encode_value(SELF_DESCRIBING[:-20]),
    seal_json(
        b'{"a": {"value": 1, "children": [{"value": 2}]}, "b": ["2024-01-01T00:00:00Z"], "rest": [1.5, "UTC"], "extra": {"x": [1e5]}}'
    ),
]


def survives(payload: bytes) -> bool:
    """Return True if it decoded as arguments; the point is that nothing but a DecodeError is ever raised."""
    decoded = False
    for decode in (CODEC.decode_arguments, CODEC.decode_result, decode_value):
        try:
            decode(payload)
            decoded = True
        except DecodeError as error:
            assert len(str(error)) < 5000  # noqa: PT017
    return decoded


def mutated(seed: bytes, dice: random.Random) -> bytes:
    """Return the seed with a few bytes changed, removed, doubled or swapped; its header is mostly unchanged."""
    body = bytearray(seed)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(4 if dice.random() < 0.95 else 0, len(body))
        kind = dice.randrange(5)
        if kind == 0:
            body[place] = dice.randrange(256)
        elif kind == 1:
            body[place] ^= 1 << dice.randrange(8)
        elif kind == 2:
            del body[place : place + dice.randint(1, 8)]
        elif kind == 3:
            body[place:place] = body[place : place + dice.randint(1, 40)]
        else:
            body[place:place] = dice.choice(PIECES)
        if len(body) < 6:
            return bytes(body)
    return bytes(body)


PIECES = [pack(piece) for piece in (Ext(code, data) for code in range(-1, 28) for data in (b"", b"\xff" * 4, b"1"))] + [
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x81\x90\x90",
    b"\x92",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
]


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_mutated_payloads(seed: int) -> None:
    dice = random.Random(seed)
    outcomes = [survives(mutated(SEEDS[seed], dice)) for _ in range(4000)]
    assert survives(SEEDS[seed])
    assert any(outcomes)
    assert not all(outcomes)


@quick
@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    survives(body)
    survives(seal(body))
    survives(seal_json(body))


wire = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.builds(
        Ext, st.integers(-2, 27), st.binary(max_size=20) | st.sampled_from([b"2024-01-01", b"1E5", b"+02:00[=x]", b"UTC", b"~12:00"])
    ),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(["a", "b", "c", "x", "value", "children"]), inner, max_size=5)
        | st.builds(lambda code, rest: [Ext(code, b""), *rest], st.integers(1, 6), st.lists(inner, max_size=5))
        | st.builds(lambda tag, rest: [Ext(5, b""), tag, rest], st.sampled_from(["Tree", "Point", "Color", "os.system"]), inner)
    ),
    max_leaves=15,
)


@quick
@given(wire)
def test_well_formed_wire_values_of_any_shape(value: Any) -> None:
    survives(seal(pack(value)))
    for name in ("a", "b", "c", "rest", "d", "extra"):
        survives(seal(pack({"a": None, "b": [], name: value})))


@pytest.mark.parametrize("annotation", {str(kind): kind for kind, _ in [*ANNOTATED, *INSTANCES, *ARGUMENTS.values()]}.values(), ids=str)
@pytest.mark.sampled(4)
def test_every_annotation_reads_anything_or_refuses(annotation: Any) -> None:
    codec = codec_of(annotation)

    @settings(quick, max_examples=40)
    @given(wire)
    def read(value: Any) -> None:
        try:
            decoded = codec.decode_arguments(seal(pack({"value": value})))
        except DecodeError:
            return
        again = codec.decode_arguments(codec.encode_arguments(*decoded))
        assert len(again[0]) == 1

    read()


# --- time and memory ----------------------------------------------------------------------------------------------


def peak_of(payload: bytes, decoders: Iterable[Any]) -> int:
    tracemalloc.start()
    try:
        for decode in decoders:
            with pytest.raises(DecodeError):
                decode(payload)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def repeated(piece: bytes, head: bytes = b"") -> bytes:
    """Return a body of nearly a megabyte: an array32 of as many pieces as fit, and then something that is not msgpack."""
    count = (MEGABYTE - 20 - len(head)) // len(piece)
    return seal(head + b"\xdd" + count.to_bytes(4, "big") + piece * count + b"\xc1")


BOMBS = {
    "empty lists": b"\x90",
    "empty maps": b"\x80",
    "lists of one": b"\x91\x00",
    "maps of one": b"\x81\xa0\x00",
    "short texts": b"\xa2ab",
    "short bytes": b"\xc4\x01a",
    "big integers": b"\xd4\x10\x01",
    "integers": b"\xcd\xff\xff",
    "small integers": b"\x01",
    "sets": b"\x91\xc7\x00\x02",
}


@pytest.mark.parametrize("piece", BOMBS.values(), ids=BOMBS)
def test_memory_is_bounded_by_the_number_of_values(piece: bytes) -> None:
    """1 MB of empty lists would take 64 MB: refused before anything is built."""
    assert peak_of(repeated(piece), [CODEC.decode_arguments, decode_value]) < 4 * MEGABYTE


@pytest.mark.parametrize(
    "head",
    [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x10"],
)
def test_promised_lengths_allocate_nothing(head: bytes) -> None:
    assert peak_of(seal(head), [CODEC.decode_arguments, decode_value]) < 100_000


@pytest.mark.parametrize("piece", [b"\x91", b"\x81\xa0", b"\x92\xc7\x00\x01", b"\x92\xc7\x00\x04\x90", b"\x93\xc7\x00\x05\xa1a"])
@pytest.mark.parametrize("depth", [65, 900, 100_000])
def test_nesting_beyond_every_limit(piece: bytes, depth: int) -> None:
    for head in (b"", b"\x81\xa1a", b"\x81\xa5extra\x81\xa1x", b"\x82\xa1a\xc0\xa1b"):
        for tail in (b"\xc0", b""):
            survives(seal(head + piece * depth + tail))
    with pytest.raises(DecodeError):
        decode_value(seal(piece * depth + b"\xc0"))


NUMBERS = {
    "Decimal of a huge exponent": (Decimal, Ext(17, b"1E+999999999999999999")),
    "Decimal of many digits": (Decimal, Ext(17, b"9" * 1_000_000)),
    "int of many bytes": (int, Ext(16, b"\x7f" * 1_000_000)),
    "float of a huge int": (float, Ext(16, b"\x7f" * 1_000_000)),
    "timedelta of many bytes": (timedelta, Ext(22, b"\x7f" * 1_000_000)),
    "UUID of many bytes": (UUID, Ext(18, b"\x7f" * 1_000_000)),
    "zone of a long key": (ZoneInfo, Ext(25, b"a/" * 500_000)),
    "datetime of a long name": (datetime, Ext(21, b"2024-01-01T00:00:00+01:00[=" + b"x" * 1_000_000)),
    "set of unhashable values": (set, [Ext(2, b""), *([[]] * 1000)]),
}


@pytest.mark.parametrize(("annotation", "value"), NUMBERS.values(), ids=NUMBERS)
def test_huge_values_cost_no_more_than_their_bytes(annotation: Any, value: Any) -> None:
    """If one of them were expanded, this would not end: no memory can hold 10**999999999999999999."""
    codec = codec_of(annotation)
    payload = seal(pack({"value": value}))
    try:
        [decoded], _ = codec.decode_arguments(payload)
    except DecodeError as error:
        assert error.path == "value"  # noqa: PT017
    else:
        assert type(decoded) is annotation
        assert codec.decode_arguments(codec.encode_arguments((decoded,), {})) == ((decoded,), {})


COLLIDING = [Ext(16, (((1 << 61) - 1) * (1000 + number)).to_bytes(12, "big")) for number in range(2000)]


@pytest.mark.parametrize("annotation", [set, set[int], frozenset[int], dict[int, int], Any])
def test_numbers_chosen_to_hash_alike_are_refused(annotation: Any) -> None:
    """The number of comparisons grows with the square of their count: 32,000 of them took 4 s."""
    head = (
        [Ext(4, b""), *(part for number in COLLIDING for part in (number, 1))]
        if annotation == dict[int, int]
        else [Ext(2, b""), *COLLIDING]
    )
    with pytest.raises(DecodeError, match="value: has more than 100 keys or items with the same hash"):
        codec_of(annotation).decode_arguments(seal(pack({"value": head})))
