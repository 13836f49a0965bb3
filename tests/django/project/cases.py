"""How tests of a project on Django see the rows of their transaction, and how the backend's transactions and options work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings, skipUnlessDBFeature

from taskflow import (
    EnqueueCall,
    EnqueueNext,
    Every,
    JobContext,
    JobHandle,
    JobInfo,
    Middleware,
    RunNext,
    Verdict,
    configure,
    operate,
    run_sync,
    schedules,
)
from taskflow.app.app import default_app
from taskflow.testing.jobs import jobs_in_memory

from . import tasks
from .models import Note
from .names import TaskResultStatus, run_worker, task_enqueued, task_finished, task_started

BACKEND = "taskflow.django.TaskflowBackend"


class CountsNotes(Middleware):
    """Queries the database in each hook, as middleware that knows tenants does."""

    def __init__(self) -> None:
        self.counted: list[int] = []

    async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
        self.counted.append(await sync_to_async(Note.objects.count)())
        await call_next(call)

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        self.counted.append(await Note.objects.acount())
        return await call_next(context)


class StampsNotes(Middleware):
    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        for call in calls:
            call.headers["notes"] = str(Note.objects.count())


async def first_jobs() -> list[JobInfo]:
    return [info async for info in operate.jobs()]


class SeesRows:
    """The same tests for each kind of test case: jobs and middleware see the test's rows, and the test sees theirs."""

    def setUp(self) -> None:
        self.jobs = self.enterContext(jobs_in_memory())  # type: ignore[attr-defined]
        self.middleware = CountsNotes()
        configure(middleware=[self.middleware])
        Note.objects.create(text="of the test")

    def result(self, handle: Any) -> Any:
        return run_sync(handle.result(timeout=0))

    def test_inline(self) -> None:
        with self.jobs.inline():
            assert self.result(tasks.count_in_job.delay_sync("of the test")) == 1
            assert self.result(tasks.count_in_async_job.delay_sync("of the test")) == 1
            counted = [each.enqueue() for each in (tasks.count_notes, tasks.count_notes_async)]
            tasks.add_note.enqueue("of a task")
        for each in counted:
            each.refresh()
            assert each.return_value == 1
        assert self.middleware.counted == [1] * 10
        assert Note.objects.count() == 2

    def test_run_all(self) -> None:
        handles = [each.delay_sync("of the test") for each in (tasks.count_in_job, tasks.count_in_async_job, tasks.count_in_child)]
        counted = tasks.count_notes.enqueue()
        assert run_sync(self.jobs.run_all()) == 4
        counted.refresh()
        assert [self.result(each) for each in handles] == [1, 1, 1]
        assert counted.return_value == 1

    def test_advance(self) -> None:
        tasks.add_after_failure.delay_sync("of the second attempt")
        run_sync(self.jobs.advance(hours=1))
        assert Note.objects.filter(text="of the second attempt").count() == 1

    def test_jobs_of_schedules_are_stamped_with_the_rows(self) -> None:
        configure(middleware=[StampsNotes()])
        run_sync(schedules.put("hourly", tasks.count_in_job.bind("of the test"), Every(seconds=3600)))
        run_sync(self.jobs.advance(hours=1.0))
        [sent] = run_sync(first_jobs())
        assert (sent.headers["notes"], sent.result) == ("1", 1)

    async def test_in_a_coroutine(self) -> None:
        handle = await tasks.count_in_job.delay("of the test")
        counted = await tasks.count_notes_async.aenqueue()
        await self.jobs.run_all()
        await counted.arefresh()
        assert (await handle.result(timeout=0), counted.return_value) == (1, 1)
        with self.jobs.inline():
            assert await (await tasks.count_in_job.delay("of the test")).result(timeout=0) == 1
        await self.jobs.advance(hours=1)

    def test_jobs_leave_the_thread_as_it_was(self) -> None:
        async def loop() -> asyncio.AbstractEventLoop:
            return asyncio.get_running_loop()

        before = connection.connection
        with self.jobs.inline():
            tasks.count_notes.enqueue()
            tasks.count_notes_async.enqueue()
        assert connection.connection is before
        assert async_to_sync(loop)() is not run_sync(loop())


class InTestCase(SeesRows, TestCase):
    def test_a_failed_block_takes_the_writes_of_its_jobs_with_it(self) -> None:
        with self.jobs.inline(), transaction.atomic():
            tasks.add_note.enqueue("undone")
            assert Note.objects.count() == 2
            transaction.set_rollback(True)
        assert Note.objects.count() == 1


class InTransactionTestCase(SeesRows, TransactionTestCase):
    pass


@contextmanager
def broker_in(database: dict[str, Any], **options: Any) -> Iterator[None]:
    """TASKS with a broker in this database."""
    if connection.vendor == "sqlite":
        url = f"sqlite:///{database['NAME']}?shared=1"
    else:
        url = f"postgresql://{database['USER']}@{database['HOST']}:{database['PORT']}/{database['NAME']}"
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": {"broker": url, **options}}}):
        call_command("taskflow", "migrate")
        yield
        run_sync(default_app().close())


class Transactions(TransactionTestCase):
    def setUp(self) -> None:
        if connection.vendor == "sqlite" and connection.is_in_memory_db():
            self.skipTest("jobs do not lie in a database in memory")

    def test_join(self) -> None:
        with broker_in(connection.settings_dict, transaction="join"):
            with transaction.atomic():
                kept = tasks.add_note.enqueue("joined")
            with transaction.atomic():
                undone = tasks.noop_task.enqueue()
                transaction.set_rollback(True)
            alone = [tasks.noop_task.enqueue(), async_to_sync(tasks.noop_task.aenqueue)()]  # without a transaction
            run_worker()
            for each in (kept, *alone):
                each.refresh()
                assert each.status == TaskResultStatus.SUCCESSFUL
            assert kept.args == ["joined"]
            with self.assertRaisesMessage(Exception, undone.id):
                undone.refresh()
        assert Note.objects.get().text == "joined"

    def test_on_commit(self) -> None:
        sent: list[Any] = []
        task_enqueued.connect(lambda task_result, **_: sent.append(task_result), weak=False, dispatch_uid="sent")
        self.addCleanup(task_enqueued.disconnect, dispatch_uid="sent")
        with broker_in(connection.settings_dict, transaction="on_commit"):
            with transaction.atomic():
                result = tasks.noop_task.enqueue()
                assert (result.enqueued_at, sent) == (None, [])
                with self.assertRaisesMessage(Exception, result.id):
                    tasks.noop_task.get_result(result.id)
            assert sent == [result]
            assert tasks.noop_task.get_result(result.id) == result
            with transaction.atomic():
                tasks.noop_task.enqueue()
                transaction.set_rollback(True)
            assert sent == [result]

    @skipUnlessDBFeature("has_select_for_update_nowait")  # PostgreSQL
    def test_a_connection_that_the_server_has_closed_is_opened_anew(self) -> None:
        for setting, value in (("CONN_MAX_AGE", 600), ("CONN_HEALTH_CHECKS", True)):
            self.enterContext(mock.patch.dict(connection.settings_dict, {setting: value}))
        connection.close()
        counts = (tasks.count_notes, tasks.count_notes_async)
        sent = (*counts, tasks.end_connections, *counts, tasks.close_connections, tasks.close_connections_async)
        results = [each.enqueue() for each in sent]
        run_worker(concurrency=1)
        for each in results:
            each.refresh()
            assert each.status == TaskResultStatus.SUCCESSFUL, each.errors


class Options(SimpleTestCase):
    def refused(self, message: str, *others: dict[str, Any], **options: Any) -> None:
        named = {f"other{number}": {"BACKEND": BACKEND, "OPTIONS": each} for number, each in enumerate(others)}
        with self.assertRaisesMessage(ImproperlyConfigured, message):
            self.enterContext(override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": options}, **named}))

    def test_wrong_ones_are_named(self) -> None:
        self.refused("have an unknown option 'brokr': expected broker, transaction, database", brokr="memory://")
        self.refused("have \"transaction\": 'later': expected now, on_commit, join", transaction="later")
        self.refused("have \"database\": 'other', which DATABASES does not have", database="other")
        self.refused("broker URL has the unknown scheme 'amqp'", broker="amqp://host")

    def test_a_process_has_one_broker(self) -> None:
        self.refused("names the brokers sqlite:///a.db and sqlite:///b.db", {"broker": "sqlite:///b.db"}, broker="sqlite:///a.db")

    def test_only_tasks_of_the_brokers_database_join(self) -> None:
        for url in ("redis://localhost/0", "sqlite:////tmp/other.db", "postgresql://h/main", "postgresql://localhost/other"):
            self.refused("is not in the database", broker=url, transaction="join")

    def test_configure_comes_first(self) -> None:
        with override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": {"broker": "sqlite:///of-tasks.db"}}}):
            assert default_app().broker_url() == "sqlite:///of-tasks.db"
            with default_app().using(default_app().broker()):
                configure(broker="sqlite:///configured.db")
                assert default_app().broker_url() == "sqlite:///configured.db"
        assert default_app().broker_url() == os.environ["TASKFLOW_BROKER"]


class Runs(SimpleTestCase):
    def test_a_task_runs_once_unless_the_defaults_say_more(self) -> None:
        once = tasks.flaky.enqueue()
        run_worker()
        once.refresh()
        assert (once.status, once.attempts) == (TaskResultStatus.FAILED, 1)
        assert once.errors[0].traceback.splitlines()[1].endswith("in flaky")
        heard: list[str] = []
        for signal in (task_started, task_finished):
            signal.connect(lambda task_result, **_: heard.append(task_result.status), weak=False, dispatch_uid="heard")
            self.addCleanup(signal.disconnect, dispatch_uid="heard")
        with jobs_in_memory() as jobs:
            configure(defaults={"max_attempts": 2})
            twice = tasks.flaky.enqueue()
            run_sync(jobs.run_all())
            twice.refresh()
            assert (twice.status, twice.attempts) == (TaskResultStatus.READY, 1)
            run_sync(jobs.advance(hours=1))
            twice.refresh()
        assert (twice.status, twice.attempts) == (TaskResultStatus.SUCCESSFUL, 2)
        assert twice.return_value == [2, 2, "builtins.OSError"]
        assert heard == ["RUNNING", "RUNNING", "SUCCESSFUL"]

    def test_a_cancelled_task_has_failed(self) -> None:
        with jobs_in_memory():
            result = tasks.noop_task.enqueue()
            run_sync(JobHandle.of(result.id).cancel())
            result.refresh()
        assert (result.status, result.is_finished) == (TaskResultStatus.FAILED, True)
        assert result.errors[0].exception_class.__name__ == "JobCancelled"

    async def test_a_task_is_not_sent_where_it_would_block_the_loop(self) -> None:
        with self.assertRaisesMessage(RuntimeError, "use await aenqueue() there"):
            tasks.noop_task.enqueue()

    def test_a_receiver_that_fails_does_not_fail_the_task(self) -> None:
        def fail(**_: Any) -> None:
            raise OSError

        task_finished.connect(fail)
        self.addCleanup(task_finished.disconnect, fail)
        result = tasks.noop_task.enqueue()
        run_worker()
        result.refresh()
        assert result.status == TaskResultStatus.SUCCESSFUL
