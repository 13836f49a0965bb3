"""Middleware that stamps calls before they are sent, and the arguments that middleware sees."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskflow import (
    BrokerUnavailable,
    EnqueueCall,
    EnqueueFailed,
    EnqueueNext,
    Every,
    JobContext,
    Middleware,
    RunNext,
    Verdict,
    configure,
    current_job,
    enqueue,
    enqueue_sync,
    job,
    schedules,
)
from taskflow.app.events import Event, Events
from taskflow.model.record import Record
from taskflow.worker import maintenance as scheduler_module
from taskflow.worker.events import ScheduleFailed
from taskflow.worker.maintenance import Scheduler
from tests.support.listing import listed
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add, nothing, total


class Stamping(Middleware):
    """Records each call of `stamp`, and sets one header."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.threads: set[str] = set()

    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        self.batches.append(len(calls))
        self.threads.add(threading.current_thread().name)
        for call in calls:
            call.headers["stamp"] = call.headers.get("stamp", "") + call.job


@pytest.fixture
def stamping(bench: Bench) -> Stamping:
    stamping = Stamping()
    configure(middleware=[stamping])
    return stamping


async def stamps(bench: Bench) -> list[str | None]:
    return [record.headers.get("stamp") for record in await all_records(bench)]


async def all_records(bench: Bench) -> list[Record]:
    return await listed(bench.broker.admin)


async def test_each_way_of_sending_stamps_once_a_batch_in_the_callers_thread(bench: Bench, stamping: Stamping) -> None:
    async def calls() -> AsyncIterator[Any]:
        for n in range(3):
            yield add.bind(n)

    here = threading.current_thread().name
    await add.options(headers={"own": "1"}).delay(1)
    await enqueue(add.bind(n) for n in range(1_002))
    await enqueue(calls())
    assert stamping.batches == [1, 1_000, 2, 3]
    assert stamping.threads == {here}

    stamping.threads.clear()
    names = set[str]()

    def send() -> None:
        names.add(threading.current_thread().name)
        add.delay_sync(1)
        enqueue_sync(add.bind(n) for n in range(1_001))

    await asyncio.to_thread(send)
    assert stamping.batches[4:] == [1, 1_000, 1]
    assert stamping.threads == names
    assert set(await stamps(bench)) == {add.name}


async def test_schedules_stamp_the_jobs_that_they_add(bench: Bench, stamping: Stamping) -> None:
    """They are fired by a worker, and by hand."""
    await schedules.put("often", nothing.bind(), Every(seconds=60))
    events = list[Event]()
    scheduler = Scheduler(bench.broker, bench.app.registry, bench.app.settings.middleware, Events(events.append))
    await fire(bench, scheduler)
    assert stamping.batches
    assert set(stamping.batches) == {1}

    stamping.batches.clear()
    await schedules.trigger("often")
    start = datetime(2020, 1, 1, tzinfo=UTC)
    await schedules.backfill("often", start, start + timedelta(minutes=5))
    assert stamping.batches == [1, 5]
    assert set(await stamps(bench)) == {nothing.name}


async def fire(bench: Bench, scheduler: Scheduler) -> None:
    """Compute the next times, and fire what is due after a minute or two."""
    for _ in range(5):
        while (done := await bench.broker.upkeep(100)).next_in <= 0 or done.offers:
            if done.offers:
                await scheduler.fire(done.offers)
        bench.clock.advance(30)


@pytest.mark.parametrize("error", [RuntimeError("no tenant"), BrokerUnavailable("no tenant"), SystemExit("no tenant")])
async def test_a_stamp_that_raises_holds_back_a_schedules_jobs_and_is_reported(bench: Bench, error: BaseException) -> None:
    class Picky(Middleware):
        def stamp(self, calls: Sequence[EnqueueCall]) -> None:
            if any(call.job == nothing.name for call in calls):
                raise error

    configure(middleware=[Picky()])
    await schedules.put("good", add.bind(1), Every(seconds=60))
    await schedules.put("bad", nothing.bind(), Every(seconds=60))
    events = list[Event]()
    scheduler = Scheduler(bench.broker, bench.app.registry, bench.app.settings.middleware, Events(events.append))
    await fire(bench, scheduler)
    assert {record.job for record in await all_records(bench)} == {add.name}
    assert [event for event in events if isinstance(event, ScheduleFailed)] == [ScheduleFailed("bad", f"{type(error).__name__}: no tenant")]


async def test_a_stamp_that_does_not_return_holds_up_upkeep_for_a_limited_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Hanging(Middleware):
        def stamp(self, calls: Sequence[EnqueueCall]) -> None:
            release.wait(30)

    monkeypatch.setattr(scheduler_module, "STAMP_TIMEOUT", 0.01)
    configure(middleware=[Hanging()])
    await schedules.put("first", nothing.bind(), Every(seconds=60))
    await schedules.put("second", nothing.bind(), Every(seconds=60))
    events = list[Event]()
    await fire(bench, Scheduler(bench.broker, bench.app.registry, bench.app.settings.middleware, Events(events.append)))
    release.set()
    assert await all_records(bench) == []
    why = "TimeoutError: stamp() did not return within 0.01 s"
    assert {event for event in events if isinstance(event, ScheduleFailed)} == {ScheduleFailed("first", why), ScheduleFailed("second", why)}


class Refusing(Middleware):
    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        if any(call.arguments["x"] >= 1_000 for call in calls):
            raise LookupError("no tenant")


async def test_an_error_in_a_stamp_reaches_the_caller_and_nothing_of_the_batch_is_sent(bench: Bench) -> None:
    configure(middleware=[Refusing()])
    with pytest.raises(LookupError, match="no tenant"):
        await add.delay(1_000)
    with pytest.raises(LookupError, match="no tenant"):
        await asyncio.to_thread(add.delay_sync, 1_000)
    assert await all_records(bench) == []
    with pytest.raises(EnqueueFailed, match="LookupError: no tenant; 1000 call") as failed:
        await enqueue(add.bind(n) for n in range(1_500))
    assert isinstance(failed.value.__cause__, LookupError)
    assert len(failed.value.handles) == len(await all_records(bench)) == 1_000


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("tf-caused-by", "me", r"header 'tf-caused-by': names that begin with 'tf-' are reserved"),
        ("a", "\udc80", "a lone surrogate is not"),
    ],
)
async def test_a_stamp_with_a_reserved_name_or_invalid_text_is_refused(bench: Bench, name: str, text: str, says: str) -> None:
    class Careless(Middleware):
        def stamp(self, calls: Sequence[EnqueueCall]) -> None:
            calls[0].headers[name] = text

    configure(middleware=[Careless()])
    with pytest.raises(ValueError, match=says):
        await add.delay(1)
    assert await all_records(bench) == []


async def test_new_headers_leave_those_of_a_schedule(bench: Bench) -> None:
    class Replacing(Middleware):
        def stamp(self, calls: Sequence[EnqueueCall]) -> None:
            for call in calls:
                call.headers = {"tenant": "acme"}

    configure(middleware=[Replacing()])
    await schedules.put("hourly", add.bind(1), Every(seconds=3600))
    handle = await schedules.trigger("hourly")
    info = await handle.info()
    assert info is not None
    assert (info.headers["tenant"], info.schedule) == ("acme", "hourly")


async def test_all_stamp_before_the_first_enqueue_and_in_the_order_of_the_list(bench: Bench) -> None:
    story = list[str]()

    class Both(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        def stamp(self, calls: Sequence[EnqueueCall]) -> None:
            story.append(f"{self.name} stamps {len(calls)}")
            for call in calls:
                call.headers["path"] = call.headers.get("path", "") + self.name

        async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
            story.append(f"{self.name} passes on {call.headers['path']}")
            await call_next(call)

    configure(middleware=[Both("a"), Both("b")])
    await enqueue([add.bind(1), add.bind(2)])
    assert story[:2] == ["a stamps 2", "b stamps 2"]
    assert sorted(story[2:]) == sorted(["a passes on ab", "b passes on ab"] * 2)


# --- arguments ------------------------------------------------------------------------------------------------------


@dataclass
class Order:
    number: int


@job(name="tests.stamp.charge")
async def charge(ctx: JobContext, order: Order, *lines: int, cents: int = 5, **rest: str) -> str:
    return f"{current_job().arguments is ctx.arguments}"


class Looking(Middleware):
    def __init__(self) -> None:
        self.stamped: list[Mapping[str, Any]] = []
        self.enqueued: list[Mapping[str, Any]] = []
        self.ran: list[Mapping[str, Any]] = []

    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        self.stamped += [call.arguments for call in calls]

    async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
        self.enqueued.append(call.arguments)
        await call_next(call)

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        self.ran.append(context.arguments)
        return await call_next(context)


@pytest.fixture
def looking(bench: Bench) -> Looking:
    looking = Looking()
    configure(middleware=[looking])
    return looking


async def test_arguments_have_their_parameters_names_and_defaults(bench: Bench, looking: Looking) -> None:
    expected = {"order": Order(1), "lines": (2, 3), "cents": 5, "rest": {"note": "soon"}}
    await charge.delay(Order(1), 2, 3, note="soon")
    await enqueue([charge.bind(Order(1), 2, 3, note="soon")])
    await bench.run_all()
    for found in (looking.stamped, looking.enqueued, looking.ran):
        assert [dict(arguments) for arguments in found] == [expected] * 2
    await add.delay(x=1)
    assert dict(looking.stamped[-1]) == {"x": 1, "y": 1}
    await nothing.delay()
    assert dict(looking.stamped[-1]) == {}


async def test_they_are_not_looked_for_unless_asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet(Middleware):
        def stamp(self, calls: Sequence[EnqueueCall]) -> None:
            for call in calls:
                call.headers["a"] = "b"

        async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
            return await call_next(context)

    def named(*given: Any) -> Any:
        raise AssertionError("nobody has asked")

    configure(middleware=[Quiet()])
    monkeypatch.setattr("taskflow.app.job_type.JobType.named_arguments", named)
    handles = [await total.delay([1], 2), *await enqueue([total.bind([1], 2)])]
    await bench.run_all()
    assert [await handle.result() for handle in handles] == [3, 3]
