"""Jobs in flows under workers: each gets the results of those before it, as its parameter is annotated."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest

from taskflow import (
    Batch,
    Discard,
    Failure,
    JobCancelled,
    JobContext,
    JobFailed,
    Middleware,
    RunNext,
    Status,
    Verdict,
    Worker,
    configure,
    job,
)
from taskflow.app.app import default_app
from taskflow.app.handle import JobHandle
from taskflow.app.job_type import AnyJob, Registry
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.protocol import Broker
from taskflow.model.clock import Seams
from taskflow.model.codec.payload import seal
from taskflow.model.codec.wire import pack
from taskflow.model.envelope import Envelope
from taskflow.model.flow import MAX_RESULTS, Member, Tie
from taskflow.model.ids import IdFactory, id_text
from taskflow.model.rules import Rules
from tests.support.harnesses import BROKERS, StoreHarness
from tests.worker.child_jobs import Order, days
from tests.worker.child_scene import a_worker
from tests.worker.scene import EventRecorder, options

an_id = IdFactory()


@dataclass
class Point:
    x: int
    y: int = 0


@job(name="tests.flows.point")
async def point(x: int) -> Point:
    if x < 0:
        raise Discard("below zero")
    return Point(x)


@job(name="tests.flows.total")
async def total(points: list[Point], *, factor: int = 1) -> int:
    return factor * sum(each.x for each in points)


@job(name="tests.flows.tally")
def tally(points: list[Point | Failure]) -> list[str]:
    return [str(each.x) if isinstance(each, Point) else f"{type(each.error).__name__}: {each.error}" for each in points]


@job(name="tests.flows.untyped")
def untyped(points: Any) -> list[str]:
    return [type(each).__name__ for each in points]


@job(name="tests.flows.moved")
async def moved(point: Point) -> Point:
    return Point(point.x, point.y + 1)


@job(name="tests.flows.gathered", batch=Batch(size=2, within=0.1))
async def gathered(points: list[Point]) -> list[int]:
    return [each.x for each in points]


@job(name="tests.flows.large")
async def large(size: int) -> str:
    return "x" * size


@job(name="tests.flows.lengths")
async def lengths(texts: list[str]) -> int:
    return sum(map(len, texts))


@job(name="tests.flows.order")
async def order(number: int) -> Order:
    return Order(number, date(2026, 1, number))


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    harness: StoreHarness = request.param(Seams(), Rules())
    opened = harness.open()
    with default_app().using(opened):
        yield opened
    await opened.close()
    harness.remove()


def call(of: AnyJob, member: Member, **more: Any) -> Envelope:
    arguments = more.pop("arguments", {})
    return Envelope(**{"id": an_id(), "job": of.name, "payload": seal(pack(arguments)), "member": member, **more})


def a_group(of: AnyJob, calls: list[dict[str, Any]], join: AnyJob, takes: str, *, collects: bool = False, **more: Any) -> list[Envelope]:
    """Return members, and at the end the join that gets their results."""
    flow, size = an_id(), len(calls)
    last = call(join, Member(flow, size, 0, size, takes, is_list=True, inputs=size), awaits=size, **more)
    ties = [{"joins": (last.id,), "ties": (Tie(number, collects),)} for number in range(size)]
    scopes = [(number, number) if collects else (0, size) for number in range(size)]
    members = [
        call(of, Member(flow, number, *scope), arguments=given, **tie)
        for number, (given, tie, scope) in enumerate(zip(calls, ties, scopes, strict=True))
    ]
    return [*members, last]


def handle_of(envelope: Envelope) -> JobHandle[Any]:
    return JobHandle.of(id_text(envelope.id))


async def drained() -> None:
    async with Worker(options=options(EventRecorder(), concurrency=8, drain_horizon=0.0)) as worker:
        await worker.drained()


async def result_of(broker: Broker, *envelopes: Envelope) -> Any:
    await broker.enqueue(envelopes)
    await drained()
    return await handle_of(envelopes[-1]).result(0)


async def test_a_join_gets_the_results_in_their_order(broker: Broker) -> None:
    """They have the parameter's type, and come beside the join's own arguments."""
    group = a_group(point, [{"x": number} for number in range(20)], total, "points", arguments={"factor": 2})
    assert await result_of(broker, *group) == 2 * 190


async def test_a_join_of_nothing_gets_an_empty_list(broker: Broker) -> None:
    assert await result_of(broker, *a_group(point, [], total, "points")) == 0


async def test_each_link_of_a_chain_gets_the_result_before_it(broker: Broker) -> None:
    flow, ids = an_id(), [an_id() for _ in range(3)]
    links = [
        call(point, Member(flow, 0, 0, 2), id=ids[0], arguments={"x": 7}, joins=(ids[1],), ties=(Tie(0),)),
        call(moved, Member(flow, 1, 0, 2, "point", inputs=1), id=ids[1], awaits=1, joins=(ids[2],), ties=(Tie(0),)),
        call(moved, Member(flow, 2, 0, 2, "point", inputs=1), id=ids[2], awaits=1),
    ]
    await broker.enqueue(links)
    await drained()
    handle = JobHandle[Any](default_app(), ids[2], moved)
    assert await handle.result(0) == Point(7, 2)


@pytest.mark.parametrize("join", [tally, untyped])
async def test_a_failure_stands_in_the_place_of_a_result(broker: Broker, join: AnyJob) -> None:
    group = a_group(point, [{"x": 1}, {"x": -1}, {"x": 3}], join, "points", collects=True)
    found = await result_of(broker, *group)
    why = f"JobFailed: job {id_text(group[1].id)} failed: below zero"
    assert found == (["1", why, "3"] if join is tally else ["dict", "Failure", "dict"])


async def test_a_failure_says_how_its_job_has_ended() -> None:
    """It has what the job's `result()` would raise, and can be sent on."""
    failed = tally.codec.encode_arguments(([Failure(JobFailed("f", job_id="1", type="E", error_message="no", traceback="t"))],), {})
    cancelled = tally.codec.encode_arguments(([Failure(JobCancelled("c", job_id="2", reason="expired"))],), {})
    other = tally.codec.encode_arguments(([Failure("no such point")],), {})
    [first], [second], [third] = (tally.codec.decode_arguments(each)[0][0] for each in (failed, cancelled, other))

    assert (type(first.error), first.error.type, first.error.message, first.error.job_id) == (JobFailed, "E", "no", "1")
    assert (type(second.error), second.error.reason, second.error.job_id) == (JobCancelled, "expired", "2")
    assert (third.error.type, third.error.message) == ("RuntimeError", "no such point")


async def test_a_join_in_a_child_process_gets_them_too(broker: Broker) -> None:
    group = a_group(order, [{"number": 1}, {"number": 2}], days, "orders", arguments={"times": 2})
    await broker.enqueue(group)
    async with a_worker():
        assert await JobHandle[Any](default_app(), group[-1].id, days).result(20) == [date(2026, 1, 1), date(2026, 1, 2)] * 2


async def test_a_batch_job_gets_one_result_for_each_of_its_jobs(broker: Broker) -> None:
    flow = an_id()
    lasts = [call(gathered, Member(flow, 2 + n, 0, 3, "points", inputs=1), awaits=1) for n in range(2)]
    firsts = [call(point, Member(flow, n, 0, 3), arguments={"x": n}, joins=(last.id,), ties=(Tie(0),)) for n, last in enumerate(lasts)]
    await broker.enqueue([*firsts, *lasts])
    await drained()
    assert [await handle_of(each).result(0) for each in lasts] == [0, 1]


async def test_results_may_exceed_the_size_of_an_argument(broker: Broker) -> None:
    """Each has at most `max_payload`, but all of them together may have 64 MiB."""
    group = a_group(large, [{"size": 900_000}] * 4, lengths, "texts")
    assert await result_of(broker, *group) == 3_600_000


async def test_results_beyond_64_mib_fail_the_join(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The join fails at its first attempt and says what to do, and the members keep their results. On a disk 4 MiB stand for 64: these
    would take most of a minute on a busy machine."""
    most = MAX_RESULTS if isinstance(broker, MemoryBroker) else 4 << 20
    monkeypatch.setattr("taskflow.worker.results.MAX_RESULTS", most)
    group = a_group(large, [{"size": 1_000_000}] * (most // 1_000_000 + 1), lengths, "texts", max_attempts=5)
    await broker.enqueue(group)
    await drained()
    info = await handle_of(group[-1]).info()
    assert info is not None
    assert (info.status, info.attempt) == (Status.FAILED, 1)
    assert info.reason is not None
    assert f"{most:,} bytes" in info.reason
    assert {await handle_of(member).status() for member in group[:-1]} == {Status.SUCCEEDED}


@pytest.mark.parametrize("collects", [False, True])
async def test_a_join_that_a_deploy_has_renamed_gets_all_results(broker: Broker, monkeypatch: pytest.MonkeyPatch, collects: bool) -> None:
    """Workers that do not know it park it, even more than once. A worker whose job has the old name as an alias runs it."""
    monkeypatch.setattr(default_app(), "registry", registry := Registry())
    registry.add(point)
    *members, join = a_group(point, [{"x": number} for number in range(20)], total, "points", collects=collects)
    await broker.enqueue([*members, join])
    for _ in range(2):
        await drained()
        info = await handle_of(join).info()
        assert info is not None
        assert info.status is Status.SCHEDULED
        assert info.waiting_for is not None
        assert total.name in info.waiting_for
        await broker.admin.run_now([join.id])

    @job(name="tests.flows.renamed", aliases=[total.name])
    async def renamed(points: list[Point]) -> list[int]:
        return [each.x for each in points]

    await drained()
    assert await handle_of(join).result(0) == list(range(20))


async def test_a_result_of_another_type_fails_the_join(memory_broker: Broker) -> None:
    group = a_group(point, [{"x": 1}], lengths, "texts")
    await memory_broker.enqueue(group)
    await drained()
    info = await handle_of(group[-1]).info()
    assert info is not None
    assert info.status is Status.FAILED
    assert info.reason is not None
    assert "texts[0]: expected str" in info.reason


async def test_middleware_sees_the_results_among_the_arguments(memory_broker: Broker) -> None:
    seen = list[Any]()

    class Looking(Middleware):
        async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
            if context.job_name == total.name:
                seen.append(context.arguments)
            return await call_next(context)

    configure(middleware=[Looking()])
    await result_of(memory_broker, *a_group(point, [{"x": 1}, {"x": 2}], total, "points"))
    assert [dict(each) for each in seen] == [{"points": [Point(1), Point(2)], "factor": 1}]
