"""What the project's tests share: Django's names, in Django 6 or in the package django-tasks, and a worker."""

# mypy: implicit-reexport
# ruff: noqa: F401
from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Any

from taskflow import Worker

HAS_TASKS_OF_DJANGO = find_spec("django.tasks") is not None

if HAS_TASKS_OF_DJANGO:
    from django.tasks import TaskContext, TaskResultStatus, default_task_backend, task, task_backends
    from django.tasks.base import Task, TaskResult
    from django.tasks.exceptions import InvalidTask, InvalidTaskBackend, TaskResultDoesNotExist, TaskResultMismatch
    from django.tasks.signals import task_enqueued, task_finished, task_started
else:
    from django_tasks import TaskContext, TaskResultStatus, default_task_backend, task, task_backends
    from django_tasks.base import Task, TaskResult
    from django_tasks.exceptions import (
        InvalidTaskBackendError as InvalidTaskBackend,
        InvalidTaskError as InvalidTask,
        TaskResultDoesNotExist,
        TaskResultMismatch,
    )
    from django_tasks.signals import task_enqueued, task_finished, task_started

LOGGER = "django.tasks" if HAS_TASKS_OF_DJANGO else "django_tasks"
OTHER_BACKENDS = f"{LOGGER}.backends"


async def arun_worker(**options: Any) -> None:
    """Run a worker of this process until its queues are empty."""
    async with Worker(**options) as worker:
        await worker.drained()


def run_worker(**options: Any) -> None:
    asyncio.run(arun_worker(**options))
