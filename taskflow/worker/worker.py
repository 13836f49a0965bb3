"""The worker, which runs jobs in one session after another until its `async with` block ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import anyio

from taskflow.app.app import default_app
from taskflow.app.events import Events
from taskflow.app.job_type import Registry
from taskflow.app.middleware import has_ended_hook
from taskflow.broker.admin import QueueInfo, View
from taskflow.broker.paging import first
from taskflow.broker.protocol import Broker
from taskflow.broker.retry import retry
from taskflow.model.clock import Seams
from taskflow.model.errors import BrokerUnavailable, CodecError, ConfigurationError
from taskflow.model.record import Record, Status
from taskflow.model.wording import POISON, UNREADABLE
from taskflow.worker.children.pool import ChildPool
from taskflow.worker.events import BrokerCallFailed
from taskflow.worker.executor import PARKED_ON, Executor
from taskflow.worker.health import WorkerHealth
from taskflow.worker.maintenance import Scheduler
from taskflow.worker.options import QueueChoice, WorkerOptions
from taskflow.worker.registration import deploy_name, worker_name
from taskflow.worker.runs import RunCounts
from taskflow.worker.session import Hooks, WorkerSession
from taskflow.worker.session_loop import PAUSES, SessionLoop
from taskflow.worker.thread_pool import ThreadPool
from taskflow.worker.watchdog import Watchdog

if TYPE_CHECKING:  # loaded only by workers with ended() hooks, or with telemetry that counts runs
    from taskflow.worker.ended_hooks import EndedHooks
    from taskflow.worker.measuring import WorkerFacts, WorkerMeasures

T = TypeVar("T")

log: Final = logging.getLogger("taskflow.worker")

DRAIN_POLL_INTERVAL: Final = 0.05

# Seconds that a drain waits for the worker's schedules to be declared. Even if the store refuses them, there are jobs to run.
DECLARE_TIMEOUT: Final = 5.0

# The maximum number of scheduled or failed jobs that one search examines. Examining more would put load on the store.
MAX_SEARCHED: Final = 1_000
SEARCH_INTERVAL: Final = 0.5


class Drain:
    """Checks whether the worker's queues are drained, one queue after another."""

    def __init__(self, broker: Broker, registry: Registry, options: WorkerOptions) -> None:
        self._broker = broker
        self._registry = registry
        self._names = options.queues.names
        self._horizon = options.drain_horizon
        self._search_at = dict[str, float]()
        self._began_at: datetime | None = None

    async def record_begin(self, session: bytes) -> None:
        """Record when the store registered the session. From then on, jobs that fail without a run count as failures of this drain."""
        workers = await self._broker.admin.workers()
        self._began_at = next((worker.registered_at for worker in workers if worker.session.id == session), None)

    async def set_aside(self) -> int:
        """Count the jobs that have ended as FAILED, without a run, since the session was registered: unreadable jobs in any queue, and
        poison in the worker's queues. This examines at most `MAX_SEARCHED` failed jobs."""
        if self._began_at is None:
            return 0
        failed = await self._broker.admin.page(View(statuses=(Status.FAILED,)), limit=MAX_SEARCHED)
        return sum(
            self._is_set_aside(record) and (record.ended_at is None or record.ended_at >= self._began_at) for record in failed.records
        )

    def _is_set_aside(self, record: Record) -> bool:
        if record.unreadable or ((error := record.last_error) is not None and error.type == UNREADABLE):
            return True
        return (record.reason or "").startswith(POISON) and (not self._names or record.queue in self._names)

    async def is_over(self) -> bool:
        """Return True if no job in the queues is READY or RUNNING, and none that this worker can run is due within the horizon.

        Runs on other workers count too. In a paused queue, only RUNNING jobs count, because no worker may claim the others."""
        for queue in await self.queues():
            if queue.counts[Status.RUNNING] or (queue.counts[Status.READY] and not queue.is_paused):
                return False
            if not queue.is_paused and await self._has_something_due(queue):
                return False
        return True

    async def queues(self) -> list[QueueInfo]:
        """Return the worker's queues that the store knows."""
        return [queue for queue in await self._broker.admin.queues() if not self._names or queue.name in self._names]

    async def parked(self, queue: QueueInfo) -> Counter[str]:
        """Count, by job name, the jobs that this worker cannot run, among the queue's first `MAX_SEARCHED` scheduled jobs."""
        if not queue.counts[Status.SCHEDULED]:
            return Counter()
        return Counter(record.job for record in await self._scheduled(queue) if not self._can_run(record))

    async def _has_something_due(self, queue: QueueInfo) -> bool:
        """Return True if a job that this worker can run is due within the horizon. Any due job counts if more than `MAX_SEARCHED` jobs are
        scheduled, or if a search less than `SEARCH_INTERVAL` seconds ago found one."""
        if queue.next_due_in is None or queue.next_due_in > self._horizon:
            return False
        if queue.counts[Status.SCHEDULED] > MAX_SEARCHED or time.monotonic() < self._search_at.get(queue.name, 0.0):
            return True
        scheduled = await self._scheduled(queue)
        if len(scheduled) == queue.counts[Status.SCHEDULED]:  # otherwise a job has become ready in the meantime, or is new
            # The earliest due time minus `next_due_in` is the store's time, which decides when jobs are due.
            until = min(record.due_at for record in scheduled).timestamp() + self._horizon - queue.next_due_in
            if not any(record.due_at.timestamp() <= until and self._can_run(record) for record in scheduled):
                return False
        self._search_at[queue.name] = time.monotonic() + SEARCH_INTERVAL
        return True

    async def _scheduled(self, queue: QueueInfo) -> list[Record]:
        """Return the queue's scheduled jobs, the next one due first, at most `MAX_SEARCHED`."""
        return await first(self._broker.admin, View(queue=queue.name, statuses=(Status.SCHEDULED,)), MAX_SEARCHED)

    def _can_run(self, record: Record) -> bool:
        """Return True if this worker can run the job, even if another worker has parked it."""
        if record.waiting_for is None:
            return True
        job = self._registry.get(record.job)
        if job is None:
            return False
        try:
            job.codec.decode_arguments(record.payload or b"")
        except PARKED_ON:
            return False
        except CodecError:  # the job will fail, which also ends it
            pass
        return True


class Worker:
    """An async context manager that runs jobs inside its block, then winds down: ``async with Worker(concurrency=50): ...``

    `queues`       as on the command line: "mail,default" in strict order, "mail=3,default=1" weighted, or a list of such names
                   (default None: every queue)
    `concurrency`  the maximum number of jobs that run at once (default 100)
    `grace`        seconds that runs have to finish when the block ends (default 25)
    `state`        the value of `ctx.state`, if no lifespan is configured for the application

    Use a worker for one block only. It installs no signal handlers and never ends the process. For health checks, any thread may call
    `health.live()` and `health.ready()`.

    Raises ConfigurationError for invalid arguments and for a second block, BrokerUnavailable if the broker does not answer at startup, and
    any error from the application's lifespan."""

    def __init__(
        self,
        *,
        queues: str | Sequence[str] | None = None,
        concurrency: int = 100,
        grace: float = 25.0,
        state: Any = None,
        options: WorkerOptions | None = None,
        seams: Seams | None = None,
    ) -> None:
        self.options = options or WorkerOptions(queues=_choice(queues), concurrency=concurrency, grace=grace)
        self.tally = RunCounts()
        self.has_forced = False
        self._state = state
        self._app = default_app()
        self._seams = seams or Seams()
        self._events = Events(self.tally, *self.options.subscribers)
        self._was_entered = False
        self._host: asyncio.Task[Any] | None = None
        self._host_cancels = 0
        self._stack = AsyncExitStack()
        self._sessions = SessionLoop(self._new_session, self.options, self._events, self._seams.chance)
        self._watchdog: Watchdog | None = None
        self._ended_hooks: EndedHooks | None = None
        self._measures: WorkerMeasures | None = None
        self.health = WorkerHealth(lambda: self._watchdog, lambda: self._sessions.current, self.options.ttl)

    async def __aenter__(self) -> Self:
        if self._app.is_in_child:
            raise ConfigurationError(
                'a child process of a worker (runs_in="process") imported the main module, which starts a worker. '
                'Put code that only the command must run under `if __name__ == "__main__":`'
            )
        if self._was_entered:
            raise ConfigurationError(
                "this Worker was entered before, and can be used for only one `async with` block: create another Worker()"
            )
        self._was_entered = True
        self._host = asyncio.current_task()
        self._host_cancels = self._host.cancelling() if self._host is not None else 0
        if self._app.settings.subscribers:
            self._events.subscribe(self._app.events().emit)
        async with AsyncExitStack() as stack:
            if (lifespan := self._app.settings.lifespan) is not None:
                self._state = await stack.enter_async_context(lifespan())
            self._threads = ThreadPool(self.options.concurrency, self._seams.start_thread, self._sessions.record_freed)
            stack.callback(self._threads.close)
            middleware, start_thread, options = self._app.settings.middleware, self._seams.start_thread, self.options
            self._children = ChildPool(
                self._app, options.children, modules=options.modules, emit=self._events.emit, start_thread=start_thread
            )
            stack.push_async_callback(self._children.close)
            self._app.registry.resolve()
            self._scheduler = Scheduler(self._app.broker(), self._app.registry, middleware, self._events, start_thread)
            stack.callback(self._scheduler.close)
            if has_ended_hook(middleware):
                from taskflow.worker.ended_hooks import EndedHooks

                self._ended_hooks = EndedHooks(self._app, self._app.broker(), middleware, worker_name())
                stack.push_async_callback(self._ended_hooks.close, self.options.stop_timeout)
            self._measures = self._new_measures()
            for each in self._app.settings.telemetry:
                stack.enter_context(each.working(self._measures))
            stack.callback(self._end_watchdog)
            self._watchdog = Watchdog(self._sessions, self._events, start_thread, stall_limit=options.stall_limit, ttl=options.ttl)
            self._watchdog.start()
            with ExitStack() as quiet:
                for each in self._app.settings.telemetry:
                    quiet.enter_context(each.quiet())
                await self._sessions.begin()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self._wind_down()
        except BaseException as interrupted:
            error = interrupted
            raise
        finally:
            # The lifespan must end in the task that began it, and outside of our cancel scope, because it may contain task groups and
            # scopes. If it fails, its error must not hide `error`, which ended the block.
            try:
                await self._stack.aclose()
            except Exception:
                if error is None:
                    raise
                log.exception("the lifespan's cleanup failed too, after %s", type(error).__name__)

    def end_grace_period(self) -> None:
        """End the grace period early: cancel the runs now, or as soon as the worker winds down."""
        self._sessions.end_grace_period()

    async def finish(self) -> None:
        """Stop claiming jobs, and wait until all runs have ended and the broker has stored their verdicts, however long that takes.

        If the session is lost, its runs are cancelled, because their jobs belong to other workers. If this call is cancelled, the worker
        still winds down as usual at the end of the block."""
        self.health.is_winding_down = True
        await self._sessions.finish()

    async def drained(self) -> None:
        """Wait until no job in the queues is READY, RUNNING or due within `drain_horizon` seconds.

        Parked jobs that this worker cannot run stay in their queues, and so do waiting jobs in paused queues. If the broker does not
        answer, the worker tries again."""
        drain = Drain(self._app.broker(), self._app.registry, self.options)
        if (session := self._sessions.current) is not None:
            await self._poll(lambda: drain.record_begin(session.session.id))
            with anyio.move_on_after(DECLARE_TIMEOUT):
                await session.schedules_begun.wait()
        while not await self._poll(drain.is_over):  # noqa: ASYNC110  # no event announces it
            await asyncio.sleep(DRAIN_POLL_INTERVAL)
        self.tally.set_aside = await self._poll(drain.set_aside)

    async def _poll(self, poll: Callable[[], Awaitable[T]]) -> T:
        def note(error: Exception, times: int) -> None:
            self._events.emit(BrokerCallFailed("checking the queues", str(error), times))

        return await retry(poll, PAUSES, on=BrokerUnavailable, note=note)

    def _new_measures(self) -> WorkerMeasures | None:
        telemetry = self._app.settings.telemetry
        if not any(each.counts_runs for each in telemetry):
            return None
        from taskflow.worker.measuring import WorkerMeasures

        measures = WorkerMeasures(self._slots, records=any(each.records_history for each in telemetry), deploy=deploy_name())
        self._events.subscribe(measures.on_event)
        return measures

    def facts(self) -> WorkerFacts | None:
        """Return what the worker has counted, or None if no telemetry requires counts. May be called from any thread."""
        return None if self._measures is None else self._measures.facts()

    def _slots(self) -> tuple[int, int, float]:
        """Return the numbers of busy and free slots, and for how many seconds the event loop has been blocked."""
        session, watchdog = self._sessions.current, self._watchdog
        busy, free = (0, 0) if session is None else (len(session.runs.under_way) - session.runs.surplus, session.runs.free)
        return busy, free, 0.0 if watchdog is None else watchdog.stalled_for

    def _new_session(self) -> WorkerSession:
        broker = self._app.broker()
        executor = Executor(
            self._app,
            middleware=self._app.settings.middleware,
            threads=self._threads,
            seams=self._seams,
            state=self._state,
            children=self._children,
            is_cut_short=self._is_cancelled,
            deploy=deploy_name(),
            read_notes=broker.notes,
        )
        hooks = Hooks(self._ended_hooks, self._measures)
        return WorkerSession(broker, executor, self._scheduler, self.options, self._events, hooks)

    def _end_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.stop()

    def _is_cancelled(self) -> bool:
        return self._host is not None and self._host.cancelling() > self._host_cancels

    async def _wind_down(self) -> None:
        """Wind down completely: stopping halfway would leave a session that sends heartbeats but runs nothing. If this task is cancelled,
        the grace period ends early, and the cancellation is raised at the end. The wait is shielded, because an enclosing anyio scope would
        otherwise cancel every await."""
        interrupted: BaseException | None = None
        self.health.is_winding_down = True
        self._sessions.wind_down()
        with anyio.CancelScope(shield=True):
            while not self._sessions.has_ended.is_set():
                try:
                    await self._sessions.has_ended.wait()
                except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
                    interrupted = error
                    self.end_grace_period()
            self.has_forced = self._sessions.current is not None and self._sessions.current.has_forced
        if interrupted is not None:
            raise interrupted


def worker_lifespan(
    *,
    own: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None,
    queues: str | Sequence[str] | None = None,
    concurrency: int = 100,
    grace: float = 25.0,
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """Return a lifespan for a Starlette or FastAPI application that runs a worker: ``Starlette(lifespan=worker_lifespan(own=lifespan))``.

    `own`          the application's own lifespan. The worker runs inside it, and the state that it
                   yields is passed on to the application and to the worker
    `queues`       the queues to take jobs from, as in `Worker` (default None: every queue)
    `concurrency`  the maximum number of jobs that run at once (default 100)
    `grace`        seconds that runs have to finish when the application stops (default 25)

    Raises the errors of `Worker` when the application starts."""

    @asynccontextmanager
    async def lifespan(application: Any) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            state = await stack.enter_async_context(own(application)) if own is not None else None
            await stack.enter_async_context(Worker(queues=queues, concurrency=concurrency, grace=grace, state=state))
            yield state

    return lifespan


def _choice(queues: str | Sequence[str] | None) -> QueueChoice:
    if queues is None:
        return QueueChoice()
    if not isinstance(queues, Sequence) or not all(isinstance(name, str) for name in queues):
        raise ConfigurationError(
            f'queues={queues!r}: expected names, in strict order ("mail,default", ["mail", "default"]) or weighted ("mail=3,default=1")'
        )
    try:
        return QueueChoice.parse(queues if isinstance(queues, str) else ",".join(queues))
    except ValueError as error:
        raise ConfigurationError(f"queues={queues!r}: {error}") from error
