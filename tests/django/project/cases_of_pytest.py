"""The fixture `taskflow_jobs` with pytest-django."""

from __future__ import annotations

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from taskflow import TaskflowJobs, run_sync

from . import tasks
from .models import Note


@pytest.mark.django_db
def test_jobs_see_the_rows_of_a_plain_test(taskflow_jobs: TaskflowJobs) -> None:
    Note.objects.create(text="of the test")
    counted = tasks.count_notes.enqueue()
    handle = tasks.count_in_async_job.delay_sync("of the test")
    run_sync(taskflow_jobs.run_all())
    counted.refresh()
    assert (counted.return_value, run_sync(handle.result(timeout=0))) == (1, 1)
    with taskflow_jobs.inline():
        assert run_sync(tasks.count_in_job.delay_sync("of the test").result(timeout=0)) == 1


@pytest.mark.django_db
@pytest.mark.asyncio
async def test_a_coroutine_is_told_why_its_jobs_would_not_see_the_rows(taskflow_jobs: TaskflowJobs) -> None:
    await tasks.count_notes.aenqueue()
    with pytest.raises(AssertionError, match=r"Make the test a plain function, with run_sync\(taskflow_jobs.run_all\(\)\)"):
        await taskflow_jobs.run_all()
    with pytest.raises(AssertionError, match="django_db"), taskflow_jobs.inline():
        await tasks.count_in_async_job.delay("of the test")


@pytest.mark.django_db
@pytest.mark.asyncio
async def test_jobs_that_use_no_database_run_in_a_coroutine(taskflow_jobs: TaskflowJobs) -> None:
    result = await tasks.calculate_meaning_of_life.aenqueue()
    await taskflow_jobs.run_all()
    await result.arefresh()
    assert result.return_value == 42


@pytest.mark.django_db(transaction=True)
@pytest.mark.asyncio
async def test_jobs_see_the_committed_rows_of_a_coroutine(taskflow_jobs: TaskflowJobs) -> None:
    await Note.objects.acreate(text="of the test")
    handle = await tasks.count_in_job.delay("of the test")
    counted = await tasks.count_notes_async.aenqueue()
    await taskflow_jobs.run_all()
    await counted.arefresh()
    assert (await handle.result(timeout=0), counted.return_value) == (1, 1)
    await sync_to_async(connections.close_all)()
