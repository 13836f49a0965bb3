"""Threads for plain functions. They pull from one deque, and results travel back to the loop in bundles: a hop a job costs too much."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from taskflow.model.seams import StartThread

# An idle thread goes home after so many seconds, so that a burst does not leave a hundred behind.
IDLE_FOR: Final = 30.0


class _ThreadCall(NamedTuple):
    function: Callable[[], Any]
    scope: contextvars.Context
    outcome: asyncio.Future[Any]


class Threads:
    """At most `size` daemon threads, started when there is work and nobody idle. Belongs to one event loop.

    Daemons, because a function that never returns must not hold up the end of the process.

    `left_behind` is how many threads are at functions that were given up; `on_freed` is called in the loop when one of them has ended.
    """

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
        """Call it in a thread, with this task's context variables; the future is its outcome.

        Cancelling the future keeps a function that has not begun from beginning, and stops no other: nothing can. Whoever cancels it says
        so by `give_up`. Raises RuntimeError when the system has no thread for it.
        """
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
        """Its function is not called any more, if none of the threads has come to it yet: the outcome is NeverBegun then."""
        if not outcome.done() and self._withdraw(outcome):
            outcome.set_exception(NeverBegun())

    def give_up(self, outcome: asyncio.Future[Any]) -> None:
        """Nobody waits for it any more, if it was cancelled: its thread is not free until the function ends."""
        if outcome.cancelled() and not self._withdraw(outcome):
            self.left_behind += 1

    def close(self) -> None:
        """No more work; a thread that is at work ends after it."""
        with self._wake:
            self._is_closed = True
            self._wake.notify_all()

    def _withdraw(self, outcome: asyncio.Future[Any]) -> bool:
        """Whether no thread has taken it, and none will."""
        for work in self._waiting.copy():
            if work.outcome is outcome:
                with contextlib.suppress(ValueError):  # taken this moment
                    self._waiting.remove(work)
                    return True
        return False

    def _call_one(self) -> None:
        """Have a thread come, unless one is on its way: that one calls the next when it finds more than it takes.

        So functions that wait get a thread each, while one or two threads work off a bundle of those that do not: with a thread woken for
        each they would fight for the interpreter, at several times the price of the work.
        """
        if self._is_one_coming:
            return
        with self._wake:
            if self._idle:
                self._is_one_coming = True
                self._wake.notify()
            elif self._alive < self._size:
                self._start_one()

    def _start_one(self) -> None:
        self._is_one_coming = True
        self._alive += 1
        try:
            self._start_thread(self._work, "taskflow-job")
        except RuntimeError:  # the system has no more threads: those that are alive do the work, else nobody could
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
                if not work.outcome.cancelled():  # else what it belonged to has ended, and it must not come after that
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
        """Waits for work, and goes home when none comes. Work is added first and called for then: it is seen here, or finds us idle."""
        with self._wake:
            is_late = False
            while not self._waiting:
                if self._is_closed or is_late:
                    self._alive -= 1
                    return False
                self._idle += 1
                is_late = not self._wake.wait(IDLE_FOR)
                self._idle -= 1
                self._is_one_coming = False
            return True

    def _deliver(self, outcome: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        """One call into the loop brings all that is done by then."""
        self._done.append((outcome, value, error))
        if not self._is_delivering:
            self._is_delivering = True
            try:
                self._loop.call_soon_threadsafe(self._take_in)
            except RuntimeError:  # the loop is closed: nobody waits any more
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


class NeverBegun(Exception):
    """What a function comes to that was taken back."""


class RaisedInThread(Exception):
    """Carries an error that a future cannot hand over as it is: it refuses StopIteration, and GeneratorExit closes whoever awaits it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__} was raised by the job's function")
        self.__cause__ = self.error = error


def carried(error: BaseException) -> BaseException:
    """Return what a future takes in place of `error`."""
    return RaisedInThread(error) if issubclass(type(error), (StopIteration, GeneratorExit)) else error
