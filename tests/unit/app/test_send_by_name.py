"""Jobs that are sent by their names: as the job itself where it is declared, and by parameter names alone where it is not."""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest

from taskflow import EncodeError, KeyConflict, Middleware, Status, configure, enqueue, job, named, run_sync, send, send_sync
from taskflow.app.app import App
from taskflow.app.middleware import EnqueueCall
from taskflow.model.codec import FunctionCodec, Limits, decode_by_name, encode_by_name
from taskflow.model.errors import DecodeError, TooLarge
from taskflow.model.ids import parse_id
from taskflow.model.verdict import Failed, Parked, Succeeded
from tests.unit.app.bench import Bench, speaking_for


@job(name="tests.named.here", aliases=("tests.named.before",), queue="own", max_attempts=2, tags=("declared",))
async def here(x: int, day: date = date(2026, 1, 1)) -> date:
    return day + timedelta(days=x)


@job(name="tests.named.keyed", key="{x}", key_scope="name")
async def keyed(x: int) -> None: ...


@dataclass
class Order:
    number: int
    due: date


ELSEWHERE = App()
"""The application of a worker, whose jobs the sender does not know."""

with speaking_for(ELSEWHERE):

    @job(name="app.tasks.charge", queue="own")
    async def charge(order: Order, *, name: str = "", timeout: int = 0) -> str:
        return f"{type(order).__name__} {order.number} {order.due} {name} {timeout}"


# --- a job that is declared here --------------------------------------------------------------------------------------


def alike(one: Any, other: Any) -> None:
    for field in type(one).__struct_fields__:
        if field != "id":
            assert getattr(one, field) == getattr(other, field), field


@pytest.mark.parametrize("name", ["tests.named.here", "tests.named.before"])
def test_a_call_of_a_job_that_is_declared_here_is_the_jobs_own(name: str) -> None:
    alike(named(name).bind(1, day=date(2026, 2, 3)).envelope, here.bind(1, day=date(2026, 2, 3)).envelope)
    options: dict[str, Any] = {
        "key": "k",
        "queue": "q",
        "priority": 3,
        "after": 5,
        "tags": ("more",),
        "headers": {"a": "b"},
        "timeout": None,
    }
    alike(named(name).options(**options).bind(1).envelope, here.options(**options).bind(1).envelope)
    alike(named(name).options(after=5).options(at=datetime(2030, 1, 1, tzinfo=UTC)).bind(1).envelope,
          here.options(after=5).options(at=datetime(2030, 1, 1, tzinfo=UTC)).bind(1).envelope)  # fmt: skip


def test_a_declared_key_holds_for_a_job_that_is_sent_by_name() -> None:
    alike(named("tests.named.keyed").bind(7).envelope, keyed.bind(7).envelope)
    alike(named("tests.named.keyed").options(key="").bind(7).envelope, keyed.options(key="").bind(7).envelope)
    assert named("tests.named.here").options(key="").key is None
    with pytest.raises(ValueError, match='key="" removes a key, but there is none'):
        named("tests.named.here").options(key="").bind(1)


async def test_its_arguments_are_checked_and_its_result_is_decoded(bench: Bench) -> None:
    with pytest.raises(EncodeError, match="x: expected int, got str"):
        await send("tests.named.here", "1")
    with pytest.raises(EncodeError, match="is not an argument of this function"):
        await send("tests.named.here", 1, timeout=5)
    handle = await send("tests.named.here", 1, day=date(2026, 2, 3))
    await bench.run_all()
    assert await handle.result() == date(2026, 2, 4)


# --- a job that is not ------------------------------------------------------------------------------------------------


async def test_a_job_that_only_the_worker_knows_runs(bench: Bench) -> None:
    """Its arguments may have the names of options, and that of the parameter of `send`."""
    handle = await send("app.tasks.charge", order={"number": 7, "due": date(2026, 1, 2)}, name="ada", timeout=3)
    assert handle.is_new
    [verdict] = await bench.run_all(by=ELSEWHERE)
    assert isinstance(verdict, Succeeded)
    assert await handle.result() == "Order 7 2026-01-02 ada 3"


async def test_the_names_of_python_are_free_too(bench: Bench) -> None:
    made = await send("app.tasks.odd", self=1, args=2, kwargs=3, cls=4, arguments=5)
    [lease] = await bench.claim()
    assert decode_by_name(lease.envelope.payload, limits=Limits()) == {"self": 1, "args": 2, "kwargs": 3, "cls": 4, "arguments": 5}
    assert lease.envelope.id == parse_id(made.id)


async def test_its_options_are_those_of_the_call_and_the_defaults(bench: Bench) -> None:
    configure(defaults={"max_attempts": 3, "queue": "io"})
    call = named("app.tasks.charge").options(timeout=5, key="k", tags=("import:42",), priority=2).bind(order_id=7)
    envelope = call.envelope
    assert (envelope.queue, envelope.max_attempts, envelope.timeout, envelope.priority) == ("io", 3, 5.0, 2)
    assert (call.job, call.key, envelope.tags, repr(call)) == (
        "app.tasks.charge",
        "k",
        ("import:42",),
        f"<Call app.tasks.charge {call.id}>",
    )
    [handle] = await enqueue([call])
    assert handle.id == call.id
    live = await named("app.tasks.charge").live("k")
    assert live == handle
    with pytest.raises(KeyConflict):
        await named("app.tasks.charge").options(key="k", on_conflict="raise").delay(order_id=8)


async def test_it_is_in_the_default_queue_unless_told(bench: Bench) -> None:
    assert named("app.tasks.charge").queue == "default"
    assert named("app.tasks.charge").options(queue="io").bind().envelope.queue == "io"


def test_positional_arguments_need_the_declaration() -> None:
    with pytest.raises(EncodeError, match=r"app\.tasks\.charge got 2 positional argument\(s\): .* give its arguments by name"):
        named("app.tasks.charge").bind(1, 2)


def test_a_value_that_needs_an_annotation_is_refused_with_the_name_of_the_argument() -> None:
    class Order: ...

    with pytest.raises(EncodeError, match=r"order.*cannot be sent by itself.*app\.tasks\.charge, whose annotations are not known here"):
        named("app.tasks.charge").bind(order=Order())
    with pytest.raises(TooLarge):
        named("app.tasks.charge").bind(order=b"x" * (2 << 20))


async def test_a_job_that_is_declared_later_is_found_when_it_is_sent(bench: Bench) -> None:
    later = named("tests.named.later").options(priority=4)

    @job(name="tests.named.later", queue="late")
    async def declared(x: int) -> None: ...

    envelope = later.bind(1).envelope
    assert (envelope.queue, envelope.priority) == ("late", 4)


async def test_a_name_and_arguments_that_the_worker_does_not_know_park(bench: Bench) -> None:
    order = {"number": 7, "due": date(2026, 1, 2)}
    unknown = await send("app.tasks.charged", order=order)
    too_many, too_few = await send("app.tasks.charge", order=order, extra=1), await send("app.tasks.charge")
    misfit = await send("app.tasks.charge", order={"number": "7", "due": date(2026, 1, 2)})
    verdicts = {lease.envelope.id: await bench.run(lease, by=ELSEWHERE) for lease in await bench.claim()}
    for handle in (unknown, too_many, too_few):
        assert isinstance(verdicts[parse_id(handle.id)], Parked)
        assert await handle.status() is Status.SCHEDULED
    failed = verdicts[parse_id(misfit.id)]
    assert isinstance(failed, Failed)
    assert "order.number: expected int" in failed.error.message


async def test_send_sync_and_delay_sync_need_no_loop(bench: Bench) -> None:
    def view() -> list[str]:
        handles = [send_sync("tests.named.here", 1), named("app.tasks.charge").options(queue="io").delay_sync(order_id=7)]
        assert all(run_sync(handle.status()) is Status.READY for handle in handles)
        return [handle.id for handle in handles]

    assert len({*await asyncio.to_thread(view)}) == 2
    with pytest.raises(RuntimeError, match="delay_sync"):
        send_sync("tests.named.here", 1)


async def test_middleware_sees_the_arguments_of_a_job_that_is_not_declared(bench: Bench) -> None:
    seen: list[Any] = []

    class Sees(Middleware):
        def stamp(self, calls: Any) -> None:
            seen.extend((call.job, dict(call.arguments)) for call in calls if isinstance(call, EnqueueCall))

    configure(middleware=[Sees()])
    await send("app.tasks.charge", order_id=7)
    assert seen == [("app.tasks.charge", {"order_id": 7})]


@pytest.mark.parametrize(
    ("name", "error"), [("", ValueError), ("a\nb", ValueError), ("x" * 201, ValueError), (here, TypeError), (None, TypeError)]
)
def test_a_wrong_name_is_refused(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        named(name)


def test_a_wrong_option_is_refused_where_it_is_given() -> None:
    job_by_name: Any = named("app.tasks.charge")
    with pytest.raises(TypeError, match="unknown option quue=; did you mean queue="):
        job_by_name.options(quue="io")
    with pytest.raises(ValueError, match="max_attempts=0"):
        job_by_name.options(max_attempts=0)


def test_send_reserves_no_name() -> None:
    kinds = [parameter.kind for parameter in inspect.signature(send).parameters.values()]
    assert kinds == [inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]


# --- what an annotated parameter makes of a value that was sent without its annotation --------------------------------


@dataclass
class Line:
    sku: str
    price: Decimal


@dataclass
class Basket:
    lines: list[Line]
    gift: bool = False


class Point(NamedTuple):
    x: int
    y: int


class Options(TypedDict, total=False):
    depth: int


class Colour(Enum):
    RED = "red"
    BLUE = 2


class Level(IntEnum):
    HIGH = 3


class Kind(StrEnum):
    PLAIN = "plain"


class Bits(Flag):
    ONE = 1
    TWO = 2


class Struct(msgspec.Struct):
    day: date


@attrs.define
class Attrs:
    day: date


class Model(pydantic.BaseModel):
    day: date
    note: str = "none"


class Cat(msgspec.Struct):
    name: str


class Dog(msgspec.Struct):
    name: str


DAY = date(2026, 1, 2)
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=ZoneInfo("Europe/Paris"))

ARRIVES: list[tuple[Any, Any, Any]] = [
    (int, 7, 7),
    (int, 10**30, 10**30),
    (float, 1.5, 1.5),
    (str, "é", "é"),
    (bytes, b"\xff", b"\xff"),
    (bool | None, None, None),
    (date, DAY, DAY),
    (time, time(1, 2, 3), time(1, 2, 3)),
    (datetime, MOMENT, MOMENT),
    (datetime, datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
    (timedelta, timedelta(microseconds=1), timedelta(microseconds=1)),
    (UUID, UUID(int=7), UUID(int=7)),
    (Decimal, Decimal("1.10"), Decimal("1.10")),
    (ZoneInfo, ZoneInfo("Europe/Paris"), ZoneInfo("Europe/Paris")),
    (list[date], [DAY], [DAY]),
    (tuple[int, str], (1, "a"), (1, "a")),
    (tuple[date, ...], (DAY,), (DAY,)),
    (set[UUID], {UUID(int=7)}, {UUID(int=7)}),
    (frozenset[int], frozenset({1}), frozenset({1})),
    (dict[str, date], {"a": DAY}, {"a": DAY}),
    (dict[int, str], {1: "a"}, {1: "a"}),
    (dict[date, list[int]], {DAY: [1]}, {DAY: [1]}),
    (Any, {"a": [DAY, (1, 2)]}, {"a": [DAY, (1, 2)]}),
    (Literal["a", 1], "a", "a"),
    (int | str, "7", "7"),
    (list[int] | dict[str, int], {"a": 1}, {"a": 1}),
    (Line, {"sku": "a", "price": Decimal("1.10")}, Line("a", Decimal("1.10"))),
    (Basket, {"lines": [{"sku": "a", "price": Decimal(1)}]}, Basket([Line("a", Decimal(1))])),
    (Basket | None, {"lines": [], "gift": True}, Basket([], True)),
    (dict[str, Line], {"k": {"sku": "a", "price": Decimal(1)}}, {"k": Line("a", Decimal(1))}),
    (Point, {"x": 1, "y": 2}, Point(1, 2)),
    (Options, {"depth": 3}, {"depth": 3}),
    (Struct, {"day": DAY}, Struct(DAY)),
    (Attrs, {"day": DAY}, Attrs(DAY)),
    (Model, {"day": DAY}, Model(day=DAY)),
    (Colour, "red", Colour.RED),
    (Colour, 2, Colour.BLUE),
    (Level, 3, Level.HIGH),
    (Level, Level.HIGH.value, Level.HIGH),
    (Kind, "plain", Kind.PLAIN),
    (Bits, 3, Bits.ONE | Bits.TWO),
    (dict[Kind, int], {"plain": 1}, {Kind.PLAIN: 1}),
    (float, 1, 1.0),
    (list[int], (1, 2), [1, 2]),
    (tuple[int, ...], [1, 2], (1, 2)),
    (set[int], [1], {1}),
    (PurePosixPath, PurePosixPath("a/b"), PurePosixPath("a/b")),
]

DOES_NOT: list[tuple[Any, Any]] = [
    (int, 1.0),
    (date, "2026-01-02"),
    (UUID, str(UUID(int=7))),
    (Decimal, "1.10"),
    (Decimal, 1),
    (bytes, "text"),
    (Point, (1, 2)),
    (Colour, "RED"),
    (Line, {"sku": "a"}),
    (Line, {"sku": "a", "price": Decimal(1), "more": 1}),
    (Cat | Dog, {"name": "a"}),
]
"""Values of other types than the annotation, and the one case in which a payload names a class: classes that look alike in a union."""


def arrived(annotation: Any, value: Any) -> Any:
    def function(value: Any) -> None: ...

    function.__annotations__ = {"value": annotation, "return": None}
    codec = FunctionCodec(function)
    args, kwargs = codec.decode_arguments(encode_by_name({"value": value}, job="x", limits=Limits()))
    assert kwargs == {}
    [found] = args
    return found


@pytest.mark.parametrize(("annotation", "value", "expected"), ARRIVES, ids=str)
def test_a_value_without_an_annotation_arrives_as_the_worker_annotates_it(annotation: Any, value: Any, expected: Any) -> None:
    found = arrived(annotation, value)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(("annotation", "value"), DOES_NOT, ids=str)
def test_a_value_of_another_type_does_not_arrive(annotation: Any, value: Any) -> None:
    with pytest.raises(DecodeError):
        arrived(annotation, value)


@pytest.mark.parametrize("value", [Line("a", Decimal(1)), Point(1, 2), Colour.RED, Struct(DAY), Model(day=DAY), OrderedDict(a=1)], ids=repr)
def test_an_instance_of_a_class_is_not_sent_without_its_annotation(value: Any) -> None:
    with pytest.raises(EncodeError, match=r"value: .* cannot be sent by itself"):
        arrived(Any, value)


def test_an_argument_may_be_as_deep_as_one_of_the_job_itself() -> None:
    deep: Any = []
    for _ in range(63):
        deep = [deep]
    assert arrived(Any, deep) == deep
    payload = encode_by_name({"value": deep}, job="x", limits=Limits())
    assert decode_by_name(payload, limits=Limits()) == {"value": deep}
