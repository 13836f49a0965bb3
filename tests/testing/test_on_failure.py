"""`on_failure` of scheduled and of inline jobs."""

from __future__ import annotations

import pytest

from taskflow import Every, JobContext, TaskflowJobs, job, schedules
from taskflow.app.app import default_app
from taskflow.app.job_type import Registry

seen: list[tuple[str, str | None]] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


@job(name="tests.followed.restore")
async def restore(ctx: JobContext, backup: str) -> None:
    seen.append((backup, ctx.caused_by))


@job(name="tests.followed.fails", max_attempts=1)
async def fails() -> None:
    raise ValueError


async def test_a_job_that_a_schedule_has_added_sends_its_call(taskflow_jobs: TaskflowJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Declared in a separate registry: other tests would fire this schedule, too."""
    registry = Registry()
    registry.add(restore)
    registry.add(fails)
    monkeypatch.setattr(default_app(), "registry", registry)

    @job(name="tests.followed.declared", max_attempts=1, schedule=Every(3_600), on_failure=restore.bind("declared"))
    async def declared() -> None:
        raise ValueError

    await schedules.put("put", fails.options(on_failure=restore.bind("put")).bind(), Every(3_600))
    await taskflow_jobs.advance(3_600, raises=False)  # exactly one instant, wherever the clock stands
    assert sorted(backup for backup, _ in seen) == ["declared", "put"]


async def test_a_job_that_runs_where_it_is_sent_sends_its_call(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline(raises=False):
        handle = await fails.options(on_failure=restore.bind("inline")).delay()
    assert seen == [("inline", handle.id)]
