"""Flows in tests: `run_all` and `inline` run whole flows, and the calls that were sent can be asserted."""

from __future__ import annotations

from unittest.mock import ANY

import pytest

from taskflow import Call, Every, Failure, Group, JobCancelled, JobFailed, Retry, Status, TaskflowJobs, group, job, run_sync, schedules

ran: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_has_run() -> None:
    ran.clear()


@job(name="flows.double")
async def double(n: int) -> int:
    ran.append(f"double {n}")
    return 2 * n


@job(name="flows.add")
def add(n: int, to: int, *, note: str = "") -> int:
    ran.append(f"add {n} to {to}{note}")
    return n + to


@job(name="flows.total")
async def total(numbers: list[int]) -> int:
    ran.append(f"total {numbers}")
    return sum(numbers)


@job(name="flows.fragile", max_attempts=1)
async def fragile(n: int) -> int:
    if n == 3:
        raise ValueError("three")
    return n


@job(name="flows.tally")
async def tally(outcomes: list[int | Failure]) -> list[str]:
    return [str(outcome.error if isinstance(outcome, Failure) else outcome) for outcome in outcomes]


@job(name="flows.flaky", max_attempts=3)
async def flaky(n: int) -> int:
    ran.append(f"flaky {n}")
    if ran.count(f"flaky {n}") < 3:
        raise Retry(after=60)
    return n


def fan() -> Group[int]:
    return group(double.bind(n) for n in range(3))


def nothing() -> list[Call[int]]:
    return []


async def test_a_pipeline_runs_through(taskflow_jobs: TaskflowJobs) -> None:
    handle = await (double.bind(2) | add.partial(10, note="!") | double | double.bind(5)).delay()
    assert [await each.status() for each in handle.flow.jobs] == [Status.READY, Status.HELD, Status.HELD, Status.HELD]
    assert await taskflow_jobs.run_all() == 4
    assert ran == ["double 2", "add 4 to 10!", "double 14", "double 5"]
    assert await handle.result(timeout=0) == 10
    assert [await each.result(0) for each in handle.flow.jobs] == [4, 14, 28, 10]
    assert await handle.status() is Status.SUCCEEDED


async def test_a_group_gives_its_results_in_order(taskflow_jobs: TaskflowJobs) -> None:
    handle = await (fan() | total | double).delay()
    other = await fan().delay()
    assert await other.status() is Status.RUNNING
    assert await taskflow_jobs.run_all() == 8
    assert "total [0, 2, 4]" in ran
    assert (await handle.result(0), await other.result(0), await other.status()) == (12, [0, 2, 4], Status.SUCCEEDED)


async def test_an_empty_group_runs_its_join(taskflow_jobs: TaskflowJobs) -> None:
    handle = await (group(nothing()) | total).delay()
    behind = await (double.bind(1) | group(nothing()) | total).delay()
    empty = await group(nothing()).delay()
    assert (await empty.result(0), await empty.status(), empty.flow.jobs) == ([], Status.SUCCEEDED, ())
    await taskflow_jobs.run_all()
    assert ran == ["double 1", "total []", "total []"] or ran == ["total []", "double 1", "total []"]
    assert (await handle.result(0), await behind.result(0)) == (0, 0)


async def test_a_failure_that_is_collected_does_not_fail_an_empty_group_behind(taskflow_jobs: TaskflowJobs) -> None:
    handle = await (group([fragile.bind(3), double.bind(1)], failures="collect") | group(nothing())).delay()
    await taskflow_jobs.run_all(raises=False)
    assert (await handle.result(0), await handle.status()) == ([], Status.SUCCEEDED)


async def test_nested_groups(taskflow_jobs: TaskflowJobs) -> None:
    handle = await (group([fan() | total, double.bind(5), double.bind(1) | double]) | total).delay()
    await taskflow_jobs.run_all()
    assert await handle.result(0) == 6 + 10 + 4


async def test_the_first_failure_cancels_jobs_that_have_not_begun(taskflow_jobs: TaskflowJobs) -> None:
    handle = await (group([double.bind(1) | double, fragile.bind(3) | double]) | total | double).delay()
    with pytest.raises(JobFailed, match="three"):
        await taskflow_jobs.run_all()
    failed = handle.flow.jobs[2]
    with pytest.raises(JobFailed, match="three") as raised:
        await handle.result(0)
    assert raised.value.job_id == failed.id
    info = await handle.flow.jobs[-1].info()
    assert info is not None
    assert (info.status, info.reason) == (Status.CANCELLED, f"job {failed.id} of its flow has failed")


async def test_failures_are_collected(taskflow_jobs: TaskflowJobs) -> None:
    calls = [fragile.bind(n) | double for n in (1, 3, 5)]
    handle = await (group(calls, failures="collect") | tally).delay()
    listed = await group(calls, failures="collect").delay()
    await taskflow_jobs.run_all(raises=False)
    failed = handle.flow.jobs[2].id
    assert await handle.result(0) == ["2", f"job {failed} failed: three", "10"]
    first, second, third = await listed.result(0)
    assert (first, third, await listed.status()) == (2, 10, Status.SUCCEEDED)
    assert isinstance(second, Failure)
    assert isinstance(second.error, JobFailed)
    assert second.error.job_id == listed.flow.jobs[2].id


async def test_a_flow_is_cancelled_and_retried(taskflow_jobs: TaskflowJobs) -> None:
    handle = await (fan() | total).delay()
    assert await handle.flow.cancel() == 4
    assert await taskflow_jobs.run_all() == 0
    with pytest.raises(JobCancelled):
        await handle.result(0)
    assert await handle.flow.retry() == 4
    assert await taskflow_jobs.run_all() == 4
    assert await handle.result(0) == 6
    assert await handle.flow.retry() == 0


async def test_a_failed_job_is_retried_and_its_flow_restored(taskflow_jobs: TaskflowJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = await (group([double.bind(1), fragile.bind(3)]) | total | double).delay()
    await taskflow_jobs.run_all(raises=False)
    assert [await each.status() for each in handle.flow.jobs] == [Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.CANCELLED]

    async def mended(n: int) -> int:
        return n

    monkeypatch.setattr(fragile, "function", mended)
    assert await handle.flow.retry() == 1
    assert await taskflow_jobs.run_all() == 3
    assert await handle.result(0) == 10


async def test_the_jobs_of_a_flow_can_be_asserted(taskflow_jobs: TaskflowJobs) -> None:
    """An argument that takes a result is equal to anything, because the result is not known yet."""
    await (double.bind(2) | add.partial(10) | double).delay()
    taskflow_jobs.assert_enqueued(double, 2)
    taskflow_jobs.assert_enqueued(add, ANY, 10)
    taskflow_jobs.assert_enqueued(add, 4, to=10)
    with pytest.raises(AssertionError, match=r"add\(n=<the result of another job>, to=10"):
        taskflow_jobs.assert_enqueued(add, 4, 11)
    await taskflow_jobs.run_all()
    taskflow_jobs.assert_not_enqueued(add)


async def test_retries_hold_up_the_flow_until_time_passes(taskflow_jobs: TaskflowJobs) -> None:
    handle = await (flaky.bind(1) | double).delay()
    assert await taskflow_jobs.run_all() == 1
    assert await taskflow_jobs.advance(minutes=3) == 3
    assert await handle.result(0) == 2


async def test_a_flow_runs_inline(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline():
        handle = await (group([flaky.bind(1), double.bind(2)]) | total | add.partial(1)).delay()
        assert await handle.result(0) == 6
    assert ran == ["flaky 1", "flaky 1", "flaky 1", "double 2", "total [1, 4]", "add 5 to 1"]
    taskflow_jobs.assert_enqueued(add, 5, 1)


async def test_inline_a_failure_is_collected(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline(raises=False):
        handle = await (group([fragile.bind(3) | double, double.bind(1)], failures="collect") | tally).delay()
        assert [text[-5:] for text in await handle.result(0)] == ["three", "2"]
        broken = await (fragile.bind(3) | double).delay()
        with pytest.raises(JobFailed):
            await broken.result(0)


def test_a_flow_runs_inline_without_a_loop(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline():
        handle = (double.bind(2) | add.partial(10)).delay_sync()
        assert run_sync(handle.result(0)) == 14


async def test_a_schedule_sends_a_flow_at_its_times(taskflow_jobs: TaskflowJobs) -> None:
    await schedules.put("hourly", fan() | total, Every(3600), overlap="skip")
    await taskflow_jobs.advance(hours=3)
    assert ran.count("total [0, 2, 4]") == 3
    found = await schedules.get("hourly")
    assert found is not None
    assert (found.fired, found.skipped) == (3, 0)


async def test_a_delayed_flow_runs_at_its_time(taskflow_jobs: TaskflowJobs) -> None:
    handle = await (fan() | total).options(after=3600).delay()
    await taskflow_jobs.run_all()
    assert ran == []
    await taskflow_jobs.advance(hours=1)
    assert await handle.result(timeout=0) == 6
