"""Limited jobs in tests: they run as under a worker, and a limit holds them up there too."""

from __future__ import annotations

from taskflow import Concurrency, Rate, Status, TaskflowJobs, job

ran: list[int] = []


@job(name="tests.limited.one", limits=[Concurrency(1)])
async def one(number: int) -> None:
    ran.append(number)


@job(name="tests.limited.rated", limits=[Rate(6, per=60.0)])
async def rated(number: int) -> None:
    ran.append(number)


async def test_run_all_runs_those_that_wait_for_a_slot(taskflow_jobs: TaskflowJobs) -> None:
    ran.clear()
    for number in range(3):
        await one.delay(number)
    await taskflow_jobs.run_all()
    assert ran == [0, 1, 2]


async def test_the_clock_lets_the_next_ones_start(taskflow_jobs: TaskflowJobs) -> None:
    ran.clear()
    for number in range(3):
        await rated.delay(number)
    await taskflow_jobs.run_all()
    assert ran == [0]
    await taskflow_jobs.advance(10.0)
    assert ran == [0, 1]
    await taskflow_jobs.advance(10.0)
    assert ran == [0, 1, 2]


async def test_a_job_that_a_limit_holds_up_does_not_run_where_it_is_sent(taskflow_jobs: TaskflowJobs) -> None:
    ran.clear()
    with taskflow_jobs.inline():
        for number in range(2):
            await one.delay(number)
        handles = [await rated.delay(number) for number in (7, 8)]
    assert ran == [0, 1, 7]
    assert [await handle.status() for handle in handles] == [Status.SUCCEEDED, Status.SCHEDULED]
