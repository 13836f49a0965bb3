"""The jobs of Django's tasks: how a task is declared as a job, what its runs do, and how a job's record becomes a TaskResult."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from inspect import iscoroutinefunction
from traceback import format_exception
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.utils import timezone

from taskflow.app.app import default_app
from taskflow.app.context import Cancel, Discard, JobContext, Retry, Snooze
from taskflow.app.decorator import job
from taskflow.app.handle import JobHandle
from taskflow.app.job import Declared
from taskflow.app.job_info import JobInfo
from taskflow.app.portal import run_sync
from taskflow.model.errors import JobCancelled
from taskflow.model.record import Status

_PACKAGE: Final = "django.tasks" if find_spec("django.tasks") is not None else "django_tasks"
if find_spec(_PACKAGE) is None:
    raise ImportError("Django 5.2 has no Tasks: pip install django-tasks, or use Django 6")
base: Any = import_module(f"{_PACKAGE}.base")
signals: Any = import_module(f"{_PACKAGE}.signals")

BACKEND: Final = "django-backend"
RUN_AFTER: Final = "django-run-after"
"""The headers of a job with facts that only a TaskResult shows: the alias of its backend, and `run_after`."""


def job_of(task: Any) -> Declared[..., Any]:
    """Return the job of a task. The first call for a task declares the job."""
    known = default_app().registry.get(task.module_path)
    if isinstance(known, Declared) and getattr(task_of(known), "func", None) is task.func:
        return known
    run = (_async_run if iscoroutinefunction(task.func) else _plain_run)(task)
    run.__qualname__, run.__module__ = task.func.__qualname__, task.func.__module__
    run.__dict__.update(task=task, begins_at=task.func)
    made: Declared[..., Any] = job(name=task.module_path, keep_arguments=True)(run)
    return made


def task_of(known: Any) -> Any:
    """Return the task of a job, or None if the job is not a task's."""
    return getattr(known.function, "task", None)


# --- runs ------------------------------------------------------------------------------------------------------------


def _plain_run(task: Any) -> Callable[..., Any]:
    def run(context: JobContext, args: list[Any], kwargs: dict[str, Any]) -> Any:
        earlier = run_sync(JobHandle.of(context.job_id).info()) if context.attempt > 1 else None
        sender, result, args = _begin(task, context, args, kwargs, earlier)
        signals.task_started.send_robust(sender, task_result=result)
        try:
            value = _succeed(result, task.func(*args, **kwargs))
        except BaseException as error:
            if _fails(result, context, error):
                signals.task_finished.send_robust(sender, task_result=result)
            raise
        signals.task_finished.send_robust(sender, task_result=result)
        return value

    return run


def _async_run(task: Any) -> Callable[..., Any]:
    async def run(context: JobContext, args: list[Any], kwargs: dict[str, Any]) -> Any:
        earlier = await JobHandle.of(context.job_id).info() if context.attempt > 1 else None
        sender, result, args = _begin(task, context, args, kwargs, earlier)
        await signals.task_started.asend_robust(sender, task_result=result)
        try:
            value = _succeed(result, await task.func(*args, **kwargs))
        except BaseException as error:
            if _fails(result, context, error):
                await signals.task_finished.asend_robust(sender, task_result=result)
            raise
        await signals.task_finished.asend_robust(sender, task_result=result)
        return value

    return run


def _begin(task: Any, context: JobContext, args: list[Any], kwargs: dict[str, Any], earlier: JobInfo | None) -> tuple[type, Any, list[Any]]:
    """Return the sender of signals, the run's TaskResult (which changes during the run), and the function's arguments."""
    from taskflow.worker.registration import worker_name  # imported here, because web processes run no tasks

    if earlier is None:
        now = _local(datetime.now(UTC))
        sent = _as_sent(task, context.headers, queue_name=context.queue, priority=context._lease.envelope.priority)
        times = {"started_at": now, "last_attempted_at": now}
        result = new_result(sent, context.job_id, args, kwargs, status="RUNNING", worker_ids=[worker_name()], **times)
    else:
        result = result_of(earlier, task)
    return type(result.task.get_backend()), result, [base.TaskContext(task_result=result), *args] if task.takes_context else args


def _succeed(result: Any, value: Any) -> Any:
    value = normalized(value)
    _change(result, _return_value=value, status=base.TaskResultStatus.SUCCESSFUL, finished_at=_local(datetime.now(UTC)))
    return value


def _fails(result: Any, context: JobContext, error: BaseException) -> bool:
    """Record an error that ends the task as FAILED, and return True. Return False if the task is retried or its run was stopped."""
    policy = job_of(result.task).policy
    if isinstance(error, Snooze | asyncio.CancelledError) or context.cancelled.is_set():
        return False
    is_retried = isinstance(error, (Retry, *policy.retry_on)) or not isinstance(error, Exception)
    if is_retried and not isinstance(error, (Discard, Cancel, *policy.discard_on)) and context.attempt < context.max_attempts:
        return False
    frames = error.__traceback__ and error.__traceback__.tb_next  # without the frame of this module
    result.errors.append(
        _error(f"{type(error).__module__}.{type(error).__qualname__}", "".join(format_exception(type(error), error, frames)))
    )
    _change(result, status=base.TaskResultStatus.FAILED, finished_at=_local(datetime.now(UTC)))
    return True


# --- results ---------------------------------------------------------------------------------------------------------


def new_result(task: Any, job_id: str, args: list[Any], kwargs: dict[str, Any], *, status: str = "READY", **fields: Any) -> Any:
    """Return a TaskResult. Without further `fields`, it describes a task that was just sent, at the time that `job_id` contains."""
    sent_at = _local(datetime.fromtimestamp((UUID(job_id).int >> 80) / 1_000, UTC))
    empty: dict[str, Any] = {
        "enqueued_at": sent_at,
        "started_at": None,
        "last_attempted_at": None,
        "finished_at": None,
        "errors": [],
        "worker_ids": [],
    }
    shown = base.TaskResultStatus[status]
    return base.TaskResult(task=task, id=job_id, args=args, kwargs=kwargs, backend=task.backend, status=shown, **empty | fields)


def result_of(info: JobInfo, task: Any) -> Any:
    arguments = info.arguments or {}
    errors = [_error(error.type, error.traceback or str(error)) for error in info.errors]
    workers = [error.worker or "" for error in info.errors]
    is_discarded = info.status is Status.FAILED and info.error is None
    if is_discarded or info.status is Status.CANCELLED:
        errors.append(_error(_path_of(Discard if is_discarded else JobCancelled), info.reason or info.status))
    if info.worker and (is_discarded or info.status in (Status.RUNNING, Status.SUCCEEDED)):
        workers.append(info.worker)
    first = next((error.started_at for error in info.errors if error.started_at is not None), info.started_at)
    status = {"running": "RUNNING", "succeeded": "SUCCESSFUL"}.get(info.status, "FAILED" if info.status.is_ended else "READY")
    result = new_result(
        _as_sent(task, info.headers, queue_name=info.queue, priority=info.priority),
        info.id,
        arguments.get("args", []),
        arguments.get("kwargs", {}),
        status=status,
        started_at=_local(first),
        last_attempted_at=_local(info.started_at),
        finished_at=_local(info.ended_at) if info.status.is_ended else None,
        errors=errors,
        worker_ids=workers,
    )
    _change(result, _return_value=info.result)
    return result


def normalized(value: Any) -> Any:
    """Convert a value to JSON types. Raises TypeError if that's impossible."""
    module: Any = import_module("django.utils.json" if _PACKAGE == "django.tasks" else "django_tasks.utils")
    return module.normalize_json(value)


def _as_sent(task: Any, headers: Mapping[str, str], **options: Any) -> Any:
    """Return a copy of a declared task with a call's options."""
    run_after = headers.get(RUN_AFTER)
    return task.using(run_after=run_after and datetime.fromisoformat(run_after), backend=headers.get(BACKEND), **options)


def _path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _error(name: str, traceback: str) -> Any:
    return base.TaskError(exception_class_path=name if "." in name else f"builtins.{name}", traceback=traceback)


def _change(result: Any, **fields: Any) -> None:
    for name, value in fields.items():
        object.__setattr__(result, name, value)


def _local(when: datetime | None) -> datetime | None:
    """Return a time in the form that Django's settings require: naive if USE_TZ is False."""
    return when if when is None or settings.USE_TZ else timezone.make_naive(when)
