"""Classes of every kind that the codec accepts, as an application would write them; annotations here are strings, on purpose."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum, auto
from pathlib import Path, PurePath
from typing import Any, Generic, Literal, NamedTuple, NewType, NotRequired, Required, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic
import typing_extensions
from typing_extensions import ReadOnly, TypeAliasType, TypedDict

from taskflow import register_type

T = TypeVar("T")
N = TypeVar("N", bound=int)
Usual = typing_extensions.TypeVar("Usual", default="date")
Branch = TypeVar("Branch", bound="Tree")
Either = TypeVar("Either", int, str)
UserId = NewType("UserId", int)
Json = TypeAliasType("Json", "bool | int | float | str | list[Json] | dict[str, Json] | None")
Pair = TypeAliasType("Pair", "tuple[T, T]", type_params=(T,))


class Wide(Flag):
    LOW = 1
    HIGH = 1 << 70


class Draft(pydantic.BaseModel):
    """Some fields have defaults, one a factory; it has private attributes."""

    title: str | None = None
    body: str = ""
    tags: list[str] = []
    words: list[int] = pydantic.Field(default_factory=lambda: [1])
    _seen: int = pydantic.PrivateAttr(0)
    _notes: dict[str, Any] = pydantic.PrivateAttr(default_factory=dict)


class Color(Enum):
    RED = "red"
    BLUE = "blue"
    CRIMSON = "red"  # noqa: PIE796  # another name for the same member


class Holiday(Enum):
    LABOUR = date(2024, 5, 1)
    NOTHING = None
    PAIR = (1, "one")
    HALF = 0.5


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Ratio(Enum):
    HALF = 0.5


class Mode(StrEnum):
    FAST = auto()
    SLOW = auto()


class Rights(Flag):
    READ = auto()
    WRITE = auto()


class Picky(Flag):
    ONE = 1
    TWO = 2

    @classmethod
    def _missing_(cls, value: object) -> Any:
        raise ValueError("no combinations here")


class Bits(IntFlag):
    ONE = 1
    FOUR = 4


@dataclass
class Point:
    x: int
    y: float = 0.0


@dataclass
class Spot:
    x: int
    y: float = 0.0


@dataclass(frozen=True, slots=True)
class Frozen:
    name: str
    tags: frozenset[str] = frozenset()


@dataclass
class Tree:
    value: int
    children: list[Tree] = field(default_factory=list)
    parent: Tree | None = None


@dataclass
class Box(Generic[T]):
    content: T
    more: list[T] = field(default_factory=list)


@dataclass
class Labelled(Box[T]):
    label: str = ""


@dataclass
class IntBox(Box[int]):
    unit: str = "m"


@dataclass
class Nested(Box[list[T]], Generic[T]):
    last: T | None = None


@dataclass
class Computed:
    base: int
    double: int = field(init=False)
    note: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.double = self.base * 2


@dataclass
class Positive:
    value: int

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError("must not be negative")


@dataclass(kw_only=True)
class Order:
    id: UUID
    day: date
    total: Decimal
    lines: list[tuple[str, int]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    color: Color = Color.RED
    spot: Point | Spot | None = None


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Guarded(TypedDict):
    name: ReadOnly[Required[str]]
    tags: ReadOnly[NotRequired[list[str]]]
    size: ReadOnly[int]
    many: list[int]


class Partial(Movie, total=False):
    rating: float
    director: Required[str]


class Holder(TypedDict, Generic[T]):
    held: T


class Pin(NamedTuple):
    x: int
    label: str = "pin"


class Loose(NamedTuple):
    anything: Any


class Wire(msgspec.Struct):
    a: int
    b: str = "b"
    c: list[int] = []


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    value: int

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError("must not be negative")


class Crate(msgspec.Struct, Generic[T]):
    content: T


@attrs.define
class Car:
    wheels: int
    _secret: str = "s"
    doors: int = attrs.field(default=4, validator=attrs.validators.ge(0))
    serial: int = attrs.field(init=False, default=7)


@attrs.frozen
class Lamp:
    on: bool
    watts: float | None = None


class User(pydantic.BaseModel):
    id: int = pydantic.Field(gt=0)
    name: str = pydantic.Field(default="", alias="userName")
    born: date | None = None
    tags: set[str] = set()


class Team(pydantic.BaseModel):
    lead: User
    members: tuple[User, ...] = ()
    any: Any = None


class Site(pydantic.BaseModel):
    url: pydantic.HttpUrl
    secret: pydantic.SecretStr | None = None


class Place(pydantic.BaseModel):
    path: PurePath


class Open(pydantic.BaseModel, extra="allow"):
    a: int


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Wrapped(pydantic.BaseModel, Generic[T]):
    content: T


@pydantic.dataclasses.dataclass
class Model:
    size: int = pydantic.Field(ge=0)


class Plain:
    """A class of a kind that cannot be sent."""


class Money:
    """A registered class, made of a Decimal and a text."""

    def __init__(self, amount: Decimal, currency: str) -> None:
        self.amount = amount
        self.currency = currency

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and (other.amount, other.currency) == (self.amount, self.currency)

    def __hash__(self) -> int:
        return hash((self.amount, self.currency))

    def __repr__(self) -> str:
        return f"Money({self.amount!r}, {self.currency!r})"


register_type(
    Money, name="money", encode=lambda money: (money.amount, money.currency), decode=lambda plain: Money(Decimal(plain[0]), plain[1])
)


class Node:
    """A registered class whose instances contain others."""

    def __init__(self, children: list[Node]) -> None:
        self.children = children

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and other.children == self.children

    __hash__ = None  # type: ignore[assignment]


register_type(Node, encode=lambda node: node.children, decode=Node)


@dataclass
class Bill:
    total: Money
    lines: list[Money] = field(default_factory=list)
    file: Path | None = None


class Created(TypedDict):
    kind: Literal["created", "restored"]
    id: int
    by: NotRequired[str]


class Deleted(TypedDict):
    kind: Literal["deleted"]
    id: int


class Renamed(TypedDict):
    id: int
    name: str
    parts: NotRequired[list[Created | Deleted | Renamed]]
