"""Runs jobs in memory under a virtual clock, with the real executor."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, ParamSpec

import msgspec

from taskflow.app.app import App, default_app
from taskflow.app.handle import JobHandle
from taskflow.app.job import Declared
from taskflow.app.job_type import AnyJob
from taskflow.broker import topics
from taskflow.broker.console import JobFilter
from taskflow.broker.nudges import Nudges
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.clock import ManualClock, instant_of, microseconds_of, to_seconds
from taskflow.model.errors import CodecError, JobFailed
from taskflow.model.record import LIVE, Record, Status
from taskflow.model.rules import LONGEST
from taskflow.model.schedule import SCHEDULE
from taskflow.model.schedule_plan import Plan
from taskflow.model.seams import Seams
from taskflow.model.session import Beat, Report, Session
from taskflow.model.verdict import Discarded, Failed
from taskflow.worker.events import Events, ScheduleFailed, WorkerEvent
from taskflow.worker.executor import CANCELLED, LOST, WINDING_DOWN, Executor
from taskflow.worker.lease_table import HeldLease
from taskflow.worker.scheduler import Scheduler
from taskflow.worker.threads import Threads

P = ParamSpec("P")

CONCURRENCY: Final = 100
# The most runs in one call, apart from those of schedules, and the most due times in one `advance`: more indicate an endless loop.
MOST_RUNS = 50_000
MOST_STEPS = 100_000
# Seconds within which runs must end when a test gives up.
LAST_WORDS: Final = 1.0


@contextmanager
def jobs_in_memory(app: App | None = None) -> Iterator[TaskflowJobs]:
    """Provide the `taskflow_jobs` fixture as a context manager, for test runners other than pytest."""
    app = app or default_app()
    seams = Seams(clock=ManualClock(datetime.now(UTC)))
    broker = connect("memory://", seams=seams)
    with app.using(broker):
        yield TaskflowJobs(app, broker, seams)


class TaskflowJobs:
    """The jobs that the tested code has sent, with methods to inspect them, run them and advance the time."""

    def __init__(self, app: App, broker: Broker, seams: Seams) -> None:
        assert isinstance(seams.clock, ManualClock)
        self._app = app
        self._broker = broker
        self._seams = seams
        self._clock = seams.clock
        self._declarer = Session(id=secrets.token_bytes(16), name="advance", ttl=LONGEST)

    @property
    def now(self) -> datetime:
        """The virtual time, as an aware datetime in UTC: the real time at the start of the test, plus what `advance` has added."""
        return instant_of(self._clock.wall())

    async def enqueued(self, job: Declared[..., Any] | None = None) -> list[Record]:
        """Return the records of the jobs that have not ended, oldest first. With `job`, return only the jobs of that type."""
        chosen = JobFilter(job=None if job is None else job.name, statuses=tuple(LIVE))
        return list(reversed(await self._broker.console.browse(chosen, limit=1_000_000)))

    def assert_enqueued(self, job: Declared[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Assert that a call to the job with exactly these arguments is waiting or running.
        If none is, the AssertionError lists the calls that are."""
        if job.codec.encode_arguments(args, kwargs) not in [record.payload for record in self._live(job)]:
            raise AssertionError(f"{_call(job, args, kwargs)} was not enqueued; {self._waiting()}")

    def assert_not_enqueued(self, job: Declared[..., Any]) -> None:
        """Assert that no call to the job is waiting or running."""
        if self._live(job):
            raise AssertionError(f"{job.name} was enqueued; {self._waiting()}")

    async def run_all(self, *, raises: bool = True) -> int:
        """Run all ready jobs, including those that become ready during the call, until none is left. Return the number of runs.

        Jobs run in the real executor, with decoding, middleware, lifespan and retries. Jobs that are not due yet do not run: see `advance`.
        Jobs with ``runs_in="process"`` run in this process, so they see what a test has patched, and have `ctx.state`.

        If a job has failed for good, its JobFailed is raised at the end; several are raised as an ExceptionGroup. ``raises=False``
        suppresses both. If a job keeps sending itself or snoozing, this raises AssertionError, naming the job.
        """
        async with self._at_work(raises=raises) as work:
            await self._run_ready(work)
        return work.runs.total()

    async def advance(
        self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0, raises: bool = True
    ) -> int:
        """Advance the virtual time, running each job and firing each schedule when it is due. Return the number of runs.

        `seconds`, `minutes`, `hours`, `days`   how far to advance: their sum, 0 or more
        `raises`  False to ignore the errors of jobs that have failed for good, as in `run_all`

        Everything else that depends on time happens too. For example, a result is dropped `keep_result` seconds (default 300)
        after its job has ended, and `status()` then returns None, as in production. Raises ValueError if the sum
        is negative, and otherwise the same errors as `run_all`.
        """
        span = timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days)
        if span < timedelta():
            raise ValueError(f"advance() by {span.total_seconds():g} s: time only moves forward")
        async with self._at_work(raises=raises) as work:
            await self._broker.register(self._declarer)
            await work.scheduler.declare(self._declarer.id)
            await self._pass_time(self.now + span, work)
        return work.runs.total()

    async def _pass_time(self, until: datetime, work: _Work) -> None:
        for _ in range(MOST_STEPS):
            await self._upkeep(work)
            await self._run_ready(work)
            due_in = await self._next_due_in()
            left = (until - self.now).total_seconds()
            if due_in is None or due_in > left:
                self._clock.advance(max(0.0, left))
                await self._upkeep(work)
                await self._run_ready(work)
                return
            self._clock.advance(max(0.0, due_in))
        raise _endless(f"{MOST_STEPS:,} steps", work.runs)

    async def _run_ready(self, work: _Work) -> None:
        await _Pass(self._broker, work).run()
        for job_id in work.ended_badly:
            if (failure := await self._failure_of(job_id)) is not None:
                work.failures.append(failure)
        work.ended_badly.clear()

    async def _failure_of(self, job_id: bytes) -> JobFailed | None:
        [record] = await self._broker.read([job_id])
        if record is None or record.status is not Status.FAILED:
            return None
        handle = JobHandle[Any](self._app, job_id, self._app.registry.get(record.job))
        try:
            await handle.result(0)
        except JobFailed as failure:
            failure.add_note(failure.traceback)
            return failure
        return None

    @asynccontextmanager
    async def _at_work(self, *, raises: bool) -> AsyncIterator[_Work]:
        """Enter the lifespan once for all runs in the `async with` block. If
        `raises` is True, raise the runs' failures at the end of the block."""
        async with AsyncExitStack() as stack:
            lifespan = self._app.settings.lifespan
            state = await stack.enter_async_context(lifespan()) if lifespan is not None else None
            threads = Threads(CONCURRENCY, self._seams.start_thread)
            stack.callback(threads.close)
            executor = Executor(
                self._app.registry, middleware=self._app.settings.middleware, threads=threads, seams=self._seams, state=state
            )
            failed = list[WorkerEvent]()
            scheduler = Scheduler(self._broker, self._app.registry, Events(failed.append))
            yield (work := _Work(executor, scheduler))
        for event in failed:
            if isinstance(event, ScheduleFailed):
                raise AssertionError(f"schedule {event.name} cannot be used: {event.why}")
        if raises and work.failures:
            raise work.failures[0] if len(work.failures) == 1 else ExceptionGroup("jobs have failed for good", work.failures)

    async def _upkeep(self, work: _Work) -> None:
        while (done := await self._broker.upkeep(10_000)).next_in <= 0 or done.offers:
            if done.offers:
                await work.scheduler.fire(done.offers)

    async def _next_due_in(self) -> float | None:
        waits = [queue.next_due_in for queue in await self._broker.console.queues() if queue.next_due_in is not None]
        for schedule in await self._broker.console.schedules():
            if schedule.next_at is not None and not schedule.is_paused:
                delay = to_seconds(Plan.from_body(schedule.body).delay_of(schedule.name, microseconds_of(schedule.next_at)))
                waits.append((schedule.next_at - self.now).total_seconds() + delay)
        return min(waits, default=None)

    def _live(self, job: Declared[..., Any] | None = None) -> list[Record]:
        records: list[Record] = _finished(self.enqueued(job))
        return records

    def _waiting(self) -> str:
        calls = [self._shown(record) for record in self._live()]
        return "these were: " + ", ".join(calls) if calls else "nothing was"

    def _shown(self, record: Record) -> str:
        job = self._app.registry.get(record.job)
        if job is None or record.payload is None:
            return f"{record.job}(?)"
        try:
            args, kwargs = job.codec.decode_arguments(record.payload)
        except CodecError as error:
            return f"{record.job}(undecodable: {error})"
        return _call(job, args, kwargs)


class _Work:
    """The state of one call of `run_all` or `advance`: its executor, the number of runs for each job name, and the failures."""

    def __init__(self, executor: Executor, scheduler: Scheduler) -> None:
        self.executor = executor
        self.scheduler = scheduler
        self.runs = Counter[str]()
        self.unscheduled = 0
        self.ended_badly: list[bytes] = []
        self.failures: list[JobFailed] = []


class _Pass:
    """Runs jobs in a separate session, as a worker does, until none is ready."""

    def __init__(self, broker: Broker, work: _Work) -> None:
        self._broker = broker
        self._work = work
        self._session = Session(id=secrets.token_bytes(16), name="run_all")
        self._request = 0
        self._running: dict[asyncio.Task[None], HeldLease] = {}

    async def run(self) -> None:
        await self._broker.register(self._session)
        try:
            with self._broker.listen([topics.ANY_QUEUE, topics.session(self._session.id)]) as nudges:
                while await self._claim() or self._running:
                    await self._next_news(nudges)
                    await self._beat()
        finally:
            await self._leave()

    async def _claim(self) -> bool:
        self._request += 1
        leases = await self._broker.claim(self._session.id, self._request, (), CONCURRENCY)
        self._work.unscheduled += sum(SCHEDULE not in lease.envelope.headers for lease in leases)
        if self._work.unscheduled > MOST_RUNS:
            raise _endless(f"{MOST_RUNS:,} runs", self._work.runs)
        for lease in leases:
            holding = HeldLease(lease)
            task = asyncio.get_running_loop().create_task(self._run(holding))
            self._running[task] = holding
            task.add_done_callback(self._running.pop)
            self._work.runs[lease.envelope.job] += 1
        return bool(leases)

    async def _next_news(self, nudges: Nudges) -> None:
        """Wait until a run has ended, a job has become ready, or a running job has been asked to stop."""
        nudged = asyncio.ensure_future(nudges.wait())
        try:
            await asyncio.wait({nudged, *self._running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            nudged.cancel()
            await asyncio.gather(nudged, return_exceptions=True)

    async def _beat(self) -> None:
        held = {holding.lease.claim: holding for holding in self._running.values()}
        reports = tuple(Report(claim, 0.0, holding.progress) for claim, holding in held.items())
        answer = await self._broker.beat(Beat(session=self._session.id, claims=tuple(held), seen=self._request, reports=reports))
        for why, claims in ((CANCELLED, answer.stopping), (LOST, answer.lost)):
            for claim in claims:
                held[claim].ask_to_stop(why)

    async def _run(self, holding: HeldLease) -> None:
        settlement = await self._work.executor.run(holding)
        # Virtual time does not pass while a job runs. With its real duration, the run would seem to start before the job was sent.
        await self._broker.settle([msgspec.structs.replace(settlement, ran_for=0.0)])
        if isinstance(settlement.verdict, Failed | Discarded):
            self._work.ended_badly.append(settlement.id)

    async def _leave(self) -> None:
        """Leave the session. If runs are left because the test has given up, stop them first; their jobs become ready again."""
        for holding in self._running.values():
            holding.ask_to_stop(WINDING_DOWN)
        if self._running:
            await asyncio.wait(self._running, timeout=LAST_WORDS)
        await self._broker.beat(Beat(session=self._session.id, leaving=True))


def _endless(after: str, runs: Counter[str]) -> AssertionError:
    [(job, count)] = runs.most_common(1)
    return AssertionError(
        f"jobs are still ready after {after}, {count:,} of them {job}: does it send itself, or snooze for (almost) no time?"
    )


def _finished(coroutine: Any) -> Any:
    """Run a coroutine that never waits, like those of the memory broker, and return its value, so that assertions need no await."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the memory broker waited")


def _call(job: AnyJob, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    shown = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
    return f"{job.name}({', '.join(shown)})"
