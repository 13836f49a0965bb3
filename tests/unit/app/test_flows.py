"""Flows on each store: sent in one step, run by a worker, followed by their handles."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskflow import (
    EnqueueCall,
    EnqueueNext,
    Every,
    Failure,
    JobCancelled,
    JobFailed,
    Middleware,
    ResultExpired,
    SentFlow,
    Status,
    TaskflowError,
    Worker,
    configure,
    group,
    job,
    named,
    run_sync,
    schedules,
)
from taskflow.app.app import default_app
from taskflow.app.events import Event, JobSent, SendingFailed
from taskflow.app.flow_handle import AT_ONCE
from taskflow.broker.protocol import Added, Refused
from taskflow.broker.url import connect
from taskflow.model.clock import instant_of
from taskflow.model.envelope import Envelope
from taskflow.model.ids import id_text, parse_id
from taskflow.worker.options import WorkerOptions
from tests.support.listing import listed
from tests.unit.app.bench import Bench


@job(name="flows.unit.double")
async def double(n: int) -> int:
    return 2 * n


@job(name="flows.unit.add")
async def add(n: int, more: int) -> int:
    return n + more


@job(name="flows.unit.total")
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@job(name="flows.unit.fails", max_attempts=1)
async def fails(n: int) -> int:
    raise ValueError(f"no {n}")


@job(name="flows.unit.waits")
async def waits(n: int) -> int:
    await asyncio.sleep(60)
    return n


async def test_a_flow_runs_through(bench: Bench) -> None:
    flow = group([double.bind(1), double.bind(2) | double]) | total | double
    async with Worker(options=WorkerOptions(subscribers=())):
        first, second = await flow.delay(), await flow.delay()
        assert (await first.result(timeout=30), await second.result(timeout=30)) == (20, 20)
        assert await (await group(double.bind(n) for n in range(3)).delay()).result(timeout=30) == [0, 2, 4]
    ids = {each.id for handle in (first, second) for each in handle.flow.jobs}
    assert len(ids) == 10
    info = await first.flow.jobs[-1].info()
    assert info is not None
    assert (info.flow, info.awaits) == (first.flow.id, 0)
    assert repr(first) == f"<FlowHandle {first.flow.id}>"


async def test_a_group_of_jobs_takes_the_result_before_it(bench: Bench) -> None:
    flow = double.bind(1) | group([double.partial(), add.partial(10)]) | total
    spread = group([double.bind(1), double.bind(2)]) | group([total, total])
    async with Worker(options=WorkerOptions(subscribers=())):
        assert await (await flow.delay()).result(timeout=30) == 4 + 12
        assert await (await spread.delay()).result(timeout=30) == [6, 6]
        handle = await (double.bind(1) | group([fails, double], failures="collect")).delay()
        failed, doubled = await handle.result(timeout=30)
    assert isinstance(failed, Failure)
    assert doubled == 4


def test_a_group_of_jobs_needs_a_call_in_front_of_it() -> None:
    assert repr(group([double, double])) == "<GroupLink of 2 branches: put it after a call, which passes its result to them>"
    untyped: Any = group
    with pytest.raises(AttributeError, match=r"put it after a call, .* has no delay\(\)"):
        untyped([double]).delay()
    with pytest.raises(TypeError, match="cannot begin a flow"):
        untyped([double]) | total
    with pytest.raises(TypeError, match="must be a list"):
        untyped([double.bind(1)]) | untyped([double])


async def test_a_failure_is_raised_where_the_result_is_awaited(bench: Bench) -> None:
    async with Worker(options=WorkerOptions(subscribers=())):
        handle = await (group([double.bind(1), fails.bind(7) | double]) | total).delay()
        with pytest.raises(JobFailed, match="no 7") as raised:
            await handle.result(timeout=30)
        assert raised.value.job_id == handle.flow.jobs[1].id
        assert await handle.status() is Status.CANCELLED
        listed_only = await group([double.bind(1), fails.bind(7)]).delay()
        with pytest.raises(JobFailed, match="no 7"):
            await listed_only.result(timeout=30)
        assert await listed_only.status() is Status.FAILED


async def test_a_flow_is_cancelled_while_it_runs(bench: Bench) -> None:
    async with Worker(options=WorkerOptions(subscribers=())):
        handle = await (group(waits.bind(n) for n in range(3)) | total).delay()
        while [await each.status() for each in handle.flow.jobs].count(Status.RUNNING) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await handle.flow.cancel() == 4
        with pytest.raises(JobCancelled):
            await handle.result(timeout=30)


async def test_a_flow_is_whole_or_not_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow's jobs are added in one call of the store."""
    calls = list[int]()
    enqueue = bench.broker.enqueue

    async def counted(envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        calls.append(len(envelopes))
        return await enqueue(envelopes)

    monkeypatch.setattr(bench.broker, "enqueue", counted)
    handle = await (group(double.bind(n) for n in range(2_000)) | total).delay()
    assert calls == [2_001]
    assert len(handle.flow.jobs) == 2_001
    assert await handle.status() is Status.HELD
    with pytest.raises(TimeoutError):
        await handle.result(timeout=0)


@pytest.mark.parametrize(("jobs", "timeout"), [(2, 5.0), (1_000, 5.0), (2_001, 10.005), (10_000, 50.0)])
async def test_a_large_flow_has_more_time(bench: Bench, monkeypatch: pytest.MonkeyPatch, jobs: int, timeout: float) -> None:
    """It has as much time as if its jobs were sent in batches."""
    given = list[float]()

    async def retry_within(operation: object, seconds: float) -> list[Added]:
        given.append(seconds)
        return [Added(bytes(16))] * jobs

    monkeypatch.setattr("taskflow.app.loop_client.retry_within", retry_within)
    configure(enqueue_timeout=5.0)
    await group([double.bind(1)] * jobs).delay()
    assert given == [pytest.approx(timeout)]


async def test_a_list_of_more_results_than_are_awaited_at_once(bench: Bench) -> None:
    async with Worker(options=WorkerOptions(subscribers=())):
        handle = await group(double.bind(n) for n in range(AT_ONCE + 5)).delay()
        assert await handle.result(timeout=60) == [2 * n for n in range(AT_ONCE + 5)]


async def test_a_job_that_is_known_by_its_name_only_waits(bench: Bench) -> None:
    flow = double.bind(1) | named("flows.unit.elsewhere").bind(order_id=7)
    handle = await flow.delay()
    assert await handle.status() is Status.HELD
    with pytest.raises(TypeError, match="this process does not know the job, so it cannot tell which argument takes the result"):
        double.bind(1) | named("flows.unit.elsewhere")
    assert await (double.bind(1) | named("flows.unit.double")).delay()


class Wrapping(Middleware):
    """Records the calls that it sees, and passes on those that it should."""

    def __init__(self) -> None:
        self.stamped: list[str] = []
        self.sent: list[str] = []
        self.stops = ""

    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        self.stamped += [f"{call.job} {dict(call.arguments)}" for call in calls]
        for call in calls:
            call.headers["stamped"] = "yes"

    async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
        if call.job != self.stops:
            call.headers["wrapped"] = "yes"
            await call_next(call)
            self.sent.append(call.job_id)


async def test_middleware_sees_each_call_and_the_flow_is_sent_when_all_have_passed(bench: Bench) -> None:
    wrapping = Wrapping()
    configure(middleware=[wrapping])
    handle = await (group([double.bind(1), double.bind(2)]) | total).delay()
    assert wrapping.stamped == ["flows.unit.double {'n': 1}", "flows.unit.double {'n': 2}", "flows.unit.total {}"]
    assert sorted(wrapping.sent) == sorted(each.id for each in handle.flow.jobs)
    records = await listed(bench.broker.admin)
    assert [record.headers for record in records] == [{"stamped": "yes", "wrapped": "yes"}] * 3

    wrapping.stops = "flows.unit.total"
    with pytest.raises(TaskflowError, match=r"enqueue\(\) did not await call_next"):
        await (group([double.bind(1), double.bind(2)]) | total).delay()
    assert len(await listed(bench.broker.admin)) == 3


async def test_subscribers_hear_of_each_job(bench: Bench) -> None:
    heard = list[Event]()
    configure(subscribers=[heard.append])
    handle = await (double.bind(1) | double).delay()
    assert [event.job_id for event in heard if isinstance(event, JobSent)] == [each.id for each in handle.flow.jobs]
    configure(middleware=[wrapping := Wrapping()])
    wrapping.stops = "flows.unit.double"
    with pytest.raises(TaskflowError):
        await (double.bind(1) | double).delay()
    assert len([event for event in heard if isinstance(event, SendingFailed)]) == 2


async def test_a_handle_of_a_flow_that_is_forgotten(bench: Bench) -> None:
    handle = await (double.options(keep_result=0).bind(1) | double.options(keep_result=0)).delay()
    ids = [parse_id(each.id) for each in handle.flow.jobs]
    await bench.broker.cancel(ids)
    await bench.broker.admin.drop(ids)
    assert await handle.status() is None
    with pytest.raises(ResultExpired):
        await handle.result(timeout=0)
    assert await handle.flow.retry() == 0
    assert await SentFlow.of(handle.flow.id).cancel() == 0


async def test_a_flow_is_found_by_the_id_of_one_of_its_jobs(bench: Bench) -> None:
    handle = await (double.bind(1) | double).delay()
    assert await SentFlow.of(handle.flow.jobs[1].id).cancel() == 2
    with pytest.raises(JobCancelled, match=r"was cancelled$"):
        await handle.result(timeout=0)
    assert await SentFlow.of(handle.flow.jobs[0].id).retry() == 2
    assert await handle.status() is Status.HELD


def test_a_flow_is_sent_without_a_loop() -> None:
    with default_app().using(connect("memory://")):
        handle = (double.bind(1) | double).delay_sync()
        assert run_sync(handle.status()) is Status.HELD
        assert run_sync(group([double.bind(1)] * 0).delay_sync().result(0)) == []


async def test_delay_sync_is_refused_inside_a_loop(bench: Bench) -> None:
    with pytest.raises(RuntimeError, match=r"await \.delay\(\)"):
        (double.bind(1) | double).delay_sync()


async def test_a_flow_starts_later(bench: Bench) -> None:
    """Only the jobs that begin the flow wait for its time; it replaces their own."""
    flow = group([double.options(after=5).bind(1), double.bind(2)]) | total | double
    handle = await flow.options(after=60).options(connection=None).delay()
    *begin, join, last = await asyncio.gather(*(job.info() for job in handle.flow.jobs))
    assert [info and info.status for info in (*begin, join, last)] == [Status.SCHEDULED, Status.SCHEDULED, Status.HELD, Status.HELD]
    await bench.pass_time(59.0)
    assert await handle.flow.jobs[0].status() is Status.SCHEDULED
    await bench.pass_time(1.0)
    async with Worker(options=WorkerOptions(subscribers=())):
        assert await handle.result(timeout=30) == 12

    at = instant_of(bench.clock.wall()) + timedelta(hours=1)
    later = await flow.options(after=60).options(at=at).delay()
    info = await later.flow.jobs[0].info()
    assert info is not None
    assert info.due_at == at


def test_a_part_of_a_flow_has_no_time() -> None:
    flow = (double.bind(1) | double).options(after=60)
    with pytest.raises(TypeError, match="pass after= to the whole flow, not to a part of it"):
        flow | double
    with pytest.raises(ValueError, match="after= and at= cannot be combined"):
        flow.options(after=1, at=datetime.now(UTC))
    with pytest.raises(ValueError, match="after=-1"):
        flow.options(after=-1)


async def test_a_schedule_sends_a_flow(bench: Bench) -> None:
    flow = group(double.bind(n) for n in range(10)) | total
    await schedules.put("nightly", flow, Every(3600), overlap="skip")
    before = await schedules.get("nightly")
    await schedules.put("nightly", group(double.bind(n) for n in range(10)) | total, Every(3600), overlap="skip")
    assert await schedules.get("nightly") == before
    assert before is not None
    assert before.flow == "11 jobs: 10 flows.unit.double, flows.unit.total"

    handle = await schedules.trigger("nightly")
    again = await schedules.trigger("nightly")
    assert handle.is_new
    assert not again.is_new
    jobs = await listed(bench.broker.admin)
    assert len(jobs) == 11
    assert {job.headers["tf-schedule"] for job in jobs} == {"nightly"}
    assert again.id in {id_text(job.id) for job in jobs}
    async with Worker(options=WorkerOptions(subscribers=())):
        assert await handle.result(timeout=30) == 90
    assert (await schedules.trigger("nightly")).is_new


async def test_a_flow_is_backfilled(bench: Bench) -> None:
    """A time whose flow is known is not added again."""
    await schedules.put("nightly", double.bind(1) | double, Every(3600))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    first = await schedules.backfill("nightly", start, start + timedelta(hours=2))
    assert [handle.is_new for handle in first] == [True, True]
    again = await schedules.backfill("nightly", start, start + timedelta(hours=3))
    assert [handle.is_new for handle in again] == [False, False, True]
    assert [handle.id for handle in again[:2]] == [handle.id for handle in first]
    async with Worker(options=WorkerOptions(subscribers=())):
        assert [await handle.result(timeout=30) for handle in again] == [4, 4, 4]


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "too many jobs": (group([double.bind(1)] * 1_000) | total, {}, r"has 1,001 jobs, but a schedule can send 1,000"),
    "too many bytes": (group([named("large").bind(text="x" * 600_000)] * 2), {}, r"have 1,2\d\d,\d\d\d bytes .* can store 1,048,576"),
    "latest": (double.bind(1) | double, {"overlap": "latest"}, 'overlap="latest" is for single jobs: a flow takes "skip" or "allow"'),
    "options": ((double.bind(1) | double).options(after=1), {}, r"leave out \.options\(\.\.\.\)"),
    "a job's time": (double.options(after=1).bind(1) | double, {}, "remove after=, at= and debounce= from"),
    "nothing": (group([double.bind(1)] * 0), {}, "a schedule sends at least one job"),
}


@pytest.mark.parametrize(("flow", "terms", "says"), WRONG.values(), ids=WRONG)
async def test_flows_that_no_schedule_sends(bench: Bench, flow: Any, terms: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        await schedules.put("nightly", flow, Every(60), **terms)
    assert await schedules.list() == []
