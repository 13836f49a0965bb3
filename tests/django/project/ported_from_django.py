"""Django's own tests of its Tasks, on taskflow's backend: tests/tasks/test_tasks.py, test_dummy_backend.py and test_immediate_backend.py.

They are adapted from Django 6.0 (BSD license, tests/django/LICENSE.django). Where the originals know a result at once, or read the dummy
backend's list, these run a worker and refresh the result. The page on Django names those that are left out."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any
from unittest import mock

import pytest
from django.db import transaction
from django.test import SimpleTestCase, TransactionTestCase, override_settings
from django.utils import timezone
from django.utils.module_loading import import_string

from taskflow.django import TaskflowBackend

from . import tasks as test_tasks
from .names import (
    LOGGER,
    OTHER_BACKENDS,
    InvalidTask,
    InvalidTaskBackend,
    Task,
    TaskResultDoesNotExist,
    TaskResultMismatch,
    TaskResultStatus,
    arun_worker,
    default_task_backend,
    run_worker,
    task,
    task_backends,
)

BACKEND = "taskflow.django.TaskflowBackend"
NOOPS = (test_tasks.noop_task, test_tasks.noop_task_async)
RANGE = "priority must be a whole number between -100 and 100."


class Case(SimpleTestCase):
    def assert_new(self, result: Any, task: Any, args: Any = (), kwargs: Any = None) -> None:
        assert (result.status, result.task) == (TaskResultStatus.READY, task)
        assert (result.args, result.kwargs, result.attempts, result.errors) == ([*args], kwargs or {}, 0, [])
        assert not result.is_finished
        assert (result.started_at, result.last_attempted_at, result.finished_at) == (None, None, None)
        with self.assertRaisesMessage(ValueError, "Task has not finished yet"):
            _ = result.return_value

    def assert_finished(self, result: Any, task: Any, args: Any = (), kwargs: Any = None, *, status: Any = None) -> None:
        assert result.status == (status or TaskResultStatus.SUCCESSFUL)
        assert result.is_finished is True
        assert result.enqueued_at <= result.started_at <= result.finished_at
        assert result.last_attempted_at is not None
        assert (result.task, result.args, result.kwargs, result.attempts) == (task, [*args], kwargs or {}, 1)

    def run_task(self, task: Any, *args: Any, **kwargs: Any) -> Any:
        result = task.enqueue(*args, **kwargs)
        run_worker()
        result.refresh()
        return result


@override_settings(
    TASKS={
        "default": {"BACKEND": BACKEND, "QUEUES": ["default", "queue_1"]},
        "second": {"BACKEND": BACKEND, "QUEUES": []},
        "immediate": {"BACKEND": f"{OTHER_BACKENDS}.immediate.ImmediateBackend", "QUEUES": []},
        "missing": {"BACKEND": "does.not.exist"},
    },
)
class TaskTestCase(Case):
    def test_using_correct_backend(self) -> None:
        assert default_task_backend == task_backends["default"]
        assert isinstance(task_backends["default"], TaskflowBackend)

    def test_task_decorator(self) -> None:
        for each in (*NOOPS, test_tasks.noop_task_from_bare_decorator):
            assert isinstance(each, Task)

    def test_enqueue_task(self) -> None:
        result = test_tasks.noop_task.enqueue()
        self.assert_new(result, test_tasks.noop_task)
        assert default_task_backend.get_result(result.id) == result

    async def test_enqueue_task_async(self) -> None:
        result = await test_tasks.noop_task.aenqueue()
        self.assert_new(result, test_tasks.noop_task)
        assert await default_task_backend.aget_result(result.id) == result

    def test_enqueue_with_invalid_argument(self) -> None:
        with self.assertRaisesMessage(TypeError, "Unsupported type"):
            test_tasks.noop_task.enqueue(datetime.now())

    async def test_aenqueue_with_invalid_argument(self) -> None:
        with self.assertRaisesMessage(TypeError, "Unsupported type"):
            await test_tasks.noop_task.aenqueue(datetime.now())

    def test_using_priority(self) -> None:
        assert test_tasks.noop_task.using(priority=1).priority == 1
        assert test_tasks.noop_task.priority == 0

    def test_using_queue_name(self) -> None:
        assert test_tasks.noop_task.using(queue_name="queue_1").queue_name == "queue_1"
        assert test_tasks.noop_task.queue_name == "default"

    def test_using_run_after(self) -> None:
        now = timezone.now()
        assert test_tasks.noop_task.using(run_after=now).run_after == now
        assert test_tasks.noop_task.run_after is None

    def test_using_unknown_backend(self) -> None:
        with self.assertRaisesMessage(InvalidTaskBackend, "The connection 'unknown' doesn't exist."):
            test_tasks.noop_task.using(backend="unknown")

    def test_using_missing_backend(self) -> None:
        with self.assertRaisesMessage(InvalidTaskBackend, "Could not find backend 'does.not.exist': No module named 'does'"):
            test_tasks.noop_task.using(backend="missing")

    def test_using_creates_new_instance(self) -> None:
        new = test_tasks.noop_task.using()
        assert new == test_tasks.noop_task
        assert new is not test_tasks.noop_task

    def test_chained_using(self) -> None:
        now = timezone.now()
        later = test_tasks.noop_task.using(run_after=now)
        urgent = later.using(priority=10)
        assert (urgent.priority, urgent.run_after, later.priority) == (10, now, 0)

    async def test_refresh_result(self) -> None:
        result = await test_tasks.noop_task.aenqueue()
        original = dataclasses.asdict(result)
        result.refresh()
        assert dataclasses.asdict(result) == original
        await result.arefresh()
        assert dataclasses.asdict(result) == original

    def test_naive_datetime(self) -> None:
        with self.assertRaisesMessage(InvalidTask, "run_after must be an aware datetime."):
            test_tasks.noop_task.using(run_after=datetime.now())

    def test_invalid_priority(self) -> None:
        for priority in (-101, 101, 3.1):
            with self.assertRaisesMessage(InvalidTask, RANGE):
                test_tasks.noop_task.using(priority=priority)
        for priority in (100, -100, 0):
            test_tasks.noop_task.using(priority=priority)

    def test_unknown_queue_name(self) -> None:
        with self.assertRaisesMessage(InvalidTask, "Queue 'queue-2' is not valid for backend."):
            test_tasks.noop_task.using(queue_name="queue-2")
        # Validation is bypassed when the backend QUEUES is an empty list.
        assert test_tasks.noop_task.using(queue_name="queue-2", backend="second").queue_name == "queue-2"

    def test_call_task(self) -> None:
        assert test_tasks.calculate_meaning_of_life.call() == 42

    async def test_call_task_async(self) -> None:
        assert await test_tasks.calculate_meaning_of_life.acall() == 42

    async def test_call_async_task(self) -> None:
        assert await test_tasks.noop_task_async.acall() is None

    def test_call_async_task_sync(self) -> None:
        assert test_tasks.noop_task_async.call() is None

    def test_get_result(self) -> None:
        result = default_task_backend.enqueue(test_tasks.noop_task, (), {})
        assert test_tasks.noop_task.get_result(result.id) == result

    async def test_get_result_async(self) -> None:
        result = await default_task_backend.aenqueue(test_tasks.noop_task, (), {})
        assert await test_tasks.noop_task.aget_result(result.id) == result

    async def test_get_missing_result(self) -> None:
        with pytest.raises(TaskResultDoesNotExist):
            test_tasks.noop_task.get_result("123")
        with pytest.raises(TaskResultDoesNotExist):
            await test_tasks.noop_task.aget_result("123")

    def test_get_incorrect_result(self) -> None:
        result = default_task_backend.enqueue(test_tasks.noop_task_async, (), {})
        with self.assertRaisesMessage(TaskResultMismatch, "Task does not match"):
            test_tasks.noop_task.get_result(result.id)

    async def test_get_incorrect_result_async(self) -> None:
        result = await default_task_backend.aenqueue(test_tasks.noop_task_async, (), {})
        with self.assertRaisesMessage(TaskResultMismatch, "Task does not match"):
            await test_tasks.noop_task.aget_result(result.id)

    def test_invalid_function(self) -> None:
        for invalid in (any, self.test_invalid_function):
            with self.assertRaisesMessage(InvalidTask, "Task function must be defined at a module level."):
                task()(invalid)

    def test_get_backend(self) -> None:
        assert test_tasks.noop_task.backend == "default"
        assert isinstance(test_tasks.noop_task.get_backend(), TaskflowBackend)
        second = test_tasks.noop_task.using(backend="second")
        assert (second.backend, second.get_backend().alias) == ("second", "second")

    def test_name(self) -> None:
        assert [each.name for each in NOOPS] == ["noop_task", "noop_task_async"]

    def test_module_path(self) -> None:
        assert [each.module_path for each in NOOPS] == [f"{test_tasks.__name__}.{each.name}" for each in NOOPS]
        assert [import_string(each.module_path) for each in NOOPS] == [*NOOPS]

    @override_settings(TASKS={})
    def test_no_backends(self) -> None:
        with pytest.raises(InvalidTaskBackend):
            test_tasks.noop_task.enqueue()

    def test_task_error_invalid_exception(self) -> None:
        result = self.run_task(test_tasks.failing_task_value_error)
        [error] = result.errors
        object.__setattr__(error, "exception_class_path", "subprocess.run")
        with self.assertRaisesMessage(ValueError, "'subprocess.run' does not reference a valid exception."):
            _ = error.exception_class

    def test_task_error_unknown_module(self) -> None:
        [error] = self.run_task(test_tasks.failing_task_value_error).errors
        object.__setattr__(error, "exception_class_path", "does.not.exist")
        with pytest.raises(ImportError):
            _ = error.exception_class

    def test_takes_context_without_taking_context(self) -> None:
        with self.assertRaisesMessage(InvalidTask, "Task takes context but does not have a first argument of 'context'."):
            task(takes_context=True)(test_tasks.calculate_meaning_of_life.func)


@override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": []}})
class DummyBackendTestCase(Case):
    def test_using_correct_backend(self) -> None:
        assert default_task_backend == task_backends["default"]
        assert isinstance(task_backends["default"], TaskflowBackend)
        assert (default_task_backend.alias, default_task_backend.options) == ("default", {})

    def test_enqueue_task(self) -> None:
        for each in NOOPS:
            self.assert_new(each.enqueue(1, two=3), each, [1], {"two": 3})

    async def test_enqueue_task_async(self) -> None:
        for each in NOOPS:
            self.assert_new(await each.aenqueue(), each)

    def test_get_result(self) -> None:
        result = default_task_backend.enqueue(test_tasks.noop_task, (), {})
        assert default_task_backend.get_result(result.id) == result

    async def test_get_result_async(self) -> None:
        result = await default_task_backend.aenqueue(test_tasks.noop_task, (), {})
        assert await default_task_backend.aget_result(result.id) == result

    def test_refresh_result(self) -> None:
        result = default_task_backend.enqueue(test_tasks.calculate_meaning_of_life, (), {})
        run_worker()
        assert result.status == TaskResultStatus.READY
        result.refresh()
        assert result.status == TaskResultStatus.SUCCESSFUL

    async def test_refresh_result_async(self) -> None:
        result = await default_task_backend.aenqueue(test_tasks.calculate_meaning_of_life, (), {})
        await arun_worker()
        assert result.status == TaskResultStatus.READY
        await result.arefresh()
        assert result.status == TaskResultStatus.SUCCESSFUL

    async def test_get_missing_result(self) -> None:
        with pytest.raises(TaskResultDoesNotExist):
            default_task_backend.get_result("123")
        with pytest.raises(TaskResultDoesNotExist):
            await default_task_backend.aget_result("123")

    def test_enqueue_logs(self) -> None:
        with self.assertLogs(LOGGER, level="DEBUG") as captured:
            result = test_tasks.noop_task.enqueue()
        [line] = captured.output
        assert "enqueued" in line
        assert result.id in line

    def test_errors(self) -> None:
        assert test_tasks.noop_task.enqueue().errors == []

    def test_validate_disallowed_async_task(self) -> None:
        with (
            mock.patch.multiple(default_task_backend, supports_async_task=False),
            self.assertRaisesMessage(InvalidTask, "Backend does not support async "),
        ):
            default_task_backend.validate_task(test_tasks.noop_task_async)

    def test_check(self) -> None:
        assert list(default_task_backend.check()) == []

    def test_takes_context(self) -> None:
        assert test_tasks.get_task_id.enqueue().status == TaskResultStatus.READY

    def test_validate_on_enqueue(self) -> None:
        custom = test_tasks.noop_task.using(queue_name="unknown_queue")
        with (
            override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["queue-1"]}}),
            self.assertRaisesMessage(InvalidTask, "Queue 'unknown_queue' is not valid for backend"),
        ):
            custom.enqueue()

    async def test_validate_on_aenqueue(self) -> None:
        custom = test_tasks.noop_task.using(queue_name="unknown_queue")
        with (
            override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["queue-1"]}}),
            self.assertRaisesMessage(InvalidTask, "Queue 'unknown_queue' is not valid for backend"),
        ):
            await custom.aenqueue()


@override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": []}})
class ImmediateBackendTestCase(Case):
    def test_enqueue_task(self) -> None:
        for each in NOOPS:
            result = self.run_task(each, 1, two=3)
            self.assert_finished(result, each, [1], {"two": 3})
            assert result.return_value is None

    async def test_enqueue_task_async(self) -> None:
        for each in NOOPS:
            result = await each.aenqueue()
            await arun_worker()
            await result.arefresh()
            self.assert_finished(result, each)
            assert result.return_value is None

    def test_catches_exception(self) -> None:
        for failing, exception in ((test_tasks.failing_task_value_error, ValueError), (test_tasks.failing_task_system_exit, SystemExit)):
            message = f"This Task failed due to {exception.__name__}"
            with self.subTest(failing), self.assertLogs(LOGGER, level="ERROR") as captured:
                result = self.run_task(failing)
                [line] = captured.output
                assert message in line
                self.assert_finished(result, failing, status=TaskResultStatus.FAILED)
                with self.assertRaisesMessage(ValueError, "Task failed"):
                    _ = result.return_value
                assert result.errors[0].exception_class is exception
                assert result.errors[0].traceback.endswith(f"{exception.__name__}: {message}\n"), result.errors[0].traceback

    def test_complex_exception(self) -> None:
        with self.assertLogs(LOGGER, level="ERROR"):
            result = self.run_task(test_tasks.complex_exception)
        self.assert_finished(result, test_tasks.complex_exception, status=TaskResultStatus.FAILED)
        with self.assertRaisesMessage(ValueError, "Task failed"):
            _ = result.return_value
        assert result._return_value is None
        assert result.errors[0].exception_class is ValueError
        assert 'ValueError(ValueError("This task failed"))' in result.errors[0].traceback

    def test_complex_return_value(self) -> None:
        with self.assertLogs(LOGGER, level="ERROR"):
            result = self.run_task(test_tasks.complex_return_value)
        self.assert_finished(result, test_tasks.complex_return_value, status=TaskResultStatus.FAILED)
        assert result._return_value is None
        assert result.errors[0].exception_class is TypeError
        assert "Unsupported type" in result.errors[0].traceback

    def test_result(self) -> None:
        result = self.run_task(test_tasks.calculate_meaning_of_life)
        assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 42)

    async def test_result_async(self) -> None:
        result = await default_task_backend.aenqueue(test_tasks.calculate_meaning_of_life, [], {})
        await arun_worker()
        await result.arefresh()
        assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 42)

    def test_enqueue_logs(self) -> None:
        with self.assertLogs(LOGGER, level="DEBUG") as captured:
            result = self.run_task(test_tasks.noop_task)
        assert all(result.id in line for line in captured.output)
        for line, said in zip(captured.output, ("enqueued", "state=RUNNING", "state=SUCCESSFUL"), strict=True):
            assert said in line

    def test_failed_logs(self) -> None:
        with self.assertLogs(LOGGER, level="DEBUG") as captured:
            result = self.run_task(test_tasks.failing_task_value_error)
        assert all(result.id in line for line in captured.output)
        for line, said in zip(captured.output, ("enqueued", "state=RUNNING", "state=FAILED"), strict=True):
            assert said in line

    def test_successful_task_no_none_in_logs(self) -> None:
        with self.assertLogs(LOGGER, level="DEBUG") as captured:
            result = self.run_task(test_tasks.noop_task)
        assert result.status == TaskResultStatus.SUCCESSFUL
        assert not any("None" in line for line in captured.output)

    def test_takes_context(self) -> None:
        result = self.run_task(test_tasks.get_task_id)
        assert result.return_value == result.id

    def test_context(self) -> None:
        assert self.run_task(test_tasks.test_context, 1).status == TaskResultStatus.SUCCESSFUL


class BackendTransactionTestCase(TransactionTestCase):
    available_apps: list[str] = []

    @override_settings(TASKS={"default": {"BACKEND": BACKEND}})
    def test_doesnt_wait_until_transaction_commit_by_default(self) -> None:
        with transaction.atomic():
            result = test_tasks.noop_task.enqueue()
            assert result.enqueued_at is not None
            run_worker()
            result.refresh()
            assert result.status == TaskResultStatus.SUCCESSFUL
