"""throttle=, debounce= and at_most=, as senders see them."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from taskflow import Concurrency, KeyConflict, Status, TaskflowJobs, enqueue, job
from taskflow.app.app import App, default_app
from taskflow.app.job_type import Registry
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add

ran: list[str] = []


async def save(document: str) -> str:
    ran.append(document)
    return document


any_job: Any = job


@pytest.fixture(autouse=True)
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setattr(default_app(), "registry", registry := Registry())
    registry.add(add)
    ran.clear()
    return default_app()


async def test_calls_of_one_window_get_the_first_jobs_handle(bench: Bench) -> None:
    ping = add.options(key="u1", throttle=timedelta(minutes=1), keep_result=0)
    first = await ping.delay(1)
    await bench.run_all()
    await bench.pass_time(30)
    again = await ping.delay(2)
    assert (again.id, again.is_new, await again.status()) == (first.id, False, None)
    with pytest.raises(KeyConflict, match=f"the job {first.id} has its key 'u1'"):
        await ping.options(on_conflict="raise").delay(3)
    assert (await ping.options(throttle=0).delay(4)).is_new
    await bench.pass_time(31)
    await bench.run_all()
    assert (await ping.delay(5)).is_new


async def test_calls_that_are_debounced_share_one_job(bench: Bench) -> None:
    declared = any_job(name="windows.save", key="doc", debounce=5, at_most=12)(save)
    handles = [await declared.delay("a")]
    await bench.pass_time(3)
    handles += await enqueue([declared.bind("b"), declared.bind("c")])
    assert {handle.id for handle in handles} == {handles[0].id}
    assert [handle.is_new for handle in handles] == [True, False, False]
    await bench.pass_time(4)
    assert await handles[0].status() is Status.SCHEDULED
    await bench.pass_time(1)
    await bench.run_all()
    assert ran == ["c"]
    assert [await handle.result(0) for handle in handles] == ["c"] * 3


def test_calls_without_a_loop_are_debounced_too(bench: Bench) -> None:
    declared = any_job(name="windows.save", key="doc", debounce=5)(save)
    assert declared.delay_sync("a").id == declared.delay_sync("b").id

    async def run() -> None:
        await bench.pass_time(5)
        await bench.run_all()

    asyncio.run(run())
    assert ran == ["b"]


async def test_a_debounced_job_keeps_its_slot_or_its_place_at_a_limit(bench: Bench) -> None:
    """The job may be READY or wait: the slot is given back once, and the next one gets it."""
    limited = any_job(name="windows.limited", limits=[Concurrency(1)], debounce=5)(save)
    first, second = [await limited.options(key=key).delay(key) for key in ("a", "b")]
    await bench.pass_time(5)
    assert {await handle.status() for handle in (first, second)} == {Status.READY, Status.SCHEDULED}
    for key in ("a", "b"):  # one is READY, the other waits for its slot
        await limited.options(key=key).delay(f"last {key}")
    [lease] = await bench.claim()
    await bench.run(lease)
    assert await bench.claim() == []
    await bench.pass_time(5)
    await bench.run_all()
    assert sorted(ran) == ["last a", "last b"]
    third = await limited.options(key="c").delay("c")
    await bench.pass_time(5)
    await bench.run_all()
    assert await third.result(0) == "c"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"throttle": 60}, "throttle= needs key="),
        ({"debounce": 5}, "debounce= needs key="),
        ({"key": "k", "at_most": 5}, "at_most= needs debounce="),
        ({"key": "k", "debounce": 5, "at_most": 0}, "at_most=0 must not be less than debounce=5"),
        ({"key": "k", "debounce": 5, "at_most": 2}, "at_most=2 must not be less than debounce=5"),
        ({"key": "k", "debounce": 5, "throttle": 2}, "debounce= and throttle= cannot be combined"),
        ({"key": "k", "debounce": 5, "after": 2}, "debounce= and after= cannot be combined"),
        ({"key": "k", "debounce": 5, "on_conflict": "replace"}, "debounce= and on_conflict= cannot be combined"),
        ({"key": "k", "debounce": 5, "on_conflict": "raise"}, "debounce= and on_conflict= cannot be combined"),
        ({"key": "k", "throttle": 5, "on_conflict": "replace"}, "throttle= and on_conflict= cannot be combined"),
    ],
)
async def test_options_that_do_not_fit_are_refused(options: dict[str, Any], says: str, bench: Bench) -> None:
    with pytest.raises(ValueError, match=says):
        await add.options(**options).delay(1)


async def test_a_transaction_takes_no_debounced_call(bench: Bench) -> None:
    """It could not change another client's job before its commit."""
    debounced = add.options(key="k", debounce=5)
    with closing(sqlite3.connect(":memory:")) as connection:
        with pytest.raises(ValueError, match="debounce= and connection= cannot be combined"):
            await debounced.options(connection=connection).delay(1)
        with pytest.raises(ValueError, match="debounce= and connection= cannot be combined"):
            await enqueue([debounced.bind(1)], connection=connection)


async def test_tests_see_the_last_call(taskflow_jobs: TaskflowJobs) -> None:
    declared = any_job(name="windows.save", key="doc", debounce=5)(save)
    for text in "abc":
        await declared.delay(text)
    taskflow_jobs.assert_enqueued(declared, "c", count=1)
    assert await taskflow_jobs.run_all() == 0
    assert await taskflow_jobs.advance(5) == 1
    assert ran == ["c"]
