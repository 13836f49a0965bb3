"""Names whose values must not be shown are found wherever an annotation has the mark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, Optional, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest
from typing_extensions import TypeAliasType, Unpack

from taskflow import Secret, job
from taskflow.model.codec import FunctionCodec, Limits, encode_by_name
from taskflow.model.envelope import pack_extras, unpack_extras
from taskflow.model.errors import DecodeError
from taskflow.worker.run_errors import failure_of

Token = Annotated[str, Secret]
Alias = TypeAliasType("Alias", Annotated[str, Secret])
Tree = TypeAliasType("Tree", "dict[str, Tree] | list[Tree] | str")


@dataclass
class Card:
    number: Annotated[str, "the long one", Secret]
    owner: str
    spare: Optional[Card] = None  # noqa: UP045  # as code of other ages writes it


class Keys(TypedDict, total=False):
    pin: Annotated[int, Secret]
    kind: Literal["a", "b"]
    size: NotRequired[int]


class Pair(NamedTuple):
    left: Token
    right: str


T = TypeVar("T")


class Box(msgspec.Struct):
    inside: list[Pair]


class Login(pydantic.BaseModel):
    """pydantic moves an annotation around a whole field's type into the field's metadata."""

    secret_1: Token
    secret_2: Annotated[Token, pydantic.Field(max_length=9)] = pydantic.Field("", alias="two")
    secret_3: Token | None = None
    name: Annotated[str, pydantic.Field(max_length=9)] = ""


class Logins(pydantic.BaseModel, Generic[T]):
    secret_4: Annotated[T, Secret]
    inside: dict[str, list[Login] | None]


@attrs.define
class Account:
    login: Logins[int] | Box | None
    _secret_5: Token = attrs.field(alias="five")


async def of_parameters(
    a: Token, b: Alias, c: list[Token] | None, d: dict[str, tuple[int, Token]], *e: Token, f: int, **g: Token
) -> None: ...
async def of_fields(card: Card, boxes: dict[str, list[Box]], tree: Tree, keys: Keys | None = None) -> None: ...
async def of_result(n: int) -> Token | None: ...
async def of_result_fields(n: int) -> list[Card] | None: ...
async def of_models(accounts: list[Account]) -> None: ...
async def of_options(**options: Unpack[Keys]) -> None: ...
async def of_nothing(a: Annotated[str, "Secret"], b, c: Any, d: Tree) -> None: ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (of_parameters, "a b c d e g"), (of_fields, "left number pin"), (of_result, "return"), (of_result_fields, "number"),
        (of_models, "_secret_5 left secret_1 secret_2 secret_3 secret_4"), (of_options, "pin"), (of_nothing, ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_marked_names_are_found(function: Any, names: str) -> None:
    assert FunctionCodec(function).secrets == tuple(names.split())


def test_the_mark_is_not_called() -> None:
    with pytest.raises(TypeError, match=r"write Annotated\[str, Secret\]"):
        Secret()


@job
async def charge(card: Card, token: Token, amount: int) -> Token | None: ...


@job
async def plain(n: int) -> None: ...


async def test_a_call_carries_the_names_and_others_carry_nothing() -> None:
    envelope = charge.options(priority=3).bind(Card("4", "Ada"), "t", 5).envelope
    assert envelope.secrets == ("number", "return", "token")
    assert unpack_extras(pack_extras(envelope)) == {"secrets": envelope.secrets}
    assert pack_extras(plain.bind(1).envelope) is None
    assert unpack_extras(b"\x81\xa1s\x90") == {"secrets": ()}
    for odd in (b"\x81\xa1s\x01", b"\x81\xa1s\x91\x01"):
        with pytest.raises(ValueError, match="secrets: expected"):
            unpack_extras(odd)


def test_a_forward_reference_that_is_resolved_late_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the queue first must not lead to a lasting conclusion that the job has no secrets."""

    @job(name="tests.unit.codec.test_secret.late")
    async def late(a: Annotated[Later, Secret]) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert late.queue == "default"
    monkeypatch.setitem(globals(), "Later", str)
    assert late.bind("x").envelope.secrets == ("a",)


class Strict(pydantic.BaseModel):
    by_user: dict[str, Annotated[str, pydantic.Field(max_length=1)]]


@pytest.mark.parametrize(
    ("sent", "annotation", "says"),
    [
        ({"sk_live": 1}, dict[str, str], r"^value\[<str>\]: expected str"),
        ({("sk_live", 1): 1}, dict[tuple[str, int], str], r"^value\[<tuple>\]: expected str"),
        ({"sk_live": [{"hunter2": 1}]}, Any, r"^value\[<str>\]\[0\]\[<str>\]: extension 99"),
        ({"by_user": {"sk_live": "hunter2"}}, Strict, ".*Strict rejected its fields: ValidationError: by_user: String should have"),
    ],
)  # fmt: skip
def test_decode_errors_show_no_values_and_no_keys(sent: Any, annotation: Any, says: str) -> None:
    """The errors are stored and logged, where the application's own secrets may not be."""

    async def work(value: Any) -> None: ...

    payload = encode_by_name({"value": sent}, job="work", limits=Limits())
    if annotation is Any:
        payload = payload.replace(b"\xa7hunter2\x01", b"\xa7hunter2\xd4\x63\x00")  # an unknown extension
    work.__annotations__["value"] = annotation
    with pytest.raises(DecodeError, match=says) as caught:
        FunctionCodec(work).decode_arguments(payload)
    error = failure_of(caught.value, 1)
    assert "sk_live" not in error.message + error.traceback
    assert "hunter2" not in error.message + error.traceback
