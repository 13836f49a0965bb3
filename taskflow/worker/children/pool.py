"""The pool of a worker's child processes, which are started on demand and reused."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from taskflow.app.app import App
from taskflow.app.context import JobContext
from taskflow.app.decorator import RUN_AS_MAIN
from taskflow.app.job_type import AnyJob
from taskflow.app.options import Policy
from taskflow.broker.retry import retry
from taskflow.model.clock import StartThread
from taskflow.model.pauses import Pauses, Retries
from taskflow.model.printable import log_safely
from taskflow.model.verdict import RunEnding, Verdict
from taskflow.worker.children.messages import CHILD_HOOKS, CannotStart, ChildFailed, Handshake
from taskflow.worker.children.process import Child, ChildOptions, ChildSpec, Emit
from taskflow.worker.lease_table import HeldLease

log: Final = logging.getLogger("taskflow.worker")

START_PAUSES: Final = Pauses(0.1, 2.0)

TIMEOUT_GRACE: Final = 5.0  # seconds that a run with `timeout_raises` but no `stop_grace` has to end after its timeout

_UNTIL_GONE: Final = 5.0  # seconds within which a killed child is gone, unless the system itself is stuck


class ChildPool:
    """A pool of child processes, of which at most `options.slots` run jobs at once. Belongs to one event loop."""

    def __init__(self, app: App, options: ChildOptions, *, modules: tuple[str, ...], emit: Emit, start_thread: StartThread) -> None:
        self._app = app
        self._options = options
        self._modules = modules
        self._emit = emit
        self._start_thread = start_thread
        self._slots = asyncio.Semaphore(options.slots)
        self._idle: dict[Child, asyncio.TimerHandle] = {}
        self._alive: set[Child] = set()
        self._failures = Retries(START_PAUSES)
        self._start_at = 0.0

    async def reserve(self, holding: HeldLease, job: AnyJob) -> ReservedChild:
        """Wait for a slot and a child that has imported the job's module. Raises ChildFailed, or CancelledError if the run is stopped."""
        task = asyncio.current_task()
        assert task is not None
        holding.started, holding.stop = None, task.cancel
        try:
            if holding.why_stopped is not None:
                raise asyncio.CancelledError
            module = job.function.__module__
            await self._slots.acquire()
            try:
                return ReservedChild(await self._prepared(module), module, holding, self._give_back)
            except BaseException:
                self._slots.release()
                raise
        finally:
            holding.started, holding.stop = time.monotonic(), None

    async def close(self) -> None:
        """Retire the idle children and kill the others. Unless the system is stuck, all are gone when this returns."""
        for child in self._alive:
            if child in self._idle:
                child.retire()
            elif not child.is_retired:
                child.kill()
        for timeout in (self._options.exit_within, _UNTIL_GONE):
            if self._alive:
                await asyncio.wait([child.ended for child in self._alive], timeout=timeout)
            for child in self._alive:
                child.kill()

    async def _prepared(self, module: str) -> Child:
        child = self._warm()
        try:
            if child is None:
                await asyncio.sleep(self._start_at - time.monotonic())
                child = await self._start()
            await child.prepare(module, _main_module() if module in RUN_AS_MAIN else None)
        except BaseException as error:
            if child is not None:
                child.kill()
            if isinstance(error, ChildFailed):  # without a pause, waiting jobs could use up their attempts at once
                pause = self._failures.failed()
                self._start_at = time.monotonic() + pause
                with_notes = partial(log.error, exc_info=(type(error), error, None))  # the notes contain the child's traceback
                log_safely(with_notes, "a child process cannot be used; the next one starts in %.1f s: %s", pause, error)
            raise
        self._failures.succeeded()
        return child

    def _warm(self) -> Child | None:
        """Return the most recently used idle child, or None if none is idle. The others are left to time out."""
        while self._idle:
            child, timer = self._idle.popitem()
            timer.cancel()
            if not child.is_spent:
                return child
        return None

    async def _start(self) -> Child:
        """Start a child. If the system lacks resources, try again for up to `start_within` seconds, so that the job loses no attempt."""
        spec, within = ChildSpec(self._handshake(), self._options, self._emit, self._start_thread), self._options.start_within

        def note(error: Exception, times: int) -> None:
            if times == 1:
                log_safely(log.warning, "%s; trying again for at most %g s", error, within)

        child = await retry(lambda: Child.start(spec), START_PAUSES, on=CannotStart, note=note, give_up_at=time.monotonic() + within)
        self._alive.add(child)
        child.ended.add_done_callback(lambda _: self._forget(child))
        return child

    def _give_back(self, child: Child) -> None:
        self._slots.release()
        if not child.is_spent:
            self._idle[child] = asyncio.get_running_loop().call_later(self._options.idle_for, child.retire)
        elif not child.ended.done():
            child.retire()

    def _forget(self, child: Child) -> None:
        self._alive.discard(child)
        if (timer := self._idle.pop(child, None)) is not None:
            timer.cancel()

    def _handshake(self) -> Handshake:
        settings = self._app.settings
        return Handshake(
            modules=self._modules,
            arguments=tuple(sys.argv),
            settings={
                "broker": self._app.broker_url(),
                "enqueue_timeout": settings.enqueue_timeout,
                "max_payload": settings.max_payload,
                "defaults": settings.defaults.options,
            },
            is_reachable=self._app.is_reachable,
            has_lifespan=settings.lifespan is not None,
            hooks=tuple(name for name in CHILD_HOOKS if getattr(settings, name) is not None),
            log_level=logging.getLogger().level,
        )


class ReservedChild:
    """A child that is reserved for one run, until `release` is called."""

    def __init__(self, child: Child, module: str, holding: HeldLease, give_back: Callable[[Child], None]) -> None:
        self._child = child
        self._module = module
        self._holding = holding
        self._give_back = give_back

    async def run(self) -> Verdict:
        """Run the job and return its verdict. Raises ChildFailed if there is none. If cancelled, kill the child and wait for its end."""
        try:
            return await self._child.run(self._holding, self._module)
        except asyncio.CancelledError:
            self._child.kill()
            await asyncio.wait([self._child.ended], timeout=_UNTIL_GONE)
            raise

    @contextlib.contextmanager
    def soft_stop(self, context: JobContext, policy: Policy) -> Iterator[None]:
        """In this block, a request to stop the run is passed on to the child, which is killed after the job's grace period (if any)."""
        holding, kill, timers = self._holding, self._holding.stop, list[asyncio.TimerHandle]()

        def stop() -> None:
            assert holding.why_stopped is not None
            assert kill is not None
            context.cancelled.set()
            grace = policy.stop_grace
            if policy.timeout_raises and holding.why_stopped == RunEnding.TIMED_OUT:
                grace = grace or TIMEOUT_GRACE
            if not grace:
                kill()
                return
            self._child.ask_to_stop(holding.why_stopped)
            timers.append(asyncio.get_running_loop().call_later(grace, kill))

        holding.stop = stop
        try:
            yield
        finally:
            holding.stop = kill
            for timer in timers:
                timer.cancel()

    def release(self) -> None:
        self._give_back(self._child)


def _main_module() -> str | None:
    """Return the worker's main module for `Import`: a module's name, a file's absolute path, or None in an interactive session."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    return None if file is None else os.path.abspath(file)
