"""Jobs in memory with a virtual clock, run by the real executor."""

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
from taskflow.model.clock import ManualClock, instant_of
from taskflow.model.errors import CodecError, JobFailed
from taskflow.model.record import LIVE, Record, Status
from taskflow.model.seams import Seams
from taskflow.model.session import Beat, Report, Session
from taskflow.model.verdict import Discarded, Failed
from taskflow.worker.executor import CANCELLED, LOST, WINDING_DOWN, Executor
from taskflow.worker.lease_table import HeldLease
from taskflow.worker.threads import Threads

P = ParamSpec("P")

CONCURRENCY: Final = 100
# Limits of runs in one call, and of due times in one advance: more means an endless loop.
MOST_RUNS = 50_000
MOST_STEPS = 100_000
# Seconds for runs to end when a test gives up.
LAST_WORDS: Final = 1.0


@contextmanager
def jobs_in_memory(app: App | None = None) -> Iterator[TaskflowJobs]:
    """Open the fixture as a context manager, for test runners other than pytest."""
    app = app or default_app()
    seams = Seams(clock=ManualClock(datetime.now(UTC)))
    broker = connect("memory://", seams=seams)
    with app.using(broker):
        yield TaskflowJobs(app, broker, seams)


class TaskflowJobs:
    """The jobs that the tested code has sent, and methods to run them and to advance the time."""

    def __init__(self, app: App, broker: Broker, seams: Seams) -> None:
        assert isinstance(seams.clock, ManualClock)
        self._app = app
        self._broker = broker
        self._seams = seams
        self._clock = seams.clock

    @property
    def now(self) -> datetime:
        """The virtual time, aware, in UTC: the real time at the start of the test, plus what `advance` has added."""
        return instant_of(self._clock.wall())

    async def enqueued(self, job: Declared[..., Any] | None = None) -> list[Record]:
        """Return the records of jobs that have not ended, oldest first; with `job` only those of that type."""
        chosen = JobFilter(job=None if job is None else job.name, statuses=tuple(LIVE))
        return list(reversed(await self._broker.console.browse(chosen, limit=1_000_000)))

    def assert_enqueued(self, job: Declared[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Assert that a call of the job with exactly these arguments waits or runs. The AssertionError lists the calls that do."""
        if job.codec.encode_arguments(args, kwargs) not in [record.payload for record in self._live(job)]:
            raise AssertionError(f"{_call(job, args, kwargs)} was not enqueued; {self._waiting()}")

    def assert_not_enqueued(self, job: Declared[..., Any]) -> None:
        """Assert that no call of the job waits or runs."""
        if self._live(job):
            raise AssertionError(f"{job.name} was enqueued; {self._waiting()}")

    async def run_all(self, *, raises: bool = True) -> int:
        """Run ready jobs, and those that become ready meanwhile, until none is left. Return the number of runs.

        Jobs run in the real executor, with decoding, middleware, lifespan and retries. Jobs that wait for a time do not run: see
        `advance`. Jobs with ``runs_in="process"`` run in this process: they see what a test has patched, and have `ctx.state`.

        At the end, a job that has failed for good raises its JobFailed here; several raise an ExceptionGroup. With ``raises=False`` none is
        raised. Raises AssertionError, naming the job, if a job sends itself or snoozes without end.
        """
        async with self._at_work(raises=raises) as work:
            await self._run_ready(work)
        return work.runs.total()

    async def advance(
        self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0, raises: bool = True
    ) -> int:
        """Advance the virtual time, and run each job when it is due. Return the number of runs.

        Time has its other effects too: a result is dropped `keep_result` (default 300 s) after its job has ended, and `status()` is then
        None, as in production. Raises ValueError for a negative time, and otherwise the same errors as `run_all`.
        """
        span = timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days)
        if span < timedelta():
            raise ValueError(f"advance() by {span.total_seconds():g} s: time only moves forward")
        async with self._at_work(raises=raises) as work:
            await self._pass_time(self.now + span, work)
        return work.runs.total()

    async def _pass_time(self, until: datetime, work: _Work) -> None:
        for _ in range(MOST_STEPS):
            await self._upkeep()
            await self._run_ready(work)
            due_in = await self._next_due_in()
            left = (until - self.now).total_seconds()
            if due_in is None or due_in > left:
                self._clock.advance(max(0.0, left))
                await self._upkeep()
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
        """Open the lifespan once for all runs in the block. Raise the failures at its end."""
        async with AsyncExitStack() as stack:
            lifespan = self._app.settings.lifespan
            state = await stack.enter_async_context(lifespan()) if lifespan is not None else None
            threads = Threads(CONCURRENCY, self._seams.start_thread)
            stack.callback(threads.close)
            executor = Executor(
                self._app.registry, middleware=self._app.settings.middleware, threads=threads, seams=self._seams, state=state
            )
            yield (work := _Work(executor))
        if raises and work.failures:
            raise work.failures[0] if len(work.failures) == 1 else ExceptionGroup("jobs have failed for good", work.failures)

    async def _upkeep(self) -> None:
        while (await self._broker.upkeep(10_000)).next_in <= 0:
            pass

    async def _next_due_in(self) -> float | None:
        return min((queue.next_due_in for queue in await self._broker.console.queues() if queue.next_due_in is not None), default=None)

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
    """Runs jobs during one call. Counts the runs of each job by name, and keeps the failures."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.runs = Counter[str]()
        self.ended_badly: list[bytes] = []
        self.failures: list[JobFailed] = []


class _Pass:
    """One run of all ready jobs, like a worker with its own session."""

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
        if leases and self._work.runs.total() >= MOST_RUNS:
            raise _endless(f"{MOST_RUNS:,} runs", self._work.runs)
        for lease in leases:
            holding = HeldLease(lease)
            task = asyncio.get_running_loop().create_task(self._run(holding))
            self._running[task] = holding
            task.add_done_callback(self._running.pop)
            self._work.runs[lease.envelope.job] += 1
        return bool(leases)

    async def _next_news(self, nudges: Nudges) -> None:
        """Wait until a run has ended, a job has become ready, or a running one was asked to stop."""
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
        # Virtual time does not pass while a job runs: its real duration would put its start before it was sent.
        await self._broker.settle([msgspec.structs.replace(settlement, ran_for=0.0)])
        if isinstance(settlement.verdict, Failed | Discarded):
            self._work.ended_badly.append(settlement.id)

    async def _leave(self) -> None:
        """Check that nothing runs any more. If the test has given up, stop the runs; their jobs are ready again."""
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
    """Return the value of a coroutine that never waits, like those of the memory broker, so that assertions need no await."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the memory broker waited")


def _call(job: AnyJob, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    shown = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
    return f"{job.name}({', '.join(shown)})"
