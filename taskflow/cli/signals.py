"""Ends a worker's process: winds the worker down on SIGTERM, SIGINT and SIGHUP, and kills a process that is stuck or exits too late."""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import logging
import os
import queue
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, Final, Self

from taskflow.cli.exit_codes import Exit
from taskflow.cli.main import WARNING_TIMEOUT, warn_of_slow_exit
from taskflow.cli.startup import Interrupted, drops_exceptions, interrupts
from taskflow.model.clock import start_thread
from taskflow.model.printable import log_safely
from taskflow.worker.children.syscalls import HANDLED, SAME_SIGNAL, keep_handlers_from_forks
from taskflow.worker.worker import Worker

log: Final = logging.getLogger("taskflow.worker")

# After the grace period, winding down takes at most this many times `stop_timeout`: for runs to react, for settlements, for the last
# heartbeat, for leaving the session, and for `ended` hooks.
MAX_STOP_TIMEOUTS: Final = 5
FORCED_EXIT_TIMEOUT: Final = 1.0  # runs that were cut off have already had their time
DUMP_TIMEOUT: Final = 2.0


class ForcedExit:
    """Kills the process from a thread if it does not exit in time. Leaving the `with` block disarms it. The exit code is `Exit.FORCED`, or
    the code of the work if that has already finished."""

    def __init__(self) -> None:
        self._deadlines = queue.SimpleQueue[float | None]()  # reentrant, because a signal handler may call `put` at any point
        self._code: int = Exit.FORCED

    def end_within(self, seconds: float, code: int | None = None) -> None:
        """End the process after `seconds`, with `code` if the work has finished. If called again, the earliest deadline applies."""
        self._code = self._code if code is None else code
        self._deadlines.put(time.monotonic() + seconds)

    def __enter__(self) -> Self:
        self._thread = start_thread(self._watch, "taskflow-forced-exit")
        return self

    def __exit__(self, *error: object) -> None:
        self._deadlines.put(None)
        self._thread.join()

    def _watch(self) -> None:
        ends_at: float | None = None
        with suppress(queue.Empty):
            while (deadline := self._deadlines.get(timeout=None if ends_at is None else max(0.0, ends_at - time.monotonic()))) is not None:
                ends_at = deadline if ends_at is None else min(ends_at, deadline)
            return
        forced = partial(log.error, "the process did not exit in time; killing it")
        _run_for(WARNING_TIMEOUT, forced if self._code == Exit.FORCED else warn_of_slow_exit)
        os._exit(self._code)


def _run_for(seconds: float, say: Callable[[], None]) -> None:
    """Call `say`, which prints something, and wait at most `seconds` for it, because the reader may be gone or stuck."""
    with suppress(RuntimeError):  # the system cannot start another thread
        start_thread(say, "taskflow-last-words").join(seconds)


class Signals:
    """Handles a worker's signals: the first winds it down, the second cancels its runs, the third ends even a blocked process.

    While modules are imported, the first raises `Interrupted`; while the worker starts, it cancels the start. In both cases, the second
    ends the process. After `begin`, the handler only wakes the loop. SIGHUP counts only once: a closing terminal sends several."""

    def __init__(self, forced_exit: ForcedExit, *, grace: float, stop_timeout: float) -> None:
        self._forced_exit = forced_exit
        self._grace = grace
        self._bound = MAX_STOP_TIMEOUTS * stop_timeout
        self._has_begun = self._has_started = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start: asyncio.Task[Any] | None = None
        self._worker: Worker | None = None
        self._stopped = asyncio.Event()
        self._count = self._number = self._handled = 0
        self._handled_at = float("-inf")
        for number in HANDLED:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under nohup, SIGHUP stays ignored
                signal.signal(number, self._handle)
        atexit.register(self._ignore_late_signals)
        interrupts.raise_again()  # a signal that arrived during an import may have been lost in a callback of the interpreter

    def begin(self) -> None:
        """From now on, handle signals in the event loop, which is created next. The handler no longer raises exceptions."""
        self._has_begun = True

    @property
    def has_come(self) -> bool:
        """True once a signal has arrived. It may explain a failed import: C code may replace the signal's exception with another error."""
        return self._count > 0

    @property
    def code(self) -> int:
        """The exit code of a worker that was stopped by a signal."""
        return 128 + self._number

    async def start(self, starting: Awaitable[object]) -> bool:
        """Await `starting` in the worker's loop. Return False if the first signal cancelled it."""
        self._loop, self._start = asyncio.get_running_loop(), asyncio.current_task()
        self._loop.call_soon(self._handle_in_loop)  # for a signal that arrived before the loop existed
        try:
            await starting
        except asyncio.CancelledError:
            if not self._handled:
                raise
            return False
        finally:
            if self._handled and self._start is not None:
                self._start.uncancel()
            self._start = None
        self._has_started = True
        return True

    async def wait(self, worker: Worker) -> None:
        """Wait, after the start, until a signal requires the worker to wind down. Later signals cancel its runs."""
        self._worker = worker
        self._handle_in_loop()
        await self._stopped.wait()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._handled_at < SAME_SIGNAL or (number == signal.SIGHUP and self._count):
            return
        self._handled_at = now
        self._count += 1
        self._number = number
        if self._count > 2 or (self._count > 1 and not self._has_started):
            os._exit(128 + number)
        if not self._has_begun:
            if drops_exceptions(frame):
                return  # the start is cancelled once the modules are imported
            raise Interrupted(number)
        self._forced_exit.end_within(self._bound + (self._grace if self._count == 1 else 0.0))
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the worker has ended
                self._loop.call_soon_threadsafe(self._handle_in_loop)

    def _ignore_late_signals(self) -> None:
        """Ignore signals while Python shuts down, because it resets handlers: a late SIGTERM would kill it and change the exit code."""
        for number in HANDLED:
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_IGN)

    def _handle_in_loop(self) -> None:
        """Handle the signals that have arrived since the last call."""
        name = signal.Signals(self._number).name if self._count else ""
        while self._handled < self._count:
            self._handled += 1
            if self._handled == 1 and self._start is not None:
                log_safely(log.info, "%s: cancelling the start; a second signal exits at once", name)
                self._stopped.set()
                self._start.cancel()
            elif self._handled == 1:
                log_safely(log.info, "%s: winding down; a second signal cancels the runs, a third exits at once", name)
                self._stopped.set()
            elif self._worker is not None:
                log_safely(log.warning, "%s again: cancelling the runs", name)
                self._worker.end_grace_period()


keep_handlers_from_forks(lambda handler: isinstance(getattr(handler, "__self__", None), Signals))  # needed only once per process


def end_stalled(is_delivered: bool) -> None:
    """End the process, because its loop is blocked. If logging hangs too, the fault handler first writes the stacks to stderr."""
    if not is_delivered:
        _run_for(DUMP_TIMEOUT, _dump)
    os._exit(Exit.STALLED)


def _dump() -> None:
    with suppress(OSError, ValueError):
        faulthandler.dump_traceback(file=sys.stderr.fileno(), all_threads=True)


def show_stacks_when_killed() -> None:
    """Make Python write the stacks of all threads before a fatal signal, such as the SIGABRT of systemd's watchdog, ends the process."""
    if not faulthandler.is_enabled():
        with suppress(OSError, ValueError):  # there is no stderr
            faulthandler.enable(file=sys.stderr.fileno(), all_threads=True)
