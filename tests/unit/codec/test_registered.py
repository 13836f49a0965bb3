"""Types that an application registers: anywhere in arguments and results, named in payloads, and created only by their own `decode`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from taskflow import DeclarationError, DecodeError, EncodeError, TooLarge, register_type
from taskflow.model.codec import FunctionCodec, decode_value, encode_value, untyped
from taskflow.model.errors import UnknownType
from tests.support.ids import stable_id
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of, same, there_and_back

EUR = k.Money(Decimal("1.10"), "EUR")


class Celsius:
    """Unknown until a test registers it."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Celsius) and other.degrees == self.degrees

    def __hash__(self) -> int:
        return hash(self.degrees)


class Name(str):
    """A subclass of str that a test registers."""

    __slots__ = ()


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Forget the types that a test registers after it."""
    tables: list[dict[Any, Any]] = [untyped._by_name, untyped.NAMED_READERS, untyped.WRITERS]
    before = [table.copy() for table in tables]
    yield
    for table, former in zip(tables, before, strict=True):
        table.clear()
        table.update(former)


def register(
    kind: type = Celsius,
    encode: Callable[[Any], object] = lambda value: value.degrees,
    decode: Callable[[Any], Any] = Celsius,
    name: str | None = "celsius",
) -> None:
    register_type(kind, encode=encode, decode=decode, name=name)


@pytest.mark.parametrize(
    "value", [EUR, [EUR], {"a": (EUR, {EUR})}, {EUR: frozenset({EUR})}, k.Node([k.Node([]), k.Node([k.Node([])])])], ids=stable_id
)
def test_it_needs_no_annotation(value: Any) -> None:
    assert same(there_and_back(Any, value), value)


def test_a_subclass_of_str_arrives_as_itself_once_it_is_registered() -> None:
    assert type(there_and_back(Any, Name("a"))) is str
    register(Name, lambda value: str(value), Name, "name")
    assert type(there_and_back(Any, Name("a"))) is Name
    assert type(there_and_back(str | Name, Name("a"))) is Name
    assert type(there_and_back(str | Name, "a")) is str


def test_a_name_that_this_process_does_not_know_says_so() -> None:
    register()
    payload = codec_of(list[Celsius]).encode_arguments(([Celsius(1.5)],), {})
    known = codec_of(list[Celsius])
    untyped.NAMED_READERS.pop("celsius")
    for codec in (codec_of(Any), codec_of(list[k.Money]), codec_of(list[k.Money | k.Node]), codec_of(list[Any | k.Point])):
        with pytest.raises(UnknownType, match=r"^value\[0\]: has the type 'celsius', which is not registered here"):
            codec.decode_arguments(payload)
    assert known.decode_arguments(payload) == (([Celsius(1.5)],), {})


@pytest.mark.parametrize("annotation", [Any, Celsius, Celsius | None])
def test_an_error_of_its_functions_names_type_and_path(annotation: Any) -> None:
    def encode(value: Celsius) -> float:
        if value.degrees < -273.15:
            raise ValueError("below zero")
        return value.degrees

    def decode(degrees: float) -> Celsius:
        if degrees == limit:
            raise ValueError("too hot")
        return Celsius(degrees)

    limit = 1000.0
    register(encode=encode, decode=decode)
    codec = codec_of(dict[str, annotation])
    with pytest.raises(EncodeError, match=r"^value\['a'\]: cannot be encoded: encode= of .*Celsius raised ValueError: below zero"):
        codec.encode_arguments(({"a": Celsius(-300)},), {})
    with pytest.raises(EncodeError, match=r"^value\['a'\]: cannot be decoded: decode= of .*Celsius raised ValueError: too hot"):
        codec.encode_arguments(({"a": Celsius(1000.0)},), {})
    payload = codec.encode_arguments(({"a": Celsius(20.0)},), {})
    limit = 20.0
    with pytest.raises(DecodeError, match=r"^value\[<str>\]: cannot be decoded: decode= of .*Celsius raised ValueError: too hot"):
        codec.decode_arguments(payload)


def test_the_bounds_hold_inside_it() -> None:
    node = k.Node([])
    for _ in range(40):
        node = k.Node([node])
    with pytest.raises(TooLarge, match="nested deeper"):
        encode_value(node)
    endless = k.Node([])
    endless.children.append(endless)
    with pytest.raises(TooLarge, match="nested deeper"):
        codec_of(k.Node).encode_arguments((endless,), {})
    register(encode=lambda value: value)
    with pytest.raises(TooLarge, match="nested deeper"):
        encode_value(Celsius(1.0))
    with pytest.raises(TooLarge, match="bytes"):
        encode_value(k.Money(Decimal(1), "E" * (1 << 20)))


def test_a_class_must_be_registered_before_its_job_is_declared() -> None:
    class Late:
        pass

    def late(value: Late) -> None: ...

    late.__annotations__ = {"value": Late}
    with pytest.raises(DeclarationError, match=r"call taskflow\.register_type\(\) before this job is declared"):
        FunctionCodec(late, name="app.late")
    register(Late, lambda value: None, lambda plain: Late(), "late")
    FunctionCodec(late, name="app.late")
    codec_of(k.Frozen)
    with pytest.raises(DeclarationError, match=r"Frozen\) at .*\.py:\d+ comes after a job that sends this class by its fields"):
        register(k.Frozen, lambda value: None, lambda plain: k.Frozen(""), "frozen")


def elsewhere(kind: type, name: str) -> None:
    exec(
        compile("register_type(kind, encode=str, decode=kind, name=name)", "/app/elsewhere.py", "exec"),
        {"register_type": register_type, "kind": kind, "name": name},
    )


def test_registering_again_from_the_same_file_replaces() -> None:
    register()
    register(encode=lambda value: [value.degrees], decode=lambda plain: Celsius(plain[0]), name="degrees")
    assert b"degrees" in encode_value(Celsius(1.0))
    assert "celsius" not in untyped.NAMED_READERS
    reloaded = type("Celsius", (Celsius,), {"__qualname__": "Celsius", "__module__": Celsius.__module__})
    register(reloaded, decode=reloaded, name="degrees")
    assert type(decode_value(encode_value(reloaded(1.0)))) is reloaded
    with pytest.raises(EncodeError, match="cannot be sent as it is"):
        encode_value(Celsius(1.0))


def test_registering_from_elsewhere_names_both_places() -> None:
    register()
    with pytest.raises(DeclarationError, match=r"Celsius is registered twice: at .*test_registered\.py:\d+ and at /app/elsewhere\.py:1"):
        elsewhere(Celsius, "other")
    with pytest.raises(DeclarationError, match=r"two types are registered as 'celsius': .*Celsius at .*\.py:\d+, and .*Plain at"):
        elsewhere(k.Plain, "celsius")
    with pytest.raises(DeclarationError, match="two types are registered as 'celsius'"):
        register(k.Plain)
    assert decode_value(encode_value(Celsius(1.0))) == Celsius(1.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": str}, "str.: this type needs no registration"),
        ({"kind": object}, "object.: this type needs no registration"),
        ({"kind": Celsius(1.0)}, "expected a class"),
        ({"encode": None}, "encode=None.: expected a function"),
        ({"decode": 5}, "decode=5.: expected a function"),
        ({"name": ""}, "name=''.: expected up to 200 printable characters"),
    ],
    ids=stable_id,
)
def test_a_wrong_registration_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        register(**changed)
