"""Middleware that is called at the end of each job."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from taskflow import Cancel, Discard, JobContext, JobInfo, Retry, Snooze, Status, Worker, configure, enqueue, job
from taskflow.app.app import default_app
from taskflow.app.middleware import Middleware
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.url import connect
from taskflow.model.ids import parse_id
from taskflow.worker import ended_hooks
from taskflow.worker.options import WorkerOptions
from tests.support.harnesses import BROKERS
from tests.support.waiting import until
from tests.support.world import World
from tests.worker.scene import EndedRecorder, FaultyBroker, a_faulty_broker

pytestmark = pytest.mark.usefixtures("memory_broker")


@pytest.fixture
def hearing() -> EndedRecorder:
    hearing = EndedRecorder()
    configure(middleware=[hearing])
    return hearing


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with World(request.param) as world:
        with default_app().using(world.broker):
            yield world


@job(name="tests.ended.ends", max_attempts=1)
async def ends(ctx: JobContext, how: str) -> str:
    match how:
        case "fails":
            raise ValueError("wrong")
        case "discards":
            raise Discard("useless")
        case "cancels":
            raise Cancel("not wanted")
        case "snoozes once":
            if ctx.epoch == 1:
                raise Snooze(after=0)
        case "retries once":
            if ctx.attempt == 1:
                raise Retry(after=0)
        case "retries later":
            raise Retry(after=60)
        case "waits":
            await asyncio.sleep(60)
    return how


async def test_each_end_of_a_run_is_heard_once(world: World) -> None:
    hearing = EndedRecorder()
    configure(middleware=[hearing])
    calls = {how: ends.bind(how) for how in ("returns", "fails", "discards", "cancels", "snoozes once")}
    calls["retries once"] = ends.options(max_attempts=2).bind("retries once")
    calls["keeps nothing"] = ends.options(keep_result=0).bind("keeps nothing")
    handles = dict(zip(calls, await enqueue(calls.values()), strict=True))
    async with Worker():
        await hearing.wait_for(len(calls))
    assert len(hearing.infos) == len(calls)
    told = {how: hearing.about(handle) for how, handle in handles.items()}
    assert {how: info.status for how, info in told.items()} == {
        "returns": Status.SUCCEEDED,
        "fails": Status.FAILED,
        "discards": Status.FAILED,
        "cancels": Status.CANCELLED,
        "snoozes once": Status.SUCCEEDED,
        "retries once": Status.SUCCEEDED,
        "keeps nothing": Status.SUCCEEDED,
    }
    assert {how: info.result for how, info in told.items() if info.status is Status.SUCCEEDED} == {
        how: how for how in ("returns", "snoozes once", "retries once", "keeps nothing")
    }
    assert [(error.type, error.message) for error in told["fails"].errors] == [("ValueError", "wrong")]
    assert (told["discards"].reason, told["cancels"].reason) == ("useless", "not wanted")
    assert all(info.job == ends.name and info.ended_at is not None for info in told.values())


async def test_a_run_that_would_wait_again_but_was_asked_to_stop_has_ended(world: World) -> None:
    """Only the store knows that, because the worker has not learned of the request yet."""
    hearing = EndedRecorder()
    configure(middleware=[hearing])

    class Step:
        started, goes_on = asyncio.Event(), asyncio.Event()

    @job(name="tests.ended.snoozes", queue="snoozing")
    async def snoozes() -> None:
        Step.started.set()
        try:
            await Step.goes_on.wait()
        finally:
            raise Snooze(after=60)  # whatever stops the run

    handle = await snoozes.delay()
    async with Worker():
        await Step.started.wait()
        await world.broker.cancel([parse_id(handle.id)])
        Step.goes_on.set()
        await hearing.wait_for(1)
    assert hearing.about(handle).status is Status.CANCELLED


async def test_a_failing_hook_is_logged_with_the_job_and_the_next_is_called(
    hearing: EndedRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Middleware):
        async def ended(self, info: JobInfo) -> None:
            raise RuntimeError("no network")

    configure(middleware=[Broken(), hearing])
    handle = await ends.delay("returns")
    async with Worker():
        assert await handle.result(20) == "returns"
        await hearing.wait_for(1)
    [record] = [record for record in caplog.records if record.name == "taskflow.worker" and record.levelno == logging.ERROR]
    assert record.getMessage() == f"Broken.ended() failed for job {handle.id} (tests.ended.ends)"
    assert record.exc_info is not None


async def test_a_slow_hook_delays_no_settlement_and_ends_with_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    class Hanging(Middleware):
        called, cancelled = 0, 0

        async def ended(self, info: JobInfo) -> None:
            Hanging.called += 1
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                Hanging.cancelled += 1
                raise

    configure(middleware=[Hanging()])
    number = 3 * ended_hooks.AT_ONCE
    handles = await enqueue(ends.bind("returns") for _ in range(number))
    async with asyncio.timeout(20), Worker(options=WorkerOptions(stop_timeout=0.2)):
        assert [await handle.result(20) for handle in handles] == ["returns"] * number
    await asyncio.sleep(0)
    assert Hanging.cancelled == Hanging.called < number
    assert f"Hanging.ended() had not handled {number} ended job(s) when the worker ended" in caplog.text


async def test_ends_beyond_the_bound_are_dropped_and_counted_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log reports it each time that the hooks are stuck."""

    class Stuck(EndedRecorder):
        may_end = asyncio.Event()

        async def ended(self, info: JobInfo) -> None:
            await self.may_end.wait()
            await super().ended(info)

    monkeypatch.setattr(ended_hooks, "MAX_WAITING", 10)
    monkeypatch.setattr(ended_hooks, "AT_ONCE", 5)
    monkeypatch.setattr(ended_hooks, "STUCK_TIMEOUT", 0.1)
    configure(middleware=[stuck := Stuck()])
    async with Worker() as worker:
        for number in (1, 2):
            stuck.may_end.clear()
            await enqueue(ends.bind("returns") for _ in range(50))
            await worker.drained()
            stuck.may_end.set()
            async with asyncio.timeout(20):
                while caplog.text.count("Stuck.ended() was not called for") < number:  # noqa: ASYNC110 - nobody announces it
                    await asyncio.sleep(0.01)
    assert 20 <= len(stuck.infos) < 100
    assert caplog.text.count("Stuck.ended() is too slow: it is not called for some jobs") == 2
    counted = [int(number) for number in re.findall(r"not called for (\d+) job\(s\): 10 were waiting", caplog.text)]
    assert len(counted) == 2
    assert sum(counted) == 100 - len(stuck.infos)


async def test_a_worker_claims_no_faster_than_its_hooks_hear(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Slow(EndedRecorder):
        async def ended(self, info: JobInfo) -> None:
            await asyncio.sleep(0.01)
            await super().ended(info)

    monkeypatch.setattr(ended_hooks, "MAX_WAITING", 1_000)  # half of it is more than the worker may hold
    configure(middleware=[slow := Slow()])
    handles = await enqueue(ends.bind("returns") for _ in range(3000))
    async with Worker(options=WorkerOptions(concurrency=20)) as worker:
        await worker.drained()
        await slow.wait_for(len(handles))
    assert {info.id for info in slow.infos} == {handle.id for handle in handles}
    assert "dropped" not in caplog.text


async def test_a_hook_hears_of_an_end_while_the_records_cannot_be_read(hearing: EndedRecorder) -> None:
    class Unread(FaultyBroker):
        async def read(self, ids: Any) -> Any:
            self._check("read")
            return await super().read(ids)

    broker = Unread()
    broker.away.add("read")
    with default_app().using(broker):
        handle = await ends.options(headers={"tenant": "acme"}, tags=("import:42",), priority=5, key="once").delay("fails")
        async with Worker():
            await hearing.wait_for(1)
        broker.away.clear()
        stored = await handle.info()
    assert stored is not None
    told = hearing.about(handle)
    by_the_workers_clock = {"created_at", "due_at", "started_at", "ended_at", "errors"}
    for name in set(JobInfo.__struct_fields__) - by_the_workers_clock - {"_arguments"}:
        assert getattr(told, name) == getattr(stored, name), name
    assert [(error.type, error.message, error.attempt) for error in told.errors] == [("ValueError", "wrong", 1)]
    assert told.arguments is None  # arguments may be large, so the worker does not keep them


async def test_a_job_that_cancels_every_task_costs_no_end(hearing: EndedRecorder) -> None:
    @job(name="tests.ended.rampage", queue="rampage", max_attempts=1)
    async def rampage() -> None:
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task() and (task.get_name() or "").startswith("taskflow"):
                task.cancel()

    async with Worker() as worker:
        await enqueue([ends.bind("returns") for _ in range(20)])
        await rampage.delay()
        await worker.drained()
    assert len(hearing.infos) == 21


async def test_without_such_a_hook_no_record_is_read(memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(Middleware):
        pass

    async def read(ids: Any) -> Any:
        raise AssertionError("a record was read")

    configure(middleware=[Plain()])
    await ends.delay("returns")
    monkeypatch.setattr(memory_broker, "read", read)
    async with Worker() as worker:
        await worker.drained()
    assert worker.tally.ended == 1


async def test_an_end_is_heard_once_the_store_has_it_and_not_before(hearing: EndedRecorder) -> None:
    async with a_faulty_broker() as broker:
        broker.away.add("settle")
        handle = await ends.delay("returns")
        async with Worker() as worker:
            await until(lambda: worker.tally.runs)
            await asyncio.sleep(0.1)
            assert hearing.infos == []
            broker.away.clear()
            await hearing.wait_for(1)
    assert hearing.about(handle).status is Status.SUCCEEDED


@job(name="tests.ended.completes", max_attempts=1)
def completes(ctx: JobContext, path: str, commits: bool) -> str:
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    connection.execute("BEGIN IMMEDIATE")
    ctx.complete_in(connection, result="receipt")
    connection.execute("COMMIT" if commits else "ROLLBACK")
    connection.close()
    if not commits:
        raise ValueError("rolled back")
    return "ignored"


@pytest.mark.parametrize(("commits", "status"), [(True, Status.SUCCEEDED), (False, Status.FAILED)])
async def test_a_run_that_completed_in_a_transaction_has_the_end_of_that(
    hearing: EndedRecorder, tmp_path: Path, commits: bool, status: Status
) -> None:
    path = tmp_path / "app.db"
    broker = connect(f"sqlite:///{path}?shared=1")
    with default_app().using(broker):
        configure(middleware=[hearing])
        handle = await completes.delay(str(path), commits)
        async with Worker():
            await hearing.wait_for(1)
    info = hearing.about(handle)
    assert (info.status, info.result) == (status, "receipt" if commits else None)
    await broker.close()
