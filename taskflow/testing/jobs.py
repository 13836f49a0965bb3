"""Runs jobs in memory under a virtual clock, with the real executor."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ParamSpec, cast, overload

from taskflow.app.app import App, default_app
from taskflow.app.around import dependency_of
from taskflow.app.events import Event, Events
from taskflow.app.handle import JobHandle
from taskflow.app.job import Declared
from taskflow.app.middleware import has_ended_hook
from taskflow.app.options import EnqueueOptions
from taskflow.app.portal import wait_by
from taskflow.broker.admin import View
from taskflow.broker.paging import pages
from taskflow.model.clock import ManualClock, Seams, instant_of, microseconds_of, to_seconds
from taskflow.model.errors import JobFailed
from taskflow.model.record import LIVE, Record, Status
from taskflow.model.rules import MAX_DURATION
from taskflow.model.schedule_plan import SchedulePlan
from taskflow.model.session import Session
from taskflow.testing.assertions import ExpectedCall, SentJob, calls_of, check_enqueued, check_job
from taskflow.testing.callers import djangos_thread, wait_for_django, wait_inline, with_djangos_thread
from taskflow.testing.runs import CONCURRENCY, STOP_TIMEOUT, Inline, Pass, PassState, RecordingBroker, TestExecutor, endless
from taskflow.worker.ended_hooks import EndedHooks
from taskflow.worker.events import ScheduleFailed
from taskflow.worker.maintenance import Scheduler
from taskflow.worker.run_errors import frames_from
from taskflow.worker.thread_pool import ThreadPool

P = ParamSpec("P")

# The maximum number of due times in one `advance`. More than that indicates an endless loop.
MAX_STEPS = 100_000


@contextmanager
def jobs_in_memory(app: App | None = None) -> Iterator[TaskflowJobs]:
    """Provide the `taskflow_jobs` fixture as a context manager, for test runners other than pytest."""
    app = app or default_app()
    seams = Seams(clock=ManualClock(datetime.now(UTC)))
    broker = RecordingBroker(seams.clock)
    with app.using(broker):
        app.ignores_connections, waits = True, wait_by(wait_for_django)
        try:
            yield TaskflowJobs(app, broker, seams)
        finally:
            app.ignores_connections, app.run_inline = False, None
            wait_by(waits)


class TaskflowJobs:
    """The jobs that the tested code has sent, with methods to inspect them, run them and advance the time.

    A job sent with ``connection=`` is added at once, whatever the outcome of the transaction.
    """

    def __init__(self, app: App, broker: RecordingBroker, seams: Seams) -> None:
        assert isinstance(seams.clock, ManualClock)
        self._app = app
        self._broker = broker
        self._seams = seams
        self._clock = seams.clock
        self._inlines: list[Inline] = []
        self._declarer = Session(id=secrets.token_bytes(16), name="advance", ttl=MAX_DURATION)

    @property
    def now(self) -> datetime:
        """The virtual time, as an aware datetime in UTC: the real time at the start of the test, plus the time that `advance` added."""
        return instant_of(self._clock.wall())

    async def enqueued(self, job: Declared[..., Any] | None = None) -> list[Record]:
        """Return the records of the jobs that have not ended, oldest first. With `job`, return only the jobs of that type."""
        chosen = View(job=None if job is None else job.name, statuses=tuple(LIVE))
        found = [record async for records in pages(self._broker.admin, chosen) for record in records]
        return sorted(found, key=lambda record: record.id)

    @overload
    def assert_enqueued(self, job: Declared[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload  # keywords cannot be added to those of a ParamSpec, so each overload below requires one option
    def assert_enqueued(self, job: Declared[..., Any], /, *args: Any, count: int, **kwargs: Any) -> None: ...
    @overload
    def assert_enqueued(self, job: Declared[..., Any], /, *args: Any, options: EnqueueOptions, **kwargs: Any) -> None: ...
    @overload
    def assert_enqueued(self, job: Declared[..., Any], /, *args: Any, queue: str, **kwargs: Any) -> None: ...
    @overload
    def assert_enqueued(self, job: Declared[..., Any], /, *args: Any, key: str | None, **kwargs: Any) -> None: ...
    @overload
    def assert_enqueued(self, job: Declared[..., Any], /, *args: Any, after: float | timedelta, **kwargs: Any) -> None: ...
    @overload
    def assert_enqueued(self, job: Declared[..., Any], /, *args: Any, at: datetime, **kwargs: Any) -> None: ...
    @overload
    def assert_enqueued(self, job: Declared[..., Any], /, *args: Any, priority: int, **kwargs: Any) -> None: ...
    @overload
    def assert_enqueued(self, job: Declared[..., Any], /, *args: Any, tags: Sequence[str], **kwargs: Any) -> None: ...
    @overload
    def assert_enqueued(self, job: Declared[..., Any], /, *args: Any, headers: dict[str, str], **kwargs: Any) -> None: ...
    @overload
    def assert_enqueued(self, job: str, /, *args: Any, **kwargs: Any) -> None: ...
    def assert_enqueued(self, job: Any, /, *args: Any, **kwargs: Any) -> None:
        """Assert that a call of the job with these arguments is waiting or running, or has run in `inline`.

        An argument that is left out counts as its default. `unittest.mock.ANY` stands for any value, anywhere in the arguments. Keywords
        that the function does not take are options: ``assert_enqueued(greet, "ada", queue="mail", after=60)``. `count` is the expected
        number of calls (default: one or more). If a parameter of the function has the name of an option, give the option as
        ``options={"queue": "mail"}``. The job may have more `tags` and `headers` than those given. A job may be given by its name.

        Raises AssertionError if the assertion fails, with the most similar calls and their differences. Raises EncodeError, TypeError or
        ValueError for a call that could not be sent.
        """
        check_enqueued(ExpectedCall(self._app.registry, job, args, kwargs), self._sent(), self._app.registry)

    def assert_not_enqueued(self, job: Declared[..., Any] | str, /, *args: Any, **kwargs: Any) -> None:
        """Assert that no call of the job is waiting or running, or has run in `inline`. With arguments or options, as in `assert_enqueued`,
        this applies only to matching calls."""
        registry, sent = self._app.registry, self._sent()
        check_job(job)
        expected = ExpectedCall(registry, job, args, kwargs) if args or kwargs else None
        name = job if isinstance(job, str) else job.name
        if any(
            each.envelope.job == name if expected is None else expected.is_of_job(each) and not expected.differences(each) for each in sent
        ):
            raise AssertionError(f"{expected or name} was enqueued; {calls_of(sent, registry)}")

    def _sent(self) -> list[SentJob]:
        """Return the jobs that are waiting or running, and those that ran inside `inline` blocks."""
        ran = [job for inline in self._inlines for job in inline.ran]
        return list({job.envelope.id: job for job in [*ran, *self._broker.live()]}.values())

    @contextmanager
    def override(self, dependency: Callable[..., Any], fake: Callable[..., Any]) -> Iterator[None]:
        """Inside this `with` block, call `fake` instead of `dependency`, a function given to `depends`.

        Dependencies of `fake` are resolved too. Raises DeclarationError if `fake` takes arguments that a dependency cannot receive.
        """
        override = (dependency, dependency_of(fake))
        self._app.overrides.append(override)
        try:
            yield
        finally:
            self._app.overrides.remove(override)

    async def run_all(self, *, raises: bool = True) -> int:
        """Run all ready jobs, including those that become ready during the call, until none is left. Return the number of runs.

        Jobs run in the real executor, with decoding, middleware, lifespan and retries. Jobs that are not due yet do not run: see `advance`.
        Jobs with ``runs_in="process"`` run in this process, so they see what a test has patched, and have `ctx.state`.
        `ctx.complete_in` accepts any connection and does nothing with it: the job succeeds if its function returns.

        If a job has failed for good, its JobFailed is raised at the end; several are raised as an ExceptionGroup. ``raises=False``
        suppresses both. If a job keeps sending itself or snoozing, this raises AssertionError, naming the job.
        """
        async with self._at_work(raises=raises) as state:
            await self._run_ready(state)
        return state.runs.total()

    async def advance(
        self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0, raises: bool = True
    ) -> int:
        """Advance the virtual time, running each job and firing each schedule when it is due. Return the number of runs.

        `seconds`, `minutes`, `hours`, `days`   how far to advance: the sum, 0 or more
        `raises`  False to ignore the errors of jobs that have failed for good, as in `run_all`

        Everything else that depends on time happens too. For example, a result is dropped `keep_result` seconds (default 3600)
        after its job has ended, and `status()` then returns None, as in production. Raises ValueError if the sum
        is negative, and otherwise the same errors as `run_all`.
        """
        span = timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days)
        if span < timedelta():
            raise ValueError(f"advance() by {span.total_seconds():g} s: time only moves forward")
        async with self._at_work(raises=raises) as state:
            await self._broker.register(self._declarer)
            await state.scheduler.declare(self._declarer.id)
            await self._pass_time(self.now + span, state)
        return state.runs.total()

    @contextmanager
    def inline(self, *, raises: bool = True) -> Iterator[None]:
        """Run jobs as they are sent, inside this `with` block: when `delay()` or another call that sends a job returns, the job has run.

        `raises`  False to ignore the errors of jobs that have failed for good

        Jobs go through the real executor, as in `run_all`: encoding, decoding, middleware, lifespan, retries. Retries run immediately. Jobs
        with a delay wait for `advance`, as do jobs that snooze and those that were sent before the block.

        A plain function runs in its sender's thread, and so in the sender's open transaction. If the sender is a coroutine, the function
        runs in another thread: the one in which Django uses its connections, if Django is loaded. An async function runs in the sender's
        event loop, or in a background loop if there is none. A job with ``runs_in="process"`` runs like any other.

        As in production, sending a job does not raise the job's errors. The JobFailed of a job that has failed for good is raised at the
        end of the block; several are raised as an ExceptionGroup. If the block raises too, the failures are added to its error as notes.
        """
        outer = self._app.run_inline
        inline = Inline(self._broker, partial(self._at_work, raises=False), self._record_failures)
        self._app.run_inline = inline
        waits = wait_by(wait_inline)
        self._inlines.append(inline)
        try:
            yield
        except BaseException as error:
            for failure in inline.failures if raises else ():
                error.add_note(f"A job failed for good in this block: {failure}")
            raise
        finally:
            self._app.run_inline = outer
            wait_by(waits)
        if raises:
            _raise_all(inline.failures)

    async def _pass_time(self, until: datetime, state: PassState) -> None:
        is_over = False
        for _ in range(MAX_STEPS):
            await self._upkeep(state)
            await self._run_ready(state)
            if is_over:
                return
            due_in, left = await self._next_due_in(), (until - self.now).total_seconds()
            is_over = due_in is None or due_in > left
            self._clock.advance(max(0.0, left if due_in is None else min(due_in, left)))
        raise endless(f"{MAX_STEPS:,} steps", state.runs)

    async def _run_ready(self, state: PassState) -> None:
        await Pass(self._broker, state).run()
        await self._record_failures(state)
        while state.ended_hooks is not None and (ended := self._broker.take_ends())[0]:
            state.ended_hooks.tell_ended(*ended)

    async def _record_failures(self, state: PassState) -> None:
        ended_badly, state.ended_badly = state.ended_badly, []
        for job_id, error in ended_badly:
            [record] = await self._broker.read([job_id])
            if record is None or record.status is not Status.FAILED:
                continue
            job = self._app.registry.get(record.job)
            try:
                await JobHandle[Any](self._app, job_id, job).result(0)
            except JobFailed as failure:
                if error is None or job is None:
                    failure.add_note(failure.traceback)
                else:
                    failure.__cause__ = error.with_traceback(frames_from(job.function, error))
                state.failures.append(failure)

    @asynccontextmanager
    async def _at_work(self, *, raises: bool) -> AsyncIterator[PassState]:
        """Enter the lifespan once for all runs in the block. At the end of the block, raise AssertionError if a schedule is invalid.
        Otherwise, if `raises` is True, raise the failures of jobs."""
        async with AsyncExitStack() as stack:
            lifespan = self._app.settings.lifespan
            lifespan_state = await stack.enter_async_context(lifespan()) if lifespan is not None else None
            threads = ThreadPool(CONCURRENCY, self._seams.start_thread)
            stack.callback(threads.close)
            middleware = self._app.settings.middleware
            ended_hooks = EndedHooks(self._app, self._broker, middleware, "run_all") if has_ended_hook(middleware) else None
            if ended_hooks is not None:
                stack.push_async_callback(ended_hooks.close, STOP_TIMEOUT)
            executor = TestExecutor(
                self._app,
                middleware=middleware,
                threads=threads,
                seams=self._seams,
                state=lifespan_state,
                read_notes=self._broker.notes,
            )
            failed = list[Event]()
            scheduler = Scheduler(self._broker, self._app.registry, middleware, Events(failed.append), self._seams.start_thread)
            stack.callback(scheduler.close)
            if await stack.enter_async_context(with_djangos_thread()):
                executor.is_in_djangos_thread, scheduler._threads = True, cast(ThreadPool, djangos_thread)
            yield (state := PassState(executor, scheduler, ended_hooks))
        for event in failed:
            if isinstance(event, ScheduleFailed):
                raise AssertionError(f"schedule {event.name} cannot be used: {event.why}")
        if raises:
            _raise_all(state.failures)

    async def _upkeep(self, state: PassState) -> None:
        while (done := await self._broker.upkeep(10_000)).next_in <= 0 or done.offers:
            if done.offers:
                await state.scheduler.fire(done.offers)

    async def _next_due_in(self) -> float | None:
        waits = [queue.next_due_in for queue in await self._broker.admin.queues() if queue.next_due_in is not None]
        for schedule in await self._broker.admin.schedules():
            if schedule.next_at is not None and not schedule.is_paused:
                delay = to_seconds(SchedulePlan.from_body(schedule.body).delay_of(schedule.name, microseconds_of(schedule.next_at)))
                waits.append((schedule.next_at - self.now).total_seconds() + delay)
        return min(waits, default=None)


def _raise_all(failures: Sequence[Exception]) -> None:
    if failures:
        raise failures[0] if len(failures) == 1 else ExceptionGroup("jobs have failed for good", failures)
