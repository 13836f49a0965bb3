"""The tasks of a session's parts, which go on for as long as it lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from taskflow.model.retry import Pauses, Retries
from taskflow.model.seams import Chance

Duty = Callable[[], Coroutine[Any, Any, None]]

PAUSES: Final = Pauses(0.1, 30.0)
HEALTHY_AFTER: Final = 60.0
"""Seconds after which a duty that fails starts again with the shortest pause."""

OnFailed = Callable[[str, BaseException, float], None]
"""Called with the duty's name, the error, and the seconds until the duty starts again."""


class TaskSupervisor:
    """Keeps every duty running: without one of them the worker would be alive and do nothing.

    A duty that a stranger has cancelled starts again at once: a job may cancel every task there is. One that has failed starts again after
    a growing pause, and the session lives on: our own bug, or one odd row, must not cost the other jobs their leases. `on_end` is called
    whenever a duty ends.
    """

    def __init__(self, on_end: Callable[[], None], on_failed: OnFailed, chance: Chance) -> None:
        self._on_end = on_end
        self._on_failed = on_failed
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[Duty, asyncio.Task[None]] = {}
        self._retries: dict[Duty, Retries] = {}

    def attend(self, duty: Duty) -> None:
        self._tasks[duty] = task = self._loop.create_task(duty())
        task.add_done_callback(partial(self._note_end, duty, time.monotonic()))

    def at(self, duty: Duty) -> asyncio.Task[None] | None:
        return self._tasks.get(duty)

    async def dismiss(self, *duties: Duty) -> None:
        await end([self._tasks.pop(duty) for duty in duties if duty in self._tasks])

    def _note_end(self, duty: Duty, began_at: float, task: asyncio.Task[None]) -> None:
        self._on_end()
        if self._tasks.get(duty) is not task:  # it was dismissed
            return
        if task.cancelled():
            self.attend(duty)
        elif (error := task.exception()) is not None:
            retries = self._retries.setdefault(duty, Retries(PAUSES, self._chance.random))
            if time.monotonic() - began_at > HEALTHY_AFTER:
                retries.succeeded()
            pause = retries.failed()
            self._on_failed(duty.__qualname__, error, pause)
            self._loop.call_later(pause, self._attend_again, duty, task)

    def _attend_again(self, duty: Duty, failed: asyncio.Task[None]) -> None:
        if self._tasks.get(duty) is failed:
            self.attend(duty)


async def end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
