"""Runs plain functions in threads. Results are returned in batches, because a thread switch for each job would cost too much."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from taskflow.model.clock import StartThread
from taskflow.model.errors import JobStopping

IDLE_TIMEOUT: Final = 30.0  # seconds after which an idle thread ends, so that a burst does not leave a hundred threads behind


class _ThreadCall(NamedTuple):
    function: Callable[[], Any]
    scope: contextvars.Context
    outcome: asyncio.Future[Any]


class ThreadPool:
    """A pool of at most `size` daemon threads, started as needed, for one event loop. `left_behind` counts the threads
    that are still running an abandoned function. `on_freed` is called in the event loop when such a function has ended."""

    def __init__(self, size: int, start_thread: StartThread, on_freed: Callable[[], None] = lambda: None) -> None:
        self.left_behind = 0
        self._size = size
        self._start_thread = start_thread
        self._on_freed = on_freed
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_ThreadCall] = deque()
        self._wake = threading.Condition(threading.Lock())
        self._idle = 0
        self._alive = 0
        self._is_one_coming = False
        self._is_closed = False
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._is_delivering = False

    def run(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Call the function in a thread, with this task's context variables, and return a future for the outcome. If you cancel the future,
        call `give_up`; unless a thread has taken the call, it isn't made. Raises RuntimeError if there is no thread, and none can start."""
        outcome: asyncio.Future[Any] = self._loop.create_future()
        work = _ThreadCall(function, contextvars.copy_context(), outcome)
        self._waiting.append(work)
        try:
            self._call_one()
        except RuntimeError:
            self._waiting.remove(work)
            raise
        return outcome

    def take_back(self, outcome: asyncio.Future[Any]) -> None:
        """Withdraw the call if no thread has taken it. Its future then raises CancelledBeforeStart."""
        if not outcome.done() and self._withdraw(outcome):
            outcome.set_exception(CancelledBeforeStart())

    def give_up(self, outcome: asyncio.Future[Any]) -> None:
        """Withdraw a cancelled call. If a thread has already taken it, count that thread as left behind until the function ends."""
        if outcome.cancelled() and not self._withdraw(outcome):
            self.left_behind += 1

    def close(self) -> None:
        """End the threads: idle ones now, busy ones once their functions have returned."""
        with self._wake:
            self._is_closed = True
            self._wake.notify_all()

    def _withdraw(self, outcome: asyncio.Future[Any]) -> bool:
        """Remove the call from the queue. Return False if a thread has already taken it."""
        for work in self._waiting.copy():
            if work.outcome is outcome:
                with contextlib.suppress(ValueError):  # a thread has just taken it
                    self._waiting.remove(work)
                    return True
        return False

    def _call_one(self) -> None:
        """Wake or start a thread, unless one is on its way: that thread wakes another if it finds more calls. So each blocking function
        gets a thread, while one or two threads handle a batch of short functions without competing for the GIL."""
        if self._is_one_coming:
            return
        with self._wake:
            if self._idle:
                self._is_one_coming = True
                self._wake.notify()
            elif self._alive < self._size:
                self._is_one_coming = True
                self._alive += 1
                try:
                    self._start_thread(self._work, "taskflow-job")
                except RuntimeError:  # the system cannot start another thread; the existing ones must do the work
                    self._is_one_coming = False
                    self._alive -= 1
                    if not self._alive:
                        raise

    def _work(self) -> None:
        self._is_one_coming = False
        while (work := self._next()) is not None:
            if self._waiting:
                self._call_one()
            value, error = None, None
            try:
                if not work.outcome.cancelled():  # a cancelled call must not start: the caller is no longer waiting for it
                    value = work.scope.run(work.function)
            except BaseException as raised:
                error = raised
            self._deliver(work.outcome, value, error)
            del work, value, error

    def _next(self) -> _ThreadCall | None:
        while True:
            try:
                return self._waiting.popleft()
            except IndexError:
                if not self._has_more():
                    return None

    def _has_more(self) -> bool:
        """Wait for a call. Return False if none arrives in time, or the pool is closed. Calls are queued before a thread is woken."""
        with self._wake:
            is_late = False
            while not self._waiting:
                if self._is_closed or is_late:
                    self._alive -= 1
                    return False
                self._idle += 1
                is_late = not self._wake.wait(IDLE_TIMEOUT)
                self._idle -= 1
                self._is_one_coming = False
            return True

    def _deliver(self, outcome: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        """Pass the outcome to the event loop, together with any others that the loop has not taken yet."""
        self._done.append((outcome, value, error))
        if not self._is_delivering:
            self._is_delivering = True
            try:
                self._loop.call_soon_threadsafe(self._take_in)
            except RuntimeError:  # the loop is closed, so nothing is waiting
                self._done.clear()

    def _take_in(self) -> None:
        self._is_delivering = False
        while self._done:
            outcome, value, error = self._done.popleft()
            if outcome.cancelled():
                self.left_behind -= 1
                self._on_freed()
                continue
            if error is None:
                outcome.set_result(value)
            else:
                outcome.set_exception(carried(error))


class StoppableCall:
    """A call to be made in a thread. `stop` raises JobStopping in that thread, at most once, and never after the call has ended."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Interrupt the function, or keep it from being called."""
        if self._is_stopped:
            return
        with self._lock:
            if self._thread is not None:
                _raise_in(self._thread, JobStopping)
            self._is_stopped = True

    def __call__(self) -> Any:
        with self._lock:
            if self._is_stopped:
                raise JobStopping
            self._thread = threading.get_ident()
        try:
            return self._function()
        finally:
            self._end()

    def _end(self) -> None:
        try:
            with self._lock:
                thread, self._thread = self._thread, None
                if self._is_stopped and thread is not None:
                    _raise_in(thread, None)  # withdraws an exception that hasn't been raised yet
        except JobStopping:  # too late: the function had already ended
            pass


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an exception in a thread when it next runs Python code. None withdraws an exception that hasn't been raised yet."""
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error))


class CancelledBeforeStart(Exception):
    """The outcome of a call that was taken back before its function started."""


class RaisedInThread(Exception):
    """Wraps an error that a future can't carry: StopIteration, or GeneratorExit, which would close the awaiting coroutine."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__} was raised by the job's function")
        self.__cause__ = self.error = error


def carried(error: BaseException) -> BaseException:
    return RaisedInThread(error) if issubclass(type(error), (StopIteration, GeneratorExit)) else error
