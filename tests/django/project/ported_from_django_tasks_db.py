"""The tests of django-tasks-db, on taskflow's backend. They are adapted from its version 0.13 (BSD license, LICENSE.django-tasks-db).

In place of its model, they read jobs with `taskflow.operate`; in place of `db_worker`, they run taskflow's worker, and in place of
`prune_db_task_results`, `operate.purge`. Cases that Django's own suites have too are only there. The page on Django names the tests that
are left out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta
from io import StringIO
from typing import Any
from unittest import skipIf, skipUnless

from django.core.management import call_command
from django.db import transaction
from django.test import SimpleTestCase, TransactionTestCase, override_settings
from django.utils import timezone

from taskflow import operate, run_sync, send_sync
from taskflow.django import TaskflowBackend, task_jobs

from . import tasks as test_tasks
from .names import (
    Task,
    TaskResultDoesNotExist,
    TaskResultStatus,
    arun_worker,
    default_task_backend,
    run_worker,
    task_enqueued,
    task_started,
)

BROKER = os.environ["TASKFLOW_BROKER"]
ONE_IS_ENOUGH = "each process takes a second, and tests/cli has the like for each broker"
BACKEND = "taskflow.django.TaskflowBackend"
NOOPS = (test_tasks.noop_task, test_tasks.noop_task_async)


async def _count(status: str) -> int:
    return sum(queue.counts.get(status, 0) for queue in await operate.queues())  # type: ignore[call-overload]


def count(status: str) -> int:
    """Return how many jobs have this status."""
    return run_sync(_count(status))


@contextmanager
def captured_signals() -> Iterator[list[tuple[Any, Any]]]:
    received: list[tuple[Any, Any]] = []

    def capture(sender: Any, task_result: Any, **kwargs: Any) -> None:
        received.append((sender, task_result))

    task_enqueued.connect(capture, dispatch_uid="captured", weak=False)
    try:
        yield received
    finally:
        task_enqueued.disconnect(dispatch_uid="captured")


@override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["default", "queue-1"]}})
class Case(SimpleTestCase):
    def setUp(self) -> None:
        run_sync(operate.purge(status=("ready", "scheduled", "succeeded", "failed", "cancelled")))

    def run_task(self, task: Any, *args: Any) -> Any:
        result = task.enqueue(*args)
        assert count("ready") == 1
        run_worker()
        assert result.status == TaskResultStatus.READY
        assert count("ready") == 0
        result.refresh()
        assert result.enqueued_at <= result.started_at <= result.finished_at
        assert result.last_attempted_at is not None
        return result

    def order_of(self, *results: Any) -> list[int]:
        """Run a worker, and return the numbers of the results in the order in which it ran their tasks."""
        ids, ran = [result.id for result in results], list[int]()
        task_started.connect(lambda task_result, **_: ran.append(ids.index(task_result.id)), weak=False, dispatch_uid="order")
        self.addCleanup(task_started.disconnect, dispatch_uid="order")
        run_worker(concurrency=1)
        return ran

    def assert_gone(self, result: Any) -> None:
        with self.assertRaisesMessage(TaskResultDoesNotExist, result.id):
            result.refresh()


class DatabaseBackendTestCase(Case):
    def assert_new(self, result: Any, task: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
        assert uuid.UUID(result.id).version == 7
        assert (result.status, result.is_finished, result.attempts) == (TaskResultStatus.READY, False, 0)
        assert (result.started_at, result.last_attempted_at, result.finished_at) == (None, None, None)
        with self.assertRaisesMessage(ValueError, "Task has not finished yet"):
            _ = result.return_value
        assert (result.task, result.args, result.kwargs) == (task, args, kwargs)

    def test_enqueue_task(self) -> None:
        for task in NOOPS:
            with captured_signals() as received:
                result = task.enqueue(1, two=3)
            self.assert_new(result, task, [1], {"two": 3})
            assert received == [(TaskflowBackend, result)]

    async def test_enqueue_task_async(self) -> None:
        for task in NOOPS:
            with captured_signals() as received:
                result = await task.aenqueue()
            self.assert_new(result, task, [], {})
            assert received == [(TaskflowBackend, result)]

    def test_refresh_result(self) -> None:
        result = default_task_backend.enqueue(test_tasks.calculate_meaning_of_life, [], {})
        run_worker()
        self.assert_new(result, test_tasks.calculate_meaning_of_life, [], {})
        result.refresh()
        assert None not in (result.started_at, result.last_attempted_at, result.finished_at)
        assert (result.status, result.is_finished, result.return_value) == (TaskResultStatus.SUCCESSFUL, True, 42)
        assert result.attempts == 1

    async def test_refresh_result_async(self) -> None:
        result = await default_task_backend.aenqueue(test_tasks.calculate_meaning_of_life, [], {})
        await arun_worker()
        await result.arefresh()
        assert (result.status, result.is_finished, result.return_value) == (TaskResultStatus.SUCCESSFUL, True, 42)

    def test_get_missing_result_and_invalid_uuid(self) -> None:
        for missing in (str(uuid.uuid4()), "123"):
            with self.assertRaisesMessage(TaskResultDoesNotExist, missing):
                default_task_backend.get_result(missing)

    async def test_async_get_missing_result_and_invalid_uuid(self) -> None:
        for missing in (str(uuid.uuid4()), "123"):
            with self.assertRaisesMessage(TaskResultDoesNotExist, missing):
                await default_task_backend.aget_result(missing)

    def test_invalid_task_path(self) -> None:
        handle = send_sync("subprocess.check_output", args=[["exit", "1"]], kwargs={})
        with self.assertRaisesMessage(TaskResultDoesNotExist, "the job subprocess.check_output, which is not a task"):
            default_task_backend.get_result(handle.id)

    def test_missing_task_path(self) -> None:
        handle = send_sync("missing.func", args=[], kwargs={})
        with self.assertRaisesMessage(TaskResultDoesNotExist, "the job missing.func, which is not a task"):
            default_task_backend.get_result(handle.id)

    @override_settings(INSTALLED_APPS=[])
    def test_database_backend_app_missing(self) -> None:
        [error] = default_task_backend.check()
        assert "taskflow.django" in error.hint

    def test_run_after_tz(self) -> None:
        for use_tz in (True, False):
            with self.subTest(use_tz=use_tz), override_settings(USE_TZ=use_tz):
                result = test_tasks.noop_task.enqueue()
                assert timezone.is_aware(result.enqueued_at) is use_tz
                assert test_tasks.noop_task.get_result(result.id) == result
                assert result.task.run_after is None


class DatabaseBackendTransactionTestCase(TransactionTestCase):
    available_apps: list[str] = []

    def test_doesnt_wait_until_transaction_commit(self) -> None:
        with transaction.atomic():
            result = test_tasks.noop_task.enqueue()
            assert result.enqueued_at is not None
            assert test_tasks.noop_task.get_result(result.id) == result


class DatabaseBackendWorkerTestCase(Case):
    def test_run_enqueued_task(self) -> None:
        for task in NOOPS:
            result = self.run_task(task)
            assert (result.status, result.attempts) == (TaskResultStatus.SUCCESSFUL, 1)

    def test_batch_processes_all_tasks(self) -> None:
        for _ in range(3):
            test_tasks.noop_task.enqueue()
        test_tasks.failing_task_value_error.enqueue()
        assert count("ready") == 4
        run_worker()
        assert (count("ready"), count("succeeded"), count("failed")) == (0, 3, 1)

    def test_no_tasks(self) -> None:
        run_worker()

    def test_doesnt_process_different_queue(self) -> None:
        test_tasks.noop_task.using(queue_name="queue-1").enqueue()
        run_worker(queues="default")
        assert count("ready") == 1
        run_worker(queues="queue-1")
        assert count("ready") == 0

    def test_process_all_queues(self) -> None:
        test_tasks.noop_task.using(queue_name="queue-1").enqueue()
        run_worker(queues="default")
        assert count("ready") == 1
        run_worker()
        assert count("ready") == 0

    def test_run_after(self) -> None:
        result = test_tasks.noop_task.using(run_after=timezone.now() + timedelta(hours=10)).enqueue()
        assert default_task_backend.get_result(result.id) == result
        assert (count("scheduled"), count("ready")) == (1, 0)
        run_worker()
        assert (count("scheduled"), count("ready"), count("succeeded")) == (1, 0, 0)
        test_tasks.noop_task.using(run_after=timezone.now() - timedelta(hours=10)).enqueue()
        run_worker()
        assert (count("scheduled"), count("ready"), count("succeeded")) == (1, 0, 1)

    def test_run_after_priority(self) -> None:
        now, hours = timezone.now(), timedelta(hours=1)
        options: list[dict[str, Any]] = [
            {"priority": 20, "run_after": now - 2 * hours},
            {"priority": 20, "run_after": now - 10 * hours},
            {"run_after": now + 10 * hours},
            {"priority": 10, "run_after": now + 10 * hours},
            {"run_after": now + 2 * hours},
            {"priority": 10},
            {"priority": 2},
            {"priority": -2},
        ]
        results = [test_tasks.noop_task.using(**given).enqueue() for given in options]
        assert self.order_of(*results) == [0, 1, 5, 6, 7]

    def test_invalid_task_path_in_worker(self) -> None:
        send_sync("subprocess.check_output", args=[["exit", "1"]], kwargs={})
        run_worker()
        assert (count("succeeded"), count("failed"), count("scheduled")) == (0, 0, 1)

    def test_missing_task_path_in_worker(self) -> None:
        send_sync("missing.func", args=[], kwargs={})
        run_worker()
        assert (count("succeeded"), count("failed"), count("scheduled")) == (0, 0, 1)

    def test_task_import_string(self) -> None:
        send_sync(f"{test_tasks.__name__}.some_test", args=[], kwargs={})
        run_worker()
        assert (count("succeeded"), count("failed"), count("scheduled")) == (0, 0, 1)

    def test_negative_and_zero_max_tasks(self) -> None:
        for number in ("-1", "0"):
            with redirect_stderr(StringIO()) as said, self.assertRaisesMessage(SystemExit, "2"):
                call_command("taskflow", "worker", "--max-jobs", number)
            assert "argument --max-jobs" in said.getvalue()

    def test_worker_doesnt_exit_on_failure(self) -> None:
        assert self.run_task(test_tasks.exit_task).status == TaskResultStatus.FAILED

    def test_system_exit_task(self) -> None:
        result = self.run_task(test_tasks.failing_task_system_exit)
        assert (result.status, result.errors[0].exception_class) == (TaskResultStatus.FAILED, SystemExit)

    def test_keyboard_interrupt_task(self) -> None:
        result = self.run_task(test_tasks.failing_task_keyboard_interrupt)
        assert (result.status, result.errors[0].exception_class) == (TaskResultStatus.FAILED, KeyboardInterrupt)


class DatabaseBackendPruneTaskResultsTestCase(Case):
    def finished(self, **options: Any) -> Any:
        result = test_tasks.noop_task.using(**options).enqueue()
        run_worker()
        return result

    def test_prunes_tasks(self) -> None:
        result = self.finished()
        assert run_sync(operate.purge(everything=True)).changed == 1
        self.assert_gone(result)

    def test_doesnt_prune_new_tasks(self) -> None:
        result = test_tasks.noop_task.enqueue()
        assert run_sync(operate.purge(everything=True)).changed == 0
        result.refresh()

    def test_doesnt_prune_running_tasks(self) -> None:
        result = test_tasks.purge_everything.enqueue()
        run_worker()
        result.refresh()
        assert result.return_value == 0

    def test_only_prunes_specified_queue(self) -> None:
        kept, gone = self.finished(), self.finished(queue_name="queue-1")
        run_sync(operate.purge(queue="queue-1"))
        kept.refresh()
        self.assert_gone(gone)

    def test_prune_all_queues(self) -> None:
        results = self.finished(), self.finished(queue_name="queue-1")
        run_sync(operate.purge(everything=True))
        for result in results:
            self.assert_gone(result)

    def test_min_age(self) -> None:
        old = self.finished()
        run_sync(operate.purge(ended_before=60))
        old.refresh()
        time.sleep(1.0)
        new = self.finished()
        new.refresh()
        run_sync(operate.purge(ended_before=(timezone.now() - new.finished_at).total_seconds() + 0.9))
        new.refresh()
        self.assert_gone(old)

    def test_failed_min_age(self) -> None:
        succeeded = self.finished()
        failed = test_tasks.failing_task_value_error.enqueue()
        run_worker()
        run_sync(operate.purge(status="failed", ended_before=60))
        failed.refresh()
        run_sync(operate.purge(status="failed", ended_before=0))
        succeeded.refresh()
        self.assert_gone(failed)

    def test_negative_age(self) -> None:
        with self.assertRaisesMessage(ValueError, "ended_before=-1: expected 0"):
            run_sync(operate.purge(ended_before=-1))

    def test_dry_run(self) -> None:
        result = self.finished()
        run_sync(operate.purge(everything=True, dry_run=True))
        result.refresh()


@skipIf(BROKER.startswith("memory:"), "workers in other processes do not reach these jobs")
class DatabaseWorkerProcessTestCase(Case):
    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "django", "taskflow", "worker", *arguments]
        process: subprocess.Popen[str] = self.enterContext(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        self.addCleanup(process.kill)
        return process

    def started_with(self, *arguments: str) -> tuple[Any, subprocess.Popen[str]]:
        result, process = test_tasks.sleep_for.enqueue(0.5), self.start(*arguments)
        while result.status == TaskResultStatus.READY and process.poll() is None:
            time.sleep(0.02)
            result.refresh()
        assert (result.status, result.attempts) == (TaskResultStatus.RUNNING, 1)
        return result, process

    def test_run_subprocess(self) -> None:
        result = test_tasks.noop_task.enqueue()
        process = self.start("--drain")
        said = process.communicate(timeout=30)[1]
        assert process.returncode == 0, said
        result.refresh()
        assert result.status == TaskResultStatus.SUCCESSFUL

    @skipUnless("sqlite:" in BROKER, ONE_IS_ENOUGH)
    def test_interrupt_no_tasks(self) -> None:
        process = self.start()
        assert process.stderr is not None
        while "working as" not in process.stderr.readline():
            pass
        process.terminate()
        assert process.wait(timeout=30) == 0

    @skipUnless("sqlite:" in BROKER, ONE_IS_ENOUGH)
    def test_interrupt_signals(self) -> None:
        result, process = self.started_with()
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == 0, said
        result.refresh()
        assert result.status == TaskResultStatus.SUCCESSFUL

    @skipUnless("sqlite:" in BROKER, ONE_IS_ENOUGH)
    def test_kill(self) -> None:
        result, process = self.started_with("--ttl", "2")
        process.kill()
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL
        result.refresh()
        assert result.status == TaskResultStatus.RUNNING
        run_worker()  # takes the job over when no heartbeat has come for 2 s
        result.refresh()
        assert result.status == TaskResultStatus.SUCCESSFUL

    @skipUnless("sqlite:" in BROKER, ONE_IS_ENOUGH)
    def test_multiple_workers(self) -> None:
        results = [test_tasks.sleep_for.enqueue(0.1) for _ in range(10)]
        processes = [self.start("--drain", "--concurrency", "3") for _ in range(2)]
        said = "".join(process.communicate(timeout=30)[1] for process in processes)
        for result in results:
            result.refresh()
            assert result.status == TaskResultStatus.SUCCESSFUL
            assert said.count(f"Task id={result.id}") == 2


class CompatTestCase(SimpleTestCase):
    def test_compat_has_django_task(self) -> None:
        assert task_jobs.base.Task is Task


class DBTaskResultOrderingTestCase(Case):
    def test_higher_priority_tasks_come_first(self) -> None:
        assert self.order_of(*(test_tasks.noop_task.using(priority=priority).enqueue() for priority in (-1, 0, 1))) == [2, 1, 0]

    def test_earlier_enqueued_at_comes_first_given_same_priority_and_run_after(self) -> None:
        assert self.order_of(*(test_tasks.noop_task.enqueue() for _ in range(3))) == [0, 1, 2]
