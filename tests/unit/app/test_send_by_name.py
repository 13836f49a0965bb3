"""Jobs that are sent by their names: as the job itself where it is declared, and by parameter names alone where it is not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest

from taskflow import EncodeError, KeyConflict, Status, configure, enqueue, job, named, run_sync, send, send_sync
from taskflow.app.app import App
from taskflow.model.codec import FunctionCodec, Limits, encode_by_name
from taskflow.model.errors import TooLarge
from taskflow.model.verdict import Succeeded
from tests.unit.app.bench import Bench, speaking_for
from tests.unit.codec import kinds as k


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
    with pytest.raises(ValueError, match='key="" removes a declared key, but the job declares none'):
        named("tests.named.here").options(key="").bind(1)


# --- a job that is not ------------------------------------------------------------------------------------------------


async def test_a_job_that_only_the_worker_knows_runs(bench: Bench) -> None:
    """Its arguments may have the names of options, and that of the parameter of `send`."""
    handle = await send("app.tasks.charge", order={"number": 7, "due": date(2026, 1, 2)}, name="ada", timeout=3)
    assert handle.is_new
    [verdict] = await bench.run_all(by=ELSEWHERE)
    assert isinstance(verdict, Succeeded)
    assert await handle.result() == "Order 7 2026-01-02 ada 3"


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


def test_positional_arguments_need_the_declaration() -> None:
    with pytest.raises(EncodeError, match=r"app\.tasks\.charge got 2 positional argument\(s\): .* pass its arguments by name"):
        named("app.tasks.charge").bind(1, 2)


def test_a_value_that_needs_an_annotation_is_refused_with_the_name_of_the_argument() -> None:
    class Order: ...

    with pytest.raises(EncodeError, match=r"order.*cannot be sent as it is.*app\.tasks\.charge, whose annotations are not known here"):
        named("app.tasks.charge").bind(order=Order())
    with pytest.raises(TooLarge):
        named("app.tasks.charge").bind(order=b"x" * (2 << 20))


async def test_a_job_that_is_declared_later_is_found_when_it_is_sent(bench: Bench) -> None:
    later = named("tests.named.later").options(priority=4)

    @job(name="tests.named.later", queue="late")
    async def declared(x: int) -> None: ...

    envelope = later.bind(1).envelope
    assert (envelope.queue, envelope.priority) == ("late", 4)


async def test_send_sync_and_delay_sync_need_no_loop(bench: Bench) -> None:
    def view() -> list[str]:
        handles = [send_sync("tests.named.here", 1), named("app.tasks.charge").options(queue="io").delay_sync(order_id=7)]
        assert all(run_sync(handle.status()) is Status.READY for handle in handles)
        return [handle.id for handle in handles]

    assert len({*await asyncio.to_thread(view)}) == 2
    with pytest.raises(RuntimeError, match="delay_sync"):
        send_sync("tests.named.here", 1)


@pytest.mark.parametrize(
    ("name", "error"), [("", ValueError), ("a\nb", ValueError), ("x" * 201, ValueError), (here, TypeError), (None, TypeError)]
)
def test_a_wrong_name_is_refused(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        named(name)


# --- what an annotated parameter makes of a value that was sent without its annotation --------------------------------


DAY = date(2026, 1, 2)
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=ZoneInfo("Europe/Paris"))

ARRIVES: list[tuple[Any, Any, Any]] = [
    (datetime, MOMENT, MOMENT),
    (dict[date, list[int]], {DAY: [1]}, {DAY: [1]}),
    (Any, {"a": [DAY, (1, 2)]}, {"a": [DAY, (1, 2)]}),
    (Literal["a", 1], "a", "a"),
    (list[int] | dict[str, int], {"a": 1}, {"a": 1}),
    (k.Tree, {"value": 1, "children": [{"value": 2}]}, k.Tree(1, [k.Tree(2)])),
    (k.Point | None, {"x": 1, "y": 2.0}, k.Point(1, 2.0)),
    (dict[str, k.Point], {"a": {"x": 1}}, {"a": k.Point(1)}),
    (k.Pin, {"x": 1, "label": "a"}, k.Pin(1, "a")),
    (k.Movie, {"title": "a"}, {"title": "a"}),
    (k.Wire, {"a": 1}, k.Wire(1)),
    (k.Car, {"wheels": 4, "_secret": "s", "doors": 3, "serial": 7}, k.Car(4, "s", 3)),
    (k.User, {"id": 1, "born": DAY}, k.User(id=1, born=DAY)),
    (k.Color, "red", k.Color.RED),
    (k.Level, 2, k.Level.HIGH),
    (dict[k.Mode, k.Rights], {"fast": 3}, {k.Mode.FAST: k.Rights.READ | k.Rights.WRITE}),
    (float, 1, 1.0),
    (list[int], (1, 2), [1, 2]),
    (tuple[int, ...], [1, 2], (1, 2)),
    (set[int], [1], {1}),
]


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
