"""Runs a worker's services: tasks that restart if they fail or are cancelled, until the block ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Self

from taskflow.app.events import Events
from taskflow.model.clock import Chance
from taskflow.model.pauses import Pauses, Retries
from taskflow.worker.events import ServiceFailed

Service = Callable[[], Coroutine[Any, Any, None]]

PAUSES: Final = Pauses(0.1, 30.0)
MIN_HEALTHY_TIME: Final = 60.0  # a service that has run for this many seconds before it fails restarts after the shortest pause


class Services:
    """An async context manager that runs services inside its block. `on_end` is called whenever a service stops.

    If other code cancels a service, for example a job that cancels all tasks, the service restarts at once. If it fails, it restarts
    after a pause, which grows with each failure."""

    def __init__(self, events: Events, chance: Chance, on_end: Callable[[], None], *services: Service) -> None:
        self._events = events
        self._chance = chance
        self._on_end = on_end
        self._services = services
        self._tasks = set[asyncio.Task[None]]()
        self._is_over = False

    def start(self, service: Service) -> None:
        self._start(service, Retries(PAUSES, self._chance.random))

    async def __aenter__(self) -> Self:
        for service in self._services:
            self.start(service)
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._is_over = True
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=1.0)  # a library may swallow a cancellation

    def _start(self, service: Service, retries: Retries) -> None:
        if not self._is_over:
            task = asyncio.get_running_loop().create_task(service(), name=service.__qualname__)
            self._tasks.add(task)
            task.add_done_callback(partial(self._record_end, service, retries, time.monotonic()))

    def _record_end(self, service: Service, retries: Retries, began_at: float, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._on_end()
        if task.cancelled():
            self._start(service, retries)
        elif (error := task.exception()) is not None:
            if time.monotonic() - began_at > MIN_HEALTHY_TIME:
                retries.succeeded()
            pause = retries.failed()
            self._events.emit(ServiceFailed(service.__qualname__, error, pause))
            asyncio.get_running_loop().call_later(pause, self._start, service, retries)
