"""The tasks of Django's own tests (tests/tasks/tasks.py), and some of this project."""

from __future__ import annotations

import time
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections

from taskflow import current_job, job, operate, run_sync

from .models import Note
from .names import TaskContext, task


@task()
def noop_task(*args: Any, **kwargs: Any) -> None:
    return None


@task
def noop_task_from_bare_decorator(*args: Any, **kwargs: Any) -> None:
    return None


@task()
async def noop_task_async(*args: Any, **kwargs: Any) -> None:
    return None


@task()
def calculate_meaning_of_life() -> int:
    return 42


@task()
def failing_task_value_error() -> None:
    raise ValueError("This Task failed due to ValueError")


@task()
def failing_task_system_exit() -> None:
    raise SystemExit("This Task failed due to SystemExit")


@task()
def failing_task_keyboard_interrupt() -> None:
    raise KeyboardInterrupt("This Task failed due to KeyboardInterrupt")


@task()
def complex_exception() -> None:
    raise ValueError(ValueError("This task failed"))


@task()
def complex_return_value() -> Any:
    return lambda: True


@task()
def exit_task() -> None:
    exit(1)


@task()
def sleep_for(seconds: float) -> None:
    time.sleep(seconds)


@task(takes_context=True)
def get_task_id(context: Any) -> str:
    return str(context.task_result.id)


@task(takes_context=True)
def test_context(context: Any, attempt: int) -> None:
    assert isinstance(context, TaskContext)
    assert context.attempt == attempt


# --- of this project -------------------------------------------------------------------------------------------------


@task(takes_context=True)
def flaky(context: Any) -> list[Any]:
    if context.attempt == 1:
        raise OSError("not yet")
    result = context.task_result
    return [context.attempt, len(result.worker_ids), result.errors[0].exception_class_path]


@task
def purge_everything() -> int:
    return run_sync(operate.purge(everything=True)).changed


@task
def count_notes() -> int:
    return int(Note.objects.count())


@task
async def count_notes_async() -> int:
    return int(await Note.objects.acount())


@task
def add_note(text: str) -> None:
    Note.objects.create(text=text)


@task
def end_connections() -> None:
    """End all sessions of this application except this function's own."""
    other = connections.create_connection("default")
    with other.cursor() as cursor:
        ours = "application_name = 'jobs' AND pid <> pg_backend_pid()"
        cursor.execute(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {ours}")
    other.close()


@task
def close_connections() -> None:
    connections.close_all()


@task
async def close_connections_async() -> None:
    await sync_to_async(connections.close_all)()


@job
def count_in_job(text: str) -> int:
    return int(Note.objects.filter(text=text).count())


@job
async def count_in_async_job(text: str) -> int:
    return int(await sync_to_async(Note.objects.filter(text=text).count)())


@job(runs_in="process")
def count_in_child(text: str) -> int:
    return int(Note.objects.filter(text=text).count())


@job(max_attempts=2)
def add_after_failure(text: str) -> None:
    if current_job().attempt == 1:
        raise OSError("not yet")
    Note.objects.create(text=text)
