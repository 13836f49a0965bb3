"""Runs the services of a session: tasks that are restarted when they fail or are cancelled, until an `async with` block ends."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from taskflow.model.clock import Chance
from taskflow.model.pauses import Pauses, Retries
from taskflow.worker.events import Events, ServiceFailed

Service = Callable[[], Coroutine[Any, Any, None]]

PAUSES: Final = Pauses(0.1, 30.0)
HEALTHY_AFTER: Final = 60.0  # a service that has run for this many seconds before it fails restarts after the shortest pause


class Group:
    """An anyio task group that closes the calls whose tasks were cancelled before their first step: Python would warn about them."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self._calls: list[Coroutine[Any, Any, None]] = []

    def start(self, call: Coroutine[Any, Any, None], name: str) -> None:
        self._calls = [*(call for call in self._calls if inspect.getcoroutinestate(call) != inspect.CORO_CLOSED), call]
        self._group.start_soon(lambda: call, name=name)

    def close(self) -> None:
        for call in self._calls:
            if inspect.getcoroutinestate(call) == inspect.CORO_CREATED:
                call.close()


@asynccontextmanager
async def a_group() -> AsyncIterator[Group]:
    """Open a task group. At the end of the block, its tasks are cancelled and awaited.

    If a job cancels every existing task, anyio's group ends the block without an error. This one raises CancelledError instead, so that
    the task that opened it stops too and can be restarted.
    """
    has_ended = False
    tasks = anyio.create_task_group()
    group = Group(tasks)
    try:
        async with tasks:
            yield group
            has_ended = True
            tasks.cancel_scope.cancel()
    finally:
        group.close()
    if not has_ended:
        raise asyncio.CancelledError


class Services:
    """Runs services, and restarts those that fail or are cancelled: without one of them, the worker would be alive but do nothing.

    A service that was cancelled by other code restarts at once, because a job may cancel every existing task. One that failed restarts
    after a growing pause, so that a bug here does not cost the jobs their leases. `on_end` is called whenever a service stops.
    """

    def __init__(self, events: Events, chance: Chance, on_end: Callable[[], None]) -> None:
        self._events = events
        self._chance = chance
        self._on_end = on_end

    @asynccontextmanager
    async def running(self, *services: Service) -> AsyncIterator[None]:
        """Run the services until the block ends."""
        tasks = list[asyncio.Task[Any]]()
        async with a_group() as group:
            for service in services:
                group.start(self._run(service, tasks), service.__qualname__)
            try:
                yield
            finally:  # at once: anyio skips a task that is about to run, and one that is woken in each turn of the loop always is
                for task in tasks:
                    task.cancel()

    async def _run(self, service: Service, tasks: list[asyncio.Task[Any]]) -> None:
        if (task := asyncio.current_task()) is not None:
            tasks.append(task)
        retries, pause = Retries(PAUSES, self._chance.random), 0.0
        while True:
            began_at = time.monotonic()
            try:
                if pause:
                    await asyncio.sleep(pause)
                await service()
                return
            except asyncio.CancelledError:
                if anyio.current_effective_deadline() == -math.inf:  # its group ends
                    raise
                pause = 0.0
            except (GeneratorExit, KeyboardInterrupt, SystemExit):  # meant for the caller that runs the loop
                raise
            except BaseException as error:
                if time.monotonic() - began_at > pause + HEALTHY_AFTER:
                    retries.succeeded()
                pause = retries.failed()
                self._events.emit(ServiceFailed(service.__qualname__, error, pause))
            finally:
                self._on_end()
