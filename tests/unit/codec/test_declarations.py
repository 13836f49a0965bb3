"""What no payload can carry is refused at the function's declaration, naming function, parameter, field, and a solution."""

from __future__ import annotations

import abc
import collections
from collections.abc import Callable
from dataclasses import InitVar, dataclass
from enum import Enum
from ipaddress import IPv4Address
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Generic, NewType, Protocol, TypeVar

import pydantic
import pytest
from typing_extensions import TypeAliasType, TypeVarTuple, Unpack

from taskflow.model.codec import FunctionCodec
from taskflow.model.errors import DeclarationError
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of, there_and_back

if TYPE_CHECKING:
    pass

T = TypeVar("T")
type_alias: Any = TypeAliasType  # keeps type checkers from reading deliberate errors
new_type: Any = NewType
type_variables: Any = TypeVarTuple
Knot = type_alias("Knot", "int | Knot")
Twist = type_alias("Twist", "int | Turn")
Turn = type_alias("Turn", "Twist | str")
several: Any = type_variables("several")
unpack: Any = Unpack
Lost = type_alias("Lost", "list[NotDefinedAnywhere]")


class Shape(Protocol):
    side: int


class Base(abc.ABC):
    @abc.abstractmethod
    def method(self) -> None: ...


class Members(Enum):
    A = object()


class Empty(Enum):
    pass


@dataclass
class WithInitVar:
    value: int
    seed: InitVar[int] = 0


@dataclass
class Holds:
    inner: list[Deeper]


@dataclass
class Deeper:
    plain: k.Plain


@dataclass
class Growing(Generic[T]):
    value: T
    child: Growing[list[T]] | None = None


class Foreign(pydantic.BaseModel, arbitrary_types_allowed=True):
    thing: k.Plain


UNSUPPORTED: list[tuple[Any, str]] = [
    (k.Plain, "value: tests.unit.codec.kinds.Plain cannot be sent; make it a dataclass"),
    (dict[str, tuple[int, k.Plain]], "value: tests.unit.codec.kinds.Plain"),
    (k.Box[k.Plain], "value.content: tests.unit.codec.kinds.Plain"),
    (Holds, "value.inner.plain: tests.unit.codec.kinds.Plain"),
    (Callable[[int], int], "value: collections.abc.Callable"),
    (type[int], "value: type cannot be sent"),
    (collections.deque, "value: collections.deque"),
    (Shape, "value: tests.unit.codec.test_declarations.Shape"),
    (Base, "value: tests.unit.codec.test_declarations.Base"),
    (Members, "value: tests.unit.codec.test_declarations.Members has a value that cannot be sent"),
    (Empty, "value: tests.unit.codec.test_declarations.Empty cannot be sent"),
    (WithInitVar, "value: WithInitVar.seed is an InitVar"),
    (Growing[int], "value: .* cannot be understood: RecursionError"),
    (Knot, "value: the type alias Knot refers to itself directly; put it inside a list or a dict"),
    (GenericAlias(list, (Knot,)), "value: the type alias Knot refers to itself"),
    (tuple[int, *tuple[str, ...]], "value: tuple.* mixes items with a part of variable length; put that part into a separate list"),
    (tuple[int, unpack[several]], "value: .* mixes items"),
    (Foreign, "value.thing: .*Plain.* is supported neither by taskflow nor by pydantic"),
    (5, "value: 5 cannot be sent"),
    ("1 +", "an annotation cannot be evaluated: SyntaxError"),
]


@pytest.mark.parametrize(("annotation", "message"), UNSUPPORTED, ids=repr)
def test_an_annotation_without_a_form_is_refused(annotation: Any, message: str) -> None:
    with pytest.raises(DeclarationError, match=f"app.job: {message}"):
        codec_of(annotation)


def test_a_class_whose_annotations_are_broken_is_refused() -> None:
    Broken: Any = dataclass(type("Broken", (), {"__annotations__": {"a": "1 +"}}))  # noqa: N806
    with pytest.raises(DeclarationError, match="an annotation of Broken cannot be evaluated: SyntaxError"):
        codec_of(Broken)


UNRESOLVED: list[tuple[Any, str]] = [
    ("NotDefinedAnywhere", "app.job, value: the name 'NotDefinedAnywhere' is not defined"),
    ("dataclasses.NotDefinedAnywhere", "app.job, value: the name 'NotDefinedAnywhere' is not defined"),
    (new_type("Lost", "NotDefinedAnywhere"), "app.job, value: Lost, signature: the name 'NotDefinedAnywhere'"),
    (Lost, "app.job, value: Lost, signature: the name 'NotDefinedAnywhere'"),
    (GenericAlias(list, ("NotDefinedAnywhere",)), "app.job, .*the name 'NotDefinedAnywhere'"),
]


@pytest.mark.parametrize(("annotation", "message"), UNRESOLVED, ids=repr)
def test_a_name_that_is_never_defined_is_an_error_at_first_use(annotation: Any, message: str) -> None:
    codec = codec_of(annotation)
    assert not codec.is_resolved
    for use in (
        codec.resolve,
        lambda: codec.encode_arguments((1,), {}),
        lambda: codec.decode_arguments(b""),
        lambda: codec.encode_result(1),
        lambda: codec.decode_result(b""),
    ):
        with pytest.raises(DeclarationError, match=message):
            use()


def test_a_model_that_is_not_complete_waits() -> None:
    class Unfinished(pydantic.BaseModel):
        other: NotDefinedAnywhere  # type: ignore[name-defined]  # noqa: F821

    codec = codec_of(Unfinished)
    assert not codec.is_resolved
    with pytest.raises(DeclarationError, match=r"value: .*Unfinished"):
        codec.resolve()


def test_a_variable_of_an_enclosing_function_may_be_filled_later() -> None:
    def function(value: Later) -> None:
        print(Later)

    codec = FunctionCodec(function)
    assert not codec.is_resolved

    class Later(Enum):
        A = 1

    assert codec.decode_arguments(codec.encode_arguments((Later.A,), {})) == ((Later.A,), {})


def test_only_a_typed_dict_can_be_unpacked_into_keywords() -> None:
    def function(**options: Unpack[int]) -> None: ...  # type: ignore[misc]

    with pytest.raises(DeclarationError, match=r"app\.job: options: Unpack needs a TypedDict"):
        FunctionCodec(function, name="app.job")


@pytest.mark.parametrize("wrapped", [Final[int], ClassVar[int], Annotated[int, []], Annotated[Annotated[k.UserId, 1], 2]], ids=repr)
def test_wrappers_of_an_annotation_change_nothing(wrapped: Any) -> None:
    assert there_and_back(wrapped, 5) == 5
    assert there_and_back(list[wrapped], [5]) == [5]


def test_a_class_that_failed_once_is_not_half_known_afterwards() -> None:
    """pydantic changes a field after its class failed here; the same class elsewhere must fail again, not hang."""

    @dataclass
    class Odd:
        address: IPv4Address

    class Model(pydantic.BaseModel):
        odd: Odd

    Model.model_rebuild(_types_namespace={"Odd": Odd})
    assert there_and_back(Model, Model(odd=Odd(IPv4Address(1)))) == Model(odd=Odd(IPv4Address(1)))
    with pytest.raises(DeclarationError, match=r"value\[?.*address: ipaddress"):
        codec_of(tuple[Model, Odd])


Nested = type_alias("Nested", "int | list[Nested | None] | dict[str, Nested | str]")


def test_an_alias_may_stand_in_a_union_inside_itself() -> None:
    value = [1, [None, {"a": "b", "c": [None, 2]}]]
    assert there_and_back(Nested, value) == value
    assert there_and_back(Nested | None, value) == value


def test_a_tuple_of_fixed_length_may_be_unpacked_in_another() -> None:
    assert there_and_back(tuple[int, *tuple[str, bool]], (1, "a", True)) == (1, "a", True)
    assert there_and_back(tuple[int, unpack[tuple[str, bool]], int], (1, "a", True, 2)) == (1, "a", True, 2)
