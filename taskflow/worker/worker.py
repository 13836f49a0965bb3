"""The worker, which runs jobs in one session after another until its `async with` block ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import anyio

from taskflow.app.app import default_app
from taskflow.app.middleware import has_ended_hook
from taskflow.broker.retry import retry
from taskflow.model.clock import Seams
from taskflow.model.errors import BrokerUnavailable, ConfigurationError
from taskflow.model.verdict import Discarded, Failed, Verdict
from taskflow.worker.children.pool import ChildPool
from taskflow.worker.drain import Drain
from taskflow.worker.events import BrokerCallFailed, CompletionRolledBack, Events, RunEnded, VerdictIgnored, VerdictRejected, WorkerEvent
from taskflow.worker.executor import Executor
from taskflow.worker.health import WorkerHealth
from taskflow.worker.options import QueueChoice, WorkerOptions
from taskflow.worker.registration import deploy_name, worker_name
from taskflow.worker.scheduler import Scheduler
from taskflow.worker.session import WorkerSession
from taskflow.worker.session_loop import PAUSES, SessionLoop
from taskflow.worker.thread_pool import ThreadPool
from taskflow.worker.watchdog import Watchdog

if TYPE_CHECKING:  # loaded only by workers with such hooks
    from taskflow.worker.ended_hooks import EndedHooks

T = TypeVar("T")

log: Final = logging.getLogger("taskflow.worker")

DRAIN_LOOK: Final = 0.05

# Seconds that a drain waits for the worker's schedules to be declared. A store may refuse them, and has jobs to run all the same.
BEGUN_WITHIN: Final = 5.0

FAILURES: Final = (Failed, Discarded)


class RunCounts:
    """Counts a worker's runs from its events. `ended` are those that ended their job, `failed` those of them whose job is FAILED.
    `set_aside` are jobs that a drain found FAILED because their stored values cannot be read, or as poison."""

    def __init__(self) -> None:
        self.runs = 0
        self.ended = 0
        self.failed = 0
        self.set_aside = 0

    def __call__(self, event: WorkerEvent) -> None:
        if type(event) is RunEnded:  # by far the most frequent event
            self.runs += 1
            verdict = event.verdict
            self.ended += verdict.is_final
            self.failed += isinstance(verdict, FAILURES)
            return
        match event:
            case VerdictIgnored(_, verdict):
                self._count(verdict, -1)
            case VerdictRejected(_, verdict, instead) | CompletionRolledBack(_, verdict, instead):
                self._count(verdict, -1)
                self._count(instead, 1)

    def _count(self, verdict: Verdict, times: int) -> None:
        self.ended += times * verdict.is_final
        self.failed += times * isinstance(verdict, FAILURES)


class Worker:
    """An async context manager that runs jobs inside its block, then winds down: ``async with Worker(concurrency=50): ...``

    `queues`       as on the command line: "mail,default" in strict order, "mail=3,default=1" weighted, or a list of such names
                   (default None: every queue)
    `concurrency`  the maximum number of jobs that run at once
    `grace`        seconds that runs have to finish when the block ends
    `state`        the value of `ctx.state`, if no lifespan is configured for the application

    Use a worker for one block only. It installs no signal handlers and never ends the
    process. For health checks, any thread may call `health.live()` and `health.ready()`.

    Raises ConfigurationError for invalid arguments, BrokerUnavailable if the broker
    does not answer at startup, and any error from the application's lifespan.
    """

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
        self.health = WorkerHealth(lambda: self._watchdog, self._sessions.health, self.options.ttl)

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
        self._events.subscribe(*self._app.settings.subscribers)
        async with AsyncExitStack() as stack:
            if (lifespan := self._app.settings.lifespan) is not None:
                self._state = await stack.enter_async_context(lifespan())
            self._threads = ThreadPool(self.options.concurrency, self._seams.start_thread, self._sessions.note_freed)
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
            stack.callback(self._end_watchdog)
            self._watchdog = Watchdog(self._sessions, self._events, start_thread, stall_limit=options.stall_limit, ttl=options.ttl)
            self._watchdog.start()
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
            # The lifespan must end in the task that began it, and outside of our scope, because it may contain task groups and scopes. If
            # it fails, its error must not hide `error`, which ended the block.
            try:
                await self._stack.aclose()
            except Exception:
                if error is None:
                    raise
                log.exception("the lifespan's exit failed too, after %s", type(error).__name__)

    def end_grace_period(self) -> None:
        """End the grace time early: cancel the runs now, or as soon as the worker winds down."""
        self._sessions.end_grace_period()

    async def finish(self) -> None:
        """Stop claiming jobs, and wait until all runs have ended and the broker has their verdicts, however long that takes.

        If the session is lost, its runs are cancelled, because their jobs belong to other workers.
        If this call is cancelled, the worker still winds down as usual at the end of the block.
        """
        self.health.is_winding_down = True
        await self._sessions.finish()

    async def drained(self) -> None:
        """Wait until the queues have no READY or RUNNING job, and no job SCHEDULED within the horizon.

        Parked jobs stay in their queues, and so do waiting jobs in paused queues. If the broker does not answer, the worker tries again.
        """
        drain = Drain(self._app.broker(), self._app.registry, self.options)
        if (session := self._sessions.current) is not None:
            await self._look(lambda: drain.note_begin(session.session.id))
            with anyio.move_on_after(BEGUN_WITHIN):
                await session.schedules_begun.wait()
        while not await self._look(drain.is_over):  # noqa: ASYNC110  # no event tells it
            await asyncio.sleep(DRAIN_LOOK)
        self.tally.set_aside = await self._look(drain.set_aside)

    async def _look(self, look: Callable[[], Awaitable[T]]) -> T:
        def note(error: Exception, times: int) -> None:
            self._events.emit(BrokerCallFailed("a look at the queues", str(error), times))

        return await retry(look, PAUSES, on=BrokerUnavailable, note=note)

    def _new_session(self) -> WorkerSession:
        executor = Executor(
            self._app,
            middleware=self._app.settings.middleware,
            threads=self._threads,
            seams=self._seams,
            state=self._state,
            children=self._children,
            is_cut_short=self._is_cancelled,
            deploy=deploy_name(),
        )
        broker, options = self._app.broker(), self.options
        return WorkerSession(
            broker, executor, self._threads, self._scheduler, options, self._seams, self._events, ended_hooks=self._ended_hooks
        )

    def _end_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.stop()

    def _is_cancelled(self) -> bool:
        return self._host is not None and self._host.cancelling() > self._host_cancels

    async def _wind_down(self) -> None:
        """Wind down completely: stopping halfway would leave a session that sends heartbeats but runs nothing. If this task is cancelled,
        the grace time ends early. The wait is shielded, because an enclosing anyio scope would otherwise cancel every await."""
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
            self.has_forced = await self._sessions.end()
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

    Raises the errors of `Worker` when the application starts.
    """

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
