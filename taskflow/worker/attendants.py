"""The tasks of a session's parts, which go on for as long as it lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

Duty = Callable[[], Coroutine[Any, Any, None]]


class Attendants:
    """Without one of them the worker would be alive and do nothing. One that a stranger has cancelled, a job that cancels every task there
    is or one that stops the loop, begins again; of one that failed `on_failed` hears, in words. `on_end` is called at every end."""

    def __init__(self, on_end: Callable[[], None], on_failed: Callable[[str], None]) -> None:
        self._on_end = on_end
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[Duty, asyncio.Task[None]] = {}

    def attend(self, duty: Duty) -> None:
        self._tasks[duty] = task = self._loop.create_task(duty())
        task.add_done_callback(partial(self._note_end, duty))

    def at(self, duty: Duty) -> asyncio.Task[None] | None:
        return self._tasks.get(duty)

    async def dismiss(self, *duties: Duty) -> None:
        await end([self._tasks.pop(duty) for duty in duties if duty in self._tasks])

    def _note_end(self, duty: Duty, task: asyncio.Task[None]) -> None:
        self._on_end()
        if task.cancelled():
            if self._tasks.get(duty) is task:  # it was not dismissed
                self.attend(duty)
        elif task.exception() is not None:
            self._on_failed(why_ended(task))


def why_ended(task: asyncio.Task[None]) -> str:
    error = None if task.cancelled() else task.exception()
    return "it was cancelled" if error is None else f"{type(error).__name__}: {error}"


async def end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
