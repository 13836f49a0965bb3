"""The executor in a child process, which calls functions in the main thread and sends progress to the worker."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from queue import SimpleQueue
from types import FrameType
from typing import Any, Final

from taskflow.app.app import default_app
from taskflow.app.context import JobContext
from taskflow.app.job import Job
from taskflow.app.job_type import AnyJob
from taskflow.model.clock import Seams
from taskflow.model.errors import JobStopping, StopReason
from taskflow.model.verdict import Progress, Settlement
from taskflow.worker.children.messages import Completing, Message, Reported
from taskflow.worker.executor import CANCELLED, LOST, TIMED_OUT, WINDING_DOWN, Executor
from taskflow.worker.lease_table import HeldLease
from taskflow.worker.thread_pool import CancelledBeforeStart, carried

# Interrupts the main thread. By default it has no effect, not even in a debugger, and hardly any program uses it.
STOP_SIGNAL: Final = signal.SIGURG

# Seconds until the signal is sent again. The first signal may arrive just before a system call, which it then does not interrupt.
_RESEND_INTERVAL: Final = 0.02
_MAX_PAUSE: Final = 1.0
PROGRESS_INTERVAL: Final = 0.05  # minimum seconds between two progress reports, because a job may report each of a million items
_REASONS: Final[Mapping[str, StopReason]] = {CANCELLED: "cancelled", TIMED_OUT: "timeout", WINDING_DOWN: "shutdown", LOST: "lost"}


class _Call:
    """A call for the main thread. Either thread may pop the reason to stop from `asked`. `task` is set once an async function begins."""

    def __init__(self, function: Callable[[], Any], *, is_async: bool = False) -> None:
        self.function = function
        self.is_async = is_async
        self.scope = contextvars.copy_context()
        self.loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Any] = self.loop.create_future()
        self.asked: list[StopReason] = []
        self.task: asyncio.Task[Any] | None = None

    def is_to_stop(self) -> bool:
        """Return True, but only once, if the call was asked to stop. Either thread may call this."""
        if self.asked:
            with contextlib.suppress(IndexError):  # the other thread has just popped it
                self.asked.pop()
                return True
        return False


class MainThreadCalls:
    """A queue of calls, which the main thread makes one at a time. Async functions share one event loop in that thread; plain functions
    may run separate loops. `run`, `run_async`, `stop` and `end` are called in the other thread's loop."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[_Call | None] = SimpleQueue()
        self._runner = asyncio.Runner()
        self._main_thread = threading.main_thread().ident
        self._current: _Call | None = None

    def run(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Have the main thread call a function with this task's context variables. Return a future for its outcome."""
        self._latest = call = _Call(function)
        self._waiting.put(call)
        return call.outcome

    def run_async(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Future[Any]:
        """Like `run`, but for an async function."""
        self._latest = call = _Call(function, is_async=True)
        call.function = partial(self._run_task, call, function)
        self._waiting.put(call)
        return call.outcome

    def stop(self, reason: StopReason) -> None:
        """Raise JobStopping in the latest call, or cancel its task. If the call hasn't begun, its outcome is CancelledBeforeStart."""
        call = self._latest
        call.asked.append(reason)
        if not call.is_async:
            self._interrupt(call, _RESEND_INTERVAL)
        elif call.task is not None and call.is_to_stop():
            call.task.get_loop().call_soon_threadsafe(call.task.cancel)

    def end(self) -> None:
        """Make the main thread stop after the calls that are already queued."""
        self._waiting.put(None)

    def _interrupt(self, call: _Call, pause: float) -> None:
        """Send the signal again and again until it takes effect or the call ends."""
        if call.asked and not call.outcome.done() and self._main_thread is not None:
            signal.pthread_kill(self._main_thread, STOP_SIGNAL)
            call.loop.call_later(pause, self._interrupt, call, min(2 * pause, _MAX_PAUSE))

    def make(self) -> None:
        """Make the queued calls until `end` is called."""
        signal.signal(STOP_SIGNAL, self._stop_current)
        with self._runner:
            while (call := self._waiting.get()) is not None:
                self._make(call)

    def _make(self, call: _Call) -> None:
        value, error = None, None
        try:
            if call.is_to_stop():
                raise CancelledBeforeStart
            try:
                self._current = call
                value = call.scope.run(call.function)
            finally:
                self._current = None
        except BaseException as raised:
            error = carried(raised)
        with contextlib.suppress(RuntimeError):  # the other thread's loop is closed, so nothing is waiting for the result
            call.loop.call_soon_threadsafe(_settle, call.outcome, value, error)

    def _stop_current(self, number: int, frame: FrameType | None) -> None:
        """Raise JobStopping if the signal interrupted a plain function, but not if it interrupted `_make`, before or after the function."""
        call = self._current
        if call is not None and call.asked and frame is not None and frame.f_code is not _MAKE:
            raise JobStopping(call.asked.pop())

    def _run_task(self, call: _Call, function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        loop = self._runner.get_loop()
        call.task = task = loop.create_task(function(), context=contextvars.copy_context())
        if call.is_to_stop():
            task.cancel()
        return loop.run_until_complete(task)


_MAKE: Final = MainThreadCalls._make.__code__


def _settle(outcome: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if outcome.done():
        return
    if error is None:
        outcome.set_result(value)
    else:
        outcome.set_exception(error)


Say = Callable[[Message], None]


class ChildExecutor(Executor):
    """Runs jobs without middleware or timeouts; the worker applies both. Plain functions are stopped by JobStopping in the main thread."""

    def __init__(self, calls: MainThreadCalls, say: Say) -> None:
        super().__init__(default_app(), middleware=(), threads=None, seams=Seams())
        self._calls = calls
        self._say = say
        self._loop = asyncio.get_running_loop()

    async def run(self, holding: HeldLease) -> Settlement:
        reports = _ProgressReports(self._say, holding)
        holding.on_report = reports.send_soon
        try:
            return await super().run(holding)
        finally:
            reports.end()

    async def _invoke(
        self, holding: HeldLease, job: AnyJob, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return await (self._calls.run_async if isinstance(job, Job) else self._calls.run)(partial(function, *args, **kwargs))

    def _stop(self, holding: HeldLease, context: JobContext, task: asyncio.Task[Any] | None) -> None:
        context.cancelled.set()
        self._calls.stop(_REASONS[holding.why_stopped or CANCELLED])

    def _end_at_timeout(self, holding: HeldLease) -> None:
        """Do nothing, because the worker enforces the timeout."""

    def _complete_with(self, holding: HeldLease, connection: object, result: bytes) -> Awaitable[None]:
        self._loop.call_soon_threadsafe(self._say, Completing())
        return super()._complete_with(holding, connection, result)


class _ProgressReports:
    """Sends the latest progress of one run to the worker, at most every `PROGRESS_INTERVAL` seconds."""

    def __init__(self, say: Say, holding: HeldLease) -> None:
        self._say = say
        self._holding = holding
        self._loop = asyncio.get_running_loop()
        self._is_under_way = False
        self._said: Progress | None = None
        self._said_at = 0.0
        self._has_ended = False

    def send_soon(self) -> None:
        """Send the latest progress as soon as the interval allows. May be called from any thread."""
        if not self._is_under_way and not self._has_ended:
            self._is_under_way = True
            self._loop.call_soon_threadsafe(lambda: self._loop.call_at(self._said_at + PROGRESS_INTERVAL, self._send))

    def end(self) -> None:
        """Send the latest progress now, and ignore later reports."""
        self._send()
        self._has_ended = True

    def _send(self) -> None:
        self._is_under_way = False  # reset first, so that later progress is sent as well
        latest = self._holding.progress
        if latest is not None and latest is not self._said and not self._has_ended:
            self._said, self._said_at = latest, self._loop.time()
            self._say(Reported(latest.fraction, latest.note))
